package host

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/cores"
	"golang.org/x/sys/unix"
)

// Applier changes a host. Its zero fields are the machine itself and its journal.
type Applier struct {
	System System // nil: Live{"/"}
	Dir    string // of the journal; "": JournalDir
	Strict bool   // what the kernel refuses is an error, and undoes all

	Stop    <-chan struct{}   // closed, it ends the waiting for another process that has the journal; nil: nothing does
	Waiting func(file string) // told once, after 300 ms, for whose lock it waits; nil: nobody is

	layout Layout // while it works

	// point is called after every write to the journal and to the host; tests end the process there.
	point func(where string) error
}

// Result is what became of a Plan, or of a Restore.
type Result struct {
	Owner   string            `json:"owner"`
	CPUs    []int             `json:"cpus"`
	Changed int               `json:"changed"` // settings that were written
	Gone    int               `json:"gone"`    // threads that had ended
	Refused []Remark          `json:"refused"` // by the kernel; they are as they were
	Foreign []Remark          `json:"foreign"` // changed by somebody else since; left as they are
	Cannot  []Remark          `json:"cannot"`  // what stays, and why: what no write changes, and what may still come to the cores
	Written []string          `json:"-"`       // the settings that were written and read back so, as remarks name them; a * stands for one of many files with one value
	refused map[string]string // why a setting is not as it was to be, by key
}

// WriteText prints what an administrator wants to know: a line of figures, and a line for each exception.
func (r *Result) WriteText(w io.Writer, verb string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "CPUs %s %s for %s: %d settings changed", cores.Format(r.CPUs), verb, r.Owner, r.Changed)
	if r.Gone > 0 {
		fmt.Fprintf(&b, ", %d threads had ended", r.Gone)
	}
	b.WriteByte('\n')
	for _, x := range r.Refused {
		fmt.Fprintf(&b, "  refused: %s\n", x)
	}
	for _, x := range r.Foreign {
		fmt.Fprintf(&b, "  left alone: %s\n", x)
	}
	for _, x := range r.Cannot {
		fmt.Fprintf(&b, "  stays: %s\n", x)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Encode writes the result as JSON.
func (r *Result) Encode(w io.Writer) error { return encode(w, r) }

func (a *Applier) fill() {
	if a.System == nil {
		a.System = Live{"/"}
	}
	if a.Dir == "" {
		a.Dir = JournalDir
	}
}

// Apply makes the cores quiet. The error is one line, and the host is then as it was, unless the error says what
// could not be undone; what was refused without being an error is in the result.
func (a *Applier) Apply(r Request) (*Result, error) {
	a.fill()
	// What is wrong with the request itself, or with the place, is found before there is a journal.
	p, err := Make(a.System, a.Dir, r)
	if err == nil {
		err = rights(a.System, p)
	}
	if err != nil {
		return nil, err
	}
	j, err := open(a.System, a.Dir, true, waiter{a.Stop, a.Waiting})
	if err != nil {
		return nil, err
	}
	j.point = a.point
	res, err := a.apply(j, r)
	return res, errors.Join(err, j.close())
}

func (a *Applier) apply(j *store, r Request) (*Result, error) {
	p, err := makePlan(a.System, &j.state, r)
	if err != nil {
		return nil, err
	}
	a.layout = CPUSets(a.System)
	c := Claim{Owner: p.Owner, CPUs: p.CPUs, PID: r.PID, Off: p.off}
	if r.Outlive {
		c.PID = 0
	} else if r.PID != 0 {
		t, ok := task(a.System, r.PID, r.PID)
		if !ok {
			return nil, fmt.Errorf("process %d, for which CPUs %s are claimed: there is none", r.PID, cores.Format(p.CPUs))
		}
		c.Start = t.Start
	}
	if j.claim(c.Owner) != nil {
		return nil, fmt.Errorf("%s has cores already: give them back first (cloister host restore)", c.Owner)
	}
	r.CPUs, r.Owner = p.CPUs, p.Owner
	res := &Result{Owner: p.Owner, CPUs: p.CPUs, Refused: []Remark{}, Foreign: []Remark{}, Cannot: p.Cannot}
	err = j.add(a.System, &record{Op: opClaim, Claim: &c})
	if err == nil && slices.ContainsFunc(p.Steps, func(x Step) bool { return a.layout.hazard(x.Setting) }) {
		err = a.note(j, r, p)
	}
	if err == nil {
		err = a.steps(j, p, res)
	}
	if err == nil {
		err = a.settle(j, p.Owner, res)
	}
	if err == nil {
		err = a.sweep(j, r, p, res)
	}
	if err == nil {
		err = a.lookAgain(j, r, p.Owner, res)
	}
	if err == nil && res.Changed == 0 && len(res.Refused) > 0 {
		err = fmt.Errorf("nothing could be changed: %s: host isolation needs root and a host whose /sys and /proc can be written", res.Refused[0])
	}
	if err != nil {
		return nil, a.undo(j, p.Owner, err)
	}
	return res, nil
}

// steps does the steps of a plan.
func (a *Applier) steps(j *store, p *Plan, res *Result) (err error) {
	lacking := map[string]bool{}
	for _, step := range p.Steps {
		before := len(res.Refused)
		was := a.immovable(step, res)
		why := error(nil)
		if step.whole && lacking[step.part] {
			why = fmt.Errorf("it is left out: the %s before it could not be made whole", step.part)
		} else if step.off {
			why = a.alone(step.Setting, res)
		}
		if why != nil {
			err = a.refused(res, step.Setting, why)
		} else {
			err = a.step(j, p.Owner, step, res)
		}
		if err != nil {
			return err
		}
		if err := a.pushed(was, res); err != nil {
			return err
		}
		if len(res.Refused) > before && step.must {
			return fmt.Errorf("%s", res.Refused[before])
		}
		if step.part != "" && len(res.Refused) > before {
			lacking[step.part] = true
		}
	}
	return nil
}

// undo takes back what was done of a plan that failed.
func (a *Applier) undo(j *store, owner string, why error) error {
	if errors.Is(why, errStopped) {
		return why
	}
	res := &Result{}
	switch err := a.giveBack(j, owner, res); {
	case errors.Is(err, errUnwritten) && errors.Is(why, errUnwritten):
		why = fmt.Errorf("%w; what no other owner has is undone, then cloister host restore does the rest", why)
	case err != nil:
		why = fmt.Errorf("%w; and undoing it: %w", why, err)
	}
	for _, x := range append(res.Refused, res.Foreign...) {
		why = fmt.Errorf("%w; not undone: %s", why, x)
	}
	return why
}

// errStopped is a test's end of the process without its death.
var errStopped = errors.New("stopped here")

// step does one step. Its error is that of the journal, or a refusal that is not to be borne.
func (a *Applier) step(j *store, owner string, step Step, res *Result) error {
	x := step.Setting
	old, err := x.read(a.System)
	if errors.Is(err, errGone) {
		res.Gone++
		return nil
	}
	if err != nil {
		return a.refused(res, x, err)
	}
	if j.held[x.key()] == nil && x.same(old, step.New) {
		return nil // the partition has moved it, or somebody did
	}
	if h := j.held[x.key()]; h != nil && !a.known(j, h, old) {
		return a.refused(res, x, fmt.Errorf("somebody else has made it %s since another owner made it %s", short(old), short(h.ours[len(h.ours)-1])))
	}
	if err := j.add(a.System, &record{Op: opSet, Owner: owner, Setting: &x, Old: old, New: step.New}); err != nil {
		return err
	}
	now := old
	if !x.same(old, step.New) {
		err = x.write(a.System, step.New)
		if p := j.reached("write " + x.Name); p != nil {
			return p
		}
		if err == nil {
			now, err = a.verify(x, step.New)
		}
		if err != nil {
			if err := a.putBack(j, owner, x, res); err != nil {
				return err
			}
			if errors.Is(err, errGone) {
				res.Gone++
				return nil
			}
			return a.refused(res, x, err)
		}
		res.Changed++
		res.Written = append(res.Written, x.String())
	}
	return j.add(a.System, &record{Op: opDone, Owner: owner, Key: x.key(), Now: now})
}

// verify reads a value back: the kernel takes some values and does something else with them. Of an affinity it leaves
// out what the thread's cpuset does not have at the time.
func (a *Applier) verify(x Setting, want string) (now string, err error) {
	now, err = x.read(a.System)
	if err != nil || x.same(now, want) || x.Kind == Affinity && x.same(now, a.within(x, want)) {
		return now, err
	}
	return now, fmt.Errorf("it was set to %s and reads %.160s", short(want), strings.Join(strings.Fields(now), " ")) // the kernel's own reason
}

// within is what a thread's cpuset leaves of an affinity.
func (a *Applier) within(x Setting, want string) string {
	t, ok := findThread(a.System, x.Name)
	list, err := cores.ParseList(want)
	if !ok || err != nil {
		return want
	}
	return cores.Format(cores.Common(list, a.layout.gives(a.System, t.TID)))
}

func (a *Applier) refused(res *Result, x Setting, err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	why := Remark{What: x.String(), Why: err.Error()}
	if n, ok := irqOf(x.Name); ok && x.Kind == File && errno != 0 {
		why.Why = a.unmovable(n, errno, res.CPUs)
	}
	if a.Strict {
		return fmt.Errorf("%s (--strict)", why)
	}
	res.Refused = append(res.Refused, why)
	res.excuse(x, why.Why)
	return nil
}

// excuse remembers why a setting is not as it was to be.
func (r *Result) excuse(x Setting, why string) {
	if r.refused == nil {
		r.refused = map[string]string{}
	}
	r.refused[x.key()] = why
}

// unmovable says why the kernel refuses to set an interrupt's affinity (write_irq_affinity of its kernel/irq/proc.c).
func (a *Applier) unmovable(irq string, errno unix.Errno, cpus []int) string {
	const flags = "sys/kernel/debug/irq/irqs/"
	switch {
	case errno != unix.EIO && errno != unix.EPERM:
		return errno.Error() + ": no CPU that is left can take it"
	case managed(a.System, irq):
		return fmt.Sprintf("the kernel manages it itself: isolcpus=managed_irq,%s at boot, or fewer queues of the device", cores.Format(cpus))
	case Has(a.System, flags+irq):
		return "its driver keeps it there"
	}
	return "the kernel refuses to move it: its driver keeps it there, as it seems (no /" + flags + irq + " tells)"
}
