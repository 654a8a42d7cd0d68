package host

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/cores"
)

// rule says which change of a file is for the worse.
type rule int

const (
	unlike  rule = iota // any, but one to what Apply itself would write
	keptOff             // a set of CPUs: when one of the cores is in it that was not
	keptIn              // a set of CPUs: when one of the cores is gone from it
	rises               // a number: when it is greater
)

// watched is a file and what about it matters.
type watched struct {
	name, what string
	format     Format
	rule       rule
	good       []string // of unlike
	appears    bool     // it is news that there is such a file
}

// look reads it.
func (x *watched) look(s System) reading {
	set := Setting{Kind: File, Name: x.name, Format: x.format}
	raw, err := set.read(s)
	if err != nil {
		return reading{notThere, true}
	}
	return reading{text: set.canonical(raw)}
}

// worse compares two readings that differ.
func (x *watched) worse(was, now reading, cpus []int) bool {
	switch x.rule {
	case keptOff, keptIn:
		a, b := x.set(was), x.set(now)
		if x.rule == keptIn {
			a, b = b, a
		}
		return meets(minus(b, a), cpus)
	case rises:
		a, err1 := strconv.Atoi(was.text)
		b, err2 := strconv.Atoi(now.text)
		return err1 == nil && err2 == nil && b > a
	case unlike:
	}
	return !was.absent && !slices.Contains(x.good, now.text)
}

// set is a set of CPUs; a file that is not there names none.
func (x *watched) set(r reading) []int {
	parse := cores.ParseList
	if x.format == Mask {
		parse = ParseMask
	}
	list, err := parse(r.text)
	if r.absent || err != nil {
		return nil
	}
	return list
}

// eppFile is the one setting of Apply's that is not read while the core is in use (watchWrites).
const eppFile = "energy_performance_preference"

// machineKnobs are what the plan's rows hold for the whole machine, with the values that a plan writes (steps.go), and what
// else would undo their effect.
var machineKnobs = []watched{
	{name: "proc/sys/kernel/nmi_watchdog", what: "the hard lockup detector", good: []string{"0"}},
	{name: "proc/sys/vm/stat_interval", what: "the statistics' interval", good: []string{"120"}},
	{name: "sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", what: "khugepaged's sleep", good: []string{"3600000"}},
	{name: "proc/sys/vm/compaction_proactiveness", what: "compaction in advance", good: []string{"0"}},
	{name: "proc/sys/vm/compact_unevictable_allowed", what: "compaction of locked memory", good: []string{"0"}},
	{name: "proc/sys/kernel/numa_balancing", what: "NUMA balancing", good: []string{"0"}},
	{name: "sys/kernel/mm/transparent_hugepage/enabled", what: "huge pages", format: Choice, good: []string{"never"}},
	{name: "sys/kernel/mm/ksm/run", what: "page merging", good: []string{"0", "2"}},
	{name: "sys/kernel/mm/lru_gen/enabled", what: "page ageing", good: []string{"0x0000"}},
	{name: "proc/sys/kernel/timer_migration", what: "timer migration", good: []string{"0"}},
	{name: "proc/sys/kernel/sched_rt_runtime_us", what: "real-time throttling", good: []string{"-1"}},
	{name: "sys/kernel/tracing/current_tracer", what: "the tracer", good: []string{"nop"}},
	{name: "sys/devices/system/clocksource/clocksource0/current_clocksource", what: "the clock", good: []string{"tsc"}},
	{name: dmaLatency, what: "the latency of sleep states that everybody has to bear (us)", rule: rises},
	{name: "proc/irq/default_smp_affinity", what: "where new interrupts go", format: Mask, rule: keptOff},
	{name: "sys/devices/virtual/workqueue/cpumask", what: "where unbound work runs", format: Mask, rule: keptOff},
	{name: "proc/sys/kernel/watchdog_cpumask", what: "where the lockup detector runs", format: List, rule: keptOff},
	{name: cpuDir + "/online", what: "CPUs on line", format: List, rule: keptIn},
}

// preconditions lists the files that are watched from the start to the end: all that a plan for these cores writes, and
// the cpusets that the cores have.
func (w *Watch) preconditions() []watched {
	list := slices.Clone(machineKnobs)
	add := func(x watched) { list = append(list, x) }
	for _, c := range w.cpus {
		dir := fmt.Sprintf("%s/cpu%d", cpuDir, c)
		of := fmt.Sprintf(" of CPU %d", c)
		add(watched{name: dir + "/cpufreq/scaling_governor", what: "the governor" + of, good: []string{"performance"}})
		add(watched{name: dir + "/power/pm_qos_resume_latency_us", what: "the latency of sleep states" + of, good: []string{"n/a"}})
		add(watched{name: fmt.Sprintf("sys/devices/system/machinecheck/machinecheck%d/ignore_ce", c), what: "polling for corrected errors" + of, good: []string{"1"}})
		add(watched{name: fmt.Sprintf("sys/kernel/debug/sched/fair_server/cpu%d/runtime", c), what: "the fair server" + of, good: []string{"0"}})
	}
	// Which CPU is a sibling cannot be told while it is off line.
	if present, err := CPUs(w.s, cpuDir+"/present"); err == nil {
		for _, c := range present {
			name := fmt.Sprintf("%s/cpu%d/online", cpuDir, c)
			if Text(w.s, name) == "0" {
				add(watched{name: name, what: fmt.Sprintf("CPU %d, off line at the start, perhaps a sibling", c), good: []string{"0"}})
			}
		}
	}
	list = append(list, w.cpusets()...)
	return append(list, w.cachePartition()...)
}

// cpusets are the files that keep the cores out of the scheduler's domains.
func (w *Watch) cpusets() (list []watched) {
	l := CPUSets(w.s)
	knob := func(dir, name, what string, good ...string) {
		format := Plain
		if strings.HasSuffix(name, "cpus") || strings.HasSuffix(name, "exclusive") {
			format = List
		}
		list = append(list, watched{name: path.Join(dir, name), what: what, format: format, good: good})
	}
	partitions := l.Partitions(w.s)
	for dir, in := range partitions {
		if !meets(in, w.cpus) {
			continue
		}
		if l.V2 != "" {
			knob(dir, "cpuset.cpus.partition", "the partition")
			knob(dir, "cpuset.cpus", "the partition's CPUs")
			knob(dir, "cpuset.cpus.exclusive", "the partition's exclusive CPUs")
			list = append(list, watched{name: path.Join(dir, "cpuset.cpus.effective"), what: "the CPUs that the partition has", format: List, rule: keptIn})
			continue
		}
		knob(dir, "cpuset.cpus", "the cpuset's CPUs")
		list = append(list, watched{name: path.Join(dir, "cpuset.cpu_exclusive"), what: "the cpuset's exclusiveness", good: []string{"1"}})
		knob(dir, "cpuset.sched_load_balance", "balancing onto the cores", "0")
	}
	switch {
	case l.V2 != "":
		list = append(list, watched{name: path.Join(l.V2, "cpuset.cpus.isolated"), what: "the CPUs out of the scheduler's domains", format: List, rule: keptIn},
			watched{name: path.Join(l.V2, "cpuset.cpus.effective"), what: "the CPUs of everybody", format: List, rule: keptOff})
	case l.V1 != "":
		knob(l.V1, "cpuset.sched_load_balance", "balancing over the whole machine", "0")
		list = append(list, watched{name: path.Join(l.V1, groupPrefix+"rest", "cpuset.cpus"), what: "the CPUs that are balanced", format: List, rule: keptOff})
	}
	return list
}

// cachePartition is what gives the cores ways of the last-level cache of their own, if anything does.
func (w *Watch) cachePartition() (list []watched) {
	const root = "sys/fs/resctrl"
	names, err := w.s.Names(root)
	if err != nil {
		return nil // not mounted, or no such processor
	}
	for _, n := range names {
		dir := path.Join(root, n)
		if in, err := CPUs(w.s, dir+"/cpus_list"); err == nil && meets(in, w.cpus) {
			list = append(list, watched{name: dir + "/cpus_list", what: "the CPUs of the cache partition", format: List, rule: keptIn},
				watched{name: dir + "/schemata", what: "the cache partition"}, watched{name: root + "/schemata", what: "everybody's part of the cache"})
		}
	}
	return list
}
