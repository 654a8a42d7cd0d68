package symbol

import (
	"bytes"
	"debug/elf"
	"debug/gosym"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
)

// TestLookupAgainstAddr2line compares function, file and line, inlining included, with binutils at
// addresses all over the text of each program with DWARF.
func TestLookupAgainstAddr2line(t *testing.T) {
	const bias = 0x1000_0000
	for _, p := range programs {
		if p.tool == "go" || p.strip {
			continue
		}
		t.Run(p.name, func(t *testing.T) {
			testenv.Need(t, testenv.Tool("addr2line"))
			bin := build(t, p)
			tab := open(t, bin, bias)
			addrs := userCode(t, bin, 3000)
			want := addr2line(t, bin, addrs)
			same, wrong := 0, 0
			for i, a := range addrs {
				got := tab.Frames(a + bias)
				if d := difference(got, want[i]); d != "" {
					if wrong++; wrong <= 5 {
						t.Logf("%#x: %s\n got %v\nwant %v", a, d, got, want[i])
					}
				} else {
					same++
				}
			}
			t.Logf("%d addresses, %d differ", len(addrs), wrong)
			if same < len(addrs)*98/100 {
				t.Errorf("only %d of %d addresses agree with addr2line", same, len(addrs))
			}
		})
	}
}

// userCode picks addresses at the starts of lines' code and between them, in functions with symbols.
func userCode(t *testing.T, bin string, n int) []uint64 {
	t.Helper()
	f, err := elf.Open(bin)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	syms, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	ours := regexp.MustCompile(`^(main|leaf|big|dyn|many|rec|aligned|cmp|tail|_Z.*(5space|4main|5inner).*|_R.*4main.*)$`)
	var out []uint64
	for pass := range 2 {
		for i, s := range syms {
			if elf.ST_TYPE(s.Info) != elf.STT_FUNC || s.Size == 0 || s.Section == elf.SHN_UNDEF {
				continue
			}
			// All of our own functions, then some of the library's.
			if own := ours.MatchString(s.Name); own && pass == 0 {
				for a := s.Value; a < s.Value+s.Size; a++ {
					out = append(out, a)
				}
			} else if !own && pass == 1 && i%7 == 0 {
				out = append(out, s.Value, s.Value+s.Size/2)
			}
		}
	}
	return out[:min(n, len(out))]
}

func addr2line(t *testing.T, bin string, addrs []uint64) [][]Frame {
	t.Helper()
	cmd := exec.Command("addr2line", "-a", "-i", "-f", "-e", bin)
	var in bytes.Buffer
	for _, a := range addrs {
		fmt.Fprintf(&in, "%#x\n", a)
	}
	cmd.Stdin = &in
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var all [][]Frame
	lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	for i := 0; i < len(lines); {
		if strings.HasPrefix(lines[i], "0x") {
			all = append(all, nil)
			i++
			continue
		}
		place, _, _ := strings.Cut(lines[i+1], " (discriminator")
		file, num, _ := strings.Cut(place[strings.LastIndex(place, "/")+1:], ":")
		line, _ := strconv.Atoi(num) // "?" means unknown
		last := len(all) - 1
		all[last] = append(all[last], Frame{Func: lines[i], File: file, Line: line})
		i += 2
	}
	return all
}

func difference(got, want []Frame) string {
	if len(want) == 1 && want[0].Line == 0 && len(got) <= 1 {
		return "" // binutils knows no line; the symbol is compared by others
	}
	if len(got) != len(want) {
		return "depth"
	}
	for i := range got {
		if want[i].Line != 0 && (filepath.Base(got[i].File) != want[i].File || got[i].Line != want[i].Line) {
			return "line"
		}
		if got[i].Mangled != want[i].Func && got[i].Func != want[i].Func {
			// One address may have many names (weak aliases).
			if i < len(got)-1 || want[i].Line != 0 && !strings.HasPrefix(got[i].Mangled, "_") && !strings.HasPrefix(want[i].Func, "_") {
				return "name"
			}
		}
	}
	return ""
}

// TestInlinedFrames pins one inlined call down by the source's own marks.
func TestInlinedFrames(t *testing.T) {
	bin := build(t, programs[1])
	tab := open(t, bin, 0)
	mark := 1 + strings.Count(cSource[:strings.Index(cSource, "/* INLINED */")], "\n")
	f, err := elf.Open(bin)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	syms, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range syms {
		if s.Name != "leaf" {
			continue
		}
		for a := s.Value; a < s.Value+s.Size; a++ {
			fs := tab.Frames(a)
			if len(fs) == 2 && fs[0].Func == "inlined" && fs[0].Inlined && fs[0].Line == mark &&
				fs[1].Func == "leaf" && !fs[1].Inlined && fs[1].Line > mark && fs[1].Offset == a-s.Value {
				if !strings.HasSuffix(fs[0].String(), fmt.Sprintf("main.c:%d)", mark)) || !strings.HasPrefix(fs[0].String(), "inlined (inlined) (") {
					t.Errorf("frame reads %q", fs[0])
				}
				return
			}
		}
	}
	t.Error("no address of leaf shows the function that was inlined into it")
}

// TestDemangled looks for names as their authors wrote them.
func TestDemangled(t *testing.T) {
	for _, tc := range []struct {
		program int
		mangled string
		want    string
	}{
		{10, "_ZN5space7DerivedIlE2goEi", "space::Derived<long>::go(int)"},
		{11, "main4main", "main::main"},
	} {
		p := programs[tc.program]
		t.Run(p.name, func(t *testing.T) {
			bin := build(t, p)
			tab := open(t, bin, 0)
			f, err := elf.Open(bin)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			syms, err := f.Symbols()
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range syms {
				if !strings.Contains(s.Name, tc.mangled) || elf.ST_TYPE(s.Info) != elf.STT_FUNC {
					continue
				}
				fs := tab.Frames(s.Value)
				if len(fs) == 0 || fs[len(fs)-1].Func != tc.want {
					t.Errorf("%s is %v, want %s", s.Name, fs, tc.want)
				}
				return
			}
			t.Errorf("no symbol has %s in its name", tc.mangled)
		})
	}
}

// TestStripped: functions keep their bounds, and Go programs everything.
func TestStripped(t *testing.T) {
	bin := build(t, programs[5])
	tab := open(t, bin, 0)
	if len(tab.names.syms) > 16 {
		t.Fatalf("the stripped program has %d symbols", len(tab.names.syms))
	}
	f := tab.cfi.fdes[len(tab.cfi.fdes)/2]
	got, ok := tab.Lookup(f.lo + 3)
	if want := fmt.Sprintf("fn@%#x", f.lo); !ok || got.Func != want || got.Offset != 3 {
		t.Errorf("Lookup = %+v, %v; want %s+3", got, ok, want)
	}
	for _, a := range []uint64{0, 1, 0x7fffffff0000, ^uint64(0)} {
		if got, ok := tab.Lookup(a); ok {
			t.Errorf("Lookup(%#x) = %+v, but there is no code", a, got)
		}
	}
}

// TestGoTable compares functions, files and lines with debug/gosym at every 13th byte of the text.
func TestGoTable(t *testing.T) {
	bin := build(t, programs[len(programs)-1])
	const bias = 0x20_0000
	tab := open(t, bin, bias)
	f, err := elf.Open(bin)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	pcln, err := f.Section(".gopclntab").Data()
	if err != nil {
		t.Fatal(err)
	}
	text := f.Section(".text")
	ref, err := gosym.NewTable(nil, gosym.NewLineTable(pcln, text.Addr))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for a := text.Addr; a < text.Addr+text.Size; a += 13 {
		file, line, fn := ref.PCToLine(a)
		got, ok := tab.Lookup(a + bias)
		if fn == nil {
			continue
		}
		n++
		if !ok || got.Func != fn.Name || line > 0 && (got.File != file || got.Line != line) || got.Offset != a-fn.Entry {
			t.Fatalf("%#x: got %+v, %v; want %s %s:%d", a, got, ok, fn.Name, file, line)
		}
	}
	if n < 1000 {
		t.Fatalf("only %d addresses were compared", n)
	}
	t.Logf("%d addresses agree", n)
}

// readelfName is the ABI's name of a register that readelf prints behind its own.
var readelfName = regexp.MustCompile(` \([a-z0-9]+\)`)

var readelfRow = regexp.MustCompile(`^[0-9a-f]{16} `)

// TestRowsAgainstReadelf compares the rule of CFA, RBX, RBP and the return address with binutils at
// every row of every function of a static glibc program.
func TestRowsAgainstReadelf(t *testing.T) {
	testenv.Need(t, testenv.Tool("readelf"))
	for _, i := range []int{4, 10} {
		t.Run(programs[i].name, func(t *testing.T) {
			bin := build(t, programs[i])
			tab := open(t, bin, 0)
			out, err := exec.Command("readelf", "-wNF", bin).Output()
			if err != nil {
				if out, err = exec.Command("readelf", "-wF", bin).Output(); err != nil {
					t.Fatal(err)
				}
			}
			var columns []string
			isFDE, n := false, 0
			for _, line := range strings.Split(string(out), "\n") {
				switch {
				case strings.Contains(line, " FDE "):
					isFDE = true
				case strings.Contains(line, " CIE "):
					isFDE = false
				case strings.HasPrefix(line, "   LOC"):
					columns = strings.Fields(line)
				case isFDE && readelfRow.MatchString(line):
					cells := strings.Fields(readelfName.ReplaceAllString(line, " "))
					a, err := strconv.ParseUint(cells[0], 16, 64)
					if err != nil || len(cells) != len(columns) {
						t.Fatalf("unexpected row %q under %q", line, columns)
					}
					f, ok := tab.cfi.find(a)
					if !ok {
						t.Fatalf("%#x has no record", a)
					}
					r, ok := tab.cfi.row(f, a)
					if !ok {
						t.Fatalf("%#x: rules do not execute", a)
					}
					for k, col := range columns {
						reg, known := map[string]int{"rbx": regRBX, "rbp": regRBP, "ra": regRA, "r12": 12, "r15": 15}[col]
						switch {
						case col == "CFA":
							if got := showCFA(r.cfa); got != cells[k] {
								t.Fatalf("%#x: CFA is %s, want %s", a, got, cells[k])
							}
						case known:
							if got := show(r.regs[reg]); got != cells[k] && !(got == "u" && cells[k] == "s") {
								t.Fatalf("%#x: %s is %s, want %s", a, col, got, cells[k])
							}
						}
					}
					n++
				}
			}
			if n < 1000 {
				t.Fatalf("only %d rows were compared", n)
			}
			t.Logf("%d rows agree", n)
		})
	}
}

func showCFA(r rule) string {
	if r.kind == ruleValExpr {
		return "exp"
	}
	return fmt.Sprintf("%s%+d", [numReg]string{"rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11",
		"r12", "r13", "r14", "r15", "ra"}[r.reg], r.off)
}

func show(r rule) string {
	switch r.kind {
	case ruleOffset:
		return fmt.Sprintf("c%+d", r.off)
	case ruleRegister:
		return fmt.Sprintf("r%d", r.reg)
	case ruleExpr:
		return "exp"
	case ruleValExpr:
		return "vexp"
	}
	return "u"
}

// TestWithoutSectionHeaders: .eh_frame is found by its program header.
func TestWithoutSectionHeaders(t *testing.T) {
	bin := build(t, programs[4]) // -static alone links no .eh_frame_hdr
	b, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	want := open(t, bin, 0)
	for _, field := range [][2]int{{40, 8}, {58, 6}} { // e_shoff; e_shentsize, e_shnum, e_shstrndx
		clear(b[field[0] : field[0]+field[1]])
	}
	tab, err := New(bytes.NewReader(b), int64(len(b)), 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(tab.cfi.fdes) != len(want.cfi.fdes) {
		t.Errorf("%d frame records, %d with section headers", len(tab.cfi.fdes), len(want.cfi.fdes))
	}
}

// TestWildJump: after a call through a null pointer the caller is still found.
func TestWildJump(t *testing.T) {
	bin := build(t, programs[1])
	tab := open(t, bin, 0)
	main := callSite(t, tab)
	got := tab.Unwind(Regs{}, []uint64{main}, 8)
	if len(got) < 2 || got[0] != 0 || got[1] != main {
		t.Errorf("Unwind = %x, want 0 and %x", got, main)
	}
	if got := tab.Unwind(Regs{}, []uint64{main + 1}, 8); len(got) != 1 {
		t.Errorf("Unwind = %x took a word for a return address that no call pushed", got)
	}
	if got := tab.Unwind(Regs{RIP: main}, nil, 8); len(got) != 1 {
		t.Errorf("Unwind = %x without a stack", got)
	}
	if got := tab.Unwind(Regs{RIP: main}, nil, 0); got != nil {
		t.Errorf("Unwind = %x with max 0", got)
	}
}

// callSite returns an address after a CALL in main.
func callSite(t *testing.T, tab *Table) uint64 {
	t.Helper()
	for _, s := range tab.names.syms {
		if tab.names.name(s) != "main" {
			continue
		}
		for a := s.addr; a < s.addr+s.size; a++ {
			if target, ok := tab.img.callTarget(a); ok && tab.img.isCode(target) && tab.img.isReturn(a) {
				return a
			}
		}
	}
	t.Fatal("main calls nothing")
	return 0
}

func TestBuildID(t *testing.T) {
	p := programs[1]
	p.args = append([]string{"-Wl,--build-id=0x0123456789abcdef"}, p.args...)
	if id, err := BuildID(build(t, p)); err != nil || id != "0123456789abcdef" {
		t.Errorf("BuildID = %q, %v", id, err)
	}
	p.args[0] = "-Wl,--build-id=none"
	if id, err := BuildID(build(t, p)); err != nil || id != "" {
		t.Errorf("BuildID = %q, %v; the program has none", id, err)
	}
	if id, err := BuildID(build(t, programs[13])); err != nil || strings.Count(id, "/") != 3 {
		t.Errorf("BuildID of a Go program = %q, %v", id, err)
	}
}

func TestErrors(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte(strings.Repeat("no program ", 20)), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "absent"): "no such file", dir: "not a regular file", text: "not a 64-bit little-endian ELF", os.DevNull: "not a regular file",
	} {
		_, err := Open(path, 0)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("Open(%s) = %v, want one line with %q", path, err, want)
		}
		if _, err := BuildID(path); err == nil {
			t.Errorf("BuildID(%s) finds no fault", path)
		}
	}
	if _, err := Open(filepath.Join(dir, "absent"), 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cause is lost: %v", err)
	}
}
