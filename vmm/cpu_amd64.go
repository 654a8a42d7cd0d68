package vmm

import "io"

var errEOF = io.EOF

func cpuid(leaf, sub uint32) (eax, ebx, ecx, edx uint32)

// serialiseKind chooses the serialising instruction: SERIALIZE where CPUID.(7,0):EDX[14] offers it, which
// does not exit under a hypervisor, else CPUID.
func serialiseKind() int {
	if top, _, _, _ := cpuid(0, 0); top >= 7 {
		if _, _, _, d := cpuid(7, 0); d&(1<<14) != 0 {
			return 1
		}
	}
	return 2
}
