package breaks

import (
	"errors"
	"fmt"
)

// Notice tells a sink that breaks happened.
type Notice struct {
	VCPU  uint32
	Cause Cause
	Half  int    // Open or Sealed
	Count uint64 // new ones since the notice before; several may have been joined
	Total uint64 // of this cause in this half so far
	Lost  uint64 // cycles that the new ones took; 0 for causes that are FromKernel
	TSC   uint64 // of the snapshot that showed them
}

// Sink takes notices: a log, a signal, an eventfd, a policy. It is called by the monitor, never by a
// vCPU's thread, so it may be slow; while it is, further breaks are joined into the next notice.
type Sink interface {
	Notify(Notice) error
}

// SinkFunc is a function as a Sink.
type SinkFunc func(Notice) error

// Notify calls f.
func (f SinkFunc) Notify(n Notice) error { return f(n) }

// Rule sends causes to a sink. Any cause can go to any sink; no cause has a mechanism of its own.
type Rule struct {
	Causes     []Cause
	SealedOnly bool
	// Interval is the least time between two notices of one cause, in cycles. A flood of breaks must
	// not become a flood of notices, which would disturb in its turn.
	Interval uint64
	Sink     Sink
}

// Notifier compares the snapshots of one vCPU and tells sinks the differences. It is not safe for
// concurrent use. The zero Notifier tells nobody anything.
type Notifier struct {
	rules []Rule
	told  [][2][NCause]told
}

type told struct {
	count, lost, at uint64
	ever            bool
}

// NewNotifier makes a Notifier that starts from an empty ledger: the first snapshot's breaks are new.
func NewNotifier(rules ...Rule) (*Notifier, error) {
	for i, r := range rules {
		if r.Sink == nil || len(r.Causes) == 0 {
			return nil, fmt.Errorf("notification rule %d: it needs a sink and at least one cause", i)
		}
		for _, c := range r.Causes {
			if c >= NCause {
				return nil, fmt.Errorf("notification rule %d: cause %d is not in the list of %d", i, c, NCause)
			}
		}
	}
	return &Notifier{rules: rules, told: make([][2][NCause]told, len(rules))}, nil
}

// Observe tells the sinks what is new in counts since the last call. backend is that of
// KernelCauses; kernel causes whose books do not close at this moment wait for a later snapshot. A
// sink's error does not keep the others from being called; the errors are joined, and what the sink
// refused is offered again with the next notice.
func (n *Notifier) Observe(counts *Counts, now uint64, backend string) error {
	var errs []error
	for half := range counts.Book {
		kernel, kernelOK, _ := counts.KernelCauses(half, backend)
		for i := range n.rules {
			r := &n.rules[i]
			if r.SealedOnly && half == Open {
				continue
			}
			for _, c := range r.Causes {
				count, lost := counts.Book[half].Cause[c].Count, counts.Book[half].Cause[c].Lost
				if c.FromKernel() {
					if !kernelOK {
						continue
					}
					count, lost = kernel[c], 0
				}
				t := &n.told[i][half][c]
				if count <= t.count || t.ever && span(t.at, now) < r.Interval {
					continue
				}
				err := r.Sink.Notify(Notice{VCPU: counts.ID, Cause: c, Half: half, Count: count - t.count, Total: count, Lost: span(t.lost, lost), TSC: now})
				if err != nil {
					errs = append(errs, fmt.Errorf("notification of %s on vCPU %d: %w", c, counts.ID, err))
					continue
				}
				*t = told{count: count, lost: lost, at: now, ever: true}
			}
		}
	}
	return errors.Join(errs...)
}
