package build

import (
	"debug/elf"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// linker applies an object's relocations.
type linker struct {
	p     *Program
	o     *object
	fresh []uint32          // the new functions
	own   map[string]uint32 // what they replace, by name: a reference to it means the new one
	value map[uint32]uint64 // symbols that have been resolved
}

// absent are the symbols that nobody defines.
type absent []string

func (a absent) Error() string {
	const most = 5
	names := []string(a)
	more := ""
	if len(names) > most {
		more = fmt.Sprintf(" and %d more", len(names)-most)
		names = names[:most]
	}
	return fmt.Sprintf("it needs %s%s, which the program has not: link the object with what defines it (ld -r)", strings.Join(names, ", "), more)
}

// link makes the GOT and applies all relocations of the sections that are loaded.
func (l *linker) link() error {
	type job struct {
		into uint32
		r    []rela
	}
	var jobs []job
	missing := map[string]bool{}
	for i := range l.o.m.sections {
		s := &l.o.m.sections[i]
		if s.typ != elf.SHT_RELA || uint64(s.info) >= uint64(len(l.o.m.sections)) || l.o.to[s.info] == nowhere {
			continue
		}
		rs, err := l.o.m.relas(s)
		if err != nil {
			return err
		}
		if l.o.m.sections[s.info].typ == elf.SHT_NOBITS && len(rs) > 0 {
			return fmt.Errorf("section %s has relocations into %s, which has no bytes: the file is damaged, build it again", s.name, l.o.m.sections[s.info].name)
		}
		for _, r := range rs {
			if r.typ == elf.R_X86_64_NONE || r.typ == elf.R_X86_64_GOTPC32 || r.typ == elf.R_X86_64_GOTPC64 {
				continue // no symbol is looked at
			}
			if err := l.known(r); err != nil {
				return err
			}
			v, err := l.resolve(r.sym)
			if errors.Is(err, errUnknown) {
				missing[l.o.syms[r.sym].name] = true
				continue
			}
			if err != nil {
				return err
			}
			if gotLoad(r.typ) {
				if err := l.word(r.sym, v); err != nil {
					return err
				}
			}
		}
		jobs = append(jobs, job{s.info, rs})
	}
	if len(missing) > 0 {
		return absent(slices.Sorted(maps.Keys(missing)))
	}
	for _, j := range jobs {
		for _, r := range j.r {
			if err := l.apply(j.into, r); err != nil {
				return err
			}
		}
	}
	return nil
}

func gotLoad(t elf.R_X86_64) bool {
	return t == elf.R_X86_64_GOTPCREL || t == elf.R_X86_64_GOTPCRELX || t == elf.R_X86_64_REX_GOTPCRELX
}

// word makes the word of the GOT that holds a symbol's address. It lies in read-only spare text: nothing changes it any more.
func (l *linker) word(sym uint32, v uint64) error {
	if l.o.got[sym] != 0 {
		return nil
	}
	at, err := l.o.text.take(8, 8)
	if err != nil {
		return err
	}
	if l.o.gotAt == 0 {
		l.o.gotAt = at
	}
	le.PutUint64(l.o.text.at(at, 8), v)
	l.o.got[sym] = at
	return nil
}

// known refuses kinds of relocations, before anything is looked up for them.
func (l *linker) known(r rela) error {
	switch r.typ {
	case elf.R_X86_64_64, elf.R_X86_64_PC32, elf.R_X86_64_PLT32, elf.R_X86_64_32, elf.R_X86_64_32S, elf.R_X86_64_PC64, elf.R_X86_64_GOTOFF64,
		elf.R_X86_64_GOTPCREL, elf.R_X86_64_GOTPCRELX, elf.R_X86_64_REX_GOTPCRELX:
	case elf.R_X86_64_DTPMOD64, elf.R_X86_64_DTPOFF64, elf.R_X86_64_TPOFF64, elf.R_X86_64_TLSGD, elf.R_X86_64_TLSLD, elf.R_X86_64_DTPOFF32, elf.R_X86_64_GOTTPOFF,
		elf.R_X86_64_TPOFF32, elf.R_X86_64_GOTPC32_TLSDESC, elf.R_X86_64_TLSDESC_CALL, elf.R_X86_64_TLSDESC:
		return fmt.Errorf("it uses thread-local data (%v of %s), which cannot be reached from new code: use it through a function of the program", r.typ, l.name(r.sym))
	default:
		return fmt.Errorf("it has a relocation of a kind that is not known, %v: compile it with -mcmodel=small or -fPIE", r.typ)
	}
	if uint64(r.sym) >= uint64(len(l.o.syms)) {
		return fmt.Errorf("a relocation is of symbol %d of %d: the file is damaged, build it again", r.sym, len(l.o.syms))
	}
	return nil
}

func (l *linker) name(sym uint32) string {
	if uint64(sym) < uint64(len(l.o.syms)) {
		if s := l.o.syms[sym]; s.name != "" {
			return s.name
		} else if s.kind == elf.STT_SECTION && uint64(s.shndx) < uint64(len(l.o.m.sections)) {
			return l.o.m.sections[s.shndx].name
		}
	}
	return "a symbol without name"
}

// resolve gives a symbol's address: what the object defines, else what the program does. It returns errUnknown for what nobody defines.
func (l *linker) resolve(sym uint32) (uint64, error) {
	if v, ok := l.value[sym]; ok {
		return v, nil
	}
	v, err := l.define(sym)
	if err == nil {
		l.value[sym] = v
	}
	return v, err
}

func (l *linker) define(sym uint32) (uint64, error) {
	s := l.o.syms[sym]
	switch {
	case sym == 0:
		return 0, nil // the relocation is of its addend alone
	case s.kind == elf.STT_TLS:
		return 0, fmt.Errorf("it uses %s, thread-local data, which cannot be reached from new code: use it through a function of the program", s.name)
	case s.kind == elf.STT_GNU_IFUNC:
		return 0, fmt.Errorf("%s is chosen at start-up (IFUNC), which is over: name the implementation", s.name)
	case s.shndx == elf.SHN_ABS:
		return s.value, nil
	case s.shndx == elf.SHN_UNDEF || s.shndx == elf.SHN_COMMON:
		return l.elsewhere(sym, s)
	case uint64(s.shndx) >= uint64(len(l.o.to)):
		return 0, fmt.Errorf("symbol %s lies in section %d, which there is not: the file is damaged, build it again", l.name(sym), s.shndx)
	}
	in := &l.o.m.sections[s.shndx]
	if s.value > in.size {
		return 0, fmt.Errorf("symbol %s lies outside of section %s: the file is damaged, build it again", l.name(sym), in.name)
	}
	if v, yields, err := l.yields(sym, s, in); yields || err != nil {
		return v, err
	}
	if l.o.to[s.shndx] == nowhere {
		if in.size == 0 && in.has(elf.SHF_ALLOC) {
			return l.o.text.start, nil // of nothing: any address does, as long as it is near
		}
		return 0, fmt.Errorf("it refers to section %s, which is not loaded: leave out what needs it", in.name)
	}
	return l.o.at[s.shndx] + s.value, nil
}

// yields gives the program's definition where it goes before the object's own: a weak one does, as if the program stood first on a linker's command
// line. Data that both define for everyone is refused.
func (l *linker) yields(sym uint32, s rawSym, in *section) (uint64, bool, error) {
	if s.bind == elf.STB_LOCAL || slices.Contains(l.fresh, sym) {
		return 0, false, nil
	}
	theirs, err := l.p.lookup(s.name)
	if err != nil || theirs.local {
		return 0, false, nil // nobody else's, or a file's own that a linker would not see
	}
	if s.bind == elf.STB_WEAK || s.bind == elf.STB_LOOS { // STB_LOOS is STB_GNU_UNIQUE: one for the whole process
		v, err := l.theirs(theirs)
		return v, true, err
	}
	if in.has(elf.SHF_WRITE) && theirs.kind == elf.STT_OBJECT {
		return 0, false, fmt.Errorf("it defines %s, which the program has too: declare it extern, so that there is one state and not two", s.name)
	}
	return 0, false, nil
}

// elsewhere resolves what the object does not define.
func (l *linker) elsewhere(sym uint32, s rawSym) (uint64, error) {
	if s.name == "_GLOBAL_OFFSET_TABLE_" {
		return l.base()
	}
	if index, ok := l.own[s.name]; ok && s.shndx == elf.SHN_UNDEF {
		return l.resolve(index)
	}
	theirs, err := l.p.lookup(s.name)
	switch {
	case err == nil && s.name != "":
		return l.theirs(theirs)
	case !errors.Is(err, errUnknown):
		return 0, fmt.Errorf("it needs %s: %w: make it global, or give it another name", s.name, err)
	case s.shndx == elf.SHN_COMMON:
		// The value of a common symbol is its alignment.
		if s.value == 0 || s.value&(s.value-1) != 0 || s.value > 4096 {
			return 0, fmt.Errorf("common symbol %s wants an alignment of %d, more than a page or no power of two: lower it", s.name, s.value)
		}
		return l.o.data.take(s.size, s.value)
	case s.bind == elf.STB_WEAK:
		return 0, nil
	}
	return 0, errUnknown
}

// theirs gives the address by which new code reaches a definition of the program.
func (l *linker) theirs(s symbol) (uint64, error) {
	switch s.kind {
	case elf.STT_TLS:
		return 0, fmt.Errorf("it uses %s, thread-local data of the program, which cannot be reached from new code: use it through a function of the program", s.name)
	case elf.STT_GNU_IFUNC:
		if stub := l.p.stubs[s.addr]; stub != 0 && l.p.isText(stub) {
			return stub, nil
		}
		return 0, fmt.Errorf("it calls %s, which the program chooses at start-up (IFUNC) and has never asked for: call another, or have the program use it", s.name)
	}
	return s.addr, nil
}

// base is the GOT's address, for code that computes with it. Where nothing is loaded through the GOT it is a word of its own.
func (l *linker) base() (uint64, error) {
	if l.o.gotAt == 0 {
		at, err := l.o.text.take(8, 8)
		if err != nil {
			return 0, err
		}
		l.o.gotAt = at
	}
	return l.o.gotAt, nil
}

// apply stores one relocation's value. S, A, P, G and GOT are the psABI's (System V ABI, AMD64, "Relocation Types").
func (l *linker) apply(into uint32, r rela) error {
	if r.typ == elf.R_X86_64_NONE {
		return nil
	}
	sec := &l.o.m.sections[into]
	width := uint64(4)
	switch r.typ {
	case elf.R_X86_64_64, elf.R_X86_64_PC64, elf.R_X86_64_GOTOFF64, elf.R_X86_64_GOTPC64:
		width = 8
	}
	if r.off > sec.size || width > sec.size-r.off {
		return fmt.Errorf("a relocation lies outside of section %s, at %#x: the file is damaged, build it again", sec.name, r.off)
	}
	at := l.o.at[into] + r.off
	a, s := uint64(r.addend), uint64(0)
	var err error
	switch r.typ {
	case elf.R_X86_64_GOTPC32, elf.R_X86_64_GOTPC64:
		s, err = l.base()
	case elf.R_X86_64_GOTPCREL, elf.R_X86_64_GOTPCRELX, elf.R_X86_64_REX_GOTPCRELX:
		s = l.o.got[r.sym]
	default:
		s, err = l.resolve(r.sym)
	}
	if err != nil {
		return err
	}
	v := s + a
	switch r.typ {
	case elf.R_X86_64_64, elf.R_X86_64_32, elf.R_X86_64_32S:
	case elf.R_X86_64_GOTOFF64:
		base, err := l.base()
		if err != nil {
			return err
		}
		v -= base
	default:
		v -= at
	}
	to := l.o.text
	if l.o.to[into] == toData {
		to = l.o.data
	}
	field := to.at(at, width)
	if width == 8 {
		le.PutUint64(field, v)
		return nil
	}
	if fits := int64(v) == int64(int32(v)); r.typ == elf.R_X86_64_32 && v != uint64(uint32(v)) || r.typ != elf.R_X86_64_32 && !fits {
		remedy := "compile the object with -fPIE"
		if s == 0 {
			remedy = "nobody defines it: define it in the object, or leave it out"
		}
		return fmt.Errorf("%s at %s+%#x: %s at %#x is out of reach: %s", r.typ, sec.name, r.off, l.name(r.sym), s, remedy)
	}
	le.PutUint32(field, uint32(v))
	return nil
}
