package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/cores"
)

// What it really writes is tested in the lab (host-library) and on the stage (cmd/cloister.TestLibraryOnStage): these runs change
// nothing of the host. They are processes of their own, since the program moves its threads.

const asProgram = "QUIETLOOP_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func program(t *testing.T, args ...string) (string, error) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(exe, args...)
	c.Env = append(os.Environ(), asProgram+"=1")
	out, err := c.CombinedOutput()
	return string(out), err
}

// A plain program leases a core, pins its thread there, and says what it would change and how often its loop went round.
func TestDryRun(t *testing.T) {
	testenv.Need(t, testenv.MultiCPU)
	dir := t.TempDir()
	out, err := program(t, "-dry-run", "-for", "200ms", "-leases", dir) // a core that is free: tests of other packages lease some
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want := regexp.MustCompile(`^CPU \d+: grade [A-F]; \d+ settings would be changed\n(\d+) passes\n`)
	m := want.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("it says:\n%swant %s", out, want)
	}
	if n, err := strconv.Atoi(m[1]); err != nil || n < 1000 {
		t.Errorf("%s passes in 200 ms", m[1])
	}
	if list, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(list) > 0 {
		t.Errorf("left: %v (%v)", list, err)
	}
}

// What cannot be had is one line.
func TestRefused(t *testing.T) {
	testenv.Need(t, testenv.MultiCPU)
	allowed, err := cores.Allowed()
	if err != nil {
		t.Fatal(err)
	}
	core, dir := -1, t.TempDir()
	var lease *cores.Lease
	for _, core = range slices.Backward(allowed) {
		if lease, err = cores.Take(dir, core, "the test"); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := lease.Release(); err != nil {
			t.Error(err)
		}
	}()
	for want, args := range map[string][]string{
		"is in use by the test": {"-dry-run", "-cpu", strconv.Itoa(core), "-leases", dir},
		"does not exist":        {"-dry-run", "-cpu", "8000"},
	} {
		if out, err := program(t, args...); err == nil || !strings.Contains(out, want) || strings.Count(out, "\n") != 1 {
			t.Errorf("%q: %v, %q, want %q", args, err, out, want)
		}
	}
}
