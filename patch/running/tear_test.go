package running_test

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/patch"
)

// row is what a guest has seen of its patches. The rows of a run are printed at its end (make tear).
type row struct {
	variant           string
	threads           int
	page              bool
	patches           int
	torn, mix, passes uint64
	took              time.Duration
}

var rows struct {
	sync.Mutex
	list []row
}

func (w *guest) row(variant string, page bool, patches int, begin time.Time) row {
	return row{variant, w.n, page, patches, w.sum(1), w.sum(2), w.sum(0), time.Since(begin)}
}

func (r row) keep() {
	rows.Lock()
	defer rows.Unlock()
	rows.list = append(rows.list, r)
}

func TestMain(m *testing.M) {
	m.Run() // sets the status that the process ends with
	if err := printRows(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func printRows(to io.Writer) error {
	if len(rows.list) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "variant\tthreads\tconstant crosses\tpatches\ttorn\tmixed\tpasses\ttook\tmachine")
	for _, r := range rows.list {
		crosses := "a cache line"
		if r.page {
			crosses = "a page"
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%d\t%d\t%d\t%v\t%s, %d CPUs\n", r.variant, r.threads, crosses, r.patches, r.torn, r.mix, r.passes,
			r.took.Round(time.Millisecond), testenv.Backend(), runtime.NumCPU())
	}
	fmt.Fprintln(w, "torn: an instruction that nobody wrote was executed; mixed: a pass that had one function's old code and the other one's new")
	return w.Flush()
}

// scaled is a number of patches: all of them, fewer in a hurry, and on Bochs as many as take minutes.
func scaled(all int) int {
	switch {
	case testenv.Has(testenv.LabMachine) && testenv.Has(testenv.VMX):
		if testing.Short() {
			return all / 1000
		}
		return all / 100
	case testing.Short():
		return all / 50
	}
	return all
}

// deferred writes the new bytes at once, as task isolation's patcher did for isolated cores: whoever executes them synchronises
// when it next leaves the guest. It exists in this test only.
func (w *guest) deferred(v uint32, whole bool) {
	for _, at := range []uint64{w.f, w.g} {
		to := w.text[at-base:]
		if whole {
			copy(to, load(v))
			continue
		}
		for i, b := range load(v) {
			to[i] = b
			runtime.Gosched()
		}
	}
}

// TestDeferredTears: without a stop the same guest executes instructions that nobody wrote, within a second where nothing else runs. If it does not, the
// test below proves nothing. The patcher that goes byte by byte must tear, on any machine: it does when it is interrupted. One that copies leaves its two stores
// to be looked in between by another CPU, which a machine whose CPUs take turns does not have, and a busy one not in each second: it is reported.
func TestDeferredTears(t *testing.T) {
	for _, whole := range []bool{false, true} {
		variant := "deferred, byte by byte"
		if whole {
			variant = "deferred, copied"
		}
		for _, page := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,page=%v", variant, page), func(t *testing.T) {
				w := start(t, 1, page)
				must := !whole
				n, begin := 0, time.Now()
				for v := uint32(valB); time.Since(begin) < time.Second || n < 1000 || must && w.sum(1) == 0 && time.Since(begin) < 20*time.Second; n++ {
					w.deferred(v, whole)
					v ^= valA ^ valB
				}
				r := w.row(variant, page, n, begin)
				r.keep()
				if must && r.torn == 0 {
					t.Fatalf("no torn instruction in %d patches, %v, %d passes: the deferred variant must tear", n, r.took, r.passes)
				}
				t.Logf("%d torn of %d passes, %d patches, %v; the last one read %#x", r.torn, r.passes, n, r.took, w.count(0, 3))
			})
		}
	}
}

// TestTear: stopped, patched, serialised, resumed: no torn instruction, ever. Two sites change, without a safe point, so passes may be
// mixed; that they are is TestVersions.
func TestTear(t *testing.T) {
	more := min(max(4, runtime.NumCPU()+1), 40) // than CPUs, where the guest's memory has room for so many
	for _, c := range []struct {
		threads int
		page    bool
		share   int // percent of all
	}{{1, false, 40}, {1, true, 30}, {2, false, 10}, {2, true, 10}, {more, false, 5}, {more, true, 5}} {
		t.Run(fmt.Sprintf("threads=%d,page=%v", c.threads, c.page), func(t *testing.T) {
			n := scaled(100_000) * c.share / 100
			w := start(t, c.threads, c.page)
			begin, stops := time.Now(), 0
			from, to := uint32(valA), uint32(valB)
			for range n {
				r := w.Apply(w.plan(from, to, false))
				if r.Outcome != patch.Committed {
					t.Fatalf("patch %d: %s: %s", r.Number, r.Outcome, r.Reason)
				}
				stops += r.Stops
				from, to = to, from
			}
			took := time.Since(begin)
			for i := range c.threads {
				w.moves(t, i)
			}
			r := w.row("stopped", c.page, n, begin)
			r.keep()
			if r.torn != 0 {
				t.Errorf("%d torn instructions in %d patches; one read %#x", r.torn, n, w.count(0, 3))
			}
			t.Logf("%d patches, %d stops, %v each", n, stops, took/time.Duration(n))
		})
	}
}

// TestVersions: two sites change together only at a safe point. With safe points no pass is mixed; without, on the same guest, many are.
func TestVersions(t *testing.T) {
	n := 1000
	switch {
	case testenv.Has(testenv.LabMachine) && testenv.Has(testenv.VMX): // one CPU for the test and three threads
		n = 40
	case testing.Short() || testenv.Has(testenv.LabMachine):
		n = 200
	}
	for _, threads := range []int{1, 3} {
		w := start(t, threads, false)
		begin := time.Now()
		stops, _ := w.flip(t, n, true)
		for i := range threads {
			w.moves(t, i)
		}
		on := w.row("stopped, safe points", false, n, begin)
		on.keep()
		if on.mix != 0 || on.torn != 0 {
			t.Errorf("%d threads, safe points on: %d mixed and %d torn passes in %d patches", threads, on.mix, on.torn, n)
		}
		if stops != n {
			t.Errorf("%d threads: %d stops for %d patches: threads come to their safe points by themselves", threads, stops, n)
		}
		begin = time.Now()
		round := 0
		for ; w.sum(2) == 0; round++ {
			if round == 20 {
				t.Fatalf("%d threads, safe points off: no mixed pass in %d patches: the guest proves nothing", threads, round*n)
			}
			w.flip(t, n, false)
		}
		off := w.row("stopped, no safe points", false, round*n, begin)
		off.torn, off.mix, off.passes = off.torn-on.torn, off.mix-on.mix, off.passes-on.passes
		off.keep()
	}
}
