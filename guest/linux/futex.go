package linux

import (
	"slices"
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

// futexKey tells whether two words are one (kernel/futex/core.c: get_futex_key). A word in a shared mapping of a file is
// known by its place in the file, any other by its address; a private operation knows each by its address, and sees none
// that waits by a shared one.
type futexKey struct {
	object [2]uint64 // the file's device and inode; zero: none
	at     uint64
	shared bool
}

// waiter is a task that waits on a futex word. The waiters of a word stand in the order in which they are served: those with
// a real-time priority first, the highest of them first, then in the order in which they came.
type waiter struct {
	t      *Task
	key    futexKey
	addr   uint64 // by which it knows the word
	bitset uint32
	prio   int32
	pi     bool      // waits to own the word
	target *futexKey // waits to be moved to that word, and to own it
	woken  bool
}

// sysFutex serves futex(2). The queues are guarded by the kernel's lock: a waiter that has queued itself and then
// finds the word unchanged cannot miss a wake, for whoever changes the word calls here to wake, and has to take the lock.
func sysFutex(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	op := uint32(a[1])
	cmd, shared := op&^(futexPrivate|futexRealtime), op&futexPrivate == 0
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
		return 0, k.waitFutex(&waiter{t: t, addr: a[0], bitset: bitset}, shared, uint32(a[2]), deadline)
	case futexWake, futexWakeBitset:
		bitset := uint32(a[5])
		if cmd == futexWake {
			bitset = ^uint32(0)
		}
		if bitset == 0 {
			return 0, unix.EINVAL
		}
		key, errno := k.futexKey(a[0], shared)
		if errno != 0 {
			return 0, errno
		}
		return k.wakeFutex(key, max(1, int32(a[2])), bitset)
	case futexRequeue, futexCmpRequeue:
		return k.requeue(a, shared, cmd == futexCmpRequeue)
	case futexWakeOp:
		return k.wakeOp(a, shared)
	case futexLockPI, futexLockPI2:
		deadline, errno := k.futexDeadline(t, a[3], true, cmd == futexLockPI || op&futexRealtime != 0)
		if errno != 0 {
			return 0, errno
		}
		return 0, k.lockPI(t, a[0], shared, deadline, false)
	case futexTrylockPI:
		return 0, k.lockPI(t, a[0], shared, time.Time{}, true)
	case futexUnlockPI:
		return 0, k.unlockPI(t, a[0], shared)
	case futexWaitRequeuePI:
		deadline, errno := k.futexDeadline(t, a[3], true, op&futexRealtime != 0)
		if errno != 0 {
			return 0, errno
		}
		return 0, k.waitRequeuePI(t, a, shared, deadline)
	case futexCmpRequeuePI:
		return k.requeuePI(a, shared)
	}
	return 0, unix.ENOSYS
}

// futexKey checks a futex address: aligned, below the end of user memory and, unless the address alone is the key, there.
func (k *Kernel) futexKey(addr uint64, shared bool) (futexKey, unix.Errno) {
	key := futexKey{at: addr, shared: shared}
	if addr&3 != 0 {
		return key, unix.EINVAL
	}
	if !accessOK(addr, 4) {
		return key, unix.EFAULT
	}
	if !shared {
		return key, 0
	}
	if _, errno := k.load32(addr); errno != 0 {
		return key, errno
	}
	if object, off, ok := k.mem.Object(addr); ok {
		key.object, key.at = object, off
	}
	return key, 0
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

// waitFutex lets w wait on its word, if that has the value want.
func (k *Kernel) waitFutex(w *waiter, shared bool, want uint32, deadline time.Time) (errno unix.Errno) {
	if w.key, errno = k.futexKey(w.addr, shared); errno != 0 {
		return errno
	}
	v, errno := k.load32(w.addr)
	if errno != 0 {
		return errno
	}
	if v != want {
		return unix.EAGAIN
	}
	if deadline.IsZero() && len(k.tasks) == 1 {
		k.warn("futex: the only thread waits for another one: it waits until it is stopped")
	}
	return k.waitQueued(w, deadline)
}

// waitQueued queues w and waits until it is woken.
func (k *Kernel) waitQueued(w *waiter, deadline time.Time) unix.Errno {
	w.prio = w.t.sched.realTime()
	k.enqueue(w)
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

// enqueue puts w behind those that are served before it.
func (k *Kernel) enqueue(w *waiter) {
	list := k.queue[w.key]
	i := len(list)
	for i > 0 && list[i-1].prio < w.prio {
		i--
	}
	k.queue[w.key] = slices.Insert(list, i, w)
}

func (k *Kernel) unqueue(w *waiter) {
	list := k.queue[w.key]
	if i := slices.Index(list, w); i >= 0 {
		list = slices.Delete(list, i, i+1)
	}
	if len(list) == 0 {
		delete(k.queue, w.key)
		return
	}
	k.queue[w.key] = list
}

// wake ends w's wait, which is on a queue.
func (k *Kernel) wake(w *waiter) {
	k.unqueue(w)
	w.woken = true
	w.t.poke()
}

// wakeFutex wakes at most most waiters of key that wait for one of bits, and returns how many. EINVAL when it comes to one
// that waits to own a word.
func (k *Kernel) wakeFutex(key futexKey, most int32, bits uint32) (n uint64, errno unix.Errno) {
	for _, w := range slices.Clone(k.queue[key]) {
		switch {
		case w.pi || w.target != nil:
			return 0, unix.EINVAL
		case w.bitset&bits == 0:
			continue
		}
		k.wake(w)
		if n++; int64(n) >= int64(most) {
			break
		}
	}
	return n, 0
}

// requeue wakes a[2] waiters of a[0] and lets a[3] more wait on a[4] instead.
func (k *Kernel) requeue(a args, shared, compare bool) (uint64, unix.Errno) {
	if int32(a[2]) < 0 || int32(a[3]) < 0 {
		return 0, unix.EINVAL
	}
	from, errno := k.futexKey(a[0], shared)
	if errno != 0 {
		return 0, errno
	}
	to, errno := k.futexKey(a[4], shared)
	if errno != 0 {
		return 0, errno
	}
	if compare {
		if v, errno := k.load32(a[0]); errno != 0 {
			return 0, errno
		} else if v != uint32(a[5]) {
			return 0, unix.EAGAIN
		}
	}
	n := uint64(0)
	for _, w := range slices.Clone(k.queue[from]) {
		if int64(n)-int64(int32(a[2])) >= int64(int32(a[3])) {
			break
		}
		if w.pi || w.target != nil {
			return 0, unix.EINVAL
		}
		if n++; int64(n) <= int64(int32(a[2])) {
			k.wake(w)
			continue
		}
		k.move(w, to, a[4])
	}
	return n, 0
}

// move lets w wait on another word.
func (k *Kernel) move(w *waiter, to futexKey, addr uint64) {
	k.unqueue(w)
	w.key, w.addr = to, addr
	k.enqueue(w)
}

// wakeOp changes the word at a[4] as a[5] says, wakes waiters of a[0], and of a[4] if its old value compares.
func (k *Kernel) wakeOp(a args, shared bool) (uint64, unix.Errno) {
	first, errno := k.futexKey(a[0], shared)
	if errno != 0 {
		return 0, errno
	}
	second, errno := k.futexKey(a[4], shared)
	if errno != 0 {
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
	n, errno := k.wakeFutex(first, max(1, int32(a[2])), ^uint32(0))
	if errno == 0 && hit {
		var more uint64
		more, errno = k.wakeFutex(second, max(1, int32(a[3])), ^uint32(0))
		n += more
	}
	return n, errno
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
