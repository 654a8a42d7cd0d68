package breaks

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Budget is what a run may spend while sealed. The zero Budget allows everything.
//
//	budget  = clause *("," clause)
//	clause  = subject ("=" | "<=") limit ["/s"]
//	subject = cause | "total" | "user" | "kernel" | "exceptions" | "lost" | "max"
//
// Counted subjects take a number, lost and max a time with its unit. "=" means the same as "<=": a
// budget is what may be spent. docs/breaks.md, "Budgets", describes it for users.
type Budget struct {
	Spec    string
	Clauses []Clause
	// Backend says how KVM's statistics are to be read (see KernelCauses); empty: there are none, and
	// clauses that need them cannot be kept, only broken.
	Backend string
}

// Clause is one limit of a Budget.
type Clause struct {
	Text      string // as given, without blanks
	Subject   string
	Limit     float64 // breaks, or nanoseconds for lost and max
	PerSecond bool
}

// Subjects that are not causes.
const (
	subjectTotal      = "total"      // every cause but the planned ones
	subjectUser       = "user"       // of those, the returns of KVM_RUN
	subjectKernel     = "kernel"     // of those, what the kernel served itself
	subjectExceptions = "exceptions" // exc-*
	subjectLost       = "lost"       // time outside the guest, of the returns that are not planned
	subjectMax        = "max"        // the longest of them
)

// Bounds of a specification: a command line is not a program.
const (
	maxSpec  = 4096
	maxCount = 1 << 53 // exact in a float64
)

// RateWindow is the shortest time over which a rate is judged: N/s allows N breaks at once, then N
// more for each further second of the sealed interval.
const RateWindow = time.Second

// causes lists what a counted subject counts; nil for lost, max and unknown words.
func causes(subject string) (list []Cause) {
	for c := range NCause {
		exception := c >= ExcDivide && c <= ExcOther
		switch {
		case c.Planned():
		case subject == subjectTotal,
			subject == subjectUser && !c.FromKernel(),
			subject == subjectKernel && c.FromKernel(),
			subject == subjectExceptions && exception,
			subject == names[c]:
			list = append(list, c)
		}
	}
	return list
}

// Subjects are the words that may stand left of "=" in a budget, in the order of the documentation.
func Subjects() []string {
	words := []string{subjectTotal, subjectUser, subjectKernel, subjectExceptions, subjectLost, subjectMax}
	for c := range NCause {
		if !c.Planned() {
			words = append(words, names[c])
		}
	}
	return words
}

// Parse reads a budget. An error is one line that names the piece that is wrong and what is right.
func Parse(spec string) (Budget, error) {
	b := Budget{Spec: spec}
	if len(spec) > maxSpec {
		return Budget{}, fmt.Errorf("budget: %d bytes long, the limit is %d", len(spec), maxSpec)
	}
	if strings.TrimSpace(spec) == "" {
		return Budget{}, errors.New(`budget: empty; write for example "total=0" or "syscall<=10/s,max<=20us"`)
	}
	for piece := range strings.SplitSeq(spec, ",") {
		c, err := parseClause(piece)
		if err != nil {
			return Budget{}, fmt.Errorf("budget: %w", err)
		}
		if slices.ContainsFunc(b.Clauses, func(o Clause) bool { return o.Subject == c.Subject && o.PerSecond == c.PerSecond }) {
			return Budget{}, fmt.Errorf("budget: %q: %s is limited twice; keep one", c.Text, c.Subject)
		}
		b.Clauses = append(b.Clauses, c)
	}
	return b, nil
}

func parseClause(piece string) (Clause, error) {
	text := strings.Join(strings.Fields(piece), "")
	if text == "" {
		return Clause{}, errors.New("an empty clause between commas; remove the comma")
	}
	i := strings.IndexAny(text, "<=>")
	if i < 0 {
		return Clause{}, fmt.Errorf("%q: no limit; write %.40q or %.40q", text, text+"=0", text+"<=10/s")
	}
	subject, value := text[:i], ""
	switch rest := text[i:]; {
	case strings.HasPrefix(rest, "<="):
		value = rest[2:]
	case strings.HasPrefix(rest, "="):
		value = rest[1:]
	default:
		return Clause{}, fmt.Errorf(`%q: only "=" and "<=" are limits`, text)
	}
	value, perSecond := strings.CutSuffix(value, "/s")
	c := Clause{Text: text, Subject: subject, PerSecond: perSecond}

	var err error
	switch {
	case subject == subjectMax && perSecond:
		return Clause{}, fmt.Errorf("%q: max is the length of one break, not a rate; drop the /s", text)
	case subject == subjectMax || subject == subjectLost:
		c.Limit, err = parseTime(value)
	case causes(subject) != nil:
		c.Limit, err = parseCount(value, perSecond)
	default:
		if p, ok := ParseCause(subject); ok && p.Planned() {
			return Clause{}, fmt.Errorf("%q: %s belongs to the run's own frame and never counts; remove it", text, subject)
		}
		return Clause{}, fmt.Errorf("%q: unknown word %q; valid: %s", text, subject, strings.Join(Subjects(), ", "))
	}
	if err != nil {
		return Clause{}, fmt.Errorf("%q: %w", text, err)
	}
	return c, nil
}

func parseCount(s string, perSecond bool) (float64, error) {
	if perSecond {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil || !decimal(s) || v > maxCount {
			return 0, fmt.Errorf("%q is no rate; write a number such as 10/s or 0.5/s", s+"/s")
		}
		return v, nil
	}
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil || v > maxCount {
		return 0, fmt.Errorf("%q is no count; write a whole number from 0 to 2^53", s)
	}
	return float64(v), nil
}

func parseTime(s string) (float64, error) {
	if s == "0" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || strings.HasPrefix(s, "+") {
		return 0, fmt.Errorf("%q is no time; write a number with ns, us, ms or s, such as 50us", s)
	}
	return float64(d.Nanoseconds()), nil
}

// decimal keeps out what ParseFloat takes besides: signs, exponents, hexadecimal, infinities.
func decimal(s string) bool {
	return s != "" && strings.Trim(s, "0123456789.") == ""
}

// State of a clause, and of a whole budget.
type State string

// States, from good to bad.
const (
	Kept     State = "kept"
	Untested State = "untested" // the vCPU was never sealed: nothing was spent because nothing was measured
	Unjudged State = "unjudged" // not broken by what is known, but not all is known
	Broken   State = "broken"
)

// ClauseVerdict is how one clause stands.
type ClauseVerdict struct {
	Clause   string `json:"clause"`
	State    State  `json:"state"`
	Unit     string `json:"unit"`     // "breaks" or "ns"
	Allowed  uint64 `json:"allowed"`  // for a rate: over the sealed time so far
	Measured uint64 `json:"measured"` // what is known of it, while unjudged
	Left     int64  `json:"left"`     // allowed - measured; negative when broken
	Why      string `json:"why"`      // broken: by how much; unjudged: what is not known
}

// Verdict is how a budget stands for one vCPU.
type Verdict struct {
	State    State
	SealedNS uint64
	Clauses  []ClauseVerdict
}

// BrokenBy are the reasons of the clauses that are broken.
func (v Verdict) BrokenBy() []string {
	var why []string
	for _, c := range v.Clauses {
		if c.State == Broken {
			why = append(why, c.Why)
		}
	}
	return why
}

// Check judges a snapshot. Only the sealed book counts: before the first sealing every clause is
// Untested. now is the TSC of the snapshot, in cycles; a run that has ended is judged at its end.
//
// A break counts when it is over, so a wait that still lasts shows in lost and max only afterwards.
// For live use, see KernelCauses on pairing statistics with snapshots; clauses that need what is not
// known are Unjudged, unless what is known breaks them already.
func (b Budget) Check(counts *Counts, now uint64) Verdict {
	sealed := counts.SealedFor(now)
	start := Kept
	if counts.Seals == 0 {
		start = Untested
	}
	v := Verdict{State: start, SealedNS: Nanoseconds(sealed, counts.TSCHz)}
	book := &counts.Book[Sealed]
	kernel, kernelOK, kernelWhy := counts.KernelCauses(Sealed, b.Backend)
	for _, c := range b.Clauses {
		r := ClauseVerdict{Clause: c.Text, Unit: "breaks", State: start}
		window := 1.0
		if c.PerSecond {
			window = max(RateWindow.Seconds(), float64(v.SealedNS)/1e9)
		}
		r.Allowed = floor(c.Limit * window)
		var unknown string
		switch list := causes(c.Subject); {
		case list != nil:
			for _, cause := range list {
				r.Measured = add(r.Measured, book.Cause[cause].Count)
				if cause.FromKernel() {
					r.Measured = add(r.Measured, kernel[cause])
				}
				if why := counts.Uncounted(cause, b.Backend, kernelOK, kernelWhy); why != "" {
					unknown = why
				}
			}
		default:
			r.Unit = "ns"
			var cycles uint64
			for _, cause := range causes(subjectUser) {
				if c.Subject == subjectMax {
					cycles = max(cycles, book.Cause[cause].Max)
				} else {
					cycles = add(cycles, book.Cause[cause].Lost)
				}
			}
			r.Measured = Nanoseconds(cycles, counts.TSCHz)
			if counts.TSCHz == 0 {
				unknown = "the frequency of the TSC is not known"
			}
			if b.Backend == BackendBare {
				unknown = "the length of a native thread's breaks is measured by nobody"
			}
		}
		if c.PerSecond && counts.TSCHz == 0 {
			unknown = "the frequency of the TSC is not known"
		}
		r.judge(v.SealedNS, unknown)
		v.Clauses = append(v.Clauses, r)
		v.State = worseState(v.State, r.State)
	}
	return v
}

// direct reports whether a cause is one of the kernel's own counters rather than a difference: its
// figure stands even when the books do not close.
func direct(c Cause) bool { return c == HostInterrupt || c == PageFault }

func (r *ClauseVerdict) judge(sealedNS uint64, unknown string) {
	r.Left = difference(r.Allowed, r.Measured)
	switch {
	case r.State == Untested:
		r.Why = "the vCPU was never sealed"
	case r.Left < 0:
		r.State = Broken
		what := func(n uint64) string {
			if r.Unit == "ns" {
				return duration(n)
			}
			return strconv.FormatUint(n, 10)
		}
		r.Why = fmt.Sprintf("%s: %s in %s sealed, allowed %s, %s too much", r.Clause, what(r.Measured), duration(sealedNS),
			what(r.Allowed), what(r.Measured-r.Allowed))
	case unknown != "":
		r.State = Unjudged
		r.Why = unknown
	}
}

// worseState is the worse of two states.
func worseState(a, b State) State {
	order := []State{Kept, Untested, Unjudged, Broken}
	if slices.Index(order, b) > slices.Index(order, a) {
		return b
	}
	return a
}

func floor(f float64) uint64 {
	// A limit that is a whole number must survive a multiplication that comes out a hair below it.
	if f = math.Floor(f + 1e-9); f < math.MaxUint64 {
		return uint64(f)
	}
	return math.MaxUint64
}

func difference(a, b uint64) int64 {
	if a >= b {
		return int64(min(a-b, math.MaxInt64))
	}
	return -int64(min(b-a, math.MaxInt64))
}
