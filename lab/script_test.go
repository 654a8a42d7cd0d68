package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseScript(t *testing.T) {
	for text, want := range map[string]string{
		"# machine: svm vmx\nexec x":                                "svm vmx",
		"# machine: svm (not with -short)\n":                        "svm long",
		"# machine: svm\n# What it shows.\n# cpus: 2":               "svm", // not at the head: words of its manual page
		"# machine: svm\n# cpus: 2\n# cmdline: nohz_full=1 quiet\n": "svm cpus 2 cmdline nohz_full=1 quiet",
		"# machine: svm\n# cmdline:\nexec x":                        "svm cmdline",
		"# machine: svm\n# cmdline: a\n# cmdline: b\n":              "each once",
		"# machine: svm\n#cpus: 2\n":                                "each once",
		"# machine: svm\n# cpus:2\n":                                "each once",
		"# machine: svm-plain (not with -short)\n# cpus: 64\n":      "svm-plain long cpus 64",
		"# machine: vmx\n# cpus: 1\n":                               "vmx cpus 1",
		"# machine: svm vmx\n# cpus: 2\n":                           "vmx has one CPU",
		"# machine: svm\n# cpus: 0\n":                               "give 1 to 64",
		"# machine: svm\n# cpus: 65\n":                              "give 1 to 64",
		"# machine: svm\n# cpus: two\n":                             "give 1 to 64",
		"# machine: svm (now and then)\n":                           `no lab machine "(now"`,
		"# machine: nosuch\n":                                       "no lab machine",
		"# machine:  (not with -short)\n":                           "names no machine",
		"# machine: \n":                                             "names no machine",
		"exec x\n":                                                  "the first line must be",
		"":                                                          "the first line must be",
	} {
		s, err := parseScript(text)
		got := strings.Join(s.Machines, " ")
		if s.Long {
			got += " long"
		}
		if s.CPUs != 0 {
			got += fmt.Sprint(" cpus ", s.CPUs)
		}
		if s.Cmdline != nil {
			got = strings.TrimSpace(got + " cmdline " + strings.Join(s.Cmdline, " "))
		}
		if err != nil {
			got = err.Error()
		}
		if err == nil && got != want || err != nil && !strings.Contains(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// A scenario with words or CPUs of its own has a machine to itself, whose name no other has, and takes the rest from the table.
func TestScriptMachine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "small.txtar")
	if err := os.WriteFile(file, []byte("# machine: svm svm-plain\n# cmdline: nohz_full=1\n# cpus: 2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := ReadScript(file)
	if err != nil {
		t.Fatal(err)
	}
	svm, err := Lookup("svm")
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Machine(svm)
	if err != nil || m.Name != "svm/small" || m.CPUs != 2 || !slices.Equal(m.Cmdline, []string{"nohz_full=1"}) || m.Kernel != svm.Kernel ||
		m.Lane == svm.Lane || m.row() != "lab-svm/small" || strings.Contains(m.cmdline(), "isolcpus") || !strings.Contains(m.cmdline(), "nohz_full=1") {
		t.Errorf("%+v, %v", m, err)
	}
	if vmx, err := Lookup("vmx"); err != nil {
		t.Error(err)
	} else if _, err := s.Machine(vmx); err == nil || !strings.Contains(err.Error(), "small.txtar is not for vmx") {
		t.Errorf("on vmx: %v", err)
	}
	plain := Script{Name: "plain", Machines: []string{"svm"}}
	if m, err := plain.Machine(svm); err != nil || m.Name != "svm" || plain.On("svm") != "svm" {
		t.Errorf("a script without words of its own: %+v, %v", m, err)
	}
	if _, err := ReadScript(file + "x"); err == nil || !strings.Contains(err.Error(), "give one of") {
		t.Errorf("no such file: %v", err)
	}
}
