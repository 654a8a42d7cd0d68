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
	parkLook                 // V3 where it stands, and what waits to be injected, where the requester wants to know
	parkTake                 // V3 one off in; the last one makes an offered stop its own
	parkAck                  // V3 ack = g
	parkEarly                // take the kick's signal, if it was sent by now: V7 has to be made only if not
	parkGo                   // V4 wait for go >= g
	parkSync                 // V5 serialise
	parkClear                // V6 immediate_exit = 0
	parkAgain                // V6 req differs from g: V3
	parkDrain                // V7 take the kick's signal
	parkOut                  // V7 one off out; the last one releases all
	parkOwed                 // V7 ack = g, where V3 has left it out
	parkSynced               // V7 synced = g
	parkRel                  // V8 wait for rel >= g …
	parkNew                  // V8 … or a new request
	parkLast                 // V8 a request that came with the release
	parked                   // over: the guest may be entered

	// Of the last vCPU to stop, behind parkTake.
	parkCompare  // P4 the words hold the old values
	parkStore    // P5 store the next word
	parkReadBack // P5 the words hold the new values; else
	parkTakeBack // … store the next old word
	parkMine     // in = mine: the requester shall say what is wrong
	parkGoAll    // P6 goG = g of the next vCPU

	// Of the last to serialise, behind parkOut.
	parkRelAll // P8 rel = g of the next vCPU
)

// parkStep does one step and returns the next; parkGo, and parkRel behind parkNew, come back while they wait. It is in parts since the compiler
// makes a table of a switch of eight cases: a page more.
//
//go:nosplit
//go:norace
//go:nocheckptr
func parkStep(c *control, at uint8) uint8 {
	switch {
	case at < parkGo:
		return parkIn(c, at)
	case at < parkOut:
		return parkThrough(c, at)
	case at < parked:
		return parkOver(c, at)
	}
	return parkAll(c, at)
}

// parkIn is V2 and V3.
//
//go:nosplit
//go:norace
//go:nocheckptr
func parkIn(c *control, at uint8) uint8 {
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
		look(c)
		return parkTake
	case parkTake:
		c.ledger.State = breaks.StateParked
		publish(c)
		c.ackTSC = kvm.TSC()
		step(c, stepAck)
		if take(c) {
			return parkCompare
		}
		return parkAck
	case parkAck:
		store64(&c.ack, c.parkG)
		answerBell(c)
		return parkEarly
	}
	takeLine(&c.run.ImmediateExit) // V6 stores there what P1 has stored to
	if drain(&c.sigset, &c.zero) {
		c.taken++
	}
	return parkGo
}

// parkThrough is V4 to V7's drain.
//
//go:nosplit
//go:norace
//go:nocheckptr
func parkThrough(c *control, at uint8) uint8 {
	switch at {
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
	}
	if load64(&c.sent) != c.taken {
		takeKicks(c)
	}
	return parkOut
}

// parkOver is the rest of V7, and V8.
//
//go:nosplit
//go:norace
//go:nocheckptr
func parkOver(c *control, at uint8) uint8 {
	switch at {
	case parkOut:
		c.done = c.parkG
		c.ledger.Kicks++
		c.syncTSC = kvm.TSC()
		if leaveOffer(c) {
			c.turn = c.offer.first
			return parkRelAll
		}
		return parkOwed
	case parkOwed:
		if c.owed != 0 {
			c.owed = 0
			put64(&c.ack, c.parkG) // seen before synced, which has the barrier
		}
		return parkSynced
	case parkSynced:
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
	}
	if load64(&c.req) != c.parkG { // parkLast
		return parkRead
	}
	return parked
}

// parkAll is what one vCPU does for all (docs/decisions/0020-who-stores.md).
//
//go:nosplit
//go:norace
//go:nocheckptr
func parkAll(c *control, at uint8) uint8 {
	o := c.offer
	switch at {
	case parkCompare:
		o.firstTSC = kvm.TSC()
		if c.walk = 0; !holds(o, false) {
			return parkMine
		}
		return parkStore
	case parkStore:
		if storeNext(c, true) {
			return parkStore
		}
		return parkReadBack
	case parkReadBack:
		if holds(o, true) {
			o.lastTSC = kvm.TSC()
			c.turn = o.first
			return parkGoAll
		}
		c.walk = 0
		return parkTakeBack
	case parkTakeBack:
		if storeNext(c, false) {
			return parkTakeBack
		}
		return parkMine
	case parkMine:
		state := uint64(offerMine)
		if c.walk != 0 && !holds(o, false) {
			state = offerDoubt
		}
		store64(&o.in, c.parkG<<offerGen|state)
		return parkAck
	case parkGoAll:
		if nextOf(c, &controlAt(c.turn).goG) {
			return parkGoAll
		}
		c.owed = 1 // there is nothing that the requester could do
		return parkEarly
	}
	if nextOf(c, &controlAt(c.turn).rel) { // parkRelAll
		return parkRelAll
	}
	o.relTSC = kvm.TSC()
	return parkOwed
}

// storeNext stores the new value of the offer's next word, or the old one, and reports whether there is another word.
//
//go:nosplit
//go:norace
//go:nocheckptr
func storeNext(c *control, change bool) bool {
	o := c.offer
	poke(o.words[c.walk&(MostStores-1)].To, o.words[c.walk&(MostStores-1)].value(change))
	c.walk++
	return c.walk < o.n
}

// value is what the word has with the change, or without it.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (w *Store) value(change bool) uint64 {
	if change {
		return w.New
	}
	return w.Old
}

// nextOf raises one vCPU's word to the generation, and reports whether there is another vCPU. It never lowers it: the requester may have let go all itself, and have
// begun another stop.
//
//go:nosplit
//go:norace
//go:nocheckptr
func nextOf(c *control, word *uint64) bool {
	t := controlAt(c.turn)
	for v := load64(word); v < c.parkG && !cas64(word, v, c.parkG); v = load64(word) {
	}
	if t != c {
		ringBell(t)
	}
	c.turn = t.next
	return c.turn != 0
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
	if c.near != 0 {
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

// look finds whether the vCPU is near the requester's range: whether one of the addresses at which it may go on, those of Stopped.Place, lies there. At its first one it is not,
// if nothing waits to be injected: there a new instruction is executed as well as the old one. What waits is read only there: it is a system call of microseconds, and all vCPUs wait for it.
//
//go:nosplit
//go:norace
//go:nocheckptr
func look(c *control) {
	c.looked, c.near = 0, 0
	from, to := load64(&c.lookFrom), load64(&c.lookTo)
	if from >= to {
		return
	}
	r := &c.run.Regs
	where := within(r.RIP, from, to)
	switch {
	case r.RIP-c.stubRIP < 4096:
		where |= within(r.RCX, from, to)
	case r.RIP-c.excRIP < 32*c.excStep:
		where |= within(peek(c.frame-40), from, to)
	}
	if c.kicked == 0 {
		where |= within(c.rip, from, to)
		if c.open != 0 && c.cause == uint64(breaks.Syscall) && c.nr == sysRtSigreturn {
			where |= inside
		}
	}
	if where == 0 {
		return
	}
	c.looked = 1
	if kvm.IoctlRaw(c.fd, kvm.IoGetVCPUEvents, c.eventsAt) < 0 {
		c.looked = 2
	}
	c.near = nearby(where, c.looked, &c.events)
}

// nearby is look's judgement of who may go on in the range.
//
//go:nosplit
//go:norace
//go:nocheckptr
func nearby(where, looked uint64, e *kvm.VCPUEvents) uint64 {
	if where&inside != 0 || looked != 1 || waits(e) {
		return 1
	}
	return 0
}

const (
	atFirst = 1 // at the first address of the range
	inside  = 2 // in it, behind that
)

//go:nosplit
//go:norace
//go:nocheckptr
func within(rip, from, to uint64) uint64 {
	switch {
	case rip == from:
		return atFirst
	case rip-from < to-from:
		return inside
	}
	return 0
}

// waits says whether anything waits to be injected: what pending names.
//
//go:nosplit
//go:norace
//go:nocheckptr
func waits(e *kvm.VCPUEvents) bool {
	return e.Exception.Injected|e.Exception.Pending|e.Interrupt.Injected|e.NMI.Injected|e.NMI.Pending|e.SMI.Pending != 0
}

// take is V3's part in whose the stop is. True: it is this vCPU's, all others have acknowledged, none of them is near, and they wait.
//
//go:nosplit
//go:norace
//go:nocheckptr
func take(c *control) bool { return oneOff(c, &c.offer.in, c.near != 0) }

// leaveOffer is V7's part. True: all have serialised, and this vCPU releases them.
//
//go:nosplit
//go:norace
//go:nocheckptr
func leaveOffer(c *control) bool { return oneOff(c, &c.offer.out, false) }

// oneOff takes this vCPU off the count of in or out, and reports whether what was offered is its own now: it was the last, and none was near. An older request's
// acknowledgement counts for nothing, and nothing counts once the requester has it.
//
//go:nosplit
//go:norace
//go:nocheckptr
func oneOff(c *control, word *uint64, near bool) bool {
	for {
		v := load64(word)
		if v>>offerGen != c.parkG || v&offerState != offered || v&offerCount == 0 {
			return false
		}
		w := v - 1
		if near {
			w |= offerNear
		}
		last := w&(offerCount|offerNear) == 0
		if last {
			w += offerLast - offered
		}
		if cas64(word, v, w) {
			return last
		}
	}
}

// holds says whether the offer's words are the old ones, or the new ones: as memory has them, for poke has emptied the store buffer.
//
//go:nosplit
//go:norace
//go:nocheckptr
func holds(o *offer, changed bool) bool {
	for i := uint64(0); i < o.n; i++ {
		if w := &o.words[i&(MostStores-1)]; peek(w.To) != w.value(changed) {
			return false
		}
	}
	return true
}

// ringBell tells another vCPU of goG or rel, as Thread.ring does.
//
//go:nosplit
//go:norace
//go:nocheckptr
func ringBell(t *control) {
	add32(&t.bell, 1)
	if load32(&t.sleepBell) != 0 {
		futexWake(&t.bell)
	}
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
