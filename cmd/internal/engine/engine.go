package engine

import (
	"errors"
	"flag"
	"fmt"
	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/cloister-vmm/cloister/guest/workload"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/isolation/cores"
	"github.com/cloister-vmm/cloister/patch/running"
	"github.com/cloister-vmm/cloister/vmm"
	"golang.org/x/sys/unix"
)

// Monitor is the monitor's half, for a run in one process.
type Monitor func(w session.Wire, ledgerFD, guest int) int

// engine is the process that the user started: it owns the VM.
type engine struct {
	inProcess Monitor
	o         *options
	started   time.Time
	phases    []breaks.Timing
	last      time.Time

	elf       *os.File
	execFn    string // the program's path as execve(2) would have got it
	tscHz     uint64 // of a built-in program; 0: not asked for
	leases    []*cores.Lease
	lease     *cores.Lease // of --cpu auto, until it is among leases
	vmDir     string
	guest     int
	ledgerFD  int
	ledgers   []byte
	keep      []int    // CPUs that this process may use, without those that the run owns
	metrics   *os.File // listening socket of --metrics, until the monitor has it
	link      link
	spawn     func() // starts the monitor; through spawnOnce only
	spawnOnce sync.Once
	hearing   sync.Once
	spawned   chan *exec.Cmd // the monitor, once it was started
	status    chan int
	partition map[int]string // the cgroup in which a thread has to be to run on a core of the run's; most have none
	quiet     chan session.Quiet
	seals     questions      // that vCPUs wait with
	signals   chan os.Signal // that end the run, or are the program's
	taken     uint64         // bit n-1: signal n was taken over for the program (dispose)
	handlers  [65]sigaction  // by which the runtime hears of those of job control
	heard     chan struct{}  // closed when they do
	clock     string         // the kernel's clocksource, once it was asked for
	gaveUp    bool           // the monitor's last word was not waited for
	begun     *vmm.Machine   // from the start, beside the rest of it
	machine   *vmm.Machine   // the same, once it is whole
	patching
}

// Main is `cloister run`. inProcess is nil in the program that has no monitor in it: then --one-process is a matter for
// the one that has. It returns the exit status.
func Main(args []string, inProcess Monitor) int {
	o, err := parseRun(args)
	if errors.Is(err, flag.ErrHelp) {
		runUsage(os.Stdout)
		return 0
	}
	if err != nil {
		return session.Failf("%v", err)
	}
	if o.bare {
		return session.ExecMonitor(append([]string{session.BareCommand}, args...))
	}
	if o.oneProcess && inProcess == nil {
		return session.ExecMonitor(append([]string{"run"}, args...))
	}
	e := &engine{inProcess: inProcess, o: o, started: time.Now(), status: make(chan int, 1), quiet: make(chan session.Quiet, 1), signals: make(chan os.Signal, 4), heard: make(chan struct{}), spawned: make(chan *exec.Cmd, 1), guest: -1, ledgerFD: -1}
	e.last = e.started
	e.begun = vmm.Begin()
	if !e.mayWait() {
		hold()
	}
	go e.hearSignals()
	code, err := e.run()
	if err != nil {
		return max(code, session.Failf("%v", err))
	}
	return code
}

// stamp ends a phase of start-up.
func (e *engine) stamp(phase string) {
	now := time.Now()
	e.phases = append(e.phases, breaks.Timing{Phase: phase, NS: uint64(now.Sub(e.last))})
	e.last = now
}

// run is the whole life of the engine. Errors come with the status they mean.
func (e *engine) run() (int, error) {
	if code, err := e.openProgram(); err != nil {
		return code, err
	}
	defer e.elf.Close()
	defer e.release() // of what claim got to, too
	if err := e.claim(); err != nil {
		return session.StatusCloister, err
	}
	if err := errors.Join(e.share(), e.makeRings()); err != nil {
		return session.StatusCloister, err
	}
	if err := e.startMonitor(); err != nil {
		return session.StatusCloister, err
	}
	end := session.Ended{}
	end.Status, end.Result, end.Error = e.guestLife()
	return e.finish(end), nil
}

// openProgram finds the program as a shell would, or makes the built-in one.
func (e *engine) openProgram() (int, error) {
	o := e.o
	if strings.HasPrefix(o.program, "@") {
		hz, err := tscHz()
		if err != nil && o.bare {
			hz, err = calibrate()
		}
		if err != nil {
			return session.StatusCloister, err
		}
		e.tscHz = hz
		b, err := workload.ELF(o.program, o.args[1:], hz)
		if err != nil {
			return session.StatusNotFound, err
		}
		fd, err := unix.MemfdCreate(o.program, unix.MFD_CLOEXEC)
		if err != nil {
			return session.StatusCloister, fmt.Errorf("%s: memfd_create: %w", o.program, err)
		}
		e.elf, e.execFn = os.NewFile(uintptr(fd), o.program), o.program
		if _, err := e.elf.Write(b); err != nil {
			return session.StatusCloister, fmt.Errorf("%s: %w", o.program, err)
		}
		e.stamp("open")
		return 0, nil
	}
	path := o.program
	if path == "" {
		return session.StatusNotFound, errors.New("the program's name is empty: give its path")
	}
	if path == "." || path == ".." {
		return session.StatusNotRun, fmt.Errorf("%s: is a directory: give a program", path)
	}
	if !strings.Contains(path, "/") {
		p, err := exec.LookPath(path)
		if err != nil {
			return session.StatusNotFound, fmt.Errorf("%s: not found in PATH: give its path, such as ./%s", path, path)
		}
		path = p
	}
	e.execFn = path
	path, err := filepath.Abs(path)
	if err != nil {
		return session.StatusCloister, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO must not wait for its writer
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return session.StatusNotFound, fmt.Errorf("%s: there is no such file", path)
	case err != nil:
		if errors.Is(err, fs.ErrPermission) {
			err = fmt.Errorf("%w: make it readable", err)
		}
		return session.StatusNotRun, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file: give a program", path)
	} else if err == nil && st.Mode()&0o111 == 0 {
		err = fmt.Errorf("%s: permission denied: it is not executable (chmod +x)", path)
	}
	if err != nil {
		return session.StatusNotRun, errors.Join(err, f.Close())
	}
	o.program, e.elf = path, f
	e.stamp("open")
	return 0, nil
}

// claim takes the core and the name, and keeps this process off the core.
func (e *engine) claim() error {
	o := e.o
	allowed, err := cores.Allowed()
	if err != nil {
		return err
	}
	e.keep = allowed
	dir, err := session.RunDir()
	if err != nil {
		return err
	}
	if o.name == "" {
		o.name = fmt.Sprintf("%s-%d", strings.TrimPrefix(filepath.Base(o.program), "@"), os.Getpid())
	}
	if err := e.takeCore(dir, allowed); err != nil {
		return err
	}
	if err := checkOutputs(o); err != nil {
		return err
	}
	if o.budget != "" || o.report != "" || o.profile != "" || o.trace != "" || o.metrics != "" || o.isolate || o.require != "" {
		if _, err := session.MonitorPath(); err != nil {
			return err // nobody could judge or write it
		}
	}
	if e.metrics, err = listenMetrics(o); err != nil {
		return err
	}
	var lock *os.File
	if e.vmDir, lock, err = session.NewVMDir(dir, o.name); err != nil {
		return err
	}
	keepFiles = append(keepFiles, lock)
	e.stamp("claim")
	return nil
}

func (e *engine) release() {
	if e.vmDir != "" {
		// By their names first: reading a directory takes a descriptor, and there may be none left.
		err := e.unlinkRings()
		for _, name := range []string{session.SocketFile, session.FactsFile, session.LockFile, "."} {
			if e := os.Remove(filepath.Join(e.vmDir, name)); e != nil && !errors.Is(e, fs.ErrNotExist) {
				err = e
			}
		}
		if err != nil {
			err = os.RemoveAll(e.vmDir)
		}
		if err != nil {
			session.Failf("remove %s: %v", e.vmDir, err)
		}
	}
	if e.lease != nil {
		e.leases = append(e.leases, e.lease)
	}
	for _, l := range e.leases {
		if err := l.Release(); err != nil {
			session.Failf("release the core: %v", err)
		}
	}
}

// startMonitor starts the other process beside the building of the machine.
func (e *engine) startMonitor() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	e.link.wire = session.Wire{FD: pair[0]}
	files := []*os.File{os.NewFile(uintptr(pair[1]), "monitor"), os.NewFile(uintptr(e.ledgerFD), "ledger"), os.NewFile(uintptr(e.guest), "guest")}
	if e.o.oneProcess {
		keepFiles = append(keepFiles, files[0]) // else a collection would close it
		e.spawn = func() { go e.inProcess(session.Wire{FD: pair[1]}, e.ledgerFD, e.guest) }
	} else {
		c := &exec.Cmd{Args: []string{"cloister-monitor", session.MonitorCommand}}
		c.Stdout, c.Stderr = os.Stderr, os.Stderr
		c.ExtraFiles = files
		if e.metrics != nil {
			c.ExtraFiles = append(c.ExtraFiles, e.metrics)
		}
		e.spawn = func() { e.startProcess(c, files[0], e.metrics) }
	}
	e.tell(session.Message{Plan: e.plan()})
	if !e.mayWait() {
		e.spawnOnce.Do(func() { go e.bringUp() })
	}
	keepFiles = append(keepFiles, files[1], files[2])
	e.stamp("monitor")
	return nil
}

// lateMonitor is how long a program may run before it gets a monitor, if nothing needs one from the start.
const lateMonitor = 50 * time.Millisecond

// mayWait reports whether the run can begin without a monitor. On a core of its own it cannot: a fork beside
// a sealed program would be a disturbance, and the threads that come later have to be watched from the start.
func (e *engine) mayWait() bool {
	o := e.o
	return o.cpu == -1 && len(o.dedicated()) == 0 && o.metrics == "" && o.budget == "" && o.trace == "" && !e.ownClock()
}

// needMonitor starts the monitor if it was not started yet.
func (e *engine) needMonitor() {
	if e.spawn != nil {
		e.spawnOnce.Do(e.bringUp)
	}
}

// hearMonitor listens to the monitor, as soon as there is one and nothing that it could stop is half built.
func (e *engine) hearMonitor() { e.hearing.Do(func() { go e.listen() }) }

// bringUp starts the monitor and gives it what it has missed; the socket keeps that until it is read.
func (e *engine) bringUp() {
	if err := e.link.open(); err != nil {
		e.lost(session.Message{})
	}
	e.spawn()
}

// nothingToTell reports whether a run that has ended needs no monitor at all.
func (e *engine) nothingToTell(end session.Ended) bool {
	o := e.o
	return e.mayWait() && o.quiet && o.report == "" && o.profile == "" && end.Error == ""
}

func (e *engine) ownClock() bool {
	if e.clock == "" {
		e.clock = session.Clocksource()
	}
	return e.o.ownClock || e.clock != "tsc"
}

// startProcess starts the monitor: beside the building of the machine, for a fork takes a millisecond that the guest need
// not wait for. Our copies of its descriptors are closed, so that each side sees the other's end.
func (e *engine) startProcess(c *exec.Cmd, files ...*os.File) {
	var err error
	if c.Path, err = session.MonitorPath(); err == nil {
		err = c.Start()
	}
	for _, f := range files {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	if err != nil {
		session.Failf("start the monitor: %v: there will be no report", err)
	}
	e.spawned <- c
}

// keepFiles are files whose descriptors are used by number until the process ends.
var keepFiles []*os.File

// listen takes what the monitor says until it is gone.
func (e *engine) listen() {
	for {
		m, _, err := e.link.wire.Receive()
		switch {
		case err != nil:
			e.seals.end()
			close(e.status)
			close(e.quiet)
			return
		case m.Quiet != nil:
			e.quiet <- *m.Quiet
		case m.Judged != nil:
			e.seals.answer(m.Judged.VCPU, m.Judged.Error)
		case m.Status != nil:
			e.status <- *m.Status
		case m.Stop != nil:
			e.stop(m.Stop.Reason, m.Stop.Signal)
		case m.Patch != nil:
			go e.patch(*m.Patch, m.FDs) // a stop is heard meanwhile
		}
	}
}

func (e *engine) stop(reason string, sig int) {
	if err := e.machine.Stop(reason, sig); err != nil && !e.o.quiet {
		session.Failf("%v", err)
	}
}

// guestLife builds the machine and runs it to its end.
func (e *engine) guestLife() (int, vmm.Result, string) {
	o := e.o
	st, err := e.elf.Stat()
	if err != nil {
		return session.StatusCloister, vmm.Result{}, err.Error()
	}
	cwd, err := os.Getwd()
	if err != nil {
		cwd = "/"
	}
	m := e.begun
	maySeal := e.maySeal
	if o.require == "" {
		maySeal = nil
	}
	err = m.Build(vmm.Config{
		Program: o.program, ExecFn: e.execFn, ELF: int(e.elf.Fd()), ELFSize: st.Size(), Args: o.args, Env: environ(), Mounts: o.mounts, Net: o.net == "host", Shared: e.sharedRings(), Cwd: cwd,
		Builtin: strings.HasPrefix(o.program, "@"), CPU: o.cpu, FIFO: o.fifo, Memory: o.memory, Huge: o.hugepages, PatchSpace: o.spare,
		Lock: !o.noLock, OwnClock: e.ownClock(), Seal: vmm.SealPolicy(o.seal), RingCalls: o.syscalls == "ring", Ledgers: e.ledger, Guest: e.guest, Stamp: e.stamp,
		CPUs: append(o.dedicated(), e.keep...), Housekeeping: e.keep, Place: o.placeOf, Thread: e.thread, Admit: e.admit, MaySeal: maySeal,
		Warn:      func(s string) { e.tell(session.Message{Warn: s}) },
		Stop:      e.stopSelf,
		Dispose:   e.dispose,
		GapRecord: func(a uint64) { e.tell(session.Message{Gap: &a}) },
	})
	if err != nil {
		return buildStatus(err), vmm.Result{}, err.Error()
	}
	e.machine = m
	if p := running.New(m, o.program); p != nil {
		e.patcher = p
	}
	<-e.heard
	if !e.mayWait() {
		e.hearMonitor()
	}
	if len(e.leases) > 0 {
		if _, err := cores.KeepOff(os.Getpid(), e.keep); err != nil {
			return session.StatusCloister, vmm.Result{}, err.Error()
		}
		// Before there is a vCPU in the guest: both flush every core of this process.
		if err := errors.Join(vmm.SettleData(), session.DropCode()); err != nil {
			e.tell(session.Message{Warn: err.Error()})
		}
	}
	if err := e.joinRoot(); err != nil {
		return session.StatusCloister, vmm.Result{}, err.Error()
	}
	if err := m.Prepare(); err != nil {
		return session.StatusCloister, vmm.Result{}, err.Error()
	}
	e.stamp("start")
	r := session.Ready{Info: m.Info, Phases: e.phases, NoStats: m.Info.StatsFD == 0}
	if err := e.tellPatchable(); err != nil { // before Ready, from which on who asks is answered
		e.tell(session.Message{Warn: fmt.Sprintf("the VM cannot be patched: %v", err)})
	}
	if r.NoStats {
		e.tell(session.Message{Ready: &r})
	} else {
		e.tell(session.Message{Ready: &r}, m.Info.StatsFD)
	}
	if err := e.awaitQuiet(); err != nil {
		return session.StatusCloister, vmm.Result{}, e.abandon(m, err)
	}
	if err := m.Enter(); err != nil {
		return session.StatusCloister, vmm.Result{}, err.Error()
	}
	late := time.AfterFunc(lateMonitor, func() {
		if e.mayWait() {
			hold()
		}
		e.needMonitor()
		e.hearMonitor()
	})
	e.wait()
	late.Stop()
	res, err := m.Wait()
	if err != nil {
		return session.StatusCloister, res, err.Error()
	}
	return resultStatus(res), res, ""
}

// thread is vmm.Config.Thread.
func (e *engine) thread(t vmm.Thread) {
	m := session.Message{Thread: &session.Thread{VCPU: t.VCPU, TID: t.TID, Task: t.Task, Name: t.Name, CPU: t.CPU}}
	if t.StatsFD != 0 {
		e.tell(m, t.StatsFD)
		return
	}
	e.tell(m)
}

// environ is the environment as execve(2) gave it: Go's own copy drops a name that comes twice.
func environ() []string {
	b, err := os.ReadFile("/proc/self/environ")
	if err != nil {
		return os.Environ()
	}
	s := strings.TrimSuffix(string(b), "\x00")
	if s == "" {
		return nil
	}
	return strings.Split(s, "\x00")
}

// buildStatus tells a program that cannot run from a machine that cannot be built.
func buildStatus(err error) int {
	if vmm.IsProgramError(err) {
		return session.StatusNotRun
	}
	return session.StatusCloister
}

func resultStatus(r vmm.Result) int {
	switch {
	case r.Ended == "error":
		return session.StatusCloister
	case r.Signal != 0:
		return session.StatusSignalled + r.Signal
	}
	return r.Code
}

func (e *engine) tell(m session.Message, fds ...int) {
	if err := e.link.tell(m, fds...); err != nil {
		e.lost(m)
	}
}

// lost is what is left to do with a message when the monitor is gone.
func (e *engine) lost(m session.Message) {
	if m.Warn != "" && !e.o.quiet {
		session.Failf("%s", m.Warn)
	}
}

// verdict waits for the monitor's last word. Another signal ends the waiting: a monitor may be stopped, or hang.
func (e *engine) verdict() (status int, ok bool) {
	for {
		select {
		case status, ok = <-e.status:
			return status, ok
		case <-e.signals:
			e.gaveUp = true
			return 0, false
		}
	}
}

// finish hands the end to the monitor and waits until it has reported.
func (e *engine) finish(end session.Ended) int {
	e.noMorePatches()
	if e.nothingToTell(end) {
		none := false
		e.spawnOnce.Do(func() { none = true }) // there is no monitor, and there will be none
		if none {
			if err := e.machine.Close(); err != nil {
				session.Failf("%v", err)
			}
			return end.Status
		}
	}
	e.needMonitor()
	e.tell(session.Message{Ended: &end})
	e.hearMonitor()
	status, ok := e.verdict()
	if ok && !e.o.oneProcess {
		if c := <-e.spawned; c.Process != nil {
			if err := c.Wait(); err != nil {
				session.Failf("the monitor process: %v", err)
			}
		}
	}
	if e.machine != nil {
		if err := e.machine.Close(); err != nil {
			session.Failf("%v", err)
		}
	}
	if ok {
		return status
	}
	e.restoreHost()
	if end.Error != "" {
		return max(end.Status, session.Failf("%s", end.Error))
	}
	why := "the monitor process ended before the run did"
	if e.gaveUp {
		why = "the monitor process was not waited for"
	}
	o := e.o
	if o.budget != "" || o.report != "" || o.profile != "" || o.trace != "" {
		// A gate must not be green because nobody looked.
		return session.Failf("%s: the budget is not judged and what was asked for is not written", why)
	}
	session.Failf("%s: there is no report", why)
	return end.Status
}
