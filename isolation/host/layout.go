package host

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/cores"
)

// Layout is which cpuset hierarchy the host has.
type Layout struct {
	V2   string // root of the version 2 hierarchy if it has the cpuset controller, from the root of the host; else ""
	V1   string // root of the version 1 cpuset hierarchy; else ""
	Note string // what stands in the way, if neither is there
}

// CPUSets finds the cpuset hierarchy from /proc/mounts (cgroups(7)): a controller is in one hierarchy only.
func CPUSets(s System) (l Layout) {
	for _, m := range mountPoints(s) {
		switch {
		case m.kind == "cgroup2" && l.V2 == "" && slices.Contains(strings.Fields(Text(s, path.Join(m.at, "cgroup.controllers"))), "cpuset"):
			l.V2 = m.at
		case m.kind == "cgroup" && l.V1 == "" && slices.Contains(strings.Split(m.options, ","), "cpuset"):
			l.V1 = m.at
		}
	}
	if l.V2 == "" && l.V1 == "" {
		l.Note = "no hierarchy of cgroups has the cpuset controller: mount one (mount -t cgroup2 none /sys/fs/cgroup), or run outside the container"
	}
	return l
}

// Partitions lists the cpusets of others that have cores to themselves, with these cores.
func (l Layout) Partitions(s System) map[string][]int {
	out := map[string][]int{}
	// A partition need not name CPUs as its cpuset's: those that are its own, exclusive, do (since Linux 6.7), and one that
	// is valid has the effective ones whatever gave it them.
	const effective = "cpuset.cpus.effective"
	root, kind, files := l.V2, "cpuset.cpus.partition", []string{"cpuset.cpus", "cpuset.cpus.exclusive", effective}
	if l.V2 == "" {
		root, kind, files = l.V1, "cpuset.cpu_exclusive", files[:1]
	}
	if root == "" {
		return out
	}
	var walk func(dir string, depth int)
	walk = func(dir string, depth int) {
		names, err := s.Names(dir)
		if err != nil || depth > 6 {
			return // it went away, or is no cgroup of ours to look at
		}
		for _, n := range names {
			sub := path.Join(dir, n)
			v := Text(s, path.Join(sub, kind))
			if v == "" {
				continue // no cgroup
			}
			if v == "1" || strings.HasPrefix(v, "root") || strings.HasPrefix(v, "isolated") {
				var cpus []int
				for _, file := range files {
					if list, err := CPUs(s, path.Join(sub, file)); err == nil && (file != effective || v == "root" || v == "isolated") {
						cpus = append(cpus, list...)
					}
				}
				if slices.Sort(cpus); len(cpus) > 0 {
					out[sub] = slices.Compact(cpus)
				}
			}
			walk(sub, depth+1)
		}
	}
	walk(root, 0)
	return out
}

// gives is what a thread's cpuset of version 2 lets it have: what the kernel makes of an affinity by itself. Nil where
// that is not known.
func (l Layout) gives(s System, tid int) []int {
	if l.V2 == "" {
		return nil
	}
	group := ""
	for line := range strings.Lines(Text(s, fmt.Sprintf("proc/%d/cgroup", tid))) {
		if v, ok := strings.CutPrefix(line, "0::"); ok {
			group = strings.TrimSpace(v)
		}
	}
	for ; strings.HasPrefix(group, "/"); group = path.Dir(group) {
		if list, err := CPUs(s, path.Join(l.V2, group, "cpuset.cpus.effective")); err == nil && len(list) > 0 {
			return list
		}
		if group == "/" {
			break
		}
	}
	return nil
}

// hazard reports whether a change of this setting makes the kernel change affinities of threads by the way.
func (l Layout) hazard(x Setting) bool {
	switch x.Kind {
	case Member:
		return true
	case File, Directory:
		return l.V2 != "" && strings.HasPrefix(x.Name, l.V2+"/") || x.cpu()
	}
	return false
}

// cpu reports whether it is a CPU's being on line.
func (x Setting) cpu() bool {
	return x.Kind == File && strings.HasPrefix(x.Name, cpuDir+"/") && path.Base(x.Name) == "online"
}

// named gives a cpuset of version 1, other than the root, that has this CPU: such a set forgets a CPU that goes
// off line (Documentation/admin-guide/cgroup-v1/cpusets.rst). Empty without one.
func (l Layout) named(s System, cpu int) string {
	if l.V1 == "" {
		return ""
	}
	names, err := s.Names(l.V1)
	if err != nil {
		return ""
	}
	for _, n := range names {
		if list, err := CPUs(s, path.Join(l.V1, n, "cpuset.cpus")); err == nil && slices.Contains(list, cpu) {
			return path.Join(l.V1, n)
		}
	}
	return ""
}

// ours says whether a cpuset was made by us: those are in the journal, and checked there.
func ours(dir string) bool { return strings.HasPrefix(path.Base(dir), groupPrefix) }

const groupPrefix = "cloister-"

// group is the name of the cpuset of these cores.
func group(cpus []int) string {
	return groupPrefix + "cpus-" + strings.ReplaceAll(cores.Format(cpus), ",", "_")
}

// Request is what somebody wants of the host.
type Request struct {
	Owner   string // unique on the machine; "" makes one of the cores
	PID     int    // the process that the claim is for: when it has ended the claim may be taken over; 0: until Restore
	CPUs    []int  // to be made quiet
	Level   Level
	FIFO    bool  // a SCHED_FIFO thread that never sleeps will run there: real-time throttling would stop it
	Cache   bool  // give the cores ways of the last-level cache of their own (resctrl)
	Threads []int // of the owner, that belong on the cores: threads of process PID
	Outlive bool  // the claim outlives the process
}

// Level is how much of the machine may be changed for the sake of a core.
type Level string

// The levels.
const (
	RunTime Level = "run-time" // what costs the other cores little
	Max     Level = "max"      // also what they will notice: SMT siblings, huge pages, throttling, clocks
)

// ParseLevel reads a level.
func ParseLevel(text string) (Level, error) {
	switch l := Level(text); l {
	case RunTime, Max:
		return l, nil
	}
	return "", fmt.Errorf("level %q: choose %s or %s", text, RunTime, Max)
}

// check says in one line why these cores cannot be had.
func (r *Request) check(s System, l Layout) (online []int, err error) {
	if len(r.CPUs) == 0 {
		return nil, fmt.Errorf("which CPUs? name at least one")
	}
	present, err := CPUs(s, "sys/devices/system/cpu/present")
	if err != nil {
		return nil, fmt.Errorf("read the host's CPUs: %w", err)
	}
	if online, err = CPUs(s, "sys/devices/system/cpu/online"); err != nil {
		return nil, fmt.Errorf("read the host's CPUs: %w", err)
	}
	if err := cores.Exist(present, r.CPUs...); err != nil {
		return nil, err
	}
	for _, c := range r.CPUs {
		if !slices.Contains(online, c) {
			return nil, fmt.Errorf("CPU %d is offline: echo 1 >/sys/devices/system/cpu/cpu%d/online, or choose one of %s", c, c, cores.Format(online))
		}
	}
	if len(minus(online, r.CPUs)) == 0 {
		if len(r.CPUs) == 1 {
			return nil, fmt.Errorf("CPU %d is the only one: a dedicated core needs a second one for the rest of the system", r.CPUs[0])
		}
		return nil, fmt.Errorf("CPUs %s are all there are: leave at least one to the rest of the system", cores.Format(r.CPUs))
	}
	for dir, cpus := range l.Partitions(s) {
		if !ours(dir) && meets(r.CPUs, cpus) {
			return nil, fmt.Errorf("CPUs %s belong to the cpuset /%s: choose others, or remove it", cores.Format(cpus), dir)
		}
	}
	return online, nil
}
