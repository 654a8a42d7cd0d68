package monitor

import (
	"bufio"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// trim gives back what only start-up needed: the heap's free pages, and the program's own code and constants,
// which the kernel maps sixteen pages at a time around each that is touched. They are clean pages of a
// file; the few that the monitor goes on using come back from the page cache as they are used. It halves
// the memory that a VM costs beyond its own.
func trim() error {
	debug.FreeOSMemory()
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
		if _, _, e := unix.Syscall(unix.SYS_MADVISE, start, end-start, unix.MADV_DONTNEED); e != 0 {
			return fmt.Errorf("trim memory: madvise: %w", e)
		}
	}
	return nil
}
