// Gothreads is number crunching by goroutines, the Go twin of bench/c/threads.c: as many as GOMAXPROCS at a time, each with data
// of its own.
//
//	gothreads TASKS ROUNDS
//
// It hands out TASKS tasks of ROUNDS rounds each and writes the nanoseconds from before the first to after the last, and a
// sum that depends on all of the work.
package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"
)

const (
	n     = 64
	cells = 1 << 15
)

type data struct {
	a, b, c [n][n]float64
	next    [cells]uint32
}

func newData(seed uint32) *data {
	d := new(data)
	for i := range d.a {
		for j := range d.a[i] {
			d.a[i][j], d.b[i][j] = float64((i*n+j)%7), float64((i*n+j)%5)
		}
	}
	for i := range d.next {
		d.next[i] = (uint32(i)*5 + 12345 + seed) % cells
	}
	return d
}

func (d *data) crunch(rounds int) uint64 {
	x := uint64(88172645463325252)
	for range rounds {
		for range 20000 {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
		}
		for i := range n {
			for j := range n {
				s := 0.0
				for k := range n {
					s += d.a[i][k] * d.b[k][j]
				}
				d.c[i][j] = s
			}
		}
		at := uint32(x % cells)
		for range 20000 {
			at = d.next[at]
		}
		x += uint64(at) + uint64(d.c[x%n][at%n])
	}
	return x
}

func run() error {
	if len(os.Args) != 3 {
		return fmt.Errorf("usage: gothreads TASKS ROUNDS")
	}
	tasks, err := strconv.Atoi(os.Args[1])
	if err != nil {
		return err
	}
	rounds, err := strconv.Atoi(os.Args[2])
	if err != nil {
		return err
	}
	workers := runtime.GOMAXPROCS(0)
	work := make([]*data, workers)
	for i := range work {
		work[i] = newData(uint32(i))
	}
	from := time.Now()
	todo := make(chan int)
	sums := make([]uint64, workers)
	var wg sync.WaitGroup
	for i, d := range work {
		wg.Go(func() {
			for range todo {
				sums[i] += d.crunch(rounds)
			}
		})
	}
	for i := range tasks {
		todo <- i
	}
	close(todo)
	wg.Wait()
	took := time.Since(from)
	sum := uint64(0)
	for _, s := range sums {
		sum += s
	}
	fmt.Println(took.Nanoseconds(), sum)
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "gothreads:", err)
		os.Exit(1)
	}
}
