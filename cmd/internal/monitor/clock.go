package monitor

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/guest/vdso"
	"github.com/cloister-vmm/cloister/vmm"
	"golang.org/x/sys/unix"
)

// steer keeps the guest's own clock on the host's, where the program has one: from this process, through
// the page of guest memory that both map. The engine stays out of it.
func (m *monitor) steer() error {
	if m.ready.Info.Clock != vmm.OwnClock {
		return nil
	}
	page, err := unix.Mmap(m.guest, abi.VDSOBase, vdso.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the guest's clock: %w", err)
	}
	c, err := vdso.NewClock(page, vdso.Kernel{}, float64(m.ready.Info.TSCHz))
	if err != nil {
		return fmt.Errorf("steer the guest's clock: %w", err)
	}
	go func() {
		// ORDER(none): a finished copy for the report, replaced whole
		err := c.Run(context.Background(), func(s vdso.Stats) { m.clock.Store(&s) })
		if err != nil && !m.plan.Quiet {
			fmt.Fprintln(os.Stderr, "cloister: the guest's clock is not steered any more:", err)
		}
	}()
	return nil
}

// clockStats is what the report knows of the steering.
type clockStats = atomic.Pointer[vdso.Stats]
