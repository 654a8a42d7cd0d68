package engine

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// sigaction is struct kernel_sigaction of x86-64 (arch/x86/include/uapi/asm/signal.h). The zero one is the default action.
type sigaction struct{ handler, flags, restorer, mask uint64 }

var ignore = sigaction{handler: 1} // SIG_IGN

// action sets what the process does on sig, unless a is nil, and returns what it did before.
func action(sig unix.Signal, a *sigaction) (old sigaction, err error) {
	if _, _, e := unix.Syscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(a)), uintptr(unsafe.Pointer(&old)), 8, 0, 0); e != 0 {
		return old, e
	}
	return old, nil
}
