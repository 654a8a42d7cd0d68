package linux

import (
	"time"

	"golang.org/x/sys/unix"
)

// restart says what becomes of a call that a handler cut (signal(7), "Interruption of system calls and library functions
// by signal handlers").
type restart uint8

const (
	restartIfAsked restart = iota // ERESTARTSYS: made again if the handler has SA_RESTART, else EINTR
	restartNever                  // ERESTARTNOHAND, ERESTART_RESTARTBLOCK or EINTR
	restartAlways                 // ERESTARTNOINTR
)

func restartClass(nr uint64, a args) restart {
	switch nr {
	case unix.SYS_PAUSE, unix.SYS_RT_SIGSUSPEND, unix.SYS_RT_SIGTIMEDWAIT,
		unix.SYS_POLL, unix.SYS_PPOLL, unix.SYS_SELECT, unix.SYS_PSELECT6,
		unix.SYS_EPOLL_WAIT, unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_PWAIT2,
		unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP:
		return restartNever
	case unix.SYS_FUTEX:
		switch uint32(a[1]) &^ (futexPrivate | futexRealtime) {
		case futexWait, futexWaitBitset:
			if a[3] != 0 { // with a timeout
				return restartNever
			}
		case futexLockPI, futexLockPI2, futexWaitRequeuePI:
			return restartAlways
		}
	}
	return restartIfAsked
}

// tempMask blocks the set at addr instead of t's own until the call returns, if addr is not nil (kernel/signal.c:
// set_user_sigmask). A handler that cuts the call runs with it, and its frame holds the mask from before.
func (k *Kernel) tempMask(t *Task, addr, size uint64) unix.Errno {
	if addr == 0 {
		return 0
	}
	if size != 8 {
		return unix.EINVAL
	}
	set, errno := k.load64(addr)
	if errno != 0 {
		return errno
	}
	t.savedMask, t.restoreMask = t.mask, true
	k.setMask(t, set)
	return 0
}

// ownMask ends tempMask.
func (k *Kernel) ownMask(t *Task) {
	if t.restoreMask {
		t.restoreMask = false
		k.setMask(t, t.savedMask)
	}
}

func sysPause(k *Kernel, _ *Task, _ args) (uint64, unix.Errno) {
	_, errno := k.block(nil, time.Time{}, nil)
	return 0, errno
}

func sysRtSigsuspend(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	if a[1] != 8 {
		return 0, unix.EINVAL
	}
	if _, errno := k.load64(a[0]); errno != 0 { // no pointer is an error here
		return 0, errno
	}
	if errno := k.tempMask(t, a[0], 8); errno != 0 {
		return 0, errno
	}
	return sysPause(k, t, a)
}

// sysRtSigtimedwait takes a pending signal of the set, or waits for one until the time is up.
func sysRtSigtimedwait(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	if a[3] != 8 {
		return 0, unix.EINVAL
	}
	set, errno := k.load64(a[0])
	if errno != 0 {
		return 0, errno
	}
	deadline, errno := k.timeout(t, a[2])
	if errno != 0 {
		return 0, errno
	}
	e, errno := k.waitSignal(t, set&^unblockable, deadline)
	if errno != 0 {
		return 0, errno
	}
	if e.sig == 0 {
		return 0, unix.EAGAIN
	}
	if a[1] != 0 {
		if errno := k.copyOut(a[1], e.info.bytes()); errno != 0 {
			return 0, errno
		}
	}
	return e.sig, 0
}

// waitSignal takes the first signal of set that is pending for t, and waits for one until deadline. No signal: time is up.
func (k *Kernel) waitSignal(t *Task, set uint64, deadline time.Time) (sigEntry, unix.Errno) {
	if e, ok := k.dequeue(t, set); ok {
		return e, 0
	}
	t.waits = set
	_, errno := k.block(nil, deadline, func() bool { return k.pendingFor(t)&set != 0 })
	t.waits = 0
	if e, ok := k.dequeue(t, set); ok {
		return e, 0
	}
	return sigEntry{}, errno
}
