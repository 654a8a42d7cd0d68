// Loopgo computes for four seconds on as many goroutines as GOMAXPROCS, in loops that Go's runtime has to preempt by signals.
package main

import (
	"fmt"
	"runtime"
	"sync"
	"time"
)

func main() {
	end := time.Now().Add(4 * time.Second)
	var all sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			for x := 1.0; time.Now().Before(end); {
				for range 100_000_000 {
					x = x*1.0000001 + 1e-9
				}
				if x == 0 {
					panic("it was 1")
				}
			}
		})
	}
	all.Wait()
	fmt.Println("done")
}
