package policy

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
)

// area is one section of MAINTAINERS.
type area struct {
	title string
	line  int
	keys  map[string][]string // "M", "F", "D", "U"
}

// areas reads MAINTAINERS from its first section on: a title line, then lines `X: value`.
func (t *tree) areas() (out []area, problems []string) {
	text, ok := t.files["MAINTAINERS"]
	if !ok {
		return nil, []string{"MAINTAINERS: missing"}
	}
	_, body, ok := strings.Cut("\n"+string(text), "\n---\n")
	if !ok {
		return nil, []string{"MAINTAINERS: no line `---` between the introduction and the areas"}
	}
	n := strings.Count(string(text), "\n") - strings.Count(body, "\n")
	for _, l := range strings.Split(body, "\n") {
		n++
		key, value, isKey := strings.Cut(l, ":")
		switch {
		case strings.TrimSpace(l) == "":
		case isKey && len(key) == 1 && strings.Contains("MFDU", key):
			if len(out) == 0 {
				problems = append(problems, fmt.Sprintf("MAINTAINERS:%d: %q before the first title", n, l))
				continue
			}
			a := &out[len(out)-1]
			a.keys[key] = append(a.keys[key], strings.TrimSpace(value))
		case isKey && len(key) == 1:
			problems = append(problems, fmt.Sprintf("MAINTAINERS:%d: unknown key %q", n, key))
		default:
			out = append(out, area{strings.TrimSpace(l), n, map[string][]string{}})
		}
	}
	return out, problems
}

// checkMaintainers: every path has somebody who answers for it, and nobody answers for what is gone.
func checkMaintainers(t *tree) []string {
	areas, out := t.areas()
	if areas == nil {
		return out
	}
	covered := map[string]bool{}
	for _, a := range areas {
		for _, k := range []string{"M", "F"} {
			if len(a.keys[k]) == 0 {
				out = append(out, fmt.Sprintf("MAINTAINERS:%d: %s has no line %s:", a.line, a.title, k))
			}
		}
		for _, k := range []string{"F", "D"} {
			for _, f := range a.keys[k] {
				if !t.has(f) {
					out = append(out, fmt.Sprintf("MAINTAINERS:%d: %s: there is no %s", a.line, a.title, f))
				}
				if k == "F" {
					covered[strings.SplitN(f, "/", 2)[0]] = true
				}
			}
		}
	}
	for _, p := range t.topLevel() {
		if !covered[p] {
			out = append(out, "MAINTAINERS: nobody has "+p)
		}
	}
	return out
}

// codeowners writes CODEOWNERS from MAINTAINERS. The last match wins there, so longer paths come later.
func (t *tree) codeowners() string {
	areas, _ := t.areas()
	var lines []string
	for _, a := range areas {
		for _, f := range a.keys["F"] {
			lines = append(lines, "/"+f+" "+strings.Join(a.keys["M"], " "))
		}
	}
	sort.SliceStable(lines, func(i, j int) bool {
		if a, b := strings.Count(lines[i], "/"), strings.Count(lines[j], "/"); a != b {
			return a < b
		}
		return lines[i] < lines[j]
	})
	return "# Made from MAINTAINERS by `make codeowners`: edit that.\n" + strings.Join(lines, "\n") + "\n"
}

func checkCodeowners(t *tree) []string {
	if string(t.files["CODEOWNERS"]) != t.codeowners() {
		return []string{"CODEOWNERS differs from MAINTAINERS: run `make codeowners`"}
	}
	return nil
}

// TestWriteCodeowners is the generator behind `make codeowners`; without CLOISTER_WRITE=codeowners it
// only shows that the generator makes something.
func TestWriteCodeowners(t *testing.T) {
	text := repository(t).codeowners()
	if !strings.Contains(text, "/internal/") {
		t.Errorf("no owner for /internal/ in:\n%s", text)
	}
	if os.Getenv("CLOISTER_WRITE") == "codeowners" {
		if err := os.WriteFile(filepath.Join(root(t), "CODEOWNERS"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
