package linux

import (
	"fmt"
	"math/bits"

	"golang.org/x/sys/unix"
)

// Signals are recorded with the kernel's own checks. Delivery to a handler is not here yet: such a
// signal stays pending. Default actions are: ignore, or end the program by a Kill outcome.

const (
	sigDFL, sigIGN = 0, 1
	maxSignal      = 64
	ssOnStack      = 1       // SS_ONSTACK
	ssDisable      = 2       // SS_DISABLE
	ssAutodisarm   = 1 << 31 // SS_AUTODISARM
	minSigStack    = 2048    // MINSIGSTKSZ of x86-64
)

// unblockable are SIGKILL and SIGSTOP.
const unblockable = 1<<(unix.SIGKILL-1) | 1<<(unix.SIGSTOP-1)

// sigaction is struct kernel_sigaction of x86-64 (arch/x86/include/uapi/asm/signal.h).
type sigaction struct {
	handler, flags uint64
	restorer       uint64 //lint:ignore U1000 copied in and out with the rest; delivery will use it
	mask           uint64
}

// sigaltstack is stack_t of x86-64.
type sigaltstack struct {
	sp    uint64
	flags uint32
	_     uint32
	size  uint64
}

type signalState struct {
	action  [maxSignal + 1]sigaction
	pending uint64 // of the process and of its only thread
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

func defaultStops(sig uint64) bool {
	switch unix.Signal(sig) {
	case unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU:
		return true
	}
	return false
}

// raise makes sig pending for t, unless it is ignored.
func (k *Kernel) raise(t *Task, sig unix.Signal) {
	n := uint64(sig)
	h := k.sig.action[n].handler
	if h == sigIGN || h == sigDFL && defaultIgnored(n) {
		if t.mask&sigBit(n) == 0 {
			return
		}
	}
	k.sig.pending |= sigBit(n)
}

// signalled says whether a signal waits that t has to act on now.
func (k *Kernel) signalled(t *Task) bool {
	for ready := k.sig.pending &^ (t.mask &^ unblockable); ready != 0; ready &= ready - 1 {
		sig := uint64(bits.TrailingZeros64(ready)) + 1
		switch h := k.sig.action[sig].handler; {
		case h == sigIGN || h == sigDFL && defaultIgnored(sig):
			k.sig.pending &^= sigBit(sig)
		case h == sigDFL && defaultStops(sig):
			k.sig.pending &^= sigBit(sig)
			k.warn(fmt.Sprintf("%s: stopping a guest by a signal is not served: ignored", unix.SignalName(unix.Signal(sig))))
		case h == sigDFL:
			return true
		default:
			k.warn(fmt.Sprintf("signal %d: handlers are not run yet: it stays pending", sig))
		}
	}
	return false
}

// returning is a system call that is about to return.
type returning struct {
	nr    uint64
	a     args
	ret   uint64
	errno unix.Errno
}

// act acts on the signals that wait for t. It reports true when it has set all of t's registers, so that the
// call, if there is one, must not.
func (k *Kernel) act(t *Task, _ *returning) bool {
	for ready := k.sig.pending &^ (t.mask &^ unblockable); ready != 0; ready &= ready - 1 {
		sig := uint64(bits.TrailingZeros64(ready)) + 1
		if k.sig.action[sig].handler == sigDFL {
			k.sig.pending &^= sigBit(sig)
			t.done = &Outcome{Kind: Kill, Value: sig}
			return false
		}
	}
	return t.resumed
}

func sysRtSigaction(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	sig := uint64(uint32(a[0]))
	if a[3] != 8 {
		return 0, unix.EINVAL
	}
	var act sigaction
	if a[1] != 0 {
		if errno := get(k, a[1], &act); errno != 0 {
			return 0, errno
		}
	}
	if sig < 1 || sig > maxSignal || a[1] != 0 && unblockable&sigBit(sig) != 0 {
		return 0, unix.EINVAL
	}
	old := k.sig.action[sig]
	if a[1] != 0 {
		act.mask &^= unblockable
		act.flags &= knownSaFlags
		k.sig.action[sig] = act
		// POSIX: setting "ignore" discards what is pending, blocked or not.
		if act.handler == sigIGN || act.handler == sigDFL && defaultIgnored(sig) {
			k.sig.pending &^= sigBit(sig)
		}
	}
	if a[2] != 0 {
		return 0, put(k, a[2], &old)
	}
	return 0, 0
}

// knownSaFlags is UAPI_SA_FLAGS with SA_RESTORER (include/linux/signal_types.h): the kernel clears the
// other bits, so that programs can probe them.
const knownSaFlags = 0x1 | 0x2 | 0x4 | 0x8000000 | 0x10000000 | 0x40000000 | 0x80000000 | 0x800 | 0x4000000

func sysRtSigprocmask(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	if a[3] != 8 {
		return 0, unix.EINVAL
	}
	old := t.mask
	if a[1] != 0 {
		set, errno := k.load64(a[1])
		if errno != 0 {
			return 0, errno
		}
		set &^= unblockable
		switch int32(a[0]) {
		case unix.SIG_BLOCK:
			t.mask |= set
		case unix.SIG_UNBLOCK:
			t.mask &^= set
		case unix.SIG_SETMASK:
			t.mask = set
		default:
			return 0, unix.EINVAL
		}
	}
	if a[2] != 0 {
		return 0, k.store64(a[2], old)
	}
	return 0, 0
}

func sysRtSigpending(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	if a[1] > 8 {
		return 0, unix.EINVAL
	}
	pending := k.sig.pending & t.mask
	return 0, k.copyOut(a[0], bytesOf(&pending)[:a[1]])
}

func sysSigaltstack(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	var ss sigaltstack
	if a[0] != 0 {
		if errno := get(k, a[0], &ss); errno != 0 {
			return 0, errno
		}
	}
	old := t.altSP
	if a[0] != 0 {
		switch mode := ss.flags &^ ssAutodisarm; mode {
		case ssDisable:
			ss.sp, ss.size = 0, 0
		case 0, ssOnStack:
			if ss.size < minSigStack {
				return 0, unix.ENOMEM
			}
		default:
			return 0, unix.EINVAL
		}
		t.altSP = ss
	}
	if a[1] != 0 {
		old.flags &= ssDisable | ssAutodisarm
		return 0, put(k, a[1], &old)
	}
	return 0, 0
}

// send is the check and the effect of kill, tkill and tgkill once the target is known to be us.
func (k *Kernel) send(t *Task, sig uint64) unix.Errno {
	if sig > maxSignal {
		return unix.EINVAL
	}
	if sig != 0 {
		k.raise(t, unix.Signal(sig))
	}
	return 0
}

func sysKill(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	sig := uint64(uint32(a[1]))
	if sig > maxSignal {
		return 0, unix.EINVAL
	}
	switch pid := int(int32(a[0])); {
	case pid == k.cfg.PID, pid == 0, pid == -k.proc.pgid && pid != -1:
		// Others in the process group are the host's, which the guest does not see. -1 is all others.
		return 0, k.send(t, sig)
	}
	return 0, unix.ESRCH
}

func sysTkill(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	tid, sig := int(int32(a[0])), uint64(uint32(a[1]))
	if tid <= 0 || sig > maxSignal {
		return 0, unix.EINVAL
	}
	if tid != t.ID {
		return 0, unix.ESRCH
	}
	return 0, k.send(t, sig)
}

func sysTgkill(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	if int32(a[0]) <= 0 || int32(a[1]) <= 0 || uint32(a[2]) > maxSignal {
		return 0, unix.EINVAL
	}
	if int(int32(a[0])) != k.cfg.PID {
		return 0, unix.ESRCH
	}
	return sysTkill(k, t, args{a[1], a[2]})
}

func sysRtSigqueueinfo(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	var info [128]byte
	if errno := k.copyIn(a[2], info[:]); errno != 0 {
		return 0, errno
	}
	return sysKill(k, t, a)
}

func sysRtTgsigqueueinfo(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	var info [128]byte
	if errno := k.copyIn(a[3], info[:]); errno != 0 {
		return 0, errno
	}
	return sysTgkill(k, t, a)
}

// sysPause and sysRtSigsuspend wait for a signal that only the program itself could send: until the
// VMM stops them.
func sysPause(k *Kernel, t *Task, _ args) (uint64, unix.Errno) {
	k.warn("pause: no signal reaches a guest from outside yet: it waits until it is stopped")
	_, errno := k.ppoll(nil, t.deadline)
	return 0, errno
}

func sysRtSigsuspend(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	if a[1] != 8 {
		return 0, unix.EINVAL
	}
	set, errno := k.load64(a[0])
	if errno != 0 {
		return 0, errno
	}
	old := t.mask
	t.mask = set &^ unblockable
	_, errno = sysPause(k, t, a)
	t.mask = old
	return 0, errno
}

// sysRtSigtimedwait takes a pending signal of the set, or waits for one until the time is up.
func sysRtSigtimedwait(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	if a[3] != 8 {
		return 0, unix.EINVAL
	}
	set, errno := k.load64(a[0])
	if errno != 0 {
		return 0, errno
	}
	deadline, errno := k.timeout(t, a[2])
	if errno != 0 {
		return 0, errno
	}
	for sig := uint64(1); sig <= maxSignal; sig++ {
		if k.sig.pending&set&^unblockable&sigBit(sig) == 0 {
			continue
		}
		k.sig.pending &^= sigBit(sig)
		if a[1] != 0 {
			info := [32]uint32{0: uint32(sig), 4: uint32(k.cfg.PID), 5: uint32(k.proc.uid)} // SI_USER
			if errno := put(k, a[1], &info); errno != 0 {
				return 0, errno
			}
		}
		return sig, 0
	}
	if _, errno := k.ppoll(nil, deadline); errno != 0 {
		return 0, errno
	}
	return 0, unix.EAGAIN
}
