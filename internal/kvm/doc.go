// Package kvm is the only caller of KVM's ioctls (Documentation/virt/kvm/api.rst).
//
// From github.com/bobuhiro11/gokvm/kvm it takes what is sound: the calls that create a VM and a vCPU,
// capability checks, memory regions, and the layouts of registers. Not used from there, and why:
// Run (turns EINTR into success, so a stale exit would be served twice), SetMSRs/GetMSRs (ignore the
// count of registers done), SetGSIRouting (wrong entry size), InjectInterrupt (always EFAULT),
// GetSupportedCPUID/SetCPUID2 (reflection on every entry: milliseconds at start-up), and every wrapper
// that would write to an object on a goroutine's stack (its address is taken as a uintptr, which a
// growing stack leaves behind).
//
// Invariants:
//  1. Whatever the kernel writes to lives on the heap or in mmapped memory, and the conversion to
//     uintptr stands in the call expression itself (package unsafe, rule 4).
//  2. EINTR policy belongs to the caller: no call here retries, but for NewVM, which has no other use for it.
//  3. An error names the ioctl, the object and, where there is one, the remedy.
//  4. RunRaw, IoctlRaw and the other …Raw functions use neither the Go stack beyond their frame nor the
//     runtime: they may run on a thread that the Go runtime does not know (package vcpu).
package kvm
