package host

import (
	"fmt"
	"path"
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

// Watch notices drift. What it reads are files that the kernel answers from memory: it interrupts nobody, and least
// of all the cores that it watches. It never writes, so it repairs nothing: who undid it may have had a reason.
type Watch struct {
	s     System
	cpus  []int
	own   []int
	rest  []int // the other threads that might run there from the start
	alone bool  // none
	last  map[string]string
	held  []watched
}

// watched is a file and what about it matters.
type watched struct {
	Setting
	what string
}

// NewWatch takes what it finds now for the way it shall be. own are threads that belong on the cores.
func NewWatch(s System, cpus, own []int) (*Watch, error) {
	w := &Watch{s: s, cpus: slices.Clone(cpus), own: slices.Clone(own), last: map[string]string{}}
	file := func(format Format, what, name string) {
		w.held = append(w.held, watched{Setting{Kind: File, Name: name, Format: format}, what})
	}
	file(Mask, "where new interrupts go", "proc/irq/default_smp_affinity")
	file(Mask, "where unbound work runs", "sys/devices/virtual/workqueue/cpumask")
	file(Mask, "where writeback runs", "sys/devices/virtual/workqueue/writeback/cpumask")
	file(List, "where the lockup detector runs", "proc/sys/kernel/watchdog_cpumask")
	for what, name := range map[string]string{
		"the hard lockup detector": "proc/sys/kernel/nmi_watchdog", "the statistics' interval": "proc/sys/vm/stat_interval",
		"timer migration": "proc/sys/kernel/timer_migration", "real-time throttling": "proc/sys/kernel/sched_rt_runtime_us",
		"NUMA balancing": "proc/sys/kernel/numa_balancing", "huge pages": "sys/kernel/mm/transparent_hugepage/enabled",
		"page merging": "sys/kernel/mm/ksm/run", "the tracer": "sys/kernel/tracing/current_tracer", "the clock": "sys/devices/system/clocksource/clocksource0/current_clocksource",
		"CPUs on line": cpuDir + "/online",
	} {
		file(Choice, what, name)
	}
	l := CPUSets(s)
	for _, c := range cpus {
		file(Plain, "the governor", fmt.Sprintf("%s/cpu%d/cpufreq/scaling_governor", cpuDir, c))
	}
	if l.V2 != "" {
		for dir, in := range l.Partitions(s) {
			if meets(in, cpus) {
				file(Plain, "the partition", path.Join(dir, "cpuset.cpus.partition"))
			}
		}
	} else if l.V1 != "" {
		file(Plain, "balancing over the whole machine", path.Join(l.V1, "cpuset.sched_load_balance"))
	}
	tasks, err := Tasks(s)
	if err != nil {
		return nil, err
	}
	for _, t := range w.strangers(tasks) {
		w.rest = append(w.rest, t.TID)
	}
	w.alone = len(w.rest) == 0
	w.Check()
	return w, nil
}

// strangers are the threads that may run on the cores and need not.
func (w *Watch) strangers(tasks []Task) (list []Task) {
	for _, t := range tasks {
		if !t.Bound && meets(t.Allowed, w.cpus) && !slices.Contains(w.own, t.TID) {
			list = append(list, t)
		}
	}
	return list
}

// Check says what is worse than at the last call; the first call, by NewWatch, says nothing.
func (w *Watch) Check() (list []Drift) {
	look := w.held
	if names, err := w.s.Names("proc/irq"); err == nil {
		for _, n := range names {
			if _, err := strconv.Atoi(n); err == nil {
				look = append(look, watched{Setting{Kind: File, Name: "proc/irq/" + n + "/smp_affinity_list", Format: List}, "the affinity of IRQ " + n})
			}
		}
	}
	for _, x := range look {
		raw, err := x.read(w.s)
		if err != nil {
			raw = "not there"
		}
		now := x.canonical(raw)
		was, known := w.last[x.Name]
		w.last[x.Name] = now
		if !known || was == now || !w.worse(x, was, now) {
			continue
		}
		list = append(list, Drift{x.what, "/" + x.Name, was, now})
	}
	return append(list, w.arrivals()...)
}

// worse: a set of CPUs drifts when one of the cores is in it that was not; anything else when it changes.
func (w *Watch) worse(x watched, was, now string) bool {
	parse := cores.ParseList
	switch x.Format {
	case Mask:
		parse = ParseMask
	case List:
	default:
		return true
	}
	a, err1 := parse(was)
	b, err2 := parse(now)
	if err1 != nil || err2 != nil {
		return true
	}
	return meets(minus(b, a), w.cpus)
}

// arrivals are threads that have come to cores on which there was none.
func (w *Watch) arrivals() (list []Drift) {
	if !w.alone {
		return nil // the cores were never the owner's alone; that is the doctor's to say
	}
	tasks, err := Tasks(w.s)
	if err != nil {
		return nil // no /proc, no threads
	}
	var here []int
	for _, t := range w.strangers(tasks) {
		here = append(here, t.TID)
		if !slices.Contains(w.rest, t.TID) {
			list = append(list, Drift{fmt.Sprintf("thread %d (%s) may run there", t.TID, strings.ToValidUTF8(t.Name, "?")), fmt.Sprintf("/proc/%d/task/%d/status", t.PID, t.TID), "not there", cores.Format(t.Allowed)})
		}
	}
	w.rest = here
	return list
}
