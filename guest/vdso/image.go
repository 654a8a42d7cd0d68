package vdso

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"sync"
)

const (
	// PageSize is the size in bytes of the data page, which lies directly below the image.
	PageSize = 4096
	// ImageSize is the size in bytes of the image; its first byte is page-aligned in the guest.
	ImageSize = 4096
)

const version = "LINUX_2.6" // of every symbol in Linux's x86-64 vDSO (arch/x86/entry/vdso/vdso.lds.S)

// names are the functions in the order of their marks in code_amd64.s.
var names = []string{
	"__vdso_clock_gettime", "__vdso_gettimeofday", "__vdso_time", "__vdso_clock_getres", "__vdso_getcpu",
}

// Image gives a copy of the vDSO image. It fails only if the assembler that built Cloister
// rearranged the code.
func Image() ([]byte, error) {
	img, err := builtImage()
	return append([]byte(nil), img...), err
}

var builtImage = sync.OnceValues(buildImage)

// section is one part of the image, with what its section header says.
type section struct {
	name       string
	typ        elf.SectionType
	flags      elf.SectionFlag
	data       []byte
	link, info uint32
	align, ent uint64
	off        uint64
}

// Section numbers that headers refer to.
const (
	secDynsym = 3
	secDynstr = 4
	secText   = 8
)

func buildImage() ([]byte, error) {
	text, entry, err := codeBytes()
	if err != nil {
		return nil, err
	}
	const ehdr, phdr, shdr = 64, 56, 64
	const numPH = 3
	strs := &table{}
	soname, ver := strs.add("linux-vdso.so.1"), strs.add(version)
	symName := make([]uint32, len(names))
	for i, n := range names {
		symName[i] = strs.add(n)
	}
	all := append(append([]string{}, names...), version)

	// Sizes are known before contents, so that addresses can be laid out first.
	secs := []*section{
		{},
		{name: ".hash", typ: elf.SHT_HASH, data: sysvHash(all), link: secDynsym, align: 8, ent: 4},
		{name: ".gnu.hash", typ: elf.SHT_GNU_HASH, data: gnuHash(all), link: secDynsym, align: 8},
		{name: ".dynsym", typ: elf.SHT_DYNSYM, data: make([]byte, 24*(1+len(all))), link: secDynstr, info: 1, align: 8, ent: 24},
		{name: ".dynstr", typ: elf.SHT_STRTAB, data: strs.b, align: 1},
		{name: ".gnu.version", typ: elf.SHT_GNU_VERSYM, data: versym(len(all)), link: secDynsym, align: 2, ent: 2},
		{name: ".gnu.version_d", typ: elf.SHT_GNU_VERDEF, data: verdef(soname, ver), link: secDynstr, info: 2, align: 8},
		{name: ".dynamic", typ: elf.SHT_DYNAMIC, data: make([]byte, 16*11), link: secDynstr, align: 8, ent: 16},
		{name: ".text", typ: elf.SHT_PROGBITS, flags: elf.SHF_EXECINSTR, data: text, align: 64},
		{name: ".shstrtab", typ: elf.SHT_STRTAB, align: 1},
	}
	off := uint64(ehdr + numPH*phdr)
	for _, s := range secs[1:9] {
		s.flags |= elf.SHF_ALLOC
		off = (off + s.align - 1) &^ (s.align - 1)
		s.off = off
		off += uint64(len(s.data))
	}
	le := binary.LittleEndian
	for i, n := range symName {
		end := len(text)
		if i+1 < len(entry) {
			end = entry[i+1] - 8
		}
		putSym(secs[secDynsym].data[24*(1+i):], n, elf.STT_FUNC, secText, secs[secText].off+uint64(entry[i]), uint64(end-entry[i]))
	}
	putSym(secs[secDynsym].data[24*len(all):], ver, elf.STT_OBJECT, uint16(elf.SHN_ABS), 0, 0)
	for i, d := range [][2]uint64{
		{uint64(elf.DT_SONAME), uint64(soname)}, {uint64(elf.DT_HASH), secs[1].off}, {uint64(elf.DT_GNU_HASH), secs[2].off},
		{uint64(elf.DT_STRTAB), secs[secDynstr].off}, {uint64(elf.DT_SYMTAB), secs[secDynsym].off},
		{uint64(elf.DT_STRSZ), uint64(len(strs.b))}, {uint64(elf.DT_SYMENT), 24}, {uint64(elf.DT_VERSYM), secs[5].off},
		{uint64(elf.DT_VERDEF), secs[6].off}, {uint64(elf.DT_VERDEFNUM), 2}, {uint64(elf.DT_NULL), 0},
	} {
		le.PutUint64(secs[7].data[16*i:], d[0])
		le.PutUint64(secs[7].data[16*i+8:], d[1])
	}
	if err := pointToPage(text, secs[secText].off); err != nil {
		return nil, err
	}

	shnames := &table{}
	name := make([]uint32, len(secs))
	for i, s := range secs[1:] {
		name[1+i] = shnames.add(s.name)
	}
	secs[9].data, secs[9].off = shnames.b, off
	shoff := (off + uint64(len(shnames.b)) + 7) &^ 7
	if shoff+uint64(shdr*len(secs)) > ImageSize {
		return nil, fmt.Errorf("build vDSO: %d bytes; raise ImageSize", shoff+uint64(shdr*len(secs)))
	}

	img := make([]byte, ImageSize)
	copy(img, "\x7fELF\x02\x01\x01")
	le.PutUint16(img[16:], uint16(elf.ET_DYN))
	le.PutUint16(img[18:], uint16(elf.EM_X86_64))
	le.PutUint32(img[20:], 1)
	le.PutUint64(img[32:], ehdr)
	le.PutUint64(img[40:], shoff)
	for i, v := range []uint16{ehdr, phdr, numPH, shdr, uint16(len(secs)), uint16(len(secs) - 1)} {
		le.PutUint16(img[52+2*i:], v)
	}
	// One segment that covers the page, as in Linux's vDSO: parsers take its offset and address.
	putProg(img[ehdr:], elf.PT_LOAD, elf.PF_R|elf.PF_X, 0, ImageSize, 4096)
	putProg(img[ehdr+phdr:], elf.PT_DYNAMIC, elf.PF_R, secs[7].off, uint64(len(secs[7].data)), 8)
	putProg(img[ehdr+2*phdr:], elf.PT_GNU_STACK, elf.PF_R|elf.PF_W, 0, 0, 16)
	for i, s := range secs {
		copy(img[s.off:], s.data)
		if i == 0 {
			copy(img, "\x7fELF")
			continue
		}
		putSection(img[shoff+uint64(shdr*i):], name[i], s)
	}
	return img, nil
}

// pointToPage replaces each pageMark by the distance from the next instruction to the data page.
func pointToPage(text []byte, at uint64) error {
	le := binary.LittleEndian
	found := 0
	for i := 3; i+4 <= len(text); i++ {
		if le.Uint32(text[i:]) != pageMark || text[i-3] != 0x4C || text[i-2] != 0x8D || text[i-1] != 0x05 {
			continue
		}
		le.PutUint32(text[i:], uint32(-int32(PageSize+at+uint64(i)+4)))
		found++
	}
	if found != 3 {
		return fmt.Errorf("build vDSO: %d references to the data page, not 3; build Cloister with an unmodified assembler", found)
	}
	return nil
}

func putSym(b []byte, name uint32, typ elf.SymType, sec uint16, value, size uint64) {
	le := binary.LittleEndian
	le.PutUint32(b, name)
	b[4] = elf.ST_INFO(elf.STB_GLOBAL, typ)
	le.PutUint16(b[6:], sec)
	le.PutUint64(b[8:], value)
	le.PutUint64(b[16:], size)
}

func putProg(b []byte, typ elf.ProgType, flags elf.ProgFlag, off, size, align uint64) {
	le := binary.LittleEndian
	le.PutUint32(b, uint32(typ))
	le.PutUint32(b[4:], uint32(flags))
	for i, v := range []uint64{off, off, off, size, size, align} {
		le.PutUint64(b[8+8*i:], v)
	}
}

func putSection(b []byte, name uint32, s *section) {
	le := binary.LittleEndian
	addr := s.off
	if s.flags&elf.SHF_ALLOC == 0 {
		addr = 0
	}
	le.PutUint32(b, name)
	le.PutUint32(b[4:], uint32(s.typ))
	for i, v := range []uint64{uint64(s.flags), addr, s.off, uint64(len(s.data))} {
		le.PutUint64(b[8+8*i:], v)
	}
	le.PutUint32(b[40:], s.link)
	le.PutUint32(b[44:], s.info)
	le.PutUint64(b[48:], s.align)
	le.PutUint64(b[56:], s.ent)
}

// table is a string table.
type table struct{ b []byte }

func (t *table) add(s string) uint32 {
	if t.b == nil {
		t.b = []byte{0}
	}
	at := len(t.b)
	t.b = append(append(t.b, s...), 0)
	return uint32(at)
}

// sysvHash gives a DT_HASH with one bucket that chains all symbols (gABI, "Hash Table").
func sysvHash(syms []string) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, 1)
	b = le.AppendUint32(b, uint32(1+len(syms)))
	b = le.AppendUint32(b, 1) // bucket 0 begins with symbol 1
	b = le.AppendUint32(b, 0)
	for i := range syms {
		b = le.AppendUint32(b, uint32((i+2)%(len(syms)+1)))
	}
	return b
}

// gnuHash gives a DT_GNU_HASH with one bucket and one Bloom word.
func gnuHash(syms []string) []byte {
	const shift = 6
	le := binary.LittleEndian
	var bloom uint64
	var chain []byte
	for i, s := range syms {
		h := uint32(5381)
		for _, c := range []byte(s) {
			h = h*33 + uint32(c)
		}
		bloom |= 1<<(h%64) | 1<<((h>>shift)%64)
		h &^= 1
		if i == len(syms)-1 {
			h |= 1
		}
		chain = le.AppendUint32(chain, h)
	}
	var b []byte
	for _, v := range []uint32{1, 1, 1, shift} { // buckets, first symbol, Bloom words, shift
		b = le.AppendUint32(b, v)
	}
	b = le.AppendUint64(b, bloom)
	b = le.AppendUint32(b, 1)
	return append(b, chain...)
}

// versym gives version 2 to every symbol but the first.
func versym(n int) []byte {
	b := make([]byte, 2)
	for range n {
		b = binary.LittleEndian.AppendUint16(b, 2)
	}
	return b
}

// verdef defines version 1, the file's own name, and version 2.
func verdef(soname, ver uint32) []byte {
	le := binary.LittleEndian
	var b []byte
	for i, d := range []struct {
		name  uint32
		s     string
		flags uint16
	}{{soname, "linux-vdso.so.1", 1}, {ver, version, 0}} { // 1: VER_FLG_BASE
		for _, v := range []uint16{1, d.flags, uint16(i + 1), 1} {
			b = le.AppendUint16(b, v)
		}
		next := uint32(28)
		if i == 1 {
			next = 0
		}
		for _, v := range []uint32{elfHash(d.s), 20, next, d.name, 0} {
			b = le.AppendUint32(b, v)
		}
	}
	return b
}

// elfHash is the hash of DT_HASH and of version names (gABI, "Hash Table").
func elfHash(s string) uint32 {
	h := uint32(0)
	for _, c := range []byte(s) {
		h = h<<4 + uint32(c)
		h ^= h >> 24 & 0xf0
	}
	return h & 0x0fffffff
}
