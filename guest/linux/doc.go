// Package linux serves the Linux x86-64 system calls of a program guest: it decodes the six argument
// registers, checks every guest pointer, does the work on host files through guest/vfs, and says what
// the VMM has to do next (return a value, end the program, or try again later).
//
// It knows no KVM and no page tables: it works on two interfaces,
// [Memory] and [CPU], so it is tested natively against the host kernel with a fake memory.
//
// What a call promises is data: the table (table_*.go) gives each number a name, a handler, a level
// and a note, and docs/linux-abi.md is generated from it.
//
// Invariants:
//  1. A guest pointer is used only through Memory. Scalars and structs are copied once, then checked
//     and used from the copy; guest memory that changes under us changes nothing that was checked.
//  2. A copy that faults (the guest mapped a file and truncated it: SIGBUS) is EFAULT, not a crash;
//     bulk transfers are made by the host kernel, directly between its file and guest memory.
//  3. A call that may wait waits in ppoll together with Config.Interrupt and never in a host read,
//     write, open or flock. When it is cut and has done nothing, the outcome is Interrupted and the
//     same call may be made again: a relative timeout then keeps its first deadline.
//  4. Sizes from the guest never size a host allocation beyond the limits that Linux has itself
//     (PATH_MAX, IOV_MAX, RLIMIT_NOFILE, MAX_RW_COUNT).
//  5. Each host descriptor has one owner, an open file description; the last guest descriptor that
//     refers to it closes it. Close releases what is left at the end.
//  6. What is refused is refused by name, once, through Config.Warn, and counted.
//  7. Tasks call at the same time; one lock (Kernel.big) is held while one of them is served, and given up in
//     block, where every wait is, and in outside, around host calls that may take long. Nothing that was
//     looked at before one of the two holds behind it, but a description that is pinned (pin).
//     The counters that other goroutines read (Unknown) have a lock of their own.
//  8. A host socket that the guest opened is O_NONBLOCK for as long as it lives; one that it was handed
//     (a standard stream, SCM_RIGHTS) is only used by calls that take MSG_DONTWAIT. A host descriptor
//     that arrives in control data is adopted or closed before the call returns.
//  9. The engine ignores SIGXFSZ and SIGPIPE (os/signal.Ignore): the host raises them for what the
//     guest writes, and the Go runtime ends a process on SIGXFSZ. The guest gets its own, from here.
//  9. A signal is acted on where a task enters the kernel or is attended to, and only by a task that was told of it
//     (tell). What a handler's frame says on the way back is the program's to forge: it is copied once, checked as
//     Linux and XRSTOR check it, and a virtual CPU never gets what it would refuse.
//  10. Timers that raise signals are served by one goroutine, which lives from the first that is armed until Close and
//     holds the lock only while it raises.
//
// Alternatives rejected: passing system calls through to the host with translated pointers (the guest
// would act with the engine's whole authority, and could block it for ever); a goroutine per blocking
// call (it cannot be cut without a signal, and wakes the scheduler at each call); reading pipes with
// RWF_NOWAIT only (Linux before 6.4 refuses it for pipes); setting O_NONBLOCK on the inherited
// streams (they are shared with the user's shell, which would then see EAGAIN).
package linux
