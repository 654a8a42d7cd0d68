package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CacheVar names the environment variable with the directory for packages; without
// it the user's cache directory is used.
const CacheVar = "CLOISTER_LAB_CACHE"

// Cache holds Debian packages and what was unpacked from them.
//
//	packages/NAME.json   which file, version and hash NAME was when last asked
//	packages/*.deb       as downloaded, hash checked against apt's metadata
//	unpacked/HASH-KIND/  the parts of a package that the lab uses
//	tmp/                 what is being made; swept when the cache is opened
//	lock                 held (flock) while the cache changes
//
// Files appear under their names by rename(2) only, so one that is there is whole.
type Cache struct {
	dir     string
	note    func(format string, args ...any)
	updated bool // apt's lists were read anew, or that was tried
}

// Package is one Debian package in the cache.
type Package struct {
	Name    string // as apt knows it, versions of kernels included
	File    string // base name in packages/
	Size    int64  // bytes
	SHA256  string // hex, from apt's metadata
	Version string // as in the file's name
}

// ErrUnavailable marks the errors that say that this machine cannot have the emulator or a package:
// no apt, no network to the mirror, no right to install. It is nobody's fault in the tree.
var ErrUnavailable = errors.New("unavailable")

type unavailable struct{ error }

func (u unavailable) Is(target error) bool { return target == ErrUnavailable }
func (u unavailable) Unwrap() error        { return u.error }

// DefaultCacheDir is where the cache is unless CacheVar says otherwise.
func DefaultCacheDir() (string, error) {
	if dir := os.Getenv(CacheVar); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place for the lab's cache: %w; set %s", err, CacheVar)
	}
	return filepath.Join(dir, "cloister-lab"), nil
}

// OpenCache makes the cache's directories, and that of runs, if need be. Notes about slow steps go to note. The error of
// a place that cannot be written, another user's or on a read-only disk, is one line with the remedy.
func OpenCache(dir string, note func(format string, args ...any)) (*Cache, error) {
	for _, d := range []string{"packages", "unpacked", "tmp", "run"} {
		d = filepath.Join(dir, d)
		err := os.MkdirAll(d, 0o755)
		if err == nil {
			if err = unix.Faccessat(unix.AT_FDCWD, d, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
				err = &fs.PathError{Op: "write to", Path: d, Err: err}
			}
		}
		if err != nil {
			return nil, cannotWrite(err)
		}
	}
	return &Cache{dir: dir, note: note}, nil
}

func cannotWrite(err error) error {
	return fmt.Errorf("lab cache: %w; set %s to a directory that can be written", err, CacheVar)
}

// locked runs f with the cache's lock held. The lock is on an open file, so the
// kernel drops it with the process, however that ends. What a killed process
// left in tmp belongs to nobody once the lock is free.
func (c *Cache) locked(ctx context.Context, f func(tmp string) error) (err error) {
	l, err := os.OpenFile(filepath.Join(c.dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return cannotWrite(err)
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := unix.Flock(int(l.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
		c.note("waiting for another lab that fills %s", c.dir)
		for ; err == unix.EWOULDBLOCK; err = unix.Flock(int(l.Fd()), unix.LOCK_EX|unix.LOCK_NB) {
			select {
			case <-ctx.Done(): // who waits in flock(2) would hear of no signal
				return ctx.Err()
			case <-time.After(100 * time.Millisecond):
			}
		}
		if err != nil {
			return fmt.Errorf("lab cache: lock: %w", err)
		}
	} else if err != nil {
		return fmt.Errorf("lab cache: lock: %w", err)
	}
	tmp := filepath.Join(c.dir, "tmp")
	left, err := os.ReadDir(tmp)
	if err != nil {
		return err
	}
	for _, e := range left {
		if err := os.RemoveAll(filepath.Join(tmp, e.Name())); err != nil {
			return err
		}
	}
	tmp, err = os.MkdirTemp(tmp, "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	return f(tmp)
}

// Fetch returns the package that apt would install for name, downloading it if
// the cache lacks it. A name of a metapackage whose first dependency is the wanted
// one (linux-image-amd64) stands for that dependency.
//
// Without apt's lists or the network, the package that name stood for last time
// is taken if it is still whole. Root has the lists brought up to date before that.
func (c *Cache) Fetch(ctx context.Context, name string) (p Package, err error) {
	if !packageName.MatchString(name) {
		return p, fmt.Errorf("%q is no name of a Debian package: give one such as %s", name, anyKernel)
	}
	err = c.locked(ctx, func(tmp string) error {
		old, oldErr := c.recorded(name)
		if oldErr != nil && !errors.Is(oldErr, fs.ErrNotExist) {
			return fmt.Errorf("lab cache: %w; delete the file", oldErr) // not "unavailable": the cache is this machine's, and broken
		}
		p, err = c.ask(ctx, tmp, name)
		if err != nil && oldErr != nil && c.update(ctx) {
			p, err = c.ask(ctx, tmp, name)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if oldErr != nil {
				if _, other := c.ask(ctx, tmp, anyKernel); other == nil && strings.HasPrefix(name, "linux-image-") && name != anyKernel {
					return fmt.Errorf("apt knows no package %s: %w; choose another name, of those that `apt-cache search linux-image` prints", name, err)
				}
				return unavailable{fmt.Errorf("package %s is not in the cache and apt does not know it: %w; run apt-get update as root, with the network, on Debian 12", name, err)}
			}
			c.note("apt cannot be asked for %s (%v); using %s from the cache", name, err, old.File)
			p = old
		}
		bad := c.verify(p)
		if bad == nil {
			return c.record(tmp, name, p)
		}
		if !errors.Is(bad, fs.ErrNotExist) {
			c.note("%v; downloading again", bad)
		}
		err := c.download(ctx, tmp, p)
		if err != nil && ctx.Err() == nil && oldErr == nil && old.File != p.File && c.verify(old) == nil {
			c.note("%v; using %s from the cache", err, old.File)
			p = old
			return nil
		}
		if errors.Is(err, ErrUnavailable) && ctx.Err() == nil && c.update(ctx) { // the mirror no longer has what old lists name
			if p, err = c.ask(ctx, tmp, name); err == nil {
				err = c.download(ctx, tmp, p)
			}
		}
		if err != nil {
			if !errors.Is(bad, fs.ErrNotExist) {
				// Not "unavailable": the cache is this machine's, and broken.
				err = fmt.Errorf("%w; and %v", bad, err)
			}
			return err
		}
		return c.record(tmp, name, p)
	})
	return p, err
}

// packageName is what Debian takes for one (Policy manual, 5.6.1); a single letter is what tests use.
var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]*$`)

// anyKernel is what apt knows wherever it has read lists that name kernels. There, what it does not know is a name that is wrong, and no lack of the machine's.
const anyKernel = "linux-image-amd64"

// update has root's apt read the mirror's lists anew, once for each Cache, and reports whether it did.
func (c *Cache) update(ctx context.Context) bool {
	if c.updated || os.Geteuid() != 0 {
		return false
	}
	c.updated = true
	c.note("apt-get update")
	if _, err := aptOutput(installer(ctx, "apt-get", append([]string{"update", "-q"}, impatient...)...), "/"); err != nil {
		c.note("%v", err)
		return false
	}
	return true
}

// Path returns where a fetched package is.
func (c *Cache) Path(p Package) string { return filepath.Join(c.dir, "packages", p.File) }

// ask resolves a name by apt's metadata. It reads no network.
func (c *Cache) ask(ctx context.Context, tmp, name string) (Package, error) {
	if metapackage.MatchString(name) {
		out, err := apt(ctx, tmp, "apt-cache", "depends", "--important", name)
		if err != nil {
			return Package{}, err
		}
		if name, err = firstDepends(out); err != nil {
			return Package{}, err
		}
	}
	out, err := apt(ctx, tmp, "apt-get", "download", "--print-uris", name)
	if err != nil {
		return Package{}, err
	}
	return parseURI(name, out)
}

// metapackage matches Debian's names for "the newest kernel of a flavour"
// (linux-image-amd64), which have no version in them.
var metapackage = regexp.MustCompile(`^linux-image-([a-z]+-)?amd64$`)

func firstDepends(out string) (string, error) {
	for line := range strings.Lines(out) {
		if dep, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok {
			return dep, nil
		}
	}
	return "", errors.New("apt-cache depends names no dependency")
}

// parseURI reads a line of apt-get --print-uris: 'URI' FILE SIZE SHA256:HASH
// (apt-get(8)). FILE has the version with ':' as %3a.
func parseURI(name, out string) (Package, error) {
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) != 4 || !strings.HasPrefix(f[0], "'") {
			continue
		}
		sum, ok := strings.CutPrefix(f[3], "SHA256:")
		raw, hexErr := hex.DecodeString(sum)
		size, sizeErr := strconv.ParseInt(f[2], 10, 64)
		parts := strings.Split(strings.TrimSuffix(f[1], ".deb"), "_")
		if !ok || hexErr != nil || len(raw) != sha256.Size || sizeErr != nil || size <= 0 ||
			len(parts) != 3 || filepath.Base(f[1]) != f[1] {
			return Package{}, fmt.Errorf("apt-get download --print-uris: unexpected line %q", strings.TrimSpace(line))
		}
		return Package{Name: name, File: f[1], Size: size, SHA256: sum, Version: strings.ReplaceAll(parts[1], "%3a", ":")}, nil
	}
	return Package{}, fmt.Errorf("apt-get download --print-uris %s printed no package", name)
}

func (c *Cache) recorded(name string) (Package, error) {
	var p Package
	b, err := os.ReadFile(filepath.Join(c.dir, "packages", name+".json"))
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return p, fmt.Errorf("%s is corrupt: %w", filepath.Join(c.dir, "packages", name+".json"), err)
	}
	if filepath.Base(p.File) != p.File || p.File == "" {
		return p, fmt.Errorf("%s is corrupt: it names the file %q", filepath.Join(c.dir, "packages", name+".json"), p.File)
	}
	return p, nil
}

func (c *Cache) record(tmp, name string, p Package) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	f := filepath.Join(tmp, "record")
	if err := os.WriteFile(f, b, 0o644); err != nil {
		return err
	}
	return os.Rename(f, filepath.Join(c.dir, "packages", name+".json"))
}

// verify compares a cached package with its hash; fs.ErrNotExist if it is not cached.
func (c *Cache) verify(p Package) error {
	return verifyFile(c.Path(p), p.SHA256)
}

func verifyFile(path, want string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		return fmt.Errorf("%s is corrupt: sha256 %.12s…, should be %.12s…", path, got, want)
	}
	return nil
}

// impatient keeps apt from waiting for minutes for a mirror that nobody answers for, and has it wait for another apt that is at work.
var impatient = []string{"-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=30", "-o", "Acquire::https::Timeout=30", "-o", "DPkg::Lock::Timeout=120"}

func (c *Cache) download(ctx context.Context, tmp string, p Package) error {
	if err := needSpace(tmp, p.Size*2); err != nil {
		return err
	}
	c.note("downloading %s (%d MB)", p.File, p.Size>>20)
	// apt checks the hash too; ours is what later runs compare with. The sandbox
	// user of a root apt could not write below a private directory.
	args := append(append([]string{"download", "-q", "-o", "APT::Sandbox::User=root"}, impatient...), p.Name+"="+p.Version)
	if _, err := apt(ctx, tmp, "apt-get", args...); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return unavailable{fmt.Errorf("download %s: %w; check the network and the package mirror, or copy the file into %s", p.File, err, filepath.Join(c.dir, "packages"))}
	}
	f := filepath.Join(tmp, p.File)
	if err := verifyFile(f, p.SHA256); err != nil {
		return err
	}
	return os.Rename(f, c.Path(p))
}

// needSpace fails early and clearly where a full disk would fail late.
func needSpace(dir string, bytes int64) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if free := int64(s.Bavail) * s.Bsize; free < bytes {
		return fmt.Errorf("%s: %d MB free, %d MB needed; make room or set %s to another disk", dir, free>>20, bytes>>20, CacheVar)
	}
	return nil
}

// apt runs a command of apt in dir and returns its standard output; its complaint
// becomes the error.
func apt(ctx context.Context, dir, name string, args ...string) (string, error) {
	return aptOutput(command(ctx, name, args...), dir)
}

func aptOutput(cmd *exec.Cmd, dir string) (string, error) {
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return "", fmt.Errorf("%s is not in PATH; the lab takes its kernels from Debian packages", cmd.Args[0])
		}
		return "", fmt.Errorf("%s: %w: %s", cmd.Args[0], err, complaints(complaint.String()))
	}
	return out.String(), nil
}

// complaints keeps apt's error lines, on one line; without any, the last line.
func complaints(stderr string) string {
	var kept []string
	last := ""
	for line := range strings.Lines(stderr) {
		line = strings.TrimSpace(line)
		if line != "" {
			last = line
		}
		if strings.HasPrefix(line, "E:") {
			kept = append(kept, line)
		}
	}
	if len(kept) == 0 {
		return last
	}
	return strings.Join(kept, " ")
}

// Install makes sure that the commands are in PATH and the files, which are those with an absolute path, there: it
// installs the packages if this process may. The error is one line with what is missing and the command that puts it there.
func Install(ctx context.Context, note func(string, ...any), commands, packages []string) error {
	what := strings.Join(missing(commands), ", ")
	if what == "" {
		return nil
	}
	// A package of which a file was deleted is installed as far as apt knows.
	flags := []string{"--no-install-recommends"}
	if strings.Contains(what, notThere) {
		flags = append(flags, "--reinstall")
	}
	remedy := "apt-get install " + strings.Join(append(slices.Clone(flags), packages...), " ")
	if os.Geteuid() != 0 {
		return unavailable{fmt.Errorf("%s and this is not root; run: sudo %s", what, remedy)}
	}
	note("installing %s", strings.Join(packages, " "))
	args := append(append(append([]string{"install", "-y", "-q"}, flags...), impatient...), packages...)
	if _, err := aptOutput(installer(ctx, "apt-get", args...), "/"); err != nil {
		// A machine whose lists are older than the mirror's files.
		_, uerr := aptOutput(installer(ctx, "apt-get", append([]string{"update", "-q"}, impatient...)...), "/")
		if uerr == nil {
			_, err = aptOutput(installer(ctx, "apt-get", args...), "/")
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return unavailable{fmt.Errorf("%s and cannot be installed: %w; check the network and the package mirror, or run by hand: %s", what, err, remedy)}
		}
	}
	if still := missing(commands); len(still) > 0 {
		return fmt.Errorf("%s even after: %s", strings.Join(still, ", "), remedy)
	}
	return nil
}

const notThere = " is not there"

// missing says of each command that is not in PATH, and of each file that is not there, that it is so.
func missing(commands []string) (what []string) {
	for _, c := range commands {
		if filepath.IsAbs(c) {
			if _, err := os.Stat(c); err != nil {
				what = append(what, c+notThere)
			}
		} else if _, err := exec.LookPath(c); err != nil {
			what = append(what, c+" is not in PATH")
		}
	}
	return what
}
