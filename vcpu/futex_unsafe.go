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

// wakeFutex wakes whoever sleeps on a word. Waits are block.Futex's.
func wakeFutex(p *uint32) {
	unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(p)), futexWakePrivate, 1<<30, 0, 0, 0)
}

func (c *control) xsaveAddr() uintptr { return uintptr(unsafe.Pointer(&c.xsave)) }
func (c *control) msrAddr() uintptr   { return uintptr(unsafe.Pointer(&c.msr)) }

func (c *control) sregsAddr() uintptr { return uintptr(unsafe.Pointer(&c.sregs)) }
