package vfs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// open makes an FS for a test and checks at its end that no handle is left.
func openFS(t testing.TB, o Options, mounts ...Mount) *FS {
	t.Helper()
	f, err := New(mounts, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if f.handles != 0 {
			t.Errorf("%d handles are left after Close", f.handles)
		}
		if f.root.p.refs != 0 {
			t.Errorf("%d references are left on the root", f.root.p.refs)
		}
	})
	return f
}

func write(t testing.TB, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func symlink(t testing.TB, target, name string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

// slurp opens and reads name, at most 64 KiB.
func slurp(f *FS, at *Dir, name string) (string, unix.Errno) {
	file, e := f.Open(at, name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if e != 0 {
		return "", e
	}
	buf := make([]byte, 64<<10)
	n, e := file.Read(buf)
	if c := file.Close(); e == 0 {
		e = c
	}
	return string(buf[:n]), e
}

func wantErrno(t *testing.T, what string, got, want unix.Errno) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func wantText(t *testing.T, f *FS, name, want string) {
	t.Helper()
	got, e := slurp(f, f.Cwd(), name)
	if e != 0 || got != want {
		t.Errorf("%s: %q, %v; want %q", name, got, e, want)
	}
}

func list(t *testing.T, f *FS, name string, size int) map[string]dirent {
	t.Helper()
	file, e := f.Open(f.Cwd(), name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if e != 0 {
		t.Fatalf("open %s: %v", name, e)
	}
	defer file.Close()
	out := map[string]dirent{}
	buf := make([]byte, size)
	for {
		n, e := file.Getdents(buf)
		if e != 0 {
			t.Fatalf("getdents %s: %v", name, e)
		}
		if n == 0 {
			return out
		}
		var all []dirent
		for b := buf[:n]; len(b) > 0; {
			size := int(b[direntReclen]) | int(b[direntReclen+1])<<8
			raw, _, _ := strings.Cut(string(b[direntName:size]), "\x00")
			all = append(all, dirent{kind: b[direntType], name: raw})
			b = b[size:]
		}
		for _, d := range all {
			if _, twice := out[d.name]; twice {
				t.Errorf("%s: %q is listed twice", name, d.name)
			}
			out[d.name] = d
		}
	}
}

func TestNamespace(t *testing.T) {
	base := t.TempDir()
	write(t, base+"/usr/lib/x.so", "x")
	symlink(t, "usr/lib", base+"/lib")
	symlink(t, "/data/inner", base+"/abs")
	symlink(t, "../../../data/file", base+"/usr/lib/up")
	write(t, base+"/nested/hidden", "below the mount point")
	write(t, base+"/nested/beside", "beside")
	data := t.TempDir()
	write(t, data+"/file", "file")
	write(t, data+"/inner/deep", "deep")
	single := filepath.Join(t.TempDir(), "one")
	write(t, single, "one file")
	f := openFS(t, Options{Cwd: "/data/inner"},
		Mount{Host: base, Guest: "/"},
		Mount{Host: data, Guest: "/data", Writable: true},
		Mount{Host: data, Guest: "/lib/plug"}, // through the link: /usr/lib/plug
		Mount{Host: data, Guest: "/nested/mnt/a"},
		Mount{Host: single, Guest: "/etc/passwd"},
	)
	if got := f.Cwd().Path(); got != "/data/inner" {
		t.Errorf("cwd %q", got)
	}
	for name, want := range map[string]string{
		"/lib/x.so": "x", "/usr/lib/../lib/x.so": "x", "/abs/deep": "deep", "deep": "deep", "../file": "file",
		"../../../../../data/file": "file", "/lib/up": "file", "/lib/plug/file": "file", "/usr/lib/plug/inner/deep": "deep",
		"/nested/mnt/a/file": "file", "/nested/beside": "beside", "/nested/mnt/../beside": "beside",
		"/etc/passwd": "one file", "//data///inner//deep": "deep", "/data/./inner/./deep": "deep",
	} {
		wantText(t, f, name, want)
	}
	for _, size := range []int{64, 300, 32 << 10} {
		root := list(t, f, "/", size)
		for _, name := range []string{".", "..", "usr", "lib", "data", "dev", "proc", "sys", "nested", "etc", "abs"} {
			if _, ok := root[name]; !ok {
				t.Errorf("/ does not list %s (buffer %d)", name, size)
			}
		}
		if root["lib"].kind != unix.DT_LNK || root["data"].kind != unix.DT_DIR {
			t.Errorf("types in /: %v", root)
		}
		if n := list(t, f, "/nested", size); len(n) != 5 {
			t.Errorf("/nested: %v", n)
		}
		if n := list(t, f, "/data", size); len(n) != 4 {
			t.Errorf("/data: %v", n)
		}
		if n := list(t, f, "/etc", size); n["passwd"].kind != unix.DT_REG {
			t.Errorf("/etc: %v", n)
		}
	}
	// A mount point and what is above it stay where they are.
	at := f.Cwd()
	for what, e := range map[string]unix.Errno{
		"rmdir mount":            f.Unlink(at, "/usr/lib/plug", true),
		"rename mount to itself": f.Rename(at, "/data", at, "/data2", 0),
	} {
		wantErrno(t, what, e, unix.EROFS) // below the read-only root
	}
	rw := openFS(t, Options{}, Mount{Host: base, Guest: "/", Writable: true}, Mount{Host: data, Guest: "/nested/mnt"},
		Mount{Host: single, Guest: "/nested/one"})
	at = rw.Root()
	for what, e := range map[string]unix.Errno{
		"rmdir mount":       rw.Unlink(at, "/nested/mnt", true),
		"rmdir above":       rw.Unlink(at, "/nested/", true),
		"rename mount":      rw.Rename(at, "/nested/mnt", at, "/nested/x", 0),
		"rename above":      rw.Rename(at, "/nested", at, "/x", 0),
		"rename onto":       rw.Rename(at, "/usr", at, "/nested", 0),
		"exchange":          rw.Rename(at, "/usr", at, "/nested", unix.RENAME_EXCHANGE),
		"unlink file mount": rw.Unlink(at, "/nested/one", false),
		"rename onto file":  rw.Rename(at, "/nested/beside", at, "/nested/one", 0),
		"rename proc":       rw.Rename(at, "/proc", at, "/x", 0),
		"rmdir a synthetic": rw.Unlink(at, "/dev", true),
	} {
		wantErrno(t, what, e, unix.EBUSY)
	}
	wantErrno(t, "unlink directory mount", rw.Unlink(at, "/nested/mnt", false), unix.EISDIR)
	wantErrno(t, "rmdir file mount", rw.Unlink(at, "/nested/one", true), unix.ENOTDIR)
	wantErrno(t, "mkdir mount", rw.Mkdir(at, "/nested/mnt", 0o755), unix.EEXIST)
	wantErrno(t, "rename across", rw.Rename(at, "/usr/lib/x.so", at, "/nested/mnt/x", 0), unix.EXDEV)
	wantErrno(t, "link across", rw.Link(at, "/nested/mnt/file", at, "/usr/f", 0), unix.EXDEV)
	wantErrno(t, "link onto read-only", rw.Link(at, "/usr/lib/x.so", at, "/nested/mnt/f", 0), unix.EROFS)
}

func TestNewErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	write(t, file, "")
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		mounts []Mount
		want   string
	}{
		"missing":    {[]Mount{{Host: dir + "/no"}}, "no such file or directory; create it or correct the path"},
		"relative":   {[]Mount{{Host: dir, Guest: "x"}}, "not absolute"},
		"proc":       {[]Mount{{Host: "/proc", Guest: "/host"}}, "not shared"},
		"on proc":    {[]Mount{{Host: dir, Guest: "/proc"}}, "has its own"},
		"in proc":    {[]Mount{{Host: dir, Guest: "/proc/self/fd"}}, "has its own"},
		"via proc":   {[]Mount{{Host: dir, Guest: "/dev/fd"}}, "guest path"},
		"on dev":     {[]Mount{{Host: dir, Guest: "/dev"}}, "has its own"},
		"on null":    {[]Mount{{Host: file, Guest: "/dev/null"}}, "has its own"},
		"twice":      {[]Mount{{Host: dir, Guest: "/a"}, {Host: file, Guest: "/a/"}}, "taken by another mount"},
		"file root":  {[]Mount{{Host: file, Guest: "/"}}, "a file cannot be mounted"},
		"fifo":       {[]Mount{{Host: fifo}}, "neither a directory nor a regular file"},
		"long":       {[]Mount{{Host: dir, Guest: "/" + strings.Repeat("n", 256)}}, "longer than 255"},
		"below file": {[]Mount{{Host: file, Guest: "/a"}, {Host: dir, Guest: "/a/b"}}, "not a directory"},
	} {
		before := countFDs(t)
		f, err := New(c.mounts, Options{})
		if err == nil {
			t.Errorf("%s: no error", name)
			f.Close()
			continue
		}
		if msg := err.Error(); !strings.Contains(msg, c.want) || strings.Contains(msg, "\n") {
			t.Errorf("%s: %q does not say %q in one line", name, msg, c.want)
		}
		if after := countFDs(t); after != before {
			t.Errorf("%s: %d descriptors leaked", name, after-before)
		}
	}
}

func countFDs(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestParseMount(t *testing.T) {
	for value, want := range map[string]Mount{
		"/a":      {Host: "/a"},
		"/a:/b":   {Host: "/a", Guest: "/b"},
		"a:b":     {Host: "a:b"},
		"a:b:/c":  {Host: "a:b", Guest: "/c"},
		"rel:/c":  {Host: "rel", Guest: "/c"},
		"/a:/b:x": {Host: "/a", Guest: "/b:x"},
	} {
		got, err := ParseMount(value, false)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", value, got, err, want)
		}
	}
	for _, bad := range []string{"", ":/b", "a\x00b"} {
		if _, err := ParseMount(bad, true); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

// TestLifetime closes things in the wrong order: the answer is EBADF and nothing else.
func TestLifetime(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a/b/c", "c")
	before := countFDs(t)
	f, err := New([]Mount{{Host: dir, Guest: "/m", Writable: true}}, Options{Cwd: "/m/a"})
	if err != nil {
		t.Fatal(err)
	}
	d, e := f.Open(f.Cwd(), "b", unix.O_RDONLY, 0)
	wantErrno(t, "open", e, 0)
	keep, e := d.Dir.Dup()
	wantErrno(t, "dup", e, 0)
	dir1 := d.Dir
	wantErrno(t, "close", d.Close(), 0)
	wantErrno(t, "close twice", d.Close(), unix.EBADF)
	var st unix.Stat_t
	wantErrno(t, "use of a closed directory", f.Stat(dir1, "c", true, &st), unix.EBADF)
	wantErrno(t, "use of the duplicate", f.Stat(keep, "c", true, &st), 0)
	wantErrno(t, "close duplicate", keep.Close(), 0)
	wantErrno(t, "close duplicate twice", keep.Close(), unix.EBADF)
	wantErrno(t, "close root", f.Root().Close(), 0)
	file, e := f.Open(f.Root(), "/m/a/b/c", unix.O_RDWR, 0)
	wantErrno(t, "open", e, 0)
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	wantErrno(t, "after Close", f.Stat(f.Root(), "/m", true, &st), unix.EBADF)
	if _, e := f.Adopt(0, ""); e != unix.EBADF {
		t.Errorf("Adopt after Close: %v", e)
	}
	wantErrno(t, "chmod of a file that outlives", file.Chmod(0o600), 0)
	wantErrno(t, "chown of a file that outlives", file.Chown(^uint32(0), ^uint32(0)), 0)
	wantErrno(t, "close of a file that outlives", file.Close(), 0)
	wantErrno(t, "chmod of a closed file", file.Chmod(0o600), unix.EBADF)
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if after := countFDs(t); after != before {
		t.Errorf("%d descriptors leaked", after-before)
	}
}

// TestHandleLimit: a guest that goes deep gets ENFILE and the handles come back.
func TestHandleLimit(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(dir+strings.Repeat("/d", 40), 0o755); err != nil {
		t.Fatal(err)
	}
	f := openFS(t, Options{Handles: 20}, Mount{Host: dir, Guest: "/m"})
	_, e := f.Open(nil, "/m"+strings.Repeat("/d", 40), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	wantErrno(t, "deep", e, unix.ENFILE)
	d, e := f.Open(nil, "/m"+strings.Repeat("/d", 10), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	wantErrno(t, "less deep", e, 0)
	wantErrno(t, "close", d.Close(), 0)
}
