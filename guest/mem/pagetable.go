package mem

import (
	"encoding/binary"
	"fmt"

	"github.com/cloister-vmm/cloister/firmware"
	"github.com/cloister-vmm/cloister/guest/abi"
)

// tables is a pool of page-table pages inside the supervisor block, and the tree in it. Pages are never
// given back: an upper-level entry, once set, never changes, so shadow tables never hold a stale one.
type tables struct {
	block []byte // supervisor block, on the host
	gpa   uint64 // its guest-physical address
	next  uint64 // offset of the first free page
	root  uint64 // offset of the PML4
}

func newTables(block []byte, gpa, first uint64) *tables {
	return &tables{block: block, gpa: gpa, next: first + abi.Page, root: first}
}

func (t *tables) entry(table uint64, i uint64) []byte { return t.block[table+i*8 : table+i*8+8] }

func (t *tables) get(table, i uint64) uint64 { return binary.LittleEndian.Uint64(t.entry(table, i)) }

func (t *tables) set(table, i, e uint64) { binary.LittleEndian.PutUint64(t.entry(table, i), e) }

// leafTable finds (or makes) the last-level table of va and returns its offset.
func (t *tables) leafTable(va uint64, make bool) (uint64, bool, error) {
	at := t.root
	for shift := 39; shift > 12; shift -= 9 {
		i := va >> shift & 511
		e := t.get(at, i)
		if e&firmware.PTEPresent == 0 {
			if !make {
				return 0, false, nil
			}
			if t.next+abi.Page > uint64(len(t.block)) {
				return 0, false, fmt.Errorf("page tables: no room for another of %d MiB: raise --memory", len(t.block)>>20)
			}
			e = firmware.PTETable(t.gpa + t.next)
			t.next += abi.Page
			t.set(at, i, e)
		}
		if e&firmware.PTEHuge != 0 {
			return 0, false, fmt.Errorf("page tables: a large page at %#x where a table was expected", va)
		}
		at = e&firmware.PTEAddr - t.gpa
	}
	return at, true, nil
}

// setRange points every page of [start,end) at itself (mirror) plus delta, with the given bits; bits 0
// removes the pages.
func (t *tables) setRange(start, end, delta, leafBits uint64) error {
	for va := start; va < end; {
		stop := min(end, (va|(abi.Huge-1))+1)
		at, ok, err := t.leafTable(va, leafBits != 0)
		if err != nil {
			return err
		}
		if !ok {
			va = stop
			continue
		}
		for ; va < stop; va += abi.Page {
			e := uint64(0)
			if leafBits != 0 {
				e = firmware.PTELeaf(va+delta, leafBits)
			}
			t.set(at, va>>12&511, e)
		}
	}
	return nil
}
