package patch

import (
	"encoding/hex"
	"time"
)

// Hex is bytes that stand as hexadecimal digits in JSON.
type Hex []byte

// MarshalText gives the digits.
func (h Hex) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

// UnmarshalText takes digits, upper or lower case, two a byte.
func (h *Hex) UnmarshalText(b []byte) error {
	d, err := hex.DecodeString(string(b))
	*h = d
	return err
}

// Plan is what one patch changes. Addresses are the guest's own (user virtual, which equals guest-physical).
type Plan struct {
	Name    string // what the user asked for, one line, for the log
	Actor   string // who asked: "uid 0 pid 17"
	BuildID string // hex; of the program that the plan was made for. Another program's is refused
	Digest  string // hex SHA-256 of what the plan was made from (object, bundle, or the value), for the log

	Text  []Chunk // into spare text that was never executed
	Data  []Chunk // into spare data that was never used
	Sites []Site  // ascending, disjoint

	// SafePoint demands that every thread of the program is at a declared safe point or quiet: needed where more than one site
	// must change together. Without it each instruction is old or new, but one pass may see both versions.
	SafePoint bool
	Wait      time.Duration // how long to try to find all vCPUs at good places; 0: DefaultWait

	// StopLimit is how long a vCPU may take to stop; 0: State.StopLimit.
	StopLimit time.Duration

	// Revert is the number of a committed patch whose sites get their old bytes back; Text, Data and Sites are empty then.
	Revert uint64
	// DryRun stops after the checks that need no stop.
	DryRun bool
}

// Chunk is bytes for spare memory.
type Chunk struct {
	Addr  uint64
	Bytes Hex
}

// Kinds of sites.
const (
	Redirect = "redirect" // 5-byte entry of a function: NOPs, or the JMP of an earlier patch, become a JMP
	Imm      = "imm"      // the immediate of one instruction
	Branch   = "branch"   // 5-byte NOP becomes JMP, or back
	Raw      = "raw"      // one instruction for another of the same length, from a bundle
)

// Site is one place. Old and New have the same length, 1 to MaxSite bytes.
type Site struct {
	Name        string `json:"name"` // symbol or declared name, for people
	Kind        string `json:"kind"`
	Addr        uint64 `json:"addr"`
	Old         Hex    `json:"old"`
	New         Hex    `json:"new"`
	Restartable bool   `json:"restartable,omitempty"` // the old instruction may have been begun with RIP still at its start (REP, gather): a vCPU must not stand there
}

// Bounds of a plan.
const (
	MaxSite  = 15       // the longest x86 instruction, bytes (Intel SDM vol. 2A, 2.3.11)
	MaxSites = 4096     // in one plan
	MaxBytes = 64 << 20 // in all chunks of one plan
)

// DefaultWait is Plan.Wait when it is 0.
const DefaultWait = time.Second

// Range is guest addresses [Start, End).
type Range struct{ Start, End uint64 }

// Space is spare memory for new code or data: [Start, End), of which [Start, Used) was given out.
type Space struct{ Start, End, Used uint64 }

// Applied is a patch that was committed and not taken back. Its Old are what a revert writes: the bytes before it, or, where Since is not 0, before
// earlier patches of which it stands for what they did to its sites.
type Applied struct {
	Number uint64
	Name   string
	Sites  []Site
	Since  uint64 // not 0: of patches from this number on some site was folded into this one, and a revert takes it back too
}

// MostApplied is how many patches a VM remembers one by one although later ones have overwritten them: who sets a constant every second for weeks must
// not make each patch slower, nor the VM larger. Patches that are in force anywhere are all remembered.
const MostApplied = 100

// State is what a running VM says of itself to who makes a plan.
type State struct {
	Program     string // path
	BuildID     string // hex, or empty: the program has none
	Bias        uint64 // what was added to the addresses in the program's file
	Text        []Range
	SpareText   Space
	SpareData   Space
	Number      uint64 // of the latest patch, committed or not
	Applied     []Applied
	SafePoints  bool   // the program has declared safe points
	SafeRIPs    bool   // some of them are instructions at which a stop may find a thread
	TextSHA256  string // of all of Text, now
	Log         string // path of the audit log
	LogHead     string // hash of its latest record
	TSCHz       uint64
	Serialise   string // SERIALIZE, CPUID, IRET
	StopLimit   time.Duration
	ResumeLimit time.Duration
}
