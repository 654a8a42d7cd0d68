package linux

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSameResolve opens an adversarial tree with every set of RESOLVE_ flags, on the host and in the guest.
func TestSameResolve(t *testing.T) {
	g := newGuest(t, nil)
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(g.dir, "root/a/b"), 0o755))
	for _, f := range []string{"root/file", "root/a/b/file", "outside"} {
		must(os.WriteFile(filepath.Join(g.dir, f), []byte(f), 0o600))
	}
	for name, target := range map[string]string{
		"near": "file", "down": "a/b", "abs": "/file", "absdown": "/a/b/file", "out": "../outside", "round": "../root/file", "up": "..", "upup": "a/../../outside",
		"slash": "/", "host": g.dir + "/outside", "self": "self", "chain": "down/../near", "a/b/climb": "../../../outside", "a/b/back": "../../file", "a/b/deep": "../../../../../../../../file", "none": "/absent",
	} {
		must(os.Symlink(target, filepath.Join(g.dir, "root", name)))
	}
	host, err := unix.Open(filepath.Join(g.dir, "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(err)
	defer unix.Close(host)
	mine := uint64(g.call(unix.SYS_OPENAT, cwd, g.str("root"), unix.O_PATH|unix.O_DIRECTORY, 0))
	paths := []string{
		"file", "./file", "near", "down/file", "abs", "absdown", "out", "round", "up", "up/outside", "up/file", "upup", "slash", "slash/file", "host", "self", "chain",
		"a/b/climb", "a/b/back", "a/b/deep", "..", "../root/file", "../outside", "a/..", "a/../..", "a/../../outside", "/file", "/", "/a/b/back", "/../outside", "none", "absent", "absent/..",
		"file/", "down/", "down/..", "down/../../..", "", "new", "up/new", "abs/new", "a/b/new",
	}
	leaves := map[string]bool{
		"abs": true, "absdown": true, "slash": true, "slash/file": true, "a/b/deep": true, "none": true, "abs/new": true,
		"/file": true, "/": true, "/a/b/back": true, "/../outside": true,
	}
	n := 0
	for _, path := range paths {
		for resolve := range uint64(0x40) {
			if resolve&(unix.RESOLVE_NO_XDEV|resolveCached) != 0 {
				continue
			}
			const stays = unix.RESOLVE_IN_ROOT | unix.RESOLVE_BENEATH
			if resolve&stays == 0 && leaves[path] {
				continue // the guest's root is not the host's, where nothing may be made
			}
			for _, flags := range []uint64{unix.O_RDONLY, unix.O_PATH | unix.O_NOFOLLOW, unix.O_RDONLY | unix.O_NOFOLLOW, unix.O_RDWR | unix.O_CREAT, unix.O_DIRECTORY, unix.O_PATH} {
				mode := uint64(0)
				if flags&unix.O_CREAT != 0 {
					mode = 0o600
				}
				p, how := g.str(path), g.words(flags|unix.O_CLOEXEC, mode, resolve)
				clean := func() {
					for _, f := range []string{"new", "root/new", "root/a/b/new", "absent", "root/absent"} {
						if err := os.Remove(filepath.Join(g.dir, f)); err != nil && !os.IsNotExist(err) {
							t.Fatal(err)
						}
					}
				}
				says := func(fd int64, where string) string {
					if fd < 0 {
						return result64(fd)
					}
					return where
				}
				id := func(st unix.Stat_t) string {
					if flags&unix.O_CREAT != 0 {
						return "made"
					}
					return fmt.Sprint("inode ", st.Ino)
				}
				var st unix.Stat_t
				fd := native(unix.SYS_OPENAT2, uint64(host), p, how, 24)
				for fd == e(unix.EAGAIN) { // any rename on the machine cuts a walk over ".." (openat2(2))
					fd = native(unix.SYS_OPENAT2, uint64(host), p, how, 24)
				}
				if fd >= 0 {
					must(unix.Fstat(int(fd), &st))
					must(unix.Close(int(fd)))
				}
				want := says(fd, id(st))
				clean()
				st = unix.Stat_t{}
				fd = g.call(unix.SYS_OPENAT2, mine, p, how, 24)
				if fd >= 0 {
					must(unix.Fstat(g.k.File(int(fd)).FD, &st))
					g.want(0, unix.SYS_CLOSE, uint64(fd))
				}
				got := says(fd, id(st))
				clean()
				if n++; got != want {
					t.Errorf("openat2 %q flags %#x resolve %#x: %s, the host says %s", path, flags, resolve, got, want)
				}
			}
		}
	}
	t.Logf("%d opens compared", n)
	for resolve, want := range map[uint64]int64{
		unix.RESOLVE_NO_MAGICLINKS: e(unix.ELOOP), unix.RESOLVE_NO_SYMLINKS: e(unix.ELOOP), resolveCached: e(unix.EAGAIN), unix.RESOLVE_NO_XDEV: e(unix.EINVAL), 0x40: e(unix.EINVAL),
	} {
		g.want(want, unix.SYS_OPENAT2, mine, g.str(fmt.Sprintf("/proc/thread-self/fd/%d/file", mine)), g.words(0, 0, resolve), 24)
	}
}
