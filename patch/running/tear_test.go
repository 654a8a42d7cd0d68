package running_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/patch"
)

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

// TestDeferredTears: without a stop the same guest executes instructions that nobody wrote, within a second. If it does not, the
// test below proves nothing.
func TestDeferredTears(t *testing.T) {
	for _, page := range []bool{false, true} {
		t.Run(fmt.Sprintf("page=%v", page), func(t *testing.T) {
			w := start(t, 1, page)
			n, begin := 0, time.Now()
			for v := uint32(valB); time.Since(begin) < time.Second || n < 1000; n++ {
				w.deferred(v, n%2 == 0)
				v ^= valA ^ valB
			}
			took := time.Since(begin)
			if w.sum(1) == 0 {
				t.Fatalf("no torn instruction in %d patches, %v, %d passes: the deferred variant must tear", n, took, w.sum(0))
			}
			t.Logf("deferred: %d torn of %d passes, %d patches, %v; the last one read %#x", w.sum(1), w.sum(0), n, took, w.count(0, 3))
		})
	}
}

// TestTear: stopped, patched, serialised, resumed: no torn instruction, ever. Two sites change, without a safe point, so passes may be
// mixed; that they are is TestVersions.
func TestTear(t *testing.T) {
	const all = 100_000
	for _, c := range []struct {
		threads int
		page    bool
		share   int // percent of all
	}{{1, false, 40}, {1, true, 30}, {2, false, 10}, {2, true, 10}, {4, false, 5}, {4, true, 5}} {
		t.Run(fmt.Sprintf("threads=%d,page=%v", c.threads, c.page), func(t *testing.T) {
			n := all * c.share / 100
			if testing.Short() {
				n /= 50
			}
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
			if torn := w.sum(1); torn != 0 {
				t.Errorf("%d torn instructions in %d patches; one read %#x", torn, n, w.count(0, 3))
			}
			t.Logf("%d patches, %d stops, %v (%v each), %d passes, %d torn, %d mixed", n, stops, took, took/time.Duration(n), w.sum(0), w.sum(1), w.sum(2))
		})
	}
}
