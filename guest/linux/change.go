package linux

import (
	"golang.org/x/sys/unix"
)

func sysMkdir(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	return sysMkdirat(k, t, args{cwd, a[0], a[1]})
}

func sysMkdirat(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	dir, path, errno := k.place(a[0], a[1])
	if errno != 0 {
		return 0, errno
	}
	return 0, k.fs.Mkdir(dir, path, uint32(a[2])&0o7777)
}

func sysMknod(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	return sysMknodat(k, t, args{cwd, a[0], a[1], a[2]})
}

func sysMknodat(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	dir, path, errno := k.place(a[0], a[1])
	if errno != 0 {
		return 0, errno
	}
	return 0, errnoOf(k.fs.Mknod(dir, path, uint32(a[2]), uint64(uint32(a[3]))))
}

func sysRmdir(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	return 0, k.unlink(cwd, a[0], true)
}

func sysUnlink(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	return 0, k.unlink(cwd, a[0], false)
}

func sysUnlinkat(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if uint32(a[2])&^unix.AT_REMOVEDIR != 0 {
		return 0, unix.EINVAL
	}
	return 0, k.unlink(a[0], a[1], a[2]&unix.AT_REMOVEDIR != 0)
}

func (k *Kernel) unlink(dirfd, addr uint64, rmdir bool) unix.Errno {
	dir, path, errno := k.place(dirfd, addr)
	if errno != 0 {
		return errno
	}
	return k.fs.Unlink(dir, path, rmdir)
}

func sysRename(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	return sysRenameat2(k, t, args{cwd, a[0], cwd, a[1], 0})
}

func sysRenameat(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	return sysRenameat2(k, t, args{a[0], a[1], a[2], a[3], 0})
}

func sysRenameat2(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	flags := uint32(a[4])
	const known = unix.RENAME_NOREPLACE | unix.RENAME_EXCHANGE
	if flags&^known != 0 || flags == known {
		return 0, unix.EINVAL
	}
	from, oldPath, errno := k.place(a[0], a[1])
	if errno != 0 {
		return 0, errno
	}
	to, newPath, errno := k.place(a[2], a[3])
	if errno != 0 {
		return 0, errno
	}
	return 0, k.fs.Rename(from, oldPath, to, newPath, uint(flags))
}

func sysLink(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	return sysLinkat(k, t, args{cwd, a[0], cwd, a[1], 0})
}

func sysLinkat(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	flags := int(uint32(a[4]))
	if flags&^(unix.AT_SYMLINK_FOLLOW|unix.AT_EMPTY_PATH) != 0 {
		return 0, unix.EINVAL
	}
	// Linking an open file without its name needs a privilege natively, too.
	from, oldPath, errno := k.place(a[0], a[1])
	if errno != 0 {
		return 0, errno
	}
	to, newPath, errno := k.place(a[2], a[3])
	if errno != 0 {
		return 0, errno
	}
	return 0, k.fs.Link(from, oldPath, to, newPath, flags&unix.AT_SYMLINK_FOLLOW)
}

func sysSymlink(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	return sysSymlinkat(k, t, args{a[0], cwd, a[1]})
}

func sysSymlinkat(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	target, errno := k.path(a[0])
	if errno != 0 {
		return 0, errno
	}
	if target == "" {
		return 0, unix.ENOENT
	}
	dir, path, errno := k.place(a[1], a[2])
	if errno != 0 {
		return 0, errno
	}
	return 0, k.fs.Symlink(target, dir, path)
}

func sysChmod(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	return 0, k.chmod(cwd, a[0], a[1], 0)
}

func sysFchmodat(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	return 0, k.chmod(a[0], a[1], a[2], 0)
}

func sysFchmodat2(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	flags := int(uint32(a[3]))
	if flags&^(unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH) != 0 {
		return 0, unix.EINVAL
	}
	return 0, k.chmod(a[0], a[1], a[2], flags)
}

func (k *Kernel) chmod(dirfd, addr, mode uint64, flags int) unix.Errno {
	d, dir, path, errno := k.target(dirfd, addr, flags&unix.AT_EMPTY_PATH != 0)
	switch {
	case errno != 0:
		return errno
	case d != nil:
		return d.file.Chmod(uint32(mode) & 0o7777)
	}
	return k.fs.Chmod(dir, path, uint32(mode)&0o7777, flags&^unix.AT_EMPTY_PATH)
}

func sysFchmod(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	d, errno := k.fds.io(a[0])
	if errno != 0 {
		return 0, errno
	}
	return 0, d.file.Chmod(uint32(a[1]) & 0o7777)
}

func sysChown(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	return 0, k.chown(cwd, a[0], a[1], a[2], 0)
}

func sysLchown(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	return 0, k.chown(cwd, a[0], a[1], a[2], unix.AT_SYMLINK_NOFOLLOW)
}

func sysFchownat(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	flags := int(uint32(a[4]))
	if flags&^(unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH) != 0 {
		return 0, unix.EINVAL
	}
	return 0, k.chown(a[0], a[1], a[2], a[3], flags)
}

func (k *Kernel) chown(dirfd, addr, uid, gid uint64, flags int) unix.Errno {
	d, dir, path, errno := k.target(dirfd, addr, flags&unix.AT_EMPTY_PATH != 0)
	switch {
	case errno != 0:
		return errno
	case d != nil:
		return d.file.Chown(uint32(uid), uint32(gid))
	}
	return errnoOf(k.fs.Chown(dir, path, uint32(uid), uint32(gid), flags&^unix.AT_EMPTY_PATH))
}

func sysFchown(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	d, errno := k.fds.io(a[0])
	if errno != 0 {
		return 0, errno
	}
	return 0, d.file.Chown(uint32(a[1]), uint32(a[2]))
}

func sysTruncate(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if int64(a[1]) < 0 {
		return 0, unix.EINVAL
	}
	dir, path, errno := k.place(cwd, a[0])
	if errno != 0 {
		return 0, errno
	}
	return 0, k.fs.Truncate(dir, path, int64(a[1]))
}

func sysFtruncate(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if int64(a[1]) < 0 {
		return 0, unix.EINVAL
	}
	d, errno := k.fds.io(a[0])
	if errno != 0 {
		return 0, errno
	}
	return 0, d.file.Truncate(int64(a[1]))
}

// setTimes is the end of all utime calls; ts is nil for "now". An empty path pointer means dirfd itself.
func (k *Kernel) setTimes(dirfd, addr uint64, ts *[2]unix.Timespec, flags int) unix.Errno {
	if addr == 0 && int32(dirfd) != unix.AT_FDCWD {
		if flags != 0 {
			return unix.EINVAL
		}
		d, errno := k.fds.io(dirfd)
		if errno != 0 {
			return errno
		}
		return d.file.Utimens(ts)
	}
	d, dir, path, errno := k.target(dirfd, addr, flags&unix.AT_EMPTY_PATH != 0)
	switch {
	case errno != 0:
		return errno
	case d != nil:
		return d.file.Utimens(ts)
	}
	return k.fs.Utimens(dir, path, ts, flags&^unix.AT_EMPTY_PATH)
}

func sysUtimensat(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	var ts *[2]unix.Timespec
	if a[2] != 0 {
		ts = new([2]unix.Timespec)
		if errno := get(k, a[2], ts); errno != 0 {
			return 0, errno
		}
		omit := 0
		for _, t := range ts {
			if t.Nsec == unix.UTIME_OMIT {
				omit++
			} else if t.Nsec != unix.UTIME_NOW && uint64(t.Nsec) >= 1e9 {
				return 0, unix.EINVAL
			}
		}
		// Nothing to do is done before anything is looked up (fs/utimes.c).
		if omit == 2 {
			return 0, 0
		}
	}
	flags := int(uint32(a[3]))
	if flags&^(unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH) != 0 {
		return 0, unix.EINVAL
	}
	return 0, k.setTimes(a[0], a[1], ts, flags)
}

func sysUtime(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	var ts *[2]unix.Timespec
	if a[1] != 0 {
		var sec [2]int64
		if errno := get(k, a[1], &sec); errno != 0 {
			return 0, errno
		}
		ts = &[2]unix.Timespec{{Sec: sec[0]}, {Sec: sec[1]}}
	}
	return 0, k.setTimes(cwd, a[0], ts, 0)
}

func sysUtimes(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	return sysFutimesat(k, t, args{cwd, a[0], a[1]})
}

func sysFutimesat(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	var ts *[2]unix.Timespec
	if a[2] != 0 {
		var tv [2]unix.Timeval
		if errno := get(k, a[2], &tv); errno != 0 {
			return 0, errno
		}
		ts = new([2]unix.Timespec)
		for i := range tv {
			if uint64(tv[i].Usec) >= 1e6 {
				return 0, unix.EINVAL
			}
			ts[i] = unix.Timespec{Sec: tv[i].Sec, Nsec: tv[i].Usec * 1000}
		}
	}
	return 0, k.setTimes(a[0], a[1], ts, 0)
}

func sysStatfs(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	dir, path, errno := k.place(cwd, a[0])
	if errno != 0 {
		return 0, errno
	}
	var st unix.Statfs_t
	if errno := k.fs.Statfs(dir, path, &st); errno != 0 {
		return 0, errno
	}
	return 0, put(k, a[1], &st)
}

func sysFstatfs(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	d, errno := k.fds.get(a[0])
	if errno != 0 {
		return 0, errno
	}
	var st unix.Statfs_t
	if errno = d.file.Statfs(&st); errno != 0 {
		return 0, errno
	}
	return 0, put(k, a[1], &st)
}
