package vcpu

import (
	"fmt"
	"unsafe"

	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"golang.org/x/sys/unix"
)

// control is the memory through which the vCPU's thread and Go talk. It is mmapped, never on the Go
// heap, so that the thread may use it at any moment of a garbage collection. The words of the stop
// protocol have the names of model/stop.pml and docs/ordering.md (O1).
//
// It begins with six cache lines of 64 bytes, by writer and by who looks when: a stop moves each of them to the other core and back, and every vCPU
// waits meanwhile. A word that is looked at while waiting shares its line with none that is written behind it: a bell would take the line back from
// who has just got it.
type control struct {
	// Written by the requester, read by the vCPU: looked at while waiting, and before the guest is entered.
	req      uint64 // generation of the latest stop request
	goG      uint64 // "go": bytes are final for this generation, serialise
	rel      uint64 // release: enter the guest again
	quit     uint64 // 1: end the thread when it is next released
	sent     uint64 // how many kicks were sent, counted behind each
	blame    uint64 // Purpose.blame: what a break of this request is booked under instead of breaks.Kick; 0: that. Written before req
	lookFrom uint64 // read what waits to be injected before ack, of a vCPU that stands at an address from here …
	lookTo   uint64 // … to below here; 0: of none. Written before req

	attn uint64 // 1: Go wants to look before the guest is entered again (O10). No stop writes it
	_    [7]uint64

	bell      uint32 // futex: rung after any of the words above, or hand, changed
	sleepBell uint32 // the vCPU sleeps on bell
	ended     uint64 // by the vCPU's thread, last of all: looked at while waiting, so not in a line that the vCPU changes
	_         [6]uint64

	// Written by the vCPU, read by the requester: looked at all the time while it waits, so each store here has to get the line back.
	ack    uint64 // parked for this generation
	synced uint64 // serialised for this generation
	_      [6]uint64

	// The same, looked at behind those.
	ackTSC  uint64 // when
	at      uint64 // where it stands at ack: at… and the cause of the open break
	atNr    uint64 // … its number …
	atRIP   uint64 // … and RIP
	syncTSC uint64 // when
	_       [3]uint64

	doorAck  uint32 // futex: rung after ack or synced
	sleepAck uint32 // a requester sleeps on doorAck
	_        [7]uint64

	// What a stop may carry (docs/decisions/0020-who-stores.md). offer is the set's: own, of the set's first vCPU.
	own   offer
	offer *offer
	next  uintptr // address of the next vCPU's control in the set, or 0: the vCPU's thread stores it (walk), which must not be a pointer's store to Go

	events kvm.VCPUEvents // at ack, with atLooked

	// The hand-over of an exit to Go (O3).
	hand     uint64 // hand…
	doorReq  uint32 // futex: rung after hand = handPosted or handDone
	sleepReq uint32 // the server sleeps on doorReq

	tid      uint32 // cleared by the kernel when the thread has ended (CLONE_CHILD_CLEARTID)
	spin     uint64 // TSC cycles before a sleep, while Go serves an exit
	spinStop uint64 // TSC cycles before a sleep, while stopped
	serial   uint64 // serialising instruction: 1 SERIALIZE, 2 CPUID, 3 IRET
	sigset   uint64 // the kick signal
	zero     [2]uint64
	stepsOn  uint64 // tests: record the numbered steps
	stepN    uint64

	// Fixed before the thread starts.
	fd       uintptr
	run      *kvm.Run
	ledger   *breaks.VCPU
	pid      int64   // of this process
	window   uintptr // host address of guest address 0
	tables   uintptr // host address of the supervisor block (page tables)
	tabGPA   uint64
	tabSize  uint64
	root     uint64 // GPA of the PML4
	userTop  uint64
	stubRIP  uint64 // LSTAR
	donRIP   uint64 // the OUT that ends a supervisor routine
	excRIP   uint64 // first exception stub
	excStep  uint64
	eventsAt uintptr // of events
	frame    uintptr // host address of the top of the supervisor stack (RSP0)

	// Private to the vCPU's thread.
	done   uint64  // generation that was served last
	parkG  uint64  // generation that is being served
	taken  uint64  // kicks that were taken off the thread: when sent is the same, none is pending
	looked uint64  // 1: events were read for parkG; 2: KVM did not say; 0: nobody asked for them
	near   uint64  // 1: it may go on within the requester's range, where only Go can judge
	walk   uint64  // which of the offer's words is next …
	owed   uint64  // 1: ack is stored with synced: this vCPU has made the stop's stores
	turn   uintptr // … or which vCPU's control, while goG or rel is stored for all
	slept  uint64  // 1: it slept while it was parked
	open   uint64  // 1: a break is open
	out    uint64  // TSC of its start
	book   uint64  // book it belongs to
	cause  uint64  // of the open break, for the books
	why    uint64  // what Go is asked to serve: cause, or breaks.Signal
	nr     uint64
	rip    uint64
	rsp    uint64
	kicked uint64 // not 0: the last return was a kick's, the vCPU stands where the guest was interrupted; 2: by request kickG
	kickG  uint64
	pend   uint64 // the last exit has I/O that only the next KVM_RUN completes
	stay   uint64 // 1: after SYSCALL the back end stays at CPL 3 (pvm); 2: it does not; 0: not known yet
	errno  uint64

	// Written by Go while hand is handPosted.
	sealed  uint64 // the book of the breaks to come
	ansKind uint64
	ansRAX  uint64
	op      uintptr // handOp: an ioctl for the vCPU's thread to execute …
	opArg   uintptr
	opRet   int64
	regs    kvm.Regs  // ansState
	have    uint64    // of sregs and xsave, what was read at this exit: haveSregs, haveXSave
	setX    uint64    // 1: with the answer xsave is loaded
	sregs   kvm.Sregs // ansState, and the buffer of handOp
	xsave   kvm.XSave // the buffer of handOp
	msr     kvm.MSRBlock

	// Answers that never change, given on the vCPU's own thread.
	constOK  [constants]uint8
	constVal [constants]uint64

	steps [1024]uint8
}

// Bits of control.at; from atCause on it holds the cause.
const (
	atOpen   = 1 << iota // a break is open
	atKicked             // a kick took it out of the guest, of this generation or an earlier one …
	atTaken              // … of this one
	atNear               // it may go on within the requester's range
	atLooked             // what waits to be injected is in events
	atCause  = 8
)

// constants is the number of system call numbers that can have a constant answer.
const constants = 512

// States of control.hand.
const (
	handIdle   = 0
	handPosted = 1 // vCPU to Go: serve this exit
	handOp     = 2 // Go to vCPU: execute an ioctl, the exit is still being served
	handOpDone = 3
	handDone   = 4 // Go to vCPU: answered
)

// Bits of control.have.
const (
	haveSregs = 1 << iota
	haveXSave
)

// What control.op can be that is no ioctl.
const (
	opIdle  = 0 // the vCPU's thread of the guest has ended
	opFetch = 1 // read what have does not say
)

// Kinds of answers.
const (
	ansRAX    = 1 // a system call's result
	ansState  = 2 // load regs and sregs (RIP included)
	ansResume = 3 // enter again, nothing changes
	ansEnd    = 4 // the thread's work is over
	ansSregs  = 5 // ansRAX, and sregs
)

const stackSize = 64<<10 + 2048 // ends within a page

// newControl makes the one mapping of a thread: guard page, stack, control. The stack's top, the word behind FS and what control begins with, which is what a
// stop uses of each, share a page: see loop.go.
func newControl() (*control, uintptr, []byte, error) {
	at := 4096 + stackSize // of control
	all := (at + int(unsafe.Sizeof(control{})) + 4095) &^ 4095
	m, err := unix.Mmap(-1, 0, all, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, 0, nil, fmt.Errorf("mmap the vCPU thread's stack: %w", err)
	}
	if err := unix.Mprotect(m[:4096], unix.PROT_NONE); err != nil {
		return nil, 0, nil, fmt.Errorf("protect the vCPU thread's guard page: %w", err)
	}
	c := (*control)(unsafe.Pointer(&m[at]))
	c.eventsAt = uintptr(unsafe.Pointer(&c.events))
	return c, uintptr(unsafe.Pointer(c)) - aboveStack, m, nil
}

// aboveStack is how many bytes lie between the stack's top and control, which FS points to. They are zero: Go reads g, of which the thread has none, at FS-8 behind
// each call of assembly (cmd/compile/abi-internal.md), so often that it must not be in a page of its own.
const aboveStack = 64

// entry is the address of f's first instruction: a function value points to a word that holds it.
func entry(f func(*control)) uintptr { return **(**uintptr)(unsafe.Pointer(&f)) }
