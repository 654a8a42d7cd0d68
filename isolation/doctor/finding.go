package doctor

import (
	"fmt"
	"slices"
	"strings"
)

// Schema names the JSON form of a Report; fields are only added.
const Schema = "cloister.doctor/v1"

// Grade is how quiet a core can be: A to F.
type Grade string

// The grades.
const (
	A Grade = "A" // nothing that is known will interrupt it
	B Grade = "B" // rare interruptions at most, or no proof that there are none
	C Grade = "C" // interruptions every few seconds, or whenever others do certain things
	D Grade = "D" // interruptions many times a second, or other tasks may run on it
	F Grade = "F" // it cannot be given away at all
)

// ParseGrade reads A, B, C, D or F, in either case.
func ParseGrade(s string) (Grade, error) {
	g := Grade(s)
	if !slices.Contains([]Grade{A, B, C, D}, g) {
		return "", fmt.Errorf("grade %q: choose A, B, C or D", s)
	}
	return g, nil
}

// Below reports whether g is a worse grade than want.
func (g Grade) Below(want Grade) bool { return g > want }

// State is what was found.
type State string

// The states.
const (
	OK      State = "ok"
	Wrong   State = "wrong"
	Unknown State = "unknown" // it could not be read; Evidence says what
)

// Cost is what kind of disturbance a finding makes.
type Cost string

// The cost classes.
const (
	Tick     Cost = "tick"      // HZ times a second, some microseconds each
	Tasks    Cost = "tasks"     // the core is shared: milliseconds
	Seconds  Cost = "seconds"   // every few seconds to minutes
	OnDemand Cost = "on-demand" // when others do something
	Slower   Cost = "slower"    // no break: the core's own instructions take longer
	Proof    Cost = "proof"     // no break: less can be shown
)

// Way is who can take it away.
type Way string

// The ways.
const (
	RunTime Way = "run-time" // cloister host apply
	Max     Way = "max"      // cloister host apply --level max
	ByHand  Way = "by-hand"  // a command
	Boot    Way = "boot"     // the kernel's command line, or another kernel
	Module  Way = "module"   // a parameter when KVM is loaded
	Never   Way = "never"    // nothing on this machine
)

// Evidence is a file and what it holds.
type Evidence struct {
	File  string `json:"file"`
	Value string `json:"value"`
}

// Finding is one thing that was looked at.
type Finding struct {
	ID       string     `json:"id"`
	CPUs     []int      `json:"cpus"` // empty: the whole machine
	State    State      `json:"state"`
	What     string     `json:"what"`
	Evidence []Evidence `json:"evidence"`
	Causes   []string   `json:"causes"` // of breaks (docs/breaks.md), or statistics of the kernel's
	Cost     Cost       `json:"cost"`
	Cap      Grade      `json:"cap"` // no core that it concerns can have a better grade
	Way      Way        `json:"way"`
	Remedy   string     `json:"remedy"`    // a command, or what to add to the kernel's command line
	CanApply bool       `json:"can_apply"` // Cloister does it at run time
	apply    string     // the command by which
	unsure   bool       // or tries to: the kernel may refuse it
}

// Core is one CPU that was asked about.
type Core struct {
	CPU     int      `json:"cpu"`
	Grade   Grade    `json:"grade"`
	After   Grade    `json:"after"`          // with all that `cloister host apply --level max` can do
	Least   Grade    `json:"after_at_least"` // the same, if the kernel refuses what it is not known to allow
	Why     []string `json:"why"`            // the findings that make the grade
	mayStay []string // the findings that make Least
}

// Reasons names the findings that make the grade, the first few.
func (c *Core) Reasons() string {
	if n := len(c.Why); n > 4 {
		return fmt.Sprintf("%s and %d more", strings.Join(c.Why[:4], ", "), n-4)
	}
	return strings.Join(c.Why, ", ")
}

// Change is something to do, with all that it takes away.
type Change struct {
	Remedy string   `json:"remedy"`
	Way    Way      `json:"way"`
	For    []string `json:"for"` // findings
	Worst  Grade    `json:"worst"`
	tokens bool     // parameters of the kernel's command line, to which others can be added
}

// Report is what the doctor says.
type Report struct {
	Schema   string    `json:"schema"`
	Kernel   string    `json:"kernel"`
	Backend  string    `json:"backend"`
	Nested   bool      `json:"nested"`
	HZ       int       `json:"hz"` // 0: not known
	Cores    []Core    `json:"cores"`
	Changes  []Change  `json:"changes"` // the three that matter most
	Findings []Finding `json:"findings"`
	LeftOut  []int     `json:"left_out,omitempty"` // CPUs that remedies leave to the rest of the system, which needs one
}

func (f *Finding) concerns(cpu int) bool { return len(f.CPUs) == 0 || slices.Contains(f.CPUs, cpu) }

// grade finds the worst of those that count; all without such a condition.
func grade(list []Finding, cpu int, counts func(*Finding) bool) (g Grade, why []string) {
	g = A
	for i := range list {
		f := &list[i]
		if f.State == OK || !f.concerns(cpu) || counts != nil && !counts(f) {
			continue
		}
		switch {
		case f.Cap.Below(g):
			g, why = f.Cap, []string{f.ID}
		case f.Cap == g && g != A:
			why = append(why, f.ID)
		}
	}
	return g, why
}

// changes joins findings by their remedy, the weightiest first: worse grade, then cheaper way, then more findings.
func changes(list []Finding) []Change {
	var out []Change
	for i := range list {
		f := &list[i]
		if f.State != Wrong || f.Remedy == "" || f.Way == Never {
			continue
		}
		remedy := f.Remedy
		if remedy == secondCPU {
			return []Change{{Remedy: remedy, Way: f.Way, For: []string{f.ID}, Worst: f.Cap}}
		}
		if f.Way == RunTime || f.Way == Max {
			remedy = f.apply
		}
		at := slices.IndexFunc(out, func(c Change) bool { return c.Remedy == remedy })
		if token := f.Way == Boot && !strings.Contains(remedy, " "); token && at < 0 && f.Cap.Below(B) {
			// One reboot for all that it takes.
			if at = slices.IndexFunc(out, func(c Change) bool { return c.Way == Boot && c.tokens }); at >= 0 && !slices.Contains(strings.Fields(out[at].Remedy), remedy) {
				out[at].Remedy += " " + remedy
			} else if at < 0 {
				out = append(out, Change{Remedy: remedy, Way: Boot, Worst: A, tokens: true})
				at = len(out) - 1
			}
		}
		if at < 0 {
			out = append(out, Change{Remedy: remedy, Way: f.Way, Worst: A})
			at = len(out) - 1
		}
		c := &out[at]
		if !slices.Contains(c.For, f.ID) {
			c.For = append(c.For, f.ID)
		}
		c.Worst = max(c.Worst, f.Cap)
	}
	ways := []Way{RunTime, Max, ByHand, Boot, Module}
	slices.SortStableFunc(out, func(a, b Change) int {
		switch {
		case a.Worst != b.Worst:
			return strings.Compare(string(b.Worst), string(a.Worst))
		case a.Way != b.Way:
			return slices.Index(ways, a.Way) - slices.Index(ways, b.Way)
		}
		return len(b.For) - len(a.For)
	})
	return out[:min(3, len(out))]
}

// applyCommand is how these CPUs are made quiet.
func applyCommand(w Way, cpus []int) string {
	c := "cloister host apply --cpu " + spell(cpus)
	if w == Max {
		c += " --level max"
	}
	return c
}
