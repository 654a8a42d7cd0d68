package linux

import (
	"bytes"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister-vmm/cloister/guest/vfs"
)

// Registers are the general registers of a task as its program sees them: at a system call RIP lies behind the SYSCALL
// instruction. The fields and their order are KVM's struct kvm_regs.
type Registers struct {
	RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11, R12, R13, R14, R15   uint64
	RIP, RFLAGS                            uint64
}

// CPU is the register state of a task that is out of the guest. It is used only while that task is being served.
type CPU interface {
	// FSBase and SetFSBase read and write the base of FS (a canonical address).
	FSBase() uint64
	SetFSBase(uint64)
	// GSBase and SetGSBase read and write the base of GS (a canonical address).
	GSBase() uint64
	SetGSBase(uint64)
	// Registers are the general registers; a change takes effect if the outcome is Resume.
	Registers() *Registers
	// XState is the XSAVE area in the standard format (Intel SDM vol. 1, 13.4), good until the next call. Its length,
	// at least 576 bytes, is what a signal frame takes: that of the components in XCR0 (CPUID leaf 0DH, EBX).
	// SetXState loads one of the same length; EINVAL when the processor would refuse it.
	// PutXState loads one that no processor would refuse, at the latest before the program goes on.
	XState() ([]byte, unix.Errno)
	SetXState([]byte) unix.Errno
	PutXState([]byte)
}

// Task is one guest thread, as the kernel sees it. All of it is guarded by the kernel's lock.
type Task struct {
	ID  int // the thread's number, as gettid answers it
	CPU CPU
	// Data is the VMM's own record of the task; the kernel carries it.
	Data any

	mask        uint64   // blocked signals, bit n-1 for signal n
	pending     sigQueue // sent to this task alone
	savedMask   uint64   // t's own mask while it has one for a single call (restoreMask)
	restoreMask bool
	waits       uint64 // signals that it waits for in sigtimedwait or signalfd, blocked or not
	altSP       sigaltstack
	trap        trapState
	told        bool // may have a signal to act on (TIF_SIGPENDING)
	clearTID    uint64
	robust      uint64
	name        [16]byte
	sched       schedule
	wake        int           // eventfd: ends the task's wait
	blocked     bool          // waits in the host, without the kernel's lock
	inGuest     bool          // executes the program, or is about to
	kicked      bool          // Config.Kick was called, and it was not served since
	onRing      bool          // its call came by the ring: it may not wait
	resumed     bool          // a handler has set all registers itself
	ended       bool          // has ended; of the first one /proc still tells
	started     time.Duration // CLOCK_BOOTTIME when it was made
	used, ran   time.Duration // CPU time when it ended
	done        *Outcome      // set by a handler that ends the program
	again       bool          // the previous call was Interrupted
	limited     bool          // the call waits no longer than its socket's limit
	last        [7]uint64
	deadline    time.Time // of the interrupted call, zero when it has none
	hasEntered  bool
}

// Name is what prctl(PR_SET_NAME) left, at most 15 bytes of the guest's choice.
func (t *Task) Name() string {
	for i, c := range t.name {
		if c == 0 {
			return string(t.name[:i])
		}
	}
	return string(t.name[:])
}

// NewTask returns the kernel's record of the first guest thread, which has the number of the process.
func (k *Kernel) NewTask(cpu CPU) (*Task, error) {
	k.big.Lock()
	defer k.big.Unlock()
	t, errno := k.newTask()
	if errno != 0 {
		return nil, fmt.Errorf("linux: new task: eventfd: %w: raise the limit of open files (ulimit -n)", errno)
	}
	t.CPU = cpu
	k.first = t
	copy(t.name[:15], base(k.cfg.Exe))
	t.altSP.flags = 0 // a thread begins with SS_DISABLE, a process without
	t.sched = k.lim.start
	return t, nil
}

func (k *Kernel) newTask() (*Task, unix.Errno) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errnoOf(err)
	}
	t := &Task{ID: k.cfg.PID + k.proc.tasks, wake: fd, inGuest: true}
	k.proc.tasks++
	t.started = time.Duration(k.now(unix.CLOCK_BOOTTIME))
	t.altSP.flags = ssDisable
	k.tasks = append(k.tasks, t)
	return t, 0
}

// task finds a task by its number; 0 is the calling one.
func (k *Kernel) task(id uint64) *Task {
	if int32(id) == 0 {
		return k.cur
	}
	for _, t := range k.tasks {
		if t.ID == int(int32(id)) {
			return t
		}
	}
	return nil
}

// Tasks lists the tasks, for vfs.Options.Threads: to be called while a call is served. The first one is there until the
// process ends.
func (k *Kernel) Tasks() []vfs.Thread {
	var list []vfs.Thread
	if k.first != nil && k.first.ended {
		list = append(list, vfs.Thread{ID: k.first.ID, Name: k.first.Name()})
	}
	for _, t := range k.tasks {
		list = append(list, vfs.Thread{ID: t.ID, Name: t.Name()})
	}
	return list
}

// notify makes t look at what has changed for it: a wait ends, or it is taken out of the guest. The caller has the lock.
func (k *Kernel) notify(t *Task) {
	switch {
	case t.blocked:
		t.poke()
	case t.inGuest && k.cfg.Kick != nil:
		t.kicked = k.cfg.Seen != nil
		k.cfg.Kick(t)
	}
}

// poke ends the wait of t in block.
func (t *Task) poke() {
	one := [8]byte{1}
	// It can fail only with EAGAIN, when it has been poked 2^64-2 times and not looked: then it is readable anyway.
	_, _ = unix.Write(t.wake, one[:])
}

// rename gives t a new name, of which 15 bytes up to a NUL count (fs/exec.c: __set_task_comm).
func (k *Kernel) rename(t *Task, name []byte) {
	if i := bytes.IndexByte(name, 0); i >= 0 {
		name = name[:i]
	}
	t.name = [16]byte{}
	copy(t.name[:15], name)
	if k.cfg.Renamed != nil && !t.ended {
		k.cfg.Renamed(t)
	}
}

// remove takes t off the list. It reports whether t was the last one.
func (k *Kernel) remove(t *Task) bool {
	if !t.ended {
		t.used, t.ran = k.cpuTime(t)
		t.ended = true
	}
	for i := range k.tasks {
		if k.tasks[i] == t {
			k.tasks = append(k.tasks[:i], k.tasks[i+1:]...)
			break
		}
	}
	k.sig.queued -= t.pending.entries()
	t.pending = sigQueue{}
	k.retarget(t, k.sig.shared.set&^t.mask)
	if t.wake >= 0 {
		_ = unix.Close(t.wake) // an eventfd has nothing to flush
		t.wake = -1
	}
	return len(k.tasks) == 0
}
