package profile

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Trace writes a timeline in Chrome's trace event format (the "JSON Array Format" of the document
// "Trace Event Format"), which Perfetto and chrome://tracing open. There is one track per vCPU with
// slices "guest" and "break", and one counter track for lost events.
//
// The format does not ask for the closing bracket, so a file whose writer was killed can be opened:
// each event is one line, preceded by its comma, and reaches the writer whole, by the next Flush at
// the latest. What a strict JSON decoder reads of a cut file is every event but the one that was cut;
// Repair makes strict JSON of it. Close writes the bracket.
//
// A Trace is for one goroutine.
type Trace struct {
	w      *bufio.Writer
	err    error
	n      int
	closed bool
	base   int64          // subtracted from all times, so that small numbers keep their digits
	names  map[int]string // of the tracks that are known
	lost   uint64
}

// errClosed answers writes to a finished trace.
var errClosed = errors.New("write trace: it is closed")

// Event is one slice of a vCPU's track.
type Event struct {
	VCPU           int
	StartNs, EndNs int64  // on any clock that all events share; EndNs >= StartNs
	Name           string // "guest", or what the break was: "syscall write"
	Cause          string // "" for guest time
	Site           string // where in the guest, as a report shows it; may be empty
	Sealed         bool
}

// NewTrace begins a timeline on w. startNs is the time that the viewers show as 0; program names the
// process.
func NewTrace(w io.Writer, startNs int64, program string) (*Trace, error) {
	t := &Trace{w: bufio.NewWriterSize(w, 64<<10), base: startNs, names: map[int]string{}}
	t.raw("[")
	t.put(event{Ph: "M", Name: "process_name", Args: map[string]any{"name": "cloister " + program}})
	t.put(event{Ph: "C", Name: "lost events", Args: map[string]any{"lost": 0}})
	return t, t.Flush()
}

// Names of the fields are the format's.
type event struct {
	Name string         `json:"name"`
	Cat  string         `json:"cat,omitempty"`
	Ph   string         `json:"ph"` // X: slice, C: counter, M: metadata, i: instant
	Pid  int            `json:"pid"`
	Tid  int            `json:"tid"`
	Ts   micros         `json:"ts"`
	Dur  *micros        `json:"dur,omitempty"`
	Args map[string]any `json:"args,omitempty"`
}

// micros is a number of nanoseconds, written as the format's microseconds without rounding.
type micros int64

func (m micros) MarshalJSON() ([]byte, error) {
	sign, n := "", uint64(m)
	if m < 0 {
		sign, n = "-", -n
	}
	return fmt.Appendf(nil, "%s%d.%03d", sign, n/1000, n%1000), nil
}

// Add writes one slice. Events may come in any order; an event that ends before it starts is an error
// of its maker and is refused.
func (t *Trace) Add(e Event) error {
	if e.EndNs < e.StartNs {
		return fmt.Errorf("write trace: event %q of vCPU %d ends %d ns before it starts", e.Name, e.VCPU, e.StartNs-e.EndNs)
	}
	t.known(e.VCPU)
	dur := micros(e.EndNs - e.StartNs)
	out := event{Name: e.Name, Cat: "guest", Ph: "X", Tid: e.VCPU, Ts: micros(e.StartNs - t.base), Dur: &dur,
		Args: map[string]any{"sealed": e.Sealed}}
	if e.Cause != "" {
		out.Cat = "break"
		out.Args["cause"] = e.Cause
	}
	if e.Site != "" {
		out.Args["site"] = e.Site
	}
	t.put(out)
	return t.err
}

// Lost says that n more events before atNs were lost; the counter track shows the sum.
func (t *Trace) Lost(vcpu int, atNs int64, n uint64) error {
	t.known(vcpu)
	t.lost += n
	t.put(event{Ph: "C", Name: "lost events", Ts: micros(atNs - t.base), Args: map[string]any{"lost": t.lost}})
	// A mark on the track itself: a gap between slices is not guest time there.
	t.put(event{Ph: "i", Name: "events lost", Cat: "lost", Tid: vcpu, Ts: micros(atNs - t.base), Args: map[string]any{"lost": n}})
	return t.err
}

// Track names a vCPU's track by its number and, where it is not empty, by what it executes. It may be called
// again: the viewers show the latest name.
func (t *Trace) Track(vcpu int, name string) error {
	t.track(vcpu, name)
	return t.err
}

func (t *Trace) track(vcpu int, name string) {
	if name != "" {
		name = ": " + name
	}
	name = fmt.Sprintf("vCPU %d", vcpu) + name
	was, known := t.names[vcpu]
	if was == name {
		return
	}
	t.names[vcpu] = name
	t.put(event{Ph: "M", Name: "thread_name", Tid: vcpu, Args: map[string]any{"name": name}})
	if !known {
		t.put(event{Ph: "M", Name: "thread_sort_index", Tid: vcpu, Args: map[string]any{"sort_index": vcpu}})
	}
}

// known names a vCPU's track that nobody has named.
func (t *Trace) known(vcpu int) {
	if t.names[vcpu] == "" {
		t.track(vcpu, "")
	}
}

// Flush hands everything written so far to the writer.
func (t *Trace) Flush() error {
	if err := t.w.Flush(); err != nil && t.err == nil {
		t.err = fmt.Errorf("write trace: %w", err)
	}
	return t.err
}

// Close ends the array and flushes. It does not close the writer.
func (t *Trace) Close() error {
	if t.closed {
		return t.err
	}
	t.raw("\n]\n")
	t.closed = true
	return t.Flush()
}

func (t *Trace) put(e event) {
	if t.closed {
		t.err = errClosed
		return
	}
	e.Pid = 1
	b, err := json.Marshal(e)
	if err != nil {
		t.err = fmt.Errorf("write trace: event %q: %w", e.Name, err)
		return
	}
	if t.n > 0 {
		t.raw(",")
	}
	t.n++
	// A buffer that runs full would be handed on in the middle of an event.
	if t.w.Available() < len(b)+1 {
		if t.Flush() != nil {
			return
		}
	}
	t.raw("\n")
	t.raw(string(b))
}

func (t *Trace) raw(s string) {
	if t.err == nil {
		if _, err := t.w.WriteString(s); err != nil {
			t.err = fmt.Errorf("write trace: %w", err)
		}
	}
}

// Repair makes strict JSON of a trace that was cut: it drops what follows the last whole event and
// closes the array. A whole trace comes back as it is.
func Repair(cut []byte) []byte {
	if json.Valid(cut) {
		return cut
	}
	lines := strings.SplitAfter(string(cut), "\n")
	for len(lines) > 1 {
		last := strings.TrimSuffix(strings.TrimSpace(lines[len(lines)-1]), ",")
		if last != "" && json.Valid([]byte(last)) {
			lines[len(lines)-1] = last
			break
		}
		lines = slices.Delete(lines, len(lines)-1, len(lines))
	}
	if len(lines) <= 1 {
		return []byte("[\n]\n")
	}
	return []byte(strings.Join(lines, "") + "\n]\n")
}
