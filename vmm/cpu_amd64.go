package vmm

import "io"

var errEOF = io.EOF

// serialising names the instructions, by the number that vcpu.Config.Serialise wants.
var serialising = [...]string{1: "SERIALIZE", 2: "CPUID", 3: "IRET"}

// serialiseKind chooses the serialising instruction by CPUID: SERIALIZE where leaf 7, EDX bit 14, has it. Else CPUID on the bare processor and, where
// leaf 1, ECX bit 31, tells of a hypervisor, IRET: there CPUID traps. It is then the hypervisor's answer and no instruction that
// this core has executed, what serialises is not said of a VM exit, and all vCPUs wait for that exit. Not so in QEMU's emulator, which
// names itself in leaf 0x40000000: it traps nothing, and IRET from user mode to user mode hangs there (docs/backends.md).
func serialiseKind(cpuid func(leaf, sub uint32) (a, b, c, d uint32)) int {
	top, _, _, _ := cpuid(0, 0)
	if top >= 7 {
		if _, _, _, d := cpuid(7, 0); d&(1<<14) != 0 {
			return 1
		}
	}
	const tcg = 0x54474354 // "TCGT" "CGTC" "GTCG"
	if _, _, c, _ := cpuid(1, 0); c&(1<<31) != 0 {
		if _, name, _, _ := cpuid(0x40000000, 0); name != tcg {
			return 3
		}
	}
	return 2
}
