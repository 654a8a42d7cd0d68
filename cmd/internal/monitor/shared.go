package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/observe"
)

// What a native run's report has in common with a VM's.

// HostFacts is the machine as it is found now; cpu is the first thread's core, or -1.
func HostFacts(cpu int) breaks.Host { return hostFacts(cpu) }

// BudgetStatus turns the verdict on a budget into the exit status, and says why if nothing was judged.
func BudgetStatus(status int, b *breaks.BudgetState) int { return budgetStatus(status, b, nil) }

// WriteReport prints the report unless quiet, and writes it to the file unless that is empty.
func WriteReport(r *breaks.Report, file string, quiet, timings bool) (err error) {
	if !quiet {
		o := breaks.TextOptions{Color: isTerminal(2) && os.Getenv("NO_COLOR") == "", Timings: timings}
		if e := r.WriteText(os.Stderr, o); e != nil {
			err = fmt.Errorf("print the report: %w", e)
		}
	}
	if file != "" {
		err = errors.Join(err, notWritten("--report", replace(file, r.Encode)))
	}
	return err
}

// Serve opens the control socket in the run's directory and, with metrics, the scrape on that listening socket,
// which it takes; both are answered by goroutines of their own. It returns what was not opened, and why.
func Serve(dir string, metrics *os.File, vm observe.VM, source observe.Source, stop func(reason string) error) error {
	var err error
	listen := func(what string, l net.Listener, e error, serve func(net.Listener) error) {
		if e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", what, e))
			return
		}
		go func() {
			if e := serve(l); e != nil {
				session.Failf("%s: %v: it is served no more, the run goes on", what, e)
			}
		}()
	}
	if metrics != nil {
		l, e := net.FileListener(metrics)
		listen("--metrics", l, errors.Join(e, metrics.Close()), func(l net.Listener) error { return observe.Serve(l, observe.MetricsHandler(vm, source)) })
	}
	e := replace(filepath.Join(dir, session.FactsFile), func(w io.Writer) error { return json.NewEncoder(w).Encode(observe.NewStatus(vm, nil)) })
	if e != nil {
		return errors.Join(err, e)
	}
	l, e := observe.ListenControl(dir)
	listen("control socket", l, e, func(l net.Listener) error { return observe.Serve(l, observe.ControlHandler(vm, source, stop)) })
	return err
}
