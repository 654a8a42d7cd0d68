package host

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/cores"
	"golang.org/x/sys/unix"
)

// known reports whether a value may stand there through us. When the cores of the owners become a partition the kernel
// takes them from every affinity by itself, or, before 6.2, makes each that of its cpuset; and a partition that it
// does not like reads "isolated invalid (…)".
func (a *Applier) known(j *store, h *held, value string) bool {
	claimed := j.claimed("")
	return slices.ContainsFunc(h.ours, func(v string) bool {
		if h.Kind == Affinity {
			if l, err := cores.ParseList(v); err == nil && h.same(value, cores.Format(minus(l, claimed))) {
				return true
			}
		}
		return h.same(v, value) || v != "" && strings.HasPrefix(value, v+" invalid")
	}) || h.Kind == Affinity && a.byKernel(h.Setting, value)
}

// byKernel reports whether an affinity is just what its cpuset gives: that is what the kernel makes of it.
func (a *Applier) byKernel(x Setting, value string) bool {
	t, ok := findThread(a.System, x.Name)
	return ok && a.layout.V2 != "" && x.same(value, cores.Format(a.layout.gives(a.System, t.TID)))
}

// foreign is the remark on a value that somebody else has set.
func (a *Applier) foreign(h *held, want, now string) Remark {
	return Remark{h.String(), fmt.Sprintf("it was %s, we made it %s, and somebody has made it %s since: set it by hand if that is not wanted",
		short(h.canonical(want)), short(h.canonical(h.ours[len(h.ours)-1])), short(h.canonical(now)))}
}

// Claims lists who has cores, from the journal; none without one.
func (a *Applier) Claims() ([]Claim, error) {
	a.fill()
	j, err := open(a.System, a.Dir, false, waiter{})
	if err != nil {
		return nil, err
	}
	return j.claims, j.close()
}

// Dead reports whether the process that a claim is for has ended, so that it can be given back by anybody.
func (a *Applier) Dead(c Claim) bool {
	a.fill()
	return !c.alive(a.System)
}

// Restore gives back what the owner of each claim on any of the cores was given; of all claims without cores. It
// may be called at any time and any number of times. A nil list with a nil error: there was nothing to
// give back.
func (a *Applier) Restore(cpus []int) ([]*Result, error) {
	return a.restore(func(c Claim) bool { return len(cpus) == 0 || meets(c.CPUs, cpus) })
}

// RestoreOwner gives back what one owner was given.
func (a *Applier) RestoreOwner(owner string) ([]*Result, error) {
	return a.restore(func(c Claim) bool { return c.Owner == owner })
}

func (a *Applier) restore(which func(Claim) bool) (list []*Result, err error) {
	a.fill()
	if c, err := a.Claims(); err != nil || !slices.ContainsFunc(c, which) {
		return nil, err // nothing to give back, and perhaps no right to look: no directory is made for that
	}
	j, err := open(a.System, a.Dir, true, waiter{a.Stop, a.Waiting})
	if err != nil {
		return nil, err
	}
	j.point = a.point
	a.layout = CPUSets(a.System)
	for _, c := range slices.Clone(j.claims) {
		if !which(c) {
			continue
		}
		res := &Result{Owner: c.Owner, CPUs: c.CPUs, Refused: []Remark{}, Foreign: []Remark{}, Cannot: []Remark{}}
		list = append(list, res)
		if e := a.giveBack(j, c.Owner, res); e != nil {
			err = errors.Join(err, e)
			break
		}
		if len(res.Refused) > 0 {
			err = errors.Join(err, fmt.Errorf("CPUs %s: %d settings could not be put back, first %s: try again (cloister host restore)", cores.Format(c.CPUs), len(res.Refused), res.Refused[0]))
		}
	}
	return list, errors.Join(err, j.close())
}

// giveBack walks an owner's settings backwards: CPUs first, so that cpusets find them when they are undone; affinities of
// threads, which both change by the way, last. Its error is that of the journal; what the kernel refuses stays in the journal and
// is in the result.
func (a *Applier) giveBack(j *store, owner string, res *Result) error {
	var unwritten error // goes on: what can be put back without the journal is
	for _, h := range j.held {
		if h.by(owner) && a.layout.hazard(h.Setting) {
			if err := a.noteAgain(j, owner, res); errors.Is(err, errUnwritten) {
				unwritten = err
			} else if err != nil {
				return err
			}
			break
		}
	}
	for turn := range 3 {
		for _, key := range slices.Backward(slices.Clone(j.order)) {
			h := j.held[key]
			if h == nil || !h.by(owner) || h.turn() != turn {
				continue
			}
			if err := a.putBack(j, owner, h.Setting, res); errors.Is(err, errUnwritten) {
				unwritten = err
			} else if err != nil {
				return err
			}
		}
	}
	if unwritten != nil {
		return unwritten
	}
	for _, h := range j.held {
		if h.by(owner) {
			return nil // not all could be put back: the claim stays, for another try
		}
	}
	if j.claim(owner) == nil {
		return nil
	}
	return j.add(a.System, &record{Op: opRelease, Owner: owner})
}

// switchedFor gives a group of somebody else's that needs the cpuset controller, which we switched on for the groups below the root;
// "" without one. Switched off it would be lost, with what it was given.
func (a *Applier) switchedFor(x Setting) string {
	root := path.Dir(x.Name)
	names, err := a.System.Names(root)
	if x.Format != Switch || err != nil {
		return ""
	}
	for _, n := range names {
		dir := path.Join(root, n)
		if !ours(dir) && (Text(a.System, dir+"/cpuset.cpus") != "" || slices.Contains(strings.Fields(Text(a.System, dir+"/cgroup.subtree_control")), x.Word)) {
			return dir
		}
	}
	return ""
}

// turn is when a setting is put back.
func (x Setting) turn() int {
	switch {
	case x.cpu():
		return 0
	case x.Kind == Affinity:
		return 2
	}
	return 1
}

// putBack makes a setting what it has to be without the owner.
func (a *Applier) putBack(j *store, owner string, x Setting, res *Result) error {
	h := j.held[x.key()]
	leave := func(now string) error {
		return j.add(a.System, &record{Op: opDone, Owner: owner, Key: x.key(), Now: now, Leave: true})
	}
	rest := h.without(owner)
	if d := j.held[Setting{Kind: Directory, Name: x.Within}.key()]; x.Within != "" && d != nil && len(d.holders) == 1 && d.by(owner) {
		return leave(h.orig) // it goes with its directory
	}
	now, err := h.read(a.System)
	switch {
	case errors.Is(err, errGone):
		res.Gone++
		return leave(h.orig)
	case errors.Is(err, fs.ErrNotExist):
		// A device that was removed, or a directory that somebody else has removed.
		res.Foreign = append(res.Foreign, Remark{x.String(), "it is no longer there"})
		return leave(h.orig)
	case err != nil:
		res.Refused = append(res.Refused, Remark{x.String(), err.Error()})
		return nil
	}
	online, err := CPUs(a.System, cpuDir+"/online")
	if err != nil {
		return fmt.Errorf("read the host's CPUs: %w", err)
	}
	want, err := h.value(h.orig, rest, j.cores(rest), minus(online, j.claimed(owner)))
	if err != nil {
		res.Refused = append(res.Refused, Remark{x.String(), err.Error()})
		return nil
	}
	if h.same(now, want) {
		return leave(now)
	}
	if !a.known(j, h, now) {
		res.Foreign = append(res.Foreign, a.foreign(h, want, now))
		return leave(h.ours[len(h.ours)-1]) // still not ours for those who stay
	}
	leftOn := func(why string) error { // it does no harm, and who needs it would lose his cpusets: it is let go of
		res.Foreign = append(res.Foreign, Remark{x.String(), fmt.Sprintf("we switched %s on, and %s: switch it off by hand (-%s) when that is not wanted", x.Word, why, x.Word)})
		return leave(now)
	}
	if user := a.switchedFor(x); user != "" && len(rest) == 0 {
		return leftOn(fmt.Sprintf("/%s has come to use it since", user))
	}
	set := h.Setting
	if err := j.add(a.System, &record{Op: opSet, Owner: owner, Setting: &set, Old: now, New: want}); err != nil && (len(rest) > 0 || !errors.Is(err, errUnwritten)) {
		return err
	} // A sole holder's is in the journal as what it was: it is known without this record.
	err = h.write(a.System, want)
	if p := j.reached("write " + x.Name); p != nil {
		return p
	}
	after := want
	if err == nil {
		after, err = a.verify(h.Setting, want)
	}
	switch {
	case errors.Is(err, errGone):
		res.Gone++
		return leave(h.orig)
	case x.Format == Switch && errors.Is(err, unix.EBUSY):
		return leftOn("the kernel says that it is in use")
	case err != nil:
		res.Refused = append(res.Refused, Remark{x.String(), strings.TrimPrefix(err.Error(), "write ")})
		return nil
	}
	res.Changed++
	return leave(after)
}
