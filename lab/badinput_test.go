package lab

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/internal/testenv/lanes"
)

// What keeps a machine from ever starting is one line with the remedy, a status other than 0, and, where this machine
// simply cannot have what is needed, a row of the table that says "not run". Results of an
// earlier run do not survive it.
func TestRunRefuses(t *testing.T) {
	tool := func(t *testing.T, name, script string) {
		t.Helper()
		dir := t.TempDir()
		t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// A whole package, with a kernel that has no options at all, and the /boot of an archive that is made by hand.
	kernelPackage := func(t *testing.T) {
		fakeApt(t, "good", true, true)
		dir := strings.SplitN(os.Getenv("PATH"), ":", 2)[0]
		b, err := os.ReadFile(filepath.Join(dir, "apt-get"))
		if err != nil {
			t.Fatal(err)
		}
		tool(t, "apt-get", strings.ReplaceAll(string(b), "x_1%3a2", "linux-image-9_1%3a2"))
		archive := filepath.Join(dir, "archive")
		if err := os.WriteFile(archive, tarOf(t, "boot/vmlinuz-9", "boot/config-9"), 0o644); err != nil {
			t.Fatal(err)
		}
		tool(t, "dpkg-deb", "exec cat "+archive)
	}
	remedyQEMU := "not root; run: sudo apt-get install --no-install-recommends qemu-system-x86"
	if testenv.Has(testenv.Root) {
		remedyQEMU = "check the network and the package mirror, or run by hand: apt-get install --no-install-recommends qemu-system-x86"
	}
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T)
		notRun  bool
		says    []string
		room    int64 // 0: 1 MB
	}{
		{"no emulator", func(t *testing.T) {
			fakeApt(t, "", false, false)
			path := strings.SplitN(os.Getenv("PATH"), ":", 2)[0]
			t.Setenv("PATH", path) // the script of apt-get needs nothing but the shell itself
		}, true, []string{"qemu-system-x86_64 is not in PATH", remedyQEMU}, 0},
		{"no network and an empty cache", func(t *testing.T) {
			fakeApt(t, "good", true, false)
			tool(t, "qemu-system-x86_64", "exit 1")
		}, true, []string{"E: Could not resolve mirror", "check the network"}, 0},
		{"a kernel that there is not", func(t *testing.T) {
			tool(t, "qemu-system-x86_64", "exit 1")
			tool(t, "apt-cache", "echo '  Depends: linux-image-8-amd64'")
			tool(t, "apt-get", "case \"$*\" in update*) exit 0;; *linux-image-8-amd64) echo \"'http://m/x_8_amd64.deb' x_8_amd64.deb 1 SHA256:"+strings.Repeat("0", 64)+"\"; exit 0;; esac\n"+
				"echo 'E: Unable to locate package' >&2; exit 100")
		}, false, []string{"apt knows no package linux-image-9", "E: Unable to locate package", "apt-cache search linux-image"}, 0},
		{"a kernel without what is needed", func(t *testing.T) {
			kernelPackage(t)
			tool(t, "qemu-system-x86_64", "exit 1")
		}, false, []string{"kernel 9 cannot be a lab host", "no CONFIG_NO_HZ_FULL=y (cores without a tick)", "choose another with -kernel"}, 0},
		{"no room", func(t *testing.T) { tool(t, "qemu-system-x86_64", "exit 1") }, false, []string{"MB free", "make room or set " + CacheVar}, 1 << 60},
		{"a disk that fills up while apt downloads", func(t *testing.T) {
			fakeApt(t, "good", true, false)
			tool(t, "qemu-system-x86_64", "exit 1")
			dir := strings.SplitN(os.Getenv("PATH"), ":", 3)[1]
			b, err := os.ReadFile(filepath.Join(dir, "apt-get"))
			if err != nil {
				t.Fatal(err)
			}
			tool(t, "apt-get", strings.ReplaceAll(string(b), "E: Could not resolve mirror", "E: Write error - write (28: No space left on device)"))
		}, false, []string{"No space left on device", "make room (apt-get clean", CacheVar}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("PATH", os.Getenv("PATH"))
			c.prepare(t)
			m, err := Lookup("svm")
			if err != nil {
				t.Fatal(err)
			}
			m.Kernel = "linux-image-9"
			file := filepath.Join(t.TempDir(), "lane.json")
			if err := os.WriteFile(file, []byte("what an earlier run left"), 0o644); err != nil {
				t.Fatal(err)
			}
			cache := t.TempDir()
			o := Options{Machine: m, JSON: file, CacheDir: cache, Stdout: io.Discard, Stderr: io.Discard, Packages: []string{"./lab"}, room: cmp.Or(c.room, 1<<20)}
			status, err := run(context.Background(), o)
			if status == 0 || err == nil || strings.Contains(err.Error(), "\n") {
				t.Fatalf("status %d, error %v; want one line", status, err)
			}
			for _, want := range c.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\nlacks %q", err, want)
				}
			}
			if errors.Is(err, ErrUnavailable) != c.notRun {
				t.Errorf("unavailable %v, want %v", !c.notRun, c.notRun)
			}
			if _, err := Run(context.Background(), o); err == nil {
				t.Error("the second run did not fail")
			}
			f, err := os.Open(file)
			if !c.notRun {
				if err == nil {
					t.Errorf("%s is still there (%v)", file, f.Close())
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			l, err := lanes.Read(f)
			if err := errors.Join(err, f.Close()); err != nil || l.NotRun == "" || l.Passed+l.Failed+l.Skipped != 0 {
				t.Errorf("the table has %+v, %v", l, err)
			}
			for _, d := range []string{"tmp", "run"} {
				if left, err := os.ReadDir(filepath.Join(cache, d)); err == nil && len(left) != 0 {
					t.Errorf("left in %s: %v", d, left)
				}
			}
		})
	}
}

// A cache that is there and belongs to somebody else is one line with the remedy, whichever part of it that is.
func TestCacheOfAnother(t *testing.T) {
	for _, part := range []string{".", "packages", "unpacked", "tmp", "run", "lock"} {
		t.Run(part, func(t *testing.T) {
			dir := t.TempDir()
			c, err := OpenCache(dir, t.Logf)
			if err != nil {
				t.Fatal(err)
			}
			lock := func() error { return c.locked(t.Context(), func(string) error { return nil }) }
			if part != "." {
				if err := lock(); err != nil {
					t.Fatal(err)
				}
			} else if err := os.Remove(filepath.Join(dir, "tmp")); err != nil { // to be made again
				t.Fatal(err)
			}
			name := filepath.Join(dir, part)
			info, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			for file, mode := range map[string]os.FileMode{filepath.Dir(dir): 0o755, name: info.Mode().Perm() & 0o555} {
				if err := os.Chmod(file, mode); err != nil {
					t.Fatal(err)
				}
			}
			err = asAnother(t, func() error {
				if _, err := OpenCache(dir, t.Logf); err != nil {
					return err
				}
				return lock()
			})
			if merr := os.Chmod(name, info.Mode().Perm()); merr != nil {
				t.Error(merr)
			}
			if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "permission denied") ||
				!strings.Contains(err.Error(), "set "+CacheVar+" to a directory that can be written") {
				t.Errorf("%v; want one line with the remedy", err)
			}
		})
	}
}

// asAnother calls f with the rights of a user who owns nothing, if this one may do everything.
func asAnother(t *testing.T, f func() error) (err error) {
	t.Helper()
	if !testenv.Has(testenv.Root) {
		return f()
	}
	const nobody = 65534
	// Of this thread alone, and of its access to files alone (setfsuid(2)).
	runtime.LockOSThread()
	old, err := unix.SetfsuidRetUid(nobody)
	if err == nil {
		err = f()
		if _, back := unix.SetfsuidRetUid(old); back != nil {
			t.Fatal(back) // the thread ends with its goroutine
		}
	}
	runtime.UnlockOSThread()
	return err
}

// A package that there is not is one line that names it.
func TestNoSuchPackage(t *testing.T) {
	testenv.Need(t, testenv.Tool("go"))
	_, err := suites(context.Background(), Options{Packages: []string{"./nosuch"}}, t.TempDir(), t.TempDir())
	if err == nil || strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), "packages ./nosuch: go list: ") || !strings.Contains(err.Error(), "directory not found") {
		t.Errorf("%v; want one line with the package and what go list says", err)
	}
}
