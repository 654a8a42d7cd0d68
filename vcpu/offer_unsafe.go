package vcpu

import "unsafe"

// offer is what a stop carries for the last vCPU to stop, and whose the stop is. Not the requester's alone: in and out change by compare-and-swap, once the
// request is out, but for who owns the stop. It begins a line.
type offer struct {
	in  uint64 // generation, state, near, how many have yet to acknowledge: offer…
	out uint64 // generation, state, how many have yet to serialise

	// Written by the requester before in. One word lies in the line of in: most patches are of one.
	n     uint64  // of words
	first uintptr // address of the control of the set's first vCPU
	ahead uintptr // where the first word is written, while the stop is on: what warm fetches. Later the line is the guest's
	words [MostStores]Store

	// Written by the vCPU that stores, or releases, before it says that it has serialised. TSC.
	firstTSC uint64 // before the first store
	lastTSC  uint64 // behind the last
	relTSC   uint64 // when all were released
	_        uint64
}

// MostStores bounds Purpose.Stores.
const MostStores = 8

// Parts of offer.in and offer.out.
const (
	offerCount = 1<<12 - 1
	offerNear  = 1 << 12
	offerState = 7 << 13 // whose the stop is, or the release:
	offered    = 1 << 13 // nobody's yet
	offerLast  = 2 << 13 // the last vCPU's: the text is changed, or they are released
	offerMine  = 3 << 13 // the requester's
	offerDoubt = 4 << 13 // the requester's, and the text reads back as nothing that anybody stored
	offerGen   = 16      // from here on the generation
)

// address is c's, for next and first.
func (c *control) address() uintptr { return uintptr(unsafe.Pointer(c)) }

// controlAt is the control at that address.
//
//go:nosplit
//go:norace
//go:nocheckptr
func controlAt(a uintptr) *control { return *(**control)(unsafe.Pointer(&a)) }
