package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
)

// A gate is never green because nobody looked: without its monitor a run with a budget does not begin.
func TestGateNeedsItsMonitor(t *testing.T) {
	b := newBox(t)
	b.alone(t)
	for _, flags := range [][]string{{"--budget", "syscall=0"}, {"--report", b.work + "/r"}, {"--trace", b.work + "/t"}} {
		r := b.cloister(append(append([]string{"run", "--quiet"}, flags...), "@spin", "--count", "1", "--seal")...)
		if r.status != session.StatusCloister || r.out != "" || !strings.Contains(r.err, "install it beside cloister") || strings.Count(r.err, "\n") != 1 {
			t.Errorf("%v: %+v", flags, r)
		}
	}
	if r := b.cloister("run", "--quiet", "@spin", "--count", "1"); r.status != 0 {
		t.Errorf("without any of them: %+v", r)
	}
}

// alone puts the engine's program where no monitor is: neither beside it nor in PATH, where a machine on which
// Cloister is installed has one.
func (b *box) alone(t *testing.T) {
	t.Helper()
	code, err := os.ReadFile(b.bin)
	if err != nil {
		t.Fatal(err)
	}
	b.bin = filepath.Join(t.TempDir(), "cloister")
	b.env[0] = "PATH=" + t.TempDir()
	if err := os.WriteFile(b.bin, code, 0o755); err != nil {
		t.Fatal(err)
	}
}

// Nor when the monitor is killed, or stopped and the user does not wait for it.
func TestGateLosesItsMonitor(t *testing.T) {
	for name, sig := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "stopped": syscall.SIGSTOP} {
		t.Run(name, func(t *testing.T) {
			o := newObserved(t)
			v := o.run("gate", "--budget", "syscall=0", "--report", filepath.Join(t.TempDir(), "r"), "@spin", "--seal")
			monitor := *o.ps()["gate"].Monitor
			if err := syscall.Kill(monitor, sig); err != nil {
				t.Fatal(err)
			}
			defer o.kill(monitor) // the stopped one
			if sig == syscall.SIGSTOP {
				if s := o.ps()["gate"]; s == nil {
					t.Error("a stopped monitor hides its VM from ps")
				}
			}
			for range 2 { // the first ends the guest, the second the waiting
				if err := v.cmd.Process.Signal(syscall.SIGTERM); err != nil {
					break // it has ended
				}
				time.Sleep(500 * time.Millisecond)
			}
			if status := v.ended(); status != session.StatusCloister {
				t.Errorf("status %d, want %d: %s", status, session.StatusCloister, v.err)
			}
		})
	}
}

// A burst is not forgiven because the average over the whole run is within the limit.
func TestBurstBreaksTheRate(t *testing.T) {
	b := newBox(t)
	prog := compile(t, "gcc", "burst", "burst.c", "-static", "-O1")
	r := b.cloister("run", "--quiet", "--seal", "start", "--budget", "syscall<=20/s", "--report", b.work+"/r", "--", prog)
	if r.status != session.StatusBudget {
		t.Errorf("%+v", r)
	}
	rep := b.report(b.work+"/r", r)
	if rep.Budget == nil || rep.Budget.OK || len(rep.Budget.BrokenBy) == 0 || !strings.Contains(rep.Budget.BrokenBy[0], "while it ran") {
		t.Errorf("%+v", rep.Budget)
	}
}

// Signals that ask for an end with a dump end the run, without one of Go's.
func TestQuitLeavesNoTrace(t *testing.T) {
	for sig, want := range map[syscall.Signal]int{syscall.SIGQUIT: 131, syscall.SIGABRT: 134} {
		o := newObserved(t)
		v := o.run("quit", "--quiet", "@spin")
		if err := v.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if status := v.ended(); status != want || strings.Contains(v.err.String(), "goroutine ") {
			t.Errorf("%v: status %d, want %d: %s", sig, status, want, v.err)
		}
	}
}

// An option that was given and is empty is mostly an unset variable.
func TestEmptyOptionsAreRefused(t *testing.T) {
	b := newBareBox(t)
	for _, o := range []string{"--budget=", "--report=", "--pprof=", "--trace=", "--metrics=", "--for=0", "--fifo=0", "--name="} {
		if r := b.cloister("run", o, "@spin", "--count", "1"); r.status != session.StatusCloister || strings.Count(r.err, "\n") != 1 {
			t.Errorf("%s: %+v", o, r)
		}
	}
	if r := b.cloister("run", "--on-break", "kill", "@spin", "--count", "1"); r.status != session.StatusCloister {
		t.Errorf("--on-break without a budget: %+v", r)
	}
}
