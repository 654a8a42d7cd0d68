package vmm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cloister-vmm/cloister/guest/linux"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/vcpu"
	"golang.org/x/sys/unix"
)

// Limits of a stop and of a resume: far above what a healthy machine needs (tens of microseconds), so that
// reaching one means that a core is held by something else.
const (
	stopLimit   = 2 * time.Second
	resumeLimit = 2 * time.Second
)

// Prepare makes the vCPU's thread and pins it; it stands before the first instruction.
func (m *Machine) Prepare() (err error) {
	if m.born, err = m.set.Start(); err != nil {
		return err
	}
	m.started(m.main)
	m.Info.TID = m.main.thread.TID()
	return nil
}

// Enter lets the guest run.
func (m *Machine) Enter() error {
	m.start = time.Now()
	m.main.border(0) // from here on the counts are the program's
	return m.born.Resume(resumeLimit)
}

// Stop ends the run from outside: the vCPU is stopped synchronously and its thread ends. sig is the signal
// that the result shows, 0 for none.
func (m *Machine) Stop(reason string, sig int) error {
	m.setResult(Result{Ended: "stopped", Reason: reason, Signal: sig})
	m.ends()
	p, err := m.set.Stop(stopLimit)
	if err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	if err := p.End(resumeLimit); err != nil {
		return err
	}
	// A system call that blocks in the host returns now; its answer reaches nobody.
	var one [8]byte
	binary.LittleEndian.PutUint64(one[:], 1)
	if _, err := unix.Write(m.stopper, one[:]); err != nil {
		return fmt.Errorf("end blocking calls: %w", err)
	}
	return nil
}

// Raise offers the program a signal from outside. It reports whether it is the program's; if not, nothing has happened.
func (m *Machine) Raise(sig int) bool { return m.kernel.Raise(sig) }

// Pause stops the machine; the result lets it go on.
func (m *Machine) Pause(limit time.Duration) (*vcpu.Stopped, error) { return m.set.Stop(limit) }

// Done is closed when the guest has ended and its ledgers are final but for Wait.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Wait returns when the run has ended, with its result; the ledgers are final then.
func (m *Machine) Wait() (Result, error) {
	<-m.done
	for _, p := range m.vcpus {
		book := breaks.Open
		if p.ledger.Sealed != 0 {
			book = breaks.Sealed
		}
		p.border(book)
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	if m.result == nil {
		return Result{}, errors.New("the vCPU's thread ended without a result")
	}
	r := *m.result
	r.Wall = time.Since(m.start)
	r.Unknown = m.kernel.Unknown()
	return r, nil
}

// cpuTime is linux.Config.CPUTime. A vCPU's thread outlives the tasks that it executes, so the sum over the vCPUs has those
// that have ended.
func (m *Machine) cpuTime(t *linux.Task) (cpu, program time.Duration) {
	if t != nil {
		p, ok := t.Data.(*processor)
		if !ok {
			return 0, 0 // it got no vCPU
		}
		cpu, program = p.cpuTime()
		cpu -= p.cpuBefore
		return cpu, min(cpu, program-p.ranBefore)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.vcpus {
		c, r := p.cpuTime()
		cpu, program = cpu+c, program+r
	}
	return cpu, program
}

// Resends counts kicks that had to be sent again.
func (m *Machine) Resends() uint64 { return m.set.Resends() }

// fileAt reads a descriptor that somebody else owns.
type fileAt int

func (f fileAt) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		k, err := unix.Pread(int(f), p[n:], off+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, os.NewSyscallError("pread", err)
		}
		if k == 0 {
			return n, errEOF
		}
		n += k
	}
	return n, nil
}
