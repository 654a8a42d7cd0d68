// Sealedgo seals one goroutine's thread, which computes, while others log and allocate.
package main

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"

	"github.com/cloister-vmm/cloister/guest/sdk/go"
)

var (
	made atomic.Int64
	kept [16][]string
)

func helper(n int, log *os.File) {
	for i := 0; ; i++ {
		fmt.Fprintf(log, "%d %s\n", i, strings.Repeat("x", i%100))
		kept[n] = append(kept[n][:i%1000], fmt.Sprint(i))
		made.Add(1)
	}
}

func main() {
	log, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
	if err != nil {
		panic(err)
	}
	for n := range 3 {
		go helper(n, log)
	}
	x, before, after := 1.0, int64(0), int64(0)
	err = cloister.Sealed(func() {
		for before = made.Load(); after < before+3000; after = made.Load() {
			x = x*1.0000001 + 1e-9
		}
	})
	fmt.Println(x > 1, after >= before+3000, err)
}
