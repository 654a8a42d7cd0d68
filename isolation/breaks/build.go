package breaks

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
)

// Facts are what Build puts into a report besides the ledgers. Everything is optional.
type Facts struct {
	Version string // of Cloister
	Started string // RFC 3339, UTC
	Host    Host   // TSCHz 0 is taken from the first ledger
	Program Program
	Exit    Exit
	Fault   *Fault
	Timings []Timing
	Gaps    []GapReport

	// NoStatistics says why KVM's statistics are in none of the ledgers; empty: Ledger.NoStatistics has it.
	NoStatistics string
	NotMeasured  []NotKnown
	Originators  []Originator
	// FailedClauses are reasons against a certificate that only the caller can know.
	FailedClauses []string
	Drift         []Drift       // of the host, while the run went on
	Patches       []PatchReport // in the order of their numbers
	PatchPauses   []PatchPauses // of vCPUs that were held, by number
	PatchLog      *PatchLog     // nil: nothing was logged
	RefusedSeals  []RefusedSeal

	Budget *Budget // nil: none was given. Backend is set by Build

	// Symbol finds the place of a RIP; nil, or an answer without a symbol: not known.
	Symbol func(rip uint64) Location
	// SyscallName names a system call; nil or "": only the number is shown.
	SyscallName func(nr int) string
	// Sites is how many entries top_sites may have; 0: 20.
	Sites int
}

// Ledger is one vCPU's part of the material for a report.
type Ledger struct {
	Counts Counts
	Sites  []Site // a copy of VCPU.Sites; free entries are passed over
	Now    uint64 // TSC of the snapshot; not needed once Counts.End is set
	// EventsLost are the events of a timeline that was asked for and that were overwritten unread.
	EventsLost uint64
	// NoStatistics says why KVM's statistics are not in this ledger; empty: they are.
	NoStatistics string
	TID          int // the host's thread; 0: not known
	Threads      Threads
	Ring         *Ring // of the calls that Counts.RingCalls counts; nil: not known
	// Statistics are the kernel's raw figures of the two books under its own names, in place of KVM's; nil: KVM's.
	Statistics [2]map[string]uint64
}

// backend is how the ledger's statistics are to be read; empty: not at all.
func (f *Facts) backend(l *Ledger) string {
	if f.NoStatistics != "" || l.NoStatistics != "" {
		return ""
	}
	return f.Host.Backend
}

// Build makes the report of a run. It cannot fail: what does not add up is said in Books. A snapshot
// of a vCPU that is just being served has a return that is not booked yet, so the books of a running
// vCPU may be open by one; those of an ended or stopped one may not.
func Build(f Facts, ledgers []Ledger) *Report {
	r := &Report{
		Schema: Schema, Version: f.Version, Started: f.Started, Host: f.Host, Program: f.Program, Exit: f.Exit, Fault: f.Fault,
		VCPUs: []VCPUReport{}, TopOriginators: list(f.Originators), Timings: list(f.Timings), GapRecords: list(f.Gaps),
		NotMeasured: slices.Clone(list(f.NotMeasured)), Drift: list(f.Drift), Patches: patches(f.Patches), PatchPauses: list(f.PatchPauses), PatchLog: f.PatchLog, RefusedSeals: list(f.RefusedSeals),
		Books: Books{ReturnsClosed: true, KernelClosed: true, Why: []string{}},
	}
	r.Program.Args = list(r.Program.Args)
	if r.Fault != nil {
		fault := *r.Fault
		fault.Backtrace = list(fault.Backtrace)
		if fault.Registers == nil {
			fault.Registers = map[string]Hex{}
		}
		r.Fault = &fault
	}
	if r.Host.TSCHz == 0 && len(ledgers) > 0 {
		r.Host.TSCHz = ledgers[0].Counts.TSCHz
	}
	if f.NoStatistics != "" {
		r.NotMeasured = append(r.NotMeasured, NotKnown{"exits that the kernel served itself", f.NoStatistics})
	}
	if len(ledgers) == 0 {
		r.Books.ReturnsClosed = false
		r.Books.Why = append(r.Books.Why, "no vCPU has a ledger: nothing was counted")
	}
	for i := range ledgers {
		r.addVCPU(&f, &ledgers[i], len(ledgers) > 1)
	}
	r.TopSites = topSites(&f, ledgers)
	b := &r.Books
	b.Closed = b.ReturnsClosed && b.KernelClosed
	for _, l := range []struct {
		n    uint64
		what string
	}{
		{b.EventsLost, "events of the timeline were overwritten unread"},
		{b.SitesLost, "breaks found no room in the table of sites: they are counted, their sites are not kept"},
		{b.StacksLost, "sites found no room for their stack"},
	} {
		if l.n > 0 {
			b.Why = append(b.Why, fmt.Sprintf("%d %s", l.n, l.what))
		}
	}
	r.addBudget(&f, ledgers)
	r.certify(&f)
	return r
}

// list gives an empty list where there is none, so that JSON has [] and not null.
func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

// patches are the same with lists in place of none.
func patches(all []PatchReport) []PatchReport {
	all = slices.Clone(list(all))
	for i := range all {
		all[i].VCPUs = list(all[i].VCPUs)
	}
	return all
}

func (r *Report) addVCPU(f *Facts, l *Ledger, several bool) {
	c := &l.Counts
	backend := f.backend(l)
	if l.NoStatistics != "" && f.NoStatistics == "" {
		r.NotMeasured = append(r.NotMeasured, NotKnown{fmt.Sprintf("exits of vCPU %d that the kernel served itself", c.ID), l.NoStatistics})
	}
	end := c.End
	if end == 0 {
		end = max(l.Now, c.LastOut, c.LastIn)
	}
	v := VCPUReport{
		ID: c.ID, TID: l.TID, Seals: c.Seals, Kicks: c.Kicks,
		WallNS:   Nanoseconds(c.Wall(end), c.TSCHz),
		SealedNS: Nanoseconds(c.SealedFor(end), c.TSCHz),
		IdleNS:   Nanoseconds(c.IdleFor(end), c.TSCHz),
		Threads:  list(l.Threads.List), ThreadsNotKept: l.Threads.NotKept,
	}
	if c.CPU != NoCPU {
		cpu := c.CPU
		v.CPU = &cpu
	}
	r.Books.SitesLost += c.SiteLost
	r.Books.StacksLost += c.StackLost
	r.Books.EventsLost += l.EventsLost

	var kernel [2][NCause]uint64
	for half := range c.Book {
		b := &c.Book[half]
		where := fmt.Sprintf("vCPU %d, %s: ", c.ID, [2]string{"open", "sealed"}[half])
		for _, why := range checkBook(b) {
			r.Books.ReturnsClosed = false
			r.Books.Why = append(r.Books.Why, where+why)
		}
		var ok bool
		var why string
		if kernel[half], ok, why = c.KernelCauses(half, backend); !ok {
			r.Books.KernelClosed = false
			switch {
			case backend == BackendBare && (half == Sealed || len(r.VCPUs) > 0): // it is true of every thread
			case backend == BackendBare:
				r.Books.Why = append(r.Books.Why, why)
			case backend != "":
				r.Books.Why = append(r.Books.Why, where+why)
			case half == Sealed || several && f.NoStatistics != "" && len(r.VCPUs) > 0: // once is enough
			case several && f.NoStatistics != "":
				r.Books.Why = append(r.Books.Why, why)
			default:
				r.Books.Why = append(r.Books.Why, fmt.Sprintf("vCPU %d: %s", c.ID, why))
			}
		}
		r.Books.Unknown += b.Cause[Unknown].Count
	}
	whole := c.Book[Open]
	whole.merge(&c.Book[Sealed])
	var wholeKernel [NCause]uint64
	for i := range wholeKernel {
		wholeKernel[i] = kernel[Open][i] + kernel[Sealed][i]
	}
	v.Open = bookReport(f, &c.Book[Open], &kernel[Open], c.TSCHz, backend)
	v.Sealed = bookReport(f, &c.Book[Sealed], &kernel[Sealed], c.TSCHz, backend)
	v.Breaks = bookReport(f, &whole, &wholeKernel, c.TSCHz, backend)
	v.GuestNS = v.Breaks.GuestNS
	v.Ring = ringReport(f, l)
	if l.Statistics[Open] != nil || l.Statistics[Sealed] != nil {
		v.Open.Kernel, v.Sealed.Kernel, v.Breaks.Kernel = map[string]uint64{}, map[string]uint64{}, map[string]uint64{}
		for half, to := range []*BookReport{&v.Open, &v.Sealed} {
			for name, n := range l.Statistics[half] {
				to.Kernel[name] = n
				v.Breaks.Kernel[name] += n
			}
		}
	}
	r.VCPUs = append(r.VCPUs, v)
}

// ringReport is nil for a vCPU whose calls all were exits.
func ringReport(f *Facts, l *Ledger) *RingReport {
	c := &l.Counts
	if c.RingCalls+c.RingHanded == 0 {
		return nil
	}
	out := &RingReport{Calls: c.RingCalls, Handed: c.RingHanded, Histogram: []Bucket{}, Syscalls: []SyscallCount{}}
	if l.Ring == nil {
		return out
	}
	out.WaitedNS, out.MaxNS = Nanoseconds(l.Ring.Waited, c.TSCHz), Nanoseconds(l.Ring.Longest, c.TSCHz)
	out.Histogram = buckets(l.Ring.Hist[:], c.TSCHz)
	for nr, n := range l.Ring.Syscall {
		if n.Count != 0 {
			out.Syscalls = append(out.Syscalls, SyscallCount{Nr: nr, Name: f.syscallName(nr), Count: n.Count, LostNS: Nanoseconds(n.Lost, c.TSCHz)})
		}
	}
	return out
}

// checkBook tests invariant 1 of the package on the raw book, in cycles.
func checkBook(b *Book) (why []string) {
	var count, lost, numbered, numberedLost uint64
	for i := range b.Cause {
		c := &b.Cause[i]
		if Cause(i).FromKernel() {
			if c.Count != 0 || c.Lost != 0 {
				why = append(why, fmt.Sprintf("%s has %d breaks in the ledger, where the kernel's causes have none", Cause(i), c.Count))
			}
			continue
		}
		count, lost = add(count, c.Count), add(lost, c.Lost)
		if h := sum(c.Hist[:]); h != c.Count {
			why = append(why, fmt.Sprintf("%s counts %d breaks and has the lengths of %d", Cause(i), c.Count, h))
		}
	}
	if count != b.Total {
		why = append(why, fmt.Sprintf("%d returns of KVM_RUN, the causes add up to %d", b.Total, count))
	}
	if lost != b.Lost {
		why = append(why, fmt.Sprintf("%d cycles outside the guest, the causes add up to %d", b.Lost, lost))
	}
	for _, n := range b.Syscall {
		numbered, numberedLost = add(numbered, n.Count), add(numberedLost, n.Lost)
	}
	// The calls that seal and the call that ends are planned, and may be numbered as well.
	s := &b.Cause[Syscall]
	if numbered < s.Count || numbered > add(s.Count, add(b.Cause[Seal].Count, b.Cause[End].Count)) || numberedLost < s.Lost {
		why = append(why, fmt.Sprintf("%d system calls of %d cycles, the numbers add up to %d of %d", s.Count, s.Lost, numbered, numberedLost))
	}
	return why
}

func (b *Book) merge(o *Book) {
	b.Total += o.Total
	b.Lost += o.Lost
	b.Guest += o.Guest
	for i := range b.Cause {
		x, y := &b.Cause[i], &o.Cause[i]
		x.Count += y.Count
		x.Lost += y.Lost
		x.Max = max(x.Max, y.Max)
		for j := range x.Hist {
			x.Hist[j] += y.Hist[j]
		}
	}
	for i := range b.Syscall {
		b.Syscall[i].Count += o.Syscall[i].Count
		b.Syscall[i].Lost += o.Syscall[i].Lost
	}
	for i := range b.Kernel {
		b.Kernel[i] += o.Kernel[i]
	}
}

func bookReport(f *Facts, b *Book, kernel *[NCause]uint64, hz uint64, backend string) BookReport {
	out := BookReport{GuestNS: Nanoseconds(b.Guest, hz), Returns: b.Total,
		ByCause: map[string]CauseCount{}, Planned: map[string]CauseCount{}, Syscalls: []SyscallCount{}}
	for c := range NCause {
		entry := CauseCount{Histogram: []Bucket{}}
		if c.FromKernel() {
			entry.Count = kernel[c]
		} else {
			n := &b.Cause[c]
			lost, longest := Nanoseconds(n.Lost, hz), Nanoseconds(n.Max, hz)
			entry = CauseCount{Count: n.Count, LostNS: &lost, MaxNS: &longest, Histogram: buckets(n.Hist[:], hz)}
		}
		if entry.Count == 0 {
			continue
		}
		if c.Planned() {
			out.Planned[c.String()] = entry
			continue
		}
		out.ByCause[c.String()] = entry
		out.Total += entry.Count
		if entry.LostNS != nil {
			out.LostNS += *entry.LostNS
			out.MaxNS = max(out.MaxNS, *entry.MaxNS)
		}
	}
	for nr, n := range b.Syscall {
		if n.Count != 0 {
			out.Syscalls = append(out.Syscalls, SyscallCount{Nr: nr, Name: f.syscallName(nr), Count: n.Count, LostNS: Nanoseconds(n.Lost, hz)})
		}
	}
	if backend != "" {
		out.Kernel = map[string]uint64{}
		for i, n := range b.Kernel {
			out.Kernel[KernelNames[i]] = n
		}
	}
	return out
}

func (f *Facts) syscallName(nr int) string {
	if nr == NSyscall-1 {
		return strconv.Itoa(nr) + " and above"
	}
	if f.SyscallName == nil {
		return ""
	}
	return f.SyscallName(nr)
}

// topSites adds up the sites that differ only by their stack, over all vCPUs, and gives the costliest:
// by time lost, then by count, then by address.
func topSites(f *Facts, ledgers []Ledger) []TopSite {
	type key struct {
		rip       uint64
		cause, nr uint32
	}
	found := map[key]*TopSite{}
	for i := range ledgers {
		hz := ledgers[i].Counts.TSCHz
		for j := range ledgers[i].Sites {
			s := &ledgers[i].Sites[j]
			if s.Cause == 0 || s.Cause > uint32(NCause) || Cause(s.Cause-1).Planned() {
				continue
			}
			k := key{s.RIP, s.Cause, s.Nr}
			t := found[k]
			if t == nil {
				t = &TopSite{Cause: Cause(s.Cause - 1).String(), Nr: s.Nr}
				if f.Symbol != nil {
					t.Location = f.Symbol(s.RIP)
				}
				t.RIP = Hex(s.RIP)
				if Cause(s.Cause-1) == Syscall {
					t.Name = f.siteName(s.Nr)
				}
				found[k] = t
			}
			t.Count += s.Count[Open] + s.Count[Sealed]
			t.SealedCount += s.Count[Sealed]
			t.SealedLostNS += Nanoseconds(s.Lost[Sealed], hz)
			t.LostNS += Nanoseconds(s.Lost[Open], hz) + Nanoseconds(s.Lost[Sealed], hz)
			t.MaxNS = max(t.MaxNS, Nanoseconds(s.Max, hz))
		}
	}
	top := make([]TopSite, 0, len(found))
	for _, t := range found {
		top = append(top, *t)
	}
	slices.SortFunc(top, func(a, b TopSite) int {
		return cmp.Or(cmp.Compare(b.LostNS, a.LostNS), cmp.Compare(b.Count, a.Count), cmp.Compare(a.RIP, b.RIP),
			cmp.Compare(a.Cause, b.Cause), cmp.Compare(a.Nr, b.Nr))
	})
	limit := f.Sites
	if limit <= 0 {
		limit = 20
	}
	return top[:min(limit, len(top))]
}

// siteName names the system call of a site, whose number is whole where the table of numbers ends early.
func (f *Facts) siteName(nr uint32) string {
	if f.SyscallName == nil {
		return ""
	}
	return f.SyscallName(int(nr))
}

// addBudget judges each vCPU on its own sealed book. One that was never sealed has promised nothing: it
// is judged, as untested, only where none was.
func (r *Report) addBudget(f *Facts, ledgers []Ledger) {
	if f.Budget == nil {
		return
	}
	b := *f.Budget
	sealed := slices.ContainsFunc(ledgers, func(l Ledger) bool { return l.Counts.Seals > 0 })
	s := &BudgetState{Spec: b.Spec, State: Untested, BrokenBy: []string{}, Clauses: []ClauseOfVCPU{}}
	if len(ledgers) > 0 {
		s.State = Kept
	}
	for i := range ledgers {
		c := &ledgers[i].Counts
		if sealed && c.Seals == 0 {
			continue
		}
		b.Backend = f.backend(&ledgers[i])
		v := b.Check(c, max(ledgers[i].Now, c.LastOut, c.LastIn))
		for _, k := range v.Clauses {
			s.Clauses = append(s.Clauses, ClauseOfVCPU{c.ID, k})
		}
		for _, why := range v.BrokenBy() {
			s.BrokenBy = append(s.BrokenBy, fmt.Sprintf("vCPU %d: %s", c.ID, why))
		}
		s.State = worseState(s.State, v.State)
	}
	s.OK = s.State == Kept
	r.Budget = s
}

// certify lists what speaks against a certificate. None is issued from this evidence alone: a
// disturbance that neither leaves the guest nor is an exit (an SMI, a stolen core) is not in a ledger.
func (r *Report) certify(f *Facts) {
	failed := []string{"host events were not recorded: a disturbance that is no exit cannot be excluded"}
	fail := func(bad bool, format string, args ...any) {
		if bad {
			failed = append(failed, fmt.Sprintf(format, args...))
		}
	}
	fail(r.Host.Nested, "nested: exits to the outer hypervisor are invisible here")
	fail(!r.Books.Closed, "the books are not closed")
	fail(r.Books.Unknown > 0, "%d breaks are of unknown cause", r.Books.Unknown)
	lost := r.Books.EventsLost + r.Books.SitesLost + r.Books.StacksLost
	fail(lost > 0, "%d records were lost", lost)
	sealed := slices.ContainsFunc(r.VCPUs, func(v VCPUReport) bool { return v.Seals > 0 })
	fail(!sealed && len(r.VCPUs) > 1, "no vCPU was ever sealed")
	for _, s := range r.RefusedSeals {
		fail(true, "%s", s)
	}
	for _, v := range r.VCPUs {
		fail(!sealed && len(r.VCPUs) == 1, "vCPU %d was never sealed", v.ID)
		fail(v.Sealed.Total > 0, "vCPU %d left the guest %d times while sealed", v.ID, v.Sealed.Total)
	}
	r.Certificate = Certificate{FailedClauses: append(failed, f.FailedClauses...)}
}
