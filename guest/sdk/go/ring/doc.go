// Package ring is a ring of records in shared memory: between a sealed loop and whoever takes its results, or gives it
// commands, without a system call on either side. docs/rings.md has the format; cloister_ring.h is the same in C.
//
// In a program under Cloister, Open(ring.Path(NAME), …) is the ring of `cloister run --ring NAME=SIZE`; a process of the
// host opens the file of the same name in the VM's run directory; two threads of one program, natively too, share any memory
// that Format has made a ring.
//
//	p, err := ring.OpenProducer(ring.Path("out"))   // before sealing
//	…
//	if err := p.Put(record); err == ring.ErrFull {  // sealed: no exit, no allocation
//		p.Drop()
//	}
//
// Invariants:
//  1. One producer and one consumer. Neither waits: Put and Get return at once, whatever the other side does.
//  2. Whatever the other side writes into the memory, no byte outside the ring is read or written, nothing loops, and what
//     cannot be a ring's state is ErrCorrupt, from then on for ever.
//  3. A record arrives whole, once and in order, between two sides that keep to the protocol (docs/ordering.md, O11).
//  4. Put and Get neither allocate nor make a system call.
//
// Alternatives rejected: a futex for the waiting side (a system call, so a break, on the side that is sealed); an
// index that is read back from shared memory (the other side could move it); io.Reader and io.Writer (records would
// lose their borders, and "full" is no error of a writer's).
package ring
