package session

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// DropCode gives the program's own code and constants back, which the kernel maps sixteen pages at a time around each
// that is touched. They are clean pages of a file; those that are used again come back from the page cache. It is a
// flush of every core that runs a thread of this process.
func DropCode() error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("trim memory: %w", err)
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("trim memory: %w", err)
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var start, end uintptr
		var perm string
		line := sc.Text()
		if !strings.HasSuffix(line, " "+self) {
			continue
		}
		if _, err := fmt.Sscanf(line, "%x-%x %s", &start, &end, &perm); err != nil {
			return fmt.Errorf("trim memory: %q: %w", line, err)
		}
		if strings.Contains(perm, "w") {
			continue // not clean
		}
		// Where the file lies in the page cache in large folios, as a copied one does, one touch would map 2 MiB again
		// (mm/memory.c, do_set_pmd). EINVAL: a kernel without transparent huge pages.
		if _, _, e := unix.Syscall(unix.SYS_MADVISE, start, end-start, unix.MADV_NOHUGEPAGE); e != 0 && e != unix.EINVAL {
			return fmt.Errorf("trim memory: madvise: %w", e)
		}
		if _, _, e := unix.Syscall(unix.SYS_MADVISE, start, end-start, unix.MADV_DONTNEED); e != 0 {
			return fmt.Errorf("trim memory: madvise: %w", e)
		}
	}
	return nil
}
