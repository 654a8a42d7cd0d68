package main

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"time"

	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/isolation/cores"
	"github.com/cloister-vmm/cloister/vmm"
	"golang.org/x/sys/unix"
)

// The hidden subcommands: bench starts itself again, so that what is timed is a process of its own.
const (
	engineCommand = "engine" // owns a VM made of packages vmm and vcpu, with the load inside if asked
	loadCommand   = "load"   // the same load alone, beside the floor
	layoutCommand = "layout" // layout.h for a floor that runs on another machine (package lab)
)

// settings of both subcommands.
type settings struct {
	cpu, fifo, kicks int
	load             bool
	args             []string
}

func (s settings) command(name string) []string {
	return append([]string{name, fmt.Sprintf("-cpu=%d", s.cpu), fmt.Sprintf("-fifo=%d", s.fifo), fmt.Sprintf("-kicks=%d", s.kicks),
		fmt.Sprintf("-load=%v", s.load), "--"}, s.args...)
}

func parseSettings(args []string) (s settings, err error) {
	f := flag.NewFlagSet("bench subcommand", flag.ContinueOnError)
	f.IntVar(&s.cpu, "cpu", -1, "")
	f.IntVar(&s.fifo, "fifo", 0, "")
	f.IntVar(&s.kicks, "kicks", 0, "")
	f.BoolVar(&s.load, "load", false, "")
	err = f.Parse(args)
	s.args = f.Args()
	return s, err
}

// keepOff leaves the vCPU's core to the vCPU.
func keepOff(cpu int) error {
	allowed, err := cores.Allowed()
	if err == nil {
		_, err = cores.KeepOff(os.Getpid(), cores.Without(allowed, cpu))
	}
	return err
}

// nodes is the live heap of the load: each node and its leaf are objects with pointers, about 30 MiB in all.
const nodes = 500_000

type node struct {
	leaf *leaf
	_    [2]uint64
}

type leaf struct {
	self *leaf
	_    uint64
}

// allocate replaces the nodes of a live heap without pause, at the default GOGC.
func allocate() {
	heap := make([]*node, nodes)
	for i := range heap {
		heap[i] = newNode()
	}
	for {
		heap[rand.IntN(nodes)] = newNode()
	}
}

func newNode() *node {
	l := &leaf{}
	l.self = l
	return &node{leaf: l}
}

func runLoad(args []string) error {
	s, err := parseSettings(args)
	if err == nil {
		err = keepOff(s.cpu)
	}
	if err != nil {
		return err
	}
	allocate()
	return nil
}

// runEngine runs a program; with kicks it stops and resumes it that often and writes the cycles of each stop.
func runEngine(args []string) (code int, err error) {
	s, err := parseSettings(args)
	if err != nil {
		return statusBench, err
	}
	if err := keepOff(s.cpu); err != nil {
		return statusBench, err
	}
	// As `cloister run` does; its other measure, no collections below a limit, is what the load is to break.
	runtime.GOMAXPROCS(max(4, runtime.GOMAXPROCS(0)))
	m, err := build(s)
	if err != nil {
		return statusBench, err
	}
	if s.load {
		go allocate()
		time.Sleep(500 * time.Millisecond) // the live heap stands, collections run
	}
	if err := m.Prepare(); err != nil {
		return statusBench, err
	}
	if err := m.Enter(); err != nil {
		return statusBench, err
	}
	if s.kicks > 0 {
		if err := kickAll(m, s.kicks); err != nil {
			return statusBench, err
		}
	}
	r, err := m.Wait()
	if err == nil && s.kicks == 0 && (r.Ended != "exit" || r.Code != 0) {
		err = fmt.Errorf("the guest ended by %s: %s (status %d, signal %d)", r.Ended, r.Reason, r.Code, r.Signal)
	}
	if err != nil {
		return statusBench, err
	}
	return 0, m.Close()
}

// kickAll is the twin of kicker in c/floor.c: pauses of 1 to 2 ms between stops, in which either side sleeps: neither
// spins for more than some 50 µs, so neither keeps the core from one stop to the next.
func kickAll(m *vmm.Machine, n int) error {
	samples := make([]uint64, n)
	for i := range samples {
		time.Sleep(time.Duration(1000+rand.IntN(1000)) * time.Microsecond)
		at := kvm.TSC()
		p, err := m.Pause(10 * time.Second)
		if err != nil {
			return err
		}
		samples[i] = p.AckTSC(0) - at
		if err := p.Resume(10 * time.Second); err != nil {
			return err
		}
	}
	return errors.Join(writeSamples(os.Stdout, samples), m.Stop("enough kicks", 0))
}

// build makes the machine as `cloister run` does, without a monitor.
func build(s settings) (*vmm.Machine, error) {
	f, err := os.Open(s.args[0])
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	guest, err := vmm.NewGuestMemory(false)
	if err != nil {
		return nil, err
	}
	b, err := unix.Mmap(-1, 0, breaks.LedgerSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("mmap the ledger: %w", err)
	}
	l, err := breaks.At(b, 0)
	if err != nil {
		return nil, err
	}
	return vmm.New(vmm.Config{
		Program: s.args[0], ELF: int(f.Fd()), ELFSize: st.Size(), Args: s.args, Env: []string{}, Cwd: "/",
		CPU: s.cpu, FIFO: s.fifo, Memory: 256 << 20, Lock: true, Seal: vmm.SealCall, Ledgers: func(int) (*breaks.VCPU, error) { return l, nil }, Guest: guest,
		Warn: func(w string) { fmt.Fprintln(os.Stderr, "bench engine:", w) }, Stamp: func(string) {}, GapRecord: func(uint64) {},
	})
}
