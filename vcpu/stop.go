package vcpu

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloister-vmm/cloister/internal/block"
	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"golang.org/x/sys/unix"
)

// Set is all vCPUs of a VM. It stops them together.
type Set struct {
	threads []*Thread
	pid     int

	mu   sync.Mutex // one stop in flight (I7); held from Stop to Resume
	gen  uint64
	over bool // End was called: no thread may come any more

	resends atomic.Uint64 // ORDER(none): statistic

	// Resend is how long a requester waits before it signals again; NewSet says 20 ms. With O1 a kick cannot be
	// lost, so a resend only tells of a starved core, and is counted. A test makes it longer than its limits:
	// then a lost kick is a timeout.
	Resend time.Duration

	rehearsal func() *Set // made when it is first asked for: most runs are never patched

	// between, in tests, is called before each step that t could see, with its label: other threads' steps may come there, and
	// true means that the deadline has passed.
	between func(label string, t *Thread) (late bool)
}

// Purpose is what a stop is for.
type Purpose struct {
	// Cause books the break of a vCPU that the stop takes out of the guest, with Nr, below 2^56; breaks.Unknown (0) leaves it breaks.Kick.
	Cause breaks.Cause
	Nr    uint64
	// From and To have Stopped.Place tell what waits to be injected of a vCPU that may go on at a guest address from From to below To: one ioctl more
	// on its thread. To 0: of none.
	From, To uint64
	// Meanwhile is called behind the kicks, while the vCPUs come out, or nil: what it does costs them nothing. They may execute the guest still.
	Meanwhile func()
}

// blame is Cause and Nr in one word: what a stop tells the vCPU is one line of memory, which each of them has to fetch.
func (p *Purpose) blame() uint64 { return uint64(p.Cause) | p.Nr<<8 }

// ErrStopTimeout says that a vCPU did not acknowledge in time; every vCPU runs on, nothing was changed.
var ErrStopTimeout = errors.New("stop timed out")

// NewSet takes threads that were not started yet.
func NewSet(threads ...*Thread) *Set {
	s := &Set{threads: threads, pid: unix.Getpid(), gen: 1, Resend: 20 * time.Millisecond}
	s.rehearsal = sync.OnceValue(func() *Set {
		nobody := &Thread{c: &control{run: new(kvm.Run), ended: 1}}
		return &Set{threads: []*Thread{nobody}, pid: s.pid, gen: 1, Resend: s.Resend}
	})
	return s
}

// Rehearsal is a set to rehearse stops with: its one vCPU is nobody's, and has ended. Stopping it does nothing, by the way that a stop goes, so that the code and
// the tables of pages are in the caches when vCPUs wait for them.
func (s *Set) Rehearsal() *Set { return s.rehearsal() }

// Start makes the threads, pins them, and returns them as stopped: nothing has entered the guest.
func (s *Set) Start() (*Stopped, error) {
	s.mu.Lock()
	for _, t := range s.threads {
		if err := t.start(); err != nil {
			err = errors.Join(err, s.abandon())
			s.mu.Unlock()
			return nil, err
		}
	}
	return s.wait(&Stopped{s: s}, time.Now().Add(5*time.Second))
}

// ErrEnded says that the vCPUs were told to end.
var ErrEnded = errors.New("the VM has ended")

// Add makes a further vCPU's thread while the others run. It is born stopped by the latest generation and let
// go at once; a stop that comes meanwhile waits for it.
func (s *Set) Add(t *Thread) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return ErrEnded
	}
	t.c.req = s.gen // before the thread is there
	if err := t.start(); err != nil {
		if t.tid != 0 {
			err = errors.Join(err, (&Set{threads: []*Thread{t}, gen: s.gen}).abandon())
		}
		return err
	}
	s.threads = append(s.threads, t)
	t.letGo(s.gen)
	return nil
}

// Attend has t's handler called with breaks.Signal before t enters the guest again; when t is in the guest it is
// kicked out. It does not wait for that. It is the stop protocol, released before it was acknowledged.
func (s *Set) Attend(t *Thread) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.ended() {
		return ErrEnded
	}
	// ORDER(O10): attn, then the request. Pairs with load64(&c.attn) in loop, behind E1's look at req. Without it the
	// vCPU could park for the request, find nothing to attend to, and enter the guest.
	t.raceSays()
	atomic.StoreUint64(&t.c.attn, 1)
	s.gen++
	atomic.StoreUint64(&t.c.blame, 0) // ORDER(O1): before req, as in StopFor: pairs with parkRead's loads; without it an older purpose would name this break
	s.request(t, s.gen)
	err := s.kick(t)
	t.letGo(s.gen) // behind the signal: one that came later would find nothing asked for (K4)
	return err
}

// abandon ends the threads that were made before one of them failed; none has entered the guest.
func (s *Set) abandon() error {
	var errs []error
	for _, t := range s.threads {
		if t.tid == 0 {
			continue
		}
		// ORDER(O1): quit before rel: pairs with load64(&c.quit) behind V8. Without it the guest would be entered.
		t.raceSays()
		atomic.StoreUint64(&t.c.quit, 1)
		atomic.StoreUint64(&t.c.goG, s.gen)
		atomic.StoreUint64(&t.c.rel, s.gen)
		t.ring()
		errs = append(errs, t.join(time.Second))
	}
	return errors.Join(errs...)
}

// Stop returns when every vCPU is out of guest mode, its pending I/O completed, and waits. limit is how
// long it may take; after it every vCPU runs on and the error is ErrStopTimeout.
func (s *Set) Stop(limit time.Duration) (*Stopped, error) { return s.StopFor(Purpose{}, limit) }

// StopFor is Stop with a purpose.
func (s *Set) StopFor(why Purpose, limit time.Duration) (*Stopped, error) {
	s.mu.Lock()
	s.gen++
	p := &Stopped{s: s}
	if why.To != 0 { // room is made now: later, all vCPUs wait
		p.rips = make([]uint64, mostRIPs*len(s.threads))
	}
	p.begun = kvm.TSC()
	for _, t := range s.threads {
		// ORDER(O1): before req, and so seen by who serves this generation: pairs with the loads behind parkRead's. Without it the
		// break could be booked as a kick. One that serves an older, given-up request may book this one's purpose: it is this one's stop, too.
		atomic.StoreUint64(&t.c.blame, why.blame())
		atomic.StoreUint64(&t.c.lookFrom, why.From)
		atomic.StoreUint64(&t.c.lookTo, why.To)
		s.request(t, s.gen)
		if err := s.kick(t); err != nil {
			s.release()
			return nil, err
		}
	}
	if why.Meanwhile != nil {
		why.Meanwhile()
	}
	return s.wait(p, time.Now().Add(limit))
}

// meanwhile lets a test have its way.
func (s *Set) meanwhile(label string, t *Thread) {
	if s.between != nil {
		s.between(label, t)
	}
}

// request is P1 without the signal.
func (s *Set) request(t *Thread, g uint64) {
	// ORDER(O1) requester: req, then immediate_exit, then (full barrier) the signal. Pairs with V6 in park:
	// immediate_exit = 0, then req. Without it both could read the old value and the kick be lost (K1, K2).
	s.meanwhile("P1 req", t)
	atomic.StoreUint64(&t.c.req, g)
	s.meanwhile("P1 immediate_exit", t)
	storeByte(&t.c.run.ImmediateExit, 1)
	t.ring()
	s.meanwhile("P1 signal", t)
}

// kick sends the signal, again while the kernel is short of memory for it (K5).
func (s *Set) kick(t *Thread) error {
	// ORDER(O1): counted behind the signal, before goG. Pairs with takeKicks, and V7 behind V4: what is counted when the vCPU drains is not pending
	// any more. Without the order one that is not there yet would be taken for drained, and be a spurious kick later.
	defer atomic.AddUint64(&t.c.sent, 1)
	if s.between != nil {
		return nil // the test has done it at "P1 signal"
	}
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

// wait is P2; it returns p. It is entered with s.mu held; with an error it has let go of it.
func (s *Set) wait(p *Stopped, deadline time.Time) (*Stopped, error) {
	for _, t := range s.threads {
		again := func() error {
			s.resends.Add(1) // ORDER(none): statistic
			return s.kick(t)
		}
		late, err := s.await(t, "P2", &t.c.ack, s.gen, deadline, s.Resend, again)
		if late {
			err = fmt.Errorf("vCPU %d on host CPU %d: %w: something of higher priority holds its core", t.cfg.ID, t.cfg.CPU, ErrStopTimeout)
		}
		if err != nil {
			s.release()
			return nil, err
		}
	}
	return p, nil
}

// await returns when *word (ack or synced) has reached g, or the thread has ended, or it is late. again is
// called each time nothing has come for the time every.
func (s *Set) await(t *Thread, label string, word *uint64, g uint64, deadline time.Time, every time.Duration, again func() error) (late bool, err error) {
	done := func() bool {
		// ORDER(O1): acquires what the vCPU did before it said so. Pairs with V3 store64(&c.ack) and V7
		// store64(&c.synced). Without it state read after Stop could be older than the stop.
		return atomic.LoadUint64(word) == g || t.ended()
	}
	last := time.Now()
	for spinning := true; !done(); {
		if s.between != nil {
			if s.between(label, t) {
				return true, nil
			}
			continue
		}
		if spinning {
			for n := 0; n < 20 && !done(); n++ {
				pause()
			}
			spinning = time.Since(last) < t.cfg.SpinStop
			continue
		}
		now := time.Now()
		if now.After(deadline) {
			return true, nil
		}
		if now.Sub(last) > every {
			last = now
			if err := again(); err != nil {
				return false, err
			}
		}
		nap := unix.NsecToTimespec(int64(min(every, deadline.Sub(now))))
		sleep(&t.c.doorAck, &t.c.sleepAck, done, &nap)
	}
	t.raceSaw()
	return false, nil
}

// sleep waits until somebody rings the bell, unless done says that there is no need to.
func sleep(bell, asleep *uint32, done func() bool, limit *unix.Timespec) {
	// ORDER(O1), ORDER(O3): the bell's value, then the sleep flag, then the word. Pairs with the vCPU's word,
	// bell, flag (answerBell, knock). Without the order the vCPU could see nobody asleep while this side
	// saw nothing new, and both would wait.
	v := atomic.LoadUint32(bell)
	atomic.StoreUint32(asleep, 1)
	if !done() {
		block.Futex(bell, futexWaitPrivate, v, limit)
	}
	atomic.StoreUint32(asleep, 0) // ORDER(none): a wake too many only costs time
}

// release lets every vCPU run on and ends the stop: P6 and P8 in one, for a stop that changed nothing.
func (s *Set) release() {
	for _, t := range s.threads {
		s.meanwhile("P8", t)
		t.letGo(s.gen)
	}
	s.mu.Unlock()
}

func (t *Thread) letGo(g uint64) {
	// ORDER(O1): both pair with V4 and V8: pairs with the loads of goG and rel in park. Without them a vCPU
	// that had stopped after all would wait for ever.
	t.raceSays()
	atomic.StoreUint64(&t.c.goG, g)
	atomic.StoreUint64(&t.c.rel, g)
	t.ring()
}

// Resends is how often a kick had to be sent again. It stays 0 unless a core is starved (K7).
func (s *Set) Resends() uint64 { return s.resends.Load() } // ORDER(none): statistic

// Stopped is the time between Stop and Resume: no vCPU executes a guest instruction.
type Stopped struct {
	s    *Set
	rips []uint64 // room for those of each vCPU's Place, if they are asked for

	begun, released uint64
}

// Resume lets every vCPU execute a serialising instruction on its own core and enter the guest again. It
// returns when all have done so. With an error some vCPU did not within limit; then every vCPU's thread ends instead, that one's when it
// runs again: the VM is dead, and none of it enters the guest any more.
func (p *Stopped) Resume(limit time.Duration) error { return p.resume(limit, false, func() {}) }

// ResumeThen is Resume. then is called when all vCPUs were let go, or will never be, and no other stop has begun: Place can still be asked of a vCPU
// that was not near Purpose's range, and costs none of them anything.
func (p *Stopped) ResumeThen(limit time.Duration, then func()) error {
	return p.resume(limit, false, then)
}

// End lets every vCPU's thread end instead of entering the guest again.
func (p *Stopped) End(limit time.Duration) error { return p.resume(limit, true, func() {}) }

func (p *Stopped) resume(limit time.Duration, quit bool, then func()) error {
	s := p.s
	defer s.mu.Unlock()
	defer then()
	s.over = s.over || quit
	for _, t := range s.threads {
		if quit {
			atomic.StoreUint64(&t.c.quit, 1) // ORDER(O1): before rel; pairs with load64(&c.quit) after V8. Without it the guest could be entered once more
		}
		s.meanwhile("P6", t)
		// ORDER(O1): P6 publishes what was changed while stopped; pairs with V4, before V5 serialises.
		// Without it the vCPU could serialise before the last store.
		t.raceSays()
		atomic.StoreUint64(&t.c.goG, s.gen)
		t.ring()
	}
	deadline := time.Now().Add(limit)
	for _, t := range s.threads {
		late, err := s.await(t, "P7", &t.c.synced, s.gen, deadline, limit, func() error { return nil })
		if late {
			err = fmt.Errorf("resume: vCPU %d on host CPU %d did not serialise within %v: the VM must not run on", t.cfg.ID, t.cfg.CPU, limit)
		}
		if err != nil {
			s.condemn()
			return err
		}
	}
	for _, t := range s.threads {
		s.meanwhile("P8", t)
		// ORDER(O1): P8; pairs with V8, load64(&c.rel). Without it a vCPU could enter before all have serialised.
		t.raceSays()
		atomic.StoreUint64(&t.c.rel, s.gen)
		t.ring()
	}
	p.released = kvm.TSC()
	return nil
}

// condemn lets every vCPU's thread end: none enters the guest again, whenever it runs.
func (s *Set) condemn() {
	s.over = true
	for _, t := range s.threads {
		// ORDER(O1): quit before rel, for who waits at V8 and for who has yet to serialise; pairs with load64(&c.quit) behind park. Without it one that has
		// serialised would enter beside one that has not.
		t.raceSays()
		atomic.StoreUint64(&t.c.quit, 1)
		atomic.StoreUint64(&t.c.rel, s.gen)
		t.ring()
	}
}
