package linux

import (
	"time"

	"github.com/cloister-vmm/cloister/internal/block"
	"golang.org/x/sys/unix"
)

// alarmClock is what every timer has: when it expires, on which clock. Times are nanoseconds.
type alarmClock struct {
	clock    int32
	expiry   int64 // on clock; 0: disarmed
	interval int64 // 0: once
	waiting  bool  // has expired, and goes on when its signal is taken: a program that does not look is not flooded
}

func (c *alarmClock) armed() bool { return c.expiry != 0 && !c.waiting }

// forward moves the expiry beyond now and returns how many were passed over.
func (c *alarmClock) forward(now int64) (missed int64) {
	if c.interval == 0 {
		c.expiry = 0
		return 0
	}
	missed = (now - c.expiry) / c.interval
	// Times near the end of the clock (year 2262) saturate: such a timer never expires.
	if c.expiry += (missed + 1) * c.interval; c.expiry < now {
		c.expiry = maxTime
	}
	return missed
}

const maxTime = 1<<63 - 1

// timer is one of timer_create.
type timer struct {
	alarmClock
	id      int32
	notify  int32 // SIGEV_
	sig     uint64
	value   uint64
	tid     int // of SIGEV_THREAD_ID
	overrun int32
}

// include/uapi/asm-generic/siginfo.h.
const sigevSignal, sigevNone, sigevThread, sigevThreadID = 0, 1, 2, 4

const (
	maxTimers = 1 << 12
	// cpuTick is how often a CPU clock is looked at: no timer can be set on it. A tick of HZ=250.
	cpuTick = 4 * time.Millisecond
	// idleTick is the longest that this becomes while the program does not run.
	idleTick = 64 * time.Millisecond
	// ignoredTick bounds how often a timer expires whose signal is ignored.
	ignoredTick = int64(time.Millisecond)
)

// timers are the timers that raise signals. One goroutine sleeps until the first of them expires, from when the
// first one is armed until Close.
type timers struct {
	posix   map[int32]*timer
	next    int32
	itimer  [3]alarmClock // ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF
	wake    int           // eventfd: look again
	done    chan struct{} // closed when the goroutine has ended; nil: it was not started
	closed  bool
	cpuSeen int64 // the CPU clock when it was last looked at
	cpuWait time.Duration
}

var itimerSignal = [3]uint64{uint64(unix.SIGALRM), uint64(unix.SIGVTALRM), uint64(unix.SIGPROF)}

// now reads a clock that is known to be there, by a resolved number, in nanoseconds; its beginning at an error, so that
// nothing expires.
func (k *Kernel) now(clock int32) int64 {
	if cpuClock(clock) {
		return int64(k.cpuNow(clock))
	}
	ts, errno := k.clock(clock)
	if errno != 0 {
		return 0
	}
	return ts.Nano()
}

func cpuClock(clock int32) bool { return clock < 0 }

// rearm has the goroutine look at the timers, and starts it.
func (s *timers) rearm(k *Kernel) unix.Errno {
	if s.closed {
		return 0
	}
	s.cpuWait = cpuTick
	if s.done != nil {
		one := [8]byte{1}
		_, _ = unix.Write(s.wake, one[:]) // EAGAIN: it has been told 2^64-2 times
		return 0
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return unix.EAGAIN
	}
	s.wake, s.done = fd, make(chan struct{})
	go s.run(k)
	return 0
}

func (s *timers) run(k *Kernel) {
	defer close(s.done)
	fds := []unix.PollFd{{Fd: int32(s.wake), Events: unix.POLLIN}}
	for {
		k.big.Lock()
		closed := s.closed
		wait := s.expire(k)
		k.big.Unlock()
		if closed {
			return
		}
		var ts *unix.Timespec
		if wait >= 0 {
			left := unix.NsecToTimespec(int64(wait))
			ts = &left
		}
		if n, err := block.Poll(fds, ts); err == nil && n > 0 {
			var count [8]byte
			_, _ = unix.Read(s.wake, count[:]) // EAGAIN: nothing left to take
		}
	}
}

// close ends the goroutine. It is called without the lock.
func (s *timers) close(k *Kernel) {
	k.big.Lock()
	done := s.done
	if !s.closed && done != nil {
		_ = s.rearm(k) // it runs: this cannot fail
	}
	first := !s.closed
	s.closed = true
	k.big.Unlock()
	if done != nil && first {
		<-done
		_ = unix.Close(s.wake) // an eventfd has nothing to flush
	}
}

// expire raises what is due and returns how long to sleep, negative for ever.
func (s *timers) expire(k *Kernel) time.Duration {
	wait := time.Duration(-1)
	if k.over || s.closed {
		return wait
	}
	cpu := false
	sooner := func(c *alarmClock) {
		if !c.armed() {
			return
		}
		left := time.Duration(c.expiry - k.now(c.clock))
		switch {
		case cpuClock(c.clock):
			cpu = true
			left = max(left/time.Duration(max(1, len(k.tasks))), s.cpuWait) // at most all tasks run at a time
		case c.clock != unix.CLOCK_MONOTONIC:
			left = min(left, time.Second) // the clock may be set meanwhile
		}
		if left = max(left, 0); wait < 0 || left < wait {
			wait = left
		}
	}
	for i := range s.itimer {
		c := &s.itimer[i]
		if now := k.now(c.clock); c.armed() && c.expiry <= now {
			if i == unix.ITIMER_REAL && c.interval != 0 {
				c.waiting = true
			} else {
				c.forward(now)
			}
			sig := itimerSignal[i]
			_ = k.post(sigEntry{sig: sig, info: kernelInfo(sig)}, k.leader(), true) // standard signals can always be sent
		}
		sooner(c)
	}
	for _, t := range s.posix {
		if now := k.now(t.clock); t.armed() && t.notify != sigevNone && t.expiry <= now {
			t.fire(k, now)
		}
		if t.notify != sigevNone {
			sooner(&t.alarmClock)
		}
	}
	if now := k.now(cpuClockID(k.cfg.PID, cpuSched)); cpu {
		// A program that sleeps does not come nearer to the end of a CPU timer: look less often.
		if s.cpuWait = cpuTick; now-s.cpuSeen < int64(cpuTick)/4 {
			s.cpuWait = min(2*max(wait, cpuTick), idleTick)
		}
		s.cpuSeen = now
	}
	return wait
}

// fire raises the signal of a timer that has expired.
func (t *timer) fire(k *Kernel, now int64) {
	info := siginfo{signo: int32(t.sig), code: siTimer}
	order.PutUint32(info.fields[0:], uint32(t.id))
	order.PutUint64(info.fields[8:], t.value)
	to, shared := k.leader(), true
	if t.notify == sigevThreadID {
		to, shared = nil, false
		for _, task := range k.tasks {
			if task.ID == t.tid {
				to = task
			}
		}
	}
	t.waiting = false
	_ = k.post(sigEntry{sig: t.sig, info: info, timer: t}, to, shared) // a timer's place in the queue is its own
	if !t.waiting {                                                    // ignored: nobody will take it
		t.forward(now)
		if t.expiry != 0 {
			t.expiry = max(t.expiry, now+ignoredTick)
		}
	}
}

// taken is called when the program takes the signal of t: the expiries that it has missed are counted, and t goes on.
func (t *timer) taken(k *Kernel, info *siginfo) {
	t.waiting = false
	missed := t.forward(k.now(t.clock))
	t.overrun = int32(min(max(missed, 0), 1<<31-1)) // DELAYTIMER_MAX
	order.PutUint32(info.fields[4:], uint32(t.overrun))
	if t.expiry != 0 {
		_ = k.timers.rearm(k) // it runs: this cannot fail
	}
}

// rearmReal lets ITIMER_REAL go on when a SIGALRM is taken.
func (s *timers) rearmReal(k *Kernel) {
	c := &s.itimer[unix.ITIMER_REAL]
	if c.waiting {
		c.waiting = false
		c.forward(k.now(c.clock))
		_ = s.rearm(k) // it runs: this cannot fail
	}
}

// left is what timer_gettime and getitimer say: the time to the next expiry, at least 1 ns for one that is due.
func (c *alarmClock) left(k *Kernel) int64 {
	if c.expiry == 0 {
		return 0
	}
	now := k.now(c.clock)
	if c.expiry <= now && c.interval != 0 {
		return c.interval - (now-c.expiry)%c.interval
	}
	return max(c.expiry-now, 1)
}

// set arms c to expire at value: relative to now, or on its clock; 0 disarms.
func (c *alarmClock) set(k *Kernel, value, interval int64, absolute bool) {
	c.waiting, c.expiry, c.interval = false, 0, interval
	if value == 0 {
		return
	}
	if !absolute {
		now := k.now(c.clock)
		if value = now + value; value < now {
			value = maxTime
		}
	}
	c.expiry = max(value, 1)
}
