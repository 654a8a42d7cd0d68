package host

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/cores"
)

// The rows of a plan. Each names what it keeps off the cores. Their
// sources are mostly Documentation/admin-guide/kernel-per-CPU-kthreads.rst and cgroup-v2.rst of the kernel.

const cpuDir = "sys/devices/system/cpu"

// siblings chooses the other hardware threads of the cores, to be taken off line.
func (p *planner) siblings() {
	for _, c := range p.r.CPUs {
		list, err := CPUs(p.s, fmt.Sprintf("%s/cpu%d/topology/thread_siblings_list", cpuDir, c))
		if err != nil {
			continue // no topology: a CPU of its own
		}
		for _, sib := range minus(list, append(slices.Clone(p.held), p.ours...)) {
			what := fmt.Sprintf("the sibling CPU %d of CPU %d", sib, c)
			if dir := p.layout.named(p.s, sib); dir != "" {
				p.cannot(what, "taken off line, it would be lost to the cpuset /%s for good", dir)
				continue
			}
			if used, err := inUse(p.s, sib); used || err != nil {
				p.cannot(what, "not taken off line: a program has leased it (cloister ps), and would be moved off its core")
				continue
			}
			if len(minus(p.keep, []int{sib})) == 0 {
				p.cannot(what, "it is the last one for the rest of the system")
				continue
			}
			p.keep = minus(p.keep, []int{sib})
			p.plan.Housekeeping = p.keep
			p.plan.off = append(p.plan.off, sib)
			p.ours = append(slices.Clone(p.ours), sib)
		}
	}
}

// offline takes the siblings off line.
func (p *planner) offline() {
	n := len(p.plan.Steps)
	for _, sib := range p.plan.off {
		p.knob(fmt.Sprintf("%s/cpu%d/online", cpuDir, sib), "0", "a sibling shares the core's caches and units")
	}
	for i := range p.plan.Steps[n:] {
		p.plan.Steps[n+i].off = true
	}
}

// alone reports whether a thread has no other CPU on line than the cores and the siblings that go off line.
func (p *planner) alone(t Task) bool { return p.aloneOn(t.Allowed) }

func (p *planner) aloneOn(list []int) bool {
	return meets(list, p.ours) && len(minus(cores.Common(list, p.online), p.ours)) == 0
}

// drain takes each core off line once, with its timers, works and interrupts; it comes back empty.
func (p *planner) drain() {
	for _, c := range p.r.CPUs {
		what := fmt.Sprintf("timers that were armed on CPU %d", c)
		if dir := p.layout.named(p.s, c); dir != "" {
			p.cannot(what, "taken off line, it would be lost to the cpuset /%s for good", dir)
			continue
		}
		name := fmt.Sprintf("%s/cpu%d/online", cpuDir, c)
		if Text(p.s, name) != "1" {
			continue // a CPU that cannot be taken off line has no such file
		}
		x := Setting{Kind: File, Name: name, Format: Plain, Rule: Same, Want: "0"}
		p.plan.Steps = append(p.plan.Steps, Step{Setting: x, Old: "1", New: "0", Why: "timers and works leave with the core", off: true})
		x.Want = "1"
		p.plan.Steps = append(p.plan.Steps, Step{Setting: x, Old: "0", New: "1", Why: "and it comes back without them", must: true})
	}
}

func (p *planner) interrupts() {
	p.set(Setting{Kind: File, Name: "proc/irq/default_smp_affinity", Format: Mask, Rule: Except}, "interrupts that are set up later")
	names, err := p.s.Names("proc/irq")
	if err != nil {
		return
	}
	slices.SortFunc(names, func(a, b string) int { x, _ := strconv.Atoi(a); y, _ := strconv.Atoi(b); return x - y })
	for _, n := range names {
		if _, err := strconv.Atoi(n); err != nil {
			continue
		}
		name := "proc/irq/" + n + "/smp_affinity_list"
		list, err := CPUs(p.s, name)
		if err != nil || !meets(list, p.r.CPUs) && !p.aloneOn(list) {
			continue
		}
		if !MayCome(p.s, n, p.ours) {
			continue
		}
		p.set(Setting{Kind: File, Name: name, Format: List, Rule: Except}, "interrupts of "+orDash(IRQName(p.s, n)))
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// MayCome reports whether an interrupt can come to one of these CPUs, if its affinity has them: not where nobody has asked for it
// that /proc/irq names, as the timer of the boot, and it is routed elsewhere.
func MayCome(s System, irq string, cpus []int) bool {
	return IRQName(s, irq) != "" || effective(s, irq, cpus)
}

// effective reports whether an interrupt is routed to one of these CPUs now.
func effective(s System, irq string, cpus []int) bool {
	list, err := CPUs(s, "proc/irq/"+irq+"/effective_affinity_list")
	return err == nil && meets(list, cpus)
}

// Managed reports whether the kernel manages an interrupt's affinity itself, so that it refuses to move it, and whether that
// is known: such a one comes back by itself to a CPU that was off line (managed_irq in Documentation/admin-guide/kernel-parameters.rst).
// Debugfs tells, and newer kernels by the mode of the file that nobody may write (irq_can_set_affinity_usr in their
// kernel/irq/proc.c); on others each message-signalled interrupt of a PCI device is taken for one.
func Managed(s System, irq string) (yes, known bool) {
	if flags := Text(s, "sys/kernel/debug/irq/irqs/"+irq); flags != "" {
		return strings.Contains(flags, "IRQD_AFFINITY_MANAGED"), true
	}
	if !strings.Contains(Text(s, "sys/kernel/irq/"+irq+"/chip_name"), "PCI-MSI") {
		return false, false
	}
	if fixed(s, irq) {
		return true, true
	}
	names, err := s.Names("proc/irq")
	tells := err == nil && slices.ContainsFunc(names, func(n string) bool { return fixed(s, n) }) // of any, so it would of this one
	return !tells, tells
}

// fixed reports whether nobody may write an interrupt's affinity. Kernels that do not tell say that of none.
func fixed(s System, irq string) bool {
	mode, err := strconv.ParseUint(Text(s, "proc/irq/"+irq+"/smp_affinity_list"+modeOf), 8, 32)
	return err == nil && mode&0o222 == 0
}

// managed is that of an interrupt that the kernel has refused to move; a wrong guess is looked at afterwards.
func managed(s System, irq string) bool {
	yes, _ := Managed(s, irq)
	return yes
}

// IRQName is who asked for an interrupt: the directories beside its files.
func IRQName(s System, irq string) string {
	names, err := s.Names("proc/irq/" + irq)
	if err != nil {
		return ""
	}
	var who []string
	for _, n := range names {
		if _, err := s.Names("proc/irq/" + irq + "/" + n); err == nil {
			who = append(who, n)
		}
	}
	return strings.Join(who, ",")
}

func (p *planner) workqueues() {
	const dir = "sys/devices/virtual/workqueue"
	p.set(Setting{Kind: File, Name: dir + "/cpumask", Format: Mask, Rule: Except}, "work that may run anywhere")
	names, err := p.s.Names(dir)
	if err != nil {
		return
	}
	for _, n := range names {
		p.set(Setting{Kind: File, Name: dir + "/" + n + "/cpumask", Format: Mask, Rule: Except}, "work of "+n)
	}
}

func (p *planner) watchdogs() {
	p.set(Setting{Kind: File, Name: "proc/sys/kernel/watchdog_cpumask", Format: List, Rule: Except}, "the lockup detector's timer, every 4 s")
	if p.r.Level == Max {
		p.knob("proc/sys/kernel/nmi_watchdog", "0", "non-maskable interrupts of the hard lockup detector")
	}
	// One value behind the files of all CPUs (mca_cfg in the kernel's arch/x86/kernel/cpu/mce/core.c).
	p.knob("sys/devices/system/machinecheck/machinecheck*/ignore_ce", "1", "polling for corrected errors, every 5 min")
}

func (p *planner) memory() {
	p.knob("proc/sys/vm/stat_interval", "120", "statistics that are folded every second")
	p.knob("sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", "3600000", "khugepaged drains every CPU's page lists, every 10 s")
	p.knob("proc/sys/vm/compaction_proactiveness", "0", "pages that move, and the flushes that follow")
	p.knob("proc/sys/vm/compact_unevictable_allowed", "0", "locked pages that move all the same")
	if p.r.Level != Max {
		return
	}
	p.knob("proc/sys/kernel/numa_balancing", "0", "faults that are made to see who uses a page")
	p.set(Setting{Kind: File, Name: "sys/kernel/mm/transparent_hugepage/enabled", Format: Choice, Rule: Same, Want: "never"}, "pages that are joined and split")
	ksm := Setting{Kind: File, Name: "sys/kernel/mm/ksm/run"}
	if p.st.held[ksm.key()] != nil || Text(p.s, ksm.Name) == "1" {
		p.knob(ksm.Name, "2", "pages that are merged, and the faults that follow")
	}
	p.set(Setting{Kind: File, Name: "sys/kernel/mm/lru_gen/enabled", Format: Plain, Rule: Same, Want: "0x0000"}, "page ageing, which clears accessed bits")
}

func (p *planner) timers() {
	p.knob("proc/sys/kernel/timer_migration", "0", "timers of other CPUs")
	if p.r.FIFO || p.r.Level == Max {
		p.knob("proc/sys/kernel/sched_rt_runtime_us", "-1", "real-time threads are stopped for 50 ms of each second")
		for _, c := range p.r.CPUs {
			p.knob(fmt.Sprintf("sys/kernel/debug/sched/fair_server/cpu%d/runtime", c), "0", "the fair server runs others before a real-time thread, 50 ms of each second")
		}
	}
}

func (p *planner) power() {
	for _, c := range p.r.CPUs {
		dir := fmt.Sprintf("%s/cpu%d", cpuDir, c)
		// "n/a": no latency at all is tolerated; "0" would mean that any is (Documentation/ABI/testing/sysfs-devices-power).
		if Has(p.s, dir+"/cpuidle/state0/name") {
			p.knob(dir+"/power/pm_qos_resume_latency_us", "n/a", "sleeping deep takes long to wake from")
		}
		dir = p.frequency(c)
		if avail := strings.Fields(Text(p.s, dir+"/scaling_available_governors")); slices.Contains(avail, "performance") {
			p.knob(dir+"/scaling_governor", "performance", "changes of frequency")
		}
		// To read it interrupts the CPU. Who asks for a process of his, which has the core, may.
		if used, err := inUse(p.s, c); p.r.PID == 0 && (used || err != nil) {
			p.cannot(fmt.Sprintf("the energy preference of CPU %d", c), "not read: a program has leased it, and reading would interrupt it")
			continue
		}
		p.set(Setting{Kind: File, Name: dir + "/" + eppFile, Format: Plain, Rule: Same, Want: "performance"}, "changes of frequency")
	}
}

// frequency is the directory of a CPU's frequency policy: of CPUs that share one always the same, or each of their
// owners would have a setting of its own for it (Documentation/admin-guide/pm/cpufreq.rst, related_cpus).
func (p *planner) frequency(cpu int) string {
	dir := fmt.Sprintf("%s/cpu%d/cpufreq", cpuDir, cpu)
	for _, n := range strings.Fields(Text(p.s, dir+"/related_cpus")) {
		if c, err := strconv.Atoi(n); err == nil && c < cpu && Has(p.s, fmt.Sprintf("%s/cpu%d/cpufreq/scaling_governor", cpuDir, c)) {
			cpu = c
		}
	}
	return fmt.Sprintf("%s/cpu%d/cpufreq", cpuDir, cpu)
}

// partition gives the cores to an isolated partition of cgroup version 2, and puts the owner's threads in it.
func (p *planner) partition() {
	root := p.layout.V2
	dir := path.Join(root, group(p.r.CPUs))
	p.set(Setting{Kind: File, Name: root + "/cgroup.subtree_control", Format: Switch, Rule: Same, Want: "+cpuset", Word: "cpuset"}, "cpusets for the groups below")
	if !p.set(Setting{Kind: Directory, Name: dir, Rule: Same, Want: present}, "a cpuset for the cores") {
		p.cannot("an isolated partition", "/%s cannot be looked at", dir)
		return
	}
	in := func(file, want, why string) {
		p.set(Setting{Kind: File, Name: dir + "/" + file, Format: Plain, Rule: Same, Want: want, Within: dir}, why)
	}
	in("cgroup.type", "threaded", "threads go in, not whole processes")
	p.set(Setting{Kind: File, Name: dir + "/cpuset.cpus", Format: List, Rule: Same, Want: cores.Format(p.r.CPUs), Within: dir}, "the cores")
	for i, tid := range p.r.Threads {
		t, ok := task(p.s, p.r.PID, tid)
		lead, ok2 := task(p.s, p.r.PID, p.r.PID)
		if !ok || !ok2 {
			p.failed = fmt.Errorf("thread %d of process %d: there is none", tid, p.r.PID)
			return
		}
		if i == 0 {
			p.set(Setting{Kind: Member, Name: "procs:" + threadName(lead), Rule: Same, Want: "/", Base: root}, "a thread may only go to a group below its process's")
		}
		p.set(Setting{Kind: Member, Name: "threads:" + threadName(t), Rule: Same, Want: "/" + path.Base(dir), Base: root}, "it belongs on the core")
	}
	// Not "within": it is put back before the threads leave, so that they stay on the core.
	name := dir + "/cpuset.cpus.partition"
	x := Setting{Kind: File, Name: name, Format: Plain, Rule: Same, Want: "isolated"}
	p.plan.Steps = append(p.plan.Steps, Step{Setting: x, Old: "member", New: "isolated", Why: "the scheduler balances nothing onto the cores", part: p.part, whole: true})
}

// exclusive is the same with cgroup version 1: no domain of the scheduler spans the cores any more.
func (p *planner) exclusive() {
	root := p.layout.V1
	mems := Text(p.s, root+"/cpuset.mems")
	all := cores.Format(p.online)
	rest, own := path.Join(root, groupPrefix+"rest"), path.Join(root, group(p.r.CPUs))
	file := func(dir, name, want, why string) {
		p.set(Setting{Kind: File, Name: path.Join(dir, name), Format: Plain, Rule: Same, Want: want, Within: dir}, why)
	}
	p.set(Setting{Kind: Directory, Name: rest, Rule: Same, Want: present}, "a cpuset for the rest, which is balanced")
	p.set(Setting{Kind: File, Name: rest + "/cpuset.cpus", Format: List, Rule: Except, Base: all, Within: rest}, "all other CPUs")
	file(rest, "cpuset.mems", mems, "all memory")
	p.set(Setting{Kind: Directory, Name: own, Rule: Same, Want: present}, "a cpuset for the cores")
	p.set(Setting{Kind: File, Name: own + "/cpuset.cpus", Format: List, Rule: Same, Want: cores.Format(p.r.CPUs), Within: own}, "the cores")
	file(own, "cpuset.mems", mems, "all memory")
	file(own, "cpuset.cpu_exclusive", "1", "no cpuset beside it may have the cores")
	file(own, "cpuset.sched_load_balance", "0", "the scheduler balances nothing onto the cores")
	n := len(p.plan.Steps)
	p.knob(root+"/cpuset.sched_load_balance", "0", "no balancing across the whole machine")
	p.last(n) // without the set for the rest, nothing at all would be balanced
}

// tasks moves these threads, kernel threads included, if they can be moved.
func (p *planner) tasks(which func(Task) bool) {
	list, err := Tasks(p.s)
	if err != nil {
		p.failed = err
		return
	}
	for _, t := range list {
		if t.Bound || !which(t) || slices.Contains(p.r.Threads, t.TID) || p.moved[t.TID] {
			continue
		}
		if p.moved == nil {
			p.moved = map[int]bool{}
		}
		p.moved[t.TID] = true
		p.set(Setting{Kind: Affinity, Name: threadName(t), Rule: Except}, t.Name)
	}
}

// bound says which threads stay.
func (p *planner) bound() {
	list, err := Tasks(p.s)
	if err != nil {
		p.failed = err
		return
	}
	var names []string
	for _, t := range list {
		if t.Bound && meets(t.Allowed, p.r.CPUs) && len(minus(t.Allowed, p.r.CPUs)) == 0 {
			names = append(names, t.Name)
		}
	}
	if len(names) > 0 {
		p.cannot(fmt.Sprintf("%d kernel threads of the cores' own", len(names)), "the kernel binds them: %s", strings.Join(names, " "))
	}
}

// boot says what no write can change.
func (p *planner) boot() {
	c := cores.Format(p.r.CPUs)
	if full, err := CPUs(p.s, cpuDir+"/nohz_full"); err != nil || len(minus(p.r.CPUs, full)) > 0 {
		p.cannot("the scheduler's tick", "only nohz_full=%s on the kernel's command line takes it away", c)
		p.cannot("RCU callbacks", "only rcu_nocbs=%s (or nohz_full) on the kernel's command line moves them", c)
		if p.layout.V2 != "" || p.layout.V1 != "" {
			// find_new_ilb and nohz_balance_enter_idle of the kernel's kernel/sched/fair.c: who was idle when his domain went stays in the mask.
			p.cannot("calls to balance the load of others (CAL in /proc/interrupts)", "a core that was idle when it was isolated may be chosen for that whenever it idles; one that never sleeps is not")
		}
	}
}
