package host

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Undone says which settings of an Apply, of which r and res are the request and the result, are no longer so, or never were since
// somebody changed them meanwhile: of a Watch that was begun after the Apply it is the past. Threads are not among them: Apply looks for
// those last, and they come to a Watch as arrivals. It waits for another process that has the journal, and writes nothing.
func (a *Applier) Undone(r Request, res *Result) (list []Drift, err error) {
	a.fill()
	j, err := open(a.System, a.Dir, true, waiter{a.Stop, a.Waiting})
	if err != nil {
		return nil, err
	}
	a.layout = CPUSets(a.System)
	if c := j.claim(res.Owner); c == nil {
		err = fmt.Errorf("%s has no cores any more: somebody has given them back (cloister host restore)", res.Owner)
	} else {
		r.CPUs, r.Owner = c.CPUs, c.Owner
		list, err = a.undone(j, r, c, res)
	}
	return list, errors.Join(err, j.close())
}

// undone compares what the owner holds with what the journal says was written, and looks at what was as it should be
// already, and so was not written.
func (a *Applier) undone(j *store, r Request, c *Claim, res *Result) (list []Drift, err error) {
	online, err := CPUs(a.System, cpuDir+"/online")
	if err != nil {
		return nil, fmt.Errorf("read the host's CPUs: %w", err)
	}
	known := (&Watch{s: a.System, cpus: c.CPUs}).preconditions()
	compare := func(x Setting, should []string) error {
		was := x.canonical(should[len(should)-1])
		now := reading{}
		text, err := x.read(a.System)
		switch {
		case errors.Is(err, errGone):
			return nil // a thread that has ended
		case errors.Is(err, fs.ErrNotExist):
			now = reading{notThere, true}
		case err != nil:
			return fmt.Errorf("look at %s again: %w", x, err)
		default:
			now.text = x.canonical(text)
		}
		if !now.absent && slices.ContainsFunc(should, func(v string) bool { return x.same(v, now.text) }) {
			return nil
		}
		f := watched{name: x.Name, what: "what was made for the cores", format: x.Format}
		if i := slices.IndexFunc(known, func(k watched) bool { return k.name == x.Name }); i >= 0 {
			f = known[i]
		} else if x.Rule == Except {
			f.rule = keptOff
		}
		if f.worse(reading{text: was}, now, c.CPUs) {
			list = append(list, Drift{f.what, x.String(), was, now.text})
		}
		return nil
	}
	for _, key := range j.order {
		h := j.held[key]
		if !h.by(c.Owner) || !h.lasts() || res.refused[key] != "" || a.minds(h.Setting, r.PID) {
			continue
		}
		if d := j.held[Setting{Kind: Directory, Name: h.Within}.key()]; d != nil && !Has(a.System, h.Name) {
			if _, err := a.System.Names(h.Within); err != nil {
				continue // gone with its directory, which is told of
			}
		}
		if err := compare(h.Setting, h.ours); err != nil {
			return list, err
		}
	}
	p := a.planner(j, r, &Plan{CPUs: c.CPUs, Housekeeping: minus(online, j.claimed("")), off: c.Off})
	p.elsewhere()
	p.power()
	if p.layout.V2 == "" && p.layout.V1 != "" {
		p.exclusive()
	}
	for _, step := range p.plan.Steps {
		key := step.Setting.key()
		if h := j.held[key]; h != nil && h.by(c.Owner) || res.refused[key] != "" {
			continue
		}
		if err := compare(step.Setting, []string{step.New}); err != nil {
			return list, err
		}
	}
	return list, nil
}

// lasts reports whether a setting is to be found as it was written: not an affinity, which the kernel changes by the way, nor the way of a
// process to its thread's cgroup.
func (x Setting) lasts() bool {
	return x.Kind == File || x.Kind == Directory || x.Kind == Member && strings.HasPrefix(x.Name, "threads:")
}

// minds reports whether reading a setting would interrupt a program that runs on its CPU: as when it is planned, the owner's own may be.
func (a *Applier) minds(x Setting, pid int) bool {
	var cpu int
	if path.Base(x.Name) != eppFile || pid != 0 {
		return false
	}
	if _, err := fmt.Sscanf(x.Name, cpuDir+"/cpu%d/", &cpu); err != nil {
		return true
	}
	used, err := inUse(a.System, cpu)
	return used || err != nil
}

// lookAgain looks at all that was done, when the last step is: what somebody has changed meanwhile is his, and is said.
func (a *Applier) lookAgain(j *store, r Request, owner string, res *Result) error {
	list, err := a.undone(j, r, j.claim(owner), res)
	if err != nil {
		return err
	}
	for _, d := range list {
		why := Remark{d.File, fmt.Sprintf("we made it %s, and somebody has made it %s before all was done: set it by hand if that is not wanted", short(d.Was), short(d.Is))}
		if a.Strict {
			return fmt.Errorf("%s (--strict)", why)
		}
		res.Foreign = append(res.Foreign, why)
	}
	return nil
}
