package vmm

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/guest/linux"
	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/vcpu"
	"golang.org/x/sys/unix"
)

// Serve answers one exit (vcpu.Handler). A fault while touching guest memory, such as a shared file that
// shrank, is the guest's EFAULT; anything else that panics ends the run with one line.
func (m *Machine) Serve(x *vcpu.Exit) (a vcpu.Answer) {
	debug.SetPanicOnFault(true) // of this goroutine
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		var fault interface{ Addr() uintptr }
		if e, ok := r.(runtime.Error); ok && errors.As(e, &fault) && x.Cause == breaks.Syscall {
			a = vcpu.Answer{Kind: vcpu.AnswerRAX, RAX: fail(unix.EFAULT)}
			return
		}
		a = m.broken(fmt.Sprintf("serving %v %d: %v", x.Cause, x.Nr, r))
	}()
	m.x = x
	switch x.Cause {
	case breaks.Syscall, breaks.Seal, breaks.End:
		return m.syscall(x)
	case breaks.Setup:
		return m.routineDone()
	case breaks.PIO:
		if m.routine != nil && x.Nr == abi.DiagPort {
			return resume
		}
		return m.fault(x, unix.SIGSEGV, 13)
	case breaks.MMIO:
		if gpa, _ := x.MMIO(); m.routine != nil && gpa == abi.MMIOHole {
			return resume
		}
		return m.fault(x, unix.SIGBUS, -1)
	case breaks.HLT:
		if m.routine != nil {
			return resume
		}
		return m.fault(x, unix.SIGSEGV, 13)
	case breaks.MemoryFault:
		return m.fault(x, unix.SIGBUS, -1)
	case breaks.Debug:
		return m.fault(x, unix.SIGTRAP, 1)
	case breaks.Shutdown, breaks.InternalError, breaks.Unknown:
		reason, detail := x.Reason()
		return m.broken(fmt.Sprintf("KVM left the guest for good: %v: exit reason %d (%#x %#x), %v, at guest address %#x", x.Cause, reason, detail[0], detail[1], x.Errno, x.RIP))
	}
	return m.exception(x)
}

var resume = vcpu.Answer{Kind: vcpu.AnswerResume}

func fail(e unix.Errno) uint64 { return -uint64(e) }

// fsbase is the part of the registers that arch_prctl(2) touches. The segment registers are fetched when
// first asked for, since FSGSBASE lets the guest change them itself.
type fsbase struct{ m *Machine }

func (f fsbase) sregs() *kvm.Sregs {
	m := f.m
	if m.sregs == nil {
		s, err := m.x.Sregs()
		if err != nil {
			panic(err) // becomes the run's error in Serve
		}
		m.sregs = s
	}
	return m.sregs
}

func (f fsbase) FSBase() uint64     { return f.sregs().FS.Base }
func (f fsbase) GSBase() uint64     { return f.sregs().GS.Base }
func (f fsbase) SetFSBase(v uint64) { f.sregs().FS.Base = v; f.m.sregsDirty = true }
func (f fsbase) SetGSBase(v uint64) { f.sregs().GS.Base = v; f.m.sregsDirty = true }

func (m *Machine) syscall(x *vcpu.Exit) vcpu.Answer {
	r := x.Regs()
	nr := r.RAX
	m.sregs, m.sregsDirty = nil, false
	m.want = wantNothing
	out := m.kernel.Syscall(m.task, nr, [6]uint64{r.RDI, r.RSI, r.RDX, r.R10, r.R8, r.R9})
	switch out.Kind {
	case linux.Exit:
		return m.end(Result{Code: int(out.Value), Ended: "exit"})
	case linux.Kill:
		return m.end(Result{Signal: int(out.Value), Ended: "signal"})
	case linux.Interrupted:
		return vcpu.Answer{Kind: vcpu.AnswerEnd} // only the end of the run interrupts
	}
	if m.cfg.Seal == SealFirstWrite && !m.wrote && isWrite(nr) && int64(out.Ret) >= 0 {
		m.wrote = true
		m.want = wantSeal
	}
	switch m.want {
	case wantSeal:
		return m.sealNow(out.Ret)
	case wantUnseal:
		m.unseal()
	case wantProvoke:
		return m.startProvoke(out.Ret)
	}
	a := vcpu.Answer{Kind: vcpu.AnswerRAX, RAX: out.Ret}
	if m.sregsDirty {
		x.Load(nil, m.sregs)
		a.Kind = vcpu.AnswerSregs
	}
	return a
}

// isWrite: write, pwrite64, writev, pwritev, pwritev2, sendfile.
func isWrite(nr uint64) bool {
	switch nr {
	case 1, 18, 20, 296, 328, 40:
		return true
	}
	return false
}

// end records how the run ended; the first record counts.
func (m *Machine) end(r Result) vcpu.Answer {
	m.setResult(r)
	return vcpu.Answer{Kind: vcpu.AnswerEnd}
}

func (m *Machine) broken(why string) vcpu.Answer {
	return m.end(Result{Ended: "error", Reason: why})
}

func (m *Machine) setResult(r Result) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.result == nil {
		m.result = &r
	}
}
