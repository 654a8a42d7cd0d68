package main

import (
	"bytes"
	"fmt"
	"testing"
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
