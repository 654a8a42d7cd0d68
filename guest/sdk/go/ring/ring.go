package ring

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// What Put and Get say instead of waiting, and when the memory is not a ring's.
var (
	ErrFull    = errors.New("ring: full: the consumer has not made room")
	ErrEmpty   = errors.New("ring: empty")
	ErrTooLong = errors.New("ring: the record is longer than the ring can hold: make the ring larger")
	ErrShort   = errors.New("ring: the buffer is shorter than the record: call Get with a larger one")
	ErrCorrupt = errors.New("ring: the other side wrote what no ring can hold: make a new one")
	ErrClosed  = errors.New("ring: its producer has closed it: make a new one")
)

// memory is a ring as one side sees it. The header's words are shared, and read once where they are used; what is kept
// here is this side's own and was checked.
type memory struct {
	h       *abi.RingHeader
	data    []byte
	words   []uint64 // data again
	mapped  []byte   // to be unmapped, if it was opened
	head    uint64   // the producer's own; the consumer's latest look at it
	tail    uint64   // the consumer's own; the producer's latest look at it
	corrupt bool
}

// span is what a record of n bytes takes in the ring; n is at most abi.RingMaxSize.
func span(n uint64) uint64 {
	return abi.RingPrefix + (n+abi.RingPrefix-1)&^(abi.RingPrefix-1)
}

// good judges two indices: at most size bytes lie between them, and records are whole words.
func (m *memory) good(head, tail uint64) bool {
	return head-tail <= uint64(len(m.data)) && (head|tail)%abi.RingPrefix == 0
}

func (m *memory) fail() error {
	m.corrupt = true
	return ErrCorrupt
}

// attach takes the indices that are there.
func (m *memory) attach() error {
	// ORDER(O11) Tail, then Head. Pairs with the stores of both sides (P3, C4): without that order progress of both
	// between the two looks would show a tail beyond the head.
	m.tail = atomic.LoadUint64(&m.h.Tail)
	m.head = atomic.LoadUint64(&m.h.Head)
	if !m.good(m.head, m.tail) {
		return m.fail()
	}
	return nil
}

// Producer is the writing side. Its methods are for one goroutine.
type Producer struct{ memory }

// Max is the length of the longest record that the ring can hold, bytes.
func (m *memory) Max() int { return len(m.data) - abi.RingPrefix }

// Put writes a record, of 0 to Max bytes. The error is nil, ErrFull when it does not fit now, ErrTooLong or ErrCorrupt.
func (p *Producer) Put(record []byte) error {
	size := uint64(len(p.data))
	if len(record) > p.Max() {
		return ErrTooLong
	}
	need := span(uint64(len(record)))
	if p.corrupt {
		return ErrCorrupt
	}
	if size-(p.head-p.tail) < need {
		// ORDER(O11) P1: room. Pairs with the consumer's store of Tail (C4); without it a record could be overwritten
		// while it is copied.
		tail := atomic.LoadUint64(&p.h.Tail)
		if tail-p.tail > p.head-p.tail || !p.good(p.head, tail) {
			return p.fail()
		}
		p.tail = tail
		if size-(p.head-tail) < need {
			return ErrFull
		}
	}
	at := p.head & (size - 1)
	p.words[at/8] = uint64(len(record))
	n := copy(p.data[(at+abi.RingPrefix)&(size-1):], record)
	copy(p.data, record[n:])
	p.head += need
	// ORDER(O11) P3: publish. Pairs with the consumer's load of Head (C2); without it the record could be read
	// before it is written.
	atomic.StoreUint64(&p.h.Head, p.head)
	return nil
}

// Drop counts a record that the producer gave up; the consumer sees the number (Dropped).
func (p *Producer) Drop() {
	atomic.AddUint64(&p.h.Dropped, 1) // ORDER(none): statistic
}

// CloseWrite says that no record follows: the consumer gets io.EOF behind the last one. The ring stays closed.
func (p *Producer) CloseWrite() {
	// ORDER(O11) P4: behind every record. Pairs with the consumer's load of Closed before that of Head (C1); without
	// it the consumer could see the end and miss the last record.
	atomic.StoreUint64(&p.h.Closed, 1)
}

// Consumer is the reading side. Its methods are for one goroutine.
type Consumer struct{ memory }

// Get takes the next record and returns its length. The error is nil; ErrEmpty when there is none now; io.EOF when none
// will follow; ErrShort, with the length, when it does not fit into buf: it stays; or ErrCorrupt.
func (c *Consumer) Get(buf []byte) (int, error) {
	if c.corrupt {
		return 0, ErrCorrupt
	}
	if c.head == c.tail {
		// ORDER(O11) C1, C2: Closed, then Head. Pairs with the producer's stores (P4, P3); without the order the end
		// could be seen, and not the record before it.
		closed := atomic.LoadUint64(&c.h.Closed)
		head := atomic.LoadUint64(&c.h.Head)
		switch {
		case !c.good(head, c.tail):
			return 0, c.fail()
		case head == c.tail && closed != 0:
			return 0, io.EOF
		case head == c.tail:
			return 0, ErrEmpty
		}
		c.head = head
	}
	size := uint64(len(c.data))
	at := c.tail & (size - 1)
	// ORDER(O11) C3: one load, for a hostile producer may change the length. Pairs with P2, which P3 published; without
	// it what was checked and what is used could differ.
	length := atomic.LoadUint64(&c.words[at/8])
	if length > uint64(c.Max()) || span(length) > c.head-c.tail {
		return 0, c.fail()
	}
	if length > uint64(len(buf)) {
		return int(length), ErrShort
	}
	buf = buf[:length]
	n := copy(buf, c.data[(at+abi.RingPrefix)&(size-1):])
	copy(buf[n:], c.data)
	c.tail += span(length)
	// ORDER(O11) C4: give the room back. Pairs with the producer's load of Tail (P1); without it the record could be
	// overwritten while it is copied.
	atomic.StoreUint64(&c.h.Tail, c.tail)
	return int(length), nil
}

// Dropped is how many records the producer says that it gave up.
func (c *Consumer) Dropped() uint64 {
	return atomic.LoadUint64(&c.h.Dropped) // ORDER(none): statistic
}

// size judges a header, whose fields were copied, and gives the size of the data.
func size(magic, version, size, data uint64, room int) (uint64, error) {
	switch {
	case magic != abi.RingMagic:
		return 0, errors.New("not a ring: it has another magic number")
	case version != abi.RingVersion:
		return 0, fmt.Errorf("a ring of version %d: this side knows version %d", version, abi.RingVersion)
	case !ValidSize(size) || data != abi.RingData || size > uint64(max(0, room-abi.RingData)):
		return 0, fmt.Errorf("a ring that says it has %d bytes of data at %d, in %d bytes of memory: it is damaged", size, data, room)
	}
	return size, nil
}

// ValidSize reports whether a ring may have n bytes of data: a power of two from abi.RingMinSize to abi.RingMaxSize.
func ValidSize(n uint64) bool {
	return n >= abi.RingMinSize && n <= abi.RingMaxSize && n&(n-1) == 0
}
