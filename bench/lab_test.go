package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"golang.org/x/sys/unix"
)

// What package lab carries into its machines: programs that were built where there is a compiler.

// labCPU is an isolated CPU of the machines with four; labServer is a housekeeping one.
const labCPU, labServer = 2, 1

// labRounds is how often each side has its turn.
const labRounds = 6

// labTurn runs a command of the machine to its end.
func labTurn(t *testing.T, args ...string) []byte {
	t.Helper()
	name, err := exec.LookPath(args[0])
	if err != nil {
		t.Fatalf("%v: package lab carries it into its machines (lab/programs.go)", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, name, args[1:]...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		t.Fatalf("%q: %v\n%s%s", args, err, out.Bytes(), errs.Bytes())
	}
	return out.Bytes()
}

func labSamples(t *testing.T, args ...string) samples {
	t.Helper()
	s, err := decode(labTurn(t, args...))
	if err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return s
}

// labRows puts rows where the host finds them: what was printed in a lab machine is of the emulator's time.
func labRows(t *testing.T, name string, rows []Row) {
	t.Helper()
	var w strings.Builder
	if err := WriteTable(&w, rows); err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", w.String())
	if dir := os.Getenv("CLOISTER_LAB_OUT"); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(w.String()), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// A system call by the ring makes no exit, and takes at most half as long again as the C prototype's over the same guest.
// lab/testdata/ringcall.txtar holds the exits to the kernel's tracepoint.
func TestRingCallAgainstC(t *testing.T) {
	testenv.Need(t, testenv.HardwareKVM, testenv.Root, testenv.IsolatedCore, testenv.LabMachine, testenv.ParallelCPUs)
	entries, hz, err := guestCPUID()
	if err != nil {
		t.Fatal(err)
	}
	machine, report := filepath.Join(t.TempDir(), "cpuid"), filepath.Join(t.TempDir(), "report.json")
	if err := os.WriteFile(machine, otherMachine(entries), 0o644); err != nil {
		t.Fatal(err)
	}
	program, err := exec.LookPath("exits")
	if err != nil {
		t.Fatal(err)
	}
	us := 1e6 / float64(hz)
	var rows []Row
	for _, c := range ringed {
		guest := []string{program, fmt.Sprint(c.nr), fmt.Sprint(calls), "sealed"}
		var p pair
		exits := 0.0
		for range labRounds {
			p.ours = append(p.ours, labSamples(t, append([]string{"cloister", "run", "--quiet", "--cpu", fmt.Sprint(labCPU), "--syscalls=ring", "--report", report, "--"}, guest...)...)...)
			n, err := sealedSyscalls(report)
			if err != nil {
				t.Fatal(err)
			}
			exits += n
			p.floor = append(p.floor, labSamples(t, append([]string{"floor", "-c", fmt.Sprint(labCPU), "-l", machine, "-r", fmt.Sprint(labServer), "run"}, guest...)...)...)
		}
		what := "lab: " + c.what
		rows = append(rows,
			Row{What: what + ", median", Ours: p.ours.quantile(0.5) * us, Base: p.floor.quantile(0.5) * us, Unit: "µs", Limit: none, N: len(p.ours)},
			// The emulator's threads share the host's CPUs with others, by whom all but the best is delayed.
			Row{What: what + ", best", Ours: p.ours.quantile(0) * us, Base: p.floor.quantile(0) * us, Unit: "µs", Limit: ringLimit, N: len(p.ours)},
			Row{What: what + ", p99", Ours: p.ours.quantile(0.99) * us, Base: p.floor.quantile(0.99) * us, Unit: "µs", Limit: none, N: len(p.ours)},
			Row{What: what + ", exits", Ours: exits, Unit: "exits", Limit: 0, N: len(p.ours)})
	}
	labRows(t, "ring-calls.md", rows)
	for _, r := range rows {
		// With -short, as CI runs it, no time is held: the emulator's best call was 1.2 to 1.52 of C's for getrusage, as the host had other work or not.
		if r.Verdict() == missed && (r.Unit == "exits" || !testing.Short()) {
			t.Errorf("%s: %s against %s %s, want at most %v", r.What, format(r.Ours), format(r.Base), r.Unit, r.Limit)
		}
	}
}

// Start-up, system calls and hot loops beside TinyKVM, with the same binaries on the same core. It needs a TinyKVM that somebody has built:
// make lab BACKEND=svm-parallel LAB_PACKAGES=./bench RUN=TestBesideTinyKVM LABFLAGS='-carry simplekvm=tinykvm'.
func TestBesideTinyKVM(t *testing.T) {
	testenv.Need(t, testenv.HardwareKVM, testenv.Root, testenv.IsolatedCore, testenv.LabMachine, testenv.Tool("tinykvm"))
	_, hz, err := guestCPUID()
	if err != nil {
		t.Fatal(err)
	}
	cpu := fmt.Sprint(labCPU)
	path := func(name string) string {
		p, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	sides := [2][]string{{"cloister", "run", "--quiet", "--cpu", cpu, "--"}, {"taskset", "-c", cpu, "tinykvm"}}
	run := func(side int, args ...string) []byte {
		return labTurn(t, append(append([]string{}, sides[side]...), args...)...)
	}
	took := map[string]*pair{}
	var names []string
	add := func(name string, side int, s ...float64) {
		p := took[name]
		if p == nil {
			p = new(pair)
			took[name] = p
			names = append(names, name)
		}
		if side == 0 {
			p.ours = append(p.ours, s...)
		} else {
			p.floor = append(p.floor, s...)
		}
	}
	for range labRounds {
		for side := range sides {
			at := time.Now()
			if out := run(side, path("hello")); !bytes.Contains(out, []byte("hello")) {
				t.Fatalf("hello: %q", out)
			}
			add("hello, start to exit, ms", side, float64(time.Since(at).Microseconds())/1e3)
			var s samples
			for line := range strings.Lines(string(run(side, path("exits"), fmt.Sprint(unix.SYS_GETPID), fmt.Sprint(calls), "text"))) {
				if cycles, err := strconv.ParseFloat(strings.TrimSpace(line), 64); err == nil { // others are TinyKVM's own
					s = append(s, cycles*1e6/float64(hz))
				}
			}
			if len(s) != calls {
				t.Fatalf("exits, side %d: %d samples, want %d", side, len(s), calls)
			}
			add("getpid, µs", side, s...)
			for line := range strings.Lines(string(run(side, path("hot")))) {
				var name string
				var ns float64
				if n, _ := fmt.Sscan(line, &name, &ns); n == 2 && (name == "xorshift" || name == "matmul" || name == "chase") {
					add("hot loop "+name+", µs", side, ns/1e3)
				}
			}
		}
	}
	var rows []Row
	for _, n := range names {
		p := took[n]
		if len(p.ours) == 0 || len(p.floor) == 0 {
			t.Errorf("%s: %d samples of Cloister's, %d of TinyKVM's", n, len(p.ours), len(p.floor))
			continue
		}
		i := strings.LastIndex(n, ", ")
		what, unit := n[:i], n[i+2:]
		for _, q := range []struct {
			name string
			at   float64
		}{{"best", 0}, {"median", 0.5}} {
			rows = append(rows, Row{What: "lab, floor: TinyKVM: " + what + ", " + q.name, Ours: p.ours.quantile(q.at), Base: p.floor.quantile(q.at), Unit: unit, Limit: none, N: len(p.ours)})
		}
	}
	labRows(t, "tinykvm.md", rows)
}
