package vcpu

import (
	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// The vCPU's half of the stop protocol (docs/ordering.md, O1), on the vCPU's own thread: what loop.go says of itself holds here.
//
// It is written as steps, each with at most one access to a word that others see, so that the conformance test can run this very
// code in any order with the requester's (conformance_test.go); the labels are those of model/stop.pml and model/patch.pml.
const (
	parkPending uint8 = iota // V2 complete pending I/O
	parkRead                 // V3 g = req
	parkLook                 // V3 what waits to be injected, where the requester wants to know
	parkAck                  // V3 ack = g
	parkEarly                // take the kick's signal, if it was sent by now: V7 has to be made only if not
	parkGo                   // V4 wait for go >= g
	parkSync                 // V5 serialise
	parkClear                // V6 immediate_exit = 0
	parkAgain                // V6 req differs from g: V3
	parkDrain                // V7 take the kick's signal
	parkSynced               // V7 synced = g
	parkRel                  // V8 wait for rel >= g …
	parkNew                  // V8 … or a new request
	parkLast                 // V8 a request that came with the release
	parked                   // over: the guest may be entered
)

// parkStep does one step and returns the next; parkGo, and parkRel behind parkNew, come back while they wait.
//
//go:nosplit
//go:norace
//go:nocheckptr
func parkStep(c *control, at uint8) uint8 {
	switch at {
	case parkPending:
		step(c, stepPark)
		complete(c)
		return parkRead
	case parkRead:
		c.parkG = load64(&c.req)
		if c.kicked == 1 {
			c.kicked, c.kickG = 2, c.parkG
		}
		if c.open != 0 && c.cause == uint64(breaks.Kick) {
			if b := load64(&c.blame); b != 0 {
				c.cause, c.nr = b&0xff, b>>8
			}
		}
		return parkLook
	case parkLook:
		c.looked = 0
		if asked(c) {
			c.looked = 1
			if kvm.IoctlRaw(c.fd, kvm.IoGetVCPUEvents, c.eventsAt) < 0 {
				c.looked = 2
			}
		}
		return parkAck
	case parkAck:
		c.ledger.State = breaks.StateParked
		publish(c)
		c.ackTSC = kvm.TSC()
		step(c, stepAck)
		store64(&c.ack, c.parkG)
		answerBell(c)
		return parkEarly
	case parkEarly:
		takeLine(&c.run.ImmediateExit) // V6 stores there what P1 has stored to
		if drain(&c.sigset, &c.zero) {
			c.taken++
		}
		return parkGo
	case parkGo:
		if load64(&c.goG) < c.parkG {
			return parkGo
		}
		return parkSync
	case parkSync:
		step(c, stepSync)
		c.slept = 0
		serialise(c.serial)
		return parkClear
	case parkClear:
		storeByte(&c.run.ImmediateExit, 0)
		return parkAgain
	case parkAgain:
		if load64(&c.req) != c.parkG {
			return parkRead
		}
		return parkDrain
	case parkDrain:
		if load64(&c.sent) != c.taken {
			takeKicks(c)
		}
		return parkSynced
	case parkSynced:
		c.done = c.parkG
		c.ledger.Kicks++
		c.syncTSC = kvm.TSC()
		store64(&c.synced, c.parkG)
		answerBell(c)
		return parkRel
	case parkRel:
		if load64(&c.rel) >= c.parkG {
			return parkLast
		}
		return parkNew
	case parkNew:
		if load64(&c.req) != c.parkG {
			return parkLast
		}
		return parkRel
	case parkLast:
		if load64(&c.req) != c.parkG {
			return parkRead
		}
	}
	return parked
}

// park is V2..V8: the steps in order, with sleep where they wait.
//
//go:nosplit
//go:norace
//go:nocheckptr
func park(c *control) {
	was := c.ledger.State
	until := uint64(0)
	for at := parkPending; at != parked; {
		next := parkStep(c, at)
		switch {
		case at == parkGo && next == parkGo:
			until = waitBell(c, &c.goG, c.parkG, until)
		case at == parkNew && next == parkRel:
			until = waitBell(c, &c.rel, c.parkG, until)
		case next != parkNew:
			until = 0
		}
		at = next
	}
	if c.slept != 0 { // it may have been moved to a core that has executed what was there before, and a return from futex(2) need not serialise
		c.slept = 0
		serialise(c.serial)
	}
	c.ledger.State = was
	step(c, stepRelease)
}

// publish tells where the vCPU stands, in the line of memory that ack lies in.
//
//go:nosplit
//go:norace
//go:nocheckptr
func publish(c *control) {
	at := c.cause << atCause
	if c.open != 0 {
		at |= atOpen
	}
	if c.kicked != 0 {
		at |= atKicked
	}
	if c.kicked == 2 && c.kickG == c.parkG {
		at |= atTaken
	}
	if c.looked != 0 {
		at |= atNear
	}
	if c.looked == 1 {
		at |= atLooked
	}
	c.at, c.atNr, c.atRIP = at, c.nr, c.run.Regs.RIP
}

// takeKicks takes all kicks off the thread. sent is read first: one that is counted later may be pending still. taken may be less than what was, where a
// spurious return has taken some: then the next V7 comes here in vain. It is more where somebody else sends the signal; then a return is spurious.
//
//go:nosplit
//go:norace
//go:nocheckptr
func takeKicks(c *control) {
	sent := load64(&c.sent)
	for drain(&c.sigset, &c.zero) {
	}
	c.taken = sent
}

// asked says whether the requester wants to know what waits to be injected: it does within a range of addresses. Who does not stand between two
// instructions of the program may go on at several, so there it is always looked; it is a system call of microseconds, and all vCPUs wait for it.
//
//go:nosplit
//go:norace
//go:nocheckptr
func asked(c *control) bool {
	from, to := load64(&c.lookFrom), load64(&c.lookTo)
	rip := c.run.Regs.RIP
	return from < to && (c.kicked == 0 || rip-from < to-from || rip-c.stubRIP < 4096 || rip-c.excRIP < 32*c.excStep)
}

// answerBell tells the requester of ack or synced.
//
//go:nosplit
//go:norace
//go:nocheckptr
func answerBell(c *control) {
	add32(&c.doorAck, 1)
	if load32(&c.sleepAck) != 0 {
		futexWake(&c.doorAck)
	}
}

// waitBell pauses, or sleeps when it is later than until, until *p reaches g or anything rings. It returns until; 0 begins a new wait.
//
//go:nosplit
//go:norace
//go:nocheckptr
func waitBell(c *control, p *uint64, g, until uint64) uint64 {
	now := kvm.TSC()
	if until == 0 {
		until = now + c.spinStop
	}
	if now < until {
		pause()
		return until
	}
	b := load32(&c.bell)
	add32(&c.sleepBell, 1)
	if load64(p) < g && load64(&c.req) == load64(&c.ack) {
		c.slept = 1
		futexWait(&c.bell, b)
	}
	add32(&c.sleepBell, ^uint32(0))
	return until
}
