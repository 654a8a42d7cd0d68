package mem

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// Advice that does more than help is refused where Linux refuses it (mm/madvise.c), and does what it says elsewhere.
func TestAdvice(t *testing.T) {
	r := newRig(t, 64*abi.Page)
	name := filepath.Join(t.TempDir(), "file")
	full := bytes.Repeat([]byte{7}, 2*abi.Page)
	if err := os.WriteFile(name, full, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at := func(prot, flags, fd int) uint64 {
		t.Helper()
		a, e := r.Map(0, 2*abi.Page, prot, flags, fd, 0)
		if e != 0 {
			t.Fatal(e)
		}
		return a
	}
	const anonymous = unix.MAP_ANONYMOUS
	private, shared := at(Read|Write, unix.MAP_PRIVATE|anonymous, -1), at(Read|Write, unix.MAP_SHARED|anonymous, -1)
	none, reading, file := at(0, unix.MAP_PRIVATE|anonymous, -1), at(Read, unix.MAP_SHARED, int(f.Fd())), at(Read|Write, unix.MAP_SHARED, int(f.Fd()))
	for _, a := range []uint64{private, shared} {
		copy(r.cfg.Window[a:], full)
	}
	for _, c := range []struct {
		at     uint64
		advice int
		want   unix.Errno
		first  byte // of the page, after
	}{
		{private, unix.MADV_REMOVE, unix.EINVAL, 7}, {private, unix.MADV_FREE, 0, 7}, {private, unix.MADV_POPULATE_WRITE, 0, 7}, {private, unix.MADV_DONTNEED, 0, 0},
		{shared, unix.MADV_FREE, unix.EINVAL, 7}, {shared, unix.MADV_DONTNEED, 0, 7}, {shared, unix.MADV_REMOVE, 0, 0},
		{reading, unix.MADV_REMOVE, unix.EACCES, 7}, {reading, unix.MADV_POPULATE_WRITE, unix.EINVAL, 7}, {reading, unix.MADV_POPULATE_READ, 0, 7},
		{file, unix.MADV_DONTNEED, 0, 7}, {file, unix.MADV_REMOVE, 0, 0},
		{private, 99, unix.EINVAL, 0},
	} {
		if e := r.Advise(c.at, abi.Page, c.advice); e != c.want {
			t.Errorf("advice %d at %#x: %v, want %v", c.advice, c.at, e, c.want)
		}
		if got := r.cfg.Window[c.at]; got != c.first {
			t.Errorf("advice %d at %#x: %d lies there, want %d", c.advice, c.at, got, c.first)
		}
	}
	if e := r.Advise(none, abi.Page, unix.MADV_POPULATE_READ); e != unix.EINVAL {
		t.Error(e)
	}
	if e := r.Advise(abi.UserTop, abi.Page, unix.MADV_NORMAL); e != unix.ENOMEM {
		t.Error(e)
	}
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, append(make([]byte, abi.Page), full[:abi.Page]...)) {
		t.Errorf("%v: the file holds %d and %d", err, got[0], got[len(got)-1])
	}
}
