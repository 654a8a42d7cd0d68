package policy

import (
	"fmt"
	"go/ast"
	"path"
	"regexp"
	"sort"
	"strings"
	"testing"
)

// checkUnsafe: review slows down where the file name says so, and only there.
func checkUnsafe(t *tree) []string {
	var out []string
	for _, p := range t.goFiles() {
		base := strings.TrimSuffix(strings.TrimSuffix(p, ".go"), "_test")
		marked := strings.HasSuffix(base, "_unsafe")
		imports := false
		for _, im := range t.ast(p).Imports {
			imports = imports || im.Path.Value == `"unsafe"`
		}
		switch {
		case imports && !marked:
			out = append(out, p+": imports unsafe: rename it to *_unsafe.go (tests: *_unsafe_test.go)")
		case marked && !imports:
			out = append(out, p+": is called _unsafe but does not import unsafe: drop the suffix")
		}
	}
	return out
}

// checkNosplit: a nosplit function runs on a stack that cannot grow, often on a thread that the runtime
// does not know. fmt has no place near it.
func checkNosplit(t *tree) []string {
	var out []string
	for _, p := range t.productGo() {
		f := t.ast(p)
		var nosplit bool
		for _, g := range f.Comments {
			for _, c := range g.List {
				nosplit = nosplit || strings.HasPrefix(c.Text, "//go:nosplit")
			}
		}
		for _, im := range f.Imports {
			if nosplit && im.Path.Value == `"fmt"` {
				out = append(out, t.at(im)+": fmt in a file with //go:nosplit: move one of them to another file")
			}
		}
	}
	return out
}

// checkPrints: no debug prints in the product (review, point 3). println and print are the compiler's
// own, for debugging only.
func checkPrints(t *tree) []string {
	var out []string
	for _, p := range t.productGo() {
		ast.Inspect(t.ast(p), func(n ast.Node) bool {
			if c, ok := n.(*ast.CallExpr); ok {
				if id, ok := c.Fun.(*ast.Ident); ok && (id.Name == "println" || id.Name == "print") {
					out = append(out, t.at(n)+": "+id.Name+"() is a debug print: count it, return it, or trace it")
				}
			}
			return true
		})
	}
	return out
}

var (
	ioctlNumber = regexp.MustCompile(`(?i)\b0x[0-9a-f]{0,6}ae[0-9a-f]{2}\b`) // KVMIO is 0xAE, include/uapi/linux/kvm.h
	ioctlCall   = regexp.MustCompile(`\b(unix|syscall)\.SYS_IOCTL\b|\bSYS_ioctl\b`)
)

// checkIoctl: KVM ioctls are made in internal/kvm only. The one exception is KVM_RUN (0xae80): the loop
// of vcpu makes it in assembly, on a thread that cannot call Go. A lab machine's init holds a VM that never
// runs; the lab may not link internal/kvm (see the import rules). x/sys has no typed calls for the listener of a
// seccomp filter, which a native run answers.
func checkIoctl(t *tree) []string {
	var out []string
	for _, p := range t.text(".go", ".s") {
		if strings.HasPrefix(p, "internal/kvm/") || strings.HasPrefix(p, "internal/policy/") || strings.HasSuffix(p, "_test.go") {
			continue
		}
		loop := path.Dir(p) == "vcpu"
		held := path.Dir(p) == "lab/init"
		served := path.Dir(p) == "guest/linux" // the guest's own ioctls, made on its behalf
		seccomp := path.Dir(p) == "cmd/internal/bare"
		for i, line := range strings.Split(string(t.files[p]), "\n") {
			number := ioctlNumber.FindString(line)
			if number != "" && strings.Contains(strings.ToLower(line), "kvm") && !(loop && strings.EqualFold(number, "0xae80")) && !(held && (number == "0xae01" || number == "0xae41")) {
				out = append(out, fmt.Sprintf("%s:%d: %s is the number of a KVM ioctl: only internal/kvm makes them", p, i+1, number))
			}
			if m := ioctlCall.FindString(line); m != "" && !served && !(seccomp && strings.Contains(line, "SECCOMP_IOCTL_")) && !(loop && strings.HasSuffix(p, ".s")) {
				out = append(out, fmt.Sprintf("%s:%d: %s: raw ioctls belong to internal/kvm; for others use x/sys/unix's typed calls", p, i+1, m))
			}
		}
	}
	return out
}

// checkSkip: a skip is a claim about the machine, made in one place that can be held to it.
func checkSkip(t *tree) []string {
	var out []string
	for _, p := range t.goFiles() {
		if !strings.HasSuffix(p, "_test.go") && !importsPath(t.ast(p), "testing") || strings.HasPrefix(p, "internal/testenv/") {
			continue
		}
		ast.Inspect(t.ast(p), func(n ast.Node) bool {
			if c, ok := n.(*ast.CallExpr); ok {
				if s, ok := c.Fun.(*ast.SelectorExpr); ok {
					switch s.Sel.Name {
					case "Skip", "Skipf", "SkipNow":
						out = append(out, t.at(n)+": "+s.Sel.Name+": say what the test needs through internal/testenv instead")
					}
				}
			}
			return true
		})
	}
	return out
}

// Who looks for skips with grep finds the helper and nothing else: no text that only looks like one hides a real one.
func TestGrepFindsOneSkip(t *testing.T) {
	tr := repository(t)
	looks := regexp.MustCompile(`\bt[.]Skip`)
	found := false
	for _, p := range tr.paths() {
		for i, line := range strings.Split(string(tr.files[p]), "\n") {
			switch {
			case !looks.MatchString(line):
			case p == "internal/testenv/testenv.go":
				found = true
			default:
				t.Errorf("%s:%d: %s", p, i+1, line)
			}
		}
	}
	if !found {
		t.Error("the helper of internal/testenv does not skip, or does so by another name")
	}
}

func importsPath(f *ast.File, p string) bool {
	for _, im := range f.Imports {
		if im.Path.Value == `"`+p+`"` {
			return true
		}
	}
	return false
}

// checkDocGo: every package says in doc.go what it is for. A command may say it in main.go, as users of
// `go doc` expect.
func checkDocGo(t *tree) []string {
	var out []string
	dirs := map[string]string{}
	for _, p := range t.goFiles() {
		if name := t.ast(p).Name.Name; !strings.HasSuffix(name, "_test") && name != "_" {
			dirs[path.Dir(p)] = name
		}
	}
	for dir, name := range dirs {
		p := path.Join(dir, "doc.go")
		if _, ok := t.files[p]; !ok && name == "main" {
			p = path.Join(dir, "main.go")
		}
		if _, ok := t.files[p]; !ok {
			out = append(out, p+": missing: purpose, numbered invariants, alternatives rejected")
			continue
		}
		doc := t.ast(p).Doc.Text()
		if name != "main" && !strings.HasPrefix(doc, "Package "+name+" ") {
			out = append(out, fmt.Sprintf("%s: must open with %q right above the package clause", p, "// Package "+name+" …"))
		}
		if len(strings.Fields(doc)) < 12 {
			out = append(out, p+": says too little to be of use")
		}
	}
	sort.Strings(out)
	return out
}
