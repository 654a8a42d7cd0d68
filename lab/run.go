package lab

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/internal/testenv/lanes"
	"github.com/cloister-vmm/cloister/lab/wire"
)

// Options says what to run in a lab machine.
type Options struct {
	Machine  Machine
	Packages []string          // patterns of go list; empty with Shell: none
	Run      string            // -test.run
	Only     map[string]string // -test.run of single packages, by directory below the module's root ("cmd/cloister")
	Skip     string            // -test.skip
	Count    int               // -test.count; 0: 1
	Short    bool              // -test.short
	Verbose  bool              // every line as it comes, instead of the failed tests'
	Timeout  time.Duration     // of each package, in guest time; 0: the back end's default
	Cover    string            // file for the coverage profile of all packages; empty: none
	JSON     string            // file for the events; empty: none
	Row      string            // of the table; empty: the machine's
	Artefact string            // directory for what tests leave in $CLOISTER_LAB_OUT; empty: dropped
	Guest    string            // Debian package of the kernel that tests boot as a guest; empty: the cloud kernel
	Carry    []string          // more programs for the machine's PATH: FILE, or FILE=NAME
	Shell    bool              // a shell on the console, after the tests
	Retries  int               // how often a boot may be tried again of which the emulator hung (ErrEmulator)
	GDB      string            // HOST:PORT for QEMU's gdb stub, which holds the machine at its first instruction
	CacheDir string

	Stdout, Stderr io.Writer

	room int64 // that a run must have below CacheDir, in bytes; 0: scratchNeed
}

// row is the run's name in the table of lanes.
func (o Options) row() string { return cmp.Or(o.Row, o.Machine.row()) }

// OutVar names the environment variable with the directory in the guest whose
// regular files come back to the host.
const OutVar = "CLOISTER_LAB_OUT"

// MachineVar names the environment variable with the machine's name.
const MachineVar = testenv.LabMachineVar

// diskSize is that of the results disk, in bytes; sparse on the host. A whole
// number of Bochs' cylinders (16 heads × 63 sectors × 512 bytes).
const diskSize = 512 * 16 * 63 * 512

// lastWords is how long before the end of all a test has to be over, the boot of the machine included.
const lastWords = 90 * time.Second

// timeouts of a package, in guest time.
var timeouts = map[Backend]time.Duration{SVM: 10 * time.Minute, VMX: 30 * time.Minute}

// Run builds the test binaries, boots the machine, runs them, and brings results
// back. Its status is 0 if all passed, otherwise 1, or that of the shell. An error
// means that the lab itself failed, or (ErrGuest) that the machine did.
//
// If the emulator or a package cannot be had on this machine (ErrUnavailable), the events say that
// nothing was run, and why.
func Run(ctx context.Context, o Options) (status int, err error) {
	if o.JSON != "" {
		// A run that fails early must not leave the results of another one.
		if err := os.Remove(o.JSON); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 1, err
		}
	}
	status, err = run(ctx, o)
	if !errors.Is(err, ErrUnavailable) || o.JSON == "" {
		return status, err
	}
	f, cerr := create(o.JSON)
	if cerr != nil {
		return status, errors.Join(err, cerr)
	}
	r := results{out: f}
	why, _, _ := strings.Cut(err.Error(), "\n")
	return status, errors.Join(err, r.header(o.row(), "none", o.Machine.Backend),
		r.keep(lanes.Event{Action: lanes.NotRun, Output: why}), f.Close())
}

func run(ctx context.Context, o Options) (status int, err error) {
	defer func() { err = outOfRoom(err) }()
	begin := time.Now()
	note := func(format string, args ...any) {
		line := fmt.Sprintf("lab: %5.1fs %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
		if _, werr := io.WriteString(o.Stderr, line); werr != nil {
			err = errors.Join(err, werr)
		}
	}
	needs := qemuNeeds
	if o.Machine.Backend == VMX {
		needs = bochsNeeds
		if o.Shell || o.GDB != "" {
			return 1, fmt.Errorf("machine %s: a shell and the gdb stub are QEMU's; use an svm machine", o.Machine.Name)
		}
	}
	if err := Install(ctx, note, needs[0], needs[1]); err != nil {
		return 1, err
	}
	cache, err := OpenCache(o.CacheDir, note)
	if err != nil {
		return 1, err
	}
	dir, release, err := scratch(o.CacheDir, cmp.Or(o.room, scratchNeed))
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, release()) }()

	kernel, err := cache.Kernel(ctx, o.Machine.Kernel)
	if err != nil {
		return 1, err
	}
	if err := kernel.CheckConfig(o.Machine.Backend); err != nil {
		return 1, err
	}
	r := &results{show: lanes.NewShow(o.Stdout), scratch: dir, named: map[string]bool{}, note: note}
	if o.Verbose {
		r.raw = o.Stdout
	}
	if o.JSON != "" {
		f, err := create(o.JSON)
		if err != nil {
			return 1, err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		r.out = f
	}
	if err := r.header(o.row(), kernel.Release, o.Machine.Backend); err != nil {
		return 1, err
	}

	b := boot{machine: o.Machine, kernel: kernel.Image(), dir: dir, shell: o.Shell, gdb: o.GDB, limit: limits[o.Machine.Backend],
		initrd: filepath.Join(dir, "initrd"), disk: filepath.Join(dir, "disk")}
	note("building for %s: %s, kernel %s", o.Machine.Name, o.Machine.Backend, kernel.Release)
	size, err := image(ctx, note, o, cache, kernel, b.initrd, dir, r)
	if err != nil {
		return 1, err
	}
	if len(r.tasks) == 0 && !o.Shell {
		if r.failed {
			return 1, nil
		}
		return 1, fmt.Errorf("no test in %s", strings.Join(o.Packages, " "))
	}

	if info, err := os.Stdin.Stat(); o.Shell && err == nil && info.Mode()&os.ModeCharDevice == 0 {
		b.input = os.Stdin
	}
	note("booting, initramfs %d MB", size>>20)
	if status, err = r.tries(ctx, b, o.Retries, note); err != nil {
		// Without this a machine that never came up would read as "0 failed".
		return 1, errors.Join(err, r.keep(lanes.Event{Action: "fail", Package: "lab machine " + o.Machine.Name}))
	}
	if err := bringBack(o, b.disk, dir, note); err != nil {
		return 1, err
	}
	if r.failed {
		status = max(status, 1)
	}
	if len(r.tasks) > 0 && !r.failed && len(r.passed) == 0 {
		return 1, errors.New("no test passed, so nothing was shown: all were skipped, or the -run pattern is wrong")
	}
	return status, nil
}

// create makes a file and the directories above it.
func create(name string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return nil, err
	}
	return os.Create(name)
}

// bringBack takes artefacts and coverage off the results disk.
func bringBack(o Options, disk, dir string, note func(string, ...any)) error {
	out := filepath.Join(dir, "out")
	n, err := saveFiles(disk, out, diskSize)
	if err != nil {
		return err
	}
	if o.Cover != "" {
		if err := mergeCover(filepath.Join(out, "cover"), o.Cover); err != nil {
			return err
		}
	}
	if o.Artefact == "" || n == 0 {
		return nil
	}
	note("%d files of the guest in %s", n, o.Artefact)
	if err := os.MkdirAll(o.Artefact, 0o755); err != nil {
		return err
	}
	return copyTree(o.Artefact, out)
}

// copyTree copies over what is there: the files of the last run are the ones wanted.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(from, file)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		f, err := create(filepath.Join(to, rel))
		if err != nil {
			return err
		}
		_, err = f.Write(b)
		return errors.Join(err, f.Close())
	})
}

// mergeCover puts profiles one after the other under one mode line; go tool cover
// adds up blocks that appear more than once.
func mergeCover(dir, file string) error {
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return err
	}
	var all bytes.Buffer
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		mode, rest, ok := bytes.Cut(b, []byte("\n"))
		if !ok || !bytes.HasPrefix(mode, []byte("mode: ")) {
			return fmt.Errorf("%s is not a coverage profile", name)
		}
		if all.Len() == 0 {
			all.Write(append(mode, '\n'))
		}
		all.Write(rest)
	}
	f, err := create(file)
	if err != nil {
		return err
	}
	_, err = f.Write(all.Bytes())
	return errors.Join(err, f.Close())
}

// image builds everything and writes the initramfs; its size is in bytes.
// Packages that do not build are recorded in r, and the others run.
func image(ctx context.Context, note func(string, ...any), o Options, cache *Cache, kernel *Kernel, file, dir string, r *results) (size int64, err error) {
	root, err := goOutput(ctx, dir, "", "env", "GOMOD")
	if err != nil {
		return 0, err
	}
	root = filepath.Dir(root)
	job := wire.Job{
		Machine: o.Machine.Name, Shell: o.Shell, Disk: o.Machine.disk(),
		Env: []string{
			"PATH=" + wire.BinDir + ":/bin", "HOME=/root", "TERM=linux", "LANG=C.UTF-8",
			testenv.LaneVar + "=" + string(o.Machine.Lane), MachineVar + "=" + o.Machine.Name,
			testenv.GuestKernelVar + "=" + wire.GuestKernel, OutVar + "=" + wire.OutDir,
		},
	}
	if o.Machine.Backend == SVM && !o.Machine.Parallel {
		job.Env = append(job.Env, testenv.LabSerialVar+"=1")
	}
	a, err := newInitramfs(file, o.Machine.Backend == VMX)
	if err != nil {
		return 0, err
	}
	defer func() {
		err = errors.Join(err, a.Close())
		if err == nil {
			var info fs.FileInfo
			if info, err = os.Stat(file); err == nil {
				size = info.Size()
			}
		}
	}()

	busybox, err := cache.Fetch(ctx, "busybox-static")
	if err != nil {
		return 0, err
	}
	bbDir, _, err := cache.unpack(ctx, busybox, "busybox", func(name string) bool { return path.Base(name) == "busybox" })
	if err != nil {
		return 0, err
	}
	found, err := filepath.Glob(filepath.Join(bbDir, "*bin", "busybox"))
	if err != nil || len(found) == 0 {
		found, err = filepath.Glob(filepath.Join(bbDir, "usr", "*bin", "busybox"))
	}
	if err != nil || len(found) == 0 {
		return 0, errors.Join(err, fmt.Errorf("package %s has no busybox", busybox.File))
	}
	a.userland(ctx, found[0])

	// The results disk and KVM; the vendor module's own arguments go with it alone.
	files, err := kernel.Modules(append([]string{o.Machine.KVM}, o.Machine.Extra...)...)
	if err != nil {
		return 0, err
	}
	if o.Machine.KVM == "kvm_amd" {
		// kvm-amd calls into ccp only by symbol_get: no dependency in its .modinfo
		// on every kernel, so it is loaded first by name.
		first, err := kernel.Modules("ccp")
		if err != nil {
			return 0, err
		}
		files = unique(append(first, files...))
	}
	for _, f := range files {
		m := wire.Module{Path: path.Join(wire.ModuleDir, filepath.Base(f))}
		if moduleName(filepath.Base(f)) == o.Machine.KVM {
			m.Params = o.Machine.KVMArgs
		}
		a.copy(m.Path, f)
		job.Modules = append(job.Modules, m)
	}

	init := filepath.Join(dir, "init")
	if _, err := goOutput(ctx, dir, root, "build", "-trimpath", "-ldflags=-s -w", "-o", init, "./lab/init"); err != nil {
		return 0, err
	}
	a.copy("init", init)
	if _, err := os.Stat(filepath.Join(root, "cmd", "cloister")); err == nil {
		// And the examples: there is no compiler in a machine.
		bin := filepath.Join(dir, "bin")
		// If it does not build, that fails the run, but not the tests that do without it.
		if _, err := goOutput(ctx, dir, root, "build", "-trimpath", "-ldflags=-s -w", "-o", bin+"/", "./cmd/...", "./guest/sdk/go/example", "./isolation/example/..."); err == nil {
			for _, name := range []string{"cloister", "cloister-monitor", "example", "quietloop"} {
				a.copy(path.Join(wire.BinDir, name), filepath.Join(bin, name))
			}
		} else if err := blame(ctx, r, "cmd/cloister", err); err != nil {
			return 0, err
		}
	}
	guest, err := cache.Kernel(ctx, cmp.Or(o.Guest, "linux-image-cloud-amd64"))
	if err != nil {
		return 0, err
	}
	a.copy(wire.GuestKernel, guest.Image())
	for _, c := range o.Carry {
		file, name, named := strings.Cut(c, "=")
		if !named {
			name = filepath.Base(file)
		}
		a.copy(path.Join(wire.BinDir, name), file)
	}
	if err := tests(ctx, note, o, root, dir, a, &job, r); err != nil {
		return 0, err
	}
	r.tasks = job.Tasks
	a.job(job)
	return 0, nil
}

func unique(s []string) []string {
	seen := map[string]bool{}
	kept := s[:0:0]
	for _, v := range s {
		if !seen[v] {
			kept = append(kept, v)
		}
		seen[v] = true
	}
	return kept
}

// goOutput runs the go command in dir for a static binary of this machine's kind; what it makes on the way is in scratch.
func goOutput(ctx context.Context, scratch, dir string, args ...string) (string, error) {
	cmd := command(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(workIn(scratch), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := runTree(cmd); err != nil {
		if strings.Contains(complaint.String(), syscall.ENOSPC.Error()) {
			return "", fullDisk{fmt.Errorf("go %s: no space left on device: make room where `go env GOCACHE` says, or set GOCACHE to another disk", args[0])}
		}
		text, between := strings.TrimSpace(complaint.String()), ": "
		if strings.Contains(text, "\n") { // a compiler's
			between = "\n"
		}
		return "", fmt.Errorf("go %s: %w%s%s", args[0], err, between, text)
	}
	return strings.TrimSpace(out.String()), nil
}
