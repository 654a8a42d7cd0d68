package ring

import (
	"fmt"
	"syscall"
	"testing"
	"unsafe"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// sealedFile is the path of a memory file of that size that cannot shrink, as --ring makes it.
func sealedFile(t *testing.T, size int64) string {
	t.Helper()
	const (
		sysMemfdCreate = 319
		allowSealing   = 2
		addSeals       = 1033
	)
	name := []byte("ring\x00")
	fd, _, errno := syscall.Syscall(sysMemfdCreate, uintptr(unsafe.Pointer(&name[0])), allowSealing, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	t.Cleanup(func() {
		if err := syscall.Close(int(fd)); err != nil {
			t.Error(err)
		}
	})
	if err := syscall.Ftruncate(int(fd), size); err != nil {
		t.Fatal(err)
	}
	if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, fd, addSeals, sealShrink); errno != 0 {
		t.Fatal(errno)
	}
	return fmt.Sprintf("/proc/self/fd/%d", fd)
}

// The two sides' words lie in pairs of cache lines of their own.
func TestLayout(t *testing.T) {
	var h abi.RingHeader
	const pair = 128
	for name, at := range map[string][2]uintptr{
		"head": {unsafe.Offsetof(h.Head), pair}, "tail": {unsafe.Offsetof(h.Tail), 2 * pair}, "end": {unsafe.Sizeof(h), 3 * pair},
	} {
		if at[0] != at[1] {
			t.Errorf("%s at %d, want %d", name, at[0], at[1])
		}
	}
	if unsafe.Offsetof(h.Dropped) >= 2*pair || unsafe.Sizeof(h) > abi.RingData {
		t.Error("the producer's words reach into the consumer's")
	}
}
