package vdso

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// ErrTSC reports a time stamp counter that ran backwards or stood still: no clock can be built on it.
var ErrTSC = errors.New("the TSC is not usable as a clock; boot the host with tsc=reliable or use clocks by system call")

const (
	// Period is the usual time between two updates. Shorter gives the host's NTP steps earlier, and
	// costs the guest a cache miss each.
	Period = 50 * time.Millisecond
	// first is the wait after the first slot; it doubles up to Period.
	first = 2 * time.Millisecond
	// maxLead is how far in the future a change of slope is announced: see invariant 3 in doc.go.
	maxLead = 10 * time.Millisecond
	// horizons is the number of waits in which an error is steered away: fewer follow noise.
	horizons = 3
)

// Stats is what a Clock knows of its own quality. Times are in ns, of CLOCK_MONOTONIC.
type Stats struct {
	Updates  uint64  // slots published
	Late     uint64  // slots published after their S: only then a reader may have seen time run backwards
	Error    float64 // host minus guest at the latest update, before it was corrected
	MaxError float64 // largest magnitude of Error since the second update
	Half     float64 // uncertainty of the latest reading
	Steps    uint64  // steps of the host's realtime, TAI or boot-time clock
}

// Clock writes a data page. It is not safe for concurrent use, and a page has one writer at a time; a
// new Clock may take over the page of one that died.
type Clock struct {
	page  *dataPage
	host  Host
	gen   uint64
	wait  time.Duration
	mono  steer
	raw   steer
	off   [clocks]offset
	last  uint64 // TSC of the latest update
	stats Stats
}

// NewClock begins to write the data page at the start of page, which must be PageSize bytes long,
// 8-byte aligned and shared with the guest. rate is the host's TSC frequency in Hz if the caller
// knows it (KVM_GET_TSC_KHZ), 0 otherwise; NewClock then takes 20 ms to measure, else 2 ms. When it
// returns, the page is valid. A page that already holds a slot is carried on without a step in its
// monotonic clocks.
//
// ORDER(O5) vDSO data page, writer: the resolution is stored before the first gen. Pairs with the
// reader's load of it; without it the guest's first clock_getres could ask the host, no more.
func NewClock(page []byte, host Host, rate float64) (*Clock, error) {
	p, err := asPage(page)
	if err != nil {
		return nil, err
	}
	res, err := host.Resolution()
	if err != nil {
		return nil, err
	}
	c := &Clock{page: p, host: host, wait: first}
	measure := 2 * time.Millisecond
	if rate == 0 {
		measure = 20 * time.Millisecond
	} else if !(rate > 1e6 && rate < 1e11) {
		return nil, fmt.Errorf("start clock: a TSC of %g Hz; pass its frequency in Hz, or 0", rate)
	}
	if err := c.calibrate(measure, rate); err != nil {
		return nil, err
	}
	p[wordRes].Store(uint64(res))
	c.gen = p[wordGen].Load()
	if c.gen != 0 {
		if old := p.read(c.gen); old.mono.new != 0 && old.raw.new != 0 && old.mono.s <= host.TSC() {
			c.mono.line, c.raw.line = old.mono, old.raw
		}
	}
	for range 4 { // a few looks bound the offsets well enough that later ones need not move them
		if err := c.noteOffsets(&slot{}); err != nil {
			return nil, err
		}
	}
	if err := c.update(host.TSC()); err != nil {
		return nil, err
	}
	return c, nil
}

// calibrate takes a first rate for both lines, from readings that are measure apart.
func (c *Clock) calibrate(measure time.Duration, hz float64) error {
	var r [2][2]Reading
	for k := range 2 {
		for i, id := range []int{clockMonotonic, clockRaw} {
			var err error
			if r[i][k], err = c.host.Read(id); err != nil {
				return err
			}
		}
		if k == 0 {
			c.sleep(measure)
		}
	}
	for i, s := range []*steer{&c.mono, &c.raw} {
		if r[i][1].TSC <= r[i][0].TSC || r[i][1].NS <= r[i][0].NS {
			return fmt.Errorf("start clock: %w", ErrTSC)
		}
		rate := float64(r[i][1].NS-r[i][0].NS) / float64(r[i][1].TSC-r[i][0].TSC)
		// The caller's frequency is better than a short measurement unless the two contradict.
		noise := float64(r[i][0].Half+r[i][1].Half) / float64(r[i][1].TSC-r[i][0].TSC)
		if hz != 0 && math.Abs(rate*hz/1e9-1) < noise+maxSteer {
			rate = 1e9 / hz
		}
		if !(rate > 1e-3 && rate < 1e3) {
			return fmt.Errorf("start clock: %g ns per TSC cycle: %w", rate, ErrTSC)
		}
		s.begin(r[i][0], rate)
		s.note(r[i][1])
		s.begin(r[i][1], s.rate)
	}
	return nil
}

// sleep waits on the host's time; a simulated host has its own.
func (c *Clock) sleep(d time.Duration) {
	if s, ok := c.host.(interface{ Sleep(time.Duration) }); ok {
		s.Sleep(d)
		return
	}
	time.Sleep(d)
}

// Update compares the page with the host's clocks and publishes a correction. It gives the time to
// wait before the next Update: 2 ms at first, then up to Period. Later is harmless, the page then runs
// on with the latest rate. After an error the page stays as it was.
func (c *Clock) Update() (time.Duration, error) {
	now := c.host.TSC()
	if now < c.last {
		return c.wait, fmt.Errorf("update clock: the TSC went from %d to %d: %w", c.last, now, ErrTSC)
	}
	if now < c.mono.line.s || now < c.raw.line.s {
		return c.wait, nil // the latest change is still to come; a slot holds only one
	}
	if err := c.update(now); err != nil {
		return c.wait, err
	}
	c.wait = min(2*c.wait, Period)
	return c.wait, nil
}

func (c *Clock) update(now uint64) error {
	mono, err := c.host.Read(clockMonotonic)
	if err != nil {
		return err
	}
	raw, err := c.host.Read(clockRaw)
	if err != nil {
		return err
	}
	c.mono.note(mono)
	c.raw.note(raw)
	sl := &slot{}
	if err := c.noteOffsets(sl); err != nil {
		return err
	}
	c.last = now
	c.publish(sl)
	c.stats.Updates++
	c.stats.Error, c.stats.Half = c.mono.err, float64(mono.Half)*c.mono.rate
	if c.stats.Updates > 2 {
		c.stats.MaxError = max(c.stats.MaxError, math.Abs(c.mono.err))
	}
	return nil
}

// noteOffsets reads the clocks that are CLOCK_MONOTONIC plus something, and sets offsets and served.
func (c *Clock) noteOffsets(sl *slot) error {
	sl.served = 1<<clockMonotonic | 1<<clockMonoCoarse | 1<<clockRaw
	mono, err := c.host.Read(clockMonotonic)
	if err != nil {
		return err
	}
	for _, id := range []int{clockRealtime, clockBoottime, clockTAI} {
		r, err := c.host.Read(id)
		if err != nil {
			return err
		}
		apart := float64(int64(r.TSC-mono.TSC)) * c.mono.rate
		half := int64(float64(r.Half+mono.Half)*c.mono.rate) + 1
		if c.off[id].note(r.NS-mono.NS-int64(apart), half) {
			c.stats.Steps++
		}
		sl.offset[id] = c.off[id].ns
		if r.NS > 0 { // before 1970 the code's unsigned division would be wrong
			sl.served |= 1 << id
		}
	}
	sl.offset[clockRealtimeCoarse] = sl.offset[clockRealtime]
	sl.served |= sl.served & (1 << clockRealtime) << clockRealtimeCoarse
	return nil
}

// publish bends both lines a little ahead of now and makes sl, with them, the newest slot.
//
// ORDER(O5) vDSO data page, writer: fills the slot that gen does not name (a), then stores gen (b).
// Pairs with the reader in code_amd64.s, which loads gen, the slot, the TSC and gen again. Without (a)
// before (b) a reader could find the new gen and half of the slot of two generations ago. The TSC is
// looked at between (a) and (b): were (b) later than the lines' S, a reader of the former slot could
// have been given a time beyond the bend, and the next one less.
func (c *Clock) publish(sl *slot) {
	lead := min(c.wait/4, maxLead)
	var s uint64
	for range 3 {
		s = c.host.TSC() + uint64(float64(lead)/c.mono.rate)
		horizon := float64(horizons * c.wait)
		sl.mono, sl.raw = c.mono.next(s, horizon), c.raw.next(s, horizon)
		c.page.fill(c.gen+1, sl)
		if c.host.TSC() < s {
			break
		}
	}
	c.gen++
	c.page[wordGen].Store(c.gen)
	if c.host.TSC() >= s {
		c.stats.Late++
	}
	c.mono.line, c.raw.line = sl.mono, sl.raw
}

// Stats gives the Clock's view of itself. Call it from the goroutine that calls Update.
func (c *Clock) Stats() Stats { return c.stats }

// Run calls Update until ctx ends or the clock fails, and hands each Stats to report unless it is nil.
// It gives nil when ctx ended.
func (c *Clock) Run(ctx context.Context, report func(Stats)) error {
	t := time.NewTimer(c.wait)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		wait, err := c.Update()
		if err != nil {
			return err
		}
		if report != nil {
			report(c.stats)
		}
		t.Reset(wait)
	}
}
