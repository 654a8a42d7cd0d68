package host

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/cores"
)

// note journals the affinity of each thread that the kernel may change when CPUs come and go and cpusets change, before
// any does. A thread that has all that its cpuset gives follows that by itself, there and back.
func (a *Applier) note(j *store, r Request, p *Plan) error {
	tasks, err := Tasks(a.System)
	if err != nil {
		return err
	}
	var seen []*record
	for _, t := range tasks {
		x := Setting{Kind: Affinity, Name: threadName(t), Rule: Except}
		h, own := j.held[x.key()], slices.Contains(r.Threads, t.TID)
		if t.Bound || h == nil && !own && !a.mayChange(t, append(slices.Clone(p.CPUs), p.off...), len(p.off) > 0) {
			continue
		}
		now := cores.Format(t.Allowed)
		adopt := h == nil || own || !a.known(j, h, now) || h.Rule == Keep && meets(t.Allowed, p.CPUs)
		if own {
			x.Rule = Keep
		}
		seen = append(seen, &record{Op: opSaw, Owner: p.Owner, Setting: &x, Old: now, Adopt: adopt})
	}
	return j.add(a.System, seen...)
}

// mayChange reports whether the kernel or we may change a thread's affinity such that it does not come back by itself.
func (a *Applier) mayChange(t Task, cpus []int, siblings bool) bool {
	if a.layout.V2 == "" || siblings {
		if meets(t.Allowed, cpus) {
			return true // to be moved one by one, or written while a sibling is away
		}
	}
	return a.layout.V2 != "" && !slices.Equal(t.Allowed, a.layout.gives(a.System, t.TID))
}

// noteAgain journals, before an owner's cpusets are undone, the affinities that the kernel will forget then: those that
// somebody has set since are noted as they are.
func (a *Applier) noteAgain(j *store, owner string, res *Result) error {
	if a.layout.V2 == "" {
		return nil
	}
	tasks, err := Tasks(a.System)
	if err != nil {
		return err
	}
	var seen []*record
	for _, t := range tasks {
		x := Setting{Kind: Affinity, Name: threadName(t), Rule: Keep}
		h, now := j.held[x.key()], cores.Format(t.Allowed)
		switch {
		case t.Bound:
		case h == nil:
			if all := a.layout.gives(a.System, t.TID); all != nil && !slices.Equal(t.Allowed, all) {
				seen = append(seen, &record{Op: opSaw, Owner: owner, Setting: &x, Old: now, Adopt: true})
			}
		case a.known(j, h, now):
			if !h.by(owner) {
				seen = append(seen, &record{Op: opSaw, Owner: owner, Setting: &x, Old: now})
			}
		default:
			if h.by(owner) {
				res.Foreign = append(res.Foreign, a.foreign(h, h.orig, now))
			}
			seen = append(seen, &record{Op: opSaw, Owner: owner, Setting: &x, Old: now, Adopt: true})
		}
	}
	return j.add(a.System, seen...)
}

// settle sets again what the kernel has changed by the way.
func (a *Applier) settle(j *store, owner string, res *Result) error {
	online, err := CPUs(a.System, cpuDir+"/online")
	if err != nil {
		return fmt.Errorf("read the host's CPUs: %w", err)
	}
	for _, key := range slices.Clone(j.order) {
		h := j.held[key]
		if h == nil || h.Kind != Affinity || !h.by(owner) {
			continue
		}
		now, err := h.read(a.System)
		if err != nil {
			continue // it has ended: Restore will say so
		}
		want, err := h.value(h.orig, h.holders, j.cores(h.holders), minus(online, j.claimed("")))
		if err == nil && (h.same(now, want) || h.same(now, a.within(h.Setting, want)) || !a.known(j, h, now)) {
			continue
		}
		if err == nil {
			err = a.step(j, owner, Step{Setting: h.Setting, Old: now, New: want}, res)
		} else {
			err = a.refused(res, h.Setting, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// alone says what keeps a CPU from being taken off line: what is on it and on no other would be moved by the kernel, and
// could not be brought back.
func (a *Applier) alone(x Setting, res *Result) error {
	var cpu int
	if _, err := fmt.Sscanf(x.Name, cpuDir+"/cpu%d/online", &cpu); err != nil {
		return err
	}
	online, err := CPUs(a.System, cpuDir+"/online")
	if err != nil {
		return err
	}
	only := func(list []int) bool {
		return slices.Contains(list, cpu) && len(cores.Common(list, minus(online, []int{cpu}))) == 0
	}
	tasks, err := Tasks(a.System)
	if err != nil {
		return err
	}
	for _, t := range tasks {
		if !t.Bound && only(t.Allowed) {
			return fmt.Errorf("it is left on line: thread %d (%s) may run on no other CPU", t.TID, t.Name)
		}
	}
	irqs, err := a.System.Names("proc/irq")
	if err != nil {
		return nil // a machine without interrupts to move
	}
	for _, n := range irqs {
		list, err := CPUs(a.System, "proc/irq/"+n+"/smp_affinity_list")
		if _, e := strconv.Atoi(n); e != nil || err != nil || !only(list) || managed(a.System, n) && res.refused[irqFile(n).key()] != "" {
			continue
		}
		if who := IRQName(a.System, n); who != "" || effective(a.System, n, list) {
			return fmt.Errorf("it is left on line: IRQ %s (%s) goes to no other CPU, and could not be brought back", n, orDash(who))
		}
	}
	return nil
}

func irqFile(n string) Setting {
	return Setting{Kind: File, Name: "proc/irq/" + n + "/smp_affinity_list", Format: List}
}

// immovable gives the affinities, before a CPU goes off line, of the interrupts that the kernel has refused to move.
func (a *Applier) immovable(step Step, res *Result) map[string]string {
	was := map[string]string{}
	if !step.off {
		return was
	}
	for key := range res.refused {
		if n, ok := irqOf(strings.TrimSuffix(strings.TrimPrefix(key, "file:"), ":")); ok {
			was[n] = Text(a.System, irqFile(n).Name)
		}
	}
	return was
}

// pushed says which of them the kernel has moved by the way after all: nobody can move them back.
func (a *Applier) pushed(was map[string]string, res *Result) error {
	for _, n := range slices.Sorted(maps.Keys(was)) {
		if now := Text(a.System, irqFile(n).Name); now != was[n] {
			err := fmt.Errorf("its CPU went off line, and the kernel, which refuses to move it back, has made it %s; it was %s", short(now), short(was[n]))
			if err := a.refused(res, irqFile(n), err); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweeps is how often threads are looked for again: one that was not moved yet may have made others meanwhile,
// as in cores.KeepOff.
const sweeps = 20

// sweep moves threads that were made, and interrupts that were set up, while others were moved, until a pass finds none. What
// was moved before and is back is not moved again: whoever did that has a reason. It is for remaining to say.
func (a *Applier) sweep(j *store, r Request, first *Plan, res *Result) error {
	tried := map[string]bool{}
	for range sweeps {
		p := a.planner(j, r, first)
		p.interrupts()
		p.tasks(func(t Task) bool { return meets(t.Allowed, p.r.CPUs) })
		if p.failed != nil {
			return p.failed
		}
		fresh := 0
		for _, x := range p.plan.Steps {
			key := x.Setting.key()
			if h := j.held[key]; tried[key] || h != nil && h.by(first.Owner) || res.refused[key] != "" {
				continue
			}
			tried[key] = true
			fresh++
			if err := a.step(j, first.Owner, x, res); err != nil {
				return err
			}
		}
		if fresh == 0 {
			break
		}
	}
	return a.remaining(j, r, first, res)
}

// remaining says which threads and interrupts may still come to the cores, and why. What came back, or comes faster than it
// can be moved, is an error with --strict, as what the kernel refuses is.
func (a *Applier) remaining(j *store, r Request, first *Plan, res *Result) error {
	stays := func(what string, x Setting, back, fresh string) error {
		why := res.refused[x.key()]
		h := j.held[x.key()]
		switch {
		case why != "":
		case h != nil && h.by(first.Owner):
			why = back
		default:
			why = fresh
		}
		if a.Strict {
			return fmt.Errorf("%s may still come to CPUs %s: %s (--strict)", what, cores.Format(first.CPUs), why)
		}
		res.Cannot = append(res.Cannot, Remark{what, why})
		res.excuse(x, why)
		return nil
	}
	tasks, err := Tasks(a.System)
	if err != nil {
		return err
	}
	for _, t := range tasks {
		if t.Bound || !meets(t.Allowed, first.CPUs) || slices.Contains(r.Threads, t.TID) {
			continue
		}
		err := stays(fmt.Sprintf("thread %d (%s)", t.TID, t.Name), Setting{Kind: Affinity, Name: threadName(t)},
			"it was moved and has come back: it or somebody else sets its affinity (taskset, a daemon)", "threads are made faster than they can be moved")
		if err != nil {
			return err
		}
	}
	p := a.planner(j, r, first)
	p.interrupts()
	for _, x := range p.plan.Steps {
		n, ok := irqOf(x.Setting.Name)
		if !ok {
			continue
		}
		err := stays(fmt.Sprintf("IRQ %s (%s)", n, orDash(IRQName(a.System, n))), x.Setting,
			"it was moved and has come back: irqbalance, or somebody else, sets its affinity", "interrupts are set up faster than they can be moved")
		if err != nil {
			return err
		}
		if now, err := CPUs(a.System, "proc/irq/"+n+"/effective_affinity_list"); err == nil && len(now) > 0 && !meets(now, first.CPUs) {
			res.Cannot[len(res.Cannot)-1].Why += "; now it goes to CPU " + cores.Format(now)
		}
	}
	return nil
}

// irqOf gives the number of the interrupt whose affinity a file is.
func irqOf(name string) (string, bool) {
	n, ok := strings.CutPrefix(name, "proc/irq/")
	n, affinity := strings.CutSuffix(n, "/smp_affinity_list")
	return n, ok && affinity
}

// planner plans again for an owner who is in the journal already.
func (a *Applier) planner(j *store, r Request, first *Plan) *planner {
	return &planner{s: a.System, st: &j.state, r: r, online: first.Housekeeping, keep: first.Housekeeping, held: j.claimed(""), ours: append(slices.Clone(first.CPUs), first.off...), layout: a.layout, plan: &Plan{}}
}
