package linux

import (
	"bytes"
	"encoding/binary"
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"
)

// Memory is the guest's address space. Guest memory is one contiguous host mapping, so a checked
// range is a slice. All lengths are bytes, all addresses guest virtual addresses.
type Memory interface {
	// In returns n bytes that the guest may read, aliasing guest memory; EFAULT if any page is not
	// readable.
	In(addr, n uint64) ([]byte, unix.Errno)
	// Out is In for writing.
	Out(addr, n uint64) ([]byte, unix.Errno)
	// Prefix returns the longest accessible prefix of the range, which may be empty.
	Prefix(addr, n uint64, write bool) []byte
	// Map, Unmap, Protect, Remap, Brk, Advise and Sync are mmap, munmap, mprotect, mremap, brk,
	// madvise and msync on the guest's addresses. hostFD is -1 for anonymous memory.
	Map(addr, length uint64, prot, flags, hostFD int, off int64) (uint64, unix.Errno)
	Unmap(addr, length uint64) unix.Errno
	Protect(addr, length uint64, prot int) unix.Errno
	Remap(old, oldLen, newLen uint64, flags int, newAddr uint64) (uint64, unix.Errno)
	Brk(addr uint64) uint64
	Advise(addr, length uint64, advice int) unix.Errno
	Sync(addr, length uint64, flags int) unix.Errno
	// Mapped says whether something is mapped, accessible or not, at every page of the range; n is not 0.
	Mapped(addr, n uint64) bool
	// Object is the file behind the page at addr, by its device and inode, and where in it addr lies, in bytes; false where
	// that page is the guest's own memory.
	Object(addr uint64) (file [2]uint64, off uint64, ok bool)
	// Maps is the text of /proc/self/maps.
	Maps() string
	// Usage returns the resident and the mapped bytes.
	Usage() (rss, total uint64)
}

// args are the six argument registers.
type args = [6]uint64

const (
	// taskSize is where user addresses end natively (TASK_SIZE_MAX, arch/x86/include/asm/page_64.h,
	// four-level paging): ranges beyond are EFAULT whatever their length.
	taskSize = 1<<47 - 4096
	// maxRW is MAX_RW_COUNT (include/linux/fs.h): INT_MAX rounded down to a page.
	maxRW = 0x7ffff000
	// pathMax is PATH_MAX, the terminating NUL included.
	pathMax = 4096
	// iovMax is UIO_MAXIOV (include/uapi/linux/uio.h).
	iovMax = 1024
)

// accessOK is the kernel's access_ok: the range lies below the end of user addresses.
func accessOK(addr, n uint64) bool { return addr <= taskSize && n <= taskSize-addr }

// Safely runs a look at guest memory, or a copy to or from it; EFAULT if that met a page that is not there. A page that was accessible may still fault: the guest
// can map a file and truncate it, and the host then raises SIGBUS. That must be the guest's EFAULT.
func Safely(copyBytes func()) (errno unix.Errno) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			// Only a fault at an address is the guest's doing; anything else is ours and must show.
			if _, fault := r.(interface{ Addr() uintptr }); !fault {
				panic(r) // cannot be reached by input: copyBytes only copies between two slices
			}
			errno = unix.EFAULT
		}
	}()
	copyBytes()
	return 0
}

// copyIn reads len(dst) bytes of guest memory into dst, once.
func (k *Kernel) copyIn(addr uint64, dst []byte) unix.Errno {
	if len(dst) == 0 {
		return 0
	}
	if !accessOK(addr, uint64(len(dst))) {
		return unix.EFAULT
	}
	src, errno := k.mem.In(addr, uint64(len(dst)))
	if errno != 0 {
		return errno
	}
	return Safely(func() { copy(dst, src) })
}

// copyOut writes src to guest memory. When only the beginning is writable that much is written, as
// copy_to_user does, and the answer is EFAULT.
func (k *Kernel) copyOut(addr uint64, src []byte) unix.Errno {
	if len(src) == 0 {
		return 0
	}
	if !accessOK(addr, uint64(len(src))) {
		return unix.EFAULT
	}
	dst := k.mem.Prefix(addr, uint64(len(src)), true)
	if errno := Safely(func() { copy(dst, src) }); errno != 0 {
		return errno
	}
	if len(dst) < len(src) {
		return unix.EFAULT
	}
	return 0
}

func (k *Kernel) load32(addr uint64) (uint32, unix.Errno) {
	var b [4]byte
	errno := k.copyIn(addr, b[:])
	return binary.LittleEndian.Uint32(b[:]), errno
}

func (k *Kernel) load64(addr uint64) (uint64, unix.Errno) {
	var b [8]byte
	errno := k.copyIn(addr, b[:])
	return binary.LittleEndian.Uint64(b[:]), errno
}

func (k *Kernel) store32(addr uint64, v uint32) unix.Errno {
	return k.copyOut(addr, binary.LittleEndian.AppendUint32(nil, v))
}

func (k *Kernel) store64(addr, v uint64) unix.Errno {
	return k.copyOut(addr, binary.LittleEndian.AppendUint64(nil, v))
}

// get copies one struct in; put copies one out.
func get[T any](k *Kernel, addr uint64, v *T) unix.Errno { return k.copyIn(addr, bytesOf(v)) }
func put[T any](k *Kernel, addr uint64, v *T) unix.Errno { return k.copyOut(addr, bytesOf(v)) }

// text reads a NUL-terminated string of at most limit bytes, the NUL included; tooLong is the error
// when there is no NUL within them.
func (k *Kernel) text(addr, limit uint64, tooLong unix.Errno) (string, unix.Errno) {
	if addr > taskSize {
		return "", unix.EFAULT
	}
	n := min(limit, taskSize-addr)
	var b []byte
	// Most strings end within their page: ask for the page first.
	for _, want := range [...]uint64{min(n, 4096-addr%4096), n} {
		src := k.mem.Prefix(addr, want, false)
		b = make([]byte, len(src))
		if errno := Safely(func() { copy(b, src) }); errno != 0 {
			return "", errno
		}
		if i := bytes.IndexByte(b, 0); i >= 0 {
			return string(b[:i]), 0
		}
		if uint64(len(src)) < want {
			return "", unix.EFAULT
		}
	}
	if uint64(len(b)) < limit {
		return "", unix.EFAULT
	}
	return "", tooLong
}

// path reads a path name. An empty one is returned as it is: whether it is ENOENT is the call's to say.
func (k *Kernel) path(addr uint64) (string, unix.Errno) {
	return k.text(addr, pathMax, unix.ENAMETOOLONG)
}

// buffer is the memory of a bulk transfer, at most maxRW bytes, as a vector. The host kernel moves the data, and finds the end
// of what is accessible where the guest's own would: behind it lies memory that nobody may touch.
func (k *Kernel) buffer(addr, n uint64, write bool) ([][]byte, unix.Errno) {
	if !accessOK(addr, n) {
		return nil, unix.EFAULT
	}
	vec, _ := k.part(nil, addr, min(n, maxRW), write)
	if vec == nil {
		vec = one(nil) // the host sees the call
	}
	return vec, 0
}

// part appends n bytes at addr to vec: the accessible beginning, and then a hole, which stands for the rest whatever its
// length. Whole says that there is none.
func (k *Kernel) part(vec [][]byte, addr, n uint64, write bool) (_ [][]byte, whole bool) {
	if n == 0 {
		return vec, true
	}
	p := k.mem.Prefix(addr, n, write)
	if len(p) > 0 {
		vec = append(vec, p)
	}
	if uint64(len(p)) == n {
		return vec, true
	}
	if len(vec) < iovMax {
		rest := hole()
		vec = append(vec, rest[:min(n-uint64(len(p)), uint64(len(rest)))])
	}
	return vec, false
}

// hole is a page that nobody may touch.
var hole = sync.OnceValue(func() []byte {
	p, err := unix.Mmap(-1, 0, pageMask+1, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		panic(err) // one page of address space: the run ends, with one line (vmm's Serve)
	}
	return p
})

// vector is the memory of a readv or writev. It ends with the first element that is not wholly accessible, as the transfer
// would.
func (k *Kernel) vector(addr, count uint64, write bool) ([][]byte, unix.Errno) {
	if count > iovMax {
		return nil, unix.EINVAL
	}
	raw := make([]byte, 16*count)
	if errno := k.copyIn(addr, raw); errno != 0 {
		return nil, errno
	}
	if errno := judge(raw, count); errno != 0 {
		return nil, errno
	}
	var total uint64
	vec := make([][]byte, 0, count)
	for i := range count {
		base, n := iovec(raw, i)
		n = min(n, maxRW-total)
		if n == 0 {
			continue
		}
		whole := false
		if vec, whole = k.part(vec, base, n, write); !whole {
			break
		}
		total += n
	}
	return vec, 0
}

// judge checks every element before anything moves (lib/iov_iter.c: import_iovec): all lengths, then all places.
func judge(raw []byte, count uint64) unix.Errno {
	for i := range count {
		if _, n := iovec(raw, i); int64(n) < 0 {
			return unix.EINVAL
		}
	}
	for i := range count {
		if base, n := iovec(raw, i); !accessOK(base, n) {
			return unix.EFAULT
		}
	}
	return 0
}

func iovec(raw []byte, i uint64) (base, n uint64) {
	return binary.LittleEndian.Uint64(raw[16*i:]), binary.LittleEndian.Uint64(raw[16*i+8:])
}
