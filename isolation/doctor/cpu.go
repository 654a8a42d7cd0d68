package doctor

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/cores"
	"github.com/cloister-vmm/cloister/isolation/host"
)

const cpuDir = "sys/devices/system/cpu"

// secondCPU is the remedy of a machine with one. Nothing else is one there: no command would be taken.
const secondCPU = "bring a second CPU on line, or use a machine that has one"

// availability: is there such a core to be given.
func (e *examiner) availability() {
	_, ev := e.listOf(cpuDir + "/online")
	off := e.outside(e.online)
	if len(off) > 0 {
		e.add(Finding{ID: "offline", CPUs: off, State: Wrong, What: "off line", Evidence: []Evidence{ev}, Causes: nothing, Cost: Proof, Cap: F, Way: ByHand,
			Remedy: fmt.Sprintf("echo 1 >/sys/devices/system/cpu/cpu%d/online", off[0])})
	}
	if len(e.online) < 2 {
		e.add(Finding{ID: "only-cpu", State: Wrong, What: "the only CPU: the rest of the system needs one", Evidence: []Evidence{ev}, Causes: switched, Cost: Tasks, Cap: F, Way: ByHand,
			Remedy: secondCPU})
	}
	if slices.Contains(e.cpus, 0) {
		e.add(Finding{ID: "boot-cpu", CPUs: []int{0}, State: Wrong, What: "CPU 0 has duties of its own (timekeeping, firmware, boot-time interrupts)", Evidence: []Evidence{ev},
			Causes: interrupt, Cost: OnDemand, Cap: C, Way: Never, Remedy: "choose another CPU"})
	}
}

// domains: does the scheduler balance other tasks onto the core.
func (e *examiner) domains() {
	l := host.CPUSets(e.s)
	iso, ev := e.listOf(cpuDir + "/isolated")
	evidence := []Evidence{ev}
	apart := slices.Clone(iso)
	switch {
	case l.V2 != "":
		if list, ev := e.listOf(path.Join(l.V2, "cpuset.cpus.isolated")); ev.Value != "not there" {
			evidence, apart = append(evidence, ev), append(apart, list...)
		}
		for dir, cpus := range l.Partitions(e.s) {
			if v, ev := e.look(path.Join(dir, "cpuset.cpus.partition")); v == "isolated" {
				evidence, apart = append(evidence, ev), append(apart, cpus...)
			}
		}
	case l.V1 != "":
		v, ev := e.look(path.Join(l.V1, "cpuset.sched_load_balance"))
		evidence = append(evidence, ev)
		if v == "0" {
			for dir, cpus := range l.Partitions(e.s) {
				if host.Text(e.s, path.Join(dir, "cpuset.sched_load_balance")) == "0" {
					evidence, apart = append(evidence, Evidence{"/" + path.Join(dir, "cpuset.cpus"), cores.Format(cpus)}), append(apart, cpus...)
				}
			}
		}
	default:
		evidence = append(evidence, Evidence{"/proc/mounts", "no cpuset hierarchy"})
	}
	f := Finding{ID: "sched-domain", CPUs: e.outside(apart), State: Wrong, What: "the scheduler balances other tasks onto it: no isolcpus, no cpuset", Evidence: evidence,
		Causes: switched, Cost: Tasks, Cap: D, Way: RunTime}
	if l.V2 == "" && l.V1 == "" {
		e.atBoot(&f, "", "isolcpus=domain,managed_irq,", iso)
	}
	if len(f.CPUs) == 0 {
		f.State, f.What, f.CPUs = OK, "out of the scheduler's domains", e.cpus
	}
	e.add(f)
}

// tick: the scheduler's own timer, and why it does not stop.
func (e *examiner) tick() {
	full, ev := e.listOf(cpuDir + "/nohz_full")
	evidence := []Evidence{ev, e.configEvidence("CONFIG_NO_HZ_FULL", "CONFIG_HZ")}
	without := e.outside(full)
	if text, at := e.look("proc/interrupts"); text != "" {
		counts := parseInterrupts(text)
		var came []string
		for _, c := range e.cpus[:min(4, len(e.cpus))] {
			came = append(came, fmt.Sprintf("CPU %d LOC %d", c, counts.of("LOC", c)))
		}
		evidence = append(evidence, Evidence{at.File, strings.Join(came, ", ")})
	}
	rate := "HZ times a second"
	if e.hz() > 0 {
		rate = fmt.Sprintf("%d times a second", e.hz())
	}
	f := Finding{ID: "tick", CPUs: without, State: Wrong, Evidence: evidence, Causes: append(slices.Clone(interrupt), "irq_exits", "LOC of /proc/interrupts"), Cost: Tick, Cap: D, Way: Boot}
	switch {
	case len(without) == 0:
		f.State, f.CPUs, f.What = OK, e.cpus, "nohz_full: the tick stops while one task runs"
	case e.config != nil && e.config["CONFIG_NO_HZ_FULL"] == "":
		f.What = "the tick comes " + rate + ": this kernel is built without nohz_full"
		e.atBoot(&f, "a kernel with CONFIG_NO_HZ_FULL, and ", "nohz_full=", full)
	default:
		f.What = "the tick comes " + rate + ": the core is not in nohz_full"
		e.atBoot(&f, "", "nohz_full=", full)
	}
	e.add(f)
	skew, _ := e.arg("skew_tick")
	f = Finding{ID: "skew-tick", CPUs: without, State: verdict(skew != "1" && len(without) > 0 && len(e.online) > 1), What: "the ticks of all CPUs come at once, and contend for locks", Evidence: []Evidence{e.argEvidence("skew_tick")},
		Causes: interrupt, Cost: Slower, Cap: A, Way: Boot, Remedy: "skew_tick=1"}
	if f.State == OK {
		f.CPUs, f.What = e.cpus, "its tick does not come at the moment of all others"
	}
	e.add(f)
	// In nohz_full the tick stays while something depends on it (include/linux/tick.h, enum tick_dep_bits).
	if in := e.inside(full); len(in) > 0 {
		if v, ev := e.look("sys/devices/system/clocksource/clocksource0/current_clocksource"); v != "tsc" {
			e.add(Finding{ID: "tick-clock", CPUs: in, State: Wrong, What: "the tick does not stop: the clock is not stable (TICK_DEP_BIT_CLOCK_UNSTABLE)", Evidence: []Evidence{ev}, Causes: interrupt,
				Cost: Tick, Cap: D, Way: Boot, Remedy: "tsc=reliable clocksource=tsc"})
		}
		for _, c := range in {
			if n, names := e.movable(c); n > 1 {
				e.add(Finding{ID: "tick-tasks", CPUs: []int{c}, State: Wrong, What: "the tick does not stop while more than one task runs (TICK_DEP_BIT_SCHED)", Evidence: []Evidence{{"/proc/*/status", fmt.Sprintf("%d threads may run here: %s", n, names)}},
					Causes: interrupt, Cost: Tick, Cap: D, Way: RunTime})
			}
		}
	}
}

// rcu: callbacks that a core runs for itself.
func (e *examiner) rcu() {
	v, given := e.arg("rcu_nocbs")
	list, err := cores.ParseList(v)
	if v == "all" {
		list = e.online
	}
	if err != nil {
		list = nil
	}
	full, _ := e.listOf(cpuDir + "/nohz_full")
	list = append(list, full...) // implied
	threads := 0
	for _, t := range e.tasks {
		if strings.HasPrefix(t.Name, "rcuop/") || strings.HasPrefix(t.Name, "rcuos/") || strings.HasPrefix(t.Name, "rcuob/") {
			threads++
		}
	}
	without := e.outside(list)
	f := Finding{ID: "rcu", CPUs: without, State: verdict(len(without) > 0), What: "RCU callbacks run on it", Causes: append(slices.Clone(interrupt), "softirq RCU"), Cost: OnDemand, Cap: C, Way: Boot,
		Evidence: []Evidence{e.argEvidence("rcu_nocbs"), {"/proc/*/stat", fmt.Sprintf("%d rcuo threads", threads)}}, Remedy: "rcu_nocbs=" + spell(join(list, e.applicable()))}
	if f.State == OK {
		f.What, f.CPUs = "RCU callbacks are offloaded", e.cpus
	}
	if !given && len(without) > 0 && e.config != nil && e.config["CONFIG_RCU_NOCB_CPU"] == "" {
		f.Remedy = "a kernel with CONFIG_RCU_NOCB_CPU, and " + f.Remedy
	}
	e.add(f)
	offloaded := minus(e.cpus, without)
	_, polls := e.arg("rcu_nocb_poll")
	f = Finding{ID: "rcu-poll", CPUs: offloaded, State: verdict(len(offloaded) > 0 && !polls), What: "the core itself wakes the thread that runs its RCU callbacks", Evidence: []Evidence{e.argEvidence("rcu_nocb_poll")},
		Causes: slower, Cost: Slower, Cap: A, Way: Boot, Remedy: "rcu_nocb_poll"}
	if f.State == OK {
		f.CPUs, f.What = e.cpus, "the threads that run RCU callbacks look for them by themselves, or the core runs its own"
	}
	e.add(f)
	e.knob("rcu-expedited", "sys/kernel/rcu_normal", "expedited grace periods interrupt cores that are busy", isNot("1"), Finding{Causes: interrupt, Cost: OnDemand, Cap: B, Way: ByHand,
		Remedy: "echo 1 >/sys/kernel/rcu_normal (or rcupdate.rcu_normal_after_boot=1)"})
	if len(without) < len(e.cpus) {
		e.knob("rcu-patience", "sys/module/rcutree/parameters/nohz_full_patience_delay", "RCU asks a core without a tick for a quiescent state at once", is("0"), Finding{Causes: interrupt, Cost: OnDemand, Cap: B, Way: Boot,
			Remedy: "rcutree.nohz_full_patience_delay=1000"})
	}
}

// movable counts the threads that may run on a core and could be kept off it.
func (e *examiner) movable(cpu int) (n int, names string) {
	count := map[string]int{}
	var order []string
	for _, t := range e.tasks {
		if t.Bound || !slices.Contains(t.Allowed, cpu) {
			continue
		}
		n++
		if count[t.Name]++; count[t.Name] == 1 {
			order = append(order, t.Name)
		}
	}
	slices.SortStableFunc(order, func(a, b string) int { return count[b] - count[a] })
	return n, strings.Join(order[:min(4, len(order))], " ")
}

// others: what else may run on the core, and what cannot be moved.
func (e *examiner) others() {
	for _, c := range e.cpus {
		n, names := e.movable(c)
		e.add(Finding{ID: "tasks", CPUs: []int{c}, State: verdict(n > 0), What: "other threads may run on it", Evidence: []Evidence{{"/proc/*/status", fmt.Sprintf("%d threads: %s", n, names)}},
			Causes: switched, Cost: Tasks, Cap: D, Way: RunTime})
		var bound []string
		for _, t := range e.tasks {
			if t.Bound && slices.Equal(t.Allowed, []int{c}) {
				bound = append(bound, t.Name)
			}
		}
		e.add(Finding{ID: "kthreads", CPUs: []int{c}, State: OK, What: "kernel threads of its own, which run when something gives them work", Evidence: []Evidence{{"/proc/*/stat", fmt.Sprintf("%d: %s", len(bound), strings.Join(bound[:min(5, len(bound))], " "))}},
			Causes: interrupt, Cost: OnDemand, Cap: A, Way: Never})
	}
	for _, t := range e.tasks {
		if t.Name == "irqbalance" {
			e.add(Finding{ID: "irqbalance", State: Wrong, What: "irqbalance moves interrupts back", Evidence: []Evidence{{fmt.Sprintf("/proc/%d/comm", t.PID), t.Name}}, Causes: interrupt, Cost: OnDemand, Cap: C, Way: ByHand,
				Remedy: "systemctl stop irqbalance, or IRQBALANCE_BANNED_CPULIST=" + spell(e.applicable())})
			break
		}
	}
}

// throttling: what stops a real-time thread that never sleeps.
func (e *examiner) throttling() {
	period := host.Text(e.s, "proc/sys/kernel/sched_rt_period_us")
	e.knob("rt-throttling", "proc/sys/kernel/sched_rt_runtime_us", "a SCHED_FIFO thread (--fifo) that never sleeps is stopped in each "+period+" us", isNot("-1"),
		Finding{Causes: []string{"gaps"}, Cost: Seconds, Cap: C, Way: Max, Remedy: "sysctl kernel.sched_rt_runtime_us=-1"})
	for _, c := range e.cpus {
		v, ev := e.look(fmt.Sprintf("sys/kernel/debug/sched/fair_server/cpu%d/runtime", c))
		f := Finding{ID: "fair-server", CPUs: []int{c}, State: verdict(v != "0"), What: "the fair server runs other tasks before a SCHED_FIFO thread", Evidence: []Evidence{ev}, Causes: []string{"gaps"}, Cost: Seconds, Cap: C, Way: Max}
		if v == "" {
			if !host.Since(e.s, 6, 12) {
				continue
			}
			f.State, f.Cap, f.Way, f.Remedy, f.Cost = Unknown, B, ByHand, "mount -t debugfs none /sys/kernel/debug", Proof
			f.What = "whether the fair server stops a SCHED_FIFO thread: not known"
		}
		e.add(f)
	}
	e.knob("timer-migration", "proc/sys/kernel/timer_migration", "timers of idle CPUs are moved to busy ones", isNot("0"), Finding{Causes: interrupt, Cost: OnDemand, Cap: B, Way: RunTime})
}

// siblings: the other hardware threads of the core.
func (e *examiner) siblings() {
	_, control := e.look(cpuDir + "/smt/control")
	for _, c := range e.cpus {
		list, ev := e.listOf(fmt.Sprintf("%s/cpu%d/topology/thread_siblings_list", cpuDir, c))
		busy := slices.DeleteFunc(slices.Clone(list), func(o int) bool { return o == c || !slices.Contains(e.online, o) })
		f := Finding{ID: "smt", CPUs: []int{c}, State: verdict(len(busy) > 0), What: "a hardware thread of the same core is on line", Evidence: []Evidence{ev, control}, Causes: slower, Cost: Slower, Cap: C, Way: Max}
		if ev.Value == "not there" {
			f.State, f.What = Unknown, "which hardware threads share its core is not known"
			f.Cap, f.Way = B, Never
		}
		e.add(f)
	}
}
