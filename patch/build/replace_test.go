package build

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"debug/elf"

	"github.com/cloister-vmm/cloister/internal/testenv"
)

// bodies are new functions, and what they give.
var newBodies = []struct {
	name, text string
	want       func(x int64) int64
}{
	{"constants", `static const double k[] = {1.5, 2.25, 3.125};
		long filter(long x) { const char *s = x & 1 ? "odd" : "an even one"; double d = 0.1; for (int i = 0; i < 3; i++) d += k[i] * x; return (long)(d * 1000) + s[0]; }`,
		func(x int64) int64 {
			d := 0.1
			for _, k := range []float64{1.5, 2.25, 3.125} {
				d += k * float64(x)
			}
			return int64(d*1000) + int64("ao"[x&1])
		}},
	{"static data", `static long n = 3; static long zero[1000]; static long *p = &n; static long *const q[] = {&n, &zero[7]};
		long filter(long x) { p[0] += 1; *q[1] += x; zero[999]++; return n * 1000000 + zero[7] * 100 + zero[999]; }`,
		nil},
	{"switch", `extern long scale(long), other(long);
		long filter(long x) { switch (x) { case 0: return scale(1); case 1: return other(x); case 2: return x * 77; case 3: return scale(other(x)); case 4: return 9 - x;
			case 5: return scale(x) * 5; case 6: return other(9); case 7: return x << 9; default: return -x; } }`,
		func(x int64) int64 {
			return map[int64]int64{0: 3, 1: 40, 2: 154, 3: 126, 4: 5, 5: 75, 6: 48, 7: 7 << 9}[x] - map[bool]int64{true: x}[x < 0 || x > 7]
		}},
	{"libc", `#include <stdio.h>
		#include <stdlib.h>
		#include <string.h>
		#include <errno.h>
		long filter(long x) { char b[100], *d = malloc(100); snprintf(b, sizeof b, "%ld and %ld", x, x * 2); memcpy(d, b, 100); errno = 0; long n = (long)strlen(d) * 1000 + strtol(d, 0, 10) + errno;
			memset(d, 1, 100); free(d); return n; }`,
		func(x int64) int64 { return int64(len(fmt.Sprint(x, " and ", x*2)))*1000 + x }},
	{"program's own", `extern long gain; extern const char *title; extern volatile long limit_; extern long secret2(long); long scale(long); long filter(long);
		extern long (*const table[])(long); long (*const table[])(long) = {scale, filter};
		long filter(long x) { if (x > 50) return table[1](x - 50) + 1; return table[0](x) + gain * 100 + title[0]; }`,
		func(x int64) int64 {
			if x > 50 {
				return (x-50)*3 + 300 + 't' + 1
			}
			return x*3 + 300 + 't'
		}},
	{"weak and common", `extern long nowhere(long) __attribute__((weak)); extern long away __attribute__((weak)); long shared __attribute__((common)); int gain __attribute__((weak)) = 99;
		__attribute__((weak)) long scale(long x) { return x + 1000; }
		long filter(long x) { shared += 5; long v = nowhere ? nowhere(x) : scale(x); return v + (&away ? away : 7) + shared * 1000 + gain; }`,
		nil},
	{"the site's local", `extern volatile long limit; __attribute__((noinline)) static long secret(long x) { return x * 2; } long filter(long x) { return secret(x) + 4; }`,
		func(x int64) int64 { return 2*x + 4 }},
	{"one for the whole process", `__asm__(".data\n.globl gain\n.type gain, @gnu_unique_object\n.size gain, 8\ngain: .quad 99\n.text"); extern long gain; long filter(long x) { return gain + x; }`,
		func(x int64) int64 { return 3 + x }},
	{"computed goto", `long filter(long x) { static const void *const to[] = {&&a, &&b, &&c}; goto *to[x & 1]; a: return x + 1; b: return x + 2; c: return 0; }`,
		func(x int64) int64 { return x + 1 + x&1 }},
}

// objectFlags are the ways to compile them.
var objectFlags = []string{"-O2 -fno-pie", "-O2 -fPIE", "-O2 -fPIC", "-O0 -fno-pie", "-O3 -fPIC -fno-plt", "-Os -fPIE -ffunction-sections -fdata-sections -fcf-protection=full", "-O2 -fPIE -g -fpatchable-function-entry=5"}

func newObject(t testing.TB, text, flags string) []byte {
	t.Helper()
	return compile(t, "gcc", map[string]string{"new.c": text}, append([]string{"-c", "-w"}, strings.Fields(flags)...)...)
}

func replaceWith(object []byte) *Bundle {
	return &Bundle{Replace: []Replace{{Function: "filter", Symbol: "filter", File: "new.o", Object: object}}}
}

// TestReplace gives a running program new bodies of one function, and calls them: every kind of program, of object, and of what new code may need.
func TestReplace(t *testing.T) {
	for _, b := range builds {
		t.Run(b.name, func(t *testing.T) {
			g := start(t, targetFile(t, b.cc))
			ran := 0
			for _, body := range newBodies {
				for _, flags := range objectFlags {
					t.Run(body.name+" "+flags, func(t *testing.T) {
						obj := newObject(t, body.text, flags)
						m, err := g.open().Plan(replaceWith(obj))
						if b.name == "pie" && body.name == "weak and common" && err != nil && strings.Contains(err.Error(), "nowhere") {
							// The host puts the program where 0 is out of a direct call's reach. Cloister does not (TestLinksAsLd).
							refused(t, err, "replace filter: new.o: R_X86_64_PLT32 at .text", "nowhere at 0x0 is out of reach: nobody defines it")
							return
						}
						if b.name == "pie" && strings.Contains(flags, "no-pie") && err != nil {
							refused(t, err, "replace filter: new.o: R_X86_64_32", "out of reach", "-fPIE")
							return
						}
						if err != nil {
							t.Fatal(err)
						}
						ran++
						g.apply(m.Plan)
						want := body.want
						calls := int64(0)
						switch body.name { // those that keep a state
						case "static data":
							sum := int64(0)
							want = func(x int64) int64 { sum += x; return (3+calls)*1000000 + sum*100 + calls }
						case "weak and common":
							want = func(x int64) int64 { return 3*x + 7 + 5*calls*1000 + 3 }
						}
						for _, x := range []int64{0, 1, 2, 3, 4, 5, 6, 7, 8, 100} {
							calls++
							if got, want := g.call("filter", x), want(x); got != want {
								t.Errorf("filter(%d) = %d, want %d", x, got, want)
							}
						}
						g.reset()
						if got := g.call("filter", 5); got != 16 {
							t.Errorf("filter(5) = %d after the patch was taken back, want 16", got)
						}
					})
				}
			}
			if ran < len(newBodies)*len(objectFlags)/2 {
				t.Errorf("only %d bodies ran", ran)
			}
		})
	}
}

// TestReplaceAgain replaces a function that was replaced, beside one that was not, and takes the second back.
func TestReplaceAgain(t *testing.T) {
	for _, b := range builds {
		t.Run(b.name, func(t *testing.T) {
			g := start(t, targetFile(t, b.cc))
			one := newObject(t, `long filter(long x) { return x + 100; }`, "-O2 -fPIE")
			two := newObject(t, `long plain(long); long filter(long x) { return x > 0 ? plain(0) : x + 200; } long next(long x) { return filter(x) + 1; }`, "-O2 -fPIE")
			g.apply(g.plan(replaceWith(one)).Plan)
			if got := g.call("plain", 1); got != 101+40 {
				t.Errorf("plain(1) = %d with the first body", got)
			}
			used := g.state.SpareText.Used
			m := g.plan(&Bundle{Replace: []Replace{{Function: "filter", Symbol: "filter", File: "new.o", Object: two}, {Function: "other", Symbol: "next", File: "new.o", Object: two}}})
			if !m.Plan.SafePoint || m.Plan.Text[0].Addr < used {
				t.Errorf("plan: safe point %v, text at %#x behind %#x", m.Plan.SafePoint, m.Plan.Text[0].Addr, used)
			}
			second := g.apply(m.Plan)
			if got := g.call("plain", -3); got != 197+198 {
				t.Errorf("plain(-3) = %d with the second bodies", got)
			}
			if got := g.call("other", 1); got != 200+201+1 {
				t.Errorf("other(1) = %d: its filter is its own object's, plain's the first's", got)
			}
			l := g.open().List()
			if f := functionOf(t, l, "filter"); f.Patch != 2 || f.Body == f.Addr {
				t.Errorf("listed as %+v", f)
			}
			for _, s := range second.Sites {
				g.poke(s.Addr, s.Old)
			}
			g.state.Applied = g.state.Applied[:1]
			if f := functionOf(t, g.open().List(), "filter"); f.Patch != 1 {
				t.Errorf("listed as %+v after the second was taken back", f)
			}
			if f := functionOf(t, g.open().List(), "other"); f.Patch != 0 || f.Body != f.Addr {
				t.Errorf("listed as %+v after the second was taken back", f)
			}
			if got := g.call("plain", 1); got != 101+40 {
				t.Errorf("plain(1) = %d after the second was taken back", got)
			}
		})
	}
}

// TestReplaceTogether replaces two functions by one object, whose data they share, and one by a function of another name that calls the old name.
func TestReplaceTogether(t *testing.T) {
	for _, b := range builds {
		g := start(t, targetFile(t, b.cc))
		obj := newObject(t, `static long n; long filter(long x) { return x + n++; } long other(long x) { return x * 100 + n++; }`, "-O2 -fPIE")
		r := func(function, symbol string, obj []byte) Replace {
			return Replace{Function: function, Symbol: symbol, File: "new.o", Object: obj}
		}
		m := g.plan(&Bundle{Replace: []Replace{r("filter", "filter", obj), r("other", "other", obj)}})
		if len(m.Plan.Text) != 1 || len(m.Plan.Data) != 1 || len(m.Plan.Data[0].Bytes) != 8 {
			t.Errorf("%s: the object is loaded more than once: %+v", b.name, m.Plan.Data)
		}
		g.apply(m.Plan)
		if got := fmt.Sprint(g.call("filter", 1), g.call("other", 1), g.call("filter", 1), g.call("other", 1)); got != "1 101 3 103" {
			t.Errorf("%s: two functions with one counter give %s", b.name, got)
		}
		g.reset()
		obj = newObject(t, `long filter(long); long better(long x) { long (*volatile f)(long) = filter, (*volatile g)(long) = better; return f == g ? x + 1 : -1; }`, "-O2 -fPIE")
		g.apply(g.plan(&Bundle{Replace: []Replace{r("filter", "better", obj)}}).Plan)
		if got := g.call("filter", 6); got != 7 {
			t.Errorf("%s: filter(6) = %d: its old name is not the new function in the object", b.name, got)
		}
		g.reset()
		// An entry behind NOPs that belong to it (-fpatchable-function-entry=16,11).
		g.apply(g.plan(&Bundle{Replace: []Replace{r("early", "filter", newObject(t, "long filter(long x) { return x * 3; }", "-O2"))}}).Plan)
		if got := g.call("early", 6); got != 18 {
			t.Errorf("%s: early(6) = %d", b.name, got)
		}
	}
}

// TestMadeNotes: what is left out of an object, and what is not stored at once, is said.
func TestMadeNotes(t *testing.T) {
	g := start(t, targetFile(t, builds[0].cc))
	obj := newObject(t, `long filter(long x) { __asm__(".pushsection .note.cloister, \"a\", @note\n.long 0, 0, 4\n.popsection"); return x; }`, "-O2")
	m := g.plan(&Bundle{Replace: []Replace{{Function: "filter", Symbol: "filter", File: "new.o", Object: obj}}, Set: []Set{{"rate.wide", "1"}}})
	all := strings.Join(m.Notes, "\n")
	for _, want := range []string{"new.o: unwind tables (.eh_frame) are left out", "new.o: notes (.note.cloister) are left out", "rate.wide: the 10 bytes at", "cross an 8-byte border"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in\n%s", want, all)
		}
	}
	if strings.Contains(all, "filter: the") { // functions begin at multiples of 16
		t.Errorf("the entry of filter crosses no border:\n%s", all)
	}
}

func functionOf(t *testing.T, l *Listing, name string) Function {
	t.Helper()
	i := slices.IndexFunc(l.Functions, func(f Function) bool { return f.Name == name })
	if i < 0 {
		t.Fatalf("%s is not in %+v", name, l.Functions)
	}
	return l.Functions[i]
}

// TestLinksAsLd links the same object by ld, with every section at the address that the plan gave it, and compares all bytes.
func TestLinksAsLd(t *testing.T) {
	testenv.Need(t, testenv.Tool("ld"), testenv.Tool("objcopy"), testenv.Tool("gcc"))
	for _, b := range builds[:2] {
		file := targetFile(t, b.cc)
		for _, body := range newBodies {
			if body.name == "one for the whole process" {
				continue // ld wants the group that a C++ compiler puts it into, and the program's
			}
			for _, flags := range objectFlags {
				t.Run(b.name+" "+body.name+" "+flags, func(t *testing.T) {
					obj := unmerged(t, newObject(t, body.text, flags))
					if !compareWithLd(t, file, obj) && !(b.name == "pie" && strings.Contains(flags, "no-pie")) {
						t.Error("refused")
					}
				})
			}
		}
	}
}

// unmerged takes the flags from sections of strings and constants by which ld would merge what is equal in them.
func unmerged(t testing.TB, obj []byte) []byte {
	t.Helper()
	e := elfFile(t, obj)
	path := filepath.Join(t.TempDir(), "new.o")
	if err := os.WriteFile(path, obj, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{}
	for _, s := range e.Sections {
		if s.Flags&elf.SHF_MERGE != 0 && s.Flags&elf.SHF_ALLOC != 0 {
			args = append(args, "--set-section-flags", s.Name+"=alloc,readonly,data,contents")
		}
	}
	if out, err := exec.Command("objcopy", append(args, path)...).CombinedOutput(); err != nil {
		t.Fatalf("objcopy: %v\n%s", err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// compareWithLd loads an object for a program at rest, has ld link it at the same addresses, and compares. Both must refuse, or neither; it says
// whether they linked.
func compareWithLd(t *testing.T, file, obj []byte) bool {
	t.Helper()
	state, text, err := AtRest(bytes.NewReader(file), int64(len(file)), "target")
	if err != nil {
		t.Fatal(err)
	}
	p, err := Open(bytes.NewReader(file), int64(len(file)), state, text)
	if err != nil {
		t.Fatal(err)
	}
	o, err := readObject(obj)
	if err != nil {
		t.Fatal(err)
	}
	o.text, o.data = newRegion("text", state.SpareText, 0xcc), newRegion("data", state.SpareData, 0)
	index, err := o.find("filter")
	if err != nil {
		t.Fatal(err)
	}
	if err := o.layout(); err != nil {
		t.Fatal(err)
	}
	l := &linker{p: p, o: o, fresh: []uint32{index}, own: map[string]uint32{}, value: map[uint32]uint64{}}
	ours := l.link()

	// ld gets the program's symbols from debug/elf's reading, except those for which we have a reason to differ.
	dir := t.TempDir()
	path, script := filepath.Join(dir, "new.o"), filepath.Join(dir, "script")
	if err := os.WriteFile(path, obj, 0o600); err != nil {
		t.Fatal(err)
	}
	var s, first strings.Builder
	theirs, err := elfFile(t, file).Symbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range o.syms {
		if u.name == "" || u.shndx != elf.SHN_UNDEF && u.shndx != elf.SHN_COMMON && u.bind != elf.STB_WEAK || u.name == "filter" {
			continue
		}
		for _, d := range theirs {
			if d.Name != u.name || d.Section == elf.SHN_UNDEF {
				continue
			}
			v := d.Value + state.Bias
			if elf.ST_TYPE(d.Info) == elf.STT_GNU_IFUNC {
				if v = p.stubs[v]; v == 0 {
					t.Fatalf("no stub of %s", u.name)
				}
			}
			fmt.Fprintf(&first, ".globl %s\n%s = %#x\n", u.name, u.name, v)
		}
	}
	// The program stands first on the command line, as far as ld is concerned.
	program := filepath.Join(dir, "program.o")
	if err := os.WriteFile(program, compile(t, "gcc", map[string]string{"new.s": first.String()}, "-c"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"--no-relax", "-z", "norelro", "-e", "0", "--no-ld-generated-unwind-info", "-o", filepath.Join(dir, "out"), "-T", script, program, path}
	s.WriteString("SECTIONS {\n")
	for i := range o.m.sections {
		if o.to[i] != nowhere {
			fmt.Fprintf(&s, "  s%d %#x : { *(%s) }\n", i, o.at[i], o.m.sections[i].name)
		}
	}
	got := o.text.start + 0x30000
	fmt.Fprintf(&s, "  .got %#x : { *(.got) *(.got.plt) }\n", got)
	if at := commonAt(o, l); at != 0 {
		fmt.Fprintf(&s, "  .common %#x : { *(COMMON) }\n", at)
	}
	s.WriteString("  /DISCARD/ : { *(.eh_frame) *(.note*) *(.comment) *(__patchable_function_entries) *(.debug*) *(.plt*) *(.iplt) *(.rela*) }\n}\n")
	if err := os.WriteFile(script, []byte(s.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ld", args...).CombinedOutput()
	if (err == nil) != (ours == nil) {
		t.Fatalf("we say %v, ld says %v\n%s\n%s", ours, err, out, s.String())
	}
	if err != nil {
		if !strings.Contains(string(out), "relocation truncated to fit") && !strings.Contains(string(out), "undefined reference") {
			t.Fatalf("ld: %v\n%s", err, out)
		}
		return false
	}
	linked, err := elf.Open(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer linked.Close()
	compareSections(t, o, linked)
	return true
}

func commonAt(o *object, l *linker) uint64 {
	for i, s := range o.syms {
		if s.shndx == elf.SHN_COMMON {
			if v := l.value[uint32(i)]; v >= o.data.start && v < o.data.end {
				return v
			}
		}
	}
	return 0
}

func compareSections(t *testing.T, o *object, linked *elf.File) {
	t.Helper()
	word := func(at uint64) uint64 {
		for _, s := range linked.Sections {
			if s.Flags&elf.SHF_ALLOC != 0 && at >= s.Addr && at+8 <= s.Addr+s.Size {
				b, err := s.Data()
				if err != nil {
					t.Fatal(err)
				}
				return binary.LittleEndian.Uint64(b[at-s.Addr:])
			}
		}
		t.Fatalf("ld has no word at %#x", at)
		return 0
	}
	compared := 0
	for i := range o.m.sections {
		if o.to[i] == nowhere || o.m.sections[i].typ == elf.SHT_NOBITS {
			continue
		}
		s := &o.m.sections[i]
		l := linked.Section(fmt.Sprintf("s%d", i))
		if l == nil {
			t.Fatalf("ld has no section %s", s.name)
		}
		want, err := l.Data()
		if err != nil {
			t.Fatal(err)
		}
		r := o.text
		if o.to[i] == toData {
			r = o.data
		}
		got := bytes.Clone(r.at(o.at[i], s.size))
		if l.Addr != o.at[i] || len(want) != len(got) {
			t.Fatalf("section %s: ld has %d bytes at %#x, we have %d at %#x", s.name, len(want), l.Addr, len(got), o.at[i])
		}
		// A word of the GOT lies elsewhere at ld's, and holds the same.
		for j := range o.m.sections {
			rel := &o.m.sections[j]
			if rel.typ != elf.SHT_RELA || int(rel.info) != i {
				continue
			}
			rs, err := o.m.relas(rel)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range rs {
				if !gotLoad(x.typ) {
					continue
				}
				at := o.at[i] + x.off
				if u := o.syms[x.sym]; u.shndx == elf.SHN_UNDEF && u.bind == elf.STB_WEAK && want[x.off-2] == 0xc7 {
					// ld makes MOV $0 of the load of an address that nobody defines.
					mine := le.Uint64(o.text.at(at+uint64(int64(int32(le.Uint32(got[x.off:]))))-uint64(x.addend), 8))
					if le.Uint32(want[x.off:]) != 0 || mine != 0 {
						t.Errorf("section %s+%#x: ld has %x, our word is %#x, want 0", s.name, x.off, want[x.off:x.off+4], mine)
					}
					copy(got[x.off-3:], want[x.off-3:x.off+4])
					continue
				}
				theirs := word(at + uint64(int64(int32(le.Uint32(want[x.off:])))) - uint64(x.addend))
				mine := le.Uint64(o.text.at(at+uint64(int64(int32(le.Uint32(got[x.off:]))))-uint64(x.addend), 8))
				if theirs != mine {
					t.Errorf("section %s+%#x: ld's word is %#x, ours %#x", s.name, x.off, theirs, mine)
				}
				copy(got[x.off:], want[x.off:x.off+4])
				compared++
			}
		}
		for k := range got {
			if got[k] != want[k] {
				t.Errorf("section %s+%#x: ld has %x, we have %x", s.name, k, want[k:min(k+8, len(want))], got[k:min(k+8, len(got))])
				break
			}
		}
		compared += len(got)
	}
	if compared == 0 {
		t.Error("nothing was compared")
	}
}
