package linux

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A socket of the guest is one of the host's, always non-blocking there: whether the guest waits, and how
// long (SO_RCVTIMEO, SO_SNDTIMEO), is kept here and done by await, together with Interrupt. Names of
// Unix sockets are looked up by vfs, so they are confined like files; the host is given a name below
// /proc/self/fd. Internet addresses go to the host as they are: that is what --net host means.
//
// A waiting call pins the description: closing the descriptor from elsewhere does not give the host's
// number to another file under it.

// socket is what the host does not keep for us.
type socket struct {
	family, kind int  // AF_ and SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET
	own          bool // opened by this guest, so O_NONBLOCK on the host for as long as it lives
	// recvLimit and sendLimit are SO_RCVTIMEO and SO_SNDTIMEO; 0 is for ever.
	recvLimit, sendLimit time.Duration
	linger               []byte // struct linger, when its time is ours to remember
	pollFirst            bool   // SO_RCVLOWAT was set: only poll knows of it, MSG_DONTWAIT does not
	bound, peer          []byte // struct sockaddr_un as the guest knows them
}

func (s *socket) stream() bool { return s.kind == unix.SOCK_STREAM }

// netState is the kernel's part of the sockets.
type netState struct {
	names  map[string][]byte // what the host was told to bind, and the guest's name for it
	passed []passed          // descriptors lately sent by SCM_RIGHTS
}

const (
	maxNames = 4096 // bounds what a guest that binds for ever makes us remember
	// sockaddrMax is sizeof(struct sockaddr_storage) (include/linux/socket.h).
	sockaddrMax = 128
	sunPath     = 2   // offsetof(struct sockaddr_un, sun_path)
	sunMax      = 110 // sizeof(struct sockaddr_un)
	ipMPTCP     = 262 // IPPROTO_MPTCP (include/uapi/linux/in.h)
	ipMax       = 263 // IPPROTO_MAX
)

// socketOf is the pinned socket behind a guest descriptor.
func (k *Kernel) socketOf(fd uint64) (*description, *socket, unix.Errno) {
	d, errno := k.fds.io(fd)
	if errno != 0 {
		return nil, nil, errno
	}
	if d.sock == nil {
		return nil, nil, unix.ENOTSOCK
	}
	return d.pin(), d.sock, 0
}

// ownSocket is socketOf for the calls that have no MSG_DONTWAIT: on a socket that others share with us
// (a standard stream, or one that a host process sent) they could block the host thread.
func (k *Kernel) ownSocket(fd uint64) (*description, *socket, unix.Errno) {
	d, s, errno := k.socketOf(fd)
	if errno == 0 && !s.own {
		d.unpin()
		k.warn("a socket that the program was handed can send and receive, and not bind, listen, accept or connect: answered EOPNOTSUPP")
		return nil, nil, unix.EOPNOTSUPP
	}
	return d, s, errno
}

// adoptSocket wraps a host socket, which it owns from here on. flags are the guest's SOCK_NONBLOCK.
func (k *Kernel) adoptSocket(fd, flags int, s *socket) (*description, unix.Errno) {
	d, errno := k.adopt(fd, "", unix.O_RDWR|flags&unix.O_NONBLOCK, waitAgain)
	if errno == 0 {
		d.sock = s
	}
	return d, errno
}

// handedSocket describes a host socket that the guest did not open; nil when it has no business with its
// address family.
func handedSocket(fd int) *socket {
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return nil
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || kind == unix.SOCK_RAW {
		return nil
	}
	switch family {
	case unix.AF_INET, unix.AF_INET6, unix.AF_UNIX:
		return &socket{family: family, kind: kind}
	}
	return nil
}

// refuseSocket names what is refused, once.
func (k *Kernel) refuseSocket(nr uint64, what string, errno unix.Errno) unix.Errno {
	k.countUnknown(nr)
	name := "socket" // not from the table, which refers to us
	if nr == unix.SYS_SOCKETPAIR {
		name = "socketpair"
	}
	k.warn(fmt.Sprintf("system call %s (%d) refused with %s: %s", name, nr, unix.ErrnoName(errno), what))
	return errno
}

// socketKind checks the arguments of socket and socketpair in the host's order.
func (k *Kernel) socketKind(nr uint64, a args) (family, kind, protocol int, errno unix.Errno) {
	family, kind, protocol = int(int32(a[0])), int(uint32(a[1]))&0xf, int(int32(a[2]))
	if !k.cfg.Net {
		// The socket by which every glibc looks for a name service daemon before it reads /etc/passwd
		// (nscd/nscd_helper.c) is counted and not worth a line.
		if family == unix.AF_UNIX && a[1] == unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK && nr == unix.SYS_SOCKET {
			k.countUnknown(nr)
			return 0, 0, 0, unix.EAFNOSUPPORT
		}
		return 0, 0, 0, k.refuseSocket(nr, noNet, unix.EAFNOSUPPORT)
	}
	if uint32(a[1])&^(0xf|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK) != 0 {
		return 0, 0, 0, unix.EINVAL
	}
	switch {
	case family != unix.AF_INET && family != unix.AF_INET6 && family != unix.AF_UNIX:
		what := fmt.Sprintf("address family %d is not served: use AF_INET, AF_INET6 or AF_UNIX", family)
		if family == unix.AF_NETLINK {
			what = "netlink (address family 16) would show and change the host's network: programs do without"
		}
		return 0, 0, 0, k.refuseSocket(nr, what, unix.EAFNOSUPPORT)
	case kind == unix.SOCK_RAW || kind == unix.SOCK_PACKET:
		return 0, 0, 0, k.refuseSocket(nr, "raw and packet sockets are not served: use streams or datagrams", unix.EPERM)
	case kind > unix.SOCK_PACKET, family != unix.AF_UNIX && (protocol < 0 || protocol >= ipMax):
		return 0, 0, 0, unix.EINVAL
	case family == unix.AF_UNIX && protocol != 0 && protocol != unix.AF_UNIX: // before the kind (net/unix/af_unix.c: unix_create)
		return 0, 0, 0, k.refuseSocket(nr, fmt.Sprintf("protocol %d of Unix sockets is not served: use 0", protocol), unix.EPROTONOSUPPORT)
	case kind != unix.SOCK_STREAM && kind != unix.SOCK_DGRAM && (kind != unix.SOCK_SEQPACKET || family != unix.AF_UNIX):
		return 0, 0, 0, unix.ESOCKTNOSUPPORT
	}
	served := protocol == 0 || family == unix.AF_UNIX
	switch {
	case kind == unix.SOCK_STREAM:
		served = served || protocol == unix.IPPROTO_TCP || protocol == ipMPTCP
	default:
		served = served || protocol == unix.IPPROTO_UDP
	}
	if !served {
		return 0, 0, 0, k.refuseSocket(nr, fmt.Sprintf("protocol %d of address family %d is not served: use TCP or UDP", protocol, family), unix.EPROTONOSUPPORT)
	}
	return family, kind, protocol, 0
}

func sysSocket(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	family, kind, protocol, errno := k.socketKind(unix.SYS_SOCKET, a)
	if errno != 0 {
		return 0, errno
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return 0, errnoOf(err)
	}
	return k.installSocket(fd, int(a[1]), &socket{family: family, kind: kind, own: true})
}

// installSocket gives a host socket the lowest free number of the guest; flags are those of socket(2).
func (k *Kernel) installSocket(fd, flags int, s *socket) (uint64, unix.Errno) {
	d, errno := k.adoptSocket(fd, flags, s)
	if errno != 0 {
		return 0, errno
	}
	return k.install(d, flags&unix.SOCK_CLOEXEC != 0)
}

func sysSocketpair(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	const known = 0xf | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	if k.cfg.Net && uint32(a[1])&^known == 0 {
		// Where the numbers go is written to before anything else is looked at (net/socket.c: __sys_socketpair).
		if _, errno := k.mem.Out(a[3], 8); errno != 0 {
			return 0, errno
		}
	}
	family, kind, protocol, errno := k.socketKind(unix.SYS_SOCKETPAIR, a)
	if errno != 0 {
		return 0, errno
	}
	p, err := unix.Socketpair(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return 0, errnoOf(err)
	}
	one, errno := k.installSocket(p[0], int(a[1]), &socket{family: family, kind: kind, own: true})
	if errno != 0 {
		_ = unix.Close(p[1]) // nobody has seen it
		return 0, errno
	}
	two, errno := k.installSocket(p[1], int(a[1]), &socket{family: family, kind: kind, own: true})
	if errno == 0 {
		pair := [2]int32{int32(one), int32(two)}
		if errno = put(k, a[3], &pair); errno == 0 {
			return 0, 0
		}
		_ = k.fds.close(two) // the first error is the answer
	}
	_ = k.fds.close(one) // the same
	return 0, errno
}

// sockaddrIn reads a socket address (move_addr_to_kernel, net/socket.c).
func (k *Kernel) sockaddrIn(addr, size uint64) ([]byte, unix.Errno) {
	n := int32(size)
	if n < 0 || n > sockaddrMax {
		return nil, unix.EINVAL
	}
	raw := make([]byte, n)
	return raw, k.copyIn(addr, raw)
}

// sockaddrOut writes one, and its whole length behind lenAddr (move_addr_to_user, net/socket.c).
func (k *Kernel) sockaddrOut(addr, lenAddr uint64, raw []byte) unix.Errno {
	room, errno := k.load32(lenAddr)
	if errno != 0 {
		return errno
	}
	if int32(room) < 0 {
		return unix.EINVAL
	}
	if errno := k.copyOut(addr, raw[:min(int(room), len(raw))]); errno != 0 {
		return errno
	}
	return k.store32(lenAddr, uint32(len(raw)))
}

// unixPath is the path in a sockaddr_un. named is false for addresses without one, which the host may
// judge: another family, or no name at all. An abstract name comes as a path that begins with NUL.
func unixPath(raw []byte) (path string, named bool, errno unix.Errno) {
	if len(raw) < sunPath || int(raw[0])|int(raw[1])<<8 != unix.AF_UNIX || len(raw) == sunPath {
		return "", false, 0
	}
	if len(raw) > sunMax {
		return "", true, unix.EINVAL
	}
	p := raw[sunPath:]
	if p[0] == 0 {
		return string(p), true, 0
	}
	if i := bytes.IndexByte(p, 0); i >= 0 {
		p = p[:i]
	}
	return string(p), true, 0
}

// unixAddr is the sockaddr_un of a path, as getsockname shows it.
func unixAddr(path string) []byte {
	raw := append([]byte{unix.AF_UNIX, 0}, path...)
	return append(raw, 0)
}

// named calls do with the address that the host has to be given for the guest's raw one. Internet
// addresses are the same; the path of a Unix socket is walked by vfs, for making it or for finding it.
//
// Abstract names are refused: they belong to the network namespace and not to a directory, and behind
// them wait services (a desktop's message bus, container runtimes) that trust the engine's user.
func (k *Kernel) named(s *socket, raw []byte, create bool, do func(host []byte) unix.Errno) unix.Errno {
	if s.family != unix.AF_UNIX || len(raw) == 0 {
		return do(raw)
	}
	path, named, errno := unixPath(raw)
	switch {
	case errno != 0:
		return errno
	case !named:
		return do(raw)
	case path[0] == 0:
		k.warn("abstract Unix socket names would reach the host's services: refused; use a path below --rw")
		if create {
			return unix.EPERM
		}
		return unix.ECONNREFUSED
	}
	if !create {
		return k.fs.Connect(k.cwd, path, func(host string) unix.Errno { return do(unixAddr(host)) })
	}
	errno = k.fs.Bind(k.cwd, path, func(host string) unix.Errno {
		errno := do(unixAddr(host))
		if errno == 0 {
			s.bound = unixAddr(path)
			k.remember(host, s.bound)
		}
		return errno
	})
	if errno == unix.EEXIST {
		errno = unix.EADDRINUSE
	}
	return errno
}

func (k *Kernel) remember(host string, guest []byte) {
	if k.net.names == nil || len(k.net.names) >= maxNames {
		k.net.names = map[string][]byte{}
	}
	k.net.names[host] = guest
}

// guestName turns an address that the host answered into the guest's: a Unix name that was bound here.
// One that is forgotten shows as no name.
func (k *Kernel) guestName(raw []byte) []byte {
	path, named, errno := unixPath(raw)
	if errno != 0 || !named || !strings.HasPrefix(path, "/proc/self/fd/") {
		return raw
	}
	if name := k.net.names[path]; name != nil {
		return name
	}
	return raw[:sunPath]
}

func sysBind(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	d, s, errno := k.ownSocket(a[0])
	if errno != 0 {
		return 0, errno
	}
	defer d.unpin()
	raw, errno := k.sockaddrIn(a[1], a[2])
	if errno != 0 {
		return 0, errno
	}
	return 0, k.named(s, raw, true, func(host []byte) unix.Errno { return hostBind(d.fd, host) })
}

func sysListen(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	d, _, errno := k.ownSocket(a[0])
	if errno != 0 {
		return 0, errno
	}
	defer d.unpin()
	return 0, errnoOf(unix.Listen(d.fd, int(int32(a[1]))))
}

func sysConnect(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	if _, errno := k.fds.io(a[0]); errno != 0 {
		return 0, errno
	}
	raw, errno := k.sockaddrIn(a[1], a[2])
	if errno != 0 {
		return 0, errno
	}
	d, s, errno := k.ownSocket(a[0])
	if errno != 0 {
		return 0, errno
	}
	defer d.unpin()
	errno = k.named(s, raw, false, func(host []byte) unix.Errno { return k.connect(t, d, s, host) })
	if errno == 0 && s.family == unix.AF_UNIX {
		s.peer = nil
		if path, named, _ := unixPath(raw); named {
			s.peer = unixAddr(path)
		}
	}
	return 0, errno
}

// connect connects to a host address and waits as the guest's socket does. Asking the host again is how
// the result of a connection under way is fetched, and what a second connect(2) does, too; so the call
// may be cut and made again.
func (k *Kernel) connect(t *Task, d *description, s *socket, host []byte) unix.Errno {
	var deadline time.Time
	for {
		errno := hostConnect(d.fd, host)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != unix.EINPROGRESS && errno != unix.EALREADY && errno != unix.EAGAIN || d.nonblock():
			return errno
		case errno == unix.EAGAIN && s.family != unix.AF_UNIX:
			return errno // no free port: waiting gives none
		}
		if deadline.IsZero() && s.sendLimit > 0 {
			deadline = t.untilLimit(s.sendLimit)
		}
		if errno == unix.EAGAIN {
			// A full backlog of a Unix socket: no poll tells when there is room.
			errno = k.pause(deadline)
		} else if errno = k.await(d.fd, unix.POLLOUT, deadline); errno == unix.ETIMEDOUT {
			errno = unix.EINPROGRESS
		}
		if errno != 0 {
			return errno
		}
	}
}

// pause lets some time pass before the next try; EAGAIN when deadline, if there is one, has come.
func (k *Kernel) pause(deadline time.Time) unix.Errno {
	next := time.Now().Add(lockRetry)
	if !deadline.IsZero() && deadline.Before(next) {
		if time.Until(deadline) <= 0 {
			return unix.EAGAIN
		}
		next = deadline
	}
	return k.sleep(next)
}

// persist repeats try, a host call on d that never blocks, until it does not say EAGAIN, as long as the
// guest's socket waits.
func (k *Kernel) persist(t *Task, d *description, events int16, limit time.Duration, noWait bool, try func() unix.Errno) unix.Errno {
	var deadline time.Time
	for tries := 0; ; tries++ {
		// A descriptor that polls ready but does not move must not keep us from seeing Interrupt.
		if tries > 0 && k.interrupted() {
			return eRestart
		}
		errno := try()
		switch {
		case errno == unix.EINTR:
			continue
		case errno != unix.EAGAIN || noWait || d.nonblock():
			return errno
		}
		if deadline.IsZero() && limit > 0 {
			deadline = t.untilLimit(limit)
		}
		if tries > 0 && events == unix.POLLOUT && d.sock.family == unix.AF_UNIX && !d.sock.stream() {
			// poll sees our own queue; it is the receiver's that is full.
			if errno = k.pause(deadline); errno != 0 {
				return errno
			}
			continue
		}
		if errno = k.await(d.fd, events, deadline); errno == unix.ETIMEDOUT {
			return unix.EAGAIN
		} else if errno != 0 {
			return errno
		}
	}
}

func sysAccept(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	return sysAccept4(k, t, args{a[0], a[1], a[2], 0})
}

func sysAccept4(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	flags := int(uint32(a[3]))
	if _, errno := k.fds.io(a[0]); errno != 0 {
		return 0, errno // before the flags, and those before what it is a descriptor of (net/socket.c: do_accept)
	}
	if flags&^(unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK) != 0 {
		return 0, unix.EINVAL
	}
	d, s, errno := k.ownSocket(a[0])
	if errno != 0 {
		return 0, errno
	}
	defer d.unpin()
	// Without a free number no connection may be taken.
	if _, errno = k.fds.free(0, k.lim.nofile()); errno != 0 {
		return 0, errno
	}
	var fd int
	var name []byte
	errno = k.persist(t, d, unix.POLLIN, s.recvLimit, false, func() (errno unix.Errno) {
		fd, name, errno = hostAccept(d.fd)
		return errno
	})
	if errno != 0 {
		return 0, errno
	}
	made := &socket{family: s.family, kind: s.kind, own: true, bound: s.bound}
	if s.family != unix.AF_UNIX {
		made.recvLimit, made.sendLimit, made.linger, made.pollFirst = s.recvLimit, s.sendLimit, s.linger, s.pollFirst
	}
	n, errno := k.installSocket(fd, flags, made)
	if errno != 0 || a[1] == 0 {
		return n, errno
	}
	if errno = k.sockaddrOut(a[1], a[2], k.guestName(name)); errno != 0 {
		_ = k.fds.close(n) // as natively, the connection is lost with the answer
		return 0, errno
	}
	return n, 0
}

func sysShutdown(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	d, _, errno := k.socketOf(a[0])
	if errno != 0 {
		return 0, errno
	}
	defer d.unpin()
	return 0, errnoOf(unix.Shutdown(d.fd, int(int32(a[1]))))
}

func sysGetsockname(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	d, s, errno := k.socketOf(a[0])
	if errno != 0 {
		return 0, errno
	}
	defer d.unpin()
	raw, errno := hostName(unix.SYS_GETSOCKNAME, d.fd)
	if errno != 0 {
		return 0, errno
	}
	if s.bound != nil {
		raw = s.bound
	}
	return 0, k.sockaddrOut(a[1], a[2], k.guestName(raw))
}

func sysGetpeername(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	d, s, errno := k.socketOf(a[0])
	if errno != 0 {
		return 0, errno
	}
	defer d.unpin()
	raw, errno := hostName(unix.SYS_GETPEERNAME, d.fd)
	if errno != 0 {
		return 0, errno
	}
	guest := k.guestName(raw)
	if path, named, _ := unixPath(guest); s.peer != nil && named && path[0] == '/' && len(guest) == len(raw) {
		guest = s.peer // a host process bound it by a path of the host's
	}
	return 0, k.sockaddrOut(a[1], a[2], guest)
}
