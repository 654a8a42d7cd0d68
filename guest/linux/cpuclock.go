package linux

import (
	"time"

	"golang.org/x/sys/unix"
)

// A CPU clock is that of a thread or of the process. Its number is negative: ~number<<3, cpuThread, and what it counts
// (include/linux/posix-timers_types.h); number 0 is the caller. Timers keep the number in it resolved.
const (
	cpuThread = 4
	cpuKind   = 3 // mask: 0 all time, 1 time in the program, 2 all time, exactly; 3 is no CPU clock
	cpuVirt   = 1
	cpuSched  = 2
)

// fixed says of a clock that nothing can be made to happen at a time on it: one that is only read, one that wakes a machine
// with an alarm clock, which the guest has not, and one that is a device (CLOCKFD).
func fixed(clock int32) bool {
	switch clock {
	case unix.CLOCK_MONOTONIC_RAW, unix.CLOCK_REALTIME_COARSE, unix.CLOCK_MONOTONIC_COARSE, unix.CLOCK_REALTIME_ALARM, unix.CLOCK_BOOTTIME_ALARM:
		return true
	}
	const device = 3
	return clock < 0 && clock&(cpuThread|cpuKind) == device
}

func cpuClockID(number int, flags int32) int32 { return ^int32(number)<<3 | flags }

// cpuClock resolves the number of a CPU clock for caller t (kernel/time/posix-cpu-timers.c: pid_for_clock). To read the
// process's clock any of the caller's own numbers does.
func (k *Kernel) cpuClock(t *Task, id int32, read bool) (int32, unix.Errno) {
	switch id {
	case unix.CLOCK_PROCESS_CPUTIME_ID:
		return cpuClockID(k.cfg.PID, cpuSched), 0
	case unix.CLOCK_THREAD_CPUTIME_ID:
		return cpuClockID(t.ID, cpuThread|cpuSched), 0
	}
	if id >= 0 || id&cpuKind == cpuKind {
		return 0, unix.EINVAL
	}
	number := int(^(id >> 3))
	if id&cpuThread != 0 {
		if number == 0 {
			number = t.ID
		}
		if k.inProc(number) == nil {
			return 0, unix.EINVAL
		}
		return cpuClockID(number, id&(cpuThread|cpuKind)), 0
	}
	if number != 0 && number != k.cfg.PID && !(read && number == t.ID) {
		return 0, unix.EINVAL
	}
	return cpuClockID(k.cfg.PID, id&cpuKind), 0
}

// cpuNow reads a CPU clock with a resolved number. That of a thread that is gone stands at its beginning.
func (k *Kernel) cpuNow(id int32) time.Duration {
	t := k.cpuTask(id)
	if t == nil && id&cpuThread != 0 {
		return 0
	}
	cpu, program := k.cpuTime(t)
	if id&cpuKind == cpuVirt {
		return program
	}
	return cpu
}

// cpuTask is the thread that a clock is of; nil for the process's clock, and for that of a thread that is gone.
func (k *Kernel) cpuTask(id int32) *Task {
	if id&cpuThread == 0 {
		return nil
	}
	return k.inProc(int(^(id >> 3)))
}

// cpuTime is how long t has been on a CPU, and in its program; with a nil t, all threads together.
func (k *Kernel) cpuTime(t *Task) (cpu, program time.Duration) {
	switch {
	case t != nil && t.ended:
		return t.used, t.ran
	case k.cfg.CPUTime != nil:
		return k.cfg.CPUTime(t)
	}
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts) != nil { // it is always there
		return 0, 0
	}
	return time.Duration(ts.Nano()), time.Duration(ts.Nano())
}

// cpuSleep waits until a CPU clock has reached want, nanoseconds: relative, or on the clock. It is clock_nanosleep's.
func (k *Kernel) cpuSleep(t *Task, id int32, want time.Duration, absolute bool, rem uint64) unix.Errno {
	// Of the caller's own the clock stands still in a sleep. By a number that is another thread's it does not.
	if n := int(^(id >> 3)); id < 0 && id&cpuThread != 0 && (n == 0 || n == t.ID) {
		return unix.EINVAL
	}
	clock, errno := k.cpuClock(t, id, false)
	if errno != 0 {
		return errno
	}
	if !absolute {
		if !t.hasEntered { // as until: a call that is made again keeps the end of its first try
			t.hasEntered, t.deadline = true, time.Unix(0, int64(k.cpuNow(clock)+want))
		}
		want = time.Duration(t.deadline.UnixNano())
	}
	for {
		left := want - k.cpuNow(clock)
		if left <= 0 {
			return 0
		}
		errno := k.sleep(time.Now().Add(min(max(left/time.Duration(max(1, len(k.tasks))), cpuTick), idleTick)))
		if errno == 0 {
			continue
		}
		if errno == eRestart && !absolute && rem != 0 {
			now := unix.NsecToTimespec(int64(max(0, want-k.cpuNow(clock))))
			if fault := put(k, rem, &now); fault != 0 {
				return fault
			}
		}
		return errno
	}
}
