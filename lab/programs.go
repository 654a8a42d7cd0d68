package lab

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"github.com/cloister-vmm/cloister/lab/wire"
)

// program is something that a test in a machine starts besides cloister. It is built here, since a machine has no compiler.
type program struct {
	name   string
	goPkg  string   // a package to build, or
	source string   // a C source below the module's root,
	flags  []string // with these flags besides -static and -O2
	layout bool     // it includes layout.h, as `bench layout` prints it
}

// programs are the ones that a package's tests start, by its directory below the module's root.
var programs = map[string][]program{
	"lab": {
		{name: "helpers", source: "lab/testdata/programs/helpers.c", flags: []string{"-pthread"}},
		{name: "ringcall", source: "cmd/cloister/testdata/programs/ringcall.c"},
		{name: "sealedgo", goPkg: "./cmd/cloister/testdata/sealedgo"},
	},
	"bench": {
		{name: "floor", source: "bench/c/floor.c", layout: true},
		{name: "exits", source: "bench/c/exits.c", flags: []string{"-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-tree-loop-distribute-patterns"}},
		{name: "hello", source: "bench/c/hello.c"},
		{name: "hot", source: "bench/c/hot.c"},
	},
}

// carry builds a package's programs into the machine's PATH.
func carry(ctx context.Context, note func(string, ...any), pkg, root, dir string, a *initramfs) error {
	for _, p := range programs[pkg] {
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
	if err := Install(ctx, note, []string{"gcc"}, []string{"gcc", "libc6-dev"}); err != nil {
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
	if text, err := gcc.CombinedOutput(); err != nil {
		return fmt.Errorf("gcc %s: %w\n%s", p.source, err, text)
	}
	return nil
}
