package running_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"
)

// mapping is the permissions of this process's mapping that holds b.
func mapping(t *testing.T, b []byte) string {
	t.Helper()
	at := uintptr(unsafe.Pointer(&b[0]))
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(text), "\n") {
		var from, to uintptr
		var perms string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perms); n == 3 && at >= from && at < to {
			return perms
		}
	}
	t.Fatalf("no mapping holds %#x", at)
	return ""
}

// TestWX: the guest's memory is executable in no mapping of this process; the window is read-only over text, the alias alone is writable, and
// it stays where it is.
func TestWX(t *testing.T) {
	w := start(t, 1, false)
	look := func() []byte {
		b, err := w.Look(w.f, 5)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if p := mapping(t, look()); p != "r--s" {
		t.Errorf("the window over text is %s before a patch", p)
	}
	w.flip(t, 2, false)
	alias, err := w.Writable(w.f, 5)
	if err != nil {
		t.Fatal(err)
	}
	if p := mapping(t, alias); p != "rw-s" {
		t.Errorf("the alias is %s", p)
	}
	if p := mapping(t, look()); p != "r--s" {
		t.Errorf("the window over text is %s after a patch", p)
	}
	w.flip(t, 20, false)
	if again, err := w.Writable(w.f, 5); err != nil || &again[0] != &alias[0] {
		t.Errorf("the alias has moved (%v): unmapping it costs every vCPU a flush", err)
	}
	spare := w.State().SpareText.Start
	if b, err := w.Look(spare, 1); err != nil || mapping(t, b) != "r--s" {
		t.Errorf("spare text through the window: %v", err)
	}
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(text), "\n") {
		if f := strings.Fields(line); len(f) > 5 && strings.Contains(line, "memfd:cloister") && strings.Contains(f[1], "x") {
			t.Errorf("executable: %s", line)
		}
	}
}
