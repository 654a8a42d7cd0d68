package symbol

// Regs are a guest's registers at a break.
type Regs struct {
	RIP, RSP uint64
	// All says that the registers below are known too; sites of breaks keep RIP and RSP only.
	All                          bool
	RAX, RBX, RCX, RDX, RSI, RDI uint64
	RBP                          uint64
	R8, R9, R10, R11             uint64
	R12, R13, R14, R15           uint64
}

// Unwind returns the call stack, innermost first: RIP, then return addresses, at most max of them.
// stack is a copy of the guest's words from RSP upwards, as long as the caller could afford. For
// the meaning of an address but the first, ask Lookup for address-1.
//
// It returns what is sure and stops where the copy ends, where a needed register is not known, or
// where nothing describes a frame. For each frame it asks, in this order:
//
//  1. .eh_frame: glibc, C++, Rust, and C compiled with the default flags;
//  2. Go's own table of stack depths, which needs no register but RSP;
//  3. the function's instructions from its start to the address (prologue.go): musl's C library,
//     which has no .eh_frame, and frames on RBP when RBP is not known;
//  4. the frame pointer, when it is known and the function begins by setting it up.
func (t *Table) Unwind(regs Regs, stack []uint64, max int) []uint64 {
	if max <= 0 {
		return nil
	}
	u := unwinder{t: t, base: regs.RSP, words: stack}
	s := startState(regs)
	out := []uint64{regs.RIP}
	returned := false // the address was pushed by a call: its own instruction is the one before
	for len(out) < max {
		next, signal, ok := u.step(s, returned)
		pc := next.val[regRA]
		// A caller's frame lies above its callee's: whatever does not climb is not a stack.
		if !ok || pc == 0 || next.val[regRSP] <= s.val[regRSP] || !t.img.isCode(pc-1-t.bias) {
			break
		}
		out = append(out, pc)
		s, returned = next, !signal
	}
	return out
}

// state is the registers of one frame by their DWARF numbers; index regRA is its RIP.
type state struct {
	val   [numReg]uint64
	known [numReg]bool
}

func (s *state) set(reg int, v uint64) { s.val[reg], s.known[reg] = v, true }

func startState(r Regs) state {
	var s state
	s.set(regRA, r.RIP)
	s.set(regRSP, r.RSP)
	if r.All {
		for i, v := range [...]uint64{r.RAX, r.RDX, r.RCX, r.RBX, r.RSI, r.RDI, r.RBP, r.RSP,
			r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15} {
			s.set(i, v)
		}
	}
	return s
}

type unwinder struct {
	t     *Table
	base  uint64 // guest address of words[0]
	words []uint64
}

// word reads the snapshot.
func (u *unwinder) word(addr uint64) (uint64, bool) {
	off := addr - u.base
	if off%8 != 0 || off/8 >= uint64(len(u.words)) {
		return 0, false
	}
	return u.words[off/8], true
}

// step computes the caller's registers from s. signal says that s was made by a signal, so that the
// caller's RIP is an instruction that has not run yet.
func (u *unwinder) step(s state, returned bool) (next state, signal, ok bool) {
	pc := s.val[regRA] - u.t.bias
	at := pc
	if returned {
		at--
	}
	if !u.t.img.isCode(at) {
		if returned {
			return next, false, false
		}
		next, ok = u.atReturn(s)
		return next, false, ok
	}
	f, covered := u.t.cfi.find(at)
	if covered {
		r, valid := u.t.cfi.row(f, at)
		if !valid || r.regs[regRA].kind == ruleUndef {
			return next, false, false
		}
		if next, ok := u.apply(s, &r); ok {
			return next, u.t.cies(f).signal, true
		}
	} else if g := u.t.goTab; g != nil {
		if fn, ok := g.find(at); ok {
			next, ok = u.goStep(s, fn, at)
			return next, false, ok
		}
	}
	if u.t.img.isStub(at) {
		next, ok = u.atReturn(s)
		return next, false, ok
	}
	fn, found := u.function(at, f, covered)
	if !found {
		return next, false, false
	}
	if next, ok := u.byPrologue(s, fn, pc, returned); ok {
		return next, false, true
	}
	if covered {
		return next, false, false // the table says where the frame is; a guess would contradict it
	}
	next, ok = u.byFramePointer(s, fn.lo, pc, returned)
	return next, false, ok
}

func (t *Table) cies(f fde) *cie { return &t.cfi.cies[f.cie] }

// function returns the bounds of the function at the link-time address at.
func (u *unwinder) function(at uint64, f fde, covered bool) (extent, bool) {
	if covered {
		return f.extent, true
	}
	s, ok := u.t.names.find(at)
	return extent{s.addr, s.addr + s.size}, ok
}

// apply moves to the caller by one row of call frame information.
func (u *unwinder) apply(s state, r *row) (next state, ok bool) {
	var cfa uint64
	switch r.cfa.kind {
	case ruleRegister:
		if !s.known[r.cfa.reg] {
			return next, false
		}
		cfa = s.val[r.cfa.reg] + uint64(r.cfa.off)
	case ruleValExpr:
		if cfa, ok = u.eval(r.cfa.expr, s, nil); !ok {
			return next, false
		}
	default:
		return next, false
	}
	for i, rule := range r.regs {
		switch rule.kind {
		case ruleNone:
			if calleeSaved(i) && s.known[i] {
				next.set(i, s.val[i])
			}
		case ruleSame:
			if s.known[i] {
				next.set(i, s.val[i])
			}
		case ruleOffset:
			if w, ok := u.word(cfa + uint64(rule.off)); ok {
				next.set(i, w)
			}
		case ruleValue:
			next.set(i, cfa+uint64(rule.off))
		case ruleRegister:
			if s.known[rule.reg] {
				next.set(i, s.val[rule.reg])
			}
		case ruleExpr:
			if a, ok := u.eval(rule.expr, s, &cfa); ok {
				if w, ok := u.word(a); ok {
					next.set(i, w)
				}
			}
		case ruleValExpr:
			if v, ok := u.eval(rule.expr, s, &cfa); ok {
				next.set(i, v)
			}
		}
	}
	if r.regs[regRSP].kind == ruleNone {
		next.set(regRSP, cfa)
	}
	return next, next.known[regRA] && next.known[regRSP]
}

// calleeSaved are the registers that a function gives back as it found them (psABI, figure 3.4).
func calleeSaved(reg int) bool {
	return reg == regRBX || reg == regRBP || reg >= regR12 && reg < regRA
}

// goStep uses the linker's record of how deep the stack is at each instruction of a Go function.
func (u *unwinder) goStep(s state, f goFunc, at uint64) (next state, ok bool) {
	depth, ok := u.t.goTab.depth(f, at)
	if !ok {
		return next, false
	}
	ra := s.val[regRSP] + depth
	pc, ok := u.word(ra)
	if !ok {
		return next, false
	}
	next.set(regRA, pc)
	next.set(regRSP, ra+8)
	return next, true
}

// byPrologue reads the function's instructions to learn where its caller's registers are.
func (u *unwinder) byPrologue(s state, fn extent, pc uint64, returned bool) (next state, ok bool) {
	p, found := u.t.img.prologue(fn, pc, returned)
	if found == notFound {
		return next, false
	}
	entry := s.val[regRSP] + uint64(p.depth) // where RSP was when the function was called
	ra, ok := u.word(entry)
	if !ok || !u.t.img.isReturn(ra-u.t.bias) {
		return next, false
	}
	if target, direct := u.t.img.callTarget(ra - u.t.bias); found == likely && !(direct && target == fn.lo) {
		return next, false
	}
	for i := range numReg {
		if !calleeSaved(i) {
			continue
		}
		if slot := p.saved[i]; slot != 0 {
			if w, ok := u.word(entry - uint64(slot)); ok {
				next.set(i, w)
			}
		} else if s.known[i] && !p.changed[i] && found == sure {
			next.set(i, s.val[i])
		}
	}
	next.set(regRA, ra)
	next.set(regRSP, entry+8)
	return next, true
}

// byFramePointer follows RBP in a function that begins by setting it up and that nothing else tells
// more about. A function that does not would hand on its caller's RBP, and a frame would be lost.
func (u *unwinder) byFramePointer(s state, start, pc uint64, returned bool) (next state, ok bool) {
	bp := s.val[regRBP]
	if !s.known[regRBP] || bp < s.val[regRSP] || !u.t.img.framed(start, pc, returned) {
		return next, false
	}
	saved, ok1 := u.word(bp)
	ra, ok2 := u.word(bp + 8)
	if !ok1 || !ok2 || !u.t.img.isReturn(ra-u.t.bias) {
		return next, false
	}
	next.set(regRA, ra)
	next.set(regRSP, bp+16)
	next.set(regRBP, saved)
	return next, true
}

// atReturn serves code that has pushed nothing: PLT stubs, and a call through a bad pointer, after
// which RIP is nowhere. RSP points at what the CALL pushed.
func (u *unwinder) atReturn(s state) (next state, ok bool) {
	ra, ok := u.word(s.val[regRSP])
	if !ok || !u.t.img.isReturn(ra-u.t.bias) {
		return next, false
	}
	next = s
	next.set(regRA, ra)
	next.set(regRSP, s.val[regRSP]+8)
	return next, true
}
