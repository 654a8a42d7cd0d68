package doctor

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/isolation/cores"
	"github.com/cloister-vmm/cloister/isolation/host"
	"golang.org/x/tools/txtar"
)

// tree is a recorded host that cannot be written: whoever tries fails the test.
func tree(t testing.TB, archive string, overlays ...map[string]string) host.System {
	t.Helper()
	a, err := txtar.ParseFile(filepath.Join("../host/testdata", archive))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, f := range a.Files {
		files[f.Name] = string(f.Data)
	}
	for _, o := range overlays {
		for name, v := range o {
			if gone, ok := strings.CutPrefix(name, "-"); ok {
				maps.DeleteFunc(files, func(k, _ string) bool { return k == gone || strings.HasPrefix(k, gone+"/") })
				continue
			}
			files[name] = v + "\n"
		}
	}
	root := t.TempDir()
	for name, v := range files {
		p := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(v), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return readOnly{host.Live{Root: root}, t}
}

type readOnly struct {
	host.Live
	t testing.TB
}

func (r readOnly) Write(name, _ string) error         { r.t.Errorf("it writes %s", name); return nil }
func (r readOnly) Mkdir(name string) error            { r.t.Errorf("it makes %s", name); return nil }
func (r readOnly) Rmdir(name string) error            { r.t.Errorf("it removes %s", name); return nil }
func (r readOnly) SetAffinity(tid int, _ []int) error { r.t.Errorf("it moves %d", tid); return nil }

func examine(t *testing.T, s host.System, cpus ...int) *Report {
	t.Helper()
	r, err := Examine(s, cpus)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *Report) find(id string) *Finding {
	for i := range r.Findings {
		if r.Findings[i].ID == id {
			return &r.Findings[i]
		}
	}
	return nil
}

// quiet makes of the machine of four CPUs one on which nothing is known to interrupt CPU 3: hardware, booted with nohz_full,
// all knobs turned.
var quiet = map[string]string{
	"proc/cmdline": "isolcpus=managed_irq,domain,3 nohz_full=3 rcu_nocbs=3 rcu_nocb_poll tsc=reliable", "sys/fs/resctrl/schemata": "MB:0=50\n    L3:0=fff", "proc/cpuinfo": "processor : 0\nmicrocode : 0x42\nflags : constant_tsc nonstop_tsc",
	"proc/config": "CONFIG_HZ=1000\nCONFIG_NO_HZ_FULL=y\nCONFIG_RCU_NOCB_CPU=y", "proc/sys/kernel/printk": "4 4 1 7", "proc/swaps": "Filename Type Size Used Priority",
	cpuDir + "/isolated": "3", cpuDir + "/nohz_full": "3", "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc",
	"sys/kernel/rcu_normal": "1", "sys/module/rcutree/parameters/nohz_full_patience_delay": "1000",
	"proc/irq/default_smp_affinity": "7", "proc/irq/24/smp_affinity_list": "0-2", "proc/irq/25/smp_affinity_list": "0-2", "proc/irq/26/smp_affinity_list": "0-2",
	"sys/devices/virtual/workqueue/cpumask": "7", "sys/devices/virtual/workqueue/writeback/cpumask": "7", "proc/sys/kernel/watchdog_cpumask": "0-2", "proc/sys/kernel/nmi_watchdog": "0",
	"sys/devices/system/machinecheck/machinecheck3/ignore_ce": "1", "proc/sys/vm/stat_interval": "120", "proc/sys/vm/compaction_proactiveness": "0", "proc/sys/vm/compact_unevictable_allowed": "0",
	"sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs": "3600000", "sys/kernel/mm/ksm/run": "0", "sys/kernel/mm/lru_gen/enabled": "0x0000",
	"proc/sys/kernel/timer_migration": "0", "proc/sys/kernel/sched_rt_runtime_us": "-1", "sys/kernel/debug/sched/fair_server/cpu3/runtime": "0",
	cpuDir + "/cpu3/cpufreq/scaling_governor": "performance", cpuDir + "/cpu3/cpufreq/energy_performance_preference": "performance",
	"sys/module/kvm_intel/parameters/ple_gap": "0", "sys/module/kvm_intel/parameters/enable_apicv": "Y", "sys/module/kvm/parameters/kvmclock_periodic_sync": "N", "sys/module/kvm/parameters/nx_huge_pages": "N",
	"proc/stat": "cpu 0 0 0 0 0 0 0 9 0 0\ncpu3 0 0 0 0 0 0 0 0 0 0", "proc/timer_list": "cpu: 3\nactive timers:\n #0: <0>, tick_nohz_handler, S:01\n", "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "512",
	"proc/1/task/1/status": "Cpus_allowed_list: 0-2", "proc/2/task/2/status": "Cpus_allowed_list: 0-2", "proc/40/task/40/status": "Cpus_allowed_list: 0-2",
	"proc/300/task/300/status": "Cpus_allowed_list: 0-2", "proc/400/task/400/status": "Cpus_allowed_list: 0-2", "proc/401/task/401/status": "Cpus_allowed_list: 0-2",
	"proc/sys/kernel/split_lock_mitigate": "0", cpuDir + "/cpu3/cache/index3/shared_cpu_list": "3",
	"sys/kernel/tracing/current_tracer": "nop", "proc/sys/kernel/numa_balancing": "1", "sys/devices/system/node/online": "0", "-dev": "",
}

// wrongs are machines on which one thing is wrong that is well on the quiet one.
var wrongs = []struct {
	id, evidence string
	grade        Grade
	set          map[string]string
}{
	{"offline", "0-2", F, map[string]string{cpuDir + "/online": "0-2"}},
	{"only-cpu", "3", F, map[string]string{cpuDir + "/online": "3"}},
	{"sched-domain", "/sys/devices/system/cpu/isolated: none", D, map[string]string{cpuDir + "/isolated": ""}},
	{"tick", "CONFIG_NO_HZ_FULL=y CONFIG_HZ=1000", D, map[string]string{cpuDir + "/nohz_full": "", "proc/cmdline": "rcu_nocbs=3 tsc=reliable isolcpus=managed_irq,3"}},
	{"skew-tick", "no skew_tick=", D, map[string]string{cpuDir + "/nohz_full": ""}},
	{"rcu-poll", "no rcu_nocb_poll", B, map[string]string{"proc/cmdline": "nohz_full=3 tsc=reliable isolcpus=managed_irq,3"}},
	{"energy-bias", "energy_perf_bias: 6", B, map[string]string{cpuDir + "/cpu3/power/energy_perf_bias": "6"}},
	{"uncore", "package_00_die_00/min_freq_khz: 800000", B, map[string]string{cpuDir + "/intel_uncore_frequency/package_00_die_00/min_freq_khz": "800000", cpuDir + "/intel_uncore_frequency/package_00_die_00/max_freq_khz": "2400000"}},
	{"bandwidth", "MB:0=50;1=100", B, map[string]string{"sys/fs/resctrl/schemata": "MB:0=50;1=100\n    L3:0=fff"}},
	{"ipiv", "enable_ipiv: N", B, map[string]string{"sys/module/kvm_intel/parameters/enable_ipiv": "N"}},
	{"preemption-timer", "preemption_timer: N", B, map[string]string{"sys/module/kvm_intel/parameters/preemption_timer": "N"}},
	{"tick-clock", "hpet", D, map[string]string{"sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet"}},
	{"tick-tasks", "2 threads may run here", D, map[string]string{"proc/1/task/1/status": "Cpus_allowed_list: 0-3", "proc/2/task/2/status": "Cpus_allowed_list: 0-3"}},
	{"tasks", "1 threads: init", D, map[string]string{"proc/1/task/1/status": "Cpus_allowed_list: 0-3"}},
	{"rcu", "no rcu_nocbs=", D, map[string]string{cpuDir + "/nohz_full": "", "proc/cmdline": "tsc=reliable isolcpus=managed_irq,3"}},
	{"rcu-expedited", "rcu_normal: 0", B, map[string]string{"sys/kernel/rcu_normal": "0"}},
	{"rcu-patience", "patience_delay: 0", B, map[string]string{"sys/module/rcutree/parameters/nohz_full_patience_delay": "0"}},
	{"irqbalance", "irqbalance", C, map[string]string{"proc/1/task/1/stat": "1 (irqbalance) S 1 1 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0 0 70 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 0 0"}},
	{"rt-throttling", "950000", C, map[string]string{"proc/sys/kernel/sched_rt_runtime_us": "950000"}},
	{"fair-server", "50000000", C, map[string]string{"sys/kernel/debug/sched/fair_server/cpu3/runtime": "50000000"}},
	{"timer-migration", "timer_migration: 1", B, map[string]string{"proc/sys/kernel/timer_migration": "1"}},
	{"smt", "1,3", C, map[string]string{cpuDir + "/cpu3/topology/thread_siblings_list": "1,3"}},
	{"irq-default", "default_smp_affinity: f", C, map[string]string{"proc/irq/default_smp_affinity": "f"}},
	{"irq", "8 came, most IRQ 24 (ahci) 8", D, map[string]string{"proc/irq/24/smp_affinity_list": "0-3"}},
	{"irq-managed", "IRQs 24", D, map[string]string{"proc/irq/24/smp_affinity_list": "0-3", "sys/kernel/debug/irq/irqs/24": "dstate: IRQD_AFFINITY_MANAGED", "proc/cmdline": "nohz_full=3 tsc=reliable isolcpus=3"}},
	{"nmi", "NMI 5", C, map[string]string{"proc/sys/kernel/nmi_watchdog": "1", "proc/interrupts": " CPU0 CPU1 CPU2 CPU3\nNMI: 0 0 0 5 Non-maskable interrupts"}},
	{"workqueues", "writeback/cpumask: f", C, map[string]string{"sys/devices/virtual/workqueue/writeback/cpumask": "f"}},
	{"watchdog", "watchdog_cpumask: 0-3", C, map[string]string{"proc/sys/kernel/watchdog_cpumask": "0-3"}},
	{"nmi-watchdog", "nmi_watchdog: 1", C, map[string]string{"proc/sys/kernel/nmi_watchdog": "1"}},
	{"machine-check", "ignore_ce: 0", B, map[string]string{"sys/devices/system/machinecheck/machinecheck3/ignore_ce": "0"}},
	{"vmstat", "stat_interval: 1", C, map[string]string{"proc/sys/vm/stat_interval": "1"}},
	{"clock-watchdog", "no tsc=", C, map[string]string{"proc/cmdline": "nohz_full=3 isolcpus=managed_irq,3"}},
	{"tracer", "function", B, map[string]string{"sys/kernel/tracing/current_tracer": "function"}},
	{"console", "7 4 1 7", B, map[string]string{"proc/sys/kernel/printk": "7 4 1 7"}},
	{"timers", "perf_mux_hrtimer_handler", C, map[string]string{"proc/timer_list": "cpu: 3\nactive timers:\n #0: <0>, perf_mux_hrtimer_handler, S:01\n"}},
	{"thp", "[always]", C, map[string]string{"sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never"}},
	{"khugepaged", "10000", C, map[string]string{"sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs": "10000"}},
	{"ksm", "run: 1", C, map[string]string{"sys/kernel/mm/ksm/run": "1"}},
	{"numa-balancing", "numa_balancing: 1", C, map[string]string{"sys/devices/system/node/online": "0-1"}},
	{"compaction", "20", B, map[string]string{"proc/sys/vm/compaction_proactiveness": "20"}},
	{"compact-locked", "1", B, map[string]string{"proc/sys/vm/compact_unevictable_allowed": "1"}},
	{"hugepages", "nr_hugepages: 0", B, map[string]string{"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "0"}},
	{"swap", "1 devices", B, map[string]string{"proc/swaps": "Filename Type\n/dev/sda2 partition"}},
	{"page-ageing", "0x0007", B, map[string]string{"sys/kernel/mm/lru_gen/enabled": "0x0007"}},
	{"damon", "kdamond.0", B, map[string]string{"proc/40/task/40/stat": "40 (kdamond.0) S 1 1 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0 0 70 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 0 0"}},
	{"cstates", "133 us (C6)", B, map[string]string{cpuDir + "/cpu3/cpuidle/state2/latency": "133", cpuDir + "/cpu3/cpuidle/state2/name": "C6", cpuDir + "/cpu3/cpuidle/state2/disable": "0"}},
	{"frequency", "powersave", B, map[string]string{cpuDir + "/cpu3/cpufreq/scaling_governor": "powersave"}},
	{"epp", "balance_power", B, map[string]string{cpuDir + "/cpu3/cpufreq/energy_performance_preference": "balance_power"}},
	{"frequency-range", "scaling_min_freq: 8", B, map[string]string{cpuDir + "/cpu3/cpufreq/scaling_min_freq": "8", cpuDir + "/cpu3/cpufreq/scaling_max_freq": "9"}},
	{"turbo", "no_turbo: 0", B, map[string]string{cpuDir + "/intel_pstate/no_turbo": "0"}},
	{"boost", "boost: 1", B, map[string]string{cpuDir + "/cpufreq/boost": "1"}},
	{"cache", "0-3", B, map[string]string{cpuDir + "/cpu3/cache/index3/shared_cpu_list": "0-3"}},
	{"nested", "flags: hypervisor", B, map[string]string{"proc/cpuinfo": "flags : constant_tsc nonstop_tsc hypervisor"}},
	{"steal", "cpu3 steal 44", C, map[string]string{"proc/stat": "cpu3 0 0 0 0 0 0 0 44 0 0"}},
	{"kvm", "periodic_sync: Y", B, map[string]string{"sys/module/kvm/parameters/kvmclock_periodic_sync": "Y"}},
	{"nx-huge-pages", "Y", B, map[string]string{"sys/module/kvm/parameters/nx_huge_pages": "Y"}},
	{"ple", "128", B, map[string]string{"sys/module/kvm_intel/parameters/ple_gap": "128"}},
	{"apicv", "N", B, map[string]string{"sys/module/kvm_intel/parameters/enable_apicv": "N"}},
	{"l1d-flush", "cond", B, map[string]string{"sys/module/kvm_intel/parameters/vmentry_l1d_flush": "cond"}},
	{"avic", "N", B, map[string]string{"-sys/module/kvm_intel": "", "sys/module/kvm_amd/parameters/avic": "N"}},
	{"no-kvm", "no kvm_intel", B, map[string]string{"-sys/module/kvm_intel": ""}},
	{"clocksource", "hpet", D, map[string]string{"sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet"}},
	{"tsc", "lack constant_tsc", B, map[string]string{"proc/cpuinfo": "flags : nonstop_tsc"}},
	{"mitigations", "retbleed", B, map[string]string{cpuDir + "/vulnerabilities/retbleed": "Mitigation: IBRS"}},
	{"microcode", "microcode 0x42", B, map[string]string{cpuDir + "/vulnerabilities/old_microcode": "Vulnerable"}},
	{"split-lock", "1", B, map[string]string{"proc/sys/kernel/split_lock_mitigate": "1"}},
}

// On the quiet machine each thing that is made wrong is found, by name, with its evidence, and makes the grade that it says:
// a row of the doctor's that could not be wrong would be no row.
func TestEachFindingAlone(t *testing.T) {
	base := examine(t, tree(t, "four.txtar", quiet), 3)
	for _, f := range base.Findings {
		if f.State == Wrong || f.State == Unknown && f.ID != "smi" {
			t.Errorf("on the quiet machine: %s %s: %v", f.ID, f.State, f.Evidence)
		}
	}
	if base.Cores[0].Grade != B || !slices.Equal(base.Cores[0].Why, []string{"smi"}) {
		t.Errorf("the quiet machine is %s for %v", base.Cores[0].Grade, base.Cores[0].Why)
	}
	wrong := map[string]bool{}
	for _, c := range wrongs {
		r := examine(t, tree(t, "four.txtar", quiet, c.set), 3)
		f := r.find(c.id)
		if f == nil || f.State != Wrong {
			t.Errorf("%s is not found: %+v", c.id, f)
			continue
		}
		wrong[c.id] = true
		if !strings.Contains(f.evidence(9999), c.evidence) {
			t.Errorf("%s: the evidence is %q, want %q in it", c.id, f.evidence(9999), c.evidence)
		}
		if len(f.Causes) == 0 || f.Cost == "" || f.What == "" || f.Way == "" || f.Remedy == "" && f.Way != Never {
			t.Errorf("%s says too little: %+v", c.id, f)
		}
		if g := r.Cores[0].Grade; g != c.grade {
			t.Errorf("%s makes grade %s (for %v), want %s", c.id, g, r.Cores[0].Why, c.grade)
		}
	}
	if r := examine(t, tree(t, "four.txtar", quiet), 0, 3); r.find("boot-cpu") == nil || r.Cores[1].Grade != B {
		t.Error("CPU 0 is like any other, or spoils the others")
	}
	// What can never be wrong says so by its grade.
	for _, f := range base.Findings {
		if !wrong[f.ID] && f.Cap != A && f.ID != "smi" {
			t.Errorf("no machine of this test makes %s wrong", f.ID)
		}
	}
}

// Causes are those of docs/breaks.md or words that no cause has.
func TestCausesExist(t *testing.T) {
	r := examine(t, tree(t, "nested.txtar"))
	named := 0
	for _, f := range r.Findings {
		for _, c := range f.Causes {
			if _, ok := breaks.ParseCause(c); ok {
				named++
			}
		}
	}
	if named == 0 {
		t.Error("no finding names a cause")
	}
}

// The recorded machine: nesting, the missing nohz_full, the tick and the throttling are named, with their evidence.
func TestNestedMachine(t *testing.T) {
	r := examine(t, tree(t, "nested.txtar"), 1)
	for id, want := range map[string]string{"nested": "flags: hypervisor", "tick": "CONFIG_NO_HZ_FULL=n CONFIG_HZ=250", "rt-throttling": "sched_rt_runtime_us: 950000", "irq": "virtio3-tx", "irq-managed": "virtio1-req.0", "kvm": "Y"} {
		if f := r.find(id); f == nil || f.State != Wrong || !strings.Contains(f.evidence(9999), want) {
			t.Errorf("%s: %+v, want %q", id, f, want)
		}
	}
	if r.HZ != 250 || r.Backend != "pvm" || !r.Nested || r.Cores[0].Grade != D || r.Cores[0].After != D || len(r.Changes) != 3 {
		t.Errorf("%+v", r)
	}
	var text, js bytes.Buffer
	if err := errors.Join(r.WriteText(&text, false), r.Encode(&js)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CPU 1   grade D", "1. cloister host apply ", "2. a kernel with CONFIG_NO_HZ_FULL", "250 times a second", "no zero is certified", "well ", "unknown "} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in:\n%s", want, text.String())
		}
	}
	for line := range strings.Lines(text.String()) {
		if len(line) > width+1 {
			t.Errorf("%d characters: %s", len(line), line)
		}
	}
	if n := strings.Count(text.String(), "\n"); n > 66 {
		t.Errorf("%d lines are more than a screen", n)
	}
	var back Report
	if err := json.Unmarshal(js.Bytes(), &back); err != nil || back.Schema != Schema || len(back.Findings) != len(r.Findings) {
		t.Errorf("%v", err)
	}
}

// README shows what the program prints of the recorded machine: every line but those of evidence, whose figures and threads are
// of another hour.
func TestREADMEShowsTheScreen(t *testing.T) {
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, shown, ok := strings.Cut(string(b), "<details><summary>one screen</summary>\n\n")
	shown, _, ok2 := strings.Cut(shown, "\n</details>")
	if !ok || !ok2 {
		t.Fatal("README has no such block")
	}
	var text bytes.Buffer
	if err := examine(t, tree(t, "nested.txtar"), 1).WriteText(&text, false); err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`^kernel [^,]*`)
	lines := func(s, indent string) (list []string) {
		for line := range strings.Lines(s) {
			line = strings.TrimSuffix(strings.TrimPrefix(line, indent), "\n")
			if evidence := strings.HasPrefix(line, strings.Repeat(" ", 22)); !evidence {
				what, _, _ := strings.Cut(version.ReplaceAllString(line, "kernel"), " | /")
				what, _, _ = strings.Cut(what, " | ...")
				list = append(list, what)
			}
		}
		return list
	}
	if got, want := lines(shown, "    "), lines(text.String(), ""); !slices.Equal(got, want) {
		t.Errorf("README shows\n%s\nthe program says\n%s\nput the output of `cloister doctor --cpu 1` there", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A machine of the lab, recorded without isolation; booted as it should be; and after `host apply`.
func TestPlainMachine(t *testing.T) {
	if r := examine(t, tree(t, "plain.txtar"), 3); r.Cores[0].Grade != D || r.Backend != "svm" || r.find("tick").Remedy != "nohz_full=3" || r.find("exit-count").State != Unknown || r.find("tasks").State != Wrong {
		t.Errorf("%+v %+v", r.Cores, r.find("tick"))
	}
	boot := map[string]string{cpuDir + "/nohz_full": "3", cpuDir + "/isolated": "3", "proc/cmdline": "isolcpus=managed_irq,domain,3 nohz_full=3 rcu_nocbs=3 tsc=reliable"}
	for id, want := range map[string]State{"tick": OK, "sched-domain": OK, "rcu": OK, "clock-watchdog": OK, "irq": Wrong} {
		if f := examine(t, tree(t, "plain.txtar", boot), 3).find(id); f.State != want {
			t.Errorf("booted for it: %s is %s: %v", id, f.State, f.Evidence)
		}
	}
	partition := map[string]string{"sys/fs/cgroup/cloister-cpus-3/cpuset.cpus": "3", "sys/fs/cgroup/cloister-cpus-3/cpuset.cpus.partition": "isolated"}
	if f := examine(t, tree(t, "plain.txtar", partition), 3).find("sched-domain"); f.State != OK || !strings.Contains(f.evidence(9999), "partition: isolated") {
		t.Errorf("an isolated partition: %+v", f)
	}
}

// A machine of the lab that was booted for it: what is left can be turned at run time.
func TestNohzMachine(t *testing.T) {
	r := examine(t, tree(t, "nohz.txtar"), 2)
	for id, want := range map[string]State{"tick": OK, "sched-domain": OK, "rcu": OK, "tasks": Wrong, "tick-tasks": Wrong, "nested": Wrong} {
		if f := r.find(id); f == nil || f.State != want {
			t.Errorf("%s: %+v, want %s", id, f, want)
		}
	}
	if r.Cores[0].Grade != D || r.Cores[0].After != B {
		t.Errorf("%+v", r.Cores)
	}
}

// The promise of a grade knows which interrupts the kernel will refuse to move, and where nothing tells it says both grades.
func TestPromiseOfInterrupts(t *testing.T) {
	const chip, flags, mode = "sys/kernel/irq/24/chip_name", "sys/kernel/debug/irq/irqs/24", "proc/irq/24/smp_affinity_list@mode"
	here := map[string]string{"proc/irq/24/smp_affinity_list": "0-3"} // 8 came
	never := map[string]string{"proc/interrupts": " CPU0 CPU1 CPU2 CPU3\n 24: 3 0 0 0 PCI-MSI ahci"}
	boot := map[string]string{"proc/cmdline": "nohz_full=3 rcu_nocbs=3 tsc=reliable isolcpus=3"} // without managed_irq
	for name, c := range map[string]struct {
		set                 map[string]string
		never               bool
		grade, after, least Grade
		id, end             string
	}{
		"of a pin":            {map[string]string{chip: "IR-IO-APIC"}, false, D, B, B, "irq", "level max: B\n"},
		"of PCI":              {map[string]string{chip: "IR-PCI-MSI"}, false, D, B, D, "irq-perhaps", "level max: B, or D if irq-perhaps stays\n"},
		"of PCI, none so far": {map[string]string{chip: "PCI-MSI"}, true, C, B, C, "irq-perhaps", "level max: B, or C if irq-perhaps stays\n"},
		"fixed by its mode":   {map[string]string{chip: "PCI-MSIX", mode: "444"}, false, D, D, D, "irq-managed", "no write can better that\n"},
		"another is fixed":    {map[string]string{chip: "PCI-MSIX", mode: "644", "proc/irq/25/smp_affinity_list@mode": "444"}, false, D, B, B, "irq", "level max: B\n"},
		"none is fixed":       {map[string]string{chip: "PCI-MSIX", mode: "644", "proc/irq/25/smp_affinity_list@mode": "644"}, false, D, B, D, "irq-perhaps", "level max: B, or D if irq-perhaps stays\n"},
		"of the boot's timer": {map[string]string{"-proc/irq/24/ahci": "", "proc/irq/24/effective_affinity_list": "0"}, false, B, B, B, "smi", "for smi; no write can better that\n"},
		"routed here":         {map[string]string{"-proc/irq/24/ahci": "", "proc/irq/24/effective_affinity_list": "3"}, false, D, B, B, "irq", "level max: B\n"},
		"known to move":       {map[string]string{chip: "PCI-MSI", flags: "dstate: 0x1"}, false, D, B, B, "irq", "level max: B\n"},
		"known to stay":       {map[string]string{chip: "PCI-MSI", flags: "IRQD_AFFINITY_MANAGED"}, false, D, D, D, "irq-managed", "no write can better that\n"},
	} {
		also := map[string]string{}
		if c.never {
			also = never
		}
		r := examine(t, tree(t, "four.txtar", quiet, here, boot, c.set, also), 3)
		var text bytes.Buffer
		if err := r.WriteText(&text, false); err != nil {
			t.Fatal(err)
		}
		if k := r.Cores[0]; k.Grade != c.grade || k.After != c.after || k.Least != c.least || r.find(c.id) == nil || r.find(c.id).State == OK || !strings.HasSuffix(text.String(), c.end) {
			t.Errorf("%s: %+v, want %s, %s, %s and %s in\n%s", name, k, c.grade, c.after, c.least, c.id, text.String())
		}
	}
}

// inUse is a host on which programs have leased some CPUs; it remembers what was read.
type inUse struct {
	*host.Recorder
	cpus []int
}

func (s inUse) InUse(cpu int) (bool, error) {
	if cpu == 2 {
		return false, errors.New("it cannot be asked")
	}
	return slices.Contains(s.cpus, cpu), nil
}

type reads struct {
	host.System
	names map[string]bool
}

func (r reads) Read(name string) ([]byte, error) { r.names[name] = true; return r.System.Read(name) }

// What is read by an interrupt on a CPU is not read where a program runs that minds, and the finding says why.
func TestSparesCoresInUse(t *testing.T) {
	const epp3, bias3 = cpuDir + "/cpu3/cpufreq/energy_performance_preference", cpuDir + "/cpu3/power/energy_perf_bias"
	const low, high = cpuDir + "/intel_uncore_frequency/package_00_die_00/min_freq_khz", cpuDir + "/intel_uncore_frequency/package_00_die_00/max_freq_khz"
	msr := func(cpu string) string { return "dev/cpu/" + cpu + "/msr@0x34" }
	regs := map[string]string{"sys/module/msr/.dir": ""}
	for _, c := range []string{"0", "1", "2", "3"} {
		regs[msr(c)] = "7"
	}
	hardware := map[string]string{"-sys/fs/cgroup": "", "-dev": "", "proc/sys/kernel/osrelease": "6.1.0"}
	for name, c := range map[string]struct {
		used      []int
		ask       []int
		own       []int
		set       map[string]string
		read, not []string
		id, want  string
	}{
		"nobody":               {nil, []int{3}, nil, nil, []string{msr("0"), epp3}, []string{msr("3")}, "smi", "/dev/cpu/0/msr@0x34: 7"},
		"the first":            {[]int{0}, []int{3}, nil, nil, []string{msr("1")}, []string{msr("0"), msr("2")}, "smi", "/dev/cpu/1/msr@0x34: 7"},
		"all others":           {[]int{0, 1}, []int{3}, nil, nil, nil, []string{msr("0"), msr("1"), msr("2"), msr("3")}, "smi", "each other CPU is isolated or in use"},
		"isolated at boot":     {[]int{1}, []int{3}, nil, map[string]string{cpuDir + "/isolated": "0"}, nil, []string{msr("0"), msr("1")}, "smi", "each other CPU is isolated or in use"},
		"without a tick":       {[]int{1}, []int{3}, nil, map[string]string{cpuDir + "/nohz_full": "0"}, nil, []string{msr("0"), msr("1")}, "smi", "each other CPU is isolated or in use"},
		"asked about":          {[]int{3}, []int{3}, nil, nil, []string{msr("0")}, []string{epp3}, "epp", "not read: CPU 3 is in use"},
		"the caller's own":     {[]int{3}, []int{3}, []int{300}, nil, []string{epp3}, nil, "epp", "balance_performance"},
		"another of his":       {[]int{0, 1, 3}, []int{3}, []int{300}, nil, []string{epp3}, []string{msr("0"), msr("1")}, "smi", "each other CPU is isolated or in use"},
		"the bias of one":      {[]int{3}, []int{3}, nil, map[string]string{bias3: "6"}, nil, []string{bias3}, "energy-bias", "not read: CPU 3 is in use"},
		"the uncore's":         {nil, []int{0}, nil, map[string]string{low: "1", high: "2", cpuDir + "/online": "0-1"}, []string{low, high}, nil, "uncore", "min_freq_khz: 1"},
		"of a die in use":      {[]int{1}, []int{0}, nil, map[string]string{low: "1", high: "2"}, nil, []string{low, high}, "uncore", "not read: CPU 1 is in use"},
		"an old kernel":        {[]int{1}, []int{3}, nil, map[string]string{"proc/sys/kernel/osrelease": "5.15.0"}, nil, []string{"proc/cpuinfo"}, "tsc", "not read: CPU 1 is in use"},
		"an old one, no tick":  {[]int{1}, []int{0}, nil, map[string]string{"proc/sys/kernel/osrelease": "5.15.0", cpuDir + "/nohz_full": "1-2"}, []string{"proc/cpuinfo"}, nil, "tsc", "constant_tsc"},
		"an old one, not used": {nil, []int{0}, nil, map[string]string{"proc/sys/kernel/osrelease": "5.15.0", cpuDir + "/online": "0-1", cpuDir + "/present": "0-1"}, []string{"proc/cpuinfo"}, nil, "nested", "flag"},
	} {
		s := inUse{&host.Recorder{System: reads{tree(t, "four.txtar", hardware, regs, c.set), map[string]bool{}}}, c.used}
		r, err := Examine(s, c.ask, c.own...)
		if err != nil {
			t.Fatal(err)
		}
		names := s.System.(reads).names
		for _, n := range c.read {
			if !names[n] {
				t.Errorf("%s: it does not read %s", name, n)
			}
		}
		for _, n := range c.not {
			if names[n] {
				t.Errorf("%s: it reads %s", name, n)
			}
		}
		if f := r.find(c.id); f == nil || !strings.Contains(f.evidence(9999), c.want) || strings.Contains(c.want, "not read") && f.State != Unknown {
			t.Errorf("%s: %s is %+v, want %q", name, c.id, f, c.want)
		}
	}
}

// The hint is a command that can be typed: it names CPUs, and leaves one to the rest of the system.
func TestHintsNameCPUs(t *testing.T) {
	for cpus, want := range map[string]string{"": "--cpu 1-3", "3": "--cpu 3", "1,3": "--cpu 1,3", "0,1,2,3": "--cpu 1-3"} {
		list, err := cores.ParseList(cpus)
		if err != nil {
			t.Fatal(err)
		}
		r := examine(t, tree(t, "four.txtar"), list...)
		seen := map[Way]bool{}
		for _, f := range r.Findings {
			if !f.CanApply {
				continue
			}
			seen[f.Way] = true
			level := map[Way]string{RunTime: "", Max: " --level max"}[f.Way]
			if strings.HasPrefix(f.Remedy, "cloister") && f.Remedy != "cloister host apply "+want+level || f.how() != "host apply "+want+level {
				t.Errorf("of CPUs %q, %s: %q, %q", cpus, f.ID, f.Remedy, f.how())
			}
		}
		if !seen[RunTime] || !seen[Max] || r.Changes[0].Remedy != "cloister host apply "+want {
			t.Errorf("of CPUs %q: %v, %+v", cpus, seen, r.Changes[0])
		}
		var b bytes.Buffer
		if err := r.WriteText(&b, true); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(b.String()) {
			if strings.Contains(line, "host apply") && !strings.Contains(line, "host apply --cpu ") {
				t.Errorf("a hint without CPUs: %s", line)
			}
		}
	}
}

// Bad input: one clear line.
func TestExamineRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		s    host.System
		cpus []int
		want string
	}{
		"absent":   {tree(t, "four.txtar"), []int{9}, "CPU 9 does not exist: this machine has 0-3"},
		"no sysfs": {host.Live{Root: t.TempDir()}, nil, "read the host's CPUs"},
		"no CPUs":  {tree(t, "four.txtar", map[string]string{"sys/devices/system/cpu/online": ""}), nil, "online is empty"},
		"no proc":  {tree(t, "four.txtar", map[string]string{"-proc": ""}), nil, "list processes"},
	} {
		if _, err := Examine(c.s, c.cpus); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzInterrupts: whatever /proc/interrupts and /proc/timer_list hold, reading them ends.
func FuzzInterrupts(f *testing.F) {
	f.Add("           CPU0       CPU1\n 24:  5  6 PCI-MSI ahci\nERR: 0\n", "cpu: 1\n #0: <0>, f, S:01\n", 1)
	f.Fuzz(func(_ *testing.T, a, b string, cpu int) {
		c := parseInterrupts(a)
		for row := range c.rows {
			c.of(row, cpu)
		}
		armedTimers(b)
	})
}

// What came since boot is no reason for a grade once what made it is off, which an apply with --level max sees to.
func TestNMIsOfBefore(t *testing.T) {
	came := map[string]string{"proc/sys/kernel/nmi_watchdog": "0", "proc/interrupts": "           CPU0       CPU1       CPU2       CPU3\n NMI:          5          5          5          5   Non-maskable interrupts"}
	f := examine(t, tree(t, "nohz.txtar", came), 2).find("nmi")
	if f == nil || f.State != OK || !strings.Contains(f.evidence(200), "NMI 5") {
		t.Errorf("with the detector off: %+v", f)
	}
	came["proc/sys/kernel/nmi_watchdog"] = "1"
	if f = examine(t, tree(t, "nohz.txtar", came), 2).find("nmi"); f == nil || f.State != Wrong || f.Way != Max {
		t.Errorf("with the detector on: %+v", f)
	}
}

// Findings of different weight are different rows, however they are called.
func TestRowsByGrade(t *testing.T) {
	r := Report{Findings: []Finding{{ID: "irq", CPUs: []int{1}, State: Wrong, What: "w", Cap: C}, {ID: "irq", CPUs: []int{2}, State: Wrong, What: "w", Cap: D}, {ID: "irq", CPUs: []int{3}, State: Wrong, What: "w", Cap: D}}}
	rows := r.rows()
	if len(rows) != 2 || rows[0].Cap != D || !slices.Equal(rows[0].CPUs, []int{2, 3}) || rows[1].Cap != C || !slices.Equal(rows[1].CPUs, []int{1}) {
		t.Errorf("%+v", rows)
	}
}
