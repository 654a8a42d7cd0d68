package vmm

import (
	"encoding/binary"

	"github.com/cloister-vmm/cloister/internal/kvm"
)

// registersInOrder is how an instruction numbers the general registers (Intel SDM vol. 2A, table 2-2 and 2.2.1).
func registersInOrder(r *kvm.Regs) [16]uint64 {
	return [16]uint64{r.RAX, r.RCX, r.RDX, r.RBX, r.RSP, r.RBP, r.RSI, r.RDI, r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15}
}

// The maps of opcodes (Intel SDM vol. 2A, 2.1 to 2.7).
const (
	oneByte = iota
	map0F
	map0F38
	map0F3A
)

// instruction is what matters of one for where it goes in memory.
type instruction struct {
	rest     []byte // from the opcode on
	before   int    // bytes of prefixes
	segment  uint64 // base of FS or GS, if it has that prefix
	word     bool   // the prefix 66
	short    bool   // the prefix 67: addresses of 32 bits
	w        bool   // REX.W
	r, x, b  int    // 8 where the prefix says so
	escape   int    // the map
	vex      bool   // VEX or EVEX
	unit     uint64 // EVEX: what a displacement of one byte counts, as far as is known; 0: bytes
	register [16]uint64
}

// operands lists the addresses at which the instruction that begins with code touches memory, and some at which it might, the
// likelier ones first: this is for finding which of few pages it was that could not be touched, not for executing. It needs no table of
// lengths but for what follows an address relative to RIP. Not told: gathers and scatters (their indices are vectors).
func operands(code []byte, r *kvm.Regs, fs, gs uint64) []uint64 {
	in := instruction{register: registersInOrder(r)}
	if !in.prefixes(code, fs, gs) {
		return nil
	}
	op, reg := in.rest[0], in.register
	var list []uint64
	if in.hasModRM(op) {
		list = in.modRM(op, r.RIP)
	}
	switch {
	case in.escape == oneByte && op >= 0xa4 && op <= 0xa7: // MOVS, CMPS
		list = append(list, in.address(reg[6])+in.segment, in.address(reg[7]))
	case in.escape == oneByte && (op&0xfe == 0xac || op&0xfe == 0x6e): // LODS, OUTS
		list = append(list, in.address(reg[6])+in.segment)
	case in.escape == oneByte && (op&0xfe == 0xaa || op&0xfe == 0xae || op&0xfe == 0x6c): // STOS, SCAS, INS
		list = append(list, in.address(reg[7]))
	case in.escape == oneByte && op >= 0xa0 && op <= 0xa3: // MOV with an absolute address
		if n := 1 + 8; !in.short && len(in.rest) >= n {
			list = append(list, binary.LittleEndian.Uint64(in.rest[1:])+in.segment)
		} else if n = 1 + 4; in.short && len(in.rest) >= n {
			list = append(list, uint64(binary.LittleEndian.Uint32(in.rest[1:]))+in.segment)
		}
	case in.escape == oneByte && op == 0xd7: // XLAT
		list = append(list, in.address(reg[3]+reg[0]&0xff)+in.segment)
	case in.escape == map0F && op == 0xf7: // MASKMOVQ, MASKMOVDQU
		list = append(list, in.address(reg[7])+in.segment)
	case in.escape == map0F38 && op == 0xf8 && len(in.rest) > 1: // MOVDIR64B, ENQCMD: the register is an address too
		list = append(list, in.address(reg[in.r|int(in.rest[1]>>3&7)]))
	}
	return in.stack(op, list)
}

// stack adds to the operands that are named what an instruction pops, which it does first, or pushes, which it does last.
func (in *instruction) stack(op byte, list []uint64) []uint64 {
	size := uint64(8)
	if in.word && !in.w {
		size = 2
	}
	rsp, rbp := in.register[4], in.register[5]
	switch {
	case in.vex:
	case in.escape == map0F && (op == 0xa0 || op == 0xa8): // PUSH FS, GS
		return append(list, rsp-size)
	case in.escape == map0F && (op == 0xa1 || op == 0xa9):
		return append(list, rsp)
	case in.escape != oneByte:
	case op == 0x8f: // POP to memory; an address that RSP is in counts from behind it
		popped := []uint64{rsp}
		for _, a := range list {
			popped = append(popped, a, a+size)
		}
		return popped
	case op&0xf8 == 0x58 || op == 0x9d || op&0xfe == 0xc2 || op&0xfe == 0xca || op == 0xcf: // POP, POPF, RET, IRET
		return append(list, rsp)
	case op == 0xc9: // LEAVE
		return append(list, rbp)
	case op == 0xe8 || op == 0xff && len(in.rest) > 1 && in.rest[1]>>3&7 == 2: // CALL
		return append(list, rsp-8)
	case op&0xf8 == 0x50 || op == 0x68 || op == 0x6a || op == 0x9c || op == 0xc8 || op == 0xff && len(in.rest) > 1 && in.rest[1]>>3&7 == 6: // PUSH, PUSHF, ENTER
		return append(list, rsp-size)
	}
	return list
}

// prefixes takes them off code; false where no opcode follows.
func (in *instruction) prefixes(code []byte, fs, gs uint64) bool {
	n := 0
	for ; n < len(code); n++ {
		switch code[n] {
		case 0x64:
			in.segment = fs
		case 0x65:
			in.segment = gs
		case 0x66:
			in.word = true
		case 0x67:
			in.short = true
		case 0x26, 0x2e, 0x36, 0x3e, 0xf0, 0xf2, 0xf3:
		default:
			return in.escapes(code, n)
		}
	}
	return false
}

// escapes reads REX, or VEX or EVEX, and the map.
func (in *instruction) escapes(code []byte, n int) bool {
	code = append(code[:len(code):len(code)], 0, 0, 0, 0, 0) // what is missing is found at the end
	rest := func(skip int) bool {
		in.before, in.rest = n+skip, code[n+skip:max(n+skip, len(code)-5)]
		return len(in.rest) > 0
	}
	extend := func(p byte, r, x, b uint) { in.r, in.x, in.b = int(p>>r&1)<<3, int(p>>x&1)<<3, int(p>>b&1)<<3 }
	switch c := code[n]; {
	case c == 0xc5:
		in.vex, in.escape, in.r = true, map0F, int(^code[n+1]>>7&1)<<3
		return rest(2)
	case c == 0xc4:
		in.vex, in.escape = true, int(code[n+1]&0x1f)
		extend(^code[n+1], 7, 6, 5)
		return rest(3)
	case c == 0x62:
		in.vex, in.escape = true, int(code[n+1]&7)
		in.unit = unit(in.escape, code[n+2], code[n+3], code[n+4])
		extend(^code[n+1], 7, 6, 5)
		return rest(4)
	case c&0xf0 == 0x40:
		in.w = c&8 != 0
		extend(c, 2, 1, 0)
		n++
	}
	switch {
	case code[n] != 0x0f:
		return rest(0)
	case code[n+1] == 0x38:
		in.escape = map0F38
		return rest(2)
	case code[n+1] == 0x3a:
		in.escape = map0F3A
		return rest(2)
	}
	in.escape = map0F
	return rest(1)
}

// unit is N of disp8*N (Intel SDM vol. 2A, 2.7.5, tables 2-34 and 2-35) for what compilers and C libraries make: p1 and p2 are bytes of EVEX.
func unit(escape int, p1, p2, op byte) uint64 {
	vector, element := uint64(16)<<(p2>>5&3), uint64(4)<<(p1>>7)
	scalar := p1&2 != 0 && (op&0xfe == 0x10 || op == 0x2a || op&0xfe == 0x2c || op == 0x51 || op >= 0x58 && op < 0x60 && op != 0x5b || op == 0xc2)
	switch {
	case escape == map0F && (scalar || op&0xfe == 0x2e), p2>>4&1 != 0: // one element, or one that is broadcast
		return element
	case escape == map0F38 && op&0xe8 == 0x20 && op&7 < 6: // VPMOVSX, VPMOVZX
		return vector >> [...]int{1, 2, 3, 1, 2, 1}[op&7]
	case escape == map0F38:
		switch op { // broadcasts
		case 0x78:
			return 1
		case 0x79:
			return 2
		case 0x18, 0x58:
			return 4
		case 0x19, 0x59:
			return 8
		case 0x1a, 0x5a:
			return 16
		case 0x1b, 0x5b:
			return 32
		}
	}
	return vector
}

// hasModRM: Intel SDM vol. 2D, appendix A, tables.
func (in *instruction) hasModRM(op byte) bool {
	switch {
	case in.vex:
		// Neither VZEROUPPER, nor gathers and scatters, whose index is a vector.
		return !(in.escape == map0F && op == 0x77 || in.escape == map0F38 && (op&0xfc == 0x90 || op&0xfc == 0xa0))
	case in.escape == oneByte:
		return op < 0x40 && op&4 == 0 || op == 0x63 || op == 0x69 || op == 0x6b || op >= 0x80 && op < 0x90 || op&0xfe == 0xc0 || op&0xfe == 0xc6 ||
			op&0xfc == 0xd0 || op&0xf8 == 0xd8 || op&0xfe == 0xf6 || op >= 0xfe
	case in.escape == map0F:
		return !(op >= 4 && op < 0x0d || op == 0x0e || op >= 0x30 && op < 0x38 || op == 0x77 || op&0xf0 == 0x80 || op >= 0xa0 && op < 0xa3 ||
			op >= 0xa8 && op < 0xab || op&0xf8 == 0xc8)
	}
	return true
}

// immediate is how many bytes follow the address in an instruction.
func (in *instruction) immediate(op, modRM byte) int {
	wide := 4
	if in.word && !in.w {
		wide = 2
	}
	switch in.escape {
	case oneByte:
		switch {
		case op == 0x80, op == 0x83, op == 0xc0, op == 0xc1, op == 0xc6, op == 0x6b, op == 0xf6 && modRM&0x30 == 0:
			return 1
		case op == 0x81, op == 0xc7, op == 0x69, op == 0xf7 && modRM&0x30 == 0:
			return wide
		}
	case map0F:
		switch op {
		case 0x0f, 0x70, 0x71, 0x72, 0x73, 0xa4, 0xac, 0xba, 0xc2, 0xc4, 0xc5, 0xc6:
			return 1
		}
	case map0F3A:
		return 1
	}
	return 0
}

func (in *instruction) address(a uint64) uint64 {
	if in.short {
		return uint64(uint32(a))
	}
	return a
}

// modRM is the operand that ModRM, SIB and displacement name (Intel SDM vol. 2A, tables 2-2 and 2-3).
func (in *instruction) modRM(op byte, rip uint64) []uint64 {
	b := append(in.rest[1:len(in.rest):len(in.rest)], make([]byte, 6)...)
	mod, rm := b[0]>>6, int(b[0]&7)
	if mod == 3 {
		return nil
	}
	base, at := uint64(0), 1
	near := func() int32 { return int32(binary.LittleEndian.Uint32(b[at:])) }
	switch {
	case rm == 4:
		sib := b[1]
		at = 2
		if sib&7 == 5 && mod == 0 {
			base = uint64(near())
		} else {
			base = in.register[in.b|int(sib&7)]
		}
		if i := in.x | int(sib>>3&7); i != 4 {
			base += in.register[i] << (sib >> 6)
		}
	case rm == 5 && mod == 0:
		next := in.before + 1 + at + 4 + in.immediate(op, b[0])
		base = rip + uint64(next) + uint64(near())
	default:
		base = in.register[in.b|rm]
	}
	switch mod {
	case 1:
		d := uint64(int8(b[at]))
		if in.unit > 0 {
			list := []uint64{in.address(base+d*in.unit) + in.segment}
			for other := uint64(64); other > 0; other /= 2 {
				list = append(list, in.address(base+d*other)+in.segment)
			}
			return list
		}
		base += d
	case 2:
		base += uint64(near())
	}
	return []uint64{in.address(base) + in.segment}
}
