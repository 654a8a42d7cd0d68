package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cloister-vmm/cloister/lab/wire"
)

// blame writes down that a package does not build; the error is of what nobody's code is to blame for, and ends the run.
func blame(ctx context.Context, r *results, pkg string, why error) error {
	if full := (fullDisk{}); ctx.Err() != nil || errors.As(why, &full) {
		return why
	}
	return r.unbuilt(pkg, why.Error())
}

// suite is the tests of one package.
type suite struct {
	pkg string // import path
	rel string // its directory below the module's root
	bin string // the test binary
	err error  // why there is none
}

// name is the suite's in file names.
func (s *suite) name() string { return strings.ReplaceAll(s.rel, "/", "-") }

// tests builds the test binaries of the wanted packages into the image.
func tests(ctx context.Context, note func(string, ...any), o Options, root, dir string, a *initramfs, job *wire.Job, r *results) error {
	if len(o.Packages) == 0 {
		return nil
	}
	list, err := suites(ctx, o, root, dir)
	if err != nil {
		return err
	}
	// Whole, some 6 MB: tests hold documents and other packages' testdata against the code.
	a.tree(wire.SrcDir, root, func(rel string, _ fs.DirEntry) bool { return rel != ".git" && rel != "bin" && rel != "build" })
	// Most of a binary's time is its link, on one CPU.
	building, inner := errgroup.WithContext(ctx)
	building.SetLimit(min(4, runtime.NumCPU())) // a linker takes half a gigabyte
	for _, s := range list {
		building.Go(func() error {
			s.err = s.build(inner, o, root, dir)
			return ctx.Err()
		})
	}
	if err := building.Wait(); err != nil {
		return err
	}
	unused := maps.Clone(o.Only)
	for _, s := range list {
		delete(unused, s.rel)
		if s.err != nil {
			if err := blame(ctx, r, s.pkg, s.err); err != nil {
				return err
			}
			continue
		}
		a.copy(path.Join(wire.TestDir, s.name()+".test"), s.bin)
		if err := os.Remove(s.bin); err != nil {
			return err
		}
		if err := carry(ctx, note, s.rel, o.Machine.Backend, root, dir, a); err != nil {
			return err
		}
		if o.Machine.Backend == SVM && o.Only[s.rel] == "" { // a BIOS reads VT-x's from a CD; what CI runs of a package needs none
			if err := carryBuilt(ctx, note, s.rel, root, dir, a); err != nil {
				return err
			}
		}
		r.named[s.pkg] = o.Only[s.rel] != ""
		job.Tasks = append(job.Tasks, s.task(ctx, o))
	}
	if len(unused) > 0 {
		return fmt.Errorf("-only names %s, which the packages do not have", strings.Join(slices.Sorted(maps.Keys(unused)), ", "))
	}
	a.add(path.Join(wire.OutDir, "cover"), 0o40000|0o755, 0, nil)
	return nil
}

// suites lists the wanted packages that have tests.
func suites(ctx context.Context, o Options, root, dir string) ([]*suite, error) {
	list, err := goOutput(ctx, dir, "", append([]string{"list", "-f",
		`{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{"\t"}}{{.Dir}}{{end}}`}, o.Packages...)...)
	if err != nil {
		return nil, fmt.Errorf("packages %s: %w", strings.Join(o.Packages, " "), err)
	}
	wanted, err := stating(ctx, dir, o.Packages)
	if err != nil {
		return nil, err
	}
	var out []*suite
	for line := range strings.Lines(list) {
		pkg, src, ok := strings.Cut(strings.TrimSpace(line), "\t")
		if !ok || !wanted(pkg) {
			continue
		}
		rel, err := filepath.Rel(root, src)
		if err != nil || !filepath.IsLocal(rel) {
			return nil, errors.Join(err, fmt.Errorf("package %s is not below %s", pkg, root))
		}
		s := &suite{pkg: pkg, rel: filepath.ToSlash(rel)}
		s.bin = filepath.Join(dir, s.name()+".test")
		out = append(out, s)
	}
	return out, nil
}

// build makes the test binary. Without DWARF, which no test reads of itself and no stack trace needs: half the size, of which a machine loads
// and unpacks each byte, and a third less to link.
func (s *suite) build(ctx context.Context, o Options, root, dir string) error {
	args := []string{"test", "-c", "-vet=off", "-ldflags=-w", "-o", s.bin}
	if o.Cover != "" {
		args = append(args, "-cover", "-coverpkg=./...")
	}
	_, err := goOutput(ctx, dir, root, append(args, s.pkg)...)
	return err
}

// task is what the machine is to run.
func (s *suite) task(ctx context.Context, o Options) wire.Task {
	timeout := cmp.Or(o.Timeout, timeouts[o.Machine.Backend])
	if end, ok := ctx.Deadline(); ok { // a test that hangs is to show its stacks before all is over
		timeout = min(timeout, max(time.Until(end)-lastWords, lastWords))
	}
	argv := []string{path.Join(wire.TestDir, s.name()+".test"), "-test.v=test2json", "-test.paniconexit0",
		"-test.timeout=" + timeout.String(), "-test.count=" + strconv.Itoa(max(1, o.Count))}
	for flag, value := range map[string]string{"-test.run": cmp.Or(o.Only[s.rel], o.Run), "-test.skip": o.Skip} {
		if value != "" {
			argv = append(argv, flag+"="+value)
		}
	}
	if o.Short {
		argv = append(argv, "-test.short")
	}
	if o.Cover != "" {
		argv = append(argv, "-test.coverprofile="+path.Join(wire.OutDir, "cover", s.name()))
	}
	return wire.Task{
		Name: s.pkg, Dir: path.Join(wire.SrcDir, s.rel), Argv: argv,
		// Go's own timeout prints stacks and is the better one; this is for a
		// binary that does not get that far.
		Timeout: timeout + 30*time.Second,
	}
}

// stating returns which packages of the patterns are worth a lab. A package that
// is named is; of those that a wildcard matches, the ones whose tests state through
// internal/testenv what they need: the others give the same answer on any machine.
func stating(ctx context.Context, dir string, patterns []string) (func(pkg string) bool, error) {
	if !slices.ContainsFunc(patterns, func(p string) bool { return strings.Contains(p, "...") }) {
		return func(string) bool { return true }, nil
	}
	self, err := goOutput(ctx, dir, "", "list", "-m")
	if err != nil {
		return nil, err
	}
	list, err := goOutput(ctx, dir, "", append([]string{"list", "-test", "-f", `{{.ImportPath}} {{join .Deps " "}}`}, patterns...)...)
	if err != nil {
		return nil, err
	}
	states := map[string]bool{}
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		if pkg, ok := strings.CutSuffix(f[0], ".test"); ok && slices.Contains(f, self+"/internal/testenv") {
			states[pkg] = true
		}
	}
	for _, p := range patterns {
		if !strings.Contains(p, "...") {
			named, err := goOutput(ctx, dir, "", "list", p)
			if err != nil {
				return nil, err
			}
			states[named] = true
		}
	}
	return func(pkg string) bool { return states[pkg] }, nil
}
