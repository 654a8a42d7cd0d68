package bare

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// figures are counters of the kernel by the names that the report has for them. All of them only grow.
type figures map[string]uint64

// Names of figures of a thread (Documentation/filesystems/proc.rst; Documentation/scheduler/sched-stats.rst).
const (
	runNS       = "run_ns"               // schedstat: on a core
	waitNS      = "wait_ns"              // schedstat: runnable, but not on a core
	slices_     = "timeslices"           // schedstat: how often it was put on a core
	minorFaults = "minor_faults"         // stat
	majorFaults = "major_faults"         // stat
	userNS      = "user_ns"              // stat; in clock ticks
	systemNS    = "system_ns"            // stat; in clock ticks
	voluntary   = "voluntary_switches"   // status: it waited
	involuntary = "involuntary_switches" // status: it was taken off the core
	readCalls   = "read_calls"           // io: read(2) and its like
	writeCalls  = "write_calls"          // io: write(2) and its like
	migrations  = "migrations"           // sched: from core to core
)

// Names of figures of a core.
const (
	stealNS   = "core_steal_ns" // /proc/stat: a hypervisor below ran something else; in clock ticks
	interrupt = "interrupt:"    // + name in /proc/interrupts
	softirq   = "softirq:"      // + name in /proc/softirqs
)

// tick is a clock tick of /proc: USER_HZ is 100 on x86 (include/asm-generic/param.h).
const tick = 10_000_000

// since gives the growth from an earlier reading; what either lacks is left out.
func (f figures) since(then figures) figures {
	d := figures{}
	for name, n := range f {
		if old, ok := then[name]; ok {
			d[name] = n - min(n, old)
		}
	}
	return d
}

func (f figures) add(d figures) {
	for name, n := range d {
		f[name] += n
	}
}

// interrupts is the number of interrupts of a core.
func (f figures) interrupts() (n uint64) {
	for name, k := range f {
		if strings.HasPrefix(name, interrupt) {
			n += k
		}
	}
	return n
}

// readThread reads the figures of one thread below proc, such as /proc/4711/task/4712. A file that this kernel
// has not been built with leaves its figures out; without stat there is no such thread.
func readThread(proc string) (figures, error) {
	f := figures{}
	b, err := os.ReadFile(proc + "/stat")
	if err == nil {
		err = parseStat(string(b), f)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", proc+"/stat", err)
	}
	for _, file := range []struct {
		name  string
		parse func(string, figures) error
	}{{"schedstat", parseSchedstat}, {"status", parseStatus}, {"io", parseIO}, {"sched", parseSched}} {
		b, err := os.ReadFile(proc + "/" + file.name)
		if err != nil {
			continue // not in this kernel, or not for us: shown as not measured
		}
		if err := file.parse(string(b), f); err != nil {
			return nil, fmt.Errorf("%s: %w", proc+"/"+file.name, err)
		}
	}
	return f, nil
}

// afterName cuts what follows the thread's name in /proc/PID/stat: the name may hold anything, brackets too.
func afterName(stat string) ([]string, error) {
	i := strings.LastIndexByte(stat, ')')
	if i < 0 {
		return nil, errors.New("no thread's name in it")
	}
	return strings.Fields(stat[i+1:]), nil
}

// parseStat reads /proc/PID/task/TID/stat; fields are numbered as in proc(5), the state being the third.
func parseStat(s string, f figures) error {
	fields, err := afterName(s)
	if err != nil {
		return err
	}
	const state = 3
	for _, x := range []struct {
		name  string
		field int
		unit  uint64
	}{{minorFaults, 10, 1}, {majorFaults, 12, 1}, {userNS, 14, tick}, {systemNS, 15, tick}} {
		if x.field-state >= len(fields) {
			return fmt.Errorf("%d fields: want %d", len(fields)+state-1, x.field)
		}
		if err := f.set(x.name, fields[x.field-state], x.unit); err != nil {
			return err
		}
	}
	return nil
}

func (f figures) set(name, s string, unit uint64) error {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return fmt.Errorf("%s: %.30q is no count", name, s)
	}
	f[name] = n * unit
	return nil
}

// parseSchedstat reads three numbers: time on a core, time waiting for one, timeslices.
func parseSchedstat(s string, f figures) error {
	fields := strings.Fields(s)
	if len(fields) < 3 {
		return errors.New("want three figures")
	}
	return errors.Join(f.set(runNS, fields[0], 1), f.set(waitNS, fields[1], 1), f.set(slices_, fields[2], 1))
}

func parseStatus(s string, f figures) error {
	return f.named(s, map[string]string{"voluntary_ctxt_switches": voluntary, "nonvoluntary_ctxt_switches": involuntary})
}

func parseIO(s string, f figures) error {
	return f.named(s, map[string]string{"syscr": readCalls, "syscw": writeCalls})
}

func parseSched(s string, f figures) error {
	return f.named(s, map[string]string{"se.nr_migrations": migrations})
}

// named takes lines "NAME : NUMBER" by their names.
func (f figures) named(s string, names map[string]string) error {
	for line := range strings.Lines(s) {
		key, value, ok := strings.Cut(line, ":")
		if name := names[strings.TrimSpace(key)]; ok && name != "" {
			if err := f.set(name, strings.TrimSpace(value), 1); err != nil {
				return err
			}
		}
	}
	return nil
}

// readCore reads the figures of a core below root.
func readCore(root string, cpu int) (figures, error) {
	f := figures{}
	for name, parse := range map[string]func(string) error{
		"/proc/interrupts": func(s string) error { return perCPU(s, cpu, interrupt, f) },
		"/proc/softirqs":   func(s string) error { return perCPU(s, cpu, softirq, f) },
		"/proc/stat":       func(s string) error { return parseSteal(s, cpu, f) },
	} {
		b, err := os.ReadFile(root + name)
		if err == nil {
			err = parse(string(b))
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return f, nil
}

// perCPU takes one CPU's column of a table whose first line names the CPUs that are online and whose others
// begin with "NAME:". Lines with fewer figures than CPUs (ERR, MIS) are the machine's, not a core's.
func perCPU(s string, cpu int, prefix string, f figures) error {
	head, rest, _ := strings.Cut(s, "\n")
	columns := strings.Fields(head)
	at := slices.Index(columns, "CPU"+strconv.Itoa(cpu))
	if at < 0 {
		return fmt.Errorf("CPU %d has no column", cpu)
	}
	for line := range strings.Lines(rest) {
		name, text, ok := strings.Cut(strings.TrimSpace(line), ":")
		values := strings.Fields(text)
		if !ok || len(values) < len(columns) {
			continue
		}
		if _, err := strconv.ParseUint(values[len(columns)-1], 10, 64); err != nil {
			continue // fewer figures, and then words
		}
		if err := f.set(prefix+name, values[at], 1); err != nil {
			return err
		}
	}
	return nil
}

// parseSteal takes the eighth figure of a CPU's line in /proc/stat.
func parseSteal(s string, cpu int, f figures) error {
	for line := range strings.Lines(s) {
		if v := strings.Fields(line); len(v) > 8 && v[0] == "cpu"+strconv.Itoa(cpu) {
			return f.set(stealNS, v[8], tick)
		}
	}
	return fmt.Errorf("CPU %d has no line", cpu)
}
