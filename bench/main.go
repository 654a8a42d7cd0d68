// Command bench measures what SPECIFICATION.md promises of speed, each figure as a ratio between Cloister
// and the least C that does the same (c/floor.c, or the same program natively) in one run, and writes the
// table to bench/RESULTS.md and to standard output.
//
// Invariants:
//  1. Both sides of a ratio run the same guest bytes and are taken in turns, never one after the other.
//  2. Samples are taken by the same instructions on both sides: by the guest itself, or by two stamps of the TSC.
//  3. What could not be measured is a row that says why, and the exit status is 1.
//  4. Nothing runs in SCHED_FIFO unless -fifo asks for it; the guests of the floor and of Cloister end by
//     themselves, and a time limit on a housekeeping core ends what does not.
//
// Alternatives rejected: testing.B (one side at a time, no quantiles); absolute targets (they hold for one
// machine only).
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const statusBench = 1

// order of the sections.
var order = []string{"loop", "threads", "exits", "kicks", "futex", "start", "memory", "clock", "file", "calls", "ring", "patch"}

// bench is one run of all measurements.
type bench struct {
	cpu, fifo, rounds int
	clock             time.Duration
	root, dir, self   string
	hz                uint64
	started           time.Time
	loads             []string
	rows              []Row
	details           []string // Markdown below the table
}

func main() {
	var err error
	code := 0
	switch {
	case len(os.Args) > 1 && os.Args[1] == engineCommand:
		code, err = runEngine(os.Args[2:])
	case len(os.Args) > 1 && os.Args[1] == loadCommand:
		err = runLoad(os.Args[2:])
	case len(os.Args) == 2 && os.Args[1] == layoutCommand:
		_, err = os.Stdout.WriteString(layout(nil))
	case len(os.Args) > 1 && os.Args[1] == patchCommand:
		err = runPatch(os.Args[2:])
	default:
		code, err = runBench(os.Args[1:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		code = max(code, statusBench)
	}
	os.Exit(code)
}

func runBench(args []string) (code int, err error) {
	b := &bench{started: time.Now()}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.IntVar(&b.cpu, "cpu", runtime.NumCPU()-1, "host `CPU` that the guests run on")
	f.IntVar(&b.fifo, "fifo", 0, "measure exits and kicks with the vCPU's thread in SCHED_FIFO at this `priority`, too (root)")
	f.IntVar(&b.rounds, "rounds", 20, "how often each side has its turn")
	f.DurationVar(&b.clock, "clock-duration", 20*time.Second, "how long the guest's clock is compared with the host's")
	only := f.String("only", "", "measure these `SECTIONS` only: "+strings.Join(order, ","))
	out := f.String("out", "", "write the results to `FILE` (default: bench/RESULTS.md; with -only nowhere)")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0, nil
		}
		return statusBench, err
	}
	if b.rounds < 1 || b.fifo < 0 || b.fifo > 99 || b.cpu < 0 || b.cpu >= runtime.NumCPU() || runtime.NumCPU() < 2 {
		return statusBench, errors.New("want at least one round, a priority of 0 to 99, and a CPU that exists besides another one")
	}
	if err := b.prepare(); err != nil {
		return statusBench, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, unix.SIGINT, unix.SIGTERM)
	go func() {
		sig := <-interrupted
		if err := os.RemoveAll(b.dir); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		os.Exit(128 + int(sig.(unix.Signal)))
	}()
	sections := map[string]func() error{"loop": b.hotLoop, "threads": b.threads, "exits": b.exits, "kicks": b.kicks, "futex": b.futex, "start": b.start,
		"memory": b.memory, "clock": b.clocks, "file": b.file, "calls": b.ringCalls, "ring": b.rings, "patch": b.patches}
	failed := 0
	for _, name := range order {
		if *only != "" && !strings.Contains(","+*only+",", ","+name+",") {
			continue
		}
		fmt.Fprintf(os.Stderr, "bench: %s\n", name)
		if err := sections[name](); err != nil {
			b.rows = append(b.rows, Row{What: name, Limit: none, Why: err.Error()})
		}
		b.loads = append(b.loads, loadAverage())
	}
	for _, r := range b.rows {
		if r.Why != "" || r.Verdict() == missed {
			failed = statusBench
		}
	}
	return failed, b.publish(*out, *only == "")
}

// publish writes the results; before them, on standard output only, how the committed ratios compare.
func (b *bench) publish(out string, whole bool) error {
	kept := filepath.Join(b.root, "bench", "RESULTS.md")
	if err := b.compare(kept); err != nil {
		return err
	}
	text := b.document()
	fmt.Print(text)
	if out == "" && whole {
		out = kept
	}
	if out == "" {
		return nil
	}
	return os.WriteFile(out, []byte(text), 0o644)
}

func (b *bench) compare(name string) error {
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	old, err := ParseTable(f)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	before := map[string]Row{}
	for _, r := range old {
		before[r.What] = r
	}
	for _, r := range b.rows {
		if o, ok := before[r.What]; ok && o.Why == "" && r.Why == "" {
			fmt.Printf("before %8s now %8s  %s\n", format(o.Ratio()), format(r.Ratio()), r.What)
		}
	}
	fmt.Println()
	return nil
}
