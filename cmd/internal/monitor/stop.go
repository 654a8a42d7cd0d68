package monitor

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"os"
	"time"

	"github.com/cloister-vmm/cloister/observe"
	"golang.org/x/sys/unix"
)

// Stop is `cloister stop`; it returns the exit status.
func Stop(args []string) int {
	f := newFlags("stop")
	timeout := f.Duration("timeout", 10*time.Second, "`time` to wait until the VM has ended and reported")
	rest, err := parseMixed(f, args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		flagUsage(os.Stdout, "cloister stop VM\n\nEnds a run as SIGTERM would: its report is written, its status is 143.", f)
		return 0
	case err != nil:
	case len(rest) != 1:
		err = errors.New("stop takes the name of one VM: `cloister ps` lists them")
	case *timeout < 0:
		err = fmt.Errorf("--timeout %v: a time is not negative", *timeout)
	}
	if err != nil {
		return session.Failf("%v", err)
	}
	vm, err := findVM(rest[0])
	if err == nil {
		err = vm.stop(*timeout)
	}
	if err != nil {
		return session.Failf("%v", err)
	}
	return 0
}

// stop ends a run and waits until its engine is gone. Without a monitor the engine is told itself.
func (r running) stop(timeout time.Duration) error {
	// The descriptor is of the process that is there now: if the lock is held after it was taken, it is
	// the engine, and a signal can no longer hit a process that got its number later.
	engine, err := unix.PidfdOpen(r.engine, 0)
	if err != nil || !session.EngineLives(r.dir) {
		if err == nil {
			err = unix.Close(engine)
		} else if errors.Is(err, unix.ESRCH) {
			err = nil
		}
		return err // nil: it has ended by itself
	}
	defer unix.Close(engine)
	ctx, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	err = observe.NewClient(r.dir).Stop(ctx, "cloister stop")
	if errors.Is(err, observe.ErrNoMonitor) || ctx.Err() != nil {
		err = unix.PidfdSendSignal(engine, unix.SIGTERM, nil, 0)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("stop VM %s: %w", r.name, err)
	}
	p := []unix.PollFd{{Fd: int32(engine), Events: unix.POLLIN}} // readable when the process has ended (pidfd_open(2))
	for end := time.Now().Add(timeout); ; {
		left := max(0, time.Until(end))
		n, err := unix.Poll(p, int(left.Milliseconds()))
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("stop VM %s: poll: %w", r.name, err)
		case left == 0:
			return fmt.Errorf("VM %s was told to stop and still runs after %v: kill -9 %d ends it without a report", r.name, timeout, r.engine)
		}
	}
}
