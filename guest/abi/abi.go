package abi

// Page is the size in bytes of the smallest page of the guest and of the host.
const Page = 4096

// Huge is the size in bytes of a large page (Intel SDM vol. 3A, 4.5: a PDE with PS=1).
const Huge = 2 << 20

// The guest's address space. User addresses are "mirrored": guest virtual == guest physical ==
// offset in the guest memory file == host virtual - window base, so a pointer is translated by one
// addition (docs/decisions/0003-guest-memory.md).
//
//	0x0000_0000_0000  never mapped: NULL dereferences are true page faults        LowestUser bytes
//	0x0000_0001_0000  program image (fixed ELF), then brk                         user
//	0x0000_1000_0000  PIEBase: program image (static-pie), then brk               user
//	...               mmap area, top-down                                         user
//	0x0007_e000_0000  MmapTop                                                     user
//	0x0007_e000_0000  VDSOBase: host [vvar][vvar_vclock], copy of [vdso]; or ours   user, read-only
//	0x0007_f000_0000  MMIOHole: GPA with no slot, one page (diagnostics only)     user, device
//	0x0007_ffff_0000  StackTop                                                    user
//	0x0008_0000_0000  UserTop = Window size (32 GiB: fits every 36-bit MAXPHYADDR)
//	0x0008_0000_0000  SupGPA: GDT, IDT, TSS, stubs, supervisor stack, page tables GPA only
//	0x7fff_c000_0000  SupVA: the first SupVASize bytes of SupGPA, as the guest's ring 0 sees them
const (
	LowestUser = 0x10000 // as /proc/sys/vm/mmap_min_addr
	PIEBase    = 0x1000_0000
	VDSOBase   = 0x7_e000_0000
	MmapTop    = VDSOBase
	MMIOHole   = 0x7_f000_0000
	StackTop   = 0x7_ffff_0000
	UserTop    = 0x8_0000_0000

	SupGPA = UserTop
	SupVA  = 0x7fff_c000_0000
)

// Cloister's own system calls. The numbers lie far above Linux's, so a native kernel answers ENOSYS
// and changes nothing: a program that uses them runs unharmed without Cloister.
const (
	// SysIsolate(on): on=1 seals the calling vCPU, on=0 unseals it. Returns 0. With `cloister run --require GRADE`
	// on=1 returns -EAGAIN, and seals nothing, while the vCPU's core is not of that grade or it has none of its own; the report says
	// why. It may be tried again.
	SysIsolate = 0x434c00 // "CL" 00
	// SysGapRecord(addr): registers the program's GapRecord (below) at a page-aligned user address;
	// the monitor reads it while the program runs. Returns 0, -EFAULT or -EINVAL.
	SysGapRecord = 0x434c01
	// SysProvoke(what): asks the supervisor to leave the guest in one way (Provoke* below). Returns 0
	// or -EINVAL. Only for built-in workloads and tests; refused (-EPERM) otherwise.
	SysProvoke = 0x434c02
	// SysSafepoint(what, arg): safe points for patching, Safepoint… below.
	SysSafepoint = 0x434c03
	// SysSync(): every other vCPU has left the guest, and executes a serialising instruction on its own core before it enters again, when the
	// call returns: so that code which the caller has written may be executed by any thread. Returns 0, or -ETIMEDOUT when a vCPU could not be stopped.
	SysSync = 0x434c04
)

// Arguments of SysProvoke.
const (
	ProvokeHLT   = 1 // ring 0 executes HLT once
	ProvokeCPUID = 2 // no supervisor help needed; accepted and ignored
	ProvokeKick  = 3 // the VMM kicks the calling vCPU once (it comes back as a kick or a self-stop)
	ProvokePIO   = 4 // ring 0 executes OUT to DiagPort once
	ProvokeMMIO  = 5 // ring 0 reads MMIOHole once
)

// I/O ports that the stubs use; a program that executes OUT itself is ended by SIGSEGV, as natively.
const (
	PortSyscall   = 0x80 // LSTAR stub
	PortException = 0x20 // + vector (0..31): IDT stubs
	PortDone      = 0x81 // end of a supervisor routine that the VMM started (pre-touch, provoke)
	DiagPort      = 0x82 // ProvokePIO
)

// Selectors of the guest's GDT: Linux's layout (arch/x86/include/asm/segment.h), which the PVM back
// end expects because it runs CPL 3 code with the host's own selectors.
const (
	SelKernelCS = 0x10
	SelKernelSS = 0x18
	SelUserCS32 = 0x23
	SelUserSS   = 0x2b
	SelUserCS   = 0x33
	SelTSS      = 0x40
)

// GapBuckets is the number of histogram buckets of a GapRecord; bucket i counts passes whose TSC
// delta d has bits.Len64(d) == i.
const GapBuckets = 64

// GapRing is the number of the latest gaps that a GapRecord keeps.
const GapRing = 256

// Kinds of GapRecord.
const (
	GapKindLoop   = 1 // every pass of a busy loop is counted (as oslat does)
	GapKindCyclic = 2 // lateness of a periodic wake-up on the TSC; no period is skipped
)

// GapRecord is what @jitter and @cyclic (or any program) keep in their own memory: one writer (the
// guest), any reader. All times are TSC cycles. It is one page-aligned block of 8-byte words.
type GapRecord struct {
	Magic     uint64 // GapMagic
	Kind      uint64
	Threshold uint64 // a delta at or above it is a gap
	Period    uint64 // GapKindCyclic: cycles between wake-ups
	Passes    uint64
	Gaps      uint64
	Stolen    uint64 // sum of all gaps (whole delta)
	Min, Max  uint64
	Start     uint64 // TSC of the first pass
	Last      uint64 // TSC of the latest pass
	RingNext  uint64 // gaps written to Ring so far; index is RingNext % GapRing
	_         [4]uint64
	Hist      [GapBuckets]uint64
	Ring      [GapRing]Gap
}

// Gap is one pass longer than the threshold.
type Gap struct{ TSC, Length uint64 }

// GapMagic marks a GapRecord ("CLGAPREC").
const GapMagic = 0x43455250_41474c43
