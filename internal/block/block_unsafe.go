package block

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Futex is futex(2) on a word of this process: op with the value v, for at most timeout (nil: for ever). It has no result, since
// a caller has to look at the word again whatever ended the wait.
//
//go:nosplit
//go:norace
func Futex(word *uint32, op int, v uint32, timeout *unix.Timespec) {
	entersyscallblock()
	syscall.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), uintptr(op), uintptr(v), uintptr(unsafe.Pointer(timeout)), 0, 0)
	exitsyscall()
}

// Poll is ppoll(2) without a signal mask, for at most timeout (nil: for ever), in which the kernel leaves what is left of it. It
// returns how many of fds are ready, 0 when time is up, or ppoll's own error.
func Poll(fds []unix.PollFd, timeout *unix.Timespec) (int, error) {
	n, e := ppoll(unsafe.Pointer(unsafe.SliceData(fds)), len(fds), unsafe.Pointer(timeout))
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

//go:nosplit
//go:norace
func ppoll(fds unsafe.Pointer, n int, timeout unsafe.Pointer) (uintptr, syscall.Errno) {
	entersyscallblock()
	r, _, e := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(fds), uintptr(n), uintptr(timeout), 0, 0, 0)
	exitsyscall()
	return r, e
}

//go:linkname entersyscallblock runtime.entersyscallblock
func entersyscallblock()

//go:linkname exitsyscall runtime.exitsyscall
func exitsyscall()
