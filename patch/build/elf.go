package build

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
)

// Bounds on what an untrusted file can make us hold.
const (
	maxSections = 0xff00   // elf.SHN_LORESERVE: from there on headers count in another way, which no object of ours needs
	maxTable    = 64 << 20 // bytes of one table of the program's file: symbols, their names, relocations
	maxNames    = 1 << 20  // bytes of section names
	maxSymbols  = 2 << 20

	ehdrSize = 64 // sizes of the ELF64 structures (System V gABI)
	phdrSize = 56
	shdrSize = 64
	symSize  = 24
	relaSize = 24
)

var le = binary.LittleEndian

// section is a section header.
type section struct {
	name  string
	typ   elf.SectionType
	flags elf.SectionFlag
	addr, off, size,
	align, entsize uint64
	link, info uint32
}

func (s *section) has(f elf.SectionFlag) bool { return s.flags&f == f }

// segment is a program header.
type segment struct {
	typ                              elf.ProgType
	flags                            elf.ProgFlag
	off, vaddr, filesz, memsz, align uint64
}

// image is the headers of an ELF file. What it says of places in the file lies in the file.
type image struct {
	r        io.ReaderAt
	size     uint64
	typ      elf.Type
	sections []section
	segments []segment
}

var errShort = errors.New("the file is cut short: copy or build it again")

// read gives n bytes at off, which lie in the file.
func (m *image) read(off, n uint64) ([]byte, error) {
	if off > m.size || n > m.size-off {
		return nil, errShort
	}
	b := make([]byte, n)
	if k, err := m.r.ReadAt(b, int64(off)); uint64(k) != n {
		if err == nil || errors.Is(err, io.EOF) {
			err = errShort
		}
		return nil, err
	}
	return b, nil
}

// data gives the bytes of a section that has some, at most limit.
func (m *image) data(s *section, limit uint64) ([]byte, error) {
	if s.size > limit {
		return nil, fmt.Errorf("section %s has %d bytes, more than %d", s.name, s.size, limit)
	}
	b, err := m.read(s.off, s.size)
	if err != nil {
		return nil, fmt.Errorf("section %s: %w", s.name, err)
	}
	return b, nil
}

// newImage reads the headers of an x86-64 ELF file, size bytes long. Errors have problem and remedy; the caller says of which file.
func newImage(r io.ReaderAt, size int64) (*image, error) {
	if size < 0 {
		return nil, errShort
	}
	m := &image{r: r, size: uint64(size)}
	h, err := m.read(0, min(ehdrSize, m.size))
	if err != nil {
		return nil, err
	}
	switch {
	case len(h) < 4 || string(h[:4]) != elf.ELFMAG:
		return nil, errors.New("not an ELF file: give what the compiler wrote")
	case len(h) < ehdrSize:
		return nil, errShort
	case elf.Class(h[elf.EI_CLASS]) == elf.ELFCLASS32:
		return nil, errors.New("32-bit: compile it for x86-64 (gcc -m64)")
	case elf.Class(h[elf.EI_CLASS]) != elf.ELFCLASS64 || h[elf.EI_VERSION] != byte(elf.EV_CURRENT):
		return nil, errors.New("its ELF header is damaged: build it again")
	case elf.Data(h[elf.EI_DATA]) != elf.ELFDATA2LSB || elf.Machine(le.Uint16(h[18:])) != elf.EM_X86_64:
		return nil, fmt.Errorf("for another machine, %s: compile it for x86-64", machine(h))
	case elf.OSABI(h[elf.EI_OSABI]) != elf.ELFOSABI_NONE && elf.OSABI(h[elf.EI_OSABI]) != elf.ELFOSABI_LINUX:
		return nil, fmt.Errorf("for another system, %v: compile it for Linux", elf.OSABI(h[elf.EI_OSABI]))
	}
	m.typ = elf.Type(le.Uint16(h[16:]))
	if err := m.readSegments(h); err != nil {
		return nil, err
	}
	return m, m.readSections(h)
}

func machine(h []byte) string {
	order := binary.ByteOrder(binary.LittleEndian)
	if elf.Data(h[elf.EI_DATA]) == elf.ELFDATA2MSB {
		order = binary.BigEndian
	}
	return strings.TrimPrefix(elf.Machine(order.Uint16(h[18:])).String(), "EM_")
}

func (m *image) readSegments(h []byte) error {
	off, ent, num := le.Uint64(h[32:]), le.Uint16(h[54:]), uint64(le.Uint16(h[56:]))
	if num == 0 {
		return nil
	}
	if ent != phdrSize {
		return errors.New("its program headers are damaged: build it again")
	}
	raw, err := m.read(off, num*phdrSize)
	if err != nil {
		return fmt.Errorf("program headers: %w", err)
	}
	for b := raw; len(b) > 0; b = b[phdrSize:] {
		s := segment{elf.ProgType(le.Uint32(b)), elf.ProgFlag(le.Uint32(b[4:])), le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[32:]), le.Uint64(b[40:]), le.Uint64(b[48:])}
		if (s.typ == elf.PT_LOAD || s.typ == elf.PT_NOTE) && (s.off > m.size || s.filesz > m.size-s.off || s.vaddr+s.filesz < s.vaddr || s.vaddr+s.filesz > 1<<47) {
			return fmt.Errorf("program headers: %w", errShort)
		}
		m.segments = append(m.segments, s)
	}
	return nil
}

func (m *image) readSections(h []byte) error {
	off, ent, num, names := le.Uint64(h[40:]), le.Uint16(h[58:]), uint64(le.Uint16(h[60:])), uint64(le.Uint16(h[62:]))
	if off == 0 && num == 0 {
		return nil
	}
	if ent != shdrSize || num == 0 || num >= maxSections || names >= num {
		return errors.New("its section headers are damaged, or too many: build it again")
	}
	raw, err := m.read(off, num*shdrSize)
	if err != nil {
		return fmt.Errorf("section headers: %w", err)
	}
	at := func(i uint64) []byte { return raw[i*shdrSize:] }
	table, err := m.data(&section{name: "of names", off: le.Uint64(at(names)[24:]), size: le.Uint64(at(names)[32:])}, maxNames)
	if err != nil {
		return err
	}
	for i := range num {
		b := at(i)
		s := section{
			typ: elf.SectionType(le.Uint32(b[4:])), flags: elf.SectionFlag(le.Uint64(b[8:])), addr: le.Uint64(b[16:]), off: le.Uint64(b[24:]), size: le.Uint64(b[32:]),
			link: le.Uint32(b[40:]), info: le.Uint32(b[44:]), align: le.Uint64(b[48:]), entsize: le.Uint64(b[56:]),
		}
		var ok bool
		if s.name, ok = cstring(table, le.Uint32(b)); !ok {
			return fmt.Errorf("section %d has a damaged name: build the file again", i)
		}
		if s.typ != elf.SHT_NOBITS && s.typ != elf.SHT_NULL && (s.off > m.size || s.size > m.size-s.off) {
			return fmt.Errorf("section %s: %w", s.name, errShort)
		}
		m.sections = append(m.sections, s)
	}
	return nil
}

// cstring gives the NUL-terminated string at off of a table, of at most maxName bytes, that can stand in a message.
func cstring(table []byte, off uint32) (string, bool) {
	if uint64(off) >= uint64(len(table)) {
		return "", off == 0
	}
	b := table[off:]
	n := bytes.IndexByte(b[:min(len(b), maxName+1)], 0)
	if n < 0 {
		return "", false
	}
	s := string(b[:n])
	return s, oneLine(s, maxName)
}

// disjoint refuses sections that share bytes of the file.
func (m *image) disjoint() error {
	var used []*section
	for i := range m.sections {
		if s := &m.sections[i]; s.typ != elf.SHT_NULL && s.typ != elf.SHT_NOBITS && s.size > 0 {
			used = append(used, s)
		}
	}
	sort.SliceStable(used, func(a, b int) bool { return used[a].off < used[b].off })
	for i := 1; i < len(used); i++ {
		if a, b := used[i-1], used[i]; a.off+a.size > b.off {
			return fmt.Errorf("sections %s and %s overlap: the file is damaged, build it again", a.name, b.name)
		}
	}
	return nil
}

// rawSym is an entry of a symbol table.
type rawSym struct {
	name        string
	bind        elf.SymBind
	kind        elf.SymType
	shndx       elf.SectionIndex
	value, size uint64
}

// symbols reads the symbol table in section s and its names.
func (m *image) symbols(s *section) ([]rawSym, error) {
	if s.entsize != symSize || s.size%symSize != 0 || s.size/symSize > maxSymbols || uint64(s.link) >= uint64(len(m.sections)) {
		return nil, errors.New("its symbol table is damaged or too large: build it again")
	}
	raw, err := m.data(s, maxTable)
	if err != nil {
		return nil, err
	}
	names, err := m.data(&m.sections[s.link], maxTable)
	if err != nil {
		return nil, err
	}
	out := make([]rawSym, 0, len(raw)/symSize)
	budget := 4 * maxTable // names may share bytes of the table, but not without end
	for b := raw; len(b) > 0; b = b[symSize:] {
		// A name that cannot be shown cannot be asked for either.
		name, _ := cstring(names, le.Uint32(b))
		if budget -= len(name); budget < 0 {
			return nil, errors.New("the names in its symbol table are damaged: build it again")
		}
		out = append(out, rawSym{name, elf.ST_BIND(b[4]), elf.ST_TYPE(b[4]), elf.SectionIndex(le.Uint16(b[6:])), le.Uint64(b[8:]), le.Uint64(b[16:])})
	}
	return out, nil
}

// rela is a relocation.
type rela struct {
	off    uint64
	typ    elf.R_X86_64
	sym    uint32
	addend int64
}

func (m *image) relas(s *section) ([]rela, error) {
	if s.entsize != relaSize || s.size%relaSize != 0 {
		return nil, fmt.Errorf("section %s is damaged: build the file again", s.name)
	}
	raw, err := m.data(s, maxTable)
	if err != nil {
		return nil, err
	}
	out := make([]rela, 0, len(raw)/relaSize)
	for b := raw; len(b) > 0; b = b[relaSize:] {
		info := le.Uint64(b[8:])
		out = append(out, rela{le.Uint64(b), elf.R_X86_64(uint32(info)), uint32(info >> 32), int64(le.Uint64(b[16:]))})
	}
	return out, nil
}
