package monitor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"os"
	"os/signal"
	"time"

	"github.com/cloister-vmm/cloister/observe"
	"golang.org/x/sys/unix"
)

// Bounds of --interval: below, a snapshot's own few milliseconds blur the rates.
const minInterval, maxInterval = 100 * time.Millisecond, time.Hour

// Stats is `cloister stats`; it returns the exit status.
func Stats(args []string) int {
	f := newFlags("stats")
	watching := f.Bool("watch", false, "redraw until Ctrl-C, or until the VM ends")
	interval := f.Duration("interval", time.Second, "`time` over which rates are taken")
	asJSON := f.Bool("json", false, "print the VM's status as JSON, at once")
	rest, err := parseMixed(f, args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		flagUsage(os.Stdout, "cloister stats [VM] [--watch] [--interval 1s]\n\nShows the breaks of a running VM by cause, and how many come per second.\nWithout a name: of the only VM there is.", f)
		return 0
	case err != nil:
	case len(rest) > 1:
		err = fmt.Errorf("stats shows one VM at a time, not %q", rest)
	case *interval < minInterval || *interval > maxInterval:
		err = fmt.Errorf("--interval %v: choose %v to %v", *interval, minInterval, maxInterval)
	case *watching && *asJSON:
		err = errors.New("--watch and --json exclude each other: choose one")
	}
	if err != nil {
		return session.Failf("%v", err)
	}
	vm, err := running{}, error(nil)
	if len(rest) == 0 {
		vm, err = onlyVM()
	} else {
		vm, err = findVM(rest[0])
	}
	if err != nil {
		return session.Failf("%v", err)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer cancel()
	w := &watcher{ctx: ctx, vm: vm, interval: *interval}
	switch {
	case *asJSON:
		err = w.json()
	case *watching:
		err = w.watch()
	default:
		err = w.once()
	}
	if err != nil && ctx.Err() == nil {
		return session.Failf("%v", err)
	}
	return 0
}

// watcher shows one VM.
type watcher struct {
	ctx      context.Context
	vm       running
	interval time.Duration
	before   *observe.Status
	now      *observe.Status
}

var errEnded = errors.New("the VM has ended")

// step waits for the interval, except at first, and takes the next status.
func (w *watcher) step() error {
	if w.now != nil {
		select {
		case <-w.ctx.Done():
			return w.ctx.Err()
		case <-time.After(w.interval):
		}
	}
	s, err := w.vm.status(w.ctx)
	if err != nil {
		return err
	}
	if s == nil || w.now != nil && s.Engine != w.now.Engine {
		return errEnded
	}
	w.before, w.now = w.now, s
	return nil
}

func (w *watcher) json() error {
	if err := w.step(); err != nil {
		return w.ended(err)
	}
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(w.now)
}

// once shows the rates over one interval; when the VM ends within it, the counts.
func (w *watcher) once() error {
	if err := w.step(); err != nil {
		return w.ended(err)
	}
	if err := w.step(); err != nil && !errors.Is(err, errEnded) && w.ctx.Err() == nil {
		return err
	}
	return observe.WriteStats(os.Stdout, w.before, w.now)
}

func (w *watcher) ended(err error) error {
	if errors.Is(err, errEnded) {
		return fmt.Errorf("VM %s has just ended", w.vm.name)
	}
	return err
}

// watch redraws on a terminal; elsewhere it prints one table after the other.
func (w *watcher) watch() error {
	if !isTerminal(1) {
		for {
			if err := w.frame(os.Stdout.Write); err != nil {
				return w.last(err)
			}
		}
	}
	screen, err := observe.OpenScreen(os.Stdout, windowSize)
	for err == nil {
		err = w.frame(func(b []byte) (int, error) { return len(b), screen.Draw(string(b)) })
	}
	return w.last(screen.Close(err))
}

func (w *watcher) frame(show func([]byte) (int, error)) error {
	if err := w.step(); err != nil {
		return err
	}
	var b bytes.Buffer
	if err := observe.WriteStats(&b, w.before, w.now); err != nil {
		return err
	}
	fmt.Fprintln(&b)
	_, err := show(b.Bytes())
	return err
}

// last is how a watch ends: with the VM is a good end, and leaves the last figures on the terminal.
func (w *watcher) last(err error) error {
	if !errors.Is(err, errEnded) {
		return err
	}
	if w.now != nil && isTerminal(1) {
		if err := observe.WriteStats(os.Stdout, w.before, w.now); err != nil {
			return err
		}
	}
	_, err = fmt.Printf("VM %s has ended.\n", w.vm.name)
	return err
}

func windowSize() (columns, rows int) {
	ws, err := unix.IoctlGetWinsize(1, unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return int(ws.Col), int(ws.Row)
}
