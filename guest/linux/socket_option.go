package linux

import (
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// option is one line of what setsockopt and getsockopt let through to the host. Left out is whatever
// carries a pointer or a descriptor (filters, TCP_ZEROCOPY_RECEIVE, TCP_ULP), needs privilege that a root
// engine would lend (SO_*FORCE, SO_MARK, IP_TRANSPARENT, TCP_REPAIR) or would make the host block.
type option struct{ level, name int }

const (
	getOnly = 1 << iota
	setOnly
	always = getOnly | setOnly
)

// Numbers that x/sys/unix lacks (include/uapi/asm-generic/socket.h, linux/in.h, linux/tcp.h, linux/udp.h).
const (
	soReceiveTimeoutNew, soSendTimeoutNew = 66, 67
	ipLocalPortRange                      = 51
	udpCork, udpSegment, udpGRO           = 1, 103, 104
)

var options = map[option]int{
	{unix.SOL_SOCKET, unix.SO_REUSEADDR}: always, {unix.SOL_SOCKET, unix.SO_REUSEPORT}: always, {unix.SOL_SOCKET, unix.SO_BROADCAST}: always,
	{unix.SOL_SOCKET, unix.SO_SNDBUF}: always, {unix.SOL_SOCKET, unix.SO_RCVBUF}: always, {unix.SOL_SOCKET, unix.SO_KEEPALIVE}: always,
	{unix.SOL_SOCKET, unix.SO_OOBINLINE}: always, {unix.SOL_SOCKET, unix.SO_PRIORITY}: always, {unix.SOL_SOCKET, unix.SO_DONTROUTE}: always,
	{unix.SOL_SOCKET, unix.SO_PASSCRED}: always, {unix.SOL_SOCKET, unix.SO_RCVLOWAT}: always, {unix.SOL_SOCKET, unix.SO_TIMESTAMP}: always,
	{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS}: always, {unix.SOL_SOCKET, unix.SO_TIMESTAMPING}: always, {unix.SOL_SOCKET, unix.SO_RXQ_OVFL}: always,
	{unix.SOL_SOCKET, unix.SO_BUSY_POLL}: always, {unix.SOL_SOCKET, unix.SO_INCOMING_CPU}: always, {unix.SOL_SOCKET, unix.SO_BINDTODEVICE}: always,
	{unix.SOL_SOCKET, unix.SO_PEEK_OFF}: always, {unix.SOL_SOCKET, unix.SO_NO_CHECK}: always, {unix.SOL_SOCKET, unix.SO_SNDLOWAT}: getOnly,
	{unix.SOL_SOCKET, unix.SO_TYPE}: getOnly, {unix.SOL_SOCKET, unix.SO_ERROR}: getOnly, {unix.SOL_SOCKET, unix.SO_ACCEPTCONN}: getOnly,
	{unix.SOL_SOCKET, unix.SO_PROTOCOL}: getOnly, {unix.SOL_SOCKET, unix.SO_DOMAIN}: getOnly, {unix.SOL_SOCKET, unix.SO_PEERCRED}: getOnly,
	{unix.SOL_SOCKET, unix.SO_COOKIE}: getOnly, {unix.SOL_SOCKET, unix.SO_MEMINFO}: getOnly, {unix.SOL_SOCKET, unix.SO_INCOMING_NAPI_ID}: getOnly,

	{unix.IPPROTO_IP, unix.IP_TOS}: always, {unix.IPPROTO_IP, unix.IP_TTL}: always, {unix.IPPROTO_IP, unix.IP_PKTINFO}: always,
	{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER}: always, {unix.IPPROTO_IP, unix.IP_RECVERR}: always, {unix.IPPROTO_IP, unix.IP_RECVTTL}: always,
	{unix.IPPROTO_IP, unix.IP_RECVTOS}: always, {unix.IPPROTO_IP, unix.IP_MTU}: getOnly, {unix.IPPROTO_IP, unix.IP_FREEBIND}: always,
	{unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT}: always, {unix.IPPROTO_IP, unix.IP_MULTICAST_IF}: always, {unix.IPPROTO_IP, unix.IP_MULTICAST_TTL}: always,
	{unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP}: always, {unix.IPPROTO_IP, unix.IP_MULTICAST_ALL}: always, {unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP}: setOnly,
	{unix.IPPROTO_IP, unix.IP_DROP_MEMBERSHIP}: setOnly, {unix.IPPROTO_IP, unix.IP_ADD_SOURCE_MEMBERSHIP}: setOnly, {unix.IPPROTO_IP, unix.IP_DROP_SOURCE_MEMBERSHIP}: setOnly,
	{unix.IPPROTO_IP, unix.IP_UNICAST_IF}: always, {unix.IPPROTO_IP, unix.MCAST_JOIN_GROUP}: setOnly, {unix.IPPROTO_IP, unix.MCAST_LEAVE_GROUP}: setOnly,
	{unix.IPPROTO_IP, ipLocalPortRange}: always,

	{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY}: always, {unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS}: always, {unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF}: always,
	{unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS}: always, {unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP}: always, {unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP}: setOnly,
	{unix.IPPROTO_IPV6, unix.IPV6_LEAVE_GROUP}: setOnly, {unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER}: always, {unix.IPPROTO_IPV6, unix.IPV6_MTU}: always,
	{unix.IPPROTO_IPV6, unix.IPV6_RECVERR}: always, {unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO}: always, {unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT}: always,
	{unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS}: always, {unix.IPPROTO_IPV6, unix.IPV6_TCLASS}: always, {unix.IPPROTO_IPV6, unix.MCAST_JOIN_GROUP}: setOnly,
	{unix.IPPROTO_IPV6, unix.MCAST_LEAVE_GROUP}: setOnly,

	{unix.IPPROTO_TCP, unix.TCP_NODELAY}: always, {unix.IPPROTO_TCP, unix.TCP_MAXSEG}: always, {unix.IPPROTO_TCP, unix.TCP_CORK}: always,
	{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE}: always, {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL}: always, {unix.IPPROTO_TCP, unix.TCP_KEEPCNT}: always,
	{unix.IPPROTO_TCP, unix.TCP_SYNCNT}: always, {unix.IPPROTO_TCP, unix.TCP_LINGER2}: always, {unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT}: always,
	{unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP}: always, {unix.IPPROTO_TCP, unix.TCP_INFO}: getOnly, {unix.IPPROTO_TCP, unix.TCP_QUICKACK}: always,
	{unix.IPPROTO_TCP, unix.TCP_CONGESTION}: always, {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT}: always, {unix.IPPROTO_TCP, unix.TCP_FASTOPEN}: always,
	{unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT}: always, {unix.IPPROTO_TCP, unix.TCP_INQ}: always,

	{unix.IPPROTO_UDP, udpCork}: always, {unix.IPPROTO_UDP, udpSegment}: always, {unix.IPPROTO_UDP, udpGRO}: always,
}

// optionMax bounds an option's value; the longest is struct tcp_info.
const optionMax = 512

func (k *Kernel) refuseOption(call string, o option) unix.Errno {
	k.warn(fmt.Sprintf("%s: option %d of level %d is not served: answered ENOPROTOOPT", call, o.name, o.level))
	return unix.ENOPROTOOPT
}

func sysSetsockopt(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	o := option{int(int32(a[1])), int(int32(a[2]))}
	n := int32(a[4])
	if n < 0 {
		return 0, unix.EINVAL
	}
	d, s, errno := k.socketOf(a[0])
	if errno != 0 {
		return 0, errno
	}
	defer d.unpin()
	if o.level == unix.SOL_SOCKET && o.name != unix.SO_BINDTODEVICE && n < 4 {
		return 0, unix.EINVAL // an int, known or not (net/core/sock.c: sk_setsockopt)
	}
	value := make([]byte, min(n, optionMax))
	if errno := k.copyIn(a[3], value); errno != 0 {
		return 0, errno
	}
	if o.level == unix.SOL_SOCKET {
		switch o.name {
		case unix.SO_RCVTIMEO, soReceiveTimeoutNew:
			return 0, setLimit(&s.recvLimit, value)
		case unix.SO_SNDTIMEO, soSendTimeoutNew:
			return 0, setLimit(&s.sendLimit, value)
		case unix.SO_LINGER:
			return 0, setLinger(d, s, value)
		case unix.SO_RCVLOWAT:
			s.pollFirst = true
		}
	}
	if options[o]&setOnly == 0 {
		return 0, k.refuseOption("setsockopt", o)
	}
	return 0, hostSetsockopt(d.fd, o.level, o.name, value)
}

// setLimit is sock_set_timeout (net/core/sock.c).
func setLimit(limit *time.Duration, value []byte) unix.Errno {
	if len(value) < 16 {
		return unix.EINVAL
	}
	sec, usec := int64(binary.LittleEndian.Uint64(value)), int64(binary.LittleEndian.Uint64(value[8:]))
	switch {
	case usec < 0 || usec >= 1e6:
		return unix.EDOM
	case sec < 0:
		*limit = 1 // no time at all
	default:
		*limit = span(&unix.Timespec{Sec: sec, Nsec: usec * 1000})
	}
	return 0
}

// setLinger lets the host reset a connection at close (on, with no time). A time would make the host's
// close wait, where nothing can cut it: it is remembered, and close returns at once.
func setLinger(d *description, s *socket, value []byte) unix.Errno {
	if len(value) < 8 {
		return unix.EINVAL
	}
	value = value[:8]
	s.linger = nil
	if binary.LittleEndian.Uint32(value) != 0 && binary.LittleEndian.Uint32(value[4:]) != 0 {
		s.linger = append([]byte{1, 0, 0, 0}, value[4:]...)
		value = make([]byte, 8)
	}
	return hostSetsockopt(d.fd, unix.SOL_SOCKET, unix.SO_LINGER, value)
}

func sysGetsockopt(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	o := option{int(int32(a[1])), int(int32(a[2]))}
	d, s, errno := k.socketOf(a[0])
	if errno != 0 {
		return 0, errno
	}
	defer d.unpin()
	if s.family == unix.AF_UNIX && o.level != unix.SOL_SOCKET {
		return 0, unix.EOPNOTSUPP // these have none, wherever the answer would go
	}
	room, errno := k.load32(a[4])
	if errno != 0 {
		return 0, errno
	}
	if int32(room) < 0 {
		return 0, unix.EINVAL
	}
	value := make([]byte, min(room, optionMax))
	known, errno := s.option(o)
	switch {
	case errno != 0:
		return 0, k.refuseOption("getsockopt", o)
	case known != nil:
		value = value[:copy(value, known)]
	default:
		var n int
		if n, errno = hostGetsockopt(d.fd, o.level, o.name, value); errno != 0 {
			return 0, errno
		}
		value = value[:n]
	}
	if errno := k.copyOut(a[3], value); errno != 0 {
		return 0, errno
	}
	return 0, k.store32(a[4], uint32(len(value)))
}

// option is the value of an option that we keep, nil for one that the host has.
func (s *socket) option(o option) ([]byte, unix.Errno) {
	if o.level == unix.SOL_SOCKET {
		switch o.name {
		case unix.SO_RCVTIMEO, soReceiveTimeoutNew:
			return limitBytes(s.recvLimit), 0
		case unix.SO_SNDTIMEO, soSendTimeoutNew:
			return limitBytes(s.sendLimit), 0
		case unix.SO_LINGER:
			return s.linger, 0
		}
	}
	if options[o]&getOnly == 0 {
		return nil, unix.ENOPROTOOPT
	}
	return nil, 0
}

func limitBytes(limit time.Duration) []byte {
	raw := binary.LittleEndian.AppendUint64(nil, uint64(limit/time.Second))
	return binary.LittleEndian.AppendUint64(raw, uint64(limit%time.Second/time.Microsecond))
}

// ifreqSize is sizeof(struct ifreq) on x86-64 (include/uapi/linux/if.h).
const ifreqSize = 40

// socketIoctl serves the requests that only sockets have; ok is false for all others.
func (k *Kernel) socketIoctl(d *description, req uint32, addr uint64) (ok bool, errno unix.Errno) {
	switch req {
	case unix.SIOCATMARK:
		buf := make([]byte, 8)
		if errno := ioctlBytes(d.fd, uint(req), buf); errno != 0 {
			return true, errno
		}
		return true, k.copyOut(addr, buf[:4])
	case unix.SIOCGIFNAME, unix.SIOCGIFINDEX, unix.SIOCGIFFLAGS, unix.SIOCGIFADDR, unix.SIOCGIFNETMASK, unix.SIOCGIFBRDADDR, unix.SIOCGIFMTU:
		var buf [ifreqSize]byte
		if errno := k.copyIn(addr, buf[:]); errno != 0 {
			return true, errno
		}
		if errno := ioctlBytes(d.fd, uint(req), buf[:]); errno != 0 {
			return true, errno
		}
		return true, k.copyOut(addr, buf[:])
	}
	return false, 0
}
