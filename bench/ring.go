package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/guest/sdk/go/ring"
	"golang.org/x/sys/unix"
)

// Of one turn: records of the throughput, rounds of the latency.
const (
	ringRecords = 100_000
	ringRounds  = 10_000
	ringSize    = 1 << 20 // bytes
	ringVM      = "bench-ring"
)

// ringRunDir is a run directory of the bench's own: there the other side finds the guest's rings.
const ringRunDir = "CLOISTER_RUN_DIR"

// rings measures a sealed guest and a process of the host on both ends of a ring, against two processes.
func (b *bench) rings() (err error) {
	if err := b.compile("gcc", "ring.c", "ring", "-pthread", "-I", filepath.Join(b.root, "guest", "sdk", "c")); err != nil {
		return err
	}
	restore, err := setenv(ringRunDir, b.path("run"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, restore()) }()
	us := 1e6 / float64(b.hz)
	breaks := 0.0
	for _, n := range []int{64, 1024} {
		p, err := b.ringTurns(&breaks, func(path func(string) string) (inside, outside []string) {
			return []string{"put", path("out"), fmt.Sprint(n), fmt.Sprint(ringRecords)}, []string{"take", "out"}
		})
		if err != nil {
			return err
		}
		per := us * 1e3 / ringRecords
		b.rows = append(b.rows,
			Row{What: fmt.Sprintf("ring, sealed guest to process, a record of %d bytes, best run", n), Ours: p.ours.quantile(0) * per, Base: p.floor.quantile(0) * per, Unit: "ns", Limit: none, N: b.rounds},
			Row{What: fmt.Sprintf("ring, sealed guest to process, a record of %d bytes, median run", n), Ours: p.ours.quantile(0.5) * per, Base: p.floor.quantile(0.5) * per, Unit: "ns", Limit: none, N: b.rounds})
	}
	p, err := b.ringTurns(&breaks, func(path func(string) string) (inside, outside []string) {
		return []string{"ping", path("out"), path("in"), fmt.Sprint(ringRounds)}, []string{"pong", "out", "in"}
	})
	if err != nil {
		return err
	}
	b.report("ring, sealed guest to process and back", p, limits{none, none, none})
	if err := b.ringThreads(&breaks); err != nil {
		return err
	}
	b.rows = append(b.rows, Row{What: "ring, breaks of the sealed guest but host interrupts", Ours: breaks, Unit: "breaks", Limit: 0, N: b.rounds * (3*ringRecords + ringRounds)})
	return nil
}

// ringThreads measures a ring between a sealed thread and another one of the same program.
func (b *bench) ringThreads(breaks *float64) error {
	const size = 64
	two := []int{b.cpu, b.housekeeping()}
	args := func(path string) []string {
		return []string{"both", path, fmt.Sprint(size), fmt.Sprint(ringRecords)}
	}
	p, err := b.collect(
		func() ([]byte, error) {
			file := b.path("report.json")
			out, err := b.cloisterAmong(two, patience, append([]string{"--quiet", "--name", ringVM, "--place", fmt.Sprintf("main=%d,*=housekeeping", b.cpu),
				"--ring", fmt.Sprintf("out=%d", ringSize), "--report", file, "--", b.path("ring")}, args(ring.Path("out"))...)...)
			if err != nil {
				return nil, err
			}
			n, err := sealedBreaks(file)
			*breaks += n
			return out, err
		},
		func() (out []byte, err error) {
			fds, err := memoryRings("out")
			if err != nil {
				return nil, err
			}
			defer func() { err = errors.Join(err, unix.Close(fds["out"])) }()
			return b.runAmong(two, patience, b.path("ring"), append(args(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fds["out"])), fmt.Sprint(two[0]), fmt.Sprint(two[1]))...)
		})
	if err != nil {
		return err
	}
	b.times(fmt.Sprintf("ring, sealed thread to another, a record of %d bytes", size), p, 1e9/float64(b.hz)/ringRecords, "ns", none)
	return nil
}

// ringTurns gives both sides their turns. what names the arguments of the guest, which finds a ring at path, and those of
// the other side; breaks adds up what the sealed guest had.
func (b *bench) ringTurns(breaks *float64, what func(path func(string) string) (inside, outside []string)) (p pair, err error) {
	return b.collect(
		func() ([]byte, error) {
			dir := filepath.Join(b.path("run"), "vm", ringVM, "ring")
			return b.ringTurn(what, ring.Path, func(name string) string { return filepath.Join(dir, name) }, func(args []string) ([]byte, error) {
				file := b.path("report.json")
				out, err := b.cloister(patience, append([]string{"--quiet", "--name", ringVM, "--cpu", fmt.Sprint(b.cpu), "--ring", fmt.Sprintf("out=%d", ringSize),
					"--ring", fmt.Sprintf("in=%d", ringSize), "--report", file, "--", b.path("ring")}, args...)...)
				if err != nil {
					return nil, err
				}
				n, err := sealedBreaks(file)
				*breaks += n
				return out, err
			})
		},
		func() ([]byte, error) {
			fds, err := memoryRings("out", "in")
			if err != nil {
				return nil, err
			}
			path := func(name string) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fds[name]) }
			out, err := b.ringTurn(what, path, path, func(args []string) ([]byte, error) { return b.runOn(b.cpu, patience, b.path("ring"), args...) })
			for _, fd := range fds {
				err = errors.Join(err, unix.Close(fd))
			}
			return out, err
		})
}

// ringTurn runs both ends; what they have measured is in the output of one of them.
func (b *bench) ringTurn(what func(path func(string) string) (inside, outside []string), in, out func(string) string, run func(args []string) ([]byte, error)) ([]byte, error) {
	args, names := what(in)
	for i, n := range names[1:] {
		names[i+1] = out(n)
	}
	other := exec.Command(b.path("ring"), names...)
	var text, errs bytes.Buffer
	other.Stdout, other.Stderr = &text, &errs
	if err := startOn(other, b.housekeeping()); err != nil {
		return nil, err
	}
	measured, err := run(args)
	if err != nil {
		return nil, errors.Join(err, other.Process.Kill(), other.Wait())
	}
	if err := other.Wait(); err != nil {
		return nil, fmt.Errorf("ring %q: %w: %s", names, err, bytes.TrimSpace(errs.Bytes()))
	}
	return append(measured, text.Bytes()...), nil
}

// memoryRings makes rings as --ring does, for two processes without a guest.
func memoryRings(names ...string) (map[string]int, error) {
	fds := map[string]int{}
	for _, name := range names {
		fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("memfd_create: %w", err)
		}
		fds[name] = fd
		if err := unix.Ftruncate(fd, abi.RingData+ringSize); err != nil {
			return nil, fmt.Errorf("ftruncate: %w", err)
		}
		mem, err := unix.Mmap(fd, 0, abi.RingData+ringSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		if err == nil {
			err = errors.Join(ring.Format(mem), unix.Munmap(mem))
		}
		if err != nil {
			return nil, fmt.Errorf("a ring: %w", err)
		}
	}
	return fds, nil
}

// sealedBreaks counts what the sealed guest had, but the host's own interrupts.
func sealedBreaks(file string) (float64, error) {
	r, err := readReport(file)
	if err != nil {
		return 0, err
	}
	v := r.VCPUs[0]
	if v.SealedNS == 0 {
		return 0, errors.New("the ring's guest was never sealed: its breaks cannot be told apart")
	}
	n := 0.0
	for cause, c := range v.Sealed.ByCause {
		if cause != "host-interrupt" && c.Count != nil {
			n += float64(*c.Count)
		}
	}
	return n, nil
}
