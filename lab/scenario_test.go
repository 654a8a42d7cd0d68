package lab_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/lab"
)

// scenarios are the scripts of a machine: those to run, and those that -short leaves out.
type scenarios struct{ run, left []string }

func scripts(t *testing.T, short bool) map[string]scenarios {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios in testdata (%v)", err)
	}
	byMachine := map[string]scenarios{}
	for _, f := range files {
		script, err := lab.ReadScript(f)
		if err != nil {
			t.Error(err)
		}
		for _, n := range script.Machines {
			s := byMachine[script.On(n)]
			if script.Long && short {
				s.left = append(s.left, f)
			} else {
				s.run = append(s.run, f)
			}
			byMachine[script.On(n)] = s
		}
	}
	return byMachine
}

// leaveOut makes a subtest of each script that -short leaves out, under the name that it would run by, so that the table of
// lanes counts it as skipped and says why.
func leaveOut(subtest func(name string, f func(testing.TB)), files []string) {
	for _, f := range files {
		subtest(strings.TrimSuffix(filepath.Base(f), ".txtar"), func(t testing.TB) { testenv.NeedLong(t) })
	}
}

// A script that -short leaves out is a skipped test and no silence.
func TestLeftOutScenarios(t *testing.T) {
	all, short := scripts(t, false)["svm"], scripts(t, true)["svm"]
	if len(all.left) != 0 || len(short.left) == 0 || len(short.run)+len(short.left) != len(all.run) {
		t.Fatalf("in full %q and none of %q; with -short %q and none of %q", all.run, all.left, short.run, short.left)
	}
	var names []string
	leaveOut(func(name string, f func(testing.TB)) {
		r := &reason{TB: t}
		f(r)
		if testing.Short() != strings.Contains(r.text, "testenv: skip long: ") {
			t.Errorf("%s: skipped with %q, -short is %v", name, r.text, testing.Short())
		}
		names = append(names, "testdata/"+name+".txtar")
	}, short.left)
	if !slices.Equal(names, short.left) {
		t.Errorf("subtests %q of %q", names, short.left)
	}
}

// reason is a test that is skipped only in play.
type reason struct {
	testing.TB
	text string
}

func (r *reason) Skipf(format string, args ...any) { r.text = fmt.Sprintf(format, args...) }

// Each machine is in a lane that holds it to what it has: in the empty one a test could skip whatever was lost.
func TestMachinesHaveLanes(t *testing.T) {
	for _, m := range lab.Machines() {
		for name, has := range map[string]bool{
			"kvm": true, "hardware-kvm": true, "lab-machine": true, string(m.Backend): true,
			"cpus:4": m.CPUs >= 4, "parallel-cpus": m.Parallel, "isolated-core": strings.Contains(strings.Join(m.Cmdline, " "), "isolcpus="),
		} {
			if m.Lane.Promises(name) != has {
				t.Errorf("%s is in the lane %q, which promises %s: %v; the machine has it: %v", m.Name, m.Lane, name, !has, has)
			}
		}
	}
}

// TestScenarios runs the scripts of the machine that this is. A script reads like
// a manual page; besides testscript's own commands it has those below.
func TestScenarios(t *testing.T) {
	testenv.Need(t, testenv.HardwareKVM, testenv.Root, testenv.LabMachine)
	here := scripts(t, testing.Short())[os.Getenv(lab.MachineVar)]
	if len(here.run)+len(here.left) == 0 {
		t.Fatalf("no scenario for machine %q", os.Getenv(lab.MachineVar))
	}
	leaveOut(func(name string, f func(testing.TB)) { t.Run(name, func(t *testing.T) { f(t) }) }, here.left)
	if len(here.run) == 0 {
		return
	}
	testscript.RunT(serial{t}, testscript.Params{
		Files:               here.run,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Condition:           isMachine,
		Setup: func(e *testscript.Env) error {
			// testscript starts from an empty environment.
			for _, v := range []string{"PATH", lab.MachineVar, lab.OutVar, testenv.GuestKernelVar} {
				e.Setenv(v, os.Getenv(v))
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status":     status,
			"json":       jsonValue,
			"file":       fileValue,
			"write":      write,
			"cpuset":     cpuset,
			"trace":      trace,
			"traced":     traced,
			"interrupts": interrupts,
			"save":       save,
		},
	})
}

// serial runs scripts one after the other: they share the machine's cores, its
// cgroups and its tracing.
type serial struct{ *testing.T }

func (s serial) Parallel()     {}
func (s serial) Verbose() bool { return testing.Verbose() }
func (s serial) Run(name string, f func(testscript.T)) {
	s.T.Run(name, func(t *testing.T) { f(serial{t}) })
}

// status N COMMAND…: the command ends with status N. Its output is in the files
// stdout.txt and stderr.txt of the script's directory.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	path, err := exec.LookPath(args[1])
	ts.Check(err)
	cmd := exec.Command(path, args[2:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = os.Environ()
	out, err := os.Create(ts.MkAbs("stdout.txt"))
	ts.Check(err)
	complaint, err := os.Create(ts.MkAbs("stderr.txt"))
	ts.Check(err)
	cmd.Stdout, cmd.Stderr = out, complaint
	err = cmd.Run()
	ts.Check(errors.Join(out.Close(), complaint.Close()))
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Check(err)
	}
	for _, f := range []string{"stdout.txt", "stderr.txt"} {
		ts.Logf("[%s]\n%s", f, ends(ts.ReadFile(f)))
	}
	if got := cmd.ProcessState.ExitCode(); got != want {
		ts.Fatalf("status %d, want %d: %v", got, want, cmd.ProcessState)
	}
}

// ends is what a log shows of a text: all of it, or its first and its last 2 KiB. A program that prints until it is stopped has printed
// megabytes by then, which take minutes through the machine's serial port.
func ends(text string) string {
	const most = 2 << 10
	if len(text) <= 2*most {
		return text
	}
	return fmt.Sprintf("%s\n… %d bytes left out …\n%s", text[:most], len(text)-2*most, text[len(text)-most:])
}

func TestEnds(t *testing.T) {
	if text := strings.Repeat("y\n", 2<<10); ends(text) != text {
		t.Error("4 KiB are not shown whole")
	}
	text := "first" + strings.Repeat("y\n", 1<<20) + "last"
	if e := ends(text); len(e) > 5<<10 || !strings.HasPrefix(e, "first") || !strings.HasSuffix(e, "last") || !strings.Contains(e, fmt.Sprintf("%d bytes left out", len(text)-4<<10)) {
		t.Errorf("%d bytes are shown as %d: %.40q…", len(text), len(e), e)
	}
}

// json FILE PATH OP VALUE: the value at PATH (names and indices joined by dots)
// compares so; OP is == != < <= > >=, the last four for numbers. With "!", it does not.
// PATH+PATH and VALUE+VALUE are the sums of numbers.
func jsonValue(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 4 {
		ts.Fatalf("usage: json FILE PATH OP VALUE")
	}
	var doc any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &doc))
	v, err := sum(args[1], func(path string) (string, error) { return lookup(doc, path) })
	ts.Check(err)
	want, err := sum(args[3], func(value string) (string, error) { return value, nil })
	ts.Check(err)
	ok, err := compare(v, args[2], want)
	ts.Check(err)
	if ok == neg {
		ts.Fatalf("%s in %s is %s, which should %sbe %s %s", args[1], args[0], v, map[bool]string{true: "not "}[neg], args[2], want)
	}
}

// sum adds up the numbers that the terms of A+B+… stand for. What has one term only is its value, a number or not.
func sum(text string, value func(term string) (string, error)) (string, error) {
	terms := strings.Split(text, "+")
	if len(terms) == 1 {
		return value(text)
	}
	total := uint64(0)
	for _, term := range terms {
		v, err := value(term)
		if err != nil {
			return "", err
		}
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return "", fmt.Errorf("%q in the sum %s is no count", v, text)
		}
		total += n
	}
	return strconv.FormatUint(total, 10), nil
}

// isMachine answers a script's condition [NAME]: this is that machine.
func isMachine(name string) (bool, error) {
	_, err := lab.Lookup(name)
	here, _, _ := strings.Cut(os.Getenv(lab.MachineVar), "/") // behind it: the script whose own machine this is
	return name == here, err
}

// lookup walks a decoded document and prints what it finds as JSON does; strings bare.
func lookup(doc any, path string) (string, error) {
	for name := range strings.SplitSeq(path, ".") {
		switch d := doc.(type) {
		case map[string]any:
			next, ok := d[name]
			if !ok {
				return "", fmt.Errorf("%s: no field %q", path, name)
			}
			doc = next
		case []any:
			i, err := strconv.Atoi(name)
			if err != nil || i < 0 || i >= len(d) {
				return "", fmt.Errorf("%s: no index %q in an array of %d", path, name, len(d))
			}
			doc = d[i]
		default:
			return "", fmt.Errorf("%s: %q is looked up in %v", path, name, doc)
		}
	}
	if s, ok := doc.(string); ok {
		return s, nil
	}
	b, err := json.Marshal(doc)
	return string(b), err
}

func compare(have, op, want string) (bool, error) {
	switch op {
	case "==":
		return have == want, nil
	case "!=":
		return have != want, nil
	}
	a, aerr := strconv.ParseFloat(have, 64)
	b, berr := strconv.ParseFloat(want, 64)
	if err := errors.Join(aerr, berr); err != nil {
		return false, err
	}
	switch op {
	case "<":
		return a < b, nil
	case "<=":
		return a <= b, nil
	case ">":
		return a > b, nil
	case ">=":
		return a >= b, nil
	}
	return false, fmt.Errorf("no operator %q", op)
}

// file PATH VALUE: the file holds VALUE and nothing else, blanks at its ends apart.
func fileValue(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: file PATH VALUE")
	}
	b, err := os.ReadFile(args[0])
	ts.Check(err)
	if got := strings.TrimSpace(string(b)); (got == args[1]) == neg {
		ts.Fatalf("%s holds %q", args[0], got)
	}
}

// write PATH VALUE: VALUE is written to the file, as one does with a kernel's knob.
func write(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: write PATH VALUE")
	}
	err := os.WriteFile(args[0], []byte(args[1]), 0o644)
	if neg && err == nil {
		ts.Fatalf("%s took %q", args[0], args[1])
	}
	if !neg {
		ts.Check(err)
	}
}

// cpuset NAME CPUS PARTITION: a cgroup with these CPUs and this kind of partition
// (member, root, isolated; Documentation/admin-guide/cgroup-v2.rst), until the
// script ends.
func cpuset(ts *testscript.TestScript, neg bool, args []string) {
	const root = "/sys/fs/cgroup"
	if neg || len(args) != 3 {
		ts.Fatalf("usage: cpuset NAME CPUS PARTITION")
	}
	dir := filepath.Join(root, args[0])
	ts.Check(os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+cpuset"), 0o644))
	ts.Check(os.Mkdir(dir, 0o755))
	ts.Defer(func() { ts.Check(os.Remove(dir)) })
	ts.Check(os.WriteFile(filepath.Join(dir, "cpuset.cpus"), []byte(args[1]), 0o644))
	ts.Check(os.WriteFile(filepath.Join(dir, "cpuset.cpus.partition"), []byte(args[2]), 0o644))
}

// save FILE…: the files go to the host, under the script's name.
func save(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: save FILE…")
	}
	dir := filepath.Join(os.Getenv(lab.OutVar), ts.Name())
	ts.Check(os.MkdirAll(dir, 0o755))
	for _, f := range args {
		ts.Check(os.WriteFile(filepath.Join(dir, filepath.Base(f)), []byte(ts.ReadFile(f)), 0o644))
	}
}

func TestJSONValue(t *testing.T) {
	var doc any
	if err := json.Unmarshal([]byte(`{"a":[{"b":3},"x"],"c":true,"n":12345678901}`), &doc); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"a.0.b": "3", "a.1": "x", "c": "true", "a.0": `{"b":3}`} {
		if got, err := lookup(doc, path); err != nil || got != want {
			t.Errorf("lookup %s = %q, %v; want %q", path, got, err, want)
		}
	}
	value := func(path string) (string, error) { return lookup(doc, path) }
	for text, want := range map[string]string{"a.0.b": "3", "a.1": "x", "a.0.b+a.0.b+n": "12345678907"} {
		if got, err := sum(text, value); err != nil || got != want {
			t.Errorf("sum %s = %q, %v; want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"a.0.b+a.1", "a.0.b+", "+a.0.b", "a.0.b+z"} {
		if got, err := sum(text, value); err == nil {
			t.Errorf("sum %s = %q, want an error", text, got)
		}
	}
	for _, path := range []string{"z", "a.2", "a.-1", "a.x", "c.d"} {
		if got, err := lookup(doc, path); err == nil {
			t.Errorf("lookup %s = %q, want an error", path, got)
		}
	}
	for _, c := range []struct {
		a, op, b string
		ok, err  bool
	}{
		{"3", "==", "3", true, false}, {"3", "!=", "3", false, false}, {"3", "<", "10", true, false},
		{"3", ">=", "3", true, false}, {"3", "<=", "2", false, false}, {"x", "<", "3", false, true}, {"3", "~", "3", false, true},
	} {
		if ok, err := compare(c.a, c.op, c.b); ok != c.ok || (err != nil) != c.err {
			t.Errorf("compare %s %s %s = %v, %v", c.a, c.op, c.b, ok, err)
		}
	}
}
