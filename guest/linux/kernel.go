package linux

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister-vmm/cloister/guest/vfs"
)

// Config is what a Kernel works on. Memory and FS are required, the rest has defaults.
type Config struct {
	Memory Memory
	FS     *vfs.FS
	// Args and Env are the program's argument vector and environment, Exe its path as the guest
	// sees it; they feed prctl and /proc/self.
	Args []string
	Env  []string
	Exe  string
	// Net gives the guest sockets on the host's network, and Unix sockets in its files.
	Net bool
	// Hostname is what uname answers; empty: the host's.
	Hostname string
	// CPUs is the number of processors that the guest sees, 1 to 1024; 0 means 1.
	CPUs int
	// CPU is the index of the vCPU that getcpu answers with.
	CPU int
	// MemoryLimit is the guest's memory in bytes, as sysinfo shows it; 0: what Memory.Usage says.
	MemoryLimit uint64
	// Stdio are the host descriptors behind the guest's 0, 1 and 2; nil: the host's 0, 1 and 2. One
	// that is not open on the host is not open in the guest. They stay open when the guest closes
	// its own.
	Stdio *[3]int
	// PID and PPID are the guest's process and parent numbers; 0: the host's.
	PID, PPID int
	// Warn receives one line for each thing that the kernel refuses or bends, once each; nil: drop.
	Warn func(string)
	// Interrupt is an eventfd (or any pollable descriptor): readable means that blocking calls
	// stop. Its owner drains it. Negative: no call is ever cut. 0 means none, too: descriptor 0 is
	// never an eventfd of ours.
	Interrupt int
	// CPUTime is how long a task has been on a CPU, and how long of that in its program; with a nil task, how long all of
	// them have, those that have ended included. nil: the host process's own CPU time, all of it in the program.
	CPUTime func(t *Task) (cpu, program time.Duration)
	// Switches tells how the host schedules a task; false, or no hook: it is not known.
	Switches func(t *Task) (Switches, bool)
	// XFeatures is the guest's XCR0: the components of a task's XState. 0: what each area says for itself. It may be
	// set by SetXFeatures, too.
	XFeatures uint64
	// Kick takes a task out of the guest and has Attend called for it; nil: nobody executes beside the caller.
	// It is called with the kernel's lock held and must not wait for that lock.
	Kick func(*Task)
	// Seen takes Kick back: the task has been served since.
	Seen func(*Task)
	// Spawn makes a vCPU for a new task, which begins with these registers; EAGAIN when there is none to be had.
	// A nil hook refuses every thread. It is called with the lock held, as the next three.
	Spawn func(child *Task, regs *Registers, fsBase uint64) unix.Errno
	// Renamed is told that a task has a new name.
	Renamed func(*Task)
	// Move puts a task on one of the virtual CPUs of the list, EINVAL when it cannot be there. nil: any will do.
	Move func(t *Task, cpus []int) unix.Errno
	// CPUOf is the virtual CPU that a task is on; nil: CPU.
	CPUOf func(*Task) int
	// Barrier returns when every other task has executed a serialising instruction; nil: there are no others.
	Barrier func()
	// Stop carries out a stop signal whose action is the default: it stops the process, and returns when that was continued, or
	// at once where the host ignores the signal (an orphaned process group). It is called with the lock held, by whoever
	// serves a task. nil: such signals are ignored, by name.
	Stop func(sig unix.Signal)
	// Dispose is told what the program does on a signal, whenever that changes, for those that others on the host may send.
	// Neither handled nor ignored: the default action. It is called with the lock held. nil: nobody wants to know.
	Dispose func(sig unix.Signal, handled, ignored bool)
	// Isolate serves abi.SysIsolate, GapRecord abi.SysGapRecord and Provoke abi.SysProvoke. A nil
	// hook answers 0 (Isolate), EINVAL (GapRecord) or EPERM (Provoke).
	Isolate   func(on bool) unix.Errno
	GapRecord func(addr uint64) unix.Errno
	Provoke   func(what uint64) unix.Errno
	// SafePoint serves abi.SysSafepoint, Sync abi.SysSync; nil: both answer ENOSYS. SafePoint that is to wait says so elsewhere: it is
	// called with the lock held.
	SafePoint func(what, arg uint64) unix.Errno
	Sync      func() unix.Errno
	// Landing is where a signal frame that returns to rip shall return to; nil: there.
	Landing func(rip uint64) uint64
}

// Switches is how the host has scheduled a task's thread since that thread was made.
type Switches struct {
	Voluntary, Involuntary uint64        // how often it has left a CPU
	Ready                  time.Duration // waited for a CPU
	Slices                 uint64        // how often it was put on one
}

// Kind says what the VMM does with an Outcome.
type Kind uint8

const (
	// Return resumes the guest with RAX = Outcome.Ret.
	Return Kind = iota
	// Resume resumes the guest with all of CPU.Registers.
	Resume
	// Continue resumes the guest as it stands; only Attend answers it.
	Continue
	// ExitThread ends the task; others live. Its vCPU may be given to another one.
	ExitThread
	// Exit ends the program; Value is the exit status, 0 to 255.
	Exit
	// Kill ends the program by the signal in Value, 1 to 64.
	Kill
	// Interrupted says that Config.Interrupt cut a blocking call which has done nothing yet: resume
	// with Ret (-EINTR), or make the same call again.
	Interrupted
)

// Outcome is the result of one system call.
type Outcome struct {
	Ret   uint64 // RAX: the result, or -errno as two's complement
	Kind  Kind
	Value uint64
}

// eRestart is the kernel's own ERESTARTSYS (include/linux/errno.h): a handler returns it when
// Interrupt cut it before it did anything. It never reaches the guest.
const eRestart = unix.Errno(512)

// Kernel is the Linux of one program guest.
type Kernel struct {
	big   sync.Mutex // the lock: held while a task is served, but for its waits and slow host calls
	cur   *Task      // whose call the holder of the lock serves
	tasks []*Task
	first *Task // which /proc shows as the process, also when it has ended
	over  bool  // the program has ended: nobody enters the guest again
	queue map[futexKey][]*waiter

	cfg    Config
	mem    Memory
	fs     *vfs.FS
	cwd    *vfs.Dir
	fds    fdTable
	sig    signalState
	timers timers
	lim    limits
	proc   process
	net    netState

	mu      sync.Mutex // guards warned and unknown, which other goroutines read
	warned  map[string]bool
	unknown map[uint64]uint64
}

// New returns a kernel with the standard streams open. It fails when Memory or FS is missing or a
// number in cfg is out of its range.
func New(cfg Config) (*Kernel, error) {
	switch {
	case cfg.Memory == nil:
		return nil, fmt.Errorf("linux: new kernel: Config.Memory is nil: pass the guest's address space")
	case cfg.FS == nil:
		return nil, fmt.Errorf("linux: new kernel: Config.FS is nil: pass a file tree (vfs.New)")
	case cfg.CPUs < 0 || cfg.CPUs > maxCPUs:
		return nil, fmt.Errorf("linux: new kernel: %d CPUs: choose 1 to %d", cfg.CPUs, maxCPUs)
	}
	if cfg.CPUs == 0 {
		cfg.CPUs = 1
	}
	if cfg.Interrupt == 0 {
		cfg.Interrupt = -1
	}
	if cfg.PID == 0 {
		cfg.PID = os.Getpid()
	}
	if cfg.PPID == 0 {
		cfg.PPID = os.Getppid()
	}
	k := &Kernel{
		cfg: cfg, mem: cfg.Memory, fs: cfg.FS, cwd: cfg.FS.Cwd(),
		warned: map[string]bool{}, unknown: map[uint64]uint64{}, queue: map[futexKey][]*waiter{},
	}
	k.proc = newProcess(&cfg)
	k.lim = hostLimits()
	std := [3]int{0, 1, 2}
	if cfg.Stdio != nil {
		std = *cfg.Stdio
	}
	for guest, host := range std {
		if errno := k.openStream(guest, host); errno != 0 {
			k.Close()
			return nil, fmt.Errorf("linux: new kernel: standard stream %d (host descriptor %d): %w: check the limit of open files", guest, host, errno)
		}
	}
	return k, nil
}

// Close releases every host descriptor that the guest still holds. The kernel serves nothing after it.
func (k *Kernel) Close() {
	k.timers.close(k)
	for len(k.tasks) > 0 {
		k.remove(k.tasks[0])
	}
	k.fds.closeAll()
	if k.cwd != k.fs.Cwd() && k.cwd != k.fs.Root() {
		_ = k.cwd.Close() // an O_PATH handle has nothing to flush
	}
	k.cwd = k.fs.Cwd()
}

// FDs lists the guest's open descriptors in ascending order, for vfs.Options.FDs.
func (k *Kernel) FDs() []int {
	var open []int
	for fd, e := range k.fds.e {
		if e.d != nil {
			open = append(open, fd)
		}
	}
	return open
}

// File returns the open file behind a guest descriptor, nil when it is closed, for vfs.Options.File.
func (k *Kernel) File(fd int) *vfs.File {
	d, errno := k.fds.get(uint64(fd))
	if errno != 0 || fd < 0 {
		return nil
	}
	return d.file
}

// Getcwd is the guest path of the working directory, for vfs.Options.Getcwd.
func (k *Kernel) Getcwd() string { return k.cwd.Path() }

// Syscall serves system call nr of task t with its arguments as in RDI, RSI, RDX, R10, R8, R9. Calls of different
// tasks may come at the same time.
func (k *Kernel) Syscall(t *Task, nr uint64, a [6]uint64) Outcome {
	k.big.Lock()
	defer k.big.Unlock()
	return k.serve(t, func() Outcome { return k.syscall(t, nr, a) })
}

// Attend serves a task that was kicked out of the guest between two instructions of its program.
func (k *Kernel) Attend(t *Task) Outcome {
	k.big.Lock()
	defer k.big.Unlock()
	return k.serve(t, func() Outcome {
		if !k.act(t, nil) {
			return Outcome{Kind: Continue}
		}
		return Outcome{Kind: Resume}
	})
}

// serve is what every entry to the kernel has around it.
func (k *Kernel) serve(t *Task, call func() Outcome) Outcome {
	if k.over {
		return Outcome{Kind: Interrupted, Ret: negate(unix.EINTR)}
	}
	k.cur, t.inGuest = t, false
	out := call()
	if t.done != nil {
		out = *t.done
		t.done = nil
	}
	if t.kicked {
		t.kicked = false
		k.cfg.Seen(t)
	}
	switch out.Kind {
	case Return, Resume, Continue:
		t.inGuest = true
	}
	return out
}

// SetXFeatures is for a VMM that knows Config.XFeatures late; no task may run yet.
func (k *Kernel) SetXFeatures(mask uint64) { k.cfg.XFeatures = mask }

// End ends every wait: the program is over, and every call to come is Interrupted.
func (k *Kernel) End() {
	k.big.Lock()
	defer k.big.Unlock()
	k.over = true
	for _, t := range k.tasks {
		t.poke()
	}
}

func (k *Kernel) syscall(t *Task, nr uint64, a args) Outcome {
	now := [7]uint64{nr, a[0], a[1], a[2], a[3], a[4], a[5]}
	if !t.again || now != t.last {
		t.deadline = time.Time{}
		t.hasEntered, t.limited = false, false
	}
	t.again = false
	for {
		ret, errno := k.dispatch(t, nr, a)
		if t.done != nil {
			return Outcome{}
		}
		if errno != eRestart {
			k.ownMask(t) // before signals are looked at: the call was not cut
		}
		// Another task may have taken the signal that cut the call: then it goes on. Only the run's end interrupts.
		if errno == eRestart && (k.over || !k.signalled(t) && k.stopping()) {
			k.ownMask(t)
			t.again, t.last = true, now
			return Outcome{Ret: negate(unix.EINTR), Kind: Interrupted}
		}
		if k.signalled(t) || t.resumed {
			if k.act(t, &returning{nr: nr, a: a, ret: ret, errno: errno, once: t.limited}) {
				t.deadline, t.hasEntered = time.Time{}, false
				return Outcome{Kind: Resume}
			}
			if t.done != nil {
				return Outcome{}
			}
		}
		if errno == eRestart {
			k.ownMask(t)
			continue // what came needs no handler: the call goes on
		}
		t.deadline, t.hasEntered = time.Time{}, false
		if errno != 0 {
			return Outcome{Ret: negate(errno)}
		}
		return Outcome{Ret: ret}
	}
}

func (k *Kernel) dispatch(t *Task, nr uint64, a args) (uint64, unix.Errno) {
	c := lookup(nr)
	if c == nil {
		k.countUnknown(nr)
		k.warn(fmt.Sprintf("system call %d is unknown here: answered ENOSYS", nr))
		return 0, unix.ENOSYS
	}
	if c.fn != nil {
		return c.fn(k, t, a)
	}
	k.countUnknown(nr)
	k.warn(fmt.Sprintf("system call %s (%d) refused with %s: %s", c.name, nr, unix.ErrnoName(c.errno), c.note))
	return 0, c.errno
}

// negate encodes an error as Linux does in RAX.
func negate(e unix.Errno) uint64 { return -uint64(e) }

func (k *Kernel) countUnknown(nr uint64) {
	k.mu.Lock()
	k.unknown[nr]++
	k.mu.Unlock()
}

// Unknown returns how often each refused or unknown system call was made. It may be called from any
// goroutine; the map is the caller's.
func (k *Kernel) Unknown() map[uint64]uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	m := make(map[uint64]uint64, len(k.unknown))
	for nr, n := range k.unknown {
		m[nr] = n
	}
	return m
}

// maxWarnings bounds what a hostile guest can make us remember: it may call every number there is.
const maxWarnings = 256

// warn tells the user msg, once.
func (k *Kernel) warn(msg string) {
	k.mu.Lock()
	seen := k.warned[msg] || len(k.warned) >= maxWarnings
	if !seen {
		k.warned[msg] = true
	}
	k.mu.Unlock()
	if !seen && k.cfg.Warn != nil {
		k.cfg.Warn(msg)
	}
}

// ConstantOfAll is Constant without what differs between tasks.
func (k *Kernel) ConstantOfAll(nr uint64) (func() uint64, bool) {
	if nr == unix.SYS_GETTID {
		return nil, false
	}
	return k.Constant(nr)
}

// Current is the task that is being served, for the hooks of Config.
func (k *Kernel) Current() *Task { return k.cur }

// PID is the number of the guest's process and of its first task.
func (k *Kernel) PID() int { return k.cfg.PID }

// Constant returns a function that gives the answer of system call nr, if that answer never changes
// in a run and needs no argument. The answer for gettid is the first task's.
func (k *Kernel) Constant(nr uint64) (func() uint64, bool) {
	var v uint64
	switch nr {
	case unix.SYS_GETPID, unix.SYS_GETTID:
		v = uint64(k.cfg.PID)
	case unix.SYS_GETPPID:
		v = uint64(k.cfg.PPID)
	case unix.SYS_GETUID:
		v = uint64(k.proc.uid)
	case unix.SYS_GETEUID:
		v = uint64(k.proc.euid)
	case unix.SYS_GETGID:
		v = uint64(k.proc.gid)
	case unix.SYS_GETEGID:
		v = uint64(k.proc.egid)
	default:
		return nil, false
	}
	return func() uint64 { return v }, true
}
