package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"golang.org/x/sys/unix"
)

func sealer(t *testing.T) string {
	return compile(t, "gcc", "seal", "seal.c", "-static", "-O1")
}

// A sealed loop leaves the guest zero times: no return of KVM_RUN, no page fault, whatever it computes.
func TestSealedLoopIsUndisturbed(t *testing.T) {
	b := newBox(t)
	for _, what := range [][]string{{"5", "compute"}, {"5", "clock"}} {
		r, rep := b.reported(append([]string{"--budget", "user=0,page-fault=0,syscall=0,max=0", "--", sealer(t)}, what...)...)
		if r.status != 0 || r.out != "done\n" {
			t.Fatalf("%q: %+v", what, r)
		}
		s := rep.VCPUs[0].Sealed
		for cause, c := range s.ByCause {
			if c.Count != 0 && cause != breaks.HostInterrupt.String() {
				t.Errorf("%q: sealed, %d of %s", what, c.Count, cause)
			}
		}
		if rep.VCPUs[0].SealedNS == 0 || rep.VCPUs[0].Seals != 1 || rep.VCPUs[0].Open.Total == 0 {
			t.Errorf("%q: %+v", what, rep.VCPUs[0])
		}
		if rep.Budget == nil || !rep.Budget.OK || rep.Budget.State != breaks.Kept || len(rep.Budget.Clauses) != 4 {
			t.Errorf("%q: budget %+v", what, rep.Budget)
		}
	}
}

// What happens before the seal, after it and between two is not held against the budget; what happens within is,
// to the last break.
func TestBudgetCountsOnlyTheSealed(t *testing.T) {
	b := newBox(t)
	for _, c := range []struct {
		budget string
		what   []string
		status int
	}{
		{"syscall=0", []string{"3", "compute"}, 0},
		{"syscall=0", []string{"4", "reseal"}, 0},
		{"syscall=0", []string{"1", "write"}, 124},
		{"syscall<=3", []string{"3", "write"}, 0},
		{"syscall<=2", []string{"3", "write"}, 124},
		{"syscall=4", []string{"2", "write", "getppid"}, 0},
		{"syscall=3", []string{"2", "write", "getppid"}, 124},
		{"page-fault=0", []string{"2", "map"}, 124},
		{"hlt=0,exceptions=0,max<=10s", []string{"2", "write"}, 0},
		{"max<=1ns", []string{"1", "write"}, 124},
		{"lost<=1ns", []string{"1", "write"}, 124},
		{"syscall<=1/s", []string{"5", "write"}, 124},
		{"syscall<=100000/s", []string{"5", "write"}, 0},
	} {
		t.Run(c.budget+" "+strings.Join(c.what, " "), func(t *testing.T) {
			b.t = t
			r, rep := b.reported(append([]string{"--budget", c.budget, "--", sealer(t)}, c.what...)...)
			if r.status != c.status {
				t.Errorf("status %d, want %d; %s", r.status, c.status, r.err)
			}
			if !strings.HasSuffix(r.out, "done\n") {
				t.Errorf("the program did not end by itself: %q", r.out)
			}
			if ok := c.status == 0; rep.Budget.OK != ok || (len(rep.Budget.BrokenBy) == 0) != ok || rep.Budget.Spec != c.budget {
				t.Errorf("%+v", rep.Budget)
			}
		})
	}
	b.t = t
	r := b.cloister("run", "--budget", "syscall=0", "--", sealer(t), "1", "write")
	if r.status != 124 || !strings.Contains(r.err, "BROKEN") || !strings.Contains(r.err, "syscall=0") {
		t.Errorf("%+v", r)
	}
}

// The four ways to act on a broken budget. The program lingers after its sin, so that the monitor is in time.
func TestOnBreak(t *testing.T) {
	b := newBox(t)
	prog := sealer(t)
	run := func(action string, what ...string) (result, *breaks.Report) {
		return b.reported(append([]string{"--budget", "syscall=0", "--on-break", action, "--", prog, "1"}, what...)...)
	}
	r, rep := run("report", "write", "linger")
	if r.status != 124 || r.out != "xdone\n" || rep.Exit.Signal != 0 {
		t.Errorf("report: %+v, %+v", r, rep.Exit)
	}
	for action, signal := range map[string]unix.Signal{"stop": 0, "kill": unix.SIGKILL, "signal=USR1": unix.SIGUSR1, "signal=15": unix.SIGTERM, "signal=sigint": unix.SIGINT} {
		start := time.Now()
		r, rep := run(action, "write", "spin")
		if r.status != 124 || r.out != "x" || rep.Exit.Signal != int(signal) || !strings.Contains(rep.Exit.Reason, "budget broken: syscall=0") {
			t.Errorf("%s: %+v, %+v", action, r, rep.Exit)
		}
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("%s: took %v", action, d)
		}
	}
}

// A budget that nobody tested is not kept: a CI job must not be green because the program forgot to seal.
func TestBudgetNeverSealed(t *testing.T) {
	b := newBox(t)
	r, rep := b.reported("--budget", "total=0", "--", sealer(t), "1", "never")
	if r.status != 125 || r.out != "done\n" || rep.Budget.State != breaks.Untested || rep.Budget.OK {
		t.Errorf("%+v, %+v", r, rep.Budget)
	}
	if strings.Count(r.err, "\n") != 1 || !strings.Contains(r.err, "never sealed") || !strings.Contains(r.err, "--seal start") {
		t.Errorf("says %q", r.err)
	}
	// A program that failed keeps its own status: it is red already, and says more.
	if r, _ := b.reported("--budget", "total=0", "@fault:ud"); r.status != 132 {
		t.Errorf("%+v", r)
	}
}

func TestSealPolicies(t *testing.T) {
	b := newBox(t)
	prog := compile(t, "gcc", "c-glibc", "hello.c", "-static", "-O1", "-no-pie")
	seal := func(args ...string) (result, breaks.VCPUReport) {
		r, rep := b.reported(append(args, "--", prog)...)
		if r.status != 0 || !strings.Contains(r.out, "atexit") {
			t.Fatalf("%q: %+v", args, r)
		}
		return r, rep.VCPUs[0]
	}
	_, call := seal("--seal", "call")
	if call.Seals != 0 || call.Sealed.Total != 0 || call.SealedNS != 0 {
		t.Errorf("call: %+v", call)
	}
	_, start := seal("--seal", "start")
	// The program's faults on its own image are gone as well: it was touched before.
	if start.Seals != 1 || start.Open.ByCause["syscall"].Count != 0 || start.Sealed.ByCause["syscall"].Count != call.Open.ByCause["syscall"].Count {
		t.Errorf("start: %+v", start)
	}
	_, first := seal("--seal", "first-write")
	if first.Seals != 1 || first.Open.ByCause["syscall"].Count == 0 || first.Sealed.ByCause["syscall"].Count == 0 ||
		first.Open.ByCause["syscall"].Count+first.Sealed.ByCause["syscall"].Count != call.Open.ByCause["syscall"].Count {
		t.Errorf("first-write: %+v", first)
	}
	if r, _ := b.reported("--seal", "start", "--budget", "syscall=0", "--", prog); r.status != 124 {
		t.Errorf("sealed from the start, with system calls: status %d", r.status)
	}
	if r, _ := b.reported("--seal", "start", "--budget", "syscall=0", "--for", "3s", "@spin"); r.status != 0 { // an emulated machine takes a second to begin
		t.Errorf("a sealed @spin: %+v", r)
	}
}

// Each way to end a run has its status, a report, and books that close.
func TestEnds(t *testing.T) {
	b := newBox(t)
	prog := sealer(t)
	start := time.Now()
	r, rep := b.reported("--for", "400ms", "--", prog, "1", "spin")
	if d := time.Since(start); r.status != 0 || d < 400*time.Millisecond || d > 20*time.Second || !strings.Contains(rep.Exit.Reason, "--for 400ms") {
		t.Errorf("--for: %+v after %v, %+v", r, d, rep.Exit)
	}
	if w := rep.VCPUs[0].WallNS; w < 300e6 || w > 20e9 {
		t.Errorf("--for 400ms: wall %d ns", w)
	}
	for _, c := range []struct {
		sig    unix.Signal
		status int
		argv   []string
	}{
		{unix.SIGINT, 130, []string{prog, "1", "spin"}},
		{unix.SIGTERM, 143, []string{prog, "1", "spin"}},
		{unix.SIGHUP, 129, []string{prog, "1", "spin"}},
		{unix.SIGINT, 130, []string{"busybox", "cat"}}, // it waits in read(2) of a pipe
		{unix.SIGTERM, 143, []string{"busybox", "sleep", "100"}},
		{unix.SIGTERM, 143, []string{"@spin"}},
	} {
		name := filepath.Join(b.work, "report.json")
		if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		p := b.started(append([]string{"run", "--quiet", "--report", name, "--"}, c.argv...)...)
		p.running()
		if err := p.cmd.Process.Signal(c.sig); err != nil {
			t.Fatal(err)
		}
		r := p.wait()
		if r.status != c.status || r.err != "" {
			t.Errorf("%v to %q: %+v", c.sig, c.argv, r)
		}
		if rep := b.report(name, r); rep.Exit.Signal != int(c.sig) || rep.VCPUs[0].WallNS == 0 {
			t.Errorf("%v to %q: %+v", c.sig, c.argv, rep.Exit)
		}
	}
}

// On a core of its own: the same ends, the lease is held and given back.
func TestOwnCore(t *testing.T) {
	b := newBox(t, testenv.MultiCPU)
	cpu := lastCPU(t)
	r, rep := b.reported("--cpu", cpu, "--for", "2s", "@jitter")
	if r.status != 0 || rep.VCPUs[0].CPU == nil || len(rep.GapRecords) != 1 {
		t.Fatalf("%+v, %+v", r, rep.VCPUs[0])
	}
	if rep.VCPUs[0].Sealed.ByCause["syscall"].Count != 0 || rep.VCPUs[0].SealedNS == 0 {
		t.Errorf("%+v", rep.VCPUs[0].Sealed)
	}
	p := b.started("run", "--quiet", "--cpu", cpu, "--for", "60s", "@spin")
	p.running()
	if r := b.cloister("run", "--cpu", cpu, "@exits"); r.status != 125 || strings.Count(r.err, "\n") != 1 || !strings.Contains(r.err, "in use by VM spin-") {
		t.Errorf("the core is taken: %+v", r)
	}
	if err := p.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if r := p.wait(); r.status != 143 {
		t.Errorf("%+v", r)
	}
	if r := b.cloister("run", "--quiet", "--cpu", cpu, "@exits", "--count", "1"); r.status != 0 {
		t.Errorf("the core was not given back: %+v", r)
	}
}
