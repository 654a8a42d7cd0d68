package kvm

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// statsFile is a memfd with the contents of a statistics descriptor.
func statsFile(t testing.TB, b []byte) int {
	t.Helper()
	fd, err := unix.MemfdCreate("stats", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err != nil {
			t.Fatal(err)
		}
		b = b[n:]
	}
	return fd
}

// statsImage lays out statistics as api.rst 4.133 says: header, id, descriptors, data.
func statsImage(names []string, sizes []int, values []uint64) []byte {
	const nameSize, idSize = 24, 24
	le := binary.LittleEndian
	desc := 24 + idSize
	data := desc + len(names)*(16+nameSize)
	b := make([]byte, data+8*len(values))
	le.PutUint32(b[4:], nameSize)
	le.PutUint32(b[8:], uint32(len(names)))
	le.PutUint32(b[12:], 24)
	le.PutUint32(b[16:], uint32(desc))
	le.PutUint32(b[20:], uint32(data))
	off := 0
	for i, n := range names {
		d := b[desc+i*(16+nameSize):]
		le.PutUint16(d[6:], uint16(sizes[i]))
		le.PutUint32(d[8:], uint32(off))
		copy(d[16:16+nameSize], n)
		off += 8 * sizes[i]
	}
	for i, v := range values {
		le.PutUint64(b[data+8*i:], v)
	}
	return b
}

func TestStats(t *testing.T) {
	fd := statsFile(t, statsImage([]string{"exits", "hist", "irq_exits"}, []int{1, 3, 1}, []uint64{7, 1, 2, 3, 9}))
	s, err := NewStats(fd)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.Names, []string{"exits", "irq_exits"}) || s.FD() != fd {
		t.Fatalf("names %q", s.Names)
	}
	dst := make([]uint64, 2)
	if err := s.Read(dst); err != nil || dst[s.Index("exits")] != 7 || dst[s.Index("irq_exits")] != 9 || s.Index("hist") != -1 {
		t.Errorf("%d, %v", dst, err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if err := s.Read(dst); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("a read allocates %v times", n)
	}
	if v, err := s.One(s.Index("irq_exits")); v != 9 || err != nil {
		t.Errorf("one: %d, %v", v, err)
	}
	for _, i := range []int{-1, 2} {
		if _, err := s.One(i); err == nil {
			t.Errorf("statistic %d was read", i)
		}
	}
	if err := unix.Ftruncate(fd, 100); err != nil {
		t.Fatal(err)
	}
	if err := s.Read(dst); err == nil {
		t.Error("a read of a truncated file succeeded")
	}
	if _, err := s.One(0); err == nil {
		t.Error("a read of one value of a truncated file succeeded")
	}
}

// FuzzStats: whatever a descriptor holds gives statistics that can be read, or an error.
func FuzzStats(f *testing.F) {
	good := statsImage([]string{"exits", "irq_exits"}, []int{1, 1}, []uint64{1, 2})
	f.Add(good)
	f.Add(good[:23])
	f.Add(good[:60])
	f.Add([]byte{})
	for _, at := range []int{4, 8, 16, 20, 48 + 6, 48 + 8} {
		for _, v := range []uint32{0, 1, 0x7fffffff, 0x80000000, 0xffffffff} {
			b := bytes.Clone(good)
			binary.LittleEndian.PutUint32(b[at:], v)
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := NewStats(statsFile(t, b[:min(len(b), 1<<16)]))
		if err != nil {
			return
		}
		if err := s.Read(make([]uint64, len(s.Names))); err == nil && len(s.Names) > 0 && s.Index(s.Names[0]) != 0 {
			t.Error("the first name is not at index 0")
		}
	})
}
