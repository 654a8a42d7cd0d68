package kvm

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Stats reads a binary statistics file descriptor (api.rst 4.133). Reading takes no lock and sends no
// interrupt: the running vCPU is not touched.
type Stats struct {
	fd     int
	Names  []string
	offset []int64
	buf    []byte
	base   int64
}

// NewStats parses the descriptors of fd. Every name has one 8-byte value here; histograms are left out.
func NewStats(fd int) (*Stats, error) {
	h := make([]byte, 24)
	if n, err := unix.Pread(fd, h, 0); err != nil || n != len(h) {
		return nil, fmt.Errorf("KVM statistics: read header: %d bytes (%v)", n, err)
	}
	u32 := binary.LittleEndian.Uint32
	nameSize, num, descOff, dataOff := int(u32(h[4:])), int(u32(h[8:])), int64(u32(h[16:])), int64(u32(h[20:]))
	if nameSize <= 0 || nameSize > 256 || num <= 0 || num > 4096 {
		return nil, fmt.Errorf("KVM statistics: implausible header (name size %d, %d descriptors)", nameSize, num)
	}
	size := 16 + nameSize
	d := make([]byte, size*num)
	if n, err := unix.Pread(fd, d, descOff); err != nil || n != len(d) {
		return nil, fmt.Errorf("KVM statistics: read %d descriptors: %d bytes (%v)", num, n, err)
	}
	s := &Stats{fd: fd, base: dataOff}
	end := 0
	for i := range num {
		e := d[i*size:]
		values, off := int(binary.LittleEndian.Uint16(e[6:])), int(u32(e[8:]))
		if off < 0 || off > 1<<20 || values > 1<<12 {
			return nil, fmt.Errorf("KVM statistics: implausible descriptor %d", i)
		}
		if values != 1 {
			continue
		}
		name, _, _ := strings.Cut(string(e[16:size]), "\x00")
		s.Names = append(s.Names, name)
		s.offset = append(s.offset, int64(off))
		end = max(end, off+8)
	}
	s.buf = make([]byte, end)
	return s, nil
}

// Index is the position of a statistic in Names, or -1.
func (s *Stats) Index(name string) int {
	for i, n := range s.Names {
		if n == name {
			return i
		}
	}
	return -1
}

// Read fills dst (one value a name) without allocating.
func (s *Stats) Read(dst []uint64) error {
	if n, err := unix.Pread(s.fd, s.buf, s.base); err != nil || n != len(s.buf) {
		return fmt.Errorf("KVM statistics: read values: %d bytes (%v)", n, err)
	}
	for i, off := range s.offset {
		dst[i] = binary.LittleEndian.Uint64(s.buf[off:])
	}
	return nil
}

// One reads the statistic at index i of Names alone, without allocating. Unlike Read it may be called by several goroutines at once.
func (s *Stats) One(i int) (uint64, error) {
	if i < 0 || i >= len(s.offset) {
		return 0, fmt.Errorf("KVM statistics: no statistic %d of %d", i, len(s.offset))
	}
	var v [8]byte
	if n, err := unix.Pread(s.fd, v[:], s.base+s.offset[i]); err != nil || n != len(v) {
		return 0, fmt.Errorf("KVM statistics: read %s: %d bytes (%v)", s.Names[i], n, err)
	}
	return binary.LittleEndian.Uint64(v[:]), nil
}

// FD is the file descriptor that is read.
func (s *Stats) FD() int { return s.fd }
