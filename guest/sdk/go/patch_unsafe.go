package cloister

import (
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// safeWord is not 0 while a patch waits for safe points, and until it is registered. It has a cache line of its own, which every pass of a sealed
// loop reads.
var safeWord = struct {
	_ [64]byte
	v uint32 // ORDER(O13) the program's word: pairs with the patcher's G1 and G2; without the order the call behind it would find no patch
	_ [60]byte
}{v: 1}

// registered says that Cloister knows safeWord, or was asked.
var registered atomic.Bool // ORDER(none): only who asks first, the word itself is set before it is shown

// Safepoint says that the calling thread is between two passes: no function on its stack would see a mixture of old and new code. It costs
// one atomic load; while a patch waits, a system call in which the patch is made, on the goroutine's thread, without giving way to other goroutines.
// The first call registers the word that is loaded, by two system calls: make it before sealing. Natively it does nothing.
func Safepoint() {
	if atomic.LoadUint32(&safeWord.v) != 0 { // ORDER(O13) S1: pairs with G2; without it the patch would wait in vain
		safepoint(safepointCall)
	}
}

// safepoint is the rare part of Safepoint.
func safepoint(call func(what, arg uintptr) syscall.Errno) {
	if registered.CompareAndSwap(false, true) { // ORDER(none): as said there
		// ORDER(O13): 0 before it is shown. Pairs with G2; without it this store could wipe the 1 of a patch that waits.
		atomic.StoreUint32(&safeWord.v, 0)
		// What comes back changes nothing: natively there is nobody to tell, and the word stays 0.
		call(abi.SafepointWord, uintptr(unsafe.Pointer(&safeWord.v)))
	}
	call(abi.SafepointHere, 0) // 0, or ENOSYS natively
}

func safepointCall(what, arg uintptr) syscall.Errno {
	_, _, errno := syscall.RawSyscall(abi.SysSafepoint, what, arg, 0)
	return errno
}

// Quiet says (on) that the calling thread executes nothing that is ever patched until it says otherwise: a helper that sleeps shall not hold up
// a patch that waits for safe points. Lock the goroutine to its thread first (runtime.LockOSThread).
//
// The error is nil or natively syscall.ENOSYS, which errors.Is takes for errors.ErrUnsupported.
func Quiet(on bool) error {
	var arg uintptr
	if on {
		arg = 1
	}
	if errno := safepointCall(abi.SafepointQuiet, arg); errno != 0 {
		return errno
	}
	return nil
}

// SyncCores is for a program that has written code: when it returns nil, every other thread executes a serialising instruction before its next
// instruction of the program.
//
// The error is nil, syscall.ETIMEDOUT when a thread could not be stopped, or natively syscall.ENOSYS, which errors.Is takes for
// errors.ErrUnsupported (there membarrier(2) does it).
func SyncCores() error {
	if _, _, errno := syscall.RawSyscall(abi.SysSync, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
