package vmm

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/guest/linux"
	"github.com/cloister-vmm/cloister/guest/stub"
	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/vcpu"
	"golang.org/x/sys/unix"
)

// Serve answers one exit (vcpu.Handler). A fault while touching guest memory, such as a shared file that
// shrank, is the guest's EFAULT; anything else that panics ends the run with one line.
func (p *processor) Serve(x *vcpu.Exit) (a vcpu.Answer) {
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
		a = p.broken(fmt.Sprintf("serving %v %d: %v", x.Cause, x.Nr, r))
	}()
	p.x, p.sregs, p.sregsDirty, p.haveRegs = x, nil, false, false
	p.setAux(x.SetMSR)
	switch x.Cause {
	case breaks.Syscall, breaks.Seal, breaks.End:
		return p.syscall(x)
	case breaks.Signal:
		return p.attend(x)
	case breaks.Setup:
		return p.routineDone()
	case breaks.PIO:
		if p.routine != nil && x.Nr == abi.DiagPort {
			return resume
		}
		return p.fault(x, unix.SIGSEGV, 13)
	case breaks.MMIO:
		if gpa, _ := x.MMIO(); p.routine != nil && gpa == abi.MMIOHole {
			return resume
		}
		return p.fault(x, unix.SIGBUS, -1)
	case breaks.HLT:
		if p.routine != nil {
			return resume
		}
		return p.fault(x, unix.SIGSEGV, 13)
	case breaks.MemoryFault:
		return p.fault(x, unix.SIGBUS, -1)
	case breaks.Debug:
		return p.fault(x, unix.SIGTRAP, 1)
	case breaks.Shutdown, breaks.InternalError, breaks.Unknown:
		reason, detail := x.Reason()
		return p.broken(fmt.Sprintf("KVM left the guest for good: %v: exit reason %d (%#x %#x), %v, at guest address %#x", x.Cause, reason, detail[0], detail[1], x.Errno, x.RIP))
	}
	return p.exception(x)
}

var resume = vcpu.Answer{Kind: vcpu.AnswerResume}

func fail(e unix.Errno) uint64 { return -uint64(e) }

func (p *processor) syscall(x *vcpu.Exit) vcpu.Answer {
	r, m := x.Regs(), p.m
	nr := uint64(uint32(r.RAX)) // entry_SYSCALL_64 takes EAX
	p.want = wantNothing
	if p.ring != nil {
		p.ring.byExit.Store(false) // ORDER(none): advice; no call is on the ring now
	}
	out := m.kernel.Syscall(p.task, nr, [6]uint64{r.RDI, r.RSI, r.RDX, r.R10, r.R8, r.R9})
	if out.Kind != linux.Return {
		return p.outcome(out)
	}
	if m.cfg.Seal == SealFirstWrite && p == m.main && !p.wrote && isWrite(nr) && int64(out.Ret) >= 0 {
		p.wrote = true
		p.want = wantSeal
	}
	if p.want == wantSeal && m.cfg.MaySeal != nil {
		// Out of the kernel's lock: other threads go on while somebody looks at the core.
		if err := m.cfg.MaySeal(p.id, m.over); err != nil {
			p.want = wantNothing
			if nr == abi.SysIsolate {
				out.Ret = fail(unix.EAGAIN)
			}
		}
	}
	switch p.want {
	case wantSeal:
		return p.sealNow(out.Ret)
	case wantUnseal:
		p.unseal()
	case wantProvoke:
		return p.startProvoke(out.Ret)
	case wantSafePoint:
		p.waitSafe()
	}
	if p.ledger.Sealed != 0 && p.wantsRing() { // sealed from the start: this is the first call
		if err := p.openRing(); err != nil {
			return p.broken("--syscalls=ring: " + err.Error())
		}
	}
	a := vcpu.Answer{Kind: vcpu.AnswerRAX, RAX: out.Ret}
	if p.sregsDirty {
		x.Load(nil, p.sregs)
		a.Kind = vcpu.AnswerSregs
	}
	return a
}

// outcome is the answer to what the kernel says of a task, but for a plain result.
func (p *processor) outcome(out linux.Outcome) vcpu.Answer {
	switch out.Kind {
	case linux.Exit:
		return p.end(Result{Code: int(out.Value), Ended: "exit"})
	case linux.Kill:
		return p.end(Result{Signal: int(out.Value), Ended: "signal"})
	case linux.ExitThread:
		return p.threadExit()
	case linux.Resume:
		return p.enterProgram()
	case linux.Continue:
		return resume
	case linux.Return, linux.Interrupted:
	}
	return vcpu.Answer{Kind: vcpu.AnswerEnd} // only the end of the run interrupts
}

// enterProgram is the answer by which the program goes on with the registers in p.regs, wherever the vCPU stands.
func (p *processor) enterProgram() vcpu.Answer {
	s := p.fetch()
	s.CS, s.SS = userCS, userSS
	regs := kvm.Regs(*p.Registers())
	if regs.RIP >= 1<<47 { // a processor refuses to enter there; natively it is a fault at the return
		return p.end(Result{Signal: int(unix.SIGSEGV), Ended: "signal"})
	}
	regs.RFLAGS = regs.RFLAGS&rflagsKeep | rflagsUser
	p.x.Load(&regs, s)
	return vcpu.Answer{Kind: vcpu.AnswerState}
}

// attend serves a vCPU that was taken out of the guest for a signal. Where it stands in one of our own routines, or
// between an exception and its OUT, the signal waits for the exit that is about to come.
func (p *processor) attend(x *vcpu.Exit) vcpu.Answer {
	r := x.Regs()
	switch {
	case p.routine != nil:
		p.later = true
		return resume
	case r.RIP-stub.Exception < abi.Page:
		return resume
	case p.inRing(r.RIP):
		if !p.attendRing(r.RIP) {
			return resume
		}
	case r.RIP == stub.SyscallEntry && x.InGuest():
		// SYSCALL was executed and its OUT was not: it is executed again.
		p.regs, p.haveRegs = linux.Registers(*r), true
		p.regs.RIP, p.regs.RFLAGS = r.RCX-2, r.R11
	case r.RIP == stub.SyscallEntry, r.RIP == stub.SyscallEntry+2:
		// The call has its result, and SYSRET is still to come.
		p.regs, p.haveRegs = linux.Registers(*r), true
		p.regs.RIP, p.regs.RFLAGS = r.RCX, r.R11
	}
	return p.outcome(p.m.kernel.Attend(p.task))
}

// isWrite: write, pwrite64, writev, pwritev, pwritev2, sendfile.
func isWrite(nr uint64) bool {
	switch nr {
	case 1, 18, 20, 296, 328, 40:
		return true
	}
	return false
}

// end records how the run ended, for all its threads; the first record counts.
func (p *processor) end(r Result) vcpu.Answer {
	p.m.setResult(r)
	p.m.endOthers()
	return vcpu.Answer{Kind: vcpu.AnswerEnd}
}

func (p *processor) broken(why string) vcpu.Answer {
	return p.end(Result{Ended: "error", Reason: why})
}

// setResult has the first result count.
func (m *Machine) setResult(r Result) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.result == nil {
		m.result = &r
	}
}
