// Package vcpu is one virtual CPU as one host thread on one core: the entry and exit loop, the kick, the
// stop, and the hand-over of exits to Go.
//
// The thread is made by clone() and is not one of the Go runtime's: it has no g and no P, all signals
// are blocked on it, and it runs only the functions of loop.go, park.go and book.go, which use no runtime service. So
// no garbage collection, no stop-the-world, no SIGURG and no wait for a P can break or lengthen a break
// (docs/decisions/0001-vcpu-thread.md has the measurements).
//
// One turn of the loop: E1 look at the stop request, then whether Go wants to look (a signal, docs/ordering.md O10) · E2 close the open break · E3 KVM_RUN · X1 stamp and
// count · X2 name cause and site · X3 answer here · X4 hand to Go. Why in this order:
// docs/architecture.md, "One VM exit".
//
// Invariants:
//  1. A kick is never lost: KVM_RUN is never entered with a request that was not looked at, or with
//     its signal and immediate_exit both gone (docs/ordering.md, O1; model/stop.pml).
//  2. Stop returns only when every vCPU is out of guest mode with pending I/O completed. Between Stop
//     and Resume none enters, and each serialises on its own core before it does (I2, I3). A stop that carries stores may be over by then:
//     the last vCPU to stop has made them, all have serialised, and the last to do so has let all go (Stopped.Made).
//  3. Requests are generations: they grow, and nobody clears them.
//  4. Every KVM_RUN return is counted once in Total before its cause is known and once in Cause when the
//     guest is entered again; the ledger has one writer.
//  5. Between KVM_RUN's return and the next KVM_RUN nothing is allocated or logged on this thread.
//
// Alternatives rejected: a goroutine locked to its thread (tail of 4 to 10 ms an exit while a collection
// runs, measured); RawSyscall on a goroutine (SIGURG ejects the guest, or a collection hangs the
// process); cgo (needs a C compiler to build, and its callbacks wait for a P).
package vcpu
