package host_test

import (
	"fmt"
	"os"
	"runtime"

	"github.com/cloister-vmm/cloister/isolation/cores"
	"github.com/cloister-vmm/cloister/isolation/host"
	"golang.org/x/sys/unix"
)

// A plain Go program gives one of its threads a core of its own: it leases the best one, pins the thread, makes the
// core quiet, watches it, and gives everything back. No virtual machine is involved.
func Example() {
	if err := loop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func loop() error {
	allowed, err := cores.Allowed()
	if err != nil {
		return err
	}
	best, err := (cores.Host{Root: "/"}).Place(allowed, nil)
	if err != nil {
		return err
	}
	cpu := best[0].CPU
	lease, err := cores.Take("/run", cpu, fmt.Sprintf("my loop (process %d)", os.Getpid()))
	if err != nil {
		return err
	}
	defer lease.Release()

	// The thread is pinned before the core becomes a partition: from outside none can be pinned to it any more.
	runtime.LockOSThread()
	if _, err := cores.KeepOff(os.Getpid(), cores.Without(allowed, cpu), unix.Gettid()); err != nil {
		return err
	}
	if err := (host.Live{Root: "/"}).SetAffinity(unix.Gettid(), []int{cpu}); err != nil {
		return err
	}
	a := &host.Applier{}
	if _, err := a.Apply(host.Request{Owner: "my loop", PID: os.Getpid(), Threads: []int{unix.Gettid()}, CPUs: []int{cpu}}); err != nil {
		return err
	}
	defer a.RestoreOwner("my loop")
	watch, err := host.NewWatch(host.Live{Root: "/"}, []int{cpu}, []int{unix.Gettid()})
	if err != nil {
		return err
	}

	for range 1_000_000_000 {
		// the real-time loop
	}
	for _, d := range watch.Check() {
		fmt.Println("drift:", d)
	}
	return nil
}
