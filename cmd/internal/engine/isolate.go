package engine

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/isolation/cores"
	"github.com/cloister-vmm/cloister/vmm"
)

// Isolation of the host is the monitor's work (docs/decisions/0006-host-isolation.md): the engine passes on what was
// asked for, waits before the first instruction until it is done, and starts the restoring itself only when it has lost
// the monitor.

// autoCPU is --cpu auto.
const autoCPU = -2

// isolating are the options that concern the host.
type isolating struct {
	isolate   bool
	keepQuiet bool
	require   string
}

func isolateFlags(f *flag.FlagSet, o *isolating) {
	f.BoolVar(&o.isolate, "isolate", false, "make the run's cores quiet first, as `cloister host apply` does, and give them back at the end")
	f.BoolVar(&o.keepQuiet, "keep", false, "with --isolate: leave them quiet at the end; `cloister host restore` gives them back")
	f.StringVar(&o.require, "require", "", "refuse to run if one of the run's cores is of a worse `grade` than this (see cloister doctor): A, B, C or D")
}

func (o *options) checkIsolation() error {
	none := o.cpu == -1 && len(o.dedicated()) == 0
	switch {
	case o.keepQuiet && !o.isolate:
		return errors.New("--keep: there is no --isolate that would be undone")
	case o.bare && (o.isolate || o.require != ""):
		return errors.New("--isolate and --require are for VMs: with --bare, make the core quiet before (cloister host apply --cpu N), and look (cloister doctor --cpu N --require GRADE)")
	case none && o.isolate:
		return errors.New("--isolate: which core? give --cpu N, --cpu auto, or --place THREAD=N")
	case none && o.require != "":
		return errors.New("--require: of which core? give --cpu N, --cpu auto, or --place THREAD=N")
	case o.require != "" && o.seal == string(vmm.SealStart) && o.cpu == -1:
		return errors.New("--seal start and --require: the first thread has no core that could be judged: give --cpu N, or --cpu auto")
	case o.isolate && os.Geteuid() != 0:
		return errors.New("--isolate writes to /proc and /sys: run as root, or have root run cloister host apply --cpu N")
	}
	switch o.require {
	case "", "A", "B", "C", "D":
		return nil
	}
	return fmt.Errorf("--require %q: choose A, B, C or D", o.require)
}

// takeCore leases the cores that were asked for, and keeps this process off them.
func (e *engine) takeCore(dir string, allowed []int) (err error) {
	o := e.o
	e.keep = allowed
	if o.cpu == autoCPU {
		if err := e.place(dir, allowed); err != nil {
			return err
		}
	}
	for _, cpu := range o.dedicated() {
		where := e.keep // what is left: the last one must not go
		if dir := partitionOf(cpu); dir != "" {
			e.partition = with(e.partition, cpu, dir)
			where = append([]int{cpu}, where...)
		}
		if len(e.keep) == 1 && len(e.leases) > 0 {
			return fmt.Errorf("--place: CPU %d is the last one left: leave one to the rest of the program and of the system", cpu)
		}
		l := e.lease // of --cpu auto
		if e.lease = nil; l == nil || cpu != o.cpu {
			if l, err = (cores.Host{Root: "/"}).Take(dir, cpu, fmt.Sprintf("VM %s (process %d)", o.name, os.Getpid()), where); err != nil {
				return err
			}
		}
		e.leases = append(e.leases, l)
		e.keep = cores.Without(e.keep, cpu)
	}
	if len(e.leases) > 0 {
		_, err = cores.KeepOff(os.Getpid(), e.keep)
	}
	return err
}

// place takes the lease of the best CPU that nobody has.
func (e *engine) place(dir string, allowed []int) error {
	mine, all, err := preparedCores()
	if err != nil && !e.o.quiet {
		session.Failf("--cpu auto: which cores host apply has made quiet is not known: %v", err)
	}
	if e.o.isolate { // which makes one quiet itself, and only one that nobody has made
		mine = nil
	}
	list, err := rank(cores.Host{Root: "/"}, allowed, mine, all, e.o.isolate)
	if err != nil {
		return fmt.Errorf("--cpu auto: %w", err)
	}
	for _, p := range list {
		where := allowed
		if slices.Contains(mine, p.CPU) {
			where = append([]int{p.CPU}, where...) // this process was moved off it, and may go back
		}
		// The error of the last one is given, if there is no other.
		if e.lease, err = (cores.Host{Root: "/"}).Take(dir, p.CPU, fmt.Sprintf("VM %s (process %d)", e.o.name, os.Getpid()), where); err == nil {
			e.o.cpu = p.CPU
			e.o.place = append([]rule{{order: 0, cpu: p.CPU}}, e.o.place...) // as with --cpu N
			if !e.o.quiet {
				fmt.Fprintf(os.Stderr, "cloister: --cpu auto: CPU %d: %s\n", p.CPU, p.Why)
			}
			return nil
		}
	}
	return fmt.Errorf("--cpu auto: no CPU is free: %w", err)
}

// rank gives the CPUs for --cpu auto, the best first. With fresh only those that nobody has made quiet (all are made so, mine by
// this user): one that was isolated at boot is offered although this process may not run on it, so it is left out here.
func rank(h cores.Host, allowed, mine, all []int, fresh bool) ([]cores.Placed, error) {
	used, err := h.Leased()
	if err != nil {
		return nil, err
	}
	for _, c := range all {
		if !slices.Contains(mine, c) {
			used = append(used, c)
		}
	}
	list, err := h.Place(allowed, mine, used)
	if err != nil || !fresh {
		return list, err
	}
	list = slices.DeleteFunc(list, func(p cores.Placed) bool { return slices.Contains(all, p.CPU) })
	if len(list) == 0 {
		return nil, fmt.Errorf("no CPU can be made quiet: %s are already (cloister ps, cloister host restore)", cores.Format(all))
	}
	return list, nil
}

// preparedCores asks the monitor's program, which can read the journal, for the CPUs that this user has made quiet, and
// for all that anybody has. Without such a program there is no host apply either.
func preparedCores() (mine, all []int, err error) {
	path, err := session.MonitorPath()
	if err != nil {
		return nil, nil, nil
	}
	c := exec.Command(path, session.PreparedCommand)
	var complaint strings.Builder
	c.Stderr = &complaint
	out, err := c.Output()
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(complaint.String()))
	}
	first, second, _ := strings.Cut(strings.TrimRight(string(out), "\n"), "\n")
	mine, err = cores.ParseList(first)
	if err == nil {
		all, err = cores.ParseList(second)
	}
	return mine, all, err
}

func with(m map[int]string, cpu int, dir string) map[int]string {
	if m == nil {
		m = map[int]string{}
	}
	m[cpu] = dir
	return m
}

// awaitQuiet waits until the monitor has made the cores quiet, or found that they are not quiet enough.
func (e *engine) awaitQuiet() error {
	o := e.o
	if !o.isolate && o.require == "" {
		return nil
	}
	select {
	case q, ok := <-e.quiet:
		switch {
		case !ok:
			return errors.New("the monitor process ended while it made the cores quiet: the run was not begun")
		case q.Error != "":
			return errors.New(q.Error)
		case q.Partition == "":
			return nil
		}
		for _, cpu := range o.dedicated() {
			e.partition = with(e.partition, cpu, q.Partition)
		}
		if o.cpu >= 0 {
			return nil // the first thread is there already, and its process is where it has to be
		}
		return e.joinRoot()
	case s := <-e.signals:
		return fmt.Errorf("ended by %s while the cores were made quiet", s)
	}
}

// partitionOf is the isolated partition that `cloister host apply` has made of a CPU, if there is one: then a thread
// can be on that CPU only by being in it.
func partitionOf(cpu int) string {
	dirs, err := filepath.Glob("/sys/fs/cgroup/cloister-cpus-*")
	if err != nil {
		return "" // the pattern is a constant
	}
	for _, d := range dirs {
		list, err := cores.ParseList(session.Fact(filepath.Join(d, "cpuset.cpus")))
		if err == nil && slices.Contains(list, cpu) && session.Fact(filepath.Join(d, "cpuset.cpus.partition")) == "isolated" {
			return d
		}
	}
	return ""
}

// joinRoot moves this process to the root of the cgroups, if there is a partition among its cores: they are threaded and
// children of the root, so only threads of a process there can be in them. It comes before the first thread is let in, since
// all threads of the process move with it.
func (e *engine) joinRoot() error {
	for cpu, dir := range e.partition {
		if err := join(filepath.Dir(dir), "cgroup.procs", os.Getpid()); err != nil {
			return fmt.Errorf("leave this cgroup for the partition %s of CPU %d: %w: run as root, or give the core back and use --isolate", dir, cpu, err)
		}
		return nil
	}
	return nil
}

// admit is vmm.Config.Admit: a thread that is to run on a core of a partition goes there, any other one to everybody's.
func (e *engine) admit(tid int, cpus []int) error {
	if len(e.partition) == 0 {
		return nil
	}
	dir := ""
	for _, d := range e.partition {
		dir = filepath.Dir(d)
	}
	if len(cpus) == 1 && e.partition[cpus[0]] != "" {
		dir = e.partition[cpus[0]]
	}
	if err := join(dir, "cgroup.threads", tid); err != nil {
		return fmt.Errorf("enter the cgroup %s for CPU %s: %w: run as root, or give the core back and use --isolate", dir, cores.Format(cpus), err)
	}
	return nil
}

func join(dir, name string, id int) error {
	return os.WriteFile(filepath.Join(dir, name), []byte(strconv.Itoa(id)), 0)
}

// abandon ends a machine whose core is not quiet enough; it gives the reason, in one line.
func (e *engine) abandon(m *vmm.Machine, why error) string {
	if err := m.Abandon(); err != nil {
		return fmt.Sprintf("%v; and %v", why, err)
	}
	return why.Error()
}

// restoreHost gives the core back when there is no monitor that does.
func (e *engine) restoreHost() {
	if !e.o.isolate || e.o.keepQuiet {
		return
	}
	path, err := session.MonitorPath()
	if err == nil {
		c := exec.Command(path, "host", "restore", "--owner", "VM "+e.o.name)
		c.Stderr = os.Stderr
		err = c.Run()
	}
	if err != nil {
		session.Failf("the host is not as it was: %v: run cloister host restore --cpu %s", err, cores.Format(e.o.dedicated()))
	}
}
