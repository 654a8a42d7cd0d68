package lab

import (
	"context"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cavaliergopher/cpio"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/lab/wire"
)

// Every program that a package's tests start in a machine can be built, and lies in the machine's PATH.
func TestPrograms(t *testing.T) {
	testenv.Need(t, testenv.Tool("gcc"), testenv.Tool("go"))
	dir := t.TempDir()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "initrd")
	a, err := newInitramfs(file, false)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for pkg, list := range programs {
		if _, err := os.Stat(filepath.Join(root, pkg)); err != nil {
			t.Error(err)
		}
		for _, p := range list {
			want[path.Join(wire.BinDir, p.name)] = true
		}
		if err := carry(t.Context(), t.Logf, pkg, SVM, root, dir, a); err != nil {
			t.Error(err)
		}
	}
	for pkg := range manifests {
		if err := carryBuilt(t.Context(), t.Logf, pkg, root, dir, a); err != nil {
			t.Error(err)
		}
	}
	want[path.Join(wire.BinDir, "cmd-cloister-seal")] = true
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := cpio.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if name := "/" + h.Name; want[name] && h.Mode.Perm()&0o111 != 0 && h.Size > 0 {
			delete(want, name)
		}
	}
	for name := range want {
		t.Errorf("%s is not in the machine, or cannot be executed", name)
	}
}

// A build that is interrupted leaves its work in the run's own directory, which goes with the run, and nothing elsewhere.
func TestInterruptedBuild(t *testing.T) {
	testenv.Need(t, testenv.Tool("go"))
	scratch, elsewhere := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", elsewhere)
	t.Setenv("GOTMPDIR", elsewhere)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := goOutput(ctx, scratch, "..", "build", "-a", "-o", filepath.Join(scratch, "init"), "./lab/init") // -a: it takes long
		ended <- err
	}()
	begun := func() bool {
		for _, dir := range []string{scratch, elsewhere} {
			if work, err := filepath.Glob(filepath.Join(dir, "go-build*")); err == nil && len(work) > 0 {
				return true
			}
		}
		return false
	}
	for !begun() {
		select {
		case err := <-ended:
			t.Fatalf("the build ended before it was seen: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("the build was not interrupted")
	}
	if left, err := os.ReadDir(elsewhere); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A full disk ends the run in one line with the remedy, and is no verdict on the package that was being built.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte("#!/bin/sh\necho 'compile: writing output: write x.a: no space left on device' >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	_, err := goOutput(t.Context(), dir, dir, "build")
	r := &results{}
	if got := blame(t.Context(), r, "p", err); err == nil || got != err || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "GOCACHE") || r.failed {
		t.Errorf("%v; blamed: %v, %v", err, got, r.failed)
	}
}
