package linux

import (
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	sigDFL, sigIGN = 0, 1
	maxSignal      = 64
	firstRealTime  = 32 // SIGRTMIN of the kernel: from here on signals queue
)

// sa_flags (include/uapi/asm-generic/signal-defs.h, arch/x86/include/uapi/asm/signal.h).
const (
	saSiginfo  = 0x4
	saRestorer = 0x4000000
	saOnStack  = 0x8000000
	saRestart  = 0x10000000
	saNoDefer  = 0x40000000
	saOneShot  = 0x80000000
	// saKnown is UAPI_SA_FLAGS with SA_RESTORER (include/linux/signal_types.h): the kernel clears the other bits, so
	// that programs can probe them. 0x1 is SA_NOCLDSTOP, 0x2 SA_NOCLDWAIT, 0x800 SA_EXPOSE_TAGBITS.
	saKnown = 0x1 | 0x2 | 0x800 | saSiginfo | saRestorer | saOnStack | saRestart | saNoDefer | saOneShot
)

// unblockable are SIGKILL and SIGSTOP, stopping all signals that stop by default.
const (
	unblockable = 1<<(unix.SIGKILL-1) | 1<<(unix.SIGSTOP-1)
	stopping    = 1<<(unix.SIGSTOP-1) | 1<<(unix.SIGTSTP-1) | 1<<(unix.SIGTTIN-1) | 1<<(unix.SIGTTOU-1)
)

// sigaction is struct kernel_sigaction of x86-64 (arch/x86/include/uapi/asm/signal.h).
type sigaction struct {
	handler, flags, restorer, mask uint64
}

type signalState struct {
	action [maxSignal + 1]sigaction
	shared sigQueue // of the process: whoever does not block it takes it
	queued uint64   // entries in all queues, which RLIMIT_SIGPENDING bounds
	// SIGCONTs that were sent where the process went on, and that the host's signal still brings.
	continued int
	fds       []*description // the signalfds
}

func sigBit(sig uint64) uint64 { return 1 << (sig - 1) }

// defaultIgnored and defaultStops: signal(7), "Standard signals".
func defaultIgnored(sig uint64) bool {
	switch unix.Signal(sig) {
	case unix.SIGCHLD, unix.SIGURG, unix.SIGWINCH, unix.SIGCONT:
		return true
	}
	return false
}

func defaultStops(sig uint64) bool { return stopping&sigBit(sig) != 0 }

// ignores says whether an unblocked sig has no effect.
func (k *Kernel) ignores(sig uint64) bool {
	h := k.sig.action[sig].handler
	return h == sigIGN || h == sigDFL && defaultIgnored(sig)
}

// raise sends t a signal that its own call caused.
func (k *Kernel) raise(t *Task, sig unix.Signal) {
	// Sent by the kernel, it shows the sender as kill does (SEND_SIG_NOINFO), and can always be sent.
	_ = k.post(sigEntry{sig: uint64(sig), info: k.sentInfo(uint64(sig), siUser)}, t, false)
}

// post makes a signal pending: for t alone or for the process (shared), where t is the one to have it if it can. EAGAIN
// when it has to be queued and the queue is full.
func (k *Kernel) post(e sigEntry, t *Task, shared bool) unix.Errno {
	if t == nil {
		return 0 // every task has ended
	}
	bit := sigBit(e.sig)
	switch {
	case stopping&bit != 0:
		k.discard(sigBit(uint64(unix.SIGCONT)))
	case e.sig == uint64(unix.SIGCONT):
		k.discard(stopping)
	}
	if k.ignores(e.sig) && (t.mask|t.waits)&bit == 0 {
		return 0
	}
	q := &t.pending
	if shared {
		q = &k.sig.shared
	}
	if e.timer == nil {
		standard := e.sig < firstRealTime
		full := k.sig.queued >= min(k.lim.r[unix.RLIMIT_SIGPENDING].Cur, maxQueued)
		switch {
		case standard && q.set&bit != 0:
			return 0
		case full && !standard && e.info.code != siUser:
			return unix.EAGAIN
		case full && (!standard || e.info.code < 0):
			q.set |= bit // it comes, without its siginfo
			k.awaken(e.sig, t, shared)
			return 0
		}
	}
	if e.timer != nil {
		e.timer.waiting = true
	}
	q.add(e)
	k.sig.queued++
	k.awaken(e.sig, t, shared)
	return 0
}

// maxQueued bounds the queues where RLIMIT_SIGPENDING does not.
const maxQueued = 1 << 16

// awaken tells a task that takes sig, t first (kernel/signal.c: complete_signal); all that take it if it ends the program.
func (k *Kernel) awaken(sig uint64, t *Task, shared bool) {
	k.levelSignalFDs()
	takes := func(t *Task) bool { return (t.mask&^unblockable&^t.waits)&sigBit(sig) == 0 }
	fatal := k.sig.action[sig].handler == sigDFL && !defaultStops(sig)
	if takes(t) {
		k.tell(t)
		if !fatal {
			return
		}
	}
	for _, other := range k.tasks {
		if shared && other != t && takes(other) {
			k.tell(other)
			if !fatal {
				return
			}
		}
	}
}

// tell makes t look at its signals. A task that was not told leaves those of the process to the one that was.
func (k *Kernel) tell(t *Task) {
	t.told = true
	k.notify(t)
}

// leader is the task that signals of the process go to first.
func (k *Kernel) leader() *Task {
	for _, t := range k.tasks {
		if t.ID == k.cfg.PID {
			return t
		}
	}
	if len(k.tasks) > 0 {
		return k.tasks[0]
	}
	return nil
}

// discard drops what is pending of set, everywhere.
func (k *Kernel) discard(set uint64) {
	k.discardFrom(&k.sig.shared, set)
	for _, t := range k.tasks {
		k.discardFrom(&t.pending, set)
	}
	k.levelSignalFDs()
}

func (k *Kernel) discardFrom(q *sigQueue, set uint64) {
	for set &= q.set; set != 0; set &= q.set {
		k.takeFrom(q, nextSignal(set))
	}
}

func (k *Kernel) takeFrom(q *sigQueue, sig uint64) sigEntry {
	e, queued := q.take(sig)
	if queued {
		k.sig.queued--
	}
	if e.timer != nil {
		e.timer.taken(k, &e.info)
	}
	if sig == uint64(unix.SIGALRM) {
		k.timers.rearmReal(k)
	}
	return e
}

// dequeue takes the first signal of set that is pending for t.
func (k *Kernel) dequeue(t *Task, set uint64) (sigEntry, bool) {
	q := &t.pending
	if q.set&set == 0 {
		q = &k.sig.shared
	}
	if q.set&set == 0 {
		return sigEntry{}, false
	}
	e := k.takeFrom(q, nextSignal(q.set&set))
	k.levelSignalFDs()
	return e, true
}

func (k *Kernel) pendingFor(t *Task) uint64 { return t.pending.set | k.sig.shared.set }

// setMask blocks exactly set. What was the process's and is now blocked here is another task's to take.
func (k *Kernel) setMask(t *Task, set uint64) {
	set &^= unblockable
	orphans := k.sig.shared.set & set &^ t.mask
	t.mask = set
	t.told = true
	k.retarget(t, orphans)
}

// retarget tells other tasks of signals of the process that t will not take (retarget_shared_pending).
func (k *Kernel) retarget(t *Task, orphans uint64) {
	for _, other := range k.tasks {
		if taken := orphans &^ other.mask; other != t && taken != 0 {
			orphans &^= taken
			k.tell(other)
		}
	}
}

// signalled says whether a signal waits that t has to act on now: by a handler or by ending the program. What it does not
// have to act on is dropped.
func (k *Kernel) signalled(t *Task) bool {
	for t.told {
		ready := k.pendingFor(t) &^ (t.mask &^ unblockable)
		if ready == 0 {
			t.told = false
			break
		}
		// All of them are looked at, not only the first one: a stop signal may hide a handler's.
		var idle uint64
		for set := ready; set != 0; set &= set - 1 {
			if sig := nextLowest(set); k.ignores(sig) || k.sig.action[sig].handler == sigDFL && defaultStops(sig) {
				idle |= sigBit(sig)
			}
		}
		if idle == 0 {
			return true
		}
		e, _ := k.dequeue(t, idle)
		switch {
		case k.ignores(e.sig):
		case k.cfg.Stop != nil:
			k.stop(unix.Signal(e.sig))
		default:
			k.warn(fmt.Sprintf("%s: stopping a guest by a signal is not served: ignored", unix.SignalName(unix.Signal(e.sig))))
		}
	}
	return false
}

// stop stops the whole process. A handler of SIGCONT runs before the program goes on, so the signal is sent here; the one
// that the host's brings (Raise) is the same.
func (k *Kernel) stop(sig unix.Signal) {
	k.cfg.Stop(sig)
	if n := uint64(unix.SIGCONT); k.sig.action[n].handler > sigIGN {
		k.sig.continued++
		_ = k.post(sigEntry{sig: n, info: kernelInfo(n)}, k.leader(), true) // a standard signal of the kernel's can always be sent
	}
}

// setHandler changes what the program does on sig.
func (k *Kernel) setHandler(sig, handler uint64) {
	a := &k.sig.action[sig]
	kind := func(h uint64) uint64 { return min(h, sigIGN+1) }
	changed := kind(a.handler) != kind(handler)
	a.handler = handler
	if changed && k.cfg.Dispose != nil {
		k.cfg.Dispose(unix.Signal(sig), handler > sigIGN, handler == sigIGN)
	}
}

// returning is a system call that is about to return.
type returning struct {
	nr    uint64
	a     args
	ret   uint64
	errno unix.Errno
	once  bool // it is not made again, whatever the handler asks for
}

// act acts on the signals that wait for t. It reports true when it has set all of t's registers, so that the
// call, if there is one, must not.
func (k *Kernel) act(t *Task, r *returning) bool {
	regs := t.CPU.Registers()
	set := t.resumed
	if t.resumed {
		r = nil // it has set its registers itself
	}
	t.resumed = false
	for {
		for k.signalled(t) {
			e, _ := k.dequeue(t, ^(t.mask &^ unblockable))
			action := &k.sig.action[e.sig]
			if action.handler == sigDFL {
				t.done = &Outcome{Kind: Kill, Value: e.sig}
				return false
			}
			now := *action
			if action.flags&saOneShot != 0 {
				k.setHandler(e.sig, sigDFL)
			}
			if r != nil {
				r.settle(regs, now.flags&saRestart != 0)
				r = nil
			}
			set = true
			if !k.enter(t, regs, &e, &now) {
				k.force(t, kernelInfo(uint64(unix.SIGSEGV)), e.sig == uint64(unix.SIGSEGV))
			}
		}
		if !set || canonical(regs.RIP) {
			return set
		}
		// Natively the return to the program faults: #GP, as from an instruction of its own.
		t.trap.vector, t.trap.err = trapGP, 0
		k.force(t, kernelInfo(uint64(unix.SIGSEGV)), false)
	}
}

// settle leaves the result of a call in the registers as the handler's frame has to hold them.
func (r *returning) settle(regs *Registers, restart bool) {
	regs.RCX, regs.R11 = regs.RIP, regs.RFLAGS // what SYSCALL itself leaves there
	switch class := restartClass(r.nr, r.a); {
	case r.errno == 0:
		regs.RAX = r.ret
	case r.errno != eRestart:
		regs.RAX = negate(r.errno)
	case class == restartAlways || class == restartIfAsked && restart && !r.once:
		regs.RAX = r.nr
		regs.RIP -= 2
	default:
		regs.RAX = negate(unix.EINTR)
	}
}

// force sends t a signal that it cannot avoid: the default action takes the place of "ignored" and of a handler that is
// blocked (kernel/signal.c: force_sig_info_to_task). fatal: it must not be handled at all.
func (k *Kernel) force(t *Task, info siginfo, fatal bool) {
	sig := uint64(info.signo)
	if a := &k.sig.action[sig]; fatal || t.mask&sigBit(sig) != 0 || a.handler == sigIGN {
		k.setHandler(sig, sigDFL)
		t.mask &^= sigBit(sig)
	}
	_ = k.post(sigEntry{sig: sig, info: info}, t, false) // a standard signal of the kernel's can always be sent
}

// Fault is an exception that an instruction of the program raised.
type Fault struct {
	// Signal, Code and Addr are si_signo, si_code and si_addr; Signal is a standard one.
	Signal unix.Signal
	Code   int32
	Addr   uint64
	// Trap is the vector (Intel SDM vol. 3, table 6-1) and Err the error code of the exception.
	Trap uint64
	Err  uint64
}

const trapGP, trapPF = 13, 14

// trapState is what sigcontext says of the last exception of a task.
type trapState struct{ vector, err, cr2 uint64 }

// Fault delivers an exception of t's program. CPU.Registers are those of the instruction that raised it.
func (k *Kernel) Fault(t *Task, f Fault) Outcome {
	k.big.Lock()
	defer k.big.Unlock()
	return k.serve(t, func() Outcome {
		t.trap.vector, t.trap.err = f.Trap, f.Err
		if f.Trap == trapPF {
			t.trap.cr2 = f.Addr
		}
		info := siginfo{signo: int32(f.Signal), code: f.Code}
		copy(info.fields[:8], bytesOf(&f.Addr))
		k.force(t, info, false)
		if !k.act(t, nil) {
			return Outcome{Kind: Continue}
		}
		return Outcome{Kind: Resume}
	})
}

// Raise offers the program a signal from outside. It reports whether it is the program's: handled, blocked or ignored. If
// not, nothing has happened and the default action is the caller's to carry out.
func (k *Kernel) Raise(sig int) bool {
	k.big.Lock()
	defer k.big.Unlock()
	n := uint64(sig)
	if sig < 1 || sig > maxSignal || unblockable&sigBit(n) != 0 || k.over || len(k.tasks) == 0 {
		return false
	}
	if unix.Signal(sig) == unix.SIGCONT && k.sig.continued > 0 {
		k.sig.continued--
		return true
	}
	if k.sig.action[n].handler == sigDFL && !defaultIgnored(n) {
		for _, t := range k.tasks {
			if (t.mask|t.waits)&sigBit(n) == 0 {
				return false
			}
		}
	}
	return k.post(sigEntry{sig: n, info: kernelInfo(n)}, k.leader(), true) == 0
}
