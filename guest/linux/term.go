package linux

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// ioctlKind says how an ioctl's argument is moved.
type ioctlKind uint8

const (
	ioctlOut   ioctlKind = iota // the host fills a struct
	ioctlIn                     // the host reads a struct
	ioctlValue                  // the argument is a number
	ioctlDrain                  // ioctlIn, after the output queue is empty
)

// ioctls are the requests that reach the host: terminals (include/uapi/asm-generic/ioctls.h) and
// queue lengths. size is the bytes of the struct. TIOCSTI is not among them: it would type into the
// user's shell.
var ioctls = map[uint32]struct {
	kind ioctlKind
	size int
}{
	unix.TCGETS: {ioctlOut, 36}, unix.TCSETS: {ioctlIn, 36}, unix.TCSETSW: {ioctlDrain, 36}, unix.TCSETSF: {ioctlDrain, 36},
	unix.TCGETS2: {ioctlOut, 44}, unix.TCSETS2: {ioctlIn, 44}, unix.TCSETSW2: {ioctlDrain, 44}, unix.TCSETSF2: {ioctlDrain, 44},
	unix.TCFLSH: {ioctlValue, 0}, unix.TCXONC: {ioctlValue, 0},
	unix.TIOCGWINSZ: {ioctlOut, 8}, unix.TIOCSWINSZ: {ioctlIn, 8},
	unix.TIOCGPGRP: {ioctlOut, 4}, unix.TIOCGSID: {ioctlOut, 4}, unix.TIOCGETD: {ioctlOut, 4},
	unix.TIOCOUTQ: {ioctlOut, 4}, unix.TIOCINQ: {ioctlOut, 4}, unix.TIOCEXCL: {ioctlValue, 0}, unix.TIOCNXCL: {ioctlValue, 0},
}

// FIONCLEX, FIOCLEX and FIONBIO (include/uapi/asm-generic/ioctls.h).
const fionclex, fioclex, fionbio = 0x5450, 0x5451, 0x5421

func sysIoctl(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	d, errno := k.fds.io(a[0])
	if errno != 0 {
		return 0, errno
	}
	req := uint32(a[1])
	switch req {
	case fioclex, fionclex:
		k.fds.e[uint32(a[0])].cloexec = req == fioclex
		return 0, 0
	case fionbio:
		on, errno := k.load32(a[2])
		if errno != 0 {
			return 0, errno
		}
		d.flags &^= unix.O_NONBLOCK
		if on != 0 {
			d.flags |= unix.O_NONBLOCK
		}
		return 0, 0
	case unix.TIOCSPGRP:
		if !d.isTerminal() {
			return 0, unix.ENOTTY
		}
		pgid, errno := k.load32(a[2])
		if errno == 0 && int(int32(pgid)) != k.proc.pgid {
			errno = unix.EPERM // the terminal's foreground is the shell's to give
		}
		return 0, errno
	case unix.TCSBRK, unix.TCSBRKP:
		if !d.isTerminal() {
			return 0, unix.ENOTTY
		}
		return 0, k.drain(d)
	}
	if d.sock != nil {
		if ok, errno := k.socketIoctl(d, req, a[2]); ok {
			return 0, errno
		}
	}
	known, ok := ioctls[req]
	if !ok {
		k.warn(fmt.Sprintf("ioctl %#x is not served: answered ENOTTY", req))
		return 0, unix.ENOTTY
	}
	if d.fd < 0 {
		return 0, unix.ENOTTY
	}
	buf := make([]byte, max(known.size, 8))
	switch known.kind {
	case ioctlValue:
		// The argument goes by value: what the host would take for a pointer is a small number.
		return 0, ioctlNumber(d.fd, uint(req), uint32(a[2]))
	case ioctlOut:
		if errno := ioctlBytes(d.fd, uint(req), buf); errno != 0 {
			return 0, errno
		}
		return 0, k.copyOut(a[2], buf[:known.size])
	}
	if !d.isTerminal() {
		return 0, unix.ENOTTY
	}
	if errno := k.copyIn(a[2], buf[:known.size]); errno != 0 {
		return 0, errno
	}
	if known.kind == ioctlDrain {
		if errno := k.drain(d); errno != 0 {
			return 0, errno
		}
	}
	return 0, ioctlBytes(d.fd, uint(req), buf)
}

func (d *description) isTerminal() bool {
	if d.fd < 0 || d.mode != unix.S_IFCHR {
		return false
	}
	_, err := unix.IoctlGetTermios(d.fd, unix.TCGETS)
	return err == nil
}

// drain waits until a terminal has shown its output. The host's own way to wait (in TCSETSW) would
// not see Interrupt while the user holds the output with ^S.
func (k *Kernel) drain(d *description) unix.Errno {
	defer d.pin().unpin()
	for {
		n, err := unix.IoctlGetInt(d.fd, unix.TIOCOUTQ)
		if err != nil {
			return errnoOf(err)
		}
		if n == 0 {
			return 0
		}
		if errno := k.sleep(time.Now().Add(lockRetry)); errno != 0 {
			return errno
		}
	}
}
