package vfs

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hostSocket makes a listening Unix socket and returns a function that says whether anybody knocked.
func hostSocket(t *testing.T, path string) (knocked func() bool) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 16); err != nil {
		t.Fatal(err)
	}
	return func() bool {
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err == nil {
			_ = unix.Close(c)
		}
		return err == nil
	}
}

func connectTo(host string) unix.Errno {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return errno(err)
	}
	defer closeQuiet(fd)
	return errno(unix.Connect(fd, &unix.SockaddrUnix{Name: host}))
}

func bindTo(host string) unix.Errno {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return errno(err)
	}
	defer closeQuiet(fd)
	return errno(unix.Bind(fd, &unix.SockaddrUnix{Name: host}))
}

func TestSocketNames(t *testing.T) {
	rw, ro := t.TempDir(), t.TempDir()
	in, out := hostSocket(t, filepath.Join(rw, "s")), hostSocket(t, filepath.Join(ro, "s"))
	if err := os.Symlink("/ro/s", filepath.Join(rw, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("s", filepath.Join(rw, "near")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(rw, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := New([]Mount{{Host: rw, Guest: "/rw", Writable: true}, {Host: ro, Guest: "/ro"}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for path, want := range map[string]unix.Errno{
		"/rw/s": 0, "/rw/near": 0, "/rw/../rw/./s": 0, "/ro/s": unix.EROFS, "/rw/link": unix.EROFS, "/rw/file": unix.ECONNREFUSED, "/rw/none": unix.ENOENT,
		"/rw": unix.ECONNREFUSED, "/dev/null": unix.ECONNREFUSED, "/proc/version": unix.ECONNREFUSED, "/rw/s/": unix.ENOTDIR, "": unix.ENOENT, ro + "/s": unix.ENOENT,
	} {
		wantErrno(t, "connect "+path, f.Connect(nil, path, connectTo), want)
		if got := in(); got != (want == 0) {
			t.Errorf("connect %s: connection %v", path, got)
		}
	}
	if out() {
		t.Error("a connection to a socket below --ro")
	}
	for path, want := range map[string]unix.Errno{
		"/rw/new": 0, "/rw/s": unix.EADDRINUSE, "/rw/link": unix.EADDRINUSE, "/ro/new": unix.EROFS, "/ro/s": unix.EEXIST, "/new": unix.EROFS, "/dev/log": unix.EROFS,
		"/rw/none/new": unix.ENOENT, "/rw/dir/": unix.ENOENT, "/rw/..": unix.EEXIST, "/proc/self/fd/new": unix.EROFS,
	} {
		wantErrno(t, "bind "+path, f.Bind(nil, path, bindTo), want)
	}
	if st, err := os.Lstat(filepath.Join(rw, "new")); err != nil || st.Mode()&os.ModeSocket == 0 {
		t.Errorf("bind made %v, %v", st, err)
	}
}

// TestSocketRace: while a name turns from a socket inside into a link to one outside and back, nobody
// outside is ever spoken to.
func TestSocketRace(t *testing.T) {
	rw, outside := t.TempDir(), t.TempDir()
	in, out := hostSocket(t, filepath.Join(rw, "real")), hostSocket(t, filepath.Join(outside, "s"))
	f, err := New([]Mount{{Host: rw, Guest: "/rw", Writable: true}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, l := range [][2]string{{outside + "/s", "evil"}, {rw + "/real", "good"}, {outside, "dir"}} {
		if err := os.Symlink(l[0], filepath.Join(rw, l[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(rw, "real"), filepath.Join(rw, "name")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(rw, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	root, err := unix.Open(rw, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default: // both exist all the time: an exchange cannot fail
				_ = unix.Renameat2(root, "name", root, "evil", unix.RENAME_EXCHANGE)
				_ = unix.Renameat2(root, "d", root, "dir", unix.RENAME_EXCHANGE)
			}
		}
	})
	hits := 0
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); {
		if f.Connect(nil, "/rw/name", connectTo) == 0 && in() {
			hits++
		}
		_ = f.Connect(nil, "/rw/d/s", connectTo) // never inside: whatever it answers, out() tells
		_ = f.Bind(nil, "/rw/d/made", bindTo)    // the same
	}
	close(stop)
	wg.Wait()
	if hits == 0 {
		t.Error("no connection inside: the race was not tried")
	}
	if out() {
		t.Error("a connection to the socket outside")
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 1 {
		t.Errorf("outside: %v, %v", left, err)
	}
}
