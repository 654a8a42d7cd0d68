package vfs

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// create runs do for a name that must not exist yet, in the order of filename_create of fs/namei.c: what
// exists is EEXIST even on a read-only mount.
func (f *FS) create(at *Dir, path string, isDir bool, do func(dir *place, name string) unix.Errno) unix.Errno {
	o, e := f.walk(at, path, parent)
	if e != 0 {
		return e
	}
	defer f.release(&o)
	if o.kind != lastName || o.dir.child(o.name) != nil {
		return unix.EEXIST
	}
	name := o.name
	if o.slash {
		name += "/" // the host has the rules for it, and follows no link at the end of a name to be made
	}
	if o.dir.writable() {
		return do(o.dir, name)
	}
	if e := f.searchable(o.dir); e != 0 {
		return e
	}
	fd, e := f.step(o.dir, o.name)
	switch {
	case e == 0:
		f.closeHandle(fd)
		return unix.EEXIST
	case e != unix.ENOENT:
		return e
	case o.slash && !isDir:
		return unix.ENOENT
	}
	return unix.EROFS
}

// Mkdir is mkdir(2).
func (f *FS) Mkdir(at *Dir, path string, mode uint32) unix.Errno {
	return f.create(at, path, true, func(dir *place, name string) unix.Errno {
		return errno(unix.Mkdirat(dir.fd, name, mode&0o7777))
	})
}

// Mknod is mknod(2) for regular files and FIFOs. Devices and sockets are EPERM: the first would be a way
// to the host's hardware for others, the second is made by bind(2) (Bind).
func (f *FS) Mknod(at *Dir, path string, mode uint32, dev uint64) unix.Errno {
	switch mode & unix.S_IFMT {
	case 0, unix.S_IFREG, unix.S_IFIFO:
	case unix.S_IFCHR, unix.S_IFBLK, unix.S_IFSOCK, unix.S_IFDIR:
		return unix.EPERM
	default:
		return unix.EINVAL
	}
	return f.create(at, path, false, func(dir *place, name string) unix.Errno {
		return errno(unix.Mknodat(dir.fd, name, mode&(unix.S_IFMT|0o7777), 0))
	})
}

// Symlink is symlink(2). The target is stored as it is; it means what it means to whoever follows it.
func (f *FS) Symlink(target string, at *Dir, path string) unix.Errno {
	if e := checkPath(target); e != 0 {
		return e
	}
	return f.create(at, path, false, func(dir *place, name string) unix.Errno {
		return errno(unix.Symlinkat(target, dir.fd, name))
	})
}

// Link is linkat(2); flags of AT_SYMLINK_FOLLOW and AT_EMPTY_PATH. Between two mounts it is EXDEV, even if
// the host's file system is the same.
func (f *FS) Link(at1 *Dir, path1 string, at2 *Dir, path2 string, flags int) unix.Errno {
	if flags&^(unix.AT_SYMLINK_FOLLOW|unix.AT_EMPTY_PATH) != 0 {
		return unix.EINVAL
	}
	how := flags & unix.AT_EMPTY_PATH
	if flags&unix.AT_SYMLINK_FOLLOW == 0 {
		how |= unix.AT_SYMLINK_NOFOLLOW
	}
	o, e := f.resolve(at1, path1, how, 0)
	if e != 0 {
		return e
	}
	defer f.release(&o)
	if o.jump != nil {
		return o.jump.Link(at2, path2)
	}
	return f.link(o.host(), o.mnt, at2, path2)
}

// Link gives an open file a name: linkat(2) with AT_EMPTY_PATH, for files from O_TMPFILE. It must lie on
// the mount from which the file came, EXDEV otherwise: a stream that the guest was handed stays without a name.
func (file *File) Link(at *Dir, path string) unix.Errno {
	if file.Synthetic() {
		return file.fs.link(-1, nil, at, path)
	}
	fd, e := file.dup()
	if e != 0 {
		return e
	}
	defer closeQuiet(fd)
	return file.fs.link(fd, file.mnt, at, path)
}

func (f *FS) link(h int, m *mount, at *Dir, path string) unix.Errno {
	return f.create(at, path, false, func(dir *place, name string) unix.Errno {
		if h < 0 || m == nil || m != dir.mnt {
			return unix.EXDEV
		}
		return errno(unix.Linkat(f.procfd, strconv.Itoa(h), dir.fd, name, unix.AT_SYMLINK_FOLLOW))
	})
}

// Unlink is unlink(2), or rmdir(2) if rmdir is set. EBUSY for a mount point or a directory above one.
func (f *FS) Unlink(at *Dir, path string, rmdir bool) unix.Errno {
	o, e := f.walk(at, path, parent)
	if e != 0 {
		return e
	}
	defer f.release(&o)
	if o.kind != lastName {
		switch {
		case !rmdir:
			return unix.EISDIR
		case o.kind == lastDot:
			return unix.EINVAL
		case o.kind == lastDotDot:
			return unix.ENOTEMPTY
		}
		return unix.EBUSY
	}
	if e := f.changeable(o.dir); e != 0 {
		return e
	}
	if c := o.dir.child(o.name); c != nil {
		switch {
		case c.kind == nodeDir && !rmdir:
			return unix.EISDIR
		case c.kind != nodeDir && (rmdir || o.slash):
			return unix.ENOTDIR
		}
		return unix.EBUSY
	}
	name, flags := o.name, 0
	if o.slash {
		name += "/"
	}
	if rmdir {
		flags = unix.AT_REMOVEDIR
	}
	return errno(unix.Unlinkat(o.dir.fd, name, flags))
}

// changeable says whether entries of p may be changed.
func (f *FS) changeable(p *place) unix.Errno {
	if p.writable() {
		return 0
	}
	if e := f.searchable(p); e != 0 {
		return e
	}
	return unix.EROFS
}

// Rename is renameat2(2) with RENAME_NOREPLACE and RENAME_EXCHANGE. RENAME_WHITEOUT is EPERM, since it makes a
// device node. Between two mounts it is EXDEV; mount points and directories above them are EBUSY.
func (f *FS) Rename(at1 *Dir, path1 string, at2 *Dir, path2 string, flags uint) unix.Errno {
	const valid = unix.RENAME_NOREPLACE | unix.RENAME_EXCHANGE | unix.RENAME_WHITEOUT
	switch {
	case flags&^valid != 0, flags&unix.RENAME_EXCHANGE != 0 && flags&^unix.RENAME_EXCHANGE != 0:
		return unix.EINVAL
	case flags&unix.RENAME_WHITEOUT != 0:
		return unix.EPERM
	}
	from, e := f.walk(at1, path1, parent)
	if e != 0 {
		return e
	}
	defer f.release(&from)
	to, e := f.walk(at2, path2, parent)
	if e != 0 {
		return e
	}
	defer f.release(&to)
	switch {
	case from.mnt != to.mnt:
		return unix.EXDEV
	case from.kind != lastName:
		return unix.EBUSY
	case to.kind != lastName && flags&unix.RENAME_NOREPLACE != 0:
		return unix.EEXIST
	case to.kind != lastName:
		return unix.EBUSY
	}
	for _, dir := range []*place{from.dir, to.dir} {
		if e := f.changeable(dir); e != 0 {
			return e
		}
	}
	if from.dir.child(from.name) != nil || to.dir.child(to.name) != nil {
		return unix.EBUSY
	}
	name1, name2 := from.name, to.name
	if from.slash {
		name1 += "/"
	}
	if to.slash {
		name2 += "/"
	}
	return errno(unix.Renameat2(from.dir.fd, name1, to.dir.fd, name2, flags))
}

// change resolves path and applies do to a handle on it, unless the guest may not change it.
func (f *FS) change(at *Dir, path string, flags int, do func(o *object, h int) unix.Errno) unix.Errno {
	if flags&^(unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH) != 0 {
		return unix.EINVAL
	}
	o, e := f.resolve(at, path, flags, 0)
	if e != 0 {
		return e
	}
	defer f.release(&o)
	if o.jump != nil {
		return o.jump.change(func(fd int) unix.Errno {
			if e := errno(unix.Fstat(fd, &o.st)); e != 0 {
				return e
			}
			return do(&o, fd)
		})
	}
	if !o.writable() {
		return unix.EROFS
	}
	return do(&o, o.host())
}

// Chmod is fchmodat2(2); flags of AT_SYMLINK_NOFOLLOW and AT_EMPTY_PATH. A symbolic link is EOPNOTSUPP.
func (f *FS) Chmod(at *Dir, path string, mode uint32, flags int) unix.Errno {
	return f.change(at, path, flags, func(o *object, h int) unix.Errno {
		if o.st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return unix.EOPNOTSUPP
		}
		return errno(unix.Fchmodat(f.procfd, strconv.Itoa(h), mode&0o7777, 0))
	})
}

// Chown is fchownat(2); an id of all ones leaves it as it is.
func (f *FS) Chown(at *Dir, path string, uid, gid uint32, flags int) unix.Errno {
	return f.change(at, path, flags, func(_ *object, h int) unix.Errno { return f.chown(h, uid, gid) })
}

func (f *FS) chown(h int, uid, gid uint32) unix.Errno {
	return errno(unix.Fchownat(f.procfd, strconv.Itoa(h), int(int32(uid)), int(int32(gid)), 0))
}

// Utimens is utimensat(2); nil means now.
func (f *FS) Utimens(at *Dir, path string, ts *[2]unix.Timespec, flags int) unix.Errno {
	if omitted(ts) {
		return 0
	}
	return f.change(at, path, flags, func(_ *object, h int) unix.Errno { return f.utimens(h, ts) })
}

// omitted is the case in which Linux does not even look at the path.
func omitted(ts *[2]unix.Timespec) bool {
	return ts != nil && ts[0].Nsec == unix.UTIME_OMIT && ts[1].Nsec == unix.UTIME_OMIT
}

func (f *FS) utimens(h int, ts *[2]unix.Timespec) unix.Errno {
	var list []unix.Timespec
	if ts != nil {
		list = ts[:]
	}
	return errno(unix.UtimesNanoAt(f.procfd, strconv.Itoa(h), list, 0))
}

// Truncate is truncate(2).
func (f *FS) Truncate(at *Dir, path string, size int64) unix.Errno {
	if size < 0 {
		return unix.EINVAL
	}
	o, e := f.walk(at, path, follow)
	if e != 0 {
		return e
	}
	defer f.release(&o)
	h, m := o.host(), o.mnt
	if o.jump != nil {
		if h, e = o.jump.dup(); e != 0 {
			return unix.EINVAL
		}
		defer closeQuiet(h)
		if e := errno(unix.Fstat(h, &o.st)); e != 0 {
			return e
		}
	}
	switch {
	case o.isDir():
		return unix.EISDIR
	case h < 0 || o.st.Mode&unix.S_IFMT != unix.S_IFREG:
		return unix.EINVAL
	case m == nil || !m.writable:
		return unix.EROFS
	}
	// O_NONBLOCK: a lease that another process holds must not stop the VMM.
	fd, e := f.viaHandle(h, unix.O_WRONLY|unix.O_NONBLOCK)
	if e != 0 {
		return e
	}
	defer closeQuiet(fd)
	return errno(unix.Ftruncate(fd, size))
}
