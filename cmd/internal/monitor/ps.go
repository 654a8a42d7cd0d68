package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/observe"
)

// answerTime is how long a monitor may take to answer before the VM is shown without it.
const answerTime = 2 * time.Second

// running is a VM whose engine lives.
type running struct {
	name, dir string
	engine    int // pid
}

// runningVMs lists the VMs of this run directory, by name. What a killed engine left behind is no VM.
func runningVMs() ([]running, error) {
	dir, err := session.RunDir()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Join(dir, "vm"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	var list []running
	for _, e := range entries {
		d := filepath.Join(dir, "vm", e.Name())
		if !e.IsDir() || !session.EngineLives(d) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(d, "engine"))
		if err != nil {
			continue // it ended meanwhile
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil || pid <= 0 {
			continue // it has not written it yet: it is starting
		}
		list = append(list, running{e.Name(), d, pid})
	}
	return list, nil
}

// findVM gives the VM of that name. An empty one is mostly an unset variable, and nobody's.
func findVM(name string) (running, error) {
	list, err := runningVMs()
	if err != nil {
		return running{}, err
	}
	return oneOf(list, name)
}

// onlyVM gives the only one there is.
func onlyVM() (running, error) {
	list, err := runningVMs()
	if err != nil {
		return running{}, err
	}
	if len(list) == 1 {
		return list[0], nil
	}
	return oneOf(list, "")
}

func oneOf(list []running, name string) (running, error) {
	names := make([]string, len(list))
	for i, vm := range list {
		if vm.name == name && name != "" {
			return vm, nil
		}
		names[i] = vm.name
	}
	others := "none is running"
	if len(names) > 0 {
		others = "running: " + strings.Join(names, ", ")
	}
	if name == "" {
		return running{}, fmt.Errorf("which VM? %s", others)
	}
	return running{}, fmt.Errorf("no VM %q: %s", name, others)
}

// status asks the monitor; when there is none, the engine's ledger is read in its place. nil without an
// error: the VM ended meanwhile.
func (r running) status(ctx context.Context) (*observe.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	s, err := observe.NewClient(r.dir).Status(ctx)
	switch {
	case err == nil:
		return s, nil
	case !session.EngineLives(r.dir):
		return nil, nil
	case errors.Is(err, observe.ErrNoMonitor), ctx.Err() != nil: // or it is stopped, or hangs: one sick monitor hides no VM
		return r.orphan(), nil
	}
	return nil, fmt.Errorf("VM %s: %w", r.name, err)
}

// orphan describes a VM without a monitor by what that left in writing and by the engine's ledger.
func (r running) orphan() *observe.Status {
	vm := observe.VM{Name: r.name, Engine: r.engine, Backend: string(kvm.DetectBackend("/"))}
	var said observe.Status
	if b, err := os.ReadFile(filepath.Join(r.dir, session.FactsFile)); err == nil && json.Unmarshal(b, &said) == nil {
		vm.Program, vm.Args, vm.Started, vm.Version = said.Program, said.Args, said.Started, said.Version
	}
	snapshot, err := ledgerOf(r.engine)
	if err != nil {
		snapshot = nil // another user's, or ended: the name and the pid is what is known
	}
	return observe.NewStatus(vm, snapshot)
}

// ledgerOf reads the ledger of an engine through its open files in /proc, as its monitor would.
func ledgerOf(engine int) (*observe.Snapshot, error) {
	fds := fmt.Sprintf("/proc/%d/fd", engine)
	list, err := os.ReadDir(fds)
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		name := filepath.Join(fds, e.Name())
		if to, err := os.Readlink(name); err != nil || !strings.HasPrefix(to, "/memfd:"+session.LedgerName+" ") {
			continue
		}
		s, err := readLedgers(name)
		if err != nil {
			return nil, err
		}
		if r, err := observe.ReadResident("/", engine); err == nil {
			s.Memory.Engine = r
		}
		return s, nil
	}
	return nil, errors.New("the engine has no ledger yet")
}

func readLedgers(name string) (s *observe.Snapshot, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	l, err := mapLedgers(int(f.Fd()))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.unmap()) }()
	return l.snapshot()
}

// snapshot is what the ledgers alone tell of a VM.
func (l *ledgers) snapshot() (*observe.Snapshot, error) {
	used, err := l.used()
	if err != nil {
		return nil, err
	}
	s := &observe.Snapshot{}
	for _, id := range used {
		v, err := breaks.At(l.mem, id)
		if err != nil {
			return nil, err
		}
		one := observe.Ledger{NoStatistics: true}
		if !v.Snapshot(&one.Counts) {
			return nil, fmt.Errorf("the ledger of vCPU %d could not be read consistently", id)
		}
		if one.ID = uint32(id); one.Start != 0 {
			s.VCPUs = append(s.VCPUs, one)
		}
	}
	s.Now = kvm.TSC()
	return s, nil
}

// PS is `cloister ps`; it returns the exit status.
func PS(args []string) int {
	f := newFlags("ps")
	asJSON := f.Bool("json", false, "print a JSON list, one object a VM")
	rest, err := parseMixed(f, args)
	if errors.Is(err, flag.ErrHelp) {
		flagUsage(os.Stdout, "cloister ps [--json]\n\nLists the running VMs of this run directory.", f)
		return 0
	}
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("ps takes no arguments, not %q", rest[0])
	}
	if err != nil {
		return session.Failf("%v", err)
	}
	vms, err := runningVMs()
	if err != nil {
		return session.Failf("%v", err)
	}
	found := make([]*observe.Status, len(vms))
	errs := make([]error, len(vms))
	var all sync.WaitGroup
	for i, vm := range vms {
		all.Go(func() { found[i], errs[i] = vm.status(context.Background()) })
	}
	all.Wait()
	list := []*observe.Status{}
	code := 0
	for i, s := range found {
		if errs[i] != nil {
			code = session.Failf("%v", errs[i])
			s = observe.NewStatus(observe.VM{Name: vms[i].name, Engine: vms[i].engine}, nil)
			s.Trouble = errs[i].Error()
		}
		if s != nil {
			list = append(list, s)
		}
	}
	if *asJSON {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		err = e.Encode(list)
	} else {
		err = observe.WriteList(os.Stdout, list)
	}
	if err != nil {
		return session.Failf("ps: %v", err)
	}
	return code
}

func newFlags(name string) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	return f
}

// parseMixed takes options before and after the arguments, as `cloister stats VM --watch`.
func parseMixed(f *flag.FlagSet, args []string) (rest []string, err error) {
	for {
		if err := f.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, fmt.Errorf("%w: `cloister %s -h` lists the options", err, f.Name())
		}
		if f.NArg() == 0 {
			return rest, nil
		}
		used := len(args) - f.NArg()
		if used > 0 && args[used-1] == "--" {
			return append(rest, f.Args()...), nil
		}
		rest, args = append(rest, f.Arg(0)), f.Args()[1:]
	}
}

func flagUsage(w io.Writer, head string, f *flag.FlagSet) {
	fmt.Fprintln(w, head)
	fmt.Fprintln(w, "\nOptions:")
	f.VisitAll(func(x *flag.Flag) {
		name, text := flag.UnquoteUsage(x)
		fmt.Fprintf(w, "  --%-20s %s\n", strings.TrimSpace(x.Name+" "+name), text)
	})
}
