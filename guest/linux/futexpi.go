package linux

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Words with priority inheritance: the low bits are the owner's number, and who waits gets the word from who unlocks it, the
// one with the highest real-time priority first. The owner's priority is not raised: what a task's vCPU has is the run's to
// decide, and a helper that was raised could starve the housekeeping CPU that serves it (docs/decisions/0008-threads.md).

// lockPI takes such a word.
func (k *Kernel) lockPI(t *Task, addr uint64, shared bool, deadline time.Time, try bool) unix.Errno {
	key, errno := k.futexKey(addr, shared)
	if errno != 0 {
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
		return k.waitQueued(&waiter{t: t, key: key, addr: addr, pi: true}, deadline)
	}
}

// unlockPI gives the word to the first who waits for it.
func (k *Kernel) unlockPI(t *Task, addr uint64, shared bool) unix.Errno {
	key, errno := k.futexKey(addr, shared)
	if errno != 0 {
		return errno
	}
	word, errno := k.futexPointer(addr)
	if errno != 0 {
		return errno
	}
	if word.load()&futexTID != uint32(t.ID) {
		return unix.EPERM
	}
	if !k.passOn(key, word, 0) {
		word.store(0)
	}
	return 0
}

// passOn gives a priority-inheriting word to the first who waits for it, with bits beside the new owner's number; false:
// nobody waits.
func (k *Kernel) passOn(key futexKey, word futexCell, bits uint32) bool {
	var next *waiter
	for _, w := range k.queue[key] {
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
	k.wake(next)
	return true
}

// passOnAll gives every priority-inheriting word that t owns, and that somebody waits for, to the next one, as the kernel
// does when a task ends (kernel/futex/core.c: exit_pi_state_list).
func (k *Kernel) passOnAll(t *Task) {
	var owned []*waiter
	for _, list := range k.queue {
		if i := slices.IndexFunc(list, func(w *waiter) bool { return w.pi }); i >= 0 {
			owned = append(owned, list[i])
		}
	}
	for _, w := range owned {
		if word, errno := k.futexPointer(w.addr); errno == 0 && word.load()&futexTID == uint32(t.ID) {
			k.passOn(w.key, word, futexOwnerDied)
		}
	}
}

// waitRequeuePI waits on word a[0] until it is moved to word a[4] and owns that (FUTEX_WAIT_REQUEUE_PI, kernel/futex/requeue.c).
func (k *Kernel) waitRequeuePI(t *Task, a args, shared bool, deadline time.Time) unix.Errno {
	if a[0] == a[4] {
		return unix.EINVAL
	}
	target, errno := k.futexKey(a[4], shared)
	if errno != 0 {
		return errno
	}
	if first, errno := k.futexKey(a[0], shared); errno == 0 && first == target {
		return unix.EINVAL
	}
	w := &waiter{t: t, addr: a[0], bitset: ^uint32(0), target: &target}
	errno = k.waitFutex(w, shared, uint32(a[2]), deadline)
	for errno == eRestart && w.pi && !k.over && !k.stopping() {
		if k.signalled(t) {
			return unix.EAGAIN // the first word has changed: the call cannot be made again
		}
		errno = k.waitQueued(w, deadline) // another task took the signal
	}
	return errno
}

// requeuePI lets the first waiter of a[0] have word a[4], if that is free, and moves a[3] more of them there, as
// pthread_cond_broadcast does with a mutex that has priority inheritance (FUTEX_CMP_REQUEUE_PI).
func (k *Kernel) requeuePI(a args, shared bool) (uint64, unix.Errno) {
	if int32(a[2]) != 1 || int32(a[3]) < 0 || a[0] == a[4] {
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
	if from == to {
		return 0, unix.EINVAL
	}
	if v, errno := k.load32(a[0]); errno != 0 {
		return 0, errno
	} else if v != uint32(a[5]) {
		return 0, unix.EAGAIN
	}
	more := int64(int32(a[3]))
	n := uint64(0)
	for _, w := range slices.Clone(k.queue[from]) {
		if int64(n)-1 >= more {
			break
		}
		if w.pi || w.target == nil || *w.target != to {
			return 0, unix.EINVAL
		}
		owns := false
		if n == 0 {
			if owns, errno = k.lockFor(w.t, a[4], more > 0); errno != 0 {
				return 0, errno
			}
		}
		n++
		if owns {
			k.wake(w)
			continue
		}
		w.pi = true
		k.move(w, to, a[4])
	}
	return n, 0
}

// lockFor takes a word for t, which waits, if nobody owns it; else its owner is told that somebody waits
// (kernel/futex/pi.c: futex_lock_pi_atomic). more: others will wait there.
func (k *Kernel) lockFor(t *Task, addr uint64, more bool) (bool, unix.Errno) {
	word, errno := k.futexPointer(addr)
	if errno != 0 {
		return false, errno
	}
	for {
		old := word.load()
		now := old | futexWaiters
		switch owner := old & futexTID; {
		case owner == uint32(t.ID):
			return false, unix.EDEADLK
		case owner == 0:
			now = old&futexOwnerDied | uint32(t.ID)
			if more {
				now |= futexWaiters
			}
		case k.task(uint64(owner)) == nil:
			return false, unix.ESRCH
		}
		if word.swap(old, now) {
			return old&futexTID == 0, 0
		}
	}
}
