package lab

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/internal/testenv/lanes"
	"github.com/cloister-vmm/cloister/lab/wire"
)

// A guest's lines become the counts that go test would give; a verdict of the
// output is not believed against the status or an early end.
func TestResults(t *testing.T) {
	testenv.Need(t, testenv.Tool("go"))
	pass := []string{"\x16=== RUN   TestA", "    a_test.go:1: hello", "\x16--- PASS: TestA (0.10s)", "\x16PASS"}
	fail := []string{"\x16=== RUN   TestA", "    a_test.go:1: bad luck", "\x16--- FAIL: TestA (0.10s)", "\x16FAIL"}
	skip := []string{"\x16=== RUN   TestA", "    a_test.go:1: testenv: skip svm: none", "\x16--- SKIP: TestA (0.00s)", "\x16PASS"}
	for _, c := range []struct {
		name                    string
		lines                   []string
		status                  int // -1: the guest ends first
		passed, failed, skipped int
		shown                   string
		named                   bool // tests of it were asked for by name
	}{
		{"pass", pass, 0, 1, 0, 0, "ok  \tp", true},
		{"skip what was named", skip, 0, 0, 1, 1, "none of the tests that were named has passed", true},
		{"run nothing of what was named", []string{"\x16PASS"}, 0, 0, 1, 0, "FAIL\tp", true},
		{"fail", fail, 1, 0, 1, 0, "bad luck", false},
		{"skip", skip, 0, 0, 0, 1, "ok  \tp", false},
		{"dies after PASS", pass, 2, 1, 1, 0, "FAIL\tp", false},
		{"ends first", pass[:2], -1, 0, 1, 0, "the guest ended first", false},
		{"hangs", append(pass[:2:2], "lab: p runs longer than 1m0s; SIGQUIT", "SIGQUIT: quit", "goroutine 1 [running]:"), 2, 0, 1, 0, "goroutine 1 [running]", false},
		{"says nothing", nil, 127, 0, 1, 0, "FAIL\tp", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var shown bytes.Buffer
			events := eventsFile(t)
			r := &results{out: events, show: lanes.NewShow(&shown), tasks: []wire.Task{{Name: "p"}}}
			check := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			if c.named {
				r.named = map[string]bool{"p": true}
			}
			check(r.header("lab", "6.1", SVM))
			check(r.start(0))
			for _, l := range c.lines {
				check(r.line(0, l))
			}
			if c.status < 0 {
				check(r.abandon())
			} else {
				check(r.end(c.status, ""))
			}
			l, err := lanes.Read(events.rewound(t))
			if err != nil || l.Passed != c.passed || l.Failed != c.failed || l.Skipped != c.skipped {
				t.Errorf("%d passed, %d failed, %d skipped, %v; want %d, %d, %d", l.Passed, l.Failed, l.Skipped, err, c.passed, c.failed, c.skipped)
			}
			if r.failed != (c.failed > 0) {
				t.Errorf("failed = %v with %d failures", r.failed, c.failed)
			}
			if !strings.Contains(shown.String(), c.shown) {
				t.Errorf("shown %q lacks %q", shown.String(), c.shown)
			}
		})
	}
}

func TestResultsStream(t *testing.T) {
	testenv.Need(t, testenv.Tool("go"))
	var raw bytes.Buffer
	r := &results{raw: &raw, show: lanes.NewShow(&raw), tasks: []wire.Task{{Name: "p"}}}
	if err := r.start(1); err == nil {
		t.Error("a task that is not there was started")
	}
	if err := r.line(0, "x"); err == nil {
		t.Error("a line of a task that does not run was taken")
	}
	if err := r.start(0); err != nil {
		t.Fatal(err)
	}
	if err := r.line(0, "\x16=== RUN   TestA"); err != nil {
		t.Fatal(err)
	}
	if got := raw.String(); got != "=== RUN   TestA\n" {
		t.Errorf("streamed %q before the end", got)
	}
	if err := r.abandon(); err != nil {
		t.Fatal(err)
	}
}

// A process that a task left behind may go on to print: that is shown once, changes no verdict, and does not end the
// machine; the next task's lines are its own.
func TestLateLines(t *testing.T) {
	testenv.Need(t, testenv.Tool("go"))
	var shown bytes.Buffer
	events := eventsFile(t)
	r := &results{out: events, show: lanes.NewShow(&shown), tasks: []wire.Task{{Name: "p"}, {Name: "q"}}}
	err := r.header("lab", "6.1", SVM)
	late := func(n int) {
		for range n {
			err = errors.Join(err, r.line(0, "flood"))
		}
	}
	for task := range 2 {
		err = errors.Join(err, r.start(task))
		late(task * 3)
		for _, l := range []string{"\x16=== RUN   TestA", "\x16--- PASS: TestA (0.10s)", "\x16PASS"} {
			err = errors.Join(err, r.line(task, l))
		}
		late(task * 3)
		err = errors.Join(err, r.end(0, ""))
		late(3)
	}
	if err != nil {
		t.Fatal(err)
	}
	l, err := lanes.Read(events.rewound(t))
	if err != nil || l.Passed != 2 || l.Failed != 0 || r.failed {
		t.Errorf("%+v, %v", l, err)
	}
	if n := strings.Count(shown.String(), "output of p after its end, of which this line is kept: flood\n"); n != 1 || strings.Count(shown.String(), "flood") != 1 {
		t.Errorf("shown %q", shown.String())
	}
	if err := r.start(0); err == nil {
		t.Error("a task that has ended was started again")
	}
	if err := r.line(2, "x"); err == nil {
		t.Error("a line of a task that is not there was taken")
	}
}

type eventsOf struct{ *os.File }

// eventsFile is a stream of events that lasts as long as the test.
func eventsFile(t *testing.T) eventsOf {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "events"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return eventsOf{f}
}

func (e eventsOf) rewound(t *testing.T) io.Reader {
	t.Helper()
	if _, err := e.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	return e
}
