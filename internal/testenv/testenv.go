package testenv

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// A Requirement is something a test cannot do without.
type Requirement struct {
	name  string
	probe func() error // nil: present; otherwise the reason why not
}

// String returns the requirement's name as it stands in the table of lanes.
func (r Requirement) String() string { return r.name }

// Need returns only if the machine meets every requirement. If one is missing the
// test is skipped with a line `testenv: skip NAME: reason`; in a lane that promises
// it, and with a CLOISTER_LANE that does not exist, the test fails instead.
func Need(t testing.TB, needs ...Requirement) {
	t.Helper()
	lane, err := CurrentLane()
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	for _, r := range needs {
		err := r.check()
		switch {
		case err == nil:
		case lane.Promises(r.name):
			t.Fatalf("testenv: missing %s: %s; lane %s must have it", r.name, oneLine(err), lane)
		default:
			t.Skipf("testenv: skip %s: %s", r.name, oneLine(err))
		}
	}
}

// Has reports whether the machine meets the requirement, for the few tests that
// assert different things with and without it. It never skips.
func Has(r Requirement) bool { return r.check() == nil }

// NeedLong skips under `go test -short`: for tests that take more than a few seconds.
func NeedLong(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skipf("testenv: skip long: -short was given")
	}
}

var probed struct {
	sync.Mutex
	answers map[string]func() error
}

// check probes once in a process (invariant 2), by name, so that two values of
// one requirement agree.
func (r Requirement) check() error {
	if r.probe == nil {
		return fmt.Errorf("requirement %q has no probe; use the values that testenv exports", r.name)
	}
	probed.Lock()
	if probed.answers == nil {
		probed.answers = map[string]func() error{}
	}
	answer, ok := probed.answers[r.name]
	if !ok {
		answer = sync.OnceValue(r.probe)
		probed.answers[r.name] = answer
	}
	probed.Unlock()
	return answer()
}

// byName finds the requirement that a lane promises.
func byName(name string) Requirement {
	if tool, ok := strings.CutPrefix(name, "tool:"); ok {
		return Tool(tool)
	}
	if pkg, ok := strings.CutPrefix(name, "package:"); ok {
		return Package(pkg)
	}
	for _, r := range []Requirement{
		KVM, HardwareKVM, SVM, VMX, PVM, Root, MultiCPU, IsolatedCore, NoHzFull, Tracefs, BTF, Cgroup2, Trace, KernelGuest, ParallelCPUs, LabMachine,
	} {
		if r.name == name {
			return r
		}
	}
	return Requirement{name: name}
}
