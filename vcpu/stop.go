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

	// Died, if not nil, is called for each vCPU's thread that is found gone, before that vCPU counts as ended (Thread.Done), with an ErrDied. A stop may be in flight: it must not ask for another.
	Died func(error)

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
	// Stores are what is to be changed while all are stopped, at most MostStores; more are not looked at. The last vCPU to stop makes them, if none may go on within From and To and they
	// hold what they must (Stopped.Made). Else nothing was changed, and it is up to the caller.
	Stores []Store
	// Meanwhile is called behind the kicks, while the vCPUs come out, or nil: what it does costs them nothing. They may execute the guest still.
	Meanwhile func()
}

// Store is one aligned word of guest text to be changed.
type Store struct {
	To       uintptr // an address of this process, mapped while the guest runs
	Old, New uint64
}

// blame is Cause and Nr in one word: what a stop tells the vCPU is one line of memory, which each of them has to fetch.
func (p *Purpose) blame() uint64 { return uint64(p.Cause) | p.Nr<<8 }

// ErrDied says that a vCPU's thread is gone and has not ended by itself (K5): no vCPU enters the guest any more.
var ErrDied = errors.New("its thread has died")

// ErrStopTimeout says that a vCPU did not acknowledge in time; every vCPU runs on, nothing was changed.
var ErrStopTimeout = errors.New("stop timed out")

// NewSet takes threads that were not started yet.
func NewSet(threads ...*Thread) *Set {
	s := &Set{threads: threads, pid: unix.Getpid(), gen: 1, Resend: 20 * time.Millisecond}
	for i, t := range threads {
		t.c.offer = &threads[0].c.own
		if t.c.next = 0; i > 0 {
			threads[i-1].c.next = t.c.address()
		}
	}
	if len(threads) > 0 {
		threads[0].c.own.first = threads[0].c.address()
	}
	s.rehearsal = sync.OnceValue(func() *Set {
		nobody := &Thread{c: &control{run: new(kvm.Run), ended: 1}}
		nobody.c.offer = &nobody.c.own
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
	t.c.offer = s.carried()
	if err := t.start(); err != nil {
		if t.tid != 0 {
			err = errors.Join(err, (&Set{threads: []*Thread{t}, gen: s.gen}).abandon())
		}
		return err
	}
	s.threads[len(s.threads)-1].c.next = t.c.address() // no vCPU walks the list now: only within a stop does one
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
	return s.outlive(err)
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
// long it may take; after it every vCPU runs on and the error is ErrStopTimeout, unless the last vCPU has begun with Purpose.Stores: then how that
// went is waited for, at most storeLimit.
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
	s.offer(why.Stores)
	for _, t := range s.threads {
		// ORDER(O1): before req, and so seen by who serves this generation: pairs with the loads behind parkRead's. Without it the
		// break could be booked as a kick. One that serves an older, given-up request may book this one's purpose: it is this one's stop, too.
		atomic.StoreUint64(&t.c.blame, why.blame())
		atomic.StoreUint64(&t.c.lookFrom, why.From)
		atomic.StoreUint64(&t.c.lookTo, why.To)
		s.request(t, s.gen)
		if err := s.kick(t); err != nil {
			return s.giveUp(p, err)
		}
	}
	s.meanwhile("P1 in", s.threads[0])
	s.asked()
	if why.Meanwhile != nil {
		why.Meanwhile()
	}
	return s.wait(p, time.Now().Add(limit))
}

// offer is P1's beginning: what the last vCPU to stop may store, and that nobody has acknowledged.
func (s *Set) offer(stores []Store) {
	if len(stores) == 0 || len(stores) > MostStores {
		return // in and out are of an older generation: they concern nobody
	}
	o := s.carried()
	left := uint64(0)
	for _, t := range s.threads {
		if !t.ended() {
			left++
		}
	}
	if left == 0 || left >= offerCount {
		return
	}
	o.n = uint64(copy(o.words[:], stores))
	o.firstTSC, o.ahead = 0, stores[0].To
	// ORDER(O1): the words, then out, then in, then req: pairs with take, behind parkRead's load of req. Without it the last vCPU could store what an older stop has asked for.
	atomic.StoreUint64(&o.out, s.gen<<offerGen|offered|left)
	// One more is the requester, which is ready when all were asked: no stop is over before it has been asked for.
	atomic.StoreUint64(&o.in, s.gen<<offerGen|offered|left+1)
}

// carried is what the set's stops carry, one for all its vCPUs.
func (s *Set) carried() *offer { return s.threads[0].c.offer }

// asked is P1's end: the requester takes itself off the offer's count. If all have acknowledged by now nobody else takes the stop any more: claim does.
func (s *Set) asked() {
	o := s.carried()
	for {
		// ORDER(O1): behind all kicks; pairs with take. Without it all could be over before the last immediate_exit = 1 and signal, which would then end KVM_RUN for nothing, again and again.
		v := atomic.LoadUint64(&o.in)
		if v>>offerGen != s.gen || v&offerState != offered {
			return // nothing was offered
		}
		if atomic.CompareAndSwapUint64(&o.in, v, v-1) {
			return
		}
	}
}

// claim makes an offered stop the requester's, and says whose it is; given: it was made so now, and nobody has stored anything.
func (s *Set) claim() (whose uint64, given bool) {
	o := s.carried()
	for {
		// ORDER(O1): pairs with take. Only one of the two changes offered: without it a stop that is given up could be made all the same.
		v := atomic.LoadUint64(&o.in)
		if v>>offerGen != s.gen {
			return offerMine, true // nothing was offered
		}
		whose = v & offerState
		if whose == offered {
			if !atomic.CompareAndSwapUint64(&o.in, v, s.gen<<offerGen|offerMine) {
				continue
			}
			whose, given = offerMine, true
		}
		if whose != offerLast {
			// ORDER(O1): before goG; pairs with leaveOffer, behind V4. Without it the vCPUs would release themselves.
			atomic.StoreUint64(&o.out, s.gen<<offerGen|offerMine)
		}
		return whose, given
	}
}

// claimOut makes the release the requester's, and says whether it is: false when the last vCPU has made it.
func (s *Set) claimOut() bool {
	o := s.carried()
	for {
		// ORDER(O1): pairs with leaveOffer. Without it a VM could be called dead that was released.
		v := atomic.LoadUint64(&o.out)
		switch {
		case v>>offerGen != s.gen:
			return true // nothing was offered
		case v&offerState != offered:
			return v&offerState == offerMine
		case atomic.CompareAndSwapUint64(&o.out, v, s.gen<<offerGen|offerMine):
			return true
		}
	}
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
		case err == unix.ESRCH:
			return s.died(t)
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
			// A signal must not come behind goG, which somebody else may store: the stop is made the requester's first.
			whose, given := s.claim()
			if p.given = p.given || given; whose == offerLast {
				return nil // all are out
			}
			s.resends.Add(1) // ORDER(none): statistic
			return s.kick(t)
		}
		late, err := s.await(t, "P2", &t.c.ack, s.gen, deadline, s.Resend, again)
		if late {
			err = fmt.Errorf("vCPU %d on host CPU %d: %w: something of higher priority holds its core", t.cfg.ID, t.cfg.CPU, ErrStopTimeout)
		}
		if err != nil {
			return s.giveUp(p, err)
		}
	}
	s.meanwhile("P2 mine", s.threads[0])
	p.whose, _ = s.claim()
	return p, nil
}

// giveUp ends a stop that some vCPU did not acknowledge, unless the last one has made its stores in the last moment.
func (s *Set) giveUp(p *Stopped, err error) (*Stopped, error) {
	s.meanwhile("P2 mine", s.threads[0])
	whose, given := s.claim()
	if given || p.given { // it was nobody else's, ever
		err = s.outlive(err)
		s.release()
		return nil, err
	}
	p.whose = whose
	if p.whose = s.outcome(); errors.Is(err, ErrDied) && p.whose == offerMine {
		p.whose = offerDoubt // it cannot be resumed
	}
	return p, nil
}

// outcome is how the stores went that the last vCPU has begun with: known when all have acknowledged. Even if it has taken them back all have to serialise before any enters. That it does
// not finish leaves the text in doubt.
func (s *Set) outcome() uint64 {
	for _, t := range s.threads {
		for done := false; !done; {
			late, _ := s.await(t, "P2", &t.c.ack, s.gen, time.Now().Add(storeLimit), storeLimit, func() error { return nil }) // again has no error
			if late && s.claimOut() {
				return offerDoubt
			}
			done = !late
		}
	}
	s.meanwhile("P2 mine", s.threads[0])
	whose, _ := s.claim()
	return whose
}

// storeLimit is how long the last vCPU to stop may take for its stores once the stop's own limit has passed: it needs a microsecond, if it runs.
const storeLimit = time.Second

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
	s.carried().ahead = 0
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

// Made says what became of Purpose.Stores: all of them were made, or none; doubt: the vCPU that makes them does not finish, or they read back wrong and so does what was put back. Then the
// VM must not go on (End). first and last are the TSC before the first store and behind the
// last, of the core that has made them, when they were. They are not when Go had to judge first, or has to say what was wrong.
func (p *Stopped) Made() (made, doubt bool, first, last uint64) {
	o := p.s.carried()
	switch p.whose {
	case offerLast:
		return true, false, o.firstTSC, o.lastTSC
	case offerDoubt:
		return false, true, o.firstTSC, 0 // 0: it has not begun
	}
	return false, false, 0, 0
}

// Stopped is the time between Stop and Resume: no vCPU executes a guest instruction, unless the stop's stores were made (Made): then all may run again.
type Stopped struct {
	s    *Set
	rips []uint64 // room for those of each vCPU's Place, if they are asked for

	begun, released uint64

	whose uint64 // offerMine, offerLast or offerDoubt
	given bool   // nobody has taken what was offered, and nobody can any more
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
	if quit && p.whose == offerLast {
		return errors.New("end: the stop's stores were made, and all vCPUs may run by now: stop them again")
	}
	s.carried().ahead = 0
	s.over = s.over || quit
	if p.whose != offerLast {
		s.goOn(quit)
	}
	released, err := s.synced(limit)
	if err != nil {
		return err
	}
	if !released && p.whose == offerLast && !s.claimOut() {
		p.released = s.carried().relTSC
		return nil
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

// goOn is P6.
func (s *Set) goOn(quit bool) {
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
}

// synced is P7. With an error the VM is condemned. released: it is late, but all have serialised, and one of them has begun to release all; it may have been taken off its core
// meanwhile, so the caller does it as well. What it does later changes nothing (nextOf).
func (s *Set) synced(limit time.Duration) (released bool, err error) {
	deadline := time.Now().Add(limit)
	for _, t := range s.threads {
		late, err := s.await(t, "P7", &t.c.synced, s.gen, deadline, limit, func() error { return nil })
		if late && !s.claimOut() {
			return true, nil
		}
		if late {
			err = fmt.Errorf("resume: vCPU %d on host CPU %d did not serialise within %v: the VM must not run on", t.cfg.ID, t.cfg.CPU, limit)
		}
		if err != nil {
			s.condemn()
			return false, err
		}
	}
	return false, nil
}

// condemn lets every vCPU's thread end: none enters the guest again, whenever it runs.
func (s *Set) condemn() {
	s.over = true
	for _, t := range s.threads {
		// ORDER(O1): quit before rel, for who waits at V8 and for who has yet to serialise; pairs with load64(&c.quit) behind park. Without it one that has
		// serialised would enter beside one that has not. goG for who has yet to be let on by a last vCPU that does not get there.
		t.raceSays()
		atomic.StoreUint64(&t.c.quit, 1)
		atomic.StoreUint64(&t.c.goG, s.gen)
		atomic.StoreUint64(&t.c.rel, s.gen)
		t.ring()
		if !t.ended() && unix.Tgkill(s.pid, t.tid, 0) == unix.ESRCH && !t.ended() {
			_ = s.died(t) // one that died while it waited, or stored: nobody kicks it any more. What condemns says why already
		}
	}
}
