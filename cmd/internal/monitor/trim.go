package monitor

import (
	"fmt"
	"os"
	"runtime/debug"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
)

// slack is how much the monitor's memory may grow, in bytes, before it is given back again: of the heap, which the watch for
// drift fills with what it reads each second, and of code and constants. Of these the kernel may map 2 MiB for a
// single touch, where the file lies in the page cache in large folios (seen with 6.18).
const slack = 256 << 10

// trimmer keeps the monitor's memory near what it has to have; without it a VM costs twice as much beyond its own.
type trimmer struct{ anon, file int } // bytes after the last time; 0: it was never done

// look gives memory back if it has grown.
func (t *trimmer) look() error {
	anon, file, err := resident()
	if err != nil {
		return err
	}
	first := t.file == 0
	if first {
		debug.SetGCPercent(25) // the heap may be 1 MiB before it is collected, not 4
	}
	if grown := anon - t.anon; first || grown > slack {
		debug.FreeOSMemory()
	} else if file-t.file <= slack {
		return nil
	}
	// After the collection, which reads of the program itself where pointers are.
	if err := session.DropCode(); err != nil {
		return err
	}
	t.anon, t.file, err = resident()
	return err
}

// resident reads what of this process is in memory, in bytes: what is its own, and what lies in files.
func resident() (anon, file int, err error) {
	const name = "/proc/self/statm" // proc(5)
	text, err := os.ReadFile(name)
	if err != nil {
		return 0, 0, fmt.Errorf("trim memory: %w", err)
	}
	var size, all int
	if _, err := fmt.Sscan(string(text), &size, &all, &file); err != nil {
		return 0, 0, fmt.Errorf("trim memory: %s: %q: %w", name, text, err)
	}
	page := os.Getpagesize()
	return (all - file) * page, file * page, nil
}
