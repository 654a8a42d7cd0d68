package bare

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// signalInfo is PTRACE_GETSIGINFO: EINVAL says that the stop is none for a signal (ptrace(2), "Group-stop").
func signalInfo(tid int, info *[128]byte) error {
	if _, _, e := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GETSIGINFO, uintptr(tid), 0, uintptr(unsafe.Pointer(info)), 0, 0); e != 0 {
		return e
	}
	return nil
}
