package mem

import (
	"unsafe"

	"github.com/cloister-vmm/cloister/guest/abi"
	"golang.org/x/sys/unix"
)

// madvDontneedLocked is MADV_DONTNEED_LOCKED (Linux 5.18): MADV_DONTNEED that locked memory accepts.
const madvDontneedLocked = 24

// punch frees the file's pages in [start,end): all mappings of them go, which tells KVM (MMU notifier) to
// drop its translations, and the range reads as zero again. On huge pages the kernel frees whole ones
// only; the rest is zeroed by hand and flushed.
func (s *Space) punch(start, end uint64) unix.Errno {
	const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	if s.cfg.Huge {
		a, b := (start+abi.Huge-1)&^(abi.Huge-1), end&^(abi.Huge-1)
		if a >= b {
			clear(s.cfg.Window[start:end])
			return s.flush(start, end)
		}
		clear(s.cfg.Window[start:a])
		clear(s.cfg.Window[b:end])
		if e := s.flush(start, end); e != 0 {
			return e
		}
		start, end = a, b
	}
	return s.fallocate(mode, start, end)
}

// fallocate is fallocate(2) on the memory file, until it is done: a signal that is pending breaks an allocation off between two
// pages (EINTR), and the Go runtime and the kicks of vCPUs send many. What it has allocated it finds again.
func (s *Space) fallocate(mode uint32, start, end uint64) unix.Errno {
	for {
		if err := unix.Fallocate(s.cfg.Memory, mode, int64(start), int64(end-start)); err != unix.EINTR {
			return errno(err)
		}
	}
}

// reserve takes the huge pages of a region from the host's pool now: a fault that finds the pool empty would
// be a SIGBUS. Small pages need no reservation; the limit bounds them.
func (s *Space) reserve(r *region) unix.Errno {
	if !s.cfg.Huge || r.prot == 0 || r.fd >= 0 || r.foreign() {
		return 0
	}
	start, end := r.start&^(abi.Huge-1), (r.end+abi.Huge-1)&^(abi.Huge-1)
	return s.fallocate(unix.FALLOC_FL_KEEP_SIZE, start, end)
}

// flush makes a lowered permission effective without touching the contents: it drops the host's own
// mapping of the pages. They belong to a shared file, so nothing is lost; KVM's MMU notifier drops what
// it derived from that mapping. No instruction in the guest could do it under shadow paging.
func (s *Space) flush(start, end uint64) unix.Errno {
	if s.cfg.Huge {
		start, end = start&^(abi.Huge-1), (end+abi.Huge-1)&^(abi.Huge-1)
	}
	advice := unix.MADV_DONTNEED
	if s.cfg.Locked {
		advice = madvDontneedLocked
	}
	err := unix.Madvise(s.cfg.Window[start:end], advice)
	if err == unix.EINVAL {
		// Before 5.18: a protection change and its reversal notify as well.
		if err = unix.Mprotect(s.cfg.Window[start:end], unix.PROT_NONE); err == nil {
			err = unix.Mprotect(s.cfg.Window[start:end], unix.PROT_READ|unix.PROT_WRITE)
		}
	}
	return errno(err)
}

// hostMap puts a file (or, with prot 0, the guest memory file itself) behind part of the window.
func (s *Space) hostMap(start, end uint64, prot, fd int, off int64) unix.Errno {
	hp := unix.PROT_READ
	if fd == s.cfg.Memory || prot&Write != 0 {
		hp |= unix.PROT_WRITE
	}
	p := unsafe.Pointer(&s.cfg.Window[start])
	_, err := unix.MmapPtr(fd, off, p, uintptr(end-start), hp, unix.MAP_SHARED|unix.MAP_FIXED|unix.MAP_NORESERVE)
	return errno(err)
}

func errno(err error) unix.Errno {
	if err == nil {
		return 0
	}
	if e, ok := err.(unix.Errno); ok {
		return e
	}
	return unix.EIO
}

// Sync is msync(2).
func (s *Space) Sync(addr, length uint64, flags int) unix.Errno {
	if addr%abi.Page != 0 || addr+length < addr || addr+length > abi.UserTop {
		return unix.EINVAL
	}
	if length == 0 {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	end := addr + up(length)
	at := addr
	for i := s.find(addr); at < end; i++ {
		if i == len(s.regions) || s.regions[i].start > at {
			return unix.ENOMEM
		}
		r := s.regions[i]
		if r.fd >= 0 {
			a, b := max(r.start, addr), min(r.end, end)
			if err := unix.Msync(s.cfg.Window[a:b], flags); err != nil {
				return errno(err)
			}
		}
		at = r.end
	}
	return 0
}

// Populate gives every page that the guest can touch its host memory, so that no first touch waits for
// the host. It needs Linux 5.14 (MADV_POPULATE_WRITE).
func (s *Space) Populate() error {
	var err error
	s.Ranges(func(start, end uint64, write bool) {
		if err != nil {
			return
		}
		err = unix.Madvise(s.cfg.Window[start:end], unix.MADV_POPULATE_READ)
		if write && err == nil {
			err = unix.Madvise(s.cfg.Window[start:end], unix.MADV_POPULATE_WRITE)
		}
	})
	return err
}
