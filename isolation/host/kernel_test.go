package host

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/cores"
	"golang.org/x/sys/unix"
)

// touched are the files of a machine that an isolation may touch; those that are not there are passed over.
var touched = []string{
	"proc/irq/default_smp_affinity", "proc/irq/*/smp_affinity_list", "sys/devices/virtual/workqueue/cpumask", "sys/devices/virtual/workqueue/*/cpumask",
	"proc/sys/kernel/watchdog_cpumask", "proc/sys/kernel/nmi_watchdog", "proc/sys/kernel/timer_migration", "proc/sys/kernel/sched_rt_runtime_us", "proc/sys/kernel/numa_balancing",
	"proc/sys/vm/stat_interval", "proc/sys/vm/compaction_proactiveness", "proc/sys/vm/compact_unevictable_allowed",
	"sys/kernel/mm/transparent_hugepage/enabled", "sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", "sys/kernel/mm/ksm/run", "sys/kernel/mm/lru_gen/enabled",
	"sys/devices/system/machinecheck/machinecheck*/ignore_ce", "sys/devices/system/cpu/online", "sys/devices/system/cpu/cpu*/online", "sys/devices/system/cpu/cpu*/power/pm_qos_resume_latency_us",
	"sys/devices/system/cpu/cpu*/cpufreq/scaling_governor", "sys/kernel/debug/sched/fair_server/cpu*/runtime",
	"sys/fs/cgroup/cgroup.subtree_control", "sys/fs/cgroup/cpuset.cpus.effective", "sys/fs/cgroup/*/cpuset.cpus*",
}

// machine is what those files hold, and where each thread may run that can be told where, but this process's own.
func machine(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, pattern := range touched {
		names, err := filepath.Glob(realRoot + pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if b, err := os.ReadFile(name); err == nil { // some are there and cannot be read: neither can we have read them
				out[name] = string(b)
			}
		}
	}
	tasks, err := Tasks(Live{realRoot})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range tasks {
		if !k.Bound && k.PID != os.Getpid() {
			out["thread "+threadName(k)] = cores.Format(k.Allowed)
		}
	}
	return out
}

// sameMachine fails the test with what differs. Threads come and go by themselves; files do not.
func sameMachine(t *testing.T, what string, before, now map[string]string) {
	t.Helper()
	thread := func(name string) bool { return strings.HasPrefix(name, "thread ") }
	for name, v := range before {
		if w, there := now[name]; w != v && (there || !thread(name)) {
			t.Errorf("%s: %s was %q, is %q (there: %v)", what, name, v, w, there)
		}
	}
	for name := range now {
		if _, there := before[name]; !there && !thread(name) {
			t.Errorf("%s: %s is new", what, name)
		}
	}
}

// asked starts a process that has asked for these CPUs, as the kernel would move it by the way, and forget.
func asked(t *testing.T, cpus ...int) int {
	t.Helper()
	c := exec.Command("sleep", "100000")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Process.Kill(); err != nil {
			t.Error(err)
		}
		if err := c.Wait(); err == nil {
			t.Error("a killed process ended well")
		}
	})
	if err := (Live{realRoot}).SetAffinity(c.Process.Pid, cpus); err != nil {
		t.Fatal(err)
	}
	return c.Process.Pid
}

// kill -9 between any two writes, on a real kernel: restore leaves no difference in any file, nor in where any thread may run.
// At the level run-time Apply is killed at every point there is (after each record, and after each write), and Restore at every
// seventh; at the level max, whose steps are the same and twenty more, at every seventh. TestCrashAtEveryStep has every point
// of both, on a simulated machine.
func TestKilledOnKernel(t *testing.T) {
	testenv.Need(t, testenv.LabMachine, testenv.Root, testenv.Cgroup2, testenv.CPUs(4))
	asked(t, 0, 2)
	asked(t, 3)
	before := machine(t)
	a := &Applier{System: Live{realRoot}, Dir: t.TempDir()}
	journal := filepath.Join(a.Dir, journalFile)
	give := func(what string) {
		res, err := a.Restore(nil)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		for _, r := range res {
			if len(r.Foreign)+len(r.Refused) > 0 {
				t.Errorf("%s: refused %v, foreign %v", what, r.Refused, r.Foreign)
			}
		}
		sameMachine(t, what, before, machine(t))
		// One whose maker was killed before it claimed anything says nothing, and the next one goes on with it.
		if b, err := os.ReadFile(journal); err == nil && bytes.Count(b, []byte("\n")) > 1 || err != nil && !os.IsNotExist(err) {
			t.Errorf("%s: a journal is left (%v): %s", what, err, b)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	other := func(do string, level Level, at int) bool {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), crashRoot+"="+realRoot, crashDir+"="+a.Dir, fmt.Sprintf("%s=%d", crashAt, at), crashDo+"="+do, crashLevel+"="+string(level))
		out, err := c.CombinedOutput()
		if s, ok := c.ProcessState.Sys().(interface{ Signal() unix.Signal }); err != nil && (!ok || s.Signal() != unix.SIGKILL) {
			t.Fatalf("%s, killed at %d: %v\n%s", do, at, err, out)
		}
		return err != nil
	}
	for _, x := range []struct {
		do    string
		level Level
		step  int
	}{{"apply", RunTime, 1}, {"restore", RunTime, 7}, {"apply", Max, 7}} {
		if testing.Short() {
			x.step *= 9
		}
		began, points, moments := time.Now(), 0, map[string]bool{}
		for at := 1; ; at += x.step {
			if x.do == "restore" {
				mustApply(t, a, Request{CPUs: []int{3}, Level: x.level})
			}
			killed := other(x.do, x.level, at)
			points++
			if b, err := os.ReadFile(journal); err == nil {
				moments[fmt.Sprint(len(b))] = true
			} else if !os.IsNotExist(err) {
				t.Fatal(err)
			}
			give(fmt.Sprintf("%s --level %s killed at point %d", x.do, x.level, at))
			if !killed {
				break
			}
		}
		t.Logf("%s --level %s: killed at %d points, with %d different journals, in %v", x.do, x.level, points-1, len(moments), time.Since(began).Round(time.Second))
		if want := 10 / x.step; points < want+2 || len(moments) < 2 {
			t.Errorf("only %d points and %d different journals", points, len(moments))
		}
	}
}
