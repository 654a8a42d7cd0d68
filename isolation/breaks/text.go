package breaks

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// TextOptions chooses how a report looks on a terminal.
type TextOptions struct {
	Color   bool // only for a terminal whose user wants it
	Timings bool // the phases of start-up as well
	Sites   int  // rows of top sites; 0: 8
}

// WriteText prints the report for a human: what ended the run, where the time went, each cause with
// its price, sealed apart from open, and whether the figures can be trusted.
func (r *Report) WriteText(w io.Writer, o TextOptions) error {
	p := &page{color: o.Color, bare: r.Host.Backend == BackendBare}
	p.head(r)
	if r.Fault != nil {
		p.fault(r.Fault)
	}
	if len(r.VCPUs) > 1 {
		p.vcpus(r.VCPUs, r.TopSites)
	} else if len(r.VCPUs) == 1 {
		p.vcpu(&r.VCPUs[0], r.TopSites)
	}
	p.rings(r.VCPUs)
	p.patches(r.Patches, r.PatchPauses, r.PatchLog)
	p.sites(r.TopSites, o.Sites)
	for i := range r.GapRecords {
		p.gap(&r.GapRecords[i])
	}
	if o.Timings && len(r.Timings) > 0 {
		p.timings(r.Timings)
	}
	p.verdict(r)
	if _, err := w.Write(p.Bytes()); err != nil {
		return fmt.Errorf("report: writing text: %w", err)
	}
	return nil
}

// WriteText prints the record as a log-scale histogram with its key figures.
func (g *GapReport) WriteText(w io.Writer, o TextOptions) error {
	p := &page{color: o.Color}
	p.gap(g)
	if _, err := w.Write(p.Bytes()); err != nil {
		return fmt.Errorf("gap record: writing text: %w", err)
	}
	return nil
}

// page collects the text, so that a terminal gets it in one piece.
type page struct {
	bytes.Buffer
	color bool
	bare  bool // a native run
}

func (p *page) line(format string, args ...any) {
	fmt.Fprintf(p, format, args...) // a bytes.Buffer returns no error
	p.WriteByte('\n')
}

// Escape sequences of ECMA-48, 8.3.117 (SGR): bold, red, green.
const (
	bold  = "1"
	red   = "31;1"
	green = "32"
)

func (p *page) paint(style, s string) string {
	if !p.color {
		return s
	}
	return "\x1b[" + style + "m" + s + "\x1b[0m"
}

// clean keeps what came out of a program (names, paths) from steering the terminal.
func clean(s string) string {
	return strings.Map(func(c rune) rune {
		if c == utf8.RuneError || !unicode.IsPrint(c) {
			return '?'
		}
		return c
	}, s)
}

func (p *page) head(r *Report) {
	p.line("%s %s: %s", p.paint(bold, "cloister:"), clean(orElse(r.Program.Path, "(no program)")), clean(orElse(r.Exit.Reason, "ended")))
	var facts []string
	for _, f := range [][2]string{{"back end ", r.Host.Backend}, {"kernel ", r.Host.Kernel}, {"", r.Host.CPU}} {
		if f[1] != "" {
			facts = append(facts, f[0]+clean(f[1]))
		}
	}
	if len(facts) > 0 {
		p.line("  host: %s", strings.Join(facts, ", "))
	}
	if r.Host.Nested {
		p.line("  %s this host is itself a guest%s: exits to the outer hypervisor are invisible here, so no zero is certified",
			p.paint(red, "nested:"), inBrackets(clean(r.Host.Hypervisor)))
	}
}

func (p *page) vcpu(v *VCPUReport, sites []TopSite) {
	core := "on no core of its own"
	if v.CPU != nil {
		core = fmt.Sprintf("on CPU %d", *v.CPU)
	}
	p.line("")
	what, where := fmt.Sprintf("vCPU %d", v.ID), "inside KVM_RUN"
	if p.bare {
		what, where = fmt.Sprintf("thread %d (%s)", v.TID, v.threadNames()), "running"
	}
	p.line("%s %s: wall %s, %s %s%s, sealed %s", p.paint(bold, what), core, duration(v.WallNS), where,
		duration(v.GuestNS), inBrackets(share(v.GuestNS, v.WallNS)), duration(v.SealedNS))
	all := &v.Breaks
	if p.bare {
		p.line("  %s that the kernel counts, %s per second, not timed", plural(all.Total, "break"), rate(all.Total, v.WallNS))
	} else {
		p.line("  %s, %s per second, %s", plural(all.Total, "break"), rate(all.Total, v.WallNS), lostText(all, v.WallNS))
	}
	open := span(v.SealedNS, v.WallNS)
	if v.Seals == 0 {
		p.book("never sealed", &v.Open, open, sites, nowhere)
	} else {
		p.book("sealed", &v.Sealed, v.SealedNS, sites, nowhere)
		if open > 0 || v.Open.Returns > 0 || v.Open.Total > 0 {
			p.book("open (not sealed)", &v.Open, open, sites, nowhere)
		}
	}
	if p.bare {
		p.statistics([]VCPUReport{*v})
	}
}

// nowhere is who had the worst break where there is one vCPU only.
func nowhere(string) string { return "" }

// book prints one book of one vCPU, or of several added up; who says whose the worst break of a cause was.
func (p *page) book(title string, b *BookReport, ns uint64, sites []TopSite, who func(cause string) string) {
	p.line("")
	if b.Total == 0 {
		none := "no breaks"
		if p.bare {
			none = "none that the kernel counts"
		}
		p.line("  %s, %s: %s%s", p.paint(bold, title), duration(ns), none, plannedText(b))
		return
	}
	p.line("  %s, %s: %s, %s%s", p.paint(bold, title), duration(ns), plural(b.Total, "break"), lostText(b, ns), plannedText(b))
	t := table{left: []int{0, 5}}
	t.row("cause", "count", "per second", "lost", "worst", "count, log scale")
	worst := ""
	for _, name := range byPrice(b.ByCause) {
		c := b.ByCause[name]
		lost, longest := "not timed", "-"
		if c.LostNS != nil {
			lost, longest = duration(*c.LostNS), duration(*c.MaxNS)
			if *c.MaxNS == b.MaxNS && worst == "" {
				worst = name
			}
		}
		t.row(clean(name), strconv.FormatUint(c.Count, 10), rate(c.Count, ns), lost, longest, logBar(c.Count, b.Total, 20))
	}
	lost, longest := duration(b.LostNS), duration(b.MaxNS)
	switch timed, untimed := b.timed(); {
	case untimed > 0 && timed == 0:
		lost, longest = "not timed", "-"
	case untimed > 0:
		lost, longest = ">= "+lost, ">= "+longest
	}
	t.row("total", strconv.FormatUint(b.Total, 10), rate(b.Total, ns), lost, longest, "")
	t.write(p, "    ")
	if worst != "" {
		p.line("    worst break: %s, %s%s%s", duration(b.MaxNS), worst, siteOf(sites, worst, b.MaxNS), who(worst))
	}
}

// timed counts the breaks whose length was measured, and those that only the kernel saw.
func (b *BookReport) timed() (timed, untimed uint64) {
	for _, c := range b.ByCause {
		if c.LostNS == nil {
			untimed += c.Count
		} else {
			timed += c.Count
		}
	}
	return timed, untimed
}

// lostText says what breaks cost, as far as that was measured: a time that was not is no zero.
func lostText(b *BookReport, ns uint64) string {
	timed, untimed := b.timed()
	switch {
	case untimed > 0 && timed == 0:
		return "none of them timed"
	case untimed > 0:
		return fmt.Sprintf("%s lost%s in the %d that are timed", duration(b.LostNS), inBrackets(share(b.LostNS, ns)), timed)
	}
	return fmt.Sprintf("%s lost%s", duration(b.LostNS), inBrackets(share(b.LostNS, ns)))
}

// siteOf names the place of the worst break, if it is among the sites that are kept.
func siteOf(sites []TopSite, cause string, ns uint64) string {
	for _, s := range sites {
		if s.Cause == cause && s.MaxNS == ns {
			return " at " + place(s.Location)
		}
	}
	return ""
}

func plannedText(b *BookReport) string {
	var n uint64
	for _, c := range b.Planned {
		n += c.Count
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("; %d planned, apart", n)
}

// byPrice orders causes by time lost, then count; the ones that are not timed come last.
func byPrice(m map[string]CauseCount) []string {
	list := make([]string, 0, len(m))
	for name := range m {
		list = append(list, name)
	}
	price := func(name string) (lost, count uint64) {
		c := m[name]
		if c.LostNS == nil {
			return 0, c.Count
		}
		return *c.LostNS, c.Count
	}
	slices.SortFunc(list, func(a, b string) int {
		al, ac := price(a)
		bl, bc := price(b)
		return cmp.Or(cmp.Compare(bl, al), cmp.Compare(bc, ac), cmp.Compare(a, b))
	})
	return list
}

func (p *page) sites(sites []TopSite, rows int) {
	if len(sites) == 0 {
		return
	}
	if rows <= 0 {
		rows = 8
	}
	p.line("")
	p.line("  %s", p.paint(bold, "top sites"))
	t := table{left: []int{0, 1}}
	t.row("where", "cause", "count", "sealed", "lost", "worst")
	for _, s := range sites[:min(rows, len(sites))] {
		t.row(place(s.Location), clean(siteCause(&s)), strconv.FormatUint(s.Count, 10), strconv.FormatUint(s.SealedCount, 10),
			duration(s.LostNS), duration(s.MaxNS))
	}
	t.write(p, "    ")
	if more := len(sites) - rows; more > 0 {
		p.line("    and %s more in the JSON report", plural(uint64(more), "site"))
	}
}

func siteCause(s *TopSite) string {
	switch {
	case s.Cause == Syscall.String():
		return s.Cause + " " + orElse(s.Name, strconv.FormatUint(uint64(s.Nr), 10))
	case s.Cause == PIO.String():
		return fmt.Sprintf("%s port %#x", s.Cause, s.Nr)
	}
	return s.Cause
}

// place is "symbol file:line (address)", as much of it as is known.
func place(l Location) string {
	s := l.RIP.String()
	if l.Symbol == "" && l.File == "" {
		return s
	}
	where := l.Symbol
	if l.File != "" {
		where = strings.TrimSpace(where + " " + l.File + ":" + strconv.Itoa(l.Line))
	}
	return clean(where) + " (" + s + ")"
}

func (p *page) fault(f *Fault) {
	address := "address not known"
	if f.Address != nil {
		address = "address " + f.Address.String()
	}
	p.line("")
	p.line("  %s %s, rip %s, thread %s (%d) on vCPU %d", p.paint(red, clean(f.Signal)+":"), address, f.RIP, orElse(clean(f.Name), "?"), f.Thread, f.VCPU)
	for i, l := range f.Backtrace {
		p.line("    #%-2d %s", i, place(l))
	}
	const columns = 4
	names := make([]string, 0, len(f.Registers))
	for name := range f.Registers {
		names = append(names, name)
	}
	slices.Sort(names)
	for row := range slices.Chunk(names, columns) {
		var b strings.Builder
		for _, name := range row {
			fmt.Fprintf(&b, "  %-6s %016x", clean(name), uint64(f.Registers[name]))
		}
		p.line("  %s", b.String())
	}
}

func (p *page) gap(g *GapReport) {
	p.line("")
	what := "a busy loop's passes"
	if g.Kind == "cyclic" {
		what = fmt.Sprintf("lateness of a wake-up every %s", duration(g.PeriodNS))
	}
	p.line("  %s of vCPU %d: %s, threshold %s", p.paint(bold, "gap record"), g.VCPU, what, duration(g.ThresholdNS))
	p.line("    %s, %s%s in %s, %s stolen (%s ppm)", pluralAs(g.Passes, "pass", "passes"), plural(g.Gaps, "gap"),
		inBrackets(rate(g.Gaps, g.DurationNS)+" per second"), duration(g.DurationNS), duration(g.StolenNS), significant(g.StolenPPM))
	quantile := func(name string, v *uint64) string {
		if v == nil {
			return name + " n too small"
		}
		return name + " <= " + duration(*v)
	}
	p.line("    min %s, %s, %s, %s, %s, max %s", duration(g.MinNS), quantile("median", g.MedianNS), quantile("p99", g.P99NS),
		quantile("p99.9", g.P999NS), quantile("p99.99", g.P9999NS), duration(g.MaxNS))
	var top uint64
	for _, b := range g.Histogram {
		top = max(top, b.Count)
	}
	marked := false
	t := table{left: []int{1}}
	for _, b := range g.Histogram {
		mark := "  "
		if !marked && b.AtMostNS >= g.ThresholdNS {
			mark, marked = "T ", true
		}
		t.row("<= "+duration(b.AtMostNS), mark+"|"+logBar(b.Count, top, 40), strconv.FormatUint(b.Count, 10))
	}
	t.write(p, "    ")
	if marked {
		p.line("    T: the threshold lies in this row; bars are on a log scale")
	}
	if !g.Valid {
		p.line("    %s %s", p.paint(red, "not valid:"), g.Why)
	}
}

func (p *page) timings(list []Timing) {
	p.line("")
	p.line("  %s", p.paint(bold, "timings"))
	t := table{left: []int{0}}
	for _, l := range list {
		t.row(clean(l.Phase), duration(l.NS))
	}
	t.write(p, "    ")
}

func (p *page) verdict(r *Report) {
	p.line("")
	var returns, total uint64
	for _, v := range r.VCPUs {
		total += v.Breaks.Total
		returns += v.Breaks.Returns
	}
	if r.Books.Closed {
		p.line("  books   %s: %s = the sum over causes, %d of them unknown; %s of KVM_RUN", p.paint(green, "closed"), plural(total, "break"), r.Books.Unknown, plural(returns, "return"))
	} else {
		p.line("  books   %s", p.paint(red, "NOT CLOSED"))
	}
	for _, why := range r.Books.Why {
		p.line("          - %s", clean(why))
	}
	if b := r.Budget; b != nil {
		style := green
		if !b.OK {
			style = red
		}
		p.line("  budget  %s: %s", p.paint(style, map[bool]string{true: "kept", false: strings.ToUpper(string(b.State))}[b.OK]), clean(b.Spec))
		p.verdicts(b, len(r.VCPUs) > 1)
	}
	for _, d := range r.Drift[:min(10, len(r.Drift))] {
		p.line("  %s after %s: %s", p.paint(red, "drift"), duration(d.AtNS), clean(d.String()))
	}
	if n := len(r.Drift); n > 10 {
		p.line("  drift   %d more: see the JSON report", n-10)
	}
	for _, s := range r.RefusedSeals[:min(10, len(r.RefusedSeals))] {
		p.line("  %s after %s: %s", p.paint(red, "refused"), duration(s.AtNS), clean(s.String()))
	}
	if n := len(r.RefusedSeals); n > 10 {
		p.line("  refused %d more: see the JSON report", n-10)
	}
	for _, n := range r.NotMeasured {
		p.line("  not measured: %s: %s", clean(n.What), clean(n.Why))
	}
}

// table aligns its columns: to the right, but those in left.
type table struct {
	left []int
	rows [][]string
}

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) write(p *page, indent string) {
	var width []int
	for _, r := range t.rows {
		for i, c := range r {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	for _, r := range t.rows {
		var b strings.Builder
		for i, c := range r {
			if i > 0 {
				b.WriteString("  ")
			}
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c))
			if slices.Contains(t.left, i) {
				b.WriteString(c + pad)
			} else {
				b.WriteString(pad + c)
			}
		}
		p.line("%s%s", indent, strings.TrimRight(b.String(), " "))
	}
}

// logBar draws n against top on a log scale: one mark for 1, width marks for top.
func logBar(n, top uint64, width int) string {
	if n == 0 {
		return ""
	}
	k := 1.0
	if top > 1 {
		k += math.Log(float64(n)) / math.Log(float64(top)) * float64(width-1)
	}
	return strings.Repeat("#", min(width, max(1, int(math.Round(k)))))
}

// duration prints nanoseconds with three significant digits and their unit.
func duration(ns uint64) string {
	switch f := float64(ns); {
	case ns < 1000:
		return strconv.FormatUint(ns, 10) + " ns"
	case f < 999.5e3:
		return significant(f/1e3) + " us"
	case f < 999.5e6:
		return significant(f/1e6) + " ms"
	default:
		return significant(f/1e9) + " s"
	}
}

// significant prints three significant digits, and no fewer than the whole part has.
func significant(f float64) string {
	switch {
	case f == 0:
		return "0"
	case f < 0.01:
		return strconv.FormatFloat(f, 'g', 2, 64)
	case f < 9.995:
		return strconv.FormatFloat(f, 'f', 2, 64)
	case f < 99.95:
		return strconv.FormatFloat(f, 'f', 1, 64)
	}
	return strconv.FormatFloat(f, 'f', 0, 64)
}

// rate is n per second of ns; "-" where there was no time.
func rate(n, ns uint64) string {
	if ns == 0 {
		return "-"
	}
	return significant(float64(n) / float64(ns) * 1e9)
}

// share is part of whole in per cent; empty where there is no whole.
func share(part, whole uint64) string {
	if whole == 0 {
		return ""
	}
	f := float64(part) / float64(whole) * 100
	if f > 99 && f < 100 {
		return strconv.FormatFloat(math.Floor(f*1000)/1000, 'f', 3, 64) + " %"
	}
	return significant(f) + " %"
}

func used(c ClauseVerdict) string {
	if c.Unit == "ns" {
		return duration(c.Measured) + " of " + duration(c.Allowed)
	}
	return strconv.FormatUint(c.Measured, 10) + " of " + plural(c.Allowed, "break")
}

func plural(n uint64, word string) string { return pluralAs(n, word, word+"s") }

func pluralAs(n uint64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.FormatUint(n, 10) + " " + many
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func inBrackets(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

// rings tells of the system calls that were no breaks.
func (p *page) rings(list []VCPUReport) {
	first := true
	for _, v := range list {
		r := v.Ring
		if r == nil {
			continue
		}
		if first {
			p.line("")
			first = false
		}
		text := fmt.Sprintf("%s without an exit", plural(r.Calls, "system call"))
		if r.Calls > 0 {
			text += fmt.Sprintf(", answered in %s on average, %s at most", duration(r.WaitedNS/r.Calls), duration(r.MaxNS))
		}
		if r.Handed > 0 {
			text += fmt.Sprintf("; %d more had to be made by an exit", r.Handed)
		}
		p.line("  %s of vCPU %d: %s", p.paint(bold, "ring"), v.ID, text)
	}
}
