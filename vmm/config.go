package vmm

import (
	"time"

	"github.com/cloister-vmm/cloister/guest/vfs"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"golang.org/x/sys/unix"
)

// SealPolicy says when a program's isolation begins.
type SealPolicy string

// The values of --seal.
const (
	SealCall       SealPolicy = "call"        // when the program calls cloister_isolate(1)
	SealStart      SealPolicy = "start"       // before its first instruction
	SealFirstWrite SealPolicy = "first-write" // after its first write system call
)

// Config describes a run.
type Config struct {
	Program  string   // host path, for messages and /proc/self/exe
	ExecFn   string   // AT_EXECFN: the path as execve(2) would have got it
	ELF      int      // open descriptor of the program; it stays the caller's
	ELFSize  int64    // bytes
	Args     []string // argv, with argv[0]
	Env      []string
	Mounts   []vfs.Mount
	Net      bool   // sockets on the host's network
	Cwd      string // guest path
	Builtin  bool   // one of our own workloads: may provoke exits, its TSC need not be asked for
	CPU      int    // host core to own, -1: none
	FIFO     int    // SCHED_FIFO priority, 0: none
	Memory   uint64 // bytes that the guest may commit
	Huge     bool   // guest memory on huge pages
	Lock     bool   // lock guest memory
	OwnClock bool   // our own vDSO even where the host's clock is the TSC
	Seal     SealPolicy
	// PatchSpace is how much spare text, and as much spare data, new functions may take, bytes; 0: abi.PatchSpace if the program's notes say that
	// it can be patched, else none.
	PatchSpace uint64
	// RingCalls lets the system calls of sealed threads go to a housekeeping core without an exit.
	RingCalls bool
	// Ledgers gives the ledger of vCPU i, 0 to breaks.MaxVCPUs-1.
	Ledgers func(i int) (*breaks.VCPU, error)
	// CPUs are the host's CPUs that the program sees as 0, 1, …; those in Housekeeping are shared. Empty: one
	// that is anywhere.
	CPUs, Housekeeping []int
	// Place gives the core that a thread of the guest shall own, by its number (0: the first one) and its name; -1:
	// none. The first thread is on CPU. nil: no other thread owns one.
	Place func(order int, name string) int
	// Admit is vcpu.Config.Admit.
	Admit func(tid int, cpus []int) error
	// MaySeal is asked before a vCPU is sealed at its program's wish, or at its first write; an error refuses: the call
	// answers EAGAIN, and the vCPU is not sealed. It is asked while the vCPU waits out of the guest, may take its
	// time, and returns when over is closed. nil: nobody refuses.
	MaySeal func(vcpu int, over <-chan struct{}) error
	// Thread is told of every thread of the guest but the first, and of its changes. nil: nobody wants to know.
	Thread func(Thread)
	Guest  int // memfd of guest memory, UserTop bytes, shared with the monitor
	Warn   func(string)
	// Stop stops this process by a signal whose default action the program has asked for, and returns when it goes on. Dispose
	// is told what the program does on a signal (linux.Config). Without Stop such signals do nothing.
	Stop    func(sig unix.Signal)
	Dispose func(sig unix.Signal, handled, ignored bool)
	Stamp   func(phase string) // marks the end of a phase of start-up
	// GapRecord is told where the program keeps its record (guest address); the monitor reads it there.
	GapRecord func(addr uint64)
	// Shared are files below /dev for the program: vfs.Options.Shared.
	Shared map[string]int
}

// Result is how a run ended.
type Result struct {
	Code    int               // exit status of the program, if Signal is 0
	Signal  int               // signal that ended it
	Ended   string            // "exit", "signal", "stopped", "error"
	Reason  string            // for "stopped": who asked; for "error": what failed
	Fault   *Fault            // set when an exception ended it
	Unknown map[uint64]uint64 // system calls that are not served, by number
	Wall    time.Duration
}

// Fault is the exception that ended a program.
type Fault struct {
	VCPU       int
	Task       int    // the guest's own number of the thread
	Thread     string // its name
	Vector     int
	Name       string // "page fault"
	Error      uint64 // the CPU's error code
	Address    uint64 // CR2, for a page fault
	HasAddress bool
	Regs       map[string]uint64
}
