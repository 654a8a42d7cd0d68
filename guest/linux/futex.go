package linux

import (
	"time"

	"golang.org/x/sys/unix"
)

// Futex operations and the bits of a word (include/uapi/linux/futex.h).
const (
	futexWait, futexWake, futexRequeue, futexCmpRequeue, futexWakeOp = 0, 1, 3, 4, 5
	futexLockPI, futexUnlockPI, futexTrylockPI                       = 6, 7, 8
	futexWaitBitset, futexWakeBitset                                 = 9, 10
	futexWaitRequeuePI, futexCmpRequeuePI, futexLockPI2              = 11, 12, 13
	futexPrivate, futexRealtime                                      = 128, 256

	futexWaiters   = 1 << 31
	futexOwnerDied = 1 << 30
	futexTID       = 1<<30 - 1
)

// waiter is a task that waits on a futex word. Its key is the word's guest address: the process is alone with its
// memory, so private and shared are the same. Waiters of a word stand in the order in which they came.
type waiter struct {
	t      *Task
	addr   uint64
	bitset uint32
	pi     bool // waits to own the word
	woken  bool
}

// sysFutex serves futex(2). The queues are guarded by the kernel's lock: a waiter that has queued itself and then
// finds the word unchanged cannot miss a wake, for whoever changes the word calls here to wake, and has to take the lock.
func sysFutex(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	op := uint32(a[1])
	cmd := op &^ (futexPrivate | futexRealtime)
	if op&futexRealtime != 0 && cmd != futexWait && cmd != futexWaitBitset && cmd != futexLockPI2 && cmd != futexWaitRequeuePI {
		return 0, unix.ENOSYS
	}
	switch cmd {
	case futexWait, futexWaitBitset:
		bitset := uint32(a[5])
		if cmd == futexWait {
			bitset = ^uint32(0)
		}
		deadline, errno := k.futexDeadline(t, a[3], cmd == futexWaitBitset, op&futexRealtime != 0)
		if errno != 0 {
			return 0, errno
		}
		if bitset == 0 {
			return 0, unix.EINVAL
		}
		return 0, k.waitFutex(t, a[0], uint32(a[2]), bitset, deadline)
	case futexWake, futexWakeBitset:
		bitset := uint32(a[5])
		if cmd == futexWake {
			bitset = ^uint32(0)
		}
		if bitset == 0 {
			return 0, unix.EINVAL
		}
		if errno := k.futexWord(a[0], op&futexPrivate == 0); errno != 0 {
			return 0, errno
		}
		return k.wakeFutex(a[0], max(1, int32(a[2])), bitset), 0
	case futexRequeue, futexCmpRequeue:
		return k.requeue(a, cmd == futexCmpRequeue)
	case futexWakeOp:
		return k.wakeOp(a)
	case futexLockPI, futexLockPI2:
		deadline, errno := k.futexDeadline(t, a[3], true, cmd == futexLockPI || op&futexRealtime != 0)
		if errno != 0 {
			return 0, errno
		}
		return 0, k.lockPI(t, a[0], deadline, false)
	case futexTrylockPI:
		return 0, k.lockPI(t, a[0], time.Time{}, true)
	case futexUnlockPI:
		return 0, k.unlockPI(t, a[0])
	}
	k.warn("futex: requeueing to a priority-inheriting word is not served: answered ENOSYS, and C libraries do without")
	return 0, unix.ENOSYS
}

// futexWord checks a futex address: aligned, below the end of user memory and, unless the key is
// the address alone (private), there.
func (k *Kernel) futexWord(addr uint64, touch bool) unix.Errno {
	if addr&3 != 0 {
		return unix.EINVAL
	}
	if !accessOK(addr, 4) {
		return unix.EFAULT
	}
	if touch {
		_, errno := k.load32(addr)
		return errno
	}
	return 0
}

func (k *Kernel) futexDeadline(t *Task, addr uint64, absolute, realtime bool) (time.Time, unix.Errno) {
	if !absolute || addr == 0 {
		return k.timeout(t, addr)
	}
	var ts unix.Timespec
	if errno := get(k, addr, &ts); errno != 0 {
		return time.Time{}, errno
	}
	if !timespecOK(&ts) {
		return time.Time{}, unix.EINVAL
	}
	clock := int32(unix.CLOCK_MONOTONIC)
	if realtime {
		clock = unix.CLOCK_REALTIME
	}
	now, errno := k.clock(clock)
	if errno != 0 {
		return time.Time{}, errno
	}
	return t.until(span(&ts) - span(&now)), 0
}

func (k *Kernel) waitFutex(t *Task, addr uint64, want, bitset uint32, deadline time.Time) unix.Errno {
	if errno := k.futexWord(addr, false); errno != 0 {
		return errno
	}
	v, errno := k.load32(addr)
	if errno != 0 {
		return errno
	}
	if v != want {
		return unix.EAGAIN
	}
	if deadline.IsZero() && len(k.tasks) == 1 {
		k.warn("futex: the only thread waits for another one: it waits until it is stopped")
	}
	w := &waiter{t: t, addr: addr, bitset: bitset}
	return k.waitQueued(w, deadline)
}

// waitQueued queues w and waits until it is woken.
func (k *Kernel) waitQueued(w *waiter, deadline time.Time) unix.Errno {
	k.queue[w.addr] = append(k.queue[w.addr], w)
	_, errno := k.block(nil, deadline, func() bool { return w.woken })
	if w.woken {
		return 0 // also when something else came at the same time: the wake was spent on it
	}
	k.unqueue(w)
	if errno == 0 {
		return unix.ETIMEDOUT
	}
	return errno
}

func (k *Kernel) unqueue(w *waiter) {
	list := k.queue[w.addr]
	for i := range list {
		if list[i] == w {
			k.keep(w.addr, append(list[:i:i], list[i+1:]...))
			return
		}
	}
}

// keep is what is left of the queue of addr.
func (k *Kernel) keep(addr uint64, list []*waiter) {
	if len(list) == 0 {
		delete(k.queue, addr)
		return
	}
	k.queue[addr] = list
}

// wakeFutex wakes at most most waiters of addr that wait for one of bits, and returns how many.
func (k *Kernel) wakeFutex(addr uint64, most int32, bits uint32) (n uint64) {
	var left []*waiter
	for _, w := range k.queue[addr] {
		if int64(n) >= int64(most) || w.pi || w.bitset&bits == 0 {
			left = append(left, w)
			continue
		}
		w.woken = true
		w.t.poke()
		n++
	}
	k.keep(addr, left)
	return n
}

// requeue wakes a[2] waiters of a[0] and lets a[3] more wait on a[4] instead.
func (k *Kernel) requeue(a args, compare bool) (uint64, unix.Errno) {
	if int32(a[2]) < 0 || int32(a[3]) < 0 {
		return 0, unix.EINVAL
	}
	for _, addr := range [2]uint64{a[0], a[4]} {
		if errno := k.futexWord(addr, true); errno != 0 {
			return 0, errno
		}
	}
	if compare {
		if v, errno := k.load32(a[0]); errno != 0 {
			return 0, errno
		} else if v != uint32(a[5]) {
			return 0, unix.EAGAIN
		}
	}
	var n uint64
	if int32(a[2]) > 0 {
		n = k.wakeFutex(a[0], int32(a[2]), ^uint32(0))
	}
	moved := uint64(0)
	if a[0] != a[4] {
		var left []*waiter
		for _, w := range k.queue[a[0]] {
			if moved >= uint64(a[3]&0x7fffffff) || w.pi {
				left = append(left, w)
				continue
			}
			w.addr = a[4]
			k.queue[a[4]] = append(k.queue[a[4]], w)
			moved++
		}
		k.keep(a[0], left)
	}
	if compare {
		return n + moved, 0
	}
	return n, 0
}

// wakeOp changes the word at a[4] as a[5] says, wakes waiters of a[0], and of a[4] if its old value compares.
func (k *Kernel) wakeOp(a args) (uint64, unix.Errno) {
	if errno := k.futexWord(a[0], true); errno != 0 {
		return 0, errno
	}
	code := uint32(a[5])
	op, cmp := code>>28&7, code>>24&15
	// Both arguments are signed numbers of twelve bits.
	arg, cmpArg := uint32(int32(code<<8)>>20), uint32(int32(code<<20)>>20)
	if code>>31 != 0 { // FUTEX_OP_OPARG_SHIFT
		if arg > 31 {
			arg &= 31 // the kernel warns and does the same (kernel/futex/waitwake.c)
		}
		arg = 1 << arg
	}
	word, errno := k.futexPointer(a[4])
	if errno != 0 {
		return 0, errno
	}
	var old uint32
	for {
		old = word.load()
		v := arg
		switch op {
		case 0:
		case 1:
			v = old + arg
		case 2:
			v = old | arg
		case 3:
			v = old &^ arg
		case 4:
			v = old ^ arg
		default:
			return 0, unix.ENOSYS
		}
		if word.swap(old, v) {
			break
		}
	}
	l, r := int32(old), int32(cmpArg)
	var hit bool
	switch cmp {
	case 0:
		hit = l == r
	case 1:
		hit = l != r
	case 2:
		hit = l < r
	case 3:
		hit = l <= r
	case 4:
		hit = l > r
	case 5:
		hit = l >= r
	default:
		return 0, unix.ENOSYS
	}
	n := k.wakeFutex(a[0], max(1, int32(a[2])), ^uint32(0))
	if hit {
		n += k.wakeFutex(a[4], max(1, int32(a[3])), ^uint32(0))
	}
	return n, 0
}

// lockPI takes a priority-inheriting word, whose low bits are its owner's number. The owner's priority is not
// raised: what a task's vCPU has is the run's to decide.
func (k *Kernel) lockPI(t *Task, addr uint64, deadline time.Time, try bool) unix.Errno {
	if errno := k.futexWord(addr, false); errno != 0 {
		return errno
	}
	word, errno := k.futexPointer(addr)
	if errno != 0 {
		return errno
	}
	for {
		old := word.load()
		owner := old & futexTID
		switch {
		case owner == uint32(t.ID):
			return unix.EDEADLK
		case owner == 0:
			if word.swap(old, uint32(t.ID)|old&(futexOwnerDied|futexWaiters)) {
				return 0
			}
			continue
		case try:
			return unix.EAGAIN
		case k.task(uint64(owner)) == nil:
			return unix.ESRCH
		}
		if old&futexWaiters == 0 && !word.swap(old, old|futexWaiters) {
			continue
		}
		return k.waitQueued(&waiter{t: t, addr: addr, pi: true}, deadline)
	}
}

// unlockPI gives the word to the first who waits for it.
func (k *Kernel) unlockPI(t *Task, addr uint64) unix.Errno {
	if errno := k.futexWord(addr, false); errno != 0 {
		return errno
	}
	word, errno := k.futexPointer(addr)
	if errno != 0 {
		return errno
	}
	if word.load()&futexTID != uint32(t.ID) {
		return unix.EPERM
	}
	if !k.passOn(addr, word, 0) {
		word.store(0)
	}
	return 0
}

// passOn gives a priority-inheriting word to the first who waits for it, with bits beside the new owner's number; false:
// nobody waits.
func (k *Kernel) passOn(addr uint64, word futexCell, bits uint32) bool {
	var next *waiter
	for _, w := range k.queue[addr] {
		switch {
		case !w.pi:
		case next == nil:
			next = w
		default:
			bits |= futexWaiters
		}
	}
	if next == nil {
		return false
	}
	word.store(uint32(next.t.ID) | bits)
	k.unqueue(next)
	next.woken = true
	next.t.poke()
	return true
}

// passOnAll gives every priority-inheriting word that t owns, and that somebody waits for, to the next one, as the kernel
// does when a task ends (kernel/futex/core.c: exit_pi_state_list).
func (k *Kernel) passOnAll(t *Task) {
	var owned []uint64
	for addr, list := range k.queue {
		for _, w := range list {
			if w.pi {
				owned = append(owned, addr)
				break
			}
		}
	}
	for _, addr := range owned {
		if word, errno := k.futexPointer(addr); errno == 0 && word.load()&futexTID == uint32(t.ID) {
			k.passOn(addr, word, futexOwnerDied)
		}
	}
}

// futexPointer is the word at addr, to be changed by atomic operations: the program's threads do the same.
func (k *Kernel) futexPointer(addr uint64) (futexCell, unix.Errno) {
	if addr&3 != 0 {
		return futexCell{}, unix.EINVAL
	}
	if !accessOK(addr, 4) {
		return futexCell{}, unix.EFAULT
	}
	b, errno := k.mem.Out(addr, 4)
	if errno != 0 {
		return futexCell{}, errno
	}
	return futexCell{word32(b)}, 0
}
