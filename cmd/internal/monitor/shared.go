package monitor

import (
	"errors"
	"fmt"
	"os"

	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// What a native run's report has in common with a VM's.

// HostFacts is the machine as it is found now; cpu is the first thread's core, or -1.
func HostFacts(cpu int) breaks.Host { return hostFacts(cpu) }

// BudgetStatus turns the verdict on a budget into the exit status, and says why if nothing was judged.
func BudgetStatus(status int, b *breaks.BudgetState) int { return budgetStatus(status, b) }

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
