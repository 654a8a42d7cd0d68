package session

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/vmm"
	"golang.org/x/sys/unix"
)

// The engine and the monitor talk over one SOCK_SEQPACKET pair, one JSON message a packet. Nothing on it is
// needed for the guest to run: either side may find the other gone.

// LedgerName is the name of the ledger's memfd, by which `cloister ps` finds it when the monitor is gone.
const LedgerName = "cloister-ledger"

// Descriptors that the monitor inherits.
const (
	FDSocket = 3 + iota
	FDLedger
	FDGuest
	FDMetrics // only with --metrics
)

// Message is one packet; one of its fields is set.
type Message struct {
	Plan   *Plan      `json:",omitempty"` // engine: what the user asked for
	Ready  *Ready     `json:",omitempty"` // engine: the machine stands, with its statistics descriptor
	Warn   string     `json:",omitempty"` // engine: a remark for the user
	Gap    *uint64    `json:",omitempty"` // engine: where the program keeps its GapRecord
	Thread *Thread    `json:",omitempty"` // engine: a vCPU got a thread of the guest, or that changed its name or place
	Seal   *SealAsked `json:",omitempty"` // engine: may this vCPU be sealed now? Only with Plan.Require
	Ended  *Ended     `json:",omitempty"` // engine: the run is over, the ledger final

	Patchable *Patchable `json:",omitempty"` // engine: the program can be patched, or its patches have changed
	Patched   *Patched   `json:",omitempty"` // engine: what became of a patch

	Stop   *Stop   `json:",omitempty"` // monitor: end the run
	Patch  *Patch  `json:",omitempty"` // monitor: make a patch
	Quiet  *Quiet  `json:",omitempty"` // monitor: the cores are as quiet as was asked for, or are not
	Judged *Judged `json:",omitempty"` // monitor: the answer to Seal
	Status *int    `json:",omitempty"` // monitor: everything is written; exit with this

	FDs []int `json:"-"` // descriptors that came with it
}

// Plan is what the monitor has to know from the start.
type Plan struct {
	Name      string
	Program   string
	Args      []string
	Builtin   string // @name, or empty
	Seal      string
	CPU       int   // of the first thread, or -1
	Owned     []int // all cores that the run owns
	FIFO      int
	Engine    int // its pid
	VMDir     string
	Budget    string
	OnBreak   string
	Report    string
	Profile   string
	Trace     string
	PatchLog  string // the user's choice; empty: the VM's own, in the state directory
	Metrics   string // the address that was bound
	MetricsFD int    // its listening socket, in the monitor
	Quiet     bool
	Timings   bool
	Keep      []int  // housekeeping CPUs
	Isolate   bool   // make the cores quiet before the first instruction
	KeepQuiet bool   // and leave them so
	Require   string // grade that each of the cores must have, or empty
	Started   string
}

// Ready says that the first instruction is about to run.
type Ready struct {
	Info    vmm.Info
	Phases  []breaks.Timing
	NoStats bool
}

// Thread is a thread of the guest on its vCPU. The first message about a vCPU other than the first carries its
// statistics descriptor, if the kernel gives one.
type Thread struct {
	VCPU int    // index of the vCPU, of its ledger and of its place in the report
	TID  int    // the host's id of the vCPU's thread; it stays when the vCPU gets another thread of the guest
	Task int    // the guest's own thread id
	Name string // as prctl(PR_SET_NAME) left it
	CPU  int    // the host core it owns, or -1: it floats over the housekeeping cores
}

// Ended is the run's end.
type Ended struct {
	Result vmm.Result
	Error  string // the machine could not be built or run
	Status int    // Cloister's exit status, budget apart
}

// Quiet answers a Ready with Isolate or Require: the engine waits for it.
type Quiet struct {
	Error     string // empty: they are
	Partition string // directory of the cgroup in which a thread has to be to run on the cores; empty: none
}

// SealAsked asks whether a vCPU's core is of the required grade at this moment.
type SealAsked struct{ VCPU int }

// Judged answers a Seal. A vCPU has one question at a time.
type Judged struct {
	VCPU  int
	Error string // empty: it may be sealed
}

// Stop asks the engine to end the run; Signal is what the result shows.
type Stop struct {
	Reason string
	Signal int
}

// What a patch consists of may be longer than a packet. It comes as a sealed file (Unseal), one descriptor to a message.

// Patchable comes with the patch.State of a program that can be patched: before Ready, and after each patch.
type Patchable struct{ Length int }

// Patch comes with the patch.Plan of a patch. The monitor asks for one at a time.
type Patch struct {
	ID     uint64
	Length int
}

// Patched comes with the patch.Record of the Patch with that ID.
type Patched struct {
	ID     uint64
	Length int
}

// Wire is one end of the pair.
type Wire struct{ FD int }

const maxMessage = 192 << 10 // below the default net.core.wmem_max

// Send sends a message, with descriptors where there are any.
func (w Wire) Send(m Message, fds ...int) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode a message: %w", err)
	}
	if len(b) > maxMessage {
		return fmt.Errorf("a message of %d bytes, at most %d", len(b), maxMessage)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(w.FD, b, oob, nil, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return err
		}
	}
}

// Receive gives io.EOF when the other side is gone.
func (w Wire) Receive() (m Message, fds []int, err error) {
	b := make([]byte, maxMessage)
	oob := make([]byte, unix.CmsgSpace(4*8))
	var n, on int
	for {
		n, on, _, _, err = unix.Recvmsg(w.FD, b, oob, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	if err == unix.ECONNRESET || err == nil && n == 0 {
		return m, nil, io.EOF
	}
	if err != nil {
		return m, nil, err
	}
	if on > 0 {
		list, err := unix.ParseSocketControlMessage(oob[:on])
		for i := range list {
			got, e := unix.ParseUnixRights(&list[i])
			fds, err = append(fds, got...), errors.Join(err, e)
		}
		if err != nil {
			return m, fds, err
		}
	}
	err = json.Unmarshal(b[:n], &m)
	m.FDs = fds
	return m, fds, err
}
