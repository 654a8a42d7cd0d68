package vmm

import (
	"fmt"
	"unsafe"

	"github.com/cloister-vmm/cloister/guest/abi"
	"golang.org/x/sys/unix"
)

// NewGuestMemory makes the file behind guest memory: abi.UserTop bytes, no page of it there yet. With
// huge it lies on 2 MiB pages.
func NewGuestMemory(huge bool) (int, error) {
	flags := unix.MFD_CLOEXEC
	if huge {
		flags |= unix.MFD_HUGETLB | unix.MFD_HUGE_2MB
	}
	fd, err := unix.MemfdCreate("cloister-guest", flags)
	if err != nil {
		if huge {
			return -1, fmt.Errorf("guest memory on huge pages: %w: reserve some (sysctl vm.nr_hugepages=N) or leave out --hugepages", err)
		}
		return -1, fmt.Errorf("guest memory: memfd_create: %w", err)
	}
	if err := unix.Ftruncate(fd, abi.UserTop); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("guest memory: ftruncate to %d GiB: %w: raise the file size limit (ulimit -f)", abi.UserTop>>30, err)
	}
	return fd, nil
}

// mapShared maps n bytes of fd.
func mapShared(fd int, n uint64, what string) ([]byte, error) {
	p, err := unix.MmapPtr(fd, 0, nil, uintptr(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map %s (%d MiB of address space): %w: raise the limit of virtual memory (ulimit -v)", what, n>>20, err)
	}
	return unsafe.Slice((*byte)(p), n), nil
}

// hostBytes are the n bytes at a host address, in a mapping of this process's that nobody takes away.
func hostBytes(at uintptr, n uint64) []byte { return unsafe.Slice(*(**byte)(unsafe.Pointer(&at)), n) }

func addr(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// lockOnFault locks every page of b from its first touch on (mlock2, MLOCK_ONFAULT).
func lockOnFault(b []byte) error {
	const onFault = 1
	if _, _, e := unix.Syscall(unix.SYS_MLOCK2, addr(b), uintptr(len(b)), onFault); e != 0 {
		return e
	}
	return nil
}

func unmap(b []byte) error {
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(b)), uintptr(len(b)))
}

// word32 is the aligned word at b.
func word32(b []byte) *uint32 { return (*uint32)(unsafe.Pointer(unsafe.SliceData(b))) }

// words64 are the words of a page, of which the first is aligned.
func words64(b []byte) *[abi.Page / 8]uint64 {
	return (*[abi.Page / 8]uint64)(unsafe.Pointer((*[abi.Page]byte)(b)))
}
