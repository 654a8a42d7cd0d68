package linux

import (
	"golang.org/x/sys/unix"
)

const pageMask = 4095

func sysMmap(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	addr, length, prot, flags, off := a[0], a[1], int(uint32(a[2])), int(uint32(a[3])), a[5]
	if off&pageMask != 0 {
		return 0, unix.EINVAL
	}
	fd := -1
	if flags&unix.MAP_ANONYMOUS == 0 {
		d, errno := k.fds.io(a[4])
		if errno != 0 {
			return 0, errno
		}
		if d.fd < 0 {
			return 0, unix.ENODEV
		}
		fd = d.fd
	}
	if length == 0 {
		return 0, unix.EINVAL
	}
	if length > taskSize {
		return 0, unix.ENOMEM
	}
	if fd < 0 {
		off = 0 // means nothing
		if kind := flags & unix.MAP_TYPE; kind != unix.MAP_PRIVATE && kind != unix.MAP_SHARED {
			return 0, unix.EINVAL
		}
	} else if int64(off) < 0 || off+length < off || int64(off+length) < 0 {
		return 0, unix.EOVERFLOW
	}
	return k.mem.Map(addr, length, prot, flags, fd, int64(off))
}

func sysMunmap(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if a[0]&pageMask != 0 || a[1] == 0 || !accessOK(a[0], a[1]) {
		return 0, unix.EINVAL
	}
	return 0, k.mem.Unmap(a[0], a[1])
}

func sysMprotect(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	const growsDown, growsUp, semaphores = 0x01000000, 0x02000000, 8 // PROT_GROWSDOWN, PROT_GROWSUP, PROT_SEM
	const access = unix.PROT_READ | unix.PROT_WRITE | unix.PROT_EXEC
	prot := int(uint32(a[2]))
	if a[0]&pageMask != 0 || prot&(growsDown|growsUp) == growsDown|growsUp {
		return 0, unix.EINVAL
	}
	if a[1] == 0 {
		return 0, 0
	}
	end := a[0] + pageUp(a[1])
	switch {
	case end <= a[0]:
		return 0, unix.ENOMEM
	case prot&^(access|growsDown|growsUp|semaphores) != 0:
		return 0, unix.EINVAL
	case !accessOK(a[0], a[1]) || !k.mem.Mapped(a[0], 1):
		return 0, unix.ENOMEM
	case prot&(growsDown|growsUp) != 0:
		return 0, unix.EINVAL // nothing grows here
	}
	return 0, k.mem.Protect(a[0], a[1], prot&access)
}

func sysPkeyMprotect(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	if int32(a[3]) != -1 {
		return 0, unix.EINVAL // no protection keys here
	}
	return sysMprotect(k, t, a)
}

func sysMremap(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	old, oldLen, newLen, flags, to := a[0], a[1], a[2], int(a[3]), a[4]
	const dontUnmap = 4 // MREMAP_DONTUNMAP
	if a[3]&^(unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED|dontUnmap) != 0 ||
		flags&unix.MREMAP_FIXED != 0 && flags&unix.MREMAP_MAYMOVE == 0 ||
		flags&dontUnmap != 0 && (flags&unix.MREMAP_MAYMOVE == 0 || oldLen != newLen) ||
		old&pageMask != 0 || newLen == 0 || newLen > taskSize {
		return 0, unix.EINVAL
	}
	if flags&unix.MREMAP_FIXED != 0 && (to&pageMask != 0 || !accessOK(to, newLen)) {
		return 0, unix.EINVAL
	}
	if !accessOK(old, oldLen) {
		return 0, unix.EFAULT
	}
	return k.mem.Remap(old, oldLen, newLen, flags, to)
}

func sysBrk(k *Kernel, _ *Task, a args) (uint64, unix.Errno) { return k.mem.Brk(a[0]), 0 }

func sysMadvise(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	length := pageUp(a[1])
	if a[0]&pageMask != 0 || a[1] != 0 && length == 0 || a[0]+length < a[0] {
		return 0, unix.EINVAL
	}
	if !accessOK(a[0], a[1]) {
		return 0, unix.ENOMEM
	}
	return 0, k.mem.Advise(a[0], a[1], int(int32(a[2])))
}

func sysMsync(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	flags := int(uint32(a[2]))
	if flags&^(unix.MS_ASYNC|unix.MS_INVALIDATE|unix.MS_SYNC) != 0 || a[0]&pageMask != 0 ||
		flags&(unix.MS_ASYNC|unix.MS_SYNC) == unix.MS_ASYNC|unix.MS_SYNC {
		return 0, unix.EINVAL
	}
	if pageUp(a[1]) == 0 {
		return 0, 0 // also of a length that is rounded up to none
	}
	if !accessOK(a[0], a[1]) {
		return 0, unix.ENOMEM
	}
	return 0, k.mem.Sync(a[0], a[1], flags)
}

// pageUp rounds up to whole pages, and round to 0 at the end.
func pageUp(n uint64) uint64 { return (n + pageMask) &^ pageMask }

// lockable is the range of mlock and munlock: an empty one is done, one that wraps round is refused.
func (k *Kernel) lockable(addr, length uint64) (from, n uint64, done bool, errno unix.Errno) {
	from = addr &^ pageMask
	n = pageUp(length + addr&pageMask)
	switch {
	case from+n < from:
		return 0, 0, true, unix.EINVAL
	case n == 0:
		return 0, 0, true, 0
	case !accessOK(from, n) || !k.mem.Mapped(from, n):
		return 0, 0, true, unix.ENOMEM
	}
	return from, n, false, 0
}

// sysMlock succeeds for memory that is there: guest memory is locked when the run asks for it, and is
// never swapped page by page at the guest's wish.
func sysMlock(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	from, n, done, errno := k.lockable(a[0], a[1])
	if !done && uint64(len(k.mem.Prefix(from, n, false))) < n {
		return 0, unix.ENOMEM // what cannot be touched cannot be made resident
	}
	if !done && k.mem.Advise(from, n, unix.MADV_POPULATE_READ) == unix.EFAULT {
		return 0, unix.ENOMEM // beyond the end of a file (mm/gup.c: __mm_populate; mm/mlock.c: __mlock_posix_error_return)
	}
	return 0, errno
}

func sysMunlock(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	_, _, _, errno := k.lockable(a[0], a[1])
	return 0, errno
}

func sysMlock2(k *Kernel, t *Task, a args) (uint64, unix.Errno) {
	const onFault = 1 // MLOCK_ONFAULT
	if a[2]&^onFault != 0 {
		return 0, unix.EINVAL
	}
	if a[2] == onFault {
		return sysMunlock(k, t, a) // nothing is touched now
	}
	return sysMlock(k, t, a)
}

func sysMlockall(_ *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	const onFault = 4 // MCL_ONFAULT
	flags := int(uint32(a[0]))
	if flags == 0 || flags&^(unix.MCL_CURRENT|unix.MCL_FUTURE|onFault) != 0 || flags == onFault {
		return 0, unix.EINVAL
	}
	return 0, 0
}

// sysMincore says that every mapped page is resident: guest memory is not paged out.
func sysMincore(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	if a[0]&pageMask != 0 {
		return 0, unix.EINVAL
	}
	if !accessOK(a[0], a[1]) {
		return 0, unix.ENOMEM
	}
	pages := (a[1] + pageMask) / 4096
	if !accessOK(a[2], pages) {
		return 0, unix.EFAULT
	}
	var ones [4096]byte
	for i := range ones {
		ones[i] = 1
	}
	for done := uint64(0); done < pages; {
		n := min(pages-done, uint64(len(ones)))
		if !k.mem.Mapped(a[0]+done*4096, n*4096) {
			return 0, unix.ENOMEM
		}
		if errno := k.copyOut(a[2]+done, ones[:n]); errno != 0 {
			return 0, errno
		}
		done += n
	}
	return 0, 0
}

func sysMemfdCreate(k *Kernel, _ *Task, a args) (uint64, unix.Errno) {
	const noExecSeal, exec = 8, 16 // MFD_NOEXEC_SEAL, MFD_EXEC
	flags := int(uint32(a[1]))
	if flags&^(unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|noExecSeal|exec) != 0 {
		return 0, unix.EINVAL // huge pages are the VMM's to give
	}
	const nameMax = 250 // MFD_NAME_MAX_LEN with its NUL (mm/memfd.c)
	name, errno := k.text(a[0], nameMax, unix.EINVAL)
	if errno != 0 {
		return 0, errno
	}
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_CLOEXEC)
	if err != nil {
		return 0, errnoOf(err)
	}
	return k.deliver(fd, unix.O_RDWR|largeFile, waitNever, flags&unix.MFD_CLOEXEC != 0)
}
