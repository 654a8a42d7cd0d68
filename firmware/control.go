package firmware

// Control register and EFER values of a program guest (SDM vol. 3A, 2.5 and 2.2.1), those of Linux with
// what needs a kernel's care left out: no SMEP and SMAP (ring 0 has a stub page with U=1 on PVM), no PCE, no PKE.
const (
	CR0Guest  = 0x80050033 // PG AM WP NE ET MP PE
	EFERGuest = 0xd01      // NXE LMA LME SCE

	cr4Base     = 0x620 // PAE OSFXSR OSXMMEXCPT
	cr4FSGSBASE = 1 << 16
	cr4OSXSAVE  = 1 << 18

	// FMaskGuest is MSR_SYSCALL_MASK, cleared from RFLAGS by SYSCALL: AC NT IOPL DF IF TF, as the study's
	// stub was tested with.
	FMaskGuest = 0x47700
	// StarGuest is MSR_STAR for Linux's selectors: SYSRET takes CS 0x23+16 and SS 0x23+8, SYSCALL CS 0x10.
	StarGuest = 0x23<<48 | 0x10<<32
)

// XCR0Mask is what Cloister saves and restores: x87, SSE, AVX and AVX-512 (SDM vol. 1, 13.3). PKU, MPX
// and AMX state needs an operating system's hand.
const XCR0Mask = 0xe7

const (
	xcrSSE    = 0x3 // x87 and SSE
	xcrAVX    = 0x4
	xcrAVX512 = 0xe0
)

// CR4 gives the CR4 to set with entries, which must be the vCPU's CPUID by then: KVM refuses bits that
// CPUID does not announce.
func CR4(entries []Entry) uint64 {
	cr4 := uint64(cr4Base)
	if e, ok := find(entries, 7, 0); ok && e.EBX&1 != 0 {
		cr4 |= cr4FSGSBASE
	}
	if e, ok := find(entries, 1, 0); ok && e.ECX&ecxXSAVE != 0 {
		cr4 |= cr4OSXSAVE
	}
	return cr4
}

// XCR0 gives the XCR0 to set with entries, or 0 when the guest has no XSAVE and KVM_SET_XCRS must not
// be called.
func XCR0(entries []Entry) uint64 {
	if e, ok := find(entries, 1, 0); !ok || e.ECX&ecxXSAVE == 0 {
		return 0
	}
	e, ok := find(entries, 0xd, 0)
	if !ok {
		return 0
	}
	return uint64(e.EDX)<<32 | uint64(e.EAX)
}

// XSaveSize gives the bytes of the XSAVE area for XCR0(entries), or of the FXSAVE area without XSAVE.
func XSaveSize(entries []Entry) uint32 {
	if XCR0(entries) != 0 {
		if e, ok := find(entries, 0xd, 0); ok {
			return e.ECX
		}
	}
	return 512
}

// MinSigStack gives AT_MINSIGSTKSZ in bytes as Linux computes it (arch/x86/kernel/signal.c,
// init_sigframe_size, with 32-bit emulation configured): the frame of 732 bytes, alignment of it and of
// the XSAVE area, that area with its end mark, and the 112 bytes of the old FP state.
func MinSigStack(entries []Entry) uint64 {
	n := uint64(732+15+63+112) + uint64(XSaveSize(entries))
	if XCR0(entries) != 0 {
		n += 4
	}
	return (n + 15) &^ 15
}

// HWCap gives AT_HWCAP (leaf 1 EDX) and AT_HWCAP2 (bit 1: FSGSBASE may be used), as Linux does
// (arch/x86/include/asm/elf.h, arch/x86/include/uapi/asm/hwcap2.h).
func HWCap(entries []Entry) (hwcap, hwcap2 uint64) {
	if e, ok := find(entries, 1, 0); ok {
		hwcap = uint64(e.EDX)
	}
	if CR4(entries)&cr4FSGSBASE != 0 {
		hwcap2 = 1 << 1
	}
	return hwcap, hwcap2
}
