package linux

import "golang.org/x/sys/unix"

// ringable are the calls that may come by the ring: those that end by themselves, touch no register and no mapping,
// and leave the program's threads alone. Some only with some arguments, see ringFits; some may find that they have to
// wait, and are then made by an exit.
var ringable = func() (list [tableSize]bool) {
	for _, nr := range []uint64{
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_STAT, unix.SYS_FSTAT, unix.SYS_LSTAT, unix.SYS_POLL, unix.SYS_LSEEK,
		unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_SCHED_YIELD, unix.SYS_GETPID,
		unix.SYS_SENDTO, unix.SYS_RECVFROM, unix.SYS_SENDMSG, unix.SYS_RECVMSG, unix.SYS_UNAME, unix.SYS_GETTIMEOFDAY,
		unix.SYS_GETRUSAGE, unix.SYS_TIMES, unix.SYS_GETUID, unix.SYS_GETGID, unix.SYS_GETEUID, unix.SYS_GETEGID,
		unix.SYS_GETPPID, unix.SYS_GETPGRP, unix.SYS_GETTID, unix.SYS_TIME, unix.SYS_FUTEX, unix.SYS_CLOCK_GETTIME,
		unix.SYS_CLOCK_GETRES, unix.SYS_EPOLL_WAIT, unix.SYS_NEWFSTATAT, unix.SYS_TIMERFD_SETTIME, unix.SYS_TIMERFD_GETTIME,
		unix.SYS_PREADV, unix.SYS_PWRITEV, unix.SYS_GETCPU, unix.SYS_GETRANDOM, unix.SYS_STATX,
	} {
		list[nr] = true
	}
	return list
}()

// Ringable reports whether system call nr may come by the ring at all.
func Ringable(nr uint64) bool { return nr < tableSize && ringable[nr] }

// RingCall serves a call of t that came by the ring: t executes, and waits in the guest for the answer. With ok false
// nothing was done, and the call has to be made by an exit.
func (k *Kernel) RingCall(t *Task, nr uint64, a [6]uint64) (ret uint64, ok bool) {
	k.big.Lock()
	defer k.big.Unlock()
	if k.over || !Ringable(nr) {
		return 0, false
	}
	k.cur = t
	if !k.ringFits(nr, a) {
		return 0, false
	}
	t.onRing, t.hasEntered = true, false
	ret, errno := k.dispatch(t, nr, a)
	t.onRing = false
	switch {
	case errno == eRestart:
		return 0, false // it would have to wait; it has done nothing
	case errno != 0:
		return negate(errno), true
	}
	return ret, true
}

// ringFits looks at the arguments: no wait that can be seen in advance, and nothing that could stop half-way where
// natively it would go on.
func (k *Kernel) ringFits(nr uint64, a args) bool {
	switch nr {
	case unix.SYS_POLL:
		return uint32(a[2]) == 0
	case unix.SYS_EPOLL_WAIT:
		return uint32(a[3]) == 0
	case unix.SYS_FUTEX:
		cmd := uint32(a[1]) &^ (futexPrivate | futexRealtime)
		return cmd == futexWake || cmd == futexWakeBitset || cmd == futexWakeOp || cmd == futexRequeue || cmd == futexCmpRequeue
	case unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_SENDTO:
		d, errno := k.fds.io(a[0])
		return errno != 0 || d.wait == waitNever || d.nonblock() || a[2] <= pipeBuf
	case unix.SYS_WRITEV, unix.SYS_PWRITEV, unix.SYS_SENDMSG:
		d, errno := k.fds.io(a[0])
		return errno != 0 || d.wait == waitNever || d.nonblock()
	}
	return true
}
