package linux

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
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
	for _, c := range calls {
		addrs := []uint64{0, 1, 8, 0xffff, edge, edge + page - 1, taskSize - 8, taskSize, taskSize + 1, 1 << 47, 1 << 63, 1<<63 - 1, ^uint64(0), ^uint64(0) - 4095, 0xffff_8000_0000_0000}
		for off := range uint64(c.size + 2) {
			if c.size < 300 || off < 8 || off > uint64(c.size)-8 {
				addrs = append(addrs, edge-off)
			}
		}
		for _, addr := range addrs {
			in := make([]any, len(c.in))
			for i, v := range c.in {
				in[i] = v
				if v == at {
					in[i] = addr
				}
			}
			b.same(c.nr, 0, 0, in...)
			n++
		}
	}
	if !b.mem.guardsIntact() {
		t.Error("a guard zone changed")
	}
	t.Logf("%d calls compared", n)
}
