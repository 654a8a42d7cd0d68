package linux

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The host's socket calls on raw addresses: x/sys/unix turns addresses into Go values and back, and what
// it does not know is lost on the way.

func hostBind(fd int, name []byte) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(name))), uintptr(len(name)))
	return errno
}

// hostConnect must only be called for a non-blocking socket.
func hostConnect(fd int, name []byte) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(name))), uintptr(len(name)))
	return errno
}

// hostAccept takes a connection of a non-blocking listener.
func hostAccept(fd int) (int, []byte, unix.Errno) {
	var name [sockaddrMax]byte
	size := uint32(len(name))
	n, _, errno := unix.Syscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&name)), uintptr(unsafe.Pointer(&size)),
		unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0, 0)
	if errno != 0 {
		return -1, nil, errno
	}
	return int(n), name[:min(size, sockaddrMax)], 0
}

// hostName is getsockname or getpeername.
func hostName(nr uintptr, fd int) ([]byte, unix.Errno) {
	var name [sockaddrMax]byte
	size := uint32(len(name))
	_, _, errno := unix.Syscall(nr, uintptr(fd), uintptr(unsafe.Pointer(&name)), uintptr(unsafe.Pointer(&size)))
	return name[:min(size, sockaddrMax)], errno
}

func hostSetsockopt(fd, level, option int, value []byte) unix.Errno {
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(unsafe.SliceData(value))), uintptr(len(value)), 0)
	return errno
}

// hostGetsockopt fills value and returns how long the answer is.
func hostGetsockopt(fd, level, option int, value []byte) (int, unix.Errno) {
	size := uint32(len(value))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(unsafe.SliceData(value))), uintptr(unsafe.Pointer(&size)), 0)
	return min(int(size), len(value)), errno
}

// message is struct msghdr with host memory: name and control are ours, vec may be the guest's.
type message struct {
	vec           [][]byte
	name, control []byte
	flags         int // of the received message
}

func (m *message) header() *unix.Msghdr {
	h := &unix.Msghdr{Name: unsafe.SliceData(m.name), Namelen: uint32(len(m.name)), Control: unsafe.SliceData(m.control)}
	h.SetControllen(len(m.control))
	iov := make([]unix.Iovec, len(m.vec))
	for i, p := range m.vec {
		iov[i].Base = unsafe.SliceData(p)
		iov[i].SetLen(len(p))
	}
	h.Iov = unsafe.SliceData(iov)
	h.SetIovlen(len(iov))
	return h
}

// hostSend never blocks and never raises SIGPIPE.
func hostSend(fd int, m *message, flags int) (int, unix.Errno) {
	n, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(m.header())), uintptr(flags|unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL))
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// hostReceive never blocks. It shortens name and control to what came, and sets flags.
func hostReceive(fd int, m *message, flags int) (int, unix.Errno) {
	h := m.header()
	n, _, errno := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(h)), uintptr(flags|unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC))
	if errno != 0 {
		return 0, errno
	}
	m.name = m.name[:min(int(h.Namelen), len(m.name))]
	m.control = m.control[:min(int(h.Controllen), len(m.control))]
	m.flags = int(h.Flags)
	return int(n), 0
}
