package policy

import (
	"fmt"
	"go/ast"
	"path"
	"regexp"
	"sort"
	"strings"
)

var (
	codeSpan = regexp.MustCompile("`([^`\n]+)`")
	fence    = regexp.MustCompile("(?ms)^ *```.*?^ *```")
	mdLink   = regexp.MustCompile(`\]\(([^)#\s]+)[^)]*\)`)
	docPath  = regexp.MustCompile(`\bdocs/[\w./-]*\w\.(?:md|json)\b`)
	docPart  = regexp.MustCompile(`\b(docs/[\w/-]+\.md),? (?:"([^"]+)"|(O[0-9]+)\b)`)
	testName = regexp.MustCompile(`^(?:[\w/]+\.)?(?:Test|Fuzz|Benchmark)[A-Z]\w*$`)
	goName   = regexp.MustCompile(`^([a-z]\w*)\.([A-Z]\w*)(?:\.(\w+))?(?:\(.*\))?$`)
	repoPath = regexp.MustCompile(`^[\w.*@-]+(?:/[\w.*@-]+)*/?$`)
	makeRun  = regexp.MustCompile(`^make ([a-z][\w-]*)`)
	target   = regexp.MustCompile(`(?m)^([a-z][\w-]*)\s*:[^=]`)
	pending  = regexp.MustCompile(`pending \(issue [0-9]+\)`)
)

// identifiers gives, for each package name, the names that its files declare: top-level ones, methods
// and fields together. Folders with the same package name are one.
func (t *tree) identifiers() map[string]map[string]bool {
	out := map[string]map[string]bool{}
	for _, p := range t.goFiles() {
		f := t.ast(p)
		if strings.HasSuffix(p, "_test.go") || f.Name.Name == "main" {
			continue
		}
		names := out[f.Name.Name]
		if names == nil {
			names = map[string]bool{}
			out[f.Name.Name] = names
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				names[n.Name.Name] = true
				return false
			case *ast.TypeSpec:
				names[n.Name.Name] = true
			case *ast.Field:
				for _, id := range n.Names {
					names[id.Name] = true
				}
			case *ast.ValueSpec:
				for _, id := range n.Names {
					names[id.Name] = true
				}
			}
			return true
		})
	}
	return out
}

// tests gives the names of all test functions, alone and after their folder (vcpu.TestStop).
func (t *tree) tests() map[string]bool {
	out := map[string]bool{}
	for _, p := range t.goFiles() {
		if strings.HasSuffix(p, "_test.go") {
			for _, d := range t.ast(p).Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && testName.MatchString(fn.Name.Name) {
					out[fn.Name.Name], out[path.Dir(p)+"."+fn.Name.Name] = true, true
				}
			}
		}
	}
	return out
}

func (t *tree) makeTargets() map[string]bool {
	out := map[string]bool{}
	for _, p := range t.text("Makefile", ".mk") {
		for _, m := range target.FindAllStringSubmatch(string(t.files[p]), -1) {
			out[m[1]] = true
		}
	}
	return out
}

// history says whether a document records the past, where names may be gone.
func history(p string) bool {
	return p == "CHANGELOG.md" || strings.HasPrefix(p, "docs/decisions/")
}

// checkDocsNames: what a document calls by name exists: files, packages' names, tests, make targets,
// links. A line that says "pending (issue N)" speaks of the future and is free. Comments in code are
// held to the documents they point at.
func checkDocsNames(t *tree) []string {
	var out []string
	ids, tests, targets := t.identifiers(), t.tests(), t.makeTargets()
	top := map[string]bool{}
	for _, n := range t.topLevel() {
		top[n] = true
	}
	for _, p := range t.text() {
		lines := strings.Split(string(t.files[p]), "\n")
		for i, l := range lines {
			if strings.HasPrefix(p, "internal/policy/") || pending.MatchString(l) || history(p) {
				continue
			}
			for _, m := range docPart.FindAllStringSubmatch(l, -1) {
				if doc, ok := t.files[m[1]]; ok && !headed(string(doc), m[2]+m[3]) {
					out = append(out, fmt.Sprintf("%s:%d: %s has no heading with %q", p, i+1, m[1], m[2]+m[3]))
				}
			}
			for _, m := range docPath.FindAllString(l, -1) {
				if !t.has(m) && !strings.Contains(l, "://") {
					out = append(out, fmt.Sprintf("%s:%d: there is no %s", p, i+1, m))
				}
			}
		}
	}
	for _, p := range t.text(".md") {
		prose := fence.ReplaceAllStringFunc(string(t.files[p]), func(s string) string {
			return strings.Repeat("\n", strings.Count(s, "\n"))
		})
		for i, l := range strings.Split(prose, "\n") {
			say := func(format string, a ...any) {
				out = append(out, fmt.Sprintf("%s:%d: ", p, i+1)+fmt.Sprintf(format, a...))
			}
			for _, m := range mdLink.FindAllStringSubmatch(l, -1) {
				if !strings.Contains(m[1], ":") && !t.has(path.Join(path.Dir(p), m[1])) {
					say("the link to %s leads nowhere", m[1])
				}
			}
			if pending.MatchString(l) || history(p) {
				continue
			}
			for _, m := range codeSpan.FindAllStringSubmatch(l, -1) {
				s := m[1]
				if testName.MatchString(s) {
					if !tests[s] {
						say("there is no test %s", s)
					}
					continue
				}
				if g := makeRun.FindStringSubmatch(s); g != nil && !targets[g[1]] {
					say("make has no target %s", g[1])
				}
				if g := goName.FindStringSubmatch(s); g != nil && ids[g[1]] != nil {
					if !ids[g[1]][g[2]] || g[3] != "" && !ids[g[1]][g[3]] {
						say("package %s declares no %s", g[1], strings.TrimPrefix(s, g[1]+"."))
					}
				}
				s, _, _ = strings.Cut(s, ":")
				if strings.Contains(s, "/") && repoPath.MatchString(s) && top[strings.SplitN(s, "/", 2)[0]] && !docPath.MatchString(s) &&
					!t.has(strings.TrimSuffix(s, "/...")) {
					say("there is no %s", s)
				}
			}
		}
	}
	sort.Strings(out)
	return out
}

// headed reports whether a heading of the document opens with the words.
func headed(doc, words string) bool {
	for _, l := range strings.Split(doc, "\n") {
		if h := strings.TrimLeft(l, "#"); h != l && strings.HasPrefix(strings.TrimSpace(h), words) {
			return true
		}
	}
	return false
}

// checkSpecification: every promise has a bound, a machine, and a test or make target that enforces it,
// or says which issue will.
func checkSpecification(t *tree) []string {
	const p = "SPECIFICATION.md"
	text, ok := t.files[p]
	if !ok {
		return []string{p + ": missing"}
	}
	var out []string
	tests, targets, seen := t.tests(), t.makeTargets(), map[string]bool{}
	for i, l := range strings.Split(string(text), "\n") {
		if !strings.HasPrefix(l, "| S") {
			continue
		}
		say := func(format string, a ...any) {
			out = append(out, fmt.Sprintf("%s:%d: ", p, i+1)+fmt.Sprintf(format, a...))
		}
		cells := strings.Split(strings.Trim(l, "| "), "|")
		if len(cells) != 5 {
			say("want five cells (id, promise, bound, machine, enforced by), not %d", len(cells))
			continue
		}
		for j := range cells {
			if cells[j] = strings.TrimSpace(cells[j]); cells[j] == "" {
				say("cell %d is empty", j+1)
			}
		}
		if seen[cells[0]] {
			say("a second %s", cells[0])
		}
		seen[cells[0]] = true
		enforced := pending.MatchString(cells[4])
		for _, m := range codeSpan.FindAllStringSubmatch(cells[4], -1) {
			switch g := makeRun.FindStringSubmatch(m[1]); {
			case tests[m[1]], g != nil && targets[g[1]]:
				enforced = true
			case !pending.MatchString(cells[4]):
				say("there is no %s", m[1])
			}
		}
		if !enforced {
			say("%s: name a test or a make target, or say \"pending (issue N)\"", cells[0])
		}
	}
	if len(seen) == 0 {
		out = append(out, p+": no row opens with `| S`")
	}
	return out
}

// checkChangelog: what users see changes only with a line for them.
func checkChangelog(t *tree) []string {
	_, rest, ok := strings.Cut("\n"+string(t.files["CHANGELOG.md"]), "\n## Unreleased\n")
	if !ok {
		return []string{"CHANGELOG.md: no section `## Unreleased`"}
	}
	body, _, _ := strings.Cut("\n"+rest, "\n## ")
	if !strings.Contains(body, "\n- ") {
		return []string{"CHANGELOG.md: the section `## Unreleased` has no entry"}
	}
	return nil
}

// forbidden are words that tie the repository to one machine or network, or that point at papers which
// its readers do not have. They are spelt in pieces so that this file passes.
var forbidden = []struct{ word, why string }{
	{"/wo" + "rk/", "a path of one machine"},
	{"/root" + "/go", "a path of one machine"},
	{"/root" + "/.cargo", "a path of one machine"},
	{"/home" + "/", "a path of one machine"},
	{"/tmp/" + "bash_jobs", "a path of one machine"},
	{"proxy." + "golang.org", "a registry: builds take what the user's configuration says"},
	{"sum." + "golang.org", "a registry: builds take what the user's configuration says"},
	{"index." + "crates.io", "a registry: builds take what the user's configuration says"},
	{"static." + "crates.io", "a registry: builds take what the user's configuration says"},
	{"pypi" + ".org", "a registry: builds take what the user's configuration says"},
	{"deb." + "debian.org", "a registry: apt takes what the user's configuration says"},
	{"snapshot." + "debian.org", "a registry: apt takes what the user's configuration says"},
	{"../" + "shared/", "a paper that is not in the repository"},
	{"vcpu-thread-" + "study", "a paper that is not in the repository: cite docs/decisions"},
	{"patching-and-" + "jitter", "a paper that is not in the repository: cite docs/decisions"},
	{"elf-guest" + ".md", "a paper that is not in the repository: cite docs/decisions"},
	{"platform" + ".md", "a paper that is not in the repository: cite docs/decisions"},
	{"lab-recipe" + ".md", "a paper that is not in the repository: cite docs/lab.md"},
	{"anchors" + ".md", "a paper that is not in the repository"},
	{"design" + ".md", "a paper that is not in the repository: cite docs/architecture.md"},
	{"TO" + "DO", "unfinished work belongs in an issue"},
	{"FIX" + "ME", "unfinished work belongs in an issue"},
}

func checkWords(t *tree) []string {
	var out []string
	for _, p := range t.text() {
		if p == "go.sum" {
			continue
		}
		for i, l := range strings.Split(string(t.files[p]), "\n") {
			for _, f := range forbidden {
				if strings.Contains(l, f.word) {
					out = append(out, fmt.Sprintf("%s:%d: %q: %s", p, i+1, f.word, f.why))
				}
			}
		}
	}
	return out
}
