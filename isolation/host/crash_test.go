package host

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The environment of the process that is to be killed.
const (
	crashRoot = "CLOISTER_TEST_CRASH_ROOT"
	crashDir  = "CLOISTER_TEST_CRASH_DIR"
	crashAt   = "CLOISTER_TEST_CRASH_AT"
	crashDo   = "CLOISTER_TEST_CRASH_DO"
	// Of the machine itself only: Max is what the simulated ones are asked for.
	crashLevel = "CLOISTER_TEST_CRASH_LEVEL"
)

// realRoot is the root of the machine itself, where there is nothing to simulate.
const realRoot = "/"

// crashing is a process that kills itself with SIGKILL at the n-th point: after each record that is on disk and
// after each write, so between any two of them. It ends with 0 when it got through.
func crashing() int {
	n, err := strconv.Atoi(os.Getenv(crashAt))
	if err != nil {
		return 2
	}
	a := &Applier{System: &sim{Live: Live{os.Getenv(crashRoot)}}, Dir: os.Getenv(crashDir)}
	request := Request{CPUs: []int{3}, Level: Max, Cache: true}
	if os.Getenv(crashRoot) == realRoot {
		a.System, request = Live{realRoot}, Request{CPUs: []int{3}, Level: Level(os.Getenv(crashLevel))}
	}
	a.point = func(string) error {
		if n--; n == 0 {
			return unix.Kill(os.Getpid(), unix.SIGKILL)
		}
		return nil
	}
	switch os.Getenv(crashDo) {
	case "restore":
		_, err = a.Restore([]int{3})
	case "limited": // no file may be longer than n bytes: the write that would make it so is a short one
		a.point = nil
		signal.Ignore(unix.SIGXFSZ)
		err = unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(n), Max: unix.RLIM_INFINITY})
		if err == nil {
			_, err = a.Apply(request)
		}
	case "room": // too little of it for one record, and then enough again
		err = tooLong(a)
	default:
		_, err = a.Apply(request)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func TestMain(m *testing.M) {
	if os.Getenv(crashRoot) != "" {
		os.Exit(crashing())
	}
	os.Exit(m.Run())
}

// crash runs the other process and reports whether it was killed.
func crash(t *testing.T, s *sim, dir, do string, at int) bool {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), crashRoot+"="+s.Root, crashDir+"="+dir, crashAt+"="+strconv.Itoa(at), crashDo+"="+do)
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(interface{ Signaled() bool }).Signaled() {
		return true
	}
	if err != nil {
		t.Fatalf("%s, killed at %d: %v\n%s", do, at, err, out)
	}
	return false
}

// tooLong writes a record for which there is no room, and then others.
func tooLong(a *Applier) error {
	j, err := open(a.System, a.Dir, true, waiter{})
	if err != nil {
		return err
	}
	signal.Ignore(unix.SIGXFSZ)
	if err := j.add(a.System, &record{Op: opClaim, Claim: &Claim{Owner: "x", CPUs: []int{1}}}); err != nil {
		return err
	}
	none := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	set := &record{Op: opSet, Owner: "x", Setting: &Setting{Kind: File, Name: tunable}, Old: "1", New: "2"}
	err = unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(j.size + 20), Max: none.Max})
	if err == nil {
		if e := j.add(a.System, set); e == nil {
			err = errors.New("there was room")
		}
	}
	return errors.Join(err, unix.Setrlimit(unix.RLIMIT_FSIZE, &none), j.add(a.System, set), j.close())
}

// limited runs an apply in another process that may write so many bytes to a file, and gives what it said; "" if it got
// through.
func limited(t *testing.T, s *sim, dir, do string, at int) string {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), crashRoot+"="+s.Root, crashDir+"="+dir, crashAt+"="+strconv.Itoa(at), crashDo+"="+do)
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// kill -9 at every point of Apply, and then at every point of Restore (a second one follows): the host is what it
// was, byte for byte, with another owner there all the time.
func TestCrashAtEveryStep(t *testing.T) {
	s := unpack(t, "four.txtar", beside())
	before := snapshot(t, s.Root)
	a := &Applier{System: s, Dir: memory(t)}
	mustApply(t, a, Request{CPUs: []int{2}})
	beside, journal := snapshot(t, s.Root), journalBytes(t, a)
	mustApply(t, a, Request{CPUs: []int{3}, Level: Max, Cache: true})
	both, journalOfBoth := snapshot(t, s.Root), journalBytes(t, a)
	mustRestore(t, a)
	step := 1
	if testing.Short() {
		step = 6
	}
	for _, do := range []string{"apply", "restore"} {
		points := 0
		for at, killed := 1, true; killed; at += step {
			if do == "apply" {
				lay(t, s.Root, before, beside, a.Dir, journal)
			} else {
				lay(t, s.Root, before, both, a.Dir, journalOfBoth)
			}
			killed = crash(t, s, a.Dir, do, at)
			points++
			// Before anything else: the same core is not to be had, unless nothing was claimed yet.
			if claims, err := a.Claims(); err != nil || len(claims) > 2 {
				t.Fatalf("killed at %d: %v (%v)", at, claims, err)
			}
			mustRestore(t, a, 3)
			same(t, fmt.Sprintf("%s killed at %d, restored beside another owner", do, at), beside, snapshot(t, s.Root))
			mustRestore(t, a)
			same(t, fmt.Sprintf("%s killed at %d, all restored", do, at), before, snapshot(t, s.Root))
			if t.Failed() {
				return
			}
		}
		t.Logf("%s: killed at %d points", do, points-1)
		if points < 90/step {
			t.Errorf("%s: only %d points", do, points)
		}
	}
}

// Without the record before the write the test above has to fail: here a write is made that is in no journal, and
// Restore must not call that its own.
func TestUnjournalledWriteIsForeign(t *testing.T) {
	s := unpack(t, "four.txtar", nil)
	a := &Applier{System: s, Dir: memory(t)}
	a.point = func(where string) error {
		if where == "write "+tunable {
			return errStopped
		}
		return nil
	}
	if _, err := a.Apply(Request{CPUs: []int{3}}); !errors.Is(err, errStopped) {
		t.Fatal(err)
	}
	a.point = nil
	if err := s.Live.Write(tunable, "33"); err != nil {
		t.Fatal(err)
	}
	res := mustRestore(t, a)
	if len(res[0].Foreign) != 1 || !strings.Contains(res[0].Foreign[0].What, "stat_interval") {
		t.Errorf("foreign: %v", res[0].Foreign)
	}
}
