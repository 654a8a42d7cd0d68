package build

import (
	"bytes"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/patch"
)

func setting(pairs ...string) *Bundle {
	b := &Bundle{}
	for i := 0; i < len(pairs); i += 2 {
		b.Set = append(b.Set, Set{pairs[i], pairs[i+1]})
	}
	return b
}

// TestSet sets declared sites of a running program, stripped or not, and looks at what it then computes.
func TestSet(t *testing.T) {
	for _, b := range builds {
		for _, strip := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s stripped=%v", b.name, strip), func(t *testing.T) {
				g := start(t, targetFile(t, b.cc))
				if strip {
					g.file = stripped(t, g.file)
				}
				for _, c := range []struct {
					site, value, function string
					x, want               int64
				}{
					{"rate.limit", "0x2a", "limit", 1, 43},
					{"rate.limit", "0x2b", "twice", 1, 45},
					{"rate.limit", "-1", "limit", 1, 0},
					{"rate.limit", "0xffffffff", "limit", 1, 0}, // the same bytes: nothing to do
					{"rate.limit", "2147483647", "limit", 1, 1<<31 - 1 + 1},
					{"rate.limit", "4294967290", "limit", 1, -5},
					{"rate.step", "-128", "narrow", 1, -127},
					{"rate.step", "127", "narrow", 1, 128},
					{"rate.wide", "0xffffffffffffffff", "wide", 5, 4},
					{"rate.wide", "-9223372036854775808", "wide", 0, -1 << 63},
					{"rate.wide", "0b101", "wide", 0, 5},
					{"mark", "255", "byte", 0, 255},
					{"mark", "-128", "byte", 0, 128},
					{"mark", "+7", "byte", 0, 7},
					{"trace", "on", "traced", 3, 1003},
					{"trace", "off", "traced", 3, 3},
					{"trace", "on", "traced", 4, 1004},
				} {
					m, err := g.open().Plan(setting(c.site, c.value))
					if c.value == "0xffffffff" {
						refused(t, err, "nothing would change", c.site)
					} else if err != nil {
						t.Fatalf("%s=%s: %v", c.site, c.value, err)
					} else {
						for _, s := range m.Plan.Sites {
							if want := map[bool]string{true: patch.Branch, false: patch.Imm}[c.site == "trace"]; s.Kind != want || s.Name != c.site || s.Restartable {
								t.Errorf("site %+v", s)
							}
						}
						g.apply(m.Plan)
					}
					if got := g.call(c.function, c.x); got != c.want {
						t.Errorf("%s=%s: %s(%d) = %d, want %d", c.site, c.value, c.function, c.x, got, c.want)
					}
					s := siteOf(t, g.open().List(), c.site)
					if s.Error != "" || s.Patch == 0 || c.site == "rate.limit" && len(s.Addrs) != 2 {
						t.Errorf("listed as %+v", s)
					}
					if again, err := g.open().Plan(setting(c.site, s.Value)); err == nil {
						t.Errorf("%s: the listed value %s is not what runs: %+v", c.site, s.Value, again.Plan.Sites)
					}
				}
			})
		}
	}
}

// TestMixed lists a name of two places of which one was changed, and makes them one again.
func TestMixed(t *testing.T) {
	g := start(t, targetFile(t, builds[0].cc))
	m := g.plan(setting("rate.limit", "9"))
	half := m.Plan
	half.Sites = half.Sites[1:]
	g.apply(half)
	if s := siteOf(t, g.open().List(), "rate.limit"); s.Value != "mixed" || s.Patch != 1 || s.Error != "" {
		t.Errorf("listed as %+v", s)
	}
	m = g.plan(setting("rate.limit", "9"))
	if len(m.Plan.Sites) != 1 || m.Plan.SafePoint {
		t.Errorf("the other place alone needs a change: %+v", m.Plan)
	}
	g.apply(m.Plan)
	if a, b := g.call("limit", 1), g.call("twice", 1); a != 10 || b != 11 {
		t.Errorf("limit(1) = %d, twice(1) = %d: want 10 and 11", a, b)
	}
}

func siteOf(t *testing.T, l *Listing, name string) Site {
	t.Helper()
	i := slices.IndexFunc(l.Sites, func(s Site) bool { return s.Name == name })
	if i < 0 {
		t.Fatalf("%s is not in %+v", name, l.Sites)
	}
	return l.Sites[i]
}

func stripped(t *testing.T, file []byte) []byte {
	t.Helper()
	testenv.Need(t, testenv.Tool("strip"))
	path := filepath.Join(t.TempDir(), "target")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("strip", path).CombinedOutput(); err != nil {
		t.Fatalf("strip: %v\n%s", err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestListAsBuilt lists a program that nobody has patched.
func TestListAsBuilt(t *testing.T) {
	for _, b := range builds {
		g := start(t, targetFile(t, b.cc))
		l := g.open().List()
		var names []string
		for _, f := range l.Functions {
			names = append(names, f.File+":"+f.Name)
			if f.Patch != 0 || f.Body != f.Addr {
				t.Errorf("%s: %+v", b.name, f)
			}
		}
		// The compiler's own .cold and .constprop parts aside, all functions but the closed one.
		for _, want := range []string{":filter", ":other", ":plain", ":early", ":raw", "target.c:secret", "second.c:secret", "target.c:limit", ":main"} {
			if !slices.Contains(names, want) {
				t.Errorf("%s: no %s among %q", b.name, want, names)
			}
		}
		if slices.Contains(names, ":closed") || slices.Contains(names, ":printf") {
			t.Errorf("%s: functions without an entry among %q", b.name, names)
		}
		values := map[string]string{}
		for _, s := range l.Sites {
			values[s.Name] = s.Value + s.Error
		}
		if want := map[string]string{"rate.limit": "0x7", "rate.step": "3", "rate.wide": "0x1122334455667788", "mark": "0x1", "trace": "off"}; fmt.Sprint(values) != fmt.Sprint(want) {
			t.Errorf("%s: sites %v, want %v", b.name, values, want)
		}
		if l.Stripped || l.SpareText != 256<<10 || l.SpareData != 256<<10 {
			t.Errorf("%s: %+v", b.name, l)
		}
		g.file = stripped(t, g.file)
		p := g.open()
		if l := p.List(); !l.Stripped || len(l.Functions) != 0 || len(l.Sites) != 5 {
			t.Errorf("%s stripped: %+v", b.name, l)
		}
		_, err := p.Plan(replaceWith(newObject(t, "long filter(long x) { return x; }", "-O2")))
		refused(t, err, "replace filter: stripped", "keep it")
	}
}

// TestSetRefused: what a user can get wrong about sites.
func TestSetRefused(t *testing.T) {
	g := start(t, targetFile(t, builds[0].cc))
	p := g.open()
	for _, c := range []struct {
		site, value string
		want        []string
	}{
		{"rate.nothing", "1", []string{"set site rate.nothing", "declares no such site", "--list"}},
		{"rate.limit", "4294967296", []string{"does not fit into the 4 bytes", "-2147483648 to 4294967295"}},
		{"rate.limit", "-2147483649", []string{"does not fit"}},
		{"rate.limit", "99999999999999999999999999999", []string{"does not fit"}},
		{"rate.limit", "many", []string{`"many" is no integer`}},
		{"rate.limit", "1;2", []string{"no integer"}},
		{"rate.limit", "++5", []string{`"++5" is no integer`, "0x2a"}},
		{"rate.limit", "+-5", []string{"no integer"}},
		{"rate.limit", "1_0", []string{"no integer"}},
		{"rate.limit", "010", []string{"no integer"}},
		{"rate.limit", "-07", []string{"no integer"}},
		{"rate.limit", "0x1ffffffffffffffff", []string{"does not fit into the 4 bytes"}},
		{"rate.limit", strings.Repeat("9", 81), []string{"is no value", "0x2a"}},
		{"rate.limit", "on", []string{"no integer"}},
		{"rate.step", "128", []string{"does not fit into the 1 bytes", "-128 to 127"}},
		{"rate.step", "0xff", []string{"-128 to 127"}},
		{"rate.wide", "0x10000000000000000", []string{"does not fit into the 8 bytes"}},
		{"mark", "256", []string{"-128 to 255"}},
		{"trace", "1", []string{"no value of a branch", "on or off"}},
		{"trace", "ON", []string{"on or off"}},
	} {
		_, err := p.Plan(setting(c.site, c.value))
		refused(t, err, append(c.want, "set site "+c.site)...)
	}
	_, err := p.Plan(setting("rate.limit", "1", "rate.limit", "2"))
	refused(t, err, "set site rate.limit", "twice")

	g.state.SafePoints = false
	_, err = g.open().Plan(setting("rate.limit", "1"))
	refused(t, err, "2 places change together", "cloister_safepoint()")
	if m, err := g.open().Plan(setting("rate.step", "1")); err != nil || m.Plan.SafePoint {
		t.Errorf("one site needs no safe point: %v, %+v", err, m)
	}
	g.state.SafePoints = true
	m, err := g.open().Plan(setting("rate.step", "1", "trace", "on"))
	if err != nil || !m.Plan.SafePoint || len(m.Plan.Sites) != 2 || m.Plan.Sites[0].Addr >= m.Plan.Sites[1].Addr {
		t.Errorf("two sites: %v, %+v", err, m)
	}
}

// rawAt finds an instruction by its bytes in a function.
func rawAt(t *testing.T, g *target, function, code string) (off uint64, old []byte) {
	t.Helper()
	old = unhex(t, code)
	f, err := g.open().function(function)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, f.size)
	if _, err := g.ReadAt(b, int64(f.addr)); err != nil {
		t.Fatal(err)
	}
	i := bytes.Index(b, old)
	if i < 0 {
		t.Fatalf("no %s in %s: %x", code, function, b)
	}
	return uint64(i), old
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRaw exchanges single instructions, and what may not be exchanged.
func TestRaw(t *testing.T) {
	g := start(t, targetFile(t, builds[0].cc))
	off, nop := rawAt(t, g, "raw", "660f1f0400")
	try := func(function string, off uint64, old, now []byte) (*Made, error) {
		return g.open().Plan(&Bundle{Raw: []Raw{{Function: function, Offset: off, Old: old, New: now}}})
	}
	// The NOP that the source put there becomes a long ADD.
	b := g.open()
	f, err := b.function("raw")
	if err != nil {
		t.Fatal(err)
	}
	code := make([]byte, f.size)
	if _, err := g.ReadAt(code, int64(f.addr)); err != nil {
		t.Fatal(err)
	}
	// addq $5, %reg in front of it: its register is the compiler's.
	add := code[off-4 : off]
	if add[1] != 0x83 || add[3] != 5 {
		t.Fatalf("no addq $5 in front of the NOP: %x", code)
	}
	m, err := try("raw", off-4, add, []byte{add[0], add[1], add[2], 77})
	if err != nil {
		t.Fatal(err)
	}
	if s := m.Plan.Sites[0]; s.Kind != patch.Raw || s.Restartable || m.Plan.SafePoint {
		t.Errorf("plan %+v", m.Plan)
	}
	g.apply(m.Plan)
	if got := g.call("raw", 1); got != 78 {
		t.Errorf("raw(1) = %d, want 78", got)
	}
	_, err = try("raw", off-4, code[off-4:off], []byte{add[0], add[1], add[2], 78})
	refused(t, err, "there runs")
	g.reset()

	strAt, rep := rawAt(t, g, "strings", "f3aa")
	m, err = try("strings", strAt, rep, []byte{0x66, 0x90})
	if err != nil || !m.Plan.Sites[0].Restartable || !strings.Contains(strings.Join(m.Notes, "\n"), "half done") {
		t.Errorf("rep stosb: %v, %+v", err, m)
	}

	for _, c := range []struct {
		what, function string
		off            uint64
		old, now       []byte
		want           []string
	}{
		{"no such function", "nobody", 0, []byte{1}, []byte{2}, []string{"change nobody+0x0", "no such symbol"}},
		{"other bytes", "raw", off, unhex(t, "660f1f0401"), nop, []string{"there runs 660f1f0400, not"}},
		{"behind the end", "raw", 1 << 20, []byte{1}, []byte{2}, []string{"give an offset below"}},
		{"middle of an instruction", "raw", off + 1, nop[1:], unhex(t, "0f1f4001"), []string{"in the middle of an instruction"}},
		{"half of an instruction", "raw", off, nop[:4], unhex(t, "0f1f4000"), []string{"not 4 bytes"}},
		{"two instructions", "raw", off - 4, slices.Concat(add, nop), unhex(t, "48c744240811223344"), []string{"+0x", "are 9 bytes of an instruction of 4"}},
		{"new is two", "raw", off, nop, unhex(t, "9090909090"), []string{"of 1 bytes, not 5"}},
		{"new is none", "raw", off, nop, unhex(t, "ffffffffff"), []string{"cannot be decoded"}},
		{"new is cut", "raw", off, nop, unhex(t, "48b8000000"), []string{"cannot be decoded"}},
		{"new calls", "raw", off, nop, unhex(t, "e800000000"), []string{"may not be a site"}},
		{"new is a system call", "raw", off - 4, add, unhex(t, "66660f05"), []string{"may not be a site"}},
		{"new is a breakpoint", "strings", strAt, rep, unhex(t, "cd03"), []string{"may not be a site"}},
		{"new jumps into an instruction", "raw", off, nop, unhex(t, "e9f5ffffff"), []string{"neither an instruction"}},
		{"new repeats", "strings", strAt, rep, unhex(t, "f3a4"), []string{"half done", "not be taken back"}},
		{"new is nothing", "raw", off, nop, nil, []string{"0 new ones"}},
		{"new jumps into nothing", "strings", strAt, rep, unhex(t, "eb7f"), []string{"neither an instruction of its function nor the start of another"}},
		{"new jumps into itself", "strings", strAt, rep, unhex(t, "ebff"), []string{"neither an instruction"}},
		{"too long", "raw", off, make([]byte, 16), nop, []string{"1 to 15 bytes"}},
		{"the same", "raw", off, nop, nop, []string{"the same"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			_, err := try(c.function, c.off, c.old, c.now)
			refused(t, err, c.want...)
		})
	}
	// Loads of what lies beside RIP: the same place from an instruction of the same end is good.
	const imul = "0faf3d" // imul disp32(%rip), %edi
	for _, c := range []struct {
		disp uint32
		ok   bool
	}{{0x1000, true}, {0x7fffffff, false}} {
		p := handMade(unhex(t, "0f1f800000000090c3"))
		p.m.segments = []segment{{typ: elf.PT_LOAD, vaddr: textAt, memsz: 0x2000}}
		_, err := p.Plan(&Bundle{Raw: []Raw{{Function: "f", Offset: 5, Old: unhex(t, "0f1f8000000000"), New: append(unhex(t, imul), le.AppendUint32(nil, c.disp)...)}}})
		if c.ok != (err == nil) {
			t.Errorf("imul %#x(%%rip): %v", c.disp, err)
		}
		if !c.ok {
			refused(t, err, "no memory of the program", "relative to RIP")
		}
	}
	// A call of the program.
	f, err = g.open().function("plain")
	if err != nil {
		t.Fatal(err)
	}
	code = g.open().codeUpTo(f.addr, f.size)
	if i := bytes.IndexByte(code, 0xe8); i < 0 {
		t.Errorf("plain has no call: %x", code)
	} else {
		_, err := try("plain", uint64(i), code[i:i+5], []byte(nop5))
		refused(t, err, "CALL", "may not be a site")
	}
}

// TestRawAndBranches: functions in assembly, of which a site cannot be proved.
func TestRawAndBranches(t *testing.T) {
	const head = ".globl _start\n_start: nop\n.size _start, 1\n.type _start, @function\n.globl f\n.type f, @function\nf: "
	for _, c := range []struct {
		name, body string
		off        uint64
		old, now   string
		want       []string
	}{
		{"a branch leads into it", "jmp 1f\n.byte 0x66, 0x0f, 0x1f\n1: .byte 0x44, 0, 0\nret\n", 2, "660f1f440000", "660f1f440001", []string{"middle of an instruction", "cannot prove"}},
		{"a branch over LOCK", "je 1f\nlock\n1: incl (%rax)\nret\n", 2, "f0ff00", "f0ff08", []string{"cannot prove the boundaries of f", "middle of an instruction, at +0x3"}},
		{"data in the code", "jmp 1f\n.byte 6, 7, 0x0e\n1: addl $1, %eax\nret\n", 5, "83c001", "83c002", []string{"cannot prove the boundaries of f", "cannot be decoded"}},
		{"no size", "addl $1, %eax\nret\n.size f, 0\n", 0, "83c001", "83c002", []string{"has 0 bytes"}},
		{"size into an instruction", "addl $1, %eax\nret\n.size f, 2\n", 0, "83c0", "83c1", []string{"cannot prove"}},
		{"good", "je 1f\n1: addl $1, %eax\njne f\nvpaddd %ymm0, %ymm1, %ymm2\nendbr64\nret\n", 2, "83c001", "83c002", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			src := head + c.body
			if !strings.Contains(c.body, ".size") {
				src += ".size f, . - f\n"
			}
			file := compile(t, "gcc", map[string]string{"new.s": src}, "-nostdlib", "-static", "-Wl,-z,noexecstack")
			p := atRestProgram(t, file)
			_, err := p.Plan(&Bundle{Raw: []Raw{{Function: "f", Offset: c.off, Old: unhex(t, c.old), New: unhex(t, c.now)}}})
			if c.want == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			refused(t, err, c.want...)
		})
	}
}

func atRestProgram(t testing.TB, file []byte) *Program {
	t.Helper()
	state, text, err := AtRest(bytes.NewReader(file), int64(len(file)), "target")
	if err != nil {
		t.Fatal(err)
	}
	p, err := Open(bytes.NewReader(file), int64(len(file)), state, text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestVectorLength: lengths by the rules of VEX and EVEX, which objdump agrees with, and what has none.
func TestVectorLength(t *testing.T) {
	for _, c := range []struct {
		code string
		want int
	}{
		{"c5f877", 3}, {"c4e17c77", 4}, {"c5f96f442408", 6}, {"c5f96f05aabbccdd", 8}, {"c5f96f0425aabbccdd", 9}, {"c5f970c01b", 5}, {"c4e37d39c101", 6}, {"c4e2719004fb", 6},
		{"65c5f96f442408", 7}, {"62f17d486f4424017f", 8}, {"62f37d483ac101", 7}, {"62f17d486f05aabbccdd", 10}, {"4889e5", 0}, {"f30f1efa", 0},
		{"c5f96f4424", -1}, {"c5f96f05aabbcc", -1}, {"c5f970c0", -1}, {"c4e07c77", -1}, {"c4e47c7700", -1}, {"62f57c485804", -1}, {"62f47c485804", -1},
	} {
		if got := vectorLength(unhex(t, c.code)); got != c.want {
			t.Errorf("%s has %d bytes, want %d", c.code, got, c.want)
		}
	}
}

var objdumpLine = regexp.MustCompile(`^ *([0-9a-f]+):\t((?:[0-9a-f]{2} )+) *(?:\t(.*))?$`)

// TestDecodesAsObjdump compares the boundaries of every function of a static glibc program, its hand-written ones included, with objdump's.
func TestDecodesAsObjdump(t *testing.T) {
	testenv.Need(t, testenv.Tool("objdump"))
	file := targetFile(t, builds[0].cc)
	path := filepath.Join(t.TempDir(), "target")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("objdump", "-d", "-w", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	theirs := map[uint64]string{}
	for _, l := range strings.Split(string(out), "\n") {
		if m := objdumpLine.FindStringSubmatch(l); m != nil {
			a, err := strconv.ParseUint(m[1], 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			theirs[a] = m[3]
		}
	}
	p := atRestProgram(t, file)
	whole, refusals, insts := 0, 0, 0
	for _, i := range p.funcs {
		f := p.symbols[i]
		b, err := p.decodeBody(f)
		if err != nil {
			refusals++
			continue
		}
		whole++
		for off := range f.size {
			text, ok := theirs[f.addr+off]
			if ok != b.starts.has(off) && !strings.Contains(text, "(bad)") {
				t.Errorf("%s+%#x (%q): objdump begins an instruction there: %v, we: %v", f.name, off, text, ok, !ok)
				break
			}
			if ok {
				insts++
			}
		}
	}
	t.Logf("%d functions decoded with %d instructions, %d refused", whole, insts, refusals)
	if whole < 900 || insts < 100000 || refusals > whole/5 {
		t.Errorf("%d functions decoded with %d instructions, %d refused: too few", whole, insts, refusals)
	}
}
