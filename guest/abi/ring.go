package abi

// RingDir is where a program finds the rings of `cloister run --ring NAME=SIZE`, as files that it maps.
const RingDir = "/dev/cloister/ring/"

// The format of a ring, docs/rings.md: a page of header, then a power of two of data.
const (
	RingMagic   = 0x474e4952_4f494c43 // "CLIORING"
	RingVersion = 1
	RingData    = Page    // where the data begins, bytes from the header
	RingMinSize = Page    // of the data, bytes
	RingMaxSize = 1 << 30 // of the data, bytes
	RingPrefix  = 8       // before each record: its length in bytes; records are padded to a multiple of it
)

// RingHeader is the first page of a ring: one producer, one consumer, who may trust each other or not. Head and
// Tail count bytes since the ring was made and are not taken modulo Size; they and Closed are a protocol
// (docs/ordering.md, O11). What one side writes lies 128 bytes from what the other does: processors fetch cache lines in pairs.
type RingHeader struct {
	Magic     uint64 // RingMagic
	Version   uint64 // RingVersion
	Size      uint64 // of the data, bytes
	Data      uint64 // RingData
	Reserved0 [12]uint64
	Head      uint64 // producer's: bytes that it has written
	Closed    uint64 // producer's: not 0 when no record follows
	Dropped   uint64 // producer's: records that it gave up because the ring was full
	Reserved1 [13]uint64
	Tail      uint64 // consumer's: bytes that it has taken
	Reserved2 [15]uint64
}
