package vfs

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// resolve is walk with AT_EMPTY_PATH and AT_SYMLINK_NOFOLLOW.
func (f *FS) resolve(at *Dir, path string, flags int, w want) (object, unix.Errno) {
	if path == "" && flags&unix.AT_EMPTY_PATH != 0 {
		p, e := f.at(at, "")
		if e != 0 {
			return object{}, e
		}
		o, e := f.here(p, lastDot)
		if e != 0 {
			f.drop(p)
		}
		return o, e
	}
	if flags&unix.AT_SYMLINK_NOFOLLOW == 0 {
		w |= follow
	}
	return f.walk(at, path, w)
}

// access is faccessat2(2) on a handle, through /proc/self/fd.
func (f *FS) access(h int, mode uint32, flags int) unix.Errno {
	if flags == 0 {
		return errno(unix.Faccessat(f.procfd, strconv.Itoa(h), mode, 0))
	}
	return errno(unix.Faccessat2(f.procfd, strconv.Itoa(h), mode, flags))
}

func (f *FS) statPlace(p *place, st *unix.Stat_t) unix.Errno {
	if p.fd >= 0 {
		return errno(unix.Fstat(p.fd, st))
	}
	f.statNode(p.node, st)
	return 0
}

// Stat is the state of the directory itself.
func (d *Dir) Stat(st *unix.Stat_t) unix.Errno {
	p, e := d.fs.at(d, "")
	if e != 0 {
		return e
	}
	defer d.fs.drop(p)
	return d.fs.statPlace(p, st)
}

// Stat is stat(2), or lstat(2) if follow is false.
func (f *FS) Stat(at *Dir, path string, follow bool, st *unix.Stat_t) unix.Errno {
	flags := 0
	if !follow {
		flags = unix.AT_SYMLINK_NOFOLLOW
	}
	o, e := f.resolve(at, path, flags, 0)
	if e != 0 {
		return e
	}
	defer f.release(&o)
	return f.statObject(&o, st)
}

func (f *FS) statObject(o *object, st *unix.Stat_t) unix.Errno {
	switch {
	case o.jump != nil:
		return o.jump.Stat(st)
	case o.host() >= 0:
		*st = o.st
		return 0
	}
	f.statNode(o.node, st)
	return 0
}

// Statx is statx(2). flags may hold AT_EMPTY_PATH (then an empty path is at itself),
// AT_SYMLINK_NOFOLLOW, AT_NO_AUTOMOUNT and the AT_STATX_ flags. mask as there.
func (f *FS) Statx(at *Dir, path string, flags, mask int, st *unix.Statx_t) unix.Errno {
	const syncType = unix.AT_STATX_FORCE_SYNC | unix.AT_STATX_DONT_SYNC
	const valid = unix.AT_EMPTY_PATH | unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | syncType
	if flags&^valid != 0 || uint32(mask)&unix.STATX__RESERVED != 0 || flags&syncType == syncType {
		return unix.EINVAL
	}
	o, e := f.resolve(at, path, flags, 0)
	if e != 0 {
		return e
	}
	defer f.release(&o)
	sync := flags & syncType
	if o.jump != nil {
		return o.jump.Statx(sync, mask, st)
	}
	if h := o.host(); h >= 0 {
		return errno(unix.Statx(h, "", sync|unix.AT_EMPTY_PATH, mask, st))
	}
	var s unix.Stat_t
	f.statNode(o.node, &s)
	*st = toStatx(&s)
	return 0
}

func toStatx(s *unix.Stat_t) unix.Statx_t {
	at := unix.StatxTimestamp{Sec: s.Mtim.Sec, Nsec: uint32(s.Mtim.Nsec)}
	return unix.Statx_t{
		Mask: unix.STATX_BASIC_STATS, Blksize: uint32(s.Blksize), Nlink: uint32(s.Nlink), Uid: s.Uid, Gid: s.Gid,
		Mode: uint16(s.Mode), Ino: s.Ino, Size: uint64(s.Size), Blocks: uint64(s.Blocks),
		Atime: at, Mtime: at, Ctime: at,
		Rdev_major: unix.Major(s.Rdev), Rdev_minor: unix.Minor(s.Rdev),
		Dev_major: unix.Major(s.Dev), Dev_minor: unix.Minor(s.Dev),
	}
}

// Access is faccessat2(2): mode of R_OK, W_OK, X_OK or F_OK; flags of AT_EACCESS, AT_SYMLINK_NOFOLLOW and
// AT_EMPTY_PATH.
func (f *FS) Access(at *Dir, path string, mode uint32, flags int) unix.Errno {
	if mode&^7 != 0 || flags&^(unix.AT_EACCESS|unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH) != 0 {
		return unix.EINVAL
	}
	o, e := f.resolve(at, path, flags, 0)
	if e != 0 {
		return e
	}
	defer f.release(&o)
	if o.jump != nil {
		return o.jump.access(mode)
	}
	if h := o.host(); h >= 0 {
		if e := f.access(h, mode, flags&unix.AT_EACCESS); e != 0 {
			return e
		}
		if mode&unix.W_OK != 0 && !o.writable() {
			return unix.EROFS
		}
		return 0
	}
	return accessNode(o.node, mode)
}

func accessNode(n *node, mode uint32) unix.Errno {
	switch {
	case n.kind == nodeDir && mode&unix.W_OK != 0:
		return unix.EROFS
	case n.kind == nodeFile && n.write == nil && mode&unix.W_OK != 0:
		return unix.EACCES
	case n.kind != nodeDir && n.kind != nodeLink && mode&unix.X_OK != 0:
		return unix.EACCES
	}
	return 0
}

func (file *File) access(mode uint32) unix.Errno {
	if file.Synthetic() {
		if file.node == nil {
			return unix.EBADF
		}
		return accessNode(file.node, mode)
	}
	fd, e := file.dup()
	if e != 0 {
		return e
	}
	defer closeQuiet(fd)
	if e := file.fs.access(fd, mode, 0); e != 0 {
		return e
	}
	if mode&unix.W_OK != 0 && file.mnt != nil && !file.mnt.writable {
		return unix.EROFS
	}
	return 0
}

// Readlink is readlink(2) without a limit on the length: EINVAL if path is no symbolic link.
func (f *FS) Readlink(at *Dir, path string) (string, unix.Errno) {
	o, e := f.walk(at, path, 0)
	if e != 0 {
		return "", e
	}
	defer f.release(&o)
	switch {
	case !o.isLink():
		return "", unix.EINVAL
	case o.fd >= 0:
		return readlink(o.fd)
	}
	return o.node.link(), 0
}

// Statfs is statfs(2). Mounts say ST_RDONLY if they are, ST_NODEV and ST_NOSUID.
func (f *FS) Statfs(at *Dir, path string, st *unix.Statfs_t) unix.Errno {
	o, e := f.walk(at, path, follow)
	if e != 0 {
		return e
	}
	defer f.release(&o)
	if o.jump != nil {
		return o.jump.Statfs(st)
	}
	h := o.host()
	if h < 0 {
		*st = synthStatfs()
		return 0
	}
	if e := errno(unix.Fstatfs(h, st)); e != 0 {
		return e
	}
	mark(st, o.mnt)
	return 0
}

func mark(st *unix.Statfs_t, m *mount) {
	const valid = 0x20 // ST_VALID, include/linux/statfs.h: the flags are meant
	st.Flags |= valid | unix.ST_NODEV
	if !m.writable {
		st.Flags |= unix.ST_RDONLY
	}
}

func synthStatfs() unix.Statfs_t {
	return unix.Statfs_t{
		Type: unix.PROC_SUPER_MAGIC, Bsize: 4096, Frsize: 4096, Namelen: nameMax,
		Flags: 0x20 | unix.ST_RDONLY | unix.ST_NODEV | unix.ST_NOSUID,
	}
}

// Chdir resolves a working directory. The caller closes the Dir when it moves on. ENOTDIR if path
// is no directory, EACCES if it cannot be searched.
func (f *FS) Chdir(at *Dir, path string) (*Dir, unix.Errno) {
	o, e := f.walk(at, path, follow|keep)
	if e != 0 {
		return nil, e
	}
	defer f.release(&o)
	if o.place == nil {
		return nil, unix.ENOTDIR
	}
	if e := f.searchable(o.place); e != 0 {
		return nil, e
	}
	d := &Dir{fs: f, p: o.place}
	o.place = nil
	return d, 0
}
