package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/internal/testenv"
)

// fakeApt puts an apt into PATH that knows one package, x, whose file holds body.
// Offline it fails as apt does without a network.
func fakeApt(t *testing.T, body string, knows, online bool) {
	t.Helper()
	dir := t.TempDir()
	sum := sha256.Sum256([]byte(body))
	uri := fmt.Sprintf("'http://mirror/x_1%%3a2_amd64.deb' x_1%%3a2_amd64.deb %d SHA256:%s", max(1, len(body)), hex.EncodeToString(sum[:]))
	script := "#!/bin/sh\ncase \"$*\" in\n"
	if knows {
		script += "*--print-uris*) echo \"" + uri + "\"; exit 0;;\n"
	}
	if online {
		script += "download*) printf '%s' '" + body + "' > x_1%3a2_amd64.deb; exit 0;;\n"
	}
	script += "esac\necho 'W: noise' >&2\necho 'E: Could not resolve mirror' >&2\nexit 100\n"
	if err := os.WriteFile(filepath.Join(dir, "apt-get"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func openCache(t *testing.T, dir string) (*Cache, *strings.Builder) {
	t.Helper()
	var notes strings.Builder
	c, err := OpenCache(dir, func(f string, a ...any) { fmt.Fprintf(&notes, f+"\n", a...) })
	if err != nil {
		t.Fatal(err)
	}
	return c, &notes
}

func TestFetch(t *testing.T) {
	dir := t.TempDir()
	c, notes := openCache(t, dir)
	ctx := context.Background()

	fakeApt(t, "good", false, false)
	_, err := c.Fetch(ctx, "x")
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "run apt-get update") || !strings.Contains(err.Error(), "E: Could not resolve mirror") {
		t.Errorf("empty cache, apt without lists: %v", err)
	}
	fakeApt(t, "good", true, false)
	_, err = c.Fetch(ctx, "x")
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "check the network") {
		t.Errorf("empty cache, no network: %v", err)
	}
	fakeApt(t, "good", true, true)
	p, err := c.Fetch(ctx, "x")
	if err != nil || p.Version != "1:2" {
		t.Fatalf("Fetch = %+v, %v", p, err)
	}
	if b, err := os.ReadFile(c.Path(p)); err != nil || string(b) != "good" {
		t.Fatalf("cached %q, %v", b, err)
	}

	// What is whole needs no network, and not even apt's lists.
	fakeApt(t, "good", true, false)
	if _, err := c.Fetch(ctx, "x"); err != nil {
		t.Errorf("cached, no network: %v", err)
	}
	fakeApt(t, "good", false, false)
	if _, err := c.Fetch(ctx, "x"); err != nil {
		t.Errorf("cached, apt without lists: %v", err)
	}

	// A corrupt file is named, and replaced if that is possible.
	if err := os.WriteFile(c.Path(p), []byte("bad!"), 0o644); err != nil {
		t.Fatal(err)
	}
	fakeApt(t, "good", true, false)
	_, err = c.Fetch(ctx, "x")
	if err == nil || errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "is corrupt") || !strings.Contains(err.Error(), "check the network") {
		t.Errorf("corrupt, no network: %v", err)
	}
	fakeApt(t, "good", true, true)
	if _, err := c.Fetch(ctx, "x"); err != nil {
		t.Errorf("corrupt, network: %v", err)
	}
	if !strings.Contains(notes.String(), "is corrupt") {
		t.Errorf("nothing was said of the corrupt file: %q", notes)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) != 0 {
		t.Errorf("left in tmp: %v, %v", left, err)
	}
}

// Lists that are empty or older than the mirror are read anew, by root, once.
func TestFetchUpdatesLists(t *testing.T) {
	testenv.Need(t, testenv.Root)
	for _, when := range []string{"no lists", "old lists"} {
		dir := t.TempDir()
		c, notes := openCache(t, t.TempDir())
		fakeApt(t, "good", true, true)
		real := strings.SplitN(os.Getenv("PATH"), ":", 2)[0]
		knows := "false"
		if when == "old lists" {
			knows = `case "$*" in *--print-uris*) true;; *) false;; esac`
		}
		script := "#!/bin/sh\nif [ \"$1\" = update ]; then : >" + dir + "/updated; exit; fi\n" +
			"if [ -e " + dir + "/updated ] || " + knows + "; then exec " + real + "/apt-get \"$@\"; fi\necho 'E: 404 Not Found' >&2\nexit 100\n"
		if err := os.WriteFile(filepath.Join(dir, "apt-get"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
		p, err := c.Fetch(t.Context(), "x")
		if err != nil || strings.Count(notes.String(), "apt-get update") != 1 {
			t.Errorf("%s: Fetch = %+v, %v; %q", when, p, err, notes)
		}
	}
}

// Lists that know a newer package than the cache are no reason to need the network.
func TestFetchUsesTheOldOffline(t *testing.T) {
	c, notes := openCache(t, t.TempDir())
	old := Package{Name: "x", File: "x_1_amd64.deb", SHA256: fmt.Sprintf("%x", sha256.Sum256([]byte("old"))), Version: "1"}
	if err := os.WriteFile(c.Path(old), []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := c.record(t.TempDir(), "x", old); err != nil {
		t.Fatal(err)
	}
	fakeApt(t, "good", true, false)
	if p, err := c.Fetch(t.Context(), "x"); err != nil || p != old || !strings.Contains(notes.String(), "using x_1_amd64.deb from the cache") {
		t.Errorf("Fetch = %+v, %v; %q", p, err, notes)
	}
	// A record that nobody can read is a broken cache, and no missing network.
	for _, bad := range []string{"{", `{"File":"../x"}`} {
		if err := os.WriteFile(filepath.Join(c.dir, "packages", "x.json"), []byte(bad), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Fetch(t.Context(), "x"); err == nil || errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "is corrupt") {
			t.Errorf("record %s: %v", bad, err)
		}
	}
}

// A mirror that serves something else than the lists promise must not get into the cache.
func TestFetchRefusesWrongHash(t *testing.T) {
	c, _ := openCache(t, t.TempDir())
	fakeApt(t, "good", true, true)
	// The last apt in PATH wins for downloads: same metadata, other body.
	dir := t.TempDir()
	real := strings.SplitN(os.Getenv("PATH"), ":", 2)[0]
	script := "#!/bin/sh\ncase \"$*\" in *--print-uris*) exec " + real + "/apt-get \"$@\";; esac\nprintf evil > x_1%3a2_amd64.deb\n"
	if err := os.WriteFile(filepath.Join(dir, "apt-get"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	p, err := c.Fetch(context.Background(), "x")
	if err == nil || !strings.Contains(err.Error(), "is corrupt") {
		t.Errorf("Fetch = %+v, %v", p, err)
	}
	if left, err := filepath.Glob(filepath.Join(c.dir, "packages", "*")); err != nil || len(left) != 0 {
		t.Errorf("in the cache: %v, %v", left, err)
	}
}

// What a killed run left in tmp is swept by the next, and never becomes a package.
func TestCacheSweeps(t *testing.T) {
	dir := t.TempDir()
	c, _ := openCache(t, dir)
	if err := os.MkdirAll(filepath.Join(dir, "tmp", "dead", "half"), 0o755); err != nil {
		t.Fatal(err)
	}
	fakeApt(t, "good", true, true)
	if _, err := c.Fetch(context.Background(), "x"); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) != 0 {
		t.Errorf("left in tmp: %v, %v", left, err)
	}
}

// Who waits for the lock hears of the end.
func TestCacheLockWaitEnds(t *testing.T) {
	dir := t.TempDir()
	a, _ := openCache(t, dir)
	b, _ := openCache(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	err := a.locked(t.Context(), func(string) error {
		cancel()
		return b.locked(ctx, func(string) error { return nil })
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the wait ended with %v", err)
	}
}

// Two labs that start together must not fill the cache twice at once.
func TestCacheLock(t *testing.T) {
	dir := t.TempDir()
	a, _ := openCache(t, dir)
	b, _ := openCache(t, dir)
	inside, second := make(chan bool), make(chan error, 1)
	first := make(chan error, 1)
	go func() {
		first <- a.locked(t.Context(), func(string) error { inside <- true; <-inside; return nil })
	}()
	<-inside
	go func() { second <- b.locked(t.Context(), func(string) error { return nil }) }()
	select {
	case err := <-second:
		t.Fatalf("two hold the lock (%v)", err)
	case <-time.After(100 * time.Millisecond):
	}
	inside <- true
	if err := <-first; err != nil {
		t.Error(err)
	}
	if err := <-second; err != nil {
		t.Error(err)
	}
}

func TestParseURI(t *testing.T) {
	sum := strings.Repeat("0a", 32)
	for _, c := range []struct {
		in, version string
		ok          bool
	}{
		{"'http://m/p/busybox_1.deb' busybox-static_1%3a1.35.0-4_amd64.deb 928188 SHA256:" + sum + "\n", "1:1.35.0-4", true},
		{"Reading lists...\n'u' a_1_all.deb 1 SHA256:" + sum, "1", true},
		{"", "", false},
		{"'u' ../a_1_all.deb 1 SHA256:" + sum, "", false},
		{"'u' a_1_all.deb -1 SHA256:" + sum, "", false},
		{"'u' a_1_all.deb 1 SHA256:12", "", false},
		{"'u' a_1_all.deb 1 MD5Sum:" + sum, "", false},
		{"'u' a.deb 1 SHA256:" + sum, "", false},
	} {
		p, err := parseURI("a", c.in)
		if (err == nil) != c.ok || p.Version != c.version {
			t.Errorf("parseURI(%q) = %+v, %v", c.in, p, err)
		}
	}
}

func FuzzParseURI(f *testing.F) {
	f.Add("'u' a_1_all.deb 1 SHA256:" + strings.Repeat("0a", 32))
	f.Add("'u' ../a_1_all.deb 1 SHA256:")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parseURI("a", s)
		if err == nil && (filepath.Base(p.File) != p.File || p.Size <= 0 || len(p.SHA256) != 64) {
			t.Errorf("%q: accepted as %+v", s, p)
		}
	})
}

func TestMetapackage(t *testing.T) {
	for name, want := range map[string]bool{
		"linux-image-amd64": true, "linux-image-cloud-amd64": true, "linux-image-rt-amd64": true,
		"linux-image-6.1.0-56-amd64": false, "busybox-static": false,
	} {
		if got := metapackage.MatchString(name); got != want {
			t.Errorf("metapackage %s: %v, want %v", name, got, want)
		}
	}
	if dep, err := firstDepends("linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n"); err != nil || dep != "linux-image-6.1.0-56-amd64" {
		t.Errorf("firstDepends = %q, %v", dep, err)
	}
	if dep, err := firstDepends("linux-image-amd64\n"); err == nil {
		t.Errorf("firstDepends of nothing = %q", dep)
	}
}

func TestInstall(t *testing.T) {
	if err := Install(context.Background(), t.Logf, []string{"sh"}, []string{"none"}); err != nil {
		t.Errorf("a command that is there: %v", err)
	}
	fakeApt(t, "", false, false)
	err := Install(context.Background(), t.Logf, []string{"no-such-emulator"}, []string{"emulator"})
	want := "apt-get install --no-install-recommends emulator"
	if testenv.Has(testenv.Root) {
		want = "E: Could not resolve mirror"
	}
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), want) {
		t.Errorf("Install = %v, want %q in it", err, want)
	}
	if !testenv.Has(testenv.Root) {
		return
	}
	if err := syscall.Setresuid(-1, 65534, -1); err != nil {
		t.Fatal(err)
	}
	err = Install(context.Background(), t.Logf, []string{"no-such-emulator"}, []string{"emulator"})
	if err := syscall.Setresuid(-1, 0, -1); err != nil {
		t.Fatal(err)
	}
	if want := "no-such-emulator is not in PATH and this is not root; run: sudo apt-get install --no-install-recommends emulator"; !errors.Is(err, ErrUnavailable) || err.Error() != want {
		t.Errorf("Install = %v for who is not root, want %q", err, want)
	}
}

// A file of an installed package that is gone is named before anything boots, with the command that brings it back.
func TestInstallFile(t *testing.T) {
	there := filepath.Join(t.TempDir(), "BIOS")
	if err := os.WriteFile(there, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Install(t.Context(), t.Logf, []string{"sh", there}, []string{"none"}); err != nil {
		t.Errorf("a file that is there: %v", err)
	}
	fakeApt(t, "", false, false)
	err := Install(t.Context(), t.Logf, []string{"sh", there + ".c32"}, []string{"isolinux"})
	want := []string{there + ".c32 is not there", "apt-get install --no-install-recommends --reinstall isolinux"}
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), want[0]) || !strings.Contains(err.Error(), want[1]) || strings.Contains(err.Error(), "\n") {
		t.Errorf("Install = %v, want %q in it", err, want)
	}
	for _, file := range []string{bochsBIOS, bochsVGA, isolinuxBin, ldlinux} {
		if !slices.Contains(bochsNeeds[0], file) {
			t.Errorf("nobody looks whether %s is there before a machine boots with it", file)
		}
	}
}

func TestNeedSpace(t *testing.T) {
	dir := t.TempDir()
	if err := needSpace(dir, 1); err != nil {
		t.Error(err)
	}
	if err := needSpace(dir, 1<<60); err == nil || !strings.Contains(err.Error(), "MB needed") {
		t.Errorf("a petabyte: %v", err)
	}
}

func TestScratch(t *testing.T) {
	cache := t.TempDir()
	dead := filepath.Join(cache, "run", "dead")
	if err := os.MkdirAll(dead, 0o755); err != nil {
		t.Fatal(err)
	}
	a, releaseA, err := scratch(cache, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead); err == nil {
		t.Error("the directory of a dead run is still there")
	}
	b, releaseB, err := scratch(cache, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(a); err != nil || a == b {
		t.Errorf("a second run disturbed the first: %v", err)
	}
	for _, release := range []func() error{releaseA, releaseB} {
		if err := release(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(b); err == nil {
		t.Error("scratch is still there after its release")
	}
}
