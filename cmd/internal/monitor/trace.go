package monitor

import (
	"fmt"
	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"os"
	"slices"
	"strings"

	"github.com/cloister-vmm/cloister/guest/linux"
	"github.com/cloister-vmm/cloister/guest/symbol/profile"
	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// tracer drains the ledgers' rings of events into a timeline with a track for each vCPU. Without --trace it
// does nothing, and nothing is lost that anybody asked for.
type tracer struct {
	name    string // of the file; empty: no timeline
	program string
	base    uint64 // TSC of the first instruction, which the viewers show as 0
	tracks  map[int]*track
	out     *profile.Trace
	file    *os.File
	err     error
}

// track is one vCPU's.
type track struct {
	next uint64
	lost uint64
	last uint64 // TSC at which the guest was entered last; 0: it was not, or it is not known when
	at   int64  // of the latest event, nanoseconds since the start
}

func newTracer(p *session.Plan) *tracer {
	return &tracer{name: p.Trace, program: p.Program, tracks: map[int]*track{}}
}

// lostOf is how many of a vCPU's events were overwritten unread.
func (t *tracer) lostOf(v *vcpu) uint64 {
	if t == nil || t.tracks[v.id] == nil {
		return 0
	}
	return t.tracks[v.id].lost
}

func (t *tracer) open() {
	t.file, t.err = os.Create(t.name)
	if t.err == nil {
		t.out, t.err = profile.NewTrace(t.file, 0, t.program)
	}
}

// drain writes the events since the last call. vCPU 0 is the first to run, and starts the clock.
func (t *tracer) drain(vcpus []*vcpu) {
	if t == nil || t.name == "" || len(vcpus) == 0 {
		return
	}
	if l := vcpus[0].ledger; t.out == nil && t.err == nil {
		if l.TSCHz == 0 || l.Start == 0 {
			return
		}
		t.open()
		t.base = l.Start
	}
	for _, v := range vcpus {
		t.vcpu(v)
	}
}

// vcpu drains one ring. It may be called while the vCPU writes: an entry is used only if the ring had not
// come round to it when it had been read.
func (t *tracer) vcpu(v *vcpu) {
	var c breaks.Counts
	if t.err != nil || !v.ledger.Snapshot(&c) || c.Start == 0 || c.TSCHz == 0 {
		return
	}
	r := t.tracks[v.id]
	if r == nil {
		r = &track{last: c.Start}
		t.tracks[v.id] = r
	}
	t.err = t.out.Track(v.id, trackName(&v.threads))
	if c.EventNext-r.next > breaks.NEvent {
		t.drop(v, r, c.EventNext-breaks.NEvent-r.next)
	}
	for r.next < c.EventNext && t.err == nil {
		switch e, is := eventAt(v, r.next); is {
		case unread:
			r.next++
			t.event(v, r, c.TSCHz, e)
		case overwritten:
			t.drop(v, r, 1)
		case unsure:
			return
		}
	}
}

// What an event is that was read while its vCPU may write.
const (
	unread = iota
	overwritten
	unsure // its vCPU's thread is not done with a break, and is not running perhaps: the event can wait
)

func eventAt(v *vcpu, n uint64) (e breaks.Event, is int) {
	e = v.ledger.Events[n%breaks.NEvent]
	var now breaks.Counts
	switch {
	case !v.ledger.Snapshot(&now):
		return e, unsure
	case now.EventNext-n >= breaks.NEvent:
		return e, overwritten
	}
	return e, unread
}

// trackThreads is how many names of threads a track shows.
const trackThreads = 4

// trackName has the latest different threads of a vCPU, in their order.
func trackName(l *breaks.Threads) string {
	var names []string
	for i := len(l.List) - 1; i >= 0 && len(names) < trackThreads; i-- {
		if name := l.List[i].Name; name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Reverse(names)
	return strings.Join(names, ", ")
}

func (t *tracer) drop(v *vcpu, r *track, n uint64) {
	r.lost += n
	r.next += n
	r.last = 0 // what came before the next event is not known
	if t.err == nil {
		t.err = t.out.Lost(v.id, r.at, n)
	}
}

func (t *tracer) event(v *vcpu, r *track, hz uint64, e breaks.Event) {
	ns := func(tsc uint64) int64 { return int64(breaks.Nanoseconds(tsc-min(tsc, t.base), hz)) }
	sealed := e.Nr>>31 != 0
	if e.In < e.Out {
		e.In = e.Out // of a break that never ended
	}
	slice := func(from, to uint64, s profile.Event) {
		if t.err == nil {
			s.VCPU, s.StartNs, s.EndNs = v.id, ns(from), ns(to)
			t.err = t.out.Add(s)
		}
	}
	if r.last != 0 && e.Out > r.last {
		slice(r.last, e.Out, profile.Event{Name: "guest", Sealed: sealed})
	}
	r.last, r.at = e.In, ns(e.In)
	if e.Cause == breaks.EventIdle {
		return // no slice: there was neither guest nor break
	}
	cause := breaks.Unknown
	if e.Cause < uint32(breaks.NCause) {
		cause = breaks.Cause(e.Cause)
	}
	name := cause.String()
	switch cause {
	case breaks.Syscall:
		name = "syscall " + linux.Name(uint64(e.Nr&^(1<<31)))
	case breaks.End:
		r.last = 0 // the thread has ended: until an EventIdle or the next break tells, nothing is known
	}
	slice(e.Out, e.In, profile.Event{Name: name, Cause: cause.String(), Site: fmt.Sprintf("%#x", e.RIP), Sealed: sealed})
}

// close ends the file.
func (t *tracer) close(vcpus []*vcpu) error {
	t.drain(vcpus)
	if t.out == nil && t.err == nil {
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
