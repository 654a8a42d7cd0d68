package linux

import (
	"time"

	"golang.org/x/sys/unix"
)

// Futex operations (include/uapi/linux/futex.h).
const (
	futexWait, futexWake, futexRequeue, futexCmpRequeue, futexWakeOp = 0, 1, 3, 4, 5
	futexWaitBitset, futexWakeBitset                                 = 9, 10
	futexPrivate, futexRealtime                                      = 128, 256
)

// sysFutex serves a process of one thread: nobody waits when it wakes, and nobody wakes it when it
// waits, so a wait ends by its value, its timeout or Interrupt.
func sysFutex(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	op := uint32(a[1])
	cmd := op &^ (futexPrivate | futexRealtime)
	if op&futexRealtime != 0 && cmd != futexWait && cmd != futexWaitBitset {
		return 0, unix.ENOSYS
	}
	switch cmd {
	case futexWait, futexWaitBitset:
		deadline, errno := k.futexDeadline(t, a[3], cmd == futexWaitBitset, op&futexRealtime != 0)
		if errno != 0 {
			return 0, errno
		}
		if cmd == futexWaitBitset && uint32(a[5]) == 0 {
			return 0, unix.EINVAL
		}
		return 0, k.futexSleep(a[0], uint32(a[2]), deadline)
	case futexWake, futexWakeBitset:
		if cmd == futexWakeBitset && uint32(a[5]) == 0 {
			return 0, unix.EINVAL
		}
		return 0, k.futexWord(a[0], op&futexPrivate == 0)
	case futexRequeue, futexCmpRequeue:
		if int32(a[2]) < 0 || int32(a[3]) < 0 {
			return 0, unix.EINVAL
		}
		for _, addr := range [2]uint64{a[0], a[4]} {
			if errno := k.futexWord(addr, true); errno != 0 {
				return 0, errno
			}
		}
		if cmd == futexCmpRequeue {
			if v, errno := k.load32(a[0]); errno != 0 {
				return 0, errno
			} else if v != uint32(a[5]) {
				return 0, unix.EAGAIN
			}
		}
		return 0, 0
	}
	k.warn("futex: priority inheritance and wake-op need threads, which are not served yet: answered ENOSYS")
	return 0, unix.ENOSYS
}

// futexWord checks a futex address: aligned, below the end of user memory and, unless the key is
// the address alone (private), there.
func (k *Kernel) futexWord(addr uint64, touch bool) unix.Errno {
	if addr&3 != 0 {
		return unix.EINVAL
	}
	if !accessOK(addr, 4) {
		return unix.EFAULT
	}
	if touch {
		_, errno := k.load32(addr)
		return errno
	}
	return 0
}

func (k *Kernel) futexDeadline(t *Task, addr uint64, absolute, realtime bool) (time.Time, unix.Errno) {
	if !absolute || addr == 0 {
		return k.timeout(t, addr)
	}
	var ts unix.Timespec
	if errno := get(k, addr, &ts); errno != 0 {
		return time.Time{}, errno
	}
	if !timespecOK(&ts) {
		return time.Time{}, unix.EINVAL
	}
	clock := int32(unix.CLOCK_MONOTONIC)
	if realtime {
		clock = unix.CLOCK_REALTIME
	}
	now, errno := k.clock(clock)
	if errno != 0 {
		return time.Time{}, errno
	}
	return t.until(span(&ts) - span(&now)), 0
}

func (k *Kernel) futexSleep(addr uint64, want uint32, deadline time.Time) unix.Errno {
	if errno := k.futexWord(addr, false); errno != 0 {
		return errno
	}
	v, errno := k.load32(addr)
	if errno != 0 {
		return errno
	}
	if v != want {
		return unix.EAGAIN
	}
	if deadline.IsZero() {
		k.warn("futex: the only thread waits for another one: it waits until it is stopped")
	}
	if errno := k.sleep(deadline); errno != 0 {
		return errno
	}
	return unix.ETIMEDOUT
}
