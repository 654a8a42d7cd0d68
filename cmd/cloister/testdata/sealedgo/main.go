// Sealedgo seals one goroutine's thread, which computes, while others log and allocate: until they have done so 3000 times, or
// for as long as its argument says.
// ORDER(none): its atomics pair with nothing: counters that are read when all have ended, flags that only end a loop.
package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cloister-vmm/cloister/guest/sdk/go"
)

var (
	made  atomic.Int64
	began atomic.Int32
	kept  [16][]string
)

func helper(n int, log *os.File) {
	for i := 0; ; i++ {
		fmt.Fprintf(log, "%d %s\n", i, strings.Repeat("x", i%100))
		kept[n] = append(kept[n][:i%1000], fmt.Sprint(i))
		made.Add(1)
	}
}

// The first thread is the one that --cpu gives a core to.
func init() { runtime.LockOSThread() }

func main() {
	log, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
	if err != nil {
		panic(err)
	}
	for n := range 3 {
		go helper(n, log)
	}
	var end atomic.Bool // a helper says when: a call of the sealed goroutine's could give way to the scheduler
	least := int64(3000)
	if len(os.Args) > 1 {
		span, err := time.ParseDuration(os.Args[1])
		if err != nil {
			panic(err)
		}
		least = 3
		go func() {
			for began.Load() == 0 {
				time.Sleep(time.Millisecond)
			}
			time.Sleep(span)
			end.Store(true)
		}()
	} else {
		end.Store(true)
	}
	x, before, after := 1.0, int64(0), int64(0)
	err = cloister.Sealed(func() {
		began.Store(1)
		for before = made.Load(); after < before+least || !end.Load(); after = made.Load() {
			x = x*1.0000001 + 1e-9
		}
	})
	fmt.Println(x > 1, after >= before+least, err)
}
