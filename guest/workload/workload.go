package workload

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// Workload describes one built-in program.
type Workload struct {
	Name    string // with its @
	Help    string // one line
	Options []Option
}

// Option is one option of a built-in program: --Name, and its argument unless Arg is empty.
type Option struct{ Name, Arg, Default, Help string }

// program is one entry of the table: a later workload is one more assembly file and one more entry.
type program struct {
	name   string
	help   string
	code   func() *byte
	labels []string // names of the labels, by number

	// options declares the program's flags; the function that it returns fills the program's memory from them.
	options func(*flag.FlagSet) fill
}

// fill writes what the options ask for; hz is the TSC's frequency, 0 if it is not known.
type fill func(m *memory, hz uint64) error

// memory is what a program finds in its data, and what its notes say.
type memory struct {
	params    params
	record    abi.GapRecord
	control   *ControlRecord // nil: none
	patchable *patchable     // nil: nothing of it
}

func programs() []program {
	return []program{
		{"@spin", "an empty loop: adds one to a register, and nothing else", spinCode,
			[]string{"spin_start", "spin_loop", "spin_end"}, spinOptions},
		{"@jitter", "reads the TSC without pause, and records every pass in a histogram and the gaps apart", jitterCode,
			[]string{"jitter_start", "jitter_loop", "jitter_rare", "jitter_end"}, jitterOptions},
		{"@cyclic", "wakes up periodically by waiting on the TSC, skips no period, and records the lateness", cyclicCode,
			[]string{"cyclic_start", "cyclic_wait", "cyclic_wake", "cyclic_end"}, cyclicOptions},
		{"@control-loop", "a periodic control loop whose filter, limit and output can be patched while it runs sealed", controlCode,
			[]string{"control_start", "control_period", "control_limit", "control_output", "control_off", "control_point", "control_wait", "control_end",
				"filter", "control_print"}, controlOptions},
		{"@exits", "leaves the guest in every way that is not fatal, a known number of times each", exitsCode,
			[]string{"exits_start", "exits_syscall", "exits_cpuid", "exits_touch", "exits_seal", "exits_failed"}, exitsOptions},
	}
}

// faultPrefix opens the names of the programs that die: @fault:NAME, for each of Faults.
const faultPrefix = "@fault:"

// List describes the built-in programs, those of @fault as one entry.
func List() []Workload {
	var list []Workload
	for _, p := range programs() {
		fs := flag.NewFlagSet(p.name, flag.ContinueOnError)
		p.options(fs)
		w := Workload{Name: p.name, Help: p.help}
		fs.VisitAll(func(f *flag.Flag) {
			arg, help := flag.UnquoteUsage(f)
			w.Options = append(w.Options, Option{f.Name, arg, f.DefValue, help})
		})
		list = append(list, w)
	}
	var names []string
	for _, f := range Faults() {
		names = append(names, f.Name)
	}
	return append(list, Workload{Name: faultPrefix + "NAME", Help: "dies by a fault of its own: " + strings.Join(names, ", ")})
}

// ELF makes the built-in program name (with its @) as a static ELF64 file; args are its options, without the
// name, and are part of the file: the program looks at no argument when it runs. tscHz is the frequency of
// the TSC that the program will see, in Hz; 0 (not known) is refused where a duration must become cycles.
//
// The error is one line for the user; it wraps flag.ErrHelp if args ask for help (see List).
func ELF(name string, args []string, tscHz uint64) ([]byte, error) {
	if fault, ok := strings.CutPrefix(name, faultPrefix); ok {
		return faultELF(fault, args)
	}
	var known []string
	for _, prog := range programs() {
		if prog.name == name {
			return prog.elf(args, tscHz)
		}
		known = append(known, prog.name)
	}
	return nil, fmt.Errorf("workload %q: there is none of that name; there are %s and %sNAME", name, strings.Join(known, ", "), faultPrefix)
}

func (prog program) elf(args []string, hz uint64) ([]byte, error) {
	fs := flag.NewFlagSet(prog.name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fill := prog.options(fs)
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, fmt.Errorf("%s: %s (%w)", prog.name, prog.help, err)
		}
		return nil, fmt.Errorf("%s: %w; its options are %s", prog.name, err, flagNames(fs))
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("%s: unexpected argument %q; its options are %s", prog.name, fs.Arg(0), flagNames(fs))
	}
	m := memory{record: abi.GapRecord{Min: ^uint64(0)}}
	if err := fill(&m, hz); err != nil {
		return nil, fmt.Errorf("%s: %w", prog.name, err)
	}
	l, err := extract(prog.code())
	if err != nil {
		return nil, err
	}
	return image(l, prog.labels, 0, &m)
}

func flagNames(fs *flag.FlagSet) string {
	var names []string
	fs.VisitAll(func(f *flag.Flag) { names = append(names, "--"+f.Name) })
	return strings.Join(names, ", ")
}
