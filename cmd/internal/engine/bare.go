package engine

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/guest/elf"
	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"golang.org/x/sys/unix"
)

// Bare is a run without a virtual machine, up to the point where there would be one: the command line is
// checked, the program is open and the core is claimed, by the same code as for a VM. What it says of the
// run is the user's word.
type Bare struct {
	Name      string
	Program   string   // its path as found, or the name of a built-in one
	ExecFn    string   // what execve(2) is to get
	Args      []string // with the program's name
	Env       []string
	ELF       *os.File
	BuildID   []byte
	BuiltIn   bool
	CPU       int                              // -1: no core of its own
	FIFO      int                              // 0: no real-time priority
	Place     func(order int, name string) int // the core that a thread shall own, by its number (0: the first one) and its name; -1: none
	Named     bool                             // Place has rules about names
	Owned     []int                            // all cores that the run owns
	Lock      bool                             // its memory
	Seal      string
	Budget    string
	OnBreak   string
	Report    string
	Metrics   *os.File // listening socket of --metrics; nil without it
	MetricsAt string   // the address that was bound
	Quiet     bool
	Timings   bool
	For       time.Duration // 0: no limit
	VMDir     string        // the run's directory
	Keep      []int         // CPUs of everything else
	Started   time.Time
	Phases    []breaks.Timing
	NoEffect  []string // options that were given and mean nothing natively

	tscHz   uint64
	release func()
}

// Claim reads the command line of `cloister run --bare` and claims what it names. The error is one line, the
// status is the run's. Release gives back what was claimed.
func Claim(args []string) (b *Bare, status int, err error) {
	started := time.Now()
	o, err := parseRun(args)
	if err != nil {
		return nil, session.StatusCloister, err
	}
	if o.profile != "" || o.trace != "" {
		return nil, session.StatusCloister, errors.New("--pprof and --trace need the sites and moments of breaks, which a native run has not: leave them out, or leave out --bare")
	}
	e := &engine{o: o, started: started, last: started, guest: -1, ledgerFD: -1}
	if status, err := e.openProgram(); err != nil {
		return nil, status, err
	}
	st, err := e.elf.Stat()
	if err != nil {
		return nil, session.StatusCloister, errors.Join(err, e.elf.Close())
	}
	im, err := elf.Load(e.elf, st.Size())
	if err != nil { // what a VM refuses cannot be compared with one
		status := session.StatusCloister
		if f := new(elf.FormatError); errors.As(err, &f) {
			status = session.StatusNotRun
		}
		return nil, status, errors.Join(fmt.Errorf("%s: %w", o.program, err), e.elf.Close())
	}
	if err := e.claim(); err != nil {
		e.release()
		return nil, session.StatusCloister, errors.Join(err, e.elf.Close())
	}
	b = &Bare{Name: o.name, Program: o.program, ExecFn: e.execFn, Args: o.args, Env: environ(), ELF: e.elf, Metrics: e.metrics, MetricsAt: o.metrics, VMDir: e.vmDir, BuildID: im.BuildID, CPU: o.cpu, FIFO: o.fifo, Place: o.placeOf, Named: slices.ContainsFunc(o.place, func(r rule) bool { return r.order < 0 }), Owned: o.dedicated(), Lock: !o.noLock,
		Seal: o.seal, Budget: o.budget, OnBreak: o.onBreak, Report: o.report, Quiet: o.quiet, Timings: o.timings, BuiltIn: strings.HasPrefix(o.program, "@"),
		For: o.limit, Keep: e.keep, Started: started, Phases: e.phases, tscHz: e.tscHz, release: e.release}
	for option, given := range map[string]bool{"--memory": o.memory != defaultMemory, "--hugepages": o.hugepages, "--ro and --rw": len(o.mounts) > 0,
		"--net": o.net != "none", "--patchable": o.spare != 0, "--patch-log": o.patchLog != "", "--own-clock": o.ownClock, "--one-process": o.oneProcess} {
		if given {
			b.NoEffect = append(b.NoEffect, option)
		}
	}
	slices.Sort(b.NoEffect)
	return b, 0, nil
}

// Release gives back the core and the name.
func (b *Bare) Release() { b.release() }

// TSCHz is the frequency of the TSC. It is measured if KVM is not there to be asked.
func (b *Bare) TSCHz() (uint64, error) {
	if b.tscHz != 0 {
		return b.tscHz, nil
	}
	hz, err := tscHz()
	if err != nil {
		hz, err = calibrate()
	}
	b.tscHz = hz
	return hz, err
}

// calibration is how long the TSC is held against the clock: an error of 100 ns in reading either end is
// 1 millionth of it.
const calibration = 100 * time.Millisecond

// calibrate measures the TSC against CLOCK_MONOTONIC_RAW, which the kernel does not slew.
func calibrate() (uint64, error) {
	read := func() (tsc, ns uint64, err error) {
		best := ^uint64(0)
		for range 20 { // the narrowest bracket was not interrupted
			var ts unix.Timespec
			a := kvm.TSC()
			if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts); err != nil {
				return 0, 0, fmt.Errorf("measure the TSC: clock_gettime: %w", err)
			}
			if d := kvm.TSC() - a; d < best {
				best, tsc, ns = d, a+d/2, uint64(ts.Nano())
			}
		}
		return tsc, ns, nil
	}
	t0, n0, err := read()
	if err != nil {
		return 0, err
	}
	time.Sleep(calibration)
	t1, n1, err := read()
	if err != nil {
		return 0, err
	}
	if n1 <= n0 || t1 <= t0 {
		return 0, errors.New("measure the TSC: it stands still: Cloister needs a TSC of known frequency")
	}
	return uint64(float64(t1-t0) / float64(n1-n0) * 1e9), nil
}
