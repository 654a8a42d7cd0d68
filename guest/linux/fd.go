package linux

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/cloister-vmm/cloister/guest/vfs"
)

// waiting says how a description is kept from blocking the host thread (invariant 3).
type waiting uint8

const (
	waitNever  waiting = iota // regular files, directories: the host finishes them
	waitAgain                 // ours and O_NONBLOCK on the host: EAGAIN means ppoll
	waitFirst                 // shared with others and blocking on the host: ppoll before each try
	waitSocket                // waitAgain by MSG_DONTWAIT
)

// description is an open file description: what dup shares. Its File owns the host descriptor.
type description struct {
	file  *vfs.File
	fd    int    // file.FD: the host's descriptor, -1 for a synthetic file
	made  bool   // by the guest and without a path: pipe, eventfd, timerfd, epoll, memfd
	flags int    // as F_GETFL shows them: access mode and status flags of the guest
	mode  uint32 // S_IFMT bits
	wait  waiting
	refs  int
	// By guest descriptor, the host's by which an epoll knows it; nil: none does. duplicates is the fdTable's.
	watched    map[uint32]int
	duplicates *int
	// fresh marks a FIFO opened for reading without O_NONBLOCK. The open that would wait for a writer
	// is not made to wait (it could not be cut); the first read does.
	fresh bool
	sock  *socket // set when the guest may use it as one
	// Has no read or write at all (FMODE_CAN_READ, FMODE_CAN_WRITE): EINVAL before the memory is looked at.
	mute, deaf bool
	// Of a signalfd: the signals that it shows, and whether its eventfd says that there is one.
	signalfd, ready bool
	signals         uint64
}

func (d *description) nonblock() bool { return d.flags&unix.O_NONBLOCK != 0 }

// readable and writable: access mode 3 is neither (OPEN_FMODE, include/linux/fs.h).
func (d *description) readable() bool {
	return d.flags&unix.O_PATH == 0 && (d.flags+1)&1 != 0
}

func (d *description) writable() bool {
	return d.flags&unix.O_PATH == 0 && (d.flags+1)&2 != 0
}

func (d *description) release() unix.Errno {
	d.refs--
	if d.refs > 0 {
		return 0
	}
	for _, fd := range d.watched {
		if fd != d.fd {
			*d.duplicates--
			_ = unix.Close(fd) // the original reports what there is to report
		}
	}
	return d.file.Close()
}

// closed is what the closing of one descriptor of d does, however many there are. locked: the process has, or had, record locks;
// those on this file are gone, by whichever descriptor it got them (fs/locks.c: locks_remove_posix).
func (d *description) closed(locked bool) unix.Errno {
	if locked && d.flags&unix.O_PATH == 0 {
		var all [32]byte // struct flock: from the beginning to the end
		order.PutUint16(all[:], unix.F_UNLCK)
		_ = fcntlBytes(d.fd, unix.F_SETLK, all[:]) // a file system without locks has none
	}
	return d.release()
}

// watchAs is the host descriptor by which an epoll watches d as guest descriptor fd: each number of one open file is watched by
// itself, so each but the first has a duplicate. ENOSPC as epoll's own limit (epoll(7), max_user_watches) where there are too many.
func (t *fdTable) watchAs(d *description, fd uint32) (int, unix.Errno) {
	if host, ok := d.watched[fd]; ok {
		return host, 0
	}
	host := d.fd
	if len(d.watched) > 0 {
		if t.duplicates == maxDuplicates {
			return -1, unix.ENOSPC
		}
		var err error
		if host, err = unix.FcntlInt(uintptr(d.fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return -1, errnoOf(err)
		}
		t.duplicates++
		d.duplicates = &t.duplicates
	} else {
		d.watched = map[uint32]int{}
	}
	d.watched[fd] = host
	return host, 0
}

// pin keeps d open until unpin, through every wait: another task may close the guest's descriptor while the lock is given
// up, and the host's number must not become another file's.
func (d *description) pin() *description {
	d.refs++
	return d
}

func (d *description) unpin() { _ = d.release() } // the guest closed it meanwhile and had its answer

type fdEntry struct {
	d       *description
	cloexec bool
}

// fdTable maps the guest's descriptors; its length never passes RLIMIT_NOFILE.
type fdTable struct {
	e          []fdEntry
	locked     bool // the process has, or had, record locks
	duplicates int  // host descriptors that epolls know files by, besides the files' own
}

// maxDuplicates bounds them: descriptors that the engine needs itself are of the same limit.
const maxDuplicates = 512

// get returns the description behind guest descriptor fd; Linux looks at the low 32 bits only.
func (t *fdTable) get(fd uint64) (*description, unix.Errno) {
	n := uint64(uint32(fd))
	if n >= uint64(len(t.e)) || t.e[n].d == nil {
		return nil, unix.EBADF
	}
	return t.e[n].d, 0
}

// io is get for calls that O_PATH descriptors do not serve.
func (t *fdTable) io(fd uint64) (*description, unix.Errno) {
	d, errno := t.get(fd)
	if errno == 0 && d.flags&unix.O_PATH != 0 {
		return nil, unix.EBADF
	}
	return d, errno
}

// free returns the lowest unused descriptor at or above from, or EMFILE.
func (t *fdTable) free(from, limit uint64) (uint64, unix.Errno) {
	n := from
	for n < uint64(len(t.e)) && t.e[n].d != nil {
		n++
	}
	if n >= limit {
		return 0, unix.EMFILE
	}
	return n, 0
}

// set puts d at fd, which must be below the limit, and closes what was there.
func (t *fdTable) set(fd uint64, d *description, cloexec bool) unix.Errno {
	for uint64(len(t.e)) <= fd {
		t.e = append(t.e, fdEntry{})
	}
	old := t.e[fd].d
	d.refs++
	t.e[fd] = fdEntry{d, cloexec}
	if old != nil {
		return old.closed(t.locked)
	}
	return 0
}

func (t *fdTable) close(fd uint64) unix.Errno {
	d, errno := t.get(fd)
	if errno != 0 {
		return errno
	}
	t.e[uint32(fd)] = fdEntry{}
	return d.closed(t.locked)
}

func (t *fdTable) closeAll() {
	for i := range t.e {
		if t.e[i].d != nil {
			_ = t.close(uint64(i)) // the program is gone: nobody is left to tell
		}
	}
}

// install gives d the lowest free descriptor; when there is none d is released.
func (k *Kernel) install(d *description, cloexec bool) (uint64, unix.Errno) {
	fd, errno := k.fds.free(0, k.lim.nofile())
	if errno != 0 {
		d.refs = 1
		_ = d.release() // EMFILE is the error that counts
		return 0, errno
	}
	k.fds.set(fd, d, cloexec)
	return fd, 0
}

// hostMode returns the S_IFMT bits of a host descriptor, 0 when it cannot be told.
func hostMode(fd int) uint32 {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return 0
	}
	return st.Mode & unix.S_IFMT
}

// openStream makes host descriptor fd the guest's descriptor guest. One that is not open on the host
// is not open in the guest. The host's own stays open whatever the guest does.
func (k *Kernel) openStream(guest, fd int) unix.Errno {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return 0
	}
	mode := hostMode(fd)
	wait := waitNever
	own, ok := -1, false
	switch mode {
	case unix.S_IFIFO, unix.S_IFCHR:
		wait = waitFirst
		if own, ok = reopen(fd, flags, mode); ok {
			wait = waitAgain
		}
	case unix.S_IFSOCK:
		wait = waitSocket
	}
	if !ok {
		if own, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return errnoOf(err)
		}
	}
	name, err := os.Readlink("/proc/self/fd/" + itoa(fd))
	if err != nil {
		name = "" // vfs finds a name
	}
	d, errno := k.adopt(own, name, flags, wait)
	if errno != 0 {
		return errno
	}
	d.made = false
	if mode == unix.S_IFSOCK && k.cfg.Net {
		d.sock = handedSocket(own)
	}
	return k.fds.set(uint64(guest), d, false)
}

// reopen opens the file behind a pipe or terminal descriptor once more, non-blocking: the flag then
// is ours alone, and not also the shell's that started us. A pty master has no second open, and where
// the user may not open the terminal (after su) the shared descriptor has to do.
func reopen(fd, flags int, mode uint32) (int, bool) {
	if mode == unix.S_IFCHR {
		if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err != nil {
			return -1, false
		}
		if _, err := unix.IoctlGetInt(fd, unix.TIOCGPTN); err == nil {
			return -1, false
		}
	}
	own, err := unix.Open("/proc/self/fd/"+itoa(fd), flags&(unix.O_ACCMODE|unix.O_APPEND)|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	return own, err == nil
}

// adopt wraps a host descriptor that has no path in the guest, and owns it from here on. It is
// non-blocking if it can block at all, or wait says how not to block.
func (k *Kernel) adopt(fd int, name string, flags int, wait waiting) (*description, unix.Errno) {
	if name == "" {
		// As /proc/self/fd shows it: "pipe:[123]", "anon_inode:[eventfd]", "/memfd:name (deleted)".
		if link, err := os.Readlink("/proc/self/fd/" + itoa(fd)); err == nil {
			name = link
		}
	}
	f, errno := k.fs.Adopt(fd, name)
	if errno != 0 {
		_ = unix.Close(fd) // the error that counts is the one above
		return nil, errno
	}
	return &description{file: f, fd: f.FD, made: true, flags: flags, mode: hostMode(fd), wait: wait}, 0
}

// deliver adopts a host descriptor and gives it the lowest free number of the guest.
func (k *Kernel) deliver(fd, flags int, wait waiting, cloexec bool) (uint64, unix.Errno) {
	return k.deliverAs(fd, flags, wait, cloexec, func(*description) {})
}

// deliverAs is deliver of something that mark says more of.
func (k *Kernel) deliverAs(fd, flags int, wait waiting, cloexec bool, mark func(*description)) (uint64, unix.Errno) {
	d, errno := k.adopt(fd, "", flags, wait)
	if errno != 0 {
		return 0, errno
	}
	mark(d)
	return k.install(d, cloexec)
}

// fromFile wraps a file that vfs opened. FIFOs and devices are made non-blocking on the host; the
// guest's own O_NONBLOCK stays in flags.
func fromFile(f *vfs.File, flags int) *description {
	const status = unix.O_ACCMODE | unix.O_APPEND | unix.O_NONBLOCK | unix.O_DIRECT | unix.O_LARGEFILE |
		unix.O_NOATIME | unix.O_DSYNC | unix.O_SYNC | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_PATH | unix.O_TMPFILE
	// open(2) of a 64-bit program always has O_LARGEFILE (0100000), which x/sys/unix has as 0.
	d := &description{file: f, fd: f.FD, flags: flags&status | largeFile}
	if d.flags&unix.O_PATH != 0 {
		d.flags &^= largeFile
	}
	if f.FD < 0 || d.flags&unix.O_PATH != 0 {
		return d
	}
	d.mode = hostMode(f.FD)
	switch d.mode {
	case unix.S_IFIFO, unix.S_IFCHR, unix.S_IFSOCK:
		d.wait = waitFirst
		fl, err := unix.FcntlInt(uintptr(f.FD), unix.F_GETFL, 0)
		if err == nil {
			if _, err = unix.FcntlInt(uintptr(f.FD), unix.F_SETFL, fl|unix.O_NONBLOCK); err == nil {
				d.wait = waitAgain
			}
		}
		d.fresh = d.mode == unix.S_IFIFO && !d.nonblock() && !d.writable()
	}
	return d
}

// largeFile is O_LARGEFILE of x86-64 (include/uapi/asm-generic/fcntl.h).
const largeFile = 0o100000

func sysClose(k *Kernel, _ *Task, a args) (uint64, unix.Errno) { return 0, k.fds.close(a[0]) }

func sysCloseRange(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	first, last, flags := uint64(uint32(a[0])), uint64(uint32(a[1])), uint32(a[2])
	const unshare, cloexec = 2, 4 // CLOSE_RANGE_* (include/uapi/linux/close_range.h)
	if flags&^(unshare|cloexec) != 0 || first > last {
		return 0, unix.EINVAL
	}
	for fd := first; fd <= last && fd < uint64(len(k.fds.e)); fd++ {
		if k.fds.e[fd].d == nil {
			continue
		}
		if flags&cloexec != 0 {
			k.fds.e[fd].cloexec = true
		} else {
			_ = k.fds.close(fd) // close_range reports no error of a single close
		}
	}
	return 0, 0
}

func sysDup(k *Kernel, _ *Task, a args) (uint64, unix.Errno) { return k.dupFrom(a[0], 0, false) }

// dupFrom duplicates fd onto the lowest free descriptor at or above from.
func (k *Kernel) dupFrom(fd, from uint64, cloexec bool) (uint64, unix.Errno) {
	d, errno := k.fds.get(fd)
	if errno != 0 {
		return 0, errno
	}
	n, errno := k.fds.free(from, k.lim.nofile())
	if errno != 0 {
		return 0, errno
	}
	return n, k.fds.set(n, d, cloexec)
}

func sysDup2(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	if uint32(a[0]) == uint32(a[1]) {
		if _, errno := k.fds.get(a[0]); errno != 0 {
			return 0, errno
		}
		return uint64(uint32(a[1])), 0
	}
	return sysDup3(k, t, args{a[0], a[1], 0})
}

func sysDup3(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	from, to, flags := uint64(uint32(a[0])), uint64(uint32(a[1])), int(uint32(a[2]))
	if flags&^unix.O_CLOEXEC != 0 || from == to {
		return 0, unix.EINVAL
	}
	if to >= k.lim.nofile() {
		return 0, unix.EBADF
	}
	d, errno := k.fds.get(from)
	if errno != 0 {
		return 0, errno
	}
	_ = k.fds.set(to, d, flags&unix.O_CLOEXEC != 0) // dup2(2): errors of the implied close are lost
	return to, 0
}

func sysPipe(k *Kernel, t *Task, a args) (uint64, unix.Errno) { return sysPipe2(k, t, args{a[0], 0}) }

func sysPipe2(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	flags := int(uint32(a[1]))
	if flags&^(unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_DIRECT) != 0 {
		return 0, unix.EINVAL
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK|flags&unix.O_DIRECT); err != nil {
		return 0, errnoOf(err)
	}
	keep := flags & (unix.O_NONBLOCK | unix.O_DIRECT)
	cloexec := flags&unix.O_CLOEXEC != 0
	rfd, errno := k.deliver(p[0], unix.O_RDONLY|flags&unix.O_NONBLOCK, waitAgain, cloexec) // packets are the writer's matter
	if errno != 0 {
		_ = unix.Close(p[1]) // nobody has seen it
		return 0, errno
	}
	wfd, errno := k.deliver(p[1], unix.O_WRONLY|keep, waitAgain, cloexec)
	if errno == 0 {
		pair := [2]int32{int32(rfd), int32(wfd)}
		if errno = put(k, a[0], &pair); errno == 0 {
			return 0, 0
		}
		_ = k.fds.close(wfd) // the first error is the answer
	}
	_ = k.fds.close(rfd) // the same
	return 0, errno
}
