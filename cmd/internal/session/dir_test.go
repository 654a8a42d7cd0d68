package session

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A directory that cannot be locked is not left behind: no engine would ever take it away.
func TestNewVMDirLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	free, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	// One descriptor more: for the lock of all VMs, and none for that of this one.
	small := unix.Rlimit{Cur: uint64(free.Fd()) + 1, Max: was.Max}
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &small); err != nil {
		t.Fatal(err)
	}
	_, _, err = NewVMDir(dir, "x")
	if rerr := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); rerr != nil {
		t.Fatal(rerr)
	}
	if !errors.Is(err, unix.EMFILE) {
		t.Fatalf("NewVMDir without descriptors: %v", err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "vm")); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
	vm, lock, err := NewVMDir(dir, "x")
	if err != nil || !EngineLives(vm) {
		t.Fatalf("NewVMDir afterwards: %q, %v", vm, err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
}
