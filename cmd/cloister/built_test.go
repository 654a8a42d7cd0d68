package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
)

// builtFile names every program that compile makes, for machines that have no compiler.
const builtFile = "testdata/programs/built.json"

// carriedAs is what the names of these programs begin with in a lab machine's PATH.
const carriedAs = "cmd-cloister-"

// program is what compile and goProgram make, in the folder of this package: TOOL -o OUT ARGS, or go build -o OUT ARGS.
type program struct {
	Name string   `json:"name"`
	Tool string   `json:"tool"`
	Args []string `json:"args"`
}

// built is builtFile. With CLOISTER_WRITE=programs it takes what it does not know, and is written.
var built = sync.OnceValues(func() (list []program, err error) {
	b, err := os.ReadFile(builtFile)
	if errors.Is(err, fs.ErrNotExist) && os.Getenv("CLOISTER_WRITE") == "programs" {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &list)
	}
	return list, err
})

var learned struct {
	sync.Mutex
	list []program
}

// known fails the test if the program is not in builtFile as it is.
func (p program) known(t *testing.T) {
	t.Helper()
	list, err := built()
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(list, func(q program) bool { return reflect.DeepEqual(p, q) }) {
		return
	}
	if os.Getenv("CLOISTER_WRITE") != "programs" {
		t.Fatalf("%s: %s is not in %s as it is built: CLOISTER_WRITE=programs go test ./cmd/cloister writes it", p.Tool, p.Name, builtFile)
	}
	learned.Lock()
	defer learned.Unlock()
	learned.list = append(learned.list, p)
	all := slices.Concat(learned.list, slices.DeleteFunc(slices.Clone(list), func(q program) bool {
		return slices.ContainsFunc(learned.list, func(r program) bool { return r.Name == q.Name })
	}))
	slices.SortFunc(all, func(a, b program) int { return strings.Compare(a.Name, b.Name) })
	b, err := json.MarshalIndent(slices.CompactFunc(all, func(a, b program) bool { return a.Name == b.Name }), "", "\t")
	if err == nil {
		err = os.WriteFile(builtFile, append(b, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestBuiltIsWhole: also what only long tests build is in builtFile, as far as its name is written out.
func TestBuiltIsWhole(t *testing.T) {
	list, err := built()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	names := 0
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) < 2 {
				return true
			}
			lit, ok := call.Args[min(2, len(call.Args)-1)].(*ast.BasicLit)
			if f, is := call.Fun.(*ast.Ident); !ok || !is || f.Name != "compile" && f.Name != "goProgram" {
				return true
			}
			names++
			if name := strings.Trim(lit.Value, `"`); !slices.ContainsFunc(list, func(p program) bool { return p.Name == name }) {
				t.Errorf("%s: %s is not in %s: CLOISTER_WRITE=programs go test ./cmd/cloister writes it", file, name, builtFile)
			}
			return true
		})
	}
	if names < 30 {
		t.Errorf("only %d calls of compile were found", names)
	}
}

var compiled sync.Map // output name -> func() error

// compile builds a source of testdata/programs once; tool is a C or C++ compiler or rustc. A machine of the lab has no compiler: what
// testdata/programs/built.json names is built before it starts, and lies in its PATH (lab/programs.go).
func compile(t *testing.T, tool, name, source string, args ...string) string {
	t.Helper()
	p := program{Name: name, Tool: tool, Args: append([]string{filepath.Join("testdata", "programs", source)}, args...)}
	if strings.HasSuffix(source, ".c") {
		p.Args = append([]string{"-I", filepath.Join("..", "..", "guest", "sdk", "c"), "-Wall", "-Werror"}, append(p.Args, "-lm")...)
	}
	return p.build(t)
}

// build makes the program, once in a run of the tests.
func (p program) build(t *testing.T) string {
	t.Helper()
	p.known(t)
	carried, err := exec.LookPath(carriedAs + p.Name)
	if lab := testenv.Has(testenv.LabMachine); err != nil || !lab {
		testenv.Need(t, testenv.Tool(p.Tool))
		carried = ""
	}
	out := filepath.Join(shared, p.Name)
	once, _ := compiled.LoadOrStore(p.Name, sync.OnceValue(func() error {
		if carried != "" {
			b, err := os.ReadFile(carried)
			if err != nil {
				return err
			}
			return os.WriteFile(out, b, 0o755) // a program and its first thread are called as the file is
		}
		c := exec.Command(p.Tool, append([]string{"-o", out}, p.Args...)...)
		if p.Tool == "go" {
			c = exec.Command("go", append([]string{"build", "-buildvcs=false", "-o", out}, p.Args...)...)
			c.Env = append(os.Environ(), "CGO_ENABLED=0")
		}
		if b, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %q: %w\n%s", p.Tool, p.Args, err, b)
		}
		return nil
	}))
	if err := once.(func() error)(); err != nil {
		t.Fatal(err)
	}
	return out
}
