package breaks

// Cause says why a vCPU was not executing guest instructions. The list is closed: docs/breaks.md
// documents every entry, and a test compares the two.
type Cause uint8

// Causes observed as a return of KVM_RUN: exact, timed, with their site.
const (
	Unknown       Cause = iota // a return that the vCPU loop could not name; must be 0
	Syscall                    // the program executed SYSCALL
	PIO                        // IN or OUT
	MMIO                       // access to a GPA without memory, or a write to a read-only slot
	HLT                        // HLT with no interrupt to wait for
	Debug                      // KVM_EXIT_DEBUG
	Shutdown                   // triple fault
	InternalError              // KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_FAIL_ENTRY
	MemoryFault                // KVM_RUN failed with EFAULT: no host memory behind a GPA
	Kick                       // a requested stop: planned
	SpuriousKick               // a signal ended KVM_RUN and nobody had asked
	Signal                     // a signal of the program's own was delivered to a thread that was running
	Seal                       // cloister_isolate(): the border of the sealed interval, never in it
	End                        // the run's own end: exit_group, or the last stop
	Setup                      // Cloister's own work on the vCPU thread (pre-touch, state loading)
	Patch                      // a stop to patch the guest, under the patch's number: planned
	SafePoint                  // the program waits at its safe point until it is patched: planned
	Sync                       // another thread asked that all serialise (SysSync, membarrier): the program's own doing

	// Exceptions that the program raised (Intel SDM vol. 3A, table 6-1).
	ExcDivide
	ExcDebug
	ExcNMI
	ExcBreakpoint
	ExcOverflow
	ExcBound
	ExcInvalidOpcode
	ExcDevice
	ExcDoubleFault
	ExcInvalidTSS
	ExcSegment
	ExcStack
	ExcProtection
	ExcPageFault
	ExcFPU
	ExcAlignment
	ExcMachineCheck
	ExcSIMD
	ExcOther

	// Causes known from KVM's statistics only: the kernel served the exit itself. Counted, not timed,
	// no site.
	HostInterrupt // irq_exits: an interrupt, IPI or tick of the host
	PageFault     // pf_fixed: first touch, the second-stage or shadow table was filled
	Emulation     // insn_emulation without a return: CPUID and the like where KVM emulates them
	Transit       // pvm only: the world switch that SYSCALL or an exception itself costs
	KernelOther   // the rest of `exits`: served by the kernel, not told apart

	NCause
)

// names are the values of the label `cause`, the keys of by_cause and the words of --budget.
var names = [NCause]string{
	Unknown: "unknown", Syscall: "syscall", PIO: "pio", MMIO: "mmio", HLT: "hlt", Debug: "debug",
	Shutdown: "shutdown", InternalError: "internal-error", MemoryFault: "memory-fault",
	Kick: "kick", SpuriousKick: "spurious-kick", Signal: "signal", Seal: "seal", End: "end", Setup: "setup", Patch: "patch", SafePoint: "safe-point", Sync: "sync",
	ExcDivide: "exc-divide", ExcDebug: "exc-debug", ExcNMI: "exc-nmi", ExcBreakpoint: "exc-breakpoint",
	ExcOverflow: "exc-overflow", ExcBound: "exc-bound", ExcInvalidOpcode: "exc-invalid-opcode",
	ExcDevice: "exc-device", ExcDoubleFault: "exc-double-fault", ExcInvalidTSS: "exc-invalid-tss",
	ExcSegment: "exc-segment", ExcStack: "exc-stack", ExcProtection: "exc-protection",
	ExcPageFault: "exc-page-fault", ExcFPU: "exc-fpu", ExcAlignment: "exc-alignment",
	ExcMachineCheck: "exc-machine-check", ExcSIMD: "exc-simd", ExcOther: "exc-other",
	HostInterrupt: "host-interrupt", PageFault: "page-fault", Emulation: "emulation",
	Transit: "transit", KernelOther: "kernel-other",
}

func (c Cause) String() string {
	if c < NCause {
		return names[c]
	}
	return names[Unknown]
}

// FromKernel reports whether the cause is known from KVM's statistics only (no time, no site).
func (c Cause) FromKernel() bool { return c >= HostInterrupt && c < NCause }

// Planned reports whether the cause belongs to the run's own frame (its border, its end, Cloister's
// set-up, a patch) and so never counts against a budget of "total".
func (c Cause) Planned() bool {
	return c == Seal || c == End || c == Setup || c == Patch || c == SafePoint
}

// Exception maps an x86 vector (0..31) to its cause.
func Exception(vector uint8) Cause {
	switch {
	case vector <= 8:
		return ExcDivide + Cause(vector)
	case vector >= 10 && vector <= 14:
		return ExcInvalidTSS + Cause(vector-10)
	case vector >= 16 && vector <= 19:
		return ExcFPU + Cause(vector-16)
	}
	return ExcOther
}

// ParseCause finds a cause by its name.
func ParseCause(s string) (Cause, bool) {
	for i, n := range names {
		if n == s {
			return Cause(i), true
		}
	}
	return Unknown, false
}
