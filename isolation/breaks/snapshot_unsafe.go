package breaks

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"unsafe"
)

// LedgerSize is the number of bytes of one vCPU's ledger, rounded up to whole pages.
const LedgerSize = (int(unsafe.Sizeof(VCPU{})) + 4095) &^ 4095

// At gives the ledger of vCPU i within a mapping of consecutive ledgers.
func At(mapping []byte, i int) (*VCPU, error) {
	if i < 0 || (i+1)*LedgerSize > len(mapping) {
		return nil, fmt.Errorf("ledger of vCPU %d: the mapping holds %d", i, len(mapping)/LedgerSize)
	}
	v := (*VCPU)(unsafe.Pointer(&mapping[i*LedgerSize]))
	if v.Magic != 0 && v.Magic != LedgerMagic {
		return nil, fmt.Errorf("ledger of vCPU %d: bad magic %#x: engine and monitor are of different builds", i, v.Magic)
	}
	return v, nil
}

// Snapshot copies the counters of v to dst while v's writer may be at work. It reports false when no
// consistent copy was had in a bounded number of tries; dst is then not usable.
//
// ORDER(O2) ledger, reader side. Pairs with the two increments of Seq by the writer (vcpu/book.go).
// Without it a copy could hold a Total that already counts a break whose Cause does not.
//
// A copy that was written to meanwhile is thrown away: a race by design, of which the detector is not told.
//
//go:norace
func (v *VCPU) Snapshot(dst *Counts) bool {
	for try := 0; try < 1000; try++ {
		s := atomic.LoadUint64(&v.Seq)
		if s&1 == 0 {
			*dst = v.Counts
			if atomic.LoadUint64(&v.Seq) == s {
				return true
			}
		}
		runtime.Gosched()
	}
	return false
}

// SetCPU says which host core the vCPU owns, -1: none.
func (v *VCPU) SetCPU(host int) {
	c := NoCPU
	if host >= 0 {
		c = uint32(host)
	}
	atomic.StoreUint32(&v.CPU, c) // ORDER(none): one word
}

// GuestTime is the cycles that the vCPU has executed the guest until now (a TSC), in both books, the stretch that it is
// in included.
//
//go:norace
func (v *VCPU) GuestTime(now uint64) uint64 {
	for {
		// ORDER(O2): a reader; pairs with the writer's two increments of Seq. Without it a return could be counted and its stretch, too.
		s := atomic.LoadUint64(&v.Seq)
		sum := v.Book[Open].Guest + v.Book[Sealed].Guest
		if atomic.LoadUint32(&v.State) == StateGuest {
			sum += span(v.LastIn, now)
		}
		if s&1 == 0 && atomic.LoadUint64(&v.Seq) == s {
			return sum
		}
		runtime.Gosched()
	}
}
