package linux

import (
	"time"

	"golang.org/x/sys/unix"
)

func sysGetitimer(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if uint32(a[0]) > unix.ITIMER_PROF {
		return 0, unix.EINVAL
	}
	now := k.timers.itimerNow(k, uint32(a[0]))
	return 0, put(k, a[1], &now)
}

// itimerNow is struct itimerval: the interval and what is left, which is never 0 for an armed timer.
func (s *timers) itimerNow(k *Kernel, which uint32) [2]unix.Timeval {
	c := &s.itimer[which]
	left := int64(0)
	if c.armed() { // not one that waits for its signal to be taken
		left = max(c.left(k), int64(time.Microsecond))
	}
	return [2]unix.Timeval{unix.NsecToTimeval(c.interval), unix.NsecToTimeval(left)}
}

func sysSetitimer(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	var set [2]unix.Timeval
	if a[1] != 0 {
		if errno := get(k, a[1], &set); errno != 0 {
			return 0, errno
		}
	}
	for _, tv := range set {
		if tv.Sec < 0 || uint64(tv.Usec) >= 1e6 {
			return 0, unix.EINVAL
		}
	}
	if uint32(a[0]) > unix.ITIMER_PROF {
		return 0, unix.EINVAL
	}
	old := k.timers.itimerNow(k, uint32(a[0]))
	if errno := k.timers.setItimer(k, uint32(a[0]), timevalNs(set[1]), timevalNs(set[0])); errno != 0 {
		return 0, errno
	}
	if a[2] != 0 {
		return 0, put(k, a[2], &old)
	}
	return 0, 0
}

// timevalNs and timespecNs are valid times in nanoseconds; longer ones than 292 years are that long.
func timevalNs(tv unix.Timeval) int64 {
	return int64(span(&unix.Timespec{Sec: tv.Sec, Nsec: tv.Usec * 1000}))
}

func timespecNs(ts unix.Timespec) int64 { return int64(span(&ts)) }

func (s *timers) setItimer(k *Kernel, which uint32, value, interval int64) unix.Errno {
	c := &s.itimer[which]
	c.clock = [...]int32{unix.ITIMER_REAL: unix.CLOCK_MONOTONIC, unix.ITIMER_VIRTUAL: cpuClockID(k.cfg.PID, cpuVirt), unix.ITIMER_PROF: cpuClockID(k.cfg.PID, 0)}[which]
	if value == 0 {
		interval = 0
	}
	c.set(k, value, interval, false)
	if value == 0 {
		return 0
	}
	return s.rearm(k)
}

func sysAlarm(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	old := k.timers.itimerNow(k, unix.ITIMER_REAL)[1]
	if errno := k.timers.setItimer(k, unix.ITIMER_REAL, int64(uint32(a[0]))*int64(time.Second), 0); errno != 0 {
		k.warn("alarm: no descriptor is left for its timer: it will not ring: raise the limit of open files (ulimit -n)")
	}
	// alarm(2) cannot fail; it rounds to seconds, but never an armed timer to none (kernel/time/itimer.c).
	seconds := uint64(old.Sec)
	if old.Sec == 0 && old.Usec != 0 || old.Usec >= 500000 {
		seconds++
	}
	return seconds, 0
}

// sigevent is struct sigevent (include/uapi/asm-generic/siginfo.h).
type sigevent struct {
	value         uint64
	signo, notify int32
	tid           int32
	_             [11]int32
}

func sysTimerCreate(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	s := &k.timers
	ev := sigevent{signo: int32(unix.SIGALRM)}
	if a[1] != 0 {
		if errno := get(k, a[1], &ev); errno != 0 {
			return 0, errno
		}
	}
	clock := int32(a[0])
	switch clock {
	case unix.CLOCK_REALTIME, unix.CLOCK_MONOTONIC, unix.CLOCK_BOOTTIME, unix.CLOCK_TAI:
	default:
		if fixed(clock) {
			return 0, unix.EOPNOTSUPP
		}
		var errno unix.Errno
		if clock, errno = k.cpuClock(t, clock, false); errno != 0 {
			return 0, errno
		}
	}
	if uint64(len(s.posix)) >= min(maxTimers, k.lim.r[unix.RLIMIT_SIGPENDING].Cur) {
		return 0, unix.EAGAIN
	}
	n := &timer{alarmClock: alarmClock{clock: clock}, id: s.next, notify: ev.notify, sig: uint64(uint32(ev.signo)), value: ev.value, tid: int(ev.tid)}
	if a[1] == 0 {
		n.value = uint64(uint32(n.id))
	}
	switch ev.notify {
	case sigevNone:
	case sigevSignal, sigevThread, sigevThreadID:
		if n.sig < 1 || n.sig > maxSignal || ev.notify == sigevThreadID && (ev.tid == 0 || k.task(uint64(uint32(ev.tid))) == nil) {
			return 0, unix.EINVAL
		}
	default:
		return 0, unix.EINVAL
	}
	if errno := k.store32(a[2], uint32(n.id)); errno != 0 {
		return 0, errno
	}
	if s.posix == nil {
		s.posix = map[int32]*timer{}
	}
	s.posix[n.id] = n
	for s.posix[s.next] != nil {
		s.next = (s.next + 1) & (1<<31 - 1)
	}
	return 0, 0
}

func (k *Kernel) timer(id uint64) (*timer, unix.Errno) {
	if t := k.timers.posix[int32(id)]; t != nil {
		return t, 0
	}
	return nil, unix.EINVAL
}

// gone says that t counts the CPU time of a thread that has ended.
func (t *timer) gone(k *Kernel) bool {
	return t.clock < 0 && t.clock&cpuThread != 0 && k.cpuTask(t.clock) == nil
}

func (t *timer) spec(k *Kernel) [2]unix.Timespec {
	if t.gone(k) {
		return [2]unix.Timespec{}
	}
	return [2]unix.Timespec{unix.NsecToTimespec(t.interval), unix.NsecToTimespec(t.left(k))}
}

func sysTimerSettime(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	const absolute = 1 // TIMER_ABSTIME
	var set [2]unix.Timespec
	if a[2] == 0 {
		return 0, unix.EINVAL
	}
	if errno := get(k, a[2], &set); errno != 0 {
		return 0, errno
	}
	if !timespecOK(&set[0]) || !timespecOK(&set[1]) {
		return 0, unix.EINVAL
	}
	t, errno := k.timer(a[0])
	if errno != 0 {
		return 0, errno
	}
	if t.gone(k) {
		return 0, unix.ESRCH
	}
	old := t.spec(k)
	k.unqueueTimer(t)
	t.overrun = 0
	t.set(k, timespecNs(set[1]), timespecNs(set[0]), a[1]&absolute != 0)
	if t.expiry != 0 && t.notify != sigevNone {
		if errno := k.timers.rearm(k); errno != 0 {
			t.expiry = 0
			return 0, errno
		}
	}
	if a[3] != 0 {
		return 0, put(k, a[3], &old)
	}
	return 0, 0
}

// unqueueTimer drops the signal that t has sent and nobody has taken.
func (k *Kernel) unqueueTimer(t *timer) {
	queues := []*sigQueue{&k.sig.shared}
	for _, task := range k.tasks {
		queues = append(queues, &task.pending)
	}
	for _, q := range queues {
		if q.drop(t) {
			k.sig.queued--
		}
	}
	k.levelSignalFDs()
}

func sysTimerGettime(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	t, errno := k.timer(a[0])
	if errno != 0 {
		return 0, errno
	}
	now := t.spec(k)
	return 0, put(k, a[1], &now)
}

func sysTimerGetoverrun(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	t, errno := k.timer(a[0])
	if errno != 0 {
		return 0, errno
	}
	return uint64(t.overrun), 0
}

func sysTimerDelete(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	t, errno := k.timer(a[0])
	if errno != 0 {
		return 0, errno
	}
	k.unqueueTimer(t)
	delete(k.timers.posix, t.id)
	return 0, 0
}
