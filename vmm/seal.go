package vmm

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/guest/linux"
	"github.com/cloister-vmm/cloister/guest/stub"
	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/vcpu"
	"golang.org/x/sys/unix"
)

// What a system call's hook asked for beyond its result.
const (
	wantNothing = iota
	wantSeal
	wantUnseal
	wantProvoke
	wantSafePoint
)

// touch is one run of a supervisor routine: an entry point and its RDI, RSI.
type touch struct {
	entry, from, to uint64
	kernel          bool // at CPL 0
}

// routine is a list of supervisor routines that the vCPU executes between two instructions of the
// program. Each leaves by stub.Done.
type routine struct {
	queue  []touch
	kernel bool // at CPL 0
	saved  kvm.Regs
	sregs  kvm.Sregs
	finish func()
}

// isolate is abi.SysIsolate.
func (m *Machine) isolate(on bool) unix.Errno {
	p := m.kernel.Current().Data.(*processor)
	if on {
		if p.ledger.Sealed == 0 {
			p.want = wantSeal
		}
	} else if p.ledger.Sealed != 0 {
		p.want = wantUnseal
	}
	return 0
}

// gapRecord is abi.SysGapRecord.
func (m *Machine) gapRecord(addr uint64) unix.Errno {
	if addr%abi.Page != 0 {
		return unix.EINVAL
	}
	if _, e := m.space.Out(addr, 2*abi.Page); e != 0 {
		return e
	}
	m.cfg.GapRecord(addr)
	return 0
}

// provoke is abi.SysProvoke.
func (m *Machine) provoke(what uint64) unix.Errno {
	if !m.cfg.Builtin {
		return unix.EPERM
	}
	switch what {
	case abi.ProvokeHLT, abi.ProvokePIO, abi.ProvokeMMIO, abi.ProvokeKick:
		p := m.kernel.Current().Data.(*processor)
		p.want, p.provoked = wantProvoke, what
	case abi.ProvokeCPUID:
	default:
		return unix.EINVAL
	}
	return 0
}

// kickOnce stops the machine while it executes stub.SpinFlag, and then lets it leave that loop: exactly one
// kick ends exactly one KVM_RUN.
func (p *processor) kickOnce() {
	// ORDER(O2): a look at the ledger's state alone. Pairs with the store in enter (vcpu/loop.go); without it
	// the kick could come before the guest is entered, and end no KVM_RUN.
	for atomic.LoadUint32(&p.ledger.State) != breaks.StateGuest {
		select {
		case <-p.thread.Done():
			return
		default:
			runtime.Gosched()
		}
	}
	stopped, err := p.m.set.Stop(stopLimit)
	if err == nil {
		p.m.setFlag(1)
		err = stopped.Resume(resumeLimit)
	}
	if err != nil {
		p.m.cfg.Warn("provoked kick: " + err.Error())
	}
}

// setFlag writes the word that stub.SpinFlag waits for; no vCPU is in the guest.
func (m *Machine) setFlag(v uint32) { binary.LittleEndian.PutUint32(m.sup[stub.FlagOffset:], v) }

// touches lists every page range of the program, so that the second-stage tables are filled before the
// program is sealed: no first touch is left for it to pay.
func (p *processor) touches() []touch {
	m := p.m
	q := slices.Clone(m.clock)
	if p.ring != nil {
		page, code := abi.SupVA+stub.RingPage(p.id), abi.SupVA+stub.RingCode(p.id)
		q = append(q, touch{entry: stub.TouchWrite, from: page, to: page + abi.Page, kernel: !p.x.StaysAtCPL3()},
			touch{entry: stub.TouchRead, from: code, to: code + abi.Page})
	}
	m.space.Ranges(func(start, end uint64, write bool) {
		entry := uint64(stub.TouchRead)
		if write {
			entry = stub.TouchWrite
		}
		q = append(q, touch{entry: entry, from: start, to: end})
	})
	return q
}

// populate gives all of the program's memory its host pages.
func (m *Machine) populate() {
	if err := m.space.Populate(); err != nil {
		m.cfg.Warn(fmt.Sprintf("memory is not pre-faulted: %v: first touches will be breaks (needs Linux 5.14)", err))
	}
}

// sealBeforeStart sends the vCPU through the touches before the program's first instruction: it returns
// the registers to begin with.
func (p *processor) sealBeforeStart(entry *kvm.Regs, s *kvm.Sregs) *kvm.Regs {
	p.m.populate()
	r := &routine{queue: p.touches(), finish: p.seal, saved: *entry, sregs: *s}
	p.routine = r
	regs, _ := p.next()
	return &regs
}

// next takes the next routine off the queue and gives its registers.
func (p *processor) next() (kvm.Regs, kvm.Sregs) {
	r := p.routine
	t := r.queue[0]
	r.queue = r.queue[1:]
	regs, sregs := r.saved, r.sregs
	regs.RIP, regs.RDI, regs.RSI, regs.RFLAGS = t.entry, t.from, t.to, rflagsUser
	if r.kernel || t.kernel {
		sregs.CS, sregs.SS = kernelCS, kernelSS
		regs.RSP, regs.RFLAGS = stub.RSP0(p.id)-64, 2
	}
	return regs, sregs
}

// sealNow populates and touches all memory, then seals, then lets the system call return ret.
func (p *processor) sealNow(ret uint64) vcpu.Answer {
	if p.wantsRing() {
		if err := p.openRing(); err != nil {
			return p.broken("--syscalls=ring: " + err.Error())
		}
	}
	p.m.populate()
	return p.startRoutine(&routine{queue: p.touches(), finish: p.seal}, ret)
}

func (p *processor) startProvoke(ret uint64) vcpu.Answer {
	if p.provoked == abi.ProvokeKick {
		p.m.setFlag(0)
		a := p.startRoutine(&routine{queue: []touch{{entry: stub.SpinFlag, from: abi.SupVA + stub.FlagOffset}}}, ret)
		go p.kickOnce()
		return a
	}
	entry := map[uint64]uint64{abi.ProvokeHLT: stub.ProvokeHLT, abi.ProvokePIO: stub.ProvokePIO, abi.ProvokeMMIO: stub.ProvokeMMIO}[p.provoked]
	return p.startRoutine(&routine{queue: []touch{{entry: entry}}, kernel: true}, ret)
}

// startRoutine saves where the program is (behind its system call, with ret as its result) and sends the
// vCPU through the queue.
func (p *processor) startRoutine(r *routine, ret uint64) vcpu.Answer {
	s, err := p.x.Sregs()
	if err != nil {
		return p.broken(err.Error())
	}
	r.saved, r.sregs = *p.x.Regs(), *s
	r.saved.RAX, r.saved.RIP, r.saved.RFLAGS = ret, r.saved.RCX, r.saved.R11
	r.sregs.CS, r.sregs.SS = userCS, userSS
	p.routine = r
	return p.routineDone()
}

// routineDone starts the next routine of the queue, or puts the program back.
func (p *processor) routineDone() vcpu.Answer {
	r := p.routine
	if r == nil {
		return p.fault(p.x, unix.SIGSEGV, 13) // the program jumped to Done itself
	}
	if len(r.queue) == 0 {
		p.routine = nil
		if r.finish != nil {
			r.finish()
		}
		if p.later {
			// A signal waits since the routine began.
			p.later = false
			p.regs, p.haveRegs = linux.Registers(r.saved), true
			p.sregs = &r.sregs
			if out := p.m.kernel.Attend(p.task); out.Kind != linux.Continue {
				return p.outcome(out)
			}
		}
		p.x.Load(&r.saved, &r.sregs)
		return vcpu.Answer{Kind: vcpu.AnswerState}
	}
	regs, sregs := p.next()
	p.x.Load(&regs, &sregs)
	return vcpu.Answer{Kind: vcpu.AnswerState}
}

// seal opens the sealed book.
func (p *processor) seal() {
	l := p.ledger
	p.border(0)
	if !p.x.SetSealed(true) {
		return
	}
	p.update(func() {
		l.Sealed = 1
		l.SealedAt = kvm.TSC()
		l.Seals++
	})
}

// unseal closes it.
func (p *processor) unseal() {
	p.border(1)
	if p.x.SetSealed(false) {
		p.closeSeal()
	}
	if err := p.closeRing(); err != nil {
		p.m.cfg.Warn("--syscalls=ring: " + err.Error())
	}
}

func (p *processor) closeSeal() {
	l := p.ledger
	p.update(func() {
		if l.Sealed != 0 {
			l.SealedIn += kvm.TSC() - l.SealedAt
		}
		l.Sealed, l.SealedAt = 0, 0
	})
}

// update writes to the ledger in place of the vCPU's thread, which waits.
func (p *processor) update(f func()) {
	l := p.ledger
	atomic.AddUint64(&l.Seq, 1) // ORDER(O2): writer; odd before the fields, even after. Pairs with Snapshot; without it a reader could mix two states
	f()
	atomic.AddUint64(&l.Seq, 1)
}

// border books the kernel's statistics since the last border to a book.
func (p *processor) border(book int) {
	if p.stats == nil {
		return
	}
	if err := p.stats.Read(p.statAt); err != nil {
		p.m.cfg.Warn(err.Error())
		return
	}
	l := p.ledger
	p.update(func() {
		for i, name := range breaks.KernelNames {
			if j := p.stats.Index(name); j >= 0 {
				l.Book[book].Kernel[i] += p.statAt[j] - l.KernelAt[i]
				l.KernelAt[i] = p.statAt[j]
			}
		}
	})
}
