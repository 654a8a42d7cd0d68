package main

import (
	"fmt"
	"regexp"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"golang.org/x/sys/unix"
)

// components are the sizes and the mask of the XSAVE area in a frame: the guest's processor has what it was given.
var components = regexp.MustCompile(`sw ([0-9a-f]+) \d+ [0-9a-f]+ \d+`)

// forgedMXCSR is the line of a frame with reserved bits in MXCSR.
var forgedMXCSR = regexp.MustCompile(`(?m)^mxcsr: .*\n`)

// Signal handlers, frames, masks, stacks, timers and cut calls are what they are natively, on the vCPU as under the
// package's own runner: guest/linux has the programs.
func TestSignals(t *testing.T) {
	b := newBox(t)
	for _, tool := range []string{"gcc", "musl-gcc"} {
		for _, name := range []string{"signals", "waits"} {
			t.Run(tool+" "+name, func(t *testing.T) {
				b.t = t
				if name == "waits" {
					testenv.Need(t, testenv.Linux(6, 18)) // of timers that are set again
				}
				p := process{argv: []string{compile(t, tool, name+"-"+tool, "../../../../guest/linux/testdata/"+name+".c", "-static", "-O1")}}
				native := b.do(p)
				guest := b.do(process{argv: b.guest(p.argv...)})
				for _, r := range []*result{&native, &guest} {
					r.out = components.ReplaceAllString(r.out, "sw $1")
					if testenv.Has(testenv.LabMachine) && testenv.Has(testenv.SVM) {
						r.out = forgedMXCSR.ReplaceAllString(r.out, "") // QEMU's TCG takes what processors refuse (docs/backends.md)
					}
				}
				b.compare(p.argv, native, guest)
			})
		}
	}
	b.t = t
	b.same(process{argv: []string{compile(t, "gcc", "nested", "nested.c", "-static", "-O1")}}, nil)
	b.same(process{argv: []string{compile(t, "gcc", "delivery", "delivery.c", "-static", "-O1", "-pthread")}}, nil)
}

// A signal from outside is the program's if it handles it, and ends the run if it does not.
func TestSignalFromOutside(t *testing.T) {
	b := newBox(t)
	prog := compile(t, "gcc", "outside", "outside.c", "-static", "-O1")
	for _, c := range []struct {
		mode   string
		signal unix.Signal
		got    string
		status int
	}{
		{"handles", unix.SIGTERM, "got 15\n", 7}, {"spins", unix.SIGTERM, "got 15\n", 7}, {"default", unix.SIGTERM, "", 143},
		{"handles", unix.SIGUSR1, "got 10\n", 7}, {"default", unix.SIGUSR2, "", 140}, {"spins", unix.SIGWINCH, "got 28\n", 7}, {"handles", 50, "got 50\n", 7},
	} {
		p := b.started("run", "--quiet", "--", prog, c.mode, fmt.Sprint(int(c.signal)))
		p.says("ready\n")
		p.running()
		if err := p.cmd.Process.Signal(c.signal); err != nil {
			t.Fatal(err)
		}
		r := p.wait()
		if r.status != c.status || r.out != "ready\n"+c.got {
			t.Errorf("%s, signal %d: %+v, want status %d and %q", c.mode, c.signal, r, c.status, c.got)
		}
	}
}
