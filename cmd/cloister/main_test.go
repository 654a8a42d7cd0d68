package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"golang.org/x/sys/unix"
)

// These tests run the built binary as a user does: its statuses, its streams, its files. They look inside
// nothing, but for the tables of what must happen (guest/workload) and the form of reports (isolation/breaks).

// shared holds what is built once for all tests.
var shared string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "cloister-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	shared = dir
	// Whoever starts tests in the background (nohup, a shell's &) has them ignored, and a program inherits that; a handler it
	// does not inherit.
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGQUIT, unix.SIGHUP, unix.SIGTERM} {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

var build = sync.OnceValues(func() (string, error) {
	if os.Getenv(testenv.LabMachineVar) != "" {
		return exec.LookPath("cloister") // a machine of the lab has the binary, and no compiler
	}
	dir := filepath.Join(shared, "bin") // the engine finds the monitor beside itself
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	c := exec.Command("go", "build", "-buildvcs=false", "-o", dir+"/", "../...")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build cloister: %w\n%s", err, out)
	}
	return filepath.Join(dir, "cloister"), nil
})

// limit ends whatever a test started and forgot.
const limit = 90 * time.Second

// box is a place to run cloister in: a run directory and a working directory of its own.
type box struct {
	t    *testing.T
	bin  string
	runs string   // CLOISTER_RUN_DIR
	work string   // working directory of everything that is started
	env  []string // of everything that is started, besides CLOISTER_RUN_DIR
}

// newBox needs KVM. When the test ends it looks for what was left behind.
func newBox(t *testing.T, needs ...testenv.Requirement) *box {
	t.Helper()
	testenv.Need(t, append(needs, testenv.KVM)...)
	return newBareBox(t)
}

// commandUnderTest builds it, or finds it in a machine of the lab.
func commandUnderTest(t *testing.T) string {
	t.Helper()
	if os.Getenv(testenv.LabMachineVar) == "" {
		testenv.Need(t, testenv.Tool("go"))
	}
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// newBareBox is for what must work, or fail well, on any machine.
func newBareBox(t *testing.T) *box {
	t.Helper()
	b := &box{t: t, bin: commandUnderTest(t), runs: t.TempDir(), work: t.TempDir(), env: []string{"PATH=" + os.Getenv("PATH"), "HOME=/nowhere", "LC_ALL=C"}}
	t.Cleanup(b.noLeaks)
	return b
}

// result is how a process ended.
type result struct {
	out, err string
	status   int // 128+n for signal n
}

// process describes one to start; the zero stdin is /dev/null, as os/exec has it.
type process struct {
	argv  []string
	argv0 string
	stdin io.Reader
	out   io.Writer // nil: into result.out
	extra []string  // more environment
}

func (b *box) command(ctx context.Context, p process) *exec.Cmd {
	c := exec.CommandContext(ctx, p.argv[0], p.argv[1:]...)
	if p.argv0 != "" {
		c.Args[0] = p.argv0
	}
	c.Dir, c.Stdin = b.work, p.stdin
	c.Env = append(append(append([]string{}, b.env...), "CLOISTER_RUN_DIR="+b.runs), p.extra...)
	c.WaitDelay = 5 * time.Second
	return c
}

// do runs a process to its end.
func (b *box) do(p process) result {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c := b.command(ctx, p)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if p.out != nil {
		c.Stdout = p.out
	}
	err := c.Run()
	if ctx.Err() != nil {
		b.t.Fatalf("%q did not end within %v\n%s", p.argv, limit, tail(errs.String()))
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		b.t.Fatalf("%q: %v", p.argv, err)
	}
	r := result{out.String(), errs.String(), statusOf(c.ProcessState)}
	if strings.Contains(r.err, "goroutine ") || strings.Contains(r.err, "panic:") && p.argv[0] == b.bin && !strings.Contains(r.err, "thread 'main'") {
		b.t.Errorf("%q: a Go stack trace:\n%s", p.argv, tail(r.err))
	}
	return r
}

// background is a cloister that runs beside the test. It has a pipe as its stdin, which stays open.
type background struct {
	b        *box
	cmd      *exec.Cmd
	ctx      context.Context
	cancel   context.CancelFunc
	out, err output
}

// output is what a process has written so far; it may be read while that goes on.
type output struct {
	mu   sync.Mutex
	text []byte
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, b...)
	return len(b), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.text)
}

func (b *box) started(args ...string) *background {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	p := &background{b: b, ctx: ctx, cancel: cancel}
	p.cmd = b.command(ctx, process{argv: append([]string{b.bin}, args...)})
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.err
	hold, err := p.cmd.StdinPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		cancel()
		hold.Close()
	})
	return p
}

// says waits until the program has written text.
func (p *background) says(text string) {
	p.b.t.Helper()
	for ; !strings.Contains(p.out.String(), text); time.Sleep(5 * time.Millisecond) {
		if p.ctx.Err() != nil {
			p.b.t.Fatalf("%q does not say %q within %v; %s", p.cmd.Args, text, limit, tail(p.err.String()))
		}
	}
}

// running waits until the guest has run for a tenth of a second.
func (p *background) running() {
	p.b.t.Helper()
	for range 200 {
		var list []struct {
			Engine int    `json:"engine_pid"`
			Wall   uint64 `json:"wall_ns"`
		}
		if r := p.b.cloister("ps", "--json"); json.Unmarshal([]byte(r.out), &list) != nil {
			p.b.t.Fatalf("ps: %+v", r)
		}
		for _, vm := range list {
			if vm.Engine == p.cmd.Process.Pid && vm.Wall > 100e6 {
				return
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	p.b.t.Fatalf("the guest does not run; %s", tail(p.err.String()))
}

func (p *background) wait() result {
	p.b.t.Helper()
	defer p.cancel()
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || p.ctx.Err() != nil {
		p.b.t.Fatalf("%q: %v, %v\n%s", p.cmd.Args, err, p.ctx.Err(), tail(p.err.String()))
	}
	return result{p.out.String(), p.err.String(), statusOf(p.cmd.ProcessState)}
}

// lastCPU is the last one that this process may use.
func lastCPU(t *testing.T) string {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	last := -1
	for i := range 1024 {
		if set.IsSet(i) {
			last = i
		}
	}
	return fmt.Sprint(last)
}

func statusOf(s *os.ProcessState) int {
	if w, ok := s.Sys().(interface {
		Signaled() bool
		Signal() unix.Signal
	}); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return s.ExitCode()
}

// cloister runs the command line.
func (b *box) cloister(args ...string) result {
	b.t.Helper()
	return b.do(process{argv: append([]string{b.bin}, args...)})
}

// guest is the command line that runs argv as a guest that sees the working directory.
func (b *box) guest(argv ...string) []string {
	return append([]string{b.bin, "run", "--quiet", "--rw", b.work, "--ro", "/etc", "--"}, argv...)
}

// same runs a process natively and as a guest, and compares all that a user sees.
func (b *box) same(p process, input func() io.Reader) result {
	b.t.Helper()
	native, guest := p, p
	guest.argv = b.guest(p.argv...)
	if input != nil {
		native.stdin, guest.stdin = input(), input()
	}
	n, g := b.do(native), b.do(guest)
	n.err, g.err = threadID.ReplaceAllString(n.err, "$1"), threadID.ReplaceAllString(g.err, "$1")
	b.compare(p.argv, n, g)
	return n
}

// threadID is what differs between two native runs of a Rust program that panics.
var threadID = regexp.MustCompile(`(thread '[^']*') \(\d+\)`)

func (b *box) compare(argv []string, native, guest result) {
	b.t.Helper()
	if native.status != guest.status {
		b.t.Errorf("%.200q: status %d, natively %d\n%s", argv, guest.status, native.status, tail(guest.err))
	}
	for _, s := range []struct{ name, n, g string }{{"stdout", native.out, guest.out}, {"stderr", native.err, guest.err}} {
		if s.n != s.g {
			i := 0
			for i < len(s.n) && i < len(s.g) && s.n[i] == s.g[i] {
				i++
			}
			from := max(0, i-60)
			b.t.Errorf("%.200q: %s differs at byte %d (of %d, natively %d)\nnatively: %.200q\nguest:    %.200q", argv, s.name, i, len(s.g), len(s.n), s.n[from:], s.g[from:])
		}
	}
}

func tail(s string) string {
	if len(s) > 2000 {
		return "…" + s[len(s)-2000:]
	}
	return s
}

// noLeaks fails the test if a VM's directory or a process of this box is still there.
func (b *box) noLeaks() {
	var left []string
	for range 100 { // a monitor whose engine was killed needs a moment
		if left = b.left(); len(left) == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	b.t.Errorf("left behind: %q", left)
}

func (b *box) left() (list []string) {
	vms, err := filepath.Glob(filepath.Join(b.runs, "vm", "*"))
	if err != nil {
		b.t.Fatal(err)
	}
	list = append(list, vms...)
	return append(list, b.processes()...)
}

// processes lists those whose environment names this box.
func (b *box) processes() (list []string) {
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		b.t.Fatal(err)
	}
	mark := []byte("CLOISTER_RUN_DIR=" + b.runs + "\x00")
	for _, p := range all {
		env, err := os.ReadFile(p + "/environ")
		if err != nil || !bytes.Contains(append(env, 0), mark) {
			continue // gone, or not ours to read
		}
		name, err := os.ReadFile(p + "/cmdline")
		if err != nil || len(name) == 0 {
			continue // it is ending
		}
		list = append(list, filepath.Base(p)+" "+strings.ReplaceAll(string(name), "\x00", " "))
	}
	return list
}

// file writes a file into the working directory and gives its path.
func (b *box) file(name, content string) string {
	b.t.Helper()
	path := filepath.Join(b.work, name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		b.t.Fatal(err)
	}
	return path
}

// copyIn puts a built program into the working directory, where the guest sees it as the host does.
func (b *box) copyIn(from string) string {
	b.t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		b.t.Fatal(err)
	}
	to := filepath.Join(b.work, filepath.Base(from))
	if err := os.WriteFile(to, data, 0o755); err != nil {
		b.t.Fatal(err)
	}
	return to
}
