package monitor

import (
	"fmt"
	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"os"

	"github.com/cloister-vmm/cloister/guest/linux"
	"github.com/cloister-vmm/cloister/guest/symbol/profile"
	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// tracer drains the ledger's ring of events into a timeline. Without --trace it does nothing, and nothing
// is lost that anybody asked for.
type tracer struct {
	name    string // of the file; empty: no timeline
	program string
	next    uint64
	lost    uint64
	out     *profile.Trace
	file    *os.File
	err     error
	last    uint64 // TSC at which the guest was entered last
	at      int64  // the same in nanoseconds since the start
}

func newTracer(p *session.Plan) *tracer { return &tracer{name: p.Trace, program: p.Program} }

func (t *tracer) open() {
	t.file, t.err = os.Create(t.name)
	if t.err == nil {
		t.out, t.err = profile.NewTrace(t.file, 0, t.program)
	}
}

// drain writes the events since the last call. It may be called while the vCPU writes: an entry is used
// only if the ring had not come round to it when it had been read.
func (t *tracer) drain(l *breaks.VCPU) {
	if t == nil || t.name == "" || l.TSCHz == 0 || l.Start == 0 {
		return
	}
	if t.out == nil && t.err == nil {
		t.open()
		t.last = l.Start
	}
	if t.err != nil {
		return
	}
	var c breaks.Counts
	if !l.Snapshot(&c) {
		return
	}
	if c.EventNext-t.next > breaks.NEvent {
		t.drop(c.EventNext - breaks.NEvent - t.next)
	}
	for ; t.next < c.EventNext && t.err == nil; t.next++ {
		e := l.Events[t.next%breaks.NEvent]
		var now breaks.Counts
		if !l.Snapshot(&now) || now.EventNext-t.next >= breaks.NEvent {
			t.drop(1)
			t.next--
			continue
		}
		t.event(l, e)
	}
}

func (t *tracer) drop(n uint64) {
	t.lost += n
	t.next += n
	t.err = t.out.Lost(0, t.at, n)
}

func (t *tracer) event(l *breaks.VCPU, e breaks.Event) {
	ns := func(tsc uint64) int64 { return int64(breaks.Nanoseconds(tsc-l.Start, l.TSCHz)) }
	sealed := e.Nr>>31 != 0
	if e.Out > t.last {
		t.err = t.out.Add(profile.Event{StartNs: ns(t.last), EndNs: ns(e.Out), Name: "guest", Sealed: sealed})
	}
	name := breaks.Cause(e.Cause).String()
	if breaks.Cause(e.Cause) == breaks.Syscall {
		name = "syscall " + linux.Name(uint64(e.Nr&^(1<<31)))
	}
	if t.err == nil {
		t.err = t.out.Add(profile.Event{StartNs: ns(e.Out), EndNs: ns(e.In), Name: name, Cause: breaks.Cause(e.Cause).String(), Site: fmt.Sprintf("%#x", e.RIP), Sealed: sealed})
	}
	t.last, t.at = e.In, ns(e.In)
}

// close ends the file.
func (t *tracer) close(l *breaks.VCPU) error {
	t.drain(l)
	if t.out == nil {
		t.open()
	}
	if t.err != nil {
		return fmt.Errorf("--trace: %w", t.err)
	}
	if err := t.out.Close(); err != nil {
		return fmt.Errorf("--trace: %w", err)
	}
	return t.file.Close()
}
