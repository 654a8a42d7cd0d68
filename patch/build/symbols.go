package build

import (
	"debug/elf"
	"errors"
	"fmt"
	"sort"
	"strings"
)

// symbol is a definition of the program; addr is where it runs.
type symbol struct {
	name, file string // file: of a local one, as the compiler was given it
	addr, size uint64
	kind       elf.SymType
	local      bool
}

func (s symbol) String() string {
	switch {
	case s.local && s.file != "":
		return fmt.Sprintf("%s:%s at %#x", s.file, s.name, s.addr)
	case s.local:
		return fmt.Sprintf("local %s at %#x", s.name, s.addr)
	}
	return fmt.Sprintf(":%s at %#x", s.name, s.addr)
}

func (s symbol) function() bool { return s.kind == elf.STT_FUNC || s.kind == elf.STT_NOTYPE }

// readSymbols takes the definitions of .symtab; a stripped program has none.
func (p *Program) readSymbols() error {
	for i := range p.m.sections {
		s := &p.m.sections[i]
		if s.typ != elf.SHT_SYMTAB {
			continue
		}
		raw, err := p.m.symbols(s)
		if err != nil {
			return err
		}
		p.symbols, p.byName = []symbol{}, map[string][]int{}
		file := ""
		for _, r := range raw {
			if r.kind == elf.STT_FILE {
				file = r.name
				continue
			}
			if r.name == "" || r.shndx == elf.SHN_UNDEF || r.shndx == elf.SHN_COMMON {
				continue
			}
			d := symbol{name: r.name, addr: r.value + p.state.Bias, size: r.size, kind: r.kind, local: r.bind == elf.STB_LOCAL}
			if r.shndx == elf.SHN_ABS || r.kind == elf.STT_TLS {
				d.addr = r.value
			}
			if d.local {
				d.file = file
			}
			switch r.kind {
			case elf.STT_NOTYPE, elf.STT_OBJECT, elf.STT_FUNC, elf.STT_TLS, elf.STT_GNU_IFUNC:
				if same := p.byName[d.name]; len(same) == 0 || p.symbols[same[len(same)-1]] != d {
					p.byName[d.name] = append(same, len(p.symbols))
					p.symbols = append(p.symbols, d)
				}
			}
		}
		for i, d := range p.symbols {
			if d.kind == elf.STT_FUNC && d.size > 0 {
				p.funcs = append(p.funcs, i)
			}
		}
		sort.SliceStable(p.funcs, func(a, b int) bool { return p.symbols[p.funcs[a]].addr < p.symbols[p.funcs[b]].addr })
		return p.readStubs()
	}
	return nil
}

var errUnknown = errors.New("the program has no such symbol")

// ambiguous is a name of several definitions.
type ambiguous struct{ a, b symbol }

func (e ambiguous) Error() string {
	return fmt.Sprintf("it could be %v or %v", e.a, e.b)
}

// lookup finds the definition that a reference of a new object means: the global one; else the local one, if there is only one.
func (p *Program) lookup(name string) (symbol, error) {
	return p.choose(name, func(s symbol) bool { return !s.local }, func(s symbol) bool { return s.local })
}

// function finds what a user calls by name, NAME, FILE:NAME or :NAME.
func (p *Program) function(name string) (symbol, error) {
	if p.symbols == nil {
		return symbol{}, errors.New("stripped: the program has no symbol table: keep it (no -s, no strip)")
	}
	plain, match := name, func(symbol) bool { return true }
	if i := strings.LastIndexByte(name, ':'); i >= 0 {
		file := name[:i]
		plain = name[i+1:]
		match = func(s symbol) bool { return s.local == (file != "") && s.file == file }
	}
	s, err := p.choose(plain, match)
	var two ambiguous
	switch {
	case errors.As(err, &two):
		return s, fmt.Errorf("%w: write FILE:NAME for a file's own, :NAME for the global one", err)
	case err != nil:
		return s, fmt.Errorf("%w: --list shows the functions that can be replaced", err)
	case s.kind == elf.STT_GNU_IFUNC:
		return s, errors.New("it is chosen at start-up (IFUNC): name the implementation")
	case !s.function() || !p.isText(s.addr):
		return s, fmt.Errorf("%v is no function of the program's text: --list shows the functions that can be replaced", s)
	}
	return s, nil
}

// choose gives the definition of name that the first filter lets pass which lets any pass. Several at one address are one.
func (p *Program) choose(name string, filters ...func(symbol) bool) (symbol, error) {
	for _, ok := range filters {
		var found *symbol
		for _, i := range p.byName[name] {
			s := &p.symbols[i]
			switch {
			case !ok(*s):
			case found == nil:
				found = s
			case found.addr != s.addr || (found.kind == elf.STT_TLS) != (s.kind == elf.STT_TLS):
				return symbol{}, ambiguous{*found, *s}
			}
		}
		if found != nil {
			return *found, nil
		}
	}
	return symbol{}, errUnknown
}

// around gives the function that contains an address; of several the one that begins last.
func (p *Program) around(at uint64) (symbol, bool) {
	const most = 64 // functions do not nest deeper
	i := sort.Search(len(p.funcs), func(i int) bool { return p.symbols[p.funcs[i]].addr > at })
	for n := 0; i > 0 && n < most; n++ {
		i--
		if s := p.symbols[p.funcs[i]]; at-s.addr < s.size {
			return s, true
		}
	}
	return symbol{}, false
}

// readStubs finds the PLT entries of functions that are chosen at start-up: a jump through a word which an IRELATIVE relocation fills. The program
// itself calls such a function so.
func (p *Program) readStubs() error {
	slots := map[uint64]uint64{} // word to resolver, as in the file
	for i := range p.m.sections {
		s := &p.m.sections[i]
		if s.typ != elf.SHT_RELA || !s.has(elf.SHF_ALLOC) {
			continue
		}
		rs, err := p.m.relas(s)
		if err != nil {
			return err
		}
		for _, r := range rs {
			if r.typ == elf.R_X86_64_IRELATIVE {
				slots[r.off] = uint64(r.addend)
			}
		}
	}
	p.stubs = map[uint64]uint64{}
	for i := range p.m.sections {
		s := &p.m.sections[i]
		if !s.has(elf.SHF_EXECINSTR) || s.typ != elf.SHT_PROGBITS || !strings.HasPrefix(s.name, ".plt") && s.name != ".iplt" || len(slots) == 0 {
			continue
		}
		b, err := p.m.data(s, maxTable)
		if err != nil {
			return err
		}
		// Entries are 8 or 16 bytes: ENDBR64 or not, BND or not, JMP *disp32(%rip), padding.
		for off := 0; off+8 <= len(b); off += 8 {
			e := b[off:min(off+16, len(b))]
			j := 0
			if len(e) >= 4 && string(e[:4]) == endbr64 {
				j = 4
			}
			if j < len(e) && e[j] == 0xf2 {
				j++
			}
			if j+6 > len(e) || e[j] != 0xff || e[j+1] != 0x25 {
				continue
			}
			next := s.addr + uint64(off+j+6)
			if to, ok := slots[next+uint64(int64(int32(le.Uint32(e[j+2:]))))]; ok && p.stubs[to+p.state.Bias] == 0 {
				p.stubs[to+p.state.Bias] = s.addr + uint64(off) + p.state.Bias
			}
		}
	}
	return nil
}
