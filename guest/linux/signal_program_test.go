package linux

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
)

// compileC makes a static program of a file in testdata.
func compileC(t *testing.T, compiler, name string) string {
	t.Helper()
	testenv.Need(t, testenv.Tool(compiler))
	bin := filepath.Join(t.TempDir(), name)
	out, err := exec.Command(compiler, "-static", "-O1", "-mavx", "-Wall", "-Wextra", "-Werror", "-o", bin, filepath.Join("testdata", name+".c")).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", compiler, name, err, out)
	}
	return bin
}

// TestSignalPrograms compares what a program sees of signals natively and served: frames field by field, registers and
// FPU at entry and after return, nesting, queues, faults, masks, alternate stacks, forged frames, and how it dies.
func TestSignalPrograms(t *testing.T) {
	for _, compiler := range []string{"gcc", "musl-gcc"} {
		t.Run(compiler, func(t *testing.T) {
			bin := compileC(t, compiler, "signals")
			compare(t, []string{bin})
			for _, how := range []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"} {
				compare(t, []string{bin, how})
			}
			compare(t, []string{compileC(t, compiler, "waits")})
		})
	}
}
