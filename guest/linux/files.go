package linux

import (
	"encoding/binary"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister-vmm/cloister/guest/vfs"
)

// at returns the directory that a path starts from. Like Linux it does not look at dirfd when the
// path is absolute.
func (k *Kernel) at(dirfd uint64, path string) (*vfs.Dir, unix.Errno) {
	if strings.HasPrefix(path, "/") || int32(dirfd) == unix.AT_FDCWD {
		return k.cwd, 0
	}
	d, errno := k.fds.get(dirfd)
	if errno != 0 {
		return nil, errno
	}
	if d.file.Dir == nil {
		return nil, unix.ENOTDIR
	}
	return d.file.Dir, 0
}

// place reads a path argument and finds the directory it starts from. An empty path is ENOENT.
func (k *Kernel) place(dirfd, addr uint64) (*vfs.Dir, string, unix.Errno) {
	path, errno := k.path(addr)
	if errno == 0 && path == "" {
		errno = unix.ENOENT
	}
	if errno != 0 {
		return nil, "", errno
	}
	dir, errno := k.at(dirfd, path)
	return dir, path, errno
}

// cwd as a dirfd argument, for the calls that have none. It is sign-extended AT_FDCWD (-100).
const cwd = ^uint64(99)

func sysOpen(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	return k.open(cwd, a[0], int(uint32(a[1])), uint32(a[2]), 0)
}

func sysCreat(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	return k.open(cwd, a[0], unix.O_CREAT|unix.O_WRONLY|unix.O_TRUNC, uint32(a[1]), 0)
}

func sysOpenat(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	return k.open(a[0], a[1], int(uint32(a[2])), uint32(a[3]), 0)
}

// validOpen are the flags that open(2) knows (VALID_OPEN_FLAGS, include/linux/fcntl.h); it ignores
// others, openat2 refuses them.
const validOpen = unix.O_ACCMODE | unix.O_CREAT | unix.O_EXCL | unix.O_NOCTTY | unix.O_TRUNC | unix.O_APPEND |
	unix.O_NONBLOCK | unix.O_SYNC | unix.O_DSYNC | unix.O_ASYNC | unix.O_DIRECT | largeFile | unix.O_DIRECTORY |
	unix.O_NOFOLLOW | unix.O_NOATIME | unix.O_CLOEXEC | unix.O_PATH | unix.O_TMPFILE

// resolveCached is RESOLVE_CACHED (include/uapi/linux/openat2.h).
const resolveCached = 0x20

func sysOpenat2(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	var how unix.OpenHow
	const size = 24 // OPEN_HOW_SIZE_VER0
	switch {
	case a[3] < size:
		return 0, unix.EINVAL
	case a[3] > 4096:
		return 0, unix.E2BIG
	}
	raw := make([]byte, a[3])
	if errno := k.copyIn(a[2], raw); errno != 0 {
		return 0, errno
	}
	for _, b := range raw[size:] {
		if b != 0 {
			return 0, unix.E2BIG
		}
	}
	copy(bytesOf(&how), raw)
	if how.Flags&^uint64(validOpen) != 0 || how.Mode&^0o7777 != 0 ||
		how.Mode != 0 && how.Flags&(unix.O_CREAT|unix.O_TMPFILE&^unix.O_DIRECTORY) == 0 ||
		how.Flags&unix.O_PATH != 0 && how.Flags&^(unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC) != 0 {
		return 0, unix.EINVAL
	}
	const known = vfs.Resolves | unix.RESOLVE_NO_XDEV | resolveCached
	switch {
	case how.Resolve&^known != 0, how.Resolve&unix.RESOLVE_BENEATH != 0 && how.Resolve&unix.RESOLVE_IN_ROOT != 0:
		return 0, unix.EINVAL
	case how.Resolve&resolveCached != 0:
		return 0, unix.EAGAIN // openat2(2): then the caller asks again without it
	case how.Resolve&unix.RESOLVE_NO_XDEV != 0:
		k.warn("openat2: RESOLVE_NO_XDEV is not served: answered EINVAL; leave it out, mounts are the guest's own")
		return 0, unix.EINVAL
	}
	return k.open(a[0], a[1], int(how.Flags), uint32(how.Mode), how.Resolve)
}

func (k *Kernel) open(dirfd, addr uint64, flags int, mode uint32, resolve uint64) (uint64, unix.Errno) {
	flags &= validOpen
	if flags&unix.O_PATH != 0 {
		flags &= unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	}
	// The flags are judged before the path is read (fs/open.c: build_open_flags).
	const tmpfile = unix.O_TMPFILE &^ unix.O_DIRECTORY
	if flags&tmpfile != 0 && (flags&unix.O_DIRECTORY == 0 || flags&unix.O_ACCMODE == unix.O_RDONLY) || flags&unix.O_CREAT != 0 && flags&unix.O_DIRECTORY != 0 {
		return 0, unix.EINVAL
	}
	dir, path, errno := k.place(dirfd, addr)
	if errno == 0 && resolve&unix.RESOLVE_IN_ROOT != 0 {
		dir, errno = k.at(dirfd, "") // an absolute path begins there, too
	}
	if errno != 0 {
		return 0, errno
	}
	// Without a free number nothing may be created or truncated.
	if _, errno = k.fds.free(0, k.lim.nofile()); errno != 0 {
		return 0, errno
	}
	f, errno := k.openFile(dir, path, flags, mode&0o7777, resolve)
	if errno != 0 {
		return 0, errno
	}
	return k.install(fromFile(f, flags), flags&unix.O_CLOEXEC != 0)
}

// openFile opens without ever blocking: a FIFO always as with O_NONBLOCK (which means nothing to
// other files). Opening one for writing then fails until there is a reader, and is tried again.
func (k *Kernel) openFile(dir *vfs.Dir, path string, flags int, mode uint32, resolve uint64) (*vfs.File, unix.Errno) {
	if flags&unix.O_PATH != 0 {
		return k.fs.OpenResolve(dir, path, flags, mode, resolve)
	}
	for {
		f, errno := k.fs.OpenResolve(dir, path, flags|unix.O_NONBLOCK, mode, resolve)
		if errno != unix.ENXIO || flags&unix.O_NONBLOCK != 0 || flags&unix.O_ACCMODE != unix.O_WRONLY {
			return f, errno
		}
		var st unix.Stat_t
		if k.fs.Stat(dir, path, true, &st) != 0 || st.Mode&unix.S_IFMT != unix.S_IFIFO {
			return nil, unix.ENXIO
		}
		if errno := k.sleep(time.Now().Add(lockRetry)); errno != 0 {
			return nil, errno
		}
	}
}

func sysStat(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	return 0, k.statAt(cwd, a[0], a[1], 0)
}

func sysLstat(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	return 0, k.statAt(cwd, a[0], a[1], unix.AT_SYMLINK_NOFOLLOW)
}

func sysFstat(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	d, errno := k.fds.get(a[0])
	if errno != 0 {
		return 0, errno
	}
	var st unix.Stat_t
	if errno = d.file.Stat(&st); errno != 0 {
		return 0, errno
	}
	return 0, put(k, a[1], &st)
}

func sysNewfstatat(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	flags := int(uint32(a[3]))
	if flags&^(unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_EMPTY_PATH) != 0 {
		return 0, unix.EINVAL
	}
	return 0, k.statAt(a[0], a[1], a[2], flags)
}

// target resolves the arguments of a call that takes AT_EMPTY_PATH: either a descriptor (d) or a
// directory and a path.
func (k *Kernel) target(dirfd, addr uint64, empty bool) (d *description, dir *vfs.Dir, path string, errno unix.Errno) {
	if path, errno = k.path(addr); errno != 0 {
		return nil, nil, "", errno
	}
	if path != "" {
		dir, errno = k.at(dirfd, path)
		return nil, dir, path, errno
	}
	switch {
	case !empty:
		return nil, nil, "", unix.ENOENT
	case int32(dirfd) == unix.AT_FDCWD:
		return nil, k.cwd, ".", 0
	}
	d, errno = k.fds.get(dirfd)
	return d, nil, "", errno
}

func (k *Kernel) statAt(dirfd, addr, buf uint64, flags int) unix.Errno {
	d, dir, path, errno := k.target(dirfd, addr, flags&unix.AT_EMPTY_PATH != 0)
	if errno != 0 {
		return errno
	}
	var st unix.Stat_t
	if d != nil {
		errno = d.file.Stat(&st)
	} else {
		errno = k.fs.Stat(dir, path, flags&unix.AT_SYMLINK_NOFOLLOW == 0, &st)
	}
	if errno != 0 {
		return errno
	}
	return put(k, buf, &st)
}

func sysStatx(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	flags, mask := int(uint32(a[2])), int(uint32(a[3]))
	const syncFlags = 0x6000 // AT_STATX_SYNC_TYPE (include/uapi/linux/fcntl.h)
	if mask&unix.STATX__RESERVED != 0 || flags&syncFlags == syncFlags ||
		flags&^(unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_EMPTY_PATH|syncFlags) != 0 {
		return 0, unix.EINVAL
	}
	d, dir, path, errno := k.target(a[0], a[1], flags&unix.AT_EMPTY_PATH != 0)
	if errno != 0 {
		return 0, errno
	}
	var st unix.Statx_t
	if d == nil {
		errno = k.fs.Statx(dir, path, flags&^unix.AT_EMPTY_PATH, mask, &st)
	} else {
		errno = d.file.Statx(flags&syncFlags, mask, &st)
	}
	if errno != 0 {
		return 0, errno
	}
	return 0, put(k, a[4], &st)
}

// direntMax bounds the host memory of one getdents64; the rest comes with the next.
const direntMax = 256 << 10

func sysGetdents64(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	return k.getdents(a, func([]byte) {})
}

// sysGetdents serves struct linux_dirent, whose records are as long as those of linux_dirent64: the name
// begins one byte earlier, and the type is the last byte (fs/readdir.c: filldir).
func sysGetdents(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	const reclen, kind, name = 16, 18, 19
	return k.getdents(a, func(list []byte) {
		for len(list) > 0 {
			n := binary.LittleEndian.Uint16(list[reclen:])
			r := list[:n]
			t := r[kind]
			copy(r[kind:], r[name:])
			r[n-1] = t
			list = list[n:]
		}
	})
}

func (k *Kernel) getdents(a args, change func(list []byte)) (uint64, unix.Errno) {
	d, errno := k.fds.io(a[0])
	if errno != 0 {
		return 0, errno
	}
	if d.file.Dir == nil {
		return 0, unix.ENOTDIR
	}
	size := min(uint64(uint32(a[2])), direntMax)
	// Entries that were read are gone: find out first whether they can be delivered.
	p := k.mem.Prefix(a[1], size, true)
	if len(p) == 0 && size > 0 {
		return 0, unix.EFAULT
	}
	raw := make([]byte, len(p))
	n, errno := result(d.file.Getdents(raw))
	if errno != 0 {
		return 0, errno
	}
	change(raw[:n])
	return uint64(n), k.copyOut(a[1], raw[:n])
}

func sysReadlink(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	return sysReadlinkat(k, t, args{cwd, a[0], a[1], a[2]})
}

func sysReadlinkat(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	size := int32(a[3])
	if size <= 0 {
		return 0, unix.EINVAL
	}
	path, errno := k.path(a[1])
	if errno != 0 {
		return 0, errno
	}
	target, errno := k.readlink(a[0], path)
	if errno != 0 {
		return 0, errno
	}
	target = target[:min(len(target), int(size))]
	return uint64(len(target)), k.copyOut(a[2], []byte(target))
}

// readlink reads a link by its path, or the one that dirfd itself is (opened with O_PATH and O_NOFOLLOW).
func (k *Kernel) readlink(dirfd uint64, path string) (string, unix.Errno) {
	if path != "" {
		dir, errno := k.at(dirfd, path)
		if errno != 0 {
			return "", errno
		}
		return k.fs.Readlink(dir, path)
	}
	if int32(dirfd) == unix.AT_FDCWD {
		return "", unix.ENOENT
	}
	d, errno := k.fds.get(dirfd)
	if errno != 0 {
		return "", errno
	}
	return d.file.Readlink()
}

func sysGetcwd(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	path := append([]byte(k.cwd.Path()), 0)
	if uint64(len(path)) > a[1] {
		return 0, unix.ERANGE
	}
	return uint64(len(path)), k.copyOut(a[0], path)
}

func sysChdir(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	dir, path, errno := k.place(cwd, a[0])
	if errno != 0 {
		return 0, errno
	}
	return 0, k.chdir(dir, path)
}

// chdir moves the working directory; the one before is the kernel's to give up.
func (k *Kernel) chdir(dir *vfs.Dir, path string) unix.Errno {
	to, errno := k.fs.Chdir(dir, path)
	if errno != 0 {
		return errno
	}
	if k.cwd != k.fs.Cwd() && k.cwd != k.fs.Root() {
		_ = k.cwd.Close() // an O_PATH handle has nothing to flush
	}
	k.cwd = to
	return 0
}

func sysFchdir(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	d, errno := k.fds.get(a[0])
	if errno != 0 {
		return 0, errno
	}
	if d.file.Dir == nil {
		return 0, unix.ENOTDIR
	}
	return 0, k.chdir(d.file.Dir, ".")
}

func sysAccess(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	return 0, k.access(cwd, a[0], uint32(a[1]), 0)
}

func sysFaccessat(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	return 0, k.access(a[0], a[1], uint32(a[2]), 0)
}

func sysFaccessat2(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	flags := int(uint32(a[3]))
	if flags&^(unix.AT_EACCESS|unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH) != 0 {
		return 0, unix.EINVAL
	}
	return 0, k.access(a[0], a[1], uint32(a[2]), flags)
}

func (k *Kernel) access(dirfd, addr uint64, mode uint32, flags int) unix.Errno {
	if mode&^7 != 0 {
		return unix.EINVAL
	}
	d, dir, path, errno := k.target(dirfd, addr, flags&unix.AT_EMPTY_PATH != 0)
	if errno != 0 {
		return errno
	}
	switch {
	case d == nil:
		return k.fs.Access(dir, path, mode, flags&^unix.AT_EMPTY_PATH)
	case d.file.Dir != nil:
		return k.fs.Access(d.file.Dir, "", mode, flags)
	case d.fd >= 0 && d.made:
		return errnoOf(unix.Faccessat(d.fd, "", mode, flags))
	}
	return k.fs.Access(k.fs.Root(), d.file.Path, mode, flags&^unix.AT_EMPTY_PATH)
}
