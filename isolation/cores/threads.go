package cores

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Allowed is where the process may run.
func Allowed() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("sched_getaffinity: %w", err)
	}
	return members(&set), nil
}

// usable tries whether a thread of this process may be put on cpu. Tests look when it is asked.
var usable = pinned

func pinned(cpu int) bool {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var old, set unix.CPUSet
	set.Set(cpu)
	if unix.SchedGetaffinity(0, &old) != nil || unix.SchedSetaffinity(0, &set) != nil {
		return false
	}
	return unix.SchedSetaffinity(0, &old) == nil
}

func members(set *unix.CPUSet) (list []int) {
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			list = append(list, i)
		}
	}
	return list
}

// Without gives list without cpu.
func Without(list []int, cpu int) []int {
	return slices.DeleteFunc(slices.Clone(list), func(c int) bool { return c == cpu })
}

// Threads lists the thread ids of a process.
func Threads(pid int) ([]int, error) {
	d, err := os.Open(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil, fmt.Errorf("list threads: %w", err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list threads of %d: %w", pid, err)
	}
	var list []int
	for _, n := range names {
		if tid, err := strconv.Atoi(n); err == nil {
			list = append(list, tid)
		}
	}
	slices.Sort(list)
	return list, nil
}

// Astray lists the threads of a process, but those in except, whose affinity is not keep.
func Astray(pid int, keep []int, except ...int) (list []int, err error) {
	want := setOf(keep)
	tids, err := Threads(pid)
	if err != nil {
		return nil, err
	}
	for _, tid := range tids {
		if slices.Contains(except, tid) {
			continue
		}
		var have unix.CPUSet
		err := unix.SchedGetaffinity(tid, &have)
		if errors.Is(err, unix.ESRCH) || err == nil && have == want {
			continue // it has ended, or is where it should be
		}
		if err != nil {
			return nil, fmt.Errorf("the affinity of thread %d: %w", tid, err)
		}
		list = append(list, tid)
	}
	return list, nil
}

// MayRunOn reports whether a thread's affinity has any of these CPUs. One that has ended may run nowhere.
func MayRunOn(tid int, cpus []int) bool {
	var have unix.CPUSet
	return unix.SchedGetaffinity(tid, &have) == nil && slices.ContainsFunc(cpus, have.IsSet)
}

func setOf(cpus []int) (s unix.CPUSet) {
	for _, c := range cpus {
		s.Set(c)
	}
	return s
}

// Put gives a thread the affinity cpus. It reports false when the thread has ended.
func Put(tid int, cpus []int) (bool, error) {
	s := setOf(cpus)
	err := unix.SchedSetaffinity(tid, &s)
	if errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("keep thread %d on CPUs %s: %w", tid, Format(cpus), err)
	}
	return true, nil
}

// KeepOff gives every thread of a process, but those in except, the affinity keep. It repeats until a pass
// finds nothing to change: a thread that was made meanwhile by one not yet moved is found by the next
// pass, and those made later inherit. It returns how many it moved.
func KeepOff(pid int, keep []int, except ...int) (moved int, err error) {
	for range 100 {
		changed := 0
		tids, err := Astray(pid, keep, except...)
		if err != nil {
			return moved, err
		}
		for _, tid := range tids {
			ok, err := Put(tid, keep)
			if err != nil {
				return moved, err
			}
			if ok {
				changed++
			}
		}
		moved += changed
		if changed == 0 {
			return moved, nil
		}
	}
	return moved, fmt.Errorf("keep process %d on CPUs %s: it makes threads faster than they can be moved", pid, Format(keep))
}
