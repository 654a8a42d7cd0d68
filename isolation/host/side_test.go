package host

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// kernels are those that forget what a thread has asked for when a cpuset changes, and that do not.
var kernels = map[string]bool{"6.1": false, "6.2": true}

// beside makes more of four.txtar: CPU 1 is the sibling of 3, and has an interrupt and a thread of its own; thread 41 has asked
// for two CPUs that nobody wants, 42 for one that is wanted and one that is not, 43 is in the root's cgroup.
func beside() map[string]string {
	out := map[string]string{
		cpuDir + "/cpu3/topology/thread_siblings_list": "1,3", cpuDir + "/cpu1/topology/thread_siblings_list": "1,3",
		"proc/irq/28/smp_affinity_list": "1", "proc/irq/28/effective_affinity_list": "1", "proc/irq/28/eth0-tx/.dir": "",
	}
	for tid, where := range map[int][2]string{39: {"1", "system.slice"}, 41: {"0-1", "system.slice"}, 42: {"1-2", "system.slice"}, 43: {"0,2", ""}, 44: {"2-3", ""}} {
		task := fmt.Sprintf("proc/%d/task/%d", tid, tid)
		out[task+"/stat"] = strings.Replace(fourOwner, "400 (vcpu owner)", fmt.Sprintf("%d (worker)", tid), 1)
		out[task+"/status"] = "Name:\tworker\nCpus_allowed_list:\t" + where[0]
		out[fmt.Sprintf("proc/%d/cgroup", tid)] = "0::/" + where[1]
	}
	return out
}

func allowed(s *sim, tid int) string {
	_, list, _ := strings.Cut(Text(s, fmt.Sprintf("proc/%d/task/%d/status", tid, tid)), "Cpus_allowed_list:\t")
	return list
}

// What the kernel changes by the way, when CPUs go off line and cpusets change, is put back too; and while a core is isolated
// it is what it has to be.
func TestSideEffects(t *testing.T) {
	for kernel, remembers := range kernels {
		for name, layout := range map[string]map[string]string{"v2": nil, "v1": v1, "none": none} {
			for _, level := range []Level{RunTime, Max} {
				what := kernel + " " + name + " " + string(level)
				s := unpack(t, "four.txtar", with(layout, beside()))
				if remembers {
					if err := s.remember(); err != nil {
						t.Fatal(err)
					}
				}
				before := snapshot(t, s.Root)
				a := &Applier{System: s, Dir: memory(t)}
				res := mustApply(t, a, Request{CPUs: []int{3}, Level: level})
				if len(res.Refused) > 0 {
					t.Errorf("%s: refused %v", what, res.Refused)
				}
				want := map[int]string{41: "0-1", 42: "1-2", 43: "0,2", 44: "2", 39: "1"}
				irq := "1"
				if level == Max {
					want, irq = map[int]string{41: "0", 42: "2", 43: "0,2", 44: "2", 39: "0,2"}, "0,2"
				}
				for tid, list := range want {
					if got := allowed(s, tid); got != list {
						t.Errorf("%s: thread %d may run on %s, want %s", what, tid, got, list)
					}
				}
				if got := Text(s, "proc/irq/28/smp_affinity_list"); got != irq {
					t.Errorf("%s: the sibling's interrupt goes to %s, want %s", what, got, irq)
				}
				if got := Text(s, "proc/irq/25/smp_affinity_list"); strings.Contains(got, "3") {
					t.Errorf("%s: the core's interrupt goes to %s", what, got)
				}
				mustRestore(t, a)
				same(t, what, before, snapshot(t, s.Root))
			}
		}
	}
}

// Two owners, in either order of leaving: what a thread has asked for comes back when both have left, and in between it is
// kept off the core of who is there.
func TestSideEffectsOfTwoOwners(t *testing.T) {
	for kernel, remembers := range kernels {
		for _, first := range []int{2, 3} {
			s := unpack(t, "four.txtar", beside())
			if remembers {
				if err := s.remember(); err != nil {
					t.Fatal(err)
				}
			}
			before := snapshot(t, s.Root)
			a := &Applier{System: s, Dir: memory(t)}
			mustApply(t, a, Request{CPUs: []int{2}})
			mustApply(t, a, Request{CPUs: []int{3}})
			for tid, list := range map[int]string{39: "1", 41: "0-1", 42: "1", 43: "0", 44: "0-1", 300: "0-1", 401: "0-1"} {
				if got := allowed(s, tid); got != list {
					t.Errorf("%s: both are there: thread %d may run on %s, want %s", kernel, tid, got, list)
				}
			}
			mustRestore(t, a, first)
			want := map[int]map[int]string{2: {42: "1-2", 43: "0,2", 44: "2", 401: "0-2"}, 3: {42: "1", 43: "0", 44: "3", 401: "3"}}[first]
			for tid, list := range want {
				if got := allowed(s, tid); got != list {
					t.Errorf("%s: without CPU %d: thread %d may run on %s, want %s", kernel, first, tid, got, list)
				}
			}
			mustRestore(t, a)
			same(t, kernel, before, snapshot(t, s.Root))
		}
	}
}

// An affinity that somebody sets while the core is isolated is his: it is said where it was ours, and stays.
func TestAffinitySetMeanwhile(t *testing.T) {
	for kernel, remembers := range kernels {
		s := unpack(t, "four.txtar", beside())
		if remembers {
			if err := s.remember(); err != nil {
				t.Fatal(err)
			}
		}
		before := snapshot(t, s.Root)
		a := &Applier{System: s, Dir: memory(t)}
		mustApply(t, a, Request{CPUs: []int{3}})
		for tid, list := range map[int][]int{42: {0}, 300: {1}, 400: {1}} {
			if err := s.SetAffinity(tid, list); err != nil {
				t.Fatal(err)
			}
			name := fmt.Sprintf("proc/%d/task/%d/status", tid, tid)
			before[name] = snapshot(t, s.Root)[name]
		}
		res := mustRestore(t, a)
		var who []string
		for _, x := range res[0].Foreign {
			who = append(who, x.What)
		}
		slices.Sort(who)
		if want := []string{"affinity of thread 300", "affinity of thread 42"}; !slices.Equal(who, want) {
			t.Errorf("%s: left alone %v, want %v: 400 was never changed by us", kernel, who, want)
		}
		same(t, kernel, before, snapshot(t, s.Root))
	}
}

// What is on a core alone and cannot be moved keeps it on line; an interrupt that the kernel manages does not.
func TestDrainOnlyWhatComesBack(t *testing.T) {
	const irq26 = "proc/irq/26/smp_affinity_list"
	for name, c := range map[string]struct {
		overlay map[string]string
		errno   error
		drained bool
	}{
		"moved":           {map[string]string{irq26: "3"}, nil, true},
		"refused":         {map[string]string{irq26: "3"}, unix.EIO, false},
		"managed":         {map[string]string{irq26: "3", "sys/kernel/debug/irq/irqs/26": "dstate: 0x1\n IRQD_AFFINITY_MANAGED"}, unix.EIO, true},
		"of a PCI device": {map[string]string{irq26: "3", "sys/kernel/irq/26/chip_name": "PCI-MSIX-0000:00:03.0"}, unix.EIO, true},
		"fixed":           {map[string]string{irq26: "3", "sys/kernel/irq/26/chip_name": "PCI-MSI", irq26 + modeOf: "444"}, unix.EPERM, true},
		"another fixed":   {map[string]string{irq26: "3", "sys/kernel/irq/26/chip_name": "PCI-MSI", irq26 + modeOf: "644", "proc/irq/24/smp_affinity_list" + modeOf: "444"}, unix.EIO, false},
		"not managed":     {map[string]string{irq26: "3", "sys/kernel/irq/26/chip_name": "PCI-MSI", "sys/kernel/debug/irq/irqs/26": "IRQD_NO_BALANCING"}, unix.EIO, false},
		"back again":      {map[string]string{irq26: "3", "sys/kernel/irq/26/chip_name": "PCI-MSI"}, nil, false},
		"not the only":    {map[string]string{irq26: "2-3"}, unix.EIO, true},
		"nobody's":        {map[string]string{irq26: "3", "-proc/irq/26/nvme0q4": "", "proc/irq/26/effective_affinity_list": ""}, unix.EIO, true},
		"a v1 cpuset's":   {with(v1, map[string]string{"sys/fs/cgroup/cpuset/a/cpuset.cpus": "3", "sys/fs/cgroup/cpuset/a/cpuset.cpu_exclusive": "0"}), nil, false},
	} {
		s := unpack(t, "four.txtar", c.overlay)
		s.errno = map[string]error{}
		if c.errno != nil {
			s.errno[irq26] = c.errno
		}
		before := snapshot(t, s.Root)
		if name == "back again" {
			s.hook = func(file string) {
				if file == tunable {
					if err := s.Live.Write(irq26, "3"); err != nil {
						t.Error(err)
					}
				}
			}
		}
		a := &Applier{System: s, Dir: memory(t)}
		drained := false
		a.point = func(where string) error {
			drained = drained || where == "write "+cpuDir+"/cpu3/online"
			return nil
		}
		res := mustApply(t, a, Request{CPUs: []int{3}, Level: Max})
		if drained != c.drained {
			t.Errorf("%s: drained %v, want %v; refused %v", name, drained, c.drained, res.Refused)
		}
		if name == "refused" && !slices.ContainsFunc(res.Refused, func(x Remark) bool {
			return strings.Contains(x.String(), "cpu3/online: it is left on line: IRQ 26 (nvme0q4) goes to no other CPU")
		}) {
			t.Errorf("%s: it does not say why: %v", name, res.Refused)
		}
		mustRestore(t, a)
		same(t, name, before, snapshot(t, s.Root))
	}
}

// An interrupt that was taken for managed and was not: what it was is said.
func TestPushedAfterAll(t *testing.T) {
	const irq26 = "proc/irq/26/smp_affinity_list"
	s := unpack(t, "four.txtar", map[string]string{irq26: "3", "sys/kernel/irq/26/chip_name": "PCI-MSI"})
	s.errno, s.pushes = map[string]error{irq26: unix.EIO}, true
	a := &Applier{System: s, Dir: memory(t)}
	res := mustApply(t, a, Request{CPUs: []int{3}, Level: Max})
	if !slices.ContainsFunc(res.Refused, func(x Remark) bool {
		return strings.Contains(x.String(), "/"+irq26+": its CPU went off line, and the kernel, which refuses to move it back, has made it 0-2; it was 3")
	}) {
		t.Errorf("it is not said: %v", res.Refused)
	}
}

// A CPU that does not come back is no refusal to be borne.
func TestCPUDoesNotComeBack(t *testing.T) {
	s := unpack(t, "four.txtar", nil)
	before := snapshot(t, s.Root)
	online := cpuDir + "/cpu3/online"
	s.lies = map[string]string{online + "=1": "0"}
	a := &Applier{System: s, Dir: memory(t)}
	_, err := a.Apply(Request{CPUs: []int{3}, Level: Max})
	if err == nil || strings.Count(err.Error(), "\n") > 0 || !strings.Contains(err.Error(), "cpu3/online: it was set to 1 and reads 0") || !strings.Contains(err.Error(), "not undone") {
		t.Errorf("%v", err)
	}
	s.lies = nil
	mustRestore(t, a)
	same(t, "restored when it came", before, snapshot(t, s.Root))
}

// A sibling that is off line for a core is not to be had, and it is said for whom.
func TestSiblingOfAnOwner(t *testing.T) {
	s := unpack(t, "four.txtar", beside())
	a := &Applier{System: s, Dir: memory(t)}
	mustApply(t, a, Request{CPUs: []int{3}, Level: Max})
	if _, err := a.Apply(Request{CPUs: []int{1}}); err == nil || !strings.Contains(err.Error(), "CPUs 1 are off line for cloister host apply, CPUs 3, as siblings") {
		t.Errorf("%v", err)
	}
}

// elsewhere is a host on which a program has leased CPU 1.
type elsewhere struct{ *sim }

func (elsewhere) InUse(cpu int) (bool, error) { return cpu == 1, nil }

// A sibling on which a program runs stays on line, with the program's threads, and the plan says so.
func TestSiblingInUse(t *testing.T) {
	s := unpack(t, "four.txtar", beside())
	before := allowed(s, 39) // pinned to CPU 1
	a := &Applier{System: elsewhere{s}, Dir: memory(t)}
	p, err := Make(a.System, a.Dir, Request{CPUs: []int{3}, Level: Max})
	if err != nil || len(p.Siblings()) != 0 {
		t.Fatalf("siblings %v, %v", p.Siblings(), err)
	}
	res, err := a.Apply(Request{CPUs: []int{3}, Level: Max})
	if err != nil {
		t.Fatal(err)
	}
	if now := allowed(s, 39); now != before || Text(s, cpuDir+"/cpu1/online") != "1" {
		t.Errorf("thread 39 may run on %s, was %s; cpu1/online is %s", now, before, Text(s, cpuDir+"/cpu1/online"))
	}
	if !slices.ContainsFunc(res.Cannot, func(r Remark) bool {
		return r.What == "the sibling CPU 1 of CPU 3" && strings.Contains(r.Why, "leased")
	}) {
		t.Errorf("it does not say why: %v", res.Cannot)
	}
	if free, err := Make(s, memory(t), Request{CPUs: []int{3}, Level: Max}); err != nil || !slices.Equal(free.Siblings(), []int{1}) {
		t.Errorf("nobody's: %v, %v", free.Siblings(), err)
	}
}
