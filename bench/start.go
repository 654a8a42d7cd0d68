package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// startRuns is the number of runs of each side.
const startRuns = 40

// wallOf runs a program and returns how long its parent waited, ms.
func wallOf(name string, args ...string) (float64, error) {
	c := exec.Command(name, args...)
	var errs strings.Builder
	c.Stderr = &errs
	at := time.Now()
	err := c.Run()
	ms := float64(time.Since(at).Microseconds()) / 1e3
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return ms, nil
}

// start times programs from start to exit.
func (b *bench) start() error {
	guests := []string{"hello-glibc"}
	if err := b.compile("musl-gcc", "hello.c", "hello-musl"); err != nil {
		if !errors.Is(err, exec.ErrNotFound) {
			return err
		}
		b.rows = append(b.rows, Row{What: "start to exit, hello-musl", Unit: "ms", Limit: 1.5, Why: "musl-gcc is not installed (package musl-tools)"})
	} else {
		guests = append(guests, "hello-musl")
	}
	for _, g := range guests {
		var ours, pinned, floor, native samples
		for range max(startRuns, 3*b.rounds) {
			for _, side := range []struct {
				to   *samples
				args []string
			}{
				{&ours, []string{b.path("cloister"), "run", "--quiet", b.path(g)}}, {&floor, []string{b.path("floor"), "run", b.path(g)}},
				{&pinned, []string{b.path("cloister"), "run", "--quiet", "--cpu", fmt.Sprint(b.cpu), b.path(g)}}, {&native, []string{b.path(g)}},
			} {
				ms, err := wallOf(side.args[0], side.args[1:]...)
				if err != nil && strings.Contains(err.Error(), "in use") {
					continue // another Cloister has the core: this turn has no sample of the pinned run
				}
				if err != nil {
					return err
				}
				*side.to = append(*side.to, ms)
			}
		}
		for _, q := range []struct {
			name  string
			at    float64
			limit float64
		}{{"median", 0.5, 1.5}, {"best", 0, none}} {
			b.rows = append(b.rows,
				Row{What: "start to exit, " + g + ", " + q.name, Ours: ours.quantile(q.at), Base: floor.quantile(q.at), Unit: "ms", Limit: q.limit, N: len(ours)},
				Row{What: "start to exit with --cpu, " + g + ", " + q.name, Ours: pinned.quantile(q.at), Base: floor.quantile(q.at), Unit: "ms", Limit: none, N: len(pinned)})
		}
		b.rows = append(b.rows, Row{What: "native start to exit, " + g + ", median (ratio: to the floor)", Ours: native.quantile(0.5), Base: floor.quantile(0.5), Unit: "ms", Limit: none, N: len(native)})
		if err := b.phases(g); err != nil {
			return err
		}
	}
	return nil
}

// phases tabulates the phases of start-up that the report names.
func (b *bench) phases(guest string) error {
	var names []string
	took := map[string]samples{}
	for range 20 {
		file := b.path("report.json")
		if _, err := b.cloister(patience, "--quiet", "--report", file, b.path(guest)); err != nil {
			return err
		}
		r, err := readReport(file)
		if err != nil {
			return err
		}
		for _, t := range r.Timings {
			if took[t.Phase] == nil {
				names = append(names, t.Phase)
			}
			took[t.Phase] = append(took[t.Phase], float64(t.NS)/1e3)
		}
	}
	var w strings.Builder
	fmt.Fprintf(&w, "### Phases of start-up, %s\n\n| phase | best, µs | median, µs |\n| --- | ---: | ---: |\n", guest)
	for _, n := range names {
		fmt.Fprintf(&w, "| %s | %.0f | %.0f |\n", n, took[n].quantile(0), took[n].quantile(0.5))
	}
	b.details = append(b.details, w.String())
	return nil
}

// report is the part of cloister.report/v1 that is used here.
type report struct {
	Timings []struct {
		Phase string
		NS    uint64
	}
	VCPUs []struct {
		Sealed struct {
			Total   uint64
			ByCause map[string]struct{ Count *uint64 } `json:"by_cause"`
		}
		SealedNS uint64                   `json:"sealed_ns"`
		Breaks   struct{ Returns uint64 } // of KVM_RUN
	}
}

func readReport(name string) (r report, err error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("%s: %w", name, err)
	}
	if len(r.VCPUs) == 0 {
		return r, fmt.Errorf("%s: no vCPU", name)
	}
	return r, nil
}
