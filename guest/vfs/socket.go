package vfs

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// bind(2) and connect(2) take no directory descriptor. What they are given here is a name below
// /proc/self/fd of the VMM, which leads from a handle that was reached in the guest's namespace: for
// bind the directory, and one plain name in it, that the host does not follow; for connect the socket
// itself. The handle is held while do runs.

// sunPathMax is what fits into sun_path with its final NUL (include/uapi/linux/un.h).
const sunPathMax = 108

// Bind calls do with a host name that makes path, as bind(2) of a Unix socket does. Errors are those of
// mknod(2), EEXIST among them where the host was not asked, and what do returns. Host names are a little longer than the last component of path:
// ENAMETOOLONG if it has more than about 85 bytes.
func (f *FS) Bind(at *Dir, path string, do func(host string) unix.Errno) unix.Errno {
	return f.create(at, path, false, func(dir *place, name string) unix.Errno {
		host := "/proc/self/fd/" + strconv.Itoa(dir.fd) + "/" + name
		if len(host) >= sunPathMax {
			return unix.ENAMETOOLONG
		}
		return do(host)
	})
}

// Connect calls do with a host name for the socket at path, for connect(2) and sendto(2). Whoever connects
// speaks to a process of the host, so a mount that is not Writable answers EROFS (invariant 5). What is
// nobody's socket is ECONNREFUSED.
func (f *FS) Connect(at *Dir, path string, do func(host string) unix.Errno) unix.Errno {
	o, e := f.walk(at, path, follow)
	if e != 0 {
		return e
	}
	defer f.release(&o)
	h, m := o.host(), o.mnt
	if o.jump != nil {
		if h, e = o.jump.dup(); e != 0 {
			return unix.ECONNREFUSED
		}
		defer closeQuiet(h)
	}
	switch {
	case h < 0 || m == nil:
		return unix.ECONNREFUSED
	case !m.writable:
		return unix.EROFS
	}
	return do("/proc/self/fd/" + strconv.Itoa(h))
}
