package host

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/cores"
)

// Flags of a task, include/linux/sched.h; /proc/PID/stat shows them as its ninth field (proc_pid_stat(5)).
const (
	flagKthread   = 0x00200000 // PF_KTHREAD
	flagNoSetAffy = 0x04000000 // PF_NO_SETAFFINITY: bound by the kernel for good
)

// Task is a thread of the host.
type Task struct {
	PID, TID int
	Name     string
	Start    uint64 // in clock ticks since boot; with TID it names the thread for good
	Kernel   bool   // a kernel thread
	Bound    bool   // its affinity cannot be changed
	CPU      int    // where it ran last
	Allowed  []int  // where it may run
}

// Tasks lists the threads of the host. Those that end while it reads are left out.
func Tasks(s System) ([]Task, error) {
	pids, err := s.Names("proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var list []Task
	for _, p := range pids {
		pid, err := strconv.Atoi(p)
		if err != nil {
			continue
		}
		tids, err := s.Names(path.Join("proc", p, "task"))
		if err != nil {
			continue // it has ended
		}
		for _, t := range tids {
			tid, err := strconv.Atoi(t)
			if err != nil {
				continue
			}
			if k, ok := task(s, pid, tid); ok {
				list = append(list, k)
			}
		}
	}
	slices.SortFunc(list, func(a, b Task) int { return a.TID - b.TID })
	return list, nil
}

func task(s System, pid, tid int) (t Task, ok bool) {
	dir := fmt.Sprintf("proc/%d/task/%d", pid, tid)
	b, err := s.Read(dir + "/stat")
	if err != nil {
		return t, false
	}
	t, ok = parseStat(string(b))
	if !ok || t.TID != tid {
		return t, false
	}
	t.PID = pid
	b, err = s.Read(dir + "/status")
	if err != nil {
		return t, false
	}
	for line := range strings.Lines(string(b)) {
		if v, found := strings.CutPrefix(line, "Cpus_allowed_list:"); found {
			t.Allowed, err = cores.ParseList(v)
			return t, err == nil
		}
	}
	return t, false
}

// parseStat reads what we need of /proc/PID/stat. The name, in parentheses, may itself hold any byte.
func parseStat(s string) (t Task, ok bool) {
	open, end := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
	if open < 1 || end < open {
		return t, false
	}
	tid, err := strconv.Atoi(strings.TrimSpace(s[:open]))
	f := strings.Fields(s[end+1:]) // f[0] is field 3
	if err != nil || len(f) < 37 {
		return t, false
	}
	flags, err1 := strconv.ParseUint(f[9-3], 10, 64)
	start, err2 := strconv.ParseUint(f[22-3], 10, 64)
	cpu, err3 := strconv.Atoi(f[39-3])
	if err1 != nil || err2 != nil || err3 != nil {
		return t, false
	}
	return Task{TID: tid, Name: s[open+1 : end], Start: start, Kernel: flags&flagKthread != 0, Bound: flags&flagNoSetAffy != 0, CPU: cpu}, true
}

// threadName names a thread for good: its number may be used again, its start cannot.
func threadName(t Task) string { return fmt.Sprintf("%d@%d", t.TID, t.Start) }

// findThread finds what threadName named; false when it has ended.
func findThread(s System, name string) (t Task, ok bool) {
	id, start, found := strings.Cut(name, "@")
	tid, err := strconv.Atoi(id)
	if !found || err != nil {
		return t, false
	}
	t, ok = task(s, tid, tid) // /proc/TID/task/TID is there for every thread, hidden or not
	if !ok || strconv.FormatUint(t.Start, 10) != start {
		return t, false
	}
	return t, true
}
