package vdso

import (
	"math/bits"
	"sync/atomic"
)

// Fraction is the number of fractional bits of a line's nanoseconds and slopes. 48 keep the rounding of a
// slope below 1 ns in a day, and leave 63 bits for nanoseconds since the epoch in 128.
const Fraction = 48

// Clock IDs (include/uapi/linux/time.h). The CPU-time clocks 2 and 3 and the alarm clocks are the host's.
const (
	clockRealtime       = 0
	clockMonotonic      = 1
	clockRaw            = 4
	clockRealtimeCoarse = 5
	clockMonoCoarse     = 6
	clockBoottime       = 7
	clockTAI            = 11

	clocks = 12
)

// Word indices within the page and within a slot; code_amd64.s has the same numbers times 8
// (page_test.go compares them by running it).
const (
	wordGen   = 0
	wordRes   = 2
	wordSlots = 32
	slotWords = 32
	wordCPUs  = 128

	slotServed = 12
	slotMono   = 16
	slotRaw    = 24
)

// dataPage is the page that writer and guest share, as words.
//
// ORDER(O5) vDSO data page: gen is stored last and loaded first. Pairs with the loads in code_amd64.s; without it
// the guest could use half a slot.
type dataPage [PageSize / 8]atomic.Uint64

// line is nanoseconds as a function of the TSC: v + (t-s)*slope, where the slope is old before s.
// v is in fixed point, 128 bits.
type line struct {
	s, old, new, lo, hi uint64
}

// at gives the fixed-point time at t.
func (l line) at(t uint64) (hi, lo uint64) {
	if t >= l.s {
		hi, lo = bits.Mul64(t-l.s, l.new)
		var c uint64
		lo, c = bits.Add64(lo, l.lo, 0)
		hi, _ = bits.Add64(hi, l.hi, c)
		return hi, lo
	}
	hi, lo = bits.Mul64(l.s-t, l.old)
	var b uint64
	lo, b = bits.Sub64(l.lo, lo, 0)
	hi, _ = bits.Sub64(l.hi, hi, b)
	return hi, lo
}

// ns gives the time at t in whole nanoseconds, as the guest's code does.
func (l line) ns(t uint64) int64 {
	hi, lo := l.at(t)
	return int64(hi<<(64-Fraction) | lo>>Fraction)
}

// bend gives the same curve up to s, with another slope from s on.
func (l line) bend(s, slope uint64) line {
	n := line{s: s, old: l.new, new: slope}
	n.hi, n.lo = l.at(s)
	return n
}

// slot is what one generation of the page says.
type slot struct {
	offset    [clocks]int64
	served    uint64
	mono, raw line
}

func (l line) words() [5]uint64 { return [5]uint64{l.s, l.old, l.new, l.lo, l.hi} }

// fill writes sl where generation gen belongs, which no reader of the newest slot looks at.
//
// ORDER(O5) vDSO data page, writer: these stores come before that of gen in Clock.publish. Pairs with the
// reader in code_amd64.s, which loads gen first; without it a reader could find a new gen over an old slot.
func (p *dataPage) fill(gen uint64, sl *slot) {
	w := p[wordSlots+gen%2*slotWords:]
	for i, v := range sl.offset {
		w[i].Store(uint64(v))
	}
	w[slotServed].Store(sl.served)
	for i, v := range sl.mono.words() {
		w[slotMono+i].Store(v)
	}
	for i, v := range sl.raw.words() {
		w[slotRaw+i].Store(v)
	}
}

// read copies the slot of generation gen. ORDER(none): only the writer may call it, so nothing changes
// meanwhile.
func (p *dataPage) read(gen uint64) (sl slot) {
	w := p[wordSlots+gen%2*slotWords:]
	for i := range sl.offset {
		sl.offset[i] = int64(w[i].Load())
	}
	sl.served = w[slotServed].Load()
	get := func(at int) line {
		return line{w[at].Load(), w[at+1].Load(), w[at+2].Load(), w[at+3].Load(), w[at+4].Load()}
	}
	sl.mono, sl.raw = get(slotMono), get(slotRaw)
	return sl
}
