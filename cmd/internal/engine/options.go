package engine

import (
	"errors"
	"flag"
	"fmt"
	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/guest/vfs"
	"github.com/cloister-vmm/cloister/guest/workload"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/patch"
	"github.com/cloister-vmm/cloister/vmm"
)

// options are those of `cloister run`.
type options struct {
	name       string
	cpu        int
	place      []rule
	fifo       int
	memory     uint64
	hugepages  bool
	noLock     bool
	mounts     []vfs.Mount
	net        string
	rings      []ringFile
	seal       string
	syscalls   string
	budget     string
	onBreak    string
	report     string
	profile    string
	trace      string
	metrics    string
	quiet      bool
	timings    bool
	limit      time.Duration
	oneProcess bool
	ownClock   bool
	bare       bool
	patchable  string // a size, or true; empty: as the program says
	spare      uint64 // the size that it is; 0: as the program says
	patchLog   string
	program    string
	args       []string
	isolating
}

func runFlags(o *options) *flag.FlagSet {
	f := flag.NewFlagSet("run", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.name, "name", "", "`name` of the VM (default: the program's, with its process id)")
	f.Func("cpu", "host `CPU` to give to the program alone, or auto for the best (default: none, it floats)", func(s string) error {
		if s == "auto" {
			o.cpu = autoCPU
			return nil
		}
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return errors.New("want the number of one CPU, or auto")
		}
		o.cpu = n
		return nil
	})
	f.Func("place", "which `THREAD=CPU,…` own cores: main=1,rt*=2,#3=4,*=housekeeping; by name, or by # and order", func(s string) (err error) {
		o.place, err = parsePlace(s)
		return err
	})
	isolateFlags(f, &o.isolating)
	f.IntVar(&o.fifo, "fifo", 0, "run the vCPU's thread SCHED_FIFO at this `priority`, 1..99")
	f.Func("memory", "`size` that the program may use: 512M, 2G (default 1G)", func(s string) (err error) {
		o.memory, err = parseSize(s)
		return err
	})
	f.BoolVar(&o.hugepages, "hugepages", false, "guest memory on 2 MiB pages; the host must have some reserved")
	f.BoolVar(&o.noLock, "no-lock", false, "do not lock guest memory")
	mount := func(writable bool) func(string) error {
		return func(s string) error {
			m, err := vfs.ParseMount(s, writable)
			o.mounts = append(o.mounts, m)
			return err
		}
	}
	f.Func("ro", "let the program read `DIR[:GUESTDIR]`; may be repeated", mount(false))
	f.Func("rw", "let the program read and write `DIR[:GUESTDIR]`; may be repeated", mount(true))
	f.StringVar(&o.net, "net", "none", "`host|none`: sockets on the host's network, and Unix sockets below --rw")
	f.Func("ring", "give the program a ring of shared memory, `NAME=SIZE`, at "+abi.RingDir+"NAME; may be repeated", o.addRing)
	f.BoolVar(&o.ownClock, "own-clock", false, "give the program Cloister's own clock even where the host's can be shared")
	f.BoolVar(&o.bare, "bare", false, "run the program natively, placed, sealed and reported alike: to compare")
	f.StringVar(&o.seal, "seal", "call", "isolation begins at `start|first-write|call`")
	f.StringVar(&o.syscalls, "syscalls", "exit", "how sealed threads make system calls: by an `exit|ring` to a housekeeping core (docs/threads.md)")
	f.StringVar(&o.budget, "budget", "", "what may be spent while sealed: `CLAUSES` such as total=0 or syscall<=10/s,page-fault=0")
	f.StringVar(&o.onBreak, "on-break", "report", "when the budget is broken: `report|stop|kill|signal=N`")
	f.StringVar(&o.report, "report", "", "write the report as JSON to `FILE`")
	f.StringVar(&o.profile, "pprof", "", "write a profile of breaks by guest stack to `FILE`")
	f.StringVar(&o.trace, "trace", "", "write a timeline for Perfetto or chrome://tracing to `FILE`")
	f.StringVar(&o.metrics, "metrics", "", "serve Prometheus metrics at `ADDR` (a bare port means loopback)")
	f.Var(optional{&o.patchable}, "patchable", "reserve spare memory for patches (cloister patch), this much `[=SIZE]` for code and for data (default: 256K if the program asks for it)")
	f.StringVar(&o.patchLog, "patch-log", "", "log patches to `FILE` (default: NAME.jsonl in the state directory)")
	f.BoolVar(&o.quiet, "quiet", false, "print nothing of Cloister's own")
	f.BoolVar(&o.timings, "timings", false, "show the phases of start-up in the report")
	f.DurationVar(&o.limit, "for", 0, "end the run after this `time`")
	f.BoolVar(&o.oneProcess, "one-process", false, "engine and monitor in one process; for debugging, it disturbs the guest")
	return f
}

// parseSize reads 4096, 64K, 512M, 2G, with or without a final B or iB.
func parseSize(s string) (uint64, error) {
	t := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(s), "B"), "I")
	shift := 0
	for i, u := range []string{"K", "M", "G", "T"} {
		if strings.HasSuffix(t, u) {
			t, shift = strings.TrimSuffix(t, u), 10*(i+1)
		}
	}
	n, err := strconv.ParseUint(t, 10, 64)
	if err != nil || n > math.MaxUint64>>shift {
		return 0, errors.New("want a size such as 512M or 2G")
	}
	return n << shift, nil
}

// optional is an option that may stand without a value, which then reads "true" (package flag).
type optional struct{ value *string }

func (o optional) IsBoolFlag() bool   { return true }
func (o optional) Set(s string) error { *o.value = s; return nil }
func (o optional) String() string {
	if o.value == nil {
		return ""
	}
	return *o.value
}

// Bounds of --patchable, bytes.
const (
	defaultSpace = abi.PatchSpace
	minSpace     = abi.Page
	maxSpace     = patch.MaxBytes
)

// patchSpace reads --patchable[=SIZE].
func (o *options) patchSpace() (uint64, error) {
	switch o.patchable {
	case "":
		return 0, nil
	case "true":
		return defaultSpace, nil
	}
	n, err := parseSize(o.patchable)
	if err != nil || n < minSpace || n > maxSpace {
		return 0, fmt.Errorf("--patchable=%s: choose a size of %dK to %dM, or none", o.patchable, minSpace>>10, maxSpace>>20)
	}
	return (n + abi.Page - 1) / abi.Page * abi.Page, nil
}

const (
	defaultMemory = 1 << 30
	minMemory     = 12 << 20 // the stack and a small program
	maxMemory     = 28 << 30 // the guest's address space is 32 GiB
)

// refuseEmpty: an option that was given says something. An empty one is mostly an unset variable, and a gate
// that was meant must not be left out silently.
func refuseEmpty(f *flag.FlagSet) (err error) {
	f.Visit(func(x *flag.Flag) {
		if v := x.Value.String(); err == nil && (v == "" && x.Name != "cpu" && x.Name != "memory" && x.Name != "place" && x.Name != "ro" && x.Name != "rw" && x.Name != "ring" || x.Name == "for" && v == "0s" || x.Name == "fifo" && v == "0") {
			err = fmt.Errorf("--%s is given and says nothing: leave it out, or give a value", x.Name)
		}
	})
	return err
}

// parseRun reads the command line of `cloister run`; bad input changes nothing.
func parseRun(args []string) (*options, error) {
	o := &options{cpu: -1, memory: defaultMemory}
	f := runFlags(o)
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: `cloister run -h` lists the options", err)
	}
	if err := refuseEmpty(f); err != nil {
		return nil, err
	}
	if f.NArg() == 0 {
		return nil, errors.New("no program: cloister run [options] -- PROGRAM [arguments]; built-in ones: " + strings.Join(builtins(), " "))
	}
	o.program, o.args = f.Arg(0), f.Args()
	switch o.seal {
	case string(vmm.SealCall), string(vmm.SealStart), string(vmm.SealFirstWrite):
	default:
		return nil, fmt.Errorf("--seal %q: choose start, first-write or call", o.seal)
	}
	if len(o.place) > 0 {
		main := o.placeOf(0, o.firstName())
		if o.cpu == autoCPU && main >= 0 {
			return nil, fmt.Errorf("--cpu auto, and --place gives the first thread (%s) CPU %d: choose one for it", o.firstName(), main)
		}
		if o.cpu >= 0 && main >= 0 && main != o.cpu {
			return nil, fmt.Errorf("--cpu %d, and --place gives the first thread (%s) CPU %d: choose one core for it", o.cpu, o.firstName(), main)
		}
		if o.cpu >= 0 {
			o.place = append([]rule{{order: 0, cpu: o.cpu}}, o.place...)
		}
		if main >= 0 {
			o.cpu = main
		}
	} else if o.cpu >= 0 {
		o.place = []rule{{order: 0, cpu: o.cpu}} // else the first thread would lose it with its next name
	}
	if o.syscalls != "exit" && o.syscalls != "ring" {
		return nil, fmt.Errorf("--syscalls %q: choose exit or ring", o.syscalls)
	}
	if o.net != "none" && o.net != "host" {
		return nil, fmt.Errorf("--net %q: choose host or none", o.net)
	}
	if o.fifo < 0 || o.fifo > 99 {
		return nil, fmt.Errorf("--fifo %d: a priority is 1 to 99", o.fifo)
	}
	if o.memory < minMemory || o.memory > maxMemory {
		return nil, fmt.Errorf("--memory %d (bytes): choose %dM to %dG", o.memory, minMemory>>20, maxMemory>>30)
	}
	if o.hugepages && len(o.rings) > 0 {
		return nil, errors.New("--ring and --hugepages exclude each other: a ring's small pages cannot lie among huge ones")
	}
	if o.limit < 0 {
		return nil, fmt.Errorf("--for %v: a time is positive", o.limit)
	}
	if o.budget != "" {
		if _, err := breaks.Parse(o.budget); err != nil {
			return nil, fmt.Errorf("--budget: %w", err)
		}
	}
	if _, _, err := session.ParseOnBreak(o.onBreak); err != nil {
		return nil, err
	}
	if o.onBreak != "report" && o.budget == "" {
		return nil, fmt.Errorf("--on-break %s: there is no --budget to break", o.onBreak)
	}
	if o.metrics != "" {
		a, err := metricsAddr(o.metrics)
		if err != nil {
			return nil, err
		}
		o.metrics = a
	}
	var err error
	if o.spare, err = o.patchSpace(); err != nil {
		return nil, err
	}
	if err := o.checkIsolation(); err != nil {
		return nil, err
	}
	if strings.ContainsAny(o.name, "/\x00") || o.name == "." || o.name == ".." || len(o.name) > 64 {
		return nil, fmt.Errorf("--name %q: at most 64 characters, no slash", o.name)
	}
	return o, nil
}

func builtins() (names []string) {
	for _, w := range workload.List() {
		names = append(names, w.Name)
	}
	return names
}

// metricsAddr makes "9100" and ":9100" loopback addresses.
func metricsAddr(s string) (string, error) {
	host, port := "", s
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		host, port = s[:i], s[i+1:]
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return "", fmt.Errorf("--metrics %q: want PORT or HOST:PORT", s)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return host + ":" + port, nil
}

// Usage prints what `cloister help` shows.
func Usage(w io.Writer) {
	fmt.Fprint(w, `cloister: a microVM that gives a program a core of its own and counts what disturbs it

  cloister run [options] -- PROGRAM [arguments]
  cloister ps [--json]              the running VMs
  cloister stats [VM] [--watch]     breaks of one by cause, and their rates
  cloister stop VM                  end a run
  cloister doctor [--cpu LIST]      what will disturb these cores, and what takes it away
  cloister host apply|restore|status    make cores quiet, and put everything back
  cloister patch VM --list          change the code of a running program, take it back, see what was done (-h)
  cloister ring VM [NAME]           copy the records of a --ring to standard output, or --write them
  cloister help | version

PROGRAM is a static or static-pie x86-64 Linux program, or one of:
`)
	for _, x := range workload.List() {
		fmt.Fprintf(w, "  %-12s %s\n", x.Name, x.Help)
	}
	fmt.Fprintln(w, "\n`cloister run -h` lists the options of run.")
}

func runUsage(w io.Writer) {
	fmt.Fprintln(w, "cloister run [options] -- PROGRAM [arguments]\n\nOptions:")
	f := runFlags(&options{})
	f.VisitAll(func(x *flag.Flag) {
		name, text := flag.UnquoteUsage(x)
		fmt.Fprintf(w, "  --%-26s %s\n", strings.TrimSpace(x.Name+" "+name), text)
	})
	fmt.Fprint(w, `
Exit status: the program's own; 128+n when signal n ended it; 124 budget broken; 125 Cloister failed;
126 not executable; 127 not found; 0 when --for ended it. A budget that could not be judged gives 125.
`)
	os.Stdout.Sync()
}
