package vmm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/guest/linux"
	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/isolation/cores"
	"github.com/cloister-vmm/cloister/vcpu"
	"golang.org/x/sys/unix"
)

const stopTime = 20 * time.Second

// TestMillionKicks stops and resumes a million times in all, over a guest that never leaves, guests that
// always do, and one that blocks in the host. No kick may be lost: none is
// sent twice here, so a lost one times out. Between Stop and Resume the guest may not move.
func TestMillionKicks(t *testing.T) {
	for _, c := range []struct {
		name   string
		code   []byte
		rounds int
		blocks bool
	}{
		{"spin", stopSpin, 600_000, false},
		{"constant", stopCalls(unix.SYS_GETPID), 100_000, false}, // answered on the vCPU's thread
		{"served", stopCalls(unix.SYS_UMASK), 100_000, false},    // answered by Go
		{"blocked", stopBlocked, 200_000, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := stopStart(t, c.code)
			g.runs(t, 0)
			g.set.Resend = time.Hour // no second signal mends a lost one
			resent := g.Resends()    // while it started, on a busy machine
			rounds := c.rounds
			if testing.Short() {
				rounds /= 50
			}
			l := g.ledger
			kicks, moved, rng := l.Kicks, 0, uint64(1)
			begin, last, longest := time.Now(), g.counter(), time.Duration(0)
			var lastAck uint64
			for i := range rounds {
				// Anywhere in the turn of the loop: at once, or up to some 200 microseconds later.
				rng = rng*6364136223846793005 + 1442695040888963407
				if wait := rng >> 58; rng>>56&3 == 0 {
					for end := kvm.TSC() + wait<<13; kvm.TSC() < end; {
					}
				}
				at := time.Now()
				p, err := g.Pause(stopTime)
				if err != nil {
					t.Fatalf("round %d: %v", i, err)
				}
				longest = max(longest, time.Since(at))
				if l.State != breaks.StateParked {
					t.Fatalf("round %d: state %d while stopped", i, l.State)
				}
				n := g.counter()
				if i%1024 == 0 {
					time.Sleep(200 * time.Microsecond)
				}
				if p.AckTSC(0) <= lastAck {
					t.Fatalf("round %d: acknowledged at %d, the stop before at %d", i, p.AckTSC(0), lastAck)
				}
				lastAck = p.AckTSC(0)
				if now := g.counter(); now != n {
					t.Fatalf("round %d: the guest went from %d to %d while stopped", i, n, now)
				}
				if n != last {
					moved, last = moved+1, n
				}
				if err := p.Resume(stopTime); err != nil {
					t.Fatalf("round %d: %v", i, err)
				}
			}
			took := time.Since(begin)
			t.Logf("%d stops in %v, %.1f us each, longest %v; the guest moved between %d of them", rounds, took.Round(time.Millisecond),
				float64(took.Microseconds())/float64(rounds), longest, moved)
			if got := l.Kicks - kicks; got != uint64(rounds) {
				t.Errorf("%d kicks acknowledged, want %d", got, rounds)
			}
			if n := g.Resends() - resent; n != 0 {
				t.Errorf("%d kicks were sent again", n)
			}
			if c.blocks {
				if moved != 0 {
					t.Errorf("the blocked guest moved %d times", moved)
				}
				return
			}
			if moved < rounds/1000 {
				t.Errorf("the guest moved between only %d of %d stops", moved, rounds)
			}
			g.runs(t, g.counter()) // and runs on
		})
	}
}

// TestStopEndsBlocked: the end of a run cuts a system call that would block for ever.
func TestStopEndsBlocked(t *testing.T) {
	g := stopStart(t, stopBlocked)
	g.runs(t, 0)
	time.Sleep(10 * time.Millisecond) // it is in read(2)
	if err := g.Stop("enough", 15); err != nil {
		t.Fatal(err)
	}
	g.ended = true
	select {
	case <-g.Done():
	case <-time.After(stopTime):
		t.Fatal("the machine does not end")
	}
	r, err := g.Wait()
	if err != nil || r.Ended != "stopped" || r.Signal != 15 || r.Reason != "enough" {
		t.Errorf("%+v, %v", r, err)
	}
}

// churn allocates and collects until stop is closed: half a million live nodes, a collection after the other.
func churn(stop chan struct{}) chan int {
	type node struct{ next *node }
	cycles := make(chan int)
	go func() {
		n := 0
		var list *node
		for k := 0; ; k++ {
			select {
			case <-stop:
				runtime.KeepAlive(list)
				cycles <- n
				return
			default:
			}
			list = &node{list}
			if k%500_000 == 0 {
				list = nil
			}
			if k%250_000 == 0 {
				runtime.GC()
				n++
			}
		}
	}()
	return cycles
}

// TestCollectorDoesNotReachTheGuest: while the engine allocates and collects without pause, a spinning guest
// leaves KVM_RUN not once: no preemption signal, no stop-the-world, no wait for a P. A count, not a time.
func TestCollectorDoesNotReachTheGuest(t *testing.T) {
	testenv.Need(t, testenv.KVM, testenv.MultiCPU, testenv.ParallelCPUs)
	g := stopStart(t, stopSpin)
	cpu := stopCore(t)
	list, err := cores.Allowed()
	if err != nil {
		t.Fatal(err)
	}
	keep := cores.Without(list, cpu)
	if _, err := cores.KeepOff(os.Getpid(), keep, g.Info.TID); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := cores.KeepOff(os.Getpid(), list, g.Info.TID); err != nil {
			t.Error(err)
		}
	}()
	g.runs(t, 0)
	l := g.ledger
	before := l.Book[0].Total + l.Book[1].Total
	gc := new(runtime.MemStats)
	runtime.ReadMemStats(gc)
	first := gc.NumGC

	stop := make(chan struct{})
	cycles := churn(stop)
	begin, count := time.Now(), g.counter()
	length := 3 * time.Second
	if testing.Short() {
		length = time.Second
	}
	urgent := 0
	// An emulated machine may take longer than length for a few collections.
	few := func() bool {
		runtime.ReadMemStats(gc)
		return gc.NumGC-first < 5 && time.Since(begin) < 30*time.Second
	}
	for time.Since(begin) < length || few() {
		time.Sleep(20 * time.Millisecond)
		for _, f := range threadStatus(t) {
			if f.tid == g.Info.TID {
				if f.pending != 0 || f.shared&(1<<(unix.SIGURG-1)) != 0 {
					urgent++
				}
				if f.cpus != strconv.Itoa(cpu) {
					t.Fatalf("the vCPU's thread may run on CPUs %s", f.cpus)
				}
				continue
			}
			if f.cpus != cores.Format(keep) {
				t.Fatalf("thread %d may run on CPUs %s, want %s", f.tid, f.cpus, cores.Format(keep))
			}
		}
	}
	close(stop)
	n := <-cycles
	runtime.ReadMemStats(gc)
	if got := l.Book[0].Total + l.Book[1].Total - before; got != 0 {
		t.Errorf("%d returns of KVM_RUN beside %d collections, want 0", got, gc.NumGC-first)
	}
	if urgent != 0 {
		t.Errorf("a signal was pending on the vCPU's thread %d times", urgent)
	}
	if n < 3 || gc.NumGC-first < 3 {
		t.Errorf("only %d collections: the test shows nothing", gc.NumGC-first)
	}
	if g.counter() == count {
		t.Error("the guest did not run")
	}
	if p, err := g.Pause(stopTime); err != nil {
		t.Error(err)
	} else if err := p.Resume(stopTime); err != nil {
		t.Error(err)
	}
}

type threadFacts struct {
	tid             int
	cpus            string
	pending, shared uint64
}

// threadStatus reads affinity and pending signals of every thread of this process.
func threadStatus(t *testing.T) []threadFacts {
	t.Helper()
	tids, err := cores.Threads(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	var all []threadFacts
	for _, tid := range tids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/status", tid))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // ended meanwhile
		}
		if err != nil {
			t.Fatal(err)
		}
		f := threadFacts{tid: tid}
		for line := range strings.Lines(string(b)) {
			k, v, _ := strings.Cut(strings.TrimSpace(line), ":\t")
			switch k {
			case "Cpus_allowed_list":
				f.cpus = v
			case "SigPnd":
				f.pending, err = strconv.ParseUint(v, 16, 64)
			case "ShdPnd":
				f.shared, err = strconv.ParseUint(v, 16, 64)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		all = append(all, f)
	}
	return all
}

// TestStopTimesOut: a task of higher priority holds the vCPU's core. Stop gives up with ErrStopTimeout, the
// machine runs on when the core is free, and the next stop works. The hog is another process,
// killed from another core before the kernel throttles real-time tasks, and with this process at the latest.
func TestStopTimesOut(t *testing.T) {
	testenv.Need(t, testenv.KVM, testenv.Root, testenv.MultiCPU, testenv.ParallelCPUs)
	g := stopStart(t, stopSpin)
	g.runs(t, 0)
	const hogged = 700 * time.Millisecond
	hog := exec.Command("/bin/sh", "-c", "while :; do :; done")
	hog.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := hog.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan error)
	timer := time.AfterFunc(hogged, func() { gone <- errors.Join(hog.Process.Kill(), ignoreKilled(hog.Wait())) })
	defer timer.Stop()
	var set unix.CPUSet
	set.Set(stopCore(t))
	if err := errors.Join(unix.SchedSetaffinity(hog.Process.Pid, &set),
		unix.SchedSetAttr(hog.Process.Pid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 10}, 0)); err != nil {
		t.Fatal(errors.Join(fmt.Errorf("make the hog real-time: %w", err), <-gone))
	}
	time.Sleep(20 * time.Millisecond)
	n := g.counter()
	p, err := g.Pause(200 * time.Millisecond)
	if !errors.Is(err, vcpu.ErrStopTimeout) {
		t.Errorf("stop with a starved vCPU: %v, want ErrStopTimeout", err)
		if err == nil {
			if err := p.Resume(stopTime); err != nil {
				t.Error(err)
			}
		}
	} else if !strings.Contains(err.Error(), strconv.Itoa(stopCore(t))) {
		t.Errorf("%v: does not name the core", err)
	}
	if g.Resends() == 0 {
		t.Error("a kick that starved was not sent again")
	}
	if err := <-gone; err != nil {
		t.Fatal(err)
	}
	g.runs(t, n)
	if p, err = g.Pause(stopTime); err != nil {
		t.Fatal(err)
	}
	if err := p.Resume(stopTime); err != nil {
		t.Fatal(err)
	}
	g.runs(t, g.counter())
}

// ignoreKilled leaves out the one way in which a hog shall end.
func ignoreKilled(err error) error {
	var e *exec.ExitError
	if errors.As(err, &e) && e.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return nil
	}
	return err
}

// TestConstantIsConstant: the guests above are what they say, one answered on the thread, one by Go.
func TestConstantIsConstant(t *testing.T) {
	for nr, want := range map[uint64]bool{unix.SYS_GETPID: true, unix.SYS_UMASK: false} {
		g := stopStart(t, stopCalls(byte(nr)))
		g.runs(t, 0)
		if _, ok := g.kernel.Constant(nr); ok != want {
			t.Errorf("%s: constant %v, want %v", linux.Name(nr), ok, want)
		}
	}
}
