package linux

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Control messages (cmsg(3)) go through our memory: descriptors in them (SCM_RIGHTS) are numbers of the
// guest on one side and of the host on the other.

const (
	// controlMax bounds the control data of one message, as net.core.optmem_max does.
	controlMax = 64 << 10
	cmsgHeader = 16  // sizeof(struct cmsghdr)
	scmMaxFD   = 253 // SCM_MAX_FD (include/net/scm.h)
	scmPidfd   = 4   // SCM_PIDFD (include/linux/socket.h)
	maxPassed  = 256
)

// cmsg is one control message; data aliases the buffer it was found in.
type cmsg struct {
	level, kind int32
	data        []byte
}

// eachControl calls do for every message in raw, and answers EINVAL for one that does not fit
// (CMSG_OK, include/linux/socket.h).
func eachControl(raw []byte, do func(cmsg) unix.Errno) unix.Errno {
	for len(raw) >= cmsgHeader {
		n := binary.LittleEndian.Uint64(raw)
		if n < cmsgHeader || n > uint64(len(raw)) {
			return unix.EINVAL
		}
		c := cmsg{int32(binary.LittleEndian.Uint32(raw[8:])), int32(binary.LittleEndian.Uint32(raw[12:])), raw[cmsgHeader:n]}
		if errno := do(c); errno != 0 {
			return errno
		}
		raw = raw[min((n+7)&^7, uint64(len(raw))):]
	}
	return 0
}

func appendControl(to []byte, c cmsg) []byte {
	to = binary.LittleEndian.AppendUint64(to, uint64(cmsgHeader+len(c.data)))
	to = binary.LittleEndian.AppendUint32(to, uint32(c.level))
	to = binary.LittleEndian.AppendUint32(to, uint32(c.kind))
	to = append(to, c.data...)
	for len(to)%8 != 0 {
		to = append(to, 0)
	}
	return to
}

// controlIn reads the control data of sendmsg and makes it the host's. sent are the descriptions whose
// descriptors are in it.
func (k *Kernel) controlIn(s *socket, addr, n uint64) (host []byte, sent []*description, errno unix.Errno) {
	if n == 0 {
		return nil, nil, 0
	}
	if n > controlMax {
		return nil, nil, unix.ENOBUFS
	}
	raw := make([]byte, n)
	if errno := k.copyIn(addr, raw); errno != 0 {
		return nil, nil, errno
	}
	errno = eachControl(raw, func(c cmsg) unix.Errno {
		if c.level == unix.SOL_SOCKET && (c.kind == unix.SCM_RIGHTS || c.kind == unix.SCM_CREDENTIALS) {
			if s.family != unix.AF_UNIX {
				return 0 // ignored there (__sock_cmsg_send, net/core/sock.c)
			}
			if c.kind == unix.SCM_CREDENTIALS {
				if len(c.data) == unix.SizeofUcred && !k.ownCredentials(c.data) {
					return unix.EPERM // a privileged engine could claim to be anybody
				}
			} else if errno := k.rightsIn(&c, &sent); errno != 0 {
				return errno
			}
		}
		host = appendControl(host, c)
		return 0
	})
	return host, sent, errno
}

func (k *Kernel) ownCredentials(data []byte) bool {
	id := func(i int) int { return int(binary.LittleEndian.Uint32(data[i:])) }
	p := &k.proc
	return id(0) == k.cfg.PID && (id(4) == p.uid || id(4) == p.euid) && (id(8) == p.gid || id(8) == p.egid)
}

// rightsIn replaces the guest's descriptors in c by the host's.
func (k *Kernel) rightsIn(c *cmsg, sent *[]*description) unix.Errno {
	count := len(c.data) / 4
	if len(*sent)+count > scmMaxFD {
		return unix.EINVAL
	}
	host := make([]byte, 0, 4*count)
	for i := range count {
		d, errno := k.fds.get(uint64(binary.LittleEndian.Uint32(c.data[4*i:])))
		if errno != 0 {
			return errno
		}
		if d.fd < 0 || d.file.Dir != nil || d.flags&unix.O_PATH != 0 {
			k.warn("SCM_RIGHTS: directories, path handles and files of /proc cannot be sent: answered EINVAL; send an open file")
			return unix.EINVAL
		}
		*sent = append(*sent, d)
		host = binary.LittleEndian.AppendUint32(host, uint32(d.fd))
	}
	c.data = host
	return 0
}

// passed is what the host does not say of a description that the guest sends to itself.
type passed struct {
	dev, ino uint64
	access   int // O_ACCMODE bits: the two ends of a pipe are one inode
	flags    int
	wait     waiting
	sock     *socket
}

func (k *Kernel) notePassed(sent []*description) {
	for _, d := range sent {
		var st unix.Stat_t
		if unix.Fstat(d.fd, &st) != nil {
			continue // then it is received like a stranger's
		}
		p := passed{st.Dev, st.Ino, d.flags & unix.O_ACCMODE, d.flags, d.wait, d.sock}
		k.net.passed = append(k.net.passed[max(0, len(k.net.passed)+1-maxPassed):], p)
	}
}

// received makes a description of a host descriptor that came by SCM_RIGHTS; it owns fd. One that the
// guest sent itself keeps its flags and waits as before; any other is shared with a host process, so it
// is used like an inherited stream.
func (k *Kernel) received(fd int) (*description, unix.Errno) {
	var st unix.Stat_t
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil {
		err = unix.Fstat(fd, &st)
	}
	if err != nil {
		_ = unix.Close(fd) // the error that counts is the one above
		return nil, errnoOf(err)
	}
	wait := waitNever
	var sock *socket
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFBLK:
	case unix.S_IFSOCK:
		wait, sock = waitSocket, handedSocket(fd)
	default:
		wait = waitFirst
	}
	for i := len(k.net.passed) - 1; i >= 0; i-- {
		p := k.net.passed[i]
		if p.wait == waitAgain && flags&unix.O_NONBLOCK == 0 {
			continue // the inode number is somebody else's now, and this one may block
		}
		if p.dev == st.Dev && p.ino == st.Ino && p.access == flags&unix.O_ACCMODE {
			flags, wait, sock = p.flags, p.wait, p.sock
			break
		}
	}
	d, errno := k.adopt(fd, "", flags, wait)
	if errno != 0 {
		return nil, errno
	}
	d.made, d.sock = false, sock
	return d, 0
}

// controlOut makes control data from the host the guest's. lost says that a descriptor found no place,
// which recvmsg shows as MSG_CTRUNC.
func (k *Kernel) controlOut(s *socket, raw []byte, cloexec bool) (guest []byte, lost bool) {
	errno := eachControl(raw, func(c cmsg) unix.Errno {
		if s.family != unix.AF_UNIX || c.level != unix.SOL_SOCKET || c.kind != unix.SCM_RIGHTS && c.kind != scmPidfd {
			guest = appendControl(guest, c)
			return 0
		}
		var fds []byte
		for i := 0; i+4 <= len(c.data); i += 4 {
			host := int(int32(binary.LittleEndian.Uint32(c.data[i:])))
			if c.kind == scmPidfd || lost {
				_ = unix.Close(host) // nobody will know its number
				lost = true
				continue
			}
			d, errno := k.received(host)
			if errno != 0 {
				lost = true
				continue
			}
			fd, errno := k.install(d, cloexec)
			if errno != 0 {
				lost = true
				continue
			}
			fds = binary.LittleEndian.AppendUint32(fds, uint32(fd))
		}
		if len(fds) > 0 {
			c.data = fds
			guest = appendControl(guest, c)
		}
		return 0
	})
	// The host's own list cannot be malformed; a last message without room for its padding is trimmed.
	return guest[:min(len(guest), len(raw))], lost || errno != 0
}

// discardControl closes the host descriptors in control data that the guest does not get.
func (k *Kernel) discardControl(raw []byte) {
	_ = eachControl(raw, func(c cmsg) unix.Errno { // the host's own list: well formed
		if c.level == unix.SOL_SOCKET && (c.kind == unix.SCM_RIGHTS || c.kind == scmPidfd) {
			for i := 0; i+4 <= len(c.data); i += 4 {
				_ = unix.Close(int(int32(binary.LittleEndian.Uint32(c.data[i:])))) // nobody knows its number
			}
		}
		return 0
	})
}

// withdraw closes the guest descriptors in control data that could not be delivered.
func (k *Kernel) withdraw(guest []byte) {
	_ = eachControl(guest, func(c cmsg) unix.Errno { // we made the list
		if c.level == unix.SOL_SOCKET && c.kind == unix.SCM_RIGHTS {
			for i := 0; i+4 <= len(c.data); i += 4 {
				_ = k.fds.close(uint64(binary.LittleEndian.Uint32(c.data[i:]))) // nobody knows its number
			}
		}
		return 0
	})
}
