package host

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const epp3 = cpuDir + "/cpu3/cpufreq/" + eppFile

// watching watches CPU 3 of a tree, applied, and gives what it then says, a line each.
func watching(t *testing.T, s *sim, own ...int) (*Watch, func() string) {
	t.Helper()
	w, err := NewWatch(s, []int{3}, own)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w, func() string {
		var b strings.Builder
		for _, d := range w.Check() {
			fmt.Fprintln(&b, d)
		}
		return b.String()
	}
}

// put writes a file of the tree, which need not be there yet, as the kernel or somebody would.
func (s *sim) put(t *testing.T, name, text string) {
	t.Helper()
	p := filepath.Join(s.Root, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// watchable has on it, beside the recorded machine, everything that a plan can turn.
var watchable = map[string]string{
	"sys/fs/cgroup/user.slice/a/cgroup.threads": "", "sys/fs/cgroup/user.slice/a/cgroup.procs": "", cpuDir + "/cpu3/topology/thread_siblings_list": "1,3",
	cpuDir + "/cpu3/cpuidle/state0/name": "POLL", "sys/kernel/debug/sched/fair_server/cpu3/runtime": "50000000", epp3: "balance_performance",
	"sys/fs/cgroup/cpuset.cpus.effective": "0-3", "sys/fs/cgroup/cpuset.cpus.isolated": "", "sys/devices/virtual/workqueue/nvme-wq/cpumask": "f",
	"proc/irq/30/smp_affinity_list": "0-3", // nobody has asked for it
}

// Each single thing that makes a core quiet is missed when somebody undoes it, and nothing is said when somebody makes it better.
func TestWatchEach(t *testing.T) {
	const mm = "sys/kernel/mm/"
	for name, c := range map[string]struct{ file, value, want string }{
		"khugepaged":           {mm + "transparent_hugepage/khugepaged/scan_sleep_millisecs", "10000", "khugepaged's sleep: /%s was 3600000, is 10000"},
		"compaction":           {"proc/sys/vm/compaction_proactiveness", "20", "compaction in advance: /%s was 0, is 20"},
		"locked memory":        {"proc/sys/vm/compact_unevictable_allowed", "1", "compaction of locked memory: /%s was 0, is 1"},
		"page ageing":          {mm + "lru_gen/enabled", "0x0007", "page ageing: /%s was 0x0000, is 0x0007"},
		"machine check":        {"sys/devices/system/machinecheck/machinecheck3/ignore_ce", "0", "polling for corrected errors of CPU 3: /%s was 1, is 0"},
		"another's":            {"sys/devices/system/machinecheck/machinecheck2/ignore_ce", "0", ""},
		"the fair server":      {"sys/kernel/debug/sched/fair_server/cpu3/runtime", "50000000", "the fair server of CPU 3: /%s was 0, is 50000000"},
		"throttling":           {"proc/sys/kernel/sched_rt_runtime_us", "950000", "real-time throttling: /%s was -1, is 950000"},
		"sleep states":         {cpuDir + "/cpu3/power/pm_qos_resume_latency_us", "0", "the latency of sleep states of CPU 3: /%s was n/a, is 0"},
		"everybody's latency":  {dmaLatency, "\x00\x945w", "the latency of sleep states that everybody has to bear (us): /%s was 0, is 2000000000"},
		"a lower latency":      {dmaLatency, "-1", ""},
		"huge pages":           {mm + "transparent_hugepage/enabled", "[always] madvise never", "huge pages: /%s was never, is always"},
		"a better setting":     {mm + "ksm/run", "0", ""},
		"a work queue":         {"sys/devices/virtual/workqueue/nvme-wq/cpumask", "8", "where work of nvme-wq runs: /%s was 5, is 8"},
		"a new work queue":     {"sys/devices/virtual/workqueue/late/cpumask", "f", "where work of late runs: /%s was not there, is f"},
		"a work queue apart":   {"sys/devices/virtual/workqueue/late/cpumask", "7", ""},
		"the partition":        {part, "isolated invalid (Cpu list in cpuset.cpus not exclusive)", "the partition: /%s was isolated, is isolated invalid (Cpu list"},
		"no partition":         {part, "member", "the partition: /%s was isolated, is member"},
		"the partition's CPUs": {"sys/fs/cgroup/cloister-cpus-3/cpuset.cpus", "2", "the partition's CPUs: /%s was 3, is 2"},
		"what it has":          {"sys/fs/cgroup/cloister-cpus-3/cpuset.cpus.effective", "", "the CPUs that the partition has: /%s was 3, is "},
		"the domains":          {"sys/fs/cgroup/cpuset.cpus.isolated", "", "the CPUs out of the scheduler's domains: /%s was 3, is "},
		"the others' CPUs":     {"sys/fs/cgroup/cpuset.cpus.effective", "0-3", "the CPUs of everybody: /%s was 0-2, is 0-3"},
		"a new interrupt":      {"proc/irq/99/smp_affinity_list", "0-3", "the affinity of IRQ 99: /%s was not there, is 0-3"},
		"a new one elsewhere":  {"proc/irq/99/smp_affinity_list", "0-2", ""},
		"somebody asks for it": {"proc/irq/30/virtio9/.dir", "", "the affinity of IRQ 30: /proc/irq/30/smp_affinity_list was nobody's interrupt, is 0-3"},
		"rerouted":             {"proc/irq/24/effective_affinity_list", "3", "where IRQ 24 goes to: /%s was 0, is 3"},
		"another's interrupt":  {"proc/irq/24/smp_affinity_list", "1", ""},
		"a sibling comes":      {cpuDir + "/cpu1/online", "1", "CPU 1, off line at the start, perhaps a sibling: /%s was 0, is 1"},
		"the core goes":        {cpuDir + "/online", "0,2", "CPUs on line: /%s was 0,2-3, is 0,2"},
		"another CPU goes":     {cpuDir + "/online", "0,3", ""},
		"the cache":            {"sys/fs/resctrl/cloister-cpus-3/schemata", "    L3:0=fff", "the cache partition: /%s was MB:0=100\n    L3:0=fc0, is L3:0=fff"},
		"the others' cache":    {"sys/fs/resctrl/schemata", "    L3:0=fff", "everybody's part of the cache: /%s was MB:0=100\n    L3:0=03f, is L3:0=fff"},
		"energy, whatever":     {epp3, "performance", "the energy preference: /%s was as at the start, is written to since (not read"},
	} {
		t.Run(name, func(t *testing.T) {
			s := unpack(t, "four.txtar", watchable)
			mustApply(t, &Applier{System: s, Dir: memory(t)}, Request{CPUs: []int{3}, Level: Max, Cache: true})
			// What the kernel itself would show then.
			s.put(t, "sys/fs/cgroup/cpuset.cpus.effective", "0-2")
			s.put(t, "sys/fs/cgroup/cpuset.cpus.isolated", "3")
			s.put(t, "sys/fs/cgroup/cloister-cpus-3/cpuset.cpus.effective", "3")
			s.put(t, "proc/irq/24/effective_affinity_list", "0")
			s.put(t, cpuDir+"/online", "0,2-3")
			s.put(t, dmaLatency, "\x00\x00\x00\x00")
			_, check := watching(t, s)
			if said := check(); said != "" {
				t.Fatalf("nothing has happened: %s", said)
			}
			s.put(t, c.file, c.value)
			said, want := check(), c.want
			if strings.Contains(want, "%s") {
				want = fmt.Sprintf(want, c.file)
			}
			if want == "" && said != "" || !strings.Contains(said, want) {
				t.Errorf("it says %q, want %q", said, want)
			}
			if again := check(); again != "" {
				t.Errorf("said twice: %s", again)
			}
		})
	}
}

// A plan and the watch know of the same files: what is written for a core is watched while it is in use.
func TestWatchCoversPlan(t *testing.T) {
	for name, overlay := range map[string]map[string]string{"v2": watchable, "v1": with(watchable, v1)} {
		s := unpack(t, "four.txtar", overlay)
		dir := memory(t)
		p, err := Make(s, dir, Request{CPUs: []int{3}, Level: Max, Cache: true, FIFO: true})
		if err != nil {
			t.Fatal(err)
		}
		mustApply(t, &Applier{System: s, Dir: dir}, Request{CPUs: []int{3}, Level: Max, Cache: true, FIFO: true})
		w, _ := watching(t, s)
		var known []string
		for n := range w.last {
			known = append(known, n)
		}
		for _, n := range w.writes.names {
			known = append(known, n)
		}
		files := 0
		for _, x := range p.Steps {
			switch base := filepath.Base(x.Setting.Name); {
			case x.Setting.Kind != File:
				continue // groups are watched by their files, threads as arrivals
			case base == "cgroup.type", base == "cgroup.subtree_control", base == "cpuset.mems":
				continue // undone, they take the partition with them, or change nothing for the core
			case x.Setting.Name == cpuDir+"/cpu3/online":
				continue // drained at the start: cpu/online has it
			}
			of := func(name string) bool { ok, err := filepath.Match(x.Setting.Name, name); return ok && err == nil } // one value may have many files
			if files++; !slices.ContainsFunc(known, of) {
				t.Errorf("%s: /%s is planned and not watched", name, x.Setting.Name)
			}
		}
		if files < 25 {
			t.Errorf("%s: only %d files are planned", name, files)
		}
	}
}

// Reading some files is an interrupt on the core: those are never read while it is in use, nor is anything written.
func TestWatchIsPassive(t *testing.T) {
	s := unpack(t, "four.txtar", with(watchable, map[string]string{"dev/cpu/3/msr@0x34": "1"}))
	r := &Recorder{System: s}
	before := snapshot(t, s.Root)
	w, err := NewWatch(r, []int{3}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		w.Check()
	}
	same(t, "watching", before, snapshot(t, s.Root))
	for name := range r.read {
		if strings.Contains(name, "msr") || strings.HasSuffix(name, eppFile) || strings.HasSuffix(name, "cur_freq") || name == "proc/cpuinfo" {
			t.Errorf("it reads %s", name)
		}
	}
	// A host that cannot tell of writes: it says what it does not see.
	if b := w.Blind(); len(b) != 1 || !strings.Contains(b[0].String(), epp3) {
		t.Errorf("what is not watched: %v", b)
	}
}

// busy is a host on which a program has leased CPU 3.
type busy struct{ *Recorder }

func (busy) InUse(cpu int) (bool, error) { return cpu == 3, nil }

// A plan for a core that somebody runs on does not interrupt him; one for his own process does what it must.
func TestPlanSparesCoreInUse(t *testing.T) {
	for pid, reads := range map[int]bool{0: false, 300: true} {
		s := busy{&Recorder{System: unpack(t, "four.txtar", watchable)}}
		p, err := Make(s, memory(t), Request{CPUs: []int{3}, PID: pid})
		if err != nil {
			t.Fatal(err)
		}
		said := slices.ContainsFunc(p.Cannot, func(r Remark) bool { return r.What == "the energy preference of CPU 3" })
		if _, read := s.read[epp3]; read != reads || said == reads {
			t.Errorf("for process %d: it is read: %v, and said that it is not: %v", pid, read, said)
		}
	}
}

// Threads that come to a core are noticed although another has been there from the start; on a core that is everybody's,
// only those that are there on purpose.
func TestWatchArrivals(t *testing.T) {
	move := func(t *testing.T, s *sim, tid int, cpus ...int) {
		t.Helper()
		if err := s.allow(tid, cpus); err != nil { // not as a thread would ask: somebody has let it in
			t.Fatal(err)
		}
	}
	t.Run("apart", func(t *testing.T) {
		s := unpack(t, "four.txtar", watchable)
		mustApply(t, &Applier{System: s, Dir: memory(t)}, Request{CPUs: []int{3}})
		move(t, s, 400, 3)
		_, check := watching(t, s)
		move(t, s, 300, 3)
		if said := check(); said != "thread 300 (daemon (odd) name) may run there: /proc/300/task/300/status was not there, is 3\n" {
			t.Errorf("it says %q", said)
		}
		move(t, s, 300, 2, 3)
		if said := check(); said != "" {
			t.Errorf("it is there already: %q", said)
		}
		move(t, s, 300, 2)
		check()
		move(t, s, 300, 0, 1, 2, 3)
		if said := check(); !strings.Contains(said, "was not there, is 0-3") {
			t.Errorf("it has come back: %q", said)
		}
	})
	t.Run("everybody's", func(t *testing.T) {
		s := unpack(t, "four.txtar", nil)
		_, check := watching(t, s)
		clone := func(tid int) {
			for _, f := range []string{"stat", "status"} {
				b, err := s.Read("proc/300/task/300/" + f)
				if err != nil {
					t.Fatal(err)
				}
				s.put(t, fmt.Sprintf("proc/%d/task/%d/%s", tid, tid, f), strings.Replace(string(b), "300", fmt.Sprint(tid), 1))
			}
		}
		clone(700)
		if said := check(); said != "" {
			t.Errorf("one of many: %q", said)
		}
		clone(701)
		move(t, s, 701, 3)
		move(t, s, 700, 3)
		said := check()
		for _, want := range []string{"thread 700 (daemon (odd) name) may run there: /proc/700/task/700/status was 2-3, is 3", "thread 701 (daemon (odd) name) may run there: /proc/701/task/701/status was not there, is 3"} {
			if !strings.Contains(said, want) {
				t.Errorf("it does not say %q: %q", want, said)
			}
		}
	})
	// A thread of the owner's process is told of at the second look, unless it has become his until then.
	for name, apart := range map[string]bool{"the owner's": true, "the owner's, everybody's": false} {
		t.Run(name, func(t *testing.T) {
			s := unpack(t, "four.txtar", watchable)
			if apart {
				mustApply(t, &Applier{System: s, Dir: memory(t)}, Request{CPUs: []int{3}})
			}
			w, check := watching(t, s)
			w.Expect(300)
			for range 2 {
				move(t, s, 300, 3)
				if said := check(); said != "" {
					t.Errorf("at the first look: %q", said)
				}
				if said := check(); strings.Count(said, "thread 300 (daemon (odd) name) may run there") != 1 {
					t.Errorf("at the second look: %q", said)
				}
				if said := check(); said != "" {
					t.Errorf("at the third look: %q", said)
				}
				move(t, s, 300, 2)
				if said := check(); said != "" {
					t.Errorf("it has left: %q", said)
				}
			}
			move(t, s, 300, 3)
			said := check()
			w.Own([]int{300})
			if said += check() + check(); said != "" {
				t.Errorf("it is his: %q", said)
			}
		})
	}
	t.Run("many", func(t *testing.T) {
		s := unpack(t, "four.txtar", watchable)
		mustApply(t, &Applier{System: s, Dir: memory(t)}, Request{CPUs: []int{3}})
		w, check := watching(t, s)
		b, err := s.Read("proc/300/task/300/stat")
		if err != nil {
			t.Fatal(err)
		}
		for tid := 800; tid < 820; tid++ {
			s.put(t, fmt.Sprintf("proc/%d/task/%d/stat", tid, tid), strings.Replace(string(b), "300", fmt.Sprint(tid), 1))
			s.put(t, fmt.Sprintf("proc/%d/task/%d/status", tid, tid), "Cpus_allowed_list:\t0-3\n")
		}
		w.Own([]int{800, 801})
		if said := check(); strings.Count(said, "\n") != named+1 || !strings.Contains(said, "13 more threads may run there") {
			t.Errorf("it says %q", said)
		}
	})
}

// What is undone is noticed once, with both values; what has nothing to do with the core is not.
func TestWatch(t *testing.T) {
	s := unpack(t, "four.txtar", map[string]string{"sys/fs/cgroup/user.slice/a/cgroup.threads": "", "sys/fs/cgroup/user.slice/a/cgroup.procs": ""})
	a := &Applier{System: s, Dir: memory(t)}
	mustApply(t, a, Request{CPUs: []int{3}})
	before := snapshot(t, s.Root)
	w, err := NewWatch(s, []int{3}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := w.Check(); d != nil {
		t.Errorf("nothing has happened: %v", d)
	}
	same(t, "watching", before, snapshot(t, s.Root))
	for name, v := range map[string]string{irq24: "0-3", "proc/irq/26/smp_affinity_list": "1", cpuDir + "/cpu3/cpufreq/scaling_governor": "powersave", part: "isolated invalid (x)", cpuDir + "/cpu2/cpufreq/scaling_governor": "x"} {
		if err := s.Live.Write(name, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.allow(300, []int{2, 3}); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(s.path("proc/irq/99"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Root, "proc/irq/99/smp_affinity_list"), []byte("0-2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	said := ""
	got := w.Check()
	for _, d := range got {
		said += d.String() + "\n"
	}
	for _, want := range []string{
		"the affinity of IRQ 24: /" + irq24 + " was 0-2, is 0-3", "the governor of CPU 3: /sys/devices/system/cpu/cpu3/cpufreq/scaling_governor was performance, is powersave",
		"the partition: /" + part + " was isolated, is isolated invalid (x)", "thread 300 (daemon (odd) name) may run there: /proc/300/task/300/status was not there, is 2-3",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("it does not say %q:\n%s", want, said)
		}
	}
	if len(got) != 4 {
		t.Errorf("%d drifts:\n%s", len(got), said)
	}
	if d := w.Check(); d != nil {
		t.Errorf("said twice: %v", d)
	}
	if err := s.Live.Write("proc/irq/99/smp_affinity_list", "3"); err != nil {
		t.Fatal(err)
	}
	if d := w.Check(); len(d) != 1 || d[0].What != "the affinity of IRQ 99" {
		t.Errorf("an interrupt that was set up later: %v", d)
	}
}
