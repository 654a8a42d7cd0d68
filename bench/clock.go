package main

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// reads is the number of clock readings in one turn.
const reads = 300_000

// clocks compares the guest's CLOCK_MONOTONIC with the host's, natively read by the same program.
func (b *bench) clocks() error {
	var ours, native samples
	var back, syscalls float64
	file := b.path("report.json")
	cpu := []string{"--quiet", "--cpu", fmt.Sprint(b.cpu), "--report", file, b.path("clock")}
	for range b.rounds {
		out, err := b.cloister(patience, append(cpu, "rate", fmt.Sprint(reads))...)
		if err != nil {
			return err
		}
		var ns, steps float64
		if _, err := fmt.Sscan(string(out), &ns, &steps); err != nil {
			return fmt.Errorf("clock rate: %q: %w", out, err)
		}
		ours, back = append(ours, ns), back+steps
		n, err := sealedSyscalls(file)
		if err != nil {
			return err
		}
		syscalls += n
		if out, err = b.runOn(b.cpu, patience, b.path("clock"), "rate", fmt.Sprint(reads)); err != nil {
			return err
		}
		if _, err := fmt.Sscan(string(out), &ns, &steps); err != nil {
			return fmt.Errorf("clock rate: %q: %w", out, err)
		}
		native = append(native, ns)
	}
	n := reads * b.rounds
	b.rows = append(b.rows,
		Row{What: "clock, one reading, best", Ours: ours.quantile(0), Base: native.quantile(0), Unit: "ns", Limit: 1.2, N: n},
		Row{What: "clock, one reading, median of the runs' best", Ours: ours.quantile(0.5), Base: native.quantile(0.5), Unit: "ns", Limit: 1.2, N: n},
		Row{What: "clock, system calls while it is read", Ours: syscalls, Unit: "calls", Limit: 0, N: n},
		Row{What: "clock, steps back", Ours: back, Unit: "steps", Limit: 0, N: n})
	return b.clockError(cpu)
}

func sealedSyscalls(file string) (float64, error) {
	r, err := readReport(file)
	if err != nil {
		return 0, err
	}
	v := r.VCPUs[0]
	if v.SealedNS == 0 {
		return 0, errors.New("the clock's guest was never sealed: its system calls cannot be told apart")
	}
	c, ok := v.Sealed.ByCause["syscall"]
	if !ok {
		return 0, nil
	}
	if c.Count == nil {
		return 0, errors.New("the report has no count of system calls")
	}
	return float64(*c.Count), nil
}

// reading is one reading of the clock between two of the TSC.
type reading struct{ before, ns, after uint64 }

func (r reading) mid() float64  { return float64(r.before) + float64(r.after-r.before)/2 }
func (r reading) width() uint64 { return r.after - r.before }
func readings(out []byte) (list []reading, err error) {
	w, err := words(out)
	if err != nil || len(w)%3 != 0 {
		return nil, errors.Join(err, fmt.Errorf("clock trace: %d words are no triples", len(w)))
	}
	for t := range slices.Chunk(w, 3) {
		list = append(list, reading{t[0], t[1], t[2]})
	}
	return list, nil
}

// clockError runs the sampler in the guest and natively at the same time and holds each reading of the
// guest's against the line through the two native ones around it.
func (b *bench) clockError(cpu []string) error {
	seconds := fmt.Sprint(b.clock.Seconds())
	limit := b.clock + patience
	type result struct {
		out []byte
		err error
	}
	host := make(chan result, 1)
	go func() {
		out, err := b.runOn(b.housekeeping(), limit, b.path("clock"), "trace", fmt.Sprint(b.clock.Seconds()+2), "500")
		host <- result{out, err}
	}()
	time.Sleep(time.Second)
	out, err := b.cloister(limit, append(cpu, "trace", seconds, "1000")...)
	h := <-host
	if err := errors.Join(err, h.err); err != nil {
		return err
	}
	guest, err := readings(out)
	if err != nil {
		return err
	}
	native, err := readings(h.out)
	if err != nil {
		return err
	}
	syscalls, err := sealedSyscalls(b.path("report.json"))
	if err != nil {
		return err
	}
	errs, back := errorsOf(guest, native, float64(b.hz)/100)
	if len(errs) < 100 {
		return fmt.Errorf("clock: only %d readings of the guest's lie between undisturbed native ones", len(errs))
	}
	what := fmt.Sprintf("clock over %v, ", b.clock)
	b.rows = append(b.rows,
		Row{What: what + "error, median", Ours: errs.quantile(0.5), Unit: "ns", Limit: none, N: len(errs)},
		Row{What: what + "error, p99.9", Ours: errs.quantile(0.999), Unit: "ns", Limit: none, N: len(errs)},
		Row{What: what + "error, worst", Ours: errs.quantile(1), Unit: "ns", Limit: 100, N: len(errs)},
		Row{What: what + "steps back", Ours: float64(back), Unit: "steps", Limit: 0, N: len(guest)},
		Row{What: what + "system calls", Ours: syscalls, Unit: "calls", Limit: 0, N: len(guest)})
	return nil
}

// errorsOf is the distance of every undisturbed reading of the guest's from the native clock, ns. A reading
// is disturbed when its two stamps lie half as far again apart as those of the quickest tenth: then nobody knows
// when in between it was taken. Native readings more than far cycles apart are not joined by a line.
func errorsOf(guest, native []reading, far float64) (list samples, back int) {
	clean := narrow(native)
	at := 0
	for i, g := range guest {
		if i > 0 && g.ns < guest[i-1].ns {
			back++
		}
	}
	for _, g := range narrow(guest) {
		m := g.mid()
		for at+1 < len(clean) && clean[at+1].mid() <= m {
			at++
		}
		if at+1 >= len(clean) || clean[at].mid() > m {
			continue
		}
		l, r := clean[at], clean[at+1]
		if r.mid()-l.mid() > far {
			continue
		}
		share := (m - l.mid()) / (r.mid() - l.mid())
		d := float64(int64(g.ns-l.ns)) - share*float64(int64(r.ns-l.ns))
		list = append(list, max(d, -d))
	}
	return list, back
}

func narrow(list []reading) (out []reading) {
	var widths samples
	for _, r := range list {
		widths = append(widths, float64(r.width()))
	}
	most := 1.5 * widths.quantile(0.1)
	for _, r := range list {
		if float64(r.width()) <= most {
			out = append(out, r)
		}
	}
	return out
}
