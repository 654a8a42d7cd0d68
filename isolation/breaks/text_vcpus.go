package breaks

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Bounds of the table of vCPUs: it is there to be taken in at a glance, the JSON report has everything.
const (
	vcpuRows    = 16
	threadNames = 3
)

// vcpus prints several vCPUs: who they are in one table, then what they spent, added up.
func (p *page) vcpus(list []VCPUReport, sites []TopSite) {
	p.line("")
	t := table{left: []int{2}}
	if p.bare {
		t.row("thread", "core", "name", "tid", "wall", "running", "breaks", "sealed", "sealed breaks")
	} else {
		t.row("vCPU", "core", "threads", "wall", "in guest", "breaks", "lost", "sealed", "sealed breaks")
	}
	for _, i := range worthARow(list) {
		v := &list[i]
		core, sealed, spent := "-", "never", "-"
		if v.CPU != nil {
			core = strconv.FormatUint(uint64(*v.CPU), 10)
		}
		if v.Seals > 0 {
			sealed, spent = duration(v.SealedNS), v.Sealed.least()+strconv.FormatUint(v.Sealed.Total, 10)
		}
		lost := duration(v.Breaks.LostNS)
		switch timed, untimed := v.Breaks.timed(); {
		case untimed > 0 && timed == 0:
			lost = "not timed"
		case untimed > 0 || v.Breaks.Kernel == nil:
			lost = ">= " + lost
		}
		id, inside, all := strconv.FormatUint(uint64(v.ID), 10), orElse(share(v.GuestNS, v.WallNS), "-"), v.Breaks.least()+strconv.FormatUint(v.Breaks.Total, 10)
		if p.bare { // no length is known
			t.row(id, core, v.threadNames(), strconv.Itoa(v.TID), duration(v.WallNS), inside, all, sealed, spent)
		} else {
			t.row(id, core, v.threadNames(), duration(v.WallNS), inside, all, lost, sealed, spent)
		}
	}
	t.write(p, "  ")
	if more := len(list) - vcpuRows; more > 0 {
		p.line("  and %s more, never sealed or less disturbed, in the JSON report", plural(uint64(more), p.noun()))
	}
	if p.bare {
		p.line("  breaks are those that the kernel counts, none of them timed")
	}

	var sealed, open BookReport
	var sealedNS, openNS, idleNS uint64
	sealedOnes, openOnes := 0, 0
	for i := range list {
		v := &list[i]
		idleNS += v.IdleNS
		if v.Seals > 0 {
			sealedOnes++
			sealedNS += v.SealedNS
			sealed.merge(&v.Sealed)
		}
		if ns := span(v.SealedNS, v.WallNS); ns > 0 || v.Open.Returns > 0 || v.Open.Total > 0 {
			openOnes++
			openNS += ns
			open.merge(&v.Open)
		}
	}
	if idleNS > 0 {
		p.line("  %s of vCPUs that had no thread to run are in no figure", duration(idleNS))
	}
	half := func(title string, b *BookReport, ns uint64, n int, of func(*VCPUReport) *BookReport) {
		p.book(title+" on "+plural(uint64(n), p.noun()), b, ns, sites, func(cause string) string {
			for i := range list {
				if c, ok := of(&list[i]).ByCause[cause]; ok && c.MaxNS != nil && *c.MaxNS == b.MaxNS {
					return fmt.Sprintf(" on vCPU %d", list[i].ID)
				}
			}
			return ""
		})
	}
	if sealedOnes > 0 {
		half("sealed", &sealed, sealedNS, sealedOnes, func(v *VCPUReport) *BookReport { return &v.Sealed })
	}
	title := "open (not sealed)"
	if sealedOnes == 0 {
		title = "never sealed"
	}
	if openOnes > 0 {
		half(title, &open, openNS, openOnes, func(v *VCPUReport) *BookReport { return &v.Open })
	}
	if p.bare {
		p.statistics(list)
	}
}

// worthARow gives the places of the vCPUs that the table has room for, in their order: the sealed ones
// first, then those with a core of their own, then those that lost most.
func worthARow(list []VCPUReport) []int {
	rows := make([]int, len(list))
	for i := range rows {
		rows[i] = i
	}
	bit := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(rows, func(i, j int) int {
		a, b := &list[i], &list[j]
		return cmp.Or(cmp.Compare(bit(b.Seals > 0), bit(a.Seals > 0)), cmp.Compare(bit(b.CPU != nil), bit(a.CPU != nil)),
			cmp.Compare(b.Breaks.LostNS, a.Breaks.LostNS))
	})
	rows = rows[:min(vcpuRows, len(rows))]
	slices.Sort(rows)
	return rows
}

// threadNames are the latest different names of the vCPU's threads, and how many there were besides.
func (v *VCPUReport) threadNames() string {
	var names []string
	for i := range v.Threads {
		name := orElse(clean(v.Threads[len(v.Threads)-1-i].Name), "?")
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "-"
	}
	s := strings.Join(names[:min(threadNames, len(names))], ", ")
	if n := uint64(len(v.Threads)) + v.ThreadsNotKept; n > 1 {
		s += fmt.Sprintf(" (%d threads)", n)
	}
	return s
}

// least says that a count is what is known of it.
func (b *BookReport) least() string {
	if b.Kernel == nil {
		return ">= "
	}
	return ""
}

// merge adds what the text shows of a book.
func (b *BookReport) merge(o *BookReport) {
	b.Total += o.Total
	b.LostNS += o.LostNS
	b.MaxNS = max(b.MaxNS, o.MaxNS)
	b.Returns += o.Returns
	b.ByCause = mergeCauses(b.ByCause, o.ByCause)
	b.Planned = mergeCauses(b.Planned, o.Planned)
}

func mergeCauses(to, from map[string]CauseCount) map[string]CauseCount {
	if to == nil {
		to = map[string]CauseCount{}
	}
	for name, c := range from {
		was, ok := to[name]
		if !ok {
			to[name] = c
			continue
		}
		was.Count += c.Count
		if was.LostNS != nil && c.LostNS != nil {
			lost, longest := *was.LostNS+*c.LostNS, max(*was.MaxNS, *c.MaxNS)
			was.LostNS, was.MaxNS = &lost, &longest
		}
		to[name] = was
	}
	return to
}

// verdicts prints how the clauses of a budget stand, with their vCPU where there are several.
func (p *page) verdicts(b *BudgetState, several bool) {
	if several && b.State == Untested {
		p.line("          - %s no %s was ever sealed", b.State, p.noun())
		return
	}
	for _, c := range b.Clauses {
		who := ""
		if several {
			who = fmt.Sprintf("%s %d: ", p.noun(), c.VCPU)
		}
		switch {
		case c.State == Kept:
			p.line("          - %s%s: %s used", who, clean(c.Clause), used(c.ClauseVerdict))
		case c.State == Broken:
			p.line("          - %s %s %d: %s", p.paint(red, "broken:"), p.noun(), c.VCPU, clean(c.Why))
		default:
			p.line("          - %s %s%s: %s", c.State, who, clean(c.Clause), clean(c.Why))
		}
	}
}
