// Package vmm is one virtual machine that runs one program: its memory, its vCPUs, what serves their
// exits, its life from the first instruction to the last. A processor is one vCPU with the thread of the program that
// runs on it, and serves that vCPU's exits; threads.go makes, places and ends them; ring.go is for calls without an exit.
//
// It is the engine's half of Cloister. It knows nothing of reports, metrics or policy: it fills ledgers
// (isolation/breaks) and returns a Result, and the monitor process reads both. A start is Begin, Build, Prepare, Enter.
//
// Invariants:
//  1. Nothing the guest does makes this package panic or touch a host byte that is not the guest's:
//     guest memory is reached through guest/mem only, a fault while touching it is an EFAULT.
//  2. A sealed vCPU is disturbed by nothing here: between seal and unseal no memory slot, no mapping and
//     no thread is made except while serving an exit of the guest's own.
//  3. Kernel statistics are read at the borders of the sealed interval while the vCPU is out of the guest.
//
// Alternatives rejected: gokvm's machine package (a guest can crash it; docs/decisions/0002).
package vmm
