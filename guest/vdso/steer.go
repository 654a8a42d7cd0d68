package vdso

import "math"

const one = 1 << Fraction

const (
	maxSteer  = 500e-6 // what adjtime(2) and NTP may do to a clock
	hardSteer = 0.1    // when the error is beyond what steering at maxSteer would mend in seconds
	hardError = 5e6    // ns
)

// window is the number of readings that a rate is taken from.
const window = 24

// steer keeps one line on one clock of the host.
type steer struct {
	line line
	t    [window]uint64
	ns   [window]int64
	half [window]float64 // ns
	n    int             // readings ever taken

	rate float64 // ns per cycle, of the host's clock
	err  float64 // ns, host minus line, by the latest reading alone
	fair float64 // ns, host minus line at the latest reading, by the fit through the window
}

// begin sets the line through the latest reading.
func (s *steer) begin(r Reading, rate float64) {
	v := uint64(r.NS)
	m := slope(rate)
	s.line = line{s: r.TSC, old: m, new: m, lo: v << Fraction, hi: v >> (64 - Fraction)}
	s.rate = rate
	s.note(r)
}

func slope(rate float64) uint64 { return uint64(rate * one) }

// note takes a reading into account: it sets err and rate.
func (s *steer) note(r Reading) {
	i := s.n % window
	s.t[i], s.ns[i], s.half[i] = r.TSC, r.NS, float64(r.Half)*s.rate
	s.n++
	hi, lo := s.line.at(r.TSC)
	whole := int64(hi<<(64-Fraction) | lo>>Fraction)
	s.err = float64(r.NS-whole) - float64(lo&(one-1))/one
	s.fair = s.err
	if s.n < 2 {
		return
	}
	// When the host's clock itself changed speed, old readings mislead: the latest few tell.
	n := min(s.n, window)
	if math.Abs(s.err) > 2*s.half[i]+100 {
		n = min(n, 3)
	}
	if rate, above, ok := s.fit(n); ok {
		s.rate = rate
		s.fair += above
	}
}

// fit gives the least-squares slope of the latest n readings, and how far the fitted line lies above the
// latest one (ns). Readings are weighted by how tight they were: one that was interrupted midway says
// little.
func (s *steer) fit(n int) (rate, above float64, ok bool) {
	last := (s.n - 1) % window
	t0, v0 := s.t[last], s.ns[last]
	var sw, st, sv, stt, stv float64
	for k := range n {
		i := (s.n - 1 - k) % window
		w := 1 / (s.half[i]*s.half[i] + 1)
		t, v := -float64(t0-s.t[i]), -float64(v0-s.ns[i])
		sw, st, sv = sw+w, st+w*t, sv+w*v
		stt, stv = stt+w*t*t, stv+w*t*v
	}
	d := sw*stt - st*st
	if d <= 0 {
		return 0, 0, false
	}
	rate = (sw*stv - st*sv) / d
	// A fit over a stopped or absurd clock must not stop the guest's.
	if !(rate > s.rate*(1-hardSteer) && rate < s.rate*(1+hardSteer)) {
		return 0, 0, false
	}
	return rate, (sv - rate*st) / sw, true
}

// next bends the line at S, so that after horizon ns the error is gone.
func (s *steer) next(at uint64, horizon float64) line {
	cur := float64(s.line.new) / one
	last := s.t[(s.n-1)%window]
	ahead := s.fair + (s.rate-cur)*float64(at-last)
	limit := maxSteer
	if math.Abs(ahead) > hardError {
		limit = hardSteer
	}
	part := max(-limit, min(limit, ahead/horizon))
	return s.line.bend(at, slope(s.rate*(1+part)))
}

// offset follows the difference of two clocks that run at the same speed and now and then step. Each
// look bounds it; the published value stays as long as it lies within all bounds since the last step.
type offset struct {
	lo, hi, ns int64
	known      bool
}

// note takes a look that showed d, give or take half (ns). It reports whether the clock stepped.
func (o *offset) note(d, half int64) (stepped bool) {
	lo, hi := d-half, d+half
	if o.known && lo <= o.hi && hi >= o.lo {
		lo, hi = max(lo, o.lo), min(hi, o.hi)
	} else {
		stepped = o.known
	}
	o.lo, o.hi = lo, hi
	if !o.known || o.ns < lo || o.ns > hi {
		o.ns, o.known = lo+(hi-lo)/2, true
	}
	return stepped
}
