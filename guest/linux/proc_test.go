package linux

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// slurp reads a file of the guest in small pieces.
func (g *guest) slurp(path string) string {
	g.t.Helper()
	fd := g.call(unix.SYS_OPENAT, cwd, g.str(path), 0, 0)
	if fd < 0 {
		g.t.Fatalf("%s: %s", path, result64(fd))
	}
	defer g.call(unix.SYS_CLOSE, uint64(fd))
	var b strings.Builder
	buf := g.buf(1000)
	for {
		n := g.call(unix.SYS_READ, uint64(fd), buf, 1000)
		if n <= 0 {
			return b.String()
		}
		b.Write(g.bytes(buf, uint64(n)))
	}
}

// TestProcForms compares the form of what /proc/self says with the host's, as parsers see it: rows, keys,
// and fields in a row.
func TestProcForms(t *testing.T) {
	g := newGuest(t, nil)
	host := func(path string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for _, path := range []string{"/proc/self/stat", "/proc/self/statm"} {
		mine, theirs := strings.Fields(g.slurp(path)), strings.Fields(host(path))
		if len(mine) != len(theirs) {
			t.Errorf("%s: %d fields, the host has %d: %q", path, len(mine), len(theirs), mine)
		}
	}
	keys := map[string]int{}
	for line := range strings.Lines(host("/proc/self/status")) {
		key, value, _ := strings.Cut(line, ":\t")
		keys[key] = len(strings.Fields(value))
	}
	seen := map[string]string{}
	for line := range strings.Lines(g.slurp("/proc/self/status")) {
		key, value, _ := strings.Cut(line, ":\t")
		seen[key] = strings.TrimSpace(value)
		if n, ok := keys[key]; !ok || n != len(strings.Fields(value)) {
			t.Errorf("status: %q has %d fields, the host's %d", line, len(strings.Fields(value)), n)
		}
	}
	if seen["Threads"] != "1" || seen["Name"] != "program-with-a-" || !strings.HasSuffix(seen["VmRSS"], " kB") {
		t.Errorf("status %q", seen)
	}
	mine, theirs := strings.SplitAfter(g.slurp("/proc/self/limits"), "\n"), strings.SplitAfter(host("/proc/self/limits"), "\n")
	if len(mine) != len(theirs) {
		t.Fatalf("limits: %d rows, the host has %d", len(mine), len(theirs))
	}
	for i, row := range theirs {
		// Two are the guest's own.
		if mine[i] != row && !strings.HasPrefix(row, "Max stack size") && !strings.HasPrefix(row, "Max open files") {
			t.Errorf("limits: %q, the host says %q", mine[i], row)
		}
	}
	g.want(0, unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, g.words(77, 99), 0)
	if text := g.slurp("/proc/self/limits"); !strings.Contains(text, "Max open files            77                   99                   files     \n") {
		t.Errorf("limits after prlimit64:\n%s", text)
	}
}
