// Package bad has tests that misbehave, to see that the lab copes: `make lab-bad` runs each, and holds it to its status and words.
// No pattern matches it: it lies below testdata.
package bad

import (
	"os"
	"os/exec"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
)

func TestNeverEnds(t *testing.T) {
	testenv.Need(t, testenv.LabMachine)
	select {}
}

// Go's timeout cannot end a process that was replaced by another.
func TestIgnoresAll(t *testing.T) {
	testenv.Need(t, testenv.LabMachine)
	cmd := exec.Command("/bin/sh", "-c", "trap '' QUIT TERM INT; kill -STOP $PPID; while :; do sleep 1; done")
	cmd.Stdout = os.Stdout
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
}

func TestPanicsKernel(t *testing.T) { sysrq(t, "c") }

// TestStopsMachine stops init's worker, whose beat then fails to come: to the
// host that is a machine that hangs.
func TestStopsMachine(t *testing.T) {
	testenv.Need(t, testenv.LabMachine)
	if err := exec.Command("/bin/sh", "-c", "kill -STOP $(pidof lab-worker)").Run(); err != nil {
		t.Fatal(err)
	}
	select {}
}

func sysrq(t *testing.T, key string) {
	t.Helper()
	testenv.Need(t, testenv.LabMachine)
	if err := os.WriteFile("/proc/sysrq-trigger", []byte(key), 0o200); err != nil {
		t.Fatal(err)
	}
}
