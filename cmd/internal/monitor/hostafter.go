package monitor

import (
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/cores"
	"github.com/cloister-vmm/cloister/isolation/doctor"
	"github.com/cloister-vmm/cloister/isolation/host"
)

// applied is what `host apply` reports: what was changed, and what the doctor finds on the cores after it. That is what is,
// with all that was refused; a grade that was promised before could not know of that.
type applied struct {
	*host.Result
	Cores   []reached `json:"cores"`
	Remains []remains `json:"remains"` // worst first
}

// reached is the grade that a core has now.
type reached struct {
	CPU   int          `json:"cpu"`
	Grade doctor.Grade `json:"grade"`
	Why   []string     `json:"why"` // findings
}

// remains is what may still interrupt a core, and what keeps it there.
type remains struct {
	doctor.Finding
	Because string `json:"because"`
}

// after looks at the cores as they are now.
func after(s host.System, res *host.Result, level host.Level) (*applied, error) {
	r, err := doctor.Examine(s, res.CPUs)
	if err != nil {
		return nil, fmt.Errorf("what remains on CPUs %s: %w: they are isolated (cloister host restore gives them back)", cores.Format(res.CPUs), err)
	}
	a := &applied{Result: res, Cores: []reached{}, Remains: []remains{}}
	for _, c := range r.Cores {
		a.Cores = append(a.Cores, reached{c.CPU, c.Grade, c.Why})
	}
	for _, f := range r.Findings {
		if f.State != doctor.OK && f.Cap.Below(doctor.A) {
			a.Remains = append(a.Remains, remains{f, because(f, level, res)})
		}
	}
	slices.SortStableFunc(a.Remains, func(x, y remains) int { return strings.Compare(string(y.Cap), string(x.Cap)) })
	return a, nil
}

// because says why a finding is still there after an apply of this level.
func because(f doctor.Finding, level host.Level, res *host.Result) string {
	with := func(what string) string {
		if f.Remedy == "" {
			return what
		}
		return what + ": " + f.Remedy
	}
	switch f.Way {
	case doctor.Max:
		if level != host.Max {
			return "not without --level max"
		}
		fallthrough
	case doctor.RunTime:
		why := reasons(f, res)
		switch {
		case len(why) > 2:
			return fmt.Sprintf("%s; %s; and %d more, above", why[0], why[1], len(why)-2)
		case len(why) > 0:
			return strings.Join(why, "; ")
		case slices.ContainsFunc(f.Evidence, func(e doctor.Evidence) bool { return wrote(res, e.File) }):
			return "it was changed, and somebody or something has undone that"
		}
		return "nothing that was written is for it: it came meanwhile, or no setting takes it away here"
	case doctor.ByHand:
		return with("not Cloister's to change")
	case doctor.Boot:
		return with("only at boot")
	case doctor.Module:
		return with("only when KVM is loaded")
	}
	return with("nothing on this machine changes it")
}

// wrote reports whether the apply has set this file.
func wrote(res *host.Result, file string) bool {
	return slices.ContainsFunc(res.Written, func(pattern string) bool {
		is, err := path.Match(pattern, file)
		return is && err == nil
	})
}

// reasons are the exceptions of an apply that concern a finding: by the files that show it, or by what they are about.
func reasons(f doctor.Finding, res *host.Result) (list []string) {
	about := map[string][]string{
		"irq": {"IRQ "}, "irq-perhaps": {"IRQ "}, "tasks": {"thread "}, "tick-tasks": {"thread "}, "sched-domain": {"a cpuset", "an isolated partition", "/sys/fs/cgroup"},
		"timers": {"timers that were armed", "/sys/devices/system/cpu/cpu"}, "smt": {"the sibling CPU", "/sys/devices/system/cpu/cpu"},
	}[f.ID]
	for _, x := range slices.Concat(res.Cannot, res.Refused, res.Foreign) {
		concerns := slices.ContainsFunc(f.Evidence, func(e doctor.Evidence) bool { return e.File == x.What }) ||
			slices.ContainsFunc(about, func(p string) bool { return strings.HasPrefix(x.What, p) })
		if concerns {
			list = append(list, x.String())
		}
	}
	return list
}

// WriteText prints the result, then a line for each thing that remains.
func (a *applied) WriteText(w io.Writer) error {
	if err := a.Result.WriteText(w, "isolated"); err != nil {
		return err
	}
	var b strings.Builder
	for _, f := range a.Remains {
		unknown := ""
		if f.State == doctor.Unknown {
			unknown = " (unknown)"
		}
		fmt.Fprintf(&b, "  remains, grade %s: %s%s: %s; %s\n", f.Cap, f.ID, unknown, f.What, f.Because)
	}
	for _, c := range a.Cores {
		why := ""
		if len(c.Why) > 0 {
			why = ", because of " + strings.Join(c.Why, ", ")
		}
		fmt.Fprintf(&b, "CPU %d is of grade %s now%s\n", c.CPU, c.Grade, why)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Encode writes it as JSON.
func (a *applied) Encode(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(a)
}
