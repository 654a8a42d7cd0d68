package observe

import "github.com/cloister-vmm/cloister/isolation/breaks"

// Schema is the value of Status.Schema. Fields are only ever added.
const Schema = "cloister.vm/v1"

// States of a vCPU by its number in the ledger, as label and in JSON.
var states = [...]string{breaks.StateNew: "new", breaks.StateGuest: "guest", breaks.StateServing: "serving",
	breaks.StateParked: "parked", breaks.StateEnded: "ended", breaks.StateIdle: "idle"}

// States of a VM, Status.State.
const (
	Starting = "starting" // the first instruction has not run yet
	Open     = "open"     // running, not isolated
	Sealed   = "sealed"   // running, isolated
	Parked   = "parked"   // stopped, and may go on
	Idle     = "idle"     // its thread of the guest has ended, others have not
	Ended    = "ended"    // the guest has ended, the report is being made
	NotKnown = "unknown"  // the engine lives, and nothing else could be found out
)

// Status is a VM as `GET /v1/vm` of its control socket gives it: see docs/metrics.md.
type Status struct {
	Schema  string   `json:"schema"`
	Name    string   `json:"name"`
	Program string   `json:"program"`
	Args    []string `json:"args"`
	Engine  int      `json:"engine_pid"`
	Monitor *int     `json:"monitor_pid"` // null: it is gone, and the guest runs on
	Started string   `json:"started"`
	Version string   `json:"version"`
	Metrics string   `json:"metrics"`
	State   string   `json:"state"`
	// WallNS is the time since the first instruction of the vCPU that began first.
	WallNS uint64   `json:"wall_ns"`
	VCPUs  []VCPU   `json:"vcpus"`
	Budget []Clause `json:"budget"`
	Strays uint64   `json:"stray_threads"`
	Memory Memory   `json:"memory"`
	// Trouble says why nothing more is known; empty when the figures are good.
	Trouble string `json:"trouble"`
}

// VCPU is one vCPU of a Status.
type VCPU struct {
	ID       uint32  `json:"id"`
	CPU      *uint32 `json:"cpu"` // null: it owns no core
	State    string  `json:"state"`
	WallNS   uint64  `json:"wall_ns"`
	SealedNS uint64  `json:"sealed_ns"`
	Seals    uint64  `json:"seals"`
	Kicks    uint64  `json:"kicks"`
	Open     Book    `json:"open"`
	Sealed   Book    `json:"sealed"`
	// Thread is the name of the guest's thread that it has, or had last; empty: not known.
	Thread string `json:"thread"`
	// IdleNS is the time without a thread of the guest; WallNS does not have it.
	IdleNS uint64 `json:"idle_ns"`
}

// Book is the breaks of a vCPU while it was open, or while sealed.
type Book struct {
	// Total is of all causes that are not planned (seal, end, setup), and LostNS likewise.
	Total   uint64 `json:"total"`
	LostNS  uint64 `json:"lost_ns"`
	GuestNS uint64 `json:"guest_ns"`
	// ByCause has the causes that occurred, and those that are not known.
	ByCause map[string]Cause `json:"by_cause"`
	// NotKnown says why some counts are null; Total is then what is known of it.
	NotKnown string `json:"not_known"`
}

// Cause is one cause within a Book.
type Cause struct {
	Count   *uint64 `json:"count"`   // null: not known
	LostNS  *uint64 `json:"lost_ns"` // null: not timed, the kernel served it
	MaxNS   *uint64 `json:"max_ns"`
	Planned bool    `json:"planned"` // not a disturbance: never counts against a budget
}

// Clause is one clause of the budget, for one vCPU.
type Clause struct {
	VCPU uint32 `json:"vcpu"`
	breaks.ClauseVerdict
}

// NewStatus describes a VM by a snapshot.
func NewStatus(vm VM, s *Snapshot) *Status {
	st := &Status{Schema: Schema, Name: vm.Name, Program: vm.Program, Args: vm.Args, Engine: vm.Engine, Started: vm.Started,
		Version: vm.Version, Metrics: vm.Metrics, State: NotKnown, VCPUs: []VCPU{}, Budget: []Clause{}}
	if st.Args == nil {
		st.Args = []string{}
	}
	if vm.Monitor != 0 {
		st.Monitor = &vm.Monitor
	}
	if s == nil {
		return st
	}
	st.Strays, st.Memory = s.Strays, s.Memory
	if len(s.VCPUs) == 0 {
		st.State = Starting
	}
	st.WallNS = s.wallNS()
	for i := range s.VCPUs {
		l := &s.VCPUs[i]
		c := &l.Counts
		v := VCPU{ID: c.ID, State: "unknown", WallNS: breaks.Nanoseconds(c.Wall(s.Now), c.TSCHz),
			Thread: breaks.ThreadName(l.Thread), IdleNS: breaks.Nanoseconds(c.IdleFor(s.Now), c.TSCHz),
			SealedNS: breaks.Nanoseconds(c.SealedFor(s.Now), c.TSCHz), Seals: c.Seals, Kicks: c.Kicks,
			Open: vm.book(s, l, breaks.Open), Sealed: vm.book(s, l, breaks.Sealed)}
		if cpu := c.CPU; cpu != breaks.NoCPU {
			v.CPU = &cpu
		}
		if int(c.State) < len(states) {
			v.State = states[c.State]
		}
		st.State = worst(st.State, state(c))
		st.VCPUs = append(st.VCPUs, v)
		if vm.Budget != nil {
			b := *vm.Budget
			b.Backend = vm.backend(l)
			for _, cl := range b.Check(c, s.Now).Clauses {
				st.Budget = append(st.Budget, Clause{c.ID, cl})
			}
		}
	}
	return st
}

// state puts the two words of a vCPU's ledger into one.
func state(c *breaks.Counts) string {
	switch {
	case c.State == breaks.StateEnded:
		return Ended
	case c.State == breaks.StateNew || c.Start == 0:
		return Starting
	case c.State == breaks.StateParked:
		return Parked
	case c.State == breaks.StateIdle:
		return Idle
	case c.Sealed != 0:
		return Sealed
	}
	return Open
}

// worst is the state of a VM whose vCPUs are in a and b: the one that is more worth telling.
func worst(a, b string) string {
	for _, s := range []string{Sealed, Open, Parked, Idle, Starting, Ended} {
		if a == s || b == s {
			return s
		}
	}
	return NotKnown
}

func (v *VM) book(s *Snapshot, l *Ledger, half int) Book {
	c := &l.Counts
	b := &c.Book[half]
	out := Book{ByCause: map[string]Cause{}, GuestNS: breaks.Nanoseconds(inGuest(c, half, s.Now), c.TSCHz)}
	kernel, known, ok, why := kernelHalf(c, half, v.backend(l))
	if !ok {
		out.NotKnown = why
	}
	for k := range breaks.NCause {
		e := Cause{Planned: k.Planned()}
		switch {
		case uncounted(c, k, v.backend(l)):
			continue
		case k.FromKernel() && !known(k):
		case k.FromKernel():
			e.Count = &kernel[k]
		default:
			n, lost, longest := b.Cause[k].Count, breaks.Nanoseconds(b.Cause[k].Lost, c.TSCHz), breaks.Nanoseconds(b.Cause[k].Max, c.TSCHz)
			e.Count, e.LostNS, e.MaxNS = &n, &lost, &longest
		}
		if e.Count != nil && *e.Count == 0 {
			continue
		}
		out.ByCause[k.String()] = e
		if e.Count != nil && !e.Planned {
			out.Total += *e.Count
			if e.LostNS != nil {
				out.LostNS += *e.LostNS
			}
		}
	}
	return out
}
