package policy

import (
	"path/filepath"
	"strings"
	"testing"
)

// rule is one thing that must hold of the whole tree. check returns one line per violation.
type rule struct {
	name  string
	check func(*tree) []string
}

var rules = []rule{
	{"imports", checkImports},
	{"cgo", checkCgo},
	{"unsafe", checkUnsafe},
	{"nosplit", checkNosplit},
	{"prints", checkPrints},
	{"ioctl", checkIoctl},
	{"order-uses", checkOrderUses},
	{"order-tags", checkOrderTags},
	{"skip", checkSkip},
	{"doc.go", checkDocGo},
	{"doc-comments", checkDocComments},
	{"errors", checkErrors},
	{"shape", checkShape},
	{"docs-names", checkDocsNames},
	{"commands", checkCommands},
	{"specification", checkSpecification},
	{"maintainers", checkMaintainers},
	{"codeowners", checkCodeowners},
	{"changelog", checkChangelog},
	{"words", checkWords},
}

func TestRepository(t *testing.T) {
	tr := repository(t)
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			for _, v := range r.check(tr) {
				t.Error(v)
			}
		})
	}
}

// TestRulesBite runs each rule on trees that break it. It demands exactly the violations that the
// example lists: a rule that says too much is as useless as one that says nothing.
func TestRulesBite(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	bitten := map[string]bool{}
	for _, file := range files {
		name, want, tr := example(t, file)
		t.Run(filepath.Base(file), func(t *testing.T) {
			for _, r := range rules {
				if r.name != name {
					continue
				}
				bitten[name] = bitten[name] || len(want) > 0
				got := r.check(tr)
				for _, g := range got {
					if !matchesOne(g, want) {
						t.Errorf("says too much: %s", g)
					}
				}
				for _, w := range want {
					if !matchesOne(strings.Join(got, "\n"), []string{w}) {
						t.Errorf("does not see: %s\nit says: %q", w, got)
					}
				}
				return
			}
			t.Errorf("%s: no rule is called %q", file, name)
		})
	}
	for _, r := range rules {
		if !bitten[r.name] {
			t.Errorf("rule %s: no testdata/*.txtar breaks it, so nobody knows whether it bites", r.name)
		}
	}
}

func matchesOne(s string, subs []string) bool {
	for _, sub := range subs {
		if strings.Contains(s, sub) {
			return true
		}
	}
	return false
}
