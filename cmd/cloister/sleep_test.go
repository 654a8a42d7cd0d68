package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/internal/testenv"
)

// slept is how often each thread of this box's processes has gone to sleep.
func (b *box) slept() map[string]int {
	b.t.Helper()
	threads := map[string]int{}
	for _, p := range b.processes() {
		pid, _, _ := strings.Cut(p, " ")
		names, err := filepath.Glob("/proc/" + pid + "/task/*/status")
		if err != nil {
			b.t.Fatal(err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				continue // a thread that has ended
			}
			_, rest, _ := bytes.Cut(text, []byte("\nvoluntary_ctxt_switches:\t"))
			number, _, _ := bytes.Cut(rest, []byte("\n"))
			if threads[name], err = strconv.Atoi(string(number)); err != nil {
				b.t.Fatalf("%s: %v", name, err)
			}
		}
	}
	return threads
}

// sleeps is how often, in two seconds from now on, all threads of the box went to sleep, and the one that did so most.
func (b *box) sleeps() (sum, most int) {
	b.t.Helper()
	before := b.slept()
	time.Sleep(2 * time.Second)
	for name, n := range b.slept() {
		n -= before[name]
		sum, most = sum+n, max(most, n)
	}
	return sum, most
}

// While a guest computes and nobody has asked for a watch, engine and monitor sleep: whoever shares a CPU with them, such
// as a program's second thread, is not broken by them. With a budget the monitor looks a hundred times a second.
func TestHelpersSleep(t *testing.T) {
	b := newBox(t)
	for _, c := range []struct {
		args          []string
		least, most   float64
		what, because string
	}{
		{nil, 0, 60, "nothing to watch", "a helper wakes up for nothing"},
		{[]string{"--seal", "start", "--budget", "user=0"}, 80, 1000, "a budget", "the budget is not watched"},
	} {
		p := b.started(append(append([]string{"run", "--quiet", "--for", "5s"}, c.args...), "@spin")...)
		p.running()
		time.Sleep(time.Second) // start-up's memory is given back
		n, _ := b.sleeps()
		rate := float64(n) / 2
		if rate < c.least || rate > c.most {
			t.Errorf("with %s, threads of Cloister's sleep and wake %.0f times a second, want %.0f to %.0f: %s", c.what, rate, c.least, c.most, c.because)
		}
		t.Logf("with %s: %.0f wake-ups a second", c.what, rate)
		if r := p.wait(); r.status != 0 {
			t.Errorf("%+v", r)
		}
	}
}

// A Go program's threads leave the guest for its own monitor thread's naps and for signals, a few hundred times a second. The
// goroutines that serve them must not keep the engine's own runtime looking after them meanwhile: without package block
// its monitor thread did two thirds of all that the two processes woke up for, 3300 times a second.
func TestServingLetsTheRuntimeSleep(t *testing.T) {
	b := newBox(t, testenv.CPUs(2))
	b.env = append(b.env, "GOMAXPROCS=2")
	prog := goProgram(t, "loopgo")
	p := b.started("run", "--quiet", "--", prog)
	p.running()
	time.Sleep(500 * time.Millisecond)
	sum, most := b.sleeps()
	t.Logf("threads slept %d times in 2 s, one of them %d times", sum, most)
	if sum < 400 || sum > 6000 || most > 3000 {
		t.Errorf("threads slept %d times in 2 s, one of them %d times: want 400 to 6000 of all, and 3000 of one", sum, most)
	}
	if r := p.wait(); r.status != 0 || r.out != "done\n" {
		t.Errorf("%+v", r)
	}
}
