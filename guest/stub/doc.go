// Package stub is everything that runs in the guest at CPL 0, and the two loops that Cloister itself runs
// at CPL 3: a few dozen instructions in two pages, as bytes with their listing. stub_test.go disassembles
// them and compares.
//
// The supervisor block (GPA abi.SupGPA; its first pages at abi.SupVA):
//
//	+0x1000  IDT                       U=0
//	+0x3000  exception stubs, provoke  U=0 X
//	+0x4000  system call stub, loops   U=1 X   (pvm stays at CPL 3 after SYSCALL: it must be user code)
//	+0x10000 for each of 64 vCPUs:
//	         TSS, GDT                  U=0 W
//	         supervisor stack          U=0 W
//	         ring page                 U=0 W, on pvm U=1 W; only with --syscalls=ring
//	         ring stub                 U=1 X
//	+0x110000 page tables              not mapped
//
// Invariants:
//  1. No page of the block is writable at CPL 3, but for the ring page where SYSCALL stays at CPL 3: what is in it is
//     the program's word, and believed as little. None is writable and executable.
//  2. Leaving the guest is always OUT; the VMM believes the port only with RIP in the stub.
//  3. The stubs use no stack of the program's and change no register that SYSCALL does not. Nor does an exception in them, which finds RSP the program's
//     (SYSCALL leaves it): every gate switches to the supervisor stack, from CPL 0 too (IST1, firmware.IDT), so that the frame is where the VMM reads it.
//
// Alternatives rejected: HLT as the way out (a #GP at CPL 3 on pvm), VMCALL (KVM patches the instruction
// in read-only text), IRET for the way back (needs the supervisor stack readable at CPL 3 on pvm).
package stub
