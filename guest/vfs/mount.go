package vfs

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Mount shares one directory, or one regular file, of the host with the guest.
type Mount struct {
	Host     string // host path; links in it are followed, the user chose it
	Guest    string // absolute guest path; empty means the same as Host
	Writable bool   // false refuses every change with EROFS
}

// String is the mount as the user would write it.
func (m Mount) String() string {
	flag := "--ro "
	if m.Writable {
		flag = "--rw "
	}
	if m.Guest == "" || m.Guest == m.Host {
		return flag + m.Host
	}
	return flag + m.Host + ":" + m.Guest
}

// ParseMount reads the value of --ro or --rw: HOST or HOST:GUEST. The last ":/" divides, so a host path
// may hold a colon.
func ParseMount(value string, writable bool) (Mount, error) {
	m := Mount{Host: value, Writable: writable}
	if i := strings.LastIndex(value, ":/"); i >= 0 {
		m.Host, m.Guest = value[:i], value[i+1:]
	}
	switch {
	case m.Host == "":
		return Mount{}, fmt.Errorf("mount %q: no host directory; write HOST or HOST:GUEST", value)
	case strings.IndexByte(value, 0) >= 0:
		return Mount{}, fmt.Errorf("mount %q: a path cannot hold a NUL byte; remove it", value)
	}
	return m, nil
}

// mount is an applied Mount.
type mount struct {
	guest    string
	writable bool
	fd       int    // O_PATH on the root
	dev      uint64 // the file system of the root
	dir      bool
}

// FS is one guest's namespace. All methods may be called from several goroutines at once.
type FS struct {
	opt       Options
	ns        *node // the root of the synthetic tree; fixed after New
	self      *node // /proc/PID
	mounts    []*mount
	procfd    int // O_PATH on the VMM's own /proc/self/fd, to open what a handle holds
	protected bool
	uid       uint32
	started   time.Time
	root, cwd *Dir
	limit     int

	mu      sync.Mutex // guards handles, closed, every place.refs, the fd of a place that dies, Dir.p
	handles int
	closed  bool
}

// DefaultHandles is the limit of O_PATH handles if Options.Handles is 0: enough for two directories as
// deep as PATH_MAX allows plus a thousand ordinary ones.
const DefaultHandles = 8192

// New makes the namespace. Mounts are applied from the shallowest guest path to the deepest, and a link in
// a guest path is followed inside the guest, as mount(8) would. The error is one line that names the mount and
// says what to do; nothing stays open then.
func New(mounts []Mount, o Options) (*FS, error) {
	f := &FS{opt: o, limit: o.Handles, procfd: -1, uid: uint32(unix.Geteuid()), started: time.Now()}
	if f.limit <= 0 {
		f.limit = DefaultHandles
	}
	f.opt.fill()
	f.ns = f.synthetic()
	f.root = &Dir{fs: f, p: &place{node: f.ns, fd: -1, refs: 1}}
	f.cwd = f.root
	if err := f.setup(mounts); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (f *FS) setup(mounts []Mount) error {
	var err error
	f.procfd, err = unix.Open("/proc/self/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		if proc, e := onProc(f.procfd); e != 0 || !proc {
			err = unix.ENOTSUP
		}
	}
	if err != nil {
		return fmt.Errorf("guest files: /proc/self/fd is not usable (%v); mount proc on /proc of the host", err)
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	probe, err := unix.Openat2(f.procfd, ".", &how)
	if err != nil {
		return fmt.Errorf("guest files: openat2 fails (%v); use Linux 5.6 or later and allow openat2 in the seccomp filter", err)
	}
	if err := unix.Close(probe); err != nil {
		return fmt.Errorf("guest files: close: %v", err)
	}
	if len(mounts) > 0 { // else there is no link but ours
		if f.protected, err = protectedSymlinks(); err != nil {
			return fmt.Errorf("guest files: %v; mount proc on /proc of the host", err)
		}
	}
	type pending struct {
		Mount
		guest string
	}
	todo := make([]pending, 0, len(mounts))
	for _, m := range mounts {
		guest, err := guestPath(m)
		if err != nil {
			return err
		}
		todo = append(todo, pending{m, guest})
	}
	depth := func(p string) int {
		if p == "/" {
			return 0
		}
		return strings.Count(p, "/")
	}
	slices.SortStableFunc(todo, func(a, b pending) int { return cmp.Compare(depth(a.guest), depth(b.guest)) })
	for _, m := range todo {
		if err := f.mount(m.Mount, m.guest); err != nil {
			return err
		}
	}
	f.ns.number(new(uint64))
	if f.opt.Cwd != "/" {
		if d, e := f.Chdir(f.root, f.opt.Cwd); e == 0 {
			f.cwd = d
		}
	}
	return nil
}

// guestPath is the cleaned guest path of m.
func guestPath(m Mount) (string, error) {
	guest := m.Guest
	if guest == "" {
		abs, err := filepath.Abs(m.Host)
		if err != nil {
			return "", fmt.Errorf("%v: the current directory is not known (%v); give an absolute path", m, err)
		}
		guest = abs
	}
	if !strings.HasPrefix(guest, "/") {
		return "", fmt.Errorf("%v: guest path %q is not absolute; write HOST:/GUEST", m, guest)
	}
	if len(guest) >= pathMax || strings.IndexByte(guest, 0) >= 0 {
		return "", fmt.Errorf("%v: the guest path is too long or holds a NUL byte; choose another", m)
	}
	guest = path.Clean(guest)
	for p := range strings.SplitSeq(guest, "/") {
		if len(p) > nameMax {
			return "", fmt.Errorf("%v: a name in the guest path is longer than %d bytes; choose another", m, nameMax)
		}
	}
	if guest == "/dev" || guest == "/proc" || strings.HasPrefix(guest, "/proc/") {
		return "", fmt.Errorf("%v: the guest has its own %s; mount it elsewhere with HOST:GUEST", m, guest)
	}
	return guest, nil
}

func (f *FS) mount(m Mount, guest string) error {
	fd, err := unix.Open(m.Host, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		remedy := "check the path"
		switch err {
		case unix.ENOENT:
			remedy = "create it or correct the path"
		case unix.EACCES:
			remedy = "give yourself access to it"
		}
		return fmt.Errorf("%v: %s: %v; %s", m, m.Host, err, remedy)
	}
	mt := &mount{guest: guest, writable: m.Writable, fd: fd}
	f.mounts = append(f.mounts, mt) // from here on Close closes it
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("%v: stat: %v; check the path", m, err)
	}
	proc, e := onProc(fd)
	if e != 0 {
		return fmt.Errorf("%v: statfs: %v; check the path", m, e)
	}
	if proc {
		return fmt.Errorf("%v: the host's proc is not shared with a guest, which has its own /proc; leave it out", m)
	}
	mt.dev = st.Dev
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		mt.dir = true
		if e := f.access(fd, unix.X_OK, unix.AT_EACCESS); e != 0 {
			return fmt.Errorf("%v: %s cannot be entered: %v; give yourself search permission on it", m, m.Host, e)
		}
	case unix.S_IFREG:
	default:
		return fmt.Errorf("%v: %s is neither a directory nor a regular file; mount the directory above it", m, m.Host)
	}
	n, where, e := f.mountPoint(guest)
	switch {
	case e != 0:
		return fmt.Errorf("%v: guest path %s: %v; choose another guest path", m, guest, e)
	case n.mount != nil:
		return fmt.Errorf("%v: guest path %s is taken by another mount; keep one of the two", m, where)
	case n.opaque && (n == f.ns.children["dev"] || n == f.ns.children["proc"]) || n.fixed():
		return fmt.Errorf("%v: the guest has its own %s; mount it elsewhere with HOST:GUEST", m, where)
	case !mt.dir && (len(n.kids()) > 0 || n == f.ns):
		return fmt.Errorf("%v: a file cannot be mounted on the directory %s; name the file in HOST:GUEST", m, where)
	}
	n.mount, mt.guest = mt, where
	if !mt.dir {
		n.kind = nodeFile
	}
	if n == f.ns {
		f.root.p.mnt, f.root.p.fd = mt, fd
	}
	return nil
}

// mountPoint finds or makes the node for a guest path. Links are followed as far as the path exists.
func (f *FS) mountPoint(guest string) (*node, string, unix.Errno) {
	where := "/"
	names := strings.Split(strings.Trim(guest, "/"), "/")
	for i, name := range names {
		if name == "" {
			break
		}
		o, e := f.walk(f.root, path.Join(where, name), follow|keep)
		if e == unix.ENOENT {
			where = path.Join(append([]string{where}, names[i:]...)...)
			break
		}
		if e != 0 {
			return nil, "", e
		}
		if i < len(names)-1 && !o.isDir() {
			f.release(&o)
			return nil, "", unix.ENOTDIR
		}
		where = o.path()
		f.release(&o)
	}
	n := f.ns
	for name := range strings.SplitSeq(strings.Trim(where, "/"), "/") {
		if name == "" {
			break
		}
		if n.kind != nodeDir || n.names != nil || n.sealed {
			return nil, "", unix.EPERM
		}
		next := n.kids()[name]
		if next == nil {
			next = &node{kind: nodeDir, mode: 0o755}
			n.add(name, next)
		}
		n = next
	}
	return n, where, 0
}

// Close ends the namespace: from now on every operation by name answers EBADF. Descriptors are
// given back when the last open File and Dir is closed. It always returns nil.
func (f *FS) Close() error {
	f.mu.Lock()
	was := f.closed
	f.closed = true
	f.mu.Unlock()
	if was {
		return nil
	}
	if f.cwd != f.root {
		f.drop(f.cwd.p)
	}
	f.drop(f.root.p)
	return nil
}

// closeRoots runs once, when nothing refers to the root place any more: every place and every File does.
func (f *FS) closeRoots() {
	for _, m := range f.mounts {
		_ = unix.Close(m.fd) // O_PATH: nothing to flush
	}
	if f.procfd >= 0 {
		_ = unix.Close(f.procfd) // a directory, read only: nothing to flush
	}
	f.procfd = -1
}

// Root is the guest's root directory. It belongs to the FS.
func (f *FS) Root() *Dir { return f.root }

// Cwd is the directory in which the guest starts: Options.Cwd, or the root if that is no directory of
// the guest. It belongs to the FS.
func (f *FS) Cwd() *Dir { return f.cwd }
