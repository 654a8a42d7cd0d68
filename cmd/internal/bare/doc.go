// Package bare is `cloister run --bare`: it runs a program natively, placed, prioritised, locked and sealed as
// a VM's would be, and makes the same report of what the kernel's own counters tell.
//
// It is a process of its own beside the program (docs/decisions/0007-bare.md): all of it runs on one thread,
// which is the tracer, the parent whose death kills the program, and the listener of its sealing calls.
//
//	start     fork, PTRACE_TRACEME, execve: the program stands before its first instruction
//	prepare   affinity, priority, filter, memory lock, by system calls injected there; then it is let go
//	border    a sealing call: the program stands in it while its counters are read
//	end       it has ended and is not reaped yet, or was stopped: the counters are read once more
//
// Invariants:
//  1. Nothing but counters that the kernel keeps anyway is read of a running program; no tracepoint, no
//     perf event, no trace of its system calls once it is sealed.
//  2. A figure that the kernel does not keep is not estimated: it is named in not_measured.
//  3. The program dies with this process.
//  4. The differences of all intervals add up to the difference between the last reading and the first.
//
// Alternatives rejected: docs/decisions/0007-bare.md.
package bare
