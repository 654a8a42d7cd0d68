package vdso

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// native is the image mapped into this process as it would be into a guest.
type native struct {
	file *os.File
	page []byte // the writer's mapping of the data page
	fn   map[string]func(a, b, c uintptr) uintptr
	code []*uintptr
}

// mapNative maps data page and image side by side. Each function is called through a thunk that moves Go's
// argument registers to the System V ones; the functions use no stack, so a goroutine's will do.
func mapNative(t testing.TB) *native {
	t.Helper()
	img, err := Image()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.MemfdCreate("vdso", 0)
	if err != nil {
		t.Fatal(err)
	}
	n := &native{file: os.NewFile(uintptr(fd), "vdso"), fn: map[string]func(a, b, c uintptr) uintptr{}}
	t.Cleanup(func() { n.file.Close() })
	if err := unix.Ftruncate(fd, PageSize+ImageSize+4096); err != nil {
		t.Fatal(err)
	}
	if n.page, err = unix.Mmap(fd, 0, PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(n.page) })
	p, err := unix.MmapPtr(fd, 0, nil, PageSize+ImageSize+4096, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.MunmapPtr(p, PageSize+ImageSize+4096) })
	ef, err := elf.NewFile(bytes.NewReader(img))
	if err != nil {
		t.Fatal(err)
	}
	syms, err := ef.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	base := uintptr(p) + PageSize
	thunks := make([]byte, 4096)
	for i, s := range syms {
		b := thunks[64*i:]
		copy(b, "\x48\x89\xc7\x48\x89\xde\x48\x89\xca\x49\xbb") // mov rdi,rax; mov rsi,rbx; mov rdx,rcx; mov r11,...
		binary.LittleEndian.PutUint64(b[11:], uint64(base)+s.Value)
		copy(b[19:], "\x41\xff\xe3") // jmp r11
		// A Go func value points to a word that holds the address of the code.
		addr := new(uintptr)
		*addr = base + ImageSize + uintptr(64*i)
		n.code = append(n.code, addr)
		n.fn[s.Name] = *(*func(a, b, c uintptr) uintptr)(unsafe.Pointer(&addr))
	}
	if _, err := n.file.WriteAt(append(img, thunks...), PageSize); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mprotect(unsafe.Slice((*byte)(unsafe.Add(p, PageSize)), ImageSize+4096), unix.PROT_READ|unix.PROT_EXEC); err != nil {
		t.Fatal(err)
	}
	return n
}

// gettime calls __vdso_clock_gettime and gives nanoseconds.
func (n *native) gettime(t testing.TB, id int) int64 {
	var ts [2]int64
	if r := n.fn["__vdso_clock_gettime"](uintptr(id), uintptr(unsafe.Pointer(&ts)), 0); r != 0 {
		t.Fatalf("clock_gettime(%d): %d", id, int64(r))
	}
	if ts[1] < 0 || ts[1] >= 1e9 {
		t.Fatalf("clock_gettime(%d): %d nanoseconds", id, ts[1])
	}
	return ts[0]*1e9 + ts[1]
}

// call2 calls a function with up to two pointers to pairs of words.
func (n *native) call2(name string, a *[2]int64, b *[2]int64) int64 {
	return int64(n.fn[name](uintptr(unsafe.Pointer(a)), uintptr(unsafe.Pointer(b)), 0))
}

// call calls a function with a number and a pointer.
func (n *native) call(name string, a uintptr, b *[2]int64) int64 {
	return int64(n.fn[name](a, uintptr(unsafe.Pointer(b)), 0))
}
