package vcpu

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"golang.org/x/sys/unix"
)

// stepped is a vCPU whose thread is this test, a step at a time; KVM_RUN is not in it, and its descriptor is none of KVM's.
func stepped(t *testing.T) (*Set, *control) {
	t.Helper()
	c := &control{run: &kvm.Run{}, ledger: new(breaks.VCPU), serial: 2, sigset: 1 << (uint(KickSignal) - 1), req: 1, goG: 1, rel: 1, done: 1, fd: ^uintptr(0)}
	s := NewSet(&Thread{c: c, cfg: Config{CPU: -1, SyscallStub: 0x80000000, ExceptionStub: 0x80001000, ExceptionStep: 16}})
	c.stubRIP, c.excRIP, c.excStep = 0x80000000, 0x80001000, 16
	return s, c
}

// steps makes steps until the next one would be last.
func (c *control) until(t *testing.T, at, last uint8) uint8 {
	t.Helper()
	for range 20 {
		if at == last {
			return at
		}
		at = parkStep(c, at)
	}
	t.Fatalf("step %d does not come", last)
	return at
}

// TestInspectedWhereItMatters: what waits to be injected is read where the vCPU may go on within the range that was asked for, and only
// there; elsewhere it is unknown, not absent. That descriptor tells nothing, so who is at the range's first address is near it, too.
func TestInspectedWhereItMatters(t *testing.T) {
	const stub, exception = 0x80000002, 0x80001010
	for _, c := range []struct {
		name             string
		rip, rcx, pushed uint64
		kicked, site, nr uint64
		from, to         uint64
		near             bool
	}{
		{name: "in front of it", rip: 0xfff, kicked: 1, from: 0x1000, to: 0x1005},
		{name: "at its start", rip: 0x1000, kicked: 1, from: 0x1000, to: 0x1005, near: true},
		{name: "at its last byte", rip: 0x1004, kicked: 1, from: 0x1000, to: 0x1005, near: true},
		{name: "behind it", rip: 0x1005, kicked: 1, from: 0x1000, to: 0x1005},
		{name: "in the stub of system calls", rip: stub, rcx: 0x1005, kicked: 1, from: 0x1000, to: 0x1005},
		{name: "in the stub of system calls, called in it", rip: stub, rcx: 0x1002, kicked: 1, from: 0x1000, to: 0x1005, near: true},
		{name: "in a stub of exceptions", rip: exception, pushed: 0xfff, kicked: 1, from: 0x1000, to: 0x1005},
		{name: "in a stub of exceptions, from it", rip: exception, pushed: 0x1001, kicked: 1, from: 0x1000, to: 0x1005, near: true},
		{name: "an exit is being served", rip: stub, rcx: 0x2002, site: 0x2000, from: 0x1000, to: 0x1005},
		{name: "an exit of its own is being served", rip: stub, rcx: 0x2002, site: 0x1000, from: 0x1000, to: 0x1005, near: true},
		{name: "a return from a handler is being served", rip: stub, rcx: 0x2002, site: 0x2000, nr: sysRtSigreturn, from: 0x1000, to: 0x1005, near: true},
		{name: "nobody asks", rip: 0x1000, kicked: 1},
	} {
		s, v := stepped(t)
		v.open, v.kicked, v.cause, v.rip, v.nr = 1, c.kicked, uint64(breaks.Kick), c.site, c.nr
		if c.kicked == 0 {
			v.cause = uint64(breaks.Syscall)
		}
		v.run.Regs.RIP, v.run.Regs.RCX = c.rip, c.rcx
		v.lookFrom, v.lookTo = c.from, c.to
		frame := [5]uint64{c.pushed}
		v.frame = wordAddr(&frame[0]) + 40
		v.req, s.gen = 2, 2
		v.until(t, parkPending, parkGo)
		p := &Stopped{s: s, rips: make([]uint64, mostRIPs)}
		if p.Near() != c.near {
			t.Errorf("%s: near is %v", c.name, p.Near())
		}
		if read := v.looked != 0; read != c.near {
			t.Errorf("%s: it was read: %v", c.name, read)
		}
		if w := p.Place(0); !w.Unknown || w.Events != "" {
			t.Errorf("%s: %+v; that descriptor tells nothing", c.name, w)
		}
		runtime.KeepAlive(&frame)
	}
}

// TestWhatWaits: what makes a vCPU near, at the first address of the range, is what Place names.
func TestWhatWaits(t *testing.T) {
	var c control
	e := &c.events
	for i, b := range []*uint8{&e.Exception.Injected, &e.Exception.Pending, &e.Interrupt.Injected, &e.NMI.Injected, &e.NMI.Pending, &e.SMI.Pending} {
		if waits(e) || c.pending() != "" {
			t.Fatalf("%+v: waits", e)
		}
		if *b = 1; !waits(e) || c.pending() == "" {
			t.Errorf("event %d does not wait", i)
		}
		*b = 0
	}
	e.Exception.Nr, e.Interrupt.Shadow, e.NMI.Masked, e.Flags = 14, 1, 1, 0xff
	if waits(e) || c.pending() != "" {
		t.Errorf("%+v: waits", e)
	}
}

// blockKick has the kick's signal stay pending on this thread until the test ends.
func blockKick(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	var set, old unix.Sigset_t
	set.Val[0] = 1 << (uint(KickSignal) - 1)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, &old); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // on the test's own goroutine, and so on this thread
		if err := unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	})
}

// TestNearby: at the range's first address a vCPU is near only if something waits there, or nobody could tell; behind it always.
func TestNearby(t *testing.T) {
	var none, some kvm.VCPUEvents
	some.Exception.Pending = 1
	for _, c := range []struct {
		where, looked uint64
		events        *kvm.VCPUEvents
		near          uint64
	}{
		{atFirst, 1, &none, 0}, {atFirst, 2, &none, 1}, {atFirst, 1, &some, 1}, {inside, 1, &none, 1}, {inside | atFirst, 1, &none, 1},
	} {
		if got := nearby(c.where, c.looked, c.events); got != c.near {
			t.Errorf("%+v: near %d", c, got)
		}
	}
}

// offers is a set of stepped vCPUs that are stopped with one store, which none has acknowledged; the requester has asked all.
func offers(t *testing.T, n int) (s *Set, vs []*control, word *uint64) {
	t.Helper()
	var threads []*Thread
	for range n {
		_, v := stepped(t)
		v.open, v.kicked, v.cause, v.run.Regs.RIP = 1, 1, uint64(breaks.Kick), 0x2000
		v.lookFrom, v.lookTo, v.req = 0x1000, 0x1005, 2
		vs = append(vs, v)
		threads = append(threads, &Thread{c: v, cfg: Config{CPU: -1}})
	}
	s = NewSet(threads...)
	s.gen = 2
	word = new(uint64)
	*word = 7
	s.offer([]Store{{To: wordAddr(word), Old: 7, New: 8}})
	s.asked()
	return s, vs, word
}

// TestLastStores: who acknowledges last stores and lets all go; not if one of them is near, whichever; nor if the word does not hold what it must.
func TestLastStores(t *testing.T) {
	for near := -1; near < 3; near++ {
		s, vs, word := offers(t, 3)
		for i, v := range vs {
			if i == near {
				v.run.Regs.RIP = 0x1002
			}
			if v.until(t, parkPending, parkGo); *word != 7 && i < 2 {
				t.Fatalf("near %d: stored before all were out", near)
			}
		}
		whose, given := s.claim()
		if made := near < 0; *word == 8 != made || whose == offerLast != made || given == made || vs[0].goG == 2 != made {
			t.Errorf("near %d: the word is %d, whose %#x, given %v, goG %d", near, *word, whose, given, vs[0].goG)
		}
	}
	s, vs, word := offers(t, 1)
	*word = 9
	vs[0].until(t, parkPending, parkGo)
	if whose, given := s.claim(); *word != 9 || whose != offerMine || given || vs[0].ack != 2 {
		t.Errorf("the word is %d, whose %#x, given %v, acknowledged %d", *word, whose, given, vs[0].ack)
	}
}

// TestAgainTakesTheOffer: a kick is sent again only when no one else can let its vCPU go meanwhile.
func TestAgainTakesTheOffer(t *testing.T) {
	blockKick(t)
	for _, stored := range []bool{false, true} {
		s, vs, word := offers(t, 1)
		s.threads[0].tid, s.Resend = unix.Gettid(), time.Millisecond
		s.mu.Lock()
		if stored {
			vs[0].until(t, parkPending, parkGo) // ack is owed
		}
		p, err := s.wait(&Stopped{s: s}, time.Now().Add(20*time.Millisecond))
		sent := drain(&vs[0].sigset, &vs[0].zero)
		if stored { // it comes to no end
			if sent || s.Resends() != 0 || err != nil || p.whose != offerDoubt || *word != 8 {
				t.Errorf("stored: sent again %v, %d times, %v, word %d", sent, s.Resends(), err, *word)
			}
			s.mu.Unlock()
			continue
		}
		if !sent || s.Resends() == 0 || !errors.Is(err, ErrStopTimeout) {
			t.Errorf("not stored: sent again %v, %d times, %v", sent, s.Resends(), err)
		}
		if vs[0].until(t, parkPending, parkGo); *word != 7 {
			t.Error("stored behind a stop that was given up")
		}
		for drain(&vs[0].sigset, &vs[0].zero) {
		}
	}
}

// TestLettingGoNeverLowers: a vCPU that is held up while it lets all go does no harm to the next stop.
func TestLettingGoNeverLowers(t *testing.T) {
	_, vs, _ := offers(t, 2)
	vs[0].turn, vs[0].parkG = vs[0].address(), 2
	vs[1].rel = 3
	if !nextOf(vs[0], &vs[0].rel) || nextOf(vs[0], &vs[1].rel) || vs[0].rel != 2 || vs[1].rel != 3 {
		t.Errorf("released %d and %d", vs[0].rel, vs[1].rel)
	}
}

// TestInspectedAgain: a stop that comes while the vCPU still waits from an older one asks for itself.
func TestInspectedAgain(t *testing.T) {
	s, v := stepped(t)
	v.open, v.kicked, v.cause, v.run.Regs.RIP = 1, 1, uint64(breaks.Kick), 0x1000
	v.req, s.gen = 2, 2
	at := v.until(t, parkPending, parkGo)
	if v.looked != 0 || v.ack != 2 {
		t.Fatalf("looked %d, acknowledged %d", v.looked, v.ack)
	}
	v.goG, v.rel = 2, 2 // given up
	v.lookFrom, v.lookTo, v.req, s.gen = 0x1000, 0x1005, 3, 3
	v.until(t, parkStep(v, at), parkGo)
	p := &Stopped{s: s, rips: make([]uint64, mostRIPs)}
	if v.ack != 3 || v.looked != 2 || !p.Near() {
		t.Errorf("acknowledged %d, looked %d, near %v", v.ack, v.looked, p.Near())
	}
	if w := p.Place(0); w.Guest || !w.Between || w.RIPs[0] != 0x1000 {
		t.Errorf("taken out of the guest by the stop before: %+v", w)
	}
}

// TestKicksAreTaken: whenever the kick comes, it is not pending when the vCPU goes on; where it was taken early no system call is made for it at V7.
func TestKicksAreTaken(t *testing.T) {
	blockKick(t)
	for _, when := range []uint8{parkPending, parkAck, parkEarly, parkGo, parkDrain} {
		s, v := stepped(t)
		s.threads[0].tid = unix.Gettid()
		v.req, v.goG, v.rel, s.gen = 2, 2, 2, 2
		at := v.until(t, parkPending, when)
		if err := s.kick(s.threads[0]); err != nil {
			t.Fatal(err)
		}
		at = v.until(t, at, parkDrain)
		if early := v.taken == v.sent; early != (when <= parkEarly) {
			t.Errorf("sent before step %d: taken early: %v", when, early)
		}
		v.until(t, at, parked)
		if drain(&v.sigset, &v.zero) {
			t.Errorf("sent before step %d: still pending", when)
		}
	}
	// One that is pending but not counted yet is taken by V3, and V7 need not look.
	s, v := stepped(t)
	v.req, v.goG, v.rel, s.gen = 2, 2, 2, 2
	if err := unix.Tgkill(s.pid, unix.Gettid(), KickSignal); err != nil {
		t.Fatal(err)
	}
	at := v.until(t, parkPending, parkGo)
	v.sent++
	v.until(t, at, parked)
	if v.taken != 1 || drain(&v.sigset, &v.zero) {
		t.Errorf("%d taken of 1", v.taken)
	}
	// V3 takes one of several, V7 the others; and so it is after somebody else has sent one, or a spurious return has taken one.
	for n := range uint64(4) {
		s, v := stepped(t)
		v.req, v.goG, v.rel, s.gen, v.taken = 2, 2, 2, 2, 2
		s.threads[0].tid = unix.Gettid()
		v.sent = 1 + n // of them 1 is counted that was taken twice, or n-1 that were taken and not counted
		for range 3 {
			if err := s.kick(s.threads[0]); err != nil {
				t.Fatal(err)
			}
		}
		v.until(t, parkPending, parked)
		if v.taken != v.sent && v.taken != v.sent-1 || v.taken == 3 {
			t.Errorf("%d taken of %d", v.taken, v.sent)
		}
		if n != 0 && drain(&v.sigset, &v.zero) {
			t.Errorf("%d: still pending", n)
		}
		for drain(&v.sigset, &v.zero) {
		}
	}
}

// TestEachSerialises: V5 comes back from each of the three instructions, on any stack, as many times as it is asked.
func TestEachSerialises(t *testing.T) {
	kinds := []uint64{2}
	if _, name, _, _ := kvm.CPUID(0x40000000, 0); name != 0x54474354 { // QEMU's emulator, where IRET may hang (vmm.serialiseKind)
		kinds = append(kinds, 3)
	}
	if top, _, _, _ := kvm.CPUID(0, 0); top >= 7 {
		if _, _, _, d := kvm.CPUID(7, 0); d&(1<<14) != 0 {
			kinds = append(kinds, 1)
		}
	}
	t.Logf("kinds %d", kinds)
	var deeper func(n int, kind uint64) int
	deeper = func(n int, kind uint64) int { // a frame that was written over would give another sum
		local := [4]int{n, n, n, n}
		serialise(kind)
		if n > 0 {
			local[n%4] += deeper(n-1, kind)
		}
		return local[0] + local[1] + local[2] + local[3]
	}
	for _, kind := range kinds {
		for range 100 {
			if got, want := deeper(100, kind), 4*5050; got != want {
				t.Fatalf("kind %d: %d, want %d: the stack is spoilt", kind, got, want)
			}
		}
	}
}

// TestSetRehearsal: the set to rehearse with goes through a stop and a resume, and touches nothing of the other's.
func TestSetRehearsal(t *testing.T) {
	s, v := stepped(t)
	was, gen := *v, s.gen
	for range 3 {
		there := false
		p, err := s.Rehearsal().StopFor(Purpose{Cause: breaks.Patch, Nr: 7, From: 1, To: 2, Meanwhile: func() { there = true }}, 0)
		if err != nil {
			t.Fatal(err)
		}
		behind := false
		if err := p.ResumeThen(0, func() { behind = p.VCPUs() == 1 && p.Place(0).Ended }); err != nil || !there || !behind || p.Near() || p.Released() == 0 {
			t.Fatalf("%v; meanwhile %v, then %v, near %v", err, there, behind, p.Near())
		}
	}
	if *v != was || s.gen != gen || !s.mu.TryLock() {
		t.Error("the set that was to be stopped is not as it was")
	}
}
