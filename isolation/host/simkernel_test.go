package host

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/cores"
	"golang.org/x/sys/unix"
)

// What a kernel does by the way when a CPU goes off line or a cpuset changes: as 6.1 does it, which forgets what a
// thread had asked for (update_tasks_cpumask and cpuset_attach of its kernel/cgroup/cpuset.c, migrate_one_irq of
// kernel/irq/cpuhotplug.c, select_fallback_rq of kernel/sched/core.c).

const simCgroup = "sys/fs/cgroup"

// cgroups2 says whether cpusets are of version 2.
func (s *sim) cgroups2() bool { return CPUSets(s).V2 == simCgroup }

func (s *sim) enabled() bool {
	return slices.Contains(strings.Fields(Text(s, simCgroup+"/cgroup.subtree_control")), "cpuset")
}

// cpusOf is what a cpuset of version 2 gives its threads; the root's without an argument.
func (s *sim) cpusOf(group string) []int {
	online, err := CPUs(s, cpuDir+"/online")
	if err != nil {
		return nil
	}
	left := online
	for dir, cpus := range (Layout{V2: simCgroup}).Partitions(s) {
		if path.Base(dir) == path.Base(group) {
			return cores.Common(cpus, online)
		}
		left = minus(left, cpus)
	}
	if list, err := CPUs(s, path.Join(simCgroup, group, "cpuset.cpus")); err == nil && len(list) > 0 && group != "/" {
		return cores.Common(list, left)
	}
	return left
}

func (s *sim) groupOf(t Task) string {
	return strings.TrimPrefix(Text(s, "proc/"+strconv.Itoa(t.TID)+"/cgroup"), "0::")
}

// reset gives the threads for which it holds the CPUs of their cpuset.
func (s *sim) reset(which func(Task) bool) error {
	if !s.cgroups2() {
		return nil
	}
	var err error
	if name := simCgroup + "/cpuset.cpus.effective"; Has(s, name) {
		err = s.Live.Write(name, cores.Format(s.cpusOf("/")))
	}
	list, e := Tasks(s)
	if err = errors.Join(err, e); err != nil {
		return err
	}
	for _, t := range list {
		if t.Bound || !which(t) {
			continue
		}
		cpus := s.cpusOf(s.groupOf(t))
		if asked := cores.Common(s.asked[t.TID], cpus); len(asked) > 0 {
			cpus = asked
		}
		err = errors.Join(err, s.allow(t.TID, cpus))
	}
	return err
}

// remember makes the kernel one that does not forget what threads have asked for (6.2 and later).
func (s *sim) remember() error {
	list, err := Tasks(s)
	s.asked = map[int][]int{}
	for _, t := range list {
		if !slices.Equal(t.Allowed, s.cpusOf(s.groupOf(t))) {
			s.asked[t.TID] = t.Allowed
		}
	}
	return err
}

// inChild: of a cpuset below the root. Those of the root's keep theirs when a CPU comes or goes.
func (s *sim) inChild(t Task) bool { return s.enabled() && s.groupOf(t) != "/" }

// byTheWay is what else happens when a file was written.
func (s *sim) byTheWay(name, old, value string) error {
	switch {
	case path.Base(name) == "cpuset.cpus.partition":
		return s.reset(func(Task) bool { return true })
	case name == simCgroup+"/cgroup.subtree_control" && strings.Contains(old, "cpuset") != strings.Contains(value, "cpuset"):
		return s.reset(func(t Task) bool { return s.groupOf(t) != "/" })
	case strings.HasPrefix(name, cpuDir+"/cpu") && path.Base(name) == "online" && old != value:
		return s.hotplug(strings.TrimPrefix(path.Base(path.Dir(name)), "cpu"), value == "1")
	}
	return nil
}

func (s *sim) hotplug(cpu string, up bool) error {
	c, err := strconv.Atoi(cpu)
	if err != nil {
		return err
	}
	online, err := CPUs(s, cpuDir+"/online")
	if err != nil {
		return err
	}
	online = minus(online, []int{c})
	if up {
		online = append(online, c)
		slices.Sort(online)
	}
	if err := os.WriteFile(s.path(cpuDir+"/online"), []byte(cores.Format(online)+"\n"), 0o644); err != nil {
		return err
	}
	if !up {
		err = s.push(c, online)
	}
	return errors.Join(err, s.reset(s.inChild))
}

// push moves what was on a CPU alone.
func (s *sim) push(c int, online []int) error {
	names, err := s.Names("proc/irq")
	if err != nil {
		return err
	}
	for _, n := range names {
		name := "proc/irq/" + n + "/smp_affinity_list"
		if list, e := CPUs(s, name); e == nil && slices.Contains(list, c) && len(cores.Common(list, online)) == 0 && (!managed(s, n) || s.pushes) && IRQName(s, n) != "" {
			err = errors.Join(err, s.Live.Write(name, cores.Format(online)))
		}
	}
	list, e := Tasks(s)
	for _, t := range list {
		if !t.Bound && slices.Contains(t.Allowed, c) && len(cores.Common(t.Allowed, online)) == 0 {
			err = errors.Join(err, s.allow(t.TID, []int{0, 1, 2, 3}))
		}
	}
	return errors.Join(err, e)
}

// SetAffinity takes no CPU that the thread's cpuset does not have, nor one that is off line.
func (s *sim) SetAffinity(tid int, cpus []int) error {
	t, ok := task(s, tid, tid)
	if !ok {
		return unix.ESRCH
	}
	may, err := CPUs(s, cpuDir+"/online")
	if err != nil {
		return err
	}
	if s.cgroups2() {
		may = s.cpusOf(s.groupOf(t))
	}
	if may = cores.Common(cpus, may); len(may) == 0 {
		return unix.EINVAL
	}
	if s.asked != nil {
		s.asked[tid] = cpus
	}
	err = s.allow(tid, may)
	if s.hook != nil {
		s.hook(fmt.Sprintf("thread %d", tid))
	}
	return err
}
