package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/rogpeppe/go-internal/testscript"
)

// The scripts under testdata read like a manual page. Beside testscript's own commands they have
// `status N COMMAND...`, which demands an exit status; $PROGRAMS holds seal and crash of testdata/programs.
func TestScripts(t *testing.T) {
	b := newBox(t)
	programs := filepath.Join(shared, "programs")
	if err := os.MkdirAll(programs, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, from := range map[string]string{
		"seal":  compile(t, "gcc", "seal", "seal.c", "-static", "-O1"),
		"crash": compile(t, "gcc", "crash-O0", "crash.c", "-O0", "-g", "-static"),
	} {
		if err := os.Link(from, filepath.Join(programs, name)); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
	testenv.Need(t, testenv.Tool("busybox"))
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", filepath.Dir(b.bin)+string(os.PathListSeparator)+os.Getenv("PATH"))
			e.Setenv("CLOISTER_RUN_DIR", filepath.Join(e.WorkDir, ".run"))
			e.Setenv("PROGRAMS", programs)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"status": status},
	})
}

func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	if err != nil {
		ts.Fatalf("status: %v", err)
	}
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	got := 0
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("status: %v", err)
	}
	if got != want {
		ts.Fatalf("status %d, want %d", got, want)
	}
}
