// Command quietloop is a plain Go program, without a virtual machine, that gives its loop a core of its own: it leases the
// best one, pins a thread there, makes the core quiet, looks on while the loop runs, and gives everything back, also on Ctrl-C. After a
// kill -9 `cloister host restore` does. It shows how packages cores, host and doctor belong together.
//
//	quietloop -dry-run          lease, pin, say what would be changed, run; needs no rights
//	quietloop -cpu 3 -for 10s   as root: isolate CPU 3 for ten seconds
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cloister-vmm/cloister/isolation/cores"
	"github.com/cloister-vmm/cloister/isolation/doctor"
	"github.com/cloister-vmm/cloister/isolation/host"
	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "quietloop:", err)
		os.Exit(1)
	}
}

// live is the machine itself.
var live = host.Live{Root: "/"}

func run(args []string, out io.Writer) (err error) {
	f := flag.NewFlagSet("quietloop", flag.ContinueOnError)
	cpu := f.Int("cpu", -1, "the `CPU` to take; -1: the best that is free")
	dry := f.Bool("dry-run", false, "change nothing of the host")
	length := f.Duration("for", time.Second, "how long the loop runs")
	dir := f.String("leases", os.TempDir(), "`directory` for the file that says whose the core is")
	if err := f.Parse(args); err != nil {
		return err
	}
	// From here on a signal ends the loop and not the process, so that everything is given back.
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()

	allowed, err := cores.Allowed()
	if err != nil {
		return err
	}
	lease, core, err := take(*dir, *cpu, allowed)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lease.Release()) }()

	// The thread is pinned before the core becomes a partition: from outside none can be pinned to it any more. All
	// others of this process, and those that they make, go elsewhere.
	runtime.LockOSThread()
	me := syscall.Gettid()
	if _, err := cores.KeepOff(os.Getpid(), cores.Without(allowed, core), me); err != nil {
		return err
	}
	if _, err := cores.Put(me, []int{core}); err != nil {
		return err
	}

	request := host.Request{Owner: fmt.Sprintf("quietloop (process %d)", os.Getpid()), PID: os.Getpid(), Threads: []int{me}, CPUs: []int{core}}
	var result *host.Result
	if *dry {
		err = show(request, out)
	} else {
		defer func() { err = errors.Join(err, giveBack(request.Owner, out)) }() // whatever was applied; nothing, if that fails
		result, err = isolate(request, out)
	}
	if err != nil {
		return err
	}

	watch, err := host.NewWatch(live, []int{core}, []int{me})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, watch.Close()) }()
	for _, r := range watch.Blind() {
		fmt.Fprintln(out, "not watched:", r)
	}
	if result != nil { // what was undone before the watch began, which it takes for the way it shall be
		var a host.Applier
		undone, err := a.Undone(request, result)
		if err != nil {
			return err
		}
		for _, d := range undone {
			fmt.Fprintln(out, "drift:", d)
		}
	}
	var over atomic.Bool // ORDER(none): it says that the time is up, and nothing rests on when it is seen
	limit, end := context.WithTimeout(stop, *length)
	defer end()
	context.AfterFunc(limit, func() { over.Store(true) })
	var passes uint64
	if err := quietly(func() { passes = loop(&over) }); err != nil {
		return err
	}
	fmt.Fprintf(out, "%d passes\n", passes)
	for _, d := range watch.Check() {
		fmt.Fprintln(out, "drift:", d)
	}
	return nil
}

// take leases a core: the one that was asked for, or the best that nobody has.
func take(dir string, want int, allowed []int) (*cores.Lease, int, error) {
	h := cores.Host{Root: "/"}
	list := []cores.Placed{{CPU: want}}
	if want < 0 {
		used, err := h.Leased()
		if err != nil {
			return nil, -1, err
		}
		if list, err = h.Place(allowed, nil, used); err != nil {
			return nil, -1, err
		}
	}
	var why error
	for _, p := range list {
		var l *cores.Lease
		if l, why = h.Take(dir, p.CPU, fmt.Sprintf("quietloop (process %d)", os.Getpid()), allowed); why == nil {
			return l, p.CPU, nil
		}
	}
	return nil, -1, why // of the last one
}

// show says what isolate would do.
func show(r host.Request, out io.Writer) error {
	now, err := grade(r)
	if err != nil {
		return err
	}
	plan, err := host.Make(live, host.JournalDir, r)
	if err == nil {
		fmt.Fprintf(out, "CPU %d: grade %s; %d settings would be changed\n", r.CPUs[0], now, len(plan.Steps))
	}
	return err
}

// isolate makes the core quiet.
func isolate(r host.Request, out io.Writer) (*host.Result, error) {
	before, err := grade(r)
	if err != nil {
		return nil, err
	}
	var a host.Applier
	result, err := a.Apply(r)
	if err != nil {
		return nil, err
	}
	after, err := grade(r)
	if err != nil {
		return result, err
	}
	fmt.Fprintf(out, "CPU %d: grade %s, and %s with %d settings changed\n", r.CPUs[0], before, after, result.Changed)
	for _, x := range result.Refused {
		fmt.Fprintln(out, "refused:", x)
	}
	return result, nil
}

// grade is how quiet the core is, apart from the thread that belongs there.
func grade(r host.Request) (doctor.Grade, error) {
	found, err := doctor.Examine(live, r.CPUs, r.Threads...)
	if err != nil {
		return "", err
	}
	return found.Worst(), nil
}

// quietly runs f so that the Go runtime leaves its thread alone: it sends a signal (SIGURG) to a thread that has run for
// 10 ms, and stops all of them to collect garbage, or when the process may run on more or fewer CPUs than before.
func quietly(f func()) error {
	runtime.GOMAXPROCS(max(2, runtime.GOMAXPROCS(0))) // set by hand it is never changed; one is for who ends f
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^uint64(0)
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old); err != nil {
		return fmt.Errorf("block signals: %w", err)
	}
	f()
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil); err != nil {
		return fmt.Errorf("unblock signals: %w", err)
	}
	return nil
}

// loop is the real-time work. It makes no call at all, or the runtime could take its turn there; others tell it when it is over.
func loop(over *atomic.Bool) (passes uint64) { // ORDER(none): see run
	for !over.Load() {
		passes++
	}
	return passes
}

// giveBack restores the host. What the kernel refuses to take back is an error, and so is what somebody else has changed since,
// which is left alone: whoever isolated the core has to know that it is not as it was.
func giveBack(owner string, out io.Writer) error {
	var a host.Applier
	list, err := a.RestoreOwner(owner)
	for _, r := range list {
		fmt.Fprintf(out, "given back: %d settings\n", r.Changed)
		for _, x := range r.Foreign {
			err = errors.Join(err, fmt.Errorf("left alone: %s", x))
		}
	}
	return err
}
