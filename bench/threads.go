package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// nativeSpeed is the least share of native speed that threads are to reach; slower is its limit for times.
const (
	nativeSpeed = 0.97
	slower      = 1 / nativeSpeed
)

// Work of one turn, some 400 ms for each of two threads on the machines at hand: what starting a thread costs does not decide.
const (
	threadRounds = 1500
	goTasks      = 400 // of goTaskRounds each: below the 10 ms after which Go's runtime preempts by signals
	goTaskRounds = 4
)

// threads runs number crunching on two CPUs, the guests' and a housekeeping one: all of Cloister has no more than native.
func (b *bench) threads() (err error) {
	if err := b.compile("gcc", "threads.c", "threads", "-pthread"); err != nil {
		return err
	}
	if err := b.goProgram("gothreads"); err != nil {
		return err
	}
	two := []int{b.cpu, b.housekeeping()}
	work := []string{"2", fmt.Sprint(threadRounds)}
	pinned := append(append([]string{}, work...), fmt.Sprint(two[0]), fmt.Sprint(two[1]))
	cprog, goprog := b.path("threads"), b.path("gothreads")
	restore, err := setenv("GOMAXPROCS", "2") // engine and monitor would choose the same
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, restore()) }()
	exit, err := b.exitMS()
	if err != nil {
		return err
	}
	for _, c := range []struct {
		what          string
		guest, native []string
	}{
		{"2 pthreads, a core each", append([]string{"--place", fmt.Sprintf("main=%d,*=housekeeping", b.cpu), "--", cprog}, work...), append([]string{cprog}, pinned...)},
		{"2 pthreads, floating", append([]string{"--", cprog}, work...), append([]string{cprog}, work...)},
		{"Go, GOMAXPROCS=2, short tasks", []string{"--", goprog, fmt.Sprint(goTasks), fmt.Sprint(goTaskRounds)}, []string{goprog, fmt.Sprint(goTasks), fmt.Sprint(goTaskRounds)}},
		{"Go, GOMAXPROCS=2, two long loops", []string{"--", goprog, "2", fmt.Sprint(threadRounds)}, []string{goprog, "2", fmt.Sprint(threadRounds)}},
	} {
		var returns samples
		run := func(args []string) (samples, error) {
			out, err := b.cloisterAmong(two, patience, append([]string{"--quiet", "--report", b.path("report.json")}, args...)...)
			if err != nil {
				return nil, err
			}
			n, err := returnsIn(b.path("report.json"))
			returns = append(returns, n)
			return firstNumber(out, err)
		}
		p, err := turns(max(b.rounds, 12), func() (samples, error) { return run(c.guest) },
			func() (samples, error) { return firstNumber(b.runAmong(two, patience, c.native[0], c.native[1:]...)) })
		if err != nil {
			return err
		}
		b.times("threads, "+c.what, p, 1e-6, "ms", slower)
		many := returns.quantile(0.5)
		if _, err := run(append(slices.Clone(c.guest[:len(c.guest)-2]), "2", "1")); err != nil { // what is there before the clock begins
			return err
		}
		many = max(0, many-returns[len(returns)-1])
		native := p.floor.quantile(0.5) * 1e-6
		b.rows = append(b.rows, Row{What: fmt.Sprintf("threads, %s, native median and what %.0f of the floor's exits take of two CPUs", c.what, many),
			Ours: native + many*exit/2, Base: native, Unit: "ms", Limit: none, N: len(p.floor)})
	}
	return nil
}

// exitMS is what one exit of the floor's takes, ms, median.
func (b *bench) exitMS() (float64, error) {
	out, err := b.floor(0, false, "run", b.path("exits"), fmt.Sprint(unix.SYS_GETPPID), fmt.Sprint(calls))
	if err != nil {
		return 0, err
	}
	cycles, err := decode(out)
	return cycles.quantile(0.5) * 1e3 / float64(b.hz), err
}

// returnsIn is how often KVM_RUN returned in a run, on all vCPUs.
func returnsIn(file string) (n float64, err error) {
	r, err := readReport(file)
	for _, v := range r.VCPUs {
		n += float64(v.Breaks.Returns)
	}
	return n, err
}

// setenv sets a variable for what is started from now on, and gives the way back.
func setenv(name, value string) (restore func() error, err error) {
	old, had := os.LookupEnv(name)
	restore = func() error { return os.Unsetenv(name) }
	if had {
		restore = func() error { return os.Setenv(name, old) }
	}
	return restore, os.Setenv(name, value)
}

// times adds rows of the best and the median run; scale makes the unit of a sample.
func (b *bench) times(what string, p pair, scale float64, unit string, limit float64) {
	for _, q := range []struct {
		name string
		at   float64
	}{{"best", 0}, {"median", 0.5}} {
		b.rows = append(b.rows, Row{What: what + ", " + q.name, Ours: p.ours.quantile(q.at) * scale, Base: p.floor.quantile(q.at) * scale, Unit: unit, Limit: limit, N: len(p.ours)})
	}
}

// firstNumber is the number that a program's output begins with.
func firstNumber(out []byte, err error) (samples, error) {
	if err != nil {
		return nil, err
	}
	var v float64
	if _, err := fmt.Sscan(string(out), &v); err != nil {
		return nil, fmt.Errorf("%.60q: %w", out, err)
	}
	return samples{v}, nil
}

// goProgram builds a Go program of this folder.
func (b *bench) goProgram(name string) error {
	c := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", b.path(name), "./"+filepath.Join("bench", name))
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	c.Dir = b.root
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w: %s", name, err, out)
	}
	return nil
}

// handovers is the number of timed hand-overs in one turn.
const handovers = 500

// futex times one thread waking another by a futex, against one exit of the floor's.
func (b *bench) futex() error {
	if err := b.compile("gcc", "handover.c", "handover", "-pthread"); err != nil {
		return err
	}
	two := []int{b.cpu, b.housekeeping()}
	exit := func() ([]byte, error) {
		return b.floor(0, false, "run", b.path("exits"), fmt.Sprint(unix.SYS_GETPPID), fmt.Sprint(calls))
	}
	for _, c := range []struct {
		what string
		take func() ([]byte, error)
	}{
		{"futex hand-over to another thread (floor: one exit)", func() ([]byte, error) {
			return b.cloisterAmong(two, patience, "--quiet", "--place", fmt.Sprintf("main=%d,*=housekeeping", b.cpu), "--", b.path("handover"), fmt.Sprint(handovers))
		}},
		{"native futex hand-over (floor: one exit)", func() ([]byte, error) {
			return b.runAmong(two, patience, b.path("handover"), fmt.Sprint(handovers), fmt.Sprint(two[0]), fmt.Sprint(two[1]))
		}},
	} {
		p, err := b.collect(c.take, exit)
		if err != nil {
			return err
		}
		b.report(c.what, p, limits{none, none, none})
	}
	return nil
}

// fileSize is that of the file that is read, in MiB.
const fileSize = 1024

// file reads a file that the page cache has.
func (b *bench) file() (err error) {
	if err := b.compile("gcc", "file.c", "file", "-I", filepath.Join(b.root, "guest", "sdk", "c")); err != nil {
		return err
	}
	name := b.path("data/large")
	if err := os.Mkdir(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if err := fill(name); err != nil {
		return err
	}
	report := b.path("report.json")
	for _, size := range []int{64 << 10, 1 << 20} {
		exits := 0.0
		args := []string{name, fmt.Sprint(size)}
		p, err := turns(max(b.rounds/2, 5),
			func() (samples, error) {
				out, err := b.cloister(patience, append([]string{"--quiet", "--cpu", fmt.Sprint(b.cpu), "--ro", filepath.Dir(name), "--report", report, "--", b.path("file")}, args...)...)
				if err != nil {
					return nil, err
				}
				n, err := sealedSyscalls(report)
				if err != nil {
					return nil, err
				}
				exits = max(exits, n-1) // the last read finds the end
				return readTime(out)
			},
			func() (samples, error) {
				out, err := b.runOn(b.cpu, patience, b.path("file"), args...)
				if err != nil {
					return nil, err
				}
				return readTime(out)
			})
		if err != nil {
			return err
		}
		what := fmt.Sprintf("file of 1 GiB, read() of %d KiB, ", size>>10)
		b.times(what+"time for a MiB", p, 1e-3/fileSize, "µs", none)
		b.rows = append(b.rows, Row{What: what + "exits for a MiB", Ours: exits / fileSize, Unit: "exits", Limit: float64(1<<20) / float64(size), N: len(p.ours)})
	}
	return nil
}

// readTime is what bench/c/file.c measured, if it read all.
func readTime(out []byte) (samples, error) {
	var ns, bytes, calls float64
	if _, err := fmt.Sscan(string(out), &ns, &bytes, &calls); err != nil {
		return nil, fmt.Errorf("file: %q: %w", out, err)
	}
	if bytes != fileSize<<20 {
		return nil, fmt.Errorf("file: %.0f bytes were read, of %d", bytes, fileSize<<20)
	}
	return samples{ns}, nil
}

// fill makes the file, and leaves it in the page cache.
func fill(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	block := make([]byte, 1<<20)
	for i := range fileSize {
		for j := range block {
			block[j] = byte(i + j>>3)
		}
		if _, err := f.Write(block); err != nil {
			return fmt.Errorf("%w (%w)", err, f.Close())
		}
	}
	if err := f.Sync(); err != nil { // no write-back while it is read
		return fmt.Errorf("%w (%w)", err, f.Close())
	}
	return f.Close()
}
