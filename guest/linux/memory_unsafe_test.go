package linux

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// arena is a Memory whose guest addresses are host addresses, so that the host kernel can be given
// the very same arguments. Guard zones before and after it hold a pattern that nobody may change.
type arena struct {
	t     testing.TB
	all   []byte // guard, pages, guard
	base  uint64
	pages int
	prot  []uint8 // PROT_ bits
	gone  []bool  // nothing is mapped
}

const (
	page       = 4096
	guardPages = 16
	guardByte  = 0xA5
)

func newArena(t testing.TB, pages int) *arena {
	all, err := unix.Mmap(-1, 0, (pages+2*guardPages)*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	m := &arena{t: t, all: all, pages: pages, prot: make([]uint8, pages), gone: make([]bool, pages)}
	m.base = uint64(uintptr(unsafe.Pointer(&all[0]))) + guardPages*page
	for i := range guardPages * page {
		all[i] = guardByte
		all[len(all)-1-i] = guardByte
	}
	for i := range m.prot {
		m.prot[i] = unix.PROT_READ | unix.PROT_WRITE
	}
	t.Cleanup(func() { _ = unix.Munmap(all) })
	return m
}

// guardsIntact says whether no byte beside the arena changed.
func (m *arena) guardsIntact() bool {
	for i := range guardPages * page {
		if m.all[i] != guardByte || m.all[len(m.all)-1-i] != guardByte {
			return false
		}
	}
	return true
}

// index returns the first page of a range and whether the range lies in the arena.
func (m *arena) index(addr, n uint64) (int, bool) {
	if addr < m.base || addr-m.base > uint64(m.pages)*page || n > uint64(m.pages)*page-(addr-m.base) {
		return 0, false
	}
	return int((addr - m.base) / page), true
}

func (m *arena) Prefix(addr, n uint64, write bool) []byte {
	if addr < m.base || addr-m.base >= uint64(m.pages)*page {
		return nil
	}
	want := uint8(unix.PROT_READ)
	if write {
		want = unix.PROT_WRITE
	}
	off := addr - m.base
	end := off
	for end < uint64(m.pages)*page && m.prot[end/page]&want != 0 && end-off < n {
		end = (end/page + 1) * page
	}
	start := guardPages*page + off
	return m.all[start : start+min(end-off, n)]
}

func (m *arena) Mapped(addr, n uint64) bool {
	i, ok := m.index(addr, n)
	for end := int((addr - m.base + n + page - 1) / page); ok && i < end; i++ {
		ok = !m.gone[i]
	}
	return ok
}

func (m *arena) Object(uint64) ([2]uint64, uint64, bool) { return [2]uint64{}, 0, false }

func (m *arena) access(addr, n uint64, write bool) ([]byte, unix.Errno) {
	p := m.Prefix(addr, n, write)
	if uint64(len(p)) != n {
		return nil, unix.EFAULT
	}
	return p, 0
}

func (m *arena) In(addr, n uint64) ([]byte, unix.Errno)  { return m.access(addr, n, false) }
func (m *arena) Out(addr, n uint64) ([]byte, unix.Errno) { return m.access(addr, n, true) }

// host applies a change to pages [i, i+n) on the host, too.
func (m *arena) host(nr uintptr, i, n int, a3, a4, a5, a6 uintptr) unix.Errno {
	_, _, e := unix.Syscall6(nr, uintptr(m.base)+uintptr(i*page), uintptr(n*page), a3, a4, a5, a6)
	return e
}

func (m *arena) Map(addr, length uint64, prot, flags, fd int, off int64) (uint64, unix.Errno) {
	n := int((min(length, 1<<40) + page - 1) / page)
	i, ok := 0, false
	if flags&(unix.MAP_FIXED|unix.MAP_FIXED_NOREPLACE) != 0 {
		if i, ok = m.index(addr, uint64(n)*page); !ok || addr%page != 0 {
			return 0, unix.ENOMEM
		}
	} else if i, ok = m.hole(n); !ok {
		return 0, unix.ENOMEM
	}
	prot &= unix.PROT_READ | unix.PROT_WRITE
	kind := flags & (unix.MAP_SHARED | unix.MAP_PRIVATE | unix.MAP_ANONYMOUS)
	if e := m.host(unix.SYS_MMAP, i, n, uintptr(prot), uintptr(kind|unix.MAP_FIXED), uintptr(fd), uintptr(off)); e != 0 {
		return 0, e
	}
	for j := i; j < i+n; j++ {
		m.prot[j], m.gone[j] = uint8(prot), false
	}
	return m.base + uint64(i)*page, 0
}

func (m *arena) hole(n int) (int, bool) {
	run := 0
	for i := m.pages - 1; i >= 0; i-- {
		if !m.gone[i] {
			run = 0
		} else if run++; run >= n && n > 0 {
			return i, true
		}
	}
	return 0, false
}

func (m *arena) Protect(addr, length uint64, prot int) unix.Errno {
	i, ok := m.index(addr, length)
	if !ok || addr%page != 0 {
		return unix.ENOMEM
	}
	n := int((length + page - 1) / page)
	if i+n > m.pages {
		return unix.ENOMEM
	}
	if e := m.host(unix.SYS_MPROTECT, i, n, uintptr(prot)&3, 0, 0, 0); e != 0 {
		return e
	}
	for j := i; j < i+n; j++ {
		m.prot[j] = uint8(prot & 3)
	}
	return 0
}

func (m *arena) Unmap(addr, length uint64) unix.Errno {
	i, ok := m.index(addr, length)
	n := int((length + page - 1) / page)
	if !ok || i+n > m.pages {
		return 0
	}
	e := m.host(unix.SYS_MMAP, i, n, 0, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED, ^uintptr(0), 0)
	for j := i; e == 0 && j < i+n; j++ {
		m.prot[j], m.gone[j] = 0, true
	}
	return e
}

func (m *arena) Remap(old, oldLen, newLen uint64, flags int, to uint64) (uint64, unix.Errno) {
	return 0, unix.ENOMEM
}

func (m *arena) Brk(uint64) uint64                         { return m.base }
func (m *arena) Advise(_, _ uint64, advice int) unix.Errno { return 0 }
func (m *arena) Sync(_, _ uint64, flags int) unix.Errno    { return 0 }
func (m *arena) Maps() string                              { return "" }
func (m *arena) Usage() (uint64, uint64)                   { return 1 << 20, 1 << 30 }

// native makes a system call of the host; the result is as in RAX.
func native(nr uint64, a ...uint64) int64 {
	var r [6]uintptr
	for i, v := range a {
		r[i] = uintptr(v)
	}
	v, _, e := unix.Syscall6(uintptr(nr), r[0], r[1], r[2], r[3], r[4], r[5])
	if e != 0 {
		return -int64(e)
	}
	return int64(v)
}
