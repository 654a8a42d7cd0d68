package linux

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

// An epoll descriptor of the guest is one of the host, which holds the host descriptors behind the
// guest's and the guest's own 64 bits of data. Two guest descriptors of one description are one
// registration there: the second one is EEXIST.

func sysEpollCreate(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if int32(a[0]) <= 0 {
		return 0, unix.EINVAL
	}
	return k.epollCreate(0)
}

func sysEpollCreate1(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if int(uint32(a[0]))&^unix.EPOLL_CLOEXEC != 0 {
		return 0, unix.EINVAL
	}
	return k.epollCreate(int(a[0]))
}

func (k *Kernel) epollCreate(flags int) (uint64, unix.Errno) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return 0, errnoOf(err)
	}
	return k.deliverAs(fd, unix.O_RDWR, waitNever, flags&unix.EPOLL_CLOEXEC != 0, func(d *description) { d.mute, d.deaf = true, true })
}

// epollEvent is struct epoll_event, which is packed on x86-64 (include/uapi/linux/eventpoll.h).
const epollEventSize = 12

func sysEpollCtl(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	op := int(int32(a[1]))
	var raw [epollEventSize]byte
	if op != unix.EPOLL_CTL_DEL {
		if errno := k.copyIn(a[3], raw[:]); errno != 0 {
			return 0, errno
		}
	}
	ep, errno := k.fds.io(a[0])
	if errno != 0 {
		return 0, errno
	}
	d, errno := k.fds.io(a[2])
	if errno != 0 {
		return 0, errno
	}
	if d.fd < 0 || ep.fd < 0 {
		return 0, unix.EPERM
	}
	ev := unix.EpollEvent{
		Events: binary.LittleEndian.Uint32(raw[:]),
		Fd:     int32(binary.LittleEndian.Uint32(raw[4:])), Pad: int32(binary.LittleEndian.Uint32(raw[8:])),
	}
	fd, errno := k.fds.watchAs(d, uint32(a[2]))
	if errno != 0 {
		return 0, errno
	}
	return 0, errnoOf(unix.EpollCtl(ep.fd, op, fd, &ev))
}

func sysEpollWait(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	deadline := time.Time{}
	if ms := int32(a[3]); ms >= 0 {
		deadline = t.until(time.Duration(ms) * time.Millisecond)
	}
	return k.epollWait(a, deadline)
}

func sysEpollPwait(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	if errno := k.tempMask(t, a[4], a[5]); errno != 0 {
		return 0, errno
	}
	return sysEpollWait(k, t, a)
}

func sysEpollPwait2(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	deadline, errno := k.timeout(t, a[3])
	if errno != 0 {
		return 0, errno
	}
	if errno = k.tempMask(t, a[4], a[5]); errno != 0 {
		return 0, errno
	}
	return k.epollWait(a, deadline)
}

// epollBatch bounds the host memory of one epoll_wait; the rest comes with the next.
const epollBatch = 256

func (k *Kernel) epollWait(a args, deadline time.Time) (uint64, unix.Errno) {
	count := int32(a[2])
	if count <= 0 || count > (1<<31-1)/epollEventSize {
		return 0, unix.EINVAL
	}
	if !accessOK(a[1], uint64(count)*epollEventSize) {
		return 0, unix.EFAULT
	}
	ep, errno := k.fds.io(a[0])
	if errno != 0 {
		return 0, errno
	}
	if ep.fd < 0 || !ep.made {
		return 0, unix.EINVAL
	}
	defer ep.pin().unpin()
	events := make([]unix.EpollEvent, min(count, epollBatch))
	for again := false; ; again = true {
		if again && k.interrupted() {
			return 0, eRestart
		}
		n, err := unix.EpollWait(ep.fd, events, 0)
		if err != nil && err != unix.EINTR {
			return 0, errnoOf(err)
		}
		if n > 0 {
			return k.putEvents(a[1], events[:n])
		}
		errno := k.await(ep.fd, unix.POLLIN, deadline)
		if errno == unix.ETIMEDOUT {
			return 0, 0
		}
		if errno != 0 {
			return 0, errno
		}
	}
}

func (k *Kernel) putEvents(addr uint64, events []unix.EpollEvent) (uint64, unix.Errno) {
	var raw []byte
	for _, ev := range events {
		raw = binary.LittleEndian.AppendUint32(raw, ev.Events)
		raw = binary.LittleEndian.AppendUint32(raw, uint32(ev.Fd))
		raw = binary.LittleEndian.AppendUint32(raw, uint32(ev.Pad))
	}
	if errno := k.copyOut(addr, raw); errno != 0 {
		return 0, errno
	}
	return uint64(len(events)), 0
}

func sysEventfd(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	return sysEventfd2(k, t, args{a[0], 0})
}

func sysEventfd2(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	flags := int(uint32(a[1]))
	if flags&^(unix.EFD_CLOEXEC|unix.EFD_NONBLOCK|unix.EFD_SEMAPHORE) != 0 {
		return 0, unix.EINVAL
	}
	fd, err := unix.Eventfd(uint(uint32(a[0])), unix.EFD_CLOEXEC|unix.EFD_NONBLOCK|flags&unix.EFD_SEMAPHORE)
	if err != nil {
		return 0, errnoOf(err)
	}
	return k.deliver(fd, unix.O_RDWR|flags&unix.O_NONBLOCK, waitAgain, flags&unix.EFD_CLOEXEC != 0)
}

func sysTimerfdCreate(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	flags := int(uint32(a[1]))
	if flags&^(unix.TFD_CLOEXEC|unix.TFD_NONBLOCK) != 0 {
		return 0, unix.EINVAL
	}
	fd, err := unix.TimerfdCreate(int(int32(a[0])), unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return 0, errnoOf(err)
	}
	return k.deliverAs(fd, unix.O_RDWR|flags&unix.O_NONBLOCK, waitAgain, flags&unix.TFD_CLOEXEC != 0, func(d *description) { d.deaf = true })
}

func sysTimerfdSettime(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	var set, old unix.ItimerSpec
	if errno := get(k, a[2], &set); errno != 0 {
		return 0, errno
	}
	const known = 1 | 2 // TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET
	if uint32(a[1])&^known != 0 || !timespecOK(&set.Interval) || !timespecOK(&set.Value) {
		return 0, unix.EINVAL // before the descriptor is looked at (fs/timerfd.c)
	}
	d, errno := k.ownDescriptor(a[0])
	if errno != 0 {
		return 0, errno
	}
	if err := unix.TimerfdSettime(d.fd, int(int32(a[1])), &set, &old); err != nil {
		return 0, errnoOf(err)
	}
	if a[3] != 0 {
		return 0, put(k, a[3], &old)
	}
	return 0, 0
}

func sysTimerfdGettime(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	d, errno := k.ownDescriptor(a[0])
	if errno != 0 {
		return 0, errno
	}
	var cur unix.ItimerSpec
	if err := unix.TimerfdGettime(d.fd, &cur); err != nil {
		return 0, errnoOf(err)
	}
	return 0, put(k, a[1], &cur)
}

// ownDescriptor is a descriptor that only we could have made (timerfd); others are EINVAL.
func (k *Kernel) ownDescriptor(fd uint64) (*description, unix.Errno) {
	d, errno := k.fds.io(fd)
	if errno == 0 && (!d.made) {
		return nil, unix.EINVAL
	}
	return d, errno
}
