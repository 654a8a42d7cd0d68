package vmm

import (
	"math/bits"
	"runtime"
	"sync/atomic"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/guest/linux"
	"github.com/cloister-vmm/cloister/guest/mem"
	"github.com/cloister-vmm/cloister/guest/stub"
	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/vcpu"
	"golang.org/x/sys/unix"
)

// ring is the way by which the system calls of a sealed vCPU reach a housekeeping core without an exit
// (docs/decisions/0010-ring-calls.md). One at a time is open on a vCPU, from its seal to its unseal.
type ring struct {
	p      *processor
	page   *[abi.Page / 8]uint64 // its words
	task   *linux.Task
	byExit atomic.Bool // ORDER(none): advice; the next call is made by an exit, because somebody waits for the vCPU
	closed chan struct{}
	ended  chan struct{}

	constant [stub.RingCalls]func() uint64 // calls with one answer for all of a run, which need no lock
}

// wantsRing says whether sealed calls of p shall go by the ring.
func (p *processor) wantsRing() bool { return p.m.cfg.RingCalls && p.ring == nil }

// openRing turns p's SYSCALL to the ring and starts its server. It is called while an exit is served.
func (p *processor) openRing() error {
	m, user := p.m, p.x.StaysAtCPL3()
	page, code := stub.RingPage(p.id), stub.RingCode(p.id)
	words := m.sup[page : page+abi.Page]
	clear(words)
	r := &ring{p: p, page: words64(words), task: p.task, closed: make(chan struct{}), ended: make(chan struct{})}
	for nr := range uint64(stub.RingCalls) {
		if !linux.Ringable(nr) {
			continue
		}
		words[stub.RingNumbers+nr/8] |= 1 << (nr % 8)
		if f, ok := m.kernel.ConstantOfAll(nr); ok {
			r.constant[nr] = f
		}
	}
	copy(m.sup[code:], stub.RingStubFor(p.id, user))
	if err := m.space.MapSupervisor(abi.SupVA+page, abi.SupGPA+page, abi.Page, mem.Read|mem.Write, user); err != nil {
		return err
	}
	if err := m.space.MapSupervisor(abi.SupVA+code, abi.SupGPA+code, abi.Page, mem.Read|mem.Exec, true); err != nil {
		return err
	}
	if err := p.x.SetMSR(msrLSTAR, abi.SupVA+code); err != nil {
		return err
	}
	p.ring = r
	m.ender.Add(1)
	go p.ring.serve()
	return nil
}

// closeRing turns SYSCALL back. The vCPU is out of the guest, and no call of it is on the ring.
func (p *processor) closeRing() error {
	if p.ring == nil {
		return nil
	}
	close(p.ring.closed)
	<-p.ring.ended
	p.ring = nil
	return p.x.SetMSR(msrLSTAR, stub.SyscallEntry)
}

func (r *ring) word(off uint64) uint64 { return r.page[off/8] }

// Spins of a server with nothing to do: between two looks whether the ring is closed, and until it lets others have the core
// now and then.
const (
	ringLook  = 256
	ringYield = 1 << 16
)

// serve answers calls until the ring is closed. What the page says is the program's word: the number and the arguments
// are copied once, and are checked as those of any call.
func (r *ring) serve() {
	defer r.p.m.ender.Done()
	defer close(r.ended)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	posted, done := &r.page[stub.RingPosted/8], &r.page[stub.RingDone/8]
	served := uint64(0)
	for spins := 0; ; spins++ {
		// ORDER(O12): acquires number and arguments. Pairs with the stub's store of RingPosted behind them. Without it they
		// could be an older call's.
		if n := atomic.LoadUint64(posted); n != served {
			nr, since, ok := r.answer()
			// ORDER(O12): publishes the result. Pairs with the stub's loop on RingDone. Without it the program could go on
			// with the result of the call before.
			atomic.StoreUint64(done, n)
			r.book(nr, since, ok) // nobody waits for that
			served, spins = n, 0
			continue
		}
		vcpu.Pause()
		if spins%ringLook == 0 {
			select {
			case <-r.closed:
				return
			case <-r.p.m.over:
				return
			default:
			}
			if spins > ringYield {
				_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // it cannot fail (sched_yield(2))
			}
		}
	}
}

// answer makes one call. It returns the call's number and stamp, which are the program's word, and whether it was made: if not, it
// is made by an exit.
func (r *ring) answer() (nr, since uint64, ok bool) {
	w := r.page
	nr, since = w[stub.RingNr/8], w[stub.RingTSC/8]
	switch {
	case r.byExit.Load(): // ORDER(none): advice
	case nr < stub.RingCalls && r.constant[nr] != nil:
		w[stub.RingResult/8], ok = r.constant[nr](), true
	default:
		w[stub.RingResult/8], ok = r.p.m.kernel.RingCall(r.task, nr, [6]uint64(w[stub.RingArgs/8:stub.RingArgs/8+6]))
	}
	w[stub.RingByExit/8] = 1
	if ok {
		w[stub.RingByExit/8] = 0
	}
	return nr, since, ok
}

// book enters an answered call into the ledger, of which the server alone writes this part; closeRing and the end of the run wait
// for it.
func (r *ring) book(nr, since uint64, ok bool) {
	if !ok {
		atomic.AddUint64(&r.p.ledger.RingHanded, 1) // ORDER(none): a count
		return
	}
	l := &r.p.ledger.Ring
	waited := kvm.TSC() - since
	if int64(waited) < 0 || waited > r.p.m.Info.TSCHz*60 {
		waited = 0
	}
	l.Waited += waited
	l.Longest = max(l.Longest, waited)
	l.Hist[min(bits.Len64(waited), breaks.NHist-1)]++
	y := &l.Syscall[min(nr, breaks.NSyscall-1)]
	y.Count++
	y.Lost += waited
	atomic.AddUint64(&r.p.ledger.RingCalls, 1) // ORDER(none): a count
}

// attendRing is attend for a vCPU that was taken out of the guest within its ring stub. It reports false when the vCPU has to go
// on: an exit is about to come, by which the signal is found.
func (p *processor) attendRing(rip uint64) bool {
	r := p.ring
	_, spin, exit := stub.RingStub(p.x.StaysAtCPL3())
	switch at := rip - abi.SupVA - stub.RingCode(p.id); {
	case at < spin:
		r.byExit.Store(true) // ORDER(none): advice; read when the call that is about to be posted is served
		return false
	case at >= exit:
		return false
	}
	// Posted: the server, which is another thread, answers it or has.
	posted, done := &r.page[stub.RingPosted/8], &r.page[stub.RingDone/8]
	for atomic.LoadUint64(done) != atomic.LoadUint64(posted) { // ORDER(O12): as the stub's own loop; pairs with the server's store. Without it the result could be missing
		select {
		case <-r.ended:
			return false
		default:
			vcpu.Pause()
		}
	}
	if r.word(stub.RingByExit) != 0 {
		return false
	}
	p.regs, p.haveRegs = linux.Registers(*p.x.Regs()), true
	g := &p.regs
	g.RAX, g.RIP, g.RFLAGS, g.RSP = r.word(stub.RingResult), r.word(stub.RingReturn), r.word(stub.RingFlags), r.word(stub.RingSP)
	g.RCX, g.R11 = g.RIP, g.RFLAGS
	return true
}

// inRing says whether rip is in p's ring stub.
func (p *processor) inRing(rip uint64) bool {
	return p.ring != nil && rip-abi.SupVA-stub.RingCode(p.id) < abi.Page
}
