package vmm

import (
	"runtime"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/isolation/breaks"
	"golang.org/x/sys/unix"
)

// A snapshot taken while the vCPU writes holds one moment: every return counted in Total has its cause but
// the one that is still open, in count and in time.
func TestSnapshotIsConsistent(t *testing.T) {
	g := stopStart(t, stopCalls(unix.SYS_UMASK))
	g.runs(t, 0)
	rounds, seen, open, none := 20000, uint64(0), 0, 0
	if testing.Short() {
		rounds = 2000
	}
	for i := range rounds {
		var c breaks.Counts
		if !g.ledger.Snapshot(&c) { // the host has taken the writer off its CPU in the middle: neighbours may, now and then
			if none++; none > rounds/1000 {
				t.Fatalf("round %d: no consistent copy, for the %d. time", i, none)
			}
			time.Sleep(time.Millisecond)
			continue
		}
		b := &c.Book[0]
		var sum, lost uint64
		for k := range b.Cause {
			sum += b.Cause[k].Count
			lost += b.Cause[k].Lost
		}
		if d := b.Total - sum; d > 1 || (d == 1) != (c.LastOut > c.LastIn) {
			t.Fatalf("round %d: total %d, causes %d, left at %d, entered at %d", i, b.Total, sum, c.LastOut, c.LastIn)
		} else if d == 1 {
			open++
		}
		if b.Lost != lost {
			t.Fatalf("round %d: lost %d, causes %d", i, b.Lost, lost)
		}
		if c.LastIn != 0 && c.LastOut > c.LastIn && b.Lost+b.Guest != c.LastOut-c.Start {
			t.Fatalf("round %d: %d lost and %d in the guest are not the %d since the start", i, b.Lost, b.Guest, c.LastOut-c.Start)
		}
		seen = max(seen, b.Total)
		runtime.Gosched()
	}
	if seen == 0 || open == 0 {
		t.Errorf("the writer was not caught at work: %d breaks, %d open ones", seen, open)
	}
}
