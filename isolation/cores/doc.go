// Package cores knows the host's CPUs as things to own: which there are, which may be dedicated, who has
// one, and which threads stay away from it.
//
// It is about any process, not about virtual machines.
//
// Invariants:
//  1. A core is leased to one owner at a time, machine-wide; the lease ends with its owner, however that
//     ends (it is a bound socket and an flock(2)), and its file goes with it unless the owner was killed.
//  2. KeepOff leaves no thread of a process on the given cores, threads made meanwhile included.
//  3. Nothing here changes the host beyond the affinity of the caller's own processes.
//
// Alternatives rejected: a lock file with a PID in it (a crash leaves it, a PID is reused).
package cores
