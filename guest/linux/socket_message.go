package linux

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

const (
	msghdrSize  = 56 // struct user_msghdr of x86-64 (include/linux/socket.h)
	mmsghdrSize = 64 // struct mmsghdr
	// The flags of send and receive that reach the host. MSG_NOSIGNAL, MSG_DONTWAIT and MSG_WAITALL are
	// ours to honour; the host ignores flags that it does not know, and so do we.
	sendFlags    = unix.MSG_OOB | unix.MSG_DONTROUTE | unix.MSG_EOR | unix.MSG_CONFIRM | unix.MSG_MORE
	receiveFlags = unix.MSG_OOB | unix.MSG_PEEK | unix.MSG_TRUNC | unix.MSG_ERRQUEUE
)

// guestMessage is struct user_msghdr, copied once.
type guestMessage struct {
	name, nameLen uint64
	iov, iovLen   uint64
	control       uint64
	controlLen    uint64
}

// messageIn reads and checks a msghdr in the order of copy_msghdr (net/socket.c).
func (k *Kernel) messageIn(addr uint64) (g guestMessage, errno unix.Errno) {
	var raw [msghdrSize]byte
	if errno := k.copyIn(addr, raw[:]); errno != 0 {
		return g, errno
	}
	at := func(i int) uint64 { return binary.LittleEndian.Uint64(raw[i:]) }
	g = guestMessage{at(0), uint64(uint32(at(8))), at(16), at(24), at(32), at(40)}
	if g.name == 0 {
		g.nameLen = 0
	}
	switch {
	case int32(g.nameLen) < 0:
		return g, unix.EINVAL
	case g.iovLen > iovMax:
		return g, unix.EMSGSIZE
	}
	g.nameLen = min(g.nameLen, sockaddrMax)
	return g, 0
}

// gather is vector for messages: short says that not all of what the program named is accessible.
func (k *Kernel) gather(addr, count uint64, write bool) (vec [][]byte, short bool, errno unix.Errno) {
	raw := make([]byte, 16*count)
	if errno := k.copyIn(addr, raw); errno != 0 {
		return nil, false, errno
	}
	own := make([]uint64, 0, count)
	if errno := judge(raw, count); errno != 0 {
		return nil, false, errno
	}
	var total uint64
	for i := range count {
		_, n := iovec(raw, i)
		n = min(n, maxRW-total)
		own, total = append(own, n), total+n
	}
	for i, n := range own {
		if n == 0 {
			continue
		}
		base, _ := iovec(raw, uint64(i))
		p := k.mem.Prefix(base, n, write)
		if len(p) > 0 {
			vec = append(vec, p)
		}
		if uint64(len(p)) < n {
			return vec, true, 0
		}
	}
	return vec, false, 0
}

// single is gather for the calls with one buffer.
func (k *Kernel) single(addr, n uint64, write bool) (vec [][]byte, short bool, errno unix.Errno) {
	if !accessOK(addr, n) {
		return nil, false, unix.EFAULT
	}
	if n = min(n, maxRW); n == 0 {
		return nil, false, 0
	}
	p := k.mem.Prefix(addr, n, write)
	if len(p) == 0 {
		return nil, true, 0
	}
	return one(p), uint64(len(p)) < n, 0
}

func size(vec [][]byte) (n int) {
	for _, p := range vec {
		n += len(p)
	}
	return n
}

// transmit sends m from d, to the host address in m.name or to the peer. A stream that waits takes all of
// it; short says that guest memory ends before the message does.
func (k *Kernel) transmit(t *Task, d *description, m message, short bool, flags int) (uint64, unix.Errno) {
	s := d.sock
	if short && (!s.stream() || len(m.vec) == 0) {
		return 0, unix.EFAULT
	}
	noWait := flags&unix.MSG_DONTWAIT != 0
	total := 0
	var errno unix.Errno
	for {
		var n int
		errno = k.persist(t, d, unix.POLLOUT, s.sendLimit, noWait, func() (e unix.Errno) {
			n, e = hostSend(d.fd, &m, flags&sendFlags)
			return e
		})
		total += n
		if errno != 0 || !s.stream() || noWait || d.nonblock() || n == 0 {
			break
		}
		m.control = nil // it went with the first byte
		if m.vec = advance(m.vec, n); len(m.vec) == 0 {
			break
		}
	}
	if errno == unix.EPIPE && s.stream() && flags&unix.MSG_NOSIGNAL == 0 {
		k.raise(t, unix.SIGPIPE)
	}
	if total > 0 {
		return uint64(total), 0
	}
	return 0, errno
}

// receive fills m from d as the guest's socket waits.
func (k *Kernel) receive(t *Task, d *description, m *message, short bool, flags int) (uint64, unix.Errno) {
	s := d.sock
	if short && len(m.vec) == 0 {
		m.vec = one(hole()[:1]) // the host looks at the socket first
	}
	noWait := flags&(unix.MSG_DONTWAIT|unix.MSG_ERRQUEUE|unix.MSG_OOB) != 0
	all := flags&unix.MSG_WAITALL != 0 && flags&unix.MSG_PEEK == 0 && s.stream() && !noWait && !d.nonblock()
	if s.pollFirst && !noWait && !d.nonblock() {
		deadline := time.Time{}
		if s.recvLimit > 0 {
			deadline = t.untilLimit(s.recvLimit)
		}
		if errno := k.await(d.fd, unix.POLLIN, deadline); errno != 0 && errno != unix.ETIMEDOUT {
			return 0, errno
		}
	}
	name, control := m.name, m.control
	total := 0
	for {
		got := message{vec: m.vec, name: name, control: control}
		var n int
		errno := k.persist(t, d, unix.POLLIN, s.recvLimit, noWait, func() (e unix.Errno) {
			n, e = hostReceive(d.fd, &got, flags&receiveFlags)
			return e
		})
		if errno != 0 {
			if total > 0 {
				return uint64(total), 0
			}
			return 0, errno
		}
		if total == 0 {
			m.name = got.name
		}
		total += n
		m.control, m.flags = got.control, got.flags
		if short && got.flags&unix.MSG_TRUNC != 0 && !s.stream() {
			k.discardControl(got.control)
			m.control = nil
			return 0, unix.EFAULT // the rest of the datagram had no place
		}
		if m.vec = advance(m.vec, n); !all || n == 0 || len(m.vec) == 0 || len(got.control) > 0 {
			return uint64(total), 0
		}
	}
}

// readSocket and writeSocket are the read and write families on a socket.
func (k *Kernel) readSocket(t *Task, d *description, vec [][]byte, flags int) (uint64, unix.Errno) {
	if size(vec) == 0 {
		return 0, 0 // sock_read_iter: "Match SYS5 behaviour"
	}
	m := message{vec: vec}
	defer d.pin().unpin()
	return k.receive(t, d, &m, false, rwFlags(flags))
}

func (k *Kernel) writeSocket(t *Task, d *description, vec [][]byte, flags int) (uint64, unix.Errno) {
	defer d.pin().unpin()
	return k.transmit(t, d, message{vec: vec}, false, rwFlags(flags))
}

func rwFlags(flags int) int {
	if flags&unix.RWF_NOWAIT != 0 {
		return unix.MSG_DONTWAIT
	}
	return 0
}

func sysSendto(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	vec, short, errno := k.single(a[1], a[2], false)
	if errno != 0 {
		return 0, errno
	}
	d, s, errno := k.socketOf(a[0])
	if errno != 0 {
		return 0, errno
	}
	defer d.unpin()
	var raw []byte
	if a[4] != 0 {
		if raw, errno = k.sockaddrIn(a[4], a[5]); errno != 0 {
			return 0, errno
		}
	}
	return k.sendNamed(t, d, s, raw, message{vec: vec}, short, int(uint32(a[3])))
}

func (k *Kernel) sendNamed(t *Task, d *description, s *socket, raw []byte, m message, short bool, flags int) (n uint64, errno unix.Errno) {
	if flags&unix.MSG_FASTOPEN != 0 {
		return 0, unix.EOPNOTSUPP // as where net.ipv4.tcp_fastopen is off: connecting is connect's
	}
	errno = k.named(s, raw, false, func(host []byte) (e unix.Errno) {
		m.name = host
		n, e = k.transmit(t, d, m, short, flags)
		return e
	})
	return n, errno
}

func sysRecvfrom(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	vec, short, errno := k.single(a[1], a[2], true)
	if errno != 0 {
		return 0, errno
	}
	d, _, errno := k.socketOf(a[0])
	if errno != 0 {
		return 0, errno
	}
	defer d.unpin()
	m := message{vec: vec}
	if a[4] != 0 {
		m.name = make([]byte, sockaddrMax)
	}
	n, errno := k.receive(t, d, &m, short, int(uint32(a[3])))
	if errno == 0 && a[4] != 0 {
		errno = k.sockaddrOut(a[4], a[5], k.guestName(m.name))
	}
	return n, errno
}

func sysSendmsg(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	d, s, errno := k.socketOf(a[0])
	if errno != 0 {
		return 0, errno
	}
	defer d.unpin()
	return k.sendMessage(t, d, s, a[1], int(uint32(a[2])))
}

func (k *Kernel) sendMessage(t *Task, d *description, s *socket, addr uint64, flags int) (uint64, unix.Errno) {
	g, errno := k.messageIn(addr)
	if errno != 0 {
		return 0, errno
	}
	raw := make([]byte, g.nameLen)
	if errno = k.copyIn(g.name, raw); errno != 0 {
		return 0, errno
	}
	vec, short, errno := k.gather(g.iov, g.iovLen, false)
	if errno != 0 {
		return 0, errno
	}
	control, sent, errno := k.controlIn(s, g.control, g.controlLen)
	if errno != 0 {
		return 0, errno
	}
	// Another task may close what is on its way to the host while we wait to send it.
	for _, p := range sent {
		defer p.pin().unpin()
	}
	n, errno := k.sendNamed(t, d, s, raw, message{vec: vec, control: control}, short, flags)
	if errno == 0 {
		k.notePassed(sent)
	}
	return n, errno
}

func sysRecvmsg(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	d, s, errno := k.socketOf(a[0])
	if errno != 0 {
		return 0, errno
	}
	defer d.unpin()
	return k.receiveMessage(t, d, s, a[1], int(uint32(a[2])))
}

func (k *Kernel) receiveMessage(t *Task, d *description, s *socket, addr uint64, flags int) (uint64, unix.Errno) {
	g, errno := k.messageIn(addr)
	if errno != 0 {
		return 0, errno
	}
	vec, short, errno := k.gather(g.iov, g.iovLen, true)
	if errno != 0 {
		return 0, errno
	}
	m := message{vec: vec, control: make([]byte, min(g.controlLen, controlMax))}
	if g.name != 0 {
		m.name = make([]byte, sockaddrMax)
	}
	if g.control == 0 {
		m.control = nil
	}
	n, errno := k.receive(t, d, &m, short, flags)
	if errno != 0 {
		return 0, errno
	}
	m.flags = m.flags&^unix.MSG_CMSG_CLOEXEC | flags&unix.MSG_CMSG_CLOEXEC
	control, lost := k.controlOut(s, m.control, flags&unix.MSG_CMSG_CLOEXEC != 0)
	if lost {
		m.flags |= unix.MSG_CTRUNC
	}
	errno = k.messageOut(addr, g, &m, control)
	if errno != 0 {
		k.withdraw(control)
		return 0, errno
	}
	return n, 0
}

// messageOut writes back what recvmsg answers with: name, control, their lengths and the flags.
func (k *Kernel) messageOut(addr uint64, g guestMessage, m *message, control []byte) unix.Errno {
	if g.name != 0 {
		if errno := k.sockaddrOut(g.name, addr+8, k.guestName(m.name)); errno != 0 {
			return errno
		}
	}
	if errno := k.store32(addr+48, uint32(m.flags)); errno != 0 {
		return errno
	}
	if errno := k.copyOut(g.control, control); errno != 0 {
		return errno
	}
	return k.store64(addr+40, uint64(len(control)))
}

// sysSendmmsg and sysRecvmmsg stop at the first message that fails; what went before counts.
func sysSendmmsg(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	d, s, errno := k.socketOf(a[0])
	if errno != 0 {
		return 0, errno
	}
	defer d.unpin()
	var done uint64
	for count := min(uint64(uint32(a[2])), iovMax); done < count; done++ {
		addr := a[1] + done*mmsghdrSize
		n, e := k.sendMessage(t, d, s, addr, int(uint32(a[3])))
		if e == 0 {
			e = k.store32(addr+msghdrSize, uint32(n))
		}
		if errno = e; errno != 0 {
			break
		}
	}
	if done > 0 {
		return done, 0
	}
	return 0, errno
}

func sysRecvmmsg(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	deadline, errno := k.timeout(t, a[4])
	if errno != 0 {
		return 0, errno
	}
	d, s, errno := k.socketOf(a[0])
	if errno != 0 {
		return 0, errno
	}
	defer d.unpin()
	flags := int(uint32(a[3]))
	var done uint64
	for count := min(uint64(uint32(a[2])), iovMax); done < count; {
		addr := a[1] + done*mmsghdrSize
		n, e := k.receiveMessage(t, d, s, addr, flags&^unix.MSG_WAITFORONE)
		if e == 0 {
			e = k.store32(addr+msghdrSize, uint32(n))
		}
		if errno = e; errno != 0 {
			break
		}
		done++
		if flags&unix.MSG_WAITFORONE != 0 {
			flags |= unix.MSG_DONTWAIT
		}
		// recvmmsg(2), BUGS: the time is looked at after each message only.
		if !deadline.IsZero() && time.Until(deadline) <= 0 {
			break
		}
	}
	if done == 0 && errno != 0 {
		return 0, errno
	}
	return done, k.leftover(a[4], deadline, 0)
}
