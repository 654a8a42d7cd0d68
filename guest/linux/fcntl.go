package linux

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

// statusFlags are what F_SETFL can change (SETFL_MASK, fs/fcntl.c).
const statusFlags = unix.O_APPEND | unix.O_NONBLOCK | unix.O_ASYNC | unix.O_DIRECT | unix.O_NOATIME

func sysFcntl(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	d, errno := k.fds.get(a[0])
	if errno != 0 {
		return 0, errno
	}
	entry := &k.fds.e[uint32(a[0])]
	cmd := int(int32(a[1]))
	if d.flags&unix.O_PATH != 0 {
		switch cmd {
		case unix.F_DUPFD, unix.F_DUPFD_CLOEXEC, unix.F_GETFD, unix.F_SETFD, unix.F_GETFL:
		default:
			return 0, unix.EBADF
		}
	}
	switch cmd {
	case unix.F_DUPFD, unix.F_DUPFD_CLOEXEC:
		if uint64(uint32(a[2])) >= k.lim.nofile() || a[2] > 1<<31 {
			return 0, unix.EINVAL
		}
		return k.dupFrom(a[0], a[2], cmd == unix.F_DUPFD_CLOEXEC)
	case unix.F_GETFD:
		if entry.cloexec {
			return unix.FD_CLOEXEC, 0
		}
		return 0, 0
	case unix.F_SETFD:
		entry.cloexec = a[2]&unix.FD_CLOEXEC != 0
		return 0, 0
	case unix.F_GETFL:
		return uint64(uint32(d.flags)), 0
	case unix.F_SETFL:
		return 0, d.setStatus(int(uint32(a[2])))
	case unix.F_GETLK, unix.F_OFD_GETLK, unix.F_SETLK, unix.F_OFD_SETLK, unix.F_SETLKW, unix.F_OFD_SETLKW:
		return 0, k.lock(d, cmd, a[2])
	case unix.F_GETPIPE_SZ, unix.F_SETPIPE_SZ, unix.F_GET_SEALS, unix.F_ADD_SEALS:
		if d.fd < 0 {
			return 0, unix.EBADF
		}
		if cmd == unix.F_ADD_SEALS && !d.writable() {
			return 0, unix.EPERM
		}
		if !d.made && cmd == unix.F_ADD_SEALS {
			return 0, unix.EINVAL // only a memfd of the guest's own has seals to add
		}
		n, err := unix.FcntlInt(uintptr(d.fd), cmd, int(uint32(a[2])))
		if err != nil {
			return 0, errnoOf(err)
		}
		return uint64(n), 0
	case fGetOwnEx:
		return 0, k.copyOut(a[2], make([]byte, 8)) // struct f_owner_ex: F_OWNER_TID, 0
	case unix.F_GETOWN, unix.F_SETOWN, unix.F_GETSIG, unix.F_SETSIG:
		return 0, 0 // SIGIO needs delivery: nobody is the owner
	}
	return 0, unix.EINVAL
}

// setStatus changes the status flags. O_NONBLOCK is ours to honour and never reaches the host: its
// descriptor is non-blocking already or shared with others.
func (d *description) setStatus(flags int) unix.Errno {
	const host = unix.O_APPEND | unix.O_DIRECT | unix.O_NOATIME
	if d.fd >= 0 && (flags^d.flags)&host != 0 {
		old, err := unix.FcntlInt(uintptr(d.fd), unix.F_GETFL, 0)
		if err != nil {
			return errnoOf(err)
		}
		if _, err = unix.FcntlInt(uintptr(d.fd), unix.F_SETFL, old&^host|flags&host); err != nil {
			return errnoOf(err)
		}
	}
	d.flags = d.flags&^statusFlags | flags&(statusFlags&^unix.O_ASYNC)
	return 0
}

// fGetOwnEx is F_GETOWN_EX (include/uapi/asm-generic/fcntl.h), which glibc asks in place of F_GETOWN.
const fGetOwnEx = 16

// lockRetry is how often a waiting lock is tried again: the host cannot wait for a lock and for
// Interrupt together.
const lockRetry = 5 * time.Millisecond

// lock is fcntl's record locking; struct flock is 32 bytes on x86-64.
func (k *Kernel) lock(d *description, cmd int, addr uint64) unix.Errno {
	var raw [32]byte
	if errno := k.copyIn(addr, raw[:]); errno != 0 {
		return errno
	}
	if d.fd < 0 {
		return unix.EBADF
	}
	try := cmd
	switch cmd {
	case unix.F_SETLKW:
		try = unix.F_SETLK
	case unix.F_OFD_SETLKW:
		try = unix.F_OFD_SETLK
	}
	defer d.pin().unpin()
	for {
		errno := fcntlBytes(d.fd, try, raw[:])
		k.fds.locked = k.fds.locked || errno == 0 && try == unix.F_SETLK
		switch {
		case errno == 0 && (cmd == unix.F_GETLK || cmd == unix.F_OFD_GETLK):
			// A lock of another process is named by its host number; the guest knows no other.
			if pid := int32(binary.LittleEndian.Uint32(raw[24:])); pid > 0 {
				binary.LittleEndian.PutUint32(raw[24:], uint32(pid))
			}
			return k.copyOut(addr, raw[:])
		case errno == unix.EINTR:
			continue
		case try == cmd || errno != unix.EAGAIN && errno != unix.EACCES:
			return errno
		}
		if errno := k.sleep(time.Now().Add(lockRetry)); errno != 0 {
			return errno
		}
	}
}

func sysFlock(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	op := int(uint32(a[1]))
	d, errno := k.fds.io(a[0])
	if errno != 0 {
		return 0, errno
	}
	if d.fd < 0 {
		return 0, unix.EBADF
	}
	defer d.pin().unpin()
	for {
		err := unix.Flock(d.fd, op|unix.LOCK_NB)
		if err == nil {
			return 0, 0
		}
		errno := errnoOf(err)
		if errno == unix.EINTR {
			continue
		}
		if errno != unix.EWOULDBLOCK || op&unix.LOCK_NB != 0 {
			return 0, errno
		}
		if errno := k.sleep(time.Now().Add(lockRetry)); errno != 0 {
			return 0, errno
		}
	}
}
