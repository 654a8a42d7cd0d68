package vmm

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// SettleData gives this process a copy of its own of every private page that it may write and has so far only
// read: its program's variables, and what reads as zero because nothing was written. Done before the guest
// starts, it does not happen later: the first write to such a page makes the kernel replace it, and flush the old
// translation on every core that runs a thread of the process, by an IPI to the guest's (mm/memory.c,
// wp_page_copy). Seen as breaks while the engine stopped a sealed guest. A page that was never touched has no
// translation to flush and is left alone.
//
// It is madvise(2) with MADV_POPULATE_WRITE; a kernel before 5.14 does not know it, and nothing is done there.
func SettleData() error {
	const what = "settle the engine's memory"
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	pages, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	in := bufio.NewScanner(strings.NewReader(string(maps)))
	for err == nil && in.Scan() {
		// address perms offset dev inode path (proc_pid_maps(5))
		var from, to uintptr
		f := strings.Fields(in.Text())
		if len(f) < 5 || f[1] != "rw-p" {
			continue
		}
		if _, err = fmt.Sscanf(f[0], "%x-%x", &from, &to); err != nil {
			break
		}
		if len(f) > 5 && f[5] == exe {
			err = ownPages(from, to)
			continue
		}
		err = ownTouched(pages, from, to)
	}
	if err = errors.Join(err, in.Err(), pages.Close()); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// ownTouched is ownPages for each run of pages that are there.
func ownTouched(pagemap *os.File, from, to uintptr) error {
	// Eight bytes for each page, bit 63: it is there (Documentation/admin-guide/mm/pagemap.rst).
	const page, there = 4096, 1 << 63
	b := make([]byte, 64<<10)
	for from < to {
		n, err := pagemap.ReadAt(b[:min(len(b), int((to-from)/page*8))], int64(from/page*8))
		if n < 8 {
			return err
		}
		entry := func(i int) bool { return binary.LittleEndian.Uint64(b[8*i:])&there != 0 }
		for i := 0; i < n/8; i++ {
			first := i
			for i < n/8 && entry(i) {
				i++
			}
			if i > first {
				if err := ownPages(from+uintptr(first)*page, from+uintptr(i)*page); err != nil {
					return err
				}
			}
		}
		from += uintptr(n/8) * page
	}
	return nil
}

func ownPages(from, to uintptr) error {
	_, _, e := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_POPULATE_WRITE)
	// ENOMEM: the runtime has unmapped it since; EINVAL: an old kernel.
	if e != 0 && e != unix.EINVAL && e != unix.ENOMEM {
		return fmt.Errorf("madvise of %#x-%#x: %w", from, to, e)
	}
	return nil
}
