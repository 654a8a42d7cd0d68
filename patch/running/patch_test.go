package running_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/patch"
	"golang.org/x/sys/unix"
)

// flip applies n patches that change both functions.
func (w *guest) flip(t *testing.T, n int, safe bool) (stops, breaks int) {
	t.Helper()
	from, to := uint32(valA), uint32(valB)
	for range n {
		r := w.Apply(w.plan(from, to, safe))
		if r.Outcome != patch.Committed {
			t.Fatalf("patch %d: %s: %s", r.Number, r.Outcome, r.Reason)
		}
		stops += r.Stops
		for _, v := range r.VCPUs {
			if v.Break {
				breaks++
			}
		}
		from, to = to, from
	}
	if n%2 == 1 {
		t.Fatal("an even number leaves the guest as it was")
	}
	return stops, breaks
}

// TestOneBreakEach: a patch is exactly one planned break of each vCPU, under its number, and nothing else.
func TestOneBreakEach(t *testing.T) {
	for _, safe := range []bool{false, true} {
		w := start(t, 2, false)
		const n = 50
		before := make([]breaks.Counts, 2)
		for i := range before {
			before[i] = w.counts(t, i)
		}
		planned := 0
		for range n / 2 {
			for i := range before {
				w.moves(t, i) // in the guest: a vCPU that has not come back yet is not taken out of it
			}
			_, b := w.flip(t, 2, safe)
			planned += b
		}
		for i := range before {
			w.moves(t, i)
		}
		var all uint64
		for i := range before {
			now := w.counts(t, i)
			kicked := now.Book[0].Cause[breaks.Patch].Count - before[i].Book[0].Cause[breaks.Patch].Count
			waited := now.Book[0].Cause[breaks.SafePoint].Count - before[i].Book[0].Cause[breaks.SafePoint].Count
			total := now.Book[0].Total - before[i].Book[0].Total
			all += kicked + waited
			if total != kicked+waited {
				t.Errorf("safe points %v, vCPU %d: %d breaks, of which %d kicked and %d waiting", safe, i, total, kicked, waited)
			}
			if safe && (kicked != 0 || waited != n) || !safe && (waited != 0 || kicked > n) {
				t.Errorf("safe points %v, vCPU %d: %d kicked, %d waiting for %d patches", safe, i, kicked, waited, n)
			}
			numbered := 0
			for _, s := range w.ledger(i).Sites {
				if c := breaks.Cause(s.Cause - 1); s.Cause != 0 && (c == breaks.Patch || c == breaks.SafePoint) {
					if s.Nr == 0 || s.Nr > n {
						t.Errorf("a planned break under the number %d", s.Nr)
					}
					numbered++
				}
			}
			if numbered == 0 {
				t.Errorf("safe points %v, vCPU %d: no site of a planned break", safe, i)
			}
		}
		if int(all) != planned || !safe && all < n {
			t.Errorf("safe points %v: the records tell of %d planned breaks, the ledgers have %d", safe, planned, all)
		}
	}
}

// counts copies a ledger whose vCPU runs.
func (w *guest) counts(t *testing.T, i int) (c breaks.Counts) {
	t.Helper()
	for range 1000 {
		if w.ledger(i).Snapshot(&c) {
			return c
		}
	}
	t.Fatal("no consistent copy of the ledger")
	return c
}

// TestNewBody: a function is redirected to new code in spare text, and back; frames of the old body end in it.
func TestNewBody(t *testing.T) {
	w := start(t, 1, false)
	s := w.State()
	at := s.SpareText.Used
	body := append(load(valB), 0xc3) // mov $B,%eax; ret
	jmp := binary.LittleEndian.AppendUint32([]byte{0xe9}, uint32(at-w.f-5))
	r := w.Apply(patch.Plan{
		Name: "f", Text: []patch.Chunk{{Addr: at, Bytes: body}},
		Sites: []patch.Site{{Name: "f", Kind: patch.Redirect, Addr: w.f, Old: load(valA), New: jmp}},
	})
	if r.Outcome != patch.Committed || r.SpareText != len(body) {
		t.Fatalf("%s: %s, %d bytes", r.Outcome, r.Reason, r.SpareText)
	}
	mixed := w.sum(2)
	w.moves(t, 0)
	if w.sum(2) == mixed {
		t.Error("f still returns A, as g does")
	}
	if now := w.State(); now.SpareText.Used != at+uint64(len(body)) || len(now.Applied) != 1 {
		t.Errorf("state %+v", now)
	}
	again := w.Apply(patch.Plan{Name: "the same place", Text: []patch.Chunk{{Addr: at, Bytes: body}}, Sites: []patch.Site{{Name: "g", Kind: patch.Imm, Addr: w.g, Old: load(valA), New: load(valB)}}})
	if again.Outcome != patch.Refused || !strings.Contains(again.Reason, "in use") {
		t.Errorf("new code over the code of a patch: %s: %s", again.Outcome, again.Reason)
	}
	back := w.Apply(patch.Plan{Name: "revert", Revert: r.Number})
	if back.Outcome != patch.Committed || back.Reverts != r.Number {
		t.Fatalf("revert: %s: %s", back.Outcome, back.Reason)
	}
	mixed = w.sum(2)
	w.moves(t, 0)
	w.moves(t, 0)
	if got := w.sum(2); got > mixed+1 {
		t.Errorf("%d more mixed passes after the revert", got-mixed)
	}
	if r := w.Apply(patch.Plan{Name: "revert", Revert: r.Number}); r.Outcome != patch.Refused || !strings.Contains(r.Reason, "not applied") {
		t.Errorf("a second revert: %s: %s", r.Outcome, r.Reason)
	}
}

// TestRefused: a bad plan changes no byte, and the guest runs on.
func TestRefused(t *testing.T) {
	w := start(t, 1, false)
	good := func() patch.Plan { return w.plan(valA, valB, false) }
	for _, c := range []struct {
		name   string
		change func(*patch.Plan)
		says   string
	}{
		{"another program", func(p *patch.Plan) { p.BuildID = "ab" }, "build id"},
		{"nothing", func(p *patch.Plan) { p.Sites = nil }, "changes nothing"},
		{"lengths", func(p *patch.Plan) { p.Sites[0].New = p.Sites[0].New[:4] }, "4 new bytes"},
		{"overlap", func(p *patch.Plan) { p.Sites[1].Addr = p.Sites[0].Addr + 2 }, "overlaps"},
		{"order", func(p *patch.Plan) { p.Sites[0], p.Sites[1] = p.Sites[1], p.Sites[0] }, "order"},
		{"not text", func(p *patch.Plan) { p.Sites[1].Addr = data }, "not in the program's text"},
		{"text's end", func(p *patch.Plan) { p.Sites[1].Addr = base + 0x4000 - 2 }, "not in the program's text"},
		{"wraps", func(p *patch.Plan) { p.Sites[1].Addr = ^uint64(0) - 1 }, "not in the program's text"},
		{"old bytes", func(p *patch.Plan) { p.Sites[1].Old = load(valB) }, "the text is not what"},
		{"spare text", func(p *patch.Plan) { p.Text = []patch.Chunk{{Addr: base, Bytes: []byte{0x90}}} }, "not within the spare text"},
		{"huge", func(p *patch.Plan) {
			p.Text = []patch.Chunk{{Addr: w.State().SpareText.Start, Bytes: make([]byte, 1<<20)}}
		}, "not within the spare text"},
		{"chunks overlap", func(p *patch.Plan) {
			at := w.State().SpareData.Start
			p.Data = []patch.Chunk{{Addr: at, Bytes: make([]byte, 8)}, {Addr: at + 4, Bytes: make([]byte, 8)}}
		}, "overlap"},
		{"wait", func(p *patch.Plan) { p.Wait = -1 }, "not negative"},
		{"revert of nothing", func(p *patch.Plan) { *p = patch.Plan{Revert: 77} }, "not applied"},
	} {
		plan := good()
		c.change(&plan)
		was := append([]byte(nil), w.text...)
		r := w.Apply(plan)
		if r.Outcome != patch.Refused || !strings.Contains(r.Reason, c.says) || strings.Contains(r.Reason, "\n") {
			t.Errorf("%s: %s: %q, want refused: …%s…", c.name, r.Outcome, r.Reason, c.says)
		}
		if string(was) != string(w.text) {
			t.Errorf("%s: text was changed", c.name)
		}
	}
	w.text[w.f-base] = 0xcc // a debugger's
	if r := w.Apply(good()); r.Outcome != patch.Refused || !strings.Contains(r.Reason, "breakpoint") {
		t.Errorf("over a breakpoint: %s: %s", r.Outcome, r.Reason)
	}
	w.text[w.f-base] = 0xb8
}

// TestHog: something of higher priority holds the vCPU's core: the patch is aborted, nothing was changed, and the next one is made.
func TestHog(t *testing.T) {
	testenv.Need(t, testenv.KVM, testenv.Root, testenv.MultiCPU, testenv.ParallelCPUs)
	w := start(t, 1, false)
	hog := exec.Command("/bin/sh", "-c", "while :; do :; done")
	hog.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := hog.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	// From another core, and before the kernel throttles real-time tasks.
	time.AfterFunc(700*time.Millisecond, func() { _ = hog.Process.Kill(); _ = hog.Wait(); close(gone) })
	var set unix.CPUSet
	set.Set(w.core)
	if err := errors.Join(unix.SchedSetaffinity(hog.Process.Pid, &set),
		unix.SchedSetAttr(hog.Process.Pid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 10}, 0)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	plan := w.plan(valA, valB, false)
	plan.StopLimit = 100 * time.Millisecond
	r := w.Apply(plan)
	if r.Outcome != patch.Aborted || r.FirstStore != 0 || !strings.Contains(r.Reason, "higher priority") {
		t.Errorf("%s: %s, first store %d", r.Outcome, r.Reason, r.FirstStore)
	}
	if !bytes.Equal(w.text[w.f-base:][:5], load(valA)) {
		t.Error("the aborted patch has changed the text")
	}
	<-gone
	if r := w.Apply(w.plan(valA, valB, false)); r.Outcome != patch.Committed {
		t.Errorf("after the hog: %s: %s", r.Outcome, r.Reason)
	}
	w.moves(t, 0)
}
