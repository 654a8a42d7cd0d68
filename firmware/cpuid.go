package firmware

import (
	"encoding/binary"
	"sort"
)

// Entry is one result of CPUID (struct kvm_cpuid_entry2).
type Entry struct {
	Function, Index    uint32
	Flags              uint32
	EAX, EBX, ECX, EDX uint32
}

// FlagIndex marks an entry that answers one sub-leaf only (KVM_CPUID_FLAG_SIGNIFCANT_INDEX).
const FlagIndex = 1

// Regs is what the CPUID instruction returns.
type Regs struct{ EAX, EBX, ECX, EDX uint32 }

// CPUIDOptions says what the entries are for.
type CPUIDOptions struct {
	// Signature is the hypervisor's name at 0x40000000, at most 12 bytes; "" gives Signature.
	Signature string
	// Native is for back ends that run CPL 3 on the bare CPU and under-report its features (PVM): the
	// program sees the hardware's leaf 1 and 7 whatever is set, so user-visible features are
	// taken from the host too. It needs the host function.
	Native bool
	// NoXSave leaves XSAVE and all that depends on it out, for when KVM refused CR4.OSXSAVE.
	NoXSave bool
	// TSCKHz is the guest's TSC frequency for leaf 0x40000010; 0 leaves that leaf out.
	TSCKHz uint32
}

// Signature is the name in leaf 0x40000000.
const Signature = "CloisterVMM"

// Leaf 1 ECX (SDM vol. 2A, CPUID, table 3-10; APM vol. 3, E.3.2).
const (
	ecxFMA     = 1 << 12
	ecxXSAVE   = 1 << 26
	ecxOSXSAVE = 1 << 27
	ecxAVX     = 1 << 28
	ecxF16C    = 1 << 29
	ecxHyper   = 1 << 31

	// What has no meaning at CPL 3 of a guest without an APIC, and what KVM may list all the same:
	// DTES64 MONITOR DS-CPL VMX SMX EIST TM2 CNXT-ID SDBG xTPR PDCM PCID DCA x2APIC TSC-deadline.
	ecxHidden = 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<10 | 1<<11 | 1<<14 | 1<<15 | 1<<17 | 1<<18 | 1<<21 | 1<<24
	// User-visible instructions: SSE3 PCLMUL SSSE3 FMA CX16 SSE4.1 SSE4.2 MOVBE POPCNT AES XSAVE AVX F16C RDRAND.
	ecxNative = 1<<0 | 1<<1 | 1<<9 | 1<<12 | 1<<13 | 1<<19 | 1<<20 | 1<<22 | 1<<23 | 1<<25 | 1<<26 | 1<<28 | 1<<29 | 1<<30
)

// Leaf 1 EDX: APIC DS ACPI HTT TM PBE.
const edxHidden = 1<<9 | 1<<21 | 1<<22 | 1<<28 | 1<<29 | 1<<31

// Leaf 7 (SDM as above).
const (
	// SGX RDT-M MPX RDT-A PT; SMEP and SMAP are left: they describe what CR4 could have.
	ebx7Hidden = 1<<2 | 1<<12 | 1<<14 | 1<<15 | 1<<25
	// PKU OSPKE CET-SS TME LA57 KeyLocker MAWAU(17..21) ENQCMD SGX-LC PKS BusLockDetect.
	ecx7Hidden = 1<<3 | 1<<4 | 1<<7 | 1<<13 | 1<<16 | 1<<23 | 0x1f<<17 | 1<<24 | 1<<29 | 1<<30 | 1<<31
	// UINTR HYBRID PCONFIG ARCH-LBR IBT AMX-BF16 AMX-TILE AMX-INT8.
	edx7Hidden = 1<<5 | 1<<15 | 1<<18 | 1<<19 | 1<<20 | 1<<22 | 1<<24 | 1<<25

	// AVX2; VAES VPCLMULQDQ: need the AVX state.
	ebx7AVX = 1 << 5
	ecx7AVX = 1<<9 | 1<<10
	// AVX512 F DQ IFMA PF ER CD BW VL; VBMI VBMI2 VNNI BITALG VPOPCNTDQ; 4VNNIW 4FMAPS VP2INTERSECT FP16.
	ebx7AVX512 = 1<<16 | 1<<17 | 1<<21 | 1<<26 | 1<<27 | 1<<28 | 1<<30 | 1<<31
	ecx7AVX512 = 1<<1 | 1<<6 | 1<<11 | 1<<12 | 1<<14
	edx7AVX512 = 1<<2 | 1<<3 | 1<<8 | 1<<23
	// Leaf 7 sub-leaf 1 EAX: SHA512 SM3 SM4 AVX-VNNI AVX-IFMA; AVX512-BF16; FRED LKGS WRMSRNS AMX-FP16 HRESET LAM MSRLIST.
	eax71AVX    = 1<<0 | 1<<1 | 1<<2 | 1<<4 | 1<<23
	eax71AVX512 = 1 << 5
	eax71Hidden = 1<<17 | 1<<18 | 1<<19 | 1<<21 | 1<<22 | 1<<26 | 1<<27
	// Leaf 7 sub-leaf 1 EDX: AVX-VNNI-INT8 AVX-NE-CONVERT AVX-VNNI-INT16; AMX-COMPLEX UINTR-FLUSH CET-SSS AVX10 APX.
	edx71AVX    = 1<<4 | 1<<5 | 1<<10
	edx71Hidden = 1<<8 | 1<<17 | 1<<18 | 1<<19 | 1<<21

	// What user code can execute of leaf 7 whatever KVM lists, for Native. EBX: FSGSBASE BMI1 AVX2 BMI2 ERMS
	// RDSEED ADX CLFLUSHOPT CLWB SHA and AVX-512; ECX: GFNI RDPID MOVDIRI MOVDIR64B and the AVX sets; EDX:
	// FSRM SERIALIZE and AVX-512. RDPID gives MSR_TSC_AUX, which the VMM sets to the CPU number.
	ebx7Native = 1<<0 | 1<<3 | 1<<5 | 1<<8 | 1<<9 | 1<<18 | 1<<19 | 1<<23 | 1<<24 | 1<<29 | ebx7AVX512
	ecx7Native = ecx7AVX512 | ecx7AVX | 1<<8 | 1<<22 | 1<<27 | 1<<28
	edx7Native = edx7AVX512 | 1<<4 | 1<<14
)

// Leaf 0x80000001: ECX CmpLegacy SVM ExtApic OSVW IBS SKINIT WDT NodeId PerfCore PerfNB DBE PerfTsc PerfL2I MWAITX;
// XOP and FMA4 need the AVX state. For Native: LAHF ABM SSE4A PREFETCHW and EDX RDTSCP.
const (
	ecxExtHidden = 1<<1 | 1<<2 | 1<<3 | 1<<9 | 1<<10 | 1<<12 | 1<<13 | 1<<19 | 1<<23 | 1<<24 | 1<<26 | 1<<27 | 1<<28 | 1<<29
	ecxExtAVX    = 1<<11 | 1<<16
	ecxExtNative = 1<<0 | 1<<5 | 1<<6 | 1<<8
	edxExtAPIC   = 1 << 9
	edxExtNative = 1 << 27
)

// CPUID makes the entries for KVM_SET_CPUID2 of a guest with one CPU. supported are those of
// KVM_GET_SUPPORTED_CPUID; host runs CPUID on this machine and may be nil, then what KVM does not list is
// left out. The arguments are not changed. The host is asked only for leaves that decide something: in a
// virtual machine each CPUID is an exit.
//
// XSAVE is announced when both leaf 1 and leaf 0xd have it; leaf 0xd is then that of XCR0Mask with what
// the CPU has of it, without supervisor state and XFD.
func CPUID(supported []Entry, host func(leaf, sub uint32) Regs, o CPUIDOptions) []Entry {
	in := supported
	if host != nil {
		host = upToMax(host)
	}
	if o.Native && host != nil {
		in = addNative(supported, host)
	}
	if host != nil {
		in = addTSC(in, host)
	}
	dHost := host
	if !o.Native {
		dHost = nil // KVM_SET_XCRS refuses what KVM does not list, whatever the hardware has
	}
	xcr0 := xcr0Of(in, dHost, o)
	var out []Entry
	for _, e := range in {
		if e.Function == 0xd || e.Function>>28 == 4 {
			continue // made anew below
		}
		if _, dup := find(out, e.Function, e.Index); dup {
			continue
		}
		if e, keep := filter(e, xcr0); keep {
			out = append(out, e)
		}
	}
	out = append(out, topology(in)...)
	out = append(out, xsaveLeaves(in, dHost, xcr0)...)
	out = append(out, hypervisor(o)...)
	sort.SliceStable(out, func(i, j int) bool {
		a, b := out[i], out[j]
		return a.Function < b.Function || a.Function == b.Function && a.Index < b.Index
	})
	setMax(out)
	return out
}

// upToMax gives zeros for basic leaves that the host does not have: an Intel CPU answers for those with its highest one's
// (SDM vol. 2A, CPUID).
func upToMax(host func(leaf, sub uint32) Regs) func(leaf, sub uint32) Regs {
	highest := host(0, 0).EAX
	return func(leaf, sub uint32) Regs {
		if leaf < 1<<30 && leaf > highest {
			return Regs{}
		}
		return host(leaf, sub)
	}
}

// find gives the entry for a leaf and sub-leaf.
func find(es []Entry, leaf, sub uint32) (Entry, bool) {
	for _, e := range es {
		if e.Function == leaf && (e.Index == sub || e.Flags&FlagIndex == 0) {
			return e, true
		}
	}
	return Entry{}, false
}

// filter gives what the guest may see of one leaf; keep is false for leaves that would be all zeros.
func filter(e Entry, xcr0 uint64) (_ Entry, keep bool) {
	noAVX, noAVX512 := xcr0&xcrAVX == 0, xcr0&xcrAVX512 == 0
	drop := func(r *uint32, bits uint32) { *r &^= bits }
	switch e.Function {
	case 1:
		// One logical CPU with APIC ID 0; the CLFLUSH size and the brand stay.
		e.EBX = e.EBX&0xffff | 1<<16
		drop(&e.ECX, ecxHidden|ecxOSXSAVE) // KVM shows OSXSAVE as CR4 has it
		drop(&e.EDX, edxHidden)
		e.ECX |= ecxHyper
		if xcr0 == 0 {
			drop(&e.ECX, ecxXSAVE)
		}
		if noAVX {
			drop(&e.ECX, ecxAVX|ecxFMA|ecxF16C)
		}
	case 4, 0x8000001d:
		drop(&e.EAX, 0x3ffff<<14) // caches are shared by one CPU of one core
		e.Flags |= FlagIndex
	case 7:
		e.Flags |= FlagIndex
		e = filter7(e, noAVX, noAVX512)
	case 0x80000001:
		drop(&e.ECX, ecxExtHidden)
		drop(&e.EDX, edxExtAPIC)
		if noAVX {
			drop(&e.ECX, ecxExtAVX)
		}
	case 0x80000008:
		e.ECX = 0 // one core, no APIC ID bits (APM vol. 3, E.4.7)
	case 0x8000001e:
		e.EAX, e.EBX, e.ECX = 0, 0, 0 // APIC ID 0, core 0 of one thread, node 0 of one (APM vol. 3, E.4.17)
	case 3, 5, 6, 9, 0xa, 0xb, 0xf, 0x10, 0x12, 0x14, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f, 0x20, 0x23, 0x24,
		0x8000000a, 0x8000001b, 0x8000001c, 0x8000001f, 0x80000020, 0x80000022, 0x80000023, 0x80000026:
		// Serial number, MONITOR, power, DCA, PMU, topology (made anew), RDT, SGX, PT, key locker, hybrid, PCONFIG, LBR, AMX, HRESET,
		// PMU and AVX10; SVM, IBS, LWP, SEV, QoS, PMU, multi-key, topology: not for a program guest.
		return e, false
	}
	if e.Function>>16 == 0x8000 || e.Function < 2 {
		return e, true
	}
	return e, e.EAX|e.EBX|e.ECX|e.EDX != 0
}

func filter7(e Entry, noAVX, noAVX512 bool) Entry {
	switch e.Index {
	case 0:
		e.EBX, e.ECX, e.EDX = e.EBX&^ebx7Hidden, e.ECX&^ecx7Hidden, e.EDX&^edx7Hidden
		if noAVX {
			e.EBX, e.ECX = e.EBX&^ebx7AVX, e.ECX&^ecx7AVX
		}
		if noAVX512 {
			e.EBX, e.ECX, e.EDX = e.EBX&^ebx7AVX512, e.ECX&^ecx7AVX512, e.EDX&^edx7AVX512
		}
	case 1:
		e.EAX, e.EDX = e.EAX&^eax71Hidden, e.EDX&^edx71Hidden
		if noAVX {
			e.EAX, e.EDX = e.EAX&^eax71AVX, e.EDX&^edx71AVX
		}
		if noAVX512 {
			e.EAX &^= eax71AVX512
		}
	}
	return e
}

// addNative adds the instructions that CPL 3 can execute though the back end does not list them.
func addNative(es []Entry, host func(leaf, sub uint32) Regs) []Entry {
	out := append([]Entry(nil), es...)
	for i := range out {
		e := &out[i]
		switch {
		case e.Function == 1:
			e.ECX |= host(1, 0).ECX & ecxNative
		case e.Function == 7 && e.Index == 0:
			h := host(7, 0)
			e.EBX, e.ECX, e.EDX = e.EBX|h.EBX&ebx7Native, e.ECX|h.ECX&ecx7Native, e.EDX|h.EDX&edx7Native
		case e.Function == 0x80000001:
			h := host(0x80000001, 0)
			e.ECX, e.EDX = e.ECX|h.ECX&ecxExtNative, e.EDX|h.EDX&edxExtNative
		}
	}
	return out
}

// addTSC adds leaves 0x15 and 0x16 (TSC and core frequency) of the host where KVM lists none: the guest's
// TSC is the host's, unscaled.
func addTSC(es []Entry, host func(leaf, sub uint32) Regs) []Entry {
	out := append([]Entry(nil), es...)
	for _, leaf := range []uint32{0x15, 0x16} {
		if e, ok := find(out, leaf, 0); ok && e.EAX|e.EBX|e.ECX|e.EDX != 0 {
			continue
		}
		h := host(leaf, 0)
		if h == (Regs{}) {
			continue
		}
		kept := out[:0:0]
		for _, e := range out {
			if e.Function != leaf {
				kept = append(kept, e)
			}
		}
		out = append(kept, Entry{Function: leaf, EAX: h.EAX, EBX: h.EBX, ECX: h.ECX, EDX: h.EDX})
	}
	return out
}

// leafD reads a sub-leaf of leaf 0xd from KVM's list, or from the host where KVM has none.
func leafD(es []Entry, host func(leaf, sub uint32) Regs, sub uint32) Entry {
	if e, ok := find(es, 0xd, sub); ok && e.EAX|e.EBX|e.ECX|e.EDX != 0 {
		return e
	}
	if host == nil {
		return Entry{}
	}
	h := host(0xd, sub)
	return Entry{EAX: h.EAX, EBX: h.EBX, ECX: h.ECX, EDX: h.EDX}
}

// xcr0Of chooses a value that XSETBV accepts (SDM vol. 1, 13.3): x87 and SSE always, AVX-512's three
// parts together and only with AVX.
func xcr0Of(es []Entry, host func(leaf, sub uint32) Regs, o CPUIDOptions) uint64 {
	one, ok := find(es, 1, 0)
	if !ok || one.ECX&ecxXSAVE == 0 || o.NoXSave {
		return 0
	}
	d := leafD(es, host, 0)
	x := (uint64(d.EDX)<<32 | uint64(d.EAX)) & XCR0Mask
	if x&xcrSSE != xcrSSE {
		return 0
	}
	if one.ECX&ecxAVX == 0 {
		x &^= xcrAVX
	}
	seven, _ := find(es, 7, 0)
	if x&xcrAVX == 0 || x&xcrAVX512 != xcrAVX512 || seven.EBX&(1<<16) == 0 {
		x &^= xcrAVX512
	}
	return x
}

// xsaveLeaves makes leaf 0xd for xcr0 (SDM vol. 1, 13.2).
func xsaveLeaves(es []Entry, host func(leaf, sub uint32) Regs, xcr0 uint64) []Entry {
	if xcr0 == 0 {
		return nil
	}
	const legacy, header = 512, 64
	size, compact := uint32(legacy+header), uint32(legacy+header)
	var parts []Entry
	for i := uint32(2); i < 63; i++ {
		if xcr0>>i&1 == 0 {
			continue
		}
		e := leafD(es, host, i)
		e.Function, e.Index, e.Flags, e.EDX = 0xd, i, FlagIndex, 0
		parts = append(parts, e)
		size = max(size, e.EBX+e.EAX)
		if e.ECX&2 != 0 { // aligned to 64 in the compact form
			compact = (compact + 63) &^ 63
		}
		compact += e.EAX
	}
	opt := leafD(es, host, 1)
	opt.Function, opt.Index, opt.Flags = 0xd, 1, FlagIndex
	opt.EAX &= 7 // XSAVEOPT XSAVEC XGETBV(1); not XSAVES, which is the kernel's, nor XFD, which is AMX's
	opt.EBX, opt.ECX, opt.EDX = 0, 0, 0
	if opt.EAX&2 != 0 {
		opt.EBX = compact
	}
	return append([]Entry{
		{Function: 0xd, Index: 0, Flags: FlagIndex, EAX: uint32(xcr0), EBX: size, ECX: size, EDX: uint32(xcr0 >> 32)},
		opt,
	}, parts...)
}

// topology makes leaf 0xb: one thread of one core, x2APIC ID 0 (SDM vol. 3A, 10.9.1). CPUs that do not
// know the leaf do not get it.
func topology(es []Entry) []Entry {
	if e, ok := find(es, 0, 0); !ok || e.EAX < 0xb {
		return nil
	}
	return []Entry{
		{Function: 0xb, Index: 0, Flags: FlagIndex, EBX: 1, ECX: 1 << 8},
		{Function: 0xb, Index: 1, Flags: FlagIndex, EBX: 1, ECX: 2<<8 | 1},
		{Function: 0xb, Index: 2, Flags: FlagIndex, ECX: 2},
	}
}

// hypervisor names Cloister and gives no paravirtual feature: a program has no use for them. Leaf 0x40000010
// has the TSC and bus frequency in kHz, a convention of VMware that KVM guests and others read.
func hypervisor(o CPUIDOptions) []Entry {
	name := o.Signature
	if name == "" {
		name = Signature
	}
	var b [12]byte
	copy(b[:], name)
	le := binary.LittleEndian
	e := Entry{Function: 0x40000000, EAX: 0x40000000, EBX: le.Uint32(b[:]), ECX: le.Uint32(b[4:]), EDX: le.Uint32(b[8:])}
	if o.TSCKHz == 0 {
		return []Entry{e}
	}
	e.EAX = 0x40000010
	return []Entry{e, {Function: 0x40000010, EAX: o.TSCKHz}}
}

// setMax makes the first leaf of each range name the last one.
func setMax(es []Entry) {
	last := map[uint32]uint32{}
	for _, e := range es {
		last[e.Function>>16] = max(last[e.Function>>16], e.Function)
	}
	for i, e := range es {
		if e.Function == 0 || e.Function == 0x80000000 {
			es[i].EAX = last[e.Function>>16]
		}
	}
}
