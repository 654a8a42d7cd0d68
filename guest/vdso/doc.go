// Package vdso is what a guest asks without a system call: the time, and the CPU. Where the host's clocksource is the TSC
// the guest has the host's own vvar pages and a copy of its vDSO, in which getcpu alone leads here (Redirect, GetCPU).
// Elsewhere it has a vDSO image of our own and the algorithm that keeps it on the host's time.
//
// The guest sees a data page (read-only, PageSize bytes) and right above it the image (read and
// execute). The image is an ELF shared object with the names and the version (LINUX_2.6) of
// Linux's x86-64 vDSO, so glibc, musl, Rust and Go find clock_gettime, gettimeofday, time,
// clock_getres and getcpu in it and read the time by LFENCE and RDTSC, with no exit. Clocks that the
// page does not serve (the CPU-time clocks) fall back to the system call.
//
// Clock time is a line through a point: ns(T) = V + (T-S)*m, in 128-bit fixed point with Fraction
// fractional bits. A slot of the page holds S, V and two slopes, one for T < S and one for T >= S. A
// change of rate is published with S a little in the future and V on the old line, so the curve is
// continuous by construction: there is no step to hide.
//
//	page + 0    gen      number of the newest slot, 0 while there is none
//	page + 16   res      ns, for clock_getres; 0: ask the host
//	page + 256  slot of even gen
//	page + 512  slot of odd gen
//	page + 1024 CPU      of each of 64 vCPUs, plus one; 0: ask by system call
//	slot + 0    offset   one per clock ID 0..11: ns to add to its line
//	slot + 96   served   bit i: clock ID i is served
//	slot + 128  line of all clocks but CLOCK_MONOTONIC_RAW: S, m before S, m from S on, V low, V high
//	slot + 192  line of CLOCK_MONOTONIC_RAW
//
// Invariants:
//  1. A reader never waits: a writer stopped or killed at any instruction leaves a complete newest
//     slot. (A seqlock with an odd "busy" value would hang the guest when the monitor dies in it.)
//  2. For any T, slot k+1 gives exactly the time of slot k when S[k] <= T <= S[k+1].
//  3. Slopes are positive. With 2 and synchronised TSCs, two reads of which one happens before the
//     other never run backwards, on any vCPUs, provided that S[k+1] had not passed when k+1 was published.
//     Clock checks that on both sides of the publishing store; Stats.Late counts failures, which need a
//     stall of the writer longer than the whole lead between two adjacent instructions.
//  4. CLOCK_REALTIME, TAI and BOOTTIME follow the host's steps within one update; they are the
//     monotonic line plus an offset that stays the same while the host's readings allow it.
//  5. Nothing in the image needs relocation, writes to memory but through the caller's pointers, or
//     uses the stack.
//  6. getcpu answers what the system call does: the VMM writes both from one number, and nobody else.
//
// Alternatives rejected. One line and an odd/even sequence: strictly monotonic without the proviso
// of invariant 3, but readers spin while the writer is off its CPU (see 1). Re-basing on the host's clock
// at each update: measured to run backwards 4 times in a million reads. KVM's paravirtual clock: its
// page is rewritten by the host when the vCPU enters, and it is not steered between. C or a
// committed blob for the code: needs a compiler, or trust in bytes that nobody can rebuild.
package vdso
