package linux

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// both makes the same call on the host and in the guest, on the same memory, and compares results.
// The arguments hold what both can share: addresses, numbers. fds names the arguments that are
// descriptors, by the name of a file that both have open.
type both struct {
	*guest
	hostFD, guestFD map[string]uint64
}

func newBoth(t testing.TB) *both {
	b := &both{guest: newGuest(t, nil), hostFD: map[string]uint64{}, guestFD: map[string]uint64{}}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(b.dir, "file"), bytes.Repeat([]byte("0123456789abcdef"), 1024), 0o644))
	must(os.Mkdir(filepath.Join(b.dir, "dir"), 0o755))
	must(os.Symlink("file", filepath.Join(b.dir, "link")))
	must(os.Symlink("loop", filepath.Join(b.dir, "loop")))
	must(unix.Mkfifo(filepath.Join(b.dir, "fifo"), 0o600))
	for _, f := range []struct {
		name  string
		flags int
	}{
		{"file", unix.O_RDWR}, {"dir", unix.O_RDONLY | unix.O_DIRECTORY}, {"fifo", unix.O_RDWR | unix.O_NONBLOCK},
		{"ro", unix.O_RDONLY}, {"wo", unix.O_WRONLY}, {"path", unix.O_PATH}, {"root", unix.O_RDONLY | unix.O_DIRECTORY},
	} {
		path := filepath.Join(b.dir, f.name)
		switch f.name {
		case "ro", "wo", "path":
			path = filepath.Join(b.dir, "file")
		case "root":
			path = b.dir
		}
		fd, err := unix.Open(path, f.flags|unix.O_CLOEXEC, 0)
		must(err)
		t.Cleanup(func() { _ = unix.Close(fd) })
		b.hostFD[f.name] = uint64(fd)
		b.guestFD[f.name] = uint64(b.call(unix.SYS_OPENAT, cwd, b.str(path), uint64(f.flags|unix.O_CLOEXEC), 0))
	}
	b.hostFD["bad"], b.guestFD["bad"] = 999, 999
	b.next = b.mem.base + page
	return b
}

// fdArg is an argument that is a descriptor.
type fdArg string

func (b *both) args(in []any, fds map[string]uint64) []uint64 {
	var out []uint64
	for _, v := range in {
		switch v := v.(type) {
		case fdArg:
			out = append(out, fds[string(v)])
		case uint64:
			out = append(out, v)
		case int:
			out = append(out, uint64(int64(v)))
		default:
			b.t.Fatalf("argument of type %T", v)
		}
	}
	return out
}

// same makes the call on both sides and fails when results or memory at [addr, addr+n) differ.
func (b *both) same(nr uint64, addr, n uint64, in ...any) {
	b.t.Helper()
	before := b.snapshot()
	want := native(nr, b.args(in, b.hostFD)...)
	var wantMem []byte
	if n > 0 {
		wantMem = bytes.Clone(b.bytes(addr, n))
	}
	b.restore(before)
	got := b.call(nr, b.args(in, b.guestFD)...)
	if got != want {
		b.t.Errorf("%s%v = %s, the host says %s", Name(nr), show(in), result64(got), result64(want))
		return
	}
	if n > 0 && !bytes.Equal(wantMem, b.bytes(addr, n)) {
		b.t.Errorf("%s%v = %d: memory differs\nguest %x\nhost  %x", Name(nr), show(in), got, b.bytes(addr, n), wantMem)
	}
}

// snapshot copies the writable pages, restore puts them back.
func (b *both) snapshot() map[int][]byte {
	m := map[int][]byte{}
	for i := range b.mem.pages {
		if b.mem.prot[i]&unix.PROT_WRITE != 0 {
			m[i] = bytes.Clone(b.mem.all[(guardPages+i)*page:][:page])
		}
	}
	return m
}

func (b *both) restore(before map[int][]byte) {
	for i, p := range before {
		copy(b.mem.all[(guardPages+i)*page:], p)
	}
}

func show(in []any) string { return fmt.Sprintf("%x", in) }

func result64(v int64) string {
	if v < 0 && v > -4096 {
		return unix.ErrnoName(unix.Errno(-v))
	}
	return fmt.Sprint(v)
}

// TestHostilePointers slides each pointer argument over a page edge into memory that is not there,
// and tries addresses that no program has. The host's own answer is the measure.
func TestHostilePointers(t *testing.T) {
	b := newBoth(t)
	const hole = 40 // page that is not accessible
	if e := b.mem.Protect(b.mem.base+hole*page, page, 0); e != 0 {
		t.Fatal(e)
	}
	edge := b.mem.base + hole*page
	path := b.str(filepath.Join(b.dir, "file"))
	link := b.str(filepath.Join(b.dir, "link"))
	name := b.str("file")
	iov := b.words(b.buf(64), 64)
	how := b.words(0, 0, 0)
	zero := b.words(0, 0, 0, 0)
	const at = -1000 // stands for the pointer
	type pointer struct {
		nr   uint64
		size int // bytes behind the pointer
		in   []any
	}
	calls := []pointer{
		{unix.SYS_READ, 32, []any{fdArg("file"), at, 0}},
		{unix.SYS_WRITE, 32, []any{fdArg("bad"), at, 32}},
		{unix.SYS_STAT, 144, []any{path, at}}, {unix.SYS_LSTAT, 144, []any{link, at}}, {unix.SYS_FSTAT, 144, []any{fdArg("file"), at}},
		{unix.SYS_NEWFSTATAT, 144, []any{fdArg("root"), name, at, 0}},
		{unix.SYS_NEWFSTATAT, 144, []any{fdArg("root"), name, at, 1 << 30}},
		{unix.SYS_STATX, 256, []any{fdArg("root"), name, 0, unix.STATX_BASIC_STATS, at}},
		{unix.SYS_READLINK, 4, []any{link, at, 4}}, {unix.SYS_READLINK, 4, []any{link, at, -1}},
		{unix.SYS_READV, 16, []any{fdArg("ro"), at, 1}}, {unix.SYS_WRITEV, 16, []any{fdArg("bad"), at, 1}},
		{unix.SYS_READV, 16, []any{fdArg("ro"), at, 1025}}, {unix.SYS_READV, 16, []any{fdArg("ro"), at, -1}},
		{unix.SYS_PREADV, 64, []any{fdArg("ro"), iov, 1, 0}}, {unix.SYS_PREADV, 64, []any{fdArg("ro"), iov, 1, -1}},
		{unix.SYS_POLL, 8, []any{at, 1, 0}}, {unix.SYS_POLL, 8, []any{at, 1 << 33, 0}}, {unix.SYS_POLL, 8, []any{at, -1, 0}},
		{unix.SYS_PPOLL, 16, []any{zero, 0, at, 0, 8}},
		{unix.SYS_SELECT, 16, []any{0, 0, 0, 0, at}}, {unix.SYS_SELECT, 8, []any{1, at, 0, 0, zero}},
		{unix.SYS_PSELECT6, 16, []any{0, 0, 0, 0, at, 0}}, {unix.SYS_PSELECT6, 16, []any{0, 0, 0, 0, zero, at}},
		{unix.SYS_PIPE, 8, []any{1}}, {unix.SYS_PIPE2, 8, []any{at, 1 << 20}},
		{unix.SYS_NANOSLEEP, 16, []any{at, 0}}, {unix.SYS_CLOCK_NANOSLEEP, 16, []any{1, 1, at, 0}},
		{unix.SYS_CLOCK_NANOSLEEP, 16, []any{77, 0, at, 0}}, {unix.SYS_CLOCK_GETRES, 16, []any{1, at}},
		{unix.SYS_UNAME, 390, []any{at}}, {unix.SYS_GETRLIMIT, 16, []any{unix.RLIMIT_CORE, at}},
		{unix.SYS_PRLIMIT64, 16, []any{0, unix.RLIMIT_CORE, 0, at}}, {unix.SYS_PRLIMIT64, 16, []any{0, 99, 0, at}},
		{unix.SYS_GETCWD, 4096, []any{at, 1}},
		{unix.SYS_RT_SIGPENDING, 8, []any{at, 9}},
		{unix.SYS_RT_SIGACTION, 32, []any{10, at, 0, 7}}, {unix.SYS_RT_SIGPROCMASK, 8, []any{0, 0, at, 4}},
		{unix.SYS_GETRESUID, 4, []any{at, zero, zero}}, {unix.SYS_GETRESGID, 4, []any{zero, zero, at}},
		{unix.SYS_SCHED_GETPARAM, 4, []any{0, at}},
		{unix.SYS_STATFS, 120, []any{b.str("/nonexistent"), at}},
		{unix.SYS_GETGROUPS, 4, []any{-1, at}}, {unix.SYS_CAPGET, 8, []any{at, 0}},
		{unix.SYS_OPEN, 8, []any{at, unix.O_RDONLY | unix.O_DIRECTORY}}, {unix.SYS_ACCESS, 8, []any{at, 4}},
		{unix.SYS_CHDIR, 8, []any{at}}, {unix.SYS_RENAME, 8, []any{at, name}}, {unix.SYS_UNLINK, 8, []any{at}},
		{unix.SYS_OPENAT2, 24, []any{fdArg("root"), b.str("nothing"), at, 24}}, {unix.SYS_OPENAT2, 24, []any{fdArg("root"), b.str("nothing"), at, 16}},
		{unix.SYS_OPENAT2, 24, []any{fdArg("root"), at, how, 24}},
		{unix.SYS_UTIMENSAT, 32, []any{fdArg("bad"), 0, at, 0}},
		{unix.SYS_GETRANDOM, 16, []any{at, 16, 0x80}}, {unix.SYS_GETRANDOM, 16, []any{at, 16, 6}},
		{unix.SYS_FCNTL, 32, []any{fdArg("file"), unix.F_GETLK, at}},
		{unix.SYS_MINCORE, 1, []any{b.mem.base, page, at}}, {unix.SYS_GETITIMER, 32, []any{0, at}}, {unix.SYS_GETITIMER, 32, []any{9, at}},
		{unix.SYS_FUTEX, 4, []any{at, 128, 1, 0}}, {unix.SYS_FUTEX, 4, []any{at, 129, 1, 0}}, {unix.SYS_FUTEX, 4, []any{at, 1, 1, 0}},
		{unix.SYS_FUTEX, 4, []any{at, 137, 0, 0, 0, 0}},
		{unix.SYS_EPOLL_CTL, 12, []any{fdArg("bad"), 1, fdArg("file"), at}},
		{unix.SYS_MEMFD_CREATE, 8, []any{at, 0x100}}, {unix.SYS_SENDFILE, 8, []any{fdArg("bad"), fdArg("bad"), at, 10}},
		{unix.SYS_COPY_FILE_RANGE, 8, []any{fdArg("bad"), at, fdArg("bad"), 0, 1, 0}},
		{unix.SYS_SIGALTSTACK, 24, []any{0, at}}, {unix.SYS_PRCTL, 16, []any{unix.PR_GET_TSC, at}},
		{unix.SYS_GETDENTS64, 280, []any{fdArg("file"), at, 280}},
		{unix.SYS_GETCPU, 4, []any{0, at}}, {unix.SYS_IOCTL, 36, []any{fdArg("file"), unix.TCGETS, at}},
		{unix.SYS_IOCTL, 4, []any{fdArg("file"), 0xdead, at}}, {unix.SYS_IOCTL, 4, []any{fdArg("file"), fionbio, at}},
	}
	n := 0
	// On a host with five levels of page tables user space ends at 2⁵⁶, and ours at 2⁴⁷ as everywhere.
	beyond := []uint64{taskSize, taskSize + 1, 1 << 47}
	if info, err := os.ReadFile("/proc/cpuinfo"); err != nil {
		t.Fatal(err)
	} else if slices.Contains(strings.Fields(string(info)), "la57") {
		beyond = nil
	}
	for _, c := range calls {
		addrs := append(slices.Clone(beyond), 0, 1, 8, 0xffff, edge, edge+page-1, taskSize-8, 1<<63, 1<<63-1, ^uint64(0), ^uint64(0)-4095, 0xffff_8000_0000_0000)
		for off := range uint64(c.size + 2) {
			if c.size < 300 || off < 8 || off > uint64(c.size)-8 {
				addrs = append(addrs, edge-off)
			}
		}
		for _, addr := range addrs {
			if addr == 0 && (c.nr == unix.SYS_PPOLL || c.nr == unix.SYS_SELECT || c.nr == unix.SYS_PSELECT6) {
				continue // no timeout: they would wait
			}
			if addr == taskSize && c.nr == unix.SYS_FUTEX {
				continue // inclusive or exclusive: Linux changed its mind (x86: USER_PTR_MAX)
			}
			in := make([]any, len(c.in))
			for i, v := range c.in {
				in[i] = v
				if v == at {
					in[i] = addr
				}
			}
			clear(b.bytes(edge-page, page)) // what one call wrote is no argument of the next
			b.same(c.nr, 0, 0, in...)
			n++
		}
	}
	if !b.mem.guardsIntact() {
		t.Error("a guard zone changed")
	}
	t.Logf("%d calls compared", n)
}

// TestSameAnswers compares results and the bytes that come back, for calls that change nothing.
func TestSameAnswers(t *testing.T) {
	b := newBoth(t)
	out := b.mem.base + 20*page
	p := func(name string) uint64 { return b.str(filepath.Join(b.dir, name)) }
	rel := func(name string) uint64 { return b.str(name) }
	w := b.words
	far := b.mem.base + 30*page
	type c struct {
		nr uint64
		n  uint64 // bytes compared at out
		in []any
	}
	for _, c := range []c{
		{unix.SYS_STAT, 144, []any{p("file"), out}}, {unix.SYS_STAT, 144, []any{p("dir"), out}},
		{unix.SYS_STAT, 144, []any{p("link"), out}}, {unix.SYS_LSTAT, 144, []any{p("link"), out}},
		{unix.SYS_STAT, 144, []any{p("loop"), out}}, {unix.SYS_STAT, 0, []any{p("none"), out}},
		{unix.SYS_STAT, 0, []any{p("file/x"), out}}, {unix.SYS_STAT, 0, []any{rel(""), out}},
		{unix.SYS_STAT, 144, []any{p("dir/../file"), out}}, {unix.SYS_STAT, 0, []any{p("none/../file"), out}},
		{unix.SYS_FSTAT, 144, []any{fdArg("file"), out}}, {unix.SYS_FSTAT, 144, []any{fdArg("dir"), out}},
		{unix.SYS_FSTAT, 144, []any{fdArg("path"), out}}, {unix.SYS_FSTAT, 144, []any{fdArg("fifo"), out}},
		{unix.SYS_NEWFSTATAT, 144, []any{fdArg("root"), rel("dir"), out, 0}},
		{unix.SYS_NEWFSTATAT, 144, []any{fdArg("file"), rel(""), out, unix.AT_EMPTY_PATH}},
		{unix.SYS_NEWFSTATAT, 0, []any{fdArg("file"), rel(""), out, 0}},
		{unix.SYS_NEWFSTATAT, 0, []any{fdArg("file"), rel("x"), out, 0}},
		{unix.SYS_NEWFSTATAT, 0, []any{fdArg("bad"), rel("x"), out, 0}},
		{unix.SYS_STATX, 256, []any{fdArg("root"), rel("file"), 0, unix.STATX_BASIC_STATS | unix.STATX_BTIME, out}},
		{unix.SYS_STATX, 256, []any{fdArg("root"), rel("link"), unix.AT_SYMLINK_NOFOLLOW, unix.STATX_ALL, out}},
		{unix.SYS_STATX, 256, []any{fdArg("file"), rel(""), unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, out}},
		{unix.SYS_STATX, 0, []any{fdArg("file"), rel(""), unix.AT_EMPTY_PATH, -1, out}},
		{unix.SYS_STATX, 0, []any{fdArg("root"), rel("file"), 0x6000, 0, out}},
		{unix.SYS_READLINK, 64, []any{p("link"), out, 64}}, {unix.SYS_READLINK, 64, []any{p("link"), out, 2}},
		{unix.SYS_READLINK, 0, []any{p("file"), out, 64}}, {unix.SYS_READLINK, 0, []any{p("link"), out, 0}},
		{unix.SYS_READLINK, 0, []any{rel("."), out, 8}}, {unix.SYS_READLINK, 0, []any{rel(""), out, 8}},
		{unix.SYS_READ, 64, []any{fdArg("file"), out, 64}}, {unix.SYS_READ, 0, []any{fdArg("dir"), out, 64}},
		{unix.SYS_READ, 0, []any{fdArg("wo"), out, 64}}, {unix.SYS_READ, 0, []any{fdArg("path"), out, 64}},
		{unix.SYS_READ, 0, []any{fdArg("file"), out, 0}}, {unix.SYS_READ, 0, []any{fdArg("dir"), out, 0}},
		{unix.SYS_READ, 0, []any{fdArg("file"), out, -1}}, {unix.SYS_READ, 0, []any{fdArg("fifo"), out, 8}},
		{unix.SYS_LSEEK, 0, []any{fdArg("file"), 0, unix.SEEK_CUR}}, {unix.SYS_LSEEK, 0, []any{fdArg("file"), -1, unix.SEEK_SET}},
		{unix.SYS_LSEEK, 0, []any{fdArg("file"), 0, unix.SEEK_HOLE}}, {unix.SYS_LSEEK, 0, []any{fdArg("file"), 0, 9}},
		{unix.SYS_LSEEK, 0, []any{fdArg("fifo"), 0, 0}}, {unix.SYS_LSEEK, 0, []any{fdArg("path"), 0, 0}},
		{unix.SYS_LSEEK, 0, []any{fdArg("file"), 1 << 62, unix.SEEK_SET}}, {unix.SYS_LSEEK, 0, []any{fdArg("file"), 100, unix.SEEK_SET}},
		{unix.SYS_PREAD64, 100, []any{fdArg("file"), out, 100, 7}}, {unix.SYS_PREAD64, 0, []any{fdArg("file"), out, 100, -7}},
		{unix.SYS_PREAD64, 0, []any{fdArg("fifo"), out, 100, 0}}, {unix.SYS_PREAD64, 0, []any{fdArg("file"), out, 100, 1 << 40}},
		{unix.SYS_PREAD64, 0, []any{fdArg("wo"), out, 10, 0}},
		{unix.SYS_READV, 2 * page, []any{fdArg("file"), w(out, 10, out+100, 200, far, 0, out+page, 4000), 4}},
		{unix.SYS_PREADV, 2 * page, []any{fdArg("file"), w(out, 10, out+100, 200), 2, 5}},
		{unix.SYS_PREADV2, 2 * page, []any{fdArg("file"), w(out, 10, out+100, 200), 2, 5, 0, 0}},
		{unix.SYS_PREADV2, 0, []any{fdArg("file"), w(out, 10), 1, -1, 0, 0}},
		{unix.SYS_PREADV2, 0, []any{fdArg("file"), w(out, 10), 1, 0, 0, 1 << 20}},
		{unix.SYS_PREADV2, 0, []any{fdArg("file"), w(out, 10), 1, -5, 0, 0}},
		{unix.SYS_READV, 0, []any{fdArg("file"), w(out, 1<<63), 1}}, {unix.SYS_READV, 0, []any{fdArg("file"), w(0, 1<<31), 1}},
		{unix.SYS_READV, 0, []any{fdArg("file"), w(^uint64(0), 2), 1}}, {unix.SYS_READV, 0, []any{fdArg("file"), 0, 0}},
		{unix.SYS_ACCESS, 0, []any{p("file"), 7}}, {unix.SYS_ACCESS, 0, []any{p("dir"), 7}}, {unix.SYS_ACCESS, 0, []any{p("file"), 8}},
		{unix.SYS_ACCESS, 0, []any{p("none"), 0}}, {unix.SYS_FACCESSAT, 0, []any{fdArg("root"), rel("file"), 4}},
		{unix.SYS_FACCESSAT2, 0, []any{fdArg("root"), rel("link"), 4, unix.AT_SYMLINK_NOFOLLOW}}, {unix.SYS_FACCESSAT2, 0, []any{fdArg("root"), rel("link"), 4, 1}},
		{unix.SYS_FACCESSAT2, 0, []any{fdArg("file"), rel(""), 4, unix.AT_EMPTY_PATH}}, {unix.SYS_FACCESSAT2, 0, []any{fdArg("dir"), rel(""), 1, unix.AT_EMPTY_PATH}},
		{unix.SYS_FCNTL, 0, []any{fdArg("file"), unix.F_GETFL}}, {unix.SYS_FCNTL, 0, []any{fdArg("dir"), unix.F_GETFL}},
		{unix.SYS_FCNTL, 0, []any{fdArg("fifo"), unix.F_GETFL}}, {unix.SYS_FCNTL, 0, []any{fdArg("path"), unix.F_GETFL}},
		{unix.SYS_FCNTL, 0, []any{fdArg("wo"), unix.F_GETFD}}, {unix.SYS_FCNTL, 0, []any{fdArg("wo"), unix.F_SETFD, 0}},
		{unix.SYS_FCNTL, 0, []any{fdArg("wo"), unix.F_GETFD}}, {unix.SYS_FCNTL, 0, []any{fdArg("ro"), 9999}},
		{unix.SYS_FCNTL, 0, []any{fdArg("path"), unix.F_SETFL, 0}}, {unix.SYS_FCNTL, 0, []any{fdArg("ro"), unix.F_DUPFD, 1 << 30}},
		{unix.SYS_FCNTL, 0, []any{fdArg("ro"), unix.F_SETFL, unix.O_APPEND | unix.O_NONBLOCK | unix.O_RDWR}},
		{unix.SYS_FCNTL, 0, []any{fdArg("ro"), unix.F_GETFL}}, {unix.SYS_FCNTL, 0, []any{fdArg("fifo"), unix.F_GETPIPE_SZ}},
		{unix.SYS_FCNTL, 32, []any{fdArg("file"), unix.F_GETLK, w(0, 0, 0, 0)}},
		{unix.SYS_STATFS, 120, []any{b.str("/definitely/not"), out}},
		{unix.SYS_CHDIR, 0, []any{p("file")}}, {unix.SYS_CHDIR, 0, []any{p("none")}}, {unix.SYS_FCHDIR, 0, []any{fdArg("file")}},
		{unix.SYS_OPEN, 0, []any{p("none"), 0}}, {unix.SYS_OPEN, 0, []any{p("dir"), unix.O_RDWR}}, {unix.SYS_OPEN, 0, []any{p("loop"), 0}},
		{unix.SYS_OPEN, 0, []any{p("link"), unix.O_NOFOLLOW}}, {unix.SYS_OPEN, 0, []any{p("file"), unix.O_DIRECTORY}},
		{unix.SYS_OPEN, 0, []any{p("file"), unix.O_CREAT | unix.O_EXCL, 0o644}}, {unix.SYS_OPEN, 0, []any{b.str(b.dir + "/file/"), 0}},
		{unix.SYS_OPENAT, 0, []any{fdArg("file"), rel("x"), 0, 0}}, {unix.SYS_OPENAT, 0, []any{fdArg("bad"), rel("x"), 0, 0}},
		{unix.SYS_OPENAT2, 0, []any{fdArg("root"), rel("file"), w(1<<40, 0, 0), 24}}, {unix.SYS_OPENAT2, 0, []any{fdArg("root"), rel("file"), w(0, 0o644, 0), 24}},
		{unix.SYS_OPENAT2, 0, []any{fdArg("root"), rel("file"), w(0, 0, 0, 1), 32}}, {unix.SYS_OPENAT2, 0, []any{fdArg("root"), rel("none"), w(0, 0, 0, 0), 32}},
		{unix.SYS_MKDIR, 0, []any{p("dir"), 0o755}}, {unix.SYS_RMDIR, 0, []any{p("file")}}, {unix.SYS_UNLINK, 0, []any{p("dir")}},
		{unix.SYS_UNLINKAT, 0, []any{fdArg("root"), rel("dir"), 1}}, {unix.SYS_RENAME, 0, []any{p("none"), p("x")}},
		{unix.SYS_RENAMEAT2, 0, []any{fdArg("root"), rel("file"), fdArg("root"), rel("link"), unix.RENAME_NOREPLACE}},
		{unix.SYS_RENAMEAT2, 0, []any{fdArg("root"), rel("file"), fdArg("root"), rel("link"), 3}}, {unix.SYS_LINK, 0, []any{p("dir"), p("x")}},
		{unix.SYS_LINK, 0, []any{p("file"), p("link")}}, {unix.SYS_SYMLINK, 0, []any{rel(""), p("x")}}, {unix.SYS_SYMLINK, 0, []any{rel("t"), p("file")}},
		{unix.SYS_TRUNCATE, 0, []any{p("file"), -1}}, {unix.SYS_TRUNCATE, 0, []any{p("dir"), 1}}, {unix.SYS_FTRUNCATE, 0, []any{fdArg("ro"), 1}},
		{unix.SYS_FTRUNCATE, 0, []any{fdArg("fifo"), 1}}, {unix.SYS_FTRUNCATE, 0, []any{fdArg("path"), 1}}, {unix.SYS_FALLOCATE, 0, []any{fdArg("ro"), 0, 0, 1}},
		{unix.SYS_FALLOCATE, 0, []any{fdArg("file"), 0, 0, 0}}, {unix.SYS_FADVISE64, 0, []any{fdArg("file"), 0, 0, 77}}, {unix.SYS_FADVISE64, 0, []any{fdArg("fifo"), 0, 0, 0}},
		{unix.SYS_FSYNC, 0, []any{fdArg("fifo")}}, {unix.SYS_FSYNC, 0, []any{fdArg("file")}}, {unix.SYS_FDATASYNC, 0, []any{fdArg("path")}},
		{unix.SYS_UTIMENSAT, 0, []any{fdArg("file"), 0, w(0, 1<<40, 0, 0), 0}}, {unix.SYS_UTIMENSAT, 0, []any{fdArg("root"), rel("none"), w(0, unix.UTIME_OMIT, 0, unix.UTIME_OMIT), 0}},
		{unix.SYS_UTIMENSAT, 0, []any{fdArg("root"), rel("none"), 0, 1}}, {unix.SYS_UTIMES, 0, []any{p("none"), w(0, 1<<40, 0, 0)}},
		{unix.SYS_DUP2, 0, []any{fdArg("bad"), 5}}, {unix.SYS_DUP2, 0, []any{fdArg("ro"), -1}}, {unix.SYS_DUP3, 0, []any{5, 5, 0}}, {unix.SYS_DUP3, 0, []any{0, 500, 1}},
		{unix.SYS_DUP, 0, []any{fdArg("bad")}}, {unix.SYS_CLOSE, 0, []any{fdArg("bad")}}, {unix.SYS_CLOSE_RANGE, 0, []any{9, 5, 0}}, {unix.SYS_CLOSE_RANGE, 0, []any{600, 700, 9}},
		{unix.SYS_CLOSE_RANGE, 0, []any{600, 700, 0}}, {unix.SYS_FLOCK, 0, []any{fdArg("file"), 99}}, {unix.SYS_FLOCK, 0, []any{fdArg("path"), 2}}, {unix.SYS_FLOCK, 0, []any{fdArg("file"), 4 | 8}},
		{unix.SYS_WRITE, 0, []any{fdArg("ro"), out, 1}}, {unix.SYS_WRITE, 0, []any{fdArg("file"), out, 0}}, {unix.SYS_PWRITE64, 0, []any{fdArg("fifo"), out, 1, 0}},
		{unix.SYS_PWRITE64, 0, []any{fdArg("file"), out, 1, -1}}, {unix.SYS_PWRITE64, 0, []any{fdArg("ro"), out, 1, 0}}, {unix.SYS_WRITEV, 0, []any{fdArg("ro"), w(out, 1), 1}},
		{unix.SYS_SENDFILE, 0, []any{fdArg("ro"), fdArg("file"), 0, 1}}, {unix.SYS_SENDFILE, 0, []any{fdArg("wo"), fdArg("wo"), 0, 1}}, {unix.SYS_SENDFILE, 0, []any{fdArg("wo"), fdArg("file"), w(1 << 63), 1}},
		{unix.SYS_COPY_FILE_RANGE, 0, []any{fdArg("file"), 0, fdArg("wo"), 0, 1, 1}}, {unix.SYS_COPY_FILE_RANGE, 0, []any{fdArg("ro"), w(0), fdArg("ro"), w(0), 1, 0}},
		{unix.SYS_PIPE2, 0, []any{out, 1}}, {unix.SYS_EVENTFD2, 0, []any{0, 2}}, {unix.SYS_EPOLL_CREATE, 0, []any{0}}, {unix.SYS_EPOLL_CREATE1, 0, []any{1}},
		{unix.SYS_EPOLL_WAIT, 0, []any{fdArg("file"), out, 1, 0}}, {unix.SYS_EPOLL_WAIT, 0, []any{fdArg("file"), out, 0, 0}},
		{unix.SYS_TIMERFD_CREATE, 0, []any{99, 0}}, {unix.SYS_TIMERFD_CREATE, 0, []any{1, 5}}, {unix.SYS_TIMERFD_GETTIME, 0, []any{fdArg("file"), out}},
		{unix.SYS_MEMFD_CREATE, 0, []any{rel("x"), 0x8000}}, {unix.SYS_IOCTL, 0, []any{fdArg("file"), unix.TCGETS, out}}, {unix.SYS_IOCTL, 4, []any{fdArg("file"), unix.TIOCINQ, out}},
		{unix.SYS_IOCTL, 0, []any{fdArg("file"), unix.TIOCGWINSZ, out}}, {unix.SYS_IOCTL, 0, []any{fdArg("path"), unix.TCGETS, out}}, {unix.SYS_IOCTL, 4, []any{fdArg("fifo"), unix.TIOCINQ, out}},
		{unix.SYS_UNAME, 390, []any{out}}, {unix.SYS_GETRESUID, 0, []any{out, out + 4, out + 8}}, {unix.SYS_GETGROUPS, 64, []any{16, out}}, {unix.SYS_GETGROUPS, 0, []any{0, 0}},
		{unix.SYS_GETPGID, 0, []any{0}}, {unix.SYS_GETSID, 0, []any{0}}, {unix.SYS_GETPGRP, 0, nil}, {unix.SYS_UMASK, 0, []any{0o22}}, {unix.SYS_UMASK, 0, []any{0o22}},
		{unix.SYS_GETRLIMIT, 16, []any{unix.RLIMIT_CORE, out}}, {unix.SYS_GETRLIMIT, 0, []any{16, out}}, {unix.SYS_SETRLIMIT, 0, []any{unix.RLIMIT_CORE, w(2, 1)}},
		{unix.SYS_CLOCK_GETRES, 16, []any{1, out}}, {unix.SYS_CLOCK_GETRES, 16, []any{6, out}}, {unix.SYS_CLOCK_GETRES, 16, []any{2, out}}, {unix.SYS_CLOCK_GETRES, 0, []any{-6, out}}, {unix.SYS_CLOCK_GETRES, 0, []any{10, out}},
		{unix.SYS_CLOCK_GETTIME, 0, []any{-6, out}}, {unix.SYS_CLOCK_GETTIME, 0, []any{-5, out}}, {unix.SYS_CLOCK_GETTIME, 0, []any{12, out}}, {unix.SYS_CLOCK_GETTIME, 0, []any{99, out}},
		{unix.SYS_CLOCK_NANOSLEEP, 0, []any{3, 0, w(0, 1), 0}}, {unix.SYS_CLOCK_NANOSLEEP, 0, []any{4, 0, w(0, 1), 0}}, {unix.SYS_CLOCK_NANOSLEEP, 0, []any{1, 0, w(0, 1e9), 0}}, {unix.SYS_CLOCK_NANOSLEEP, 0, []any{0, 1, w(1, 1), 0}},
		{unix.SYS_NANOSLEEP, 0, []any{w(0, 1000), 0}}, {unix.SYS_NANOSLEEP, 0, []any{w(1<<63, 0), 0}}, {unix.SYS_NANOSLEEP, 0, []any{w(0, 1e9), 0}},
		{unix.SYS_SCHED_GET_PRIORITY_MAX, 0, []any{1}}, {unix.SYS_SCHED_GET_PRIORITY_MIN, 0, []any{2}}, {unix.SYS_SCHED_GET_PRIORITY_MAX, 0, []any{0}}, {unix.SYS_SCHED_GET_PRIORITY_MAX, 0, []any{4}}, {unix.SYS_SCHED_GET_PRIORITY_MAX, 0, []any{6}},
		{unix.SYS_SCHED_GETSCHEDULER, 0, []any{0}}, {unix.SYS_SCHED_GETSCHEDULER, 0, []any{-1}}, {unix.SYS_SCHED_SETSCHEDULER, 0, []any{0, 1, w(0)}}, {unix.SYS_SCHED_GETPARAM, 4, []any{0, out}}, {unix.SYS_SCHED_GETAFFINITY, 0, []any{0, 4, out}}, {unix.SYS_SCHED_GETAFFINITY, 0, []any{0, 3, out}},
		{unix.SYS_GETPRIORITY, 0, []any{0, 0}}, {unix.SYS_GETPRIORITY, 0, []any{3, 0}}, {unix.SYS_CAPGET, 24, []any{w(0x20080522), out}}, {unix.SYS_CAPGET, 0, []any{w(1), out}},
		{unix.SYS_PRCTL, 0, []any{unix.PR_GET_DUMPABLE}}, {unix.SYS_PRCTL, 0, []any{unix.PR_SET_DUMPABLE, 2}}, {unix.SYS_PRCTL, 0, []any{9999}}, {unix.SYS_PRCTL, 0, []any{unix.PR_GET_NO_NEW_PRIVS, 1}}, {unix.SYS_PRCTL, 0, []any{unix.PR_CAPBSET_READ, 1}}, {unix.SYS_PRCTL, 0, []any{unix.PR_CAPBSET_READ, 99}}, {unix.SYS_PRCTL, 0, []any{unix.PR_GET_KEEPCAPS}},
		{unix.SYS_ARCH_PRCTL, 0, []any{0x9999, 0}}, {unix.SYS_ARCH_PRCTL, 0, []any{0x1011, 0}}, {unix.SYS_ARCH_PRCTL, 0, []any{0x1002, 1 << 60}}, {unix.SYS_ARCH_PRCTL, 0, []any{0x1003, 0}},
		{unix.SYS_WAIT4, 0, []any{-1, 0, 0, 0}}, {unix.SYS_WAIT4, 0, []any{-1, 0, 1 << 20, 0}}, {unix.SYS_WAITID, 0, []any{0, 0, 0, 4, 0}}, {unix.SYS_WAITID, 0, []any{9, 0, 0, 4, 0}}, {unix.SYS_WAITID, 0, []any{0, 0, 0, 0, 0}},
		{unix.SYS_RT_SIGACTION, 0, []any{65, 0, out, 8}}, {unix.SYS_RT_SIGACTION, 0, []any{9, w(0, 0, 0, 0), 0, 8}}, {unix.SYS_RT_SIGACTION, 0, []any{0, 0, 0, 8}}, {unix.SYS_RT_SIGPROCMASK, 0, []any{9, w(0), 0, 8}},
		{unix.SYS_SIGALTSTACK, 0, []any{w(0, 8, 0), 0}}, {unix.SYS_SIGALTSTACK, 0, []any{w(0, 0, 100), 0}}, {unix.SYS_KILL, 0, []any{0, 65}}, {unix.SYS_TGKILL, 0, []any{0, 0, 0}}, {unix.SYS_TKILL, 0, []any{-1, 0}},
		{unix.SYS_FUTEX, 0, []any{w(5), 128, 4, 0}}, {unix.SYS_FUTEX, 0, []any{w(5) + 1, 128, 5, 0}}, {unix.SYS_FUTEX, 0, []any{w(5), 129, 1}}, {unix.SYS_FUTEX, 0, []any{w(5), 128, 5, w(0, 1000)}}, {unix.SYS_FUTEX, 0, []any{w(5), 137, 5, w(0, 1), 0, -1}}, {unix.SYS_FUTEX, 0, []any{w(5), 128, 5, w(0, 1e9)}}, {unix.SYS_FUTEX, 0, []any{w(5), 132, 1, 1, w(6), 4}},
		{unix.SYS_GETRANDOM, 0, []any{out, 16, 0}}, {unix.SYS_GETRANDOM, 0, []any{out, 16, 9}}, {unix.SYS_GETRANDOM, 0, []any{out, 0, 0}},
		{unix.SYS_MADVISE, 0, []any{out + 1, page, 0}}, {unix.SYS_MSYNC, 0, []any{out, page, 5}}, {unix.SYS_MSYNC, 0, []any{out + 1, page, 4}}, {unix.SYS_MPROTECT, 0, []any{out + 1, page, 1}}, {unix.SYS_MPROTECT, 0, []any{out, page, 0x3000000}}, {unix.SYS_MUNMAP, 0, []any{out + 1, page}}, {unix.SYS_MUNMAP, 0, []any{out, 0}}, {unix.SYS_MUNMAP, 0, []any{out, -1}},
		{unix.SYS_MMAP, 0, []any{0, 0, 3, 0x22, -1, 0}}, {unix.SYS_MMAP, 0, []any{0, page, 3, 0x22, -1, 1}}, {unix.SYS_MMAP, 0, []any{0, page, 3, 0x2, fdArg("bad"), 0}}, {unix.SYS_MMAP, 0, []any{0, page, 3, 0x2, fdArg("path"), 0}}, {unix.SYS_MMAP, 0, []any{0, -4096, 3, 0x22, -1, 0}},
		{unix.SYS_MREMAP, 0, []any{out + 1, page, page, 0}}, {unix.SYS_MREMAP, 0, []any{out, page, 0, 0}}, {unix.SYS_MREMAP, 0, []any{out, page, page, 2}}, {unix.SYS_MREMAP, 0, []any{out, page, page, 99}},
		{unix.SYS_POLL, 8, []any{b.put([]byte{255, 255, 255, 255, 1, 0, 9, 9}), 1, 0}}, {unix.SYS_SELECT, 0, []any{-1, 0, 0, 0, w(0, 0)}}, {unix.SYS_SELECT, 0, []any{0, 0, 0, 0, w(1<<63, 0)}}, {unix.SYS_SELECT, 0, []any{0, 0, 0, 0, w(0, 1)}},
		{unix.SYS_MLOCKALL, 0, []any{0}}, {unix.SYS_MLOCKALL, 0, []any{4}}, {unix.SYS_MINCORE, 0, []any{out + 1, 1, out}}, {unix.SYS_MINCORE, 0, []any{out, page, out}}, {unix.SYS_MEMBARRIER, 0, []any{99, 0}}, {unix.SYS_MEMBARRIER, 0, []any{0, 7}},
		{unix.SYS_SETPGID, 0, []any{0, -1}}, {unix.SYS_SET_ROBUST_LIST, 0, []any{0, 23}}, {unix.SYS_GETITIMER, 32, []any{0, out}}, {unix.SYS_ALARM, 0, []any{0}}, {unix.SYS_GETRUSAGE, 0, []any{5, out}}, {unix.SYS_SETITIMER, 0, []any{0, w(0, 0, 0, 1e6), 0}},
	} {
		at := out
		if c.nr == unix.SYS_FCNTL && c.n == 32 {
			at = c.in[2].(uint64)
		}
		if c.nr == unix.SYS_POLL {
			at = c.in[0].(uint64)
		}
		b.same(c.nr, at, c.n, c.in...)
	}
}
