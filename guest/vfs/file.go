package vfs

import (
	"sync"

	"golang.org/x/sys/unix"
)

// File is an open file of the guest: a descriptor of the host, or synthetic content. The caller keeps
// it in the guest's descriptor table, shares it between duplicated descriptors, and closes it after the
// last, not while another of its methods runs.
type File struct {
	FD    int    // host descriptor, close-on-exec, owned by the File; -1 if the file is synthetic
	Dir   *Dir   // the position, if the file is a directory; closed with the File: use Dir.Dup to keep it
	Path  string // guest path at the time of Open
	Flags int    // flags of Open, as the guest gave them (O_PATH opens: those that count)

	fs       *FS
	mnt      *mount // nil for synthetic and adopted files
	node     *node  // what a synthetic file or a device shows
	foreign  bool   // adopted
	borrowed bool   // FD is not ours to close, and the file cannot be changed

	mu      sync.Mutex // guards what follows, and FD against Close while dup runs
	closed  bool
	content []byte // what a synthetic file held when it was last read from its beginning; nil: not yet
	off     int64
	entries []dirent // what a directory with entries of ours shows; made when reading starts
}

// newFile finishes a File. The reference on the root place keeps the descriptors that methods need.
func (f *FS) newFile(file *File) *File {
	f.mu.Lock()
	f.root.p.refs++ // > 0 here: the operation that opens holds a place
	f.mu.Unlock()
	file.fs = f
	return file
}

func closeQuiet(fd int) {
	_ = unix.Close(fd) // a duplicate or an O_PATH handle: the original reports what there is to report
}

// dup duplicates the host descriptor, safe against a concurrent Close.
func (file *File) dup() (int, unix.Errno) {
	file.mu.Lock()
	defer file.mu.Unlock()
	if file.closed || file.FD < 0 {
		return -1, unix.EBADF
	}
	fd, err := unix.FcntlInt(uintptr(file.FD), unix.F_DUPFD_CLOEXEC, 0)
	return fd, errno(err)
}

// Synthetic reports whether there is no host descriptor behind the file. Such a file is always ready for
// reading, and cannot be mapped.
func (file *File) Synthetic() bool { return file.FD < 0 }

// Close closes the file. The errno is that of close(2); the file is gone in any case.
func (file *File) Close() unix.Errno {
	file.mu.Lock()
	defer file.mu.Unlock()
	if file.closed {
		return unix.EBADF
	}
	file.closed = true
	var e unix.Errno
	if file.FD >= 0 && !file.borrowed {
		e = errno(unix.Close(file.FD))
	}
	file.FD, file.content, file.entries = -1, nil, nil
	if file.Dir != nil {
		_ = file.Dir.Close() // EBADF only if the caller closed it before, which is allowed
	}
	file.fs.drop(file.fs.root.p)
	return e
}

// usable answers for synthetic files what the host answers for its own.
func (file *File) usable() unix.Errno {
	switch {
	case file.closed || file.Flags&unix.O_PATH != 0:
		return unix.EBADF
	case file.Dir != nil:
		return unix.EISDIR
	}
	return 0
}

// Pread reads at an offset and leaves the position alone. Errors are those of pread(2).
func (file *File) Pread(p []byte, off int64) (int, unix.Errno) {
	if file.FD >= 0 {
		n, err := unix.Pread(file.FD, p, off)
		return max(n, 0), errno(err)
	}
	if off < 0 {
		return 0, unix.EINVAL
	}
	file.mu.Lock()
	defer file.mu.Unlock()
	return file.text(p, off)
}

// text reads from a synthetic file. Its content is made anew by who reads from the beginning, as that of a file of proc(5)
// is; who goes on reading goes on in what it began with.
func (file *File) text(p []byte, off int64) (int, unix.Errno) {
	if e := file.usable(); e != 0 {
		return 0, e
	}
	if file.node != nil && file.node.content != nil && (off == 0 || file.content == nil) {
		content, e := file.node.content()
		if e != 0 {
			return 0, e
		}
		if file.content = content; content == nil {
			file.content = []byte{}
		}
	}
	if off >= int64(len(file.content)) {
		return 0, 0
	}
	return copy(p, file.content[off:]), 0
}

// Read reads at the position. It blocks as read(2) does. Errors are those of read(2).
func (file *File) Read(p []byte) (int, unix.Errno) {
	if file.FD >= 0 {
		n, err := unix.Read(file.FD, p)
		return max(n, 0), errno(err)
	}
	file.mu.Lock()
	defer file.mu.Unlock()
	n, e := file.text(p, file.off)
	file.off += int64(n)
	return n, e
}

// Write writes at the position, or at the end with O_APPEND. Errors are those of write(2); a synthetic file takes each
// write as a whole, wherever its position is, and answers EBADF if it is not open for writing.
func (file *File) Write(p []byte) (int, unix.Errno) {
	if file.FD < 0 {
		file.mu.Lock()
		defer file.mu.Unlock()
		if e := file.usable(); e != 0 {
			return 0, e
		}
		if !writes(file.Flags) || file.node == nil || file.node.write == nil {
			return 0, unix.EBADF
		}
		if e := file.node.write(p); e != 0 {
			return 0, e
		}
		return len(p), 0
	}
	n, err := unix.Write(file.FD, p)
	return max(n, 0), errno(err)
}

// Offset is a byte offset in a file. The name keeps vet from asking that Seek be io.Seeker's, whose error
// would hide that every error here is an errno.
type Offset = int64

// Seek moves the position as lseek(2) does and returns it. In a directory with entries of Cloister's own the
// position counts entries.
func (file *File) Seek(off Offset, whence int) (int64, unix.Errno) {
	file.mu.Lock()
	defer file.mu.Unlock()
	own := file.FD < 0 || file.merged()
	if !own {
		n, err := unix.Seek(file.FD, off, whence)
		return max(n, 0), errno(err)
	}
	if file.closed || file.Flags&unix.O_PATH != 0 {
		return 0, unix.EBADF
	}
	switch whence {
	case unix.SEEK_SET:
	case unix.SEEK_CUR:
		off += file.off
	case unix.SEEK_END:
		if file.Dir != nil {
			return 0, unix.EINVAL
		}
		off += int64(len(file.content))
	default:
		return 0, unix.EINVAL
	}
	if off < 0 {
		return 0, unix.EINVAL
	}
	if file.Dir != nil && off == 0 {
		file.entries = nil // rewinddir(3) shows what is there now
	}
	file.off = off
	return off, 0
}

// Stat is fstat(2).
func (file *File) Stat(st *unix.Stat_t) unix.Errno {
	switch {
	case file.FD >= 0:
		return errno(unix.Fstat(file.FD, st))
	case file.Dir != nil:
		return file.Dir.Stat(st)
	case file.node == nil:
		return unix.EBADF
	}
	file.fs.statNode(file.node, st)
	return 0
}

// Statx is statx(2) with AT_EMPTY_PATH. mask and flags as there.
func (file *File) Statx(flags, mask int, st *unix.Statx_t) unix.Errno {
	if file.FD >= 0 {
		return errno(unix.Statx(file.FD, "", flags|unix.AT_EMPTY_PATH, mask, st))
	}
	var s unix.Stat_t
	if e := file.Stat(&s); e != 0 {
		return e
	}
	*st = toStatx(&s)
	return 0
}

// Statfs is fstatfs(2).
func (file *File) Statfs(st *unix.Statfs_t) unix.Errno {
	if file.FD < 0 {
		*st = synthStatfs()
		return 0
	}
	e := errno(unix.Fstatfs(file.FD, st))
	if file.mnt != nil {
		mark(st, file.mnt)
	}
	return e
}

// Readlink is readlinkat(2) with an empty path: the target of a symbolic link that was opened with O_PATH
// and O_NOFOLLOW. ENOENT for anything else.
func (file *File) Readlink() (string, unix.Errno) {
	switch {
	case file.FD >= 0 && file.Flags&unix.O_PATH != 0:
		return readlink(file.FD)
	case file.FD < 0 && file.node != nil && file.node.kind == nodeLink:
		return file.node.link(), 0
	}
	return "", unix.ENOENT
}

// changeable says whether the guest may change the inode, not only the content, of an open file.
func (file *File) changeable() unix.Errno {
	switch {
	case file.closed:
		return unix.EBADF
	case file.mnt != nil && file.mnt.writable:
		return 0
	case file.foreign:
		// A stream is often the host's /dev/null or terminal: a guest of a privileged VMM could
		// take it from the whole host.
		return unix.EPERM
	}
	return unix.EROFS
}

// change applies do to the inode behind the file, if the guest may change it.
func (file *File) change(do func(fd int) unix.Errno) unix.Errno {
	file.mu.Lock()
	defer file.mu.Unlock()
	if e := file.changeable(); e != 0 {
		return e
	}
	return do(file.FD)
}

// Chmod is fchmod(2): EBADF for a file opened with O_PATH, EROFS if its mount is read-only, EPERM for
// an adopted file.
func (file *File) Chmod(mode uint32) unix.Errno {
	if file.Flags&unix.O_PATH != 0 {
		return unix.EBADF
	}
	return file.change(func(fd int) unix.Errno { return errno(unix.Fchmod(fd, mode&0o7777)) })
}

// Chown is fchown(2); an id of all ones leaves it as it is.
func (file *File) Chown(uid, gid uint32) unix.Errno {
	return file.change(func(fd int) unix.Errno { return file.fs.chown(fd, uid, gid) })
}

// Utimens is futimens(3); nil means now.
func (file *File) Utimens(ts *[2]unix.Timespec) unix.Errno {
	if omitted(ts) {
		return 0
	}
	return file.change(func(fd int) unix.Errno { return file.fs.utimens(fd, ts) })
}

// Truncate is ftruncate(2): EINVAL if the file is not open for writing.
func (file *File) Truncate(size int64) unix.Errno {
	if file.FD < 0 {
		return unix.EINVAL
	}
	return errno(unix.Ftruncate(file.FD, size))
}
