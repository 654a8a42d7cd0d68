package linux

import (
	"time"

	"golang.org/x/sys/unix"
)

// A signalfd of the guest is an eventfd of the host, which is readable while a signal of its mask is pending, so that
// poll and epoll work on it. Natively a thread sees the signals of the process and its own there; one descriptor of the
// host cannot look different to each thread, and so it is ready when there is a signal for any thread. Reading takes
// only what is the reader's.

const signalfdInfoSize = 128

// levelSignalFDs brings the eventfds in line with what is pending.
func (k *Kernel) levelSignalFDs() {
	if len(k.sig.fds) == 0 {
		return
	}
	pending := k.sig.shared.set
	for _, t := range k.tasks {
		pending |= t.pending.set
	}
	open := k.sig.fds[:0]
	for _, d := range k.sig.fds {
		if d.refs <= 0 {
			continue // closed since
		}
		open = append(open, d)
		if ready := pending&d.signals != 0; ready != d.ready {
			d.ready = ready
			count := [8]byte{1}
			if ready {
				_, _ = unix.Write(d.fd, count[:]) // its count is 0: there is room
			} else {
				_, _ = unix.Read(d.fd, count[:]) // its count is 1
			}
		}
	}
	clear(k.sig.fds[len(open):])
	k.sig.fds = open
}

func sysSignalfd(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	return sysSignalfd4(k, t, args{a[0], a[1], a[2], 0})
}

func sysSignalfd4(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	const cloexec, nonblock = unix.SFD_CLOEXEC, unix.SFD_NONBLOCK
	if a[2] != 8 {
		return 0, unix.EINVAL
	}
	mask, errno := k.load64(a[1])
	if errno != 0 {
		return 0, errno
	}
	flags := int(uint32(a[3]))
	if flags&^(cloexec|nonblock) != 0 {
		return 0, unix.EINVAL
	}
	mask &^= unblockable
	if int32(a[0]) != -1 {
		d, errno := k.fds.io(a[0])
		if errno != 0 {
			return 0, errno
		}
		if !d.signalfd {
			return 0, unix.EINVAL
		}
		d.signals = mask
		k.levelSignalFDs()
		return uint64(uint32(a[0])), 0
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return 0, errnoOf(err)
	}
	d, errno := k.adopt(fd, "anon_inode:[signalfd]", unix.O_RDWR|flags&unix.O_NONBLOCK, waitAgain)
	if errno != 0 {
		return 0, errno
	}
	d.signalfd, d.signals = true, mask
	n, errno := k.install(d, flags&cloexec != 0)
	if errno != 0 {
		return 0, errno
	}
	k.sig.fds = append(k.sig.fds, d)
	k.levelSignalFDs()
	return n, 0
}

// readSignals is read(2) of a signalfd: as many records as fit, at least one.
func (k *Kernel) readSignals(d *description, vec [][]byte) (uint64, unix.Errno) {
	defer d.pin().unpin()
	room := 0
	for _, p := range vec {
		room += len(p)
	}
	if room < signalfdInfoSize {
		return 0, unix.EINVAL
	}
	t := k.cur
	deadline := time.Time{}
	if d.nonblock() {
		deadline = time.Now()
	}
	e, errno := k.waitSignal(t, d.signals, deadline)
	if errno != 0 {
		return 0, errno
	}
	if e.sig == 0 {
		return 0, unix.EAGAIN
	}
	var total uint64
	for ok := true; ok; {
		at := vec
		at, errno = scatter(at, e.info.record())
		if errno != 0 {
			break
		}
		vec = at
		total += signalfdInfoSize
		if room -= signalfdInfoSize; room < signalfdInfoSize {
			break
		}
		e, ok = k.dequeue(t, d.signals)
	}
	if total > 0 {
		return total, 0
	}
	return 0, errno
}

// scatter copies b to the beginning of vec and returns the rest of vec.
func scatter(vec [][]byte, b []byte) ([][]byte, unix.Errno) {
	for len(b) > 0 {
		n := min(len(vec[0]), len(b))
		if errno := Safely(func() { copy(vec[0], b[:n]) }); errno != 0 {
			return vec, errno
		}
		b, vec = b[n:], advance(vec, n)
	}
	return vec, 0
}

// record is struct signalfd_siginfo (include/uapi/linux/signalfd.h), filled in as fs/signalfd.c does by si_code.
func (i *siginfo) record() []byte {
	b := make([]byte, signalfdInfoSize)
	put32 := func(at int, v uint32) { order.PutUint32(b[at:], v) }
	field := func(at int) uint32 { return order.Uint32(i.fields[at:]) }
	put32(0, uint32(i.signo))
	put32(4, uint32(i.errno))
	put32(8, uint32(i.code))
	switch {
	case i.code == siTimer:
		put32(24, field(0))            // ssi_tid
		put32(32, field(4))            // ssi_overrun
		copy(b[48:56], i.fields[8:16]) // ssi_ptr
		copy(b[44:48], i.fields[8:12]) // ssi_int
	case i.code > siUser && i.code != siKernel && synchronous&sigBit(uint64(i.signo)) != 0:
		copy(b[72:80], i.fields[0:8]) // ssi_addr
	case i.code > siUser && i.code != siKernel && unix.Signal(i.signo) == unix.SIGCHLD:
		put32(12, field(0))             // ssi_pid
		put32(16, field(4))             // ssi_uid
		put32(40, field(8))             // ssi_status
		copy(b[56:72], i.fields[16:32]) // ssi_utime, ssi_stime
	case i.code > siUser && i.code != siKernel:
		put32(28, field(0)) // ssi_band
		put32(20, field(8)) // ssi_fd
	default:
		put32(12, field(0))
		put32(16, field(4))
		if i.code != siUser && i.code != siKernel && i.code != siTkill {
			copy(b[48:56], i.fields[8:16])
			copy(b[44:48], i.fields[8:12])
		}
	}
	return b
}
