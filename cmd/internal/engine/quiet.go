package engine

import (
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// heapLimit lets the engine's heap grow to this size before a collection runs, bytes. Collections are off
// otherwise: while the guest makes no exits nothing allocates, and nothing may run beside it.
const heapLimit = 48 << 20

// hold sets Go's runtime so that it leaves the guest alone. Each call stops all goroutines, and the processors that
// GOMAXPROCS adds have to be made: a run that may begin without a monitor gets it at lateMonitor, so that a
// short one need not wait for it.
func hold() {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(heapLimit)
	runtime.GOMAXPROCS(max(4, runtime.GOMAXPROCS(0))) // an idle P for whoever comes back from a system call
	occupyPoller()
}

// occupyPoller has one goroutine wait for ever for what Go's network poller watches. Where nobody does, each goroutine that goes to sleep as the last one
// wakes a thread that is to watch for others (runtime.handoffp), which finds nothing and sleeps again: two switches more for each exit that Go serves.
func occupyPoller() {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return // without it exits only cost more
	}
	never := os.NewFile(uintptr(fd), "never")
	go func() {
		_, _ = never.Read(make([]byte, 8)) // nobody writes
	}()
}

// hearSignals takes over the signals. The runtime makes a thread for them and hands each over to it, one by
// one, so this runs beside the building of the machine; guestLife waits for it.
func (e *engine) hearSignals() {
	signal.Ignore(unix.SIGXFSZ, unix.SIGPIPE) // the program's, not ours: its writes get EFBIG and EPIPE
	signal.Notify(e.signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGABRT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM)
	close(e.heard)
}
