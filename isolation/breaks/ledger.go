package breaks

// The ledger is a block of memory that the engine and the monitor share: one per vCPU, one writer
// (the vCPU's thread, or the serving thread while the vCPU waits for it), any number of readers
// that map it read-only. All times are TSC cycles of the host.
//
// A reader takes a consistent copy with Snapshot (docs/ordering.md, O2).

// LedgerMagic opens every ledger ("CLLEDGR2"). Its last digit grows with the layout, so that the halves of two builds do not
// misread each other.
const LedgerMagic = 0x32524744454c4c43

// Sizes of the ledger's tables. Each overflow has its own counter: losses are data.
const (
	NHist      = 40   // length buckets: bucket i holds lengths whose bits.Len64(cycles) == i
	NSyscall   = 464  // Linux x86-64 system call numbers are below it; larger ones share the last entry
	NSite      = 2048 // power of two
	NStack     = 256
	StackWords = 96 // words copied from the guest's stack at a site's first break
	NEvent     = 4096
	NKernel    = 8
)

// Counter is one cause within one book.
type Counter struct {
	Count uint64
	Lost  uint64 // cycles outside the guest
	Max   uint64 // longest
	Hist  [NHist]uint64
}

// Numbered is one system call number within one book.
type Numbered struct{ Count, Lost uint64 }

// Book is one half of a ledger: breaks while open, or breaks while sealed.
//
// Total and Lost are written when KVM_RUN returns and when it is entered again, before and apart
// from the classification into Cause, so that the books can fail to close.
type Book struct {
	Total   uint64
	Lost    uint64
	Guest   uint64 // cycles inside KVM_RUN
	Cause   [NCause]Counter
	Syscall [NSyscall]Numbered
	Kernel  [NKernel]uint64 // deltas of KVM's statistics, indices Kernel…
}

// Indices into Book.Kernel: the statistics of KVM_GET_STATS_FD that have a meaning on every back end.
const (
	KernelExits = iota
	KernelIRQ
	KernelPageFixed
	KernelEmulation
	KernelSignal
	KernelHalt
	KernelTLBFlush
	KernelPreempt
)

// KernelNames are the kernel's own names of Book.Kernel's entries.
var KernelNames = [NKernel]string{"exits", "irq_exits", "pf_fixed", "insn_emulation", "signal_exits",
	"halt_exits", "tlb_flush", "preemption_other"}

// Site is one place in the guest that caused breaks: the hash key is (RIP, RSP, Cause, Nr).
type Site struct {
	RIP, RSP uint64
	Cause    uint32 // Cause + 1; 0 = free
	Nr       uint32 // system call number, port, or exception vector
	Stack    uint32 // index into Stacks + 1; 0 = none was kept
	_        uint32
	Count    [2]uint64 // open, sealed
	Lost     [2]uint64
	Max      uint64
}

// Event is one break on the timeline.
type Event struct {
	Out, In uint64 // TSC: left the guest, entered it again
	RIP     uint64
	Cause   uint32
	Nr      uint32 // bit 31: sealed
}

// EventIdle in Event.Cause says that the entry is no break: from Out to In the vCPU had no thread of the
// guest to run. Without it a timeline cannot tell that time from guest time.
const EventIdle = ^uint32(0)

// VCPU is the ledger of one vCPU.
type VCPU struct {
	Magic uint64
	Seq   uint64 // odd while the writer is inside an update (O2)
	Counts
	Sites  [NSite]Site
	Stacks [NStack][StackWords]uint64
	Events [NEvent]Event
	Ring   Ring
}

// Ring is the system calls of a vCPU that came by the ring: no breaks, for the vCPU stayed in the guest. Its one writer is
// the ring's server; a reader may see a call counted whose time is not in yet.
type Ring struct {
	Waited  uint64 // cycles from posting to answer, of Counts.RingCalls
	Longest uint64
	Hist    [NHist]uint64
	Syscall [NSyscall]Numbered
}

// Counts is the part of a ledger that a reader copies whole (about 35 KiB).
type Counts struct {
	ID, CPU  uint32 // CPU: the host core it owns, or NoCPU
	State    uint32 // State…
	Sealed   uint32 // 1 while sealed
	TSCHz    uint64
	Start    uint64 // TSC at the first entry
	End      uint64 // TSC at the last return; 0 while running
	LastOut  uint64 // TSC of the latest return
	LastIn   uint64 // TSC of the latest entry; LastIn < LastOut: a break is open now
	SealedAt uint64 // TSC of the latest sealing; 0 = not sealed now
	SealedIn uint64 // cycles of all ended sealed intervals
	Seals    uint64 // number of sealings
	Kicks    uint64 // stop requests acknowledged

	Book     [2]Book         // open, sealed
	KernelAt [NKernel]uint64 // statistics at the latest border between the books

	SiteLost  uint64 // breaks whose site found no room in Sites
	StackLost uint64 // sites whose stack found no room in Stacks
	StackNext uint64
	EventNext uint64 // events written so far; the index is EventNext % NEvent

	// System calls while sealed that came by the ring: answered there, or handed on to be made by an exit, which is a
	// break. Their one writer is the ring's server.
	RingCalls, RingHanded uint64

	Idle   uint64 // cycles, between Start and End, in which the vCPU had no thread of the guest to run
	IdleAt uint64 // TSC since when it has none; 0: it has one
}

// MaxVCPUs is how many ledgers the shared memory has room for: one for each thread that a guest may have at a
// time. One whose Magic is 0 was never used.
const MaxVCPUs = 64

// NoCPU in Counts.CPU says that the vCPU owns no core.
const NoCPU = ^uint32(0)

// States of a vCPU as the ledger shows them.
const (
	StateNew     = 0
	StateGuest   = 1 // inside KVM_RUN
	StateServing = 2 // out of the guest, the engine serves its exit
	StateParked  = 3 // stopped
	StateEnded   = 4
	StateIdle    = 5 // its thread of the guest has ended; another one may get it
)
