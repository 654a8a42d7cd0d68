// Busygo makes the Go runtime work: a thousand goroutines, garbage, timers, preemption of loops that call nothing.
// ORDER(none): its atomics pair with nothing: counters that are read when all have ended, flags that only end a loop.
package main

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	var wg sync.WaitGroup
	var sum atomic.Int64
	for i := range 1000 {
		wg.Go(func() {
			b := make([]byte, 1<<15)
			for j := range b {
				b[j] = byte(i)
			}
			sum.Add(int64(b[i]))
		})
	}
	wg.Wait()
	runtime.GC()
	var stop atomic.Bool
	spun := make(chan bool)
	go func() {
		for !stop.Load() { // only SIGURG interrupts it, where there is one P
		}
		spun <- true
	}()
	ticks := 0
	for range time.Tick(time.Millisecond) {
		if ticks++; ticks == 20 {
			break
		}
	}
	stop.Store(true)
	<-spun
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	fmt.Println(sum.Load(), ticks, m.NumGC > 0, runtime.GOMAXPROCS(0))
}
