package vfs

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// struct linux_dirent64 (getdents(2)): ino u64, off s64, reclen u16, type u8, name with its NUL, padded to 8.
const (
	direntOff    = 8
	direntReclen = 16
	direntType   = 18
	direntName   = 19
)

// maxMerged bounds how many entries are remembered for a directory that mixes the host's entries with ours;
// beyond it Getdents answers ENOMEM, so that a guest cannot fill the VMM's memory.
const maxMerged = 1 << 18

type dirent struct {
	ino  uint64
	kind uint8
	name string
}

// merged reports whether the directory has entries of ours, so that the host's list will not do.
func (file *File) merged() bool {
	n := file.dirNode()
	return n != nil && (n.names != nil || len(n.kids()) > 0)
}

func (file *File) dirNode() *node {
	if file.Dir == nil {
		return nil
	}
	return file.Dir.place().node
}

// Getdents fills p with struct linux_dirent64 as getdents64(2) does and returns the bytes used, 0 at the
// end. Host directories are passed through; mount points and synthetic entries are put in.
func (file *File) Getdents(p []byte) (int, unix.Errno) {
	file.mu.Lock()
	defer file.mu.Unlock()
	switch {
	case file.closed || file.Flags&unix.O_PATH != 0:
		return 0, unix.EBADF
	case file.Dir == nil:
		return 0, unix.ENOTDIR
	}
	if file.FD >= 0 && !file.merged() {
		n, err := unix.Getdents(file.FD, p)
		if err != nil {
			return 0, errno(err)
		}
		return n, file.hideParent(p[:n])
	}
	if file.entries == nil {
		if e := file.snapshot(); e != 0 {
			return 0, e
		}
	}
	used := 0
	for file.off < int64(len(file.entries)) {
		n := putDirent(p[used:], file.entries[file.off], file.off+1)
		if n == 0 {
			if used == 0 {
				return 0, unix.EINVAL
			}
			break
		}
		used += n
		file.off++
	}
	return used, 0
}

// hideParent replaces, in the list of a mount's root, the inode number of "..", which is outside.
func (file *File) hideParent(list []byte) unix.Errno {
	n := file.dirNode()
	if n == nil || n.mount == nil {
		return 0
	}
	for len(list) >= direntName {
		size := int(binary.LittleEndian.Uint16(list[direntReclen:]))
		if size < direntName || size > len(list) {
			return unix.EIO
		}
		if bytes.HasPrefix(list[direntName:size], []byte("..\x00")) {
			ino, e := file.parentIno()
			if e != 0 {
				return e
			}
			binary.LittleEndian.PutUint64(list, ino)
		}
		list = list[size:]
	}
	return 0
}

func (file *File) parentIno() (uint64, unix.Errno) {
	p, e := file.fs.at(file.Dir, "")
	if e != 0 {
		return 0, e
	}
	defer file.fs.drop(p)
	up := p
	if up.parent != nil {
		up = up.parent
	}
	var st unix.Stat_t
	e = file.fs.statPlace(up, &st)
	return st.Ino, e
}

// snapshot lists the directory: "." and "..", the host's entries that none of ours hides, ours.
func (file *File) snapshot() unix.Errno {
	p, e := file.fs.at(file.Dir, "")
	if e != 0 {
		return e
	}
	defer file.fs.drop(p)
	var st unix.Stat_t
	if e := file.fs.statPlace(p, &st); e != 0 {
		return e
	}
	up, e := file.parentIno()
	if e != 0 {
		return e
	}
	list := []dirent{{st.Ino, unix.DT_DIR, "."}, {up, unix.DT_DIR, ".."}}
	if file.FD >= 0 {
		if _, err := unix.Seek(file.FD, 0, unix.SEEK_SET); err != nil {
			return errno(err)
		}
		buf := make([]byte, 32<<10)
		for {
			n, err := unix.Getdents(file.FD, buf)
			if err != nil {
				return errno(err)
			}
			if n == 0 {
				break
			}
			if list, e = parseDirents(list, buf[:n], p.node); e != 0 {
				return e
			}
		}
	}
	for _, name := range p.node.list() {
		c := p.node.child(name)
		if c == nil {
			continue // a descriptor that was closed since
		}
		d := dirent{c.ino, c.dtype(), name}
		if c.mount != nil {
			if e := errno(unix.Fstat(c.mount.fd, &st)); e != 0 {
				return e
			}
			d.ino = st.Ino
		}
		list = append(list, d)
	}
	file.entries = list
	return 0
}

func parseDirents(list []dirent, buf []byte, hide *node) ([]dirent, unix.Errno) {
	for len(buf) > 0 {
		if len(buf) < direntName {
			return nil, unix.EIO
		}
		size := int(binary.LittleEndian.Uint16(buf[direntReclen:]))
		if size < direntName || size > len(buf) {
			return nil, unix.EIO
		}
		raw, _, _ := bytes.Cut(buf[direntName:size], []byte{0})
		name := string(raw)
		if name != "." && name != ".." && hide.child(name) == nil {
			if len(list) >= maxMerged {
				return nil, unix.ENOMEM
			}
			list = append(list, dirent{binary.LittleEndian.Uint64(buf), buf[direntType], name})
		}
		buf = buf[size:]
	}
	return list, 0
}

// putDirent writes d into p and returns its length, 0 if there is no room.
func putDirent(p []byte, d dirent, next int64) int {
	size := (direntName + len(d.name) + 1 + 7) &^ 7
	if size > len(p) {
		return 0
	}
	clear(p[:size])
	binary.LittleEndian.PutUint64(p, d.ino)
	binary.LittleEndian.PutUint64(p[direntOff:], uint64(next))
	binary.LittleEndian.PutUint16(p[direntReclen:], uint16(size))
	p[direntType] = d.kind
	copy(p[direntName:], d.name)
	return size
}
