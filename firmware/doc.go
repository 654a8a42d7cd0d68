// Package firmware is what a guest finds before its first instruction, as pure data: descriptor
// tables, page-table encodings and the CPUID it may see. It opens nothing, calls no KVM and knows no
// memory; callers copy its results where the guest layout (guest/abi) says.
//
// Sources: Intel 64 and IA-32 Architectures Software Developer's Manual (SDM), AMD64 Architecture
// Programmer's Manual (APM), Linux arch/x86/include/asm, Documentation/virt/kvm/api.rst. Each constant names its own.
//
// Invariants:
//  1. Results depend on arguments only, and are the same bytes on every machine.
//  2. CPUID never announces what the guest cannot use: a feature whose state XCR0 leaves out, or that
//     needs a CR4 bit that CR4 does not set, or a device that is not there (APIC, PMU, MONITOR).
//  3. CPUID's entries satisfy KVM_SET_CPUID2 (index flags, order, no duplicates), and CR4 and XCR0 of
//     those entries are values that KVM accepts with them.
//
// Alternatives rejected: passing KVM_GET_SUPPORTED_CPUID through (it announces an APIC, PMU and host
// topology that a program guest does not have, and on the PVM back end hides AVX, which the program sees
// in the hardware's leaf 7 anyway); a fixed CPU model as QEMU has (programs are built for this host).
package firmware
