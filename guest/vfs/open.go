package vfs

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	tmpfile = unix.O_TMPFILE &^ unix.O_DIRECTORY // __O_TMPFILE of include/uapi/asm-generic/fcntl.h

	// statusFlags are the flags of open(2) that reach the host. O_CREAT, O_EXCL, O_NOFOLLOW and O_DIRECTORY
	// are decided here; O_ASYNC would send SIGIO to the VMM; O_NOCTTY and O_CLOEXEC are always set.
	statusFlags = unix.O_ACCMODE | unix.O_APPEND | unix.O_DIRECT | unix.O_SYNC | unix.O_NOATIME |
		unix.O_NONBLOCK | unix.O_TRUNC

	// openTries bounds how often an open starts again because somebody else made or removed the name between
	// two looks at it.
	openTries = 64
)

// Open opens path as open(2) does. mode is used when the file is made. at is used for relative paths; nil is
// the root. Errors are those of open(2), and ENFILE when Options.Handles is used up.
func (f *FS) Open(at *Dir, path string, flags int, mode uint32) (*File, unix.Errno) {
	return f.OpenResolve(at, path, flags, mode, 0)
}

// Resolves are the RESOLVE_ flags of openat2(2) that OpenResolve serves.
const Resolves = unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_BENEATH | unix.RESOLVE_IN_ROOT

// OpenResolve is Open with flags of Resolves. Errors are those of openat2(2); EINVAL for other flags, and
// for RESOLVE_BENEATH with RESOLVE_IN_ROOT. Names cannot race with a walk here, so EAGAIN does not occur.
func (f *FS) OpenResolve(at *Dir, path string, flags int, mode uint32, resolve uint64) (*File, unix.Errno) {
	const both = unix.RESOLVE_BENEATH | unix.RESOLVE_IN_ROOT
	if resolve&^Resolves != 0 || resolve&both == both {
		return nil, unix.EINVAL
	}
	var scope want
	for _, r := range [...]struct {
		flag uint64
		w    want
	}{{unix.RESOLVE_NO_SYMLINKS, noLinks}, {unix.RESOLVE_NO_MAGICLINKS, noMagic}, {unix.RESOLVE_BENEATH, beneath}, {unix.RESOLVE_IN_ROOT, inRoot}} {
		if resolve&r.flag != 0 {
			scope |= r.w
		}
	}
	if flags&unix.O_PATH != 0 {
		flags &= unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	}
	if flags&unix.O_DIRECTORY != 0 && flags&unix.O_CREAT != 0 {
		return nil, unix.EINVAL // since Linux 6.4
	}
	if flags&tmpfile != 0 && (flags&unix.O_DIRECTORY == 0 || !writes(flags)) {
		return nil, unix.EINVAL
	}
	for range openTries {
		file, again, e := f.open(at, path, flags, mode, scope)
		if !again {
			return file, e
		}
	}
	return nil, unix.EAGAIN
}

// writes reports whether the access mode in flags includes writing. 3, which Linux accepts for ioctls
// only, counts.
func writes(flags int) bool { return flags&unix.O_ACCMODE != unix.O_RDONLY }

func (f *FS) open(at *Dir, path string, flags int, mode uint32, w want) (file *File, again bool, e unix.Errno) {
	create := flags&unix.O_CREAT != 0
	exclusive := create && flags&unix.O_EXCL != 0
	if flags&unix.O_NOFOLLOW == 0 && !exclusive {
		w |= follow
	}
	if create {
		w |= creating
	}
	if flags&unix.O_DIRECTORY != 0 {
		w |= keep
	}
	o, e := f.walk(at, path, w)
	if e != 0 {
		return nil, false, e
	}
	if o.place == nil && o.isDir() {
		// The shortcut found a directory, but an open directory needs the way by which it was reached.
		f.release(&o)
		if o, e = f.walk(at, path, w|keep); e != 0 {
			return nil, false, e
		}
	}
	defer f.release(&o)
	if o.missing {
		return f.make(&o, flags, mode, exclusive)
	}
	switch {
	case exclusive:
		return nil, false, unix.EEXIST
	case create && o.isDir():
		return nil, false, unix.EISDIR
	case flags&unix.O_DIRECTORY != 0 && !o.isDir():
		return nil, false, unix.ENOTDIR
	case flags&tmpfile != 0:
		file, e = f.openUnnamed(&o, flags, mode)
	case flags&unix.O_PATH != 0:
		file, e = f.openHandle(&o, flags)
	case o.isDir():
		if writes(flags) || flags&unix.O_TRUNC != 0 {
			return nil, false, unix.EISDIR
		}
		file, e = f.openDir(&o, flags)
	case o.jump != nil:
		file, e = f.reopen(o.jump, flags)
	case o.fd >= 0:
		file, e = f.openHost(o.fd, &o.st, o.mnt, o.path(), flags)
	default:
		file, e = f.openNode(&o, flags)
	}
	return file, false, e
}

// make makes the regular file that was missing. O_EXCL makes sure that it is new: anything that
// appeared meanwhile, a device or a link say, is looked at from the start.
func (f *FS) make(o *object, flags int, mode uint32, exclusive bool) (*File, bool, unix.Errno) {
	if !o.dir.writable() {
		return nil, false, unix.EROFS
	}
	fd, e := openBeneath(o.dir.fd, o.name, flags&statusFlags|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_NOCTTY, mode&0o7777)
	if e == unix.EEXIST && !exclusive {
		return nil, true, 0
	}
	if e != 0 {
		return nil, false, e
	}
	return f.newFile(&File{FD: fd, Path: o.path(), Flags: flags, mnt: o.mnt}), false, 0
}

// openUnnamed is O_TMPFILE.
func (f *FS) openUnnamed(o *object, flags int, mode uint32) (*File, unix.Errno) {
	if !o.writable() {
		return nil, unix.EROFS
	}
	fd, e := openBeneath(o.place.fd, ".", flags&(statusFlags|unix.O_EXCL)|unix.O_TMPFILE|unix.O_NOCTTY, mode&0o7777)
	if e != 0 {
		return nil, e
	}
	return f.newFile(&File{FD: fd, Path: join(o.place, "#unnamed") + " (deleted)", Flags: flags, mnt: o.mnt}), 0
}

// openHandle is O_PATH.
func (f *FS) openHandle(o *object, flags int) (*File, unix.Errno) {
	if o.jump != nil && o.jump.Synthetic() {
		return f.newFile(&File{FD: -1, Path: o.jump.Path, Flags: flags, node: o.jump.node}), 0
	}
	if o.jump != nil {
		fd, e := o.jump.dup()
		if e != 0 {
			return nil, e
		}
		defer closeQuiet(fd)
		n, e := f.viaHandle(fd, unix.O_PATH)
		if e != 0 {
			return nil, e
		}
		return f.newFile(&File{FD: n, Path: o.jump.Path, Flags: flags, mnt: o.jump.mnt, node: o.jump.node, foreign: o.jump.foreign}), 0
	}
	file := &File{FD: -1, Path: o.path(), Flags: flags, mnt: o.mnt, node: o.node}
	if h := o.host(); h >= 0 {
		fd, err := unix.FcntlInt(uintptr(h), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, errno(err)
		}
		file.FD, file.node = fd, nil
	}
	if o.place != nil {
		file.Dir, o.place = &Dir{fs: f, p: o.place}, nil
	}
	return f.newFile(file), 0
}

func (f *FS) openDir(o *object, flags int) (*File, unix.Errno) {
	if o.place == nil {
		return nil, unix.ENOTDIR // a directory that was renamed away between two walks
	}
	file := &File{FD: -1, Path: o.place.path(), Flags: flags, mnt: o.mnt}
	if o.place.fd >= 0 {
		fd, e := f.viaHandle(o.place.fd, flags&statusFlags&^unix.O_TRUNC|unix.O_DIRECTORY)
		if e != 0 {
			return nil, e
		}
		file.FD = fd
	}
	file.Dir, o.place = &Dir{fs: f, p: o.place}, nil
	return f.newFile(file), 0
}

// openHost opens the host object behind the handle h, whose state is st.
func (f *FS) openHost(h int, st *unix.Stat_t, m *mount, path string, flags int) (*File, unix.Errno) {
	change := writes(flags) || flags&unix.O_TRUNC != 0
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return nil, unix.ELOOP
	case unix.S_IFSOCK:
		return nil, unix.ENXIO
	case unix.S_IFCHR, unix.S_IFBLK:
		return nil, unix.EACCES
	case unix.S_IFIFO:
		change = writes(flags)
	}
	if change && !m.writable {
		// Linux looks at the permission bits first.
		if e := f.access(h, accessOf(flags), unix.AT_EACCESS); e != 0 {
			return nil, e
		}
		return nil, unix.EROFS
	}
	fd, e := f.viaHandle(h, flags&statusFlags)
	if e != 0 {
		return nil, e
	}
	return f.newFile(&File{FD: fd, Path: path, Flags: flags, mnt: m}), 0
}

// accessOf is the permission that an open with flags needs.
func accessOf(flags int) uint32 {
	mode := uint32(unix.R_OK)
	switch flags & unix.O_ACCMODE {
	case unix.O_WRONLY:
		mode = unix.W_OK
	case unix.O_RDWR, unix.O_ACCMODE:
		mode = unix.R_OK | unix.W_OK
	}
	if flags&unix.O_TRUNC != 0 {
		mode |= unix.W_OK
	}
	return mode
}

// viaHandle opens the very inode that the descriptor h refers to.
func (f *FS) viaHandle(h int, flags int) (int, unix.Errno) {
	fd, err := unix.Openat(f.procfd, strconv.Itoa(h), flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	return fd, errno(err)
}

// openNode opens a synthetic file or one of the host's harmless devices.
func (f *FS) openNode(o *object, flags int) (*File, unix.Errno) {
	n := o.node
	switch n.kind {
	case nodeLink:
		return nil, unix.ELOOP
	case nodeDevice:
		return f.openDevice(n, o.path(), flags)
	case nodeShared:
		return f.openShared(n, o.path(), flags)
	}
	return f.openText(n, o.path(), flags)
}

// openText opens a synthetic file. To truncate one means nothing: its content is not the file's to keep.
func (f *FS) openText(n *node, path string, flags int) (*File, unix.Errno) {
	if n.write == nil && (writes(flags) || flags&unix.O_TRUNC != 0) {
		return nil, unix.EACCES
	}
	return f.newFile(&File{FD: -1, Path: path, Flags: flags, node: n}), 0
}

func (f *FS) openDevice(n *node, path string, flags int) (*File, unix.Errno) {
	h, err := unix.Open(n.host, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, unix.ENXIO
	}
	defer closeQuiet(h)
	var st unix.Stat_t
	if e := errno(unix.Fstat(h, &st)); e != 0 {
		return nil, e
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != n.rdev {
		return nil, unix.ENXIO // the host's /dev is not what it should be
	}
	fd, e := f.viaHandle(h, flags&statusFlags&^unix.O_TRUNC)
	if e != 0 {
		return nil, e
	}
	return f.newFile(&File{FD: fd, Path: path, Flags: flags, node: n}), 0
}

// openShared opens a file that the caller shares; the host decides what its descriptor's file allows.
func (f *FS) openShared(n *node, path string, flags int) (*File, unix.Errno) {
	fd, e := f.viaHandle(n.fd, flags&statusFlags)
	if e != 0 {
		return nil, e
	}
	return f.newFile(&File{FD: fd, Path: path, Flags: flags, node: n}), 0
}

// reopen is open(2) on /proc/self/fd/N. It gives no right that the guest lacks: beyond what the descriptor
// itself allows, only its mount can.
func (f *FS) reopen(file *File, flags int) (*File, unix.Errno) {
	if n := file.node; n != nil {
		switch {
		case n.kind == nodeDevice:
			return f.openDevice(n, file.Path, flags)
		case n.kind == nodeShared:
			return f.openShared(n, file.Path, flags)
		case n.kind == nodeLink:
			return nil, unix.ELOOP
		}
		return f.openText(n, file.Path, flags)
	}
	h, e := file.dup()
	if e != 0 {
		return nil, e
	}
	defer closeQuiet(h)
	var st unix.Stat_t
	if e := errno(unix.Fstat(h, &st)); e != 0 {
		return nil, e
	}
	if file.mnt != nil {
		return f.openHost(h, &st, file.mnt, file.Path, flags)
	}
	// A standard stream, or the program itself.
	have, e := accessMode(h)
	if e != 0 {
		return nil, e
	}
	if file.borrowed {
		have &= unix.R_OK // whatever the caller's descriptor could do
	}
	ask := accessOf(flags)
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		ask = accessOf(flags &^ unix.O_TRUNC)
	}
	if ask&^have != 0 {
		return nil, unix.EACCES
	}
	fd, e := f.viaHandle(h, flags&statusFlags)
	if e != 0 {
		return nil, e
	}
	return f.newFile(&File{FD: fd, Path: file.Path, Flags: flags, foreign: file.foreign}), 0
}

// accessMode is what an open descriptor allows, as R_OK and W_OK; nothing for O_PATH.
func accessMode(fd int) (uint32, unix.Errno) {
	fl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return 0, errno(err)
	}
	if fl&unix.O_PATH != 0 {
		return 0, 0
	}
	return accessOf(fl & unix.O_ACCMODE), 0
}

// Adopt makes a File of a host descriptor that the guest is given, a standard stream for instance, and
// takes it over. name is what /proc/self/fd shows for it. The guest may read and write it as far
// as its access mode goes, and neither change its mode, owner or times (EPERM) nor reach anything else through it: it
// is no directory to walk from.
func (f *FS) Adopt(fd int, name string) (*File, unix.Errno) {
	root, e := f.at(f.root, "")
	if e != 0 {
		return nil, e
	}
	defer f.drop(root)
	fl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return nil, errno(err)
	}
	if name == "" {
		name = fmt.Sprintf("stream:[%d]", fd)
	}
	return f.newFile(&File{FD: fd, Path: name, Flags: fl, foreign: true}), 0
}
