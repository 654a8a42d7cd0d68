package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/cloister-vmm/cloister/lab/wire"
)

// program is something that a test in a machine starts besides cloister. It is built here, since a machine has no compiler.
type program struct {
	name   string
	goPkg  string   // a package to build, or
	source string   // a C source below the module's root,
	flags  []string // with these flags besides -static and -O2
	layout bool     // it includes layout.h, as `bench layout` prints it
	vmx    bool     // it is for VT-x too; the others' tests need isolated CPUs
}

// programs are the ones that a package's tests start, by its directory below the module's root.
var programs = map[string][]program{
	"lab": {
		{name: "helpers", source: "lab/testdata/programs/helpers.c", flags: []string{"-pthread"}},
		{name: "ringcall", source: "cmd/cloister/testdata/programs/ringcall.c"},
		{name: "sealedgo", goPkg: "./cmd/cloister/testdata/sealedgo"},
		{name: "bootkernel", goPkg: "./lab/testdata/bootkernel", vmx: true},
	},
	"bench": {
		{name: "floor", source: "bench/c/floor.c", layout: true},
		{name: "exits", source: "bench/c/exits.c", flags: []string{"-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-tree-loop-distribute-patterns"}},
		{name: "hello", source: "bench/c/hello.c"},
		{name: "hot", source: "bench/c/hot.c"},
	},
}

// manifests name the programs that a package's tests build for themselves where there is a compiler, by its directory below the module's root, in which they are
// built; the tests look for them in the PATH, below the package's name.
var manifests = map[string]string{"cmd/cloister": "testdata/programs/built.json"}

// builtProgram is an entry of a manifest: Tool makes it of Args, behind -o.
type builtProgram struct {
	Name, Tool string
	Args       []string
}

// carryBuilt builds what a package's manifest names into the machine's PATH, some at a time. What wants another compiler than gcc is left out where
// that is not installed; its tests say then what they miss.
func carryBuilt(ctx context.Context, note func(string, ...any), pkg, root, dir string, a *initramfs) error {
	file := manifests[pkg]
	if file == "" {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(root, pkg, file))
	if err != nil {
		return err
	}
	var list []builtProgram
	if err := json.Unmarshal(b, &list); err != nil {
		return fmt.Errorf("%s/%s: %w", pkg, file, err)
	}
	if err := needGCC(ctx, note); err != nil {
		return err
	}
	needOthers(ctx, note, list)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	out := make([]string, len(list))
	for i, p := range list {
		if len(missing([]string{p.Tool})) > 0 {
			note("%s is not built: no %s", p.Name, p.Tool)
			continue
		}
		out[i] = filepath.Join(dir, strings.ReplaceAll(pkg, "/", "-")+"-"+p.Name)
		group.Go(func() error {
			if p.Tool == "go" {
				_, err := goOutput(ctx, dir, filepath.Join(root, pkg), append([]string{"build", "-buildvcs=false", "-o", out[i]}, p.Args...)...)
				return err
			}
			c := command(ctx, p.Tool, append([]string{"-o", out[i]}, p.Args...)...)
			c.Dir, c.Env = filepath.Join(root, pkg), workIn(dir)
			if err := compileWith(c, p.Name); err != nil {
				return err
			}
			return os.Chmod(out[i], 0o755) // an object is found in PATH like a program
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, file := range out {
		if file != "" {
			a.copy(path.Join(wire.BinDir, filepath.Base(file)), file)
		}
	}
	return nil
}

// carry builds a package's programs into the machine's PATH.
func carry(ctx context.Context, note func(string, ...any), pkg string, on Backend, root, dir string, a *initramfs) error {
	for _, p := range programs[pkg] {
		if on == VMX && !p.vmx {
			continue
		}
		out := filepath.Join(dir, p.name)
		if p.goPkg != "" {
			if _, err := goOutput(ctx, dir, root, "build", "-trimpath", "-o", out, p.goPkg); err != nil {
				return err
			}
		} else if err := p.compile(ctx, note, root, dir, out); err != nil {
			return err
		}
		a.copy(path.Join(wire.BinDir, p.name), out)
	}
	return nil
}

func (p program) compile(ctx context.Context, note func(string, ...any), root, dir, out string) error {
	if err := needGCC(ctx, note); err != nil {
		return err
	}
	if p.layout {
		// Without CPUID: the machine that it is for is not there yet.
		text, err := goOutput(ctx, dir, root, "run", "./bench", "layout")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "layout.h"), []byte(text+"\n"), 0o644); err != nil {
			return err
		}
	}
	args := append([]string{"-O2", "-Wall", "-static", "-no-pie", "-fno-pie", "-I", dir, "-I", filepath.Join(root, "guest", "sdk", "c"), "-o", out, filepath.Join(root, p.source)}, p.flags...)
	gcc := command(ctx, "gcc", args...)
	gcc.Env = workIn(dir)
	return compileWith(gcc, p.source)
}

// needGCC installs the compiler of most programs, with what a static one is linked from.
func needGCC(ctx context.Context, note func(string, ...any)) error {
	return Install(ctx, note, []string{"gcc", "/usr/include/malloc.h", "/usr/lib/x86_64-linux-gnu/libc.a"}, []string{"gcc", "libc6-dev"})
}

// needOthers installs the compilers of the rest. Where that cannot be, their programs are not built, which is said of each.
func needOthers(ctx context.Context, note func(string, ...any), list []builtProgram) {
	for tool, pkg := range map[string]string{"g++": "g++", "musl-gcc": "musl-tools"} {
		if !slices.ContainsFunc(list, func(p builtProgram) bool { return p.Tool == tool }) {
			continue
		}
		if err := Install(ctx, note, []string{tool}, []string{pkg}); err != nil {
			note("%v", err)
		}
	}
}

// compileWith runs a compiler. The error has what it says.
func compileWith(compiler *exec.Cmd, what string) error {
	var text bytes.Buffer
	compiler.Stdout, compiler.Stderr = &text, &text
	if err := runTree(compiler); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", filepath.Base(compiler.Path), what, err, &text)
	}
	return nil
}
