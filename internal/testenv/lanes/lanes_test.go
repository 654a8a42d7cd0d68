package lanes

import (
	"maps"
	"strings"
	"testing"
)

const header = `{"Action":"lane","Lane":"kvm","Kernel":"6.1.0","Backend":"pvm"}` + "\n"

// ev writes a stream in short: "run p T", "pass p T", "pass p", "out p T text".
func ev(script string) string {
	var b strings.Builder
	b.WriteString(header)
	for line := range strings.Lines(script) {
		f := strings.SplitN(strings.TrimSpace(line), " ", 4)
		if f[0] == "" {
			continue
		}
		f = append(f, "", "", "")
		action := f[0]
		if action == "out" {
			action = "output"
		}
		b.WriteString(`{"Action":"` + action + `","Package":"` + f[1] + `","Test":"` + f[2] + `","Output":"` + f[3] + `\n"}` + "\n")
	}
	return b.String()
}

func TestRead(t *testing.T) {
	for _, c := range []struct {
		name, stream            string
		passed, failed, skipped int
		failures                string
		reasons                 map[string]int
	}{
		{name: "pass", stream: ev("run p A\npass p A\npass p"), passed: 1},
		{name: "leaves only", stream: ev("run p A\nrun p A/x\npass p A/x\nrun p A/y\npass p A/y\npass p A\npass p"), passed: 2},
		{name: "subtest fails once", stream: ev("run p A\nrun p A/x\nfail p A/x\nrun p A/y\npass p A/y\nfail p A\nfail p"), passed: 1, failed: 1, failures: "p A/x"},
		{name: "parent fails itself", stream: ev("run p A\nrun p A/x\npass p A/x\nfail p A\nfail p"), passed: 1, failed: 1, failures: "p A"},
		{name: "deep", stream: ev("run p A\nrun p A/x\nrun p A/x/1\nfail p A/x/1\nfail p A/x\nfail p A\nfail p"), failed: 1, failures: "p A/x/1"},
		{name: "slash in a name", stream: ev("run p A\nrun p A/x/1\npass p A/x/1\nrun p A/x/2\nfail p A/x/2\nfail p A\nfail p"), passed: 1, failed: 1, failures: "p A/x/2"},
		{name: "never ends", stream: ev("run p A\nfail p"), failed: 1, failures: "p A: did not end"},
		{name: "cut off", stream: ev("run p A\npass p A"), passed: 1, failed: 1, failures: "p: the package did not end"},
		{name: "outside", stream: ev("start p\nfail p"), failed: 1, failures: "p: failed outside of its tests (build, TestMain, panic or exit)"},
		{name: "no tests", stream: ev("start p\nskip p")},
		{
			name: "skips", stream: ev("run p A\nout p A a_test.go:7: testenv: skip svm: the back end is pvm\nskip p A\nrun p B\nskip p B\npass p"), skipped: 2,
			reasons: map[string]int{"svm: the back end is pvm": 1, "no reason given by testenv: p B": 1},
		},
		{name: "build", stream: header + `{"ImportPath":"q [p.test]","Action":"build-output","Output":"x"}` + "\n" + `{"ImportPath":"q [p.test]","Action":"build-fail"}`, failed: 1, failures: "q [p.test]: does not build"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := Read(strings.NewReader(c.stream))
			if err != nil {
				t.Fatal(err)
			}
			if l.Passed != c.passed || l.Failed != c.failed || l.Skipped != c.skipped {
				t.Errorf("%d passed, %d failed, %d skipped; want %d, %d, %d", l.Passed, l.Failed, l.Skipped, c.passed, c.failed, c.skipped)
			}
			if got := strings.Join(l.Failures, "; "); got != c.failures {
				t.Errorf("failures %q, want %q", got, c.failures)
			}
			if c.reasons != nil && !maps.Equal(l.Reasons, c.reasons) {
				t.Errorf("reasons %v, want %v", l.Reasons, c.reasons)
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	for _, s := range []string{"", "ok p 0.1s\n", `{"Action":"pass","Package":"p"}`, header + "{"} {
		if l, err := Read(strings.NewReader(s)); err == nil {
			t.Errorf("Read(%q) = %+v, want an error", s, l)
		}
	}
}

func TestPrint(t *testing.T) {
	var b strings.Builder
	ok, err := Print(&b, []Lane{
		{Name: "kvm", Kernel: "6.18", Backend: "pvm", Passed: 3, Skipped: 2, Reasons: map[string]int{"svm: the back end is pvm": 2}},
		{Name: "lab", Kernel: "6.1", Backend: "svm", Passed: 5, Failed: 1, Failures: []string{"p A"}},
	})
	want := `failed in lab: p A
skipped in kvm: 2 × svm: the back end is pvm
lane  kernel  back end  passed  failed  skipped
kvm   6.18    pvm       3       0       2
lab   6.1     svm       5       1       0
8 passed, 1 failed, 2 skipped
`
	if ok || err != nil || b.String() != want {
		t.Errorf("ok=%v, err=%v, output\n%s\nwant\n%s", ok, err, b.String(), want)
	}
	if ok, _ := Print(&b, nil); ok {
		t.Error("a run of no lane passed")
	}
	if ok, _ := Print(&b, []Lane{{Passed: 1}}); !ok {
		t.Error("a run with one pass and nothing else failed")
	}
}

// A lane that could not run is in the table and proves nothing; one that ran says how often it was started again.
func TestNotRunAndRetries(t *testing.T) {
	l, err := Read(strings.NewReader(header + `{"Action":"` + NotRun + `","Output":"no network"}`))
	if err != nil || l.NotRun != "no network" || l.Passed+l.Failed+l.Skipped != 0 {
		t.Errorf("Read = %+v, %v", l, err)
	}
	r, err := Read(strings.NewReader(header + `{"Action":"` + Retry + `","Output":"it hung"}` + "\n" + ev("run p A\npass p A\npass p")))
	if err != nil || len(r.Retries) != 1 || r.Passed != 1 {
		t.Errorf("Read = %+v, %v", r, err)
	}
	l.Name, l.Kernel, l.Backend, r.Name, r.Kernel, r.Backend = "lab-vmx", "none", "vmx", "lab", "6.1", "svm"
	var b strings.Builder
	ok, err := Print(&b, []Lane{r, l})
	want := `started again in lab: it hung
not run: lab-vmx: no network
lane     kernel  back end  passed   failed  skipped
lab      6.1     svm       1        0       0
lab-vmx  none    vmx       not run  -       -
1 passed, 0 failed, 0 skipped
`
	if !ok || err != nil || b.String() != want {
		t.Errorf("ok=%v, err=%v, output\n%s\nwant\n%s", ok, err, b.String(), want)
	}
	if ok, _ := Print(&b, []Lane{l}); ok {
		t.Error("a run of which nothing ran passed")
	}
}

func TestShow(t *testing.T) {
	l := strings.NewReplacer("\t", "")
	var b strings.Builder
	s := NewShow(&b)
	for _, e := range []Event{
		{Action: "output", Package: "p", Test: "A", Output: "quiet\n"},
		{Action: "pass", Package: "p", Test: "A"},
		{Action: "output", Package: "p", Test: "B", Output: "loud\n"},
		{Action: "fail", Package: "p", Test: "B"},
		{Action: "output", Package: "p", Test: "C", Output: "hung\n"},
		{Action: "output", Package: "p", Output: "FAIL\n"},
		{Action: "output", Package: "p", Output: "FAIL p 1s\n"},
		{Action: "fail", Package: "p"},
	} {
		if err := s.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := l.Replace(b.String()), "loud\nFAIL p 1s\nhung\n"; got != want {
		t.Errorf("shown %q, want %q", got, want)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(ev("run p A\nrun p A/x\nfail p A/x\nfail p A\nfail p"))
	f.Add(ev("run p A\nskip p A"))
	f.Add(header + `{"Action":"run","Package":"p","Test":"/"}`)
	f.Add(header + `{"Action":"fail","Package":"p","Test":"a/"}`)
	f.Fuzz(func(t *testing.T, s string) {
		l, err := Read(strings.NewReader(s))
		if err == nil && l.Failed != len(l.Failures) {
			t.Errorf("%d failed, %d failures listed", l.Failed, len(l.Failures))
		}
	})
}
