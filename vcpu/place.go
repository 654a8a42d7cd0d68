package vcpu

import (
	"fmt"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// Place is where one vCPU stands between Stop and Resume.
type Place struct {
	ID, CPU int  // its number, and the host core that it was pinned to when it was made, or -1
	Ended   bool // its thread has ended: it will execute nothing
	Guest   bool // this stop took it out of the guest; else it was outside already, for Cause: an exit that is served, or an earlier stop
	Between bool // it stands between two instructions of the program, where this stop or an earlier one took it
	Cause   breaks.Cause
	Nr      uint64 // system call number, port or exception vector
	// RIPs are the addresses of the program at which the vCPU may go on: where it stands; in one of our stubs also where the stub returns to.
	RIPs []uint64
	// Events is what waits to be injected, for people; empty: nothing. Unknown: nobody has looked, since the vCPU stands outside of Purpose's range, or
	// KVM did not say.
	Events  string
	Unknown bool
	// Returning: it serves rt_sigreturn. Where it goes on stands in the guest's memory or with Go, and may have been worked out before this stop.
	Returning bool
	AckTSC    uint64 // when it had left the guest, stamped on its own thread
}

// Generation is the number of this stop.
func (p *Stopped) Generation() uint64 { return p.s.gen }

// Begun is when the first vCPU was asked to stop (P1), Released, behind Resume, when the last one was let go (P8), 0 if Resume failed; TSC of the
// caller's core, or behind Made of the core that let go.
func (p *Stopped) Begun() uint64 { return p.begun }

// Released: see Begun.
func (p *Stopped) Released() uint64 { return p.released }

// Near says whether some vCPU may go on inside Purpose's range, or at its first address with something to be injected or nobody knows what: each has judged for itself. False where no
// range was given.
func (p *Stopped) Near() bool {
	for _, t := range p.s.threads {
		if t.c.at&atNear != 0 && !t.ended() {
			return true
		}
	}
	return false
}

// VCPUs is how many vCPUs there are, those that have ended included.
func (p *Stopped) VCPUs() int { return len(p.s.threads) }

// AckTSC is when vCPU i had left the guest, stamped on its own thread.
func (p *Stopped) AckTSC(i int) uint64 { return p.s.threads[i].c.ackTSC }

// SyncTSC is when vCPU i had serialised, behind Resume; stamped on its own thread.
func (p *Stopped) SyncTSC(i int) uint64 { return p.s.threads[i].c.syncTSC }

// Place tells where vCPU i stands. What is read was written by the vCPU's thread before it acknowledged, and changes
// no more while it waits; where it was not near Purpose's range (Near), not before the next stop, but for what RIPs has behind the first. With Purpose's range it allocates nothing, unless there
// is something to be injected: all vCPUs may wait for it.
func (p *Stopped) Place(i int) Place {
	t := p.s.threads[i]
	c := t.c
	w := Place{ID: t.cfg.ID, CPU: t.cfg.CPU, Ended: t.ended() && c.ack != p.s.gen, AckTSC: c.ackTSC} // who has acknowledged may have ended since it was let go
	if w.Ended {
		return w
	}
	at := c.at
	w.Guest = at&(atOpen|atTaken) == atOpen|atTaken
	w.Between = at&(atOpen|atKicked) == atOpen|atKicked
	if at&atOpen != 0 {
		w.Cause, w.Nr = breaks.Cause(at>>atCause), c.atNr
	}
	if p.rips != nil {
		w.RIPs = p.rips[mostRIPs*i : mostRIPs*i : mostRIPs*(i+1)]
	}
	w.RIPs = append(w.RIPs, c.atRIP)
	switch rip := c.atRIP; { // t.cfg and not c: the vCPU's thread writes next to where c has them
	case rip-t.cfg.SyscallStub < 4096:
		w.RIPs = append(w.RIPs, c.run.Regs.RCX) // SYSCALL put it there
	case rip-t.cfg.ExceptionStub < 32*t.cfg.ExceptionStep:
		w.RIPs = append(w.RIPs, peek(c.frame-40)) // the CPU pushed it
	}
	if at&atKicked == 0 && c.rip != 0 {
		w.RIPs = append(w.RIPs, c.rip)
	}
	w.Returning = at&(atOpen|atKicked) == atOpen && w.Cause == breaks.Syscall && w.Nr == sysRtSigreturn
	w.Unknown = at&atLooked == 0
	if !w.Unknown {
		w.Events = c.pending()
	}
	return w
}

// mostRIPs bounds Place.RIPs.
const mostRIPs = 3

// pending names what waits to be injected.
func (c *control) pending() string {
	var list []string
	e := &c.events
	if e.Exception.Injected != 0 || e.Exception.Pending != 0 {
		list = append(list, fmt.Sprintf("exception %d", e.Exception.Nr))
	}
	if e.Interrupt.Injected != 0 {
		list = append(list, fmt.Sprintf("interrupt %d", e.Interrupt.Nr))
	}
	if e.NMI.Injected != 0 || e.NMI.Pending != 0 {
		list = append(list, "NMI")
	}
	if e.SMI.Pending != 0 {
		list = append(list, "SMI")
	}
	return strings.Join(list, ", ")
}
