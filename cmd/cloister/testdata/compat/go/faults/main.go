// Faults needs signal handlers: a loop without calls gives way to others by the runtime's preemption, which is SIGURG; a nil
// dereference, a division by zero and a mapped file that was made shorter become panics, which are SIGSEGV, SIGFPE and SIGBUS; os/signal delivers what the program sends itself.
// ORDER(none): its atomics pair with nothing: counters that are read when all have ended, flags that only end a loop.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"
)

func caught(what string, f func()) {
	defer func() { fmt.Println(what, "gives", recover()) }()
	f()
}

func main() {
	for procs := 1; procs <= 8; procs++ {
		runtime.GOMAXPROCS(procs)
		var stop atomic.Bool
		go func() {
			time.Sleep(20 * time.Millisecond)
			runtime.GC() // stops every goroutine, also those that never call
			stop.Store(true)
		}()
		n := uint64(0)
		for range procs - 1 {
			go func() {
				for x := uint64(1); !stop.Load(); x *= 3 {
				}
			}()
		}
		for !stop.Load() {
			n++
		}
		fmt.Println("preempted at", procs, n > 0)
	}
	var p *struct{ a, b int }
	zero, list := 0, []int{}
	caught("nil", func() { fmt.Println(p.b) })
	caught("zero", func() { fmt.Println(1 / zero) })
	caught("index", func() { fmt.Println(list[zero]) })
	debug.SetPanicOnFault(true)
	for range 100 {
		func() {
			defer func() { _ = recover() }()
			p.a++
		}()
	}
	lost()
	c := make(chan os.Signal, 4)
	signal.Notify(c, syscall.SIGUSR1, syscall.SIGHUP)
	for _, s := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGHUP} {
		if err := syscall.Kill(syscall.Getpid(), s); err != nil {
			fmt.Println(err)
		}
		fmt.Println("got", <-c)
	}
	signal.Ignore(syscall.SIGHUP)
	fmt.Println(syscall.Kill(syscall.Getpid(), syscall.SIGHUP))
	os.Exit(6)
}
