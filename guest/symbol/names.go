package symbol

import (
	"cmp"
	"debug/elf"
	"encoding/binary"
	"slices"
)

// newNameTable collects the function symbols of .symtab and .dynsym. debug/elf's own reader copies
// every name out of the string table, which a hostile file turns into terabytes; here a name is
// copied when it is asked for.
func newNameTable(f *elf.File, img image) nameTable {
	var n nameTable
	for _, dynamic := range []bool{false, true} {
		typ := elf.SHT_SYMTAB
		if dynamic {
			typ = elf.SHT_DYNSYM
		}
		s := f.SectionByType(typ)
		if s == nil || s.Size > maxSection || int(s.Link) >= len(f.Sections) {
			continue
		}
		if str := f.Sections[s.Link]; str.Type == elf.SHT_NOBITS || str.Size > maxSection {
			continue
		}
		data, err := s.Data()
		if err != nil {
			continue // damaged: the names are not known
		}
		str, err := f.Sections[s.Link].Data()
		if err != nil {
			continue
		}
		if dynamic {
			n.dyn = str
		} else {
			n.str = str
		}
		for b := data; len(b) >= elfSym64 && len(n.syms) < maxSymbols; b = b[elfSym64:] {
			if s, ok := funcSym(f, b, img); ok {
				s.dynamic = dynamic
				n.syms = append(n.syms, s)
			}
		}
	}
	slices.SortFunc(n.syms, func(a, b sym) int {
		return cmp.Or(cmp.Compare(a.addr, b.addr), cmp.Compare(b.rank, a.rank), cmp.Compare(b.size, a.size), cmp.Compare(a.name, b.name))
	})
	n.syms = slices.CompactFunc(n.syms, func(a, b sym) bool { return a.addr == b.addr })
	for i := range n.syms[:max(0, len(n.syms)-1)] {
		if s := &n.syms[i]; s.label {
			s.size = min(s.size, n.syms[i+1].addr-s.addr)
		}
	}
	return n
}

// funcSym decodes an Elf64_Sym (System V gABI, "Symbol Table") and keeps code with a name.
func funcSym(f *elf.File, b []byte, img image) (sym, bool) {
	le := binary.LittleEndian
	s := sym{name: le.Uint32(b), addr: le.Uint64(b[8:]), size: le.Uint64(b[16:])}
	shndx := elf.SectionIndex(le.Uint16(b[6:]))
	if s.name == 0 || shndx == elf.SHN_UNDEF || !img.isCode(s.addr) {
		return s, false
	}
	switch elf.ST_TYPE(b[4]) {
	case elf.STT_FUNC, elf.STT_GNU_IFUNC:
		s.rank = 4
	case elf.STT_NOTYPE: // labels of assembly; a sized symbol of the same address wins
	default:
		return s, false
	}
	if s.size != 0 {
		s.rank += 8
	} else if int(shndx) < len(f.Sections) {
		// Hand-written assembly often has no size. Such a label reaches to the next symbol, and
		// never into the next section, where PLT stubs without any symbol may lie.
		s.label = true
		if x := f.Sections[shndx]; x.Addr <= s.addr && s.addr-x.Addr < x.Size {
			s.size = x.Addr + x.Size - s.addr
		}
	}
	switch elf.ST_BIND(b[4]) {
	case elf.STB_GLOBAL:
		s.rank += 2
	case elf.STB_WEAK:
		s.rank++
	}
	return s, true
}
