package cloister

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"syscall"
	"unsafe"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// Sealed runs f on a thread of its own, sealed: nothing of the Go runtime breaks into it. While it runs
//
//   - its goroutine is locked to its thread, and all signals are blocked there: the runtime's preemption (SIGURG) waits;
//   - no garbage is collected: a collection stops every goroutine, and f, which is not preempted, would never stop.
//
// So f shall not run for ever in a program that needs collections, and must make no call that waits for another
// goroutine to be stopped (runtime.GC, runtime.ReadMemStats, a change of GOMAXPROCS). Others may allocate and log. f
// itself shall neither allocate nor grow its stack, or it may have to wait for them, and when it has run for 10 ms
// a call of a function that is not inlined may give way to the scheduler once.
//
// The error is that of Isolate(true), natively errors.ErrUnsupported; f has run all the same, unsealed. Who wants it to wait for
// a quiet core calls Isolate(true) and Isolate(false) first.
func Sealed(f func()) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	runtime.GC() // one that is under way would wait for f
	percent := debug.SetGCPercent(-1)
	defer debug.SetGCPercent(percent)
	limit := debug.SetMemoryLimit(1<<63 - 1)
	defer debug.SetMemoryLimit(limit)
	all, old := ^uint64(0), uint64(0)
	if err := mask(&all, &old); err != nil {
		return err
	}
	// The runtime marks a goroutine that has run for 10 ms, and the next function that checks its stack gives way to
	// others, by a system call. So a fresh time slice now, and raw system calls, which check nothing, at both ends.
	runtime.Gosched()
	_, _, errno := syscall.RawSyscall(abi.SysIsolate, 1, 0, 0)
	f()
	if errno == 0 {
		_, _, errno = syscall.RawSyscall(abi.SysIsolate, 0, 0, 0)
	}
	var err error
	if errno != 0 {
		err = errno
	}
	if e := mask(&old, nil); err == nil {
		err = e
	}
	return err
}

// mask is rt_sigprocmask(2), SIG_SETMASK, for this thread.
func mask(set, old *uint64) error {
	const setMask, size = 2, 8
	if _, _, e := syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, setMask, uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), size, 0, 0); e != 0 {
		return fmt.Errorf("block signals on the sealed thread: %w", e)
	}
	return nil
}
