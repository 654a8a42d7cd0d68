package breaks

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
)

// Schema names the form of a Report. Fields are only ever added to it; docs/report.md documents every
// one, report.schema.json is the JSON Schema.
const Schema = "cloister.report/v1"

// Report is what one run has to say for itself. It is plain data: Build makes it, Encode writes it as
// JSON, WriteText prints it. Times in *_ns are nanoseconds, never negative; a null says "not measured"
// or "not known", and NotMeasured says why.
type Report struct {
	Schema         string        `json:"schema"`
	Version        string        `json:"version"`
	Started        string        `json:"started"`
	Host           Host          `json:"host"`
	Program        Program       `json:"program"`
	Exit           Exit          `json:"exit"`
	Fault          *Fault        `json:"fault"`
	VCPUs          []VCPUReport  `json:"vcpus"`
	Books          Books         `json:"books"`
	Budget         *BudgetState  `json:"budget"`
	Certificate    Certificate   `json:"certificate"`
	TopSites       []TopSite     `json:"top_sites"`
	TopOriginators []Originator  `json:"top_originators"`
	Timings        []Timing      `json:"timings"`
	GapRecords     []GapReport   `json:"gap_records"`
	Drift          []Drift       `json:"drift"`
	Patches        []PatchReport `json:"patches"`
	PatchPauses    []PatchPauses `json:"patch_pauses"`
	PatchLog       *PatchLog     `json:"patch_log"` // null: nothing was logged
	RefusedSeals   []RefusedSeal `json:"refused_seals"`
	NotMeasured    []NotKnown    `json:"not_measured"`
}

// Host is the machine that the run was on, as found at its start. An empty string or a null: not known.
type Host struct {
	Kernel      string `json:"kernel"`        // uname -r
	CPU         string `json:"cpu"`           // model name
	Backend     string `json:"backend"`       // Backend…
	Nested      bool   `json:"nested"`        // another hypervisor runs below this host
	Hypervisor  string `json:"hypervisor"`    // its CPUID signature
	TSCHz       uint64 `json:"tsc_hz"`        // 0: not known
	Clocksource string `json:"clocksource"`   // of the kernel: tsc, hpet, …
	Microcode   string `json:"microcode"`     // revision
	SMT         string `json:"smt"`           // on, off, forceoff, notsupported, notimplemented
	Governor    string `json:"governor"`      // cpufreq governor of the first vCPU's core
	RTRuntimeUS *int64 `json:"rt_runtime_us"` // sched_rt_runtime_us; -1: no limit
	Isolated    string `json:"isolated"`      // CPU list of isolcpus=
	NohzFull    string `json:"nohz_full"`     // CPU list of nohz_full=
	CPUs        int    `json:"cpus"`          // online
	Mitigations string `json:"mitigations"`   // of the kernel command line
	CommandLine string `json:"command_line"`  // of the kernel
	KVM         string `json:"kvm"`           // module parameters that matter, "name=value …"
}

// Program is what ran in the guest.
type Program struct {
	Path    string   `json:"path"`
	SHA256  string   `json:"sha256"`
	BuildID string   `json:"build_id"`
	Args    []string `json:"args"`
	Seal    string   `json:"seal"` // start, first-write or call
}

// Exit is how the run ended.
type Exit struct {
	Code   int    `json:"code"`   // the status that cloister itself returns
	Signal int    `json:"signal"` // the signal that ended the program; 0: none
	Reason string `json:"reason"` // one line
}

// Fault is the exception of the program that ended it.
type Fault struct {
	Signal    string         `json:"signal"` // SIGSEGV, …
	VCPU      uint32         `json:"vcpu"`
	Thread    int            `json:"thread"`      // the guest's own number of the thread that executed the instruction
	Name      string         `json:"thread_name"` // its name, at most MaxThreadName bytes, printable
	Address   *Hex           `json:"address"`
	RIP       Hex            `json:"rip"`
	Registers map[string]Hex `json:"registers"`
	Backtrace []Location     `json:"backtrace"`
}

// Location is a place in the program. Symbol, File and Line are empty where the ELF does not tell.
type Location struct {
	RIP    Hex    `json:"rip"`
	Symbol string `json:"symbol"`
	File   string `json:"file"`
	Line   int    `json:"line"`
}

// Hex is an address or a register: a string "0x…" in JSON, because a JSON number loses its low bits
// in common readers.
type Hex uint64

// String gives "0x…".
func (h Hex) String() string { return "0x" + strconv.FormatUint(uint64(h), 16) }

// MarshalText gives "0x…".
func (h Hex) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads "0x…".
func (h *Hex) UnmarshalText(b []byte) error {
	v, err := strconv.ParseUint(string(b), 0, 64)
	if err != nil {
		return fmt.Errorf("address %.20q: want 0x and hexadecimal digits", b)
	}
	*h = Hex(v)
	return nil
}

// VCPUReport is one vCPU. Breaks is the whole run: Open and Sealed together.
type VCPUReport struct {
	ID       uint32     `json:"id"`
	CPU      *uint32    `json:"cpu"` // host core it owns; null: none
	TID      int        `json:"tid"` // host thread; 0: not known
	WallNS   uint64     `json:"wall_ns"`
	GuestNS  uint64     `json:"guest_ns"`
	SealedNS uint64     `json:"sealed_ns"`
	Seals    uint64     `json:"seals"`
	Kicks    uint64     `json:"kicks"`
	Breaks   BookReport `json:"breaks"`
	Open     BookReport `json:"open"`
	Sealed   BookReport `json:"sealed"`
	// IdleNS is the time without a thread of the guest; WallNS does not have it.
	IdleNS         uint64        `json:"idle_ns"`
	Threads        []GuestThread `json:"threads"`
	ThreadsNotKept uint64        `json:"threads_not_kept"`
	Ring           *RingReport   `json:"ring"` // null: every system call was an exit
}

// RingReport is the system calls of a sealed vCPU that a housekeeping core made for it: no breaks, for the vCPU stayed in
// the guest and waited there.
type RingReport struct {
	Calls     uint64         `json:"calls"`     // answered
	Handed    uint64         `json:"handed"`    // posted, but made by an exit after all: those are breaks
	WaitedNS  uint64         `json:"waited_ns"` // from posting to answer, of Calls
	MaxNS     uint64         `json:"max_ns"`
	Histogram []Bucket       `json:"histogram"`
	Syscalls  []SyscallCount `json:"syscalls"` // LostNS is the time waited
}

// BookReport is one book. Total and LostNS are the sums over ByCause; what belongs to the run's own
// frame is in Planned and counts in neither.
type BookReport struct {
	Total    uint64                `json:"total"`
	LostNS   uint64                `json:"lost_ns"`
	MaxNS    uint64                `json:"max_ns"`
	GuestNS  uint64                `json:"guest_ns"`
	Returns  uint64                `json:"returns"` // of KVM_RUN, planned ones included
	ByCause  map[string]CauseCount `json:"by_cause"`
	Planned  map[string]CauseCount `json:"planned"`
	Syscalls []SyscallCount        `json:"syscalls"`
	Kernel   map[string]uint64     `json:"kernel"` // statistics of KVM, or of the kernel for a native thread, raw, by their names; null: not read
}

// CauseCount is one cause. The times are null for a cause that KVM counts and nobody times.
type CauseCount struct {
	Count     uint64   `json:"count"`
	LostNS    *uint64  `json:"lost_ns"`
	MaxNS     *uint64  `json:"max_ns"`
	Histogram []Bucket `json:"histogram"`
}

// Bucket of a log-scale histogram: Count values, none longer than AtMostNS, each longer than half of it.
type Bucket struct {
	AtMostNS uint64 `json:"at_most_ns"`
	Count    uint64 `json:"count"`
}

// SyscallCount is one system call number.
type SyscallCount struct {
	Nr     int    `json:"nr"`
	Name   string `json:"name"`
	Count  uint64 `json:"count"`
	LostNS uint64 `json:"lost_ns"`
}

// Books says whether the figures add up (doc.go, invariant 1). Closed: all of the following hold.
type Books struct {
	Closed        bool     `json:"closed"`
	ReturnsClosed bool     `json:"returns_closed"` // returns of KVM_RUN: count and time, and the system calls among them
	KernelClosed  bool     `json:"kernel_closed"`  // exits that the kernel served
	Unknown       uint64   `json:"unknown"`        // breaks that the vCPU loop could not name
	EventsLost    uint64   `json:"events_lost"`
	SitesLost     uint64   `json:"sites_lost"`
	StacksLost    uint64   `json:"stacks_lost"`
	Why           []string `json:"why"` // what does not add up, or was lost
}

// BudgetState is a budget and how it stands at the end. OK: every clause was tested and kept.
type BudgetState struct {
	Spec     string         `json:"spec"`
	OK       bool           `json:"ok"`
	State    State          `json:"state"`
	BrokenBy []string       `json:"broken_by"`
	Clauses  []ClauseOfVCPU `json:"clauses"`
}

// ClauseOfVCPU is a clause's verdict for one vCPU: every vCPU that was sealed has the whole budget.
type ClauseOfVCPU struct {
	VCPU uint32 `json:"vcpu"`
	ClauseVerdict
}

// Certificate says whether the run is shown to have been undisturbed, and else by what it fails.
type Certificate struct {
	Issued        bool     `json:"issued"`
	FailedClauses []string `json:"failed_clauses"`
}

// TopSite is a place in the program, and what it cost.
type TopSite struct {
	Location
	Cause        string `json:"cause"`
	Nr           uint32 `json:"nr"`   // system call, port or vector
	Name         string `json:"name"` // of the system call
	Count        uint64 `json:"count"`
	LostNS       uint64 `json:"lost_ns"`
	MaxNS        uint64 `json:"max_ns"`
	SealedCount  uint64 `json:"sealed_count"`
	SealedLostNS uint64 `json:"sealed_lost_ns"`
}

// Originator is a task, interrupt or processor of the host that disturbed a vCPU.
type Originator struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Count  uint64 `json:"count"`
	LostNS uint64 `json:"lost_ns"`
}

// Timing is one phase of the run's start or end.
type Timing struct {
	Phase string `json:"phase"`
	NS    uint64 `json:"ns"`
}

// NotKnown is a figure that this report does not have, and why.
type NotKnown struct {
	What string `json:"what"`
	Why  string `json:"why"`
}

// Encode writes the report as indented JSON with a final newline. Equal reports give equal bytes.
func (r *Report) Encode(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(r); err != nil {
		return fmt.Errorf("report: writing JSON: %w", err)
	}
	return nil
}
