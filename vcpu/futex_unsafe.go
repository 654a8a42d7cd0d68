package vcpu

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Operations of futex(2).
const (
	futexWaitShared  = 0
	futexWaitPrivate = 128
	futexWakePrivate = 129
)

// futex ignores its result: every caller looks at the word again, whatever ended the wait.
func futex(p *uint32, op int, v uint32, timeout *unix.Timespec) {
	unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(p)), uintptr(op), uintptr(v), uintptr(unsafe.Pointer(timeout)), 0, 0)
}

func (c *control) xsaveAddr() uintptr { return uintptr(unsafe.Pointer(&c.xsave)) }
func (c *control) msrAddr() uintptr   { return uintptr(unsafe.Pointer(&c.msr)) }

func (c *control) sregsAddr() uintptr { return uintptr(unsafe.Pointer(&c.sregs)) }
