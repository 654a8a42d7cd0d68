package cloister

import (
	"syscall"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// Isolate seals (on) or unseals the vCPU of the calling thread: breaks in between count against the run's
// budget. Lock the goroutine to its thread first (runtime.LockOSThread).
//
// The error is nil, or natively syscall.ENOSYS, which errors.Is takes for errors.ErrUnsupported. Under `cloister run
// --require GRADE` sealing gives syscall.EAGAIN, and seals nothing, while the core is not as quiet as that, or the thread has no
// core of its own: try again later, or go on unsealed. The report says what the core lacks. Unsealing is never refused.
func Isolate(on bool) error {
	var arg uintptr
	if on {
		arg = 1
	}
	if _, _, errno := syscall.RawSyscall(abi.SysIsolate, arg, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// Available reports whether the program runs under Cloister. It costs one system call, and changes nothing:
// it offers a gap record at an odd address, which Cloister refuses (EINVAL) and Linux does not know (ENOSYS).
func Available() bool {
	_, _, errno := syscall.RawSyscall(abi.SysGapRecord, 1, 0, 0)
	return errno != syscall.ENOSYS
}
