package vfs

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

type nodeKind uint8

const (
	nodeDir nodeKind = iota
	nodeFile
	nodeLink
	nodeDevice
	nodeShared
)

// node is an entry of the namespace that Cloister made: something synthetic, a mount point, or a directory
// on the way to one. The tree is fixed once New returns, but for directories that are made when they are first looked
// into (late), once: so it is read without a lock.
type node struct {
	kind nodeKind
	mode uint32
	ino  uint64

	children map[string]*node // through kids where the tree is read
	late     *late
	opaque   bool // the host's directory of that name does not shine through
	sealed   bool // nothing can be mounted here or below
	mount    *mount

	names   func() []string             // directories whose entries change: /proc/self/fd
	entry   func(name string) *node     // with names
	content func() ([]byte, unix.Errno) // files: their bytes now
	write   func([]byte) unix.Errno     // files: takes what one write(2) brings; nil: nobody may write
	link    func() string               // links: the target
	file    func() *File                // links that lead to an open file and not to a path; may return nil
	host    string                      // devices: the host's path
	rdev    uint64                      // devices: what the host's path must be
	fd      int                         // shared: the caller's descriptor
}

func (n *node) fixed() bool { return n.kind != nodeDir || n.names != nil }

// late makes the children of a directory when they are first asked for: most programs never look into /proc or /sys.
type late struct {
	once sync.Once
	fill func(n *node)
	ino  uint64 // from here on the inode numbers of what fill adds; 0 while nothing has been numbered
}

// lateInodes is the number of inode numbers that are kept for a late directory, many times what one has.
const lateInodes = 1 << 20

// kids returns the children of a directory whose entries do not change.
func (n *node) kids() map[string]*node {
	if l := n.late; l != nil {
		l.once.Do(func() {
			l.fill(n)
			if next := l.ino; next != 0 {
				n.numberKids(&next)
			}
		})
	}
	return n.children
}

func (n *node) add(name string, c *node) *node {
	if n.children == nil {
		n.children = map[string]*node{}
	}
	n.children[name] = c
	return c
}

func (n *node) child(name string) *node {
	if n.entry != nil {
		return n.entry(name)
	}
	return n.kids()[name]
}

// list returns the names of the entries, sorted.
func (n *node) list() []string {
	if n.names != nil {
		return n.names()
	}
	return slices.Sorted(maps.Keys(n.kids()))
}

// number gives every node below n an inode number of its own.
func (n *node) number(next *uint64) {
	if n.ino != 0 {
		return
	}
	*next++
	n.ino = *next
	if n.late != nil {
		n.late.ino = *next
		*next += lateInodes
		if n.children == nil {
			return // kids will do it
		}
		at := n.late.ino
		n.numberKids(&at)
		return
	}
	n.numberKids(next)
}

func (n *node) numberKids(next *uint64) {
	if n.entry != nil {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(n.children)) { // not list: kids calls this
		n.children[name].number(next)
	}
}

func (n *node) dtype() uint8 {
	switch {
	case n.kind == nodeDir:
		return unix.DT_DIR
	case n.kind == nodeLink:
		return unix.DT_LNK
	case n.kind == nodeDevice:
		return unix.DT_CHR
	}
	return unix.DT_REG
}

func (n *node) statMode() uint32 {
	switch n.kind {
	case nodeDir:
		return unix.S_IFDIR | n.mode
	case nodeLink:
		return unix.S_IFLNK | 0o777
	case nodeDevice:
		return unix.S_IFCHR | n.mode
	}
	return unix.S_IFREG | n.mode
}

// stat is the state of a synthetic node. Sizes are 0, as on proc(5): the content is made at open.
func (f *FS) statNode(n *node, st *unix.Stat_t) {
	if n.kind == nodeShared && unix.Fstat(n.fd, st) == nil {
		return // as fstat(2) says of the open file: it is the host's own
	}
	at := unix.NsecToTimespec(f.started.UnixNano())
	*st = unix.Stat_t{
		Dev: unix.Mkdev(0, synthMinor), Ino: n.ino, Mode: n.statMode(), Nlink: 1, Rdev: n.rdev,
		Uid: f.uid, Gid: uint32(unix.Getegid()), Blksize: 4096, Atim: at, Mtim: at, Ctim: at,
	}
	if n.kind == nodeDir {
		st.Nlink = 2
	}
	if n.kind == nodeLink && n.file == nil {
		st.Size = int64(len(n.link()))
	}
}

// synthMinor is the minor of the anonymous device number (major 0) that synthetic entries show. It is far above what
// a kernel hands out, so that no host file system of the guest shows the same.
const synthMinor = 0xfffff

// dir makes the directories of path below n and returns the last.
func (n *node) dir(path string) *node {
	for name := range strings.SplitSeq(path, "/") {
		next := n.children[name] // not kids: fill calls this
		if next == nil {
			next = n.add(name, &node{kind: nodeDir, mode: 0o555})
		}
		n = next
	}
	return n
}
