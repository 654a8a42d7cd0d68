package bare

import (
	"fmt"
	"math/bits"
	"os"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/breaks"
	"golang.org/x/sys/unix"
)

// clockHz is the frequency of the clock that a native ledger counts in: nanoseconds of CLOCK_MONOTONIC_RAW.
const clockHz = 1_000_000_000

func now() uint64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts) != nil {
		panic("clock_gettime(CLOCK_MONOTONIC_RAW) failed: it cannot") // clock_gettime(2): EFAULT and EINVAL only
	}
	return uint64(ts.Nano())
}

// thread is one thread of the program, and its ledger.
type thread struct {
	tid      int
	name     string
	movedAt  uint64 // when it got its core
	placedAs string // what it was called when it was placed last
	counts   breaks.Counts
	base     figures    // at the latest border
	last     figures    // at the latest reading
	total    [2]figures // open, sealed: what ended intervals had
	final    bool       // nothing is read of it any more

	brokenBy []string // by what it broke the budget while it ran; nil: it did not
}

// newThread begins a ledger: cpu is the core that it owns, or -1; base what it had spent when it began.
func newThread(id, tid, cpu int, base figures) *thread {
	t := &thread{tid: tid, base: base, last: base, total: [2]figures{{}, {}}}
	t.counts = breaks.Counts{ID: uint32(id), CPU: breaks.NoCPU, State: breaks.StateGuest, TSCHz: clockHz, Start: now()}
	if cpu >= 0 {
		t.counts.CPU = uint32(cpu)
	}
	for name := range base { // a figure that never moves is a 0, not a hole
		t.total[breaks.Open][name], t.total[breaks.Sealed][name] = 0, 0
	}
	return t
}

// cpu is the core that it owns, or -1.
func (t *thread) cpu() int {
	if t.counts.CPU == breaks.NoCPU {
		return -1
	}
	return int(t.counts.CPU)
}

// moved says that it owns another core from now on, or with -1 none: before has the figures of the old one, after
// those of the new one, and both the same of the thread's own.
func (t *thread) moved(cpu int, before, after figures) {
	t.take(before)
	t.base, t.last, t.movedAt = after, after, now()
	for name := range after {
		for half := range t.total {
			t.total[half][name] += 0 // a hole becomes a 0, as in newThread
		}
	}
	t.counts.CPU = breaks.NoCPU
	if cpu >= 0 {
		t.counts.CPU = uint32(cpu)
	}
}

// half is the book that is open.
func (t *thread) half() int {
	if t.counts.Sealed != 0 {
		return breaks.Sealed
	}
	return breaks.Open
}

// take ends an interval: what f has more than the base goes to the book that is open.
func (t *thread) take(f figures) {
	t.total[t.half()].add(f.since(t.base))
	t.base, t.last = f, f
}

// seal turns to the sealed book, unseal back; f is what the thread had spent, standing at the border.
func (t *thread) seal(f figures) {
	t.take(f)
	t.counts.Sealed, t.counts.SealedAt = 1, now()
	t.counts.Seals++
}

// unseal takes the voluntary switch by which the thread fell asleep in its call out of the sealed book.
func (t *thread) unseal(f figures) {
	if f[voluntary] > t.base[voluntary] {
		f[voluntary]--
	}
	t.take(f)
	t.counts.SealedIn += now() - t.counts.SealedAt
	t.counts.Sealed, t.counts.SealedAt = 0, 0
}

// pardon moves at most one interrupt from the sealed book to the open one: the wake-up from the call that
// sealed, and one migration, if it woke up on a core that it was given in that call. after is a moment later.
func (t *thread) pardon(after figures) {
	if t.counts.Sealed == 0 {
		return
	}
	for _, names := range [][]string{{interrupt + "RES", interrupt + "CAL"}, {migrations}} {
		for _, name := range names {
			if after[name] > t.base[name] {
				t.base[name]++
				t.total[breaks.Open][name]++
				break
			}
		}
	}
}

// book counts a planned return. A sealing call is in the book that it turned to, as a VM's is (vmm/seal.go).
func (t *thread) book(half int, cause breaks.Cause, lost uint64) {
	b := &t.counts.Book[half]
	c := &b.Cause[cause]
	c.Count++
	c.Lost += lost
	c.Max = max(c.Max, lost)
	c.Hist[min(bits.Len64(lost), breaks.NHist-1)]++
	b.Total++
	b.Lost += lost
}

// end closes the ledger; at is when the thread ended.
func (t *thread) end(at uint64) {
	if t.counts.End != 0 {
		return
	}
	t.take(t.last)
	t.book(t.half(), breaks.End, 0)
	t.counts.End, t.counts.LastOut, t.counts.State = at, at, breaks.StateEnded
	t.final = true
}

// snapshot is the ledger as a budget or a report wants it, with what the latest reading has beyond the base.
func (t *thread) snapshot() (breaks.Counts, [2]map[string]uint64) {
	c := t.counts
	var statistics [2]map[string]uint64
	for half, total := range t.total {
		f := figures{}
		f.add(total)
		if half == t.half() {
			f.add(t.last.since(t.base))
		}
		b := &c.Book[half]
		b.Guest = f[runNS]
		b.Kernel[breaks.KernelPageFixed] = f[minorFaults] + f[majorFaults]
		b.Kernel[breaks.KernelIRQ] = f.interrupts()
		statistics[half] = f
	}
	return c, statistics
}

// threadDir is a thread's place in /proc.
func threadDir(pid, tid int) string { return fmt.Sprintf("/proc/%d/task/%d", pid, tid) }

// threadState is the letter of proc(5): R running, S sleeping, … ; 0 when it is gone.
func threadState(pid, tid int) byte {
	b, err := os.ReadFile(threadDir(pid, tid) + "/stat")
	if err != nil {
		return 0
	}
	f, err := afterName(string(b))
	if err != nil || len(f) == 0 {
		return 0
	}
	return f[0][0]
}

func threadName(pid, tid int) string {
	b, err := os.ReadFile(threadDir(pid, tid) + "/comm")
	if err != nil {
		return "" // it has ended
	}
	return strings.TrimSuffix(string(b), "\n")
}
