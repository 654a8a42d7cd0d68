package cloister

import (
	"errors"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"github.com/cloister-vmm/cloister/guest/abi"
)

func TestPatchCallsAreHarmless(t *testing.T) {
	for name, err := range map[string]error{"Quiet(true)": Quiet(true), "Quiet(false)": Quiet(false), "SyncCores()": SyncCores()} {
		if !errors.Is(err, errors.ErrUnsupported) || err != syscall.ENOSYS {
			t.Errorf("%s = %v, want ENOSYS", name, err)
		}
	}
	Safepoint()
	if safeWord.v != 0 || !registered.Load() {
		t.Errorf("behind the first safe point the word is %d, registered: %v", safeWord.v, registered.Load())
	}
	if n := testing.AllocsPerRun(100, func() { Safepoint(); _, _ = Quiet(true), SyncCores() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestSafepointCalls: which calls a safe point makes, and that it makes none when no patch waits.
func TestSafepointCalls(t *testing.T) {
	type call struct{ what, arg uintptr }
	var got []call
	record := func(what, arg uintptr) syscall.Errno {
		got = append(got, call{what, arg})
		if what == abi.SafepointWord && atomic.LoadUint32(&safeWord.v) != 0 {
			t.Error("the word is shown before it is 0")
		}
		return syscall.ENOSYS
	}
	point := func() { // Safepoint, with record
		if atomic.LoadUint32(&safeWord.v) != 0 {
			safepoint(record)
		}
	}
	atomic.StoreUint32(&safeWord.v, 1)
	registered.Store(false)
	here := call{abi.SafepointHere, 0}
	point()
	if want := []call{{abi.SafepointWord, uintptr(unsafe.Pointer(&safeWord.v))}, here}; !slices.Equal(got, want) {
		t.Errorf("the first safe point makes %v, want %v", got, want)
	}
	got = nil
	point()
	if len(got) != 0 {
		t.Errorf("no patch waits, and a safe point makes %v", got)
	}
	atomic.StoreUint32(&safeWord.v, 1) // as Cloister does
	point()
	point()
	atomic.StoreUint32(&safeWord.v, 0)
	point()
	if want := []call{here, here}; !slices.Equal(got, want) {
		t.Errorf("two safe points while a patch waits make %v, want %v", got, want)
	}
	if a := uintptr(unsafe.Pointer(&safeWord.v)); a%4 != 0 {
		t.Errorf("the word lies at %#x", a)
	}
}
