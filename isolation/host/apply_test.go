package host

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	wq      = "sys/devices/virtual/workqueue/cpumask"
	irq24   = "proc/irq/24/smp_affinity_list"
	part    = "sys/fs/cgroup/cloister-cpus-3/cpuset.cpus.partition"
	tunable = "proc/sys/vm/stat_interval"
)

// v1 makes a tree one with a version 1 cpuset hierarchy; hybrid with both mounted.
var (
	v1 = map[string]string{
		"proc/mounts":                      "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpuset cgroup rw,relatime,cpuset 0 0",
		"-sys/fs/cgroup":                   "",
		"sys/fs/cgroup/cpuset/cpuset.cpus": "0-3", "sys/fs/cgroup/cpuset/cpuset.mems": "0", "sys/fs/cgroup/cpuset/cpuset.cpu_exclusive": "1",
		"sys/fs/cgroup/cpuset/cpuset.sched_load_balance": "1",
	}
	hybrid = with(v1, map[string]string{
		"proc/mounts": v1["proc/mounts"] + "\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0", "sys/fs/cgroup/unified/cgroup.controllers": "hugetlb",
	})
	none = map[string]string{"proc/mounts": "proc /proc proc rw 0 0", "-sys/fs/cgroup": ""}
)

func with(a, b map[string]string) map[string]string {
	out := map[string]string{}
	for _, m := range []map[string]string{a, b} {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}

func mustApply(t *testing.T, a *Applier, r Request) *Result {
	t.Helper()
	res, err := a.Apply(r)
	if err != nil {
		t.Fatalf("apply %v: %v", r.CPUs, err)
	}
	return res
}

func mustRestore(t *testing.T, a *Applier, cpus ...int) []*Result {
	t.Helper()
	res, err := a.Restore(cpus)
	if err != nil {
		t.Fatalf("restore %v: %v", cpus, err)
	}
	return res
}

// Everything that Apply writes, Restore writes back, byte for byte, on each kind of host and at each level.
func TestApplyAndRestore(t *testing.T) {
	for name, overlay := range map[string]map[string]string{
		"v2": nil, "v1": v1, "hybrid": hybrid, "no cpuset": none,
		"v1 elsewhere": {"proc/mounts": "cpuset /dev/cpuset cgroup rw,cpuset 0 0", "-sys/fs/cgroup": "", "dev/cpuset/cpuset.cpus": "0-3", "dev/cpuset/cpuset.mems": "0", "dev/cpuset/cpuset.sched_load_balance": "1"},
		"smt":          {cpuDir + "/cpu3/topology/thread_siblings_list": "1,3", cpuDir + "/cpu1/topology/thread_siblings_list": "1,3"},
	} {
		for _, level := range []Level{RunTime, Max} {
			t.Run(name+" "+string(level), func(t *testing.T) {
				s := unpack(t, "four.txtar", overlay)
				before := snapshot(t, s.Root)
				a := &Applier{System: s, Dir: memory(t)}
				p, err := Make(s, a.Dir, Request{CPUs: []int{3}, Level: level, Cache: true})
				if err != nil {
					t.Fatal(err)
				}
				same(t, "a plan", before, snapshot(t, s.Root))
				res := mustApply(t, a, Request{CPUs: []int{3}, Level: level, Cache: true})
				if res.Changed < 20 || len(res.Refused) > 0 || res.Changed > len(p.Steps) {
					t.Errorf("%d of %d steps, refused %v", res.Changed, len(p.Steps), res.Refused)
				}
				for file, want := range map[string]string{irq24: "0-2", "proc/irq/25/smp_affinity_list": "0-2", "proc/irq/0/smp_affinity_list": "0", wq: "7",
					"proc/irq/default_smp_affinity": "7", "proc/sys/kernel/watchdog_cpumask": "0-2", "proc/irq/27/smp_affinity_list": "0-3", tunable: "120",
					"sys/fs/resctrl/schemata": "MB:0=100\n    L3:0=03f", "sys/fs/resctrl/cloister-cpus-3/schemata": "MB:0=100\n    L3:0=fc0"} {
					if name == "smt" && level == Max {
						break // CPU 1 is off line then
					}
					if got := Text(s, file); got != want {
						t.Errorf("%s is %q, want %q", file, got, want)
					}
				}
				if name == "smt" && level == Max && Text(s, cpuDir+"/cpu1/online") != "0" {
					t.Error("the sibling is on line")
				}
				tasks, err := Tasks(s)
				if err != nil {
					t.Fatal(err)
				}
				for _, k := range tasks {
					if !k.Bound && slices.Contains(k.Allowed, 3) {
						t.Errorf("%s may run on %v", k.Name, k.Allowed)
					}
				}
				switch name {
				case "v2":
					if got := Text(s, part); got != "isolated" {
						t.Errorf("partition %q", got)
					}
				case "v1", "hybrid":
					if Text(s, "sys/fs/cgroup/cpuset/cpuset.sched_load_balance") != "0" || Text(s, "sys/fs/cgroup/cpuset/cloister-rest/cpuset.cpus") != "0-2" {
						t.Error("the scheduler still balances over the core")
					}
				}
				mustRestore(t, a, 3)
				same(t, "restored", before, snapshot(t, s.Root))
				if again := mustRestore(t, a); again != nil {
					t.Errorf("a second restore found %v", again)
				}
				if _, err := os.Stat(filepath.Join(a.Dir, journalFile)); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the journal is left: %v", err)
				}
			})
		}
	}
}

// The same on machines that were recorded, as they were and in variants.
func TestRecordedMachines(t *testing.T) {
	smt := map[string]string{cpuDir + "/cpu3/topology/thread_siblings_list": "1,3", cpuDir + "/cpu1/topology/thread_siblings_list": "1,3", cpuDir + "/cpu1/online": "1"}
	for name, c := range map[string]struct {
		archive string
		overlay map[string]string
		cpu     int
		cannot  string
	}{
		"nested, v1": {"nested.txtar", nil, 1, "the scheduler's tick"},
		"nested, v2": {"nested.txtar", map[string]string{"proc/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0", "sys/fs/cgroup/cgroup.controllers": "cpuset cpu", "sys/fs/cgroup/cgroup.subtree_control": "cpu"}, 1, "the scheduler's tick"},
		"plain":      {"plain.txtar", nil, 3, "RCU callbacks"},
		"smt":        {"plain.txtar", smt, 3, "RCU callbacks"},
		"nohz_full":  {"plain.txtar", map[string]string{cpuDir + "/nohz_full": "3", cpuDir + "/isolated": "3"}, 3, "kernel threads of the cores' own"},
		"booted so":  {"nohz.txtar", nil, 2, "kernel threads of the cores' own"},
		"no cpuset":  {"plain.txtar", map[string]string{"proc/mounts": ""}, 3, "a cpuset of the cores' own"},
	} {
		for _, level := range []Level{RunTime, Max} {
			s := unpack(t, c.archive, c.overlay)
			before := snapshot(t, s.Root)
			a := &Applier{System: s, Dir: memory(t)}
			res := mustApply(t, a, Request{CPUs: []int{c.cpu}, Level: level})
			said := false
			for _, x := range res.Cannot {
				said = said || strings.Contains(x.What, c.cannot)
			}
			if !said || res.Changed < 15 || (name == "nohz_full" || name == "booted so") && slices.ContainsFunc(res.Cannot, func(x Remark) bool { return strings.Contains(x.What, "tick") }) {
				t.Errorf("%s: %d changed, refused %v, cannot %v", name, res.Changed, res.Refused, res.Cannot)
			}
			if name == "smt" && level == Max && Text(s, cpuDir+"/cpu1/online") != "0" {
				t.Errorf("%s: the sibling is on line", name)
			}
			mustRestore(t, a)
			same(t, name+" "+string(level), before, snapshot(t, s.Root))
		}
	}
}

// Two owners of different cores come and go in either order; of one core, the second is refused.
func TestOwnersCompose(t *testing.T) {
	for _, overlay := range []map[string]string{nil, v1} {
		for _, first := range []int{2, 3} {
			s := unpack(t, "four.txtar", overlay)
			before := snapshot(t, s.Root)
			a := &Applier{System: s, Dir: memory(t)}
			mustApply(t, a, Request{CPUs: []int{2}})
			mustApply(t, a, Request{CPUs: []int{3}})
			if got := Text(s, wq); got != "3" {
				t.Errorf("workqueues on %s, want 3", got)
			}
			if got := Text(s, "proc/irq/25/smp_affinity_list"); got != "0-1" {
				t.Errorf("an interrupt that was on CPU 3 alone is on %s: CPU 2 is somebody's", got)
			}
			if _, err := a.Apply(Request{CPUs: []int{3}, Owner: "x"}); err == nil || !strings.Contains(err.Error(), "isolated for") {
				t.Errorf("the same core again: %v", err)
			}
			if _, err := a.Apply(Request{CPUs: []int{0, 1}, Owner: "x"}); err == nil || !strings.Contains(err.Error(), "leave none") {
				t.Errorf("the last cores: %v", err)
			}
			mustRestore(t, a, first)
			if got, want := Text(s, wq), map[int]string{2: "7", 3: "b"}[first]; got != want {
				t.Errorf("without CPU %d workqueues are on %s, want %s", first, got, want)
			}
			if got := Text(s, tunable); got != "120" {
				t.Errorf("the owner who is left has lost %s: %s", tunable, got)
			}
			mustRestore(t, a)
			same(t, "both restored", before, snapshot(t, s.Root))
		}
	}
}

// What somebody else has changed since is left alone and said.
func TestForeignChange(t *testing.T) {
	s := unpack(t, "four.txtar", nil)
	before := snapshot(t, s.Root)
	a := &Applier{System: s, Dir: memory(t)}
	mustApply(t, a, Request{CPUs: []int{3}})
	for name, v := range map[string]string{irq24: "1", tunable: "7"} {
		if err := s.Live.Write(name, v); err != nil {
			t.Fatal(err)
		}
		before[name] = v + "\n"
	}
	res := mustRestore(t, a, 3)
	var said bytes.Buffer
	if err := res[0].WriteText(&said, "restored"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"/" + irq24 + ": it was 0-3, we made it 0-2, and somebody has made it 1 since", tunable} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, said.String())
		}
	}
	same(t, "restored", before, snapshot(t, s.Root))
}

// Who leaves first says it, and so does who leaves last: it is neither's to overwrite.
func TestForeignChangeOfTwoOwners(t *testing.T) {
	s := unpack(t, "four.txtar", nil)
	before := snapshot(t, s.Root)
	a := &Applier{System: s, Dir: memory(t)}
	mustApply(t, a, Request{CPUs: []int{2}})
	mustApply(t, a, Request{CPUs: []int{3}})
	if err := s.Live.Write(tunable, "7"); err != nil {
		t.Fatal(err)
	}
	before[tunable] = "7\n"
	for _, c := range []int{2, 3} {
		if res := mustRestore(t, a, c); len(res[0].Foreign) != 1 || res[0].Foreign[0].What != "/"+tunable {
			t.Errorf("CPU %d: left alone %v", c, res[0].Foreign)
		}
	}
	same(t, "restored", before, snapshot(t, s.Root))
}

// A value that was put back by hand, a thread that ended, one whose number is another's now: nothing to do, nothing
// done, no complaint.
func TestRestoreOfWhatIsGone(t *testing.T) {
	s := unpack(t, "four.txtar", none)
	a := &Applier{System: s, Dir: memory(t)}
	mustApply(t, a, Request{CPUs: []int{3}})
	if err := s.Live.Write(irq24, "0-3"); err != nil {
		t.Fatal(err)
	}
	stat := Text(s, "proc/300/task/300/stat")
	if err := s.Live.Write("proc/300/task/300/stat", strings.Replace(stat, " 50 ", " 5000 ", 1)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(s.path("proc/40")); err != nil {
		t.Fatal(err)
	}
	res := mustRestore(t, a)
	if res[0].Gone != 2 || len(res[0].Foreign) != 0 {
		t.Errorf("gone %d, foreign %v", res[0].Gone, res[0].Foreign)
	}
	if got := Text(s, "proc/300/task/300/status"); !strings.HasSuffix(got, "\t2") {
		t.Errorf("another thread of the same number was touched: %q", got)
	}
}

// A refusal is reported, with --strict it undoes everything. So does a value that does not stick.
func TestRefused(t *testing.T) {
	lie := map[string]string{part + "=isolated": "isolated invalid (Cpu list in cpuset.cpus not exclusive)"}
	for _, strict := range []bool{false, true} {
		s := unpack(t, "four.txtar", map[string]string{"sys/kernel/irq/26/chip_name": "PCI-MSI"})
		s.errno = map[string]error{"proc/irq/26/smp_affinity_list": unix.EIO}
		s.lies = lie
		before := snapshot(t, s.Root)
		a := &Applier{System: s, Dir: memory(t), Strict: strict}
		res, err := a.Apply(Request{CPUs: []int{3}})
		if strict {
			if err == nil || !strings.Contains(err.Error(), "irq/26") || !strings.Contains(err.Error(), "managed_irq") || strings.Contains(err.Error(), "\n") {
				t.Errorf("strict: %v", err)
			}
			same(t, "undone", before, snapshot(t, s.Root))
			continue
		}
		if err != nil || len(res.Refused) != 2 || !strings.Contains(res.Refused[1].Why, "not exclusive") {
			t.Fatalf("%v, %+v", err, res)
		}
		mustRestore(t, a)
		same(t, "restored", before, snapshot(t, s.Root))
	}
}

// Bad input: one clear line, nothing changed, no journal left.
func TestBadInput(t *testing.T) {
	const rt = "sys/fs/cgroup/rt/"
	mine := map[string]string{rt + "cpuset.cpus": "3", rt + "cpuset.cpus.partition": "root"}
	for _, c := range []struct {
		name    string
		overlay map[string]string
		cpus    []int
		spoil   func(*sim)
		want    string
	}{
		{"none", nil, nil, nil, "which CPUs"},
		{"absent", nil, []int{9}, nil, "CPU 9 does not exist: this machine has 0-3"},
		{"offline", map[string]string{cpuDir + "/online": "0-2"}, []int{3}, nil, "CPU 3 is offline"},
		{"all", nil, []int{0, 1, 2, 3}, nil, "leave at least one"},
		{"a partition", mine, []int{3}, nil, "belong to the cpuset /sys/fs/cgroup/rt"},
		{"a remote partition", map[string]string{rt + "cpuset.cpus": "", rt + "cpuset.cpus.exclusive": "3", rt + "cpuset.cpus.partition": "isolated"}, []int{3}, nil, "CPUs 3 belong to the cpuset /sys/fs/cgroup/rt"},
		{"a valid partition", map[string]string{rt + "cpuset.cpus": "", rt + "cpuset.cpus.effective": "2-3", rt + "cpuset.cpus.partition": "root"}, []int{3}, nil, "CPUs 2-3 belong to the cpuset /sys/fs/cgroup/rt"},
		{"an exclusive cpuset", with(v1, map[string]string{"sys/fs/cgroup/cpuset/rt/cpuset.cpus": "3", "sys/fs/cgroup/cpuset/rt/cpuset.cpu_exclusive": "1"}), []int{3}, nil, "belong to the cpuset /sys/fs/cgroup/cpuset/rt"},
		{"read-only", none, []int{3}, func(s *sim) { s.readOnly = []string{"proc/", "sys/"} }, "nothing was changed"},
		{"no boot id", map[string]string{"-" + bootID: ""}, []int{3}, nil, "boot_id"},
		{"no sysfs", map[string]string{"-sys/devices": ""}, []int{3}, nil, "read the host's CPUs"},
	} {
		s := unpack(t, "four.txtar", c.overlay)
		if c.spoil != nil {
			c.spoil(s)
		}
		if c.name == "read-only" {
			for _, pid := range []string{"1", "2", "40", "300", "400", "401"} {
				if err := os.RemoveAll(s.path("proc/" + pid)); err != nil {
					t.Fatal(err)
				}
			}
		}
		before := snapshot(t, s.Root)
		a := &Applier{System: s, Dir: memory(t)}
		_, err := a.Apply(Request{CPUs: c.cpus})
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q in one line", c.name, err, c.want)
		}
		same(t, c.name, before, snapshot(t, s.Root))
		if claims, err := a.Claims(); err != nil && c.name != "no boot id" || len(claims) > 0 {
			t.Errorf("%s: left %v (%v)", c.name, claims, err)
		}
	}
}

// Half a cpuset of version 1 would leave the whole machine without balancing, half a partition throw its thread out. (Without
// any rights to cgroups nothing is changed: TestNothingWithoutRights.)
func TestHalfACPUSet(t *testing.T) {
	for name, c := range map[string]struct {
		overlay map[string]string
		refuse  string
		keep    string
		value   string
	}{
		"v1": {v1, "sys/fs/cgroup/cpuset/cloister-rest/cpuset.mems", "sys/fs/cgroup/cpuset/cpuset.sched_load_balance", "1"},
		"v2": {nil, "sys/fs/cgroup/cloister-cpus-3/cpuset.cpus", part, "member"},
	} {
		s := unpack(t, "four.txtar", c.overlay)
		s.errno = map[string]error{c.refuse: unix.EACCES}
		before := snapshot(t, s.Root)
		a := &Applier{System: s, Dir: memory(t)}
		res := mustApply(t, a, Request{CPUs: []int{3}})
		if got := Text(s, c.keep); got != c.value || len(res.Refused) != 2 || !strings.Contains(res.Refused[1].Why, "left out") {
			t.Errorf("%s: %s is %q, refused %v", name, c.keep, got, res.Refused)
		}
		mustRestore(t, a)
		same(t, name, before, snapshot(t, s.Root))
	}
}

// The owner's threads go into the partition, and are left on the core.
func TestOwnersThreads(t *testing.T) {
	s := unpack(t, "four.txtar", map[string]string{"proc/400/task/402/stat": strings.Replace(fourOwner, "400 (", "402 (", 1), "proc/400/task/402/status": "Cpus_allowed_list:\t3",
		"proc/402/task/402/stat": strings.Replace(fourOwner, "400 (", "402 (", 1), "proc/402/task/402/status": "Cpus_allowed_list:\t3", "proc/402/cgroup": "0::/user.slice/a", "sys/fs/cgroup/user.slice/a/cgroup.threads": "", "sys/fs/cgroup/user.slice/a/cgroup.procs": ""})
	before := snapshot(t, s.Root)
	a := &Applier{System: s, Dir: memory(t)}
	mustApply(t, a, Request{CPUs: []int{3}, PID: 400, Threads: []int{402}, Owner: "VM a"})
	if got := Text(s, "proc/402/cgroup"); got != "0::/cloister-cpus-3" {
		t.Errorf("the thread is in %q", got)
	}
	if got := Text(s, "proc/402/task/402/status"); !strings.HasSuffix(got, "\t3") {
		t.Errorf("the thread may run on %q", got)
	}
	claims, err := a.Claims()
	if err != nil || len(claims) != 1 || claims[0].PID != 400 || a.Dead(claims[0]) {
		t.Errorf("%+v (%v)", claims, err)
	}
	mustRestore(t, a)
	same(t, "restored", before, snapshot(t, s.Root))
}

const fourOwner = "400 (vcpu owner) S 1 1 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0 0 70 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0"

// A plan is data: JSON that says what text says.
func TestPlanForms(t *testing.T) {
	s := unpack(t, "four.txtar", nil)
	p, err := Make(s, filepath.Join(t.TempDir(), "none"), Request{CPUs: []int{3, 3}})
	if err != nil {
		t.Fatal(err)
	}
	var text, js bytes.Buffer
	if err := errors.Join(p.WriteText(&text, false), p.Encode(&js)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CPUs 3 quiet, 0-2 for the rest", "/" + irq24 + ": 0-3 -> 0-2", "interrupts of ahci", "affinity of 6 threads", "stays: the scheduler's tick", "stays: calls to balance the load of others", "ksoftirqd/3 migration/3"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in:\n%s", want, text.String())
		}
	}
	var back Plan
	if err := json.Unmarshal(js.Bytes(), &back); err != nil || back.Schema != PlanSchema || len(back.Steps) != len(p.Steps) {
		t.Errorf("%v: %d steps, want %d", err, len(back.Steps), len(p.Steps))
	}
}

// Several cores are one partition, which is found by them in any order, and only while it is isolated.
func TestPartitionOfSeveral(t *testing.T) {
	s := unpack(t, "four.txtar", nil)
	a := &Applier{System: s, Dir: memory(t)}
	if got := Partition(s, []int{2, 3}); got != "" {
		t.Errorf("before there is one: %q", got)
	}
	mustApply(t, a, Request{CPUs: []int{2, 3}})
	const dir = "/sys/fs/cgroup/cloister-cpus-2-3"
	if got := Partition(s, []int{3, 2, 3}); got != dir || Text(s, dir[1:]+"/cpuset.cpus") != "2-3" {
		t.Errorf("%q, want %q", got, dir)
	}
	if err := s.Live.Write(dir[1:]+"/cpuset.cpus.partition", "isolated invalid (x)"); err != nil {
		t.Fatal(err)
	}
	if got := Partition(s, []int{2, 3}); got != "" {
		t.Errorf("the kernel does not like it: %q", got)
	}
	mustRestore(t, a)
	v := unpack(t, "four.txtar", v1)
	mustApply(t, &Applier{System: v, Dir: memory(t)}, Request{CPUs: []int{2, 3}})
	if got := Partition(v, []int{2, 3}); got != "" {
		t.Errorf("version 1 keeps no thread out: %q", got)
	}
}

// Prepared is what a user has made quiet: not what is left of a process that has ended, nor what another user has.
func TestPrepared(t *testing.T) {
	s := unpack(t, "four.txtar", nil)
	a := &Applier{System: s, Dir: memory(t)}
	want := func(mine, all []int) {
		t.Helper()
		m, l, err := a.Prepared()
		if err != nil || !slices.Equal(m, mine) || !slices.Equal(l, all) {
			t.Errorf("%v of %v (%v), want %v of %v", m, l, err, mine, all)
		}
	}
	want(nil, nil)
	mustApply(t, a, Request{CPUs: []int{3}})
	mustApply(t, a, Request{CPUs: []int{2}, Owner: "VM x", PID: 300})
	want([]int{2, 3}, []int{2, 3})
	if err := os.RemoveAll(s.path("proc/300")); err != nil {
		t.Fatal(err)
	}
	want([]int{3}, []int{2, 3})
	mustRestore(t, a, 3)
	want(nil, []int{2})
	if err := os.Chown(filepath.Join(a.Dir, journalFile), 12345, -1); err == nil { // root may
		mustRestore(t, a)
		mustApply(t, a, Request{CPUs: []int{3}})
		if err := os.Chown(filepath.Join(a.Dir, journalFile), 12345, -1); err != nil {
			t.Fatal(err)
		}
		want(nil, []int{3})
	}
}
