package vcpu

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/patch"
)

// The conformance test of the patch protocol: the requester's code (Set), the patcher's (patch.Patcher) and the vCPU's (parkStep) are the
// real ones; what is made up is KVM_RUN, and a front end that may execute stale bytes until it serialises. They run in one goroutine, a step at a time, in an order
// that a seeded generator chooses: so a failure can be had again by its seed. model/patch.pml is the same world for spin.

// faults are the mistakes that the protocol is there to avoid. Each is made by the world, around the real code.
type faults struct {
	deferred   bool // bytes are written while vCPUs run
	noSync     bool // V5 does nothing
	syncBefore bool // V5 comes before the stores, at V2
	noPlace    bool // nobody looks where a vCPU stands
	noImm      bool // P1 leaves immediate_exit 0; with handler
	lateClear  bool // V6 comes behind V8; with handler
	noWait     bool // P2 does not wait
	handler    bool // a signal outside KVM_RUN is consumed: nothing stays pending
	giveUp     bool // the stop's deadline may pass at any moment
	stuck      bool // and so may the resume's
	misread    bool // what was stored may read back as something else

	// Of a stop that carries stores (docs/decisions/0020-who-stores.md).
	untagged    bool // an acknowledgement counts for whatever stop is on
	giveUpBlind bool // who gives up does not look whose the stop is; with giveUp
	notCounted  bool // the stop may be over before all have been asked
	outBlind    bool // nor who declares the VM dead, whether all were released; with stuck
}

// Where a made-up vCPU is when it is not parking.
const (
	atTop   = 100 + iota // E1
	atRun                // KVM_RUN polls immediate_exit
	atEntry              // and then signals, with interrupts off
	inGuest
	atClear // with lateClear: behind the last look at req
	over
)

// The program: instruction A of two halves, instruction B. Both are of one version in a right pass.
const (
	siteA, siteB = 0x1007, 0x1010 // A crosses a word
	oldCode      = 0x11
	newCode      = 0x22
)

type fakeVCPU struct {
	c     *control
	t     *Thread
	at    uint8
	sig   bool
	stale [3]byte // front end: copies of A's halves and of B …
	have  [3]bool // … that it may hold
	mid   bool    // between A and B
	ver   byte    // of the A that was executed in this pass
	ran   int
}

type world struct {
	f       faults
	rng     *rand.Rand
	set     *Set
	v       []*fakeVCPU
	mem     []byte // 0x1000 …
	trail   bool   // as -DLAST has it: a vCPU is near between A and B
	one     bool   // only A is patched, and without a safe point: the stop carries its stores
	made    int    // how often the last vCPU made them
	writing bool
	dead    bool
	late    bool      // the stop was given up …
	was     [2]uint64 // … of which offer
	spins   bool      // the guest never leaves by itself
	waits   int
	failed  string
}

// ledgers are used again in every world: they are large, and nothing here depends on what is in them.
var ledgers [3]breaks.VCPU

func newWorld(t testing.TB, seed uint64, n int, f faults) *world {
	t.Helper()
	w := &world{f: f, rng: rand.New(rand.NewPCG(seed, 1)), mem: make([]byte, 64)}
	w.write(siteA, oldCode, oldCode)
	w.write(siteB, oldCode)
	w.spins = w.rng.IntN(2) == 0
	var threads []*Thread
	for i := range n {
		c := &control{run: &kvm.Run{}, ledger: &ledgers[i], serial: 2, sigset: 1 << (uint(KickSignal) - 1), req: 1, goG: 1, rel: 1, done: 1}
		th := &Thread{c: c, cfg: Config{ID: i, CPU: -1}}
		threads = append(threads, th)
		w.v = append(w.v, &fakeVCPU{c: c, t: th, at: atTop})
	}
	w.set = NewSet(threads...)
	w.set.between = w.between
	return w
}

func (w *world) write(at int, b ...byte) { copy(w.mem[at-0x1000:], b) }

func (w *world) code(k int) byte { return w.mem[[...]int{siteA, siteA + 1, siteB}[k]-0x1000] }

func (w *world) fail(format string, a ...any) {
	if w.failed == "" {
		w.failed = fmt.Sprintf(format, a...)
	}
}

// between is Set.between: what others do before the requester's next step.
func (w *world) between(label string, t *Thread) (late bool) {
	n := 8
	if w.f.notCounted && label == "P1 immediate_exit" {
		n = 200 // the whole stop
	}
	w.others(w.rng.IntN(n))
	w.uncount(label, t)
	switch label {
	case "P1 signal":
		if w.f.noImm {
			t.c.run.ImmediateExit = 0
		}
		w.v[t.cfg.ID].sig = true
	case "P2 mine":
		w.blind(label)
	case "P8":
		w.blind(label)
	case "P2", "P7":
		w.late = false
		if w.f.noWait && label == "P2" {
			t.c.ack = w.set.gen
			return false
		}
		often := 1
		if w.f.outBlind {
			often = 100
		}
		if w.f.giveUp && label == "P2" && w.rng.IntN(20) < often {
			w.late = true
			return true
		}
		if w.f.stuck && label == "P7" && w.rng.IntN(200) < often {
			if o := w.v[0].c.offer; w.f.outBlind && o.out&offerState == offerLast {
				o.out -= offerLast - offered
			}
			return true
		}
		if w.waits++; w.waits > 20000 {
			w.fail("lost: %s of vCPU %d never comes", label, t.cfg.ID)
			return true
		}
		w.others(1 + w.rng.IntN(8))
	}
	return false
}

// uncount is notCounted.
func (w *world) uncount(label string, t *Thread) {
	o := w.v[0].c.offer
	switch {
	case !w.f.notCounted || o.in>>offerGen != w.set.gen:
	case label == "P1 req" && t.cfg.ID == 0:
		o.in--
	case label == "P1 in":
		o.in++
	}
}

// blind is giveUpBlind: whose the stop was it is again, when it has been released.
func (w *world) blind(label string) {
	o := w.v[0].c.offer
	switch {
	case !w.f.giveUpBlind || !w.late:
	case label == "P2 mine":
		w.was = [2]uint64{o.in, o.out}
		if o.in&offerState == offerLast {
			o.in -= offerLast - offered
		}
	case label == "P8":
		o.in, o.out, w.late = w.was[0], w.was[1], false
	}
}

// others lets n steps of vCPUs and front ends happen.
func (w *world) others(n int) {
	for range n {
		v := w.v[w.rng.IntN(len(w.v))]
		if w.rng.IntN(3) == 0 {
			w.fetch(v)
			continue
		}
		w.step(v)
	}
}

// fetch is the front end: it copies, or by chance drops, one of the bytes.
func (w *world) fetch(v *fakeVCPU) {
	k := w.rng.IntN(3)
	if v.have[k] = !v.have[k]; v.have[k] {
		v.stale[k] = w.code(k)
	}
}

func (v *fakeVCPU) serialise() { v.have = [3]bool{} }

// executes gives byte k as v executes it.
func (w *world) executes(v *fakeVCPU, k int) byte {
	if v.have[k] {
		return v.stale[k]
	}
	return w.code(k)
}

// step is one step of a vCPU's thread.
func (w *world) step(v *fakeVCPU) {
	c := v.c
	switch v.at {
	case atTop:
		if w.f.handler {
			v.sig = false
		}
		switch {
		case load64(&c.req) != c.done:
			v.at = parkPending
		case load64(&c.quit) != 0:
			c.ended, v.at = 1, over
		default:
			v.at = atRun
		}
	case atRun:
		if w.f.handler {
			v.sig = false // between the look at req and the ioctl
		}
		v.at = atEntry
		if c.run.ImmediateExit != 0 {
			w.interrupted(v)
		}
	case atEntry:
		v.at = inGuest
		if v.sig {
			w.interrupted(v)
			return
		}
		c.open, c.kicked = 0, 0
		if w.writing {
			w.fail("in-guest: vCPU %d enters while bytes are written", c0(v))
		}
	case inGuest:
		if v.sig && w.rng.IntN(2) == 0 { // the interrupt that carries it takes its time
			w.interrupted(v)
			return
		}
		w.execute(v)
		if !w.spins && w.rng.IntN(10) == 0 { // an exit of the guest's own, answered on the thread
			c.open, c.cause, c.kicked = 1, uint64(breaks.Syscall), 0
			v.at = atTop
		}
	case atClear:
		c.run.ImmediateExit, v.sig, v.at = 0, false, atRun
	case over:
	default:
		w.park(v)
	}
	at := uint64(siteA)
	switch {
	case w.trail && v.mid:
		at++ // near
	case w.trail:
		at--
	case v.mid:
		at = siteA + 2
	case w.one && v.ran&2 != 0: // at a NOP in front of it: not near
		at--
	}
	c.run.Regs.RIP = at
}

func c0(v *fakeVCPU) int { return v.t.cfg.ID }

// interrupted is KVM_RUN returning EINTR.
func (w *world) interrupted(v *fakeVCPU) {
	c := v.c
	c.open, v.at = 1, atTop
	if load64(&c.req) != c.done {
		c.cause, c.kicked = uint64(breaks.Kick), 1
	} else {
		c.cause, v.sig = uint64(breaks.SpuriousKick), false
	}
	if w.f.handler {
		v.sig = false
	}
}

// execute is one instruction of the program.
func (w *world) execute(v *fakeVCPU) {
	if w.writing && !w.f.deferred {
		w.fail("in-guest: vCPU %d executes while bytes are written", c0(v))
	}
	if w.dead {
		w.fail("resumed: vCPU %d executes in a VM that is dead", c0(v))
	}
	v.ran++
	if !v.mid {
		a, b := w.executes(v, 0), w.executes(v, 1)
		if a != b {
			w.fail("torn: vCPU %d executes % x", c0(v), []byte{a, b})
		}
		v.ver, v.mid = a, true
		return
	}
	if b := w.executes(v, 2); b != v.ver && !w.one {
		w.fail("mixed: vCPU %d executes A of %#x and B of %#x", c0(v), v.ver, b)
	}
	v.mid = false
}

// park is one step of the real code, with the fault that the world makes.
func (w *world) park(v *fakeVCPU) {
	c, at := v.c, v.at
	imm, pending, g := c.run.ImmediateExit, load64(&c.sent) != c.taken, c.parkG
	if w.f.untagged && at == parkTake {
		c.parkG = c.offer.in >> offerGen
	}
	if v.at = parkStep(c, at); at == parkTake {
		c.parkG = g
	}
	switch at {
	case parkTake:
		if v.at == parkCompare {
			w.made++
			w.outside("the last vCPU stores")
			w.writing = true
		}
	case parkStore, parkTakeBack:
		if w.f.misread && w.rng.IntN(6) == 0 {
			w.mem[siteA-0x1000]++ // behind the last store of that byte, or before it
		}
	case parkMine:
		w.writing = false
	case parkGoAll:
		w.writing = v.at == parkGoAll
	case parkPending:
		if w.f.syncBefore {
			v.serialise()
		}
	case parkSync:
		if !w.f.noSync && !w.f.syncBefore {
			v.serialise()
		}
	case parkClear:
		if w.f.lateClear {
			c.run.ImmediateExit = imm
		}
	case parkEarly:
		if v.sig {
			v.sig = false
			c.taken++
		}
	case parkDrain:
		if pending {
			v.sig = false
		}
	}
	if v.at == parked {
		v.at = atTop
		if w.f.lateClear {
			v.at = atClear
		}
	}
}

// The world is the patcher's guest.

type fakeHalt struct {
	*Stopped
	w *world
}

func (w *world) Stop(number uint64, sites patch.Range, stores []patch.Store, limit time.Duration, meanwhile func()) (patch.Halt, error) {
	w.waits = 0
	p, err := w.set.StopFor(Purpose{Cause: breaks.Patch, Nr: number, From: sites.Start, To: sites.End, Stores: w.stores(stores), Meanwhile: meanwhile}, limit)
	if err != nil {
		return nil, err
	}
	if made, _, _, _ := p.Made(); !w.f.noWait && !made { // they were, and may have been let go
		w.outside("Stop returns")
	}
	return fakeHalt{p, w}, nil
}

// outside demands that no vCPU is in the guest.
func (w *world) outside(when string) {
	for _, v := range w.v {
		if v.at == inGuest || v.at == atEntry || v.at == atRun {
			w.fail("in-guest: vCPU %d is not stopped when %s", c0(v), when)
		}
	}
}

func (w *world) Word(addr uint64) (to, see []byte, ok bool) {
	b := w.mem[addr-0x1000:][:8]
	return b, b, true
}

func (w *world) Rehearsal() patch.Guest { return nil }

func (w *world) Look(addr uint64, n int) ([]byte, error) {
	w.others(w.rng.IntN(3))
	b := w.mem[addr-0x1000:][:n]
	if w.f.misread && w.writing && w.rng.IntN(6) == 0 {
		b = bytes.Clone(b)
		b[0]++
	}
	return b, nil
}

func (w *world) Writable(addr uint64, n int) ([]byte, error) {
	w.writing = true
	w.others(w.rng.IntN(4))
	return w.mem[addr-0x1000:][:n], nil
}

func (w *world) SafePoints() bool          { return true }
func (w *world) Gather(uint64)             {}
func (w *world) Await(time.Time) string    { w.others(w.rng.IntN(20)); return "" }
func (w *world) Scatter()                  {}
func (w *world) Sleep(time.Duration)       { w.others(1 + w.rng.IntN(30)) }
func (w *world) Entries([]uint64)          {}
func (w *world) Condemn(string)            { w.dead = true }
func (w *world) Exits() []uint64           { return nil }
func (w *world) Prepare(uint64, int) error { return nil }
func (w *world) TSC() uint64               { return 1 }

func (h fakeHalt) Synced(i int) uint64 { return h.SyncTSC(i) }

func (h fakeHalt) Places() (list []patch.Place) {
	for i := range h.VCPUs() {
		v := h.Place(i)
		list = append(list, patch.Place{ID: v.ID, Ended: v.Ended, Guest: v.Guest, RIPs: v.RIPs, Safe: h.w.f.noPlace || !h.w.v[i].mid, Where: "guest"})
	}
	return list
}

func (h fakeHalt) Resume(limit time.Duration, then func()) error {
	h.w.writing, h.w.waits = false, 0
	return h.Stopped.ResumeThen(limit, then)
}

func (h fakeHalt) End(limit time.Duration) error {
	h.w.waits = 0
	err := h.Stopped.End(limit)
	h.w.writing = false
	return err
}

// patchOnce flips A and B, as the protocol does it or as deferred patching does.
func (w *world) patchOnce(p *patch.Patcher, from, to byte) string {
	if w.f.deferred {
		w.writing = true
		for _, at := range []int{siteA, siteA + 1, siteB} {
			w.others(w.rng.IntN(6))
			w.write(at, to)
		}
		w.writing = false
		return patch.Committed
	}
	plan := w.plan(from, to)
	plan.Wait = 0
	r := p.Apply(plan)
	w.writing = false
	want := from
	if r.Outcome == patch.Committed {
		want = to
	}
	if r.Outcome != patch.Dead && !bytes.Equal(w.mem[siteA-0x1000:][:2], []byte{want, want}) || r.Outcome != patch.Dead && !w.one && w.mem[siteB-0x1000] != want {
		w.fail("memory: %s, and the text is % x % x", r.Outcome, w.mem[siteA-0x1000:][:2], w.mem[siteB-0x1000])
	}
	if len(r.VCPUs) != len(w.v) && r.Outcome == patch.Committed {
		w.fail("record: %d vCPUs", len(r.VCPUs))
	}
	return r.Outcome
}

// schedule is one run of the world.
func schedule(t testing.TB, seed uint64, f faults) (failed string, outcomes map[string]int) {
	rng := rand.New(rand.NewPCG(seed, 2))
	w := newWorld(t, seed, 1+rng.IntN(3), f)
	w.one = !f.noPlace && rng.IntN(2) == 0
	p := patch.New(w, patch.State{Text: []patch.Range{{Start: 0x1000, End: 0x1040}}, SafeRIPs: true})
	from, to := byte(oldCode), byte(newCode)
	outcomes = map[string]int{}
	for range 1 + rng.IntN(3) {
		w.others(rng.IntN(40))
		o := w.patchOnce(p, from, to)
		if outcomes[o]++; o == patch.Committed {
			from, to = to, from
		}
		if o == patch.Dead || w.failed != "" {
			break
		}
	}
	w.goOn()
	outcomes[made] += w.made
	return w.failed, outcomes
}

// goOn is L2: every vCPU runs again, or the VM is dead and every one ends.
func (w *world) goOn() {
	for _, v := range w.v {
		was := v.ran
		for n := 0; w.failed == "" && (w.dead && v.at != over || !w.dead && v.ran < was+3); n++ {
			if n > 20000 {
				w.fail("lost: vCPU %d runs no more", c0(v))
			}
			w.others(1)
		}
	}
}

// made is how often the last vCPU to stop began with the stores, among outcomes.
const made = "begun by the last vCPU"

// TestConformance: the real code, over many orders of its steps.
func TestConformance(t *testing.T) {
	n := uint64(100_000)
	if testing.Short() {
		n = 5000
	}
	all, ran, begin := map[string]int{}, uint64(0), time.Now()
	for i, f := range []faults{{}, {handler: true}, {giveUp: true}, {handler: true, giveUp: true, misread: true, stuck: true}} {
		for seed := range n / 4 {
			// An emulated processor is some hundred times slower: -short takes what it gets in ten seconds of each kind.
			if testing.Short() && seed >= 10 && time.Since(begin) > time.Duration(i+1)*10*time.Second {
				break
			}
			ran++
			failed, outcomes := schedule(t, seed+uint64(i)<<32, f)
			if failed != "" {
				t.Fatalf("%+v, seed %d: %s", f, seed, failed)
			}
			for o, k := range outcomes {
				all[o] += k
			}
		}
	}
	for _, o := range []string{patch.Committed, patch.Aborted, patch.RolledBack, patch.Dead, made} {
		if all[o] == 0 && ran == n {
			t.Errorf("no schedule in which a patch was %s: %v", o, all)
		}
	}
	t.Logf("%d schedules: %v", ran, all)
}

// TestConformanceCanFail: each mistake is found, and as what it is.
func TestConformanceCanFail(t *testing.T) {
	for _, c := range []struct {
		name string
		f    faults
		want string
	}{
		{"deferred", faults{deferred: true}, "torn"},
		{"no serialisation", faults{noSync: true}, "torn"},
		{"serialised before the stores", faults{syncBefore: true}, "torn"},
		{"no look at the place", faults{noPlace: true}, "mixed"},
		{"kick without immediate_exit", faults{noImm: true, handler: true}, "lost"},
		{"late clear", faults{lateClear: true, handler: true}, "lost"},
		{"no wait for the acknowledgement", faults{noWait: true}, "in-guest"},
		{"given up without a look at whose the stop is", faults{giveUp: true, giveUpBlind: true}, "memory"},
		{"a stop that may be over before all have been asked", faults{notCounted: true}, "lost"},
		{"condemned without a look at whether all were released", faults{stuck: true, outBlind: true}, "resumed"},
	} {
		found := map[string]int{}
		seed := uint64(0)
		for ; seed < 20_000 && found[c.want] == 0; seed++ {
			if failed, _ := schedule(t, seed, c.f); failed != "" {
				kind, _, _ := bytes.Cut([]byte(failed), []byte(":"))
				found[string(kind)]++
			}
		}
		if found[c.want] == 0 {
			t.Errorf("%s: not found as %q in %d schedules: %v", c.name, c.want, seed, found)
			continue
		}
		t.Logf("%s: %s, seed %d", c.name, c.want, seed-1)
	}
}
