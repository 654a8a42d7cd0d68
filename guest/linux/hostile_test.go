package linux

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTruncatedMapping: a mapped file that was truncated raises SIGBUS on the host. The guest must see
// EFAULT, the VMM nothing.
func TestTruncatedMapping(t *testing.T) {
	g := newGuest(t, nil)
	f := uint64(g.call(unix.SYS_OPENAT, cwd, g.str("m"), unix.O_RDWR|unix.O_CREAT, 0o600))
	g.want(0, unix.SYS_FTRUNCATE, f, 2*page)
	at := g.mem.base + 30*page
	g.want(int64(at), unix.SYS_MMAP, at, 2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED, f, 0)
	copy(g.bytes(at, 2), "m\x00")
	st := g.buf(144)
	g.want(0, unix.SYS_STAT, at, st)
	g.want(0, unix.SYS_FTRUNCATE, f, 0)
	g.want(e(unix.EFAULT), unix.SYS_STAT, at, st)
	g.want(e(unix.EFAULT), unix.SYS_FSTAT, f, at)
	g.want(e(unix.EFAULT), unix.SYS_FSTAT, f, at-8)
	g.want(e(unix.EFAULT), unix.SYS_PIPE, at)
	g.want(e(unix.EFAULT), unix.SYS_NANOSLEEP, at, 0)
	g.want(e(unix.EFAULT), unix.SYS_GETDENTS64, uint64(g.call(unix.SYS_OPENAT, cwd, g.str("."), 0, 0)), at, page)
	g.want(e(unix.EFAULT), unix.SYS_READ, uint64(g.call(unix.SYS_OPENAT, cwd, g.str("/proc/self/status"), 0, 0)), at, 10)
	g.want(e(unix.EFAULT), unix.SYS_WRITE, f, at, 10)
	g.want(e(unix.EFAULT), unix.SYS_GETRANDOM, at, 10, 0)
	g.want(e(unix.EFAULT), unix.SYS_WRITEV, f, at, 1)
}

// TestPartialTransfers: what is accessible moves, the rest does not.
func TestPartialTransfers(t *testing.T) {
	b := newBoth(t)
	const hole = 40
	if e := b.mem.Protect(b.mem.base+hole*page, page, 0); e != 0 {
		t.Fatal(e)
	}
	edge := b.mem.base + hole*page
	b.same(unix.SYS_PREAD64, edge-100, 100, fdArg("file"), edge-100, 4000, 0)
	b.same(unix.SYS_PREAD64, 0, 0, fdArg("file"), edge, 4000, 0)
	b.same(unix.SYS_PREADV, edge-200, 200, fdArg("file"), b.words(edge-200, 100, edge-100, 200, edge-200, 5), 3, 0)
	b.same(unix.SYS_PREADV, 0, 0, fdArg("file"), b.words(edge, 100, edge-100, 100), 2, 0)
	b.same(unix.SYS_PWRITE64, 0, 0, fdArg("file"), edge-100, 4000, 100)
	b.same(unix.SYS_PWRITEV, 0, 0, fdArg("file"), b.words(edge-200, 100, edge-100, 200), 2, 3)
	if errno := b.mem.Protect(b.mem.base+hole*page, page, unix.PROT_READ); errno != 0 {
		t.Fatal(errno)
	}
	b.same(unix.SYS_PREAD64, edge-100, 100, fdArg("file"), edge-100, 4000, 0)
	b.same(unix.SYS_PWRITE64, 0, 0, fdArg("file"), edge-100, 4000, 100)
	b.same(unix.SYS_FSTAT, 0, 0, fdArg("file"), edge-100)
}

// TestMaxTransfer: one call moves at most MAX_RW_COUNT, and a range of 2^63 is EFAULT.
func TestMaxTransfer(t *testing.T) {
	g := newGuest(t, nil)
	if p, errno := g.k.buffer(g.mem.base, 1<<32, true); errno != 0 || len(p) != 2 || len(p[0]) != g.mem.pages*page {
		t.Errorf("%d parts, %v", len(p), errno)
	}
	if _, errno := g.k.buffer(g.mem.base, 1<<63, true); errno != unix.EFAULT {
		t.Errorf("2^63 bytes: %v", errno)
	}
	if _, errno := g.k.buffer(^uint64(0)-10, 100, true); errno != unix.EFAULT {
		t.Errorf("wrap-around: %v", errno)
	}
	if _, errno := g.k.vector(g.mem.base, 1<<62, true); errno != unix.EINVAL {
		t.Errorf("2^62 iovecs: %v", errno)
	}
}

// openFDs counts the descriptors of this process.
func openFDs(t testing.TB) int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// TestNoLeak opens everything there is, up to the limit, and closes the kernel.
func TestNoLeak(t *testing.T) {
	before := openFDs(t)
	t.Run("", func(t *testing.T) {
		g := newGuest(t, nil)
		g.want(0, unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, g.words(40, 40), 0)
		bad := g.mem.base + 63*page
		g.want(0, unix.SYS_MPROTECT, bad, page, 0)
		for range 60 {
			g.call(unix.SYS_OPENAT, cwd, g.str("f"), unix.O_RDWR|unix.O_CREAT, 0o600)
			g.call(unix.SYS_OPENAT, cwd, g.str("."), 0, 0)
			g.call(unix.SYS_PIPE, g.buf(8))
			g.call(unix.SYS_PIPE, bad)
			g.call(unix.SYS_EVENTFD2, 0, 0)
			g.call(unix.SYS_TIMERFD_CREATE, 1, 0)
			g.call(unix.SYS_MEMFD_CREATE, g.str("x"), 0)
			g.call(unix.SYS_EPOLL_CREATE1, 0)
			g.call(unix.SYS_DUP, 3)
			g.call(unix.SYS_CHDIR, g.str("."))
		}
		g.want(e(unix.EMFILE), unix.SYS_OPENAT, cwd, g.str("new"), unix.O_RDWR|unix.O_CREAT, 0o600)
		if _, err := os.Stat(filepath.Join(g.dir, "new")); !os.IsNotExist(err) {
			t.Error("an open without a free descriptor made the file")
		}
		g.want(e(unix.EBADF), unix.SYS_DUP2, 3, 40)
		g.want(e(unix.EINVAL), unix.SYS_FCNTL, 3, unix.F_DUPFD, 40)
		if n := len(g.k.FDs()); n != 40 {
			t.Errorf("%d descriptors at a limit of 40", n)
		}
		g.want(0, unix.SYS_CLOSE_RANGE, 20, 1<<32-1, 0)
		if n := len(g.k.FDs()); n != 20 {
			t.Errorf("%d descriptors after close_range", n)
		}
	})
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// TestSpecialFiles: devices, synthetic files and what /proc/self/fd says of them.
func TestSpecialFiles(t *testing.T) {
	g := newGuest(t, nil)
	b := g.buf(256)
	f := uint64(g.call(unix.SYS_OPENAT, cwd, g.str("/dev/null"), unix.O_RDWR, 0))
	g.want(0, unix.SYS_READ, f, b, 10)
	g.want(10, unix.SYS_WRITE, f, b, 10)
	g.want(e(unix.EROFS), unix.SYS_FCHMOD, f, 0o777)
	self := uint64(g.call(unix.SYS_OPENAT, cwd, g.str("/proc/self/status"), 0, 0))
	if n := g.call(unix.SYS_READ, self, b, 256); n <= 0 || !strings.HasPrefix(string(g.bytes(b, 5)), "Name:") {
		t.Errorf("/proc/self/status: %d %q", n, g.bytes(b, 5))
	}
	g.want(e(unix.ENODEV), unix.SYS_MMAP, 0, page, 1, 2, self, 0)
	if n := g.call(unix.SYS_READLINK, g.str("/proc/self/fd/0"), b, 256); n != 9 || string(g.bytes(b, 9)) != "/dev/null" {
		t.Errorf("/proc/self/fd/0 -> %q", g.bytes(b, 9))
	}
	fds := g.buf(8)
	g.want(0, unix.SYS_PIPE, fds)
	n := g.call(unix.SYS_READLINK, g.str("/proc/self/fd/"+itoa(int(g.word(fds)&0xff))), b, 256)
	if n <= 0 || !bytes.HasPrefix(g.bytes(b, 256), []byte("pipe:[")) {
		t.Errorf("a pipe's link: %d %q", n, g.bytes(b, 20))
	}
	g.want(e(unix.ENOTTY), unix.SYS_IOCTL, 0, unix.TCGETS, b)
}

// FuzzSyscall makes sequences of calls with hostile numbers and arguments. Interrupt is readable all
// the time, so nothing waits. Afterwards no byte beside the arena may have changed and no descriptor
// may be left.
func FuzzSyscall(f *testing.F) {
	for nr := range uint64(tableSize) {
		if c := lookup(nr); c != nil && c.fn != nil {
			f.Add(binary.LittleEndian.AppendUint16(nil, uint16(nr)), uint64(nr))
			f.Add([]byte{byte(nr), byte(nr >> 8), 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 77, 0, 1, 2, 3, 4, 5, 6}, uint64(nr)*7)
		}
	}
	f.Fuzz(func(t *testing.T, script []byte, seed uint64) {
		mask := unix.Umask(0o22)
		defer unix.Umask(mask)
		// Files of the guest stay small: they are written to a real disk. Only while the guest runs:
		// the fuzzing engine has larger files of its own.
		var old syscall.Rlimit
		if err := syscall.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Setrlimit(unix.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 1 << 20, Max: old.Max}); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = syscall.Setrlimit(unix.RLIMIT_FSIZE, &old) }()
		g := newGuest(t, nil)
		g.interrupt()
		for i := range 20 * page { // something to find behind pointers
			g.mem.all[guardPages*page+i] = byte(uint64(i)*seed>>3) & 0x3f
		}
		g.next = g.mem.base + 20*page
		g.str("f")
		g.call(unix.SYS_OPENAT, cwd, g.mem.base+20*page, unix.O_RDWR|unix.O_CREAT, 0o600)
		g.call(unix.SYS_OPENAT, cwd, g.str("/proc/self/maps"), 0, 0)
		g.call(unix.SYS_OPENAT, cwd, g.str("."), 0, 0)
		g.call(unix.SYS_PIPE, g.buf(8))
		if e := g.mem.Protect(g.mem.base+60*page, page, 0); e != 0 {
			t.Fatal(e)
		}
		rest := script
		take := func(n int) []byte {
			b := make([]byte, n)
			rest = rest[copy(b, rest):]
			return b
		}
		for calls := 0; len(rest) > 0 && calls < 64; calls++ {
			nr := uint64(binary.LittleEndian.Uint16(take(2))) % (tableSize + 8)
			if nr == unix.SYS_SYNC || nr == unix.SYS_SYNCFS {
				continue // slow, and without arguments to check
			}
			var a [6]uint64
			for i := range a {
				seed = seed*6364136223846793005 + 1442695040888963407
				a[i] = g.fuzzArg(take(1)[0], seed>>16)
			}
			start := time.Now()
			g.k.Syscall(g.task, nr, a)
			// Generous: the machine may be busy, and the disk slow.
			if d := time.Since(start); d > 5*time.Second {
				t.Fatalf("%s%x took %v although Interrupt was readable", Name(nr), a, d)
			}
		}
		if !g.mem.guardsIntact() {
			t.Fatal("a byte beside guest memory changed")
		}
	})
}

// fuzzArg turns a byte and some noise into an argument that is likely to get somewhere.
func (g *guest) fuzzArg(b byte, noise uint64) uint64 {
	switch b % 12 {
	case 0:
		return uint64(b / 12) // a descriptor, a small flag
	case 1:
		return noise
	case 2, 3:
		return g.mem.base + noise%(64*page)
	case 4:
		return g.mem.base + 20*page + noise%8*16 // the strings
	case 5:
		return g.mem.base + 60*page - noise%200 // before the hole
	case 6:
		return g.mem.base + 64*page - noise%64 // before the end
	case 7:
		return ^uint64(0) - noise%200
	case 8:
		return 1 << (noise % 64)
	case 9:
		return noise % 5000
	case 10:
		return uint64(3 + noise%6)
	}
	return taskSize - noise%64
}
