package host

import (
	"fmt"
	"slices"
	"strconv"

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
func (a *Applier) alone(x Setting) error {
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
		if _, e := strconv.Atoi(n); e != nil || err != nil || !only(list) || managed(a.System, n) {
			continue
		}
		if who := IRQName(a.System, n); who != "" || effective(a.System, n, list) {
			return fmt.Errorf("it is left on line: IRQ %s (%s) goes to no other CPU, and could not be brought back", n, orDash(who))
		}
	}
	return nil
}

// sweeps is how often threads are looked for again: one that was not moved yet may have made others meanwhile,
// as in cores.KeepOff.
const sweeps = 20

// sweep moves threads that were made while others were moved, until a pass finds none.
func (a *Applier) sweep(j *store, r Request, first *Plan, res *Result) error {
	refused := len(res.Refused)
	tried := map[string]bool{}
	for range sweeps {
		p := a.planner(j, r, first)
		p.tasks(func(t Task) bool { return meets(t.Allowed, p.r.CPUs) })
		if p.failed != nil {
			return p.failed
		}
		fresh := 0
		for _, x := range p.plan.Steps {
			if tried[x.Setting.Name] {
				continue // refused, or its owner moves it back
			}
			tried[x.Setting.Name] = true
			if h := j.held[x.Setting.key()]; h != nil && h.by(first.Owner) {
				continue
			}
			fresh++
			if err := a.step(j, first.Owner, x, res); err != nil {
				return err
			}
		}
		if fresh == 0 {
			return nil
		}
	}
	if len(res.Refused) == refused {
		res.Refused = append(res.Refused, Remark{"the affinity of every thread", "threads are made faster than they can be moved"})
	}
	return nil
}

// planner plans again for an owner who is in the journal already.
func (a *Applier) planner(j *store, r Request, first *Plan) *planner {
	return &planner{s: a.System, st: &j.state, r: r, online: first.Housekeeping, keep: first.Housekeeping, held: j.claimed(""), ours: append(slices.Clone(first.CPUs), first.off...), layout: a.layout, plan: &Plan{}}
}
