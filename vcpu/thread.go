package vcpu

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/cloister-vmm/cloister/internal/block"
	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"golang.org/x/sys/unix"
)

// KickSignal ends KVM_RUN. It is a real-time signal that the Go runtime gives no meaning to; it is
// blocked on the vCPU's thread except inside KVM_RUN (KVM_SET_SIGNAL_MASK), so no handler ever runs.
const KickSignal = unix.Signal(40)

// Config is what a vCPU thread needs. Addresses "on the host" are addresses of this process.
type Config struct {
	ID     int
	VCPU   *kvm.VCPU
	Ledger *breaks.VCPU

	CPU int // host core to own, or -1: not pinned
	// Admit is called with the thread's id before it is pinned to these CPUs of the host: where cores are kept apart a
	// thread may have to be let in first. nil: nothing has to be done.
	Admit func(tid int, cpus []int) error
	FIFO  int // SCHED_FIFO priority 1..99 on a core of its own, or 0

	Float bool // not in SCHED_FIFO until Move says so

	Window         uintptr // guest address 0, on the host
	Supervisor     uintptr // GPA SupervisorGPA, on the host
	SupervisorGPA  uint64
	SupervisorSize uint64
	Root           uint64 // GPA of the guest's PML4
	UserTop        uint64
	SyscallStub    uint64  // guest addresses: LSTAR, …
	DoneStub       uint64  // … the OUT that ends a supervisor routine, …
	ExceptionStub  uint64  // … the first of 32 exception stubs, …
	ExceptionStep  uint64  // … and their distance, bytes
	Frame          uintptr // RSP0, on the host
	Serialise      int     // 1 SERIALIZE, 2 CPUID, 3 IRET
	Constant       func(nr uint64) (func() uint64, bool)
	Handler        Handler
	// How long each looks at what it waits for before it sleeps: the vCPU's thread at the answer, who serves it at the next exit; the stopped vCPU, and who
	// has stopped it. Not numbers of PAUSEs, each of which is 12 cycles on one processor and 140 on another.
	SpinHost, SpinService, SpinStop time.Duration
}

// Handler serves the exits that the vCPU's thread does not answer itself. Serve runs on a housekeeping
// thread while the vCPU waits, out of the guest.
type Handler interface {
	Serve(x *Exit) Answer
}

// Exit is one exit that waits for its answer.
type Exit struct {
	t *Thread

	Cause breaks.Cause
	Nr    uint64 // system call number, port or exception vector
	RIP   uint64 // the site: for a system call its SYSCALL instruction, for an exception the faulting one
	RSP   uint64
	Errno unix.Errno // why KVM_RUN failed, if it did
}

// Answer ends an exit.
type Answer struct {
	Kind AnswerKind
	RAX  uint64
}

// AnswerKind says how the guest goes on.
type AnswerKind int

// Kinds of answers.
const (
	AnswerRAX    AnswerKind = ansRAX    // a system call returns Answer.RAX
	AnswerState  AnswerKind = ansState  // the registers given to Exit.Load
	AnswerResume AnswerKind = ansResume // as it stood
	AnswerEnd    AnswerKind = ansEnd    // never again: the thread ends
	AnswerSregs  AnswerKind = ansSregs  // as AnswerRAX, with the segment registers given to Exit.Load
)

// Thread is one vCPU and its host thread.
type Thread struct {
	cfg     Config
	c       *control
	tid     int
	top     uintptr
	mapping []byte
	fifo    bool
	done    chan struct{}
}

// New allocates the thread's memory; nothing runs yet.
func New(cfg Config) (*Thread, error) {
	c, top, m, err := newControl()
	if err != nil {
		return nil, err
	}
	t := &Thread{cfg: cfg, c: c, top: top, mapping: m, done: make(chan struct{})}
	c.fd, c.run, c.ledger = cfg.VCPU.FD(), cfg.VCPU.Run, cfg.Ledger
	c.pid, c.window, c.userTop = int64(unix.Getpid()), cfg.Window, cfg.UserTop
	c.tables, c.tabGPA, c.tabSize, c.root = cfg.Supervisor, cfg.SupervisorGPA, cfg.SupervisorSize, cfg.Root
	c.stubRIP, c.donRIP, c.excRIP, c.excStep = cfg.SyscallStub, cfg.DoneStub, cfg.ExceptionStub, cfg.ExceptionStep
	c.frame = cfg.Frame
	c.serial = uint64(cfg.Serialise)
	c.spin, c.spinStop = t.cycles(cfg.SpinHost), t.cycles(cfg.SpinStop)
	c.sigset = 1 << (uint(KickSignal) - 1)
	c.req = 1 // born stopped, by generation 1: see Set.Start
	if cfg.Constant != nil {
		for nr := range uint64(constants) {
			if f, ok := cfg.Constant(nr); ok {
				c.constVal[nr], c.constOK[nr] = f(), 1
			}
		}
	}
	c.run.ValidRegs = kvm.SyncRegs | kvm.SyncSregs
	return t, cfg.VCPU.SetSignalMask(^c.sigset)
}

// cycles is d in cycles of the TSC.
func (t *Thread) cycles(d time.Duration) uint64 {
	return uint64(d.Nanoseconds()) * (t.cfg.Ledger.TSCHz / 1e6) / 1000
}

// start makes the thread; it parks before it looks at the guest.
func (t *Thread) start() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^uint64(0)
	}
	// The child inherits the mask: nothing is ever delivered to it.
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old); err != nil {
		return fmt.Errorf("block signals for vCPU %d: %w", t.cfg.ID, err)
	}
	r := spawn(t.top, t.c, entry(loop))
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil); err != nil {
		return fmt.Errorf("restore signals: %w", err)
	}
	if r < 0 {
		return fmt.Errorf("clone the thread of vCPU %d: %w: raise the limit of processes (ulimit -u)", t.cfg.ID, unix.Errno(-r))
	}
	t.tid = int(r)
	if t.cfg.CPU >= 0 {
		var set unix.CPUSet
		set.Set(t.cfg.CPU)
		if err := t.admit([]int{t.cfg.CPU}); err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(t.tid, &set); err != nil {
			return fmt.Errorf("pin vCPU %d to host CPU %d: %w: check `cat /sys/devices/system/cpu/online` and the process's cpuset", t.cfg.ID, t.cfg.CPU, err)
		}
	}
	if t.cfg.FIFO > 0 && !t.cfg.Float {
		attr := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: uint32(t.cfg.FIFO)}
		if err := unix.SchedSetAttr(t.tid, attr, 0); err != nil {
			return fmt.Errorf("SCHED_FIFO %d for vCPU %d: %w: run as root, or raise RLIMIT_RTPRIO", t.cfg.FIFO, t.cfg.ID, err)
		}
		t.fifo = true
	}
	go t.serve()
	return nil
}

func (t *Thread) admit(cpus []int) error {
	if t.cfg.Admit == nil {
		return nil
	}
	if err := t.cfg.Admit(t.tid, cpus); err != nil {
		return fmt.Errorf("vCPU %d: %w", t.cfg.ID, err)
	}
	return nil
}

// Move puts the running thread on one of the host's CPUs of the list, in SCHED_FIFO or out of it. It takes effect
// at once: the kernel migrates the thread, which is a break if it is in the guest.
func (t *Thread) Move(cpus []int, fifo bool) error {
	var set unix.CPUSet
	for _, c := range cpus {
		set.Set(c)
	}
	if len(cpus) > 0 {
		if err := t.admit(cpus); err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(t.tid, &set); err != nil {
			return fmt.Errorf("move vCPU %d to host CPUs %v: %w", t.cfg.ID, cpus, err)
		}
	}
	attr := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}
	if fifo {
		attr.Policy, attr.Priority = unix.SCHED_FIFO, uint32(t.cfg.FIFO)
	}
	if fifo != t.fifo {
		if err := unix.SchedSetAttr(t.tid, attr, 0); err != nil {
			return fmt.Errorf("scheduling class of vCPU %d: %w: run as root, or raise RLIMIT_RTPRIO", t.cfg.ID, err)
		}
		t.fifo = fifo
	}
	return nil
}

// Pause is the instruction PAUSE, for loops of Go's that wait for another core.
func Pause() { pause() }

// TID is the host's thread id.
func (t *Thread) TID() int { return t.tid }

// Done is closed when the thread has ended and its ledger is final.
func (t *Thread) Done() <-chan struct{} { return t.done }

// serve answers exits until the thread has ended.
func (t *Thread) serve() {
	runtime.LockOSThread() // its wake-ups must not depend on which M runs what; ends locked: the thread goes with it
	defer close(t.done)
	c := t.c
	x := &Exit{t: t}
	for {
		if !t.waitDoor(handPosted) {
			return
		}
		x.Cause, x.Nr, x.RIP, x.RSP = breaks.Cause(c.why), c.nr, c.rip, c.rsp
		x.Errno = unix.Errno(c.errno)
		a := t.cfg.Handler.Serve(x)
		c.ansRAX, c.ansKind = a.RAX, uint64(a.Kind)
		t.hand(handDone)
	}
}

// died ends the affairs of a thread that is gone without having done it, and says so. Its books stay as they are.
func (s *Set) died(t *Thread) error {
	err := fmt.Errorf("vCPU %d (thread %d): %w: the VM cannot go on", t.cfg.ID, t.tid, ErrDied)
	if s.Died != nil {
		s.Died(err)
	}
	// ORDER(O3): the kernel says that the thread is no more, so nobody else writes it; and behind Died. Pairs with the loads in waitDoor and Thread.ended. Without it who serves the thread
	// would wait for its next exit for ever, or see it end before it is known why.
	atomic.StoreUint64(&t.c.ended, 1)
	atomic.AddUint32(&t.c.doorReq, 1)
	wakeFutex(&t.c.doorReq)
	return err
}

// outlive condemns the VM when err says that a vCPU's thread has died; it returns err. It is called with s.mu held.
func (s *Set) outlive(err error) error {
	if !errors.Is(err, ErrDied) {
		return err
	}
	s.condemn()
	for _, t := range s.threads {
		if t.c.req != s.gen { // it was not asked to stop yet
			s.request(t, s.gen)
			err = errors.Join(err, s.kick(t))
		}
	}
	return err
}

// hand publishes a state of the hand-over and wakes the vCPU's thread if it sleeps.
func (t *Thread) hand(state uint64) {
	c := t.c
	// ORDER(O3): publishes the answer. Pairs with load64(&c.hand) in handOver. Without it the vCPU could
	// load ansRAX before it was written.
	t.raceSays()
	atomic.StoreUint64(&c.hand, state)
	t.ring()
}

func (t *Thread) ring() {
	// ORDER(O1), ORDER(O3): the bell after the word; pairs with load32(&c.bell) before the vCPU looks at
	// that word a last time. Without it the vCPU could sleep on news that came.
	atomic.AddUint32(&t.c.bell, 1)
	// ORDER(O1): pairs with add32(&c.sleepBell): either the vCPU sees the word, or this load sees it asleep.
	// Without the full barrier between, neither would.
	if atomic.LoadUint32(&t.c.sleepBell) != 0 {
		wakeFutex(&t.c.bell)
	}
}

// waitDoor waits until hand == want; false when the thread has ended instead.
func (t *Thread) waitDoor(want uint64) bool {
	c := t.c
	done := func() bool {
		// ORDER(O3): acquires the exit's description, or the ledger's last state. Pairs with
		// store64(&c.hand, …) and store64(&c.ended, 1). Without it cause and nr could be an older exit's.
		return atomic.LoadUint64(&c.hand) == want || atomic.LoadUint64(&c.ended) != 0
	}
	for until := kvm.TSC() + t.cycles(t.cfg.SpinService); !done(); {
		if kvm.TSC() < until {
			pause()
			continue
		}
		sleep(&c.doorReq, &c.sleepReq, done, nil)
	}
	t.raceSaw()
	return !t.ended()
}

// InGuest reports, for an exit with cause Signal, that the signal took the vCPU out of the guest; false: it found it
// outside, behind another exit that was answered.
func (x *Exit) InGuest() bool { return x.t.c.kicked != 0 && x.t.c.open != 0 }

// Regs are the guest's registers at the exit. They may be read while the exit is being served.
func (x *Exit) Regs() *kvm.Regs { return &x.t.c.run.Regs }

// IO describes the access of a PIO exit: direction, width in bytes, count.
func (x *Exit) IO() (out bool, size uint8, port uint16, count uint32) { return x.t.c.run.IO() }

// MMIO describes the access of an MMIO exit.
func (x *Exit) MMIO() (gpa uint64, write bool) {
	r := x.t.c.run
	return r.Exit[0], r.Exit[2]>>32&0xff == 1
}

// Reason is the exit reason that the kernel gave, with its first two details.
func (x *Exit) Reason() (reason uint32, detail [2]uint64) {
	r := x.t.c.run
	return r.ExitReason, [2]uint64{r.Exit[0], r.Exit[1]}
}

// StaysAtCPL3 reports whether SYSCALL leaves the vCPU at CPL 3 on this back end (pvm); known once a
// system call was seen.
func (x *Exit) StaysAtCPL3() bool { return x.t.c.stay == 1 }

// Sregs reads the segment and control registers. The ioctl runs on the vCPU's own thread: from another
// one it would move the vCPU to that CPU and back. What XSave reads comes with it: whoever asks for one will want the other.
func (x *Exit) Sregs() (*kvm.Sregs, error) {
	if err := x.fetch(haveSregs, kvm.IoGetSregs, x.t.c.sregsAddr(), "KVM_GET_SREGS"); err != nil {
		return nil, err
	}
	return &x.t.c.sregs, nil
}

// XSave reads the x87, SSE, AVX … state in the processor's standard format. The pointer is good until the exit is answered.
func (x *Exit) XSave() (*kvm.XSave, error) {
	if err := x.fetch(haveXSave, kvm.IoGetXSave, x.t.c.xsaveAddr(), "KVM_GET_XSAVE"); err != nil {
		return nil, err
	}
	return &x.t.c.xsave, nil
}

// fetch makes sure that what was read at this exit.
func (x *Exit) fetch(what uint64, op, arg uintptr, name string) error {
	c := x.t.c
	if c.have&what != 0 {
		return nil
	}
	if err := x.ioctl(opFetch, 0, name); err != nil || c.have&what != 0 {
		return err
	}
	err := x.ioctl(op, arg, name) // for its error
	if err == nil {
		c.have |= what
	}
	return err
}

// SetXSave loads what XSave reads; KVM refuses what the processor would.
func (x *Exit) SetXSave(s *kvm.XSave) error {
	c := x.t.c
	c.setX = 0
	c.have &^= haveXSave // KVM may put it in another form
	if s != &c.xsave {
		c.xsave = *s
	}
	return x.ioctl(kvm.IoSetXSave, c.xsaveAddr(), "KVM_SET_XSAVE")
}

// PutXSave is SetXSave with the answer, for what cannot be refused: a state that was is an internal error of the vCPU, and is served as that.
func (x *Exit) PutXSave(s *kvm.XSave) {
	c := x.t.c
	c.xsave = *s
	c.setX = 1
	c.have |= haveXSave
}

// SetMSR writes one model-specific register of the vCPU.
func (x *Exit) SetMSR(index uint32, value uint64) error {
	c := x.t.c
	c.msr = kvm.MSRBlock{N: 1, MSR: kvm.MSR{Index: index, Value: value}}
	if err := x.ioctl(kvm.IoSetMSRs, c.msrAddr(), "KVM_SET_MSRS"); err != nil {
		return err
	}
	if c.opRet != 1 {
		return fmt.Errorf("KVM_SET_MSRS on vCPU %d: register %#x refused", x.t.cfg.ID, index)
	}
	return nil
}

// Idle closes the break that is being served, and what follows is idle time until the answer: the vCPU has
// no thread of the guest. The vCPU's thread goes on obeying stops.
func (x *Exit) Idle() error { return x.ioctl(opIdle, 0, "idle") }

// Seen takes a call of Attend back that has not taken effect yet: what it was about has been looked at.
func (x *Exit) Seen() {
	// ORDER(O10): pairs with load64(&c.attn) in loop, behind O3's answer. Without it the guest would be left once more for nothing.
	atomic.StoreUint64(&x.t.c.attn, 0)
}

// Book gives the break that is being served another cause and number: what it was is known only now.
func (x *Exit) Book(cause breaks.Cause, nr uint64) { x.t.c.cause, x.t.c.nr = uint64(cause), nr }

// Load sets the registers for AnswerState; with a nil regs only the segments, for AnswerSregs.
func (x *Exit) Load(regs *kvm.Regs, sregs *kvm.Sregs) {
	if regs != nil {
		x.t.c.regs = *regs
	}
	if sregs != &x.t.c.sregs {
		x.t.c.sregs = *sregs
	}
}

func (x *Exit) ioctl(op, arg uintptr, name string) error {
	t := x.t
	t.c.op, t.c.opArg, t.c.opRet = op, arg, 0
	t.hand(handOp)
	if !t.waitDoor(handOpDone) {
		return fmt.Errorf("%s on vCPU %d: its thread has ended", name, t.cfg.ID)
	}
	if t.c.opRet < 0 {
		return fmt.Errorf("%s on vCPU %d: %w", name, t.cfg.ID, unix.Errno(-t.c.opRet))
	}
	return nil
}

// SetSealed chooses the book of the breaks to come and reports whether that changed anything. To be
// called while an exit is served.
func (x *Exit) SetSealed(on bool) bool { return x.t.setSealed(on) }

func (t *Thread) setSealed(on bool) bool {
	v := uint64(0)
	if on {
		v = 1
	}
	changed := t.c.sealed != v
	t.c.sealed = v
	return changed
}

// join waits until the kernel has cleared the thread's id: then no instruction of it is left.
func (t *Thread) join(limit time.Duration) error {
	for end := time.Now().Add(limit); ; {
		// ORDER(O1): pairs with the kernel's store at the thread's exit (CLONE_CHILD_CLEARTID). Without it
		// the stack could be unmapped under the thread.
		v := atomic.LoadUint32(&t.c.tid)
		if v == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("thread %d of vCPU %d does not end", t.tid, t.cfg.ID)
		}
		// The kernel's wake at thread exit is a shared one.
		block.Futex(&t.c.tid, futexWaitShared, v, &unix.Timespec{Nsec: 10e6})
	}
}

// Close frees the thread's memory; the thread must have ended.
func (t *Thread) Close() error {
	if t.tid != 0 {
		if err := t.join(time.Second); err != nil {
			return err
		}
	}
	return unix.Munmap(t.mapping)
}
