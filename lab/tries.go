package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cloister-vmm/cloister/lab/wire"
)

// tries runs the machine until it has done its job, and returns the job's status.
//
// A boot whose emulator hung (ErrEmulator) is tried again, retries times, from the start and with
// nothing kept of what it said; the table names it. Two rules keep that from hiding a fault of the project: no other
// end of a machine is tried again, whatever it looks like, and a boot in which a test had already
// failed is not either.
func (r *results) tries(ctx context.Context, b boot, retries int, note func(string, ...any)) (status int, err error) {
	for try := 0; ; try++ {
		status, err = r.boot(ctx, b, note)
		if err == nil {
			return status, nil
		}
		if serr := r.settle(); serr != nil {
			return 1, errors.Join(err, serr)
		}
		if !errors.Is(err, ErrEmulator) || r.failed || r.testFailed || try >= retries {
			if try > 0 {
				err = fmt.Errorf("in try %d of %d: %w", try+1, retries+1, err)
			}
			return 1, errors.Join(err, r.abandon())
		}
		what, _, _ := strings.Cut(err.Error(), "\n")
		note("%v", err)
		note("booting again, %d of %d", try+1, retries)
		if err := r.again(what); err != nil {
			return 1, err
		}
	}
}

// boot runs the machine once.
func (r *results) boot(ctx context.Context, b boot, note func(string, ...any)) (status int, err error) {
	// A new disk for each: what an earlier boot left there is none of this one's.
	// Bochs makes a lock beside it, which a killed one leaves.
	if err := os.Remove(b.disk + ".lock"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 1, err
	}
	if err := os.WriteFile(b.disk, nil, 0o600); err != nil {
		return 1, err
	}
	if err := os.Truncate(b.disk, diskSize); err != nil {
		return 1, err
	}
	booted := time.Now()
	err = watch(ctx, b, func(m wire.Message) error {
		switch m.Kind {
		case wire.KindHello:
			note("up after %.1f s (%.1f s of guest time): kernel %s %v", time.Since(booted).Seconds(), m.Uptime, m.Text, m.Facts)
		case wire.KindNote:
			note("guest: %s", m.Text)
		case wire.KindStart:
			note("%d of %d: %s", m.Task+1, len(r.tasks), m.Text)
			return r.start(m.Task)
		case wire.KindLine:
			return r.line(m.Task, m.Text)
		case wire.KindEnd:
			return r.end(m.Status, "")
		case wire.KindDone:
			status = m.Status
			note("done after %.1f s of guest time", m.Uptime)
		}
		return nil
	})
	if err == nil {
		err = r.abandon() // nothing to do if the guest ended its last task
	}
	return status, err
}
