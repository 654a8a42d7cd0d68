package vcpu

import (
	"bytes"
	"errors"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// letters gives each step of loop.go a letter, so that an order is a regular expression.
var letters = map[uint8]byte{
	stepE1: 'a', stepE2: 'b', stepE3: 'c', stepX1: 'x', stepX2: 'y', stepX3: '3', stepX4: '4',
	stepPark: 'P', stepAck: 'A', stepSync: 'S', stepRelease: 'R',
}

// turns is the order that docs/architecture.md argues: parking happens at E1 or while Go serves, it is always
// acknowledge, serialise, release, and nothing stands between E2 and KVM_RUN.
var turns = regexp.MustCompile(`^(a(P((AS)+R)+)*bcxy(3|4(P((AS)+R)+)*))*(a(P((AS)+R)+)*(bc(xy?)?)?)?$`)

// TestStepOrder records the numbered steps over exits of both kinds and stops of both places.
func TestStepOrder(t *testing.T) {
	gate, in := make(chan bool), make(chan bool, 1<<20)
	m, born := boot(t, guestMixed, func(*Exit) Answer { in <- true; <-gate; return Answer{Kind: AnswerResume} })
	m.c.stepsOn = 1
	resume(t, born)
	gate <- true
	gate <- true
	for range 3 {
		<-in
	}
	resume(t, m.stop(t)) // while Go serves
	// It may sleep through the release until the next stop comes; here it shall not.
	for atomic.LoadUint32(&m.ledger.State) == breaks.StateParked {
		runtime.Gosched()
	}
	close(gate)
	for i := 0; i < 20; i++ { // wherever the vCPU is
		resume(t, m.stop(t))
	}
	p := m.stop(t)
	defer resume(t, p)
	s := []byte("aPA") // before stepsOn
	for _, v := range m.c.steps[:min(m.c.stepN, uint64(len(m.c.steps)))] {
		s = append(s, letters[v])
	}
	if m.c.stepN < uint64(len(m.c.steps)) {
		s = append(s, "SR"...) // of the stop that is held here
	} else {
		s = s[:bytes.LastIndexByte(s, 'c')+1] // the last whole entry of a full recording
	}
	if !turns.Match(s) {
		t.Fatalf("steps out of order: %s", s)
	}
	for _, want := range []string{"abcxy3", "abcxy4", "aPASRbc", "xy4PASR"} {
		if !regexp.MustCompile(want).Match(s) {
			t.Errorf("no %s in %s", want, s)
		}
	}
}

// TestStepOrderCanFail: the expression refuses orders that would be wrong.
func TestStepOrderCanFail(t *testing.T) {
	for _, bad := range []string{"bcxy3", "acbxy3", "abcyx3", "abcxy3bc", "aPSARbc", "abPASRc", "aPARbc", "abcxyPASR3", "aPASbc"} {
		if turns.MatchString(bad) {
			t.Errorf("%s passes", bad)
		}
	}
}

// TestStopCounts: kicks are counted, the vCPU is parked while stopped, and the books close around them.
func TestStopCounts(t *testing.T) {
	for name, code := range map[string][]byte{"spin": guestSpin, "constant": guestConstant, "served": guestServed, "mixed": guestMixed} {
		t.Run(name, func(t *testing.T) {
			m, born := boot(t, code, resumes)
			m.set.Resend = time.Hour // a lost kick is a timeout
			resent := m.set.Resends()
			resume(t, born)
			const rounds = 300
			for range rounds {
				p := m.stop(t)
				if m.ledger.State != breaks.StateParked {
					t.Fatalf("state %d while stopped", m.ledger.State)
				}
				b := m.ledger.Book[0]
				runtime.Gosched()
				if now := m.ledger.Book[0]; now.Total != b.Total || now.Guest != b.Guest {
					t.Fatal("the vCPU ran while stopped")
				}
				resume(t, p)
			}
			if n := m.ledger.Kicks; n != rounds+1 { // and the one it was born with
				t.Errorf("%d kicks acknowledged, want %d", n, rounds+1)
			}
			if n := m.set.Resends() - resent; n != 0 {
				t.Errorf("%d kicks were sent again", n)
			}
			p := m.stop(t)
			if err := p.End(seconds(10)); err != nil {
				t.Fatal(err)
			}
			<-m.Done()
			b := &m.ledger.Book[0]
			var sum uint64
			for i := range b.Cause {
				sum += b.Cause[i].Count
			}
			if sum != b.Total {
				t.Errorf("causes sum to %d, total %d", sum, b.Total)
			}
			if k := b.Cause[breaks.Kick].Count; k > rounds {
				t.Errorf("%d breaks by kicks from %d stops", k, rounds)
			}
			if m.ledger.State != breaks.StateEnded || m.ledger.End == 0 {
				t.Error("the ledger is not ended")
			}
		})
	}
}

// TestStopWhileServing: a stop does not wait for Go; the answer given meanwhile is not lost.
func TestStopWhileServing(t *testing.T) {
	in, out := make(chan bool), make(chan bool)
	m, born := boot(t, guestServed, func(*Exit) Answer { in <- true; <-out; return Answer{Kind: AnswerResume} })
	resume(t, born)
	for range 50 {
		<-in
		p := m.stop(t)
		total := m.ledger.Book[0].Total
		out <- true // answered while stopped
		for range 100 {
			runtime.Gosched()
		}
		if m.ledger.Book[0].Total != total {
			t.Fatal("an answer released a stopped vCPU")
		}
		resume(t, p)
		<-in // the answer got through
		out <- true
	}
	<-in
	p := m.stop(t)
	if err := p.End(seconds(10)); err != nil { // End while Go serves
		t.Fatal(err)
	}
	select {
	case <-m.Done():
		t.Error("Done before the handler has returned: Close would free what it uses")
	case <-time.After(10 * time.Millisecond):
	}
	out <- true
	<-m.Done()
}

// TestStopsSerialise: two requesters take turns; a stop never sees another's.
func TestStopsSerialise(t *testing.T) {
	m, born := boot(t, guestMixed, resumes)
	resume(t, born)
	const each = 500
	var wg sync.WaitGroup
	var mu sync.Mutex
	held := map[uint64]bool{}
	inside := 0
	for range 2 {
		wg.Go(func() {
			for range each {
				p, err := m.set.Stop(seconds(20))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				inside++
				if inside != 1 || held[p.Generation()] {
					t.Errorf("%d stops at once, generation %d", inside, p.Generation())
				}
				held[p.Generation()] = true
				inside--
				mu.Unlock()
				if m.ledger.State != breaks.StateParked {
					t.Errorf("state %d while stopped", m.ledger.State)
				}
				if err := p.Resume(seconds(20)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if len(held) != 2*each || m.ledger.Kicks != 2*each+1 {
		t.Errorf("%d generations, %d kicks, want %d and %d", len(held), m.ledger.Kicks, 2*each, 2*each+1)
	}
}

// TestReleaseInTwoSteps plays the requester by hand over two vCPUs: none serialises before it is told that
// the changes are final (V4), and none that has enters the guest before all have (V8).
func TestReleaseInTwoSteps(t *testing.T) {
	a, born := boot(t, guestConstant, resumes)
	resume(t, born)
	b, born := boot(t, guestConstant, resumes)
	resume(t, born)
	both := NewSet(a.Thread, b.Thread)
	both.Resend = time.Hour
	still := func(what string, m *machine, f func() uint64) {
		t.Helper()
		for was, end := f(), time.Now().Add(5*time.Millisecond); time.Now().Before(end); runtime.Gosched() {
			if f() != was {
				t.Fatalf("%s while generation %d was stopped", what, both.gen)
			}
		}
		if m.ledger.State != breaks.StateParked {
			t.Fatalf("state %d", m.ledger.State)
		}
	}
	synced := func(m *machine) func() uint64 {
		return func() uint64 { return load64(&m.c.synced) }
	}
	entered := func(m *machine) func() uint64 {
		return func() uint64 { return load64(&m.ledger.LastIn) }
	}
	for range 20 {
		p, err := both.Stop(seconds(10))
		if err != nil {
			t.Fatal(err)
		}
		g := p.Generation()
		still("a serialised before go", a, synced(a))
		still("b serialised before go", b, synced(b))
		store64(&a.c.goG, g)
		a.ring()
		for end := time.Now().Add(seconds(10)); load64(&a.c.synced) != g; runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatal("a does not serialise")
			}
		}
		still("a entered before b had serialised", a, entered(a))
		resume(t, p)
	}
	a.set.gen, b.set.gen = both.gen, both.gen // which end them
}

// TestAckTSC: the stamp lies between the request and Stop's return, and grows.
func TestAckTSC(t *testing.T) {
	m, born := boot(t, guestSpin, resumes)
	resume(t, born)
	last := uint64(0)
	for range 20 {
		p := m.stop(t)
		if a := p.AckTSC(0); a <= last || a < m.ledger.LastOut {
			t.Errorf("acknowledged at %d, after %d, left the guest at %d", a, last, m.ledger.LastOut)
		} else {
			last = a
		}
		resume(t, p)
	}
}

// TestStopZeroLimit: a limit that is up at once gives the error and leaves a VM that runs and can be stopped.
func TestStopZeroLimit(t *testing.T) {
	testenv.Need(t, testenv.ParallelCPUs) // where they take turns, all of the vCPU's may come before the look at the time
	m, born := boot(t, guestMixed, resumes)
	resume(t, born)
	late := 0
	for range 300 {
		p, err := m.set.Stop(-time.Second)
		switch {
		case errors.Is(err, ErrStopTimeout):
			late++
		case err != nil:
			t.Fatal(err)
		default:
			resume(t, p)
		}
	}
	if late == 0 {
		t.Error("no stop was too late")
	}
	p := m.stop(t)
	total := m.ledger.Book[0].Total
	resume(t, p)
	for end := time.Now().Add(seconds(10)); m.ledger.Book[0].Total < total+10; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("the guest does not run after stops that were given up")
		}
	}
}

// TestServingAllocatesNothing: from KVM_RUN's return to the next KVM_RUN neither the thread nor Go's half
// of the hand-over allocates; a stop allocates its Stopped and no more.
func TestServingAllocatesNothing(t *testing.T) {
	m, born := boot(t, guestMixed, resumes)
	resume(t, born)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	resume(t, m.stop(t))
	total := m.ledger.Book[0].Total
	runtime.ReadMemStats(&before)
	end := time.Now().Add(seconds(20))
	for m.ledger.Book[0].Total < total+4000 && time.Now().Before(end) {
		time.Sleep(time.Millisecond)
	}
	runtime.ReadMemStats(&after)
	n := m.ledger.Book[0].Total - total
	if got := after.Mallocs - before.Mallocs; n < 4000 || got > n/100 {
		t.Errorf("%d allocations over %d exits, want none of the loop's", got, n)
	}
	if a := testing.AllocsPerRun(500, func() { resume(t, m.stop(t)) }); a > 1 {
		t.Errorf("%v allocations for a stop and a resume, want 1", a)
	}
}

// TestPlaceBehindRelease: Meanwhile is called between the kicks and the acknowledgements, then behind the last release and before the next stop; there, where a vCPU
// far from the range stood is what it was while it waited.
func TestPlaceBehindRelease(t *testing.T) {
	m, born := boot(t, guestSpin, resumes, func(c *Config) { c.SyscallStub = 1 << 30 })
	resume(t, born)
	compared := 0
	for n := 0; compared < 20; n++ {
		if n == 10_000 {
			t.Fatalf("far from the range in %d of %d stops", compared, n)
		}
		kicked, released, alone := false, false, false
		p, err := m.set.StopFor(Purpose{Cause: breaks.Patch, Nr: 7, From: 0x10000, To: 0x10005, Meanwhile: func() { kicked = atomic.LoadUint64(&m.c.req) == m.set.gen }}, seconds(10))
		if err != nil {
			t.Fatal(err)
		}
		waits, behind := p.Place(0), Place{}
		waits.RIPs = slices.Clone(waits.RIPs) // its room is that of the next Place
		if err := p.ResumeThen(seconds(10), func() {
			released = atomic.LoadUint64(&m.c.rel) == m.set.gen
			alone = !m.set.mu.TryLock()
			for range 1000 {
				pause() // it is in the guest again
			}
			behind = p.Place(0)
		}); err != nil {
			t.Fatal(err)
		}
		if !kicked || !released || !alone {
			t.Fatalf("Meanwhile behind the kicks: %v; then behind the release: %v, before another stop: %v", kicked, released, alone)
		}
		if !waits.Between { // it had not entered the guest yet
			continue
		}
		compared++
		if p.Near() || !reflect.DeepEqual(waits, behind) {
			t.Fatalf("stopped at %+v, and behind the release at %+v", waits, behind)
		}
	}
}
