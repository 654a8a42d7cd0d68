package testenv

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// LaneVar is the environment variable that names the lane of a run.
const LaneVar = "CLOISTER_LANE"

// Lane names a way to run the tests. The empty lane, a plain `go test` by hand,
// promises nothing.
type Lane string

// The lanes.
const (
	LaneNone        Lane = ""             // go test by hand
	LaneUnit        Lane = "unit"         // any machine with Go
	LaneKVM         Lane = "kvm"          // a machine with /dev/kvm, whatever stands behind it, and root
	LaneLab         Lane = "lab"          // QEMU: emulated SVM, four CPUs, two of them isolated
	LaneLabPlain    Lane = "lab-plain"    // QEMU: emulated SVM, four CPUs, none isolated at boot
	LaneLabParallel Lane = "lab-parallel" // QEMU: as in LaneLab, and the CPUs run at the same time
	LaneLabVMX      Lane = "lab-vmx"      // Bochs: emulated VT-x, one CPU
	LaneLabOwn      Lane = "lab-own"      // QEMU or Bochs: a machine as one scenario wants it, CPUs and isolation included
)

// promised says what a lane must have. What is not listed may be absent.
//
// The lab lanes promise no tools: nothing is compiled there. The VT-x lab has one
// CPU and therefore no isolated one.
var promised = map[Lane][]string{
	LaneNone:        {},
	LaneUnit:        {},
	LaneKVM:         {"kvm", "root", "multicpu", "parallel-cpus", "tracefs", "btf", "trace", "tool:gcc", "tool:musl-gcc", "tool:go"},
	LaneLab:         isolatedSVM,
	LaneLabParallel: append(slices.Clone(isolatedSVM), "parallel-cpus"),
	LaneLabPlain:    {"kvm", "hardware-kvm", "svm", "root", "multicpu", "tracefs", "btf", "cgroup2", "kernel-guest", "lab-machine"},
	LaneLabVMX:      {"kvm", "hardware-kvm", "vmx", "root", "tracefs", "btf", "cgroup2", "kernel-guest", "lab-machine"},
	LaneLabOwn:      {"kvm", "hardware-kvm", "root", "tracefs", "btf", "lab-machine"},
}

// isolatedSVM is what the lanes of emulated SVM with isolated cores must have.
var isolatedSVM = []string{"kvm", "hardware-kvm", "svm", "root", "multicpu", "isolated-core", "nohz-full", "tracefs", "btf", "cgroup2", "kernel-guest", "lab-machine"}

// CurrentLane returns the lane named by CLOISTER_LANE, and an error if there is
// no lane of that name: a mistyped lane would promise nothing and skip everything.
func CurrentLane() (Lane, error) {
	lane := Lane(os.Getenv(LaneVar))
	if _, ok := promised[lane]; !ok {
		return LaneNone, fmt.Errorf("%s=%q: no such lane; use one of unit, kvm, lab, lab-parallel, lab-plain, lab-vmx, lab-own or leave it empty", LaneVar, string(lane))
	}
	return lane, nil
}

// Promises reports whether the lane must have the requirement called name.
// CPUs(n) is promised to the lanes that promise MultiCPU, for n up to the lane's CPUs; the kvm lane
// promises every package where packages are Debian's, since `make deps` installs them.
func (l Lane) Promises(name string) bool {
	for _, p := range promised[l] {
		if p == name {
			return true
		}
	}
	return (l == LaneLab || l == LaneLabParallel || l == LaneLabPlain) && (name == "cpus:2" || name == "cpus:3" || name == "cpus:4") ||
		l == LaneKVM && (name == "cpus:2" || strings.HasPrefix(name, "package:") && Has(Tool("dpkg-query")))
}

// decisive says what makes a machine one for the kvm lane. What else that lane
// promises (compilers, a mounted tracefs) can be had for a command, so its absence
// fails the lane with a reason instead of quietly choosing a smaller one.
var decisive = []Requirement{KVM, Root, MultiCPU}

// Detect returns the richest lane that this machine can run without an emulator,
// LaneKVM or LaneUnit, and for the latter the reasons, one line each.
func Detect() (Lane, []string) {
	var missing []string
	for _, r := range decisive {
		if err := r.check(); err != nil {
			missing = append(missing, r.name+": "+oneLine(err))
		}
	}
	if len(missing) > 0 {
		return LaneUnit, missing
	}
	return LaneKVM, nil
}

// oneLine keeps invariant 4 for reasons that come from the system.
func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}
