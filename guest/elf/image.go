package elf

import (
	"fmt"
	"io"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// Type says how a program wants to be placed.
type Type uint8

const (
	Fixed Type = iota + 1 // ET_EXEC: at the addresses it was linked for
	PIE                   // ET_DYN without an interpreter: anywhere; it relocates itself
)

// String gives "fixed" or "pie".
func (t Type) String() string {
	switch t {
	case Fixed:
		return "fixed"
	case PIE:
		return "pie"
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// Prot is what a program may do with a range of its memory: a set of the bits below, which are those
// of p_flags (ELF gABI, "Program Header", Segment Permissions).
type Prot uint8

const (
	X Prot = 1 << iota // execute (PF_X)
	W                  // write (PF_W)
	R                  // read (PF_R)
)

// String gives the three letters that /proc/PID/maps uses, such as "r-x".
func (p Prot) String() string {
	b := []byte("---")
	if p&R != 0 {
		b[0] = 'r'
	}
	if p&W != 0 {
		b[1] = 'w'
	}
	if p&X != 0 {
		b[2] = 'x'
	}
	return string(b)
}

// Segment is a PT_LOAD that occupies memory. Bytes from FileSize to MemSize are zero.
type Segment struct {
	Header     int    // index in the program header table
	VAddr      uint64 // link-time address; add Image.Bias for a PIE
	MemSize    uint64 // bytes, never 0
	FileOffset uint64 // bytes from the start of the file
	FileSize   uint64 // bytes, at most MemSize
	Prot       Prot
}

// Page is a run of whole pages with one permission.
type Page struct {
	VAddr uint64 // link-time address, a multiple of abi.Page
	Size  uint64 // bytes, a multiple of abi.Page
	Prot  Prot
}

// Phdr locates the program header table, for AT_PHDR, AT_PHENT and AT_PHNUM.
type Phdr struct {
	VAddr   uint64 // link-time address in memory; meaningless unless Loaded
	Num     int
	EntSize int  // bytes, always 56
	Loaded  bool // the whole table lies in one segment's file bytes
}

// TLS is the PT_TLS template. The program sets its thread pointer up itself; this is for reports.
type TLS struct {
	VAddr, MemSize, FileSize, Align uint64
}

// Image is a validated program.
type Image struct {
	Type      Type
	Entry     uint64 // link-time address
	Phdr      Phdr
	Segments  []Segment // in the order of the program headers
	Pages     []Page    // ascending and disjoint; what to give each page (later segment wins)
	TLS       *TLS      // nil when there is none
	StackExec bool      // the file asks for an executable stack; not granted
	Notes     []Note    // of abi.NoteOwner
	BuildID   []byte    // NT_GNU_BUILD_ID, nil when no PT_NOTE covers one (Go programs)
	MinVA     uint64    // first page, rounded down to abi.Page
	MaxVA     uint64    // end of the last page, rounded up; the heap (brk) may begin here
	Align     uint64    // largest p_align of a segment, at least abi.Page, a power of two

	r io.ReaderAt
}

// Bias gives what to add to every address of the image so that it begins at base, or a little above
// when its Align asks for that. Additions are modulo 2^64. It is 0 for a Fixed image, whatever base is. It fails when the image
// would not end below abi.MmapTop.
func (im *Image) Bias(base uint64) (uint64, error) {
	if im.Type == Fixed {
		return 0, nil
	}
	span := im.MaxVA - im.MinVA
	if base > abi.MmapTop || im.Align > abi.MmapTop {
		return 0, fmt.Errorf("place program: base %#x with alignment %#x is beyond the guest's %#x; link it with a smaller max-page-size", base, im.Align, uint64(abi.MmapTop))
	}
	lo := (base + im.Align - 1) &^ (im.Align - 1)
	// As Linux: the bias is aligned, so that addresses keep their link-time alignment.
	bias := lo - im.MinVA&^(im.Align-1)
	if start := im.MinVA + bias; start < abi.LowestUser || start > abi.MmapTop || span > abi.MmapTop-start {
		return 0, fmt.Errorf("place program: %d bytes at %#x do not fit below %#x; link it with fewer or smaller static data", span, start, uint64(abi.MmapTop))
	}
	return bias, nil
}

// ReadSegment fills dst with the file bytes of segment i; dst must have that segment's FileSize. It
// makes one read call, so dst may be guest memory. It fails when the file has become shorter.
func (im *Image) ReadSegment(i int, dst []byte) error {
	if i < 0 || i >= len(im.Segments) {
		return fmt.Errorf("read segment %d: the program has %d", i, len(im.Segments))
	}
	s := im.Segments[i]
	if uint64(len(dst)) != s.FileSize {
		return fmt.Errorf("read segment %d: %d bytes of room for %d", i, len(dst), s.FileSize)
	}
	if len(dst) == 0 {
		return nil
	}
	n, err := im.r.ReadAt(dst, int64(s.FileOffset))
	if n == len(dst) {
		return nil // a ReaderAt may report io.EOF with the last bytes
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read segment %d at file offset %#x: %d of %d bytes: %w; the file changed while it was loaded", i, s.FileOffset, n, len(dst), err)
}

// Note is what the VMM has to know of a note of abi.NoteOwner (docs/patching.md).
type Note struct {
	Type uint32 // abi.Note…
	Addr uint64 // abi.NoteSafeWord and NoteSafeRIP: the link-time address that it tells; add Image.Bias for a PIE
}
