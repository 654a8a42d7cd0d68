package monitor

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/isolation/cores"
	"golang.org/x/sys/unix"
)

// ledgers is the memory that the engine shares: one ledger after the other, mapped read-only.
type ledgers struct {
	fd  int
	mem []byte
}

// mapLedgers maps as many ledgers as the file holds.
func mapLedgers(fd int) (*ledgers, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("the ledger's size: %w", err)
	}
	if st.Size <= 0 || st.Size%int64(breaks.LedgerSize) != 0 || st.Size > breaks.MaxVCPUs*int64(breaks.LedgerSize) {
		return nil, fmt.Errorf("%d bytes hold no whole ledgers of %d: engine and monitor are of different builds", st.Size, breaks.LedgerSize)
	}
	mem, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the ledger: %w", err)
	}
	return &ledgers{fd, mem}, nil
}

func (l *ledgers) unmap() error { return unix.Munmap(l.mem) }

// used lists the vCPUs whose ledger is in use. It reads the file and not the mapping: a look at a page of
// that would make the kernel find memory for it, for each vCPU that never comes.
func (l *ledgers) used() (list []int, err error) {
	var magic [8]byte
	for i := range len(l.mem) / breaks.LedgerSize {
		if n, err := unix.Pread(l.fd, magic[:], int64(i)*int64(breaks.LedgerSize)); err != nil || n != len(magic) {
			return nil, fmt.Errorf("ledger of vCPU %d: read %d bytes (%v)", i, n, err)
		}
		if binary.NativeEndian.Uint64(magic[:]) != 0 {
			list = append(list, i)
		}
	}
	return list, nil
}

// vcpu is what the monitor has of one vCPU.
type vcpu struct {
	id       int
	ledger   *breaks.VCPU
	stats    *kvm.Stats // nil: this vCPU's kernel causes are not known
	values   []uint64
	tid      int // the host's thread; 0: not known yet
	cpu      int // the core it owns, or -1
	threads  breaks.Threads
	broken   bool     // it broke the budget while it ran
	brokenBy []string // by what first
}

// vcpu gives a vCPU by its number, and knows it from then on.
func (m *monitor) vcpu(id int) (*vcpu, error) {
	i, ok := slices.BinarySearchFunc(m.vcpus, id, func(v *vcpu, id int) int { return cmp.Compare(v.id, id) })
	if ok {
		return m.vcpus[i], nil
	}
	l, err := breaks.At(m.ledgers.mem, id)
	if err != nil {
		return nil, err
	}
	v := &vcpu{id: id, ledger: l, cpu: -1}
	m.vcpus = slices.Insert(m.vcpus, i, v)
	return v, nil
}

// find looks for ledgers that came into use without a message that could be read.
func (m *monitor) find() error {
	list, err := m.ledgers.used()
	for _, id := range list {
		_, e := m.vcpu(id)
		err = errors.Join(err, e)
	}
	return err
}

// first says what is known of vCPU 0 before the engine tells more: it has the program's first thread.
func (m *monitor) first(v *vcpu) {
	if v.tid == 0 {
		v.tid, v.cpu = m.ready.Info.TID, m.plan.CPU
	}
	if len(v.threads.List) == 0 {
		v.threads.Add(m.plan.Engine, filepath.Base(m.plan.Program)) // as execve(2) names a thread; a guest has the engine's pid
	}
}

// thread takes the news of a thread of the guest. What is wrong with it costs a figure, not the run.
func (m *monitor) thread(t session.Thread, fds []int) {
	v, err := m.vcpu(t.VCPU)
	if err != nil {
		m.warn(errors.Join(err, closeAll(fds)).Error())
		return
	}
	v.tid, v.cpu = t.TID, t.CPU
	v.threads.Add(t.Task, t.Name)
	if err := v.takeStats(fds); err != nil {
		m.warn(fmt.Sprintf("vCPU %d: %v: exits that the kernel served itself are not known", v.id, err))
	}
}

// takeStats takes the descriptor of the vCPU's statistics, where one came and there is none yet.
func (v *vcpu) takeStats(fds []int) error {
	if len(fds) == 0 {
		return nil
	}
	if v.stats != nil || len(fds) != 1 {
		return errors.Join(fmt.Errorf("%d statistics descriptors too many", len(fds)), closeAll(fds))
	}
	s, err := kvm.NewStats(fds[0])
	if err != nil {
		return errors.Join(err, closeAll(fds))
	}
	v.stats, v.values = s, make([]uint64, len(s.Names))
	return nil
}

func closeAll(fds []int) (err error) {
	for _, fd := range fds {
		err = errors.Join(err, unix.Close(fd))
	}
	return err
}

// counts is a consistent copy of the ledger, with the kernel's statistics added to the book that is open.
// They are read first: see breaks.KernelCauses on pairing them.
func (v *vcpu) counts() (c breaks.Counts, ok bool) {
	if v.stats != nil && v.ledger.End == 0 {
		if err := v.stats.Read(v.values); err != nil {
			return c, false
		}
	}
	if !v.ledger.Snapshot(&c) {
		return c, false
	}
	c.ID = uint32(v.id)
	if v.stats != nil {
		addStatistics(&c, v.stats, v.values)
	}
	return c, true
}

// addStatistics adds what KVM has counted since the last border to the book that is open.
func addStatistics(c *breaks.Counts, stats *kvm.Stats, values []uint64) {
	if c.End != 0 || c.Start == 0 {
		return
	}
	half := breaks.Open
	if c.Sealed != 0 {
		half = breaks.Sealed
	}
	for i, name := range breaks.KernelNames {
		if j := stats.Index(name); j >= 0 && values[j] >= c.KernelAt[i] {
			c.Book[half].Kernel[i] += values[j] - c.KernelAt[i]
		}
	}
}

// owned are the cores that vCPUs own, and keep those that are left for everybody else.
func (m *monitor) owned() (owned, keep []int) {
	keep = m.plan.Keep
	for _, v := range m.vcpus {
		if v.cpu >= 0 {
			owned = append(owned, v.cpu)
			keep = cores.Without(keep, v.cpu)
		}
	}
	return owned, keep
}

// vcpuThreads are the threads whose place is the engine's business.
func (m *monitor) vcpuThreads() (list []int) {
	for _, v := range m.vcpus {
		if v.tid != 0 {
			list = append(list, v.tid)
		}
	}
	return list
}

// herd looks for threads of the engine that may run on a core that a vCPU owns. One that it finds is not
// touched yet: it may be a vCPU's own, of which the news is on its way.
func (m *monitor) herd() {
	owned, keep := m.owned()
	if len(owned) == 0 || len(keep) == 0 || m.ready.Info.TID == 0 {
		return
	}
	found, err := cores.Astray(m.plan.Engine, keep, m.vcpuThreads()...)
	if err != nil {
		return // the engine is ending; its end is reported by other means
	}
	m.astray = len(found) > 0
	for _, v := range m.vcpus {
		m.astray = m.astray || v.tid != 0 && v.cpu < 0 && cores.MayRunOn(v.tid, owned)
	}
}

// drive moves what herd has found, and is still there when the news have come in. A vCPU without a core of
// its own may choose among the housekeeping cores; on another's it is a stray like any.
func (m *monitor) drive() {
	m.astray = false
	owned, keep := m.owned()
	n, err := cores.KeepOff(m.plan.Engine, keep, m.vcpuThreads()...)
	m.strays += n
	for _, v := range m.vcpus {
		if err != nil {
			return // the engine is ending; its end is reported by other means
		}
		if v.tid != 0 && v.cpu < 0 && cores.MayRunOn(v.tid, owned) {
			var ok bool
			if ok, err = cores.Put(v.tid, keep); ok {
				m.strays++
			}
		}
	}
}
