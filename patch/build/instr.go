package build

import (
	"bytes"
	"errors"
	"fmt"
	mathbits "math/bits"
	"slices"
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
	if n := vectorLength(b); n < 0 {
		return x86asm.Inst{}, errDecode
	} else if n > 0 && n != in.Len {
		if in.Op != x86asm.VZEROUPPER && in.Op != x86asm.VZEROALL {
			return x86asm.Inst{}, errDecode
		}
		in.Len = n // x86asm takes the byte behind them for an operand
	}
	return in, nil
}

// vectorLength gives the length of an instruction with a VEX or EVEX prefix, by the rules of the encoding alone (Intel SDM vol. 2A, 2.3 and 2.7): x86asm's
// tables of them are young, and a wrong length is worse than none. 0: another instruction; -1: cut short, or in a map that has no such rules.
func vectorLength(b []byte) int {
	for i := range b {
		if !bytes.Contains([]byte("\x26\x2e\x36\x3e\x64\x65\x67"), b[i:i+1]) { // segments and address size may stand in front
			n := vexLength(b[i:])
			if n > 0 {
				n += i
			}
			return n
		}
	}
	return 0
}

func vexLength(b []byte) int {
	n := 0 // of prefix and opcode
	page := byte(1)
	switch {
	case len(b) > 2 && b[0] == 0xc5:
		n = 3
	case len(b) > 3 && b[0] == 0xc4:
		n, page = 4, b[1]&0x1f
	case len(b) > 5 && b[0] == 0x62:
		n, page = 5, b[1]&0x07
	default:
		return 0
	}
	if page < 1 || page > 3 {
		return -1
	}
	op := b[n-1]
	if page == 1 && op == 0x77 {
		return n // VZEROUPPER, VZEROALL
	}
	if n >= len(b) {
		return -1
	}
	modrm := b[n]
	n++
	if mod, rm := modrm>>6, modrm&7; mod != 3 {
		if rm == 4 {
			if n >= len(b) {
				return -1
			}
			if mod == 0 && b[n]&7 == 5 {
				n += 4
			}
			n++
		} else if mod == 0 && rm == 5 {
			n += 4
		}
		switch mod {
		case 1:
			n++ // EVEX scales it, in one byte all the same
		case 2:
			n += 4
		}
	}
	if page == 3 || page == 1 && (op >= 0x70 && op <= 0x73 || op == 0xc2 || op >= 0xc4 && op <= 0xc6) {
		n++ // an immediate byte
	}
	if n > len(b) {
		return -1
	}
	return n
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

// besideRIP gives the address that an instruction at the address at means by an operand relative to RIP.
func besideRIP(in x86asm.Inst, at uint64) (uint64, bool) {
	for _, a := range in.Args {
		if m, ok := a.(x86asm.Mem); ok && m.Base == x86asm.RIP {
			return at + uint64(in.Len) + uint64(m.Disp), true
		}
	}
	return 0, false
}

// leaves says that an instruction may not be a site: its own return address, or the saved one of what it enters, would be looked at nowhere.
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
	switch in.Op {
	case x86asm.MOVSB, x86asm.MOVSW, x86asm.MOVSD, x86asm.MOVSQ, x86asm.STOSB, x86asm.STOSW, x86asm.STOSD, x86asm.STOSQ, x86asm.LODSB, x86asm.LODSW, x86asm.LODSD, x86asm.LODSQ,
		x86asm.SCASB, x86asm.SCASW, x86asm.SCASD, x86asm.SCASQ, x86asm.CMPSB, x86asm.CMPSW, x86asm.CMPSD, x86asm.CMPSQ,
		x86asm.INSB, x86asm.INSW, x86asm.INSD, x86asm.OUTSB, x86asm.OUTSW, x86asm.OUTSD:
		// Without a REP too: not to know how its prefixes are read is to be careful.
		return true
	}
	return slices.ContainsFunc([]string{"GATHER", "SCATTER", "XSAVE", "XRSTOR", "FXSAVE", "FXRSTOR", "MASKMOV"}, func(part string) bool { return strings.Contains(in.Op.String(), part) })
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
	c := p.bodies
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
