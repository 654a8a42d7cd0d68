package build

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/patch"
)

// dir holds what the tests have compiled.
var dir string

func TestMain(m *testing.M) {
	var err error
	if dir, err = os.MkdirTemp("", "patch-build-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

var compiled struct {
	sync.Mutex
	n    int
	done map[string][]byte
}

// compile runs a compiler on sources (C or, with names in .s, assembly, by name) and gives what it wrote.
func compile(t testing.TB, cc string, sources map[string]string, args ...string) []byte {
	t.Helper()
	testenv.Need(t, testenv.Tool(strings.Fields(cc)[0]))
	key := fmt.Sprint(cc, sources, args)
	compiled.Lock()
	defer compiled.Unlock()
	if b := compiled.done[key]; b != nil {
		return b
	}
	compiled.n++
	here := filepath.Join(dir, fmt.Sprint(compiled.n))
	if err := os.Mkdir(here, 0o700); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(here, "out")
	argv := append(append(strings.Fields(cc)[1:], args...), "-o", out)
	for name, text := range sources {
		if err := os.WriteFile(filepath.Join(here, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	argv = append(argv, order(sources)...)
	cmd := exec.Command(strings.Fields(cc)[0], argv...)
	cmd.Dir = here
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", cc, argv, err, msg)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if compiled.done == nil {
		compiled.done = map[string][]byte{}
	}
	compiled.done[key] = b
	return b
}

// order gives the names of sources, target.c first.
func order(sources map[string]string) (names []string) {
	for _, n := range []string{"target.c", "second.c", "new.c", "new.s"} {
		if _, ok := sources[n]; ok {
			names = append(names, n)
		}
	}
	return names
}

// builds are the kinds of programs that can be patched.
var builds = []struct{ name, cc string }{
	{"fixed", "gcc -static -no-pie -fno-pie"},
	{"pie", "gcc -static-pie -fPIE"},
	{"cet", "gcc -static -no-pie -fno-pie -fcf-protection=full"},
	{"musl", "musl-gcc -static -no-pie -fno-pie"},
}

func testdata(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// targetFile compiles the program that is patched.
func targetFile(t testing.TB, cc string, args ...string) []byte {
	t.Helper()
	sources := map[string]string{"target.c": testdata(t, "target.c"), "second.c": testdata(t, "second.c")}
	return compile(t, cc, sources, append([]string{"-O2", "-Wall", "-Wextra", "-Werror", "-fpatchable-function-entry=5"}, args...)...)
}

// target is a running program that patches itself as it is told.
type target struct {
	t     testing.TB
	file  []byte
	state patch.State
	in    io.WriteCloser
	out   *bufio.Reader
	first patch.State // as it was at the start
}

// start runs a program natively.
func start(t testing.TB, file []byte) *target {
	t.Helper()
	f, err := os.CreateTemp(dir, "target")
	if err != nil {
		t.Fatal(err)
	}
	path := f.Name()
	if _, err := f.Write(file); err != nil {
		t.Fatal(err)
	}
	if err := f.Chmod(0o700); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	cmd.Stderr = os.Stderr
	g := &target{t: t, file: file}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	g.out = bufio.NewReader(out)
	if g.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.in.Close(); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("the target ended with %v", err)
		}
	})
	var main, spare uint64
	if _, err := fmt.Sscanf(g.line(), "%x %x", &main, &spare); err != nil {
		t.Fatal(err)
	}
	e := elfFile(t, file)
	g.state, _, err = AtRest(bytes.NewReader(file), int64(len(file)), "target")
	if err != nil {
		t.Fatal(err)
	}
	bias := main - symbolOf(t, e, "main").Value
	for i := range g.state.Text {
		g.state.Text[i].Start += bias - g.state.Bias
		g.state.Text[i].End += bias - g.state.Bias
	}
	g.state.Bias = bias
	g.state.SpareText = patch.Space{Start: spare, End: spare + abi.PatchSpace, Used: spare}
	g.state.SpareData = patch.Space{Start: spare + abi.PatchSpace, End: spare + 2*abi.PatchSpace, Used: spare + abi.PatchSpace}
	g.first = g.state
	return g
}

func elfFile(t testing.TB, b []byte) *elf.File {
	t.Helper()
	e, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// symbolOf reads a symbol by debug/elf, which knows nothing of our reader.
func symbolOf(t testing.TB, e *elf.File, name string) elf.Symbol {
	t.Helper()
	syms, err := e.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range syms {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no symbol %s", name)
	return elf.Symbol{}
}

func (g *target) tell(format string, a ...any) {
	g.t.Helper()
	if _, err := fmt.Fprintf(g.in, format+"\n", a...); err != nil {
		g.t.Fatal(err)
	}
}

func (g *target) line() string {
	g.t.Helper()
	s, err := g.out.ReadString('\n')
	if err != nil {
		g.t.Fatalf("the target is gone: %v", err)
	}
	return strings.TrimSuffix(s, "\n")
}

func (g *target) call(name string, x int64) (v int64) {
	g.t.Helper()
	g.tell("call %s %d", name, x)
	if _, err := fmt.Sscan(g.line(), &v); err != nil {
		g.t.Fatal(err)
	}
	return v
}

// ReadAt reads the running text.
func (g *target) ReadAt(b []byte, at int64) (int, error) {
	g.tell("peek %x %d", at, len(b))
	return io.ReadFull(g.out, b)
}

func (g *target) poke(at uint64, b []byte) { g.tell("poke %x %s", at, hex.EncodeToString(b)) }

func (g *target) open() *Program {
	g.t.Helper()
	p, err := Open(bytes.NewReader(g.file), int64(len(g.file)), g.state, g)
	if err != nil {
		g.t.Fatal(err)
	}
	return p
}

// plan makes a plan that must be made.
func (g *target) plan(b *Bundle) *Made {
	g.t.Helper()
	m, err := g.open().Plan(b)
	if err != nil {
		g.t.Fatal(err)
	}
	return m
}

// apply does what the engine does: it checks the plan by its own rules, stores it, and keeps what revert needs.
func (g *target) apply(p patch.Plan) patch.Applied {
	g.t.Helper()
	for _, part := range []struct {
		chunks []patch.Chunk
		space  *patch.Space
	}{{p.Text, &g.state.SpareText}, {p.Data, &g.state.SpareData}} {
		for _, c := range part.chunks {
			if c.Addr < part.space.Used || c.Addr+uint64(len(c.Bytes)) > part.space.End || len(c.Bytes) == 0 {
				g.t.Fatalf("chunk of %d bytes at %#x is outside of %#x", len(c.Bytes), c.Addr, *part.space)
			}
			g.poke(c.Addr, c.Bytes)
			part.space.Used = c.Addr + uint64(len(c.Bytes))
		}
	}
	last := uint64(0)
	for _, s := range p.Sites {
		got := make([]byte, len(s.Old))
		if _, err := g.ReadAt(got, int64(s.Addr)); err != nil {
			g.t.Fatal(err)
		}
		if s.Addr < last || len(s.Old) != len(s.New) || len(s.Old) == 0 || len(s.Old) > patch.MaxSite || !bytes.Equal(got, s.Old) {
			g.t.Fatalf("site %+v: %x runs there, the last one ended at %#x", s, got, last)
		}
		last = s.Addr + uint64(len(s.Old))
		g.poke(s.Addr, s.New)
	}
	g.state.Number++
	a := patch.Applied{Number: g.state.Number, Name: p.Name, Sites: p.Sites}
	g.state.Applied = append(g.state.Applied[:len(g.state.Applied):len(g.state.Applied)], a)
	return a
}

// reset takes all patches back and forgets them, so that the spare memory can be used again.
func (g *target) reset() {
	for i := len(g.state.Applied) - 1; i >= 0; i-- {
		for _, s := range g.state.Applied[i].Sites {
			g.poke(s.Addr, s.Old)
		}
	}
	g.state = g.first
}

// refused demands an error of one line that says all of want.
func refused(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("not refused; want an error with %q", want)
		return
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error is %q, without %q", err, w)
		}
	}
	if s := err.Error(); strings.ContainsAny(s, "\n\r") || len(s) > 1000 || !strings.Contains(s, ": ") {
		t.Errorf("the error is not one line with operation, object and remedy: %q", s)
	}
}
