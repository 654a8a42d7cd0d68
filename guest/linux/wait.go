package linux

import (
	"errors"
	"strconv"
	"time"

	"github.com/cloister-vmm/cloister/internal/block"
	"golang.org/x/sys/unix"
)

// until returns when a wait of d from now ends. A call that Interrupt cut and that is made again keeps
// the deadline of its first try, or a program that is stopped often would never wake up.
func (t *Task) until(d time.Duration) time.Time {
	if !t.hasEntered {
		t.hasEntered = true
		t.deadline = time.Now().Add(d)
	}
	return t.deadline
}

// untilLimit is until for SO_RCVTIMEO and SO_SNDTIMEO: where one is set a handler ends the call with EINTR, whatever its SA_RESTART
// (signal(7); include/net/sock.h: sock_intr_errno).
func (t *Task) untilLimit(d time.Duration) time.Time {
	t.limited = true
	return t.until(d)
}

// ppoll waits for one of fds (host descriptors; negative ones are ignored) until deadline, a zero one
// meaning for ever. It returns the number of ready fds (0: time is up), or eRestart when none was ready and
// Interrupt or a signal came.
func (k *Kernel) ppoll(fds []unix.PollFd, deadline time.Time) (int, unix.Errno) {
	return k.block(fds, deadline, nil)
}

// block is ppoll that also ends, with 0 ready, when done says so; whoever makes that true pokes the task. It is the
// only place where a task waits, and the lock is given up meanwhile: what the caller has looked at before may have changed.
func (k *Kernel) block(fds []unix.PollFd, deadline time.Time, done func() bool) (int, unix.Errno) {
	t := k.cur
	all := append(fds[:len(fds):len(fds)], unix.PollFd{Fd: int32(k.cfg.Interrupt), Events: unix.POLLIN}, unix.PollFd{Fd: int32(t.wake), Events: unix.POLLIN})
	for {
		if done != nil && done() {
			return 0, 0
		}
		signalled := k.signalled(t)
		var ts *unix.Timespec
		if signalled || t.onRing {
			ts = &unix.Timespec{} // what is ready comes first, as natively
		} else if !deadline.IsZero() {
			left := unix.NsecToTimespec(max(0, int64(time.Until(deadline))))
			ts = &left
		}
		n, err := k.hostPoll(t, all, ts)
		if err == unix.EINTR {
			continue // a signal for the Go runtime, none of the guest's
		}
		if err != nil {
			return 0, errnoOf(err)
		}
		copy(fds, all)
		stop, poked := &all[len(fds)], &all[len(fds)+1]
		if poked.Revents != 0 {
			n--
			var count [8]byte
			_, _ = unix.Read(t.wake, count[:]) // EAGAIN: nothing left to take
		}
		if stop.Revents != 0 {
			n--
		}
		// A poll with no time to wait does not block, so there is nothing to cut.
		over := !deadline.IsZero() && time.Until(deadline) <= 0
		switch {
		case n > 0:
			return n, 0
		case done != nil && done():
			return 0, 0
		case over:
			return 0, 0
		case stop.Revents != 0 || signalled || k.over || t.onRing:
			return 0, eRestart
		}
	}
}

func (k *Kernel) hostPoll(t *Task, all []unix.PollFd, ts *unix.Timespec) (n int, err error) {
	t.blocked = true
	poll := block.Poll
	if ts != nil && *ts == (unix.Timespec{}) {
		poll = look // it will not wait
	}
	k.outside(func() { n, err = poll(all, ts) })
	t.blocked = false
	return n, err
}

func look(fds []unix.PollFd, ts *unix.Timespec) (int, error) { return unix.Ppoll(fds, ts, nil) }

// outside makes a host call that may take long without the kernel's lock: other tasks are served meanwhile.
func (k *Kernel) outside(call func()) {
	t := k.cur
	k.big.Unlock()
	defer func() {
		k.big.Lock()
		k.cur = t
	}()
	call()
}

// await waits until host descriptor fd has one of events. ETIMEDOUT when the deadline passed.
func (k *Kernel) await(fd int, events int16, deadline time.Time) unix.Errno {
	p := []unix.PollFd{{Fd: int32(fd), Events: events}}
	n, errno := k.ppoll(p, deadline)
	if errno == 0 && n == 0 {
		return unix.ETIMEDOUT
	}
	return errno
}

// interrupted says whether Interrupt is readable now or a signal waits; long loops ask it between their steps.
func (k *Kernel) interrupted() bool {
	return k.over || k.cur.onRing || k.signalled(k.cur) || k.stopping()
}

// stopping says whether Interrupt is readable now.
func (k *Kernel) stopping() bool {
	p := []unix.PollFd{{Fd: int32(k.cfg.Interrupt), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0
}

// sleep waits until deadline; 0 when it came, eRestart when Interrupt or a signal did.
func (k *Kernel) sleep(deadline time.Time) unix.Errno {
	_, errno := k.ppoll(nil, deadline)
	return errno
}

// transfer repeats try, one host read or write on d that does not block, until it has moved
// something. events is what d has to be ready for.
func (k *Kernel) transfer(d *description, events int16, try func() (int, error)) (int, unix.Errno) {
	defer d.pin().unpin()
	for again := false; ; again = true {
		// A descriptor that polls ready but does not move must not keep us from seeing Interrupt.
		if again && k.interrupted() {
			return 0, eRestart
		}
		if d.wait == waitFirst {
			deadline := time.Time{}
			if d.nonblock() {
				deadline = time.Now()
			}
			if errno := k.await(d.fd, events, deadline); errno == unix.ETIMEDOUT {
				return 0, unix.EAGAIN
			} else if errno != 0 {
				return 0, errno
			}
		}
		var n int
		var err error
		if d.wait == waitNever {
			k.outside(func() { n, err = try() })
		} else {
			n, err = try()
		}
		switch {
		case err == nil:
			return n, 0
		case err == unix.EINTR:
		case err == unix.EAGAIN && d.wait != waitNever && !d.nonblock():
			if errno := k.await(d.fd, events, time.Time{}); errno != 0 {
				return 0, errno
			}
		default:
			return 0, errnoOf(err)
		}
	}
}

// errnoOf turns what x/sys/unix and vfs return into a number; an error that has none is EIO.
func errnoOf(err error) unix.Errno {
	if err == nil {
		return 0
	}
	var e unix.Errno
	if errors.As(err, &e) {
		return e
	}
	return unix.EIO
}

func itoa(n int) string { return strconv.Itoa(n) }
