package build

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strings"

	"golang.org/x/arch/x86/x86asm"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/patch"
)

// The values of a branch.
const (
	branchOn  = "on"
	branchOff = "off"
)

// set makes the sites that give a declared name its new value. Those that have it already are left out.
func (p *Program) set(name, value string) ([]patch.Site, error) {
	all := p.notes.named(name)
	if len(all) == 0 {
		return nil, errors.New("the program declares no such site: --list shows those that it does")
	}
	var out []patch.Site
	for _, d := range all {
		if d.kind != all[0].kind {
			return nil, errors.New("its notes name immediates and branches: give them two names and build the program again")
		}
		old, in, err := p.declaredCode(d)
		if err != nil {
			return nil, err
		}
		var b []byte
		if d.kind == abi.SiteBranch {
			b, err = p.setBranch(d, old, value)
		} else {
			b, err = setImmediate(d, old, in, value)
		}
		if err != nil {
			return nil, err
		}
		if bytes.Equal(b, old) {
			continue
		}
		kind := patch.Imm
		if d.kind == abi.SiteBranch {
			kind = patch.Branch
		}
		out = append(out, patch.Site{Name: name, Kind: kind, Addr: d.at, Old: old, New: b, Restartable: restartable(in)})
	}
	return out, nil
}

// declaredCode reads the instruction of a note as it runs and holds it against the note. The note says where it begins; where its function can be
// decoded, that must agree.
func (p *Program) declaredCode(d declared) ([]byte, x86asm.Inst, error) {
	bad := func(format string, a ...any) ([]byte, x86asm.Inst, error) {
		return nil, x86asm.Inst{}, fmt.Errorf("its note is not of the program's code: at %#x "+format+": build the program again", append([]any{d.at}, a...)...)
	}
	old, err := p.code(d.at, uint64(d.length))
	if err != nil {
		return bad("is no text")
	}
	if n, by, exact := p.patched(d.at, d.length); n != 0 && !exact {
		return nil, x86asm.Inst{}, fmt.Errorf("patch %d stands across it (%s): revert that first", n, by.Name)
	}
	in, err := single(old)
	if err != nil {
		return bad("%x %w", old, err)
	}
	if leaves(in) {
		return bad("%v may not be changed", in)
	}
	if b, err := p.body(d.at); err == nil {
		if err := b.holds(d.at, d.length, false); err != nil {
			return nil, in, err
		}
	}
	switch d.kind {
	case abi.SiteImm:
		if _, err := immediate(in, old, d); err != nil {
			return bad("%v %w", in, err)
		}
	case abi.SiteBranch:
		to, on := jumpTo(old, d.at)
		if !on && in.Op != x86asm.NOP || on && to != d.target {
			return bad("%v is neither a NOP nor a JMP to %#x", in, d.target)
		}
		if !p.isText(d.target) {
			return bad("its target %#x is no text", d.target)
		}
	}
	return old, in, nil
}

// setBranch gives the bytes of a branch that is on or off. Off is what the file has, if that is a NOP.
func (p *Program) setBranch(d declared, old []byte, value string) ([]byte, error) {
	switch value {
	case branchOn:
		b, err := p.branchTarget(d)
		if err != nil {
			return nil, err
		}
		return b, nil
	case branchOff:
		if in, err := single(old); err == nil && in.Op == x86asm.NOP {
			return old, nil
		}
		return []byte(nop5), nil
	}
	return nil, fmt.Errorf("%q is no value of a branch: write %s or %s", value, branchOn, branchOff)
}

// branchTarget makes the JMP of a branch, whose target must be an instruction where that can be known.
func (p *Program) branchTarget(d declared) ([]byte, error) {
	if b, err := p.body(d.target); err == nil && !b.begins(d.target) {
		return nil, fmt.Errorf("its note leads to %s+%#x, the middle of an instruction: build the program again", b.sym.name, d.target-b.sym.addr)
	}
	return jump(d.at, d.target)
}

// immediate proves that the note's bytes are the instruction's immediate operand, and nothing else of it, and gives its place among the operands.
func immediate(in x86asm.Inst, code []byte, d declared) (arg int, err error) {
	arg = -1
	for i, a := range in.Args {
		if _, ok := a.(x86asm.Imm); ok {
			if arg >= 0 {
				return 0, errors.New("has two immediates")
			}
			arg = i
		}
	}
	if arg < 0 || d.off+d.width != len(code) {
		return 0, errors.New("has no immediate there")
	}
	if in.PCRel != 0 && in.PCRelOff+in.PCRel > d.off {
		return 0, errors.New("has an address there, relative to itself")
	}
	// Every bit of the field must show in that operand, and in no other part of the instruction.
	seen := map[x86asm.Imm]bool{in.Args[arg].(x86asm.Imm): true}
	for bit := range 8 * d.width {
		b := bytes.Clone(code)
		b[d.off+bit/8] ^= 1 << (bit % 8)
		other, err := single(b)
		if err != nil || !sameButImmediate(in, other, arg) {
			return 0, errors.New("changes its form with that field")
		}
		v := other.Args[arg].(x86asm.Imm)
		if seen[v] {
			return 0, errors.New("does not have all of that field as its immediate")
		}
		seen[v] = true
	}
	for bit := range 8 {
		b := bytes.Clone(code)
		b[d.off-1] ^= 1 << bit
		if other, err := single(b); err == nil && sameButImmediate(in, other, arg) && other.Args[arg] != in.Args[arg] {
			return 0, errors.New("has a wider immediate")
		}
	}
	return arg, nil
}

// sameButImmediate says that two instructions differ in the value of one immediate at most.
func sameButImmediate(a, b x86asm.Inst, arg int) bool {
	if _, ok := b.Args[arg].(x86asm.Imm); !ok {
		return false
	}
	a.Args[arg], b.Args[arg] = nil, nil
	return a == b
}

// setImmediate gives the instruction with another immediate.
func setImmediate(d declared, old []byte, in x86asm.Inst, value string) ([]byte, error) {
	arg, err := immediate(in, old, d)
	if err != nil {
		return nil, err
	}
	low, high := immediateRange(d, old, in, arg)
	v, ok := integer(value)
	if !ok {
		return nil, fmt.Errorf("%q is no integer: write it as 42, -1 or 0x2a", value)
	}
	if v.Cmp(low) < 0 || v.Cmp(high) > 0 {
		return nil, fmt.Errorf("%s does not fit into the %d bytes of %v: give %v to %v", value, d.width, in, low, high)
	}
	b := bytes.Clone(old)
	bits := v.Uint64()
	if v.Sign() < 0 {
		bits = uint64(v.Int64())
	}
	for i := range d.width {
		b[d.off+i] = byte(bits >> (8 * i))
	}
	after, err := single(b)
	if err != nil || !sameButImmediate(in, after, arg) || !bytes.Equal(b[:d.off], old[:d.off]) {
		return nil, fmt.Errorf("%v with %s is another instruction: replace the function instead", in, value)
	}
	return b, nil
}

// integer reads a number as it is written in docs/patching.md. What one reader takes for octal and another for decimal (010) is none, nor is what only Go
// takes for one (1_000).
func integer(s string) (*big.Int, bool) {
	digits := strings.TrimLeft(s, "+-")
	if strings.Contains(s, "_") || len(digits) > 1 && digits[0] == '0' && digits[1] >= '0' && digits[1] <= '9' {
		return nil, false
	}
	return new(big.Int).SetString(s, 0)
}

// immediateRange says which values an immediate can have. Where the operand is wider than the field, the processor extends the field's sign or fills with
// zeros, and only what comes out as it was written is allowed. Where it is as wide, both readings of the bits are.
func immediateRange(d declared, code []byte, in x86asm.Inst, arg int) (low, high *big.Int) {
	ones := bytes.Clone(code)
	for i := range d.width {
		ones[d.off+i] = 0xff
	}
	signed, unsigned := true, true
	if operandWidth(in) > d.width {
		v := x86asm.Imm(0)
		if all, err := single(ones); err == nil {
			v, _ = all.Args[arg].(x86asm.Imm)
		}
		signed, unsigned = v == -1, v != -1
	}
	bits := uint(8 * d.width)
	low, high = new(big.Int), new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), bits-1), big.NewInt(1))
	if signed {
		low.Neg(new(big.Int).Lsh(big.NewInt(1), bits-1))
	}
	if unsigned {
		high.Sub(new(big.Int).Lsh(big.NewInt(1), bits), big.NewInt(1))
	}
	return low, high
}

// operandWidth gives the bytes of the operand that an immediate is combined with.
func operandWidth(in x86asm.Inst) int {
	if in.Op == x86asm.PUSH {
		return 8
	}
	switch a := in.Args[0].(type) {
	case x86asm.Mem:
		return in.MemBytes
	case x86asm.Reg:
		switch {
		case a >= x86asm.AL && a <= x86asm.R15B:
			return 1
		case a >= x86asm.AX && a <= x86asm.R15W:
			return 2
		case a >= x86asm.EAX && a <= x86asm.R15L:
			return 4
		case a >= x86asm.RAX && a <= x86asm.R15:
			return 8
		}
	}
	// A vector register, or none: the immediate is a control byte of its own width.
	return 0
}

// current tells a declared site's value as a user would write it.
func (d declared) current(old []byte, in x86asm.Inst) string {
	if d.kind == abi.SiteBranch {
		if in.Op == x86asm.NOP {
			return branchOff
		}
		return branchOn
	}
	arg, err := immediate(in, old, d)
	if err != nil {
		return "?" // declaredCode has refused it before
	}
	low, _ := immediateRange(d, old, in, arg)
	bits := uint64(0)
	for i := range d.width {
		bits |= uint64(old[d.off+i]) << (8 * i)
	}
	if wide := uint(64 - 8*d.width); low.Sign() < 0 && operandWidth(in) > d.width {
		return fmt.Sprint(int64(bits<<wide) >> wide)
	}
	return fmt.Sprintf("%#x", bits)
}

// exchange makes the site of a Raw.
func (p *Program) exchange(r Raw) (patch.Site, error) {
	none := patch.Site{}
	f, err := p.function(r.Function)
	if err != nil {
		return none, err
	}
	if r.Offset > math.MaxInt32 || r.Offset >= f.size {
		return none, fmt.Errorf("it has %d bytes: give an offset below that", f.size)
	}
	at := f.addr + r.Offset
	old, err := p.code(at, uint64(len(r.Old)))
	if err != nil {
		return none, err
	}
	if !bytes.Equal(old, r.Old) {
		return none, fmt.Errorf("there runs %x, not %x: the bundle is for another program, or another patch stands", old, []byte(r.Old))
	}
	if n, by, exact := p.patched(at, len(old)); n != 0 && !exact {
		return none, fmt.Errorf("patch %d stands across it (%s): revert that first", n, by.Name)
	}
	b, err := p.body(at)
	if err != nil {
		return none, err
	}
	if err := b.holds(at, len(old), false); err != nil {
		return none, err
	}
	before, err := single(old)
	if err != nil {
		return none, fmt.Errorf("old bytes %x: %w", old, err)
	}
	after, err := single(r.New)
	if err != nil {
		return none, fmt.Errorf("new bytes %x: %w: give one whole instruction, padded with prefixes where it is too short", []byte(r.New), err)
	}
	for _, in := range []x86asm.Inst{before, after} {
		if leaves(in) {
			return none, fmt.Errorf("%v may not be a site: what it saves or waits for would see a mixture: replace the function instead", in)
		}
	}
	if restartable(after) {
		return none, fmt.Errorf("the new %v can be half done when a thread stops, and then not be taken back: replace the function instead", after)
	}
	if to, ok := direct(after, at); ok && !b.begins(to) {
		if g, ok := p.around(to); !ok || g.addr != to {
			return none, fmt.Errorf("the new %v leads to %#x, neither an instruction of its function nor the start of another: replace the function instead", after, to)
		}
	}
	if to, ok := besideRIP(after, at); ok && !p.loaded(to) {
		return none, fmt.Errorf("the new %v means %#x there, which is no memory of the program: an address relative to RIP is counted from its own end", after, to)
	}
	return patch.Site{Name: fmt.Sprintf("%s+%#x", f.name, r.Offset), Kind: patch.Raw, Addr: at, Old: old, New: bytes.Clone(r.New), Restartable: restartable(before)}, nil
}

// entry gives the site at which a function can be redirected, as it runs now.
func (p *Program) entry(f symbol) (at uint64, old []byte, err error) {
	head := p.codeUpTo(f.addr, 4+jmpLen)
	at = f.addr
	if len(head) >= 4 && string(head[:4]) == endbr64 {
		at += 4
	}
	if !p.declaredEntry(f.addr, at) {
		return 0, nil, errors.New("it has no patchable entry: compile it with -fpatchable-function-entry=5 and start the program again")
	}
	if old, err = p.code(at, jmpLen); err != nil {
		return 0, nil, err
	}
	n, by, exact := p.patched(at, jmpLen)
	_, jumps := jumpTo(old, at)
	switch {
	case n != 0 && !(exact && by.Kind == patch.Redirect && jumps):
		return 0, nil, fmt.Errorf("patch %d stands across its entry (%s): revert that first", n, by.Name)
	case n == 0 && !isNOPs(old):
		return 0, nil, fmt.Errorf("its entry at %#x has %x and not %d bytes of NOPs: compile it with -fpatchable-function-entry=5 and start the program again", at, old, jmpLen)
	case f.size != 0 && at+jmpLen > f.addr+f.size:
		return 0, nil, fmt.Errorf("it has %d bytes, less than a jump: compile it with -fpatchable-function-entry=5", f.size)
	}
	if b, err := p.body(at); err == nil {
		if err := b.holds(at, jmpLen, true); err != nil {
			return 0, nil, err
		}
	}
	return at, old, nil
}

// declaredEntry says that an entry of the section is the NOP at the address at, or one in front of the function start (which -fpatchable-function-entry=N,M
// puts there) with nothing but NOPs between.
func (p *Program) declaredEntry(start, at uint64) bool {
	i, found := slices.BinarySearch(p.entries, at)
	if found || i == 0 {
		return found
	}
	const most = 256
	e := p.entries[i-1]
	if e >= start || start-e > most {
		return e == start
	}
	b, err := p.code(e, start-e)
	return err == nil && isNOPs(b)
}
