package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/cloister-vmm/cloister/internal/testenv"
)

// Script is what the first lines of a scenario say of where it runs:
//
//	# machine: NAME… [(not with -short)]
//	# cmdline: WORDS    the kernel's words instead of the machine's own, which may be none
//	# cpus: N           CPUs instead of the machine's own, 1 to 64 (Bochs emulates 1)
//
// With one of the last two it runs on a machine of its own, alone (Own).
type Script struct {
	Name     string   // of the file, without .txtar
	Machines []string // that it runs on, by name
	Long     bool     // -short leaves it out
	Cmdline  []string // nil: the machine's
	CPUs     int      // 0: the machine's
}

// notShort marks a scenario that takes too long for CI.
const notShort = "(not with -short)"

// ReadScript reads the first lines of a scenario. One without machines, or for a machine that there is not, is an error: nothing would ever run it.
func ReadScript(file string) (Script, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Script{}, fmt.Errorf("%w: give one of lab/testdata/*.txtar", err)
	}
	s, err := parseScript(string(b))
	s.Name = strings.TrimSuffix(filepath.Base(file), ".txtar")
	if err != nil {
		return Script{}, fmt.Errorf("%s: %w", file, err)
	}
	return s, nil
}

func parseScript(text string) (s Script, err error) {
	head, rest, _ := strings.Cut(text, "\n")
	names, ok := strings.CutPrefix(head, "# machine: ")
	if !ok {
		return Script{}, errors.New("the first line must be `# machine: NAME…`")
	}
	names, s.Long = strings.CutSuffix(names, " "+notShort)
	if s.Machines = strings.Fields(names); len(s.Machines) == 0 {
		return Script{}, errors.New("the first line names no machine")
	}
	for line := range strings.Lines(rest) {
		line = strings.TrimSuffix(line, "\n")
		if words, ok := strings.CutPrefix(line, "# cmdline:"); ok && s.Cmdline == nil {
			s.Cmdline = append([]string{}, strings.Fields(words)...)
		} else if n, ok := strings.CutPrefix(line, "# cpus: "); ok && s.CPUs == 0 {
			if s.CPUs, err = strconv.Atoi(n); err != nil || s.CPUs < 1 || s.CPUs > MaxCPUs {
				return Script{}, fmt.Errorf("%q: give 1 to %d", line, MaxCPUs)
			}
		} else if misplaced.MatchString(line) {
			return Script{}, fmt.Errorf("%q: write `# cmdline: WORDS` and `# cpus: N`, each once", line)
		} else {
			break
		}
	}
	for _, name := range s.Machines {
		m, err := Lookup(name)
		if err != nil {
			return Script{}, err
		}
		if m.Backend == VMX && s.CPUs > 1 {
			return Script{}, fmt.Errorf("%s has one CPU, and # cpus: wants %d; use an svm machine", name, s.CPUs)
		}
	}
	return s, nil
}

// misplaced is what was meant to say where a script runs.
var misplaced = regexp.MustCompile(`^#\s*(cmdline|cpus)\s*:`)

// MaxCPUs of a machine: QEMU takes more, and emulates them in turns on one thread.
const MaxCPUs = 64

// Own reports whether the scenario runs on a machine of its own.
func (s Script) Own() bool { return s.Cmdline != nil || s.CPUs != 0 }

// On is the name of the machine that the scenario runs on when it is m or was made of m: what MachineVar says there.
func (s Script) On(machine string) string {
	if s.Own() {
		return machine + "/" + s.Name
	}
	return machine
}

// Machine is m as the scenario wants it.
func (s Script) Machine(m Machine) (Machine, error) {
	for _, name := range s.Machines {
		if name != m.Name {
			continue
		}
		if !s.Own() {
			return m, nil
		}
		m.Name = s.On(m.Name)
		m.Lane = testenv.LaneLabOwn
		if s.Cmdline != nil {
			m.Cmdline = s.Cmdline
		}
		if s.CPUs != 0 {
			m.CPUs = s.CPUs
		}
		return m, nil
	}
	return Machine{}, fmt.Errorf("%s.txtar is not for %s: its first line says %s", s.Name, m.Name, strings.Join(s.Machines, ", "))
}
