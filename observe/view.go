package observe

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// WriteList prints the table of `cloister ps`. A VM without a monitor shows what its ledger tells.
func WriteList(w io.Writer, list []*Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	// tabwriter keeps its first error until Flush.
	fmt.Fprintln(t, "NAME\tPID\tCPU\tSTATE\tWALL\tBREAKS/S\tSEALED BREAKS\tPROGRAM")
	for _, s := range list {
		state, wall, rate, sealed := s.State, "-", "-", "-"
		switch {
		case s.Trouble != "":
			state += " (no answer)"
		case s.Monitor == nil:
			state += " (no monitor)"
		}
		if len(s.VCPUs) > 0 {
			all, least := s.total()
			wall = span(s.WallNS)
			rate = least + perSecond(all, s.WallNS)
			var n uint64
			for i := range s.VCPUs {
				n += s.VCPUs[i].Sealed.Total
			}
			sealed = least + strconv.FormatUint(n, 10)
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", oneLine(s.Name), s.Engine, s.cpus(), state, wall, rate, sealed, oneLine(s.program()))
	}
	return t.Flush()
}

func (s *Status) program() string {
	if s.Program == "" {
		return "-"
	}
	return s.Program
}

func (s *Status) cpus() string {
	var list []string
	for i := range s.VCPUs {
		if c := s.VCPUs[i].CPU; c != nil {
			list = append(list, strconv.FormatUint(uint64(*c), 10))
		}
	}
	if list == nil {
		return "-"
	}
	return strings.Join(list, ",")
}

// total is the breaks of both books of all vCPUs, and ">=" where not all are known.
func (s *Status) total() (n uint64, least string) {
	for i := range s.VCPUs {
		v := &s.VCPUs[i]
		n += v.Open.Total + v.Sealed.Total
		if v.Open.NotKnown != "" || v.Sealed.NotKnown != "" {
			least = ">="
		}
	}
	return n, least
}

// WriteStats prints what `cloister stats` shows: for each cause the count so far and the rate between
// two moments. With before == nil there are no rates yet.
func WriteStats(w io.Writer, before, now *Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	monitor := "none: the guest runs on, its end will not be reported"
	if now.Monitor != nil {
		monitor = strconv.Itoa(*now.Monitor)
	}
	fmt.Fprintf(t, "%s: %s, %s, wall %s, engine %d, monitor %s\n", oneLine(now.Name), oneLine(now.program()), now.State, span(now.WallNS), now.Engine, monitor)
	if m := now.Memory; m.Engine != nil && m.Monitor != nil && m.Guest != nil {
		fmt.Fprintf(t, "memory: engine %s private, monitor %s private, guest %s\n", size(m.Engine.Private), size(m.Monitor.Private), size(*m.Guest))
	}
	several := len(now.VCPUs) > 1
	if several {
		writeVCPUs(t, before, now)
	}
	sealed := false
	for i := range now.VCPUs {
		v := &now.VCPUs[i]
		sealed = sealed || v.Seals > 0
		writeVCPU(t, before.vcpu(v.ID), v, several)
	}
	for _, c := range now.Budget {
		if sealed && c.State == breaks.Untested {
			continue // a vCPU that was never sealed is not held against those that were
		}
		fmt.Fprintf(t, "\nbudget, vCPU %d: %s: %s", c.VCPU, c.Clause, c.State)
		if c.Why != "" {
			fmt.Fprintf(t, " (%s)", oneLine(c.Why))
		}
	}
	if len(now.Budget) > 0 {
		fmt.Fprintln(t)
	}
	return t.Flush()
}

// vcpu finds the vCPU of that id; nil: there is none yet.
func (s *Status) vcpu(id uint32) *VCPU {
	if s == nil {
		return nil
	}
	for i := range s.VCPUs {
		if s.VCPUs[i].ID == id {
			return &s.VCPUs[i]
		}
	}
	return nil
}

// writeVCPUs shows who the vCPUs are, one a line.
func writeVCPUs(t io.Writer, before, now *Status) {
	fmt.Fprintln(t, "\n  vcpu\tcpu\tthread\tstate\twall\tbreaks\tper second\tsealed\tsealed breaks")
	for i := range now.VCPUs {
		v := &now.VCPUs[i]
		cpu, sealed, spent, rate := "-", "never", "-", "-"
		if v.CPU != nil {
			cpu = strconv.FormatUint(uint64(*v.CPU), 10)
		}
		if v.Seals > 0 {
			sealed, spent = span(v.SealedNS), v.Sealed.least()
		}
		n := v.Open.Total + v.Sealed.Total
		if old := before.vcpu(v.ID); old != nil && v.WallNS > old.WallNS {
			was := old.Open.Total + old.Sealed.Total
			rate = perSecond(n-min(was, n), v.WallNS-old.WallNS)
		}
		all := strconv.FormatUint(n, 10)
		if v.Open.NotKnown != "" || v.Sealed.NotKnown != "" {
			all = ">=" + all
		}
		fmt.Fprintf(t, "  %d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", v.ID, cpu, v.thread(), v.State, span(v.WallNS), all, rate, sealed, spent)
	}
}

func (v *VCPU) thread() string {
	if name := oneLine(v.Thread); name != "" {
		return name
	}
	return "-"
}

// least is the total of a book, and ">=" where not all of it is known.
func (b *Book) least() string {
	if b.NotKnown != "" {
		return ">=" + strconv.FormatUint(b.Total, 10)
	}
	return strconv.FormatUint(b.Total, 10)
}

func writeVCPU(t io.Writer, old, v *VCPU, several bool) {
	cpu, who, idle := "no core of its own", "", ""
	if v.CPU != nil {
		cpu = fmt.Sprintf("CPU %d", *v.CPU)
	}
	if several {
		who = fmt.Sprintf(" (%s)", v.thread())
	}
	if v.IdleNS > 0 {
		idle = ", without a thread " + span(v.IdleNS)
	}
	fmt.Fprintf(t, "\nvCPU %d%s on %s: %s, sealed %s%s\n", v.ID, who, cpu, v.State, span(v.SealedNS), idle)
	fmt.Fprintln(t, "  cause\tsealed\tper second\topen\tper second\tlost\tworst")
	names := map[string]bool{}
	for _, b := range []*Book{&v.Open, &v.Sealed} {
		for name := range b.ByCause {
			names[name] = true
		}
	}
	var dt uint64 // of wall time
	was := &VCPU{}
	if old != nil && v.WallNS > old.WallNS {
		dt, was = v.WallNS-old.WallNS, old
	}
	// Most costly first; the kernel's causes have no price but their count.
	price := func(name string) (lost, count uint64) {
		for _, b := range []*Book{&v.Open, &v.Sealed} {
			lost += value(b.ByCause[name].LostNS)
			count += value(b.ByCause[name].Count)
		}
		return lost, count
	}
	for _, name := range slices.SortedFunc(maps.Keys(names), func(a, b string) int {
		la, ca := price(a)
		lb, cb := price(b)
		switch {
		case la != lb:
			return order(lb, la)
		case ca != cb:
			return order(cb, ca)
		}
		return strings.Compare(a, b)
	}) {
		s, o := v.Sealed.ByCause[name], v.Open.ByCause[name]
		lost, worst := "not timed", "-"
		if s.LostNS != nil || o.LostNS != nil {
			lost, worst = span(value(s.LostNS)+value(o.LostNS)), span(max(value(s.MaxNS), value(o.MaxNS)))
		}
		if s.Planned || o.Planned {
			name += " (planned)"
		}
		bare := strings.TrimSuffix(name, " (planned)")
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%s\t%s\t%s\n", name, v.Sealed.count(bare), pace(&was.Sealed, &v.Sealed, bare, dt),
			v.Open.count(bare), pace(&was.Open, &v.Open, bare, dt), lost, worst)
	}
	between := func(a, b uint64) string {
		if dt == 0 {
			return "-"
		}
		return perSecond(b-min(a, b), dt)
	}
	fmt.Fprintf(t, "  total\t%s\t%s\t%s\t%s\t%s\t\n", v.Sealed.least(), between(was.Sealed.Total, v.Sealed.Total), v.Open.least(),
		between(was.Open.Total, v.Open.Total), span(v.Sealed.LostNS+v.Open.LostNS))
	for _, why := range []string{v.Open.NotKnown, v.Sealed.NotKnown} {
		if why != "" {
			fmt.Fprintf(t, "  ?: %s\n", oneLine(why))
			break
		}
	}
}

// count of a cause in words.
func (b *Book) count(name string) string {
	c, ok := b.ByCause[name]
	switch {
	case !ok:
		return "0"
	case c.Count == nil:
		return "?"
	}
	return strconv.FormatUint(*c.Count, 10)
}

// pace is breaks of a cause per second of wall time between two moments.
func pace(was, b *Book, name string, dt uint64) string {
	c, ok := b.ByCause[name]
	switch {
	case ok && c.Count == nil:
		return "?"
	case dt == 0:
		return "-"
	}
	now, before := value(c.Count), value(was.ByCause[name].Count)
	return perSecond(now-min(before, now), dt)
}

func value(p *uint64) uint64 {
	if p == nil {
		return 0
	}
	return *p
}

func order(a, b uint64) int {
	if a < b {
		return -1
	}
	return 1
}

// perSecond shows n in ns nanoseconds with three digits.
func perSecond(n, ns uint64) string {
	if ns == 0 {
		return "-"
	}
	r := float64(n) / (float64(ns) / 1e9)
	switch {
	case n == 0:
		return "0"
	case r >= 100:
		return strconv.FormatFloat(r, 'f', 0, 64)
	case r >= 0.01:
		return strconv.FormatFloat(r, 'g', 3, 64)
	}
	return "<0.01"
}

// span shows a time with about three digits.
func span(ns uint64) string {
	d := time.Duration(min(ns, 1<<63-1))
	for _, unit := range []time.Duration{time.Second, time.Millisecond, time.Microsecond} {
		if d >= 100*unit {
			return d.Round(unit).String()
		}
		if d >= unit {
			return d.Round(unit / 100).String()
		}
	}
	return d.String()
}

// size shows bytes in KiB or MiB.
func size(b uint64) string {
	if b < 10<<20 {
		return strconv.FormatUint(b>>10, 10) + " KiB"
	}
	return strconv.FormatUint(b>>20, 10) + " MiB"
}
