package observe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// VM is what does not change while a VM runs.
type VM struct {
	Name    string
	Program string
	Args    []string // the program's name among them
	Engine  int      // pid
	Monitor int      // pid
	Started string   // RFC 3339
	Version string   // Cloister's
	Go      string   // version of Go that built it
	Metrics string   // HOST:PORT of the scrape, or empty
	Backend string   // as breaks.KernelCauses takes it; empty: KVM's statistics are not to be had
	Budget  *breaks.Budget
}

// Snapshot is a VM at one moment.
type Snapshot struct {
	// VCPUs are those that have run, by their ids.
	VCPUs []Ledger
	// Now is the host's TSC at the copy, cycles.
	Now uint64
	// Strays counts threads of Cloister's own that were found on a dedicated core, and moved.
	Strays uint64
	Memory Memory
	// Patches is what became of patches; nil: the program cannot be patched.
	Patches *Patches
}

// Ledger is one vCPU at the moment of a Snapshot.
type Ledger struct {
	// Counts is a consistent copy, KVM's statistics since the last border added to the book that is open.
	breaks.Counts
	// Thread is the name of the guest's thread that it has, or had last; empty: not known. The guest chooses it.
	Thread string
	// NoStatistics: KVM's statistics were not read, so the causes that the kernel serves are not known.
	NoStatistics bool
	// EventsLost counts events that came too fast for the timeline; nil where none is kept.
	EventsLost *uint64
}

// Source takes a snapshot. It is called from any goroutine, and gives up when the context ends.
type Source func(context.Context) (*Snapshot, error)

// Memory is what a VM takes of the host's, bytes. A nil figure was not to be had.
type Memory struct {
	Engine  *Resident `json:"engine"`
	Monitor *Resident `json:"monitor"`
	// Guest is the memory behind the guest's addresses that the host has given out so far.
	Guest *uint64 `json:"guest_bytes"`
}

// Resident is the resident memory of one process, bytes.
type Resident struct {
	// Private is anonymous memory: heap, stacks.
	Private uint64 `json:"private_bytes"`
	// Shared is what maps a file: the program text, the ledger, and in the engine what it has touched of the guest's memory.
	Shared uint64 `json:"shared_bytes"`
}

// ReadResident reads /proc/PID/statm below root (proc(5)). It takes no lock that the process's page faults
// or signals need. The kernel keeps these counts per CPU: they may be off by some dozens of pages a CPU.
func ReadResident(root string, pid int) (*Resident, error) {
	name := filepath.Join(root, "proc", strconv.Itoa(pid), "statm")
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	r, err := parseStatm(string(b), uint64(os.Getpagesize()))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return r, nil
}

// parseStatm takes the second and third figure, both in pages: resident, and of that shared.
func parseStatm(s string, page uint64) (*Resident, error) {
	f := strings.Fields(s)
	if len(f) < 3 {
		return nil, errors.New("want at least three figures")
	}
	resident, err := strconv.ParseUint(f[1], 10, 48)
	if err != nil {
		return nil, err
	}
	shared, err := strconv.ParseUint(f[2], 10, 48)
	if err != nil {
		return nil, err
	}
	return &Resident{Private: (resident - min(shared, resident)) * page, Shared: shared * page}, nil
}

// backend is how a vCPU's statistics are to be read; empty: not at all.
func (v *VM) backend(l *Ledger) string {
	if l.NoStatistics {
		return ""
	}
	return v.Backend
}

// kernelHalf gives the counts of the causes that are FromKernel, and for each whether it is known.
func kernelHalf(c *breaks.Counts, half int, backend string) (counts [breaks.NCause]uint64, known func(breaks.Cause) bool, ok bool, why string) {
	counts, ok, why = c.KernelCauses(half, backend)
	if backend == breaks.BackendBare {
		return counts, func(k breaks.Cause) bool { return c.Uncounted(k, backend, ok, why) == "" }, ok, why
	}
	readable := backend == breaks.BackendVMX || backend == breaks.BackendSVM || backend == breaks.BackendPVM
	return counts, func(k breaks.Cause) bool {
		// Differences are known only if the books close; the others are the kernel's own figures.
		return readable && (ok || k != breaks.Transit && k != breaks.KernelOther)
	}, ok, why
}

// uncounted reports whether nobody counts a cause that returns to the engine: in a native run, which has none.
func uncounted(c *breaks.Counts, k breaks.Cause, backend string) bool {
	return backend == breaks.BackendBare && !k.FromKernel() && c.Uncounted(k, backend, false, "") != ""
}

// inGuest is the time inside KVM_RUN, cycles, with what has passed of a stay that still lasts: an
// undisturbed guest makes no other entry in its book.
func inGuest(c *breaks.Counts, half int, now uint64) uint64 {
	n := c.Book[half].Guest
	current := breaks.Open
	if c.Sealed != 0 {
		current = breaks.Sealed
	}
	if half == current && c.State == breaks.StateGuest && c.LastIn > c.LastOut && c.End == 0 {
		n += now - min(c.LastIn, now)
	}
	return n
}

// wallNS is the time since the first entry of the vCPU that began first until now, or until the last one's
// end. Unlike a vCPU's own it has the time in which some of them were idle.
func (s *Snapshot) wallNS() uint64 {
	var first, last, hz uint64
	for i := range s.VCPUs {
		c := &s.VCPUs[i].Counts
		if c.Start == 0 {
			continue
		}
		if first == 0 || c.Start < first {
			first, hz = c.Start, c.TSCHz
		}
		end := c.End
		if end == 0 {
			end = s.Now
		}
		last = max(last, end)
	}
	return breaks.Nanoseconds(last-min(first, last), hz)
}
