package host

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/cores"
)

// PlanSchema names the JSON form of a Plan.
const PlanSchema = "cloister.host-plan/v1"

// Plan is what Apply would write, in this order. Making it changes nothing.
type Plan struct {
	Schema       string   `json:"schema"`
	Owner        string   `json:"owner"`
	CPUs         []int    `json:"cpus"`
	Housekeeping []int    `json:"housekeeping"` // the other CPUs that are on line
	Level        Level    `json:"level"`
	Steps        []Step   `json:"steps"`
	Cannot       []Remark `json:"cannot"` // what stays, and why
	off          []int    // siblings that go off line
}

// Siblings are the CPUs that the plan takes off line, the other hardware threads of its cores. Whoever applies it keeps others off
// them as off the cores themselves.
func (p *Plan) Siblings() []int { return slices.Clone(p.off) }

// Step is one write.
type Step struct {
	Setting Setting `json:"setting"`
	Old     string  `json:"old"`
	New     string  `json:"new"`
	Why     string  `json:"why"` // what it keeps off the cores
	part    string  // of what it is a part: a cpuset, a cache partition
	off     bool    // it takes a CPU off line: only when nothing is there alone
	must    bool    // without it nothing is as it should be
	whole   bool    // only when all of that part before it could be made: alone it would do harm
}

// String is one line of a plan.
func (x Step) String() string {
	return fmt.Sprintf("%s: %s -> %s", x.Setting, short(x.Setting.canonical(x.Old)), short(x.Setting.canonical(x.New)))
}

func short(s string) string {
	if s == "" {
		return `""`
	}
	if s = strings.Join(strings.Fields(s), " "); len(s) > 40 {
		return s[:37] + "..."
	}
	return s
}

// Remark is something that cannot be had, with its reason.
type Remark struct {
	What string `json:"what"`
	Why  string `json:"why"`
}

// String is one line.
func (r Remark) String() string { return r.What + ": " + r.Why }

// planner collects steps.
type planner struct {
	s      System
	st     *state
	r      Request
	online []int
	keep   []int // housekeeping
	held   []int // the cores of all claims, with ours
	ours   []int // the cores, and the siblings that go off line
	layout Layout
	part   string       // that is being planned
	moved  map[int]bool // threads that have a step
	plan   *Plan
	failed error
}

// Make plans. dir is where the journal is; the machine's is JournalDir.
func Make(s System, dir string, r Request) (*Plan, error) {
	j, err := open(s, dir, false, waiter{})
	if err != nil {
		return nil, err
	}
	p, err := makePlan(s, &j.state, r)
	if err := j.close(); err != nil {
		return nil, err
	}
	return p, err
}

func makePlan(s System, st *state, r Request) (*Plan, error) {
	r.CPUs = slices.Clone(r.CPUs)
	slices.Sort(r.CPUs)
	r.CPUs = slices.Compact(r.CPUs)
	if r.Level == "" {
		r.Level = RunTime
	}
	l := CPUSets(s)
	for _, c := range st.claims {
		if meets(c.Off, r.CPUs) {
			return nil, fmt.Errorf("CPUs %s are off line for %s, as siblings: give those back first (cloister host restore --cpu %s)", cores.Format(cores.Common(c.Off, r.CPUs)), c, cores.Format(c.CPUs))
		}
	}
	online, err := r.check(s, l)
	if err != nil {
		return nil, err
	}
	if r.Owner == "" {
		r.Owner = "cloister host apply, CPUs " + cores.Format(r.CPUs)
	}
	held := slices.Clone(r.CPUs)
	for _, c := range st.claims {
		if meets(c.CPUs, r.CPUs) {
			end := "give them back first"
			if !c.alive(s) {
				end = "it has ended; give them back first"
			}
			return nil, fmt.Errorf("CPUs %s are isolated for %s: %s (cloister host restore --cpu %s)", cores.Format(c.CPUs), c, end, cores.Format(c.CPUs))
		}
		held = append(held, c.CPUs...)
	}
	slices.Sort(held)
	if len(minus(online, held)) == 0 {
		return nil, fmt.Errorf("CPUs %s would leave none to the rest of the system: %s are isolated already", cores.Format(r.CPUs), cores.Format(minus(held, r.CPUs)))
	}
	p := &planner{s: s, st: st, r: r, online: online, keep: minus(online, held), held: held, ours: r.CPUs, layout: l, plan: &Plan{
		Schema: PlanSchema, Owner: r.Owner, CPUs: r.CPUs, Housekeeping: minus(online, held), Level: r.Level, Steps: []Step{}, Cannot: []Remark{},
	}}
	p.steps()
	return p.plan, p.failed
}

// elsewhere is what has to go to other CPUs, or to pause, before anything happens to the cores themselves.
func (p *planner) elsewhere() {
	p.interrupts()
	p.workqueues()
	p.watchdogs()
	p.memory()
	p.timers()
}

// steps is the order, which is that of the hazards: what a CPU that goes off line would push elsewhere, for good, is moved
// before; what it forgets is set after.
func (p *planner) steps() {
	if p.r.Level == Max {
		p.siblings()
	}
	p.elsewhere()
	if p.r.Level == Max {
		p.tasks(p.alone)
		p.offline()
		p.drain()
	}
	p.power()
	p.part = "cpuset"
	if p.layout.V2 != "" {
		p.partition()
	} else if p.layout.V1 != "" {
		p.exclusive()
	} else {
		p.cannot("a cpuset of the cores' own", "%s", p.layout.Note)
	}
	p.part = "cache partition"
	p.cache()
	p.part = ""
	p.tasks(func(t Task) bool { return meets(t.Allowed, p.r.CPUs) })
	p.bound()
	p.boot()
}

func (p *planner) cannot(what, why string, a ...any) {
	p.plan.Cannot = append(p.plan.Cannot, Remark{what, fmt.Sprintf(why, a...)})
}

// set plans a value; what is not there on this host is no step. It reports whether the file is there.
func (p *planner) set(x Setting, why string) bool {
	old, err := x.read(p.s)
	if err != nil {
		if x.Within == "" || x.Kind == Directory {
			return false
		}
		old = "" // the directory will be there when this step's turn comes
	}
	us := holder{p.r.Owner, x.Want}
	orig, holders, cpus := old, []holder{us}, p.ours
	if h := p.st.held[x.key()]; h != nil {
		orig, holders = h.orig, append(h.without(us.owner), us)
		cpus = append(p.st.cores(h.holders), p.ours...)
	}
	value, err := x.value(orig, holders, cpus, p.keep)
	if err != nil {
		p.cannot(x.String(), "%v", err)
		return true
	}
	// What is held already has to be held by us too, or it would go back under us.
	if p.st.held[x.key()] == nil && x.same(old, value) {
		return true
	}
	p.plan.Steps = append(p.plan.Steps, Step{Setting: x, Old: old, New: value, Why: why, part: p.part})
	return true
}

// last makes the steps since the n-th depend on all others of their part.
func (p *planner) last(n int) {
	for i := range p.plan.Steps[n:] {
		p.plan.Steps[n+i].whole = true
	}
}

// knob plans one value for a file.
func (p *planner) knob(name, want, why string) bool {
	return p.set(Setting{Kind: File, Name: name, Format: Plain, Rule: Same, Want: want}, why)
}

// Encode writes the plan as JSON.
func (p *Plan) Encode(w io.Writer) error { return encode(w, p) }

func encode(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// WriteText prints the plan, a line a step; threads are one line unless all are asked for.
func (p *Plan) WriteText(w io.Writer, all bool) error {
	var b strings.Builder
	fmt.Fprintf(&b, "CPUs %s quiet, %s for the rest, level %s: %d changes\n", cores.Format(p.CPUs), cores.Format(p.Housekeeping), p.Level, len(p.Steps))
	threads := 0
	for _, x := range p.Steps {
		if x.Setting.Kind == Affinity && !all {
			threads++
			continue
		}
		fmt.Fprintf(&b, "  %-76s %s\n", x, x.Why)
	}
	if threads > 0 {
		fmt.Fprintf(&b, "  affinity of %d threads: off CPUs %s\n", threads, cores.Format(p.CPUs))
	}
	for _, c := range p.Cannot {
		fmt.Fprintf(&b, "  stays: %s\n", c)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
