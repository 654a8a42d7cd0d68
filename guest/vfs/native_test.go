package vfs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The tests here do the same operation twice, by the host kernel on one tree and by the FS on a twin, and compare
// errno, what was read, and the trees afterwards. The trees lie five directories below the place that is
// mounted, under their own host path, so that neither absolute links nor a few ".." leave it natively.

const twinDepth = "/1/2/3/4/5"

// side is one way to operate.
type side interface {
	open(path string, flags int, mode uint32) (string, unix.Errno)
	stat(path string, follow bool) (string, unix.Errno)
	statx(path string, flags int) (string, unix.Errno)
	access(path string, mode uint32) unix.Errno
	readlink(path string) (string, unix.Errno)
	mkdir(path string, mode uint32) unix.Errno
	unlink(path string, rmdir bool) unix.Errno
	rename(a, b string, flags uint) unix.Errno
	link(a, b string, flags int) unix.Errno
	symlink(target, path string) unix.Errno
	chmod(path string, mode uint32) unix.Errno
	chown(path string, flags int) unix.Errno
	utimens(path string, flags int) unix.Errno
	truncate(path string, size int64) unix.Errno
	mknod(path string, mode uint32) unix.Errno
	chdir(path string) unix.Errno
	statfs(path string) unix.Errno
	list(path string) (string, unix.Errno)
}

func describe(st *unix.Stat_t) string {
	size := st.Size
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		size = 0
	}
	return fmt.Sprintf("%o %d", st.Mode, size)
}

// native is the host kernel, with a directory descriptor as the working directory.
type native struct{ fd int }

func (n *native) open(path string, flags int, mode uint32) (string, unix.Errno) {
	fd, err := unix.Openat(n.fd, path, flags|unix.O_CLOEXEC, mode)
	if err != nil {
		return "", errno(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", errno(err)
	}
	buf := make([]byte, 100)
	w, werr := unix.Write(fd, []byte("w"))
	r, rerr := unix.Pread(fd, buf, 0)
	return fmt.Sprintf("%s write %d %v read %q %v", describe(&st), w, errno(werr), buf[:max(r, 0)], errno(rerr)), 0
}

func (n *native) stat(path string, follow bool) (string, unix.Errno) {
	flags := 0
	if !follow {
		flags = unix.AT_SYMLINK_NOFOLLOW
	}
	var st unix.Stat_t
	err := unix.Fstatat(n.fd, path, &st, flags)
	return describe(&st), errno(err)
}

func (n *native) statx(path string, flags int) (string, unix.Errno) {
	var st unix.Statx_t
	err := unix.Statx(n.fd, path, flags, unix.STATX_BASIC_STATS, &st)
	return fmt.Sprintf("%o", st.Mode), errno(err)
}
func (n *native) access(path string, mode uint32) unix.Errno {
	return errno(unix.Faccessat(n.fd, path, mode, 0))
}

func (n *native) readlink(path string) (string, unix.Errno) {
	buf := make([]byte, 5000)
	k, err := unix.Readlinkat(n.fd, path, buf)
	return string(buf[:max(k, 0)]), errno(err)
}

func (n *native) mkdir(path string, mode uint32) unix.Errno {
	return errno(unix.Mkdirat(n.fd, path, mode))
}

func (n *native) unlink(path string, rmdir bool) unix.Errno {
	flags := 0
	if rmdir {
		flags = unix.AT_REMOVEDIR
	}
	return errno(unix.Unlinkat(n.fd, path, flags))
}

func (n *native) rename(a, b string, flags uint) unix.Errno {
	return errno(unix.Renameat2(n.fd, a, n.fd, b, flags))
}

func (n *native) link(a, b string, flags int) unix.Errno {
	return errno(unix.Linkat(n.fd, a, n.fd, b, flags))
}

func (n *native) symlink(target, path string) unix.Errno {
	return errno(unix.Symlinkat(target, n.fd, path))
}

func (n *native) chmod(path string, mode uint32) unix.Errno {
	return errno(unix.Fchmodat(n.fd, path, mode, 0))
}

func (n *native) chown(path string, flags int) unix.Errno {
	return errno(unix.Fchownat(n.fd, path, -1, -1, flags))
}

func (n *native) utimens(path string, flags int) unix.Errno {
	return errno(unix.UtimesNanoAt(n.fd, path, []unix.Timespec{{Sec: 5}, {Sec: 6}}, flags))
}

func (n *native) truncate(path string, size int64) unix.Errno {
	// truncate(2) knows no directory descriptor: open the way there.
	return errno(unix.Truncate(fmt.Sprintf("/proc/self/fd/%d/%s", n.fd, path), size))
}

func (n *native) mknod(path string, mode uint32) unix.Errno {
	return errno(unix.Mknodat(n.fd, path, mode, 0))
}

func (n *native) chdir(path string) unix.Errno {
	fd, err := unix.Openat(n.fd, path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return errno(err)
	}
	if err := unix.Faccessat(fd, ".", unix.X_OK, unix.AT_EACCESS); err != nil {
		unix.Close(fd)
		return errno(err)
	}
	unix.Close(n.fd)
	n.fd = fd
	return 0
}

func (n *native) statfs(path string) unix.Errno {
	fd, err := unix.Openat(n.fd, path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return errno(err)
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	return errno(unix.Fstatfs(fd, &st))
}

func (n *native) list(path string) (string, unix.Errno) {
	fd, err := unix.Openat(n.fd, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", errno(err)
	}
	defer unix.Close(fd)
	return drain(func(p []byte) (int, unix.Errno) {
		k, err := unix.Getdents(fd, p)
		return max(k, 0), errno(err)
	})
}

func drain(getdents func(p []byte) (int, unix.Errno)) (string, unix.Errno) {
	var names []string
	buf := make([]byte, 512)
	for {
		n, e := getdents(buf)
		if e != 0 {
			return "", e
		}
		if n == 0 {
			break
		}
		for b := buf[:n]; len(b) > 0; {
			size := int(b[direntReclen]) | int(b[direntReclen+1])<<8
			name, _, _ := strings.Cut(string(b[direntName:size]), "\x00")
			names = append(names, fmt.Sprintf("%s %d", name, b[direntType]))
			b = b[size:]
		}
	}
	slices.Sort(names)
	return strings.Join(names, ","), 0
}

// guest is the FS.
type guest struct {
	f  *FS
	at *Dir
}

func (g *guest) open(path string, flags int, mode uint32) (string, unix.Errno) {
	file, e := g.f.Open(g.at, path, flags, mode)
	if e != 0 {
		return "", e
	}
	defer file.Close()
	var st unix.Stat_t
	if e := file.Stat(&st); e != 0 {
		return "", e
	}
	buf := make([]byte, 100)
	w, werr := file.Write([]byte("w"))
	if werr != 0 {
		w = -1
	}
	r, rerr := file.Pread(buf, 0)
	return fmt.Sprintf("%s write %d %v read %q %v", describe(&st), w, werr, buf[:r], rerr), 0
}

func (g *guest) stat(path string, follow bool) (string, unix.Errno) {
	var st unix.Stat_t
	e := g.f.Stat(g.at, path, follow, &st)
	return describe(&st), e
}

func (g *guest) statx(path string, flags int) (string, unix.Errno) {
	var st unix.Statx_t
	e := g.f.Statx(g.at, path, flags, unix.STATX_BASIC_STATS, &st)
	return fmt.Sprintf("%o", st.Mode), e
}
func (g *guest) access(path string, mode uint32) unix.Errno {
	return g.f.Access(g.at, path, mode, 0)
}
func (g *guest) readlink(path string) (string, unix.Errno) { return g.f.Readlink(g.at, path) }
func (g *guest) mkdir(path string, mode uint32) unix.Errno { return g.f.Mkdir(g.at, path, mode) }
func (g *guest) unlink(path string, rmdir bool) unix.Errno { return g.f.Unlink(g.at, path, rmdir) }
func (g *guest) rename(a, b string, flags uint) unix.Errno {
	return g.f.Rename(g.at, a, g.at, b, flags)
}
func (g *guest) link(a, b string, flags int) unix.Errno    { return g.f.Link(g.at, a, g.at, b, flags) }
func (g *guest) symlink(target, path string) unix.Errno    { return g.f.Symlink(target, g.at, path) }
func (g *guest) chmod(path string, mode uint32) unix.Errno { return g.f.Chmod(g.at, path, mode, 0) }
func (g *guest) chown(path string, flags int) unix.Errno {
	return g.f.Chown(g.at, path, ^uint32(0), ^uint32(0), flags)
}
func (g *guest) utimens(path string, flags int) unix.Errno {
	return g.f.Utimens(g.at, path, &[2]unix.Timespec{{Sec: 5}, {Sec: 6}}, flags)
}
func (g *guest) truncate(path string, size int64) unix.Errno {
	return g.f.Truncate(g.at, path, size)
}
func (g *guest) mknod(path string, mode uint32) unix.Errno { return g.f.Mknod(g.at, path, mode, 0) }
func (g *guest) chdir(path string) unix.Errno {
	d, e := g.f.Chdir(g.at, path)
	if e == 0 {
		g.at.Close()
		g.at = d
	}
	return e
}
func (g *guest) statfs(path string) unix.Errno {
	var st unix.Statfs_t
	return g.f.Statfs(g.at, path, &st)
}
func (g *guest) list(path string) (string, unix.Errno) {
	file, e := g.f.Open(g.at, path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if e != 0 {
		return "", e
	}
	defer file.Close()
	return drain(file.Getdents)
}

// plant makes the tree that both sides start with.
func plant(t testing.TB, root string, links int) {
	t.Helper()
	write(t, root+"/file", "content")
	write(t, root+"/d/file", "in d")
	write(t, root+"/d/e/file", "in e")
	write(t, root+"/d/e/g/h/file", "in h")
	if err := os.MkdirAll(root+"/empty", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"lfile": "file", "ldir": "d", "lslash": "d/", "lfileslash": "file/", "dangling": "nothing", "danglingslash": "nothing/",
		"loop": "loop", "loopa": "loopb", "loopb": "loopa", "lup": "../x/d", "labs": root + "/d/e", "ldeep": "ldir/e/file",
		"d/lup": "../file", "d/e/lup": "../../ldir/e", "ldot": ".", "ldotdot": "..", "lnew": "d/new", "chain": "chain1",
		"chain1": "chain2", "chain2": "lfile", "linto": "file/x",
	} {
		symlink(t, target, root+"/"+name)
	}
	// One link more than the kernel follows, and just as many.
	for i := range links {
		symlink(t, fmt.Sprintf("long%d", i+1), fmt.Sprintf("%s/long%d", root, i))
	}
	write(t, root+"/long42", "end")
	if err := unix.Mkfifo(root+"/fifo", 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(root+"/noexec/in", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, root+"/noread", "secret")
	if err := os.Chmod(root+"/noread", 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(root+"/noexec", 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // so that TempDir can remove it, wherever it was moved
		err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			return os.Chmod(p, 0o700)
		})
		if err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
	})
}

func twins(t testing.TB, links int) (n *native, g *guest, rootN, rootG string) {
	t.Helper()
	baseN, baseG := t.TempDir(), t.TempDir()
	rootN, rootG = baseN+twinDepth+"/x", baseG+twinDepth+"/x"
	plant(t, rootN, links)
	plant(t, rootG, links)
	fd, err := unix.Open(rootN, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	n = &native{fd}
	t.Cleanup(func() { unix.Close(n.fd) })
	f := openFS(t, Options{Cwd: rootG}, Mount{Host: baseG, Writable: true})
	g = &guest{f, f.Cwd()}
	t.Cleanup(func() { g.at.Close() })
	return n, g, rootN, rootG
}

var paths = []string{
	"file", "file/", "file/.", "file/x", "file/..", "d", "d/", "d//e///file", "d/.", "d/..", "d/../file", "d/e/../../file", "",
	".", "..", "./file", "nothing", "nothing/", "nothing/x", "d/nothing", "d/nothing/", "nothing/..", "empty", "empty/", "empty/.", "empty/..",
	"lfile", "lfile/", "ldir", "ldir/", "ldir/file", "ldir/e/file", "lslash", "lslash/", "lslash/file", "lfileslash", "dangling", "dangling/",
	"dangling/x", "danglingslash", "danglingslash/", "loop", "loop/", "loop/x", "loopa", "lup", "lup/file", "labs", "labs/file", "labs/../file",
	"labs/lup/file", "ldeep", "d/lup", "d/e/lup", "d/e/lup/file", "ldot", "ldot/file", "ldot/ldot/ldot/file", "ldotdot", "ldotdot/x/file", "lnew",
	"lnew/", "chain", "chain/", "linto", "long0", "long1", "long2", "long3", "long1/", "fifo", "fifo/", "noexec", "noexec/", "noexec/in", "noexec/.",
	"noexec/..", "noexec/nothing", "noread", "d/e/g/h/file", "d/e/g/h/../../file", "d/e/g/h/../../../../file", "lnew/x", "new", "new/", "d/new", "d/new/",
	"d/e/lup/../lup/new", "labs/new",
}

func init() {
	long := strings.Repeat("n", 255)
	paths = append(paths, long, long+"n", "d/"+long+"n", long+"n/x", "file/"+long+"n", strings.Repeat("d/../", 818)+"file", strings.Repeat("./", 2100)+"file",
		strings.Repeat("d/../", 817)+"d/file")
}

func same(t *testing.T, what, a string, ea unix.Errno, b string, eb unix.Errno) bool {
	t.Helper()
	if len(what) > 100 {
		what = what[:60] + "…" + what[len(what)-30:]
	}
	if ea != eb {
		t.Errorf("%s: host %v, guest %v", what, ea, eb)
		return false
	}
	if ea == 0 && a != b {
		t.Errorf("%s: host %q, guest %q", what, a, b)
		return false
	}
	return true
}

// TestLikeNative tries every operation that changes nothing on every path.
func TestLikeNative(t *testing.T) {
	n, g, rootN, rootG := twins(t, 42)
	count := 0
	for _, p := range paths {
		for _, follow := range []bool{true, false} {
			a, ea := n.stat(p, follow)
			b, eb := g.stat(p, follow)
			same(t, fmt.Sprintf("stat %q %v", p, follow), a, ea, b, eb)
			count++
		}
		for _, flags := range []int{0, unix.AT_SYMLINK_NOFOLLOW, unix.AT_EMPTY_PATH, unix.AT_STATX_FORCE_SYNC | unix.AT_STATX_DONT_SYNC, 1} {
			a, ea := n.statx(p, flags)
			b, eb := g.statx(p, flags)
			same(t, fmt.Sprintf("statx %q %#x", p, flags), a, ea, b, eb)
			count++
		}
		for mode := range uint32(9) {
			same(t, fmt.Sprintf("access %q %d", p, mode), "", n.access(p, mode), "", g.access(p, mode))
			count++
		}
		a, ea := n.readlink(p)
		b, eb := g.readlink(p)
		same(t, fmt.Sprintf("readlink %q", p), strings.ReplaceAll(a, rootN, rootG), ea, b, eb)
		a, ea = n.list(p)
		b, eb = g.list(p)
		same(t, fmt.Sprintf("list %q", p), a, ea, b, eb)
		same(t, fmt.Sprintf("statfs %q", p), "", n.statfs(p), "", g.statfs(p))
		count += 3
	}
	t.Logf("%d comparisons without change", count)
}

// changing are the operations that may change the tree, each on one path.
func changing() map[string]func(s side, p string) (string, unix.Errno) {
	ops := map[string]func(s side, p string) (string, unix.Errno){
		"mkdir":     func(s side, p string) (string, unix.Errno) { return "", s.mkdir(p, 0o755) },
		"unlink":    func(s side, p string) (string, unix.Errno) { return "", s.unlink(p, false) },
		"rmdir":     func(s side, p string) (string, unix.Errno) { return "", s.unlink(p, true) },
		"rename to": func(s side, p string) (string, unix.Errno) { return "", s.rename(p, "target", 0) },
		"rename file onto": func(s side, p string) (string, unix.Errno) {
			return "", s.rename("file", p, 0)
		},
		"rename dir onto": func(s side, p string) (string, unix.Errno) { return "", s.rename("empty", p, 0) },
		"noreplace":       func(s side, p string) (string, unix.Errno) { return "", s.rename("file", p, unix.RENAME_NOREPLACE) },
		"exchange":        func(s side, p string) (string, unix.Errno) { return "", s.rename("file", p, unix.RENAME_EXCHANGE) },
		"rename flags":    func(s side, p string) (string, unix.Errno) { return "", s.rename("file", p, 3) },
		"link from":       func(s side, p string) (string, unix.Errno) { return "", s.link(p, "target", 0) },
		"link follow":     func(s side, p string) (string, unix.Errno) { return "", s.link(p, "target", unix.AT_SYMLINK_FOLLOW) },
		"link to":         func(s side, p string) (string, unix.Errno) { return "", s.link("file", p, 0) },
		"symlink":         func(s side, p string) (string, unix.Errno) { return "", s.symlink("anything", p) },
		"symlink of":      func(s side, p string) (string, unix.Errno) { return "", s.symlink(p, "target") },
		"chmod":           func(s side, p string) (string, unix.Errno) { return "", s.chmod(p, 0o711) },
		"chown":           func(s side, p string) (string, unix.Errno) { return "", s.chown(p, 0) },
		"lchown":          func(s side, p string) (string, unix.Errno) { return "", s.chown(p, unix.AT_SYMLINK_NOFOLLOW) },
		"utimens":         func(s side, p string) (string, unix.Errno) { return "", s.utimens(p, 0) },
		"lutimens":        func(s side, p string) (string, unix.Errno) { return "", s.utimens(p, unix.AT_SYMLINK_NOFOLLOW) },
		"mknod":           func(s side, p string) (string, unix.Errno) { return "", s.mknod(p, unix.S_IFREG|0o640) },
		"mkfifo":          func(s side, p string) (string, unix.Errno) { return "", s.mknod(p, unix.S_IFIFO|0o640) },
		"chdir": func(s side, p string) (string, unix.Errno) {
			if e := s.chdir(p); e != 0 {
				return "", e
			}
			return s.list("..")
		},
		"truncate": func(s side, p string) (string, unix.Errno) {
			if p == "" || len(p) > 3000 {
				return "", 0 // the reference goes by /proc/self/fd/N/, which changes just these
			}
			return "", s.truncate(p, 3)
		},
	}
	flags := map[string]int{
		"": 0, "creat": unix.O_CREAT, "excl": unix.O_CREAT | unix.O_EXCL, "nofollow": unix.O_NOFOLLOW, "dir": unix.O_DIRECTORY,
		"path": unix.O_PATH, "path nofollow": unix.O_PATH | unix.O_NOFOLLOW, "path dir": unix.O_PATH | unix.O_DIRECTORY, "trunc": unix.O_TRUNC,
		"creat trunc": unix.O_CREAT | unix.O_TRUNC, "creat nofollow": unix.O_CREAT | unix.O_NOFOLLOW, "dir nofollow": unix.O_DIRECTORY | unix.O_NOFOLLOW,
		"append": unix.O_APPEND, "tmpfile": unix.O_TMPFILE, "tmpfile bad": tmpfile, "excl nofollow": unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW,
		"path creat": unix.O_PATH | unix.O_CREAT, "path nofollow dir": unix.O_PATH | unix.O_NOFOLLOW | unix.O_DIRECTORY, "excl alone": unix.O_EXCL,
	}
	for name, fl := range flags {
		for _, mode := range []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_ACCMODE} {
			ops[fmt.Sprintf("open %s %d", name, mode)] = func(s side, p string) (string, unix.Errno) {
				return s.open(p, fl|mode|unix.O_NONBLOCK, 0o644)
			}
		}
	}
	return ops
}

// TestChangesLikeNative tries every changing operation on every path, in an order that differs from operation
// to operation. The trees grow apart from what was planted, but not from each other; after ten
// changes they are planted anew, since that is what takes the time.
func TestChangesLikeNative(t *testing.T) {
	ops := changing()
	names := make([]string, 0, len(ops))
	for name := range ops {
		names = append(names, name)
	}
	slices.Sort(names)
	count := 0
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			var n *native
			var g *guest
			var rootN, rootG string
			changed := 0
			compare := func(p string) {
				x, y := fingerprint(t, rootN), fingerprint(t, rootG)
				if x = strings.ReplaceAll(x, rootN, rootG); x != y {
					t.Errorf("%s, last %q: trees differ: host\n%s\nguest\n%s", name, p, x, y)
				}
			}
			order := slices.Clone(paths)
			rand.New(rand.NewPCG(uint64(len(name)), uint64(name[0]))).Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
			for _, p := range order {
				if n == nil {
					n, g, rootN, rootG = twins(t, 0)
				}
				a, ea := ops[name](n, p)
				b, eb := ops[name](g, p)
				ok := same(t, fmt.Sprintf("%s %q", name, p), a, ea, b, eb)
				count++
				if ea == 0 && name[:4] != "open" {
					changed++
				}
				if changed == 10 || !ok {
					compare(p)
					n, changed = nil, 0
				}
			}
			if n != nil {
				compare("end")
			}
		})
	}
	t.Logf("%d comparisons", count)
}

// TestRandomLikeNative plays long random games, so that states are reached that no table lists.
func TestRandomLikeNative(t *testing.T) {
	games, moves := 20, 400
	if testing.Short() {
		games = 3
	}
	for game := range games {
		play(t, rand.New(rand.NewPCG(uint64(game), 7)), moves)
	}
}

func play(t *testing.T, r *rand.Rand, moves int) {
	n, g, rootN, rootG := twins(t, 0)
	names := []string{"d", "e", "g", "file", "lfile", "ldir", "ldot", "lup", "a", "b", "empty", "dangling", "labs", "fifo"}
	random := func() string {
		var parts []string
		ups := 0
		for range 1 + r.IntN(4) {
			switch k := r.IntN(12); {
			case k == 0:
				parts = append(parts, ".")
			case k <= 2 && ups < 1:
				ups++
				parts = append(parts, "..", "x")
			default:
				parts = append(parts, names[r.IntN(len(names))])
			}
		}
		p := strings.Join(parts, "/")
		if r.IntN(8) == 0 {
			p += "/"
		}
		return p
	}
	openFlags := []int{0, unix.O_CREAT, unix.O_CREAT | unix.O_EXCL, unix.O_DIRECTORY, unix.O_NOFOLLOW, unix.O_TRUNC, unix.O_PATH, unix.O_PATH | unix.O_NOFOLLOW}
	do := func(s side, op int, p, q string, k uint64) (string, unix.Errno) {
		switch op {
		case 0, 1, 2:
			return s.open(p, openFlags[k%8]|int(k>>8%3)|unix.O_NONBLOCK, 0o644)
		case 3:
			return s.stat(p, k&1 == 0)
		case 4, 5:
			return "", s.mkdir(p, 0o755)
		case 6:
			return "", s.unlink(p, k&1 == 0)
		case 7, 8:
			return "", s.rename(p, q, uint(k%3))
		case 9:
			return "", s.link(p, q, int(k&1)*unix.AT_SYMLINK_FOLLOW)
		case 10:
			return "", s.symlink(q, p)
		case 11:
			return "", s.chmod(p, 0o700|uint32(k)&0o77)
		case 12:
			return s.readlink(p)
		case 13:
			return s.list(p)
		default:
			return "", s.chdir(p)
		}
	}
	for i := range moves {
		op, p, q, k := r.IntN(15), random(), random(), r.Uint64()
		if op == 14 && r.IntN(4) > 0 {
			op = 13
		}
		a, ea := do(n, op, p, q, k)
		b, eb := do(g, op, p, q, k)
		a = strings.ReplaceAll(a, rootN, rootG)
		if !same(t, fmt.Sprintf("move %d: %d %q %q %#x", i, op, p, q, k), a, ea, b, eb) {
			return
		}
		if i%50 == 49 {
			x := strings.ReplaceAll(fingerprint(t, rootN), rootN, rootG)
			if y := fingerprint(t, rootG); x != y {
				t.Fatalf("move %d: trees differ: host\n%s\nguest\n%s", i, x, y)
			}
		}
	}
}
