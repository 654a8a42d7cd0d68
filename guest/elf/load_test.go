package elf

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/guest/abi"
)

func u16(v uint16) []byte { return binary.LittleEndian.AppendUint16(nil, v) }
func u64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

func TestLoadRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(*file)
		want  string
	}{
		{"empty", func(f *file) { f.size = 0 }, "the file is empty"},
		{"one byte", func(f *file) { f.size = 1 }, "not an ELF"},
		{"text", func(f *file) { f.poke[0] = []byte("hello") }, "not an ELF"},
		{"script", func(f *file) { f.poke[0] = []byte("#!/bin/sh -e\n") }, `script for "/bin/sh -e"`},
		{"short header", func(f *file) { f.size = 63 }, "header is truncated: 63 of 64"},
		{"32-bit", func(f *file) { f.poke[4] = []byte{1} }, "32-bit"},
		{"no class", func(f *file) { f.poke[4] = []byte{7} }, "class is 7"},
		{"big endian", func(f *file) { f.poke[5] = []byte{2}; f.poke[18] = []byte{0, 22} }, "big-endian (machine S390)"},
		{"no encoding", func(f *file) { f.poke[5] = []byte{0} }, "encoding is 0"},
		{"arm", func(f *file) { f.machine = elf.EM_AARCH64 }, "another machine: AARCH64"},
		{"unknown machine", func(f *file) { f.machine = 0xfefe }, "another machine: ELF machine number 65278"},
		{"version", func(f *file) { f.poke[6] = []byte{2} }, "version is 2"},
		{"freebsd", func(f *file) { f.poke[7] = []byte{9} }, "another system: ELFOSABI_FREEBSD"},
		{"object", func(f *file) { f.typ = elf.ET_REL }, "relocatable object"},
		{"core", func(f *file) { f.typ = elf.ET_CORE }, "core dump"},
		{"odd type", func(f *file) { f.typ = 99 }, "ELF type 99"},
		{"library without entry", func(f *file) { *f = *soundPIE(); f.entry = 0 }, "shared library"},
		{"library with soname", func(f *file) {
			*f = *soundPIE()
			f.phs = append(f.phs, ph{elf.PT_DYNAMIC, rw, 0x2000, 0x2000, 32, 32, 8})
			f.poke[0x2000] = u64(uint64(elf.DT_SONAME))
		}, "shared library"},
		{"no headers", func(f *file) { f.phs = nil }, "no program headers"},
		{"header size", func(f *file) { f.poke[54] = u16(32) }, "program headers of 32 bytes"},
		{"too many headers", func(f *file) { f.poke[56] = u16(1171) }, "1171 program headers are too many"},
		{"PN_XNUM", func(f *file) { f.poke[56] = u16(0xffff) }, "65535 program headers"},
		{"headers beyond the end", func(f *file) { f.poke[32] = u64(0x2fff) }, "truncated: 3 program headers"},
		{"headers at 2^63", func(f *file) { f.poke[32] = u64(1 << 63) }, "truncated: 3 program headers"},
		{"headers at -1", func(f *file) { f.poke[32] = u64(math.MaxUint64) }, "truncated: 3 program headers"},
		{"dynamic", func(f *file) {
			f.phs = append(f.phs, ph{elf.PT_INTERP, ro, 0x700, 0x400700, 28, 28, 1})
			f.poke[0x700] = []byte("/lib64/ld-linux-x86-64.so.2\x00")
		}, `interpreter "/lib64/ld-linux-x86-64.so.2"`},
		{"interpreter of 2^63 bytes", func(f *file) {
			f.phs = append(f.phs, ph{elf.PT_INTERP, ro, 1 << 63, 0, 1 << 63, 0, 1})
		}, `interpreter ""`},
		{"nothing to load", func(f *file) {
			for i := range f.phs {
				f.phs[i].typ = elf.PT_NOTE
			}
		}, "no segment"},
		{"more file than memory", func(f *file) { f.phs[1].filesz = 0x101 }, "segment 1 (program header 1) has more bytes in the file"},
		{"truncated segment", func(f *file) { f.size = 0x21ff }, "segment 2 (program header 2) is truncated: 512 bytes at offset 0x2000"},
		{"segment at 2^63", func(f *file) { f.phs[2].off = 1 << 63 }, "segment 2 (program header 2) is truncated"},
		{"size 2^63", func(f *file) { f.phs[2].memsz = 1 << 63 }, "above the highest address"},
		{"file size 2^63", func(f *file) { f.phs[2].memsz, f.phs[2].filesz = 1<<63, 1<<63 }, "truncated"},
		{"wrap", func(f *file) { f.phs[2].memsz = math.MaxUint64 - 0x1000 }, "wraps around"},
		{"non-canonical", func(f *file) { f.phs[2].vaddr = 0x8000_0000_0000 }, "non-canonical"},
		{"kernel half", func(f *file) { f.phs[2].vaddr = 0xffff_ffff_8000_0000 }, "above the highest address"},
		{"address 0", func(f *file) { f.phs[0].vaddr = 0 }, "below the lowest address 0x10000"},
		{"above the window", func(f *file) { f.phs[2].vaddr = abi.MmapTop - 0x1000 }, "above the highest address"},
		{"PIE above its bound", func(f *file) { *f = *soundPIE(); f.phs[2].vaddr = maxPIE }, "above the highest address"},
		{"misaligned", func(f *file) { f.phs[1].vaddr++ }, "misaligned"},
		{"W+X", func(f *file) { f.phs[1].flags |= elf.PF_W }, "segment 1 (program header 1) at 0x401000 is writable and executable"},
		{"overlap", func(f *file) { f.phs[0].memsz = 0x1001 }, "segments 0 and 1 overlap at 0x401000"},
		{"same segment twice", func(f *file) { f.phs = append(f.phs, f.phs[0]) }, "overlap at 0x400000"},
		{"entry in data", func(f *file) { f.entry = 0x402000 }, "on a page that is not executable"},
		{"entry nowhere", func(f *file) { f.entry = 0x500000 }, "lies in no segment"},
		{"entry in padding", func(f *file) { f.entry = 0x401100 }, "lies in no segment"},
		{"entry page taken by data", func(f *file) {
			f.phs[2].off, f.phs[2].vaddr = 0x1200, 0x401200
		}, "on a page that is not executable"},
		{"two TLS", func(f *file) {
			f.phs = append(f.phs, ph{typ: elf.PT_TLS}, ph{typ: elf.PT_TLS})
		}, "second PT_TLS"},
		{"absurd alignment", func(f *file) { *f = *soundPIE(); f.phs[0].align = 1 << 62 }, "alignment of 0x4000000000000000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := sound()
			c.spoil(f)
			im, err := f.load()
			if err == nil {
				t.Fatalf("accepted: %+v", im)
			}
			var fe *FormatError
			if !errors.As(err, &fe) || fe.Remedy == "" || strings.ContainsAny(err.Error(), "\n") {
				t.Errorf("not one line with a remedy: %q", err)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %q, want %q in it", err, c.want)
			}
		})
	}
}

func TestLoadNegativeSize(t *testing.T) {
	if _, err := Load(bytes.NewReader(nil), -1); err == nil {
		t.Error("accepted a size of -1")
	}
}

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, io.ErrClosedPipe }

func TestLoadPassesReadErrors(t *testing.T) {
	if _, err := Load(failing{}, 4096); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
}

func TestLoadFixed(t *testing.T) {
	f := sound()
	f.phs = append(f.phs,
		ph{elf.PT_TLS, ro, 0x2000, 0x402000, 0x10, 0x40, 32},
		ph{elf.PT_GNU_STACK, rw | elf.PF_X, 0, 0, 0, 0, 16},
		ph{elf.PT_NOTE, ro, 0x400, 0x400400, 64, 64, 4},
		ph{elf.PT_LOAD, ro, 0x123, 0, 0, 0, 1}, // empty: Linux maps nothing
	)
	f.poke[0x400] = []byte("\x04\x00\x00\x00\x08\x00\x00\x00\x01\x00\x00\x00GNU\x00abcdefgh" +
		"\x04\x00\x00\x00\x05\x00\x00\x00\x03\x00\x00\x00GNU\x00\x01\x02\x03\x04\x05")
	im, err := f.load()
	if err != nil {
		t.Fatal(err)
	}
	if im.Type != Fixed || im.Entry != 0x401000 || im.MinVA != 0x400000 || im.MaxVA != 0x407000 || im.Align != 4096 || !im.StackExec {
		t.Errorf("%+v", im)
	}
	if want := (Phdr{VAddr: 0x400040, Num: 7, EntSize: 56, Loaded: true}); im.Phdr != want {
		t.Errorf("phdr %+v, want %+v", im.Phdr, want)
	}
	if want := (&TLS{0x402000, 0x40, 0x10, 32}); !reflect.DeepEqual(im.TLS, want) {
		t.Errorf("tls %+v", im.TLS)
	}
	if !bytes.Equal(im.BuildID, []byte{1, 2, 3, 4, 5}) {
		t.Errorf("build ID %x", im.BuildID)
	}
	if want := (Segment{2, 0x402000, 0x5000, 0x2000, 0x200, R | W}); len(im.Segments) != 3 || im.Segments[2] != want {
		t.Errorf("segments %+v", im.Segments)
	}
	if want := []Page{{0x400000, 0x1000, R}, {0x401000, 0x1000, R | X}, {0x402000, 0x5000, R | W}}; !reflect.DeepEqual(im.Pages, want) {
		t.Errorf("pages %+v", im.Pages)
	}
	if b, err := im.Bias(abi.PIEBase); b != 0 || err != nil {
		t.Errorf("bias of a fixed image: %#x, %v", b, err)
	}
	dst := make([]byte, 0x200)
	if err := im.ReadSegment(2, dst); err != nil || !bytes.Equal(dst, f.bytes()[0x2000:0x2200]) {
		t.Errorf("segment bytes: %v", err)
	}
	if im.ReadSegment(3, dst) == nil || im.ReadSegment(-1, dst) == nil || im.ReadSegment(2, dst[1:]) == nil {
		t.Error("bad ReadSegment arguments accepted")
	}
}

func TestReadSegmentOfShrunkenFile(t *testing.T) {
	b := sound().bytes()
	r := bytes.NewReader(b)
	im, err := Load(r, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	r.Reset(b[:0x2100])
	if err := im.ReadSegment(2, make([]byte, 0x200)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
}

func TestBias(t *testing.T) {
	for _, c := range []struct {
		name         string
		vaddr, align uint64
		base         uint64
		want         uint64
		fails        bool
	}{
		{name: "at 0", base: abi.PIEBase, align: 4096, want: abi.PIEBase},
		{name: "linked high", vaddr: 0x7_0000_0000, base: abi.PIEBase, align: 4096, want: 0xffff_fff9_1000_0000},
		{name: "2M alignment", base: abi.PIEBase + 0x1000, align: 2 << 20, want: abi.PIEBase + 2<<20},
		{name: "kept within the alignment", vaddr: 0x1000, base: abi.PIEBase, align: 2 << 20, want: abi.PIEBase},
		{name: "no room", base: abi.MmapTop - 0x1000, align: 4096, fails: true},
		{name: "no base", base: math.MaxUint64, align: 4096, fails: true},
		{name: "null page", base: 0, align: 4096, fails: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := soundPIE()
			f.entry += c.vaddr
			for i := range f.phs {
				f.phs[i].vaddr += c.vaddr
				f.phs[i].align = c.align
			}
			im, err := f.load()
			if err != nil {
				t.Fatal(err)
			}
			got, err := im.Bias(c.base)
			if (err != nil) != c.fails || !c.fails && got != c.want {
				t.Errorf("got %#x, %v; want %#x, failure %v", got, err, c.want, c.fails)
			}
		})
	}
}

func TestSharedPages(t *testing.T) {
	seg := func(va, size uint64, p Prot) Segment { return Segment{VAddr: va, MemSize: size, Prot: p} }
	for _, c := range []struct {
		name string
		segs []Segment
		want []Page
	}{
		{"later wins", []Segment{seg(0x1000, 0x1800, R|X), seg(0x2900, 0x1000, R|W)},
			[]Page{{0x1000, 0x1000, R | X}, {0x2000, 0x2000, R | W}}},
		{"later by header, lower by address", []Segment{seg(0x2900, 0x1000, R|W), seg(0x1000, 0x1800, R|X)},
			[]Page{{0x1000, 0x2000, R | X}, {0x3000, 0x1000, R | W}}},
		{"three on one page", []Segment{seg(0x1000, 0x100, R), seg(0x1400, 0x100, R|X), seg(0x1200, 0x100, R|W)},
			[]Page{{0x1000, 0x1000, R | W}}},
		{"equal ones merge", []Segment{seg(0x1000, 0x800, R), seg(0x2000, 0x800, R)},
			[]Page{{0x1000, 0x2000, R}}},
		{"a hole stays", []Segment{seg(0x1000, 0x800, R), seg(0x3000, 0x800, R)},
			[]Page{{0x1000, 0x1000, R}, {0x3000, 0x1000, R}}},
		{"both ends shared", []Segment{seg(0x1000, 0x1800, R|X), seg(0x2800, 0x2000, R|W), seg(0x4800, 0x1000, R)},
			[]Page{{0x1000, 0x1000, R | X}, {0x2000, 0x2000, R | W}, {0x4000, 0x2000, R}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			im := &Image{Type: PIE, Segments: c.segs}
			for _, s := range c.segs {
				if s.Prot&X != 0 {
					im.Entry = s.VAddr
				}
			}
			// checkLayout also checks the entry, which some of these lose; only the pages matter here.
			if err := im.checkLayout(); err != nil && !strings.Contains(err.Error(), "entry point") {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(im.Pages, c.want) {
				t.Errorf("got %+v\nwant %+v", im.Pages, c.want)
			}
			if naive := naivePages(c.segs); !reflect.DeepEqual(im.Pages, naive) {
				t.Errorf("got %+v\nmapping one after another gives %+v", im.Pages, naive)
			}
		})
	}
}

// naivePages maps segment after segment over a table of pages, as Linux does with MAP_FIXED.
func naivePages(segs []Segment) []Page {
	table := map[uint64]Prot{}
	lo, hi := uint64(math.MaxUint64), uint64(0)
	for _, s := range segs {
		for va := s.VAddr &^ 4095; va < s.VAddr+s.MemSize; va += 4096 {
			table[va] = s.Prot
			lo, hi = min(lo, va), max(hi, va)
		}
	}
	var runs []Page
	for va := lo; va <= hi; va += 4096 {
		p, ok := table[va]
		if !ok {
			continue
		}
		if k := len(runs) - 1; k >= 0 && runs[k].Prot == p && runs[k].VAddr+runs[k].Size == va {
			runs[k].Size += 4096
			continue
		}
		runs = append(runs, Page{va, 4096, p})
	}
	return runs
}

func FuzzLoad(f *testing.F) {
	f.Add(sound().bytes())
	f.Add(soundPIE().bytes())
	f.Add([]byte("#!/bin/sh\n"))
	dyn := soundPIE()
	dyn.phs = append(dyn.phs, ph{elf.PT_DYNAMIC, rw, 0x2000, 0x2000, 32, 32, 8}, ph{elf.PT_INTERP, ro, 0x700, 0x700, 28, 28, 1})
	f.Add(dyn.bytes())
	shared := sound()
	shared.phs[2].off, shared.phs[2].vaddr = 0x1200, 0x401200
	shared.phs = append(shared.phs, ph{elf.PT_NOTE, ro, 0x400, 0x400400, 64, 64, 4}, ph{elf.PT_TLS, ro, 0x2000, 0x402000, 0x10, 0x40, 32})
	f.Add(shared.bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		im, err := Load(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Fatalf("error of several lines: %q", err)
			}
			return
		}
		checkInvariants(t, im, uint64(len(b)))
	})
}

// FuzzHeaders puts fuzzed program headers behind a sound ELF header, where mutation of a whole file seldom
// gets: each 10 bytes of raw are one header, its numbers coarse so that they collide.
func FuzzHeaders(f *testing.F) {
	f.Add(uint16(2), uint64(0x401000), 0x3000, []byte("\x00\x04\x00\x00\x40\x00\x08\x00\x08\x00\x00\x05\x10\x00\x40\x10\x01\x00\x01\x00"))
	f.Add(uint16(3), uint64(0x1000), 0x3000, []byte("\x00\x05\x10\x00\x00\x10\x18\x00\x18\x00\x00\x06\x29\x00\x00\x29\x02\x00\x09\x01"))
	f.Fuzz(func(t *testing.T, typ uint16, entry uint64, size int, raw []byte) {
		s := &file{typ: elf.Type(typ), machine: elf.EM_X86_64, entry: entry, size: 64 + size&0xffff, poke: map[int][]byte{}}
		types := []elf.ProgType{elf.PT_LOAD, elf.PT_LOAD, elf.PT_LOAD, elf.PT_NOTE, elf.PT_TLS, elf.PT_GNU_STACK, elf.PT_DYNAMIC, elf.PT_LOAD}
		for ; len(raw) >= 10 && len(s.phs) < 40; raw = raw[10:] {
			// An exponent makes huge numbers as likely as small ones.
			num := func(a, b byte) uint64 { return uint64(a)<<8<<(b>>3&63) | uint64(b&7)<<8 }
			s.phs = append(s.phs, ph{types[raw[0]&7], elf.ProgFlag(raw[1] & 7), num(raw[2], raw[3]), uint64(raw[4])<<16 | num(raw[5], raw[3]&7|raw[9]&0xf8),
				num(raw[6], raw[7]), num(raw[8], raw[7]), 1 << (raw[9] & 63)})
		}
		im, err := s.load()
		if err == nil {
			checkInvariants(t, im, uint64(len(s.bytes())))
			if _, err := im.Stack(start(), abi.StackTop, &memory{}); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// checkInvariants holds an accepted image against the numbered promises of doc.go.
func checkInvariants(t *testing.T, im *Image, size uint64) {
	t.Helper()
	if im.MinVA%abi.Page != 0 || im.MaxVA%abi.Page != 0 || im.MinVA >= im.MaxVA || im.MaxVA > abi.MmapTop {
		t.Fatalf("range %#x-%#x", im.MinVA, im.MaxVA)
	}
	if im.Type == Fixed && im.MinVA < abi.LowestUser {
		t.Fatalf("begins at %#x", im.MinVA)
	}
	if im.Align < abi.Page || im.Align&(im.Align-1) != 0 {
		t.Fatalf("alignment %#x", im.Align)
	}
	for i, s := range im.Segments {
		end := s.VAddr + s.MemSize
		if s.MemSize == 0 || end < s.VAddr || s.VAddr < im.MinVA || end > im.MaxVA || s.FileSize > s.MemSize || s.Prot&(W|X) == W|X {
			t.Fatalf("segment %d: %+v", i, s)
		}
		if s.FileOffset > size || s.FileSize > size-s.FileOffset {
			t.Fatalf("segment %d beyond the file: %+v", i, s)
		}
		for j, o := range im.Segments[:i] {
			if s.VAddr < o.VAddr+o.MemSize && o.VAddr < end {
				t.Fatalf("segments %d and %d overlap", i, j)
			}
		}
		if err := im.ReadSegment(i, make([]byte, s.FileSize)); err != nil {
			t.Fatal(err)
		}
	}
	last, exec := uint64(0), false
	for _, p := range im.Pages {
		if p.VAddr%abi.Page != 0 || p.Size == 0 || p.Size%abi.Page != 0 || p.VAddr < last || p.Prot&(W|X) == W|X {
			t.Fatalf("pages %+v", im.Pages)
		}
		last = p.VAddr + p.Size
		exec = exec || p.Prot&X != 0 && im.Entry >= p.VAddr && im.Entry < last
	}
	if !exec {
		t.Fatalf("entry %#x not executable", im.Entry)
	}
	if im.MaxVA-im.MinVA < 1<<24 {
		if naive := naivePages(im.Segments); !reflect.DeepEqual(naive, im.Pages) {
			t.Fatalf("pages %+v, one after another %+v", im.Pages, naive)
		}
	}
	if bias, err := im.Bias(abi.PIEBase); err != nil {
		if im.Type == Fixed || im.Align <= abi.Page {
			t.Fatalf("bias: %v", err)
		}
	} else if end := im.MaxVA + bias; end > abi.MmapTop || im.MinVA+bias < abi.LowestUser {
		t.Fatalf("bias %#x puts the image outside", bias)
	}
}
