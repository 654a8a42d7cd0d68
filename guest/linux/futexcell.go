package linux

import "sync/atomic"

// futexCell is a futex word in guest memory. What orders it is the program's own protocol: its fast paths use LOCKed
// instructions on the same word, and so do these.
type futexCell struct{ p *uint32 }

func (c futexCell) load() uint32 {
	return atomic.LoadUint32(c.p) // ORDER(none): the program's own protocol
}

func (c futexCell) store(v uint32) {
	atomic.StoreUint32(c.p, v) // ORDER(none): the program's own protocol
}

func (c futexCell) swap(old, new uint32) bool {
	return atomic.CompareAndSwapUint32(c.p, old, new) // ORDER(none): the program's own protocol
}
