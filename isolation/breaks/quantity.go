package breaks

import (
	"math"
	"math/bits"
)

// Nanoseconds converts TSC cycles to nanoseconds, rounded down. hz is the frequency of the TSC; 0 (not
// known) gives 0, and a result beyond 64 bits (584 years) gives the largest value.
func Nanoseconds(cycles, hz uint64) uint64 {
	if hz == 0 {
		return 0
	}
	hi, lo := bits.Mul64(cycles, 1e9)
	if hi >= hz {
		return math.MaxUint64
	}
	q, _ := bits.Div64(hi, lo, hz)
	return q
}

// span is to-from, and 0 where a torn or hostile pair would make it negative.
func span(from, to uint64) uint64 {
	if to < from {
		return 0
	}
	return to - from
}

// until is the moment at which the clocks of a vCPU stand still: End, once the run has ended.
func (c *Counts) until(now uint64) uint64 {
	if c.End != 0 && c.End < now {
		return c.End
	}
	return now
}

// Wall is the number of TSC cycles from the vCPU's first entry until now, or until the run's end, less
// those in which it had no thread of the guest.
func (c *Counts) Wall(now uint64) uint64 {
	if c.Start == 0 {
		return 0
	}
	return span(c.IdleFor(now), span(c.Start, c.until(now)))
}

// IdleFor is the number of TSC cycles in which the vCPU had no thread of the guest to run.
func (c *Counts) IdleFor(now uint64) uint64 {
	d := c.Idle
	if c.IdleAt != 0 {
		d = add(d, span(c.IdleAt, c.until(now)))
	}
	return d
}

// SealedFor is the number of TSC cycles that the vCPU has been sealed until now. The clock of a run
// that has ended stands still at End, that of a vCPU whose thread has ended sealed when it did: a rate
// must not be diluted by time in which nothing could break.
func (c *Counts) SealedFor(now uint64) uint64 {
	now = c.until(now)
	if c.IdleAt != 0 {
		now = min(now, c.IdleAt)
	}
	d := c.SealedIn
	if c.SealedAt != 0 {
		d += span(c.SealedAt, now)
	}
	return d
}

// BucketBound is the largest length in cycles that falls into bucket i of a histogram whose bucket i
// holds the lengths with bits.Len64 == i (Counter.Hist, abi.GapRecord.Hist).
func BucketBound(i int) uint64 {
	switch {
	case i <= 0:
		return 0
	case i >= 64:
		return math.MaxUint64
	}
	return 1<<i - 1
}

// tailSamples is the number of values that must lie beyond a quantile before it is worth printing:
// with fewer, one value more or less moves it.
const tailSamples = 10

// Quantile finds an upper bound of the q-quantile (0 < q < 1) of a log-scale histogram: the value is
// at most the bound, and more than half of it (the bucket's width). longest, where it is not 0,
// tightens the bound. It reports false when fewer than 10 values lie beyond the quantile.
func Quantile(hist []uint64, q float64, longest uint64) (bound uint64, ok bool) {
	n := sum(hist)
	if !(q > 0 && q < 1) || float64(n)*(1-q) < tailSamples*(1-1e-9) {
		return 0, false
	}
	rank := uint64(math.Ceil(float64(n) * q))
	var seen uint64
	for i, k := range hist {
		if seen += k; seen >= rank {
			bound = BucketBound(i)
			if longest != 0 && longest < bound {
				bound = longest
			}
			return bound, true
		}
	}
	return 0, false
}

// sum adds with saturation: the figures may come out of guest memory.
func sum(v []uint64) uint64 {
	var n uint64
	for _, k := range v {
		n = add(n, k)
	}
	return n
}

func add(a, b uint64) uint64 {
	s, carry := bits.Add64(a, b, 0)
	if carry != 0 {
		return math.MaxUint64
	}
	return s
}
