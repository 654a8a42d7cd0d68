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
	// Events is what waits to be injected, for people; empty: nothing. Known with Purpose.Inspect only. Unknown: KVM did not say.
	Events  string
	Unknown bool
	AckTSC  uint64 // when it had left the guest, stamped on its own thread
}

// Generation is the number of this stop.
func (p *Stopped) Generation() uint64 { return p.s.gen }

// VCPUs is how many vCPUs there are, those that have ended included.
func (p *Stopped) VCPUs() int { return len(p.s.threads) }

// AckTSC is when vCPU i had left the guest, stamped on its own thread.
func (p *Stopped) AckTSC(i int) uint64 { return p.s.threads[i].c.ackTSC }

// SyncTSC is when vCPU i had serialised, behind Resume; stamped on its own thread.
func (p *Stopped) SyncTSC(i int) uint64 { return p.s.threads[i].c.syncTSC }

// Place tells where vCPU i stands. What is read was written by the vCPU's thread before it acknowledged, and changes
// no more while it waits.
func (p *Stopped) Place(i int) Place {
	t := p.s.threads[i]
	c := t.c
	w := Place{ID: t.cfg.ID, CPU: t.cfg.CPU, Ended: t.ended(), AckTSC: c.ackTSC}
	if w.Ended {
		return w
	}
	cause := breaks.Cause(c.cause)
	w.Guest = c.open != 0 && c.kicked == 2 && c.kickG == p.s.gen
	w.Between = c.open != 0 && c.kicked != 0
	if c.open != 0 {
		w.Cause, w.Nr = cause, c.nr
	}
	r := &c.run.Regs
	w.RIPs = []uint64{r.RIP}
	switch rip := r.RIP; {
	case rip-c.stubRIP < 4096:
		w.RIPs = append(w.RIPs, r.RCX) // SYSCALL put it there
	case rip-c.excRIP < 32*c.excStep:
		w.RIPs = append(w.RIPs, peek(c.frame-40)) // the CPU pushed it
	}
	if c.kicked == 0 && c.rip != 0 {
		w.RIPs = append(w.RIPs, c.rip)
	}
	w.Events, w.Unknown = c.pending(), c.looked == 2
	return w
}

// pending names what waits to be injected.
func (c *control) pending() string {
	if c.looked != 1 {
		return ""
	}
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
