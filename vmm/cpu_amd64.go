package vmm

import (
	"io"

	"github.com/cloister-vmm/cloister/internal/kvm"
)

var errEOF = io.EOF

// serialiseKind chooses the serialising instruction: SERIALIZE where CPUID.(7,0):EDX[14] offers it, which
// does not exit under a hypervisor, else CPUID.
func serialiseKind() int {
	if top, _, _, _ := kvm.CPUID(0, 0); top >= 7 {
		if _, _, _, d := kvm.CPUID(7, 0); d&(1<<14) != 0 {
			return 1
		}
	}
	return 2
}
