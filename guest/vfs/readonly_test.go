package vfs

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// fingerprint is the content and the metadata of a tree.
func fingerprint(t testing.TB, root string) string {
	t.Helper()
	var out string
	err := filepath.Walk(root, func(p string, info os.FileInfo, err error) error {
		if os.IsPermission(err) { // an unprivileged run sees no more, on neither side
			out += "unreadable\n"
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		line := rel + " " + info.Mode().String() + " "
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil && !os.IsPermission(err) {
				return err
			}
			line += string(b)
		case info.Mode()&os.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += "-> " + target
		}
		if info.Mode().IsRegular() {
			line += " " + string(rune('0'+st.Nlink%10))
		}
		out += line + "\n"
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// changes is every operation that changes something, on a tree with f, d/f, e (empty directory), l -> f, fifo.
func changes(f *FS, at *Dir, base string) map[string]unix.Errno {
	open := func(name string, flags int) unix.Errno {
		file, e := f.Open(at, base+name, flags, 0o644)
		if e == 0 {
			if c := file.Close(); c != 0 {
				return c
			}
		}
		return e
	}
	onFile := func(name string, flags int, do func(*File) unix.Errno) unix.Errno {
		file, e := f.Open(at, base+name, flags, 0)
		if e != 0 {
			return e
		}
		defer file.Close()
		return do(file)
	}
	now := &[2]unix.Timespec{{Sec: 1}, {Sec: 2}}
	rdonly := func(do func(*File) unix.Errno) unix.Errno { return onFile("f", unix.O_RDONLY, do) }
	return map[string]unix.Errno{
		"open write":           open("f", unix.O_WRONLY),
		"open read-write":      open("f", unix.O_RDWR),
		"open accmode 3":       open("f", unix.O_ACCMODE),
		"open append":          open("f", unix.O_WRONLY|unix.O_APPEND),
		"open truncate":        open("f", unix.O_RDONLY|unix.O_TRUNC),
		"open through link":    open("l", unix.O_WRONLY),
		"open create":          open("new", unix.O_RDONLY|unix.O_CREAT),
		"open create excl":     open("new", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL),
		"open create existing": open("f", unix.O_WRONLY|unix.O_CREAT),
		"open tmpfile":         open("d", unix.O_RDWR|unix.O_TMPFILE),
		"open fifo":            open("fifo", unix.O_RDWR|unix.O_NONBLOCK),
		"mkdir":                f.Mkdir(at, base+"n", 0o755),
		"mkdir/":               f.Mkdir(at, base+"n/", 0o755),
		"mknod":                f.Mknod(at, base+"n", unix.S_IFREG|0o644, 0),
		"mkfifo":               f.Mknod(at, base+"n", unix.S_IFIFO|0o644, 0),
		"symlink":              f.Symlink("f", at, base+"n"),
		"link":                 f.Link(at, base+"f", at, base+"n", 0),
		"unlink":               f.Unlink(at, base+"f", false),
		"unlink missing":       f.Unlink(at, base+"n", false),
		"unlink dir":           f.Unlink(at, base+"d", false),
		"rmdir":                f.Unlink(at, base+"e", true),
		"rename":               f.Rename(at, base+"f", at, base+"n", 0),
		"rename noreplace":     f.Rename(at, base+"f", at, base+"d/n", unix.RENAME_NOREPLACE),
		"rename exchange":      f.Rename(at, base+"f", at, base+"d", unix.RENAME_EXCHANGE),
		"chmod":                f.Chmod(at, base+"f", 0o600, 0),
		"chmod dir":            f.Chmod(at, base+"d", 0o700, 0),
		"chmod root":           f.Chmod(at, base+".", 0o700, 0),
		"chown":                f.Chown(at, base+"f", ^uint32(0), ^uint32(0), 0),
		"lchown":               f.Chown(at, base+"l", ^uint32(0), ^uint32(0), unix.AT_SYMLINK_NOFOLLOW),
		"utimens":              f.Utimens(at, base+"f", now, 0),
		"utimens now":          f.Utimens(at, base+"f", nil, 0),
		"lutimens":             f.Utimens(at, base+"l", now, unix.AT_SYMLINK_NOFOLLOW),
		"truncate":             f.Truncate(at, base+"f", 1),
		"access":               f.Access(at, base+"f", unix.W_OK, 0),
		"access dir":           f.Access(at, base+"d", unix.W_OK|unix.X_OK, unix.AT_EACCESS),
		"fchmod":               rdonly(func(x *File) unix.Errno { return x.Chmod(0o600) }),
		"fchown":               rdonly(func(x *File) unix.Errno { return x.Chown(^uint32(0), ^uint32(0)) }),
		"futimens":             rdonly(func(x *File) unix.Errno { return x.Utimens(now) }),
		"futimens now":         rdonly(func(x *File) unix.Errno { return x.Utimens(nil) }),
		"fchmod dir":           onFile("d", unix.O_RDONLY, func(x *File) unix.Errno { return x.Chmod(0o700) }),
		"fchown O_PATH":        onFile("f", unix.O_PATH, func(x *File) unix.Errno { return x.Chown(^uint32(0), ^uint32(0)) }),
		"linkat O_PATH":        onFile("f", unix.O_PATH, func(x *File) unix.Errno { return x.Link(at, base+"n") }),
		"mkdirat a handle":     onFile("d", unix.O_PATH, func(x *File) unix.Errno { return f.Mkdir(x.Dir, "n", 0o755) }),
		"chmod empty path":     onFile("d", unix.O_PATH, func(x *File) unix.Errno { return f.Chmod(x.Dir, "", 0o700, unix.AT_EMPTY_PATH) }),
	}
}

func changeTree(t testing.TB) string {
	dir := t.TempDir()
	write(t, dir+"/f", "f")
	write(t, dir+"/d/f", "df")
	if err := os.Mkdir(dir+"/e", 0o755); err != nil {
		t.Fatal(err)
	}
	symlink(t, "f", dir+"/l")
	if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestReadOnly(t *testing.T) {
	dir := changeTree(t)
	before := fingerprint(t, dir)
	f := openFS(t, Options{}, Mount{Host: dir, Guest: "/m"})
	for what, e := range changes(f, f.Root(), "/m/") {
		wantErrno(t, what, e, unix.EROFS)
	}
	if after := fingerprint(t, dir); after != before {
		t.Errorf("the tree changed:\n%s\nwas\n%s", after, before)
	}
	// What does not change anything works, and what exists is said to exist first, as Linux does.
	for what, c := range map[string][2]unix.Errno{
		"mkdir existing":        {f.Mkdir(nil, "/m/d", 0o755), unix.EEXIST},
		"symlink existing":      {f.Symlink("x", nil, "/m/l"), unix.EEXIST},
		"symlink with slash":    {f.Symlink("x", nil, "/m/n/"), unix.ENOENT},
		"access read":           {f.Access(nil, "/m/f", unix.R_OK, 0), 0},
		"utimens omit":          {f.Utimens(nil, "/m/nothing", &[2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}, 0), 0},
		"truncate dir":          {f.Truncate(nil, "/m/d", 0), unix.EISDIR},
		"truncate fifo":         {f.Truncate(nil, "/m/fifo", 0), unix.EINVAL},
		"mknod device":          {f.Mknod(nil, "/m/n", unix.S_IFCHR|0o666, unix.Mkdev(1, 3)), unix.EPERM},
		"rename across mounts":  {f.Rename(nil, "/m/f", nil, "/n", 0), unix.EXDEV},
		"rename whiteout":       {f.Rename(nil, "/m/f", nil, "/m/n", unix.RENAME_WHITEOUT), unix.EPERM},
		"mkdir in synthetic":    {f.Mkdir(nil, "/n", 0o755), unix.EROFS},
		"mkdir in proc":         {f.Mkdir(nil, "/proc/n", 0o755), unix.EROFS},
		"unlink in proc":        {f.Unlink(nil, "/proc/self/maps", false), unix.EROFS},
		"chmod synthetic":       {f.Chmod(nil, "/proc", 0o777, 0), unix.EROFS},
		"chmod a device":        {f.Chmod(nil, "/dev/null", 0o777, 0), unix.EROFS},
		"truncate synthetic":    {f.Truncate(nil, "/proc/version", 0), unix.EINVAL},
		"rmdir .":               {f.Unlink(nil, "/m/d/.", true), unix.EINVAL},
		"rmdir ..":              {f.Unlink(nil, "/m/d/..", true), unix.ENOTEMPTY},
		"rmdir /":               {f.Unlink(nil, "/", true), unix.EBUSY},
		"unlink .":              {f.Unlink(nil, "/m/.", false), unix.EISDIR},
		"statx of reserved bit": {f.Statx(nil, "/m/f", 0, -1<<31, &unix.Statx_t{}), unix.EINVAL},
	} {
		wantErrno(t, what, c[0], c[1])
	}
	var fs unix.Statfs_t
	if e := f.Statfs(nil, "/m/f", &fs); e != 0 || fs.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("statfs: %v, flags %#x", e, fs.Flags)
	}
}

// TestWritable is the counter-proof: the same operations work where they may.
func TestWritable(t *testing.T) {
	refused := 0
	for what, e := range func() map[string]unix.Errno {
		dir := changeTree(t)
		f := openFS(t, Options{}, Mount{Host: dir, Guest: "/m", Writable: true})
		return changes(f, f.Root(), "/m/")
	}() {
		if e == unix.EROFS {
			t.Errorf("%s: EROFS on a writable mount", what)
			refused++
		}
	}
	if refused > 0 {
		t.Logf("%d refused", refused)
	}
}

// TestSpecialFiles: what may be opened below a mount.
func TestSpecialFiles(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	if err := unix.Bind(s, &unix.SockaddrUnix{Name: dir + "/sock"}); err != nil {
		t.Fatal(err)
	}
	symlink(t, "/dev/null", dir+"/null") // the guest's own
	f := openFS(t, Options{}, Mount{Host: dir, Guest: "/m", Writable: true}, Mount{Host: "/dev", Guest: "/hostdev"})
	try := func(name string, flags int) unix.Errno {
		file, e := f.Open(nil, name, flags, 0)
		if e == 0 {
			wantErrno(t, "close "+name, file.Close(), 0)
		}
		return e
	}
	wantErrno(t, "socket", try("/m/sock", unix.O_RDWR), unix.ENXIO)
	wantErrno(t, "fifo for writing, no reader", try("/m/fifo", unix.O_WRONLY|unix.O_NONBLOCK), unix.ENXIO)
	wantErrno(t, "fifo for reading, no writer", try("/m/fifo", unix.O_RDONLY|unix.O_NONBLOCK), 0)
	wantErrno(t, "device", try("/hostdev/null", unix.O_RDONLY), unix.EACCES)
	wantErrno(t, "device by O_PATH", try("/hostdev/null", unix.O_PATH), 0)
	wantErrno(t, "link to the guest's device", try("/m/null", unix.O_RDWR), 0)
	var st unix.Stat_t
	wantErrno(t, "stat of a device", f.Stat(nil, "/hostdev/null", true, &st), 0)

	// Blocking opens meet each other, as they do natively.
	done := make(chan unix.Errno)
	go func() {
		w, e := f.Open(nil, "/m/fifo", unix.O_WRONLY, 0)
		if e == 0 {
			_, e = w.Write([]byte("met"))
			w.Close()
		}
		done <- e
	}()
	r, e := f.Open(nil, "/m/fifo", unix.O_RDONLY, 0)
	if e != 0 {
		t.Fatal(e)
	}
	defer r.Close()
	buf := make([]byte, 8)
	n, e := r.Read(buf)
	if e != 0 || string(buf[:n]) != "met" || <-done != 0 {
		t.Errorf("fifo: %q, %v", buf[:n], e)
	}
}

// TestUnnamed: O_TMPFILE and linkat.
func TestUnnamed(t *testing.T) {
	dir := t.TempDir()
	f := openFS(t, Options{}, Mount{Host: dir, Guest: "/m", Writable: true})
	file, e := f.Open(nil, "/m", unix.O_TMPFILE|unix.O_RDWR, 0o600)
	if e != 0 {
		t.Fatal(e)
	}
	defer file.Close()
	if _, e := file.Write([]byte("named later")); e != 0 {
		t.Error(e)
	}
	wantErrno(t, "link", file.Link(nil, "/m/name"), 0)
	wantText(t, f, "/m/name", "named later")
	_, e = f.Open(nil, "/m/name", unix.O_TMPFILE|unix.O_RDWR, 0o600)
	wantErrno(t, "tmpfile on a file", e, unix.ENOTDIR)
	_, e = f.Open(nil, "/m", unix.O_TMPFILE|unix.O_RDONLY, 0o600)
	wantErrno(t, "tmpfile read-only", e, unix.EINVAL)
}
