package patch

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"unsafe"
)

// store puts b at to, which is guest address addr in the alias. Where it lies in one aligned 8-byte word that word is stored at once, which
// processors show whole (AMD APM vol. 2, 7.6.1): not needed while all vCPUs are stopped, and the difference between a mistake in the stop and
// an instruction that nobody wrote. The alias maps whole pages, so the word is there.
func store(to []byte, addr uint64, b []byte) {
	in := addr & 7
	if in+uint64(len(b)) > 8 {
		copy(to, b)
		return
	}
	word := (*uint64)(unsafe.Add(unsafe.Pointer(&to[0]), -int(in)))
	v := *word
	for i, x := range b {
		s := 8 * (in + uint64(i))
		v = v&^(0xff<<s) | uint64(x)<<s
	}
	atomic.StoreUint64(word, v) // ORDER(O1): before P6; pairs with V4, and V5 behind it. Without the order a vCPU could serialise before the last store
}

// room is the bytes of words.
func room(w *[3]uint64) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(w)), unsafe.Sizeof(*w)) }

// reads compares what the guest sees with what it should see: the sites' new bytes, or the old ones.
func reads(g Guest, sites []Site, changed bool) error {
	for i := range sites {
		w := &sites[i]
		have, err := g.Look(w.Addr, len(w.Old))
		if err != nil {
			return fmt.Errorf("site %s at %#x: %w", w.Name, w.Addr, err)
		}
		want := w.Old
		if changed {
			want = w.New
		}
		if !bytes.Equal(have, want) {
			return fmt.Errorf("site %s at %#x: reads back as % x, not % x", w.Name, w.Addr, have, []byte(want))
		}
	}
	return nil
}
