// Collect keeps the garbage collector busy at GOMAXPROCS from 1 to 8: trees that live and die, maps that grow, finalizers,
// sync.Pool, stacks that grow while they are scanned. What it prints depends on no schedule.
// ORDER(none): its atomics pair with nothing: counters that are read when all have ended, flags that only end a loop.
package main

import (
	"fmt"
	"hash/fnv"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

type node struct {
	left, right *node
	value       int
	ballast     []byte
}

func tree(depth, value int) *node {
	if depth == 0 {
		return &node{value: value, ballast: make([]byte, value%97)}
	}
	return &node{tree(depth-1, 2*value), tree(depth-1, 2*value+1), value, nil}
}

func (n *node) sum() int {
	if n == nil {
		return 0
	}
	return n.left.sum() + n.right.sum() + n.value + len(n.ballast)
}

// deep makes a stack grow, which moves it, while pointers into it are live.
func deep(n int, up *int) int {
	var frame [64]int
	frame[n%64] = n
	*up += frame[n%64]
	if n == 0 {
		return *up
	}
	return deep(n-1, &frame[0]) + *up - *up
}

func round(procs int) {
	runtime.GOMAXPROCS(procs)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	kept := tree(12, 1)
	var total atomic.Int64
	var wg sync.WaitGroup
	pool := sync.Pool{New: func() any { return new([4096]byte) }}
	for w := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			m := map[string][]int{}
			for i := range 40 {
				t := tree(9, i+1)
				buffer := pool.Get().(*[4096]byte)
				buffer[i]++
				pool.Put(buffer)
				key := fmt.Sprint("key ", (i*7+w)%13)
				m[key] = append(m[key], t.sum())
				total.Add(int64(t.sum()))
			}
			x := 0
			total.Add(int64(deep(2000, &x)))
			for _, v := range m {
				total.Add(int64(len(v)))
			}
		}()
	}
	wg.Wait()
	runtime.GC()
	runtime.ReadMemStats(&after)
	fmt.Printf("GOMAXPROCS %d: total %d, kept %d, collected %t\n", procs, total.Load(), kept.sum(), after.NumGC > before.NumGC)
}

func main() {
	debug.SetGCPercent(20)
	for procs := 1; procs <= 8; procs++ {
		round(procs)
	}
	finalized := make(chan int, 100)
	for i := range 100 {
		runtime.SetFinalizer(&node{value: i}, func(n *node) { finalized <- n.value })
	}
	seen := 0
	for deadline := time.Now().Add(20 * time.Second); seen < 90 && time.Now().Before(deadline); {
		runtime.GC()
		for len(finalized) > 0 {
			<-finalized
			seen++
		}
		time.Sleep(time.Millisecond)
	}
	fmt.Println("finalized at least 90:", seen >= 90)
	debug.FreeOSMemory()
	h := fnv.New64a()
	for i := range 64 {
		big := make([]byte, 1<<20)
		big[i] = byte(i)
		h.Write(big[:4096])
	}
	fmt.Printf("%x\n", h.Sum64())
}
