package symbol

import (
	"encoding/binary"

	"golang.org/x/arch/x86/x86asm"
)

// Bounds of the reading of one function.
const (
	maxFuncCode = 32 << 10
	maxInsts    = 4096
	maxCallLen  = 7 // longest CALL without a segment override: REX FF /2 SIB disp32 has 8, never emitted
)

// frameShape is what a function has done to its stack at one of its instructions.
type frameShape struct {
	depth   int64         // bytes that RSP lies below its value at entry, where the return address is
	bp      int64         // where RBP = entry - bp was set up; 0 = it was not
	saved   [numReg]int64 // register pushed at entry - saved; 0 = it was not
	changed [numReg]bool  // register may hold something else now
}

// What prologue found.
const (
	notFound = iota
	likely   // pc lies behind a jump table; the function has the same depth at all calls that were seen
	sure
)

// prologue follows the instructions of the function f, down every direct branch, to learn its shape
// at pc (or, with returned, at the CALL that ends at pc). It gives up on what makes RSP depend on
// data (alloca, stack realignment), unless RBP brings it back, and on a function that has two
// depths at one instruction: compiled code has not, so what was followed is no way of the program
// (a CALL that never returns, with other code behind it).
func (m image) prologue(f extent, pc uint64, returned bool) (shape frameShape, found int) {
	if pc < f.lo || pc-f.lo > maxFuncCode {
		return shape, notFound
	}
	code := m.bytes(f.lo, int(min(f.hi-f.lo, maxFuncCode)))
	type place struct {
		at    uint64
		shape frameShape
	}
	todo := []place{{at: f.lo}}
	depths := map[uint64]int64{}
	var calls frameShape // what all calls have in common
	nCalls, uniform := 0, true
	for len(todo) > 0 {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for p.at-f.lo < uint64(len(code)) {
			if depth, again := depths[p.at]; again {
				if depth != p.shape.depth {
					return shape, notFound
				}
				break
			}
			if depths[p.at] = p.shape.depth; len(depths) > maxInsts {
				return shape, notFound
			}
			if p.at == pc && !returned {
				shape, found = p.shape, sure
			}
			in, n, ok := decode(code[p.at-f.lo:])
			if !ok {
				uniform = false
				break
			}
			next := p.at + uint64(n)
			if in.Op == x86asm.CALL {
				if returned && next == pc {
					shape, found = p.shape, sure
				}
				if nCalls++; nCalls == 1 {
					calls = p.shape
				}
				uniform = uniform && calls.depth == p.shape.depth && calls.saved == p.shape.saved
			}
			if target, ok := branch(in, next); ok {
				todo = append(todo, place{target, p.shape})
			}
			if ends(in) {
				break
			}
			if !p.shape.apply(in) {
				uniform = false
				break
			}
			p.at = next
		}
	}
	if found == notFound && returned && uniform && nCalls > 0 {
		return calls, likely
	}
	return shape, found
}

// framed reports that the function sets RBP up at its very start, and that RBP still holds at pc: in
// the function itself it is gone only at the RET, or the JMP to another function, that ends it.
func (m image) framed(start, pc uint64, returned bool) bool {
	b := m.bytes(start, 8)
	if len(b) == 8 && string(b[:4]) == endbr64 {
		b, start = b[4:], start+4
	}
	// PUSH RBP; MOV RBP, RSP, in either of its encodings.
	if len(b) < 4 || string(b[:4]) != "\x55\x48\x89\xe5" && string(b[:4]) != "\x55\x48\x8b\xec" || pc < start+4 {
		return false
	}
	in, err := x86asm.Decode(m.bytes(pc, 16), 64)
	return returned || err == nil && in.Op != x86asm.RET && in.Op != x86asm.JMP
}

// decode reads one instruction; a zero Inst stands for one that is known to touch nothing of interest.
func decode(b []byte) (in x86asm.Inst, n int, ok bool) {
	if len(b) >= 4 && string(b[:4]) == endbr64 { // x86asm decodes it as a NOP with operands
		return x86asm.Inst{}, 4, true
	}
	in, err := x86asm.Decode(b, 64)
	return in, in.Len, err == nil && in.Len > 0 && in.Op != 0
}

const endbr64 = "\xf3\x0f\x1e\xfa"

// branch returns the target of a direct jump.
func branch(in x86asm.Inst, next uint64) (uint64, bool) {
	rel, ok := in.Args[0].(x86asm.Rel)
	if !ok || in.Op == x86asm.CALL || in.Op == x86asm.XBEGIN {
		return 0, false
	}
	return next + uint64(int64(rel)), true
}

// ends reports that the next instruction is not reached from this one.
func ends(in x86asm.Inst) bool {
	switch in.Op {
	case x86asm.JMP, x86asm.RET, x86asm.LRET, x86asm.HLT, x86asm.UD2, x86asm.IRET, x86asm.IRETQ:
		return true
	}
	return false
}

// apply updates the shape by one instruction; false when RSP is no longer known.
func (f *frameShape) apply(in x86asm.Inst) bool {
	dst, isReg := in.Args[0].(x86asm.Reg)
	reg := dwarfReg(dst)
	switch in.Op {
	case x86asm.PUSH, x86asm.PUSHFQ:
		if in.DataSize == 16 {
			return false
		}
		f.depth += 8
		if isReg && reg >= 0 && f.saved[reg] == 0 && !f.changed[reg] {
			f.saved[reg] = f.depth
		}
		return true
	case x86asm.POP, x86asm.POPFQ:
		if in.DataSize == 16 || isReg && reg == regRSP {
			return false
		}
		if isReg && reg >= 0 {
			// The pop of the epilogue restores; any other loads something else.
			f.changed[reg] = f.saved[reg] != f.depth
			f.saved[reg] = 0
			f.clobberBP(reg)
		}
		f.depth -= 8
		return f.depth >= 0
	case x86asm.LEAVE:
		if f.bp == 0 {
			return false
		}
		f.depth = f.bp - 8
		f.changed[regRBP] = f.saved[regRBP] != f.bp
		f.saved[regRBP], f.bp = 0, 0
		return f.depth >= 0
	case x86asm.ENTER, x86asm.XCHG, x86asm.CMPXCHG, x86asm.XADD:
		for _, a := range in.Args {
			if r, ok := a.(x86asm.Reg); ok {
				if dwarfReg(r) == regRSP {
					return false
				}
				f.write(dwarfReg(r))
			}
		}
		return in.Op != x86asm.ENTER
	case x86asm.CMP, x86asm.TEST, x86asm.CALL, x86asm.NOP:
		return true
	}
	if !isReg || reg < 0 {
		return true
	}
	if reg != regRSP {
		f.write(reg)
		if src, ok := in.Args[1].(x86asm.Reg); ok && reg == regRBP && in.Op == x86asm.MOV && src == x86asm.RSP {
			f.bp = f.depth
		}
		return true
	}
	return f.moveSP(in)
}

// moveSP follows the instructions that set RSP.
func (f *frameShape) moveSP(in x86asm.Inst) bool {
	if in.Args[0] != x86asm.RSP {
		return false
	}
	switch src := in.Args[1].(type) {
	case x86asm.Imm:
		switch in.Op {
		case x86asm.SUB:
			f.depth += int64(src)
		case x86asm.ADD:
			f.depth -= int64(src)
		default:
			return false
		}
	case x86asm.Reg:
		if in.Op != x86asm.MOV || src != x86asm.RBP || f.bp == 0 {
			return false
		}
		f.depth = f.bp
	case x86asm.Mem:
		if in.Op != x86asm.LEA || src.Index != 0 || src.Segment != 0 {
			return false
		}
		switch {
		case src.Base == x86asm.RSP:
			f.depth -= src.Disp
		case src.Base == x86asm.RBP && f.bp != 0:
			f.depth = f.bp - src.Disp
		default:
			return false
		}
	default:
		return false
	}
	return f.depth >= 0 && f.depth < 1<<32
}

func (f *frameShape) write(reg int) {
	if reg >= 0 {
		f.changed[reg] = true
		f.clobberBP(reg)
	}
}

func (f *frameShape) clobberBP(reg int) {
	if reg == regRBP {
		f.bp = 0
	}
}

// dwarfReg numbers the callee-saved registers and RSP, whatever part of them is named; -1 for others.
func dwarfReg(r x86asm.Reg) int {
	switch r {
	case x86asm.RBX, x86asm.EBX, x86asm.BX, x86asm.BL, x86asm.BH:
		return regRBX
	case x86asm.RBP, x86asm.EBP, x86asm.BP, x86asm.BPB:
		return regRBP
	case x86asm.RSP, x86asm.ESP, x86asm.SP, x86asm.SPB:
		return regRSP
	}
	for i, parts := range [...][4]x86asm.Reg{
		{x86asm.R12, x86asm.R12L, x86asm.R12W, x86asm.R12B}, {x86asm.R13, x86asm.R13L, x86asm.R13W, x86asm.R13B},
		{x86asm.R14, x86asm.R14L, x86asm.R14W, x86asm.R14B}, {x86asm.R15, x86asm.R15L, x86asm.R15W, x86asm.R15B},
	} {
		for _, p := range parts {
			if r == p {
				return regR12 + i
			}
		}
	}
	return -1
}

// callTarget returns where the CALL rel32 that ends at a goes.
func (m image) callTarget(a uint64) (uint64, bool) {
	b := m.bytes(a-5, 5)
	if len(b) < 5 || b[0] != 0xe8 {
		return 0, false
	}
	return a + uint64(int64(int32(binary.LittleEndian.Uint32(b[1:])))), true
}

// isReturn reports that a CALL ends right before the link-time address a, as one does before every
// return address: E8 rel32, or FF /2 in each of its lengths (Intel SDM vol. 2A, CALL).
func (m image) isReturn(a uint64) bool {
	if !m.isCode(a) && !m.isCode(a-1) {
		return false
	}
	var b []byte
	for n := maxCallLen; n >= 2 && len(b) == 0; n-- { // fewer at the start of a segment
		if b = m.bytes(a-uint64(n), n); len(b) < n {
			b = nil
		}
	}
	for n := 2; n <= len(b); n++ {
		in, err := x86asm.Decode(b[len(b)-n:], 64)
		if err == nil && in.Len == n && in.Op == x86asm.CALL {
			return true
		}
	}
	return false
}
