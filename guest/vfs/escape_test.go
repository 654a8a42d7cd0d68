package vfs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const secret = "the secret outside every mount"

// jail makes base/jail, to be mounted, with base/secret and base/out/secret beside it.
func jail(t testing.TB) (base, inside string) {
	t.Helper()
	base = t.TempDir()
	inside = base + "/jail"
	write(t, base+"/secret", secret)
	write(t, base+"/out/secret", secret)
	write(t, inside+"/a/b/c/secret", "decoy")
	write(t, inside+"/secret", "decoy")
	return base, inside
}

// TestEscapes tries the known ways out, through a mount at the root and through one below it.
func TestEscapes(t *testing.T) {
	base, inside := jail(t)
	up := strings.Repeat("../", 40)
	targets := []string{
		base + "/secret", base + "/out", "../secret", "../out", up + base[1:] + "/secret", up + base[1:], "/", "..", "../..",
		"/proc/self/root" + base + "/secret", "/proc/1/root" + base + "/secret", "/proc/self/cwd/../../" + base + "/secret", "/proc/self/exe",
		"/proc/self/fd/0", "/proc/thread-self/root", "/dev/fd/3", "//" + base + "/secret", "/./.." + base + "/secret", "a/../../secret", "a/b/../../../secret",
		"a/b/c/../../../../out/secret", "/a/../../" + base + "/secret",
	}
	for i, target := range targets {
		symlink(t, target, fmt.Sprintf("%s/link%d", inside, i))
		symlink(t, target, fmt.Sprintf("%s/a/b/link%d", inside, i))
	}
	// Links that go through other links.
	for i := range targets {
		symlink(t, fmt.Sprintf("a/b/link%d", i), fmt.Sprintf("%s/via%d", inside, i))
	}
	var names []string
	for i, target := range targets {
		names = append(names, target)
		for _, l := range []string{"link", "a/b/link", "via"} {
			for _, tail := range []string{"", "/", "/secret", "/../secret", "/out/secret", base + "/secret", "/../../out/secret"} {
				names = append(names, fmt.Sprintf("%s%d%s", l, i, tail))
			}
		}
	}
	opened := 0
	for _, mnt := range []string{"/", "/m", inside} {
		f := openFS(t, Options{Cwd: mnt + "/a/b", Exe: "/nothing"}, Mount{Host: inside, Guest: mnt, Writable: true})
		top, e := f.Chdir(nil, mnt)
		wantErrno(t, "chdir", e, 0)
		for _, at := range []*Dir{top, f.Cwd(), f.Root()} {
			for _, name := range names {
				got, e := slurp(f, at, name)
				if e == 0 {
					opened++
				}
				if strings.Contains(got, secret) {
					t.Errorf("mount %s, from %s: %s gives the secret", mnt, at.Path(), name)
				}
				// Nothing may be made or changed outside either.
				for what, e := range map[string]unix.Errno{
					"mkdir":    f.Mkdir(at, name+"/made", 0o755),
					"truncate": f.Truncate(at, name+"x/secret", 0),
					"unlink":   f.Unlink(at, name+"/out/secret", false),
				} {
					if e == 0 && what != "mkdir" {
						t.Errorf("%s of %s worked", what, name)
					}
				}
			}
		}
		wantErrno(t, "close", top.Close(), 0)
	}
	if opened == 0 {
		t.Error("nothing could be opened at all: the test shows nothing")
	}
	for _, name := range []string{"/secret", "/out/secret"} {
		if b, err := os.ReadFile(base + name); err != nil || string(b) != secret {
			t.Errorf("%s was changed: %q, %v", name, b, err)
		}
	}
	for _, dir := range []string{base, base + "/out"} {
		if _, err := os.Lstat(dir + "/made"); err == nil {
			t.Errorf("%s/made exists", dir)
		}
	}
}

// TestHostProcHidden: a procfs below a mount would answer for the VMM. Found by its own name, it is refused;
// the guest's /proc is Cloister's even if the host's root is mounted.
func TestHostProcHidden(t *testing.T) {
	f := openFS(t, Options{Exe: "/prog", Args: []string{"prog", "arg"}}, Mount{Host: "/", Guest: "/"}, Mount{Host: "/", Guest: "/host"})
	wantText(t, f, "/proc/self/cmdline", "prog\x00arg\x00")
	for _, name := range []string{
		"/host/proc/self/cmdline", "/host/proc/version", "/host/proc/self/root/etc/passwd", "/host/proc/self/fd/0", "/host/proc", "/host/proc/..",
		fmt.Sprintf("/host/proc/%d/maps", os.Getpid()), "/host/./proc/self/maps", "/host/proc/self/../version",
	} {
		if got, e := slurp(f, f.Root(), name); e != unix.EACCES {
			t.Errorf("%s: %q, %v; want EACCES", name, got, e)
		}
	}
	var st unix.Stat_t
	wantErrno(t, "stat", f.Stat(nil, "/host/proc/self/maps", true, &st), unix.EACCES)
	if _, e := f.Readlink(nil, "/host/proc/self/exe"); e != unix.EACCES {
		t.Errorf("readlink: %v", e)
	}
}

// TestRenameRace swaps directories and links under the walker, from the host and from the guest, as fast as it can
// while others open. The secret must never come out.
func TestRenameRace(t *testing.T) {
	base, inside := jail(t)
	f := openFS(t, Options{}, Mount{Host: inside, Guest: "/m", Writable: true})
	symlink(t, "../../../out", inside+"/a/evil")
	symlink(t, base+"/out", inside+"/a/evil2")
	// moved goes up and down, so that ".." from within means other places from one moment to the next.
	write(t, inside+"/x/y/z/secret", "decoy")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	loop := func(step func(r *rand.Rand)) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, 2))
			for {
				select {
				case <-stop:
					return
				default:
					step(r)
				}
			}
		})
	}
	flips := 0
	loop(func(*rand.Rand) { // the host swaps a directory with a link that leads out
		for _, l := range []string{"/a/evil", "/a/evil2"} {
			if err := unix.Renameat2(unix.AT_FDCWD, inside+"/a/b", unix.AT_FDCWD, inside+l, unix.RENAME_EXCHANGE); err != nil {
				t.Error(err)
				return
			}
			flips++
		}
	})
	loop(func(*rand.Rand) { // the guest moves a directory up and down its tree
		if e := f.Rename(nil, "/m/x/y/z", nil, "/m/z", 0); e != 0 {
			t.Error("rename up:", e)
		}
		if e := f.Rename(nil, "/m/z", nil, "/m/x/y/z", 0); e != 0 {
			t.Error("rename down:", e)
		}
	})
	names := []string{
		"/m/a/b/secret", "/m/a/b/c/secret", "/m/a/evil/secret", "/m/a/evil2/secret", "/m/a/b/../../../out/secret", "/m/a/b/c/../../../../out/secret",
		"/m/x/y/z/../../../../out/secret", "/m/z/../../out/secret", "/m/x/y/z/../../../secret", "/m/a/b/../b/../evil/secret", "/m/a/evil/c/secret", "/m/z/../secret",
	}
	var tries, got int
	var mu sync.Mutex
	for range 3 {
		loop(func(r *rand.Rand) {
			name := names[r.IntN(len(names))]
			text, e := slurp(f, f.Root(), name)
			made := f.Mkdir(nil, strings.TrimSuffix(name, "secret")+"made", 0o755)
			if made == 0 {
				_ = f.Unlink(nil, strings.TrimSuffix(name, "secret")+"made", true) // may have moved away
			}
			mu.Lock()
			defer mu.Unlock()
			tries++
			if e == 0 {
				got++
			}
			if strings.Contains(text, secret) {
				t.Errorf("%s gave the secret", name)
			}
		})
	}
	loop(func(*rand.Rand) { // directories that are held while they move
		d, e := f.Chdir(nil, "/m/x/y/z")
		if e != 0 {
			return
		}
		defer d.Close()
		for _, name := range []string{"../../../out/secret", "../../../../secret", "../../secret", "../secret", "secret"} {
			if text, _ := slurp(f, d, name); strings.Contains(text, secret) {
				t.Errorf("%s from a moving directory gave the secret", name)
			}
		}
	})
	wait := 6 * time.Second
	if testing.Short() {
		wait = time.Second
	}
	time.Sleep(wait)
	close(stop)
	wg.Wait()
	if _, err := os.Lstat(base + "/out/made"); err == nil {
		t.Error("a directory was made outside")
	}
	if _, err := os.Lstat(base + "/made"); err == nil {
		t.Error("a directory was made outside")
	}
	if got == 0 || got == tries || flips == 0 {
		t.Errorf("%d of %d opens worked, %d swaps: there was no race", got, tries, flips)
	}
	t.Logf("%d opens, %d of them worked, %d swaps", tries, got, flips)
}

// TestStreamsKeepTheirRights: what the guest was handed as a stream does not become more by another name.
func TestStreamsKeepTheirRights(t *testing.T) {
	base, inside := jail(t)
	var streams [3]*File
	f := openFS(t, Options{
		FDs: func() []int { return []int{0, 1} },
		File: func(fd int) *File {
			if fd < 0 || fd >= len(streams) {
				return nil
			}
			return streams[fd]
		},
	}, Mount{Host: inside, Guest: "/m", Writable: true})
	fd, err := unix.Open(base+"/secret", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	in, e := f.Adopt(fd, "")
	wantErrno(t, "adopt", e, 0)
	defer in.Close()
	dir, err := unix.Open(base, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	out, e := f.Adopt(dir, "")
	wantErrno(t, "adopt", e, 0)
	defer out.Close()
	streams[0], streams[1] = in, out
	wantText(t, f, "/dev/stdin", secret)
	wantText(t, f, "/proc/self/fd/0", secret)
	for what, e := range map[string]unix.Errno{
		"link":                f.Link(nil, "/proc/self/fd/0", nil, "/m/stolen", unix.AT_SYMLINK_FOLLOW),
		"truncate":            f.Truncate(nil, "/dev/stdin", 0),
		"chmod":               f.Chmod(nil, "/dev/stdin", 0o777, 0),
		"chown":               f.Chown(nil, "/dev/fd/0", 0, 0, 0),
		"utimens":             f.Utimens(nil, "/dev/stdin", nil, 0),
		"through a directory": f.Mkdir(nil, "/proc/self/fd/1/made", 0o755),
	} {
		if e != unix.EROFS && e != unix.EXDEV && e != unix.ENOTDIR && e != unix.EPERM {
			t.Errorf("%s: %v", what, e)
		}
	}
	for _, flags := range []int{unix.O_WRONLY, unix.O_RDWR, unix.O_RDONLY | unix.O_TRUNC, unix.O_RDWR | unix.O_CREAT} {
		_, e := f.Open(nil, "/dev/stdin", flags, 0)
		wantErrno(t, fmt.Sprintf("open %#x", flags), e, unix.EACCES)
	}
	h, e := f.Open(nil, "/dev/stdin", unix.O_PATH, 0)
	wantErrno(t, "O_PATH", e, 0)
	streams[2] = h
	_, e = f.Open(nil, "/proc/self/fd/2", unix.O_RDWR, 0)
	wantErrno(t, "by way of O_PATH", e, unix.EACCES)
	h.Close()
	if _, e := slurp(f, nil, "/proc/self/fd/1/secret"); e != unix.ENOTDIR {
		t.Errorf("a stream that is a directory was walked: %v", e)
	}
	if b, err := os.ReadFile(filepath.Join(base, "secret")); err != nil || string(b) != secret {
		t.Errorf("the stream's file changed: %q %v", b, err)
	}
}

// TestStreamInodeIsNotChanged: a stream that is open for writing is still not the guest's to chmod. The file here
// stands for the host's /dev/null.
func TestStreamInodeIsNotChanged(t *testing.T) {
	name := t.TempDir() + "/null"
	write(t, name, "")
	var out *File
	f := openFS(t, Options{FDs: func() []int { return []int{1} }, File: func(int) *File { return out }})
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var e unix.Errno
	out, e = f.Adopt(fd, "")
	wantErrno(t, "adopt", e, 0)
	defer out.Close()
	again, e := f.Open(nil, "/dev/stdout", unix.O_WRONLY, 0)
	wantErrno(t, "reopen", e, 0)
	defer again.Close()
	for what, e := range map[string]unix.Errno{
		"fchmod": out.Chmod(0), "fchown": out.Chown(1, 1), "futimens": out.Utimens(nil), "chmod": f.Chmod(nil, "/dev/stdout", 0, 0),
		"chown": f.Chown(nil, "/dev/fd/1", 1, 1, 0), "fchmod after reopening": again.Chmod(0),
	} {
		wantErrno(t, what, e, unix.EPERM)
	}
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil || st.Mode&0o777 != 0o644 || st.Uid != uint32(os.Geteuid()) {
		t.Errorf("the stream's inode changed: %o, owner %d, %v", st.Mode, st.Uid, err)
	}
	null, e := f.Open(nil, "/dev/null", unix.O_RDWR, 0)
	wantErrno(t, "open", e, 0)
	defer null.Close()
	wantErrno(t, "fchmod of a device", null.Chmod(0o666), unix.EROFS)
}

// FuzzWalk grows a tree from the input, opens a path from it, and looks whether what was reached has a
// name below the mount.
func FuzzWalk(f *testing.F) {
	f.Add([]byte("a/b/c\n../..\nlink ../../secret\n"), "link")
	f.Add([]byte("dir x\nx/l>/x\n"), "x/l/../l/secret")
	f.Add([]byte("a>..\nb>a/a/a\nc>/proc/self/root\nd>/dev/fd/0\ne>/proc/self/exe"), "b/a/../secret")
	f.Add([]byte("d/e\nd/l>../../out\nq>d/l"), "q/secret")
	base, inside := jail(f)
	ns, err := New([]Mount{{Host: inside, Guest: "/", Writable: true}, {Host: inside + "/a", Guest: "/mnt/ro"}}, Options{Cwd: "/a/b", Exe: base + "/secret"})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { ns.Close() })
	f.Fuzz(func(t *testing.T, tree []byte, path string) {
		if len(tree) > 400 {
			return
		}
		if e := ns.Mkdir(nil, "/t", 0o755); e != 0 {
			t.Fatal(e)
		}
		defer os.RemoveAll(inside + "/t")
		at, e := ns.Chdir(nil, "/t")
		if e != 0 {
			t.Fatal(e)
		}
		defer at.Close()
		for line := range strings.SplitSeq(string(tree), "\n") {
			// The guest itself makes the tree, so making is fuzzed too.
			if name, target, ok := strings.Cut(line, ">"); ok {
				ns.Symlink(target, at, name)
				continue
			}
			ns.Mkdir(at, line, 0o755)
			if file, e := ns.Open(at, line, unix.O_CREAT|unix.O_WRONLY|unix.O_NONBLOCK, 0o644); e == 0 {
				file.Close()
			}
		}
		for _, flags := range []int{unix.O_RDONLY | unix.O_NONBLOCK, unix.O_PATH, unix.O_PATH | unix.O_NOFOLLOW, unix.O_RDONLY | unix.O_DIRECTORY} {
			file, e := ns.Open(at, path, flags, 0)
			if e != 0 {
				continue
			}
			if !strings.HasPrefix(file.Path, "/") {
				t.Errorf("guest path %q", file.Path)
			}
			if file.FD >= 0 && file.node == nil {
				real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file.FD))
				if err != nil {
					t.Fatal(err)
				}
				if real != inside && !strings.HasPrefix(real, inside+"/") {
					t.Errorf("%q reached %s", path, real)
				}
				if want := filepath.Join(inside, file.Path); !strings.HasPrefix(file.Path, "/mnt") && real != want {
					t.Errorf("%q: Path says %s, it is %s", path, file.Path, real)
				}
			}
			file.Close()
		}
		var st unix.Stat_t
		ns.Stat(at, path, true, &st)
		ns.Unlink(at, path, false)
		ns.Rename(at, path, at, "moved", 0)
		for _, name := range []string{"/secret", "/out/secret"} {
			if b, err := os.ReadFile(base + name); err != nil || string(b) != secret {
				t.Fatalf("%s was changed: %q, %v", name, b, err)
			}
		}
		if out, err := os.ReadDir(base); err != nil || len(out) != 3 {
			t.Fatalf("outside: %v %v", out, err)
		}
		if _, err := os.Lstat(inside + "/a"); err != nil {
			restore(t, inside)
		}
	})
}

// restore puts back what a fuzzed rename took, so that the next input finds it.
func restore(t *testing.T, inside string) {
	write(t, inside+"/a/b/c/secret", "decoy")
}

func FuzzParseMount(f *testing.F) {
	f.Add("/a:/b")
	f.Add("::/")
	f.Fuzz(func(t *testing.T, value string) {
		m, err := ParseMount(value, true)
		if err != nil {
			return
		}
		if m.Host == "" || (m.Guest != "" && m.Guest[0] != '/') {
			t.Errorf("%q: %+v", value, m)
		}
		if m.Guest != "" && m.Host+":"+m.Guest != value {
			t.Errorf("%q: %+v loses something", value, m)
		}
	})
}
