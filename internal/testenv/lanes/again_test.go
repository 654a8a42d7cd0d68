package lanes

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func rerunsOf(t *testing.T, stream string) string {
	t.Helper()
	var j Judge
	for line := range strings.Lines(ev(stream)) {
		var e Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		j.Add(e)
	}
	return fmt.Sprint(j.Reruns())
}

// What may be chance is run again, by the tests that failed; where a package broke off, all of it. Nothing is if anything is grave.
func TestReruns(t *testing.T) {
	for _, c := range []struct{ name, stream, want string }{
		{"all passed", "run p A\npass p A\npass p", "[]"},
		{"one test", "run p A\nfail p A\nrun p B\npass p B\nfail p", "[{p [A]}]"},
		{"a subtest", "run p A\nrun p A/x\nfail p A/x\nfail p A\nfail p\npass q", "[{p [A]}]"},
		{"two packages", "run q A\nfail q A\nfail q\nrun p C\nfail p C\nrun p B\nfail p B\nfail p", "[{p [B C]} {q [A]}]"},
		{"too many", "run p A\nfail p A\nrun p B\nfail p B\nrun p C\nfail p C\nrun p D\nfail p D\nfail p", "[]"},
		{"outside of its tests", "run p A\npass p A\nfail p", "[{p []}]"},
		{"a panic", "run p A\nout p A panic: late\nfail p A\nfail p", "[{p []}]"},
		{"broken off", "run p A\nfail p A\nrun p B\nfail p", "[{p []}]"},
		{"a data race", "run p A\nout p A WARNING: DATA RACE\nfail p A\nfail p", "[]"},
		{"a data race elsewhere", "run p A\nout p A WARNING: DATA RACE\nfail p A\nfail p\nrun q A\nfail q A\nfail q", "[]"},
		{"a hang", "run p A\nout p A panic: test timed out after 20m0s\nfail p A\nfail p", "[]"},
		{"a fault of the runtime", "out p - fatal error: found bad pointer\nfail p", "[]"},
		{"a fault of the processor", "run p A\nout p A [signal SIGSEGV: segmentation violation\nfail p A\nfail p", "[]"},
	} {
		if got := rerunsOf(t, c.stream); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	var j Judge
	j.Add(Event{Action: "build-fail", ImportPath: "p"})
	j.Add(Event{Action: "fail", Package: "p"})
	if list := j.Reruns(); list != nil {
		t.Errorf("what does not build: %v", list)
	}
}

// The second run counts, the first is named; what neither run ended is failed.
func TestReadAgain(t *testing.T) {
	again := func(pkg, tests string) string {
		return fmt.Sprintf(`{"Action":"%s","Package":"%s","Output":"%s"}`+"\n", Again, pkg, tests)
	}
	first := ev("run p A\nrun p A/x\nfail p A/x\nrun p A/y\npass p A/y\nfail p A\nrun p B\npass p B\nfail p\n")
	for _, c := range []struct {
		name, second   string
		passed, failed int
	}{
		{"passes", again("p", "A") + ev("run p A\nrun p A/x\npass p A/x\nrun p A/y\npass p A/y\npass p A\npass p"), 3, 0},
		{"fails", again("p", "A") + ev("run p A\nrun p A/x\nfail p A/x\nrun p A/y\npass p A/y\nfail p A\nfail p"), 2, 1},
		{"does not end", again("p", "A") + ev("run p A\n"), 1, 2},
		{"does not begin", again("p", "A"), 1, 2},
		{"the whole package", again("p", "") + ev("run p A\npass p A\nrun p B\npass p B\npass p"), 2, 0},
		{"of the whole package a part", again("p", "") + ev("run p B\npass p B\nfail p"), 1, 1},
	} {
		l, err := Read(strings.NewReader(header + first + c.second))
		if err != nil || l.Passed != c.passed || l.Failed != c.failed || len(l.Again) != 1 {
			t.Errorf("%s: %+v, %v: want %d passed, %d failed", c.name, l, err, c.passed, c.failed)
		}
	}
	l := Lane{Name: "kvm", Kernel: "6.18", Backend: "pvm", Passed: 3, Again: []string{"p A"}}
	var b strings.Builder
	if ok, err := Print(&b, []Lane{l}); !ok || err != nil || !strings.HasPrefix(b.String(), "failed at first in kvm, and was run again: p A\n") {
		t.Errorf("%v, %v, %q", ok, err, b.String())
	}
}
