package monitor

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/guest/sdk/go/ring"
	"golang.org/x/sys/unix"
)

// ringNap is how long `cloister ring` sleeps when there is nothing to do: nobody can ring a bell without leaving the guest.
const ringNap = time.Millisecond

// ringBuffer is where records are put first; a longer one gets a larger buffer.
const ringBuffer = 64 << 10

// Ring is `cloister ring`; it returns the exit status.
func Ring(args []string) int {
	f := newFlags("ring")
	write := f.Bool("write", false, "be the producer: each line of standard input is a record, its newline included")
	last := f.Bool("close", false, "with --write: close the ring at the end of the input; no other producer can come")
	rest, err := parseMixed(f, args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		flagUsage(os.Stdout, "cloister ring VM [NAME] [--write [--close]]\n\nCopies the records of a VM's ring to standard output until the program closes the ring or the VM ends.\nWithout a name: lists the rings.", f)
		return 0
	case err != nil:
	case len(rest) < 1 || len(rest) > 2:
		err = errors.New("ring takes the name of a VM and of one of its rings: `cloister ps` lists VMs, `cloister ring VM` its rings")
	case len(rest) == 1 && *write, *last && !*write:
		err = errors.New("--write needs the name of a ring, --close needs --write")
	}
	if err != nil {
		return session.Failf("%v", err)
	}
	vm, err := findVM(rest[0])
	if err != nil {
		return session.Failf("%v", err)
	}
	switch {
	case len(rest) == 1:
		err = vm.listRings(os.Stdout)
	case *write:
		err = vm.writeRing(rest[1], os.Stdin, *last)
	default:
		err = vm.readRing(rest[1], os.Stdout)
	}
	if err != nil {
		return session.Failf("%v", err)
	}
	return 0
}

// rings lists the names of a VM's rings.
func (r running) rings() ([]string, error) {
	list, err := os.ReadDir(filepath.Join(r.dir, session.RingsDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("VM %s: %w", r.name, err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names, nil
}

func (r running) listRings(w io.Writer) error {
	names, err := r.rings()
	if err != nil {
		return err
	}
	for _, n := range names {
		st, err := os.Stat(filepath.Join(r.dir, session.RingsDir, n))
		if err != nil {
			return fmt.Errorf("VM %s, ring %s: %w", r.name, n, err)
		}
		if _, err := fmt.Fprintf(w, "%-32s %d bytes\n", n, st.Size()-abi.RingData); err != nil {
			return err
		}
	}
	return nil
}

// ringHost is a VM's ring as this process has opened it, and the process that must live for it to have another side.
type ringHost struct {
	engine int // pidfd
	name   string
}

// openRing opens a ring by open and makes sure that it is this VM's.
func openRing[T any](r running, name string, open func(path string) (T, error)) (side T, h *ringHost, err error) {
	h = &ringHost{name: fmt.Sprintf("VM %s, ring %s", r.name, name)}
	if h.engine, err = unix.PidfdOpen(r.engine, 0); err != nil {
		return side, nil, fmt.Errorf("VM %s has ended", r.name)
	}
	err = r.hasRing(name)
	if err == nil {
		side, err = open(filepath.Join(r.dir, session.RingsDir, name))
	}
	// The lock is looked at last: if it is held now, the process number was the engine's all the time.
	if err == nil && !session.EngineLives(r.dir) {
		err = errors.New("the VM has ended")
	}
	if err != nil {
		return side, nil, errors.Join(fmt.Errorf("%s: %w", h.name, err), unix.Close(h.engine))
	}
	return side, h, nil
}

// hasRing says which rings there are when there is not this one.
func (r running) hasRing(name string) error {
	names, err := r.rings()
	if err != nil {
		return err
	}
	for _, n := range names {
		if n == name {
			return nil
		}
	}
	others := "it has none: start it with --ring NAME=SIZE"
	if len(names) > 0 {
		others = "it has " + strings.Join(names, ", ")
	}
	return errors.New("there is no such ring: " + others)
}

// nap sleeps, and reports whether the engine has ended: then nobody writes to the ring any more.
func (h *ringHost) nap() bool {
	p := []unix.PollFd{{Fd: int32(h.engine), Events: unix.POLLIN}} // readable when the process has ended (pidfd_open(2))
	n, err := unix.Poll(p, int(ringNap.Milliseconds()))
	return err == nil && n > 0
}

func (h *ringHost) close() error { return unix.Close(h.engine) }

// readRing copies until the end of the ring, of the VM or of the user's patience.
func (r running) readRing(name string, w io.Writer) (err error) {
	c, h, err := openRing(r, name, ring.OpenConsumer)
	if err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP) // what was taken is written
	defer cancel()
	out := bufio.NewWriterSize(w, ringBuffer)
	defer func() {
		if n := c.Dropped(); n > 0 && err == nil {
			session.Failf("%s: the producer dropped %d records: the ring was full", h.name, n)
		}
		err = errors.Join(err, out.Flush(), c.Close(), h.close())
	}()
	buf := make([]byte, min(ringBuffer, c.Max()))
	over := false
	for ctx.Err() == nil {
		n, err := c.Get(buf)
		switch {
		case err == nil:
			if _, err := out.Write(buf[:n]); err != nil {
				return err
			}
		case err == ring.ErrShort:
			buf = make([]byte, n)
		case err == io.EOF, err == ring.ErrEmpty && over:
			return nil
		case err == ring.ErrEmpty:
			if err := out.Flush(); err != nil {
				return err
			}
			over = h.nap() // what was written before the end is still there: another look
		default:
			return fmt.Errorf("%s: %w", h.name, err)
		}
	}
	return nil
}

// writeRing makes each line a record; a line that is longer than the ring's longest record is several.
func (r running) writeRing(name string, in io.Reader, last bool) (err error) {
	p, h, err := openRing(r, name, ring.OpenProducer)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close(), h.close()) }()
	lines := bufio.NewReaderSize(in, min(ringBuffer, p.Max()))
	for {
		line, end := lines.ReadSlice('\n')
		if end != nil && end != io.EOF && end != bufio.ErrBufferFull {
			return fmt.Errorf("standard input: %w", end)
		}
		if len(line) > 0 {
			if err := h.put(p, line); err != nil {
				return err
			}
		}
		if end == io.EOF {
			break
		}
	}
	if last {
		p.CloseWrite()
	}
	return nil
}

// put waits for room.
func (h *ringHost) put(p *ring.Producer, record []byte) error {
	for {
		err := p.Put(record)
		switch {
		case err == nil:
			return nil
		case err != ring.ErrFull:
			return fmt.Errorf("%s: %w", h.name, err)
		case h.nap():
			return fmt.Errorf("%s: the VM has ended: the rest of the input is not written", h.name)
		}
	}
}
