package kvm

// RunRaw executes KVM_RUN on a vCPU's file descriptor and reads the TSC right after it. ret is 0 or
// -errno. It touches neither the Go scheduler nor g: a thread outside the runtime may call it. On a
// goroutine it would hold its P for as long as the guest runs; never call it there.
//
//go:noescape
func RunRaw(fd uintptr) (ret int64, tsc uint64)

// IoctlRaw executes any vCPU ioctl the same way.
//
//go:noescape
func IoctlRaw(fd, op, arg uintptr) (ret int64)

// TSC reads the time-stamp counter, in cycles, after every earlier load has completed. Any thread may call it.
func TSC() uint64

// CPUID executes CPUID on the CPU that the caller happens to be on; under a hypervisor that is an exit.
func CPUID(leaf, sub uint32) (eax, ebx, ecx, edx uint32)
