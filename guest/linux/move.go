package linux

import (
	"golang.org/x/sys/unix"
)

// onHost returns the host descriptor of a call that hands the whole file over to the host.
func (k *Kernel) onHost(fd uint64, without unix.Errno) (*description, unix.Errno) {
	d, errno := k.fds.io(fd)
	if errno == 0 && d.fd < 0 {
		return nil, without
	}
	return d, errno
}

func sysFsync(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	d, errno := k.onHost(a[0], unix.EINVAL)
	if errno != 0 {
		return 0, errno
	}
	return 0, errnoOf(unix.Fsync(d.fd))
}

func sysFdatasync(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	d, errno := k.onHost(a[0], unix.EINVAL)
	if errno != 0 {
		return 0, errno
	}
	return 0, errnoOf(unix.Fdatasync(d.fd))
}

func sysSync(_ *Kernel, _ *Task, _ args) (uint64, unix.Errno) {
	unix.Sync()
	return 0, 0
}

func sysSyncfs(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	d, errno := k.fds.io(a[0])
	if errno != 0 || d.fd < 0 {
		return 0, errno
	}
	return 0, errnoOf(unix.Syncfs(d.fd))
}

func sysSyncFileRange(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	d, errno := k.onHost(a[0], unix.ESPIPE)
	if errno != 0 {
		return 0, errno
	}
	return 0, errnoOf(unix.SyncFileRange(d.fd, int64(a[1]), int64(a[2]), int(uint32(a[3]))))
}

func sysFallocate(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	d, errno := k.onHost(a[0], unix.ENODEV)
	if errno != 0 {
		return 0, errno
	}
	for {
		err := unix.Fallocate(d.fd, uint32(a[1]), int64(a[2]), int64(a[3]))
		if err != unix.EINTR || !k.cur.onRing && k.interrupted() {
			return 0, errnoOf(err)
		} // a signal for the Go runtime broke it off, none of the program's
	}
}

func sysFadvise64(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	d, errno := k.fds.io(a[0])
	if errno != 0 {
		return 0, errno
	}
	if d.fd < 0 {
		return 0, 0 // advice about a file that is made up changes nothing
	}
	return 0, errnoOf(unix.Fadvise(d.fd, int64(a[1]), int64(a[2]), int(int32(a[3]))))
}

func sysReadahead(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	d, errno := k.reader(a[0])
	if errno != 0 {
		return 0, errno
	}
	if d.mode != unix.S_IFREG || d.fd < 0 {
		return 0, unix.EINVAL
	}
	return 0, errnoOf(unix.Fadvise(d.fd, int64(a[1]), int64(a[2]), unix.FADV_WILLNEED))
}

// offset reads an optional file offset; present says whether the pointer was there.
func (k *Kernel) offset(addr uint64) (off int64, present bool, errno unix.Errno) {
	if addr == 0 {
		return 0, false, 0
	}
	v, errno := k.load64(addr)
	if errno == 0 && int64(v) < 0 {
		errno = unix.EINVAL
	}
	return int64(v), true, errno
}

// moveStep bounds one host call of a long copy, between two looks at Interrupt.
const moveStep = 16 << 20

func sysSendfile(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	off, positioned, errno := k.offset(a[2])
	if errno != 0 {
		return 0, errno
	}
	in, errno := k.reader(a[1])
	if errno != 0 {
		return 0, errno
	}
	if positioned {
		if errno = in.seekable(); errno != 0 {
			return 0, errno
		}
	}
	out, errno := k.writer(a[0])
	if errno != 0 {
		return 0, errno
	}
	// sendfile(2) has no MSG_DONTWAIT: into a socket that others may have made blocking it is not made.
	if in.fd < 0 || out.fd < 0 || in.wait != waitNever || out.wait == waitSocket {
		return 0, unix.EINVAL // programs fall back on read and write
	}
	if int64(a[3]) < 0 {
		return 0, unix.EINVAL
	}
	total, errno := k.sendfile(in, out, positioned, &off, min(a[3], maxRW))
	if errno == unix.EPIPE {
		k.raise(t, unix.SIGPIPE)
	}
	if positioned && total > 0 {
		if fault := k.store64(a[2], uint64(off)); fault != 0 {
			return 0, fault
		}
	}
	if total > 0 {
		return total, 0
	}
	return 0, errno
}

func (k *Kernel) sendfile(in, out *description, positioned bool, off *int64, count uint64) (uint64, unix.Errno) {
	defer in.pin().unpin()
	defer out.pin().unpin()
	step := uint64(moveStep)
	if out.wait == waitFirst {
		step = pipeBuf
	}
	pos := off
	if !positioned {
		pos = nil
	}
	var total uint64
	for {
		n, errno := k.transfer(out, unix.POLLOUT, func() (int, error) {
			return unix.Sendfile(out.fd, in.fd, pos, int(min(step, count-total)))
		})
		total += uint64(n)
		if errno != 0 || n == 0 || total >= count || out.nonblock() && out.wait != waitNever {
			return total, errno
		}
		if k.interrupted() {
			return total, 0
		}
	}
}

func sysCopyFileRange(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if uint32(a[5]) != 0 {
		return 0, unix.EINVAL
	}
	in, errno := k.fds.io(a[0])
	if errno != 0 {
		return 0, errno
	}
	out, errno := k.fds.io(a[2])
	if errno != 0 {
		return 0, errno
	}
	inOff, hasIn, errno := k.offset(a[1])
	if errno != 0 {
		return 0, errno
	}
	outOff, hasOut, errno := k.offset(a[3])
	if errno != 0 {
		return 0, errno
	}
	if in.fd < 0 || out.fd < 0 || in.wait != waitNever || out.wait != waitNever {
		return 0, unix.EINVAL
	}
	var inPos, outPos *int64
	if hasIn {
		inPos = &inOff
	}
	if hasOut {
		outPos = &outOff
	}
	n, err := unix.CopyFileRange(in.fd, inPos, out.fd, outPos, int(min(a[4], moveStep)), 0)
	if err != nil {
		return 0, errnoOf(err)
	}
	if hasIn {
		errno = k.store64(a[1], uint64(inOff))
	}
	if hasOut && errno == 0 {
		errno = k.store64(a[3], uint64(outOff))
	}
	return uint64(n), errno
}

// sysSplice serves splice, tee and vmsplice: every program that uses them falls back on EINVAL, as for
// file systems without support.
func sysSplice(_ *Kernel, _ *Task, _ args) (uint64, unix.Errno) { return 0, unix.EINVAL }
