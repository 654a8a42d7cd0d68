package host

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/cores"
)

// Drift is a precondition of a quiet core that somebody has undone.
type Drift struct {
	What string `json:"what"`
	File string `json:"file"`
	Was  string `json:"was"`
	Is   string `json:"is"`
}

// String is one line.
func (d Drift) String() string {
	return fmt.Sprintf("%s: %s was %s, is %s", d.What, d.File, d.Was, d.Is)
}

// Watch notices drift. What it reads are files that the kernel answers from memory; of a file that it would answer by
// an interrupt on the core it only notices that somebody has written to it. So it disturbs nobody, and least of all the cores
// that it watches. It never writes, so it repairs nothing: who undid it may have had a reason.
type Watch struct {
	s      System
	cpus   []int
	own    []int
	held   []watched
	last   map[string]reading
	rest   map[string]Task // the other threads that may run there
	expect []int           // processes of which the owner learns of new threads later than they come
	first  map[string]bool // threads of theirs that were there for the first time at the last look
	public bool            // at the start the cores were everybody's
	begun  bool            // everything was read once
	writes *Writes
	blind  []Remark
}

// reading is what was found in a file.
type reading struct {
	text   string
	absent bool // there is nothing to read, and text says so
}

const notThere = "not there"

// NewWatch takes what it finds now for the way it shall be. own are the owner's threads, which are no news on the cores; their
// processes are not what tells whose the cores are. Close it at the end.
func NewWatch(s System, cpus, own []int) (*Watch, error) {
	w := &Watch{s: s, cpus: slices.Clone(cpus), own: slices.Clone(own), last: map[string]reading{}}
	w.held = w.preconditions()
	tasks, err := Tasks(s)
	if err != nil {
		return nil, err
	}
	w.rest = w.strangers(tasks)
	w.public = w.shared(tasks)
	w.watchWrites()
	w.Check()
	w.begun = true
	return w, nil
}

// Own replaces the owner's threads: he makes and ends some while the watch goes on.
func (w *Watch) Own(tids []int) { w.own = slices.Clone(tids) }

// Expect names a process of the owner's of whose threads he learns later than they come: one that comes to the cores is told of
// when it is still there, and not yet his, at the second look.
func (w *Watch) Expect(pid int) { w.expect = append(w.expect, pid) }

// Blind lists what is not watched, and why.
func (w *Watch) Blind() []Remark { return w.blind }

// Close ends the watch.
func (w *Watch) Close() error {
	if w.writes == nil {
		return nil
	}
	return w.writes.Close()
}

// watchWrites watches the files that must not be read: intel_pstate and amd-pstate answer from a register of the CPU that
// is asked about, by an interrupt there (intel_pstate_get_epp, rdmsrl_on_cpu).
func (w *Watch) watchWrites() {
	var names []string
	for _, c := range w.cpus {
		dir := fmt.Sprintf("%s/cpu%d/cpufreq", cpuDir, c)
		if list, err := w.s.Names(dir); err == nil && slices.Contains(list, eppFile) {
			names = append(names, dir+"/"+eppFile)
		}
	}
	if len(names) == 0 {
		return
	}
	what := "who writes to /" + names[0]
	s, ok := w.s.(interface {
		Writes([]string) (*Writes, error)
	})
	if !ok {
		w.blind = append(w.blind, Remark{what, "this is no live host"})
		return
	}
	var err error
	if w.writes, err = s.Writes(names); err != nil {
		w.blind = append(w.blind, Remark{what, err.Error()})
	}
}

// strangers are the threads that may run on the cores and need not, by their names.
func (w *Watch) strangers(tasks []Task) map[string]Task {
	list := map[string]Task{}
	for _, t := range tasks {
		if w.stranger(t) {
			list[threadName(t)] = t
		}
	}
	return list
}

func (w *Watch) stranger(t Task) bool {
	return !t.Bound && meets(t.Allowed, w.cpus) && !slices.Contains(w.own, t.TID)
}

// shared reports whether the cores are everybody's: whether most threads that could be kept off them are not. The owner's
// processes keep themselves off, and are not counted.
func (w *Watch) shared(tasks []Task) bool {
	var mine []int
	for _, t := range tasks {
		if slices.Contains(w.own, t.TID) {
			mine = append(mine, t.PID)
		}
	}
	here, all := 0, 0
	for _, t := range tasks {
		if t.Bound || slices.Contains(mine, t.PID) {
			continue
		}
		all++
		if w.stranger(t) {
			here++
		}
	}
	return 2*here > all
}

// Check says what is worse than at the last call; the first call, by NewWatch, says nothing.
func (w *Watch) Check() (list []Drift) {
	for _, x := range w.held {
		list = w.compare(list, x, x.look(w.s))
	}
	list = append(list, w.workqueues()...)
	list = append(list, w.interrupts()...)
	list = append(list, w.written()...)
	return append(list, w.arrivals()...)
}

// compare adds what is worse about one file to the list.
func (w *Watch) compare(list []Drift, x watched, now reading) []Drift {
	was, known := w.last[x.name]
	w.last[x.name] = now
	if !known && !x.appears || was == now {
		return list
	}
	if !known {
		was = reading{notThere, true}
	}
	if !x.worse(was, now, w.cpus) {
		return list
	}
	return append(list, Drift{x.what, "/" + x.name, was.text, now.text})
}

// workqueues looks at the masks of unbound work, those that came since included.
func (w *Watch) workqueues() (list []Drift) {
	const dir = "sys/devices/virtual/workqueue"
	names, err := w.s.Names(dir)
	if err != nil {
		return nil // no such kernel
	}
	for _, n := range names {
		x := watched{name: dir + "/" + n + "/cpumask", what: "where work of " + n + " runs", format: Mask, rule: keptOff, appears: w.begun}
		if now := x.look(w.s); !now.absent {
			list = w.compare(list, x, now)
		}
	}
	return list
}

// interrupts looks at each interrupt that there is now. One that may come to the cores from the start, and that nobody had
// asked for then, cannot come; when somebody does ask, it is new.
func (w *Watch) interrupts() (list []Drift) {
	names, err := w.s.Names("proc/irq")
	if err != nil {
		return nil // no such kernel
	}
	for _, n := range names {
		if _, err := strconv.Atoi(n); err != nil {
			continue
		}
		x := watched{name: "proc/irq/" + n + "/smp_affinity_list", what: "the affinity of IRQ " + n, format: List, rule: keptOff, appears: w.begun}
		now := x.look(w.s)
		if was := w.last[x.name]; meets(x.set(now), w.cpus) && (was == unasked || !w.begun) && !w.asked(n) {
			now = unasked
		}
		before := len(list)
		list = w.compare(list, x, now)
		e := watched{name: "proc/irq/" + n + "/effective_affinity_list", what: "where IRQ " + n + " goes to", format: List, rule: keptOff, appears: w.begun}
		there := e.look(w.s)
		if now == unasked {
			there = unasked
		}
		if more := w.compare(nil, e, there); len(list) == before { // else it is the same news
			list = append(list, more...)
		}
	}
	return list
}

// unasked is the affinity of an interrupt that no driver has asked for.
var unasked = reading{"nobody's interrupt", true}

// asked reports whether a driver has asked for an interrupt, or it is routed to the cores already.
func (w *Watch) asked(irq string) bool {
	if IRQName(w.s, irq) != "" {
		return true
	}
	list, err := CPUs(w.s, "proc/irq/"+irq+"/effective_affinity_list")
	return err == nil && meets(list, w.cpus)
}

// written tells of files that are not read.
func (w *Watch) written() (list []Drift) {
	if w.writes == nil {
		return nil
	}
	names, err := w.writes.Seen()
	for _, n := range names {
		list = append(list, Drift{"the energy preference", "/" + n, "as at the start", "written to since (not read: that would interrupt the core)"})
	}
	if err != nil {
		w.blind = append(w.blind, Remark{"who writes to files that are not read", err.Error()})
		if err := w.writes.Close(); err != nil {
			w.blind = append(w.blind, Remark{"the end of that watch", err.Error()})
		}
		w.writes = nil
	}
	return list
}

// named is how many threads that come in one second are each told of.
const named = 5

// arrivals are threads that have come to the cores. Where the cores are everybody's, only those that may run nowhere else: that
// others come is no news, but the doctor's to say.
func (w *Watch) arrivals() (list []Drift) {
	tasks, err := Tasks(w.s)
	if err != nil {
		return nil // no /proc, no threads
	}
	bound := func(t Task) bool { return len(minus(t.Allowed, w.cpus)) == 0 }
	more := 0
	here, first := w.strangers(tasks), map[string]bool{}
	for _, t := range tasks {
		name := threadName(t)
		if _, ok := here[name]; !ok {
			continue
		}
		before, known := w.rest[name]
		if w.public && (!bound(t) || known && bound(before)) || !w.public && known {
			continue
		}
		if slices.Contains(w.expect, t.PID) && !w.first[name] {
			first[name] = true
			if delete(here, name); known {
				here[name] = before // as if it had not come
			}
			continue
		}
		was := notThere
		if known {
			was = cores.Format(before.Allowed)
		}
		if more++; more <= named {
			list = append(list, Drift{fmt.Sprintf("thread %d (%s) may run there", t.TID, strings.ToValidUTF8(t.Name, "?")), fmt.Sprintf("/proc/%d/task/%d/status", t.PID, t.TID), was, cores.Format(t.Allowed)})
		}
	}
	if more > named {
		list = append(list, Drift{fmt.Sprintf("%d more threads may run there", more-named), "/proc", notThere, "there"})
	}
	w.rest, w.first = here, first
	return list
}
