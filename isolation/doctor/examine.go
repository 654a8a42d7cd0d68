package doctor

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/isolation/cores"
	"github.com/cloister-vmm/cloister/isolation/host"
)

// Causes of breaks, as docs/breaks.md calls them, and signs of the kernel's.
var (
	interrupt = []string{breaks.HostInterrupt.String()}
	switched  = []string{breaks.HostInterrupt.String(), "gaps"}
	zapped    = []string{breaks.PageFault.String(), breaks.HostInterrupt.String() + " (TLB)"}
	slower    = []string{"none: guest time itself"}
	nothing   = []string{"none"}
)

// examiner collects findings.
type examiner struct {
	s      host.System
	cpus   []int
	online []int
	tasks  []host.Task
	config map[string]string // of the kernel's build; nil: not known
	args   []string          // of the kernel's command line
	flags  []string          // of the processor
	blind  string            // why these are not known
	info   string            // /proc/cpuinfo
	own    bool              // the CPUs asked about are the caller's
	left   []int             // CPUs that a remedy leaves out for the rest of the system
	list   []Finding
}

// Examine looks at these CPUs of the host; at all that are on line without any. own are threads that belong there: then the
// CPUs are the caller's, and may be asked what interrupts them.
func Examine(s host.System, cpus []int, own ...int) (*Report, error) {
	e := &examiner{s: s, cpus: slices.Clone(cpus), own: len(own) > 0}
	var err error
	if e.online, err = host.CPUs(s, "sys/devices/system/cpu/online"); err != nil {
		return nil, fmt.Errorf("read the host's CPUs: %w", err)
	}
	if len(e.online) == 0 {
		return nil, errors.New("read the host's CPUs: sys/devices/system/cpu/online is empty: is this a whole tree of a host?")
	}
	present, err := host.CPUs(s, "sys/devices/system/cpu/present")
	if err != nil {
		return nil, fmt.Errorf("read the host's CPUs: %w", err)
	}
	if len(e.cpus) == 0 {
		e.cpus = e.online
	}
	slices.Sort(e.cpus)
	e.cpus = slices.Compact(e.cpus)
	if err := cores.Exist(present, e.cpus...); err != nil {
		return nil, err
	}
	if e.tasks, err = host.Tasks(s); err != nil {
		return nil, err
	}
	e.tasks = slices.DeleteFunc(e.tasks, func(t host.Task) bool { return slices.Contains(own, t.TID) })
	e.kernel()
	for _, look := range []func(*examiner){
		(*examiner).availability, (*examiner).domains, (*examiner).tick, (*examiner).rcu, (*examiner).others, (*examiner).throttling,
		(*examiner).siblings, (*examiner).interrupts, (*examiner).workqueues, (*examiner).watchdogs, (*examiner).periodic,
		(*examiner).tracing, (*examiner).pages, (*examiner).reclaim, (*examiner).power, (*examiner).caches,
		(*examiner).virtualisation, (*examiner).modules, (*examiner).clocks, (*examiner).leftovers, (*examiner).mitigations,
	} {
		look(e)
	}
	r := &Report{Schema: Schema, Kernel: host.Text(s, "proc/sys/kernel/osrelease"), Backend: e.backend(), Nested: e.nested(), HZ: e.hz(), Findings: e.list, Changes: changes(e.list), LeftOut: join(e.spared(), e.left)}
	for _, c := range e.cpus {
		k := Core{CPU: c}
		k.Grade, k.Why = grade(e.list, c, nil)
		k.After, _ = grade(e.list, c, func(f *Finding) bool { return !f.CanApply })
		k.Least, k.mayStay = grade(e.list, c, func(f *Finding) bool { return !f.CanApply || f.unsure })
		r.Cores = append(r.Cores, k)
	}
	return r, nil
}

// Worst is the worst grade of the cores.
func (r *Report) Worst() Grade {
	g := A
	for _, c := range r.Cores {
		g = max(g, c.Grade)
	}
	return g
}

// add completes a finding and keeps it.
func (e *examiner) add(f Finding) {
	if f.CPUs == nil {
		f.CPUs = []int{}
	}
	if f.Evidence == nil {
		f.Evidence = []Evidence{}
	}
	f.CanApply = f.Way == RunTime || f.Way == Max
	if f.CanApply {
		f.apply = applyCommand(f.Way, e.applicable())
	}
	if f.Remedy == "" {
		f.Remedy = f.apply
	}
	e.list = append(e.list, f)
}

// applicable are the CPUs that `host apply` can be told to make quiet: those asked about, less the first one if nothing
// were left for the rest of the system.
func (e *examiner) applicable() []int {
	return minus(e.cpus, e.spared())
}

// spared is the CPU that the remedies leave out though it was asked about, for the rest of the system; none while another is
// on line.
func (e *examiner) spared() []int {
	if in := e.inside(e.online); len(in) == len(e.online) && len(in) > 1 {
		return in[:1]
	}
	return nil
}

// boot gives the value of a parameter of the kernel's command line that sets CPUs apart: those asked about and those that it has
// already, since a second parameter of the name does not add to the first. One CPU stays for the rest of the system, for the kernel
// needs one (housekeeping_setup of its kernel/sched/isolation.c, which else keeps the boot CPU back), rather one that was not
// asked about; it is remembered, to be said. Empty where no CPU can be spared.
func (e *examiner) boot(have []int) string {
	list := join(have, e.applicable())
	if len(minus(e.online, list)) == 0 {
		first := append(minus(e.online, e.applicable()), e.online...)[0]
		if list = minus(list, []int{first}); len(list) > 0 {
			e.left = join(e.left, []int{first})
		}
	}
	return spell(list)
}

// atBoot completes a finding whose remedy is such a parameter; where no CPU can be spared for it nothing takes it away.
func (e *examiner) atBoot(f *Finding, before, name string, have []int) {
	f.Way, f.Remedy = Never, ""
	if value := e.boot(have); value != "" {
		f.Way, f.Remedy = Boot, before+name+value
	}
}

// join gives the members of both lists, in order.
func join(a, b []int) []int {
	list := append(slices.Clone(a), b...)
	slices.Sort(list)
	return slices.Compact(list)
}

// minus gives a without the members of b.
func minus(a, b []int) []int {
	return slices.DeleteFunc(slices.Clone(a), func(c int) bool { return slices.Contains(b, c) })
}

// verdict is Wrong where bad holds.
func verdict(bad bool) State {
	if bad {
		return Wrong
	}
	return OK
}

// look reads a file as evidence.
func (e *examiner) look(name string) (string, Evidence) {
	b, err := e.s.Read(name)
	ev := Evidence{File: "/" + name, Value: strings.TrimSpace(string(b))}
	if err != nil {
		ev.Value = "not there"
		if errors.Is(err, fs.ErrPermission) {
			ev.Value = "not readable"
		}
		return "", ev
	}
	return ev.Value, ev
}

// knob is a machine-wide file that should hold something: bad says which values should not stand there. A file
// that is not there is a facility that the kernel does not have.
func (e *examiner) knob(id, name, what string, bad func(string) bool, f Finding) {
	v, ev := e.look(name)
	f.ID, f.What, f.Evidence = id, what, append(f.Evidence, ev)
	switch ev.Value {
	case "not there":
		f.State = OK
	case "not readable":
		f.State = Unknown
	default:
		f.State = verdict(bad(v))
	}
	e.add(f)
}

func isNot(want string) func(string) bool { return func(v string) bool { return v != want } }
func is(bad string) func(string) bool     { return func(v string) bool { return v == bad } }

func number(s string) (int, bool) {
	n, err := strconv.Atoi(strings.TrimSpace(s))
	return n, err == nil
}

// configNames are the options of the kernel's build that findings rest on.
var configNames = []string{"CONFIG_HZ", "CONFIG_NO_HZ_FULL", "CONFIG_RCU_NOCB_CPU", "CONFIG_CPUSETS", "CONFIG_X86_CPU_RESCTRL", "CONFIG_PREEMPT_RT", "CONFIG_CPU_ISOLATION"}

// Recorded is where a recording keeps the lines of the kernel's configuration that are used: the kernel's own is compressed.
const Recorded = "proc/config"

// kernel reads what many findings need.
func (e *examiner) kernel() {
	e.args = strings.Fields(host.Text(e.s, "proc/cmdline"))
	text := []byte(nil)
	if b, err := e.s.Read(Recorded); err == nil && len(b) > 0 {
		text = b
	} else if b, err := e.s.Read("proc/config.gz"); err == nil {
		if z, err := gzip.NewReader(bytes.NewReader(b)); err == nil {
			if plain, err := io.ReadAll(io.LimitReader(z, 4<<20)); err == nil {
				text = plain
			}
		}
	} else if b, err := e.s.Read("boot/config-" + host.Text(e.s, "proc/sys/kernel/osrelease")); err == nil {
		text = b
	}
	if len(text) > 0 {
		e.config = map[string]string{}
	}
	for line := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok && slices.Contains(configNames, k) {
			e.config[k] = v
		}
	}
	e.info, e.blind = e.cpuinfo()
	for line := range strings.Lines(e.info) {
		if k, v, _ := strings.Cut(line, ":"); strings.TrimSpace(k) == "flags" {
			e.flags = strings.Fields(v)
			break
		}
	}
}

// Config gives the lines of the kernel's configuration that a recording keeps.
func Config(s host.System) string {
	e := &examiner{s: s}
	e.kernel()
	var b strings.Builder
	for _, n := range configNames {
		if v := e.config[n]; v != "" {
			fmt.Fprintf(&b, "%s=%s\n", n, v)
		}
	}
	return b.String()
}

func (e *examiner) hz() int {
	n, _ := number(e.config["CONFIG_HZ"])
	return n
}

// arg gives a parameter of the kernel's command line.
func (e *examiner) arg(name string) (string, bool) {
	for _, a := range e.args {
		if k, v, _ := strings.Cut(a, "="); k == name {
			return v, true
		}
	}
	return "", false
}

// argEvidence shows a parameter, or that it is not given.
func (e *examiner) argEvidence(name string) Evidence {
	v, ok := e.arg(name)
	switch {
	case !ok:
		return Evidence{"/proc/cmdline", "no " + name + "="}
	case v == "":
		return Evidence{"/proc/cmdline", name}
	}
	return Evidence{"/proc/cmdline", name + "=" + v}
}

func (e *examiner) configEvidence(names ...string) Evidence {
	var parts []string
	for _, n := range names {
		v := e.config[n]
		if v == "" {
			v = "n"
		}
		parts = append(parts, n+"="+v)
	}
	if e.config == nil {
		return Evidence{"/proc/config.gz", "not there, nor /boot/config-*"}
	}
	return Evidence{"/proc/config.gz", strings.Join(parts, " ")}
}

// outside gives the CPUs asked about that a list lacks.
func (e *examiner) outside(list []int) (out []int) {
	for _, c := range e.cpus {
		if !slices.Contains(list, c) {
			out = append(out, c)
		}
	}
	return out
}

// inside gives the CPUs asked about that a list has.
func (e *examiner) inside(list []int) (out []int) {
	for _, c := range e.cpus {
		if slices.Contains(list, c) {
			out = append(out, c)
		}
	}
	return out
}

func (e *examiner) listOf(name string) ([]int, Evidence) {
	v, ev := e.look(name)
	l, err := cores.ParseList(v)
	if err != nil {
		return nil, ev
	}
	if v == "" && ev.Value == "" {
		ev.Value = "none"
	}
	return l, ev
}
