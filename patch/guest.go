package patch

import (
	"errors"
	"time"
)

// ErrDied is a stop's: a vCPU is lost, and none of the others enters the guest any more.
var ErrDied = errors.New("the VM is dead")

// Guest is the VM as patching needs it. Its methods are called by one goroutine at a time.
type Guest interface {
	// Stop is P1 and P2: it returns when every vCPU is out of the guest with pending I/O completed, or with an error when one did not
	// stop within limit; then all run on, unless it is ErrDied. Breaks that it makes are booked under number. What waits to be injected is known, at least, of vCPUs that
	// may go on within sites. The last vCPU to stop makes the stores, if there are some and no vCPU is Near (Halt.Made).
	Stop(number uint64, sites Range, stores []Store, limit time.Duration, meanwhile func()) (Halt, error)
	// Rehearsal is a guest whose Stop stops nothing, and whose Halt resumes nothing, by the way that they go here; else it is this one. Nil: there is none.
	Rehearsal() Guest
	// Look gives n bytes at addr as the guest sees them, Writable the same bytes through the private alias.
	Look(addr uint64, n int) ([]byte, error)
	Writable(addr uint64, n int) ([]byte, error)
	// Word gives the aligned word at addr, through the alias and as the guest sees it: not to be written here. False where it is not all text.
	Word(addr uint64) (to, see []byte, ok bool)
	// Prepare does what the first Writable of addr would have to, so that no vCPU waits for it.
	Prepare(addr uint64, n int) error
	// SafePoints says whether the program has declared any safe point.
	SafePoints() bool
	// Gather asks the program's threads to wait at their next safe point. Await returns empty when all who must have come, or at until
	// who has not. Scatter lets them go; again is harmless.
	Gather(number uint64)
	Await(until time.Time) (missing string)
	Scatter()
	// Sleep lets time pass between two stops.
	Sleep(d time.Duration)
	// Entries tells of all functions whose entry is a JMP now: a signal frame that returns into the NOPs that were there is to
	// return to the entry.
	Entries(starts []uint64)
	// Condemn ends the VM for this reason, once its vCPUs have been told to end.
	Condemn(reason string)
	// Exits is KVM's own count of the exits of each vCPU, by number; 0 where the kernel gives none.
	Exits() []uint64
	// TSC is the host's.
	TSC() uint64
}

// Halt is the time in which every vCPU is stopped; where Stop's stores were made (Made) it may be over.
type Halt interface {
	Generation() uint64
	// Begun is when the first vCPU was asked to stop, Released, behind Resume, when the last one was let go; TSC. 0: it was not.
	Begun() uint64
	Released() uint64
	Places() []Place
	// Near says whether some vCPU may go on within the range that Stop was given: it costs less than Places, and all vCPUs wait.
	Near() bool
	// Made says what became of Stop's stores, and when, TSC: all were made, or none; doubt: nobody knows.
	Made() (made, doubt bool, first, last uint64)
	// Resume is P6 to P8; then is called behind P8, before another stop can begin, and where no vCPU was Near its Places can still be asked. With an error some
	// vCPU did not serialise within limit; then none has entered the guest, and none ever will.
	Resume(limit time.Duration, then func()) error
	// End has every vCPU's thread end instead.
	End(limit time.Duration) error
	// Synced is when a vCPU had serialised, behind Resume; TSC.
	Synced(vcpu int) uint64
}

// Store is an aligned word of text to be changed: eight bytes as Guest.Word gives them, through the alias.
type Store struct {
	To       []byte
	Old, New uint64
}

// MostStores bounds the stores of a stop; patches of more words are made by who patches.
const MostStores = 8

// Place is where a vCPU stands while it is stopped.
type Place struct {
	ID, CPU int
	Ended   bool
	Guest   bool     // the stop took it out of the guest
	Where   string   // "guest", "safe-point", "idle", or the cause of the exit that is being served
	Thread  string   // the guest's thread, for people
	RIPs    []uint64 // addresses of the program at which it may go on
	Events  string   // what waits to be injected; empty: nothing
	Unknown bool     // whether anything does was not asked for here, or could not be read
	// Returning: from a signal's handler, to an address that is not among RIPs.
	Returning bool
	Safe      bool // at a declared safe point, quiet, or without a thread of the guest
	AckTSC    uint64
}
