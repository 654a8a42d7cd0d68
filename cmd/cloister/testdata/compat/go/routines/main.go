// Routines runs a thousand goroutines that send, select, lock, sleep and are cancelled; timers and tickers;
// threads of their own; and ends with os.Exit from a goroutine.
// ORDER(none): its atomics pair with nothing: counters that are read when all have ended, flags that only end a loop.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

func ring(n, rounds int) int {
	first := make(chan int)
	last := first
	for range n {
		in, out := last, make(chan int)
		go func() {
			for v := range in {
				out <- v + 1
			}
			close(out)
		}()
		last = out
	}
	sum := 0
	for range rounds {
		first <- 0
		sum += <-last
	}
	close(first)
	<-last
	return sum
}

func workers(n int) (int, int) {
	jobs, results := make(chan int), make(chan int, 100)
	var wg sync.WaitGroup
	var mu sync.Mutex
	table := map[int]int{}
	for range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for j := range jobs {
				mu.Lock()
				table[j%100]++
				mu.Unlock()
				if j%50 == 0 {
					time.Sleep(time.Microsecond)
				}
				if j%7 == 0 {
					runtime.Gosched()
				}
				results <- j * j % 1009
			}
		}()
	}
	go func() {
		for j := range 20000 {
			jobs <- j
		}
		close(jobs)
		wg.Wait()
		close(results)
	}()
	sum := 0
	for r := range results {
		sum += r
	}
	return sum, len(table)
}

func timers() {
	var order []int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, d := range []int{90, 30, 150, 60, 120} {
		wg.Add(1)
		time.AfterFunc(time.Duration(d)*time.Millisecond, func() {
			mu.Lock()
			order = append(order, d)
			mu.Unlock()
			wg.Done()
		})
	}
	wg.Wait()
	fmt.Println("in order", sort.IntsAreSorted(order), len(order))
	tick := time.NewTicker(5 * time.Millisecond)
	begin := time.Now()
	for range 10 {
		<-tick.C
	}
	tick.Stop()
	fmt.Println("ten ticks took at least 45 ms", time.Since(begin) >= 45*time.Millisecond)
	t := time.NewTimer(time.Hour)
	fmt.Println("stopped", t.Stop())
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	<-ctx.Done()
	fmt.Println(ctx.Err(), errors.Is(context.Cause(ctx), context.DeadlineExceeded))
}

func cancelled(n int) int64 {
	ctx, cancel := context.WithCancel(context.Background())
	var ended atomic.Int64
	var wg sync.WaitGroup
	for i := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			select {
			case <-ctx.Done():
				ended.Add(1)
			case <-time.After(time.Hour + time.Duration(i)):
			}
		}()
	}
	cancel()
	wg.Wait()
	return ended.Load()
}

func main() {
	fmt.Println("ring", ring(1000, 20))
	fmt.Println(workers(1000))
	timers()
	fmt.Println("cancelled", cancelled(1000))
	// Each of these has a thread of its own.
	var wg sync.WaitGroup
	gate := make(chan struct{})
	for range 20 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			runtime.LockOSThread()
			<-gate
		}()
	}
	close(gate)
	wg.Wait()
	go func() {
		fmt.Fprintln(os.Stderr, "the end")
		os.Exit(3)
	}()
	select {}
}
