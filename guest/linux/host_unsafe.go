package linux

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// bytesOf is the memory of *v, for structs whose Go layout is the kernel's (x/sys/unix types and the
// ones of this package, whose sizes a test holds). T must hold no pointers.
func bytesOf[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

// ioctlBytes makes an ioctl whose argument is the memory of p, which must be at least as long as the
// request reads or writes.
func ioctlBytes(fd int, req uint, p []byte) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req), uintptr(unsafe.Pointer(unsafe.SliceData(p))))
	return errno
}

// fcntlBytes is fcntl with a struct argument.
func fcntlBytes(fd int, cmd int, p []byte) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), uintptr(cmd), uintptr(unsafe.Pointer(unsafe.SliceData(p))))
	return errno
}

// ioctlNumber makes an ioctl whose argument is a number.
func ioctlNumber(fd int, req uint, v uint32) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req), uintptr(v))
	return errno
}

// getrandom asks the kernel itself: unix.Getrandom may fill p in user space (vDSO), where a fault in
// guest memory would be the VMM's.
func getrandom(p []byte, flags int) (int, unix.Errno) {
	n, _, errno := unix.Syscall(unix.SYS_GETRANDOM, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), uintptr(flags))
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// word32 is the word at the beginning of b, which must be aligned.
func word32(b []byte) *uint32 { return (*uint32)(unsafe.Pointer(unsafe.SliceData(b))) }
