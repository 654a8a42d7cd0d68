package observe

import (
	"maps"
	"slices"
	"strconv"

	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/prometheus/client_golang/prometheus"
)

// Patches counts what became of the patches of a VM.
type Patches struct {
	// Number is that of the latest patch, committed or not.
	Number uint64
	// Outcomes has every outcome that there can be, with its count.
	Outcomes map[string]uint64
	// Pauses are of patches that stopped the vCPUs, by vCPU.
	Pauses map[int]*Pauses
}

// Clone gives a copy that does not change when p does.
func (p *Patches) Clone() *Patches {
	c := &Patches{p.Number, maps.Clone(p.Outcomes), map[int]*Pauses{}}
	for id, one := range p.Pauses {
		own := *one
		c.Pauses[id] = &own
	}
	return c
}

// pauseBounds of the histogram, ns. Every pause is at hand when it is counted, so they need not be the ledger's; a stop has a
// limit of a few seconds.
var pauseBounds = [...]uint64{5e3, 10e3, 20e3, 50e3, 100e3, 200e3, 500e3, 1e6, 2e6, 5e6, 10e6, 20e6, 50e6, 100e6, 200e6, 500e6, 1e9, 2e9, 5e9}

// Pauses is how long one vCPU was held by patches.
type Pauses struct {
	breaks.Pauses // as the report has them
	atMost        [len(pauseBounds)]uint64
}

// Add counts a pause of that many nanoseconds.
func (p *Pauses) Add(ns uint64) {
	p.Pauses.Add(ns)
	for i, bound := range pauseBounds {
		if ns <= bound {
			p.atMost[i]++
		}
	}
}

func (g *gathering) patches(p *Patches) {
	vm := g.c.vm.Name
	for _, outcome := range slices.Sorted(maps.Keys(p.Outcomes)) {
		g.put(mPatches, float64(p.Outcomes[outcome]), vm, outcome)
	}
	g.put(mPatchNumber, float64(p.Number), vm)
	for _, id := range slices.Sorted(maps.Keys(p.Pauses)) {
		one := p.Pauses[id]
		buckets := make(map[float64]uint64, len(pauseBounds))
		for i, bound := range pauseBounds {
			buckets[float64(bound)/1e9] = one.atMost[i]
		}
		labels := clean([]string{vm, strconv.Itoa(id)})
		g.out <- prometheus.MustNewConstHistogram(g.c.descs[mPatchPause], one.Count, float64(one.TotalNS)/1e9, buckets, labels...)
	}
}
