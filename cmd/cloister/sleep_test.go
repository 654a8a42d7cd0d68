package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// slept is how often the threads of this box's processes have gone to sleep.
func (b *box) slept() (sum int) {
	b.t.Helper()
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
			n, err := strconv.Atoi(string(number))
			if err != nil {
				b.t.Fatalf("%s: %v", name, err)
			}
			sum += n
		}
	}
	return sum
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
		before, at := b.slept(), time.Now()
		time.Sleep(2 * time.Second)
		rate := float64(b.slept()-before) / time.Since(at).Seconds()
		if rate < c.least || rate > c.most {
			t.Errorf("with %s, threads of Cloister's sleep and wake %.0f times a second, want %.0f to %.0f: %s", c.what, rate, c.least, c.most, c.because)
		}
		t.Logf("with %s: %.0f wake-ups a second", c.what, rate)
		if r := p.wait(); r.status != 0 {
			t.Errorf("%+v", r)
		}
	}
}
