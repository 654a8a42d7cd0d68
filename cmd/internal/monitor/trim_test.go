package monitor

import (
	"runtime/debug"
	"testing"
)

// A growth is given back at the next look, and no look costs a collection without one.
func TestTrim(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	var r trimmer
	look := func() {
		t.Helper()
		if err := r.look(); err != nil {
			t.Fatal(err)
		}
	}
	look()
	first := r
	if first.anon <= 0 || first.file <= 0 {
		t.Fatalf("%+v", r)
	}
	const n = 64 << 20
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	grown, _, err := resident()
	if err != nil || grown < first.anon+n/2 {
		t.Fatalf("%d bytes, %v: want some %d more than %d", grown, err, n, first.anon)
	}
	_ = b[len(b)-1] // garbage from here on
	b = nil
	look()
	if r.anon > grown-n/2 { // the race detector keeps its own of it
		t.Errorf("%d bytes of its own after the second look, %d before it", r.anon, grown)
	}
	var before, after debug.GCStats
	debug.ReadGCStats(&before)
	r.anon, r.file = 1<<40, 1<<40 // has shrunk since
	look()
	if debug.ReadGCStats(&after); after.NumGC != before.NumGC {
		t.Errorf("%d collections without a growth", after.NumGC-before.NumGC)
	}
}
