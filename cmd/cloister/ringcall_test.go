package main

import (
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// System calls of a sealed loop go by the ring: no return of KVM_RUN, same results as natively, registers and flags kept;
// those that wait are made by an exit, and counted.
func TestRingCalls(t *testing.T) {
	b := newBox(t, testenv.CPUs(2))
	prog := compile(t, "gcc", "ringcall", "ringcall.c", "-static", "-O1")
	for _, c := range []struct {
		args  []string
		exits uint64
	}{{nil, 0}, {[]string{"wait"}, 2}} {
		native := b.do(process{argv: append([]string{prog}, c.args...)})
		if !strings.HasSuffix(native.out, "14000 1000 0\n") {
			t.Fatalf("natively: %+v", native)
		}
		run := append([]string{"--syscalls", "ring", "--budget", "syscall<=2,exceptions=0,page-fault=0", "--", prog}, c.args...)
		r, rep := b.reported(run...)
		if r.status != 0 || r.out != native.out {
			t.Errorf("%q: %+v, natively %q", c.args, r, native.out)
		}
		v := rep.VCPUs[0]
		if n := v.Sealed.ByCause[breaks.Syscall.String()].Count; n != c.exits {
			t.Errorf("%q: %d sealed system calls left the guest, want %d", c.args, n, c.exits)
		}
		for cause, k := range v.Sealed.ByCause {
			switch cause {
			case "host-interrupt", "transit", "syscall", "kernel-other":
			default:
				t.Errorf("%q: sealed, %d of %s", c.args, k.Count, cause)
			}
		}
		if v.Ring == nil || v.Ring.Calls < 4013 || v.Ring.WaitedNS == 0 || len(v.Ring.Syscalls) < 3 {
			t.Errorf("%q: ring %+v", c.args, v.Ring)
		} else if want := c.exits / 2; v.Ring.Handed != want { // fcntl does not try the ring, poll does
			t.Errorf("%q: %d handed on, want %d", c.args, v.Ring.Handed, want)
		}
		if v.Open.ByCause[breaks.Syscall.String()].Count == 0 {
			t.Errorf("%q: the open half made no system call by an exit", c.args)
		}
	}
	// Without the option each is an exit.
	r, rep := b.reported("--", prog)
	if n := rep.VCPUs[0].Sealed.ByCause[breaks.Syscall.String()].Count; r.status != 0 || n != 4013 || rep.VCPUs[0].Ring != nil {
		t.Errorf("by exits: status %d, %d sealed system calls, ring %+v", r.status, n, rep.VCPUs[0].Ring)
	}
}
