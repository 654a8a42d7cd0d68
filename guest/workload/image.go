package workload

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"sort"

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
	fileEnd    = fileParams + dataSize

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

// Section numbers, in the order in which image writes the headers.
const (
	secText elf.SectionIndex = 1 + iota
	secData
	secSymtab
	secStrtab
	secShstrtab
	numSections
)

// image wraps code in a static ELF64 file (System V gABI 4.1, chapters 4 and 5). names are the symbols of the
// labels, by number; entry is the label at which the program starts.
func image(l labelled, names []string, entry int, p *params, r *abi.GapRecord) ([]byte, error) {
	symbols, err := symbolsOf(l, names, entry)
	if err != nil {
		return nil, err
	}
	var symtab, strtab, f output
	strtab.WriteByte(0)
	symtab.put(elf.Sym64{})
	for _, s := range symbols {
		symtab.put(elf.Sym64{Name: uint32(strtab.Len()), Info: elf.ST_INFO(elf.STB_GLOBAL, s.kind), Shndx: uint16(s.section), Value: s.at, Size: s.size})
		strtab.WriteString(s.name + "\x00")
	}
	const shstrtab = "\x00.text\x00.data\x00.symtab\x00.strtab\x00.shstrtab\x00"
	nameAt := func(n string) uint32 { return uint32(bytes.Index([]byte(shstrtab), []byte("\x00"+n+"\x00")) + 1) }

	symAt := uint64(fileEnd)
	strAt := symAt + uint64(symtab.Len())
	shstrAt := strAt + uint64(strtab.Len())
	headersAt := (shstrAt + uint64(len(shstrtab)) + 7) &^ 7

	f.put(elf.Header64{
		Ident:   [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:    uint16(elf.ET_EXEC),
		Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: TextAddr + uint64(l.labels[byte(entry)]),
		Phoff: 64, Shoff: headersAt,
		Ehsize: 64, Phentsize: 56, Phnum: 3, Shentsize: 64, Shnum: uint16(numSections), Shstrndx: uint16(secShstrtab),
	})
	size := uint64(fileText + len(l.code))
	f.put(elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: imageBase, Paddr: imageBase, Filesz: size, Memsz: size, Align: abi.Page})
	f.put(elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_W), Off: fileParams, Vaddr: ParamsAddr, Paddr: ParamsAddr, Filesz: dataSize, Memsz: dataSize, Align: abi.Page})
	f.put(elf.Prog64{Type: uint32(elf.PT_GNU_STACK), Flags: uint32(elf.PF_R | elf.PF_W), Align: 16})
	f.padTo(fileText)
	f.Write(l.code)
	f.padTo(fileParams)
	f.put(p)
	f.padTo(fileParams + RecordAddr - ParamsAddr)
	f.put(r)
	f.padTo(fileEnd)
	f.Write(symtab.Bytes())
	f.Write(strtab.Bytes())
	f.WriteString(shstrtab)
	f.padTo(int(headersAt))
	f.put(elf.Section64{})
	f.put(elf.Section64{Name: nameAt(".text"), Type: uint32(elf.SHT_PROGBITS), Flags: uint64(elf.SHF_ALLOC | elf.SHF_EXECINSTR), Addr: TextAddr, Off: fileText, Size: uint64(len(l.code)), Addralign: 64})
	f.put(elf.Section64{Name: nameAt(".data"), Type: uint32(elf.SHT_PROGBITS), Flags: uint64(elf.SHF_ALLOC | elf.SHF_WRITE), Addr: ParamsAddr, Off: fileParams, Size: dataSize, Addralign: abi.Page})
	f.put(elf.Section64{Name: nameAt(".symtab"), Type: uint32(elf.SHT_SYMTAB), Off: symAt, Size: uint64(symtab.Len()), Link: uint32(secStrtab), Info: 1, Addralign: 8, Entsize: elf.Sym64Size})
	f.put(elf.Section64{Name: nameAt(".strtab"), Type: uint32(elf.SHT_STRTAB), Off: strAt, Size: uint64(strtab.Len()), Addralign: 1})
	f.put(elf.Section64{Name: nameAt(".shstrtab"), Type: uint32(elf.SHT_STRTAB), Off: shstrAt, Size: uint64(len(shstrtab)), Addralign: 1})
	return f.Bytes(), errors.Join(f.err, symtab.err)
}

// symbolsOf gives every label its name and the size up to the next one.
func symbolsOf(l labelled, names []string, entry int) ([]symbol, error) {
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
	sort.Slice(s, func(i, j int) bool { return s[i].at < s[j].at })
	for i := range s {
		end := uint64(TextAddr + len(l.code))
		if i+1 < len(s) {
			end = s[i+1].at
		}
		s[i].size = end - s[i].at
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
