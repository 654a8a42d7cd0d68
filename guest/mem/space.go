package mem

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/cloister-vmm/cloister/firmware"
	"github.com/cloister-vmm/cloister/guest/abi"
	"golang.org/x/sys/unix"
)

// Protections, as mmap(2) has them.
const (
	Read  = unix.PROT_READ
	Write = unix.PROT_WRITE
	Exec  = unix.PROT_EXEC
)

// Config is what a Space is made of.
type Config struct {
	Memory     int    // file descriptor of the guest memory file, UserTop bytes long
	Window     []byte // its mapping: guest address 0 .. UserTop
	Supervisor []byte // the supervisor block: page tables from TableOffset on
	// SupervisorGPA is where the block lies in guest-physical memory.
	SupervisorGPA, TableOffset uint64
	Limit                      uint64 // bytes that may be committed
	Locked                     bool   // Window is locked: flushes must say so
	Huge                       bool   // the file is on huge pages: punch and flush in units of abi.Huge
	// AddSlot gives the guest the memory [start, end) of the window.
	AddSlot func(start, end uint64, readonly bool) error
}

// region is one mapped range.
type region struct {
	start, end uint64
	prot       int
	shared     bool
	text       bool // lies in a read-only slot: never writable
	fd         int  // shared file mapping: our own descriptor, or -2 when there was none left; else -1
	off        int64
	object     [2]uint64 // of a shared file mapping: the file's device and inode
	name       string
}

// Space is the address space of one program.
type Space struct {
	cfg Config
	tab *tables

	mu        sync.Mutex
	regions   []region // sorted, disjoint
	slots     [abi.UserTop / chunk]bool
	text      []region // ranges that get read-only slots
	brkStart  uint64
	brk       uint64
	committed uint64
	peak      uint64
}

// chunk is the unit in which memory slots are added, bytes: a slot costs kernel memory in proportion to
// its size, and each later one is a break.
const chunk = 64 << 20

// New makes an empty space. The caller maps the supervisor's own pages with MapSupervisor.
func New(cfg Config) *Space {
	return &Space{cfg: cfg, tab: newTables(cfg.Supervisor, cfg.SupervisorGPA, cfg.TableOffset)}
}

// Root is the guest-physical address of the top-level page table.
func (s *Space) Root() uint64 { return s.cfg.SupervisorGPA + s.tab.root }

// MapSupervisor maps [va, va+n) to gpa with raw protections; user says whether CPL 3 may use it.
func (s *Space) MapSupervisor(va, gpa, n uint64, prot int, user bool) error {
	bits := leaf(prot)
	if !user {
		bits &^= firmware.PTEUser
	}
	return s.tab.setRange(va, va+n, gpa-va, bits)
}

func leaf(prot int) uint64 {
	if prot&(Read|Write|Exec) == 0 {
		return 0
	}
	e := uint64(firmware.PTEPresent | firmware.PTEUser)
	if prot&Write != 0 {
		e |= firmware.PTEWrite
	}
	if prot&Exec == 0 {
		e |= firmware.PTENX
	}
	return e
}

// SetText declares the program's executable ranges, before anything is mapped: they get read-only slots.
func (s *Space) SetText(start, end uint64) {
	s.text = append(s.text, region{start: down(start), end: up(end)})
}

// SetBreak sets where the heap of brk(2) begins.
func (s *Space) SetBreak(a uint64) { s.brkStart, s.brk = up(a), up(a) }

func down(a uint64) uint64 { return a &^ (abi.Page - 1) }
func up(a uint64) uint64   { return (a + abi.Page - 1) &^ (abi.Page - 1) }

// cover makes sure that memory slots cover [start,end).
func (s *Space) cover(start, end uint64) error {
	for i := start / chunk; i*chunk < end; i++ {
		if s.slots[i] {
			continue
		}
		j := i
		for ; j*chunk < end && !s.slots[j]; j++ {
			s.slots[j] = true
		}
		if err := s.addSlots(i*chunk, j*chunk); err != nil {
			return err
		}
		i = j - 1
	}
	return nil
}

// addSlots adds [start,end) with the text ranges inside as read-only slots of their own.
func (s *Space) addSlots(start, end uint64) error {
	at := start
	for _, t := range s.text {
		a, b := max(t.start, at), min(t.end, end)
		if a >= b {
			continue
		}
		if at < a {
			if err := s.cfg.AddSlot(at, a, false); err != nil {
				return err
			}
		}
		if err := s.cfg.AddSlot(a, b, true); err != nil {
			return err
		}
		at = b
	}
	if at < end {
		return s.cfg.AddSlot(at, end, false)
	}
	return nil
}

// charge is how much of the limit a region uses.
func (r *region) charge() uint64 {
	if r.prot == 0 || r.file() || r.foreign() {
		return 0
	}
	return r.end - r.start
}

// file: the region is a host file's own pages.
func (r *region) file() bool { return r.fd != -1 }

// find returns the index of the first region that ends behind a.
func (s *Space) find(a uint64) int {
	i, _ := slices.BinarySearchFunc(s.regions, a, func(r region, a uint64) int {
		if r.end <= a {
			return -1
		}
		return 1
	})
	return i
}

// split makes a a border between regions.
func (s *Space) split(a uint64) {
	i := s.find(a)
	if i == len(s.regions) || s.regions[i].start >= a {
		return
	}
	l := s.regions[i]
	r := l
	l.end, r.start = a, a
	if r.file() {
		r.off += int64(a - l.start)
	}
	if r.fd >= 0 {
		fd, err := unix.FcntlInt(uintptr(r.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			fd = -2 // the mapping lives on; only a later move of this half is refused
		}
		r.fd = fd
	}
	s.regions[i] = l
	s.regions = slices.Insert(s.regions, i+1, r)
}

// within gives the indices of the regions inside [start,end) after splitting at both ends.
func (s *Space) within(start, end uint64) (int, int) {
	s.split(start)
	s.split(end)
	i := s.find(start)
	j := i
	for j < len(s.regions) && s.regions[j].start < end {
		j++
	}
	return i, j
}

// insert adds a region into a free range.
func (s *Space) insert(r region) {
	s.committed += r.charge()
	s.peak = max(s.peak, s.committed)
	i := s.find(r.start)
	s.regions = slices.Insert(s.regions, i, r)
	s.merge(i)
	if i > 0 {
		s.merge(i - 1)
	}
}

// merge joins regions i and i+1 where nothing tells them apart.
func (s *Space) merge(i int) {
	if i+1 >= len(s.regions) {
		return
	}
	a, b := s.regions[i], s.regions[i+1]
	if a.end == b.start && a.prot == b.prot && a.fd == -1 && b.fd == -1 && a.shared == b.shared && a.name == b.name && a.text == b.text {
		s.regions[i].end = b.end
		s.regions = slices.Delete(s.regions, i+1, i+2)
	}
}

// free reports whether [start,end) is unmapped.
func (s *Space) free(start, end uint64) bool {
	i := s.find(start)
	return i == len(s.regions) || s.regions[i].start >= end
}

// place finds n free bytes, the highest below abi.MmapTop, as Linux does; 0 when there are none.
func (s *Space) place(n uint64) uint64 {
	top := uint64(abi.MmapTop)
	for i := s.find(top - 1); ; i-- {
		if i < len(s.regions) && s.regions[i].start < top {
			top = s.regions[i].start
		}
		lo := s.heapEnd()
		if i > 0 {
			lo = max(lo, s.regions[i-1].end)
		}
		if top >= n && top-n >= lo {
			return top - n
		}
		if i <= 0 || top <= lo && lo == s.heapEnd() {
			return 0
		}
	}
}

// heapRoom is kept free above the heap for brk, bytes.
const heapRoom = 64 << 20

func (s *Space) heapEnd() uint64 { return s.brk + heapRoom }

// allowed reports whether the guest may map [start,end) at all.
func allowed(start, end uint64) bool {
	return start >= abi.LowestUser && start < end && end <= abi.MmapTop
}

// In returns the n bytes at a for reading.
func (s *Space) In(a, n uint64) ([]byte, unix.Errno) { return s.slice(a, n, Read|Write|Exec) }

// Out returns the n bytes at a for writing.
func (s *Space) Out(a, n uint64) ([]byte, unix.Errno) { return s.slice(a, n, Write) }

func (s *Space) slice(a, n uint64, any int) ([]byte, unix.Errno) {
	if n == 0 {
		return nil, 0
	}
	if p := s.prefix(a, n, any); uint64(len(p)) == n {
		return p, 0
	}
	return nil, unix.EFAULT
}

// Prefix returns the longest accessible part of [a, a+n) that begins at a.
func (s *Space) Prefix(a, n uint64, write bool) []byte {
	if write {
		return s.prefix(a, n, Write)
	}
	return s.prefix(a, n, Read|Write|Exec)
}

func (s *Space) prefix(a, n uint64, any int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.prefixHeld(a, n, any)
}

// OutNow is Out for who cannot wait; busy: the mappings are being changed, for as long as the host takes for that.
func (s *Space) OutNow(a, n uint64) (p []byte, busy bool) {
	if !s.mu.TryLock() {
		return nil, true
	}
	defer s.mu.Unlock()
	if p = s.prefixHeld(a, n, Write); uint64(len(p)) != n {
		return nil, false
	}
	return p, false
}

// prefixHeld is prefix with mu held.
func (s *Space) prefixHeld(a, n uint64, any int) []byte {
	if a >= abi.UserTop || n == 0 {
		return nil
	}
	n = min(n, abi.UserTop-a)
	end := a
	for i := s.find(a); i < len(s.regions) && end < a+n; i++ {
		r := &s.regions[i]
		if r.start > end || r.prot&any == 0 {
			break
		}
		end = r.end
	}
	return s.cfg.Window[a:min(end, a+n):min(end, a+n)]
}

// Mapped reports whether something is mapped, accessible or not, in all of [a, a+n); n is not 0.
func (s *Space) Mapped(a, n uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	end := a + n
	for i := s.find(a); a < end; i++ {
		if i == len(s.regions) || s.regions[i].start > a {
			return false
		}
		a = s.regions[i].end
	}
	return true
}

// Object is the file that is mapped at a, shared, by its device and inode, and where in it a lies, bytes; false where the
// memory is the guest's own.
func (s *Space) Object(a uint64) (file [2]uint64, off uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.find(a)
	if i == len(s.regions) || s.regions[i].start > a || !s.regions[i].file() {
		return file, 0, false
	}
	r := &s.regions[i]
	return r.object, uint64(r.off) + a - r.start, true
}

// Usage is what is committed now, and the limit, bytes.
func (s *Space) Usage() (rss, total uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.committed, s.cfg.Limit
}

// Maps is the text of /proc/self/maps.
func (s *Space) Maps() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, r := range s.regions {
		p := []byte("---p")
		for i, bit := range []int{Read, Write, Exec} {
			if r.prot&bit != 0 {
				p[i] = "rwx"[i]
			}
		}
		if r.shared {
			p[3] = 's'
		}
		line := fmt.Sprintf("%08x-%08x %s %08x 00:00 0", r.start, r.end, p, r.off)
		if r.name != "" {
			line = fmt.Sprintf("%-73s%s", line, r.name)
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

// Ranges calls f for every region that the guest can touch without a harm, in order; write says whether it may write.
// Of shared files these are the memory files that cannot shrink: a touch behind another file's end is a fault, and one
// in a hole of it fills the disk.
func (s *Space) Ranges(f func(start, end uint64, write bool)) {
	s.mu.Lock()
	regions := slices.Clone(s.regions)
	for i := range regions {
		r := &regions[i]
		if r.file() {
			r.end = r.start + min(r.end-r.start, lasting(r.fd, r.off))
		}
	}
	s.mu.Unlock()
	for _, r := range regions {
		if r.prot != 0 && r.start < r.end && !r.foreign() {
			f(r.start, r.end, r.prot&Write != 0)
		}
	}
}
