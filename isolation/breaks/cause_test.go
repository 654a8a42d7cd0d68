package breaks

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestEveryCauseHasOneNameOfItsOwn(t *testing.T) {
	form := regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)
	seen := map[string]Cause{}
	for c := range NCause {
		name := c.String()
		if !form.MatchString(name) {
			t.Errorf("cause %d: name %q is not lower case words with hyphens", c, name)
		}
		if other, ok := seen[name]; ok {
			t.Errorf("causes %d and %d share the name %q", other, c, name)
		}
		seen[name] = c
		if got, ok := ParseCause(name); !ok || got != c {
			t.Errorf("ParseCause(%q) = %d, %v; want %d", name, got, ok, c)
		}
	}
	for _, bad := range []string{"", "Syscall", "syscall ", "total", "exc"} {
		if got, ok := ParseCause(bad); ok {
			t.Errorf("ParseCause(%q) found %s", bad, got)
		}
	}
	if got := NCause.String(); got != "unknown" {
		t.Errorf("a cause outside the list is called %q, want unknown", got)
	}
}

// The vectors and mnemonics are those of the Intel SDM, vol. 3A, table 6-1.
func TestExceptionFollowsTheManual(t *testing.T) {
	want := map[uint8]string{
		0: "exc-divide", 1: "exc-debug", 2: "exc-nmi", 3: "exc-breakpoint", 4: "exc-overflow", 5: "exc-bound",
		6: "exc-invalid-opcode", 7: "exc-device", 8: "exc-double-fault", 10: "exc-invalid-tss", 11: "exc-segment",
		12: "exc-stack", 13: "exc-protection", 14: "exc-page-fault", 16: "exc-fpu", 17: "exc-alignment",
		18: "exc-machine-check", 19: "exc-simd",
	}
	for v := range 256 {
		name := want[uint8(v)]
		if name == "" {
			name = "exc-other"
		}
		if got := Exception(uint8(v)).String(); got != name {
			t.Errorf("vector %d is %s, want %s", v, got, name)
		}
	}
}

func TestKindsOfCauses(t *testing.T) {
	var planned, kernel []string
	for c := range NCause {
		if c.Planned() {
			planned = append(planned, c.String())
		}
		if c.FromKernel() {
			kernel = append(kernel, c.String())
		}
		if c.Planned() && c.FromKernel() {
			t.Errorf("%s is both planned and the kernel's", c)
		}
	}
	if got := strings.Join(planned, " "); got != "seal end setup patch safe-point" {
		t.Errorf("planned: %s", got)
	}
	if got := strings.Join(kernel, " "); got != "host-interrupt page-fault emulation transit kernel-other" {
		t.Errorf("from the kernel: %s", got)
	}
}

// docs/breaks.md has one section "### `name`" for each cause, in the order of cause.go, and in each
// the four questions that a reader comes with.
func TestCausesAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/breaks.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := regexp.MustCompile("(?m)^### `([a-z-]+)`$").FindAllSubmatchIndex(doc, -1)
	var documented []string
	for i, s := range sections {
		name := string(doc[s[2]:s[3]])
		documented = append(documented, name)
		end := len(doc)
		if i+1 < len(sections) {
			end = sections[i+1][0]
		}
		body := string(doc[s[1]:end])
		for _, part := range []string{"**What**", "**Cost**", "**Avoid**", "**Seen**"} {
			if strings.Count(body, part) < 1 {
				t.Errorf("docs/breaks.md, %s: no %s", name, part)
			}
		}
	}
	if want := names[:]; !slices.Equal(documented, want) {
		t.Errorf("docs/breaks.md documents\n%q\ncause.go has\n%q", documented, want)
	}
	for _, word := range Subjects()[:6] {
		if !strings.Contains(string(doc), "| `"+word+"` |") {
			t.Errorf("docs/breaks.md does not explain the budget word %q", word)
		}
	}
	for c := range names {
		if Cause(c).Planned() {
			continue
		}
		for _, backend := range []string{BackendPVM, BackendSVM, BackendVMX} {
			if got, want := documentedToll(t, doc, backend, Cause(c)), codeToll(backend, Cause(c)); got != want && !Cause(c).FromKernel() {
				t.Errorf("docs/breaks.md, table of tolls, %s on %s: %q, the code has %q", Cause(c), backend, got, want)
			}
		}
	}
}
