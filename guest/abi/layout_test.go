package abi_test

import (
	"slices"
	"testing"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// The regions of the guest's address space, in order, do not overlap, and each begins on a page.
func TestRegionsDoNotOverlap(t *testing.T) {
	type region struct {
		name       string
		start, end uint64
	}
	user := []region{
		{"null", 0, abi.LowestUser},
		{"fixed image", abi.LowestUser, abi.PIEBase},
		{"pie image, heap, mmap", abi.PIEBase, abi.MmapTop},
		{"clock", abi.VDSOBase, abi.MMIOHole},
		{"hole", abi.MMIOHole, abi.MMIOHole + abi.Page},
		{"stack", abi.StackTop - 8<<20, abi.StackTop},
		{"window's end", abi.StackTop, abi.UserTop},
		{"supervisor, physical", abi.SupGPA, abi.SupGPA + abi.Huge},
		{"supervisor, virtual", abi.SupVA, abi.SupVA + abi.Huge},
	}
	if !slices.IsSortedFunc(user, func(a, b region) int { return int(int64(a.start - b.start)) }) {
		t.Error("not in order")
	}
	for i, r := range user {
		if r.start%abi.Page != 0 || r.end <= r.start {
			t.Errorf("%s: %#x-%#x", r.name, r.start, r.end)
		}
		if i > 0 && user[i-1].end > r.start {
			t.Errorf("%s ends at %#x, behind the start of %s at %#x", user[i-1].name, user[i-1].end, r.name, r.start)
		}
	}
	const lowerHalf = 1 << 47
	if abi.SupVA+abi.Huge > lowerHalf {
		t.Error("the supervisor is not in the lower half: pvm keeps the upper one for the host")
	}
	const smallestMaxPhyAddr = 36
	if abi.SupGPA+1<<30 > 1<<smallestMaxPhyAddr {
		t.Error("guest-physical addresses need more than 36 bits")
	}
}

// Cloister's system calls lie above every number that Linux or x32 uses.
func TestSystemCallsAreOurs(t *testing.T) {
	const x32Bit = 0x4000_0000
	for _, nr := range []uint64{abi.SysIsolate, abi.SysGapRecord, abi.SysProvoke, abi.SysSafepoint} {
		if nr < 0x10000 || nr&x32Bit != 0 {
			t.Errorf("%#x", nr)
		}
	}
}
