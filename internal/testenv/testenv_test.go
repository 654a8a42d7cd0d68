package testenv

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// recorder stands in for a test: it records how Need ended it.
type recorder struct {
	testing.TB
	fatal, skip string
}

type ended struct{}

func (r *recorder) Helper() {}
func (r *recorder) Fatalf(f string, a ...any) {
	r.fatal = fmt.Sprintf(f, a...)
	panic(ended{})
}
func (r *recorder) Skipf(f string, a ...any) {
	r.skip = fmt.Sprintf(f, a...)
	panic(ended{})
}

func need(rs ...Requirement) (r *recorder) {
	r = &recorder{}
	defer func() {
		if p := recover(); p != nil && p != (ended{}) {
			panic(p)
		}
	}()
	Need(r, rs...)
	return r
}

func absent(name string) Requirement {
	return Requirement{name, func() error { return errors.New("not\nhere") }}
}

// forget makes the next check probe again, so that a test can play a machine.
func forget(t *testing.T) {
	drop := func() {
		probed.Lock()
		defer probed.Unlock()
		probed.answers = nil
	}
	drop()
	t.Cleanup(drop)
}

func TestNeed(t *testing.T) {
	present := Requirement{"test:present", func() error { return nil }}
	for _, c := range []struct {
		lane        string
		need        Requirement
		fatal, skip string
	}{
		{"", present, "", ""},
		{"lab", present, "", ""},
		{"", absent("kvm"), "", "testenv: skip kvm: not here"},
		{"unit", absent("kvm"), "", "testenv: skip kvm: not here"},
		{"kvm", absent("kvm"), "testenv: missing kvm: not here; lane kvm must have it", ""},
		{"kvm", absent("svm"), "", "testenv: skip svm: not here"},
		{"lab", absent("svm"), "testenv: missing svm: not here; lane lab must have it", ""},
		{"lab", absent("cpus:4"), "testenv: missing cpus:4: not here; lane lab must have it", ""},
		{"lab-plain", absent("svm"), "testenv: missing svm: not here; lane lab-plain must have it", ""},
		{"lab-plain", absent("cpus:4"), "testenv: missing cpus:4: not here; lane lab-plain must have it", ""},
		{"lab-own", absent("kvm"), "testenv: missing kvm: not here; lane lab-own must have it", ""},
		{"lab-own", absent("cpus:2"), "", "testenv: skip cpus:2: not here"},
		{"lab-plain", absent("isolated-core"), "", "testenv: skip isolated-core: not here"},
		{"lab-parallel", absent("parallel-cpus"), "testenv: missing parallel-cpus: not here; lane lab-parallel must have it", ""},
		{"lab-parallel", absent("cpus:4"), "testenv: missing cpus:4: not here; lane lab-parallel must have it", ""},
		{"lab", absent("parallel-cpus"), "", "testenv: skip parallel-cpus: not here"},
		{"lab-vmx", absent("cpus:4"), "", "testenv: skip cpus:4: not here"},
		{"lab-vmx", absent("isolated-core"), "", "testenv: skip isolated-core: not here"},
		{"lba", present, `testenv: CLOISTER_LANE="lba": no such lane; use one of unit, kvm, lab, lab-parallel, lab-plain, lab-vmx, lab-own or leave it empty`, ""},
	} {
		t.Run(c.lane+"/"+c.need.name, func(t *testing.T) {
			forget(t)
			t.Setenv(LaneVar, c.lane)
			if r := need(c.need); r.fatal != c.fatal || r.skip != c.skip {
				t.Errorf("fatal %q, skip %q; want %q, %q", r.fatal, r.skip, c.fatal, c.skip)
			}
		})
	}
}

// Every name that a lane promises must have a probe: a mistyped one would fail
// every test of the lane or, in Promises, promise nothing.
func TestPromisesHaveProbes(t *testing.T) {
	for lane, names := range promised {
		for _, n := range names {
			if byName(n).probe == nil {
				t.Errorf("lane %s promises %q, which nothing probes", lane, n)
			}
		}
	}
}

// The lane that runs here has what it promises, whether or not some test asks for it.
func TestLaneKeepsItsPromises(t *testing.T) {
	lane, err := CurrentLane()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range promised[lane] {
		t.Run(name, func(t *testing.T) { Need(t, byName(name)) })
	}
}

func TestProbeRunsOnce(t *testing.T) {
	forget(t)
	n := 0
	r := Requirement{"test:once", func() error { n++; return nil }}
	for range 3 {
		if !Has(r) {
			t.Fatal("a probe without an error reads as absent")
		}
	}
	if n != 1 {
		t.Errorf("probed %d times, want 1", n)
	}
}

func TestBackendOf(t *testing.T) {
	for _, c := range []struct{ modules, cpuinfo, want string }{
		{"kvm_amd", "", "svm"},
		{"kvm_intel", "", "vmx"},
		{"kvm_pvm", "", "pvm"},
		{"kvm_pvm kvm_intel", "flags\t: fpu vmx", "pvm"},
		{"kvm_amd kvm_intel", "flags\t\t: fpu svm npt\n", "svm"},
		{"kvm_amd kvm_intel", "flags\t\t: fpu vmx\n", "vmx"},
		{"kvm_amd kvm_intel", "model name: svm\nflags: fpu vmx svm_lock\n", "vmx"},
		{"kvm", "flags: svm", "none"},
	} {
		loaded := strings.Fields(c.modules)
		got := backendOf(func(m string) bool { return slices.Contains(loaded, m) }, c.cpuinfo)
		if got != c.want {
			t.Errorf("modules %q, cpuinfo %q: %s, want %s", c.modules, c.cpuinfo, got, c.want)
		}
	}
}

func TestParseCPUList(t *testing.T) {
	for _, c := range []struct {
		in   string
		want []int
		ok   bool
	}{
		{"", nil, true},
		{"\n", nil, true},
		{" (null)\n", nil, true},
		{"2-3\n", []int{2, 3}, true},
		{"0,2-4,8191", []int{0, 2, 3, 4, 8191}, true},
		{"3-2", nil, false},
		{"2,2", nil, false},
		{"-1", nil, false},
		{"8192", nil, false},
		{"0-99999999999", nil, false},
		{"1,,2", nil, false},
	} {
		got, err := parseCPUList(c.in)
		if (err == nil) != c.ok || !slices.Equal(got, c.want) {
			t.Errorf("parseCPUList(%q) = %v, %v; want %v, ok=%v", c.in, got, err, c.want, c.ok)
		}
	}
}

func FuzzParseCPUList(f *testing.F) {
	for _, s := range []string{"", "2-3", "0,2-4", "(null)", "1-", "8191"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		cpus, err := parseCPUList(s)
		if err != nil && cpus != nil {
			t.Errorf("%q: both a list and an error", s)
		}
		for i, c := range cpus {
			if c < 0 || c > maxCPU || i > 0 && c <= cpus[i-1] {
				t.Fatalf("%q: %v does not ascend within 0..%d", s, cpus, maxCPU)
			}
		}
	})
}

// The probes look at this machine; whatever they answer, they must not claim
// two back ends at once, nor hardware without one.
func TestProbesAgree(t *testing.T) {
	b := Backend()
	n := 0
	for _, r := range []Requirement{SVM, VMX, PVM} {
		if Has(r) {
			n++
			if r.name != b {
				t.Errorf("%s is there, but the back end is %s", r, b)
			}
		}
	}
	if n > 1 || (n == 0) != (b == "none") {
		t.Errorf("back end %s, and %d requirements agree", b, n)
	}
	if Has(HardwareKVM) && !Has(KVM) {
		t.Error("hardware KVM without KVM")
	}
}

// A kernel is old or new enough by its numbers, not by their letters.
func TestLinux(t *testing.T) {
	for _, r := range []Requirement{Linux(1, 0), Linux(2, 99)} {
		if err := r.check(); err != nil {
			t.Errorf("%v: %v", r, err)
		}
	}
	if err := Linux(1000, 0).check(); err == nil || !strings.Contains(err.Error(), "1000.0") {
		t.Errorf("Linux 1000.0: %v", err)
	}
}
