package observe

import (
	"context"
	"testing"

	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// hz makes a cycle half a nanosecond, so that a forgotten conversion shows.
const hz = 2_000_000_000

// book enters n breaks of the same length.
func book(c *breaks.Counts, half int, cause breaks.Cause, n, cycles uint64) {
	b := &c.Book[half]
	b.Total += n
	b.Lost += n * cycles
	k := &b.Cause[cause]
	k.Count += n
	k.Lost += n * cycles
	k.Max = max(k.Max, cycles)
	i := 0
	for breaks.BucketBound(i) < cycles {
		i++
	}
	k.Hist[i] += n
}

// fake is a VM with one of everything: 10 s old, sealed for the last 4, two vCPUs of which the second
// owns no core, had no thread for a second, and is parked.
func fake(t *testing.T) (VM, *Snapshot) {
	t.Helper()
	budget, err := breaks.Parse("total<=100,syscall<=2/s,max<=50us,kernel=0")
	if err != nil {
		t.Fatal(err)
	}
	vm := VM{Name: "loop", Program: "/opt/loop", Args: []string{"loop", "-v"}, Engine: 100, Monitor: 101, Started: "2026-11-22T13:00:00Z",
		Version: "v1.2.3", Go: "go1.26.0", Metrics: "127.0.0.1:9100", Backend: breaks.BackendPVM, Budget: &budget}
	c := breaks.Counts{ID: 0, CPU: 1, State: breaks.StateGuest, Sealed: 1, TSCHz: hz, Start: hz, SealedAt: 7 * hz, Seals: 1, Kicks: 3,
		LastOut: 8*hz - 1000, LastIn: 8 * hz, SiteLost: 2, StackLost: 1}
	book(&c, breaks.Open, breaks.Setup, 2, 4_000_000)
	book(&c, breaks.Open, breaks.Syscall, 40, 200_000)
	book(&c, breaks.Open, breaks.Seal, 1, 100_000)
	book(&c, breaks.Sealed, breaks.Syscall, 9, 180_000)
	book(&c, breaks.Sealed, breaks.Kick, 3, 30_000)
	book(&c, breaks.Sealed, breaks.ExcPageFault, 1, 20_000_000_000)
	c.Book[breaks.Open].Guest, c.Book[breaks.Sealed].Guest = 5*hz, hz
	// One exit and one transit a call, and the exceptions; the rest are the kernel's own.
	c.Book[breaks.Open].Kernel = [breaks.NKernel]uint64{41*2 + 5 + 7, 5, 7, 41, 0, 0, 1, 2}
	c.Book[breaks.Sealed].Kernel = [breaks.NKernel]uint64{10*2 + 30 + 4, 30, 0, 10, 3, 0, 0, 0}
	second := breaks.Counts{ID: 1, CPU: breaks.NoCPU, State: breaks.StateParked, TSCHz: hz, Start: 2 * hz, Idle: hz}
	second.Book[breaks.Open].Kernel[breaks.KernelIRQ] = 3 // more than there were exits: the books do not close
	patches := &Patches{Number: 4, Outcomes: map[string]uint64{"committed": 3, "refused": 1, "aborted": 0, "rolled-back": 0, "dead": 0}, Pauses: map[int]*Pauses{0: {}, 1: {}}}
	for _, ns := range []uint64{100_000, 100_001, 7_000_000_000} {
		patches.Pauses[0].Add(ns)
	}
	patches.Pauses[1].Add(4_999)
	lost, guest := uint64(5), uint64(64<<20)
	return vm, &Snapshot{VCPUs: []Ledger{{Counts: c, Thread: "loop", EventsLost: &lost}, {Counts: second, Thread: "log\x1b\"ger", EventsLost: &lost}}, Now: 11 * hz, Strays: 1, Patches: patches,
		Memory: Memory{Engine: &Resident{2 << 20, 5 << 20}, Monitor: &Resident{3 << 20, 4 << 20}, Guest: &guest}}
}

func always(s *Snapshot) Source {
	return func(context.Context) (*Snapshot, error) { return s, nil }
}
