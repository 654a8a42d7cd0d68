package build

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/patch"
)

// TestObjectsRefused: objects that compile, and must not be loaded.
func TestObjectsRefused(t *testing.T) {
	p := atRestProgram(t, targetFile(t, builds[0].cc))
	const plainFilter = "long filter(long x) { return x; } "
	for _, c := range []struct {
		name, text, flags string
		want              []string
	}{
		{"unresolved", "long a(long), b(long); long filter(long x) { return a(x) + b(x); }", "-O2", []string{"needs a, b, which the program has not", "ld -r"}},
		{"many unresolved", "long a(), b(), c(), d(), e(), f(); long filter(long x) { return a() + b() + c() + d() + e() + f(); }", "-O2", []string{"needs a, b, c, d, e and 1 more"}},
		{"not defined", "long filtre(long x) { return x; }", "-O2", []string{"does not define filter", "(filtre)"}},
		{"no function", "int x;", "-O2", []string{"does not define filter, nor any function"}},
		{"undefined there", "long filter(long); long g(long x) { return filter(x); }", "-O2", []string{"does not define filter", "(g)"}},
		{"data", "long filter = 3;", "-O2", []string{"filter is no function"}},
		{"own thread-local data", "__thread long v = 3; long filter(long x) { return v += x; }", "-O2", []string{"thread-local data"}},
		{"the program's thread-local data", "extern __thread int errno; long filter(long x) { return errno + x; }", "-O2 -fPIE", []string{"thread-local data"}},
		{"the program's thread-local data, not said", "extern int errno; long filter(long x) { return errno + x; }", "-O2 -fno-pie", []string{"errno", "thread-local data"}},
		{"constructor", plainFilter + "volatile long v; __attribute__((constructor)) void c(void) { v = 3; } ", "-O2", []string{"section .init_array has constructors", "statically"}},
		{"destructor", plainFilter + "volatile long v; __attribute__((destructor)) void c(void) { v = 4; }", "-O2", []string{"section .fini_array has destructors"}},
		{"handlers of exceptions", "volatile long v; static void u(void *p) { v = (long)p; } long other(long); long filter(long x) { __attribute__((cleanup(u))) long y = x; return other(y) + 1; }", "-O2 -fexceptions", []string{"section .gcc_except_table", "-fno-exceptions"}},
		{"its own IFUNC", "static long f1(long x) { return x; } static long (*pick(void))(long) { return f1; } long filter(long) __attribute__((ifunc(\"pick\")));", "-O2", []string{"IFUNC"}},
		{"calls its own IFUNC", "static long f1(long x) { return x; } static long (*pick(void))(long) { return f1; } long g(long) __attribute__((ifunc(\"pick\"))); long filter(long x) { return g(x); }", "-O2", []string{"g is chosen at start-up (IFUNC)"}},
		{"an IFUNC that the program never calls", "long chosen(long); long filter(long x) { return chosen(x) + 1; }", "-O2", []string{"calls chosen", "IFUNC", "never asked"}},
		{"a name of two files", "extern long secret(long); long filter(long x) { return secret(x); }", "-O2", []string{"needs secret", "target.c:secret at", "second.c:secret at"}},
		{"data of two files", "extern volatile long hidden; long filter(long x) { return x + hidden; }", "-O2", []string{"needs hidden", "could be"}},
		{"a second definition of data", "long gain = 4; long filter(long x) { return x * gain; }", "-O2", []string{"defines gain, which the program has too", "extern"}},
		{"too much code", "const char big[262144] = {1}; long filter(long x) { return big[x]; }", "-O2", []string{"bytes more, and the spare text has", "left"}},
		{"too much data", "char big[262145]; long filter(long x) { return big[x]++; }", "-O2", []string{"262145 bytes more, and the spare data has 262144 left"}},
		{"enormous data", "char big[1l << 46]; long filter(long x) { return big[x]++; }", "-O2 -mcmodel=large", []string{"bytes more, and the spare data"}},
		{"alignment", "_Alignas(8192) long v = 1; long filter(long x) { return x + v; }", "-O2", []string{"alignment of 8192"}},
		{"common alignment", "_Alignas(8192) long v; long filter(long x) { return x + v++; }", "-O2 -fcommon", []string{"alignment of 8192"}},
		{"position-independent, large", "extern long gain; long filter(long x) { return x + gain; }", "-O2 -mcmodel=large -fPIC", []string{"relocation of a kind that is not known", "-mcmodel=small"}},
		{"writable code", "__attribute__((section(\".evil,\\\"awx\\\",@progbits#\"))) long filter(long x) { return x; }", "-O2", []string{"section .evil is writable and executable"}},
		{"not compiled to code", plainFilter, "-flto -fno-fat-lto-objects", []string{"does not define filter"}},
		{"32-bit", plainFilter, "-m32 -ffreestanding", []string{"32-bit"}},
		{"x32", plainFilter, "-mx32 -ffreestanding", []string{"32-bit"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := p.Plan(replaceWith(newObject(t, c.text, c.flags)))
			refused(t, err, append(c.want, "replace filter: new.o: ")...)
		})
	}
	prog := targetFile(t, builds[0].cc)
	_, err := p.Plan(replaceWith(prog))
	refused(t, err, "is no object", "-c")
	_, err = p.Plan(replaceWith([]byte("#!/bin/sh\nexit 0\n")))
	refused(t, err, "not an ELF file")
	_, err = p.Plan(replaceWith(stripped(t, newObject(t, plainFilter, "-O2"))))
	refused(t, err, "symbol table", "do not strip")
}

// TestFunctionsRefused: functions that cannot be replaced, and places that others have patched.
func TestFunctionsRefused(t *testing.T) {
	g := start(t, targetFile(t, builds[0].cc))
	obj := newObject(t, "long filter(long x) { return -x; }", "-O2 -fPIE")
	replace := func(names ...string) error {
		b := &Bundle{}
		for _, n := range names {
			b.Replace = append(b.Replace, Replace{Function: n, Symbol: "filter", File: "new.o", Object: obj})
		}
		_, err := g.open().Plan(b)
		return err
	}
	refused(t, replace("filtre"), "replace filtre", "no such symbol", "--list")
	refused(t, replace("closed"), "replace closed", "no patchable entry", "-fpatchable-function-entry=5")
	refused(t, replace("printf"), "no patchable entry")
	refused(t, replace("gain"), "is no function")
	refused(t, replace("strlen"), "IFUNC")
	refused(t, replace("secret"), "target.c:secret at", "second.c:secret at", "FILE:NAME")
	refused(t, replace("third.c:secret"), "no such symbol")
	refused(t, replace(":secret"), "no such symbol")
	refused(t, replace("target.c:filter"), "no such symbol")
	refused(t, replace("filter", "filter"), "twice")
	refused(t, replace("filter", ":filter"), "change the same bytes")
	refused(t, replace("filter", ""), "no name")
	refused(t, replace("filter", "a\tb"), "no name")
	if err := replace("second.c:secret"); err != nil {
		t.Error(err)
	}
	g.apply(g.plan(&Bundle{Replace: []Replace{{Function: "second.c:secret", Symbol: "filter", File: "new.o", Object: obj}}}).Plan)
	if got, same := g.call("note_of", 9), g.call("other", 9); got != -9 || same != 48 {
		t.Errorf("note_of(9) = %d, other(9) = %d: want -9 and 48", got, same)
	}
	g.state.SafePoints = false
	refused(t, replace("filter", "other"), "2 places change together", "cloister_safepoint()")
	g.state.SafePoints = true

	f, err := g.open().function("filter")
	if err != nil {
		t.Fatal(err)
	}
	for _, odd := range []patch.Site{
		{Name: "odd", Kind: patch.Raw, Addr: f.addr, Old: unhex(t, "90"), New: unhex(t, "cc")},
		{Name: "odd", Kind: patch.Raw, Addr: f.addr, Old: unhex(t, "9090909090"), New: unhex(t, "e900000000")},
		{Name: "odd", Kind: patch.Redirect, Addr: f.addr, Old: unhex(t, "9090909090"), New: unhex(t, "0f1f440000")},
	} {
		before := g.state
		g.apply(patch.Plan{Name: "odd", Sites: []patch.Site{odd}})
		refused(t, replace("filter"), "patch 2 stands across its entry (odd)", "revert")
		g.poke(odd.Addr, odd.Old)
		g.state = before
	}
	g.state.SpareText = patch.Space{}
	refused(t, replace("filter"), "no spare text", "--patchable")
	g.state.SpareText = patch.Space{Start: 1 << 40, End: 1<<40 + 4096, Used: 1 << 40}
	refused(t, replace("filter"), "2 GiB")
	g.state.SpareText = patch.Space{Start: 1 << 20, End: 1<<20 + 4096, Used: 1 << 50}
	refused(t, replace("filter"), "spare text has 0 left")
}

// TestEntries: what a declared entry may hold, by its first bytes.
func TestEntries(t *testing.T) {
	for _, c := range []struct {
		what, code string
		size       uint64
		want       string
	}{
		{"what gcc emits", "9090909090c3", 6, ""},
		{"what clang emits", "0f1f440008c3", 6, ""},
		{"two NOPs", "66900f1f00c3", 6, ""},
		{"of unknown size", "9090909090c3", 0, ""},
		{"code", "b801000000c3", 6, "and not 5 bytes of NOPs"},
		{"too few NOPs", "90909090c390", 6, "and not 5 bytes of NOPs"},
		{"a NOP over the end", "90660f1f440000c3", 8, "and not 5 bytes of NOPs"},
		{"a jump that no patch made", "e900000000c3", 6, "and not 5 bytes of NOPs"},
		{"a branch into them", "9090909090ebfc", 7, "a branch of f leads into it, to +0x3"},
		{"a branch to them", "9090909090ebf9", 7, ""},
		{"a branch behind them", "9090909090ebfe", 7, ""},
		{"less than a jump", "9090909090c3", 4, "4 bytes, less than a jump"},
	} {
		t.Run(c.what, func(t *testing.T) {
			p := handMade(unhex(t, c.code))
			p.symbols[0].addr, p.symbols[0].size = textAt+5, c.size
			p.entries = []uint64{textAt + 5}
			at, _, err := p.entry(p.symbols[0])
			if c.want == "" && (err != nil || at != textAt+5) {
				t.Errorf("%#x, %v", at, err)
			} else if c.want != "" {
				refused(t, err, c.want)
			}
		})
	}
}

// TestOpenRefused: files that are not the running program's, and text that is not the file's.
func TestOpenRefused(t *testing.T) {
	g := start(t, targetFile(t, builds[0].cc))
	open := func(file []byte, state patch.State, text io.ReaderAt) error {
		_, err := Open(bytes.NewReader(file), int64(len(file)), state, text)
		return err
	}
	refused(t, open(targetFile(t, builds[0].cc, "-O1"), g.state, g), "open program target", "build id", "give the file that the VM runs")
	refused(t, open(targetFile(t, builds[1].cc), g.state, g), "build id")
	state := g.state
	state.BuildID = ""
	refused(t, open(g.file, state, g), "the running program's is none")
	state = g.state
	state.Bias = 0x1000
	refused(t, open(g.file, state, g), "cannot run at bias 0x1000")
	state = g.state
	state.Text = nil
	refused(t, open(g.file, state, g), "is not the VM's")
	refused(t, open(newObject(t, "int x;", "-O2"), g.state, g), "is no program")
	refused(t, open(nil, g.state, g), "not an ELF file")
	refused(t, open(g.file[:1000], g.state, g), "cut short")
	for _, c := range []struct {
		what string
		off  int // in the program header
		v    uint64
	}{{"offset", 8, 1 << 62}, {"address", 16, 1 << 62}, {"address that wraps", 16, ^uint64(0) - 8}, {"size", 32, 1 << 62}} {
		b := bytes.Clone(g.file)
		headers := b[binary.LittleEndian.Uint64(b[32:]):]
		for i := range int(binary.LittleEndian.Uint16(b[56:])) {
			if h := headers[i*phdrSize:]; elf.ProgType(binary.LittleEndian.Uint32(h)) == elf.PT_LOAD {
				binary.LittleEndian.PutUint64(h[c.off:], c.v)
			}
		}
		if _, _, err := AtRest(bytes.NewReader(b), int64(len(b)), "target"); err == nil {
			t.Errorf("a program with a segment's %s of %#x is taken", c.what, c.v)
		} else {
			refused(t, err, "program headers", "cut short")
		}
	}
	refused(t, open(g.file, g.state, bytes.NewReader(nil)), "read the running text")

	// One byte of the text differs, in the file or where it runs.
	e := elfFile(t, g.file)
	main := symbolOf(t, e, "main")
	for _, s := range e.Progs {
		if s.Type == elf.PT_LOAD && s.Flags&elf.PF_X != 0 {
			other := bytes.Clone(g.file)
			other[s.Off+main.Value-s.Vaddr+20] ^= 1
			refused(t, open(other, g.state, g), fmt.Sprintf("text is not what we think: at %#x", main.Value+20), "start it again")
		}
	}
	was := make([]byte, 1)
	if _, err := g.ReadAt(was, int64(main.Value)); err != nil {
		t.Fatal(err)
	}
	g.poke(main.Value, []byte{0xcc})
	refused(t, open(g.file, g.state, g), "text is not what we think", "0xcc")
	// A patch that stands explains it, one that does not stand is missed.
	state = g.state
	state.Applied = []patch.Applied{{Number: 7, Sites: []patch.Site{{Addr: main.Value, Old: was, New: []byte{0xcc}}}}}
	if err := open(g.file, state, g); err != nil {
		t.Error(err)
	}
	g.poke(main.Value, was)
	refused(t, open(g.file, state, g), "text is not what we think")
	if err := open(g.file, g.state, g); err != nil {
		t.Error(err)
	}
}

// mutate gives a copy in which put was called with the section header of that name, as bytes.
func mutate(t *testing.T, obj []byte, name string, put func(header []byte)) []byte {
	t.Helper()
	b := bytes.Clone(obj)
	e := elfFile(t, obj)
	i := slices.IndexFunc(e.Sections, func(s *elf.Section) bool { return s.Name == name })
	if i < 0 {
		t.Fatalf("no section %s", name)
	}
	put(b[binary.LittleEndian.Uint64(b[40:])+uint64(i)*64:])
	return b
}

// TestObjectsDamaged: objects that no compiler makes.
func TestObjectsDamaged(t *testing.T) {
	p := atRestProgram(t, targetFile(t, builds[0].cc))
	obj := newObject(t, `#include <stdio.h>
		long v = 3; static const char s[] = "text"; const char *q = s; long zero[9]; long filter(long x) { printf("%ld", x); return v + x + q[1] + zero[x]; }`, "-O2 -fno-pie")
	if _, err := p.Plan(replaceWith(obj)); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	header := func(put func(b []byte)) []byte {
		b := bytes.Clone(obj)
		put(b)
		return b
	}
	field := func(off int, v uint64) func([]byte) { return func(h []byte) { le.PutUint64(h[off:], v) } }
	const flags, offset, size, link, align, entsize = 8, 24, 32, 40, 48, 56
	at := elfFile(t, obj).Section(".rela.text").Offset
	rel := func(n uint64, v uint64) []byte { return header(func(b []byte) { le.PutUint64(b[at+n:], v) }) }
	sym := elfFile(t, obj).Section(".symtab").Offset
	symbols, err := elfFile(t, obj).Symbols()
	if err != nil {
		t.Fatal(err)
	}
	entry := func(name string) uint64 {
		return sym + 24*uint64(1+slices.IndexFunc(symbols, func(s elf.Symbol) bool { return s.Name == name }))
	}
	filter, v := entry("filter"), entry("v")
	for _, c := range []struct {
		name string
		b    []byte
		want []string
	}{
		{"another machine", header(func(b []byte) { b[18] = byte(elf.EM_AARCH64) }), []string{"another machine, AARCH64"}},
		{"big-endian", header(func(b []byte) { b[5], b[18], b[19] = 2, 0, 2 }), []string{"another machine, SPARC"}},
		{"another system", header(func(b []byte) { b[7] = 9 }), []string{"another system"}},
		{"class", header(func(b []byte) { b[4] = 9 }), []string{"damaged"}},
		{"section headers outside", header(func(b []byte) { le.PutUint64(b[40:], 1<<63) }), []string{"cut short"}},
		{"section headers' size", header(func(b []byte) { b[58] = 1 }), []string{"section headers are damaged"}},
		{"names' index", header(func(b []byte) { b[62], b[63] = 0xfe, 0xfe }), []string{"section headers are damaged"}},
		{"no sections", header(func(b []byte) { copy(b[40:], make([]byte, 8)); b[60], b[61] = 0, 0 }), []string{"0 symbol tables"}},
		{"text outside", mutate(t, obj, ".text", field(offset, 1<<62)), []string{"cut short"}},
		{"text too long", mutate(t, obj, ".text", field(size, 1<<62)), []string{"cut short"}},
		{"offset and size wrap", mutate(t, obj, ".text", func(h []byte) { le.PutUint64(h[offset:], ^uint64(0)-7); le.PutUint64(h[size:], 16) }), []string{"cut short"}},
		{"bss too long", mutate(t, obj, ".bss", field(size, ^uint64(0))), []string{"bytes more, and the spare data"}},
		{"bss of half the space", mutate(t, obj, ".bss", field(size, 1<<63)), []string{"bytes more, and the spare data"}},
		{"overlap", mutate(t, obj, ".data", field(offset, elfFile(t, obj).Section(".text").Offset)), []string{"overlap"}},
		{"alignment", mutate(t, obj, ".data", field(align, 24)), []string{"alignment of 24"}},
		{"huge alignment", mutate(t, obj, ".data", field(align, 1<<63)), []string{"alignment of"}},
		{"writable code", mutate(t, obj, ".text", field(flags, 7)), []string{"writable and executable"}},
		{"compressed", mutate(t, obj, ".data", field(flags, 0x803)), []string{"cannot be loaded"}},
		{"symbols of another size", mutate(t, obj, ".symtab", field(entsize, 16)), []string{"symbol table is damaged"}},
		{"symbols without names", mutate(t, obj, ".symtab", func(h []byte) { le.PutUint32(h[link:], 1<<31) }), []string{"symbol table is damaged"}},
		{"relocations of another size", mutate(t, obj, ".rela.text", field(entsize, 23)), []string{"is damaged"}},
		{"relocations without addends", mutate(t, obj, ".rela.text", func(h []byte) { le.PutUint32(h[4:], uint32(elf.SHT_REL)) }), []string{"without addends"}},
		{"relocation outside", rel(0, 1<<40), []string{"outside of section .text", "0x10000000000"}},
		{"relocation at the end", rel(0, uint64(elfFile(t, obj).Section(".text").Size-3)), []string{"outside of section .text"}},
		{"relocation wraps", rel(0, ^uint64(0)-1), []string{"outside of section .text"}},
		{"relocation of no symbol", rel(8, 1<<62|uint64(elf.R_X86_64_PC32)), []string{"of symbol 1073741824"}},
		{"relocation of no kind", rel(8, 1<<32|200), []string{"not known"}},
		{"relocation of a copy", rel(8, 1<<32|uint64(elf.R_X86_64_COPY)), []string{"R_X86_64_COPY"}},
		{"relocation of 16 bits", rel(8, 1<<32|uint64(elf.R_X86_64_16)), []string{"R_X86_64_16"}},
		{"overflow", rel(16, 1<<40), []string{"out of reach"}},
		{"function outside", header(func(b []byte) { le.PutUint64(b[filter+8:], 1<<40) }), []string{"no function"}},
		{"function twice", header(func(b []byte) { copy(b[v:v+24], b[filter:filter+24]) }), []string{"defines filter twice"}},
		{"symbol outside", header(func(b []byte) { le.PutUint64(b[v+8:], 1<<40) }), []string{"symbol v lies outside of section .data"}},
		{"symbol in no section", header(func(b []byte) { le.PutUint16(b[v+6:], 0x4242) }), []string{"symbol v lies in section"}},
		{"function in no section", header(func(b []byte) { le.PutUint16(b[filter+6:], 0x4242) }), []string{"does not define filter"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := p.Plan(replaceWith(c.b))
			refused(t, err, append(c.want, "replace filter: new.o: ")...)
		})
	}
	for n := range obj {
		if _, err := p.Plan(replaceWith(obj[:n])); err == nil && n > 0 {
			// The section headers are at the end: without them nothing is an object.
			t.Fatalf("the first %d of %d bytes are taken for an object", n, len(obj))
		}
	}
}

// note makes one note.
func note(kind uint32, desc []byte) []byte {
	b := le.AppendUint32(nil, uint32(len(abi.NoteOwner)+1))
	b = le.AppendUint32(b, uint32(len(desc)))
	b = le.AppendUint32(b, kind)
	b = append(b, abi.NoteOwner+"\x00\x00\x00\x00"...)
	b = b[:12+(len(abi.NoteOwner)+1+3)&^3]
	b = append(b, desc...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

// siteNote makes the description of a site at a distance from the field.
func siteNote(kind, length uint32, at, extra uint64, name string) []byte {
	b := le.AppendUint32(nil, kind)
	b = le.AppendUint32(b, length)
	b = le.AppendUint64(b, at)
	b = le.AppendUint64(b, extra)
	return append(b, name+"\x00"...)
}

// withNotes makes an image of one segment of notes, which runs at 0x1000.
func withNotes(b []byte) *image {
	return &image{r: bytes.NewReader(b), size: uint64(len(b)), segments: []segment{{typ: elf.PT_NOTE, vaddr: 0x1000, filesz: uint64(len(b)), align: 4}}}
}

// TestNotes reads the notes of guest/abi as they are written there, and those that cannot be meant.
func TestNotes(t *testing.T) {
	good := slices.Concat(
		note(abi.NoteSite, siteNote(abi.SiteImm, 5, 0x100, 1|4<<32, "limit")),
		note(abi.NoteSafeWord, le.AppendUint64(nil, 0x200)),
		note(abi.NoteSafeRIP, le.AppendUint64(nil, ^uint64(0))),
		note(abi.NotePatchable, nil),
		note(77, []byte("from the future")),
		note(abi.NoteSite, siteNote(abi.SiteBranch, 5, 0, 0x50, "trace")),
	)
	_, n, err := withNotes(good).readNotes(0x10000)
	if err != nil {
		t.Fatal(err)
	}
	// Each address is counted from its own field, in the order of the notes above.
	const base, head = 0x11000, 12 + 12
	first := uint64(base + head)
	second := first + 32 + head // a site of 24 bytes and 6 of name, padded
	third := second + 8 + head
	last := third + 8 + head + head + 16 + head
	want := notes{patchable: true, safeWords: []uint64{second + 0x200}, safeRIPs: []uint64{third - 1}, sites: []declared{
		{name: "limit", kind: abi.SiteImm, at: first + 8 + 0x100, length: 5, off: 1, width: 4},
		{name: "trace", kind: abi.SiteBranch, at: last + 8, length: 5, target: last + 16 + 0x50},
	}}
	if fmt.Sprintf("%+v", n) != fmt.Sprintf("%+v", want) {
		t.Errorf("read\n%+v, want\n%+v", n, want)
	}
	for _, c := range []struct {
		name string
		b    []byte
		want string
	}{
		{"cut", good[:20], "damaged"},
		{"name too long", le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, 0xffffffff), 4), 1), "damaged"},
		{"description too long", le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, 0), 0xffffffff), 1), "damaged"},
		{"short site", note(abi.NoteSite, make([]byte, 23)), "too short"},
		{"no name", note(abi.NoteSite, siteNote(abi.SiteImm, 5, 0, 1|4<<32, "")), "no name"},
		{"name without end", note(abi.NoteSite, append(siteNote(abi.SiteImm, 5, 0, 1|4<<32, "")[:24], "abcd"...)), "no name"},
		{"long name", note(abi.NoteSite, siteNote(abi.SiteImm, 5, 0, 1|4<<32, strings.Repeat("x", 129))), "no name"},
		{"name with a line", note(abi.NoteSite, siteNote(abi.SiteImm, 5, 0, 1|4<<32, "a\nb")), "no name"},
		{"bytes behind the name", note(abi.NoteSite, append(siteNote(abi.SiteImm, 5, 0, 1|4<<32, "a"), "more"...)), "no name"},
		{"no instruction", note(abi.NoteSite, siteNote(abi.SiteImm, 0, 0, 1|4<<32, "a")), "instruction of 0 bytes"},
		{"long instruction", note(abi.NoteSite, siteNote(abi.SiteImm, 16, 0, 12|4<<32, "a")), "instruction of 16 bytes"},
		{"width", note(abi.NoteSite, siteNote(abi.SiteImm, 5, 0, 2|3<<32, "a")), "immediate of 3 bytes"},
		{"not at the end", note(abi.NoteSite, siteNote(abi.SiteImm, 6, 0, 1|4<<32, "a")), "at 1 of an instruction of 6"},
		{"behind the end", note(abi.NoteSite, siteNote(abi.SiteImm, 5, 0, 9|4<<32, "a")), "at 9"},
		{"all of it", note(abi.NoteSite, siteNote(abi.SiteImm, 4, 0, 4<<32, "a")), "at 0"},
		{"short branch", note(abi.NoteSite, siteNote(abi.SiteBranch, 2, 0, 0, "a")), "branch of 2 bytes"},
		{"kind", note(abi.NoteSite, siteNote(9, 5, 0, 0, "a")), "unknown kind of site, 9"},
		{"safe word", note(abi.NoteSafeWord, make([]byte, 4)), "not the 8 of an address"},
		{"too many", bytes.Repeat(note(abi.NotePatchable, nil), maxNoteCount+1), "more than 65536 notes"},
		{"too much", bytes.Repeat(note(77, make([]byte, 1<<20)), 17), "bytes of notes"},
	} {
		_, _, err := withNotes(c.b).readNotes(0)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// TestNotesAndCode: notes that are well formed and not of the program's code.
func TestNotesAndCode(t *testing.T) {
	p := atRestProgram(t, targetFile(t, builds[0].cc))
	f, err := p.function("limit")
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(p.notes.sites, func(d declared) bool { return d.name == "rate.limit" && d.at >= f.addr && d.at < f.addr+f.size })
	imm := p.notes.sites[i]
	i = slices.IndexFunc(p.notes.sites, func(d declared) bool { return d.name == "trace" })
	branch := p.notes.sites[i]
	for _, c := range []struct {
		name string
		edit func(imm, branch *declared)
		want string
	}{
		{"outside of the text", func(d, _ *declared) { d.at = 1 << 40 }, "is no text"},
		{"at the end of the text", func(d, _ *declared) { d.at = p.exec[0].vaddr + p.exec[0].filesz - 1 }, "is no text"},
		{"one too far", func(d, _ *declared) { d.at++ }, "not of the program's code"},
		{"into the next", func(d, _ *declared) { d.length, d.width, d.off = 9, 8, 1 }, "is an instruction of 5 bytes, not 9"},
		{"half of the immediate", func(d, _ *declared) { d.width, d.off = 2, 3 }, "has a wider immediate"},
		{"a displacement", func(d, _ *declared) {
			g, err := p.function("scale") // mov gain(%rip), %rax
			if err != nil {
				t.Fatal(err)
			}
			code := p.codeUpTo(g.addr, g.size)
			at := bytes.Index(code, []byte{0x48, 0x8b, 0x05})
			if at < 0 {
				t.Fatalf("no load in %x", code)
			}
			d.at, d.length, d.off, d.width = g.addr+uint64(at), 7, 3, 4
		}, "no immediate there"},
		{"no NOP", func(_, d *declared) { d.at = imm.at }, "neither a NOP nor a JMP"},
		{"leads out of the text", func(_, d *declared) { d.target = 1 << 40 }, "is no text"},
		{"leads into an instruction", func(_, d *declared) { d.target = imm.at + 1 }, "the middle of an instruction"},
		{"two kinds", func(i, b *declared) { b.name = i.name }, "immediates and branches"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := imm, branch
			c.edit(&a, &b)
			q := *p
			q.notes.sites = []declared{a, b}
			_, err1 := q.Plan(setting(a.name, "9"))
			_, err2 := q.Plan(setting(b.name, "on"))
			if err := errors.Join(err1, err2); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if bad := slices.ContainsFunc(q.List().Sites, func(s Site) bool { return s.Error != "" }); !bad && c.name != "leads into an instruction" {
				t.Errorf("listed as good: %+v", q.List().Sites)
			}
		})
	}
}

// TestBranchElsewhere: a JMP at a declared branch that leads elsewhere than its note says is not the program's.
func TestBranchElsewhere(t *testing.T) {
	p := handMade(unhex(t, "e900000000c3"))
	d := declared{name: "trace", kind: abi.SiteBranch, at: textAt + 5, length: 5, target: textAt + 10}
	p.notes.sites = []declared{d}
	if s := p.List().Sites[0]; s.Value != branchOn || s.Error != "" {
		t.Errorf("listed as %+v", s)
	}
	p.notes.sites[0].target = textAt
	_, err := p.Plan(setting("trace", "off"))
	refused(t, err, "neither a NOP nor a JMP to 0x401000")
}
