package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
)

// The compatibility suite: programs that nobody here wrote, and programs on libraries and runtimes that nobody here
// wrote, do in a guest what they do natively. docs/compatibility.md lists them, and what is left out.

// compatible is one program of the suite.
type compatible struct {
	name     string
	packages []string // Debian packages with the beginning of Debian 12's version: "zsh-static 5.9"
	from     string   // where it comes from if not from a package
	shows    string
	test     string                                // that runs it, if not TestCompatibility
	build    func(t *testing.T, out string) string // makes the program, or finds it; out is a name that is free
	files    []string                              // of testdata/compat, put into the working directory
	prepare  func(t *testing.T, dir string)        // puts more there, the same each time
	steps    [][]string                            // arguments of each run, one after the other in one directory
	env      []string                              // besides that of every box
	flags    []string                              // of cloister run
	status   int                                   // of the last run natively, so that a program that fails in both is seen
	sum      func(string) string                   // what of the standard output counts; nil: each byte
}

// installed is the program as it is in its package.
func installed(path string) func(*testing.T, string) string {
	return func(t *testing.T, _ string) string {
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("the package is installed, and not its program: %v", err)
		}
		return path
	}
}

// compiledWith a compiler, from testdata/compat.
func compiledWith(tool, source string, args ...string) func(*testing.T, string) string {
	return func(t *testing.T, out string) string {
		t.Helper()
		testenv.Need(t, testenv.Tool(tool))
		argv := append([]string{filepath.Join("testdata", "compat", source), "-o", out}, args...)
		if b, err := exec.Command(tool, argv...).CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v\n%s", tool, argv, err, b)
		}
		return out
	}
}

// goBuilt is made by the go command: `go build` of a folder of testdata/compat, or `go test -c` of a package.
func goBuilt(args ...string) func(*testing.T, string) string {
	return func(t *testing.T, out string) string {
		t.Helper()
		c := exec.Command("go", slices.Concat(args[:len(args)-1], []string{"-o", out, args[len(args)-1]})...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if b, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", c.Args, err, b)
		}
		return out
	}
}

// goTool is a program of the Go distribution, which is linked statically: tool is a path below GOROOT.
func goTool(tool string) func(*testing.T, string) string {
	return func(t *testing.T, _ string) string { return filepath.Join(goEnv(t, "GOROOT"), tool) }
}

func goEnv(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("go", "env", name).Output()
	if err != nil {
		t.Fatalf("go env %s: %v", name, err)
	}
	return strings.TrimSpace(string(out))
}

// goFiles copies a folder of Go's own source into the working directory.
func goFiles(dir string) func(*testing.T, string) {
	return func(t *testing.T, work string) {
		t.Helper()
		out, err := exec.Command("go", "list", "-f", "{{.Dir}}", dir).Output()
		if err != nil {
			t.Fatalf("go list %s: %v", dir, err)
		}
		root := strings.TrimSpace(string(out))
		err = filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			to := filepath.Join(work, strings.TrimPrefix(p, root))
			if d.IsDir() {
				return os.MkdirAll(to, 0o755)
			}
			data, err := os.ReadFile(p) // what is read-only in the module cache is writable here
			if err != nil {
				return err
			}
			return os.WriteFile(to, data, 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// verdicts are what `go test -v` says of each test but for its time, in the order of the names: tests that run in parallel
// end in any.
func verdicts(out string) string {
	var list []string
	for line := range strings.Lines(out) {
		if strings.HasPrefix(strings.TrimSpace(line), "--- ") {
			verdict, _, _ := strings.Cut(line, " (")
			list = append(list, strings.TrimSpace(verdict))
		}
	}
	slices.Sort(list)
	return strings.Join(list, "\n")
}

const compatInput = "one two\nthree\n\tfour  five"

// stage makes the working directory what it has to be before a program starts.
func (b *box) stage(c compatible) {
	b.t.Helper()
	old, err := os.ReadDir(b.work)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, e := range old {
		if err := os.RemoveAll(filepath.Join(b.work, e.Name())); err != nil {
			b.t.Fatal(err)
		}
	}
	for _, f := range c.files {
		data, err := os.ReadFile(filepath.Join("testdata", "compat", f))
		if err != nil {
			b.t.Fatal(err)
		}
		b.file(f, string(data))
	}
	if c.prepare != nil {
		c.prepare(b.t, b.work)
	}
}

// A program of others writes, leaves behind and returns in a guest what it does natively.
func TestCompatibility(t *testing.T) {
	testenv.NeedLong(t) // the kvm lane runs it all: once is enough
	for _, c := range slices.Concat(compatFromDebian, compatLibraries, compatRuntimes) {
		if c.test != "" {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			var needs []testenv.Requirement
			for _, p := range c.packages {
				name, _, _ := strings.Cut(p, " ")
				needs = append(needs, testenv.Package(name))
			}
			b := newBox(t, needs...)
			c.check(t)
			prog := c.build(t, filepath.Join(shared, "compat-"+strings.NewReplacer("/", "-", " ", "-").Replace(c.name)))
			all := func(argv func(...string) []string) (list []result, left string) {
				b.stage(c)
				for _, args := range c.steps {
					r := b.do(process{argv: argv(append([]string{prog}, args...)...), stdin: strings.NewReader(compatInput), extra: c.env})
					if c.sum != nil {
						r.out, r.err = c.sum(r.out), ""
					}
					list = append(list, r)
				}
				return list, b.tree()
			}
			natively, left := all(func(argv ...string) []string { return argv })
			guest, now := all(func(argv ...string) []string { return b.compatGuest(c.flags, argv) })
			for i, args := range c.steps {
				b.compare(args, natively[i], guest[i])
			}
			if now != left {
				t.Errorf("leaves another tree\n-- natively\n%s\n-- guest\n%s", left, now)
			}
			if last := natively[len(natively)-1]; last.status != c.status || last.out+last.err == "" && c.sum != nil {
				t.Errorf("natively it ends with status %d and not %d, which compares nothing: %s", last.status, c.status, tail(last.out+last.err))
			}
		})
	}
}

// compatGuest is guest with a temporary directory and the Go distribution (its zones), of which Go's own tests make use.
func (b *box) compatGuest(flags, argv []string) []string {
	return slices.Concat([]string{b.bin, "run"}, flags, []string{"--quiet", "--rw", b.work, "--rw", b.t.TempDir() + ":/tmp", "--ro", "/etc", "--ro", goEnv(b.t, "GOROOT"), "--"}, argv)
}

// check fails if Debian 12 has another version of a package than the one that the document names.
func (c compatible) check(t *testing.T) {
	t.Helper()
	release, err := os.ReadFile("/etc/os-release")
	if errors.Is(err, os.ErrNotExist) {
		return
	} else if err != nil {
		t.Fatal(err)
	}
	for _, p := range c.packages {
		name, want, _ := strings.Cut(p, " ")
		out, err := exec.Command("dpkg-query", "-W", "-f", "${Version}", name).Output()
		if err != nil {
			t.Fatalf("dpkg-query %s: %v", name, err)
		}
		version := string(out)
		if _, after, epoch := strings.Cut(version, ":"); epoch {
			version = after
		}
		t.Logf("%s %s", name, out)
		if strings.Contains(string(release), `VERSION_ID="12"`) && !strings.HasPrefix(version, want) {
			t.Errorf("%s is version %s: docs/compatibility.md and the table say %s", name, version, want)
		}
	}
}

const compatDocument = "../../docs/compatibility.md"

// docs/compatibility.md says what the suite runs and what it leaves out, no more and no less.
func TestCompatibilityDocument(t *testing.T) {
	var names []string
	var want strings.Builder
	want.WriteString("| program | from | what it shows | result | test |\n| --- | --- | --- | --- | --- |\n")
	for _, c := range slices.Concat(compatFromDebian, compatLibraries, compatRuntimes) {
		names = append(names, c.name)
		if c.test == "" && (c.build == nil || len(c.steps) == 0) {
			t.Errorf("%s is in the table and nothing runs it", c.name)
		}
		from, result, test := c.from, "as natively: output, status, files", c.test
		if from == "" {
			from = strings.Join(c.packages, ", ")
		}
		if c.sum != nil {
			result = "as natively: verdicts, status, files"
		}
		if test == "" {
			test = "TestCompatibility"
		}
		fmt.Fprintf(&want, "| %s | %s | %s | %s | `%s` |\n", c.name, from, c.shows, result, test)
	}
	want.WriteString("\n## What is left out\n\n| what | why |\n| --- | --- |\n")
	for _, x := range compatExcluded {
		fmt.Fprintf(&want, "| %s | %s |\n", x.what, x.why)
	}
	slices.Sort(names)
	if d := slices.Compact(slices.Clone(names)); len(d) != len(names) {
		t.Errorf("a name stands twice in %q", names)
	}
	data, err := os.ReadFile(compatDocument)
	if err != nil {
		t.Fatal(err)
	}
	head, got, _ := strings.Cut(string(data), "| program |")
	if got = "| program |" + got; got == want.String() {
		return
	}
	if os.Getenv("CLOISTER_WRITE") == "compatibility" {
		if err := os.WriteFile(compatDocument, []byte(head+want.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("%s is not what the suite runs: CLOISTER_WRITE=compatibility go test -run CompatibilityDocument ./cmd/cloister writes it", compatDocument)
}

// What go test says of a test that fails, or that is not there, makes a difference.
func TestVerdicts(t *testing.T) {
	const want = "--- FAIL: TestA/x\n--- PASS: TestB"
	for _, out := range []string{
		"=== RUN X\n--- PASS: TestB (0.02s)\n    --- FAIL: TestA/x (1.0s)\nPASS\n",
		"    --- FAIL: TestA/x (0.00s)\n--- PASS: TestB (4.2s)\n",
	} {
		if got := verdicts(out); got != want {
			t.Errorf("%q: %q, want %q", out, got, want)
		}
	}
	if verdicts("--- PASS: TestB (0.02s)\n    --- PASS: TestA/x (1.0s)\n") == want || verdicts("--- PASS: TestB (0.02s)\n") == want {
		t.Error("a failure or a missing test makes no difference")
	}
}
