package kvm

// Run is struct kvm_run (include/uapi/linux/kvm.h): memory shared with the kernel. Only the vCPU's own
// thread reads or writes it, but for ImmediateExit, which a kicker sets (docs/ordering.md, O1).
type Run struct {
	RequestInterruptWindow uint8
	ImmediateExit          uint8
	_                      [6]uint8
	ExitReason             uint32
	ReadyForInjection      uint8
	IfFlag                 uint8
	Flags                  uint16
	CR8                    uint64
	APICBase               uint64
	Exit                   [32]uint64 // the union, 256 bytes
	ValidRegs              uint64     // which of Sync the kernel fills at every return
	DirtyRegs              uint64     // which of Sync it takes over at the next KVM_RUN
	Regs                   Regs
	Sregs                  Sregs
}

// Bits of ValidRegs and DirtyRegs (arch/x86/include/uapi/asm/kvm.h).
const (
	SyncRegs  = 1 << 0
	SyncSregs = 1 << 1
)

// Exit reasons (include/uapi/linux/kvm.h).
const (
	ExitUnknown       = 0
	ExitException     = 1
	ExitIO            = 2
	ExitHypercall     = 3
	ExitDebug         = 4
	ExitHLT           = 5
	ExitMMIO          = 6
	ExitShutdown      = 8
	ExitFailEntry     = 9
	ExitIntr          = 10
	ExitInternalError = 17
	ExitSystemEvent   = 24
	ExitX86RDMSR      = 29
	ExitX86WRMSR      = 30
	ExitMemoryFault   = 39
)

// IO decodes the union after ExitIO. The first word holds direction (0 in, 1 out), size, port, count.
//
//go:nosplit
func (r *Run) IO() (out bool, size uint8, port uint16, count uint32) {
	w := r.Exit[0]
	return w&0xff == 1, uint8(w >> 8), uint16(w >> 16), uint32(w >> 32)
}

// VCPUEvents is struct kvm_vcpu_events: what waits to be injected into the guest (api.rst, KVM_GET_VCPU_EVENTS).
type VCPUEvents struct {
	Exception struct {
		Injected, Nr, HasErrorCode, Pending uint8
		ErrorCode                           uint32
	}
	Interrupt      struct{ Injected, Nr, Soft, Shadow uint8 }
	NMI            struct{ Injected, Pending, Masked, _ uint8 }
	SIPI           uint32
	Flags          uint32
	SMI            struct{ SMM, Pending, InsideNMI, LatchedInit uint8 }
	TripleFault, _ uint8
	_              [25]uint8
	HasPayload     uint8
	Payload        uint64
}
