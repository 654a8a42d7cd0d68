package vmm

import (
	"os"
	"strings"
	"testing"
)

// TestSettleData: afterwards every page of the program's variables is this process's own.
func TestSettleData(t *testing.T) {
	if err := SettleData(); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	in, size, seen := false, "", 0
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		switch {
		case !strings.HasSuffix(f[0], ":"):
			in = len(f) > 5 && f[5] == exe && f[1] == "rw-p"
		case in && f[0] == "Size:":
			size = f[1]
		case in && f[0] == "Anonymous:":
			seen++
			if f[1] != size {
				t.Errorf("of %s kB of variables %s are this process's own", size, f[1])
			}
		}
	}
	if seen == 0 {
		t.Errorf("no variables of %s in /proc/self/smaps", exe)
	}
}
