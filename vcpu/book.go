package vcpu

import (
	"math/bits"

	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// The ledger's writer, on the vCPU's own thread: what loop.go says of itself holds here.

// enter is E2: the open break gets its length and goes into the ledger.
//
//go:nosplit
//go:norace
//go:nocheckptr
func enter(c *control, in uint64) {
	l := c.ledger
	put64(&l.Seq, l.Seq+1)
	if c.open != 0 {
		account(c, in)
	} else if l.Start == 0 {
		l.Start = in
	}
	if l.IdleAt != 0 {
		e := &l.Events[l.EventNext%breaks.NEvent]
		e.Out, e.In, e.RIP, e.Cause, e.Nr = l.IdleAt, in, 0, breaks.EventIdle, 0
		l.EventNext++
		l.Idle += in - l.IdleAt
		l.IdleAt = 0
	}
	l.LastIn = in
	l.State = breaks.StateGuest
	put64(&l.Seq, l.Seq+1)
}

//go:nosplit
//go:norace
//go:nocheckptr
func account(c *control, in uint64) {
	l := c.ledger
	c.open = 0
	k := c.book & 1
	b := &l.Book[k]
	lost := in - c.out
	b.Lost += lost
	n := &b.Cause[c.cause%uint64(breaks.NCause)]
	n.Count++
	n.Lost += lost
	if lost > n.Max {
		n.Max = lost
	}
	// By min the compiler sees that no index needs a check, which would be a way into the runtime.
	n.Hist[min(uint(bits.Len64(lost)), breaks.NHist-1)]++
	nr := uint32(c.nr)
	// A system call that ends the program is numbered too: its exits are in the kernel's statistics.
	if c.cause == uint64(breaks.Syscall) || c.cause == uint64(breaks.End) && c.nr != 0 {
		y := &b.Syscall[min(c.nr, breaks.NSyscall-1)]
		y.Count++
		y.Lost += lost
	}
	site(c, nr, k, lost)
	e := &l.Events[l.EventNext%breaks.NEvent]
	e.Out, e.In, e.RIP = c.out, in, c.rip
	e.Cause, e.Nr = uint32(c.cause), nr&^(1<<31)|uint32(k)<<31
	l.EventNext++
}

// site adds the break to its place. The key holds RSP: the same instruction at the same stack depth
// was, but for rare coincidences, reached by the same calls, so one stack is kept per key.
//
//go:nosplit
//go:norace
//go:nocheckptr
func site(c *control, nr uint32, k, lost uint64) {
	l := c.ledger
	cause := uint32(c.cause) + 1
	h := (c.rip ^ c.rsp<<20 ^ c.rsp>>44 ^ uint64(cause)<<48 ^ uint64(nr)<<32) * 0x9e3779b97f4a7c15 >> 40
	for probe := uint64(0); probe < 16; probe++ {
		s := &l.Sites[(h+probe)%breaks.NSite]
		if s.Cause == 0 {
			s.RIP, s.RSP, s.Nr, s.Cause = c.rip, c.rsp, nr, cause
			keepStack(c, s)
		}
		if s.RIP == c.rip && s.RSP == c.rsp && s.Nr == nr && s.Cause == cause {
			s.Count[k&1]++
			s.Lost[k&1] += lost
			if lost > s.Max {
				s.Max = lost
			}
			return
		}
	}
	l.SiteLost++
}

// keepStack copies the words above the guest's RSP, page by page and only where the guest's own tables
// map them, so that looking never allocates guest memory. The kernel copies them: the stack may be a file that somebody makes shorter meanwhile.
//
//go:nosplit
//go:norace
//go:nocheckptr
func keepStack(c *control, s *breaks.Site) {
	l := c.ledger
	if l.StackNext >= breaks.NStack {
		l.StackLost++
		return
	}
	dst := &l.Stacks[l.StackNext]
	a := c.rsp &^ 7
	mapped := ^uint64(0)
	n := uintptr(0)
	for ; n < breaks.StackWords*8; n += 8 {
		w := a + uint64(n)
		if w+8 < a || w+8 > c.userTop {
			break
		}
		if w>>12 != mapped {
			if !present(c, w) {
				break
			}
			mapped = w >> 12
		}
	}
	if n == 0 {
		return
	}
	if readOwn(c.pid, &dst[0], c.window+uintptr(a), n) < 8 {
		l.StackLost++ // gone meanwhile, or the host refuses the call
		return
	}
	l.StackNext++
	s.Stack = uint32(l.StackNext)
}

// present walks the guest's page tables for a user address below userTop.
//
//go:nosplit
//go:norace
//go:nocheckptr
func present(c *control, a uint64) bool {
	t := c.root
	for shift := uint(39); ; shift -= 9 {
		off := t - c.tabGPA
		if off >= c.tabSize {
			return false
		}
		e := peek(c.tables + uintptr(off+a>>shift&511*8))
		if e&5 != 5 { // present, user
			return false
		}
		if shift == 12 || e&(1<<7) != 0 && shift <= 30 {
			return true
		}
		t = e & 0x000ffffffffff000
	}
}

// idle closes the break of the call by which the vCPU's thread of the guest has ended: what follows is nobody's time.
//
//go:nosplit
//go:norace
//go:nocheckptr
func idle(c *control) {
	l := c.ledger
	now := kvm.TSC()
	put64(&l.Seq, l.Seq+1)
	if c.open != 0 {
		account(c, now)
	}
	l.LastIn, l.IdleAt = now, now
	l.State = breaks.StateIdle
	put64(&l.Seq, l.Seq+1)
}

// end closes the books: the last break ends where the thread does.
//
//go:nosplit
//go:norace
//go:nocheckptr
func end(c *control) {
	l := c.ledger
	now := kvm.TSC()
	put64(&l.Seq, l.Seq+1)
	if c.open != 0 {
		if c.cause == uint64(breaks.Kick) {
			c.cause = uint64(breaks.End) // the stop that ended the run: planned
		}
		account(c, now)
		l.LastIn = now
	}
	if l.IdleAt != 0 {
		l.Idle += now - l.IdleAt
		l.IdleAt = 0
	}
	l.End = now
	l.State = breaks.StateEnded
	put64(&l.Seq, l.Seq+1)
	store64(&c.ended, 1)
	add32(&c.doorReq, 1)
	futexWake(&c.doorReq)
	add32(&c.doorAck, 1)
	futexWake(&c.doorAck)
}
