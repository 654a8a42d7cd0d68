package workload

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// Addresses in every built-in program.
const (
	TextAddr   = 0x401000 // the code
	ParamsAddr = 0x600000 // the params page
	RecordAddr = 0x601000 // the abi.GapRecord of @jitter and @cyclic, page-aligned
)

const (
	imageBase  = 0x400000 // the ELF header; where static x86-64 programs are linked by custom
	fileText   = 0x1000   // file offsets; each congruent to its address modulo the page size
	fileParams = fileText + maxCode
	dataSize   = abi.Page + recordPages*abi.Page

	recordPages = 2
	stepsAt     = 256
	scratchAt   = 64
	maxSteps    = (abi.Page - stepsAt) / 128
)

// params is the page at ParamsAddr.
type params struct {
	Seal   uint64 // 1: isolate around the loop
	Count  uint64 // @spin: rounds; 0 is 2^64
	Passes uint64 // @jitter, @cyclic: passes to record; 0 is 2^64
	Cycles uint64 // @jitter, @cyclic: TSC cycles to record; 0 is no limit
	Warm   uint64 // @jitter, @cyclic: passes before the measurement
	Dump   uint64 // 1: write the record to standard output at the end
	Phase  uint64 // the program's own: 0 during the warm-up
	Write  uint64 // @spin: bytes of Scratch to write to standard output before the loop

	Scratch [stepsAt - scratchAt]byte // the programs' own
	Steps   [maxSteps]step
}

type symbol struct {
	name    string
	at      uint64
	size    uint64
	kind    elf.SymType
	section elf.SectionIndex
}

// Section numbers that something refers to.
const (
	secText     = 1
	secData     = 2
	secStrtab   = 4
	secShstrtab = 5
)

// section is one section of the file; Off is not 0 where its place is fixed.
type section struct {
	name string
	elf.Section64
	bytes []byte
}

// headersSize is where the notes begin: behind the file's header and four program headers.
const headersSize = 64 + 4*56

// image wraps code in a static ELF64 file (System V gABI 4.1, chapters 4 and 5). names are the symbols of the
// labels, by number; entry is the label at which the program starts.
func image(l labelled, names []string, entry int, m *memory) ([]byte, error) {
	symbols, err := symbolsOf(l, names, entry, m)
	if err != nil {
		return nil, err
	}
	var symtab, strtab, data output
	strtab.WriteByte(0)
	symtab.put(elf.Sym64{})
	for _, s := range symbols {
		symtab.put(elf.Sym64{Name: uint32(strtab.Len()), Info: elf.ST_INFO(elf.STB_GLOBAL, s.kind), Shndx: uint16(s.section), Value: s.at, Size: s.size})
		strtab.WriteString(s.name + "\x00")
	}
	data.put(&m.params)
	data.padTo(RecordAddr - ParamsAddr)
	data.put(&m.record)
	data.padTo(dataSize)
	if m.control != nil {
		data.put(m.control)
		data.padTo(dataSize + abi.Page)
	}
	notes, entries, err := l.declare(imageBase+headersSize, m.patchable, symtab.Bytes())
	if err != nil {
		return nil, err
	}

	const alloc = uint64(elf.SHF_ALLOC)
	entriesAt := (headersSize + uint64(len(notes)) + 7) &^ 7
	sections := []section{
		{},
		secText: {".text", elf.Section64{Type: uint32(elf.SHT_PROGBITS), Flags: alloc | uint64(elf.SHF_EXECINSTR), Addr: TextAddr, Off: fileText, Addralign: 64}, l.code},
		secData: {".data", elf.Section64{Type: uint32(elf.SHT_PROGBITS), Flags: alloc | uint64(elf.SHF_WRITE), Addr: ParamsAddr, Off: fileParams, Addralign: abi.Page}, data.Bytes()},
		{".symtab", elf.Section64{Type: uint32(elf.SHT_SYMTAB), Link: secStrtab, Info: 1, Addralign: 8, Entsize: elf.Sym64Size}, symtab.Bytes()},
		secStrtab:   {".strtab", elf.Section64{Type: uint32(elf.SHT_STRTAB), Addralign: 1}, strtab.Bytes()},
		secShstrtab: {".shstrtab", elf.Section64{Type: uint32(elf.SHT_STRTAB), Addralign: 1}, nil},
		{".note", elf.Section64{Type: uint32(elf.SHT_NOTE), Flags: alloc, Addr: imageBase + headersSize, Off: headersSize, Addralign: 4}, notes},
	}
	if len(entries) > 0 {
		sections = append(sections, section{"__patchable_function_entries",
			elf.Section64{Type: uint32(elf.SHT_PROGBITS), Flags: alloc, Addr: imageBase + entriesAt, Off: entriesAt, Addralign: 8}, entries})
	}
	shstrtab := &sections[secShstrtab]
	end := fileParams + uint64(data.Len())
	for i := range sections {
		s := &sections[i]
		s.Name = uint32(len(shstrtab.bytes))
		shstrtab.bytes = append(shstrtab.bytes, s.name+"\x00"...)
		if s.Size = uint64(len(s.bytes)); s.Off == 0 && i > 0 {
			s.Off = end
			end += s.Size
		}
	}
	shstrtab.Size = uint64(len(shstrtab.bytes))
	headersAt := (shstrtab.Off + shstrtab.Size + 7) &^ 7

	var f output
	f.put(elf.Header64{
		Ident:   [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:    uint16(elf.ET_EXEC),
		Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: TextAddr + uint64(l.labels[byte(entry)]),
		Phoff: 64, Shoff: headersAt,
		Ehsize: 64, Phentsize: 56, Phnum: 4, Shentsize: 64, Shnum: uint16(len(sections)), Shstrndx: secShstrtab,
	})
	load := func(typ elf.ProgType, flags elf.ProgFlag, off, addr, size, align uint64) {
		f.put(elf.Prog64{Type: uint32(typ), Flags: uint32(flags), Off: off, Vaddr: addr, Paddr: addr, Filesz: size, Memsz: size, Align: align})
	}
	load(elf.PT_LOAD, elf.PF_R|elf.PF_X, 0, imageBase, uint64(fileText+len(l.code)), abi.Page)
	load(elf.PT_LOAD, elf.PF_R|elf.PF_W, fileParams, ParamsAddr, uint64(data.Len()), abi.Page)
	load(elf.PT_NOTE, elf.PF_R, headersSize, imageBase+headersSize, uint64(len(notes)), 4)
	load(elf.PT_GNU_STACK, elf.PF_R|elf.PF_W, 0, 0, 0, 16)
	inFile := slices.Clone(sections[1:])
	slices.SortStableFunc(inFile, func(a, b section) int { return cmp.Compare(a.Off, b.Off) })
	for _, s := range inFile {
		f.padTo(int(s.Off))
		f.Write(s.bytes)
	}
	f.padTo(int(headersAt))
	for _, s := range sections {
		f.put(s.Section64)
	}
	return f.Bytes(), errors.Join(f.err, symtab.err, data.err)
}

// symbolsOf gives every label its name and the size up to the next one.
func symbolsOf(l labelled, names []string, entry int, m *memory) ([]symbol, error) {
	if len(l.labels) != len(names) || entry < 0 || entry >= len(names) {
		return nil, fmt.Errorf("built-in program: %d labels for %d names, entry %d: this build of cloister is damaged", len(l.labels), len(names), entry)
	}
	var s []symbol
	for n, name := range names {
		at, ok := l.labels[byte(n)]
		if !ok {
			return nil, fmt.Errorf("built-in program: label %d (%s) is missing: this build of cloister is damaged", n, name)
		}
		s = append(s, symbol{name: name, at: TextAddr + uint64(at), kind: elf.STT_FUNC, section: secText})
	}
	slices.SortFunc(s, func(a, b symbol) int { return cmp.Compare(a.at, b.at) })
	for i := range s {
		end := uint64(TextAddr + len(l.code))
		if i+1 < len(s) {
			end = s[i+1].at
		}
		s[i].size = end - s[i].at
	}
	if m.control != nil {
		s = append(s, symbol{name: "control_record", at: ControlAddr, size: uint64(binary.Size(m.control)), kind: elf.STT_OBJECT, section: secData})
	}
	return append(s,
		symbol{name: "_start", at: TextAddr + uint64(l.labels[byte(entry)]), kind: elf.STT_NOTYPE, section: secText},
		symbol{name: "params", at: ParamsAddr, size: abi.Page, kind: elf.STT_OBJECT, section: secData},
		symbol{name: "gap_record", at: RecordAddr, size: recordSize, kind: elf.STT_OBJECT, section: secData}), nil
}

// output is a file in the making; err is the first failure.
type output struct {
	bytes.Buffer
	err error
}

// put appends a value of fixed size, little-endian.
func (o *output) put(v any) {
	b, err := binary.Append(nil, binary.LittleEndian, v)
	o.err = errors.Join(o.err, err)
	o.Write(b)
}

// padTo appends zeros up to the file offset at.
func (o *output) padTo(at int) {
	if at < o.Len() {
		o.err = errors.Join(o.err, fmt.Errorf("built-in program: %d bytes where %d have room: this build of cloister is damaged", o.Len(), at))
		return
	}
	o.Write(make([]byte, at-o.Len()))
}
