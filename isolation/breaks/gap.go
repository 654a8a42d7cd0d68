package breaks

import (
	"fmt"
	"math"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// GapReport is a GapRecord in nanoseconds: what the guest itself saw of its disturbances. A
// quantile is an upper bound, at most twice the value; null when fewer than ten passes lie beyond it.
type GapReport struct {
	VCPU        uint32    `json:"vcpu"`
	Kind        string    `json:"kind"` // loop or cyclic
	ThresholdNS uint64    `json:"threshold_ns"`
	PeriodNS    uint64    `json:"period_ns"` // cyclic only
	DurationNS  uint64    `json:"duration_ns"`
	Passes      uint64    `json:"passes"`
	Gaps        uint64    `json:"gaps"`
	StolenNS    uint64    `json:"stolen_ns"`
	StolenPPM   float64   `json:"stolen_ppm"` // of the duration
	MinNS       uint64    `json:"min_ns"`
	MedianNS    *uint64   `json:"median_at_most_ns"`
	P99NS       *uint64   `json:"p99_at_most_ns"`
	P999NS      *uint64   `json:"p99_9_at_most_ns"`
	P9999NS     *uint64   `json:"p99_99_at_most_ns"`
	MaxNS       uint64    `json:"max_ns"`
	Histogram   []Bucket  `json:"histogram"`
	Latest      []GapSeen `json:"latest"`
	NotKept     uint64    `json:"not_kept"` // gaps older than Latest: counted, their moments are gone
	Valid       bool      `json:"valid"`
	Why         string    `json:"why"` // not valid: what does not add up
}

// GapSeen is one gap: when, since the first pass, and how long.
type GapSeen struct {
	AtNS uint64 `json:"at_ns"`
	NS   uint64 `json:"ns"`
}

// Gaps reads a GapRecord. The record is the guest's memory, so nothing in it is believed: an error
// says that it is no record at all, and Valid == false that its figures contradict each other (it may
// have been copied while the guest wrote). tscHz is the frequency of the TSC and must not be 0.
func Gaps(vcpu uint32, rec *abi.GapRecord, tscHz uint64) (GapReport, error) {
	if rec.Magic != abi.GapMagic {
		return GapReport{}, fmt.Errorf("gap record of vCPU %d: magic %#x, want %#x: the program has not filled it in", vcpu, rec.Magic, uint64(abi.GapMagic))
	}
	if tscHz == 0 {
		return GapReport{}, fmt.Errorf("gap record of vCPU %d: the frequency of the TSC is not known, so its cycles have no length", vcpu)
	}
	g := GapReport{VCPU: vcpu, Passes: rec.Passes, Gaps: rec.Gaps, Valid: true, Histogram: []Bucket{}, Latest: []GapSeen{}}
	switch rec.Kind {
	case abi.GapKindLoop:
		g.Kind = "loop"
	case abi.GapKindCyclic:
		g.Kind = "cyclic"
		g.PeriodNS = Nanoseconds(rec.Period, tscHz)
	default:
		return GapReport{}, fmt.Errorf("gap record of vCPU %d: kind %d is not known; 1 is a loop, 2 is cyclic", vcpu, rec.Kind)
	}
	ns := func(cycles uint64) uint64 { return Nanoseconds(cycles, tscHz) }
	g.ThresholdNS, g.StolenNS = ns(rec.Threshold), ns(rec.Stolen)
	g.DurationNS = ns(span(rec.Start, rec.Last))
	if g.DurationNS > 0 {
		g.StolenPPM = math.Round(float64(rec.Stolen)/float64(rec.Last-rec.Start)*1e9) / 1e3
	}
	if rec.Passes > 0 {
		g.MinNS, g.MaxNS = ns(rec.Min), ns(rec.Max)
	}
	quantile := func(q float64) *uint64 {
		cycles, ok := Quantile(rec.Hist[:], q, rec.Max)
		if !ok {
			return nil
		}
		v := ns(cycles)
		return &v
	}
	g.MedianNS, g.P99NS, g.P999NS, g.P9999NS = quantile(.5), quantile(.99), quantile(.999), quantile(.9999)
	g.Histogram = buckets(rec.Hist[:], tscHz)

	first := span(abi.GapRing, rec.RingNext)
	for i := first; i < rec.RingNext && i-first < abi.GapRing; i++ {
		e := rec.Ring[i%abi.GapRing]
		g.Latest = append(g.Latest, GapSeen{AtNS: ns(span(rec.Start, e.TSC)), NS: ns(e.Length)})
	}
	g.NotKept = span(uint64(len(g.Latest)), rec.Gaps)

	// The first pass of a loop has no delta, so the two may differ by one.
	switch n := sum(rec.Hist[:]); {
	case n > add(rec.Passes, 1) || add(n, 1) < rec.Passes:
		g.Valid, g.Why = false, fmt.Sprintf("the histogram holds %d passes, the record counts %d", n, rec.Passes)
	case rec.Gaps > rec.Passes:
		g.Valid, g.Why = false, fmt.Sprintf("%d gaps in %d passes", rec.Gaps, rec.Passes)
	case rec.Last < rec.Start:
		g.Valid, g.Why = false, "the latest pass is before the first one"
	case rec.Passes > 0 && rec.Min > rec.Max:
		g.Valid, g.Why = false, "the shortest pass is longer than the longest"
	}
	return g, nil
}

// buckets are the buckets of a histogram with bits.Len64 scale, from the first to the last that is
// not empty.
func buckets(hist []uint64, hz uint64) []Bucket {
	list := []Bucket{}
	filled := 0
	for i, n := range hist {
		if n == 0 && len(list) == 0 {
			continue
		}
		list = append(list, Bucket{AtMostNS: Nanoseconds(BucketBound(i), hz), Count: n})
		if n != 0 {
			filled = len(list)
		}
	}
	return list[:filled]
}
