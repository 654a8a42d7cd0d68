package linux

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// MaxTasks is how many guest threads may live at a time. Each has a vCPU.
const MaxTasks = 64

// cloneThread are the flags that a thread has: it shares what a process has one of.
const cloneThread = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD

// cloneKnown are the flags that a thread may have: those above, what is done below, and what changes nothing here.
const cloneKnown = cloneThread | unix.CLONE_SYSVSEM | unix.CLONE_SETTLS | unix.CLONE_PARENT_SETTID |
	unix.CLONE_CHILD_CLEARTID | unix.CLONE_CHILD_SETTID | unix.CLONE_DETACHED | unix.CLONE_IO | unix.CLONE_PTRACE | unix.CLONE_UNTRACED |
	unix.CLONE_PARENT

// cloneArgs is struct clone_args (include/uapi/linux/sched.h), CLONE_ARGS_SIZE_VER2.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// sysClone is clone(2) with the arguments in x86-64's order.
func sysClone(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	const csignal = 0xff // CSIGNAL: the low byte is the signal at exit, which a thread does not send
	flags := uint64(uint32(a[0]))
	return k.clone(t, cloneArgs{flags: flags &^ csignal, exitSignal: flags & csignal, stack: a[1], pidfd: a[2], parentTID: a[2], childTID: a[3], tls: a[4]})
}

func sysClone3(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	const least = 64 // CLONE_ARGS_SIZE_VER0
	var c cloneArgs
	size := uint64(len(bytesOf(&c)))
	switch {
	case a[1] > 4096:
		return 0, unix.E2BIG
	case a[1] < least:
		return 0, unix.EINVAL
	}
	raw := make([]byte, max(a[1], size))
	if errno := k.copyIn(a[0], raw[:a[1]]); errno != 0 {
		return 0, errno
	}
	if slices.ContainsFunc(raw[size:], func(b byte) bool { return b != 0 }) {
		return 0, unix.E2BIG
	}
	copy(bytesOf(&c), raw)
	const intoCgroup, fullSize = 1 << 33, 88 // CLONE_INTO_CGROUP, CLONE_ARGS_SIZE_VER2
	const maxSetTID = 32                     // MAX_PID_NS_LEVEL
	if c.setTIDSize > maxSetTID || (c.setTID == 0) != (c.setTIDSize == 0) || c.flags&intoCgroup != 0 && (c.cgroup > 1<<31-1 || a[1] < fullSize) {
		return 0, unix.EINVAL
	}
	if errno := k.copyIn(c.setTID, make([]byte, 4*c.setTIDSize)); errno != 0 {
		return 0, errno
	}
	switch {
	case c.exitSignal&^0xff != 0 || c.exitSignal > maxSignal || c.flags&(unix.CLONE_DETACHED|0xff) != 0,
		c.flags&(unix.CLONE_THREAD|unix.CLONE_PARENT) != 0 && c.exitSignal != 0,
		(c.stack == 0) != (c.stackSize == 0), !accessOK(c.stack, c.stackSize):
		return 0, unix.EINVAL
	case c.flags&intoCgroup != 0:
		return 0, unix.EBADF // no descriptor of the guest's is a cgroup
	case c.setTIDSize != 0:
		return 0, unix.EPERM // asks for CAP_CHECKPOINT_RESTORE
	}
	c.stack += c.stackSize
	return k.clone(t, c)
}

func (k *Kernel) clone(t *Task, c cloneArgs) (uint64, unix.Errno) {
	switch f := c.flags; {
	case f&unix.CLONE_THREAD != 0 && f&unix.CLONE_SIGHAND == 0, f&unix.CLONE_SIGHAND != 0 && f&unix.CLONE_VM == 0:
		return 0, unix.EINVAL
	case f&unix.CLONE_THREAD == 0:
		k.warn("a second process (fork, vfork, clone without CLONE_THREAD) is not served: a program guest is one process: run the child as a guest of its own")
		return 0, unix.ENOSYS
	case f&unix.CLONE_PIDFD != 0 && (f&unix.CLONE_DETACHED != 0 || f&unix.CLONE_PARENT_SETTID != 0 && c.pidfd == c.parentTID):
		return 0, unix.EINVAL
	case f&unix.CLONE_PIDFD != 0:
		if _, errno := k.mem.Out(c.pidfd, 4); errno != 0 || !accessOK(c.pidfd, 4) {
			return 0, unix.EFAULT
		}
		k.warn("clone: there are no descriptors of threads (CLONE_PIDFD): answered EINVAL, as by Linux before 6.9")
		return 0, unix.EINVAL
	case f&cloneThread != cloneThread || f&^cloneKnown != 0:
		k.warn("clone: a thread that does not share files, directory or signal handlers, or has namespaces of its own, is not served: answered EINVAL")
		return 0, unix.EINVAL
	case len(k.tasks) >= MaxTasks:
		k.warn("clone: 64 threads live: answered EAGAIN, as at a limit of processes")
		return 0, unix.EAGAIN
	case k.cfg.Spawn == nil:
		return 0, unix.EAGAIN
	}
	if c.flags&unix.CLONE_SETTLS != 0 && c.tls >= taskSize {
		return 0, unix.EPERM
	}
	child, errno := k.newTask()
	if errno != 0 {
		return 0, unix.EAGAIN
	}
	child.mask, child.name, child.sched = t.mask, t.name, t.sched
	regs := *t.CPU.Registers()
	regs.RAX = 0
	if c.stack != 0 {
		regs.RSP = c.stack
	}
	fs := c.tls
	if c.flags&unix.CLONE_SETTLS == 0 {
		fs = t.CPU.FSBase()
	}
	if c.flags&unix.CLONE_CHILD_CLEARTID != 0 {
		child.clearTID = c.childTID
	}
	// The kernel ignores what goes wrong here (kernel/fork.c: put_user without a look), and so the child starts.
	if c.flags&unix.CLONE_PARENT_SETTID != 0 {
		_ = k.store32(c.parentTID, uint32(child.ID)) // see above
	}
	if c.flags&unix.CLONE_CHILD_SETTID != 0 {
		_ = k.store32(c.childTID, uint32(child.ID)) // see above
	}
	if errno := k.cfg.Spawn(child, &regs, fs); errno != 0 {
		k.remove(child)
		return 0, errno
	}
	if a := child.sched.affinity; a != nil && k.cfg.CPUOf != nil {
		if i := k.cfg.CPUOf(child); i >= 8*len(a) || a[i/8]&(1<<(i%8)) == 0 {
			child.sched.affinity = nil // the core is its parent's own
		}
	}
	return uint64(child.ID), 0
}

// sysExit ends the calling task; with the last one the program.
func sysExit(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	if t.ID == k.cfg.PID {
		k.proc.status = a[0] & 0xff
	}
	k.passOnAll(t)
	k.releaseRobust(t)
	if t.clearTID != 0 && len(k.tasks) > 1 {
		if k.store32(t.clearTID, 0) == 0 { // else the program has unmapped it: nobody waits there
			k.wakeAt(t.clearTID)
		}
	}
	if k.remove(t) {
		t.done = &Outcome{Kind: Exit, Value: k.proc.status}
	} else {
		t.done = &Outcome{Kind: ExitThread}
	}
	return 0, 0
}

func sysExitGroup(_ *Kernel, t *Task, a args) (uint64, unix.Errno) {
	t.done = &Outcome{Kind: Exit, Value: a[0] & 0xff}
	return 0, 0
}

// releaseRobust marks the robust mutexes that a task holds when it ends, and wakes one waiter of each
// (Documentation/locking/robust-futex-ABI.rst).
func (k *Kernel) releaseRobust(t *Task) {
	if t.robust == 0 {
		return
	}
	const limit = 2048 // ROBUST_LIST_LIMIT: a list that the program has made a circle
	var head [24]byte  // next, offset of the word, the entry being changed
	if k.copyIn(t.robust, head[:]) != 0 {
		return
	}
	next := binary.LittleEndian.Uint64(head[:])
	offset := binary.LittleEndian.Uint64(head[8:])
	pending := binary.LittleEndian.Uint64(head[16:])
	for i := 0; i < limit && next&^1 != t.robust; i++ {
		at := next
		var errno unix.Errno
		if next, errno = k.load64(at &^ 1); errno != 0 {
			return
		}
		if at != pending {
			k.ownerDied(t, at&^1+offset, at&1 != 0, false)
		}
	}
	if pending != 0 {
		k.ownerDied(t, pending&^1+offset, pending&1 != 0, true)
	}
}

// wakeAt wakes one of those who wait on a shared word, as the kernel does when a task ends.
func (k *Kernel) wakeAt(addr uint64) {
	if key, errno := k.futexKey(addr, true); errno == 0 {
		_, _ = k.wakeFutex(key, 1, ^uint32(0)) // EINVAL: they wait to own it, and get it by other ways
	}
}

// ownerDied is handle_futex_death (kernel/futex/core.c). pi: the word has priority inheritance; pending: t had not said yet
// that it has it, or that it has not.
func (k *Kernel) ownerDied(t *Task, addr uint64, pi, pending bool) {
	word, errno := k.futexPointer(addr)
	if errno != 0 {
		return
	}
	for {
		old := word.load()
		switch {
		case pending && !pi && old == 0:
			k.wakeAt(addr) // t has unlocked it, and may not have woken anybody
			return
		case old&futexTID != uint32(t.ID):
			return
		}
		if word.swap(old, old&futexWaiters|futexOwnerDied) {
			if old&futexWaiters != 0 && !pi {
				k.wakeAt(addr)
			}
			return
		}
	}
}
