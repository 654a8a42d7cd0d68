package policy

import (
	"fmt"
	"regexp"
	"strings"
)

var (
	commandLine = regexp.MustCompile(`^\W*(?:bin/)?cloister ([a-z]+)( .*)?$`)
	longFlag    = regexp.MustCompile(`(?:^|[ |\[(])--([a-z][a-z-]*)`)
)

// checkCommands: a document shows no sub-command and no flag that the command line does not have. Looked
// at are code spans that begin with `cloister ` or `--`, and the lines of code blocks that call cloister.
// The command line has what its sources name as a string.
func checkCommands(t *tree) []string {
	var source strings.Builder
	for _, p := range t.productGo() {
		if strings.HasPrefix(p, "cmd/") {
			source.Write(t.files[p])
		}
	}
	if source.Len() == 0 {
		return []string{"cmd: no sources"}
	}
	knows := func(word string) bool { return strings.Contains(source.String(), `"`+word+`"`) }

	var out []string
	for _, p := range t.text(".md") {
		if history(p) {
			continue
		}
		fenced := false
		for i, l := range strings.Split(string(t.files[p]), "\n") {
			if strings.HasPrefix(strings.TrimSpace(l), "```") {
				fenced = !fenced
				continue
			}
			if pending.MatchString(l) {
				continue
			}
			var shown []string
			if fenced || strings.HasPrefix(l, "    ") {
				if commandLine.MatchString(l) {
					shown = append(shown, l)
				}
			} else {
				for _, m := range codeSpan.FindAllStringSubmatch(l, -1) {
					if commandLine.MatchString(m[1]) || strings.HasPrefix(m[1], "--") {
						shown = append(shown, m[1])
					}
				}
			}
			for _, s := range shown {
				s, _, _ = strings.Cut(s, " #")
				s, _, _ = strings.Cut(s, " -- ") // what follows is the program's own
				if m := commandLine.FindStringSubmatch(s); m != nil && !knows(m[1]) {
					out = append(out, fmt.Sprintf("%s:%d: cloister has no command %s", p, i+1, m[1]))
				}
				for _, m := range longFlag.FindAllStringSubmatch(s, -1) {
					if !knows(m[1]) {
						out = append(out, fmt.Sprintf("%s:%d: cloister has no flag --%s", p, i+1, m[1]))
					}
				}
			}
		}
	}
	return out
}
