package elf

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"

	"github.com/cloister-vmm/cloister/guest/abi"
)

const (
	ehdrSize = 64 // sizeof(Elf64_Ehdr)
	phdrSize = 56 // sizeof(Elf64_Phdr)

	// MaxHeaderBytes bounds the program header table, as Linux does (load_elf_phdrs in fs/binfmt_elf.c).
	MaxHeaderBytes = 65536

	maxInterp = 4096    // PATH_MAX, Linux's bound for PT_INTERP
	maxNote   = 1 << 18 // bytes read of each PT_NOTE: some thousands of sites
	maxNotes  = 16      // PT_NOTE headers looked at
	maxDyn    = 1 << 16 // bytes read of PT_DYNAMIC: 4096 entries
)

// PIE images are bounded so that any of them can be placed at abi.PIEBase.
const maxPIE = abi.MmapTop - abi.PIEBase

// FormatError says why a file cannot run and what its owner can do about it.
type FormatError struct {
	Problem string // such as "segment 2 is writable and executable"
	Remedy  string // such as "link it with -z separate-code"
}

// Error gives "problem; remedy" on one line.
func (e *FormatError) Error() string { return e.Problem + "; " + e.Remedy }

const (
	remedyDamaged = "the file is damaged: build or copy it again"
	remedyStatic  = "build a static program: gcc -static or gcc -static-pie (musl-gcc: -static), rustc -C target-feature=+crt-static, CGO_ENABLED=0 go build"
)

func bad(remedy, format string, args ...any) error {
	return &FormatError{Problem: fmt.Sprintf(format, args...), Remedy: remedy}
}

type header struct {
	index                            int
	typ                              elf.ProgType
	flags                            elf.ProgFlag
	off, vaddr, filesz, memsz, align uint64
}

// Load reads and checks the program that r holds; size is its length in bytes. Errors about the
// contents are *FormatError; others come from r. The Image keeps r for ReadSegment.
func Load(r io.ReaderAt, size int64) (*Image, error) {
	if size < 0 {
		return nil, fmt.Errorf("load program: negative file size %d; pass the length of the file", size)
	}
	var eh [ehdrSize]byte
	n, err := readUpTo(r, eh[:], 0, size)
	if err != nil {
		return nil, fmt.Errorf("read ELF header: %w", err)
	}
	if err := checkIdent(eh[:n]); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	im := &Image{Entry: le.Uint64(eh[24:]), r: r}
	switch t := elf.Type(le.Uint16(eh[16:])); t {
	case elf.ET_EXEC:
		im.Type = Fixed
	case elf.ET_DYN:
		im.Type = PIE
	case elf.ET_REL:
		return nil, bad("link it first: gcc -static file.o", "the file is a relocatable object, not a program")
	case elf.ET_CORE:
		return nil, bad("give the program that dumped it", "the file is a core dump, not a program")
	default:
		return nil, bad(remedyStatic, "the file has ELF type %d, which is no executable", uint16(t))
	}
	phs, phoff, err := readHeaders(r, size, eh[:])
	if err != nil {
		return nil, err
	}
	if err := checkStatic(r, size, phs, im); err != nil {
		return nil, err
	}
	for _, p := range phs {
		if err := im.addHeader(p, uint64(size)); err != nil {
			return nil, err
		}
	}
	if err := im.checkLayout(); err != nil {
		return nil, err
	}
	im.locatePhdr(phoff, len(phs))
	return im, im.readNotes(r, size, phs)
}

// readUpTo fills as much of dst as the first size bytes of r allow.
func readUpTo(r io.ReaderAt, dst []byte, off, size int64) (int, error) {
	if off >= size {
		return 0, nil
	}
	if left := size - off; int64(len(dst)) > left {
		dst = dst[:left]
	}
	n, err := r.ReadAt(dst, off)
	if n == len(dst) || errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func checkIdent(eh []byte) error {
	switch {
	case len(eh) == 0:
		return bad("give a static x86-64 program", "the file is empty, not an ELF program")
	case len(eh) >= 2 && eh[0] == '#' && eh[1] == '!':
		line, _, _ := strings.Cut(string(eh[2:]), "\n")
		return bad("run its interpreter (a static one) with the script as argument", "the file is a script for %q, not an ELF program", strings.TrimSpace(line))
	case len(eh) < 4 || string(eh[:4]) != elf.ELFMAG:
		return bad("give a static x86-64 program", "the file is not an ELF program")
	case len(eh) < ehdrSize:
		return bad(remedyDamaged, "the ELF header is truncated: %d of %d bytes", len(eh), ehdrSize)
	}
	le := binary.LittleEndian
	if c := elf.Class(eh[elf.EI_CLASS]); c == elf.ELFCLASS32 {
		return bad("build it for x86-64 (gcc -m64)", "the program is 32-bit")
	} else if c != elf.ELFCLASS64 {
		return bad(remedyDamaged, "the ELF class is %d, neither 32 nor 64 bit", uint8(c))
	}
	if d := elf.Data(eh[elf.EI_DATA]); d == elf.ELFDATA2MSB {
		return bad("build it for x86-64", "the program is big-endian (machine %s)", machineName(binary.BigEndian.Uint16(eh[18:])))
	} else if d != elf.ELFDATA2LSB {
		return bad(remedyDamaged, "the ELF data encoding is %d, which does not exist", uint8(d))
	}
	if m := le.Uint16(eh[18:]); elf.Machine(m) != elf.EM_X86_64 {
		return bad("build it for x86-64", "the program is for another machine: %s", machineName(m))
	}
	if v := eh[elf.EI_VERSION]; v != byte(elf.EV_CURRENT) {
		return bad(remedyDamaged, "the ELF version is %d, not 1", v)
	}
	if abiID := elf.OSABI(eh[elf.EI_OSABI]); abiID != elf.ELFOSABI_NONE && abiID != elf.ELFOSABI_LINUX {
		return bad("build it for Linux", "the program is for another system: %s", abiID)
	}
	return nil
}

func machineName(m uint16) string {
	name := strings.TrimPrefix(elf.Machine(m).String(), "EM_")
	if strings.Contains(name, "+") { // debug/elf's way to print a number it has no name for
		return fmt.Sprintf("ELF machine number %d", m)
	}
	return name
}

func readHeaders(r io.ReaderAt, size int64, eh []byte) ([]header, uint64, error) {
	le := binary.LittleEndian
	off, ent, num := le.Uint64(eh[32:]), int(le.Uint16(eh[54:])), int(le.Uint16(eh[56:]))
	switch {
	case num == 0:
		return nil, 0, bad("link it with a normal linker script", "the program has no program headers")
	case ent != phdrSize:
		return nil, 0, bad(remedyDamaged, "program headers of %d bytes, not %d", ent, phdrSize)
	case num*phdrSize > MaxHeaderBytes:
		return nil, 0, bad("merge its segments", "%d program headers are too many: at most %d", num, MaxHeaderBytes/phdrSize)
	case off > uint64(size) || uint64(num*phdrSize) > uint64(size)-off:
		return nil, 0, bad(remedyDamaged, "the file is truncated: %d program headers at offset %#x of a file of %d bytes", num, off, size)
	}
	raw := make([]byte, num*phdrSize)
	n, err := readUpTo(r, raw, int64(off), size)
	if err != nil {
		return nil, 0, fmt.Errorf("read program headers: %w", err)
	}
	if n < len(raw) {
		return nil, 0, bad(remedyDamaged, "the file is truncated: %d of %d bytes of program headers", n, len(raw))
	}
	phs := make([]header, num)
	for i := range phs {
		b := raw[i*phdrSize:]
		phs[i] = header{
			index: i,
			typ:   elf.ProgType(le.Uint32(b)), flags: elf.ProgFlag(le.Uint32(b[4:])),
			off: le.Uint64(b[8:]), vaddr: le.Uint64(b[16:]),
			filesz: le.Uint64(b[32:]), memsz: le.Uint64(b[40:]), align: le.Uint64(b[48:]),
		}
	}
	return phs, off, nil
}

// checkStatic refuses what needs a dynamic linker: an interpreter, or a shared library.
func checkStatic(r io.ReaderAt, size int64, phs []header, im *Image) error {
	for _, p := range phs {
		if p.typ != elf.PT_INTERP {
			continue
		}
		buf := make([]byte, min(p.filesz, maxInterp))
		n := 0
		if p.off < uint64(size) {
			var err error
			if n, err = readUpTo(r, buf, int64(p.off), size); err != nil {
				return fmt.Errorf("read interpreter name: %w", err)
			}
		}
		name, _, _ := strings.Cut(string(buf[:n]), "\x00")
		return bad(remedyStatic, "the program is dynamically linked: it asks for the interpreter %q", name)
	}
	if im.Type != PIE {
		return nil
	}
	library, err := isLibrary(r, size, phs)
	if err != nil {
		return err
	}
	if library || im.Entry == 0 {
		return bad(remedyStatic, "the file is a shared library, not a program")
	}
	return nil
}

// isLibrary reports whether the dynamic section names other libraries or the file's own library name:
// both make sense only to a dynamic linker, and the file has none.
func isLibrary(r io.ReaderAt, size int64, phs []header) (bool, error) {
	for _, p := range phs {
		if p.typ != elf.PT_DYNAMIC || p.off >= uint64(size) {
			continue
		}
		buf := make([]byte, min(p.filesz, maxDyn))
		n, err := readUpTo(r, buf, int64(p.off), size)
		if err != nil {
			return false, fmt.Errorf("read dynamic section: %w", err)
		}
		for b := buf[:n]; len(b) >= 16; b = b[16:] {
			switch elf.DynTag(binary.LittleEndian.Uint64(b)) {
			case elf.DT_NEEDED, elf.DT_SONAME:
				return true, nil
			case elf.DT_NULL:
				return false, nil
			}
		}
		return false, nil
	}
	return false, nil
}

func (im *Image) addHeader(p header, size uint64) error {
	switch p.typ {
	case elf.PT_LOAD:
		if p.memsz == 0 && p.filesz == 0 {
			return nil // Linux maps nothing for it
		}
		return im.addSegment(p, size)
	case elf.PT_TLS:
		if im.TLS != nil {
			return bad(remedyDamaged, "program header %d is a second PT_TLS", p.index)
		}
		im.TLS = &TLS{VAddr: p.vaddr, MemSize: p.memsz, FileSize: p.filesz, Align: p.align}
	case elf.PT_GNU_STACK:
		im.StackExec = p.flags&elf.PF_X != 0
	}
	return nil
}

func (im *Image) addSegment(p header, size uint64) error {
	lo, hi := uint64(abi.LowestUser), uint64(abi.MmapTop)
	if im.Type == PIE {
		lo, hi = 0, maxPIE
	}
	what := fmt.Sprintf("segment %d (program header %d)", len(im.Segments), p.index)
	switch {
	case p.filesz > p.memsz:
		return bad(remedyDamaged, "%s has more bytes in the file (%d) than in memory (%d)", what, p.filesz, p.memsz)
	case p.off > size || p.filesz > size-p.off:
		return bad(remedyDamaged, "%s is truncated: %d bytes at offset %#x of a file of %d bytes", what, p.filesz, p.off, size)
	case p.vaddr+p.memsz < p.vaddr:
		return bad(remedyDamaged, "%s wraps around the address space: %d bytes at %#x", what, p.memsz, p.vaddr)
	case p.vaddr >= 1<<47 && p.vaddr < 0xffff_8000_0000_0000:
		return bad(remedyDamaged, "%s has the non-canonical address %#x", what, p.vaddr)
	case p.vaddr < lo:
		return bad("link it at 0x400000 (-Wl,-Ttext-segment=0x400000) or with -static-pie", "%s begins at %#x, below the lowest address %#x", what, p.vaddr, lo)
	case p.vaddr+p.memsz > hi:
		return bad("link it at 0x400000, or with -static-pie, and with less static data", "%s ends at %#x, above the highest address %#x", what, p.vaddr+p.memsz, hi)
	case p.vaddr%abi.Page != p.off%abi.Page:
		return bad("link it with -z max-page-size=4096 or a normal linker script", "%s is misaligned: address %#x and file offset %#x differ within a page", what, p.vaddr, p.off)
	case p.flags&(elf.PF_W|elf.PF_X) == elf.PF_W|elf.PF_X:
		return bad("link it with -z separate-code, without -N (--omagic) and without a linker script that merges text and data", "%s at %#x is writable and executable", what, p.vaddr)
	}
	im.Segments = append(im.Segments, Segment{
		Header: p.index, VAddr: p.vaddr, MemSize: p.memsz, FileOffset: p.off, FileSize: p.filesz,
		Prot: Prot(p.flags & (elf.PF_R | elf.PF_W | elf.PF_X)),
	})
	// Linux ignores alignments that are no power of two (maximum_alignment in fs/binfmt_elf.c).
	if p.align&(p.align-1) == 0 && p.align > im.Align {
		im.Align = p.align
	}
	return nil
}

func (im *Image) checkLayout() error {
	if len(im.Segments) == 0 {
		return bad("link it with a normal linker script", "the program has no segment to load")
	}
	im.Align = max(im.Align, abi.Page)
	if im.Type == PIE && im.Align > maxPIE {
		return bad("link it with a smaller -z max-page-size", "the program asks for an alignment of %#x", im.Align)
	}
	order := make([]int, len(im.Segments))
	for i := range order {
		order[i] = i
	}
	sort.Slice(order, func(a, b int) bool { return im.Segments[order[a]].VAddr < im.Segments[order[b]].VAddr })
	for k := 1; k < len(order); k++ {
		a, b := im.Segments[order[k-1]], im.Segments[order[k]]
		if a.VAddr+a.MemSize > b.VAddr {
			return bad(remedyDamaged, "segments %d and %d overlap at %#x", order[k-1], order[k], b.VAddr)
		}
	}
	im.Pages = pages(im.Segments, order)
	last := im.Pages[len(im.Pages)-1]
	im.MinVA, im.MaxVA = im.Pages[0].VAddr, last.VAddr+last.Size
	return im.checkEntry()
}

func (im *Image) checkEntry() error {
	for i, s := range im.Segments {
		if im.Entry < s.VAddr || im.Entry-s.VAddr >= s.MemSize {
			continue
		}
		for _, p := range im.Pages {
			if im.Entry-p.VAddr < p.Size && im.Entry >= p.VAddr && p.Prot&X != 0 {
				return nil
			}
		}
		return bad("link it with -z separate-code and a normal linker script", "the entry point %#x lies in segment %d, on a page that is not executable", im.Entry, i)
	}
	return bad(remedyDamaged, "the entry point %#x lies in no segment", im.Entry)
}

// pages resolves shared pages: order lists the segments by address. They are disjoint, so a page is
// shared only by neighbours, but one page may hold many of them: the one with the highest index wins.
func pages(segs []Segment, order []int) []Page {
	var runs []Page
	add := func(va, end uint64, prot Prot) {
		if va >= end {
			return
		}
		if k := len(runs) - 1; k >= 0 && runs[k].Prot == prot && runs[k].VAddr+runs[k].Size == va {
			runs[k].Size += end - va
			return
		}
		runs = append(runs, Page{VAddr: va, Size: end - va, Prot: prot})
	}
	// The last page of the segments so far, not yet added: others may still come to lie on it.
	var open uint64
	winner := -1
	for _, i := range order {
		s := segs[i]
		first := s.VAddr &^ (abi.Page - 1)
		last := (s.VAddr + s.MemSize - 1) &^ (abi.Page - 1)
		if winner >= 0 && first == open {
			winner = max(winner, i)
		} else {
			if winner >= 0 {
				add(open, open+abi.Page, segs[winner].Prot)
			}
			open, winner = first, i
		}
		if last > open {
			add(open, open+abi.Page, segs[winner].Prot)
			add(open+abi.Page, last, s.Prot)
			open, winner = last, i
		}
	}
	add(open, open+abi.Page, segs[winner].Prot)
	return runs
}

func (im *Image) locatePhdr(off uint64, num int) {
	im.Phdr = Phdr{Num: num, EntSize: phdrSize}
	for _, s := range im.Segments {
		if off >= s.FileOffset && off-s.FileOffset < s.FileSize && uint64(num*phdrSize) <= s.FileSize-(off-s.FileOffset) {
			im.Phdr.VAddr, im.Phdr.Loaded = s.VAddr+off-s.FileOffset, true
			return
		}
	}
}

// readNotes finds the build id and our own notes. What is not well-formed in a note section ends the reading of it: no program
// is refused for its notes.
func (im *Image) readNotes(r io.ReaderAt, size int64, phs []header) error {
	seen := 0
	for _, p := range phs {
		if p.typ != elf.PT_NOTE || p.off >= uint64(size) {
			continue
		}
		if seen++; seen > maxNotes {
			break
		}
		align := uint64(4)
		if p.align == 8 {
			align = 8
		}
		buf := make([]byte, min(p.filesz, maxNote, uint64(size)-p.off))
		n, err := readUpTo(r, buf, int64(p.off), size)
		if err != nil {
			return fmt.Errorf("read notes: %w", err)
		}
		up := func(v uint64) uint64 { return (v + align - 1) &^ (align - 1) }
		for at := uint64(0); at+12 <= uint64(n); {
			b := buf[at:n]
			le := binary.LittleEndian
			namesz, descsz, typ := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:])), le.Uint32(b[8:])
			desc := up(12 + namesz)
			if desc+descsz > uint64(len(b)) {
				break
			}
			im.addNote(string(b[12:12+namesz]), typ, p.vaddr+at+desc, b[desc:desc+descsz])
			at += up(desc + descsz)
		}
	}
	return nil
}

func (im *Image) addNote(owner string, typ uint32, at uint64, desc []byte) {
	const ntGNUBuildID = 3 // gABI supplement, <elf.h>
	switch {
	case owner == "GNU\x00" && typ == ntGNUBuildID && im.BuildID == nil && len(desc) > 0 && len(desc) <= 64:
		im.BuildID = append([]byte(nil), desc...)
	case owner == abi.NoteOwner+"\x00":
		n := Note{Type: typ}
		if typ == abi.NoteSafeWord || typ == abi.NoteSafeRIP {
			if len(desc) < 8 {
				return
			}
			n.Addr = at + binary.LittleEndian.Uint64(desc)
		}
		im.Notes = append(im.Notes, n)
	}
}
