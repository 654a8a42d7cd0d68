package symbol

// maxExprStack is the depth of a DWARF expression's stack; the expressions of call frames use 4.
const maxExprStack = 32

// eval computes a DWARF expression (DWARF 5 section 2.5) of the kind that call frames hold: glibc's
// signal return and the PLT use them. There are no branches here, so an expression of n bytes
// ends after at most n steps. It fails on any operation, register or memory word that it does not
// know. first, if given, is on the stack at the start (DWARF 5 section 6.4.2.3).
func (u *unwinder) eval(expr []byte, s state, first *uint64) (uint64, bool) {
	d := decoder{b: expr}
	var st []uint64
	if first != nil {
		st = append(st, *first)
	}
	for len(d.b) > 0 && !d.bad {
		op := d.u8()
		n := len(st)
		if need := operands(op); n < need || n >= maxExprStack {
			return 0, false
		}
		switch {
		case op >= 0x30 && op <= 0x4f: // DW_OP_lit0..31
			st = append(st, uint64(op-0x30))
		case op >= 0x70 && op <= 0x8f: // DW_OP_breg0..31
			reg, off := op-0x70, d.sleb()
			if reg >= numReg || !s.known[reg] {
				return 0, false
			}
			v := s.val[reg]
			if reg == regRA {
				v -= u.t.bias // expressions compare it with link-time addresses, or use its low bits
			}
			st = append(st, v+uint64(off))
		case op == 0x06: // DW_OP_deref
			w, ok := u.word(st[n-1])
			if !ok {
				return 0, false
			}
			st[n-1] = w
		case op >= 0x08 && op <= 0x0f: // DW_OP_const1u, 1s, 2u, 2s, 4u, 4s, 8u, 8s
			size := 1 << ((op - 0x08) / 2)
			if op%2 == 1 {
				st = append(st, uint64(d.sint(size)))
			} else {
				st = append(st, d.uint(size))
			}
		case op == 0x10: // DW_OP_constu
			st = append(st, d.uleb())
		case op == 0x11: // DW_OP_consts
			st = append(st, uint64(d.sleb()))
		case op == 0x12: // DW_OP_dup
			st = append(st, st[n-1])
		case op == 0x13: // DW_OP_drop
			st = st[:n-1]
		case op == 0x16: // DW_OP_swap
			st[n-1], st[n-2] = st[n-2], st[n-1]
		case op == 0x1f: // DW_OP_neg
			st[n-1] = -st[n-1]
		case op == 0x20: // DW_OP_not
			st[n-1] = ^st[n-1]
		case op == 0x23: // DW_OP_plus_uconst
			st[n-1] += d.uleb()
		case op == 0x96: // DW_OP_nop
		case operands(op) == 2:
			v, ok := binary2(op, st[n-2], st[n-1])
			if !ok {
				return 0, false
			}
			st = append(st[:n-2], v)
		default:
			return 0, false
		}
	}
	if d.bad || len(st) == 0 {
		return 0, false
	}
	return st[len(st)-1], true
}

// operands is the number of stack entries that an operation takes.
func operands(op byte) int {
	switch {
	case op == 0x06 || op == 0x12 || op == 0x13 || op == 0x1f || op == 0x20 || op == 0x23:
		return 1
	case op == 0x16 || op == 0x1a || op == 0x1c || op == 0x1e || op == 0x21 || op == 0x22 || op >= 0x24 && op <= 0x27 || op >= 0x29 && op <= 0x2e:
		return 2
	}
	return 0
}

func binary2(op byte, a, b uint64) (uint64, bool) {
	truth := func(v bool) (uint64, bool) {
		if v {
			return 1, true
		}
		return 0, true
	}
	switch op {
	case 0x1a: // DW_OP_and
		return a & b, true
	case 0x1c: // DW_OP_minus
		return a - b, true
	case 0x1e: // DW_OP_mul
		return a * b, true
	case 0x21: // DW_OP_or
		return a | b, true
	case 0x22: // DW_OP_plus
		return a + b, true
	case 0x24: // DW_OP_shl
		return a << b, true
	case 0x25: // DW_OP_shr
		return a >> b, true
	case 0x26: // DW_OP_shra
		return uint64(int64(a) >> b), true
	case 0x27: // DW_OP_xor
		return a ^ b, true
	case 0x29: // DW_OP_eq
		return truth(a == b)
	case 0x2a: // DW_OP_ge
		return truth(int64(a) >= int64(b))
	case 0x2b: // DW_OP_gt
		return truth(int64(a) > int64(b))
	case 0x2c: // DW_OP_le
		return truth(int64(a) <= int64(b))
	case 0x2d: // DW_OP_lt
		return truth(int64(a) < int64(b))
	case 0x2e: // DW_OP_ne
		return truth(a != b)
	}
	return 0, false
}
