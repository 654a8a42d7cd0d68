package doctor

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/cores"
	"github.com/cloister-vmm/cloister/isolation/host"
)

// chosen is the word in brackets.
func chosen(v string) string {
	if i, j := strings.IndexByte(v, '['), strings.IndexByte(v, ']'); i >= 0 && j > i {
		return v[i+1 : j]
	}
	return v
}

// pages: what changes the mapping of memory that is in use.
func (e *examiner) pages() {
	const thp = "sys/kernel/mm/transparent_hugepage/"
	e.knob("thp", thp+"enabled", "huge pages are made and split under any process", func(v string) bool { return chosen(v) == "always" }, Finding{Causes: zapped, Cost: OnDemand, Cap: C, Way: Max})
	e.knob("khugepaged", thp+"khugepaged/scan_sleep_millisecs", "khugepaged drains each core's page lists, every so many ms", func(v string) bool { n, ok := number(v); return !ok || n < 60000 },
		Finding{Causes: append(slices.Clone(interrupt), "lru_add_drain_per_cpu"), Cost: Seconds, Cap: C, Way: RunTime})
	e.knob("ksm", "sys/kernel/mm/ksm/run", "equal pages are merged", is("1"), Finding{Causes: zapped, Cost: OnDemand, Cap: C, Way: Max})
	nodes, evNodes := e.listOf("sys/devices/system/node/online")
	f := Finding{Causes: zapped, Cost: Seconds, Cap: C, Way: Max, Evidence: []Evidence{evNodes}}
	e.knob("numa-balancing", "proc/sys/kernel/numa_balancing", "pages are unmapped to see who uses them", func(v string) bool { return v != "0" && len(nodes) > 1 }, f)
	e.knob("compaction", "proc/sys/vm/compaction_proactiveness", "memory is moved together in advance", isNot("0"), Finding{Causes: zapped, Cost: OnDemand, Cap: B, Way: RunTime})
	e.knob("compact-locked", "proc/sys/vm/compact_unevictable_allowed", "locked memory may be moved too", isNot("0"), Finding{Causes: zapped, Cost: OnDemand, Cap: B, Way: RunTime})
	huge := ""
	var evidence []Evidence
	if sizes, err := e.s.Names("sys/kernel/mm/hugepages"); err == nil {
		for _, s := range sizes {
			v, ev := e.look("sys/kernel/mm/hugepages/" + s + "/nr_hugepages")
			evidence = append(evidence, ev)
			if v != "" && v != "0" {
				huge = s
			}
		}
	}
	e.add(Finding{ID: "hugepages", State: verdict(huge == ""), What: "no huge pages are reserved for guest memory", Evidence: evidence, Causes: slower, Cost: Slower, Cap: A, Way: ByHand, Remedy: "sysctl vm.nr_hugepages=512, and --hugepages"})
}

// reclaim: what takes pages away, or looks at who uses them.
func (e *examiner) reclaim() {
	v, ev := e.look("proc/swaps")
	devices := max(0, len(strings.Split(strings.TrimSpace(v), "\n"))-1)
	ev.Value = fmt.Sprintf("%d devices", devices)
	_, swappiness := e.look("proc/sys/vm/swappiness")
	e.add(Finding{ID: "swap", State: verdict(devices > 0), What: "memory that is not locked may be swapped out", Evidence: []Evidence{ev, swappiness}, Causes: zapped, Cost: OnDemand, Cap: B, Way: ByHand, Remedy: "swapoff -a (Cloister locks guest memory)"})
	e.knob("page-ageing", "sys/kernel/mm/lru_gen/enabled", "the multi-generational LRU clears accessed bits", func(v string) bool { return v != "0x0000" && v != "0" && v != "n" }, Finding{Causes: []string{"none, but TLB flushes (kvm_age_hva)"}, Cost: OnDemand, Cap: B, Way: Max})
	for _, t := range e.tasks {
		if strings.HasPrefix(t.Name, "kdamond") {
			e.add(Finding{ID: "damon", State: Wrong, What: "DAMON clears accessed bits, to see what is used", Evidence: []Evidence{{fmt.Sprintf("/proc/%d/comm", t.PID), t.Name}}, Causes: []string{"none, but TLB flushes (kvm_age_hva)"}, Cost: OnDemand, Cap: B, Way: ByHand,
				Remedy: "echo off >/sys/kernel/mm/damon/admin/kdamonds/0/state"})
			break
		}
	}
}

// power: sleep states and frequencies.
func (e *examiner) power() {
	for _, c := range e.cpus {
		dir := fmt.Sprintf("%s/cpu%d", cpuDir, c)
		deepest, evidence := "", []Evidence(nil)
		if states, err := e.s.Names(dir + "/cpuidle"); err == nil {
			for _, s := range states {
				at := path.Join(dir, "cpuidle", s)
				lat, ok := number(host.Text(e.s, at+"/latency"))
				if ok && lat > 10 && host.Text(e.s, at+"/disable") == "0" {
					deepest = host.Text(e.s, at+"/name")
					evidence = []Evidence{{"/" + at + "/latency", fmt.Sprintf("%d us (%s)", lat, deepest)}}
				}
			}
		}
		limit, ev := e.look(dir + "/power/pm_qos_resume_latency_us")
		e.add(Finding{ID: "cstates", CPUs: []int{c}, State: verdict(deepest != "" && limit != "n/a"), What: "it may sleep deeply when it idles (a loop that spins never does)", Evidence: append(evidence, ev), Causes: slower, Cost: Slower, Cap: B, Way: RunTime})
		gov, evGov := e.look(dir + "/cpufreq/scaling_governor")
		low, evLow := e.look(dir + "/cpufreq/scaling_min_freq")
		high, evHigh := e.look(dir + "/cpufreq/scaling_max_freq")
		switch {
		case gov == "" && e.nested():
			e.add(Finding{ID: "frequency", CPUs: []int{c}, State: Unknown, What: "the clock frequency is the outer host's business", Evidence: []Evidence{evGov}, Causes: slower, Cost: Proof, Cap: B, Way: Never})
		case gov == "":
			e.add(Finding{ID: "frequency", CPUs: []int{c}, State: OK, What: "no frequency scaling by the kernel", Evidence: []Evidence{evGov}, Causes: slower, Cost: Slower, Cap: B, Way: RunTime})
		default:
			e.add(Finding{ID: "frequency", CPUs: []int{c}, State: verdict(gov != "performance"), What: "the clock frequency changes with load", Evidence: []Evidence{evGov}, Causes: slower, Cost: Slower, Cap: B, Way: RunTime})
			epp, evEPP := e.lookAt(c, dir+"/cpufreq/energy_performance_preference")
			if names, err := e.s.Names(dir + "/cpufreq"); epp == "" && err == nil && slices.Contains(names, "energy_performance_preference") {
				e.add(Finding{ID: "epp", CPUs: []int{c}, State: Unknown, What: "whether the processor may save energy by itself is not known", Evidence: []Evidence{evEPP}, Causes: slower, Cost: Slower, Cap: B, Way: RunTime})
			} else if epp != "" {
				e.add(Finding{ID: "epp", CPUs: []int{c}, State: verdict(epp != "performance"), What: "the processor may save energy by itself", Evidence: []Evidence{evEPP}, Causes: slower, Cost: Slower, Cap: B, Way: RunTime})
			}
			if low != "" && high != "" {
				e.add(Finding{ID: "frequency-range", CPUs: []int{c}, State: verdict(low != high), What: "lowest and highest frequency differ", Evidence: []Evidence{evLow, evHigh}, Causes: slower, Cost: Slower, Cap: A, Way: ByHand,
					Remedy: fmt.Sprintf("echo %s >/%s/cpufreq/scaling_min_freq", high, dir)})
			}
		}
	}
	e.energyBias()
	e.uncore()
	e.knob("turbo", cpuDir+"/intel_pstate/no_turbo", "turbo changes the frequency with what other cores do", is("0"), Finding{Causes: slower, Cost: Slower, Cap: A, Way: ByHand, Remedy: "echo 1 >/sys/devices/system/cpu/intel_pstate/no_turbo"})
	e.knob("boost", cpuDir+"/cpufreq/boost", "boost changes the frequency with what other cores do", is("1"), Finding{Causes: slower, Cost: Slower, Cap: A, Way: ByHand, Remedy: "echo 0 >/sys/devices/system/cpu/cpufreq/boost"})
}

// energyBias: the hint of older processors, in a register, of how much speed may be given up for energy. It is there beside the energy
// preference (Documentation/admin-guide/pm/intel_epb.rst).
func (e *examiner) energyBias() {
	const file = "energy_perf_bias"
	for _, c := range e.cpus {
		dir := fmt.Sprintf("%s/cpu%d/power", cpuDir, c)
		if names, err := e.s.Names(dir); err != nil || !slices.Contains(names, file) {
			continue // no such processor
		}
		v, ev := e.lookAt(c, dir+"/"+file)
		f := Finding{ID: "energy-bias", CPUs: []int{c}, State: verdict(v != "0"), What: "the processor may give up speed for energy", Evidence: []Evidence{ev}, Causes: slower, Cost: Slower, Cap: B, Way: ByHand,
			Remedy: fmt.Sprintf("echo performance >/%s/%s", dir, file)}
		if v == "" {
			f.State, f.What = Unknown, "whether the processor may give up speed for energy is not known"
		}
		e.add(f)
	}
}

// uncore: the clock of what cores share, the last-level cache and the way to memory (Documentation/admin-guide/pm/intel_uncore_frequency_scaling.rst).
// Its limits are in a register of each die, which is read on one CPU there, and no file says on which.
func (e *examiner) uncore() {
	const dir = cpuDir + "/intel_uncore_frequency"
	names, err := e.s.Names(dir)
	if err != nil {
		return // not loaded, or no such processor
	}
	for _, n := range names {
		low, high := path.Join(dir, n, "min_freq_khz"), path.Join(dir, n, "max_freq_khz")
		f := Finding{ID: "uncore", What: "the clock of the cache and of memory changes with load", Causes: slower, Cost: Slower, Cap: A, Way: ByHand}
		if why := e.anyInUse(nil); why != "" {
			f.State, f.What, f.Evidence, f.Remedy = Unknown, "whether the clock of the cache and of memory changes is not known", []Evidence{{"/" + low, why}}, "look again when nothing runs"
			e.add(f)
			return
		}
		l, evLow := e.look(low)
		h, evHigh := e.look(high)
		if evLow.Value == "not there" {
			continue // a directory of another kind
		}
		f.State, f.Evidence, f.Remedy = verdict(l != h), []Evidence{evLow, evHigh}, fmt.Sprintf("echo %s >/%s", h, low)
		if l == "" || h == "" {
			f.State, f.Remedy = Unknown, "run as root"
		}
		e.add(f)
	}
}

// caches: what is shared with other cores.
func (e *examiner) caches() {
	_, resctrl := e.look("sys/fs/resctrl/schemata")
	if i := strings.IndexByte(resctrl.Value, '\n'); i >= 0 {
		resctrl.Value = strings.TrimSpace(resctrl.Value[:i]) + " ..."
	}
	var shared []int
	var ev Evidence
	apart := false
	if names, err := e.s.Names("sys/fs/resctrl"); err == nil {
		for _, n := range names {
			if list, err := host.CPUs(e.s, "sys/fs/resctrl/"+n+"/cpus_list"); err == nil && len(e.inside(list)) > 0 && n != "." {
				apart = true
			}
		}
	}
	for _, c := range e.cpus {
		for i := 4; i >= 0; i-- {
			list, at := e.listOf(fmt.Sprintf("%s/cpu%d/cache/index%d/shared_cpu_list", cpuDir, c, i))
			if len(list) > 1 {
				shared, ev = append(shared, c), at
				break
			}
		}
	}
	f := Finding{ID: "cache", CPUs: shared, State: verdict(len(shared) > 0 && !apart), What: "the last-level cache is shared, not partitioned (CAT, MBA)", Evidence: []Evidence{ev, resctrl}, Causes: slower, Cost: Slower, Cap: A, Way: ByHand, Remedy: applyCommand(RunTime, e.applicable()) + " --resctrl, where the processor can"}
	if ev.File == "" {
		_, at := e.look(fmt.Sprintf("%s/cpu%d/cache/index3/shared_cpu_list", cpuDir, e.cpus[0]))
		f.Evidence = []Evidence{at, resctrl}
	}
	if f.State == OK {
		f.CPUs = e.cpus
	}
	e.add(f)
	e.bandwidth()
}

// bandwidth: the way to memory, which other cores can fill. Where resctrl's default group may not have all of it, they are held
// back (Documentation/arch/x86/resctrl.rst).
func (e *examiner) bandwidth() {
	const file = "sys/fs/resctrl/schemata"
	text, ev := e.look(file)
	f := Finding{ID: "bandwidth", State: Wrong, What: "others can use up the bandwidth of memory: they are not limited (MBA)", Causes: slower, Cost: Slower, Cap: A, Way: ByHand,
		Remedy: "echo \"MB:0=50\" >/" + file + ", and so for each other domain"}
	line := ""
	for l := range strings.Lines(text) {
		if l = strings.TrimSpace(l); strings.HasPrefix(l, "MB:") {
			line = l
		}
	}
	switch {
	case line != "":
		if ev.Value = line; e.limited(line) {
			f.State, f.What = OK, "the bandwidth of memory that others can use is limited (MBA)"
		}
	case e.blind == "" && !slices.Contains(e.flags, "mba"):
		return // no such processor: what is shared with others is told by the row of the cache
	default:
		f.Remedy = "mount -t resctrl resctrl /sys/fs/resctrl, then " + f.Remedy
	}
	f.Evidence = []Evidence{ev}
	e.add(f)
}

// limited reports whether a line of bandwidth, "MB:0=100;1=100", allows less than all in each domain. All is 100 percent; on AMD's
// processors 2048, in steps of 1/8 GB/s; and, mounted with mba_MBps, the greatest number.
func (e *examiner) limited(line string) bool {
	all := 100
	switch {
	case strings.Contains(host.Text(e.s, "proc/mounts"), "mba_MBps"):
		all = 1<<32 - 1
	case strings.Contains(e.info, "AuthenticAMD"):
		all = 2048
	}
	for part := range strings.SplitSeq(strings.TrimPrefix(line, "MB:"), ";") {
		_, v, _ := strings.Cut(part, "=")
		if n, ok := number(v); !ok || n >= all {
			return false
		}
	}
	return true
}

func (e *examiner) nested() bool { return slices.Contains(e.flags, "hypervisor") }

// backend is which module of KVM is loaded; "" without one.
func (e *examiner) backend() string {
	for module, name := range map[string]string{"kvm_intel": "vmx", "kvm_amd": "svm", "kvm_pvm": "pvm"} {
		if _, err := e.s.Names("sys/module/" + module); err == nil {
			return name
		}
	}
	return ""
}

// virtualisation: what is below this host, and takes cores away unseen.
func (e *examiner) virtualisation() {
	f := Finding{ID: "nested", State: verdict(e.nested()), What: "itself a guest: outer exits are invisible, no zero certified", Evidence: []Evidence{{"/proc/cpuinfo", map[bool]string{true: "flags: hypervisor", false: "no flag hypervisor"}[e.nested()]}},
		Causes: []string{"gaps without exits"}, Cost: Proof, Cap: B, Way: Never, Remedy: "run on the machine itself"}
	if e.blind != "" {
		f.State, f.What, f.Evidence[0].Value = Unknown, "whether it is itself a guest is not known", e.blind
	}
	e.add(f)
	for line := range strings.Lines(host.Text(e.s, "proc/stat")) {
		f := strings.Fields(line)
		if len(f) < 9 || !strings.HasPrefix(f[0], "cpu") || f[0] == "cpu" {
			continue
		}
		c, ok := number(f[0][3:])
		if !ok || !slices.Contains(e.cpus, c) {
			continue
		}
		e.add(Finding{ID: "steal", CPUs: []int{c}, State: verdict(f[8] != "0"), What: "the outer host has taken it away since boot", Evidence: []Evidence{{"/proc/stat", f[0] + " steal " + f[8] + " (1/100 s)"}}, Causes: []string{"gaps without exits"}, Cost: Tasks, Cap: C, Way: Never, Remedy: "a dedicated CPU from the outer host"})
	}
	// An SMI stops all CPUs together, so any of them can tell.
	f = Finding{ID: "smi", State: Unknown, What: "how many SMIs there were is not known", Causes: []string{"gaps without exits"}, Cost: Proof, Cap: B, Way: ByHand, Remedy: "modprobe msr, as root, on hardware (MSR_SMI_COUNT)"}
	if other, why := e.bystander(); why != "" {
		f.Evidence = []Evidence{{"/dev/cpu/N/msr", why}}
	} else {
		v, ev := e.look(fmt.Sprintf("dev/cpu/%d/msr@0x34", other))
		f.Evidence = []Evidence{ev}
		if _, ok := number(v); ok {
			f.State, f.What = OK, "SMIs since boot"
		}
	}
	if e.nested() {
		f.Way, f.Remedy = Never, ""
	}
	e.add(f)
}

// modules: KVM's own parameters.
func (e *examiner) modules() {
	e.knob("kvm", "sys/module/kvm/parameters/kvmclock_periodic_sync", "every 300 s KVM kicks every vCPU to synchronise a clock", is("Y"), Finding{Causes: interrupt, Cost: Seconds, Cap: B, Way: Module, Remedy: "kvm.kvmclock_periodic_sync=0"})
	e.knob("nx-huge-pages", "sys/module/kvm/parameters/nx_huge_pages", "huge pages with code are split, and put together again by a thread that zaps them", isNot("N"), Finding{Causes: zapped, Cost: Seconds, Cap: B, Way: ByHand, Remedy: "echo N >/sys/module/kvm/parameters/nx_huge_pages, if the guest is trusted"})
	e.knob("halt-poll", "sys/module/kvm/parameters/halt_poll_ns", "KVM polls before it lets a halted vCPU sleep (a program guest does not halt)", func(string) bool { return false }, Finding{Causes: []string{"hlt"}, Cost: OnDemand, Cap: A, Way: ByHand})
	e.knob("eager-split", "sys/module/kvm/parameters/eager_page_split", "dirty logging splits pages (Cloister does none)", func(string) bool { return false }, Finding{Causes: zapped, Cost: OnDemand, Cap: A, Way: ByHand})
	e.knob("lapic-advance", "sys/module/kvm/parameters/lapic_timer_advance", "timers of a guest's LAPIC (a program guest has none)", func(string) bool { return false }, Finding{Causes: nothing, Cost: OnDemand, Cap: A, Way: Module})
	const vmx = "sys/module/kvm_intel/parameters/"
	switch e.backend() {
	case "vmx":
		e.knob("ple", vmx+"ple_gap", "loops of PAUSE leave the guest", isNot("0"), Finding{Causes: []string{"kernel-other"}, Cost: OnDemand, Cap: A, Way: Module, Remedy: "kvm_intel.ple_gap=0 (Cloister disables these exits per VM where it can)"})
		e.knob("apicv", vmx+"enable_apicv", "interrupts to a guest cost exits", isNot("Y"), Finding{Causes: []string{"kernel-other"}, Cost: OnDemand, Cap: A, Way: Module, Remedy: "kvm_intel.enable_apicv=1"})
		e.knob("ipiv", vmx+"enable_ipiv", "interrupts between a guest's CPUs cost exits (a program guest sends none)", isNot("Y"), Finding{Causes: []string{"kernel-other"}, Cost: OnDemand, Cap: A, Way: Module, Remedy: "kvm_intel.enable_ipiv=1"})
		e.knob("preemption-timer", vmx+"preemption_timer", "a guest's timers are timers of the host on its core: an interrupt each (a program guest has none)", isNot("Y"), Finding{Causes: append(slices.Clone(interrupt), "kernel-other"), Cost: OnDemand, Cap: A, Way: Module, Remedy: "kvm_intel.preemption_timer=1"})
		e.knob("l1d-flush", vmx+"vmentry_l1d_flush", "each entry flushes the first-level cache", func(v string) bool { return v != "never" && v != "not required" && v != "" }, Finding{Causes: slower, Cost: Slower, Cap: A, Way: Boot, Remedy: "per trust: kvm-intel.vmentry_l1d_flush=never"})
	case "svm":
		e.knob("avic", "sys/module/kvm_amd/parameters/avic", "interrupts to a guest cost exits", isNot("Y"), Finding{Causes: []string{"kernel-other"}, Cost: OnDemand, Cap: A, Way: Module, Remedy: "kvm_amd.avic=1"})
		e.knob("ple", "sys/module/kvm_amd/parameters/pause_filter_count", "loops of PAUSE leave the guest", isNot("0"), Finding{Causes: []string{"kernel-other"}, Cost: OnDemand, Cap: A, Way: Module, Remedy: "kvm_amd.pause_filter_count=0"})
	case "":
		e.add(Finding{ID: "no-kvm", State: Wrong, What: "KVM is not loaded", Evidence: []Evidence{{"/sys/module", "no kvm_intel, kvm_amd or kvm_pvm"}}, Causes: nothing, Cost: Proof, Cap: A, Way: ByHand, Remedy: "modprobe kvm_intel, or kvm_amd"})
	}
	_, ev := e.look("proc/sys/kernel/osrelease")
	f := Finding{ID: "exit-count", State: OK, What: "KVM counts exits that it serves on its fast path", Evidence: []Evidence{ev}, Causes: []string{"exits"}, Cost: Proof, Cap: A, Way: Boot, Remedy: "Linux 6.2, or a stable kernel with \"KVM: x86: Account fastpath-only VM-Exits in vCPU stats\""}
	if !host.Since(e.s, 6, 2) {
		f.State, f.What = Unknown, "whether KVM counts exits that it serves on its fast path is not known (since Linux 6.2)"
	}
	e.add(f)
}

// clocks: what time is read from.
func (e *examiner) clocks() {
	v, ev := e.look("sys/devices/system/clocksource/clocksource0/current_clocksource")
	e.add(Finding{ID: "clocksource", State: verdict(v != "tsc"), What: "the kernel's clock is not the TSC: reading it costs a system call", Evidence: []Evidence{ev}, Causes: []string{"syscall"}, Cost: OnDemand, Cap: B, Way: Boot, Remedy: "clocksource=tsc tsc=reliable (Cloister then steers a clock of its own)"})
	var missing []string
	for _, f := range []string{"constant_tsc", "nonstop_tsc"} {
		if !slices.Contains(e.flags, f) {
			missing = append(missing, f)
		}
	}
	f := Finding{ID: "tsc", State: verdict(len(missing) > 0), What: "the TSC is constant and does not stop", Evidence: []Evidence{{"/proc/cpuinfo", "constant_tsc nonstop_tsc"}}, Causes: nothing, Cost: Proof, Cap: B, Way: Never}
	if e.blind != "" {
		f.State, f.What, f.Evidence[0].Value = Unknown, "whether the TSC is constant and does not stop is not known", e.blind
	} else if len(missing) > 0 {
		f.What, f.Evidence[0].Value = "the TSC may change its rate or stop: times mean little", "flags lack "+strings.Join(missing, " ")
	}
	e.add(f)
}

// mitigations: what makes each exit dearer.
func (e *examiner) mitigations() {
	var on []string
	if names, err := e.s.Names(cpuDir + "/vulnerabilities"); err == nil {
		for _, n := range names {
			if strings.HasPrefix(host.Text(e.s, cpuDir+"/vulnerabilities/"+n), "Mitigation") {
				on = append(on, n)
			}
		}
	}
	e.add(Finding{ID: "mitigations", State: verdict(len(on) > 0), What: "mitigations make each exit dearer", Evidence: []Evidence{{"/" + cpuDir + "/vulnerabilities", strings.Join(on, " ")}, e.argEvidence("mitigations")}, Causes: slower, Cost: Slower, Cap: A, Way: Boot, Remedy: "per trust: mitigations=off"})
	microcode := "not known"
	for line := range strings.Lines(e.info) {
		if k, v, _ := strings.Cut(line, ":"); strings.TrimSpace(k) == "microcode" {
			microcode = strings.TrimSpace(v)
			break
		}
	}
	e.knob("microcode", cpuDir+"/vulnerabilities/old_microcode", "the microcode is older than the kernel knows of", func(v string) bool { return strings.HasPrefix(v, "Vulnerable") }, Finding{Causes: nothing, Cost: Proof, Cap: A, Way: Boot, Remedy: "the vendor's microcode package",
		Evidence: []Evidence{{"/proc/cpuinfo", "microcode " + microcode}}})
	e.knob("split-lock", "proc/sys/kernel/split_lock_mitigate", "a split lock puts its thread to sleep", isNot("0"), Finding{Causes: []string{"gaps"}, Cost: OnDemand, Cap: A, Way: ByHand, Remedy: "sysctl kernel.split_lock_mitigate=0"})
}

// spell writes a list of CPUs as the kernel takes it.
func spell(cpus []int) string { return cores.Format(cpus) }
