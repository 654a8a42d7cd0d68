package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

func loaded(load bool) string {
	if load {
		return "under load"
	}
	return "idle"
}

// pair is what both sides took, in cycles.
type pair struct{ ours, floor samples }

// turns gives the sides their turns; which of them begins changes from round to round.
func turns(rounds int, ours, floor func() (samples, error)) (p pair, err error) {
	for i := range rounds {
		for side := range 2 {
			take, to := ours, &p.ours
			if (i+side)%2 == 1 {
				take, to = floor, &p.floor
			}
			s, err := take()
			if err != nil {
				return p, err
			}
			*to = append(*to, s...)
		}
	}
	return p, nil
}

// collect is turns for programs that write their samples.
func (b *bench) collect(ours, floor func() ([]byte, error)) (p pair, err error) {
	decoded := func(run func() ([]byte, error)) func() (samples, error) {
		return func() (samples, error) {
			out, err := run()
			if err != nil {
				return nil, err
			}
			return decode(out)
		}
	}
	return turns(b.rounds, decoded(ours), decoded(floor))
}

// limits are the targets of a pair's rows at the median, p99 and p99.9.
type limits struct{ median, p99, p999 float64 }

func (b *bench) report(what string, p pair, l limits) {
	us := 1e6 / float64(b.hz)
	for _, q := range []struct {
		name  string
		at    float64
		limit float64
	}{{"median", 0.5, l.median}, {"p99", 0.99, l.p99}, {"p99.9", 0.999, l.p999}} {
		b.rows = append(b.rows, Row{
			What: what + ", " + q.name, Ours: p.ours.quantile(q.at) * us, Base: p.floor.quantile(q.at) * us, Unit: "µs",
			Limit: q.limit, N: min(len(p.ours), len(p.floor)),
		})
	}
}

// calls is the number of timed system calls in one turn.
const calls = 1500

// exits times a system call of the guest's from inside the guest: one that the vCPU's thread answers, and one
// that Go serves.
func (b *bench) exits() error { return b.classes(b.exitsIn) }

// classes measures in the default scheduling class and, if asked for, in SCHED_FIFO too: there the tail is
// not that of the other tenants of the core.
func (b *bench) classes(measure func(fifo int, suffix string) error) error {
	if err := measure(0, ""); err != nil || b.fifo == 0 {
		return err
	}
	return measure(b.fifo, ", SCHED_FIFO")
}

func (b *bench) exitsIn(fifo int, suffix string) error {
	for _, load := range []bool{false, true} {
		for _, c := range []struct {
			nr   int
			name string
			l    limits
		}{
			{unix.SYS_GETPPID, "exit answered on the vCPU's thread", limits{1.10, none, none}},
			{unix.SYS_GETRUSAGE, "exit served by Go", limits{none, none, none}},
		} {
			if load && c.nr == unix.SYS_GETPPID {
				c.l.p999 = 1.5
			}
			args := []string{b.path("exits"), fmt.Sprint(c.nr), fmt.Sprint(calls)}
			p, err := b.collect(
				func() ([]byte, error) { return b.engine(settings{cpu: b.cpu, fifo: fifo, load: load, args: args}) },
				func() ([]byte, error) { return b.floor(fifo, load, append([]string{"run"}, args...)...) })
			if err != nil {
				return err
			}
			b.report(c.name+", "+loaded(load)+suffix, p, c.l)
		}
	}
	return nil
}

// minStops is the least number of timed stops behind a row: 40 of them lie above p99, so that one late wake-up of the
// host does not decide it.
const minStops = 4000

// kicks times from just before a stop to the stamp that the vCPU's thread takes when it has left the guest.
func (b *bench) kicks() error { return b.classes(b.kicksIn) }

func (b *bench) kicksIn(fifo int, suffix string) error {
	stops := (minStops + b.rounds - 1) / b.rounds // in one turn
	for _, load := range []bool{false, true} {
		guest := []string{b.path("exits"), "0", "0"}
		p, err := b.collect(
			func() ([]byte, error) {
				return b.engine(settings{cpu: b.cpu, fifo: fifo, load: load, kicks: stops, args: guest})
			},
			func() ([]byte, error) {
				return b.floor(fifo, load, append([]string{"kick", fmt.Sprint(stops)}, guest...)...)
			})
		if err != nil {
			return err
		}
		b.report("kick to stopped, "+loaded(load)+suffix, p, limits{1.25, 1.25, none})
	}
	return nil
}
