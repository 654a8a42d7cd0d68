package patch

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// fake is a guest without vCPUs' code: its places are given.
type fake struct {
	mem     []byte // text from 0x1000, then spare text, then spare data; 0x100 each
	places  func(stop int) []Place
	stops   int
	stopped bool
	stopErr error
	dead    string
	entries []uint64
	missing string
	gather  int
	slept   time.Duration
	outside []uint64 // stores to text while nothing was stopped
	waited  []string // what was done while the vCPUs waited, that need not be
	counted int
	far     bool // no vCPU is near the sites, whatever places say

	asks     []bool // places were asked for, while the vCPUs resumed
	resuming bool
	asked    Range // of the stop

	last        func([]Store) (made, doubt bool) // the last vCPU to stop; nil: Go is always asked
	offer       []Store
	made, doubt bool
	noWord      bool     // a word is not all text
	other       []byte   // what the guest sees where the alias shows a word
	during      []uint64 // entries, while stopped

	practice  *fake // what a stop is rehearsed with
	looks     int
	rehearsed bool // Stop's meanwhile looked at text
}

func newFake() (*fake, *Patcher) {
	f := &fake{mem: make([]byte, 0x300), places: func(int) []Place {
		return []Place{{ID: 0, CPU: -1, Where: WhereGuest, Guest: true, RIPs: []uint64{0x10f0}}}
	}}
	for i := range f.mem[:0x100] {
		f.mem[i] = byte(i)
	}
	return f, New(f, State{
		BuildID: "b1", Text: []Range{{0x1000, 0x1100}}, SpareText: Space{0x1100, 0x1200, 0x1100}, SpareData: Space{0x1200, 0x1300, 0x1200},
		TSCHz: 1e9, Serialise: "CPUID",
	})
}

func (f *fake) Stop(_ uint64, sites Range, stores []Store, _ time.Duration, meanwhile func()) (Halt, error) {
	n := f.looks
	if meanwhile != nil {
		meanwhile()
	}
	f.rehearsed = f.looks > n
	f.asked = sites
	f.stops++
	f.stopped = f.stopErr == nil
	f.during, f.offer, f.made, f.doubt = f.entries, stores, false, false
	if f.last != nil && len(stores) > 0 {
		f.made, f.doubt = f.last(stores)
	}
	return f, f.stopErr
}
func (f *fake) Made() (made, doubt bool, first, last uint64) { return f.made, f.doubt, 11, 12 }
func (f *fake) Word(addr uint64) (to, see []byte, ok bool) {
	b, err := f.bytes(addr, 8)
	if f.noWord {
		return nil, nil, false
	}
	if f.other != nil {
		return b, f.other, true
	}
	return b, b, err == nil && addr < 0x1100
}
func (f *fake) Rehearsal() Guest {
	if f.practice == nil {
		return nil
	}
	return f.practice
}
func (f *fake) bytes(addr uint64, n int) ([]byte, error) {
	if addr < 0x1000 || addr-0x1000 > uint64(len(f.mem)-n) {
		return nil, fmt.Errorf("%#x is nowhere", addr)
	}
	return f.mem[addr-0x1000:][:n], nil
}
func (f *fake) Look(addr uint64, n int) ([]byte, error) {
	f.looks++
	return f.bytes(addr, n)
}
func (f *fake) Writable(addr uint64, n int) ([]byte, error) {
	if addr < 0x1100 && !f.stopped {
		f.outside = append(f.outside, addr)
	}
	return f.bytes(addr, n)
}
func (f *fake) SafePoints() bool       { return f.gather >= 0 }
func (f *fake) Gather(uint64)          { f.gather++ }
func (f *fake) Await(time.Time) string { return f.missing }
func (f *fake) Scatter()               {}
func (f *fake) Sleep(d time.Duration)  { f.slept += d; time.Sleep(time.Millisecond) }
func (f *fake) Entries(l []uint64)     { f.entries = l }
func (f *fake) Condemn(why string)     { f.dead = why }
func (f *fake) Exits() []uint64 {
	if f.stopped {
		f.waited = append(f.waited, "Exits")
	}
	f.counted++
	return []uint64{uint64(6 + f.counted)}
}
func (f *fake) Prepare(addr uint64, n int) error {
	if f.stopped {
		f.waited = append(f.waited, "Prepare")
	}
	_, err := f.bytes(addr, n)
	return err
}
func (f *fake) TSC() uint64        { return 1 }
func (f *fake) Generation() uint64 { return uint64(f.stops) }
func (f *fake) Begun() uint64      { return 1 }
func (f *fake) Released() uint64   { return 3 }
func (f *fake) Places() []Place    { return f.places(f.stops) }
func (f *fake) Near() bool         { return !f.far }
func (f *fake) Resume(_ time.Duration, then func()) error {
	f.stopped, f.resuming = false, true
	then()
	f.resuming = false
	return nil
}
func (f *fake) End(time.Duration) error { return nil }
func (f *fake) Synced(int) uint64       { return 2 }

func site(name string, addr uint64, b ...byte) Site {
	old := make([]byte, len(b))
	for i := range old {
		old[i] = byte(addr) + byte(i)
	}
	return Site{Name: name, Kind: Raw, Addr: addr, Old: old, New: b}
}

func simple(s ...Site) Plan {
	return Plan{BuildID: "b1", Name: "t", Wait: 20 * time.Millisecond, Sites: s}
}

// TestNothingWaitsInVain: what can be done before or behind the stop is not done while every vCPU waits; and places that decide nothing are
// asked for when the vCPUs were let go.
func TestNothingWaitsInVain(t *testing.T) {
	f, p := newFake()
	f.far = true
	f.places = func(int) []Place {
		f.asks = append(f.asks, f.resuming)
		return []Place{{ID: 0, CPU: -1, Where: WhereGuest, Guest: true, RIPs: []uint64{0x1000}}}
	}
	r := p.Apply(simple(site("s", 0x1010, 1, 2)))
	if f.rehearsed {
		t.Error("text was looked at while a vCPU may store there")
	}
	if r.Outcome != Committed || len(f.waited) != 0 || len(f.asks) != 1 || !f.asks[0] {
		t.Errorf("%s: %s; while the vCPUs waited: %v; places were asked for while they resumed: %v", r.Outcome, r.Reason, f.waited, f.asks)
	}
	if v := r.VCPUs[0]; v.RIP != 0x1000 || v.Exits != 7 || v.ExitsAt != 8 || f.asked != (Range{0x1010, 0x1012}) {
		t.Errorf("recorded %+v, asked about %#x", v, f.asked)
	}
	f.far, f.asks = false, nil
	if r := p.Apply(simple(site("s", 0x1020, 1, 2), site("t", 0x1030, 1))); r.Outcome != Committed || len(f.asks) != 1 || f.asks[0] || f.asked != (Range{0x1020, 0x1031}) {
		t.Errorf("near: %s: %s; places were asked for while they resumed: %v; asked about %#x", r.Outcome, r.Reason, f.asks, f.asked)
	}
	f.far, f.asks, f.gather = true, nil, 0
	plan := simple(site("s", 0x1040, 1))
	plan.SafePoint = true
	if p.Apply(plan); len(f.asks) == 0 || f.asks[0] || !f.rehearsed {
		t.Errorf("safe points: places were asked for while they resumed: %v; text was looked at while the vCPUs came out: %v", f.asks, f.rehearsed)
	}
}

// makes is what the last vCPU to stop does with the stores of a stop.
func makes(list []Store) (made, doubt bool) {
	for _, s := range list {
		if binary.LittleEndian.Uint64(s.To) != s.Old {
			return false, false
		}
	}
	for _, s := range list {
		binary.LittleEndian.PutUint64(s.To, s.New)
	}
	return true, false
}

// TestStores: a stop carries the patch as words, where Go need not judge, and what is made of them is not made again.
func TestStores(t *testing.T) {
	f, p := newFake()
	f.last, f.gather = makes, -1
	was := bytes.Clone(f.mem)
	// Two sites in one word, one that crosses two.
	r := p.Apply(simple(site("s", 0x1011, 1, 2), site("t", 0x1014, 3), site("u", 0x101e, 4, 5, 6, 7)))
	want := bytes.Clone(was)
	copy(want[0x11:], []byte{1, 2})
	want[0x14] = 3
	copy(want[0x1e:], []byte{4, 5, 6, 7})
	if r.Outcome != Committed || r.Stops != 1 || len(f.offer) != 3 || !bytes.Equal(f.mem, want) || f.outside != nil || r.Stopped != 11 || r.FirstStore != 11 || r.LastStore != 12 || len(r.VCPUs) != 1 {
		t.Errorf("%s: %s: %d words, outside %#x, %+v", r.Outcome, r.Reason, len(f.offer), f.outside, r)
	}
	if r := p.Apply(Plan{Revert: 1, Name: "r"}); r.Outcome != Committed || len(f.offer) != 3 || !bytes.Equal(f.mem, was) {
		t.Errorf("revert: %s: %s: %d words", r.Outcome, r.Reason, len(f.offer))
	}

	// Where Go has to judge there are none.
	f.gather, f.places = 0, func(int) []Place { return []Place{{Where: WhereSafePoint, Safe: true, RIPs: []uint64{0x10f0}}} }
	restartable := simple(site("s", 0x1010, 1))
	restartable.Sites[0].Restartable = true
	safe := simple(site("s", 0x1020, 1))
	safe.SafePoint = true
	var many Plan
	for i := range MostStores + 1 {
		many.Sites = append(many.Sites, site("s", 0x1040+8*uint64(i), 1))
	}
	for name, plan := range map[string]Plan{"restartable": restartable, "safe point": safe, "too many": simple(many.Sites...)} {
		if r := p.Apply(plan); r.Outcome != Committed || f.offer != nil {
			t.Errorf("%s: %s: %s: %d words", name, r.Outcome, r.Reason, len(f.offer))
		}
	}

	for _, twist := range []func(f *fake){func(f *fake) { f.noWord = true }, func(f *fake) { f.other = make([]byte, 8) }} {
		f, p := newFake()
		f.last, f.gather = makes, -1
		twist(f)
		if r := p.Apply(simple(site("s", 0x1010, 1, 2))); r.Outcome != Committed || f.offer != nil {
			t.Errorf("a word that is not all text, or not the guest's: %s: %s: %d words", r.Outcome, r.Reason, len(f.offer))
		}
	}

	// What is not made is judged as ever: here it is refused, the text having changed behind the check.
	f, p = newFake()
	f.last = func(list []Store) (bool, bool) {
		f.mem[0x11]++
		return makes(list)
	}
	if r := p.Apply(simple(site("s", 0x1010, 1, 2))); r.Outcome != Refused || !strings.Contains(r.Reason, "holds 10 12") || f.mem[0x10] != 0x10 {
		t.Errorf("old bytes differ: %s: %s", r.Outcome, r.Reason)
	}
	f, p = newFake()
	f.last = func([]Store) (bool, bool) { return false, true }
	if r := p.Apply(simple(site("s", 0x1010, 1, 2))); r.Outcome != Dead || f.dead == "" || p.Apply(simple(site("s", 0x1010, 1))).Outcome != Refused {
		t.Errorf("in doubt: %s: %s; condemned: %q", r.Outcome, r.Reason, f.dead)
	}
}

// TestEntriesAround: while a stop may make or take back a redirect, a return into its NOPs goes to the entry; behind it what is in force is told, and only that.
func TestEntriesAround(t *testing.T) {
	f, p := newFake()
	f.last = makes
	s := site("s", 0x1010, 0xe9, 2, 3, 4, 5)
	s.Kind = Redirect
	one := []uint64{0x1010}
	if r := p.Apply(simple(s)); r.Outcome != Committed || !slices.Equal(f.during, one) || !slices.Equal(f.entries, one) {
		t.Errorf("%s: during %#x, then %#x", r.Outcome, f.during, f.entries)
	}
	f.stopErr = errors.New("made to fail")
	u := site("u", 0x1020, 0xe9, 2, 3, 4, 5)
	u.Kind = Redirect
	if r := p.Apply(simple(u)); r.Outcome != Aborted || !slices.Equal(f.during, []uint64{0x1010, 0x1010, 0x1020}) || !slices.Equal(f.entries, one) {
		t.Errorf("%s: during %#x, then %#x", r.Outcome, f.during, f.entries)
	}
	f.stopErr = nil
	if r := p.Apply(Plan{Revert: 1, Name: "r"}); r.Outcome != Committed || !slices.Contains(f.during, 0x1010) || len(f.entries) != 0 {
		t.Errorf("revert: %s: during %#x, then %#x", r.Outcome, f.during, f.entries)
	}
}

// TestRehearsal: a stop is rehearsed before the vCPUs are asked, each time, by every step up to the release, and nothing comes of it: no store, no step of the
// protocol, no entry of a function, no record; not even where it fails.
func TestRehearsal(t *testing.T) {
	for _, fails := range []bool{false, true} {
		f, p := newFake()
		f.far = true
		f.practice, _ = newFake()
		f.practice.far = true
		was := bytes.Clone(f.practice.mem)
		before, resumed := true, false
		f.practice.places = func(int) []Place {
			before, resumed = before && f.stops == f.practice.stops-1, f.practice.resuming
			return []Place{{ID: 0, Ended: true}}
		}
		if fails {
			f.practice.stopErr = errors.New("made to fail")
		}
		steps := map[string]int{}
		p.at = func(step string) error { steps[step]++; return nil }
		s := site("s", 0x1010, 0xe9, 2, 3, 4, 5)
		s.Kind = Redirect
		r := p.Apply(simple(s))
		if r.Outcome != Committed || r.Stops != 1 || f.practice.stops != 1 || resumed == fails || !before || len(r.VCPUs) != 1 || r.VCPUs[0].Where != WhereGuest {
			t.Errorf("fails %v: %s: %s: %d stops, %d rehearsed, before: %v, up to the resume: %v; %+v", fails, r.Outcome, r.Reason, r.Stops, f.practice.stops, before, resumed, r.VCPUs)
		}
		if steps["P1"] != 1 || steps["P5 store"] != 1 || f.outside != nil || f.dead != "" || f.practice.dead != "" || f.practice.entries != nil || f.practice.counted != 0 ||
			!bytes.Equal(was, f.practice.mem) || len(p.State().Applied) != 1 {
			t.Errorf("fails %v: something came of the rehearsal: steps %v, stores %#x, dead %q %q, entries %#x", fails, steps, f.outside, f.dead, f.practice.dead, f.practice.entries)
		}
		f.far, f.places = false, func(stop int) []Place {
			if stop < 4 {
				return []Place{{RIPs: []uint64{0x1021}}}
			}
			return []Place{{RIPs: []uint64{0x1000}}}
		}
		if r := p.Apply(simple(site("t", 0x1020, 1, 2))); r.Outcome != Committed || r.Stops != 3 || f.practice.stops != 4 {
			t.Errorf("fails %v: tried again: %s: %d stops, %d rehearsed", fails, r.Outcome, r.Stops, f.practice.stops-1)
		}
	}
}

// TestPlaces: a vCPU that stands where it must not is resumed and tried again, counted, up to the plan's limit; then nothing was changed.
func TestPlaces(t *testing.T) {
	s := site("s", 0x1010, 1, 2, 3, 4, 5)
	restartable := s
	restartable.Restartable = true
	for _, c := range []struct {
		name  string
		site  Site
		place Place
		says  string
	}{
		{"before", s, Place{RIPs: []uint64{0x100f}}, ""},
		{"at its start", s, Place{RIPs: []uint64{0x1010}}, ""},
		{"behind", s, Place{RIPs: []uint64{0x1015}}, ""},
		{"inside", s, Place{RIPs: []uint64{0x1011}}, "stands inside"},
		{"at its last byte", s, Place{RIPs: []uint64{0x1014}}, "stands inside"},
		{"returns into it", s, Place{RIPs: []uint64{0x10f0, 0x1012}}, "stands inside"},
		{"half-way through", restartable, Place{RIPs: []uint64{0x1010}}, "half-way"},
		{"with an exception", s, Place{RIPs: []uint64{0x1010}, Events: "exception 14"}, "exception 14 to be delivered"},
		{"elsewhere with an exception", s, Place{RIPs: []uint64{0x1000}, Events: "exception 14"}, ""},
		{"nobody knows", s, Place{RIPs: []uint64{0x1010}, Unknown: true}, "does not tell"},
		{"ended", s, Place{RIPs: []uint64{0x1011}, Ended: true}, ""},
	} {
		f, p := newFake()
		was := bytes.Clone(f.mem)
		f.places = func(int) []Place { return []Place{c.place} }
		r := p.Apply(simple(c.site))
		if c.says == "" {
			if r.Outcome != Committed || r.Stops != 1 || !bytes.Equal(f.mem[0x10:0x15], c.site.New) {
				t.Errorf("%s: %s: %s, %d stops", c.name, r.Outcome, r.Reason, r.Stops)
			}
			continue
		}
		if r.Outcome != Refused || !strings.Contains(r.Reason, c.says) || r.Stops < 2 || r.VCPUs[0].Retries != r.Stops || !bytes.Equal(was, f.mem) {
			t.Errorf("%s: %s: %s, %d stops, %d retries", c.name, r.Outcome, r.Reason, r.Stops, r.VCPUs[0].Retries)
		}
		f, p = newFake() // it moves on
		f.places = func(stop int) []Place {
			if stop < 3 {
				return []Place{c.place}
			}
			return []Place{{RIPs: []uint64{0x1000}}}
		}
		if r := p.Apply(simple(c.site)); r.Outcome != Committed || r.Stops != 3 || r.VCPUs[0].Retries != 2 {
			t.Errorf("%s, then not: %s: %s, %d stops, %d retries", c.name, r.Outcome, r.Reason, r.Stops, r.VCPUs[0].Retries)
		}
		if f.outside != nil {
			t.Errorf("%s: stores while the guest ran: %#x", c.name, f.outside)
		}
	}
}

// TestSafePoints: who does not come is named; who does not stand at one is tried again.
func TestSafePoints(t *testing.T) {
	plan := simple(site("a", 0x1010, 1), site("b", 0x1020, 2))
	plan.SafePoint = true
	f, p := newFake()
	f.missing = `thread "log" (vCPU 1)`
	if r := p.Apply(plan); r.Outcome != Refused || r.Stops != 0 || !strings.Contains(r.Reason, `"log"`) {
		t.Errorf("%s: %s, %d stops", r.Outcome, r.Reason, r.Stops)
	}
	f, p = newFake()
	if r := p.Apply(plan); r.Outcome != Refused || !strings.Contains(r.Reason, "not at a safe point") {
		t.Errorf("in the guest: %s: %s", r.Outcome, r.Reason)
	}
	f.places = func(int) []Place { return []Place{{Where: WhereSafePoint, Safe: true, RIPs: []uint64{0x1050}}} }
	if r := p.Apply(plan); r.Outcome != Committed || !r.VCPUs[0].Break || f.gather == 0 {
		t.Errorf("%s: %s", r.Outcome, r.Reason)
	}
	f.gather = -1
	plan = simple(site("c", 0x1030, 1), site("d", 0x1040, 2))
	plan.SafePoint = true
	if r := p.Apply(plan); r.Outcome != Refused || !strings.Contains(r.Reason, "no safe point") {
		t.Errorf("a program without: %s: %s", r.Outcome, r.Reason)
	}
}

// TestRevert: the newest patch of a byte is taken back first.
func TestRevert(t *testing.T) {
	f, p := newFake()
	was := bytes.Clone(f.mem)
	one := site("f", 0x1010, 0xe9, 1, 1, 1, 1)
	one.Kind = Redirect
	first := p.Apply(simple(one))
	two := Site{Name: "f", Kind: Redirect, Addr: 0x1010, Old: one.New, New: Hex{0xe9, 2, 2, 2, 2}}
	second := p.Apply(simple(two))
	third := p.Apply(simple(site("g", 0x1020, 9)))
	if first.Outcome != Committed || second.Outcome != Committed || third.Outcome != Committed || len(f.entries) != 2 {
		t.Fatalf("%s %s %s, entries %#x", first.Outcome, second.Outcome, third.Outcome, f.entries)
	}
	if r := p.Apply(Plan{Revert: first.Number}); r.Outcome != Refused || !strings.Contains(r.Reason, "patch 2 lies over") {
		t.Errorf("the older one first: %s: %s", r.Outcome, r.Reason)
	}
	for _, n := range []uint64{second.Number, first.Number, third.Number} {
		if r := p.Apply(Plan{Revert: n}); r.Outcome != Committed || r.Reverts != n {
			t.Errorf("revert of %d: %s: %s", n, r.Outcome, r.Reason)
		}
	}
	if !bytes.Equal(was, f.mem) || len(p.State().Applied) != 0 || len(f.entries) != 0 {
		t.Errorf("all taken back: %d applied, entries %#x", len(p.State().Applied), f.entries)
	}
	if n := p.State().Number; n != 7 {
		t.Errorf("7 attempts, the number is %d", n)
	}
}

// TestStepFails: a failure at any step leaves one version, or a dead VM; a record tells of it.
func TestStepFails(t *testing.T) {
	for _, c := range []struct {
		step string
		nth  int
		want string
	}{
		{"P1", 1, Aborted}, {"P4", 1, Refused}, {"P5 store", 1, RolledBack}, {"P5 store", 2, RolledBack}, {"P5 read back", 1, RolledBack},
		{"P5 take back", 1, Dead}, {"P6", 1, Dead},
	} {
		f, p := newFake()
		was := bytes.Clone(f.mem)
		n := 0
		p.at = func(step string) error {
			if step == "P5 read back" && c.step == "P5 take back" {
				return errors.New("made to fail")
			}
			if step != c.step {
				return nil
			}
			if n++; n == c.nth {
				return errors.New("made to fail")
			}
			return nil
		}
		plan := simple(site("a", 0x1010, 1), site("b", 0x1020, 2))
		plan.Text = []Chunk{{0x1100, []byte{1, 2, 3}}}
		r := p.Apply(plan)
		if r.Outcome != c.want || !strings.Contains(r.Reason, "made to fail") || r.Number != 1 || (c.want == Dead) != (f.dead != "") {
			t.Errorf("%s: %s: %s; dead %q", c.step, r.Outcome, r.Reason, f.dead)
		}
		if c.want != Dead && (!bytes.Equal(was, f.mem) || p.State().SpareText.Used != 0x1100 || f.stopped) {
			t.Errorf("%s: something was changed, or the guest is still stopped", c.step)
		}
	}
	f, p := newFake()
	f.stopErr = errors.New("stop timed out")
	if r := p.Apply(simple(site("a", 0x1010, 1))); r.Outcome != Aborted || r.FirstStore != 0 {
		t.Errorf("no stop: %s", r.Outcome)
	}
	lost, q := newFake()
	lost.stopErr = fmt.Errorf("%w: vCPU 1", ErrDied)
	was := bytes.Clone(lost.mem)
	if r := q.Apply(simple(site("a", 0x1010, 1))); r.Outcome != Dead || r.FirstStore != 0 || !strings.Contains(lost.dead, "vCPU 1") || !bytes.Equal(was, lost.mem) {
		t.Errorf("a vCPU's thread has died: %+v, %q", r, lost.dead)
	}
	if r := q.Apply(simple(site("a", 0x1010, 1))); r.Outcome != Refused || lost.stops != 1 {
		t.Errorf("behind it: %+v, %d stops", r, lost.stops)
	}
	plan := simple(site("a", 0x1010, 1))
	plan.DryRun = true
	if r := p.Apply(plan); r.Outcome != Checked || r.Number != 0 || f.stops != 1 {
		t.Errorf("dry run: %s, number %d, %d stops", r.Outcome, r.Number, f.stops)
	}
}

// FuzzPlan: whatever a plan says, text is stored to only while the guest is stopped, and only where the plan's sites are; a plan that is not
// committed has changed nothing.
func FuzzPlan(f *testing.F) {
	good, err := json.Marshal(simple(site("a", 0x1010, 1), site("b", 0x1020, 2, 3)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"BuildID":"b1","Sites":[{"addr":18446744073709551615,"old":"00","new":"01"}]}`))
	f.Add([]byte(`{"BuildID":"b1","Text":[{"Addr":4352,"Bytes":"90"},{"Addr":4352,"Bytes":"90"}],"Sites":[{"addr":4112,"old":"10","new":"01"}]}`))
	f.Add([]byte(`{"Revert":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var plan Plan
		if json.Unmarshal(b, &plan) != nil {
			return
		}
		plan.Wait = min(plan.Wait, time.Millisecond)
		g, p := newFake()
		was := bytes.Clone(g.mem)
		r := p.Apply(plan)
		if g.outside != nil {
			t.Fatalf("stores to %#x while the guest ran", g.outside)
		}
		for _, s := range r.Sites {
			if r.Outcome == Committed {
				copy(was[s.Addr-0x1000:], s.New)
			}
		}
		if r.Outcome == Committed {
			for _, c := range append(plan.Text, plan.Data...) {
				copy(was[c.Addr-0x1000:], c.Bytes)
			}
		}
		if !bytes.Equal(was, g.mem) {
			t.Fatalf("%s (%s), and memory is not what it should be", r.Outcome, r.Reason)
		}
	})
}

// TestOldPatchesAreFolded: thousands of patches of a few sites are remembered as few, which explain the text at any time, and can all be taken back.
func TestOldPatchesAreFolded(t *testing.T) {
	f, p := newFake()
	f.far, f.places = true, func(int) []Place {
		return []Place{{CPU: -1, Where: WhereGuest, Guest: true, Safe: true, RIPs: []uint64{0x10f0}}}
	}
	was := bytes.Clone(f.mem)
	explained := func(when string) {
		t.Helper()
		want := bytes.Clone(was)
		for _, a := range p.State().Applied {
			for _, w := range a.Sites {
				if at := w.Addr - 0x1000; !bytes.Equal(want[at:at+uint64(len(w.Old))], w.Old) {
					t.Fatalf("%s: patch %d has %x for what is %x", when, a.Number, w.Old, want[at:at+uint64(len(w.Old))])
				}
				copy(want[w.Addr-0x1000:], w.New)
			}
		}
		if !bytes.Equal(want, f.mem) {
			t.Fatalf("%s: the patches that stand do not explain the text", when)
		}
	}
	apply := func(list ...Site) {
		t.Helper()
		for i := range list {
			list[i].Old = bytes.Clone(f.mem[list[i].Addr-0x1000:][:len(list[i].New)])
		}
		if r := p.Apply(simple(list...)); r.Outcome != Committed {
			t.Fatalf("%s: %s", r.Outcome, r.Reason)
		}
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	apply(site("once", 0x1080, 7, 7)) // nothing lies over it: it is remembered
	const patches = 3000
	for i := range patches {
		v := byte(rnd.Uint32())
		a, b, c := site("a", 0x1010, v, 1), site("b", 0x1020, v), site("c", 0x1030, v, 2, 3)
		switch rnd.IntN(4) {
		case 0:
			apply(a)
		case 1:
			apply(a, b)
		case 2:
			apply(b, c)
		case 3:
			apply(a, b, c)
		}
		if n := len(p.State().Applied); n > MostApplied+4 { // the latest of each site, and the one of "once", are in force
			t.Fatalf("%d patches are remembered", n)
		}
		if i%50 == 0 {
			explained(fmt.Sprint("patch ", i))
		}
	}
	list := p.State().Applied
	for n := uint64(1); n <= patches+1; n++ { // each is remembered, or part of a later one that says so
		if !slices.ContainsFunc(list, func(a Applied) bool { return a.Number == n || a.Since > 0 && a.Since <= n && n < a.Number }) {
			t.Fatalf("patch %d is nowhere", n)
		}
	}
	if list[0].Number != 1 || list[0].Since != 0 {
		t.Errorf("the first is %+v", list[0])
	}
	for i := len(list) - 1; i >= 0; i-- {
		if r := p.Apply(Plan{Revert: list[i].Number}); r.Outcome != Committed {
			t.Fatalf("revert %d: %s: %s", list[i].Number, r.Outcome, r.Reason)
		}
		explained(fmt.Sprint("revert ", list[i].Number))
	}
	if !bytes.Equal(was, f.mem) {
		t.Error("all was taken back, and the text is not as it was")
	}
	// A patch that another one crosses is in force, and stays.
	for i := range 3 * MostApplied {
		apply(site("s", 0x1010, byte(i), 1))
		if i == 0 {
			apply(site("t", 0x1011, 9, 9))
		}
	}
	explained("crossed")
	if list := p.State().Applied; len(list) != MostApplied+3 || list[0].Since != 0 || list[1].Sites[0].Name != "t" {
		t.Errorf("%d are remembered, the first two %+v", len(list), list[:2])
	}
}
