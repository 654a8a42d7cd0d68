package linux

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// runner makes the calls of one side: the host in one directory, the guest in its twin.
type runner struct {
	*guest
	call func(nr uint64, a ...uint64) int64
	root uint64
	log  []string
}

func (r *runner) do(nr uint64, a ...uint64) int64 {
	v := r.call(nr, a...)
	r.log = append(r.log, fmt.Sprintf("%s -> %s", Name(nr), result64(v)))
	return v
}

// fd is do for a call whose result is a descriptor, which differs between the sides.
func (r *runner) fd(nr uint64, a ...uint64) uint64 {
	v := r.call(nr, a...)
	shown := "fd"
	if v < 0 {
		shown = result64(v)
	}
	r.log = append(r.log, fmt.Sprintf("%s -> %s", Name(nr), shown))
	return uint64(v)
}

func (r *runner) saw(what string, b []byte) { r.log = append(r.log, fmt.Sprintf("%s %q", what, b)) }

// script changes a tree in every way there is.
func script(r *runner) {
	s := r.str
	buf := r.buf(4096)
	open := func(path string, flags, mode uint64) uint64 {
		return r.fd(unix.SYS_OPENAT, r.root, s(path), flags, mode)
	}
	const rw = unix.O_RDWR | unix.O_CREAT
	r.do(unix.SYS_MKDIRAT, r.root, s("d"), 0o750)
	r.do(unix.SYS_MKDIRAT, r.root, s("d/e"), 0o700)
	r.do(unix.SYS_MKDIRAT, r.root, s("nope/e"), 0o700)
	a := open("d/a", rw|unix.O_EXCL, 0o666)
	open("d/a", rw|unix.O_EXCL, 0o666)
	r.do(unix.SYS_WRITE, a, s("0123456789"), 10)
	r.do(unix.SYS_PWRITE64, a, s("AB"), 2, 4)
	r.do(unix.SYS_PWRITEV, a, r.words(s("xy"), 2, s("z"), 1), 2, 20)
	r.do(unix.SYS_LSEEK, a, 0, unix.SEEK_END)
	r.do(unix.SYS_WRITEV, a, r.words(s("tail"), 4, 0, 0), 2)
	r.do(unix.SYS_FTRUNCATE, a, 26)
	r.do(unix.SYS_FALLOCATE, a, 0, 0, 5000)
	r.do(unix.SYS_FALLOCATE, a, 3, 0, 4096)
	r.do(unix.SYS_FCHMOD, a, 0o604)
	r.do(unix.SYS_FCHOWN, a, ^uint64(0), ^uint64(0))
	r.do(unix.SYS_UTIMENSAT, a, 0, r.words(1000, 5, 2000, 6), 0)
	r.do(unix.SYS_FCNTL, a, unix.F_SETFL, unix.O_APPEND)
	r.do(unix.SYS_PWRITE64, a, s("end"), 3, 0)
	r.do(unix.SYS_FCNTL, a, unix.F_GETFL)
	r.do(unix.SYS_LINKAT, r.root, s("d/a"), r.root, s("hard"), 0)
	r.do(unix.SYS_LINKAT, r.root, s("d"), r.root, s("hard2"), 0)
	r.do(unix.SYS_SYMLINKAT, s("d/a"), r.root, s("soft"))
	r.do(unix.SYS_SYMLINKAT, s("nowhere"), r.root, s("dangling"))
	r.do(unix.SYS_LINKAT, r.root, s("soft"), r.root, s("hard3"), unix.AT_SYMLINK_FOLLOW)
	r.do(unix.SYS_LINKAT, r.root, s("soft"), r.root, s("soft2"), 0)
	n := r.do(unix.SYS_READLINKAT, r.root, s("soft"), buf, 100)
	r.saw("link", r.bytes(buf, uint64(max(n, 0))))
	open("dangling", unix.O_RDONLY, 0)
	b := open("dangling", rw, 0o600)
	r.do(unix.SYS_WRITE, b, s("made through a link"), 19)
	r.do(unix.SYS_RENAMEAT, r.root, s("hard"), r.root, s("d/e/moved"))
	r.do(unix.SYS_RENAMEAT2, r.root, s("nowhere"), r.root, s("d/a"), unix.RENAME_NOREPLACE)
	r.do(unix.SYS_RENAMEAT2, r.root, s("nowhere"), r.root, s("d/e"), unix.RENAME_EXCHANGE)
	r.do(unix.SYS_RENAMEAT, r.root, s("d"), r.root, s("d/e/x"))
	r.do(unix.SYS_MKNODAT, r.root, s("fifo"), unix.S_IFIFO|0o640, 0)
	r.do(unix.SYS_MKNODAT, r.root, s("reg"), unix.S_IFREG|0o640, 0)
	r.do(unix.SYS_FCHMODAT, r.root, s("soft"), 0o611)
	if native(unix.SYS_FCHMODAT2, 0, 0, 0, 1) != e(unix.ENOSYS) { // since Linux 6.6
		r.do(unix.SYS_FCHMODAT2, r.root, s("reg"), 0o4755, 0)
	}
	r.do(unix.SYS_FCHOWNAT, r.root, s("soft"), ^uint64(0), ^uint64(0), unix.AT_SYMLINK_NOFOLLOW)
	r.do(unix.SYS_UTIMENSAT, r.root, s("soft"), r.words(7, 0, 8, 0), unix.AT_SYMLINK_NOFOLLOW)
	r.do(unix.SYS_UTIMENSAT, r.root, s("d/a"), r.words(1, unix.UTIME_OMIT, 99, 0), 0)
	r.do(unix.SYS_FUTIMESAT, r.root, s("reg"), r.words(11, 22, 33, 44))
	r.do(unix.SYS_UNLINKAT, r.root, s("d"), unix.AT_REMOVEDIR)
	r.do(unix.SYS_UNLINKAT, r.root, s("d"), 0)
	r.do(unix.SYS_UNLINKAT, r.root, s("reg/"), 0)
	t := open(".", unix.O_TMPFILE|unix.O_RDWR, 0o600)
	r.do(unix.SYS_WRITE, t, s("unnamed"), 7)
	r.do(unix.SYS_LSEEK, t, 2, 0)
	n = r.do(unix.SYS_READ, t, buf, 100)
	r.saw("read", r.bytes(buf, uint64(max(n, 0))))
	off := r.words(1)
	r.do(unix.SYS_LSEEK, b, 0, unix.SEEK_END)
	r.do(unix.SYS_SENDFILE, b, t, off, 4)
	r.saw("offset", r.bytes(off, 8))
	r.do(unix.SYS_COPY_FILE_RANGE, t, off, b, 0, 100, 0)
	r.do(unix.SYS_DUP3, t, 60, unix.O_CLOEXEC)
	r.do(unix.SYS_FCNTL, 60, unix.F_GETFD)
	r.do(unix.SYS_DUP2, t, 61)
	r.do(unix.SYS_IOCTL, 61, fioclex, 0)
	r.do(unix.SYS_FCNTL, 61, unix.F_GETFD)
	r.do(unix.SYS_CLOSE, 60)
	r.do(unix.SYS_CLOSE, 61)
	r.do(unix.SYS_CLOSE, 61)
	masked := r.words(0)
	r.do(unix.SYS_FLOCK, a, unix.LOCK_EX)
	c := open("d/a", unix.O_RDWR, 0)
	r.do(unix.SYS_FLOCK, c, unix.LOCK_EX|unix.LOCK_NB)
	r.do(unix.SYS_FLOCK, a, unix.LOCK_UN)
	r.do(unix.SYS_FLOCK, c, unix.LOCK_SH|unix.LOCK_NB)
	r.do(unix.SYS_RT_SIGPENDING, masked, 8)
	dir := open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	names := map[string]bool{}
	for {
		n := r.call(unix.SYS_GETDENTS64, dir, buf, 200)
		if n <= 0 {
			r.saw("getdents", []byte(result64(n)))
			break
		}
		for p := r.bytes(buf, uint64(n)); len(p) > 0; p = p[binary.LittleEndian.Uint16(p[16:]):] {
			name, _, _ := strings.Cut(string(p[19:binary.LittleEndian.Uint16(p[16:])]), "\x00")
			names[fmt.Sprint(name, p[18])] = true
		}
	}
	r.saw("names", []byte(fmt.Sprint(names)))
	// The old call: the same names, with the type at the end of each record.
	r.do(unix.SYS_LSEEK, dir, 0, 0)
	old := map[string]bool{}
	for {
		n := r.call(unix.SYS_GETDENTS, dir, buf, 200)
		if n <= 0 {
			r.saw("getdents", []byte(result64(n)))
			break
		}
		for p := r.bytes(buf, uint64(n)); len(p) > 0; p = p[binary.LittleEndian.Uint16(p[16:]):] {
			size := binary.LittleEndian.Uint16(p[16:])
			name, _, _ := strings.Cut(string(p[18:size-1]), "\x00")
			old[fmt.Sprint(name, p[size-1])] = true
		}
	}
	r.saw("old names", []byte(fmt.Sprint(old, len(old) == len(names))))
	r.do(unix.SYS_GETDENTS, dir, buf, 10)
	r.do(unix.SYS_GETDENTS, a, buf, 100)
	r.do(unix.SYS_GETDENTS64, open(".", unix.O_DIRECTORY, 0), buf, 10)
	for _, fd := range []uint64{a, b, c, t, dir} {
		r.do(unix.SYS_CLOSE, fd)
	}
}

// TestSameTree runs the script on the host and in the guest and compares every result and the trees.
func TestSameTree(t *testing.T) {
	mask := unix.Umask(0o27)
	defer unix.Umask(mask)
	var logs [2][]string
	var trees [2]string
	for i := range 2 {
		g := newGuest(t, nil)
		r := &runner{guest: g, call: g.call}
		if i == 0 {
			r.call = native
		}
		r.root = uint64(r.call(unix.SYS_OPEN, g.str(g.dir), unix.O_DIRECTORY))
		script(r)
		r.call(unix.SYS_CLOSE, r.root)
		logs[i], trees[i] = r.log, tree(t, g.dir)
	}
	for i, line := range logs[0] {
		if line != logs[1][i] {
			t.Errorf("step %d: the host: %s; the guest: %s", i, line, logs[1][i])
		}
	}
	if trees[0] != trees[1] {
		t.Errorf("trees differ\nhost\n%s\nguest\n%s", trees[0], trees[1])
	}
	t.Logf("%d steps", len(logs[0]))
}

// tree says everything about a tree that is the same whoever made it.
func tree(t *testing.T, root string) string {
	var b strings.Builder
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		fmt.Fprintf(&b, "%s %o %d %d", rel, st.Mode, st.Nlink, st.Size)
		if st.Mtim.Sec < time.Now().Unix()-1000 {
			fmt.Fprintf(&b, " %v", st.Mtim)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %q", content)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestAbort is what abort(3) does: block, raise, unblock; then with a handler in the way.
func TestAbort(t *testing.T) {
	g := newGuest(t, nil)
	pid := uint64(os.Getpid())
	old := g.buf(32)
	g.want(0, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, g.words(^uint64(0)), 0, 8)
	g.want(0, unix.SYS_TGKILL, pid, pid, uint64(unix.SIGABRT))
	if out := g.out(unix.SYS_KILL, pid, uint64(unix.SIGKILL)); out.Kind != Kill || out.Value != 9 {
		t.Errorf("SIGKILL cannot be blocked: %+v", out)
	}
	if out := g.out(unix.SYS_RT_SIGPROCMASK, unix.SIG_UNBLOCK, g.words(sigBit(6)), 0, 8); out.Kind != Kill || out.Value != 6 {
		t.Errorf("unblock: %+v", out)
	}
	g.want(0, unix.SYS_RT_SIGACTION, 6, g.words(0x401000, 0x4000000, 0x402000, ^uint64(0)), old, 8)
	if out := g.out(unix.SYS_RT_SIGPROCMASK, unix.SIG_UNBLOCK, g.words(sigBit(6)), 0, 8); out.Kind != Return {
		t.Errorf("nothing is pending: %+v", out)
	}
	g.want(0, unix.SYS_RT_SIGPROCMASK, unix.SIG_BLOCK, g.words(sigBit(6)), 0, 8)
	g.want(0, unix.SYS_TKILL, pid, 6)
	g.want(0, unix.SYS_RT_SIGACTION, 6, 0, old, 8)
	if g.word(old) != 0x401000 || g.word(old+24) != ^uint64(0)&^unblockable {
		t.Errorf("old action %#x mask %#x", g.word(old), g.word(old+24))
	}
	g.want(0, unix.SYS_RT_SIGACTION, 6, g.words(sigDFL, 0, 0, 0), 0, 8)
	if out := g.out(unix.SYS_RT_SIGPROCMASK, unix.SIG_UNBLOCK, g.words(sigBit(6)), 0, 8); out.Kind != Kill || out.Value != 6 {
		t.Errorf("back to the default with one pending: %+v", out)
	}
}

// TestRegisters covers arch_prctl and Cloister's own calls.
func TestRegisters(t *testing.T) {
	var sealed []bool
	g := newGuest(t, func(c *Config) {
		c.Isolate = func(on bool) unix.Errno { sealed = append(sealed, on); return 0 }
		c.GapRecord = func(addr uint64) unix.Errno { return 0 }
	})
	b := g.buf(8)
	g.want(0, unix.SYS_ARCH_PRCTL, 0x1002, 0x12345678)
	g.want(0, unix.SYS_ARCH_PRCTL, 0x1003, b)
	if g.word(b) != 0x12345678 {
		t.Errorf("FS base %#x", g.word(b))
	}
	g.want(0, unix.SYS_ARCH_PRCTL, 0x1001, 0x777)
	g.want(0, unix.SYS_ARCH_PRCTL, 0x1004, b)
	if g.word(b) != 0x777 {
		t.Errorf("GS base %#x", g.word(b))
	}
	g.want(0, 0x434c00, 1)
	g.want(0, 0x434c00, 0)
	g.want(e(unix.EINVAL), 0x434c00, 2)
	if len(sealed) != 2 || !sealed[0] || sealed[1] {
		t.Errorf("seals %v", sealed)
	}
	g.want(0, 0x434c01, g.mem.base+page)
	g.want(e(unix.EINVAL), 0x434c01, g.mem.base+8)
	g.want(e(unix.EFAULT), 0x434c01, g.mem.base+63*page)
	g.want(e(unix.EFAULT), 0x434c01, 0)
	g.want(e(unix.EPERM), 0x434c02, 1)
}
