package policy

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The form of a commit (CONTRIBUTING.md): the subject says what, the body argues.
var (
	subjectForm = regexp.MustCompile(`^[a-z0-9_.][a-z0-9_./,{}* -]*: [a-z].*[^.]$`)
	bodyNeeds   = []struct {
		word *regexp.Regexp
		what string
	}{
		{regexp.MustCompile(`(?i)\bwhy\b|\bbecause\b`), "why"},
		{regexp.MustCompile(`(?i)\bcorrect`), "why it is correct"},
		{regexp.MustCompile(`(?i)\btested\b`), "how it was tested"},
	}
)

func lintCommit(subject, body string) (out []string) {
	if len(subject) > 72 {
		out = append(out, fmt.Sprintf("the subject has %d characters, more than 72", len(subject)))
	}
	if !subjectForm.MatchString(subject) {
		out = append(out, "the subject is not `package: verb …` in lower case without a full stop")
	}
	for _, n := range bodyNeeds {
		if !n.word.MatchString(body) {
			out = append(out, "the body does not say "+n.what)
		}
	}
	return out
}

func TestLintCommit(t *testing.T) {
	const good = "Why: a kick could be lost.\nWhy it is correct: O1.\nTested: unit, kvm (6.18), 10^6 kicks."
	for _, c := range []struct{ subject, body, want string }{
		{"vcpu: re-send the kick until it is acknowledged", good, ""},
		{"guest/elf, vmm: refuse segments that wrap", good, ""},
		{"Fix bug", good, "package: verb"},
		{"vcpu: Fix bug", good, "package: verb"},
		{"vcpu: fix bug.", good, "package: verb"},
		{"vcpu: " + strings.Repeat("x", 70), good, "more than 72"},
		{"vcpu: fix bug", "Correct. Tested.", "does not say why"},
		{"vcpu: fix bug", "Why: it was wrong. Tested.", "why it is correct"},
		{"vcpu: fix bug", "Why: it was wrong. Correct, as O1 says.", "how it was tested"},
	} {
		got := lintCommit(c.subject, c.body)
		if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
			t.Errorf("%q, %q: got %q, want %q", c.subject, c.body, got, c.want)
		}
	}
}

// TestCommits reads the history that this clone has. Merges are exempt: they argue nothing of their own.
func TestCommits(t *testing.T) {
	dir := root(t)
	if _, err := os.Stat(filepath.Join(dir, ".git")); err != nil {
		t.Log("no .git here (a copy without history): no commits to read")
		return
	}
	if _, err := git(dir, "rev-parse", "--verify", "--quiet", "HEAD"); err != nil {
		t.Log("no commit yet")
		return
	}
	out, err := git(dir, "log", "--no-merges", "--format=%h%x00%s%x00%b%x01")
	if err != nil {
		t.Fatalf("git log: %v", err)
	}
	for _, c := range strings.Split(out, "\x01") {
		f := strings.SplitN(strings.TrimSpace(c), "\x00", 3)
		if len(f) != 3 {
			continue
		}
		for _, v := range lintCommit(f[1], f[2]) {
			t.Errorf("commit %s %q: %s", f[0], f[1], v)
		}
	}
}
