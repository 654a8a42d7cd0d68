package linux

import (
	"golang.org/x/sys/unix"
)

func sysRtSigaction(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
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
		act.flags &= saKnown
		k.setHandler(sig, act.handler)
		k.sig.action[sig] = act
		// POSIX: setting "ignore" discards what is pending, blocked or not.
		if k.ignores(sig) {
			k.discard(sigBit(sig))
		}
	}
	if a[2] != 0 {
		return 0, put(k, a[2], &old)
	}
	return 0, 0
}

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
		switch int32(a[0]) {
		case unix.SIG_BLOCK:
			set |= t.mask
		case unix.SIG_UNBLOCK:
			set = t.mask &^ set
		case unix.SIG_SETMASK:
		default:
			return 0, unix.EINVAL
		}
		k.setMask(t, set)
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
	pending := k.pendingFor(t) & t.mask
	return 0, k.copyOut(a[0], bytesOf(&pending)[:a[1]])
}

func sysSigaltstack(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	var ss sigaltstack
	if a[0] != 0 {
		if errno := get(k, a[0], &ss); errno != 0 {
			return 0, errno
		}
	}
	sp := t.CPU.Registers().RSP
	old := sigaltstack{sp: t.altSP.sp, flags: t.altSP.mode(sp) | t.altSP.flags&ssAutodisarm, size: t.altSP.size}
	if a[0] != 0 {
		if errno := t.setAltStack(ss, sp); errno != 0 {
			return 0, errno
		}
	}
	if a[1] != 0 {
		return 0, put(k, a[1], &old)
	}
	return 0, 0
}

// send is the end of every call that sends: to thread t alone, or to the process if shared. Signal 0 only asks.
func (k *Kernel) send(t *Task, shared bool, info siginfo) unix.Errno {
	sig := uint64(uint32(info.signo))
	switch {
	case t == nil:
		return unix.ESRCH
	case sig > maxSignal:
		return unix.EINVAL
	case sig == 0:
		return 0
	}
	return k.post(sigEntry{sig: sig, info: info}, t, shared)
}

func sysKill(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	var to *Task
	switch pid := int(int32(a[0])); {
	case pid == k.cfg.PID, pid == 0, pid == -k.proc.pgid && pid != -1:
		// Others in the process group are the host's, which the guest does not see. -1 is all others.
		to = k.leader()
	case pid > 0:
		to = k.task(uint64(pid)) // the process of that thread
	}
	return 0, k.send(to, true, k.sentInfo(a[1], siUser))
}

func sysTkill(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if int32(a[0]) <= 0 {
		return 0, unix.EINVAL
	}
	return 0, k.send(k.task(a[0]), false, k.sentInfo(a[1], siTkill))
}

func sysTgkill(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	if int32(a[0]) <= 0 || int32(a[1]) <= 0 {
		return 0, unix.EINVAL
	}
	if int(int32(a[0])) != k.cfg.PID {
		return 0, unix.ESRCH
	}
	return sysTkill(k, t, args{a[1], a[2]})
}

// forged says whether info claims to be from the kernel or from kill, which t may say only to itself.
func forged(info *siginfo, t *Task, pid uint64) bool {
	return (info.code >= 0 || info.code == siTkill) && t.ID != int(int32(pid))
}

func sysRtSigqueueinfo(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	info, errno := k.givenInfo(a[1], a[2])
	if errno != 0 {
		return 0, errno
	}
	if forged(&info, t, a[0]) {
		return 0, unix.EPERM
	}
	var to *Task
	if int32(a[0]) > 0 {
		to = k.task(a[0])
	}
	if to == nil && int(int32(a[0])) == k.cfg.PID {
		to = k.leader() // its first thread has ended
	}
	return 0, k.send(to, true, info)
}

func sysRtTgsigqueueinfo(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	info, errno := k.givenInfo(a[2], a[3])
	switch {
	case errno != 0:
		return 0, errno
	case int32(a[0]) <= 0 || int32(a[1]) <= 0:
		return 0, unix.EINVAL
	case forged(&info, t, a[1]):
		return 0, unix.EPERM
	case int(int32(a[0])) != k.cfg.PID:
		return 0, unix.ESRCH
	}
	return 0, k.send(k.task(a[1]), false, info)
}
