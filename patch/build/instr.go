package build

import (
	"errors"
	"fmt"
	mathbits "math/bits"
	"strings"
	"sync"

	"golang.org/x/arch/x86/x86asm"
)

const (
	jmpLen  = 5                  // JMP rel32, and the NOPs that make room for it
	jmpOp   = 0xe9               // its first byte
	endbr64 = "\xf3\x0f\x1e\xfa" // a landing pad of CET, which x86asm does not know
	nop5    = "\x0f\x1f\x44\x00\x00"

	maxFunction = 1 << 20   // bytes of a function that is decoded
	maxDecoded  = 256 << 20 // bytes of all of them
)

var errDecode = errors.New("cannot be decoded")

// decode reads the instruction at the start of b.
func decode(b []byte) (x86asm.Inst, error) {
	if len(b) >= 4 && string(b[:4]) == endbr64 {
		return x86asm.Inst{Op: x86asm.NOP, Len: 4, Mode: 64}, nil
	}
	in, err := x86asm.Decode(b, 64)
	if err != nil || in.Op == 0 || in.Len <= 0 || in.Len > len(b) {
		// x86asm gives the first prefix alone as an instruction where it does not know what follows.
		return x86asm.Inst{}, errDecode
	}
	for _, p := range in.Prefix {
		if p&x86asm.PrefixInvalid != 0 {
			return x86asm.Inst{}, errDecode // LOCK where it may not stand: faults
		}
	}
	return in, nil
}

// single reads the one instruction that is all of b.
func single(b []byte) (x86asm.Inst, error) {
	in, err := decode(b)
	if err == nil && in.Len != len(b) {
		err = fmt.Errorf("is an instruction of %d bytes, not %d", in.Len, len(b))
	}
	return in, err
}

// isNOPs says that b is NOPs and nothing else, each of them whole.
func isNOPs(b []byte) bool {
	for len(b) > 0 {
		in, err := decode(b)
		if err != nil || in.Op != x86asm.NOP {
			return false
		}
		b = b[in.Len:]
	}
	return true
}

// jumpTo gives the target of the JMP rel32 that is all of b and lies at the address at.
func jumpTo(b []byte, at uint64) (uint64, bool) {
	if len(b) != jmpLen || b[0] != jmpOp {
		return 0, false
	}
	return at + jmpLen + uint64(int64(int32(le.Uint32(b[1:])))), true
}

// jump makes the JMP rel32 from at to target.
func jump(at, target uint64) ([]byte, error) {
	d := int64(target - (at + jmpLen))
	if d != int64(int32(d)) {
		return nil, fmt.Errorf("%#x is more than 2 GiB from %#x", target, at)
	}
	return le.AppendUint32([]byte{jmpOp}, uint32(int32(d))), nil
}

// direct gives the target of a direct jump, call or transaction's abort at the address at.
func direct(in x86asm.Inst, at uint64) (uint64, bool) {
	for _, a := range in.Args {
		if rel, ok := a.(x86asm.Rel); ok {
			return at + uint64(in.Len) + uint64(int64(rel)), true
		}
	}
	return 0, false
}

// leaves says why an instruction may not be a site: its own return address, or the saved one of what it enters, would be looked at nowhere.
func leaves(in x86asm.Inst) bool {
	switch in.Op {
	case x86asm.CALL, x86asm.LCALL, x86asm.SYSCALL, x86asm.SYSENTER, x86asm.SYSRET, x86asm.SYSEXIT, x86asm.INT, x86asm.INTO, x86asm.ICEBP,
		x86asm.IRET, x86asm.IRETD, x86asm.IRETQ, x86asm.LJMP, x86asm.LRET, x86asm.HLT, x86asm.UD1, x86asm.UD2, x86asm.XBEGIN:
		return true
	}
	return false
}

// restartable says that an instruction may have been begun, and be gone on with, while RIP stands at its start: string instructions that repeat,
// gathers and scatters, and the saving of the whole state.
func restartable(in x86asm.Inst) bool {
	op := in.Op.String()
	for _, p := range in.Prefix {
		if p &^= x86asm.PrefixImplicit; p == x86asm.PrefixREP || p == x86asm.PrefixREPN {
			// Elsewhere the byte is a part of the opcode, or a hint. Not to know is to be careful: the flag only costs a retry.
			return true
		}
	}
	for _, part := range []string{"GATHER", "SCATTER", "XSAVE", "XRSTOR", "FXSAVE", "FXRSTOR", "VMASKMOV", "VPMASKMOV", "MASKMOV"} {
		if strings.Contains(op, part) {
			return true
		}
	}
	return false
}

// bits is a set of offsets in a function.
type bits []uint64

func newBits(n uint64) bits        { return make(bits, (n+63)/64) }
func (b bits) has(off uint64) bool { return off/64 < uint64(len(b)) && b[off/64]>>(off%64)&1 != 0 }
func (b bits) set(off uint64)      { b[off/64] |= 1 << (off % 64) }

// body is a function's instructions.
type body struct {
	sym     symbol
	starts  bits // where instructions begin
	targets bits // where direct branches of the function lead
}

// bodies keeps the functions that were decoded.
type bodies struct {
	mu    sync.Mutex
	known map[[2]uint64]decoded // by address and size of the function
	spent uint64                // bytes decoded
}

type decoded struct {
	body *body
	err  error
}

// body decodes the whole function around an address, from its start to its end: nothing less proves where instructions begin.
func (p *Program) body(at uint64) (*body, error) {
	f, ok := p.around(at)
	if !ok {
		return nil, fmt.Errorf("cannot prove the boundaries at %#x: no function with a known size is there: keep the symbols (no strip), and give functions in assembly a .size", at)
	}
	c := &p.bodies
	c.mu.Lock()
	defer c.mu.Unlock()
	key := [2]uint64{f.addr, f.size}
	d, ok := c.known[key]
	if !ok {
		d.body, d.err = p.decodeBody(f)
		c.known[key] = d
	}
	if d.err != nil {
		return nil, fmt.Errorf("cannot prove the boundaries of %s: %w: replace the function instead", f.name, d.err)
	}
	return d.body, nil
}

func (p *Program) decodeBody(f symbol) (*body, error) {
	if p.bodies.spent += f.size; f.size > maxFunction || p.bodies.spent > maxDecoded {
		return nil, fmt.Errorf("it has %d bytes, which is too much to decode", f.size)
	}
	code, err := p.code(f.addr, f.size)
	if err != nil {
		return nil, err
	}
	b := &body{sym: f, starts: newBits(f.size), targets: newBits(f.size)}
	for off := uint64(0); off < f.size; {
		in, err := decode(code[off:])
		if err != nil {
			return nil, fmt.Errorf("the instruction at +%#x %w", off, err)
		}
		if to, ok := direct(in, f.addr+off); ok && to-f.addr < f.size {
			b.targets.set(to - f.addr)
		}
		b.starts.set(off)
		off += uint64(in.Len)
	}
	for i := range b.targets {
		if wrong := b.targets[i] &^ b.starts[i]; wrong != 0 {
			return nil, fmt.Errorf("a branch leads into the middle of an instruction, at +%#x", 64*i+mathbits.TrailingZeros64(wrong))
		}
	}
	return b, nil
}

// begins says that an instruction begins at an address.
func (b *body) begins(at uint64) bool { return b.starts.has(at - b.sym.addr) }

// holds proves that a site is one instruction of the function, or with run several, which no branch enters elsewhere than at its start.
func (b *body) holds(at uint64, n int, run bool) error {
	off := at - b.sym.addr
	if !b.begins(at) {
		return fmt.Errorf("%s+%#x is in the middle of an instruction: give the offset of its first byte", b.sym.name, off)
	}
	for i := uint64(1); i < uint64(n); i++ {
		if b.targets.has(off + i) {
			return fmt.Errorf("a branch of %s leads into it, to +%#x: replace the function instead", b.sym.name, off+i)
		}
		if b.starts.has(off+i) && !run {
			return fmt.Errorf("at %s+%#x are %d bytes of an instruction of %d: give one instruction for one", b.sym.name, off, n, i)
		}
	}
	if end := off + uint64(n); end > b.sym.size || end < b.sym.size && !b.starts.has(end) {
		return fmt.Errorf("the instruction at %s+%#x has not %d bytes: give one instruction for one", b.sym.name, off, n)
	}
	return nil
}
