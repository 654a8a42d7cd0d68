package vfs

import (
	"errors"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// place is a directory as it was reached: the chain of parents is what ".." walks. Everything but
// refs and fd is fixed once made; those two are guarded by FS.mu, and fd may be read without it by
// whoever holds a reference.
type place struct {
	parent *place // holds one reference on it; nil for the root
	name   string
	node   *node  // set while the place is part of the namespace that New built
	mnt    *mount // nil if nothing of the host is here
	fd     int    // O_PATH handle, -1 if nothing of the host is here
	own    bool   // fd is this place's, not the mount's
	refs   int
}

func (p *place) path() string {
	if p.parent == nil {
		return "/"
	}
	var names []string
	for ; p.parent != nil; p = p.parent {
		names = append(names, p.name)
	}
	var b strings.Builder
	for i := len(names) - 1; i >= 0; i-- {
		b.WriteByte('/')
		b.WriteString(names[i])
	}
	return b.String()
}

func (p *place) writable() bool { return p.fd >= 0 && p.mnt != nil && p.mnt.writable }

// child is the namespace entry called name here, or nil. Where there is one, the host's is hidden.
func (p *place) child(name string) *node {
	if p.node == nil {
		return nil
	}
	return p.node.child(name)
}

// drop gives a reference back; the last one closes the handle and drops the parent.
func (f *FS) drop(p *place) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for p != nil {
		p.refs--
		if p.refs > 0 {
			return
		}
		if p.own {
			f.closeLocked(p.fd)
		}
		p.fd = -1
		if p.parent == nil {
			f.closeRoots()
		}
		p = p.parent
	}
}

// push makes the place name below cur and takes over the caller's reference on cur.
func push(cur *place, name string, n *node, m *mount, fd int, own bool) *place {
	return &place{parent: cur, name: name, node: n, mnt: m, fd: fd, own: own, refs: 1}
}

// reserve counts a handle against the limit.
func (f *FS) reserve() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.handles >= f.limit {
		return false
	}
	f.handles++
	return true
}

func (f *FS) closeHandle(fd int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closeLocked(fd)
}

func (f *FS) closeLocked(fd int) {
	if fd >= 0 {
		f.handles--
		// An O_PATH descriptor has nothing to flush: close(2) can only say EBADF, and then the
		// book-keeping here would be wrong, which the tests' descriptor count shows.
		_ = unix.Close(fd)
	}
}

// lookup opens an O_PATH handle on rel, plain names below dirfd. A symbolic link at the end is
// returned as such; one in between is ELOOP.
func (f *FS) lookup(dirfd int, rel string) (int, unix.Errno) {
	if !f.reserve() {
		return -1, unix.ENFILE
	}
	fd, e := openBeneath(dirfd, rel, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if e != 0 {
		f.mu.Lock()
		f.handles--
		f.mu.Unlock()
		return -1, e
	}
	return fd, 0
}

// openBeneath is the only way from a name to a host object.
func openBeneath(dirfd int, rel string, flags int, mode uint32) (int, unix.Errno) {
	how := unix.OpenHow{
		Flags:   uint64(flags) | unix.O_CLOEXEC,
		Mode:    uint64(mode),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(dirfd, rel, &how)
		if err == nil {
			return fd, 0
		}
		// openat2(2): RESOLVE_BENEATH answers EAGAIN when a rename raced with it.
		if e := errno(err); e != unix.EAGAIN || try == 100 {
			return -1, e
		}
	}
}

func errno(err error) unix.Errno {
	if err == nil {
		return 0
	}
	var e unix.Errno
	if errors.As(err, &e) {
		return e
	}
	return unix.EIO
}

// Dir is an open position in the guest's namespace: a working directory or a directory descriptor.
// It stays valid until Close, whatever is renamed meanwhile.
type Dir struct {
	fs *FS
	p  *place
}

// Path is the guest path by which the directory was reached. It is "/" for the root.
func (d *Dir) Path() string { return d.place().path() }

// place is where d is, for what never changes in a place.
func (d *Dir) place() *place {
	d.fs.mu.Lock()
	defer d.fs.mu.Unlock()
	return d.p
}

// Dup returns a second Dir on the same position, with a life of its own, for fchdir(2) and dup(2).
// It fails with EBADF if d is closed.
func (d *Dir) Dup() (*Dir, unix.Errno) {
	p, e := d.fs.at(d, "")
	if e != 0 {
		return nil, e
	}
	return &Dir{fs: d.fs, p: p}, 0
}

// Close gives the position up. Closing twice is harmless; any other use after Close answers EBADF,
// unless another Dir still holds the same position. Dirs from Root and Cwd are the FS's: Close does
// nothing to them. The Dir of a File is closed by the File.
func (d *Dir) Close() unix.Errno {
	f := d.fs
	if d == f.root || d == f.cwd {
		return 0
	}
	f.mu.Lock()
	p := d.p
	d.p = closedPlace
	f.mu.Unlock()
	if p == closedPlace {
		return unix.EBADF
	}
	f.drop(p)
	return 0
}

// closedPlace has no reference, so every hold of it fails.
var closedPlace = &place{fd: -1}

// at returns the held place where a walk of name begins.
func (f *FS) at(d *Dir, name string) (*place, unix.Errno) {
	if strings.HasPrefix(name, "/") || d == nil {
		d = f.root
	}
	if d.fs != f {
		return nil, unix.EBADF
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if d.p.refs == 0 || f.closed {
		return nil, unix.EBADF
	}
	d.p.refs++
	return d.p, 0
}

func join(p *place, rel string) string { return path.Join(p.path(), rel) }
