package build

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/patch"
)

// Where a section of an object goes.
const (
	nowhere = iota
	toText  // read-only and executable: code, constants, and words with addresses (GOT)
	toData
)

// unwindType is SHT_X86_64_UNWIND of the psABI, which debug/elf does not name.
const unwindType elf.SectionType = 0x70000001

// object is a relocatable file.
type object struct {
	m    *image
	syms []rawSym
	to   []int    // of each section
	at   []uint64 // of each section
	left []string // sections that are left out, for the user

	text, data *region
	got        map[uint32]uint64 // symbol to the address of its word
	gotAt      uint64            // of the first word
	bodies     map[string]uint64 // addresses of the new functions, by symbol
}

// region is spare memory that is being filled.
type region struct {
	what  string
	start uint64 // of b
	end   uint64
	b     []byte
	fill  byte // between sections
}

func newRegion(what string, s patch.Space, fill byte) *region {
	start := max(s.Used, s.Start)
	if s.End < start {
		start = s.End
	}
	return &region{what: what, start: start, end: s.End, fill: fill}
}

// take gives n bytes at a multiple of align, a power of two.
func (r *region) take(n, align uint64) (uint64, error) {
	at := r.start + uint64(len(r.b))
	at = (at + align - 1) &^ (align - 1)
	if at < r.start || at > r.end || n > r.end-at {
		return 0, fmt.Errorf("it needs %d bytes more, and the %s has %d left: start the program again with the new function in it", n, r.what, r.end-min(r.end, r.start+uint64(len(r.b))))
	}
	pad := at + n - r.start - uint64(len(r.b))
	r.b = append(r.b, bytes.Repeat([]byte{r.fill}, int(pad-n))...)
	r.b = append(r.b, make([]byte, n)...)
	return at, nil
}

// at gives n bytes that take has given.
func (r *region) at(addr, n uint64) []byte { return r.b[addr-r.start:][:n:n] }

// cut ends what has been filled: the chunk of it, and the region behind.
func (r *region) cut() (patch.Chunk, bool) {
	c := patch.Chunk{Addr: r.start, Bytes: r.b}
	r.start, r.b = r.start+uint64(len(r.b)), nil
	return c, len(c.Bytes) > 0
}

// refusedSections are those that something else than a call of the function would have to act upon.
var refusedSections = []struct{ name, why string }{
	{".init_array", "constructors, which nobody would call: initialise statically, or in the function"},
	{".preinit_array", "constructors, which nobody would call: initialise statically, or in the function"},
	{".ctors", "constructors, which nobody would call: initialise statically, or in the function"},
	{".fini_array", "destructors, which nobody would call: leave them out"},
	{".dtors", "destructors, which nobody would call: leave them out"},
	{".tm_clone_table", "clones for transactions, which nobody would register: compile it with -fno-tree-tm or without -fgnu-tm"},
	{".gcc_except_table", "handlers of exceptions, whose tables cannot be added to a running program: compile it with -fno-exceptions"},
	{".tdata", "thread-local data, which the running threads do not have: use the program's through a function, or plain data"},
	{".tbss", "thread-local data, which the running threads do not have: use the program's through a function, or plain data"},
}

// readObject reads an object's headers and symbols, and decides where its sections go. Errors have problem and remedy.
func readObject(b []byte) (*object, error) {
	m, err := newImage(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, err
	}
	if m.typ != elf.ET_REL {
		return nil, fmt.Errorf("an ELF file of type %v is no object: compile the new function with -c", m.typ)
	}
	if err := m.disjoint(); err != nil {
		return nil, err
	}
	o := &object{m: m, to: make([]int, len(m.sections)), at: make([]uint64, len(m.sections)), got: map[uint32]uint64{}, bodies: map[string]uint64{}}
	var tables []*section
	for i := range m.sections {
		s := &m.sections[i]
		if s.typ == elf.SHT_SYMTAB {
			tables = append(tables, s)
		}
		if o.to[i], err = o.place(s); err != nil {
			return nil, err
		}
	}
	if len(tables) != 1 {
		return nil, fmt.Errorf("it has %d symbol tables, not one: compile it again, and do not strip it", len(tables))
	}
	o.syms, err = m.symbols(tables[0])
	return o, err
}

// place decides where a section goes.
func (o *object) place(s *section) (int, error) {
	if s.typ == elf.SHT_REL && uint64(s.info) < uint64(len(o.m.sections)) && o.m.sections[s.info].has(elf.SHF_ALLOC) {
		return nowhere, fmt.Errorf("section %s has relocations without addends: compile it for x86-64 with the usual tools", s.name)
	}
	if s.typ == elf.SHT_SYMTAB_SHNDX {
		return nowhere, errors.New("it has too many sections: compile it without -ffunction-sections")
	}
	if !s.has(elf.SHF_ALLOC) || s.size == 0 {
		return nowhere, nil
	}
	for _, r := range refusedSections {
		if s.name == r.name || strings.HasPrefix(s.name, r.name+".") || r.name == ".tdata" && s.has(elf.SHF_TLS) {
			return nowhere, fmt.Errorf("section %s has %s", s.name, r.why)
		}
	}
	switch {
	case s.typ == elf.SHT_INIT_ARRAY || s.typ == elf.SHT_PREINIT_ARRAY || s.typ == elf.SHT_FINI_ARRAY:
		return nowhere, fmt.Errorf("section %s has %s", s.name, refusedSections[0].why)
	case s.name == ".eh_frame" || s.typ == unwindType:
		o.leave("unwind tables (" + s.name + ") are left out: exceptions and stack traces end at the new code")
		return nowhere, nil
	case s.typ == elf.SHT_NOTE || s.name == "__patchable_function_entries":
		if s.name != ".note.gnu.property" && s.typ == elf.SHT_NOTE {
			o.leave("notes (" + s.name + ") are left out: sites that the object declares cannot be set")
		}
		return nowhere, nil
	case s.typ != elf.SHT_PROGBITS && s.typ != elf.SHT_NOBITS, s.has(elf.SHF_COMPRESSED):
		return nowhere, fmt.Errorf("section %s is of a kind, %v, that cannot be loaded: compile it with the usual tools", s.name, s.typ)
	case s.has(elf.SHF_WRITE | elf.SHF_EXECINSTR):
		return nowhere, fmt.Errorf("section %s is writable and executable: separate code from data", s.name)
	case s.align&(s.align-1) != 0 || s.align > abi.Page:
		return nowhere, fmt.Errorf("section %s wants an alignment of %d, more than a page or no power of two: lower it", s.name, s.align)
	case s.has(elf.SHF_WRITE):
		return toData, nil
	case s.typ == elf.SHT_NOBITS:
		return nowhere, fmt.Errorf("section %s is read-only and empty: the file is damaged, build it again", s.name)
	}
	return toText, nil
}

// leave notes what is left out, once.
func (o *object) leave(what string) {
	const most = 20 // kinds of sections
	if len(o.left) < most && !slices.Contains(o.left, what) {
		o.left = append(o.left, what)
	}
}

// layout gives every section its address and its bytes: code, constants, then data.
func (o *object) layout() error {
	for _, pass := range []func(*section) bool{
		func(s *section) bool { return s.has(elf.SHF_EXECINSTR) },
		func(s *section) bool { return !s.has(elf.SHF_EXECINSTR) && s.typ == elf.SHT_PROGBITS },
		func(s *section) bool { return s.typ == elf.SHT_NOBITS },
	} {
		for i := range o.m.sections {
			s := &o.m.sections[i]
			if o.to[i] == nowhere || !pass(s) {
				continue
			}
			to := o.text
			if o.to[i] == toData {
				to = o.data
			}
			var err error
			if o.at[i], err = to.take(s.size, max(s.align, 1)); err != nil {
				return err
			}
			if s.typ == elf.SHT_NOBITS {
				continue
			}
			b, err := o.m.data(s, MaxObject)
			if err != nil {
				return err
			}
			copy(to.at(o.at[i], s.size), b)
		}
	}
	return nil
}

// load puts an object into the spare memory. Of all replacements those that name this object say which functions of it are new bodies.
func (p *Program) load(b []byte, all []Replace, text, data *region) (*object, error) {
	o, err := readObject(b)
	if err != nil {
		return nil, err
	}
	o.text, o.data = text, data
	l := &linker{p: p, o: o, own: map[string]uint32{}, value: map[uint32]uint64{}}
	for _, r := range all {
		if !bytes.Equal(r.Object, b) {
			continue
		}
		index, err := o.find(r.Symbol)
		if err != nil {
			return nil, err
		}
		l.fresh = append(l.fresh, index)
		l.own[plain(r.Function)] = index
	}
	// Code begins a cache line of its own: what ran before is not fetched with it.
	if _, err := text.take(0, 64); err != nil {
		return nil, err
	}
	if err := o.layout(); err != nil {
		return nil, err
	}
	if err := l.link(); err != nil {
		return nil, err
	}
	for _, index := range l.fresh {
		if o.bodies[o.syms[index].name], err = l.resolve(index); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// plain is a function's name without the file.
func plain(function string) string { return function[strings.LastIndexByte(function, ':')+1:] }

// find gives the index of the function of that name which the object defines.
func (o *object) find(name string) (uint32, error) {
	found := uint32(0)
	for i, s := range o.syms {
		if s.name != name || s.kind == elf.STT_FILE || s.kind == elf.STT_SECTION {
			continue
		}
		defined := s.shndx != elf.SHN_UNDEF && int(s.shndx) < len(o.to)
		switch {
		case s.kind == elf.STT_GNU_IFUNC:
			return 0, fmt.Errorf("%s is chosen at start-up (IFUNC) there: name the implementation", name)
		case !defined:
			continue
		case s.kind != elf.STT_FUNC && s.kind != elf.STT_NOTYPE || !o.m.sections[s.shndx].has(elf.SHF_EXECINSTR) || s.value >= o.m.sections[s.shndx].size:
			return 0, fmt.Errorf("%s is no function there: name one", name)
		case found != 0:
			return 0, fmt.Errorf("it defines %s twice: rename one", name)
		}
		found = uint32(i)
	}
	if found == 0 {
		var have []string
		for _, s := range o.syms {
			if s.kind == elf.STT_FUNC && s.shndx != elf.SHN_UNDEF && len(have) < 4 {
				have = append(have, s.name)
			}
		}
		slices.Sort(have)
		if len(have) == 0 {
			return 0, fmt.Errorf("it does not define %s, nor any function: compile the one with the new function", name)
		}
		return 0, fmt.Errorf("it does not define %s: name what it defines (%s), as in FUNCTION=OBJECT:SYMBOL", name, strings.Join(have, ", "))
	}
	return found, nil
}
