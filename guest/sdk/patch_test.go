package sdk

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/internal/testenv"
	"golang.org/x/arch/x86/x86asm"
)

// patchProgram has every kind of place that cloister_patch.h declares, prints what they give, then writes the bytes that its arguments give to its own
// text (distance from second:bytes, hexadecimal), and prints again. SECOND is a second file of the same program.
const patchProgram = `#include "cloister_patch.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef __cplusplus
#define SHARED inline
extern "C" {
#else
#define SHARED static __inline__
#endif
unsigned second(void);
int filter(int x);
int other(int x);
#ifdef __cplusplus
}
#endif

SHARED unsigned shared(void)
{
	cloister_safepoint();
	return CLOISTER_SITE_IMM32("shared", 7);
}

#ifdef SECOND
unsigned second(void)
{
	cloister_safepoint();
	return shared();
}
#else
/* A compiler that looked into it would call nothing. */
CLOISTER_PATCHABLE int filter(int x)
{
	(void)x;
	return 1;
}

int other(int x)
{
	return 10 * x;
}

int (*volatile keep)(int) = other;

static void show(void)
{
	cloister_safepoint();
	CLOISTER_SAFE_RIP();
	printf("filter=%d shared=%u+%u", filter(4), shared(), second());
	printf(" imm=%u,%u,%u,%lu", (unsigned)CLOISTER_SITE_IMM8("imm.8", 200), (unsigned)CLOISTER_SITE_IMM16("imm.16", 0xfffe),
	       (unsigned)CLOISTER_SITE_IMM32("imm.32", 5), (unsigned long)CLOISTER_SITE_IMM64("imm.64", 6));
	printf(" off=%d on=%d", cloister_branch("off"), CLOISTER_BRANCH("on", 1));
	if (cloister_branch("threaded"))
		printf(" threaded");
	printf("\n");
}

int main(int argc, char **argv)
{
	uintptr_t page = CLOISTER_PAGE - 1;
	int i;

	show();
	for (i = 1; i < argc; i++) {
		char *hex;
		unsigned char *at = (unsigned char *)(uintptr_t)second + strtoll(argv[i], &hex, 16);
		if (mprotect((void *)((uintptr_t)at & ~page), 2 * CLOISTER_PAGE, PROT_READ | PROT_WRITE | PROT_EXEC))
			return 1;
		for (hex++; *hex; hex += 2, at++) {
			unsigned v;
			if (sscanf(hex, "%2x", &v) != 1)
				return 2;
			*at = (unsigned char)v;
		}
	}
	show();
	return keep && cloister_quiet(1) == -38 && cloister_sync_cores() == -38 ? 0 : 3;
}
#endif
`

// declared is what the notes of a program say.
type declared struct {
	sites     map[string][]declaredSite
	words     []uint64
	rips      []uint64
	patchable int
}

type declaredSite struct {
	kind, size    uint32
	addr          uint64
	offset, width uint32 // of the immediate
	target        uint64
}

func readNotes(t *testing.T, f *elf.File) declared {
	t.Helper()
	d := declared{sites: map[string][]declaredSite{}}
	le := binary.LittleEndian
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Align == 8 {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		at := p.Vaddr
		for len(b) >= 12 {
			nameSize, descSize, typ := le.Uint32(b), le.Uint32(b[4:]), le.Uint32(b[8:])
			descAt := 12 + uint64(nameSize+3)&^3
			next := descAt + uint64(descSize+3)&^3
			name, desc := string(b[12:12+nameSize]), b[descAt:descAt+uint64(descSize)]
			// far is the address in the field at offset n of the description.
			far := func(n uint64) uint64 { return at + descAt + n + le.Uint64(desc[n:]) }
			if name == abi.NoteOwner+"\x00" {
				switch typ {
				case abi.NotePatchable:
					d.patchable++
				case abi.NoteSafeWord:
					d.words = append(d.words, far(0))
				case abi.NoteSafeRIP:
					d.rips = append(d.rips, far(0))
				case abi.NoteSite:
					s := declaredSite{kind: le.Uint32(desc), size: le.Uint32(desc[4:]), addr: far(8)}
					if s.kind == abi.SiteImm {
						s.offset, s.width = le.Uint32(desc[16:]), le.Uint32(desc[20:])
					} else {
						s.target = far(16)
					}
					name, nul := bytes.CutSuffix(desc[24:], []byte{0})
					if !nul || s.kind != abi.SiteImm && s.kind != abi.SiteBranch {
						t.Fatalf("site of kind %d, name %q", s.kind, desc[24:])
					}
					d.sites[string(name)] = append(d.sites[string(name)], s)
				default:
					t.Errorf("note of type %d", typ)
				}
			}
			b, at = b[next:], at+next
		}
	}
	return d
}

// textAt is n bytes of the program at addr.
func textAt(t *testing.T, f *elf.File, addr uint64, n int) []byte {
	t.Helper()
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && p.Vaddr <= addr && addr+uint64(n) <= p.Vaddr+p.Filesz {
			b := make([]byte, n)
			if _, err := p.ReadAt(b, int64(addr-p.Vaddr)); err != nil {
				t.Fatal(err)
			}
			return b
		}
	}
	t.Fatalf("no text at %#x", addr)
	return nil
}

// TestPatchHeader builds patchProgram in every way that a program may be built, reads its notes back, holds them against the instructions, and has the
// program patch itself at the places that the notes name.
func TestPatchHeader(t *testing.T) {
	for _, c := range []struct {
		tool, file string
		flags      string
		once       bool // a site in an inline function of two files is one
	}{
		{"gcc", "c", "-std=gnu89 -pedantic -O0 -static", false},
		{"gcc", "c", "-std=gnu17 -pedantic -O2 -static", false},
		{"gcc", "c", "-Os -fcf-protection -masm=intel -Wa,-O2 -static", false},
		{"gcc", "c", "-O2 -static-pie -fPIE", false},
		{"gcc", "c", "-O2 -ffunction-sections -fdata-sections -Wl,--gc-sections -static", false},
		{"gcc", "c", "-O3 -flto -static", false},
		{"gcc", "c", "-O2 -flto -ffunction-sections -Wl,--gc-sections -static-pie -fPIE", false},
		{"musl-gcc", "c", "-O2 -static", false},
		{"g++", "cc", "-std=gnu++98 -pedantic -O0 -static", true},
		{"g++", "cc", "-std=gnu++20 -pedantic -O2 -fno-inline -ffunction-sections -Wl,--gc-sections -static", true},
		{"g++", "cc", "-O2 -flto -static", false},
		{"clang", "c", "-O0 -static", false},
		{"clang", "c", "-O2 -static-pie -fPIE", false},
		{"clang", "c", "-O2 -ffunction-sections -Wl,--gc-sections -static", false},
	} {
		t.Run(c.tool+" "+c.flags, func(t *testing.T) {
			testenv.Need(t, testenv.Tool(c.tool))
			src := write(t, "patch."+c.file, patchProgram)
			out := src + ".out"
			object := func(name string, more ...string) string {
				args := append([]string{"-Wall", "-Wextra", "-Werror", "-Ic", "-c", "-o", src + name}, strings.Fields(c.flags)...)
				args = slices.DeleteFunc(args, func(s string) bool { return s == "-static" || s == "-static-pie" || strings.HasPrefix(s, "-Wl,") })
				command(t, nil, c.tool, append(append(args, more...), src)...)
				return src + name
			}
			a, b := object(".1.o"), object(".2.o", "-DSECOND")
			command(t, nil, c.tool, append(strings.Fields(c.flags), "-o", out, a, b)...)
			checkPatchable(t, out, c.once)
		})
	}
}

func checkPatchable(t *testing.T, out string, once bool) {
	f, err := elf.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]uint64{}
	for _, s := range symbols {
		at[s.Name] = s.Value
	}
	for _, name := range []string{"filter", "other", "second", "cloister_patch_waits"} {
		if at[name] == 0 {
			t.Fatalf("no symbol %s", name)
		}
	}
	d := readNotes(t, f)
	if d.patchable == 0 || len(d.words) != 1 || d.words[0] != at["cloister_patch_waits"] || d.words[0]%64 != 0 {
		t.Errorf("patchable %d times, words %#x; cloister_patch_waits is at %#x", d.patchable, d.words, at["cloister_patch_waits"])
	}
	if len(d.rips) == 0 {
		t.Error("no safe RIP")
	}
	for _, rip := range d.rips {
		if _, err := x86asm.Decode(textAt(t, f, rip, 15), 64); err != nil {
			t.Errorf("safe RIP %#x: %v", rip, err)
		}
	}
	names := slices.Sorted(maps.Keys(d.sites))
	if want := []string{"imm.16", "imm.32", "imm.64", "imm.8", "off", "on", "shared", "threaded"}; !slices.Equal(names, want) {
		t.Fatalf("sites %v, want %v", names, want)
	}
	if n := len(d.sites["shared"]); once && n != 1 {
		t.Errorf("%d sites in one inline function", n)
	}

	// There is one function, whose entry is five bytes of NOPs: five of them from gcc, one from clang.
	entries := f.Section("__patchable_function_entries")
	if entries == nil || entries.Size != 8 {
		t.Fatalf("__patchable_function_entries: %+v", entries)
	}
	filter := at["filter"]
	if bytes.Equal(textAt(t, f, filter, 4), []byte{0xf3, 0x0f, 0x1e, 0xfa}) { // ENDBR64
		filter += 4
	}
	if got := textAt(t, f, filter, 5); !bytes.Equal(got, bytes.Repeat([]byte{0x90}, 5)) && !bytes.Equal(got, []byte{0x0f, 0x1f, 0x44, 0, 8}) {
		t.Errorf("filter begins with % x", got)
	}
	if b, err := entries.Data(); err != nil || f.Type == elf.ET_EXEC && binary.LittleEndian.Uint64(b) != filter {
		t.Errorf("__patchable_function_entries holds % x (%v), want %#x", b, err, filter)
	}

	var pokes []string
	poke := func(addr uint64, b []byte) {
		distance := fmt.Sprintf("%x", addr-at["second"])
		if addr < at["second"] {
			distance = fmt.Sprintf("-%x", at["second"]-addr)
		}
		pokes = append(pokes, fmt.Sprintf("%s:%x", distance, b))
	}
	jump := func(from, to uint64) []byte { return binary.LittleEndian.AppendUint32([]byte{0xe9}, uint32(to-from-5)) }
	poke(filter, jump(filter, at["other"]))
	initial := map[string]uint64{"imm.8": 200, "imm.16": 0xfffe, "imm.32": 5, "imm.64": 6, "shared": 7}
	for name, sites := range d.sites {
		for _, s := range sites {
			b := textAt(t, f, s.addr, int(s.size))
			inst, err := x86asm.Decode(b, 64)
			if err != nil || inst.Len != int(s.size) {
				t.Errorf("%s: % x is %v (%v), want one instruction", name, b, inst, err)
				continue
			}
			switch {
			case s.kind == abi.SiteImm:
				v := make([]byte, 8)
				copy(v, b[s.offset:s.offset+s.width])
				if first := s.addr + uint64(s.offset); binary.LittleEndian.Uint64(v) != initial[name] || inst.Op != x86asm.MOV || first/8 != (first+uint64(s.width)-1)/8 {
					t.Errorf("%s at %#x: %v, immediate of %d bytes at %d is % x, want %d within 8 bytes", name, s.addr, inst, s.width, s.offset, v, initial[name])
				}
				poke(s.addr+uint64(s.offset), v[:s.width])
				pokes[len(pokes)-1] = strings.Replace(pokes[len(pokes)-1], fmt.Sprintf("%x", v[:s.width]), fmt.Sprintf("%02x%s", v[0]+1, strings.Repeat("00", int(s.width)-1)), 1)
			case inst.Op == x86asm.NOP && name != "on":
				poke(s.addr, jump(s.addr, s.target))
			case inst.Op == x86asm.JMP && name == "on" && bytes.Equal(b, jump(s.addr, s.target)):
				poke(s.addr, []byte{0x0f, 0x1f, 0x44, 0, 0})
			default:
				t.Errorf("%s at %#x: %v, target %#x", name, s.addr, inst, s.target)
			}
			if s.kind == abi.SiteBranch && s.addr/8 != (s.addr+4)/8 {
				t.Errorf("%s at %#x crosses 8 bytes", name, s.addr)
			}
		}
	}
	const want = "filter=1 shared=7+7 imm=200,65534,5,6 off=0 on=1\nfilter=40 shared=8+8 imm=201,255,6,7 off=1 on=0 threaded\n"
	if got := command(t, nil, out, pokes...); got != want {
		t.Errorf("%s %v printed\n%swant\n%s", filepath.Base(out), pokes, got, want)
	}
}

// TestSafepointIsOneLoad: between the entry and the end of a safe point that finds nothing lie one load and one branch; the other way makes the call.
func TestSafepointIsOneLoad(t *testing.T) {
	for _, tool := range []string{"gcc", "clang"} {
		t.Run(tool, func(t *testing.T) {
			testenv.Need(t, testenv.Tool(tool))
			src := write(t, "point.c", "#include \"cloister_patch.h\"\nvoid point(void);\nvoid point(void) { cloister_safepoint(); }\n")
			command(t, nil, tool, "-O2", "-Wall", "-Wextra", "-Werror", "-Ic", "-c", "-o", src+".o", src)
			f, err := elf.Open(src + ".o")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			code, err := f.Section(".text").Data()
			if err != nil {
				t.Fatal(err)
			}
			var insts []x86asm.Inst
			branch, call := -1, -1
			number := false
			for at := 0; at < len(code); {
				inst, err := x86asm.Decode(code[at:], 64)
				if err != nil {
					t.Fatalf("% x: %v", code[at:], err)
				}
				if inst.Op == x86asm.JNE && branch < 0 {
					branch = len(insts)
				}
				if inst.Op == x86asm.SYSCALL {
					call = len(insts)
				}
				number = number || inst.Op == x86asm.MOV && inst.Args[0] == x86asm.EAX && inst.Args[1] == x86asm.Imm(abi.SysSafepoint)
				insts = append(insts, inst)
				at += inst.Len
			}
			loads := 0
			for _, inst := range insts[:branch+1] {
				for _, a := range inst.Args {
					if _, ok := a.(x86asm.Mem); ok {
						loads++
					}
				}
			}
			if branch < 1 || branch > 2 || loads != 1 || call < branch || !number {
				t.Errorf("%v: %d loads before the branch, which is instruction %d; the call is %d, its number there: %v", insts, loads, branch, call, number)
			}
		})
	}
}

// TestControlLoopExample runs the example of docs/patching.md natively, with the filter that it is linked with, and with the one that replaces it.
func TestControlLoopExample(t *testing.T) {
	for _, c := range []struct {
		tool, std string
	}{{"gcc", "gnu17"}, {"musl-gcc", "gnu17"}, {"g++", "gnu++11"}, {"clang", "gnu17"}} {
		t.Run(c.tool, func(t *testing.T) {
			testenv.Need(t, testenv.Tool(c.tool))
			dir := t.TempDir()
			lang := "c"
			if c.tool == "g++" {
				lang = "c++"
			}
			warn := []string{"-std=" + c.std, "-x", lang, "-O2", "-Wall", "-Wextra", "-Werror"}
			program, object := filepath.Join(dir, "control_loop"), filepath.Join(dir, "new.o")
			command(t, nil, c.tool, append(warn, "-static", "-o", program, "c/example/control_loop.c")...)
			command(t, nil, c.tool, append(warn, "-c", "-o", object, "c/example/new_filter.c")...)
			var missed int
			out := command(t, nil, program, "20", "2000")
			if n, err := fmt.Sscanf(out, "period 0: output 100 (version 1)\ncontrol_loop: 20 periods, %d missed, 0 mixed\n", &missed); n != 1 {
				t.Errorf("%v\n%s", err, out)
			}

			replaced := filter(t, program)
			if added := filter(t, object); added.Name != replaced.Name || added.Size == 0 {
				t.Errorf("the object has %+v, the program %+v", added, replaced)
			}
			f, err := elf.Open(program)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			d := readNotes(t, f)
			if names := slices.Sorted(maps.Keys(d.sites)); !slices.Equal(names, []string{"output.off", "rate.limit"}) || len(d.words) != 1 {
				t.Errorf("%+v", d)
			}
		})
	}
}

// filter is the one function of that name in an ELF file.
func filter(t *testing.T, file string) elf.Symbol {
	t.Helper()
	f, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range symbols {
		if elf.ST_TYPE(s.Info) == elf.STT_FUNC && (s.Name == "filter" || s.Name == "_Z6filterlPl") {
			return s
		}
	}
	t.Fatalf("%s: no function filter", file)
	return elf.Symbol{}
}
