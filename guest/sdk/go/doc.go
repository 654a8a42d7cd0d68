// Package cloister is the SDK for Go programs that run under Cloister: it seals the loop that must not be
// disturbed, and keeps a record that the monitor reads. Natively every call is harmless and reports
// errors.ErrUnsupported or false.
//
// A goroutine may move to another thread at any scheduling point, and a vCPU is a thread, so:
//
//	runtime.LockOSThread()
//	err := cloister.Isolate(true)
//	if errors.Is(err, syscall.EAGAIN) {
//		return err                   // the core is not quiet enough now (cloister run --require)
//	}
//	for !done { step() }             // no allocation, no channel, no system call
//	err = cloister.Isolate(false)    // natively both are errors.ErrUnsupported
//
// example/main.go is a complete program.
//
// Invariants:
//  1. No call enters the Go scheduler: raw system calls only, so sealing costs one break and no more.
//  2. The calls are made on the calling thread and speak of its vCPU only.
//
// [Safepoint] is for programs that are patched while they run; what a patch waits for is docs/ordering.md, O13.
//
// [Sealed] does all that a loop of Go code needs in a program whose other goroutines go on.
//
// Alternatives rejected: a type with Seal and Unseal methods (there is no state to hold).
package cloister
