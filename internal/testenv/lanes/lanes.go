package lanes

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
)

// Event is one line of a stream. Fields are test2json's; the last three are set
// only in the header.
type Event struct {
	Time       string  `json:",omitempty"`
	Action     string  // start run pause cont pass bench fail output skip build-output build-fail lane
	Package    string  `json:",omitempty"`
	ImportPath string  `json:",omitempty"` // of build-output and build-fail
	Test       string  `json:",omitempty"`
	Elapsed    float64 `json:",omitempty"` // seconds
	Output     string  `json:",omitempty"`

	Lane    string `json:",omitempty"`
	Kernel  string `json:",omitempty"` // uname -r
	Backend string `json:",omitempty"` // vmx, svm, pvm or none
}

// Header makes the first line of a stream.
func Header(lane, kernel, backend string) Event {
	return Event{Action: "lane", Lane: lane, Kernel: kernel, Backend: backend}
}

// Lane is what one stream amounts to.
type Lane struct {
	Name, Kernel, Backend   string
	Passed, Failed, Skipped int

	// NotRun says why nothing of the lane ran; empty: it ran.
	NotRun string
	// Retries holds one line for each time that the lane's machine was started again.
	Retries []string
	// Again holds one line for each package of which something failed and was run a second time: what that said counts.
	Again []string
	// Failures holds one line for each failure, in order of appearance.
	Failures []string
	// Reasons counts the skips by requirement and reason ("svm: the KVM back end is pvm").
	Reasons map[string]int
}

// The actions of events that are not test2json's; Output says why.
const (
	Retry  = "lane-retry"   // the machine was started again, and what it said before is not in the stream
	NotRun = "lane-not-run" // the machine could not be had
)

type key struct{ pkg, test string }

type test struct {
	verdict string // pass, fail, skip; empty while it runs
	reason  string
	seen    bool // had an event of its own; t.Run("a/b") has no test "a"
	parent  bool // has subtests
	broken  bool // a subtest of it failed
	owed    bool // it is to be run again; its subtests may have other names then
}

// maxLine bounds one line of a stream, in bytes; a test that prints more than
// that without a newline has lost its mind.
const maxLine = 16 << 20

var skipLine = regexp.MustCompile(`testenv: skip (\S+): (.*\S)`)

// Read counts one stream. A stream that is not one (no JSON, no header) is an
// error; a stream that ends early is counted, with what did not end as failed.
func Read(r io.Reader) (Lane, error) {
	c := counter{
		lane:  Lane{Reasons: map[string]int{}},
		tests: map[key]*test{}, pkgs: map[string]string{}, built: map[string]bool{},
	}
	in := bufio.NewScanner(r)
	in.Buffer(nil, maxLine)
	n := 0
	for in.Scan() {
		if strings.TrimSpace(in.Text()) == "" {
			continue
		}
		n++
		var e Event
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			return c.lane, fmt.Errorf("event %d: %w; the file must hold the output of go test -json", n, err)
		}
		c.add(e)
	}
	if err := in.Err(); err != nil {
		return c.lane, fmt.Errorf("after event %d: %w", n, err)
	}
	if c.lane.Name == "" {
		return c.lane, errors.New("no header: the first line must have the action \"lane\"")
	}
	c.close()
	return c.lane, nil
}

type counter struct {
	lane  Lane
	tests map[key]*test
	order []key
	pkgs  map[string]string // package → verdict, empty while it runs
	names []string          // packages in order of appearance
	built map[string]bool   // false: the build failed
}

func (c *counter) add(e Event) {
	switch e.Action {
	case "lane":
		c.lane.Name, c.lane.Kernel, c.lane.Backend = e.Lane, e.Kernel, e.Backend
		return
	case Retry:
		c.lane.Retries = append(c.lane.Retries, e.Output)
		return
	case NotRun:
		c.lane.NotRun = e.Output
		return
	case Again:
		c.again(e)
		return
	case "build-fail":
		c.built[e.ImportPath] = false
		return
	case "build-output":
		return
	}
	if e.Package != "" {
		if _, ok := c.pkgs[e.Package]; !ok {
			c.pkgs[e.Package] = ""
			c.names = append(c.names, e.Package)
		}
	}
	if e.Test == "" {
		switch e.Action {
		case "pass", "fail", "skip":
			c.pkgs[e.Package] = e.Action
		}
		return
	}
	t := c.test(key{e.Package, e.Test})
	t.seen = true
	switch e.Action {
	case "pass", "fail", "skip":
		t.verdict = e.Action
	case "output":
		if m := skipLine.FindStringSubmatch(e.Output); m != nil {
			t.reason = m[1] + ": " + m[2]
		}
	}
}

// test finds or starts a test, and marks its parents as headings (invariant 1).
func (c *counter) test(k key) *test {
	t, ok := c.tests[k]
	if !ok {
		t = &test{}
		c.tests[k] = t
		c.order = append(c.order, k)
	}
	if i := strings.LastIndexByte(k.test, '/'); i > 0 {
		c.test(key{k.pkg, k.test[:i]}).parent = true
	}
	return t
}

func (c *counter) close() {
	failedIn := map[string]bool{}
	// Children come after their parents in order, so backwards: a parent is
	// judged when it is known whether one of its children took the blame.
	verdicts := make([]string, len(c.order))
	for i, k := range slices.Backward(c.order) {
		t := c.tests[k]
		missing := t.owed && !t.seen
		bad := missing || t.seen && (t.verdict == "fail" || t.verdict == "")
		if bad || t.broken {
			failedIn[k.pkg] = true
			if j := strings.LastIndexByte(k.test, '/'); j > 0 {
				c.tests[key{k.pkg, k.test[:j]}].broken = true
			}
		}
		switch {
		case missing:
			verdicts[i] = "was not run again"
		case !t.seen, bad && t.broken, !bad && t.parent && t.verdict == "pass":
			// A heading.
		case t.verdict == "":
			verdicts[i] = "did not end"
		default:
			verdicts[i] = t.verdict
		}
	}
	for i, k := range c.order {
		switch verdicts[i] {
		case "":
		case "pass":
			c.lane.Passed++
		case "skip":
			c.lane.Skipped++
			c.lane.Reasons[cmp.Or(c.tests[k].reason, "no reason given by testenv: "+k.pkg+" "+k.test)]++
		case "fail":
			c.fail(k.pkg + " " + k.test)
		default:
			c.fail(k.pkg + " " + k.test + ": " + verdicts[i])
		}
	}
	for _, p := range c.names {
		switch v := c.pkgs[p]; {
		case v == "":
			c.fail(p + ": the package did not end")
		case v == "fail" && !failedIn[p]:
			c.fail(p + ": failed outside of its tests (build, TestMain, panic or exit)")
		}
	}
	// A dependency that does not build fails the packages above, which are
	// counted; one that nothing above reports is counted here.
	for _, p := range slices.Sorted(maps.Keys(c.built)) {
		name, _, _ := strings.Cut(p, " ")
		if _, reported := c.pkgs[name]; !reported && c.lane.Failed == 0 {
			c.fail(p + ": does not build")
		}
	}
}

func (c *counter) fail(what string) {
	c.lane.Failed++
	c.lane.Failures = append(c.lane.Failures, what)
}

// Print writes the failures, the skips with their reasons, one row for each lane,
// and the closing line "N passed, N failed, N skipped". It reports whether
// nothing failed and something passed: a run without a test proves nothing.
func Print(w io.Writer, all []Lane) (bool, error) {
	var b strings.Builder
	var passed, failed, skipped int
	for _, l := range all {
		for _, f := range l.Failures {
			fmt.Fprintf(&b, "failed in %s: %s\n", l.Name, f)
		}
		for _, a := range l.Again {
			fmt.Fprintf(&b, "failed at first in %s, and was run again: %s\n", l.Name, a)
		}
		for _, r := range l.Retries {
			fmt.Fprintf(&b, "started again in %s: %s\n", l.Name, r)
		}
		if l.NotRun != "" {
			fmt.Fprintf(&b, "not run: %s: %s\n", l.Name, l.NotRun)
		}
	}
	for _, l := range all {
		for _, reason := range slices.Sorted(maps.Keys(l.Reasons)) {
			fmt.Fprintf(&b, "skipped in %s: %d × %s\n", l.Name, l.Reasons[reason], reason)
		}
	}
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "lane\tkernel\tback end\tpassed\tfailed\tskipped")
	for _, l := range all {
		if l.NotRun != "" && l.Passed+l.Failed+l.Skipped == 0 {
			fmt.Fprintf(t, "%s\t%s\t%s\tnot run\t-\t-\n", l.Name, l.Kernel, l.Backend)
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%d\n", l.Name, l.Kernel, l.Backend, l.Passed, l.Failed, l.Skipped)
		passed, failed, skipped = passed+l.Passed, failed+l.Failed, skipped+l.Skipped
	}
	if err := t.Flush(); err != nil {
		return false, err
	}
	fmt.Fprintf(&b, "%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	_, err := io.WriteString(w, b.String())
	return failed == 0 && passed > 0, err
}
