package vcpu

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
)

// callees is all that the code of the vCPU's thread may call: itself, our assembly, and what the compiler
// puts for a copy of a struct, which is a leaf without a stack check.
var callees = regexp.MustCompile(`^(` +
	`github.com/cloister-vmm/cloister/internal/kvm\.(RunRaw|IoctlRaw|TSC)` +
	`|runtime\.(memmove|duffcopy|duffzero)` +
	`)$`)

// own is the functions of loop.go, book.go and park.go, and those that raw_amd64.s defines.
func own(t *testing.T) (loop, asm map[string]bool) {
	t.Helper()
	loop, asm = map[string]bool{}, map[string]bool{}
	for file, into := range map[string]map[string]bool{"loop.go": loop, "book.go": loop, "park.go": loop, "raw_amd64.go": asm} {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			into[fn.Name.Name] = true
			if file != "raw_amd64.go" {
				for _, want := range []string{"//go:nosplit", "//go:norace"} {
					if fn.Doc == nil || !strings.Contains(commentText(fn.Doc), want) {
						t.Errorf("%s: no %s: it runs without a g", fn.Name.Name, want)
					}
				}
			}
		}
	}
	return loop, asm
}

func commentText(g *ast.CommentGroup) string {
	var b strings.Builder
	for _, c := range g.List {
		b.WriteString(c.Text + "\n")
	}
	return b.String()
}

var (
	textLine  = regexp.MustCompile(`^TEXT (\S+)\(SB\)`)
	callReloc = regexp.MustCompile(`R_CALL:([^\s<\]]+)`)
)

// forbidden finds, in a disassembly, the calls that the thread's functions must not make.
func forbidden(dump string, loop, asm map[string]bool) (bad []string, seen map[string]bool) {
	const pkg = "github.com/cloister-vmm/cloister/vcpu."
	seen = map[string]bool{}
	name, watch := "", false
	for _, line := range strings.Split(dump, "\n") {
		if m := textLine.FindStringSubmatch(line); m != nil {
			name = strings.TrimPrefix(m[1], pkg)
			watch = loop[name] || asm[name]
			if watch {
				seen[name] = true
			}
			continue
		}
		if !watch {
			continue
		}
		if m := callReloc.FindStringSubmatch(line); m != nil {
			to := strings.TrimPrefix(m[1], pkg)
			if !loop[to] && !asm[to] && !callees.MatchString(to) {
				bad = append(bad, name+" calls "+to)
			}
		} else if strings.Contains(line, "CALL ") && !strings.Contains(line, "R_") {
			bad = append(bad, name+": a call through a register: "+strings.TrimSpace(line))
		}
		// The stack check of a function that may split: g's limit, at 16(R14) where R14 is g.
		if strings.Contains(line, "CMPQ SP, 0x10(R14)") || strings.Contains(line, "morestack") {
			bad = append(bad, name+" checks its stack, which needs a g")
		}
	}
	return bad, seen
}

func disassemble(t *testing.T) string {
	t.Helper()
	testenv.Need(t, testenv.Tool("go"))
	out := filepath.Join(t.TempDir(), "vcpu.a")
	if b, err := exec.Command("go", "build", "-o", out, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, b)
	}
	b, err := exec.Command("go", "tool", "objdump", out).Output()
	if err != nil {
		t.Fatalf("go tool objdump: %v", err)
	}
	return string(b)
}

// TestCallees: no function of the vCPU's thread calls anything but the list above. A bounds check would
// show as a call of runtime.panicIndex, an allocation as runtime.newobject, fmt as itself.
func TestCallees(t *testing.T) {
	loop, asm := own(t)
	bad, seen := forbidden(disassemble(t), loop, asm)
	for _, b := range bad {
		t.Error(b)
	}
	for _, want := range []string{"loop", "park", "parkStep", "take", "leaveOffer", "handOver", "classify", "account", "end", "load64", "spawn"} {
		if !seen[want] {
			t.Errorf("%s is not in the disassembly", want)
		}
	}
}

// TestCalleesCanFail: the search sees what it is there to see, in functions of this package that do it.
func TestCalleesCanFail(t *testing.T) {
	bad, _ := forbidden(disassemble(t), map[string]bool{"newControl": true, "New": true}, nil)
	all := strings.Join(bad, "\n")
	for _, want := range []string{"fmt.errorf", "runtime.newobject", "checks its stack"} {
		if !strings.Contains(all, want) {
			t.Errorf("%s in newControl or New is not found in:\n%s", want, all)
		}
	}
}
