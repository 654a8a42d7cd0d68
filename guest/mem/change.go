package mem

import (
	"github.com/cloister-vmm/cloister/guest/abi"
	"golang.org/x/sys/unix"
)

// MapFixed maps a range for the loader: image segments, stack, vDSO. name shows in Maps.
func (s *Space) MapFixed(start, end uint64, prot int, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	start, end = down(start), up(end)
	if e := s.remove(start, end); e != 0 {
		return e
	}
	r := region{start: start, end: end, prot: prot, fd: -1, name: name}
	for _, t := range s.text {
		if start < t.end && t.start < end {
			r.text = true
		}
	}
	return s.add(r)
}

// MapForeign maps pages for which the caller has added a slot itself (the host's vDSO).
func (s *Space) MapForeign(start, end uint64, prot int, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.tab.setRange(start, end, 0, leaf(prot)); err != nil {
		return err
	}
	s.insert(region{start: start, end: end, prot: prot, shared: true, fd: -1, name: name})
	return nil
}

// add covers, maps and records a region in a free range.
func (s *Space) add(r region) error {
	if e := s.reserve(&r); e != 0 {
		return e
	}
	if err := s.cover(r.start, r.end); err != nil {
		return err
	}
	if err := s.tab.setRange(r.start, r.end, 0, leaf(r.prot)); err != nil {
		return err
	}
	s.insert(r)
	return nil
}

// Map is mmap(2). Of the flags it knows FIXED, FIXED_NOREPLACE, SHARED, PRIVATE and ANONYMOUS; hints are
// taken where the range is free; the rest changes nothing here.
func (s *Space) Map(addr, length uint64, prot, flags, hostFD int, off int64) (uint64, unix.Errno) {
	anon := flags&unix.MAP_ANONYMOUS != 0
	kind := flags & unix.MAP_TYPE
	switch {
	case length == 0 || kind != unix.MAP_SHARED && kind != unix.MAP_PRIVATE && kind != unix.MAP_SHARED_VALIDATE,
		!anon && (off < 0 || off%abi.Page != 0):
		return 0, unix.EINVAL
	case anon && kind == unix.MAP_SHARED_VALIDATE:
		return 0, unix.EINVAL
	case kind == unix.MAP_SHARED_VALIDATE && flags&unix.MAP_SYNC != 0:
		return 0, unix.EOPNOTSUPP // a store would not reach the medium by itself, and who asked would not call msync
	case length > abi.UserTop:
		return 0, unix.ENOMEM
	}
	prot &= Read | Write | Exec
	if prot&Write != 0 && prot&Exec != 0 {
		return 0, unix.EACCES // W^X (invariant 1)
	}
	if !anon {
		if e := mappable(hostFD, kind != unix.MAP_PRIVATE && prot&Write != 0); e != 0 {
			return 0, e // before anything is taken away
		}
	}
	length = up(length)
	s.mu.Lock()
	defer s.mu.Unlock()
	start := addr
	switch {
	case flags&(unix.MAP_FIXED|unix.MAP_FIXED_NOREPLACE) != 0:
		if addr%abi.Page != 0 {
			return 0, unix.EINVAL
		}
		if addr < abi.LowestUser {
			return 0, unix.EPERM // as vm.mmap_min_addr
		}
		if addr+length < addr || !allowed(addr, addr+length) {
			return 0, unix.ENOMEM
		}
		if flags&unix.MAP_FIXED_NOREPLACE == unix.MAP_FIXED_NOREPLACE && !s.free(addr, addr+length) {
			return 0, unix.EEXIST
		}
	default:
		start = up(addr)
		if start+length < start || !allowed(start, start+length) || !s.free(start, start+length) {
			if start = s.place(length); start == 0 {
				return 0, unix.ENOMEM
			}
		}
	}
	r := region{start: start, end: start + length, prot: prot, shared: kind != unix.MAP_PRIVATE, fd: -1}
	if !anon && r.shared {
		fd, err := unix.FcntlInt(uintptr(hostFD), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return 0, unix.EBADF
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
			return 0, unix.EBADF
		}
		r.fd, r.off, r.object = fd, off, [2]uint64{st.Dev, st.Ino}
	}
	if s.committed+r.charge() > s.cfg.Limit+s.chargeWithin(start, start+length) {
		s.drop(&r)
		return 0, unix.ENOMEM
	}
	if e := s.remove(start, start+length); e != 0 {
		s.drop(&r)
		return 0, e
	}
	if !anon {
		if e := s.reserve(&r); e != 0 {
			s.drop(&r)
			return 0, unix.ENOMEM
		}
		if e := s.fill(&r, hostFD, off); e != 0 {
			s.drop(&r)
			return 0, e
		}
	}
	if err := s.add(r); err != nil {
		s.drop(&r)
		return 0, unix.ENOMEM
	}
	return start, 0
}

// mappable says whether mmap(2) would take the descriptor.
func mappable(fd int, write bool) unix.Errno {
	mode, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return unix.EBADF
	}
	if acc := mode & unix.O_ACCMODE; acc == unix.O_WRONLY || write && acc != unix.O_RDWR || mode&unix.O_PATH != 0 {
		return unix.EACCES
	}
	return 0
}

func (s *Space) chargeWithin(start, end uint64) (n uint64) {
	for i := s.find(start); i < len(s.regions) && s.regions[i].start < end; i++ {
		r := s.regions[i]
		r.start, r.end = max(r.start, start), min(r.end, end)
		n += r.charge()
	}
	return n
}

func (s *Space) drop(r *region) {
	if r.fd >= 0 {
		unix.Close(r.fd)
	}
}

// fill puts a file behind a region: the host's own shared mapping, or for a private one a copy.
func (s *Space) fill(r *region, hostFD int, off int64) unix.Errno {
	if r.fd >= 0 {
		if s.cfg.Huge {
			return unix.ENODEV // the window's huge pages cannot give way to a file's small ones
		}
		return s.hostMap(r.start, r.end, r.prot, r.fd, off)
	}
	dst := s.cfg.Window[r.start:r.end]
	for len(dst) > 0 {
		n, err := unix.Pread(hostFD, dst[:min(len(dst), 1<<30)], off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			if err == unix.EBADF || err == unix.ESPIPE || err == unix.EISDIR {
				err = unix.ENODEV
			}
			return err.(unix.Errno)
		}
		if n == 0 {
			break // beyond the end of the file reads as zero, to the end of the last page and further
		}
		dst, off = dst[n:], off+int64(n)
	}
	return 0
}

// Unmap is munmap(2).
func (s *Space) Unmap(addr, length uint64) unix.Errno {
	if addr%abi.Page != 0 || length == 0 || addr+length < addr || addr+length > abi.UserTop {
		return unix.EINVAL
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.remove(addr, addr+up(length))
}

// remove unmaps what there is in [start,end): entries first, then the memory, whose release is the flush.
func (s *Space) remove(start, end uint64) unix.Errno {
	for k := s.find(start); k < len(s.regions) && s.regions[k].start < end; k++ {
		if s.regions[k].text || s.regions[k].foreign() {
			return unix.EACCES // the program's own text and the host's clock stay (CAVEATS.md)
		}
	}
	i, j := s.within(start, end)
	for k := i; k < j; k++ {
		r := &s.regions[k]
		if err := s.tab.setRange(r.start, r.end, 0, 0); err != nil {
			return unix.ENOMEM
		}
		s.committed -= r.charge()
		if e := s.release(r); e != 0 {
			return e
		}
	}
	s.regions = append(s.regions[:i], s.regions[j:]...)
	return 0
}

// release gives the memory of a region back; what is mapped there next reads as zero.
func (s *Space) release(r *region) unix.Errno {
	if r.file() {
		s.drop(r)
		return s.hostMap(r.start, r.end, 0, s.cfg.Memory, int64(r.start))
	}
	return s.punch(r.start, r.end)
}

// Protect is mprotect(2).
func (s *Space) Protect(addr, length uint64, prot int) unix.Errno {
	if addr%abi.Page != 0 || prot&^(Read|Write|Exec) != 0 {
		return unix.EINVAL
	}
	if length == 0 {
		return 0
	}
	end := addr + up(length)
	if end < addr || end > abi.UserTop {
		return unix.ENOMEM
	}
	if prot&Write != 0 && prot&Exec != 0 {
		return unix.EACCES // W^X (invariant 1)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// All of it must be mapped, and nothing may change when it is not.
	at, grow := addr, uint64(0)
	for i := s.find(addr); at < end; i++ {
		if i == len(s.regions) || s.regions[i].start > at {
			return unix.ENOMEM
		}
		r := s.regions[i]
		if r.text && prot&Write != 0 || r.foreign() {
			return unix.EACCES
		}
		if r.file() && prot&Write != 0 && r.prot&Write == 0 {
			if fl, err := unix.FcntlInt(uintptr(r.fd), unix.F_GETFL, 0); err != nil || fl&unix.O_ACCMODE != unix.O_RDWR {
				return unix.EACCES
			}
		}
		r.start, r.end = max(r.start, at), min(r.end, end)
		before := r.charge()
		r.prot = prot
		grow += r.charge() - before
		at = r.end
	}
	if int64(grow) > 0 && s.committed+grow > s.cfg.Limit {
		return unix.ENOMEM
	}
	i, j := s.within(addr, end)
	for k := i; k < j; k++ {
		r := &s.regions[k]
		old := r.prot
		if old == prot {
			continue
		}
		before := r.charge()
		r.prot = prot
		if e := s.reserve(r); e != 0 {
			r.prot = old
			return unix.ENOMEM
		}
		s.committed += r.charge() - before
		s.peak = max(s.peak, s.committed)
		if r.fd >= 0 {
			if e := s.hostMap(r.start, r.end, prot, r.fd, r.off); e != 0 {
				return e
			}
		}
		if err := s.tab.setRange(r.start, r.end, 0, leaf(prot)); err != nil {
			return unix.ENOMEM
		}
		// Raised permissions need no flush anywhere (a stale entry faults, and the walk finds the new
		// one); lowered ones do.
		if leaf(old) != 0 && (old&^prot&Write != 0 || prot == 0 || old&Exec != 0 && prot&Exec == 0) {
			if e := s.flush(r.start, r.end); e != 0 {
				return e
			}
		}
	}
	for k := j; k >= i && k > 0; k-- {
		s.merge(k - 1)
	}
	return 0
}

// Remap is mremap(2): it grows in place where it can, moves where it may.
func (s *Space) Remap(old, oldLen, newLen uint64, flags int, newAddr uint64) (uint64, unix.Errno) {
	const mayMove, fixed = unix.MREMAP_MAYMOVE, unix.MREMAP_FIXED
	if old%abi.Page != 0 || newLen == 0 || flags&^(mayMove|fixed) != 0 || flags&fixed != 0 && (flags&mayMove == 0 || newAddr%abi.Page != 0) || oldLen == 0 {
		return 0, unix.EINVAL
	}
	if newLen > abi.UserTop || oldLen > abi.UserTop || old > abi.UserTop {
		return 0, unix.ENOMEM
	}
	oldLen, newLen = up(oldLen), up(newLen)
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.find(old)
	if i == len(s.regions) || s.regions[i].start > old {
		return 0, unix.EFAULT
	}
	r := s.regions[i]
	if r.text || r.fd == -2 || r.foreign() {
		return 0, unix.EINVAL
	}
	if flags&fixed == 0 && newLen <= oldLen { // whatever lies in what is given up
		if newLen < oldLen {
			return old, s.remove(old+newLen, old+oldLen)
		}
		return old, 0
	}
	if r.end < old+oldLen {
		return 0, unix.EFAULT
	}
	r.start, r.end = old, old+oldLen
	grown := r
	grown.end = old + newLen
	if grown.charge() > r.charge() && s.committed+grown.charge()-r.charge() > s.cfg.Limit {
		return 0, unix.ENOMEM
	}
	if flags&fixed == 0 && s.regions[i].end == old+oldLen && old+newLen <= abi.MmapTop && s.free(old+oldLen, old+newLen) && r.fd < 0 {
		tail := r
		tail.start, tail.end = old+oldLen, old+newLen
		if err := s.add(tail); err != nil {
			return 0, unix.ENOMEM
		}
		return old, 0
	}
	if flags&mayMove == 0 {
		return 0, unix.ENOMEM
	}
	return s.move(r, newLen, flags&fixed != 0, newAddr)
}

// move copies a region to a new place. (Linux moves page tables; here an address is its memory.)
func (s *Space) move(r region, newLen uint64, fixed bool, to uint64) (uint64, unix.Errno) {
	if fixed {
		if to+newLen < to || !allowed(to, to+newLen) || to < r.end && r.start < to+newLen {
			return 0, unix.EINVAL
		}
		if e := s.remove(to, to+newLen); e != 0 {
			return 0, e
		}
	} else if to = s.place(newLen); to == 0 {
		return 0, unix.ENOMEM
	}
	n := r
	n.start, n.end = to, to+newLen
	if r.fd >= 0 {
		fd, err := unix.FcntlInt(uintptr(r.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return 0, unix.ENOMEM
		}
		n.fd = fd
		n.off = r.off
		if e := s.hostMap(n.start, n.end, n.prot, n.fd, n.off); e != 0 {
			s.drop(&n)
			return 0, e
		}
	} else {
		copy(s.cfg.Window[n.start:n.end], s.cfg.Window[r.start:min(r.end, r.start+newLen)])
	}
	if err := s.add(n); err != nil {
		s.drop(&n)
		return 0, unix.ENOMEM
	}
	return to, s.remove(r.start, r.end)
}

// Brk is brk(2): it returns the new end of the heap, or the old one when that is not to be had.
func (s *Space) Brk(a uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	from, to := up(s.brk), up(a)
	switch {
	case a < s.brkStart || a >= abi.MmapTop:
	case to > from:
		if s.committed+to-from > s.cfg.Limit || !s.free(from, to) {
			break
		}
		if s.add(region{start: from, end: to, prot: Read | Write, fd: -1, name: "[heap]"}) == nil {
			s.brk = a
		}
	default:
		if to == from || s.remove(to, from) == 0 {
			s.brk = a
		}
	}
	return s.brk
}

// Advise is madvise(2). DONTNEED drops private memory; what only concerns performance changes nothing.
func (s *Space) Advise(addr, length uint64, advice int) unix.Errno {
	end := addr + up(length)
	if addr%abi.Page != 0 || end < addr {
		return unix.EINVAL
	}
	switch advice {
	case unix.MADV_DONTNEED, unix.MADV_REMOVE:
	case unix.MADV_NORMAL, unix.MADV_RANDOM, unix.MADV_SEQUENTIAL, unix.MADV_WILLNEED, unix.MADV_FREE,
		unix.MADV_DONTFORK, unix.MADV_DOFORK, unix.MADV_WIPEONFORK, unix.MADV_KEEPONFORK, unix.MADV_HUGEPAGE, unix.MADV_NOHUGEPAGE, unix.MADV_DONTDUMP,
		unix.MADV_DODUMP, unix.MADV_COLD, unix.MADV_PAGEOUT, unix.MADV_POPULATE_READ, unix.MADV_POPULATE_WRITE, unix.MADV_COLLAPSE:
	default:
		return unix.EINVAL
	}
	if end > abi.UserTop {
		return unix.ENOMEM
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at := addr
	hole := false
	for i := s.find(addr); at < end; i++ {
		if i == len(s.regions) || s.regions[i].start >= end {
			hole = true
			break
		}
		r := s.regions[i]
		hole = hole || r.start > at
		a, b := max(r.start, addr), min(r.end, end)
		if e := s.advise(&r, a, b, advice); e != 0 {
			return e
		}
		at = b
	}
	if hole {
		return unix.ENOMEM
	}
	return 0
}

// advise is madvise of [a,b), which lies in r.
func (s *Space) advise(r *region, a, b uint64, advice int) unix.Errno {
	own := r.fd == -1 && !r.text && !r.foreign()
	switch advice {
	case unix.MADV_DONTNEED:
		if own && !r.shared {
			return s.punch(a, b)
		}
	case unix.MADV_REMOVE: // what is shared, out of the file that it is of (mm/madvise.c: madvise_remove)
		switch {
		case !r.shared || r.foreign():
			return unix.EINVAL
		case r.prot&Write == 0:
			return unix.EACCES
		case own:
			return s.punch(a, b)
		}
		return errno(unix.Madvise(s.cfg.Window[a:b], unix.MADV_REMOVE))
	case unix.MADV_WIPEONFORK: // mm/madvise.c: private anonymous memory only; nothing forks here
		if r.shared || r.fd != -1 || r.foreign() {
			return unix.EINVAL
		}
	case unix.MADV_FREE:
		if r.shared || r.foreign() {
			return unix.EINVAL
		}
	case unix.MADV_POPULATE_READ, unix.MADV_POPULATE_WRITE:
		if advice == unix.MADV_POPULATE_READ && r.prot&Read == 0 || advice == unix.MADV_POPULATE_WRITE && r.prot&Write == 0 {
			return unix.EINVAL
		}
		if r.file() { // beyond its end there is nothing to populate: EFAULT. The last page tells; all of them would take as long as reading the file, with the locks
			if err := unix.Madvise(s.cfg.Window[b-abi.Page:b], advice); err != unix.EINVAL { // Linux before 5.14 does not know it
				return errno(err)
			}
		}
	}
	return 0
}

// lasting is how many bytes of whole pages from off on a shared file will always have: 0 unless it is a memory file that is
// sealed against shrinking (fcntl(2), F_SEAL_SHRINK).
func lasting(fd int, off int64) uint64 {
	if fd < 0 {
		return 0
	}
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	var st unix.Stat_t
	if err != nil || seals&unix.F_SEAL_SHRINK == 0 || unix.Fstat(fd, &st) != nil || st.Size <= off {
		return 0
	}
	return up(uint64(st.Size - off))
}

// foreign: the host's own pages, which are not ours to change.
func (r *region) foreign() bool { return r.name == "[vvar]" || r.name == "[vdso]" }
