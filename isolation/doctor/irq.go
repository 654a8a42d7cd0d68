package doctor

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/host"
)

// Counts of /proc/interrupts, by the row's name and CPU.
type irqCounts struct {
	cpus []int
	rows map[string][]uint64
	who  map[string]string
}

func parseInterrupts(text string) (c irqCounts) {
	c.rows, c.who = map[string][]uint64{}, map[string]string{}
	for i, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		if i == 0 {
			for _, n := range f {
				if id, err := strconv.Atoi(strings.TrimPrefix(n, "CPU")); err == nil {
					c.cpus = append(c.cpus, id)
				}
			}
			continue
		}
		if len(f) == 0 || !strings.HasSuffix(f[0], ":") {
			continue
		}
		name, at := strings.TrimSuffix(f[0], ":"), 1
		for ; at < len(f) && at <= len(c.cpus); at++ {
			n, err := strconv.ParseUint(f[at], 10, 64)
			if err != nil {
				break
			}
			c.rows[name] = append(c.rows[name], n)
		}
		if at < len(f) {
			c.who[name] = f[len(f)-1]
		}
	}
	return c
}

// of gives the count of a row on a CPU.
func (c *irqCounts) of(row string, cpu int) uint64 {
	i, r := slices.Index(c.cpus, cpu), c.rows[row]
	if i < 0 || i >= len(r) {
		return 0
	}
	return r[i]
}

// irqSet is interrupts that may come to a core, and how many did since the start.
type irqSet struct {
	names      []string
	came, most uint64
	worst      string
}

func (q *irqSet) add(irq string, counts *irqCounts, cpu int) {
	q.names = append(q.names, irq)
	k := counts.of(irq, cpu)
	if q.came += k; k > q.most {
		q.most, q.worst = k, fmt.Sprintf(", most IRQ %s (%s) %d", irq, counts.who[irq], k)
	}
}

// finding is what they cost: where none came so far, nothing had a reason to.
func (q *irqSet) finding(cpu int, what string, evidence ...Evidence) Finding {
	f := Finding{CPUs: []int{cpu}, What: what, Evidence: append(evidence, Evidence{"/proc/interrupts", fmt.Sprintf("%d came%s", q.came, q.worst)}), Causes: append(slices.Clone(interrupt), "irq_exits"), Cost: OnDemand, Cap: D}
	if q.came == 0 {
		f.Cap = C
	}
	return f
}

// interrupts: devices' interrupts that may come to the core, and those that did.
func (e *examiner) interrupts() {
	v, ev := e.look("proc/irq/default_smp_affinity")
	if mask, err := host.ParseMask(v); err == nil {
		in := e.inside(mask)
		f := Finding{ID: "irq-default", CPUs: in, State: verdict(len(in) > 0), What: "interrupts that are set up later may come to it", Evidence: []Evidence{ev}, Causes: interrupt, Cost: OnDemand, Cap: C, Way: RunTime}
		if len(in) == 0 {
			f.CPUs = e.cpus
		}
		e.add(f)
	}
	text, _ := e.look("proc/interrupts")
	counts := parseInterrupts(text)
	names, err := e.s.Names("proc/irq")
	if err != nil {
		e.add(Finding{ID: "irq", State: Unknown, What: "which interrupts come to it is not known", Evidence: []Evidence{{"/proc/irq", "not readable"}}, Causes: interrupt, Cost: OnDemand, Cap: C, Way: Never})
		return
	}
	apart, managedAtBoot := e.listOf(cpuDir + "/isolated")
	iso, _ := e.arg("isolcpus")
	for _, c := range e.cpus {
		var here, managed, perhaps irqSet
		for _, n := range names {
			if _, err := strconv.Atoi(n); err != nil {
				continue
			}
			list, err := host.CPUs(e.s, "proc/irq/"+n+"/smp_affinity_list")
			if err != nil || !slices.Contains(list, c) {
				continue
			}
			yes, known := host.Managed(e.s, n)
			switch {
			case yes && known:
				if !strings.Contains(iso, "managed_irq") {
					managed.add(n, &counts, c)
				}
			case !host.MayCome(e.s, n, []int{c}):
			case yes:
				perhaps.add(n, &counts, c)
			default:
				here.add(n, &counts, c)
			}
		}
		f := here.finding(c, "interrupts of devices may come to it", Evidence{"/proc/irq/*/smp_affinity_list", fmt.Sprintf("%d IRQs", len(here.names))})
		f.ID, f.Way, f.State = "irq", RunTime, verdict(len(here.names) > 0)
		e.add(f)
		if len(managed.names) > 0 {
			f := managed.finding(c, "the kernel manages the affinity of some itself: it cannot be changed", Evidence{"/proc/irq/*/smp_affinity_list", "IRQs " + strings.Join(managed.names, " ") + ", by debugfs or the mode"}, managedAtBoot)
			f.ID, f.State = "irq-managed", Wrong
			if e.atBoot(&f, "", "isolcpus=managed_irq,", apart); f.Way == Boot {
				f.Remedy += ", or fewer queues (ethtool -L)"
			}
			e.add(f)
		}
		if len(perhaps.names) > 0 {
			f := perhaps.finding(c, "some may come to it, and whether the kernel lets them be moved is not known", Evidence{"/sys/kernel/irq/*/chip_name", "IRQs " + strings.Join(perhaps.names, " ") + " are PCI-MSI; neither debugfs nor a mode tells which are managed"})
			f.ID, f.Way, f.State, f.unsure = "irq-perhaps", RunTime, Unknown, true
			e.add(f)
		}
		if n := counts.of("NMI", c) + counts.of("PMI", c); n > 0 {
			// The count is since boot: what made them may be off by now, as after an apply.
			on, ev := e.look("proc/sys/kernel/nmi_watchdog")
			f := Finding{ID: "nmi", CPUs: []int{c}, State: OK, What: "non-maskable interrupts have come to it since boot, and what makes them is off", Evidence: []Evidence{ev, {"/proc/interrupts", fmt.Sprintf("NMI %d, PMI %d", counts.of("NMI", c), counts.of("PMI", c))}},
				Causes: interrupt, Cost: Seconds, Cap: C, Way: Max}
			if on == "1" {
				f.State, f.What = Wrong, "non-maskable interrupts have come to it, and will: the hard lockup detector is on"
			}
			e.add(f)
		}
	}
}

// workqueues: the kernel's deferred work.
func (e *examiner) workqueues() {
	const dir = "sys/devices/virtual/workqueue"
	names, err := e.s.Names(dir)
	if err != nil {
		names = nil
	}
	files := []string{dir + "/cpumask"}
	for _, n := range names {
		if host.Has(e.s, dir+"/"+n+"/cpumask") {
			files = append(files, dir+"/"+n+"/cpumask")
		}
	}
	var evidence []Evidence
	var hit []int
	known := false
	for _, name := range files {
		v, ev := e.look(name)
		mask, err := host.ParseMask(v)
		if err != nil {
			continue
		}
		known = true
		if in := e.inside(mask); len(in) > 0 {
			evidence, hit = append(evidence, ev), append(hit, in...)
		}
	}
	slices.Sort(hit)
	f := Finding{ID: "workqueues", CPUs: slices.Compact(hit), State: verdict(len(hit) > 0), What: "unbound work of the kernel may run on it (writeback, ...)", Evidence: evidence, Causes: switched, Cost: OnDemand, Cap: C, Way: RunTime}
	if !known {
		f.State = Unknown
		_, ev := e.look(files[0])
		f.Evidence = []Evidence{ev}
	}
	if f.State == OK {
		f.CPUs = e.cpus
		_, ev := e.look(files[0])
		f.Evidence = []Evidence{ev}
	}
	e.add(f)
}

// watchdogs: the lockup detectors and the checks that machines make of themselves.
func (e *examiner) watchdogs() {
	on, evOn := e.look("proc/sys/kernel/watchdog")
	mask, ev := e.listOf("proc/sys/kernel/watchdog_cpumask")
	soft := e.inside(mask)
	if on == "0" || evOn.Value == "not there" {
		soft = nil
	}
	f := Finding{ID: "watchdog", CPUs: soft, State: verdict(len(soft) > 0), What: "the lockup detector's timer, every 4 s by default", Evidence: []Evidence{ev, evOn}, Causes: interrupt, Cost: Seconds, Cap: C, Way: RunTime}
	if len(soft) == 0 {
		f.CPUs = e.cpus
	}
	e.add(f)
	e.knob("nmi-watchdog", "proc/sys/kernel/nmi_watchdog", "the hard lockup detector uses non-maskable interrupts", is("1"), Finding{Causes: interrupt, Cost: Seconds, Cap: C, Way: Max})
	var poll []int
	var evidence []Evidence
	for _, c := range e.cpus {
		dir := fmt.Sprintf("sys/devices/system/machinecheck/machinecheck%d/", c)
		ce, ev1 := e.look(dir + "ignore_ce")
		interval, ev2 := e.look(dir + "check_interval")
		if ce == "0" && interval != "0" {
			poll, evidence = append(poll, c), []Evidence{ev1, ev2}
		} else if evidence == nil {
			evidence = []Evidence{ev1}
		}
	}
	f = Finding{ID: "machine-check", CPUs: poll, State: verdict(len(poll) > 0), What: "machine-check banks are polled, every 5 min by default", Evidence: evidence, Causes: append(slices.Clone(interrupt), "mce_timer_fn"), Cost: Seconds, Cap: B, Way: RunTime}
	if len(poll) == 0 {
		f.CPUs = e.cpus
	}
	e.add(f)
	e.knob("hung-task", "proc/sys/kernel/hung_task_timeout_secs", "khungtaskd looks at all tasks (on another CPU)", func(string) bool { return false }, Finding{Causes: nothing, Cost: OnDemand, Cap: A, Way: ByHand})
}

// periodic: statistics that each core folds.
func (e *examiner) periodic() {
	e.knob("vmstat", "proc/sys/vm/stat_interval", "memory statistics are folded on each core, every so many s", func(v string) bool { n, ok := number(v); return !ok || n < 10 },
		Finding{Causes: append(slices.Clone(switched), "vmstat_update"), Cost: Seconds, Cap: C, Way: RunTime})
	e.knob("writeback", "proc/sys/vm/dirty_writeback_centisecs", "dirty pages are written back by workers, which the mask of workqueues places", func(string) bool { return false }, Finding{Causes: switched, Cost: OnDemand, Cap: A, Way: RunTime})
	clock, evClock := e.look("sys/devices/system/clocksource/clocksource0/current_clocksource")
	tsc, given := e.arg("tsc")
	known := slices.Contains(e.flags, "tsc_known_freq")
	f := Finding{ID: "clock-watchdog", State: verdict(clock == "tsc" && !known && !(given && strings.Contains(tsc, "reliable")) && !slices.Contains(e.flags, "tsc_reliable")),
		What: "the TSC is checked against another clock, twice a second, on one core after the other", Evidence: []Evidence{evClock, e.argEvidence("tsc")}, Causes: interrupt, Cost: Seconds, Cap: C, Way: Boot, Remedy: "tsc=reliable"}
	if e.blind != "" && f.State == Wrong {
		f.State, f.What = Unknown, "whether the TSC is checked against another clock is not known"
		f.Evidence = append(f.Evidence, Evidence{"/proc/cpuinfo", e.blind})
	}
	if f.State == OK {
		f.What = "nobody checks the TSC against another clock"
	}
	e.add(f)
}

// tracing: arming it patches kernel text, which interrupts every core; so do consoles in their way.
func (e *examiner) tracing() {
	e.knob("tracer", "sys/kernel/tracing/current_tracer", "a tracer is on: its buffers and switches interrupt every core", func(v string) bool { return v != "nop" }, Finding{Causes: interrupt, Cost: OnDemand, Cap: B, Way: ByHand,
		Remedy: "echo nop >/sys/kernel/tracing/current_tracer"})
	v, ev := e.look("proc/sys/kernel/printk")
	level := 0
	if f := strings.Fields(v); len(f) > 0 {
		level, _ = number(f[0])
	}
	e.add(Finding{ID: "console", State: verdict(level > 4), What: "messages of the kernel go to the console at once, by whichever core writes them", Evidence: []Evidence{ev, e.argEvidence("console")}, Causes: switched, Cost: OnDemand, Cap: B, Way: ByHand,
		Remedy: "dmesg -n 4"})
	e.knob("perf", "proc/sys/kernel/perf_cpu_time_max_percent", "perf sessions sample by interrupts (start none while sealed)", func(string) bool { return false }, Finding{Causes: interrupt, Cost: OnDemand, Cap: A, Way: ByHand})
}

// leftovers: timers that are armed on the core now.
func (e *examiner) leftovers() {
	b, err := e.s.Read("proc/timer_list")
	if err != nil {
		e.add(Finding{ID: "timers", State: Unknown, What: "which timers are armed on it is not known", Evidence: []Evidence{{"/proc/timer_list", "not readable"}}, Causes: interrupt, Cost: OnDemand, Cap: B, Way: ByHand, Remedy: "run as root"})
		return
	}
	armed := armedTimers(string(b))
	for _, c := range e.cpus {
		var names []string
		for _, n := range armed[c] {
			switch n {
			case "tick_nohz_handler", "tick_sched_timer": // the tick has its own finding
			case "watchdog_timer_fn": // and so has the lockup detector
			default:
				if !slices.Contains(names, n) {
					names = append(names, n)
				}
			}
		}
		f := Finding{ID: "timers", CPUs: []int{c}, State: verdict(len(names) > 0), What: "timers are armed on it, beside the tick", Evidence: []Evidence{{"/proc/timer_list", strings.Join(names, " ")}}, Causes: append(slices.Clone(interrupt), "timer:hrtimer_expire_entry"),
			Cost: OnDemand, Cap: C, Way: Max} // what is armed leaves with the core going off line
		if len(names) == 0 {
			f.Evidence[0].Value = "none"
		}
		e.add(f)
	}
}

// armedTimers reads the functions of high-resolution timers by CPU from /proc/timer_list (kernel/time/timer_list.c).
func armedTimers(text string) map[int][]string {
	out := map[int][]string{}
	cpu := -1
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if v, ok := strings.CutPrefix(line, "cpu:"); ok {
			cpu = -1
			if n, ok := number(v); ok {
				cpu = n
			}
		}
		if strings.HasPrefix(line, "#") && cpu >= 0 {
			if f := strings.Split(line, ","); len(f) >= 3 && strings.Contains(f[len(f)-1], "S:") {
				out[cpu] = append(out[cpu], strings.TrimSpace(f[1]))
			}
		}
		if strings.HasPrefix(line, "Tick Device") {
			break
		}
	}
	return out
}
