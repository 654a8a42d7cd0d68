// Package block makes the host calls in which a goroutine is meant to sleep: it tells Go's scheduler so beforehand.
//
// An ordinary system call keeps its processor (P) and hopes to be back soon; the runtime's monitor thread (sysmon) looks
// every 20 µs whether it has to be taken away, and goes on looking for milliseconds after it took one. In the engine, whose
// goroutines wait for the guest most of the time, that thread came to 3300 wake-ups a second beside some 700 exits. Where the program's threads
// share the housekeeping CPUs each of them is a break of a guest thread. These calls give the P away before they sleep, as
// the runtime's own waits do, and sysmon sleeps too.
//
// Invariants:
//  1. Between the two hooks of the runtime nothing runs but one system call: no stack is grown, nothing is allocated.
//  2. What the kernel writes to may lie on the goroutine's stack: a stack is not moved while its goroutine is in a system call.
//  3. A call may return early (EINTR, a spurious wake-up); every caller looks again at what it waits for.
//
// Alternatives rejected: a netpoller's wait on an eventfd (two wake-ups for each exit instead of one); a longer timer slack for
// sysmon (needs CAP_SYS_NICE, and Ps that were lost would come back late); raw system calls (a collection would wait for
// them for ever). runtime.entersyscallblock and exitsyscall are not public, but the runtime keeps them for such users (go.dev/issue/67401).
package block
