package cloister

import (
	"fmt"
	"syscall"
	"unsafe"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// NewGapRecord makes a record in pages of its own, outside the Go heap, and shows it to the monitor, which
// reads it until the program ends; it is never freed. Natively nobody reads it, and the record works all
// the same. kind is abi.GapKindLoop or abi.GapKindCyclic, threshold is in TSC cycles.
//
// One goroutine writes the record. The monitor relies on the order of the stores: a bucket of Hist before
// Passes, an entry of Ring before RingNext; use sync/atomic stores for Passes and RingNext.
// ORDER(O9): each pairs with the monitor's load of the same word. Without them it could count a pass whose bucket is not there yet.
//
// The error names what the kernel or Cloister refused.
func NewGapRecord(kind, threshold uint64) (*abi.GapRecord, error) {
	size := (int(unsafe.Sizeof(abi.GapRecord{})) + abi.Page - 1) &^ (abi.Page - 1)
	// MAP_POPULATE: a first touch while sealed would be a break.
	mem, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON|syscall.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("gap record: mmap of %d bytes: %w", size, err)
	}
	r := (*abi.GapRecord)(unsafe.Pointer(&mem[0]))
	*r = abi.GapRecord{Magic: abi.GapMagic, Kind: kind, Threshold: threshold, Min: ^uint64(0)}
	_, _, errno := syscall.RawSyscall(abi.SysGapRecord, uintptr(unsafe.Pointer(r)), 0, 0)
	if errno != 0 && errno != syscall.ENOSYS {
		if err := syscall.Munmap(mem); err != nil {
			return nil, fmt.Errorf("gap record: %w; then munmap: %w", errno, err)
		}
		return nil, fmt.Errorf("gap record: Cloister refuses the address %p: %w", r, errno)
	}
	return r, nil
}
