// Lanes runs the tests of one lane and prints the table over several.
//
//	lanes detect                          the richest lane of this machine
//	lanes run LANE FILE [go test args]    go test -json in that lane, events to FILE
//	lanes table FILE…                     the table; exit status 1 if a test failed
//	lanes again FILE                      exit status 0 if all that failed may be chance, in a lane that somebody else ran
//
// The lab writes its own FILE.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/internal/testenv/lanes"
)

const usage = "usage: lanes detect | lanes run LANE FILE [go test arguments] | lanes table FILE… | lanes again FILE"

func main() {
	ok, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "lanes:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

func run(args []string) (ok bool, err error) {
	switch {
	case len(args) == 1 && args[0] == "detect":
		lane, missing := testenv.Detect()
		for _, m := range missing {
			fmt.Fprintln(os.Stderr, "lanes: no kvm lane:", m)
		}
		_, err := fmt.Println(lane)
		return true, err
	case len(args) >= 3 && args[0] == "run":
		return goTest(args[1], args[2], args[3:])
	case len(args) >= 2 && args[0] == "table":
		return table(args[1:])
	case len(args) == 2 && args[0] == "again":
		return again(args[1])
	}
	return false, errors.New(usage)
}

func table(files []string) (bool, error) {
	var all []lanes.Lane
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return false, err
		}
		lane, err := lanes.Read(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return false, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, lane)
	}
	return lanes.Print(os.Stdout, all)
}

// again reports whether a run may be made once more. A lab's machine that panicked, hung or ended early is no chance: what it leaves is a package that failed
// without a test of its own.
func again(file string) (bool, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return false, err
	}
	var judge lanes.Judge
	for line := range bytes.Lines(b) {
		if err := record(line, func(e lanes.Event) error { judge.Add(e); return nil }); err != nil {
			return false, fmt.Errorf("%s: %w", file, err)
		}
	}
	list := judge.Reruns()
	return len(list) > 0 && !slices.ContainsFunc(list, func(r lanes.Rerun) bool { return len(r.Tests) == 0 }), nil
}

// goTest runs go test -json with the lane set, a second time what may have failed by chance, copies the events to file and
// shows a person what go test without -v would: verdicts of packages, and the
// output of tests that failed.
func goTest(lane, file string, args []string) (ok bool, err error) {
	if err := os.Setenv(testenv.LaneVar, lane); err != nil {
		return false, err
	}
	if _, err := testenv.CurrentLane(); err != nil {
		return false, err
	}
	kernel, err := release()
	if err != nil {
		return false, err
	}
	f, err := os.Create(file)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	out := json.NewEncoder(f)
	if err := out.Encode(lanes.Header(lane, kernel, testenv.Backend())); err != nil {
		return false, err
	}

	var judge lanes.Judge
	show := lanes.NewShow(os.Stdout)
	ok, err = once(args, func(e lanes.Event) error {
		judge.Add(e)
		return errors.Join(out.Encode(e), show.Add(e))
	})
	if ok || err != nil {
		return ok, err
	}
	list := judge.Reruns()
	if len(list) == 0 {
		return false, nil
	}
	flags := slices.DeleteFunc(slices.Clone(args), func(s string) bool { return strings.HasPrefix(s, "./") })
	ok = true
	for _, r := range list {
		fmt.Fprintf(os.Stderr, "lanes: run again: %s %s\n", r.Package, strings.Join(r.Tests, " "))
		if err := out.Encode(r.Event()); err != nil {
			return false, err
		}
		args := flags
		if len(r.Tests) > 0 {
			args = append(slices.Clone(flags), "-run", "^("+strings.Join(r.Tests, "|")+")$")
		}
		passed, err := once(append(slices.Clone(args), "-count=1", r.Package), func(e lanes.Event) error {
			return errors.Join(out.Encode(e), show.Add(e))
		})
		if err != nil {
			return false, err
		}
		ok = ok && passed
	}
	return ok, nil
}

// once runs go test -json once, and gives its events to add. It reports whether go test itself says that all passed.
func once(args []string, add func(lanes.Event) error) (ok bool, err error) {
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return false, err
	}
	if err := cmd.Start(); err != nil {
		return false, err
	}
	in := bufio.NewReader(pipe)
	var failed error
	for {
		line, err := in.ReadBytes('\n')
		if len(line) > 0 && failed == nil {
			failed = record(line, add)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			failed = errors.Join(failed, err)
			break
		}
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return false, failed // the table tells what failed
	}
	return err == nil, errors.Join(err, failed)
}

func record(line []byte, add func(lanes.Event) error) error {
	var e lanes.Event
	if err := json.Unmarshal(line, &e); err != nil {
		// go test prints some complaints about its arguments outside of JSON.
		_, err := fmt.Fprint(os.Stderr, strings.TrimRight(string(line), "\n")+"\n")
		return err
	}
	return add(e)
}

func release() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}
