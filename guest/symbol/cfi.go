package symbol

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"slices"
)

// Call frame information: .eh_frame as the System V x86-64 psABI (4.2.4) and the LSB ("Exception
// Frames") describe it, executed as DWARF 5 section 6.4 says.

// cfiTable is the index of one .eh_frame: its functions sorted by address. Instructions are executed
// when a frame is asked for.
type cfiTable struct {
	data []byte
	addr uint64 // link-time address of data[0]
	fdes []fde
	cies []cie
}

type fde struct {
	extent
	cie      uint32 // index into cies
	ins, end uint32 // instructions: data[ins:end]
}

type cie struct {
	code   uint64 // code alignment factor
	data   int64  // data alignment factor
	enc    byte   // DW_EH_PE_* of the FDEs' addresses
	aug    bool   // FDEs carry an augmentation length
	signal bool   // frames made by a signal: the return address is no call's
	ins    []byte
}

// newCFITable finds .eh_frame by its section, or by PT_GNU_EH_FRAME where section headers are gone.
func newCFITable(f *elf.File, img image) *cfiTable {
	t := &cfiTable{}
	if s, b := section(f, maxSection, ".eh_frame"); s != nil {
		t.data, t.addr = b, s.Addr
	} else {
		for _, p := range f.Progs {
			if p.Type == elf.PT_GNU_EH_FRAME {
				t.viaHeader(img, p.Vaddr)
			}
		}
	}
	t.index()
	return t
}

// viaHeader follows .eh_frame_hdr (LSB, "Exception Frames", version 1) to .eh_frame.
func (t *cfiTable) viaHeader(img image, addr uint64) {
	b := img.bytes(addr, 16)
	if len(b) < 4 || b[0] != 1 {
		return
	}
	d := decoder{b: b[4:], at: addr + 4}
	if p := d.pointer(b[1]); !d.bad {
		t.data, t.addr = img.bytes(p, maxSection), p
	}
}

// index walks the records once. Damaged ones are left out: their functions have no frame rules.
func (t *cfiTable) index() {
	known := map[uint32]int{} // offset of a CIE to its index, -1 for one that cannot be used
	for pos := uint64(0); pos+4 <= uint64(len(t.data)) && len(t.fdes) < maxFDEs; {
		n, body := uint64(binary.LittleEndian.Uint32(t.data[pos:])), pos+4
		if n == 0 { // crtend's terminator; a linker may have put more behind it
			pos = body
			continue
		}
		if n == 0xffffffff || n < 4 || n > uint64(len(t.data))-body {
			break // 64-bit records are not made for programs this small; anything else is damage
		}
		if id := binary.LittleEndian.Uint32(t.data[body:]); id != 0 && uint64(id) <= body {
			t.addFDE(uint32(body-uint64(id)), uint32(body+4), uint32(body+n), known)
		}
		pos = body + n
	}
	slices.SortFunc(t.fdes, func(a, b fde) int { return cmp.Compare(a.lo, b.lo) })
}

func (t *cfiTable) addFDE(cieOff, pos, end uint32, known map[uint32]int) {
	i, ok := known[cieOff]
	if !ok {
		i = -1
		if c, ok := t.parseCIE(cieOff); ok {
			i = len(t.cies)
			t.cies = append(t.cies, c)
		}
		known[cieOff] = i
	}
	if i < 0 {
		return
	}
	c := &t.cies[i]
	d := decoder{b: t.data[pos:end], at: t.addr + uint64(pos)}
	lo := d.pointer(c.enc)
	size := d.pointer(c.enc & 0x0f)
	if c.aug {
		d.skip(d.uleb())
	}
	if d.bad || size == 0 || lo+size < lo {
		return
	}
	t.fdes = append(t.fdes, fde{extent{lo, lo + size}, uint32(i), end - uint32(len(d.b)), end})
}

func (t *cfiTable) parseCIE(off uint32) (c cie, ok bool) {
	if uint64(off)+8 > uint64(len(t.data)) {
		return c, false
	}
	n := binary.LittleEndian.Uint32(t.data[off:])
	if n < 4 || uint64(n) > uint64(len(t.data))-uint64(off)-4 || binary.LittleEndian.Uint32(t.data[off+4:]) != 0 {
		return c, false
	}
	d := decoder{b: t.data[off+8 : uint64(off)+4+uint64(n)], at: t.addr + uint64(off) + 8}
	version := d.u8()
	aug, rest, found := bytes.Cut(d.b, []byte{0})
	if !found || version != 1 && version != 3 {
		return c, false
	}
	d.at += uint64(len(d.b) - len(rest))
	d.b = rest
	c.code, c.data = d.uleb(), d.sleb()
	ra := uint64(0)
	if version == 1 {
		ra = uint64(d.u8())
	} else {
		ra = d.uleb()
	}
	if ra != regRA {
		return c, false
	}
	if len(aug) > 0 {
		if aug[0] != 'z' {
			return c, false
		}
		c.aug = true
		n := d.uleb()
		if n > uint64(len(d.b)) {
			return c, false
		}
		after := d.b[n:]
		for _, letter := range aug[1:] {
			switch letter {
			case 'L':
				d.u8()
			case 'P':
				d.pointer(d.u8() &^ 0x80)
			case 'R':
				c.enc = d.u8()
			case 'S':
				c.signal = true
			case 'B', 'G': // marks of other architectures
			default:
				return c, false
			}
		}
		d.b = after
	}
	c.ins = d.b
	return c, !d.bad
}

// find returns the record of the function at a link-time address.
func (t *cfiTable) find(a uint64) (fde, bool) {
	i, exact := slices.BinarySearchFunc(t.fdes, a, func(f fde, a uint64) int { return cmp.Compare(f.lo, a) })
	if !exact {
		i--
	}
	if i < 0 || !t.fdes[i].has(a) {
		return fde{}, false
	}
	return t.fdes[i], true
}

// DWARF numbers of the registers (x86-64 psABI, figure 3.36); regRA stands for the return address.
const (
	regRBX = 3
	regRBP = 6
	regRSP = 7
	regR12 = 12
	regRA  = 16
	numReg = 17
)

// How a register of the caller is found.
const (
	ruleNone     = iota // the table says nothing: callee-saved registers are as they were
	ruleUndef           // lost; for the return address: the outermost frame
	ruleSame            // as it was
	ruleOffset          // saved at CFA + off
	ruleValue           // is CFA + off
	ruleRegister        // in register reg, plus off (for the CFA)
	ruleExpr            // saved at the expression's value
	ruleValExpr         // is the expression's value
)

type rule struct {
	kind, reg uint8
	off       int64
	expr      []byte
}

// row is one row of the table of DWARF 5 section 6.4.1: where the CFA and each register are.
type row struct {
	cfa  rule
	regs [numReg]rule
}

// row computes the rules that hold at the link-time address a inside f.
func (t *cfiTable) row(f fde, a uint64) (row, bool) {
	c := &t.cies[f.cie]
	var r row
	m := machine{cie: c, loc: f.lo, pc: ^uint64(0)}
	if !m.run(c.ins, t.addr, &r) {
		return r, false
	}
	m.first, m.loc, m.pc = r, f.lo, a
	ok := m.run(t.data[f.ins:f.end], t.addr+uint64(f.ins), &r)
	return r, ok
}

// machine executes call frame instructions. Each consumes input, so a program of n bytes ends after
// at most n steps.
type machine struct {
	cie     *cie
	loc, pc uint64 // rules so far hold from loc on; stop when they are those of pc
	first   row    // what DW_CFA_restore goes back to
	saved   []row
}

const maxSaved = 32 // DW_CFA_remember_state nesting; compilers use one

// run returns false for an instruction that it does not know or whose operands are cut.
func (m *machine) run(ins []byte, at uint64, r *row) bool {
	d := decoder{b: ins, at: at}
	for len(d.b) > 0 && !d.bad {
		op := d.u8()
		low := uint64(op & 0x3f)
		switch op & 0xc0 {
		case 0x40: // DW_CFA_advance_loc
			if m.advance(low) {
				return true
			}
			continue
		case 0x80: // DW_CFA_offset
			r.set(low, rule{kind: ruleOffset, off: m.factored(d.uleb())})
			continue
		case 0xc0: // DW_CFA_restore
			m.restore(r, low)
			continue
		}
		switch op {
		case 0x00: // DW_CFA_nop
		case 0x01: // DW_CFA_set_loc
			if m.loc = d.pointer(m.cie.enc); m.loc > m.pc {
				return !d.bad
			}
		case 0x02: // DW_CFA_advance_loc1
			if m.advance(d.uint(1)) {
				return true
			}
		case 0x03: // DW_CFA_advance_loc2
			if m.advance(d.uint(2)) {
				return true
			}
		case 0x04: // DW_CFA_advance_loc4
			if m.advance(d.uint(4)) {
				return true
			}
		case 0x05: // DW_CFA_offset_extended
			r.set(d.uleb(), rule{kind: ruleOffset, off: m.factored(d.uleb())})
		case 0x06: // DW_CFA_restore_extended
			m.restore(r, d.uleb())
		case 0x07: // DW_CFA_undefined
			r.set(d.uleb(), rule{kind: ruleUndef})
		case 0x08: // DW_CFA_same_value
			r.set(d.uleb(), rule{kind: ruleSame})
		case 0x09: // DW_CFA_register
			reg, from := d.uleb(), d.uleb()
			if from >= numReg {
				r.set(reg, rule{kind: ruleUndef})
			} else {
				r.set(reg, rule{kind: ruleRegister, reg: uint8(from)})
			}
		case 0x0a: // DW_CFA_remember_state
			if len(m.saved) == maxSaved {
				return false
			}
			m.saved = append(m.saved, *r)
		case 0x0b: // DW_CFA_restore_state
			if len(m.saved) == 0 {
				return false
			}
			*r = m.saved[len(m.saved)-1]
			m.saved = m.saved[:len(m.saved)-1]
		case 0x0c: // DW_CFA_def_cfa
			r.cfa = cfaRule(d.uleb(), int64(d.uleb()))
		case 0x0d: // DW_CFA_def_cfa_register
			r.cfa = cfaRule(d.uleb(), r.cfa.off)
		case 0x0e: // DW_CFA_def_cfa_offset
			r.cfa.off = int64(d.uleb())
		case 0x0f: // DW_CFA_def_cfa_expression
			r.cfa = rule{kind: ruleValExpr, expr: d.block()}
		case 0x10: // DW_CFA_expression
			r.set(d.uleb(), rule{kind: ruleExpr, expr: d.block()})
		case 0x11: // DW_CFA_offset_extended_sf
			r.set(d.uleb(), rule{kind: ruleOffset, off: d.sleb() * m.cie.data})
		case 0x12: // DW_CFA_def_cfa_sf
			r.cfa = cfaRule(d.uleb(), d.sleb()*m.cie.data)
		case 0x13: // DW_CFA_def_cfa_offset_sf
			r.cfa.off = d.sleb() * m.cie.data
		case 0x14: // DW_CFA_val_offset
			r.set(d.uleb(), rule{kind: ruleValue, off: m.factored(d.uleb())})
		case 0x15: // DW_CFA_val_offset_sf
			r.set(d.uleb(), rule{kind: ruleValue, off: d.sleb() * m.cie.data})
		case 0x16: // DW_CFA_val_expression
			r.set(d.uleb(), rule{kind: ruleValExpr, expr: d.block()})
		case 0x2e: // DW_CFA_GNU_args_size: of interest to landing pads only
			d.uleb()
		default:
			return false
		}
	}
	return !d.bad
}

func (m *machine) advance(delta uint64) (done bool) {
	m.loc += delta * m.cie.code
	return m.loc > m.pc
}

func (m *machine) factored(n uint64) int64 { return int64(n) * m.cie.data }

func (m *machine) restore(r *row, reg uint64) {
	if reg < numReg {
		r.regs[reg] = m.first.regs[reg]
	}
}

// set ignores registers that no rule of ours reads (vector registers, flags).
func (r *row) set(reg uint64, to rule) {
	if reg < numReg {
		r.regs[reg] = to
	}
}

func cfaRule(reg uint64, off int64) rule {
	if reg >= numReg {
		return rule{kind: ruleUndef}
	}
	return rule{kind: ruleRegister, reg: uint8(reg), off: off}
}
