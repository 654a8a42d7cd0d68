package vcpu

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Set is all vCPUs of a VM. It stops them together.
type Set struct {
	threads []*Thread
	pid     int

	mu  sync.Mutex // one stop in flight (I7); held from Stop to Resume
	gen uint64

	resends atomic.Uint64 // ORDER(none): statistic
}

// ErrStopTimeout says that a vCPU did not acknowledge in time; every vCPU runs on, nothing was changed.
var ErrStopTimeout = errors.New("stop timed out")

// NewSet takes threads that were not started yet.
func NewSet(threads ...*Thread) *Set {
	return &Set{threads: threads, pid: unix.Getpid(), gen: 1}
}

// Start makes the threads, pins them, and returns them as stopped: nothing has entered the guest.
func (s *Set) Start() (*Stopped, error) {
	s.mu.Lock()
	for _, t := range s.threads {
		if err := t.start(); err != nil {
			s.mu.Unlock()
			return nil, err
		}
	}
	return s.wait(time.Now().Add(5 * time.Second))
}

// Stop returns when every vCPU is out of guest mode, its pending I/O completed, and waits. limit is how
// long it may take; after it every vCPU runs on and the error is ErrStopTimeout.
func (s *Set) Stop(limit time.Duration) (*Stopped, error) {
	s.mu.Lock()
	s.gen++
	for _, t := range s.threads {
		t.request(s.gen)
		if err := s.kick(t); err != nil {
			s.release()
			return nil, err
		}
	}
	return s.wait(time.Now().Add(limit))
}

// request is P1 without the signal.
func (t *Thread) request(g uint64) {
	// ORDER(O1) requester: req, then immediate_exit, then (full barrier) the signal. Pairs with V6 in park:
	// immediate_exit = 0, then req. Without it both could read the old value and the kick be lost (K1, K2).
	atomic.StoreUint64(&t.c.req, g)
	storeByte(&t.c.run.ImmediateExit, 1)
	t.ring()
}

// kick sends the signal, again while the kernel is short of memory for it (K5).
func (s *Set) kick(t *Thread) error {
	for range 1000 {
		err := unix.Tgkill(s.pid, t.tid, KickSignal)
		switch {
		case err == nil:
			return nil
		case err == unix.EAGAIN:
			time.Sleep(50 * time.Microsecond)
		case t.ended():
			return nil
		default:
			return fmt.Errorf("kick vCPU %d (thread %d): %w: the VM cannot go on", t.cfg.ID, t.tid, err)
		}
	}
	return fmt.Errorf("kick vCPU %d (thread %d): the kernel has no room for signals: raise RLIMIT_SIGPENDING", t.cfg.ID, t.tid)
}

func (t *Thread) ended() bool {
	return atomic.LoadUint64(&t.c.ended) != 0 // ORDER(O3): pairs with store64(&c.ended) in end; without it a dead vCPU's books could be read open
}

// resend is how long a requester waits before it signals again. With O1 a kick cannot be lost; a resend
// is counted, and a test demands that there is none.
const resend = 20 * time.Millisecond

// wait is P2. It is entered with s.mu held; with an error it has let go of it.
func (s *Set) wait(deadline time.Time) (*Stopped, error) {
	for _, t := range s.threads {
		c := t.c
		last := time.Now()
		for spins := 200; ; {
			// ORDER(O1): acquires the vCPU's last exit; pairs with V3, store64(&c.ack). Without it state
			// read after Stop could be older than the stop.
			if atomic.LoadUint64(&c.ack) == s.gen || t.ended() {
				break
			}
			if spins > 0 {
				spins--
				pause()
				continue
			}
			now := time.Now()
			if now.After(deadline) {
				s.release()
				return nil, fmt.Errorf("vCPU %d on host CPU %d: %w: something of higher priority holds its core", t.cfg.ID, t.cfg.CPU, ErrStopTimeout)
			}
			if now.Sub(last) > resend {
				last = now
				s.resends.Add(1)
				if err := s.kick(t); err != nil {
					s.release()
					return nil, err
				}
			}
			v := atomic.LoadUint32(&c.doorAck)                    // ORDER(O1): door, sleep flag, word: Dekker with answerBell (word, door, sleep flag)
			atomic.StoreUint32(&c.sleepAck, 1)                    // ORDER(O1): see above; without it an acknowledgement could find nobody asleep
			if atomic.LoadUint64(&c.ack) != s.gen && !t.ended() { // ORDER(O1): see above
				futex(&c.doorAck, futexWaitPrivate, v, &unix.Timespec{Nsec: int64(resend)})
			}
			atomic.StoreUint32(&c.sleepAck, 0) // ORDER(none): a spurious wake only costs time
		}
	}
	return &Stopped{s: s}, nil
}

// release lets every vCPU run on and ends the stop: P6 and P8 in one, for a stop that changed nothing.
func (s *Set) release() {
	for _, t := range s.threads {
		// ORDER(O1): pairs with V4 and V8; the vCPU goes on with what it had.
		atomic.StoreUint64(&t.c.goG, s.gen)
		atomic.StoreUint64(&t.c.rel, s.gen) // ORDER(O1): see above
		t.ring()
	}
	s.mu.Unlock()
}

// Resends is how often a kick had to be sent again. It stays 0 unless a core is starved (K7).
func (s *Set) Resends() uint64 { return s.resends.Load() } // ORDER(none): statistic

// Stopped is the time between Stop and Resume: no vCPU executes a guest instruction.
type Stopped struct{ s *Set }

// AckTSC is when vCPU i had left the guest, stamped on its own thread.
func (p *Stopped) AckTSC(i int) uint64 { return p.s.threads[i].c.ackTSC }

// Generation is the number of this stop.
func (p *Stopped) Generation() uint64 { return p.s.gen }

// Resume lets every vCPU execute a serialising instruction on its own core and enter the guest again. It
// returns when all have done so. With an error some vCPU did not within limit, and the VM must die.
func (p *Stopped) Resume(limit time.Duration) error { return p.resume(limit, false) }

// End lets every vCPU's thread end instead of entering the guest again.
func (p *Stopped) End(limit time.Duration) error { return p.resume(limit, true) }

func (p *Stopped) resume(limit time.Duration, quit bool) error {
	s := p.s
	defer s.mu.Unlock()
	deadline := time.Now().Add(limit)
	for _, t := range s.threads {
		if quit {
			atomic.StoreUint64(&t.c.quit, 1) // ORDER(O1): before rel; pairs with load64(&c.quit) after V8. Without it the guest could be entered once more
		}
		// ORDER(O1): P6 publishes what was changed while stopped; pairs with V4, before V5 serialises.
		// Without it the vCPU could serialise before the last store.
		atomic.StoreUint64(&t.c.goG, s.gen)
		t.ring()
	}
	for _, t := range s.threads {
		for spins := 200; ; {
			// ORDER(O1): P7 acquires "serialised"; pairs with V7. Without it a vCPU could run old bytes
			// while another runs new ones.
			if atomic.LoadUint64(&t.c.synced) == s.gen || t.ended() {
				break
			}
			if spins > 0 {
				spins--
				pause()
				continue
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("resume: vCPU %d on host CPU %d did not serialise within %v: the VM must not run on", t.cfg.ID, t.cfg.CPU, limit)
			}
			v := atomic.LoadUint32(&t.c.doorAck)                       // ORDER(O1): as in wait
			atomic.StoreUint32(&t.c.sleepAck, 1)                       // ORDER(O1): as in wait
			if atomic.LoadUint64(&t.c.synced) != s.gen && !t.ended() { // ORDER(O1): as in wait
				futex(&t.c.doorAck, futexWaitPrivate, v, &unix.Timespec{Nsec: int64(resend)})
			}
			atomic.StoreUint32(&t.c.sleepAck, 0) // ORDER(none): a spurious wake only costs time
		}
	}
	for _, t := range s.threads {
		atomic.StoreUint64(&t.c.rel, s.gen) // ORDER(O1): P8; pairs with V8. Without it a vCPU could enter before all have serialised
		t.ring()
	}
	return nil
}
