package linux

import (
	"time"

	"golang.org/x/sys/unix"
)

// clock reads a clock of the guest for the current task. Wall clocks are the host's; what the CPU clocks count is
// Config.CPUTime.
func (k *Kernel) clock(id int32) (unix.Timespec, unix.Errno) {
	var ts unix.Timespec
	switch id {
	case unix.CLOCK_REALTIME, unix.CLOCK_MONOTONIC, unix.CLOCK_MONOTONIC_RAW, unix.CLOCK_REALTIME_COARSE,
		unix.CLOCK_MONOTONIC_COARSE, unix.CLOCK_BOOTTIME, unix.CLOCK_TAI,
		unix.CLOCK_REALTIME_ALARM, unix.CLOCK_BOOTTIME_ALARM:
		err := unix.ClockGettime(id, &ts)
		return ts, errnoOf(err)
	}
	id, errno := k.cpuClock(k.cur, id, true)
	if errno != 0 {
		return ts, errno
	}
	return unix.NsecToTimespec(int64(k.cpuNow(id))), 0
}

func sysClockGettime(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	ts, errno := k.clock(int32(a[0]))
	if errno != 0 {
		return 0, errno
	}
	return 0, put(k, a[1], &ts)
}

func sysClockGetres(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	id := int32(a[0])
	if _, errno := k.clock(id); errno != 0 {
		return 0, errno
	}
	var ts unix.Timespec
	if id < 0 {
		id = cpuClockID(0, id&cpuKind) // the engine's own of that kind
	}
	if err := unix.ClockGetres(id, &ts); err != nil {
		return 0, errnoOf(err)
	}
	if a[1] == 0 {
		return 0, 0
	}
	return 0, put(k, a[1], &ts)
}

func sysGettimeofday(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if a[0] != 0 {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_REALTIME, &ts); err != nil {
			return 0, errnoOf(err)
		}
		tv := unix.Timeval{Sec: ts.Sec, Usec: ts.Nsec / 1000}
		if errno := put(k, a[0], &tv); errno != 0 {
			return 0, errno
		}
	}
	if a[1] != 0 {
		return 0, k.store64(a[1], 0) // struct timezone: the kernel's is zero unless someone set it
	}
	return 0, 0
}

func sysTime(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	now := uint64(time.Now().Unix())
	if a[0] != 0 {
		if errno := k.store64(a[0], now); errno != 0 {
			return 0, errno
		}
	}
	return now, 0
}

func sysNanosleep(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	var ts unix.Timespec
	if errno := get(k, a[0], &ts); errno != 0 {
		return 0, errno
	}
	if !timespecOK(&ts) {
		return 0, unix.EINVAL
	}
	return 0, k.nap(t.until(span(&ts)), a[1])
}

// nap sleeps until deadline and, when it is cut, leaves the rest of a relative sleep at rem.
func (k *Kernel) nap(deadline time.Time, rem uint64) unix.Errno {
	errno := k.sleep(deadline)
	if errno == eRestart && rem != 0 {
		left := unix.NsecToTimespec(max(0, int64(time.Until(deadline))))
		if fault := put(k, rem, &left); fault != 0 {
			return fault
		}
	}
	return errno
}

func sysClockNanosleep(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	id := int32(a[0])
	switch id {
	case unix.CLOCK_REALTIME, unix.CLOCK_MONOTONIC, unix.CLOCK_BOOTTIME, unix.CLOCK_TAI:
	case unix.CLOCK_PROCESS_CPUTIME_ID:
	default:
		if fixed(id) || id == unix.CLOCK_THREAD_CPUTIME_ID {
			return 0, unix.EOPNOTSUPP
		}
		if id >= 0 || id&cpuKind == cpuKind {
			return 0, unix.EINVAL
		}
	}
	var ts unix.Timespec
	if errno := get(k, a[2], &ts); errno != 0 {
		return 0, errno
	}
	if !timespecOK(&ts) {
		return 0, unix.EINVAL
	}
	const absolute = 1 // TIMER_ABSTIME
	if id < 0 || id == unix.CLOCK_PROCESS_CPUTIME_ID {
		return 0, k.cpuSleep(t, id, span(&ts), a[1]&absolute != 0, a[3])
	}
	if a[1]&absolute == 0 {
		return 0, k.nap(t.until(span(&ts)), a[3])
	}
	// The clock may be set meanwhile: look at it again after each part of a long sleep.
	for {
		now, errno := k.clock(id)
		if errno != 0 {
			return 0, errno
		}
		left := span(&ts) - span(&now)
		if left <= 0 {
			return 0, 0
		}
		if id != unix.CLOCK_MONOTONIC {
			left = min(left, time.Second)
		}
		if errno := k.sleep(time.Now().Add(left)); errno != 0 {
			return 0, errno
		}
	}
}

// sysTimes counts in USER_HZ, 100 a second (include/asm-generic/param.h).
func sysTimes(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	var tms unix.Tms
	now, err := unix.Times(&tms)
	if err != nil {
		return 0, errnoOf(err)
	}
	cpu, program := k.cpuTime(nil)
	const tick = 10 * time.Millisecond
	tms = unix.Tms{Utime: int64(program / tick), Stime: int64((cpu - program) / tick)}
	if a[0] != 0 {
		if errno := put(k, a[0], &tms); errno != 0 {
			return 0, errno
		}
	}
	return uint64(now), 0
}

func sysGetrusage(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	const self, children, thread = 0, -1, 1
	var ru unix.Rusage
	switch int32(a[0]) {
	case self, thread:
		if int32(a[0]) == self {
			t = nil
		}
		cpu, program := k.cpuTime(t)
		ru.Utime, ru.Stime = unix.NsecToTimeval(int64(program)), unix.NsecToTimeval(int64(cpu-program))
		rss, _ := k.mem.Usage()
		ru.Maxrss = int64(rss / 1024)
	case children:
	default:
		return 0, unix.EINVAL
	}
	return 0, put(k, a[1], &ru)
}
