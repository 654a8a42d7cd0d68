package cloister

import (
	"errors"
	"syscall"
	"testing"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// The tests run natively: what Cloister answers is the business of its own tests, with the example as the guest.

func TestIsolateIsHarmless(t *testing.T) {
	for _, on := range []bool{true, false} {
		if err := Isolate(on); !errors.Is(err, errors.ErrUnsupported) || err != syscall.ENOSYS {
			t.Errorf("Isolate(%v) = %v, want ENOSYS", on, err)
		}
	}
	if Available() {
		t.Error("Available natively")
	}
}

func TestNewGapRecord(t *testing.T) {
	r, err := NewGapRecord(abi.GapKindLoop, 2500)
	if err != nil {
		t.Fatal(err)
	}
	if r.Magic != abi.GapMagic || r.Kind != abi.GapKindLoop || r.Threshold != 2500 || r.Min != ^uint64(0) || r.Passes != 0 {
		t.Errorf("%+v", r)
	}
	r.Ring[abi.GapRing-1].Length = 1 // its last word is mapped
}

func TestIsolateDoesNotAllocate(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { _ = Isolate(true) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
