package vmm

import (
	"encoding/binary"
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
	page   []byte
	task   *linux.Task
	byExit atomic.Bool // ORDER(none): advice; the next call is made by an exit, because somebody waits for the vCPU
	closed chan struct{}
	ended  chan struct{}
}

// wantsRing says whether sealed calls of p shall go by the ring.
func (p *processor) wantsRing() bool { return p.m.cfg.RingCalls && p.ring == nil }

// openRing turns p's SYSCALL to the ring and starts its server. It is called while an exit is served.
func (p *processor) openRing() error {
	m, user := p.m, p.x.StaysAtCPL3()
	page, code := stub.RingPage(p.id), stub.RingCode(p.id)
	words := m.sup[page : page+abi.Page]
	clear(words)
	for nr := range uint64(stub.RingCalls) {
		if linux.Ringable(nr) {
			words[stub.RingNumbers+nr/8] |= 1 << (nr % 8)
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
	p.ring = &ring{p: p, page: words, task: p.task, closed: make(chan struct{}), ended: make(chan struct{})}
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

func (r *ring) word(off uint64) uint64 { return binary.LittleEndian.Uint64(r.page[off:]) }

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
	posted, done := word64(r.page[stub.RingPosted:]), word64(r.page[stub.RingDone:])
	served := uint64(0)
	for spins := 0; ; spins++ {
		// ORDER(O12): acquires number and arguments. Pairs with the stub's store of RingPosted behind them. Without it they
		// could be an older call's.
		if n := atomic.LoadUint64(posted); n != served {
			r.answer()
			// ORDER(O12): publishes the result. Pairs with the stub's loop on RingDone. Without it the program could go on
			// with the result of the call before.
			atomic.StoreUint64(done, n)
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

// answer makes one call.
func (r *ring) answer() {
	var a [6]uint64
	for i := range a {
		a[i] = r.word(stub.RingArgs + uint64(i)*8)
	}
	nr, since := r.word(stub.RingNr), r.word(stub.RingTSC)
	var ret uint64
	ok := false
	if !r.byExit.Load() { // ORDER(none): advice
		ret, ok = r.p.m.kernel.RingCall(r.task, nr, a)
	}
	l := &r.p.ledger.Ring
	calls, handed := &r.p.ledger.RingCalls, &r.p.ledger.RingHanded
	by := uint64(1)
	if ok {
		by = 0
		binary.LittleEndian.PutUint64(r.page[stub.RingResult:], ret)
		// The stamp is the program's word, too.
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
		atomic.AddUint64(calls, 1) // ORDER(none): a count
	} else {
		atomic.AddUint64(handed, 1) // ORDER(none): a count
	}
	binary.LittleEndian.PutUint64(r.page[stub.RingByExit:], by)
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
	posted, done := word64(r.page[stub.RingPosted:]), word64(r.page[stub.RingDone:])
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
