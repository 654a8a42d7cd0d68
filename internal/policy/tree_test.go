package policy

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
)

const module = "github.com/cloister-vmm/cloister"

// tree is a set of files, by slash-separated path from the repository's root.
type tree struct {
	files map[string][]byte
	fset  *token.FileSet
	asts  map[string]*ast.File
}

func newTree(files map[string][]byte) *tree {
	return &tree{files: files, fset: token.NewFileSet(), asts: map[string]*ast.File{}}
}

// paths lists the files that end in one of the suffixes (all without one), sorted.
func (t *tree) paths(suffixes ...string) []string {
	var out []string
	for p := range t.files {
		ok := len(suffixes) == 0
		for _, s := range suffixes {
			ok = ok || strings.HasSuffix(p, s)
		}
		if ok {
			out = append(out, p)
		}
	}
	sort.Strings(out)
	return out
}

// text lists the files that are text and no broken example of this package.
func (t *tree) text(suffixes ...string) []string {
	var out []string
	for _, p := range t.paths(suffixes...) {
		if !strings.HasPrefix(p, "internal/policy/testdata/") && bytes.IndexByte(t.files[p], 0) < 0 {
			out = append(out, p)
		}
	}
	return out
}

// goFiles lists the Go files that the toolchain would see: none under testdata, `_` or `.`.
func (t *tree) goFiles() []string {
	var out []string
next:
	for _, p := range t.paths(".go") {
		for _, part := range strings.Split(p, "/") {
			if part == "testdata" || part[0] == '_' || part[0] == '.' {
				continue next
			}
		}
		out = append(out, p)
	}
	return out
}

// productGo lists goFiles without tests.
func (t *tree) productGo() []string {
	var out []string
	for _, p := range t.goFiles() {
		if !strings.HasSuffix(p, "_test.go") {
			out = append(out, p)
		}
	}
	return out
}

// ast parses a Go file once. A file that does not parse gives what was understood of it: the compiler
// is there to complain.
func (t *tree) ast(p string) *ast.File {
	if f, ok := t.asts[p]; ok {
		return f
	}
	f, err := parser.ParseFile(t.fset, p, t.files[p], parser.ParseComments|parser.SkipObjectResolution)
	if f == nil {
		f = &ast.File{Name: ast.NewIdent("_")}
	}
	_ = err // see above
	t.asts[p] = f
	return f
}

func (t *tree) at(n ast.Node) string {
	p := t.fset.Position(n.Pos())
	return fmt.Sprintf("%s:%d", p.Filename, p.Line)
}

// has reports whether p names a file, a folder, or (with *) a pattern that matches a file.
func (t *tree) has(p string) bool {
	p = strings.TrimSuffix(p, "/")
	if _, ok := t.files[p]; ok {
		return true
	}
	for f := range t.files {
		if strings.HasPrefix(f, p+"/") {
			return true
		}
		if strings.Contains(p, "*") {
			for g := f; g != "."; g = path.Dir(g) {
				if ok, err := path.Match(p, g); err == nil && ok {
					return true
				}
			}
		}
	}
	return false
}

// topLevel lists the first components of all paths.
func (t *tree) topLevel() []string {
	seen := map[string]bool{}
	for p := range t.files {
		seen[strings.SplitN(p, "/", 2)[0]] = true
	}
	var out []string
	for p := range seen {
		out = append(out, p)
	}
	sort.Strings(out)
	return out
}

func root(t *testing.T) string {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the working directory: run the tests inside the repository")
		}
	}
}

func git(dir string, args ...string) (string, error) {
	cmd := exec.Command("git", append([]string{"-c", "safe.directory=*", "-C", dir}, args...)...)
	out, err := cmd.Output()
	return string(out), err
}

// repository reads the files of invariant 1; a copy without .git is read as it lies there.
func repository(t *testing.T) *tree {
	t.Helper()
	dir, files := root(t), map[string][]byte{}
	add := func(p string) {
		info, err := os.Lstat(filepath.Join(dir, p))
		if err != nil || !info.Mode().IsRegular() {
			return // removed from the work tree, or a link: nothing to read
		}
		data, err := os.ReadFile(filepath.Join(dir, p))
		if err != nil {
			t.Fatal(err)
		}
		files[p] = data
	}
	if _, err := os.Stat(filepath.Join(dir, ".git")); err == nil {
		out, err := git(dir, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
		if err != nil {
			t.Fatalf("git ls-files in %s: %v (is git installed?)", dir, err)
		}
		for _, p := range strings.Split(out, "\x00") {
			if p != "" {
				add(p)
			}
		}
		return newTree(files)
	}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if d.IsDir() && (rel == "bin" || rel == "build") {
			return filepath.SkipDir
		}
		if d.Type().IsRegular() {
			add(filepath.ToSlash(rel))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return newTree(files)
}

// example reads a broken tree; its comment holds `rule: NAME` and lines `want: TEXT`.
func example(t *testing.T, file string) (rule string, want []string, tr *tree) {
	t.Helper()
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(a.Comment), "\n") {
		if v, ok := strings.CutPrefix(line, "rule: "); ok {
			rule = v
		}
		if v, ok := strings.CutPrefix(line, "want: "); ok {
			want = append(want, v)
		}
	}
	files := map[string][]byte{}
	for _, f := range a.Files {
		files[f.Name] = f.Data
	}
	return rule, want, newTree(files)
}
