package vmm

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cloister-vmm/cloister/firmware"
	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/guest/linux"
	"github.com/cloister-vmm/cloister/guest/mem"
	"github.com/cloister-vmm/cloister/guest/stub"
	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/vcpu"
	"golang.org/x/sys/unix"
)

// processor is one vCPU of the machine and the thread of the guest that runs on it. It serves that vCPU's exits, and is
// its task's linux.CPU. All but what is said otherwise belongs to whoever serves the vCPU: its serving thread, or before
// it runs the one that makes it.
type processor struct {
	m      *Machine
	id     int
	cpu    *kvm.VCPU
	ledger *breaks.VCPU
	thread *vcpu.Thread
	task   *linux.Task
	host   int          // the host core it owns, -1: none. Guarded by the kernel's lock
	number atomic.Int64 // ORDER(none): the virtual CPU that its task is on
	aux    int64        // what RDTSCP and RDPID say
	shared []int        // without one: the host cores that it was put on, nil: the housekeeping ones. The same
	busy   bool         // has a task. Guarded by Machine.mu
	name   string       // of the task, for people. Guarded by Machine.mu
	safe   safe
	// The thread's CPU time when it was last looked at, and what it and the vCPU's guest time were when the task began.
	// Guarded by the kernel's lock.
	onCPU, cpuBefore, ranBefore time.Duration

	work chan *work // a new thread of the guest for a processor that is idle

	statsFD int
	noStats error // why there are none
	stats   *kvm.Stats
	statAt  []uint64
	exitsAt int // index of the count of all exits in stats, -1: there is none

	ring       *ring // while sealed, with RingCalls
	x          *vcpu.Exit
	routine    *routine
	later      bool // a signal came while a routine ran
	wrote      bool
	want       int // what the hooks of the current system call asked for
	provoked   uint64
	sregs      *kvm.Sregs // of the current exit, once fetched
	sregsDirty bool
	regs       linux.Registers // the program's registers at the current exit, once asked for
	haveRegs   bool
	probed     byte // read by lost, so that the read is made
}

// work is the beginning of a thread of the guest.
type work struct {
	task   *linux.Task
	regs   kvm.Regs
	fsBase uint64
	gsBase uint64
	xsave  *kvm.XSave
}

// newProcessor makes vCPU i of the machine, a further one; it has no state yet.
func (m *Machine) newProcessor(i int) (p *processor, err error) {
	p = m.processor(i)
	if p.ledger, err = m.cfg.Ledgers(i); err != nil {
		return nil, err
	}
	if p.cpu, err = m.vm.NewVCPU(i); err != nil {
		return nil, err
	}
	m.admit(p) // at once: its number is used up now, whatever becomes of it
	if err := p.openStats(); err != nil {
		return nil, err
	}
	if err := p.cpu.SetCPUID(cpuidList(m.entries)); err != nil {
		return nil, err
	}
	return p, p.complete()
}

// beginMain makes the first vCPU as far as that needs the VM alone. The others take over the CPUID that it has taken.
func (m *Machine) beginMain() (err error) {
	p := m.processor(0)
	if p.cpu, err = m.vm.NewVCPU(0); err != nil {
		return err
	}
	m.main = p
	if err := p.openStats(); err != nil {
		return err
	}
	return p.offerCPUID()
}

// makeMain completes the first vCPU up to its state.
func (m *Machine) makeMain() (err error) {
	p := m.main
	if p.ledger, err = m.cfg.Ledgers(0); err != nil {
		return err
	}
	m.admit(p)
	m.Info.StatsFD = p.statsFD
	if err := p.complete(); err != nil {
		return err
	}
	if p.task, err = m.kernel.NewTask(p); err == nil {
		p.task.Data = p
		p.rename()
	}
	return err
}

func (m *Machine) processor(i int) *processor {
	return &processor{m: m, id: i, host: -1, aux: -1, work: make(chan *work, 1)}
}

// admit makes p, which has its ledger, one of the machine's vCPUs.
func (m *Machine) admit(p *processor) {
	m.mu.Lock()
	m.vcpus = append(m.vcpus, p)
	m.mu.Unlock()
}

// openStats opens the kernel's own counts of the vCPU. That there are none is no error: complete warns of it.
func (p *processor) openStats() error {
	fd, err := p.cpu.StatsFD()
	if err != nil {
		p.noStats = err
		return nil
	}
	p.statsFD = fd
	if p.stats, err = kvm.NewStats(fd); err != nil {
		return err
	}
	p.statAt, p.exitsAt = make([]uint64, len(p.stats.Names)), p.stats.Index("exits")
	return nil
}

// complete gives the vCPU its place in the supervisor block.
func (p *processor) complete() error {
	m, i := p.m, p.id
	if p.noStats != nil {
		m.cfg.Warn("the kernel's own exits are not counted: " + p.noStats.Error())
	}
	tss := firmware.TSS(stub.RSP0(i))
	copy(m.sup[stub.TSS(i):], tss[:])
	gdt := firmware.GDT(abi.SupVA+stub.TSS(i), uint32(i), 0) // getcpu finds the vCPU in it: vdso.CPUs
	copy(m.sup[stub.GDT(i):], gdt[:])
	return m.space.MapSupervisor(abi.SupVA+stub.TSS(i), abi.SupGPA+stub.TSS(i), 2*abi.Page, mem.Read|mem.Write, false)
}

func (m *Machine) makeThread() error {
	p := m.main
	p.host, p.busy = m.cfg.CPU, true
	m.number(p)
	p.setAux(p.setMSR)
	if err := p.makeThread(); err != nil {
		return err
	}
	m.set = vcpu.NewSet(p.thread)
	m.set.Died = m.died
	return nil
}

// setMSR is for a vCPU that has no thread yet.
func (p *processor) setMSR(index uint32, value uint64) error {
	return p.cpu.SetMSRs([]kvm.MSR{{Index: index, Value: value}})
}

// makeThread prepares the vCPU's host thread; p.host says where it will be.
func (p *processor) makeThread() (err error) {
	m, l := p.m, p.ledger
	l.ID, l.TSCHz, l.CPU = uint32(p.id), m.Info.TSCHz, breaks.NoCPU
	if p.host >= 0 {
		l.CPU = uint32(p.host)
	}
	l.Magic = breaks.LedgerMagic
	kind := serialiseKind(kvm.CPUID)
	m.Info.Serialise = serialising[kind]
	// Less than two sleeps and wakes cost, and on a core of its own nothing else waits.
	spin := 50 * time.Microsecond
	if p.host < 0 && (p.id > 0 || runtime.NumCPU() == 1) {
		spin = time.Microsecond // whoever serves the exit, or another thread of the program, waits for this very CPU
	}
	// A kick is there within some 30 µs, a patch of one site made in some more. On a shared CPU whoever spins may keep
	// away the one it waits for.
	stop := 200 * time.Microsecond
	if p.host < 0 || runtime.NumCPU() == 1 {
		stop = time.Microsecond
	}
	c := vcpu.Config{
		ID: p.id, VCPU: p.cpu, Ledger: l, CPU: p.host,
		Window: addr(m.window), UserTop: abi.UserTop,
		Supervisor: addr(m.sup), SupervisorGPA: abi.SupGPA, SupervisorSize: uint64(len(m.sup)), Root: m.space.Root(),
		SyscallStub: stub.SyscallEntry, DoneStub: stub.Done, ExceptionStub: stub.Exception, ExceptionStep: stub.ExceptionStep,
		Frame: addr(m.sup) + uintptr(stub.StackTop(p.id)), Serialise: kind, Handler: p,
		SpinHost: spin, SpinService: 4 * time.Microsecond, SpinStop: stop,
	}
	c.Admit = m.cfg.Admit
	c.FIFO, c.Float = m.cfg.FIFO, p.host < 0 && p.id > 0
	c.Constant = m.kernel.Constant
	if p.id > 0 {
		c.Constant = m.kernel.ConstantOfAll
	}
	p.thread, err = vcpu.New(c)
	return err
}

// start counts the vCPU's thread, which has been made, among those that live.
func (m *Machine) started(p *processor) {
	m.mu.Lock()
	m.live++
	m.mu.Unlock()
	go func() {
		<-p.thread.Done()
		m.mu.Lock()
		m.live--
		last := m.live == 0
		m.mu.Unlock()
		if last {
			close(m.done)
		}
	}()
}

func (p *processor) close() error {
	var err error
	if p.thread != nil {
		err = p.thread.Close()
	}
	if p.cpu != nil {
		if e := p.cpu.Close(); err == nil {
			err = e
		}
	}
	if p.statsFD != 0 {
		if e := unix.Close(p.statsFD); err == nil {
			err = e
		}
		p.statsFD, p.stats = 0, nil
	}
	return err
}

// fetch reads the segment registers of the current exit, once: FSGSBASE lets the guest change them itself.
func (p *processor) fetch() *kvm.Sregs {
	if p.sregs == nil {
		s, err := p.x.Sregs()
		if err != nil {
			panic(err) // becomes the run's error in Serve
		}
		p.sregs = s
	}
	return p.sregs
}

// FSBase is linux.CPU's, as the next ones.
func (p *processor) FSBase() uint64 { return p.fetch().FS.Base }

// GSBase is the base of GS.
func (p *processor) GSBase() uint64 { return p.fetch().GS.Base }

// SetFSBase takes effect when the exit is answered.
func (p *processor) SetFSBase(v uint64) { p.fetch().FS.Base = v; p.sregsDirty = true }

// SetGSBase takes effect when the exit is answered.
func (p *processor) SetGSBase(v uint64) { p.fetch().GS.Base = v; p.sregsDirty = true }

// Registers are the program's, wherever in the supervisor the vCPU stands.
func (p *processor) Registers() *linux.Registers {
	if !p.haveRegs {
		p.regs, p.haveRegs = linux.Registers(*p.x.Regs()), true
		switch p.x.Cause {
		case breaks.Syscall, breaks.Seal, breaks.End:
			// SYSCALL put them there.
			p.regs.RIP, p.regs.RFLAGS = p.regs.RCX, p.regs.R11
		}
	}
	return &p.regs
}

// XState is the vCPU's XSAVE area.
func (p *processor) XState() ([]byte, unix.Errno) {
	s, err := p.x.XSave()
	if err != nil {
		return nil, unix.EIO
	}
	// KVM gives PKRU even where the guest has no XCR0 bit for it (fpu_copy_guest_fpstate_to_uabi).
	const xstateBV = 512
	have := p.m.xcr0 | 3
	binary.LittleEndian.PutUint64(s[xstateBV:], binary.LittleEndian.Uint64(s[xstateBV:])&have)
	return s[:p.m.xsize], 0
}

// SetXState loads an XSAVE area.
func (p *processor) SetXState(b []byte) unix.Errno {
	var s kvm.XSave
	copy(s[:], b)
	if err := p.x.SetXSave(&s); err != nil {
		return unix.EINVAL
	}
	return 0
}

// PutXState loads an XSAVE area with the answer.
func (p *processor) PutXState(b []byte) {
	var s kvm.XSave
	copy(s[:], b)
	p.x.PutXSave(&s)
}

// cpuTime is how long the vCPU's thread has been on a CPU, by the host's clock for it, and how long of that it has executed
// the guest. What the ledger calls guest time goes on while a thread that shares its CPU waits for it: the clock does not.
func (p *processor) cpuTime() (cpu, program time.Duration) {
	if p.thread == nil || p.thread.TID() == 0 {
		return 0, 0
	}
	const ofThread, exact = 4, 2 // CPUCLOCK_PERTHREAD_MASK, CPUCLOCK_SCHED (include/linux/posix-timers_types.h)
	var ts unix.Timespec
	if err := unix.ClockGettime(^int32(p.thread.TID())<<3|ofThread|exact, &ts); err == nil { // else it has ended, and stands still
		p.onCPU = time.Duration(ts.Nano())
	}
	return p.onCPU, min(p.onCPU, time.Duration(breaks.Nanoseconds(p.ledger.GuestTime(kvm.TSC()), p.m.Info.TSCHz)))
}

// switches is linux.Config.Switches, from what the kernel says of the vCPU's thread (proc_pid_status(5),
// Documentation/scheduler/sched-stats.rst).
func switches(t *linux.Task) (linux.Switches, bool) {
	p, ok := t.Data.(*processor)
	if !ok || t.CPU == nil {
		return linux.Switches{}, false
	}
	dir := fmt.Sprintf("/proc/self/task/%d/", p.thread.TID())
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return linux.Switches{}, false
	}
	stat, err := os.ReadFile(dir + "schedstat")
	if err != nil {
		return linux.Switches{}, false
	}
	var s linux.Switches
	var on, ready uint64
	if n, _ := fmt.Sscan(string(stat), &on, &ready, &s.Slices); n != 3 { // the count says it
		return linux.Switches{}, false
	}
	s.Ready = time.Duration(ready)
	found := 0
	for line := range strings.Lines(string(status)) {
		for key, field := range map[string]*uint64{"voluntary_ctxt_switches": &s.Voluntary, "nonvoluntary_ctxt_switches": &s.Involuntary} {
			if n, err := fmt.Sscanf(line, key+":%d", field); n == 1 && err == nil {
				found++
			}
		}
	}
	return s, found == 2
}

func (p *processor) String() string { return fmt.Sprintf("vCPU %d", p.id) }
