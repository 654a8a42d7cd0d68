package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
)

// What a run-time library reads of itself at start is there and says the same.
func TestProcAsNatively(t *testing.T) {
	for _, tool := range []string{"gcc", "musl-gcc"} {
		t.Run(tool, func(t *testing.T) {
			b := newBox(t)
			b.same(process{argv: []string{compile(t, tool, "proc-"+tool, "proc.c", "-static", "-O1", "-no-pie")}}, nil)
		})
	}
}

// Each thread has its own name, state, signals and times in /proc, and its name can be written there by the others.
func TestTasksInProc(t *testing.T) {
	b := newBox(t)
	for _, tool := range []string{"gcc", "musl-gcc"} {
		n := b.same(process{argv: []string{compile(t, tool, "taskproc-"+tool, "taskproc.c", "-static", "-O1", "-pthread")}}, nil)
		if n.status != 7 || len(n.out) < 3000 {
			t.Errorf("%s: natively it ends with status %d, %s", tool, n.status, tail(n.out+n.err))
		}
	}
}

// CPU clocks count what each thread uses, and never more than the processors give.
func TestCPUClocks(t *testing.T) {
	b := newBox(t, testenv.ParallelCPUs) // where CPUs take turns, those of others run on while one stands still
	n := b.same(process{argv: []string{compile(t, "gcc", "cpuclock", "cpuclock.c", "-static", "-O1", "-pthread")}}, nil)
	if n.status != 0 || strings.Contains(n.out, "busy 0") {
		t.Errorf("natively: %d, %s", n.status, n.out)
	}
}

// A large read is one exit, however large: the host copies straight into guest memory.
func TestLargeReads(t *testing.T) {
	b := newBox(t)
	prog := compile(t, "gcc", "proc-gcc", "proc.c", "-static", "-O1", "-no-pie")
	const size, step = 48 << 20, 16 << 20
	path := b.file("large", string(bytes.Repeat([]byte{7}, size)))
	argv := []string{prog, "read", path, fmt.Sprint(step)}
	n := b.do(process{argv: argv})
	g, rep := b.reported(append([]string{"--ro", b.work, "--"}, argv...)...)
	b.compare(argv, n, g)
	reads := uint64(0)
	for _, v := range rep.VCPUs {
		for _, c := range v.Breaks.Syscalls {
			if c.Name == "read" {
				reads += c.Count
			}
		}
	}
	if reads != size/step+1 {
		t.Errorf("%d exits for %d reads and the end of the file", reads, size/step)
	}
}
