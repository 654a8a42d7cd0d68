package engine

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/vmm"
	"golang.org/x/sys/unix"
)

// share makes the memory that both processes see.
func (e *engine) share() (err error) {
	if e.guest, err = vmm.NewGuestMemory(e.o.hugepages); err != nil {
		return err
	}
	if e.ledgerFD, err = unix.MemfdCreate(session.LedgerName, unix.MFD_CLOEXEC); err != nil {
		return fmt.Errorf("ledger: memfd_create: %w", err)
	}
	// Room for every vCPU there can be; what is not touched costs nothing.
	const size = breaks.MaxVCPUs * breaks.LedgerSize
	if err = unix.Ftruncate(e.ledgerFD, int64(size)); err != nil {
		return fmt.Errorf("ledger: ftruncate: %w", err)
	}
	if e.ledgers, err = unix.Mmap(e.ledgerFD, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("ledger: mmap: %w", err)
	}
	return nil
}

// ledger is vmm.Config.Ledgers.
func (e *engine) ledger(i int) (*breaks.VCPU, error) {
	l, err := breaks.At(e.ledgers, i)
	if err != nil || len(e.leases) == 0 {
		return l, err // a fault in the ledger is nothing to whoever lets all vCPUs float
	}
	if err := unix.Mlock(e.ledgers[i*breaks.LedgerSize:][:breaks.LedgerSize]); err != nil && !e.o.quiet && i == 0 {
		session.Failf("the ledger is not locked in memory: %v: raise RLIMIT_MEMLOCK (ulimit -l)", err)
	}
	return l, nil
}

func (e *engine) plan() *session.Plan {
	o := e.o
	p := &session.Plan{
		Name: o.name, Program: o.program, Args: o.args, Seal: o.seal, CPU: o.cpu, Owned: o.dedicated(), FIFO: o.fifo, Engine: os.Getpid(),
		VMDir: e.vmDir, Budget: o.budget, OnBreak: o.onBreak, Report: o.report, Profile: o.profile, Trace: o.trace, PatchLog: o.patchLog,
		Metrics: o.metrics, MetricsFD: session.FDMetrics, Quiet: o.quiet, Timings: o.timings, Isolate: o.isolate, KeepQuiet: o.keepQuiet, Require: o.require, Keep: e.keep, Started: e.started.UTC().Format(time.RFC3339),
	}
	if strings.HasPrefix(o.program, "@") {
		p.Builtin = o.program
	}
	if e.metrics != nil && o.oneProcess {
		p.MetricsFD = int(e.metrics.Fd())
	}
	return p
}
