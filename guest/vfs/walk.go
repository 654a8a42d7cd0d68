package vfs

import (
	"strings"

	"golang.org/x/sys/unix"
)

const (
	nameMax  = 255  // NAME_MAX, include/uapi/linux/limits.h
	pathMax  = 4096 // PATH_MAX, the same, with the final NUL
	maxLinks = 40   // MAXSYMLINKS, include/linux/namei.h
)

// want says what a walk has to deliver.
type want uint16

const (
	follow   want = 1 << iota // follow a symbolic link at the end
	keep                      // a directory must come as a place
	parent                    // stop before the last component
	creating                  // for O_CREAT: a trailing slash is EISDIR, and absence is an answer

	// The RESOLVE_ flags of openat2(2).
	noLinks
	noMagic // no entry of /proc/self/fd and its like
	beneath // nothing above the start: EXDEV
	inRoot  // the start is the root

	scoped = beneath | inRoot
)

// lastKind is the last component's nature, for calls that treat ".", ".." and "/" apart (LAST_NORM
// and its companions in fs/namei.c).
type lastKind uint8

const (
	lastRoot lastKind = iota
	lastDot
	lastDotDot
	lastName
)

// object is where a walk ended. Exactly one of these holds:
//   - missing or the want was parent: dir and name say where the last component would be;
//   - place != nil: a directory;
//   - jump != nil: an open file of the guest, by way of /proc/self/fd;
//   - fd >= 0: an object of the host, st is its state;
//   - node != nil: something synthetic.
type object struct {
	kind  lastKind
	slash bool // the last component was followed by a slash

	dir     *place // held, may be nil; name is relative to it and is one component unless fast
	name    string
	fast    bool
	missing bool

	place *place // held
	jump  *File
	fd    int
	own   bool // fd is closed by release
	node  *node
	mnt   *mount
	st    unix.Stat_t
}

func (f *FS) release(o *object) {
	if o.own {
		f.closeHandle(o.fd)
	}
	if o.place != nil {
		f.drop(o.place)
	}
	if o.dir != nil {
		f.drop(o.dir)
	}
	*o = object{fd: -1}
}

func (o *object) isDir() bool {
	return o.place != nil || (o.fd >= 0 && o.st.Mode&unix.S_IFMT == unix.S_IFDIR) || (o.jump != nil && o.jump.Dir != nil)
}

func (o *object) isLink() bool {
	if o.fd >= 0 {
		return o.st.Mode&unix.S_IFMT == unix.S_IFLNK
	}
	return o.node != nil && o.place == nil && o.node.kind == nodeLink
}

func (o *object) path() string {
	switch {
	case o.place != nil:
		return o.place.path()
	case o.jump != nil:
		return o.jump.Path
	}
	return join(o.dir, o.name)
}

// host returns the object's O_PATH handle, -1 if nothing of the host stands behind it.
func (o *object) host() int {
	if o.place != nil {
		return o.place.fd
	}
	return o.fd
}

// writable reports whether the object may be changed.
func (o *object) writable() bool {
	return o.host() >= 0 && o.mnt != nil && o.mnt.writable
}

// walk resolves name from at. The caller releases the object when the errno is 0.
func (f *FS) walk(at *Dir, name string, w want) (o object, e unix.Errno) {
	if e := checkPath(name); e != 0 {
		return object{}, e
	}
	begin := name
	var start *place // where a scoped walk began, with a reference of its own
	if w&scoped != 0 {
		if w&beneath != 0 && strings.HasPrefix(name, "/") {
			return object{}, unix.EXDEV
		}
		begin = ""
		if start, e = f.at(at, begin); e != 0 {
			return object{}, e
		}
		defer f.drop(start)
	}
	cur, e := f.at(at, begin)
	if e != 0 {
		return object{}, e
	}
	defer func() {
		if e != 0 {
			f.drop(cur)
		}
	}()
	links, fast, kind, rest := 0, true, lastRoot, name
	for {
		rest = strings.TrimLeft(rest, "/")
		if rest == "" {
			return f.here(cur, kind)
		}
		comp, rem := rest, ""
		if i := strings.IndexByte(rest, '/'); i >= 0 {
			comp, rem = rest[:i], rest[i:]
		}
		last := strings.Trim(rem, "/") == ""
		slash := rem != ""
		switch {
		case comp == "." || comp == "..":
			if e := f.searchable(cur); e != 0 {
				return object{}, e
			}
			kind = lastDot
			if comp == ".." {
				kind = lastDotDot
				if w&parent != 0 && last {
					return f.here(cur, kind)
				}
				switch {
				case cur != start:
					cur = f.up(cur)
				case w&beneath != 0:
					return object{}, unix.EXDEV
				}
			}
			rest = rem
			continue
		case w&parent != 0 && last:
			return object{dir: cur, name: comp, slash: slash, kind: lastName, mnt: cur.mnt, fd: -1}, 0
		case w&creating != 0 && last && slash:
			if e := f.searchable(cur); e != 0 {
				return object{}, e
			}
			return object{}, unix.EISDIR
		}
		kind = lastName
		child := cur.child(comp)
		if fast && child == nil && !last && cur.fd >= 0 && w&(keep|parent) == 0 && len(rest) < pathMax && plain(rest) {
			fast = false // once for each link expanded: a second try on the same names is no faster
			o, done, e := f.shortcut(cur, rest, w)
			if done {
				return o, e
			}
		}
		var target string
		switch {
		case child != nil && child.kind == nodeLink:
			if last && !slash && w&follow == 0 {
				return object{dir: cur, name: comp, node: child, fd: -1, kind: lastName}, 0
			}
			if child.file != nil {
				switch {
				case w&(noMagic|noLinks) != 0:
					return object{}, unix.ELOOP
				case w&scoped != 0:
					return object{}, unix.EXDEV
				}
				next, o, e := f.jump(cur, child, comp, last, slash)
				if e != 0 {
					return object{}, e
				}
				if next == nil {
					return o, 0
				}
				if links++; links > maxLinks {
					f.drop(next)
					return object{}, unix.ELOOP
				}
				f.drop(cur)
				cur, rest = next, rem
				continue
			}
			target = child.link()
		case child != nil && child.kind == nodeDir:
			next, e := f.enter(cur, comp, child)
			if e != 0 {
				return object{}, e
			}
			cur, rest = next, rem
			continue
		case child != nil:
			if !last || slash {
				return object{}, unix.ENOTDIR
			}
			return f.leaf(cur, comp, child)
		default:
			fd, e := f.step(cur, comp)
			if e == unix.ENOENT && last && w&creating != 0 {
				return object{dir: cur, name: comp, slash: slash, kind: lastName, missing: true, mnt: cur.mnt, fd: -1}, 0
			}
			if e != 0 {
				return object{}, e
			}
			st, e := vet(cur.mnt, fd)
			if e != 0 {
				f.closeHandle(fd)
				return object{}, e
			}
			switch st.Mode & unix.S_IFMT {
			case unix.S_IFDIR:
				cur, rest = push(cur, comp, nil, cur.mnt, fd, true), rem
				continue
			case unix.S_IFLNK:
				if !last || slash || w&follow != 0 {
					target, e = readlink(fd)
					f.closeHandle(fd)
					if e == 0 && last {
						e = f.mayFollow(cur, &st)
					}
					if e != 0 {
						return object{}, e
					}
					break
				}
				fallthrough
			default:
				if !last || slash {
					f.closeHandle(fd)
					return object{}, unix.ENOTDIR
				}
				return object{dir: cur, name: comp, fd: fd, own: true, mnt: cur.mnt, st: st, kind: lastName}, 0
			}
		}
		if links++; links > maxLinks || w&noLinks != 0 {
			return object{}, unix.ELOOP
		}
		if target == "" {
			return object{}, unix.ENOENT
		}
		if strings.HasPrefix(target, "/") {
			if w&beneath != 0 {
				return object{}, unix.EXDEV
			}
			from := f.root
			if w&inRoot != 0 {
				from = at
			}
			root, e := f.at(from, "")
			if e != 0 {
				return object{}, e
			}
			f.drop(cur)
			cur, kind = root, lastRoot
		}
		rest, fast = target+rem, true
	}
}

func checkPath(name string) unix.Errno {
	switch {
	case name == "":
		return unix.ENOENT
	case len(name) >= pathMax:
		return unix.ENAMETOOLONG
	case strings.IndexByte(name, 0) >= 0:
		return unix.EINVAL
	}
	return 0
}

// plain reports whether rest has no "." and "..", so that names alone lead to its end.
func plain(rest string) bool {
	for c := range strings.SplitSeq(rest, "/") {
		if c == "." || c == ".." {
			return false
		}
	}
	return true
}

// shortcut resolves the whole of rest in one call, if it holds no symbolic link. No place of the
// namespace can be below cur on this way: those are reached through places that have a node.
func (f *FS) shortcut(cur *place, rest string, w want) (o object, done bool, e unix.Errno) {
	if w&creating != 0 && strings.HasSuffix(rest, "/") {
		return object{}, false, 0 // EISDIR, whatever is there
	}
	fd, e := f.lookup(cur.fd, rest)
	switch {
	case e == unix.ELOOP || e == unix.EAGAIN || (e == unix.ENOENT && w&creating != 0):
		return object{}, false, 0
	case e != 0:
		return object{}, true, e
	}
	st, e := vet(cur.mnt, fd)
	if e != 0 {
		f.closeHandle(fd)
		return object{}, true, e
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK && w&follow != 0 {
		f.closeHandle(fd)
		return object{}, false, 0
	}
	return object{dir: cur, name: rest, fast: true, fd: fd, own: true, mnt: cur.mnt, st: st, kind: lastName}, true, 0
}

// here is the object for the directory cur itself; it takes over the reference.
func (f *FS) here(cur *place, kind lastKind) (object, unix.Errno) {
	o := object{place: cur, kind: kind, node: cur.node, mnt: cur.mnt, fd: -1}
	if cur.fd >= 0 {
		if e := errno(unix.Fstat(cur.fd, &o.st)); e != 0 {
			return object{}, e
		}
	}
	return o, 0
}

// up pops the stack. The root's parent is the root.
func (f *FS) up(cur *place) *place {
	if cur.parent == nil {
		return cur
	}
	up := cur.parent
	f.mu.Lock()
	up.refs++
	f.mu.Unlock()
	f.drop(cur)
	return up
}

// searchable asks for the permission that every use of a directory in a path needs and that the
// host checks itself for plain names (path_resolution(7)).
func (f *FS) searchable(p *place) unix.Errno {
	if p.fd < 0 {
		return 0
	}
	return f.access(p.fd, unix.X_OK, unix.AT_EACCESS)
}

// step opens a handle on one name of the host below cur.
func (f *FS) step(cur *place, name string) (int, unix.Errno) {
	if len(name) > nameMax {
		return -1, unix.ENAMETOOLONG
	}
	if cur.fd < 0 {
		return -1, unix.ENOENT
	}
	return f.lookup(cur.fd, name)
}

// enter makes the place of a directory that New put into the namespace. Where it is only on the way to a
// mount point, the host's directory of that name shines through.
func (f *FS) enter(cur *place, name string, n *node) (*place, unix.Errno) {
	if n.mount != nil {
		return push(cur, name, n, n.mount, n.mount.fd, false), 0
	}
	if n.opaque || cur.fd < 0 {
		return push(cur, name, n, nil, -1, false), 0
	}
	fd, e := f.lookup(cur.fd, name)
	switch e {
	case 0:
	case unix.ENOENT:
		return push(cur, name, n, nil, -1, false), 0
	default:
		return nil, e
	}
	if st, e := vet(cur.mnt, fd); e != 0 || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		f.closeHandle(fd)
		return push(cur, name, n, nil, -1, false), 0
	}
	return push(cur, name, n, cur.mnt, fd, true), 0
}

// leaf is the object of a namespace entry that is no directory; it takes over the reference on cur.
func (f *FS) leaf(cur *place, name string, n *node) (object, unix.Errno) {
	o := object{dir: cur, name: name, node: n, fd: -1, kind: lastName}
	if n.mount != nil {
		o.fd, o.mnt = n.mount.fd, n.mount
		if e := errno(unix.Fstat(o.fd, &o.st)); e != 0 {
			return object{}, e
		}
	}
	return o, 0
}

// jump follows an entry of /proc/self/fd. It returns either the held place of an open directory, or the object
// of any other open file, which then has cur's reference.
func (f *FS) jump(cur *place, n *node, name string, last, slash bool) (*place, object, unix.Errno) {
	file := n.file()
	if file == nil {
		return nil, object{}, unix.ENOENT
	}
	if file.Dir != nil {
		p, e := f.at(file.Dir, "")
		return p, object{}, e
	}
	if !last || slash {
		return nil, object{}, unix.ENOTDIR
	}
	return nil, object{dir: cur, name: name, jump: file, fd: -1, mnt: file.mnt, kind: lastName}, 0
}

// vet reads the state of a fresh handle and refuses what lies on procfs (invariant 3). Only the
// device of the mount's root is known to be good: we hold that file system, so its number
// cannot be given to another.
func vet(m *mount, fd int) (st unix.Stat_t, e unix.Errno) {
	if e := errno(unix.Fstat(fd, &st)); e != 0 {
		return st, e
	}
	if st.Dev == m.dev {
		return st, 0
	}
	proc, e := onProc(fd)
	if e == 0 && proc {
		e = unix.EACCES
	}
	return st, e
}

func onProc(fd int) (bool, unix.Errno) {
	var fs unix.Statfs_t
	for {
		switch e := errno(unix.Fstatfs(fd, &fs)); e {
		case 0:
			return fs.Type == unix.PROC_SUPER_MAGIC, 0
		case unix.EINTR:
		default:
			return false, e
		}
	}
}

// mayFollow is the rule of /proc/sys/fs/protected_symlinks (may_follow_link in fs/namei.c): the host
// does not see that a link is followed, so it cannot apply it.
func (f *FS) mayFollow(dir *place, link *unix.Stat_t) unix.Errno {
	if !f.protected || link.Uid == f.uid {
		return 0
	}
	var st unix.Stat_t
	if e := errno(unix.Fstat(dir.fd, &st)); e != 0 {
		return e
	}
	const shared = unix.S_ISVTX | unix.S_IWOTH
	if st.Mode&shared != shared || st.Uid == link.Uid {
		return 0
	}
	return unix.EACCES
}

func readlink(fd int) (string, unix.Errno) {
	buf := make([]byte, pathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", errno(err)
	}
	return string(buf[:n]), 0
}
