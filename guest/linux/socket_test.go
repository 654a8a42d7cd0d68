package linux

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func withNet(c *Config) { c.Net = true }

// un is a sockaddr_un, and its length.
func (g *guest) un(path string) (addr, size uint64) {
	raw := append([]byte{unix.AF_UNIX, 0}, path...)
	return g.put(raw), uint64(len(raw))
}

// in is a sockaddr_in of the loopback address.
func (g *guest) in(port uint16) (addr, size uint64) {
	raw := append([]byte{unix.AF_INET, 0}, byte(port>>8), byte(port), 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0)
	return g.put(raw), uint64(len(raw))
}

func (g *guest) half(addr uint64) uint64 { return uint64(binary.LittleEndian.Uint32(g.bytes(addr, 4))) }

// msg is a msghdr.
func (g *guest) msg(name, nameLen, iov, iovLen, control, controlLen uint64) uint64 {
	return g.words(name, nameLen, iov, iovLen, control, controlLen, 0)
}

func rights(fds ...uint64) []byte {
	var data []byte
	for _, fd := range fds {
		data = binary.LittleEndian.AppendUint32(data, uint32(fd))
	}
	return appendControl(nil, cmsg{unix.SOL_SOCKET, unix.SCM_RIGHTS, data})
}

// address logs a socket address without what differs between the sides: directory and port.
func (r *runner) address(what string, addr, lenAddr uint64) {
	n := r.half(lenAddr)
	raw := bytes.Clone(r.bytes(addr, min(n, 128)))
	if len(raw) > 4 && raw[0] == unix.AF_INET {
		raw[2], raw[3] = 0, 0
	}
	r.log = append(r.log, fmt.Sprintf("%s %d %q", what, n, strings.ReplaceAll(string(raw), r.dir, "DIR")))
}

func (r *runner) pair(family, kind uint64) (a, b uint64) {
	p := r.buf(8)
	r.do(unix.SYS_SOCKETPAIR, family, kind, 0, p)
	return r.half(p), r.half(p + 4)
}

// sockets does what can be done with sockets without waiting.
func sockets(r *runner) {
	buf, n := r.buf(512), r.buf(8)
	length := func(v uint64) uint64 { copy(r.bytes(n, 8), binary.LittleEndian.AppendUint64(nil, v)); return n }
	got := func(what string, v int64) { r.saw(what, bytes.Clone(r.bytes(buf, uint64(max(0, min(v, 512)))))) }
	hello := r.str("hello, world")
	const nonblock = unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	bad := ^uint64(0)

	for _, a := range [][3]uint64{{1, 7, 0}, {2, 1 << 20, 0}, {1, 0, 0}, {1, 11, 0}, {2, 4, 0}, {10, 5, 0}, {2, 1, 0}, {10, 2, 17}, {1, 1, 1}} {
		if fd := r.fd(unix.SYS_SOCKET, a[0], a[1], a[2]); int64(fd) > 0 {
			r.do(unix.SYS_FCNTL, fd, unix.F_GETFL)
			r.do(unix.SYS_FCNTL, fd, unix.F_GETFD)
			r.do(unix.SYS_LSEEK, fd, 0, 0)
			r.do(unix.SYS_PREAD64, fd, buf, 1, 0)
			r.do(unix.SYS_CLOSE, fd)
		}
	}
	r.do(unix.SYS_SOCKETPAIR, unix.AF_INET, unix.SOCK_STREAM, 0, buf)
	r.do(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_STREAM, 0, 8)
	for _, nr := range []uint64{unix.SYS_BIND, unix.SYS_CONNECT, unix.SYS_ACCEPT, unix.SYS_LISTEN, unix.SYS_SHUTDOWN, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME} {
		r.do(nr, r.root, buf, n)
		r.do(nr, bad, buf, n)
	}

	// Streams.
	a, b := r.pair(unix.AF_UNIX, unix.SOCK_STREAM|nonblock)
	r.do(unix.SYS_FCNTL, a, unix.F_GETFL)
	r.do(unix.SYS_SENDTO, a, hello, 12, 0, 0, 0)
	r.do(unix.SYS_IOCTL, b, unix.TIOCINQ, buf)
	r.saw("FIONREAD", r.bytes(buf, 4))
	got("peek", r.do(unix.SYS_RECVFROM, b, buf, 5, unix.MSG_PEEK, 0, 0))
	got("read", r.do(unix.SYS_READ, b, buf, 5))
	got("readv", r.do(unix.SYS_READV, b, r.words(buf, 3, buf+3, 100), 2))
	r.do(unix.SYS_READ, b, buf, 1)
	r.do(unix.SYS_READ, b, buf, 0)
	r.do(unix.SYS_RECVFROM, b, buf, 10, unix.MSG_OOB, 0, 0)
	r.do(unix.SYS_WRITEV, b, r.words(hello, 5, hello, 5), 2)
	got("waitall", r.do(unix.SYS_RECVFROM, a, buf, 10, unix.MSG_WAITALL, buf+256, length(128)))
	r.address("from", buf+256, n)
	r.do(unix.SYS_POLL, r.put([]byte{byte(a), 0, 0, 0, 5, 0, 0, 0}), 1, 0)
	r.do(unix.SYS_SHUTDOWN, b, 9)
	r.do(unix.SYS_SHUTDOWN, b, unix.SHUT_RDWR)
	r.do(unix.SYS_SENDTO, a, hello, 12, unix.MSG_NOSIGNAL, 0, 0)
	r.do(unix.SYS_RECVFROM, a, buf, 12, 0, 0, 0)
	r.do(unix.SYS_SENDTO, a, hello, 12, unix.MSG_NOSIGNAL, 0, 200)
	r.do(unix.SYS_CLOSE, a)
	r.do(unix.SYS_CLOSE, b)

	// Names of Unix sockets.
	s := r.fd(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM|nonblock, 0)
	name, size := r.un(r.dir + "/listener")
	r.do(unix.SYS_GETSOCKNAME, s, buf, length(128))
	r.address("unbound", buf, n)
	r.do(unix.SYS_BIND, s, name, 1)
	r.do(unix.SYS_BIND, s, name, 200)
	r.do(unix.SYS_BIND, s, r.put(make([]byte, 112)), 112)
	r.do(unix.SYS_BIND, s, 8, size)
	missing, missingLen := r.un(r.dir + "/none/listener")
	r.do(unix.SYS_BIND, s, missing, missingLen)
	r.do(unix.SYS_CONNECT, s, missing, missingLen)
	r.do(unix.SYS_CONNECT, s, name, size)
	r.do(unix.SYS_BIND, s, name, size)
	r.do(unix.SYS_BIND, s, name, size)
	other := r.fd(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM|nonblock, 0)
	r.do(unix.SYS_BIND, other, name, size)
	r.do(unix.SYS_GETSOCKNAME, s, buf, length(128))
	r.address("bound", buf, n)
	r.do(unix.SYS_GETSOCKNAME, s, buf, length(5))
	r.do(unix.SYS_GETSOCKNAME, s, buf, length(1<<31))
	r.do(unix.SYS_GETSOCKNAME, s, 8, length(10))
	r.do(unix.SYS_GETPEERNAME, s, buf, length(128))
	r.do(unix.SYS_CONNECT, other, name, size)
	r.do(unix.SYS_ACCEPT, s, 0, 0)
	r.do(unix.SYS_LISTEN, s, 5)
	r.do(unix.SYS_ACCEPT, s, 0, 0)
	file := r.fd(unix.SYS_OPENAT, r.root, r.str("file"), unix.O_RDWR|unix.O_CREAT, 0o600)
	r.do(unix.SYS_SYMLINKAT, r.str("listener"), r.root, r.str("link"))
	plain, plainLen := r.un(r.dir + "/file")
	r.do(unix.SYS_CONNECT, other, plain, plainLen)
	r.do(unix.SYS_BIND, other, plain, plainLen)
	link, linkLen := r.un(r.dir + "/link")
	r.do(unix.SYS_BIND, other, link, linkLen)
	r.do(unix.SYS_CONNECT, other, link, linkLen)
	r.do(unix.SYS_CONNECT, other, link, linkLen)
	conn := r.fd(unix.SYS_ACCEPT4, s, buf, length(128), unix.SOCK_NONBLOCK)
	r.address("accepted", buf, n)
	r.do(unix.SYS_ACCEPT4, s, buf, n, 1)
	r.do(unix.SYS_FCNTL, conn, unix.F_GETFL)
	r.do(unix.SYS_GETPEERNAME, other, buf, length(128))
	r.address("peer", buf, n)
	r.do(unix.SYS_GETSOCKNAME, conn, buf, length(128))
	r.address("own", buf, n)
	r.do(unix.SYS_FSTATFS, conn, 8)

	// Ancillary data.
	hold := r.put(append(rights(file, conn), appendControl(nil, cmsg{unix.SOL_SOCKET, unix.SCM_CREDENTIALS, binary.LittleEndian.AppendUint64(nil, uint64(os.Getpid()))})...))
	iov := r.words(hello, 5, hello+5, 2)
	r.do(unix.SYS_SENDMSG, other, r.msg(0, 0, iov, 2, hold, 24), 0)
	for _, c := range [][]byte{rights(999), rights(bad), appendControl(nil, cmsg{1, 99, nil}), {8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0}, {99, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0}, make([]byte, 15)} {
		r.do(unix.SYS_SENDMSG, other, r.msg(0, 0, iov, 2, r.put(c), uint64(len(c))), 0)
	}
	r.do(unix.SYS_SENDMSG, other, r.msg(0, 0, iov, 1025, 0, 0), 0)
	r.do(unix.SYS_SENDMSG, other, r.msg(0, 0, iov, 2, 8, 24), 0)
	r.do(unix.SYS_SENDMSG, other, r.msg(name, bad, iov, 2, 0, 0), 0)
	r.do(unix.SYS_SENDMSG, other, r.msg(0, 0, 8, 2, 0, 0), 0)
	r.do(unix.SYS_SENDMSG, other, 8, 0)
	control := r.buf(128)
	take := func(what string, flags, room uint64) uint64 {
		clear(r.bytes(control, 128))
		m := r.msg(buf+256, 128, r.words(buf, 100), 1, control, room)
		got(what, r.do(unix.SYS_RECVMSG, conn, m, flags))
		r.saw("header", r.bytes(m+8, 4))
		r.saw("lengths", r.bytes(m+40, 12))
		if r.half(m+40) < 20 {
			return bad
		}
		r.saw("message", r.bytes(control, 16))
		return r.half(control + 16)
	}
	fd := take("rights", 0, 128)
	r.do(unix.SYS_FCNTL, fd, unix.F_GETFD)
	r.do(unix.SYS_FCNTL, fd, unix.F_GETFL)
	r.do(unix.SYS_PWRITE64, fd, hello, 5, 3)
	r.do(unix.SYS_PREAD64, file, buf, 100, 0)
	got("file", 8)
	take("nothing", 0, 128)
	cloexec := func(room uint64) {
		r.do(unix.SYS_SENDMSG, other, r.msg(0, 0, iov, 2, r.put(rights(file, file)), 24), 0)
		fd := take("once more", unix.MSG_CMSG_CLOEXEC, room)
		r.do(unix.SYS_FCNTL, fd, unix.F_GETFD)
	}
	cloexec(128)
	cloexec(20) // room for one
	cloexec(16)
	cloexec(0)
	one := r.words(1)
	r.do(unix.SYS_SETSOCKOPT, conn, unix.SOL_SOCKET, unix.SO_PASSCRED, one, 4)
	r.do(unix.SYS_WRITE, other, hello, 3)
	take("credentials", 0, 64)
	r.saw("credentials", r.bytes(control+16, 12))
	for _, fd := range []uint64{s, other, conn} {
		r.do(unix.SYS_CLOSE, fd)
	}

	// Datagrams with names.
	x, y := r.fd(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_DGRAM|nonblock, 0), r.fd(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_DGRAM|nonblock, 0)
	xn, xl := r.un(r.dir + "/x")
	yn, yl := r.un(r.dir + "/y\x00rest")
	r.do(unix.SYS_BIND, x, xn, xl)
	r.do(unix.SYS_BIND, y, yn, yl)
	r.do(unix.SYS_SENDTO, x, hello, 12, 0, yn, yl)
	r.do(unix.SYS_SENDTO, x, hello, 12, 0, missing, missingLen)
	r.do(unix.SYS_SENDTO, x, hello, 12, 0, 0, 0)
	got("datagram", r.do(unix.SYS_RECVFROM, y, buf, 5, unix.MSG_TRUNC|unix.MSG_PEEK, buf+256, length(128)))
	r.address("from", buf+256, n)
	m := r.msg(buf+256, 7, r.words(buf, 4), 1, 0, 0)
	got("short", r.do(unix.SYS_RECVMSG, y, m, 0))
	r.saw("flags", r.bytes(m+48, 4))
	r.saw("name length", r.bytes(m+8, 4))
	r.do(unix.SYS_CONNECT, x, yn, yl)
	r.do(unix.SYS_WRITE, x, hello, 0)
	r.do(unix.SYS_READ, y, buf, 10)
	r.do(unix.SYS_CONNECT, x, r.words(0), 2)
	r.do(unix.SYS_WRITE, x, hello, 4)
	vec := r.put(make([]byte, 3*mmsghdrSize))
	for i := range uint64(3) {
		copy(r.bytes(vec+i*mmsghdrSize, 64), r.bytes(r.msg(yn, yl, r.words(hello, i+1), 1, 0, 0), 48))
	}
	r.do(unix.SYS_SENDMMSG, x, vec, 3, 0)
	r.saw("lengths", r.bytes(vec+msghdrSize, 4))
	for i := range uint64(3) {
		copy(r.bytes(vec+i*mmsghdrSize, 64), r.bytes(r.msg(0, 0, r.words(buf+16*i, 16), 1, 0, 0), 48))
	}
	r.do(unix.SYS_RECVMMSG, y, vec, 3, unix.MSG_WAITFORONE, 0)
	r.saw("lengths", r.bytes(vec, 3*mmsghdrSize)[2*mmsghdrSize+msghdrSize:])
	r.do(unix.SYS_RECVMMSG, y, vec, 3, 0, r.words(0, 1e9))
	r.do(unix.SYS_RECVMMSG, y, vec, 3, 0, 0)
	r.do(unix.SYS_SENDMMSG, x, vec, 0, 0)
	r.do(unix.SYS_CLOSE, x)
	r.do(unix.SYS_CLOSE, y)

	// Internet.
	ln := r.fd(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|nonblock, 0)
	any, anyLen := r.in(0)
	r.do(unix.SYS_SETSOCKOPT, ln, unix.SOL_SOCKET, unix.SO_REUSEADDR, one, 4)
	r.do(unix.SYS_BIND, ln, any, anyLen)
	r.do(unix.SYS_BIND, ln, any, 3)
	r.do(unix.SYS_LISTEN, ln, 1)
	r.do(unix.SYS_GETSOCKNAME, ln, buf, length(128))
	r.address("listening", buf, n)
	at := r.put(bytes.Clone(r.bytes(buf, 16)))
	c := r.fd(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 6)
	r.do(unix.SYS_CONNECT, c, at, 16)
	r.do(unix.SYS_CONNECT, c, at, 16)
	d := r.fd(unix.SYS_ACCEPT, ln, buf, length(128))
	r.address("client", buf, n)
	r.do(unix.SYS_ACCEPT, ln, 0, 0)
	r.do(unix.SYS_GETPEERNAME, c, buf, length(128))
	r.address("server", buf, n)
	r.do(unix.SYS_SENDTO, c, hello, 12, unix.MSG_MORE, 0, 0)
	r.do(unix.SYS_SENDFILE, c, file, r.words(0), 8)
	got("both", r.do(unix.SYS_RECVFROM, d, buf, 20, unix.MSG_WAITALL, 0, 0))
	r.do(unix.SYS_SENDTO, c, hello, 1, unix.MSG_OOB, 0, 0)
	r.do(unix.SYS_IOCTL, d, unix.SIOCATMARK, buf)
	r.saw("mark", r.bytes(buf, 4))
	r.do(unix.SYS_RECVFROM, d, buf, 1, unix.MSG_OOB, 0, 0)
	for _, o := range [][2]uint64{{1, 2}, {1, 3}, {1, 4}, {1, 9}, {1, 13}, {1, 16}, {1, 20}, {1, 30}, {1, 38}, {1, 39}, {6, 1}, {6, 2}, {6, 13}, {0, 1}, {0, 2}, {41, 26}, {6, 999}} {
		clear(r.bytes(buf, 64))
		r.do(unix.SYS_GETSOCKOPT, c, o[0], o[1], buf, length(16))
		r.saw(fmt.Sprint("option ", o), append(bytes.Clone(r.bytes(buf, 16)), r.bytes(n, 4)...))
	}
	for _, set := range []struct{ level, name, addr, n uint64 }{
		{1, unix.SO_RCVTIMEO, r.words(2, 500000), 16}, {1, unix.SO_RCVTIMEO, r.words(0, 1e6), 16}, {1, unix.SO_SNDTIMEO, r.words(1, 0), 15},
		{1, unix.SO_KEEPALIVE, one, 4}, {1, unix.SO_KEEPALIVE, one, 3}, {1, unix.SO_KEEPALIVE, 8, 4}, {1, unix.SO_KEEPALIVE, one, bad},
		{6, unix.TCP_NODELAY, one, 8}, {6, unix.TCP_CONGESTION, r.str("none-such"), 9}, {1, unix.SO_LINGER, r.words(1 | 5<<32), 8}, {1, 9999, one, 4},
	} {
		r.do(unix.SYS_SETSOCKOPT, c, set.level, set.name, set.addr, set.n)
	}
	for _, name := range []uint64{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO, unix.SO_LINGER, unix.SO_KEEPALIVE} {
		r.do(unix.SYS_GETSOCKOPT, c, 1, name, buf, length(64))
		r.saw("value", append(bytes.Clone(r.bytes(buf, 16)), r.bytes(n, 4)...))
	}
	r.do(unix.SYS_GETSOCKOPT, c, 1, unix.SO_TYPE, buf, length(1<<31))
	r.do(unix.SYS_GETSOCKOPT, c, 1, unix.SO_TYPE, buf, 8)
	r.do(unix.SYS_IOCTL, c, fionbio, one)
	r.do(unix.SYS_FCNTL, c, unix.F_GETFL)
	r.do(unix.SYS_READ, c, buf, 10)
	r.do(unix.SYS_IOCTL, c, fionbio, r.words(0))
	r.do(unix.SYS_SETSOCKOPT, c, 1, unix.SO_RCVTIMEO, r.words(0, 20000), 16)
	r.do(unix.SYS_READ, c, buf, 10)
	r.do(unix.SYS_CLOSE, d)
	got("end", r.do(unix.SYS_RECVFROM, c, buf, 10, 0, 0, 0))
	r.do(unix.SYS_CLOSE, ln)
	r.do(unix.SYS_CLOSE, c)
	refused := r.fd(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 0)
	r.do(unix.SYS_CONNECT, refused, at, 16)
	r.do(unix.SYS_CONNECT, refused, at, 1)
	r.do(unix.SYS_SENDTO, refused, hello, 3, unix.MSG_NOSIGNAL, 0, 0)
	r.do(unix.SYS_CLOSE, refused)
	u := r.fd(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM|nonblock, 0)
	r.do(unix.SYS_BIND, u, any, anyLen)
	r.do(unix.SYS_GETSOCKNAME, u, buf, length(128))
	self := r.put(bytes.Clone(r.bytes(buf, 16)))
	r.do(unix.SYS_SETSOCKOPT, u, unix.IPPROTO_IP, unix.IP_PKTINFO, one, 4)
	r.do(unix.SYS_SENDTO, u, hello, 5, 0, self, 16)
	clear(r.bytes(control, 128))
	pm := r.msg(0, 0, r.words(buf, 9), 1, control, 128)
	got("loop", r.do(unix.SYS_RECVMSG, u, pm, 0))
	r.saw("pktinfo", r.bytes(control, 32))
	r.do(unix.SYS_SENDTO, u, r.mem.base, 66000, 0, self, 16)
	r.do(unix.SYS_CLOSE, u)
}

// TestSameSockets runs the same calls on the host and in the guest and compares results and memory.
func TestSameSockets(t *testing.T) {
	var logs [2][]string
	for i := range 2 {
		g := newGuest(t, withNet)
		r := &runner{guest: g, call: g.call}
		if i == 0 {
			r.call = native
		}
		r.root = uint64(r.call(unix.SYS_OPEN, g.str(g.dir), unix.O_DIRECTORY))
		sockets(r)
		r.call(unix.SYS_CLOSE, r.root)
		logs[i] = r.log
	}
	for i, line := range logs[0] {
		if i >= len(logs[1]) || line != logs[1][i] {
			t.Errorf("step %d: the host: %s; the guest: %s", i, line, logs[1][min(i, len(logs[1])-1)])
		}
	}
	t.Logf("%d steps", len(logs[0]))
	if len(logs[0]) < 200 {
		t.Errorf("only %d steps", len(logs[0]))
	}
}

// TestSocketConfinement: what leads out of the guest's files or to the host's services is refused by name.
func TestSocketConfinement(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "host.sock")
	host, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(host)
	if err := unix.Bind(host, &unix.SockaddrUnix{Name: outside}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(host, 5); err != nil {
		t.Fatal(err)
	}
	abstract := fmt.Sprintf("\x00cloister-test-%d", os.Getpid())
	open, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(open)
	if err := unix.Bind(open, &unix.SockaddrUnix{Name: "@" + abstract[1:]}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(open, 5); err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, withNet)
	if err := os.Symlink(outside, filepath.Join(g.dir, "out")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(g.dir, "dir")); err != nil {
		t.Fatal(err)
	}
	s := uint64(g.call(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM, 0))
	up := strings.Repeat("../", strings.Count(g.dir, "/")+2)
	for _, c := range []struct {
		nr   uint64
		path string
		want unix.Errno
	}{
		{unix.SYS_CONNECT, outside, unix.ENOENT}, {unix.SYS_CONNECT, "out", unix.ENOENT}, {unix.SYS_CONNECT, "dir/host.sock", unix.ENOENT},
		{unix.SYS_CONNECT, up + outside, unix.ENOENT}, {unix.SYS_CONNECT, abstract, unix.ECONNREFUSED},
		{unix.SYS_CONNECT, fmt.Sprintf("/proc/self/fd/%d", host), unix.ENOENT}, {unix.SYS_CONNECT, "/proc/self/fd/0", unix.ECONNREFUSED},
		{unix.SYS_CONNECT, "/dev/null", unix.ECONNREFUSED}, {unix.SYS_CONNECT, fmt.Sprintf("/proc/self/fd/%d", s), unix.ECONNREFUSED},
		{unix.SYS_BIND, abstract + "x", unix.EPERM}, {unix.SYS_BIND, filepath.Dir(outside) + "/new", unix.ENOENT}, {unix.SYS_BIND, "dir/new", unix.ENOENT},
		{unix.SYS_BIND, "/dev/log", unix.EROFS}, {unix.SYS_BIND, up + "new", unix.EROFS}, {unix.SYS_BIND, "out", unix.EADDRINUSE},
		{unix.SYS_BIND, strings.Repeat("n", 100), unix.ENAMETOOLONG},
	} {
		name, n := g.un(c.path)
		if got := g.call(c.nr, s, name, n); got != e(c.want) {
			t.Errorf("%s %q = %s, want %v", Name(c.nr), c.path, result64(got), c.want)
		}
		d := uint64(g.call(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_DGRAM, 0))
		if c.nr == unix.SYS_CONNECT {
			if got := g.call(unix.SYS_SENDTO, d, g.str("x"), 1, 0, name, n); got != e(c.want) {
				t.Errorf("sendto %q = %s, want %v", c.path, result64(got), c.want)
			}
		}
		g.want(0, unix.SYS_CLOSE, d)
	}
	if !g.warned("abstract") {
		t.Errorf("no word about abstract names: %q", g.warns)
	}
	if left, err := os.ReadDir(filepath.Dir(outside)); err != nil || len(left) != 1 {
		t.Errorf("outside the mount: %v, %v", left, err)
	}
	p := []unix.PollFd{{Fd: int32(host), Events: unix.POLLIN}, {Fd: int32(open), Events: unix.POLLIN}}
	if n, err := unix.Poll(p, 0); n != 0 || err != nil {
		t.Errorf("a connection from inside: %d, %v", n, err)
	}
}

// TestSocketRefusals: what is not served is named once; without --net host that is everything.
func TestSocketRefusals(t *testing.T) {
	g := newGuest(t, withNet)
	for _, c := range []struct {
		a    [3]uint64
		want unix.Errno
		said string
	}{
		{[3]uint64{unix.AF_NETLINK, unix.SOCK_RAW | unix.SOCK_CLOEXEC, 0}, unix.EAFNOSUPPORT, "netlink"},
		{[3]uint64{unix.AF_PACKET, unix.SOCK_RAW, 0}, unix.EAFNOSUPPORT, "address family 17"}, {[3]uint64{unix.AF_VSOCK, 1, 0}, unix.EAFNOSUPPORT, "address family 40"},
		{[3]uint64{unix.AF_ALG, 5, 0}, unix.EAFNOSUPPORT, "address family 38"}, {[3]uint64{unix.AF_INET, unix.SOCK_RAW, 1}, unix.EPERM, "raw"},
		{[3]uint64{unix.AF_INET, unix.SOCK_PACKET, 0}, unix.EPERM, "raw"}, {[3]uint64{unix.AF_INET, unix.SOCK_DGRAM, 1}, unix.EPROTONOSUPPORT, "protocol 1"},
	} {
		g.want(e(c.want), unix.SYS_SOCKET, c.a[0], c.a[1], c.a[2])
		if !g.warned(c.said) {
			t.Errorf("no word about %q in %q", c.said, g.warns)
		}
	}
	n := len(g.warns)
	g.want(e(unix.EAFNOSUPPORT), unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if len(g.warns) != n {
		t.Errorf("said twice: %q", g.warns[n:])
	}
	none := newGuest(t, nil)
	none.want(e(unix.EAFNOSUPPORT), unix.SYS_SOCKET, unix.AF_INET, 1, 0)
	none.want(e(unix.EAFNOSUPPORT), unix.SYS_SOCKETPAIR, unix.AF_UNIX, 1, 0, none.buf(8))
	if !none.warned("socket (41) refused") || !none.warned("socketpair (53) refused") || !none.warned("--net host") {
		t.Errorf("without a network: %q", none.warns)
	}
	none.want(e(unix.ENOTSOCK), unix.SYS_GETPEERNAME, 0, none.buf(64), none.words(64))
	none.want(e(unix.EBADF), unix.SYS_ACCEPT, 77, 0, 0)
}

// TestSocketWaits: every call that waits is cut by Interrupt, may be made again, and keeps its deadline.
func TestSocketWaits(t *testing.T) {
	g := newGuest(t, withNet)
	p := g.buf(8)
	g.want(0, unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_STREAM, 0, p)
	a, b := g.half(p), g.half(p+4)
	g.want(0, unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_DGRAM, 0, p)
	x := g.half(p)
	ln := uint64(g.call(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM, 0))
	name, size := g.un("ln")
	g.want(0, unix.SYS_BIND, ln, name, size)
	g.want(0, unix.SYS_LISTEN, ln, 0)
	buf := g.buf(64)
	iov := g.words(buf, 8)
	msg := g.msg(0, 0, iov, 1, 0, 0)
	// Fill both kinds of queue, and the backlog.
	g.want(0, unix.SYS_FCNTL, a, unix.F_SETFL, unix.O_NONBLOCK)
	for g.call(unix.SYS_WRITE, a, g.mem.base, 32*page) > 0 {
	}
	g.want(0, unix.SYS_FCNTL, a, unix.F_SETFL, 0)
	rx := uint64(g.call(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_DGRAM, 0))
	rxName, rxSize := g.un("rx")
	g.want(0, unix.SYS_BIND, rx, rxName, rxSize)
	for g.call(unix.SYS_SENDTO, x, buf, 1, unix.MSG_DONTWAIT, rxName, rxSize) > 0 {
	}
	c := uint64(g.call(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM, 0))
	g.want(0, unix.SYS_CONNECT, c, name, size)
	full := uint64(g.call(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM, 0))
	idle := uint64(g.call(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM, 0))
	idleName, idleSize := g.un("idle")
	g.want(0, unix.SYS_BIND, idle, idleName, idleSize)
	g.want(0, unix.SYS_LISTEN, idle, 0)
	calls := []struct {
		nr  uint64
		in  []uint64
		fd  uint64
		opt uint64 // the time-out that belongs to it
		end unix.Errno
	}{
		{unix.SYS_READ, []uint64{a, buf, 8}, a, unix.SO_RCVTIMEO, unix.EAGAIN}, {unix.SYS_READV, []uint64{a, iov, 1}, a, unix.SO_RCVTIMEO, unix.EAGAIN},
		{unix.SYS_RECVFROM, []uint64{a, buf, 8}, a, unix.SO_RCVTIMEO, unix.EAGAIN}, {unix.SYS_RECVMSG, []uint64{a, msg, 0}, a, unix.SO_RCVTIMEO, unix.EAGAIN},
		{unix.SYS_RECVFROM, []uint64{x, buf, 8}, x, unix.SO_RCVTIMEO, unix.EAGAIN},
		{unix.SYS_RECVMMSG, []uint64{a, g.put(append(bytes.Clone(g.bytes(msg, 56)), make([]byte, 8)...)), 1, 0, 0}, a, unix.SO_RCVTIMEO, unix.EAGAIN},
		{unix.SYS_WRITE, []uint64{a, buf, 8}, a, unix.SO_SNDTIMEO, unix.EAGAIN}, {unix.SYS_SENDMSG, []uint64{a, msg, 0}, a, unix.SO_SNDTIMEO, unix.EAGAIN},
		{unix.SYS_SENDTO, []uint64{x, buf, 1, 0, rxName, rxSize}, x, unix.SO_SNDTIMEO, unix.EAGAIN},
		{unix.SYS_ACCEPT, []uint64{idle, 0, 0}, idle, unix.SO_RCVTIMEO, unix.EAGAIN},
		{unix.SYS_CONNECT, []uint64{full, name, size}, full, unix.SO_SNDTIMEO, unix.EAGAIN},
	}
	for _, c := range calls {
		time.AfterFunc(3*time.Millisecond, g.interrupt)
		if out := g.out(c.nr, c.in...); out.Kind != Interrupted {
			t.Errorf("%s%x = %+v, want Interrupted", Name(c.nr), c.in, out)
		}
		g.drain()
		// With a time-out it ends in time, although it is cut all along.
		g.want(0, unix.SYS_SETSOCKOPT, c.fd, unix.SOL_SOCKET, c.opt, g.words(0, 50000), 16)
		for try := 0; ; try++ {
			start, cuts := time.Now(), 0
			for {
				timer := time.AfterFunc(8*time.Millisecond, g.interrupt)
				out := g.out(c.nr, c.in...)
				timer.Stop()
				g.drain()
				if out.Kind == Interrupted {
					cuts++
					continue
				}
				if int64(out.Ret) != e(c.end) {
					t.Errorf("%s%x = %s, want %v", Name(c.nr), c.in, result64(int64(out.Ret)), c.end)
				}
				break
			}
			if d := time.Since(start); d < 50*time.Millisecond || d > 5*time.Second || cuts == 0 && try == 9 {
				t.Errorf("%s: %d cuts, ended after %v", Name(c.nr), cuts, d)
			}
			if cuts > 0 || try == 9 { // else a loaded machine cut it too late
				break
			}
		}
		g.want(0, unix.SYS_SETSOCKOPT, c.fd, unix.SOL_SOCKET, c.opt, g.words(0, 0), 16)
	}
	// What had begun is reported: half of MSG_WAITALL.
	g.want(3, unix.SYS_WRITE, b, buf, 3)
	time.AfterFunc(3*time.Millisecond, g.interrupt)
	g.want(3, unix.SYS_RECVFROM, a, buf, 8, unix.MSG_WAITALL, 0, 0)
	g.drain()
	// SIGPIPE, for streams and not for datagrams.
	g.want(0, unix.SYS_CLOSE, b)
	g.want(e(unix.EPIPE), unix.SYS_SENDTO, a, buf, 1, unix.MSG_NOSIGNAL, 0, 0)
	for _, nr := range []uint64{unix.SYS_WRITE, unix.SYS_SENDTO} {
		if out := g.out(nr, a, buf, 1, 0, 0, 0); out.Kind != Kill || out.Value != uint64(unix.SIGPIPE) {
			t.Errorf("%s to nobody: %+v", Name(nr), out)
		}
	}
	g.want(0, unix.SYS_SHUTDOWN, x, unix.SHUT_WR)
	g.want(e(unix.EPIPE), unix.SYS_WRITE, x, buf, 1)
}

// TestSocketHanded: an inherited socket, and a descriptor from a host process. Neither may be used to
// block the host thread.
func TestSocketHanded(t *testing.T) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	g := newGuest(t, func(c *Config) { c.Net, c.Stdio = true, &[3]int{p[1], c.Stdio[1], c.Stdio[2]} })
	_ = unix.Close(p[1])
	var q [2]int
	if err := unix.Pipe2(q[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(q[1])
	if err := unix.Sendmsg(p[0], []byte("fd"), unix.UnixRights(q[0]), nil, 0); err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(q[0])
	control, buf := g.buf(64), g.buf(64)
	g.want(2, unix.SYS_RECVMSG, 0, g.msg(0, 0, g.words(buf, 64), 1, control, 64), 0)
	fd := g.half(control + 16)
	time.AfterFunc(3*time.Millisecond, g.interrupt)
	if out := g.out(unix.SYS_READ, fd, buf, 10); out.Kind != Interrupted {
		t.Errorf("read of a handed pipe: %+v", out)
	}
	g.drain()
	if _, err := unix.Write(q[1], []byte("pipe")); err != nil {
		t.Fatal(err)
	}
	g.want(4, unix.SYS_READ, fd, buf, 10)
	g.want(e(unix.EPERM), unix.SYS_FCHMOD, fd, 0o777)
	g.want(e(unix.EOPNOTSUPP), unix.SYS_ACCEPT, 0, 0, 0)
	g.want(4, unix.SYS_SENDTO, 0, buf, 4, 0, 0, 0)
	time.AfterFunc(3*time.Millisecond, g.interrupt)
	if out := g.out(unix.SYS_RECVFROM, 0, buf, 10, 0, 0, 0); out.Kind != Interrupted {
		t.Errorf("recv of an inherited socket: %+v", out)
	}
	g.drain()
	// The guest's table full: the descriptor is dropped and said to be.
	g.want(0, unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, g.words(uint64(len(g.k.FDs())), 100), 0)
	before := openFDs(t)
	if err := unix.Sendmsg(p[0], []byte("fd"), unix.UnixRights(q[1]), nil, 0); err != nil {
		t.Fatal(err)
	}
	m := g.msg(0, 0, g.words(buf, 64), 1, control, 64)
	g.want(2, unix.SYS_RECVMSG, 0, m, 0)
	if g.half(m+40) != 0 || g.half(m+48)&unix.MSG_CTRUNC == 0 {
		t.Errorf("without room: control length %d, flags %#x", g.half(m+40), g.half(m+48))
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// FuzzSocket gives hostile bytes to every parser of sockets: addresses, message headers, control data
// and options, on Unix sockets so that nothing leaves the machine.
func FuzzSocket(f *testing.F) {
	f.Add([]byte{1, 0, 's', 0}, rights(3, 4), []byte{0, 0, 0}, uint64(16))
	f.Add([]byte{1, 0, 0, 'a'}, []byte{17, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 9}, []byte{1, 2, 3}, uint64(3))
	f.Add([]byte{1}, append(rights(0), rights(1, 2, 3)...), []byte{4, 5, 6}, uint64(1<<40))
	f.Add([]byte("\x01\x00/proc/self/fd/3"), make([]byte, 40), []byte{7, 8, 9, 10, 11}, uint64(24))
	f.Fuzz(func(t *testing.T, name, control, script []byte, length uint64) {
		before := openFDs(t)
		t.Run("", func(t *testing.T) {
			g := newGuest(t, withNet)
			g.interrupt()
			p := g.buf(8)
			g.want(0, unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_STREAM, 0, p)
			g.want(0, unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_DGRAM, 0, p)
			s := uint64(g.call(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_DGRAM, 0))
			g.next = g.mem.base + 8*page
			if e := g.mem.Protect(g.mem.base+60*page, page, 0); e != 0 {
				t.Fatal(e)
			}
			na, ca := g.put(name[:min(len(name), page)]), g.put(control[:min(len(control), page)])
			if length%3 == 0 { // against a hole
				ca = g.mem.base + 60*page - uint64(len(control)%page)
				copy(g.bytes(ca, uint64(len(control)%page)), control)
			}
			nl, cl := uint64(len(name)), uint64(len(control))
			if length%5 == 0 {
				nl, cl = length, length
			}
			iov := g.words(g.buf(64), length%100, length, length%7)
			for _, op := range script[:min(len(script), 32)] {
				fd := 3 + uint64(op)%6
				msg := g.msg(na, nl, iov, uint64(op)%3, ca, cl)
				switch op % 12 {
				case 0, 1:
					g.out(unix.SYS_SENDMSG, fd, msg, uint64(op)>>4)
				case 2, 3:
					g.out(unix.SYS_RECVMSG, fd, msg, uint64(op)>>4)
				case 4:
					g.out(unix.SYS_BIND, s, na, nl)
				case 5:
					g.out(unix.SYS_CONNECT, s, na, nl)
				case 6:
					g.out(unix.SYS_SENDTO, fd, ca, cl%page, 0, na, nl)
				case 7:
					g.out(unix.SYS_RECVFROM, fd, ca, cl%page, unix.MSG_DONTWAIT, na, ca)
				case 8:
					g.out(unix.SYS_SENDMMSG, fd, ca, length, 0)
				case 9:
					g.out(unix.SYS_RECVMMSG, fd, ca, length, unix.MSG_DONTWAIT, na)
				case 10:
					g.out(unix.SYS_SETSOCKOPT, fd, 1, length%70, ca, cl)
				case 11:
					g.out(unix.SYS_GETSOCKNAME, fd, na, ca)
				}
			}
			if !g.mem.guardsIntact() {
				t.Error("a byte beside guest memory changed")
			}
		})
		if after := openFDs(t); after != before {
			t.Errorf("%d descriptors before, %d after", before, after)
		}
	})
}
