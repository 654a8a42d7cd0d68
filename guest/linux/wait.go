package linux

import (
	"errors"
	"strconv"
	"time"

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

// ppoll waits for one of fds (host descriptors; negative ones are ignored) until deadline, a zero one
// meaning for ever. It returns the number of ready fds (0: time is up), or eRestart when Interrupt
// came and none was ready.
func (k *Kernel) ppoll(fds []unix.PollFd, deadline time.Time) (int, unix.Errno) {
	all := append(fds[:len(fds):len(fds)], unix.PollFd{Fd: int32(k.cfg.Interrupt), Events: unix.POLLIN})
	for {
		var ts *unix.Timespec
		if !deadline.IsZero() {
			left := unix.NsecToTimespec(max(0, int64(time.Until(deadline))))
			ts = &left
		}
		n, err := unix.Ppoll(all, ts, nil)
		if err == unix.EINTR {
			continue // a signal for the Go runtime, none of the guest's
		}
		if err != nil {
			return 0, errnoOf(err)
		}
		copy(fds, all)
		if all[len(fds)].Revents == 0 {
			return n, 0
		}
		if n > 1 {
			return n - 1, 0
		}
		// A poll with no time to wait does not block, so there is nothing to cut.
		if !deadline.IsZero() && time.Until(deadline) <= 0 {
			return 0, 0
		}
		return 0, eRestart
	}
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

// interrupted says whether Interrupt is readable now; long loops ask it between their steps.
func (k *Kernel) interrupted() bool {
	p := []unix.PollFd{{Fd: int32(k.cfg.Interrupt), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0
}

// sleep waits until deadline; 0 when it came, eRestart when Interrupt did.
func (k *Kernel) sleep(deadline time.Time) unix.Errno {
	_, errno := k.ppoll(nil, deadline)
	return errno
}

// transfer repeats try, one host read or write on d that does not block, until it has moved
// something. events is what d has to be ready for.
func (k *Kernel) transfer(d *description, events int16, try func() (int, error)) (int, unix.Errno) {
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
		n, err := try()
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
