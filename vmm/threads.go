package vmm

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cloister-vmm/cloister/guest/linux"
	"github.com/cloister-vmm/cloister/guest/stub"
	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/vcpu"
	"golang.org/x/sys/unix"
)

// Thread is what the monitor is told of a thread of the guest.
type Thread struct {
	VCPU    int
	TID     int // of the vCPU's host thread
	Task    int // the guest's own number
	Name    string
	CPU     int // host core it owns, -1: none
	StatsFD int // of a vCPU that is new; 0: none
}

// reuseLimit is how long a new thread waits for the vCPU of one that is just ending, when there is no other left.
const reuseLimit = 2 * time.Second

// spawn is linux.Config.Spawn: it gives a new task a vCPU. It runs on its parent's serving thread, with the kernel's
// lock; making a vCPU is a millisecond, taking over one that is idle some tens of microseconds.
func (m *Machine) spawn(child *linux.Task, regs *linux.Registers, fsBase uint64) unix.Errno {
	parent := m.kernel.Current().Data.(*processor)
	x, err := parent.x.XSave()
	if err != nil {
		return unix.EAGAIN
	}
	xsave := *x
	w := &work{task: child, regs: kvm.Regs(*regs), fsBase: fsBase, gsBase: parent.GSBase(), xsave: &xsave}
	p, err := m.freeProcessor()
	if err == nil && p == nil {
		err = m.addProcessor(w)
	} else if err == nil {
		p.cpuBefore, p.ranBefore = p.cpuTime()
		p.task, child.CPU, child.Data = child, p, p
		m.setBusy(p, true)
		m.settle(p)
		m.inherit(p, parent)
		p.work <- w
		m.told(p, 0)
	}
	if err != nil {
		m.cfg.Warn(fmt.Sprintf("a thread of the guest gets no vCPU: %v", err))
		return unix.EAGAIN
	}
	return 0
}

// freeProcessor takes one whose thread has ended; nil when a new one may be made instead.
func (m *Machine) freeProcessor() (*processor, error) {
	select {
	case p := <-m.idle:
		return p, nil
	default:
	}
	m.mu.Lock()
	n := len(m.vcpus)
	m.mu.Unlock()
	if n < stub.MaxVCPUs {
		return nil, nil
	}
	select {
	case p := <-m.idle:
		return p, nil
	case <-m.over:
		return nil, vcpu.ErrEnded
	case <-time.After(reuseLimit):
		return nil, fmt.Errorf("all %d are in use", stub.MaxVCPUs)
	}
}

// addProcessor makes a further vCPU, with its thread, and lets it run.
func (m *Machine) addProcessor(w *work) error {
	m.mu.Lock()
	i := len(m.vcpus)
	m.mu.Unlock()
	p, err := m.newProcessor(i)
	if err != nil {
		return err
	}
	s, err := p.load()
	if err != nil {
		return err
	}
	if err := p.cpu.SetXSave(w.xsave); err != nil {
		return err
	}
	if err := p.cpu.Prime(); err != nil {
		return err
	}
	s.FS.Base, s.GS.Base = w.fsBase, w.gsBase
	if err := p.cpu.SetSregs(s); err != nil {
		return err
	}
	// By the shared page, so that a signal before the first instruction finds them there.
	p.cpu.Run.Regs, p.cpu.Run.DirtyRegs = w.regs, kvm.SyncRegs
	p.task, w.task.CPU, w.task.Data = w.task, p, p
	m.setBusy(p, true)
	p.host = m.place(p)
	m.number(p)
	p.setAux(p.setMSR)
	if err := p.makeThread(); err != nil {
		return err
	}
	if err := m.set.Add(p.thread); err != nil {
		return err
	}
	m.started(p)
	m.inherit(p, m.kernel.Current().Data.(*processor))
	m.told(p, p.statsFD)
	return nil
}

// inherit puts a thread that has no core of its own where the one that made it shares cores, as it does natively; nothing is
// left of what the vCPU's former thread had asked for.
func (m *Machine) inherit(p, parent *processor) {
	if p.host >= 0 || slices.Equal(p.shared, parent.shared) {
		return
	}
	list := parent.shared
	if list == nil {
		list = m.cfg.Housekeeping
	}
	m.moveTo(p, -1, list)
}

// threadExit ends the task of p: its vCPU is idle until another task gets it, or the run ends.
func (p *processor) threadExit() vcpu.Answer {
	m := p.m
	if p.ledger.Sealed != 0 {
		p.unseal()
	}
	if err := p.x.Idle(); err != nil {
		return p.broken(err.Error())
	}
	p.task = nil
	m.setBusy(p, false)
	m.patching.forget(p)
	m.idle <- p
	select {
	case w := <-p.work:
		return p.begin(w)
	case <-m.over:
		return vcpu.Answer{Kind: vcpu.AnswerEnd}
	}
}

// begin is the answer by which an idle vCPU starts with a new task.
func (p *processor) begin(w *work) vcpu.Answer {
	if err := p.x.SetXSave(w.xsave); err != nil {
		return p.broken(err.Error())
	}
	s, err := p.x.Sregs()
	if err != nil {
		return p.broken(err.Error())
	}
	s.CS, s.SS = userCS, userSS
	s.FS.Base, s.GS.Base = w.fsBase, w.gsBase
	p.wrote = false
	p.x.Load(&w.regs, s)
	return vcpu.Answer{Kind: vcpu.AnswerState}
}

// kick is linux.Config.Kick.
func (m *Machine) kick(t *linux.Task) {
	p := t.Data.(*processor)
	if err := m.set.Attend(p.thread); err != nil && !errors.Is(err, vcpu.ErrEnded) && !errors.Is(err, vcpu.ErrDied) {
		m.cfg.Warn(fmt.Sprintf("signal for thread %d: %v", t.ID, err))
	}
}

// seen is linux.Config.Seen.
func (m *Machine) seen(t *linux.Task) { t.Data.(*processor).x.Seen() }

// barrier is linux.Config.Barrier: a stop, after which every vCPU serialises before it enters the guest. The system call has no error for
// "not yet": it waits, as the kernel's waits for a CPU that does not answer.
func (m *Machine) barrier() {
	for err := m.serialise("membarrier"); err != nil; err = m.serialise("membarrier") {
		m.cfg.Warn("membarrier waits: " + err.Error())
	}
}

// ends says that the run is over: nobody waits for work any more. alone: there is one vCPU.
func (m *Machine) ends() (first, alone bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	first, alone = !m.ending, len(m.vcpus) == 1
	m.ending = true
	if first {
		close(m.over)
	}
	return first, alone
}

// endOthers ends every vCPU but the one whose exit is being served, which answers AnswerEnd. It does not wait.
func (m *Machine) endOthers() {
	if first, alone := m.ends(); !first || alone {
		return
	}
	m.ender.Add(1)
	go func() {
		defer m.ender.Done()
		m.kernel.End()
		for {
			p, err := m.set.Stop(stopLimit)
			if err == nil {
				err = p.End(resumeLimit)
			}
			if !errors.Is(err, vcpu.ErrStopTimeout) {
				if err != nil {
					m.cfg.Warn("end of the threads: " + err.Error())
				}
				return
			}
			m.cfg.Warn(err.Error())
		}
	}()
}

// place is the host core that p's task shall own, by the run's rules; -1: none.
func (m *Machine) place(p *processor) int {
	if m.cfg.Place == nil || p.task == nil {
		return -1
	}
	host := m.cfg.Place(p.task.ID-m.kernel.PID(), p.task.Name())
	if host >= 0 && host != p.host && m.owner(host, p) {
		m.cfg.Warn(fmt.Sprintf("--place: CPU %d has a thread of the guest already: %q shares the housekeeping CPUs", host, p.task.Name()))
		return -1
	}
	return host
}

// settle moves p's thread to where the run's rules want its task.
func (m *Machine) settle(p *processor) {
	if host := m.place(p); host != p.host {
		m.moveTo(p, host, m.cfg.Housekeeping)
	}
}

// moveTo pins p's thread to a core of its own, or with -1 to those of the list.
func (m *Machine) moveTo(p *processor, host int, list []int) unix.Errno {
	cpus := list
	if host >= 0 {
		cpus = []int{host}
	}
	if err := p.thread.Move(cpus, host >= 0 && m.cfg.FIFO > 0); err != nil {
		m.cfg.Warn(err.Error())
		return unix.EINVAL
	}
	p.host, p.shared = host, nil
	if host < 0 {
		p.shared = list
	}
	// The writer of this word is whoever holds the kernel's lock; a reader sees the old core or the new one.
	p.ledger.SetCPU(host)
	m.number(p)
	return 0
}

func (m *Machine) renamed(t *linux.Task) {
	p := t.Data.(*processor)
	m.settle(p)
	m.told(p, 0)
}

// cpus is how many virtual CPUs the program sees: the cores that the run owns, and those it shares.
func (m *Machine) cpus() int { return max(1, len(m.cfg.CPUs)) }

// move is linux.Config.Move: sched_setaffinity on virtual CPUs. A core that the run owns is taken only by asking for
// it alone, and only when no other thread has it; a list with others in it means the housekeeping cores of the list.
func (m *Machine) move(t *linux.Task, cpus []int) unix.Errno {
	p := t.Data.(*processor)
	if len(m.cfg.CPUs) == 0 {
		return 0
	}
	var shared []int
	for _, c := range cpus {
		if host := m.cfg.CPUs[c]; slices.Contains(m.cfg.Housekeeping, host) {
			shared = append(shared, host)
		}
		if m.cfg.CPUs[c] == p.host && len(cpus) > 1 {
			return 0 // it may stay where it is
		}
	}
	if len(shared) > 0 {
		errno := m.moveTo(p, -1, shared)
		m.told(p, 0)
		return errno
	}
	for _, c := range cpus {
		host := m.cfg.CPUs[c]
		if m.owner(host, p) {
			continue
		}
		if host == p.host {
			return 0
		}
		errno := m.moveTo(p, host, nil)
		m.told(p, 0)
		return errno
	}
	m.cfg.Warn("sched_setaffinity: that core belongs to another thread of the guest: answered EINVAL")
	return unix.EINVAL
}

// rename keeps the name of p's task where the kernel's lock is not needed to read it.
func (p *processor) rename() {
	if p.task != nil {
		p.m.mu.Lock()
		p.name = p.task.Name()
		p.m.mu.Unlock()
	}
}

func (m *Machine) setBusy(p *processor, on bool) {
	m.mu.Lock()
	p.busy = on
	m.mu.Unlock()
}

// owner says whether a vCPU other than p has the host core.
func (m *Machine) owner(host int, p *processor) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.ContainsFunc(m.vcpus, func(o *processor) bool { return o != p && o.host == host && o.busy })
}

// told tells the monitor of p's task.
func (m *Machine) told(p *processor, statsFD int) {
	p.rename()
	if m.cfg.Thread == nil || p.task == nil {
		return
	}
	m.cfg.Thread(Thread{VCPU: p.id, TID: p.thread.TID(), Task: p.task.ID, Name: p.task.Name(), CPU: p.host, StatsFD: statsFD})
}
