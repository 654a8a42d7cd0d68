package vmm

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"

	"github.com/cloister-vmm/cloister/guest/abi"
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
)

// touch is one run of a supervisor routine: an entry point and its RDI, RSI.
type touch struct{ entry, from, to uint64 }

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
	if on {
		if m.cfg.Ledger.Sealed == 0 {
			m.want = wantSeal
		}
	} else if m.cfg.Ledger.Sealed != 0 {
		m.want = wantUnseal
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
		m.want, m.provoked = wantProvoke, what
	case abi.ProvokeCPUID:
	default:
		return unix.EINVAL
	}
	return 0
}

// kickOnce stops the machine while it executes stub.SpinFlag, and then lets it leave that loop: exactly one
// kick ends exactly one KVM_RUN.
func (m *Machine) kickOnce() {
	// ORDER(O2): a look at the ledger's state alone. Pairs with the store in enter (vcpu/loop.go); without it
	// the kick could come before the guest is entered, and end no KVM_RUN.
	for atomic.LoadUint32(&m.cfg.Ledger.State) != breaks.StateGuest {
		select {
		case <-m.thread.Done():
			return
		default:
			runtime.Gosched()
		}
	}
	p, err := m.set.Stop(stopLimit)
	if err == nil {
		m.setFlag(1)
		err = p.Resume(resumeLimit)
	}
	if err != nil {
		m.cfg.Warn("provoked kick: " + err.Error())
	}
}

// setFlag writes the word that stub.SpinFlag waits for; no vCPU is in the guest.
func (m *Machine) setFlag(v uint32) { binary.LittleEndian.PutUint32(m.sup[stub.FlagOffset:], v) }

// touches lists every page range of the program, so that the second-stage tables are filled before the
// program is sealed: no first touch is left for it to pay.
func (m *Machine) touches() []touch {
	q := slices.Clone(m.clock)
	m.space.Ranges(func(start, end uint64, write bool) {
		entry := uint64(stub.TouchRead)
		if write {
			entry = stub.TouchWrite
		}
		q = append(q, touch{entry, start, end})
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
func (m *Machine) sealBeforeStart(entry *kvm.Regs, s *kvm.Sregs) *kvm.Regs {
	m.populate()
	r := &routine{queue: m.touches(), finish: m.seal, saved: *entry, sregs: *s}
	m.routine = r
	regs, _ := m.next()
	return &regs
}

// next takes the next routine off the queue and gives its registers.
func (m *Machine) next() (kvm.Regs, kvm.Sregs) {
	r := m.routine
	t := r.queue[0]
	r.queue = r.queue[1:]
	regs, sregs := r.saved, r.sregs
	regs.RIP, regs.RDI, regs.RSI, regs.RFLAGS = t.entry, t.from, t.to, rflagsUser
	if r.kernel {
		sregs.CS, sregs.SS = m.segments.kernelCS, m.segments.kernelSS
		regs.RSP, regs.RFLAGS = stub.RSP0-64, 2
	}
	return regs, sregs
}

// sealNow populates and touches all memory, then seals, then lets the system call return ret.
func (m *Machine) sealNow(ret uint64) vcpu.Answer {
	m.populate()
	return m.startRoutine(&routine{queue: m.touches(), finish: m.seal}, ret)
}

func (m *Machine) startProvoke(ret uint64) vcpu.Answer {
	if m.provoked == abi.ProvokeKick {
		m.setFlag(0)
		a := m.startRoutine(&routine{queue: []touch{{entry: stub.SpinFlag, from: abi.SupVA + stub.FlagOffset}}}, ret)
		go m.kickOnce()
		return a
	}
	entry := map[uint64]uint64{abi.ProvokeHLT: stub.ProvokeHLT, abi.ProvokePIO: stub.ProvokePIO, abi.ProvokeMMIO: stub.ProvokeMMIO}[m.provoked]
	return m.startRoutine(&routine{queue: []touch{{entry: entry}}, kernel: true}, ret)
}

// startRoutine saves where the program is (behind its system call, with ret as its result) and sends the
// vCPU through the queue.
func (m *Machine) startRoutine(r *routine, ret uint64) vcpu.Answer {
	s, err := m.x.Sregs()
	if err != nil {
		return m.broken(err.Error())
	}
	r.saved, r.sregs = *m.x.Regs(), *s
	r.saved.RAX, r.saved.RIP, r.saved.RFLAGS = ret, r.saved.RCX, r.saved.R11
	r.sregs.CS, r.sregs.SS = m.segments.userCS, m.segments.userSS
	m.routine = r
	return m.routineDone()
}

// routineDone starts the next routine of the queue, or puts the program back.
func (m *Machine) routineDone() vcpu.Answer {
	r := m.routine
	if r == nil {
		return m.fault(m.x, unix.SIGSEGV, 13) // the program jumped to Done itself
	}
	if len(r.queue) == 0 {
		m.routine = nil
		if r.finish != nil {
			r.finish()
		}
		m.x.Load(&r.saved, &r.sregs)
		return vcpu.Answer{Kind: vcpu.AnswerState}
	}
	regs, sregs := m.next()
	m.x.Load(&regs, &sregs)
	return vcpu.Answer{Kind: vcpu.AnswerState}
}

// seal opens the sealed book.
func (m *Machine) seal() {
	l := m.cfg.Ledger
	m.border(0)
	if !m.x.SetSealed(true) {
		return
	}
	m.update(func() {
		l.Sealed = 1
		l.SealedAt = kvm.TSC()
		l.Seals++
	})
}

// unseal closes it.
func (m *Machine) unseal() {
	m.border(1)
	if m.x.SetSealed(false) {
		m.closeSeal()
	}
}

func (m *Machine) closeSeal() {
	l := m.cfg.Ledger
	m.update(func() {
		if l.Sealed != 0 {
			l.SealedIn += kvm.TSC() - l.SealedAt
		}
		l.Sealed, l.SealedAt = 0, 0
	})
}

// update writes to the ledger in place of the vCPU's thread, which waits.
func (m *Machine) update(f func()) {
	l := m.cfg.Ledger
	atomic.AddUint64(&l.Seq, 1) // ORDER(O2): writer; odd before the fields, even after. Pairs with Snapshot; without it a reader could mix two states
	f()
	atomic.AddUint64(&l.Seq, 1)
}

// border books the kernel's statistics since the last border to a book.
func (m *Machine) border(book int) {
	if m.stats == nil {
		return
	}
	if err := m.stats.Read(m.statAt); err != nil {
		m.cfg.Warn(err.Error())
		return
	}
	l := m.cfg.Ledger
	m.update(func() {
		for i, name := range breaks.KernelNames {
			if j := m.stats.Index(name); j >= 0 {
				l.Book[book].Kernel[i] += m.statAt[j] - l.KernelAt[i]
				l.KernelAt[i] = m.statAt[j]
			}
		}
	})
}
