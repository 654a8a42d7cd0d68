package vdso

import (
	"errors"
	"math"
	"math/bits"
	"math/rand/v2"
	"testing"
	"time"
)

// world is a simulated host: time passes only when the test or the Clock lets it.
type world struct {
	rng   *rand.Rand
	hz    float64 // TSC cycles per true second
	cycle float64 // TSC now
	mono  float64 // host's CLOCK_MONOTONIC, ns
	raw   float64
	ppm   func(mono float64) float64 // rate error of CLOCK_MONOTONIC that NTP gives it
	real  int64                      // CLOCK_REALTIME - CLOCK_MONOTONIC
	half  float64                    // ns, width of a look
	stall func() time.Duration       // extra time that TSC() takes, as a writer that lost its CPU
	fail  error
}

func newWorld(hz float64) *world {
	return &world{rng: rand.New(rand.NewPCG(1, uint64(hz))), hz: hz, cycle: 1e12, mono: 1e15, raw: 1e15,
		ppm: func(float64) float64 { return 0 }, real: 1.7e18, half: 80}
}

func (w *world) pass(ns float64) {
	w.mono += ns * (1 + w.ppm(w.mono)*1e-6)
	w.raw += ns
	w.cycle += ns * w.hz / 1e9
}

func (w *world) Sleep(d time.Duration) { w.pass(float64(d)) }

func (w *world) TSC() uint64 {
	w.pass(10)
	if w.stall != nil {
		w.pass(float64(w.stall()))
	}
	return uint64(w.cycle)
}

func (w *world) Read(id int) (Reading, error) {
	if w.fail != nil {
		return Reading{}, w.fail
	}
	half := w.half * (1 + w.rng.ExpFloat64()/6) // the best of six, as Kernel; never tighter than w.half
	early := half * (1 + 0.5*(2*w.rng.Float64()-1))
	before := w.cycle
	w.pass(early)
	ns := map[int]float64{clockMonotonic: w.mono, clockRaw: w.raw, clockBoottime: w.mono + 5e9}[id]
	if id == clockRealtime || id == clockTAI {
		ns = w.mono // the offset is added as an integer: float64 has no room for it
	}
	v := int64(ns)
	switch id {
	case clockRealtime:
		v += w.real
	case clockTAI:
		v += w.real + 37e9
	}
	w.pass(2*half - early)
	h := (w.cycle - before) / 2
	return Reading{TSC: uint64(before + h), NS: v, Half: uint64(h) + 1}, nil
}

func (w *world) Resolution() (int64, error) { return 1, w.fail }

// follow runs a Clock for d of simulated time and gives the largest error against the true clock, after a
// settling second, and checks that each slot carries on the one before.
func follow(t *testing.T, w *world, page []byte, c *Clock, d time.Duration) (worst float64) {
	t.Helper()
	p, err := asPage(page)
	if err != nil {
		t.Fatal(err)
	}
	end, settled := w.mono+float64(d), w.mono+1e9
	old := p.read(p[wordGen].Load()) // ORDER(none): one thread
	wait := c.wait
	for w.mono < end {
		w.pass(float64(wait) * (1 + 0.2*w.rng.Float64()))
		if wait, err = c.Update(); err != nil {
			t.Fatal(err)
		}
		now := p.read(p[wordGen].Load()) // ORDER(none): one thread
		checkContinuous(t, w.rng, old.mono, now.mono)
		checkContinuous(t, w.rng, old.raw, now.raw)
		for range 3 { // the error between updates, too
			w.pass(float64(wait) / 4)
			if e := math.Abs(w.mono - float64(now.mono.ns(uint64(w.cycle)))); w.mono > settled {
				worst = max(worst, e)
			}
			if e := math.Abs(w.raw - float64(now.raw.ns(uint64(w.cycle)))); w.mono > settled {
				worst = max(worst, e)
			}
		}
		old = now
		wait /= 4
	}
	return worst
}

// checkContinuous holds two successive lines against invariants 2 and 3.
func checkContinuous(t *testing.T, rng *rand.Rand, a, b line) {
	t.Helper()
	if a == b {
		return
	}
	if b.s <= a.s || b.old != a.new || b.new == 0 {
		t.Fatalf("%+v does not carry on %+v", b, a)
	}
	for range 4 {
		x := a.s + rng.Uint64N(b.s-a.s+1)
		ah, al := a.at(x)
		if bh, bl := b.at(x); ah != bh || al != bl {
			t.Fatalf("at %d the lines differ: %d.%d and %d.%d", x, ah, al, bh, bl)
		}
	}
	last := int64(0)
	for x := b.s - 50; x < b.s+50; x++ {
		if v := b.ns(x); v < last {
			t.Fatalf("backwards at the bend: %d after %d", v, last)
		} else {
			last = v
		}
	}
}

func TestSteering(t *testing.T) {
	for _, c := range []struct {
		name string
		hz   float64
		hint float64 // relative error of the frequency that the caller gives; NaN: none
		ppm  func(mono float64) float64
		d    time.Duration
		want float64 // ns
	}{
		{"steady", 2.7e9, math.NaN(), nil, time.Hour, 100},
		{"hint", 2.7e9, 20e-6, nil, time.Minute, 100},
		{"wrong hint", 2.7e9, 0.3, nil, time.Minute, 100},
		{"slow TSC", 8e8, math.NaN(), nil, time.Minute, 100},
		{"fast TSC", 6e9, math.NaN(), nil, time.Minute, 100},
		{"constant NTP rate", 2.7e9, math.NaN(), func(float64) float64 { return 35 }, time.Minute, 100},
		// A room that warms up, with chrony following it: 0.1 ppm to and fro in ten minutes.
		{"temperature", 2.7e9, math.NaN(), func(m float64) float64 { return 10 + 0.1*math.Sin(m/6e11*2*math.Pi) }, time.Hour, 100},
		{"NTP corrections", 2.7e9, math.NaN(), func(m float64) float64 { return 0.2 * math.Mod(math.Floor(m/64e9), 3) }, 20 * time.Minute, 200},
		// adjtime(2): 500 ppm at once. Nothing follows that within 100 ns; it must stay bounded and come back.
		{"slew", 2.7e9, math.NaN(), func(m float64) float64 {
			if math.Mod(m, 60e9) < 10e9 {
				return 500
			}
			return 0
		}, 5 * time.Minute, 150e3},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(c.hz)
			if c.ppm != nil {
				w.ppm = c.ppm
			}
			hint := 0.0
			if !math.IsNaN(c.hint) {
				hint = c.hz * (1 + c.hint)
			}
			page := make([]byte, PageSize)
			clock, err := NewClock(page, w, hint)
			if err != nil {
				t.Fatal(err)
			}
			worst := follow(t, w, page, clock, c.d)
			t.Logf("worst %.0f ns, %+v", worst, clock.Stats())
			if worst > c.want {
				t.Errorf("%.0f ns off, want at most %.0f", worst, c.want)
			}
			if s := clock.Stats(); s.Late != 0 || s.Steps != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestRealtimeSteps steps the host's realtime both ways: the guest follows at the next update, its
// monotonic clock does not notice.
func TestRealtimeSteps(t *testing.T) {
	w := newWorld(2.7e9)
	page := make([]byte, PageSize)
	c, err := NewClock(page, w, 0)
	if err != nil {
		t.Fatal(err)
	}
	p, err := asPage(page)
	if err != nil {
		t.Fatal(err)
	}
	follow(t, w, page, c, 5*time.Second)
	for _, step := range []int64{3600e9, -1e9, 1e6, -1e4, -1.7e18} {
		w.real += step
		if worst := follow(t, w, page, c, 5*time.Second); worst > 100 {
			t.Errorf("the step of %d moved the monotonic clock by %.0f", step, worst)
		}
		sl := p.read(p[wordGen].Load()) // ORDER(none): one thread
		for id, want := range map[int]int64{clockRealtime: w.real, clockRealtimeCoarse: w.real, clockTAI: w.real + 37e9, clockBoottime: 5e9} {
			if d := sl.offset[id] - want; d > 100 || d < -100 {
				t.Errorf("after a step of %d: offset of clock %d is %d off", step, id, d)
			}
		}
	}
	w.real -= 1e18 // before 1970: left to the kernel
	follow(t, w, page, c, time.Second)
	if sl := p.read(p[wordGen].Load()); sl.served&(1<<clockRealtime|1<<clockRealtimeCoarse) != 0 || sl.served&(1<<clockMonotonic) == 0 { // ORDER(none): one thread
		t.Errorf("served %#x", sl.served)
	}
}

// TestLongAbsence stops updating for an hour: the clock runs on, comes back by steering, never backwards.
func TestLongAbsence(t *testing.T) {
	w := newWorld(2.7e9)
	page := make([]byte, PageSize)
	c, err := NewClock(page, w, 0)
	if err != nil {
		t.Fatal(err)
	}
	follow(t, w, page, c, 10*time.Second)
	w.ppm = func(float64) float64 { return -3 } // meanwhile the guest gains 10.8 ms
	w.pass(3600e9)
	follow(t, w, page, c, 30*time.Second)
	if worst := follow(t, w, page, c, 10*time.Second); worst > 100 {
		t.Errorf("still %.0f ns off", worst)
	}
}

// TestLate stalls the writer right before and right after it publishes. Before: it notices and bends
// later. After: it counts.
func TestLate(t *testing.T) {
	for _, c := range []struct {
		name string
		call int // which look at the TSC since the update began takes long
		late uint64
	}{{"before publishing", 3, 0}, {"while publishing", 4, 1}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(2.7e9)
			page := make([]byte, PageSize)
			clock, err := NewClock(page, w, 0)
			if err != nil {
				t.Fatal(err)
			}
			follow(t, w, page, clock, 2*time.Second)
			n := 0
			w.stall = func() time.Duration {
				if n++; n == c.call {
					return time.Second
				}
				return 0
			}
			w.pass(float64(Period))
			if _, err := clock.Update(); err != nil {
				t.Fatal(err)
			}
			if got := clock.Stats().Late; got != c.late {
				t.Errorf("%d late, want %d", got, c.late)
			}
		})
	}
}

func TestClockRefuses(t *testing.T) {
	page := make([]byte, PageSize)
	if _, err := NewClock(page[:100], newWorld(1e9), 0); err == nil {
		t.Error("a short page was accepted")
	}
	if _, err := NewClock(page, newWorld(1e9), -5); err == nil {
		t.Error("a negative frequency was accepted")
	}
	w := newWorld(1e9)
	w.fail = errors.New("no such clock")
	if _, err := NewClock(page, w, 0); !errors.Is(err, w.fail) {
		t.Errorf("got %v", err)
	}
	stopped := newWorld(0)
	if _, err := NewClock(page, stopped, 0); !errors.Is(err, ErrTSC) {
		t.Errorf("a stopped TSC: %v", err)
	}
	w = newWorld(1e9)
	c, err := NewClock(page, w, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.cycle = 1
	if _, err := c.Update(); !errors.Is(err, ErrTSC) {
		t.Errorf("a TSC that went back: %v", err)
	}
}

// TestSecondsByMultiplication holds the constants of code_amd64.s against division; TestBoundaries runs them.
func TestSecondsByMultiplication(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 1_000_000 {
		s := rng.Uint64N(9_223_372_036) * 1e9
		for _, x := range []uint64{s, s + 999_999_999, s + rng.Uint64N(1e9)} {
			hi, _ := bits.Mul64(x>>9, 0x44B82FA09B5A53)
			if hi>>11 != x/1e9 {
				t.Fatalf("%d/1e9 = %d", x, hi>>11)
			}
			if r := x % 1e9; r*274877907>>38 != r/1000 {
				t.Fatalf("%d/1000 = %d", r, r*274877907>>38)
			}
		}
	}
}
