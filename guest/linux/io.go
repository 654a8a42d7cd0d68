package linux

import (
	"time"

	"golang.org/x/sys/unix"
)

// current as an offset means the description's own.
const current = -1

// pipeBuf is PIPE_BUF (include/uapi/linux/limits.h): what a shared, blocking pipe that polled
// writable takes without blocking.
const pipeBuf = 4096

// read fills vec from d at off, as far as one host call does.
func (k *Kernel) read(t *Task, d *description, vec [][]byte, off int64, flags int) (uint64, unix.Errno) {
	if d.sock != nil {
		return k.readSocket(t, d, vec, flags)
	}
	if d.fd < 0 {
		return k.readSynthetic(d, vec, off)
	}
	if d.signalfd {
		if off != current {
			return 0, unix.ESPIPE
		}
		return k.readSignals(d, vec)
	}
	defer d.pin().unpin()
	if d.fresh && d.wait == waitAgain && !d.nonblock() {
		if errno := k.await(d.fd, unix.POLLIN, time.Time{}); errno != 0 {
			return 0, errno
		}
	}
	d.fresh = false
	n, errno := k.transfer(d, unix.POLLIN, func() (int, error) {
		switch {
		case d.wait == waitSocket:
			n, _, _, _, err := unix.RecvmsgBuffers(d.fd, vec, nil, unix.MSG_DONTWAIT)
			return n, err
		case len(vec) == 1 && off == current && flags == 0:
			return unix.Read(d.fd, vec[0])
		case len(vec) == 1 && flags == 0:
			return unix.Pread(d.fd, vec[0], off)
		}
		return unix.Preadv2(d.fd, vec, off, flags)
	})
	return uint64(n), errno
}

func (k *Kernel) readSynthetic(d *description, vec [][]byte, off int64) (uint64, unix.Errno) {
	var total uint64
	for _, p := range vec {
		var n int
		// The file's text is ours; it goes through a copy because only copies survive a fault.
		own := make([]byte, min(len(p), 1<<20))
		var errno unix.Errno
		if off == current {
			n, errno = result(d.file.Read(own))
		} else {
			n, errno = result(d.file.Pread(own, off+int64(total)))
		}
		if errno == 0 {
			errno = Safely(func() { copy(p, own[:n]) })
		}
		if errno != 0 {
			if total > 0 {
				return total, 0
			}
			return 0, errno
		}
		total += uint64(n)
		if n < len(p) {
			break
		}
	}
	return total, 0
}

// write writes all of vec to d at off, as far as Linux would: a blocking pipe takes everything, a
// regular file what fits. EPIPE raises SIGPIPE.
func (k *Kernel) write(t *Task, d *description, vec [][]byte, off int64, flags int) (uint64, unix.Errno) {
	if d.sock != nil {
		return k.writeSocket(t, d, vec, flags)
	}
	if d.signalfd {
		return 0, unix.EINVAL // the eventfd behind it is ours
	}
	total, errno := k.writeAll(d, vec, off, flags)
	switch {
	case errno == unix.EPIPE:
		k.raise(t, unix.SIGPIPE)
	case errno == unix.EFBIG && k.lim.fsize:
		// The host raised its own signal, which the engine ignores (its runtime would die of it).
		k.raise(t, unix.SIGXFSZ)
	}
	if total > 0 {
		return total, 0
	}
	return 0, errno
}

func (k *Kernel) writeAll(d *description, vec [][]byte, off int64, flags int) (uint64, unix.Errno) {
	defer d.pin().unpin()
	var total uint64
	for {
		n, errno := k.writeOnce(d, vec, off, flags)
		total += uint64(n)
		if errno != 0 || d.wait == waitNever || d.nonblock() && d.wait != waitFirst {
			return total, errno
		}
		if vec = advance(vec, n); len(vec) == 0 || n == 0 {
			return total, 0
		}
		if off != current {
			off += int64(n)
		}
	}
}

func (k *Kernel) writeOnce(d *description, vec [][]byte, off int64, flags int) (int, unix.Errno) {
	if d.fd < 0 {
		return k.writeSynthetic(d, vec, off)
	}
	if d.wait == waitFirst && len(vec) > 0 {
		vec = [][]byte{vec[0][:min(len(vec[0]), pipeBuf)]}
	}
	return k.transfer(d, unix.POLLOUT, func() (int, error) {
		switch {
		case d.wait == waitSocket:
			return unix.SendmsgBuffers(d.fd, vec, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		case len(vec) == 1 && off == current && flags == 0:
			return unix.Write(d.fd, vec[0])
		case len(vec) == 1 && flags == 0:
			return unix.Pwrite(d.fd, vec[0], off)
		}
		return unix.Pwritev2(d.fd, vec, off, flags)
	})
}

func (k *Kernel) writeSynthetic(d *description, vec [][]byte, off int64) (int, unix.Errno) {
	if off != current {
		return 0, unix.ESPIPE // no synthetic file can be written at an offset
	}
	// Each buffer is a write of its own (fs/read_write.c: do_loop_readv_writev).
	total := 0
	for _, p := range vec {
		own := make([]byte, min(len(p), 1<<20))
		errno := Safely(func() { copy(own, p) })
		if errno == 0 {
			var n int
			n, errno = result(d.file.Write(own))
			total += n
		}
		if errno != 0 && total == 0 {
			return 0, errno
		}
		if errno != 0 {
			break
		}
	}
	return total, 0
}

// advance drops the first n bytes of vec.
func advance(vec [][]byte, n int) [][]byte {
	for len(vec) > 0 && n >= len(vec[0]) {
		n -= len(vec[0])
		vec = vec[1:]
	}
	if len(vec) > 0 && n > 0 {
		vec = append([][]byte{vec[0][n:]}, vec[1:]...)
	}
	return vec
}

// result unifies (int, error) and (int, unix.Errno), and no count comes with an error.
func result(n int, err error) (int, unix.Errno) {
	if errno := errnoOf(err); errno != 0 {
		return 0, errno
	}
	return n, 0
}

// one is a single buffer as a vector; an empty one stays a vector of one, so the host sees the call.
func one(p []byte) [][]byte { return [][]byte{p} }

func (k *Kernel) reader(fd uint64) (*description, unix.Errno) {
	d, errno := k.fds.io(fd)
	if errno != 0 {
		return nil, errno
	}
	return d, d.allows(false)
}

// allows is the look at the mode and at the operations of the open file that comes before everything else.
func (d *description) allows(write bool) unix.Errno {
	switch {
	case write && !d.writable() || !write && !d.readable():
		return unix.EBADF
	case write && d.deaf || !write && d.mute:
		return unix.EINVAL
	}
	return 0
}

func (k *Kernel) writer(fd uint64) (*description, unix.Errno) {
	d, errno := k.fds.io(fd)
	if errno != 0 {
		return nil, errno
	}
	return d, d.allows(true)
}

func sysRead(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	d, errno := k.reader(a[0])
	if errno != 0 {
		return 0, errno
	}
	vec, errno := k.buffer(a[1], a[2], true)
	if errno != 0 {
		return 0, errno
	}
	return k.read(t, d, vec, current, 0)
}

func sysWrite(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	d, errno := k.writer(a[0])
	if errno != 0 {
		return 0, errno
	}
	vec, errno := k.buffer(a[1], a[2], false)
	if errno != 0 {
		return 0, errno
	}
	return k.write(t, d, vec, current, 0)
}

// seekable is the ESPIPE check of the positional calls, which comes before the access check.
func (d *description) seekable() unix.Errno {
	switch d.mode {
	case unix.S_IFIFO, unix.S_IFSOCK:
		return unix.ESPIPE
	case 0:
		if !d.made {
			break
		}
		// What has no name (eventfd, timerfd): a read of nothing changes nothing, and the host knows.
		if _, err := unix.Pread(d.fd, nil, 0); err == unix.ESPIPE {
			return unix.ESPIPE
		}
	}
	return 0
}

func sysPread(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	if int64(a[3]) < 0 {
		return 0, unix.EINVAL
	}
	d, errno := k.fds.io(a[0])
	if errno != 0 {
		return 0, errno
	}
	if errno = d.seekable(); errno != 0 {
		return 0, errno
	}
	if errno = d.allows(false); errno != 0 {
		return 0, errno
	}
	vec, errno := k.buffer(a[1], a[2], true)
	if errno != 0 {
		return 0, errno
	}
	return k.read(t, d, vec, int64(a[3]), 0)
}

func sysPwrite(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	if int64(a[3]) < 0 {
		return 0, unix.EINVAL
	}
	d, errno := k.fds.io(a[0])
	if errno != 0 {
		return 0, errno
	}
	if errno = d.seekable(); errno != 0 {
		return 0, errno
	}
	if errno = d.allows(true); errno != 0 {
		return 0, errno
	}
	vec, errno := k.buffer(a[1], a[2], false)
	if errno != 0 {
		return 0, errno
	}
	return k.write(t, d, vec, int64(a[3]), 0)
}

func sysReadv(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	return k.vectored(t, a, current, 0, false)
}

func sysWritev(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	return k.vectored(t, a, current, 0, true)
}

// vectored is readv, writev and their positional forms; off is current or not negative.
func (k *Kernel) vectored(t *Task, a args, off int64, flags int, write bool) (uint64, unix.Errno) {
	d, errno := k.fds.io(a[0])
	if errno != 0 {
		return 0, errno
	}
	if off != current {
		if errno = d.seekable(); errno != 0 {
			return 0, errno
		}
	}
	if errno = d.allows(write); errno != 0 {
		return 0, errno
	}
	vec, errno := k.vector(a[1], a[2], !write)
	if errno != 0 {
		return 0, errno
	}
	// Linux returns 0 for an empty transfer after its checks, without asking the file.
	if len(vec) == 0 {
		return 0, 0
	}
	if flags&^(unix.RWF_HIPRI|unix.RWF_DSYNC|unix.RWF_SYNC|unix.RWF_NOWAIT|unix.RWF_APPEND) != 0 {
		return 0, unix.EOPNOTSUPP // after everything else, as kiocb_set_rw_flags (include/linux/fs.h)
	}
	if write {
		return k.write(t, d, vec, off, flags)
	}
	return k.read(t, d, vec, off, flags)
}

func sysPreadv(k *Kernel, t *Task, a args) (uint64, unix.Errno)  { return k.positioned(t, a, false) }
func sysPwritev(k *Kernel, t *Task, a args) (uint64, unix.Errno) { return k.positioned(t, a, true) }

func (k *Kernel) positioned(t *Task, a args, write bool) (uint64, unix.Errno) {
	// On x86-64 the offset is in the first of its two words (fs/read_write.c: pos_from_hilo).
	if int64(a[3]) < 0 {
		return 0, unix.EINVAL
	}
	return k.vectored(t, a, int64(a[3]), 0, write)
}

func sysPreadv2(k *Kernel, t *Task, a args) (uint64, unix.Errno)  { return k.positioned2(t, a, false) }
func sysPwritev2(k *Kernel, t *Task, a args) (uint64, unix.Errno) { return k.positioned2(t, a, true) }

func (k *Kernel) positioned2(t *Task, a args, write bool) (uint64, unix.Errno) {
	off, flags := int64(a[3]), int(uint32(a[5]))
	if off < current {
		return 0, unix.EINVAL
	}
	return k.vectored(t, a, off, flags, write)
}

func sysLseek(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	d, errno := k.fds.io(a[0])
	if errno != 0 {
		return 0, errno
	}
	whence := uint32(a[2])
	if whence > unix.SEEK_HOLE {
		return 0, unix.EINVAL
	}
	n, errno := d.file.Seek(int64(a[1]), int(whence))
	return uint64(n), errno
}
