package bare

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/cloister-vmm/cloister/cmd/internal/monitor"
	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/observe"
	"golang.org/x/sys/unix"
)

// serveLookers lets `cloister ps`, `stats`, `stop` and a scrape at this run. They are answered by goroutines of
// their own, which ask the loop: all that they want to know is the loop's alone.
func (r *run) serveLookers() error {
	b := r.b
	vm := observe.VM{Name: b.Name, Program: b.Program, Args: b.Args, Engine: os.Getpid(), Monitor: os.Getpid(), Started: b.Started.UTC().Format(time.RFC3339),
		Version: session.Version(), Go: runtime.Version(), Metrics: b.MetricsAt, Backend: breaks.BackendBare, Budget: r.budget}
	end := func(reason string) error {
		if reason == "" {
			reason = "asked through the control socket"
		}
		return r.do(context.Background(), func() { r.stop(reason, int(unix.SIGTERM)) })
	}
	err := monitor.Serve(b.VMDir, b.Metrics, vm, r.look, end)
	if err != nil && b.Metrics != nil {
		return err
	}
	if err != nil { // the run is as good without, only harder to look at
		r.warn("%v: `cloister ps` and `cloister stats` cannot see this run's figures", err)
	}
	if b.Metrics != nil && !b.Quiet {
		fmt.Fprintf(os.Stderr, "cloister: metrics at http://%s/metrics\n", b.MetricsAt)
	}
	return nil
}

// do has the loop do f, and waits for it.
func (r *run) do(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case r.ask <- func() { f(); close(done) }:
		r.wakeUp()
	case <-r.over:
		return errors.New("the run is over")
	case <-ctx.Done():
		return errors.New("the run is busy")
	}
	select {
	case <-done:
		return nil
	case <-r.over:
		return errors.New("the run is over")
	case <-ctx.Done():
		return errors.New("the run is busy")
	}
}

// look is an observe.Source: the counters as they are now.
func (r *run) look(ctx context.Context) (*observe.Snapshot, error) {
	s := &observe.Snapshot{}
	err := r.do(ctx, func() {
		for _, t := range r.threads {
			if !t.final {
				if f, err := r.readOf(t); err == nil { // else it is ending: what was read last stands
					t.last = f
				}
			}
			c, _ := t.snapshot()
			s.VCPUs = append(s.VCPUs, observe.Ledger{Counts: c, Thread: t.name})
		}
		s.Now = now()
		if m, err := observe.ReadResident("/", r.p.pid); err == nil {
			n := m.Private + m.Shared
			s.Memory.Guest = &n
		}
	})
	if err != nil {
		return nil, err
	}
	if m, err := observe.ReadResident("/", os.Getpid()); err == nil {
		s.Memory.Monitor = m
	}
	return s, nil
}
