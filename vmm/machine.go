package vmm

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cloister-vmm/cloister/firmware"
	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/guest/elf"
	"github.com/cloister-vmm/cloister/guest/linux"
	"github.com/cloister-vmm/cloister/guest/mem"
	"github.com/cloister-vmm/cloister/guest/stub"
	"github.com/cloister-vmm/cloister/guest/vdso"
	"github.com/cloister-vmm/cloister/guest/vfs"
	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/vcpu"
	"golang.org/x/sys/unix"
)

// Machine is a virtual machine with one program in it.
type Machine struct {
	cfg     Config
	sys     *kvm.System
	vm      *kvm.VM
	window  []byte
	sup     []byte
	supFD   int
	space   *mem.Space
	image   *elf.Image
	bias    uint64
	auxv    []byte // the program's, for /proc/self/auxv
	kernel  *linux.Kernel
	files   *vfs.FS
	main    *processor
	set     *vcpu.Set
	born    *vcpu.Stopped
	stopper int              // eventfd: readable = blocking calls of the guest end
	begun   chan error       // what Begin came to, once; nil when it was taken
	early   []slot           // of guest memory, from before that
	entries []firmware.Entry // CPUID, once a vCPU has taken it
	xcr0    uint64
	aux     bool    // RDTSCP and RDPID tell what is set for them
	xsize   int     // bytes of the XSAVE area for it
	clock   []touch // what reading the clock touches
	vdso    []byte  // the copy of the host's vDSO, our getcpu, and the page of the table
	// Where getcpu of the vDSO finds its answer; only with hasCPUTable.
	cpuTable    vdso.CPUs
	hasCPUTable bool

	Info Info

	patching patching

	idle chan *processor // whose thread of the guest has ended
	over chan struct{}   // closed: the run ends
	done chan struct{}   // closed: every vCPU's thread has ended

	ender sync.WaitGroup // endOthers at work: it uses the vCPUs

	mu     sync.Mutex
	vcpus  []*processor
	live   int  // vCPU threads that have not ended
	ending bool // over is closed
	result *Result
	start  time.Time
}

// slot is guest memory that KVM shall know.
type slot struct {
	start, end uint64
	readonly   bool
}

// Info is what a report wants to know of the machine.
type Info struct {
	TSCHz         uint64
	Bias          uint64
	Entry         uint64
	BuildID       []byte
	Clock         string // "host vDSO", "own vDSO"
	Serialise     string // what a stopped vCPU executes: SERIALIZE, CPUID or IRET
	DisabledExits int
	Locked        bool
	TID           int
	StatsFD       int
}

// supSize bounds the page tables: one page of them maps 2 MiB, so 1/512 of the limit and some more.
func supSize(limit uint64) uint64 { return (limit/256+16<<20)&^(abi.Huge-1) + abi.Huge }

// Begin starts to make what needs KVM alone: the VM and its first vCPU, with its CPUID. That is a third of a short
// start, and nothing else has to wait for it: so it runs beside the caller, up to Build. A machine that was begun is
// given back by Close, whether or not Build was reached.
func Begin() *Machine {
	m := &Machine{
		supFD: -1, stopper: -1, begun: make(chan error, 1),
		idle: make(chan *processor, stub.MaxVCPUs), over: make(chan struct{}), done: make(chan struct{}),
	}
	go func() {
		err := m.openKVM()
		if err == nil {
			err = m.beginMain()
		}
		m.begun <- err
	}()
	return m
}

// New builds a machine up to the first instruction: Begin and Build, for who has nothing to do between them.
func New(cfg Config) (*Machine, error) {
	m := Begin()
	if err := m.Build(cfg); err != nil {
		return nil, err
	}
	return m, nil
}

// Build completes what Begin has begun, up to the first instruction. If it fails, nothing of the machine is left.
func (m *Machine) Build(cfg Config) (err error) {
	m.cfg = cfg
	defer func() {
		if err != nil {
			err = firstOf(err, m.Close())
		}
	}()
	if m.image, err = elf.Load(fileAt(cfg.ELF), cfg.ELFSize); err != nil {
		return programError{fmt.Errorf("%s: %w", cfg.Program, err)}
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"memory", m.makeMemory}, {"program", m.load}, {"linux", m.makeLinux}, {"kvm", m.takeBegun},
		{"state", m.setState}, {"thread", m.makeThread},
	} {
		if err = step.do(); err != nil {
			if cfg.Huge && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOMEM)) {
				err = fmt.Errorf("guest memory on huge pages: the host has too few free ones (%w): reserve more (sysctl vm.nr_hugepages=N) or leave out --hugepages", err)
			}
			return err
		}
		cfg.Stamp(step.name)
	}
	return nil
}

func firstOf(a, b error) error {
	if b != nil {
		return fmt.Errorf("%w (and then: %v)", a, b)
	}
	return a
}

// takeBegun waits for the VM and its first vCPU, and gives them memory, ledger and task.
func (m *Machine) takeBegun() error {
	err := <-m.begun
	m.begun = nil
	if err != nil {
		return err
	}
	if _, err = m.vm.AddMemory(abi.SupGPA, uint64(len(m.sup)), addr(m.sup), false); err != nil {
		return err
	}
	for _, s := range m.early {
		if err := m.addSlot(s.start, s.end, s.readonly); err != nil {
			return err
		}
	}
	m.early = nil
	return m.makeMain()
}

// addSlot is mem.Config.AddSlot. What is mapped before there is a VM is added as soon as there is one.
func (m *Machine) addSlot(start, end uint64, readonly bool) error {
	if m.begun != nil {
		m.early = append(m.early, slot{start, end, readonly})
		return nil
	}
	_, err := m.vm.AddMemory(start, end-start, addr(m.window)+uintptr(start), readonly)
	return err
}

func (m *Machine) openKVM() (err error) {
	if m.sys, err = kvm.Open(); err != nil {
		return err
	}
	if m.vm, err = m.sys.NewVM(); err != nil {
		return err
	}
	// Nothing in the program guest halts or pauses; exits for it would only be disturbance.
	if m.Info.DisabledExits, err = m.vm.DisableExits(kvm.DisablePAUSE); err != nil {
		return err
	}
	// Nobody but us writes the guest's text.
	_, err = m.vm.DisableQuirks(kvm.QuirkFixHypercall)
	return err
}

func (m *Machine) makeMemory() (err error) {
	if m.window, err = mapShared(m.cfg.Guest, abi.UserTop, "the guest's window"); err != nil {
		return err
	}
	// Huge pages cannot be swapped: there is nothing to lock.
	if m.cfg.Lock && !m.cfg.Huge {
		if e := lockOnFault(m.window); e != nil {
			m.cfg.Warn(fmt.Sprintf("guest memory is not locked: %v: raise RLIMIT_MEMLOCK (ulimit -l unlimited) or run as root", e))
		} else {
			m.Info.Locked = true
		}
	}
	if m.supFD, err = unix.MemfdCreate("cloister-supervisor", unix.MFD_CLOEXEC); err != nil {
		return fmt.Errorf("supervisor memory: memfd_create: %w", err)
	}
	n := supSize(m.cfg.Memory)
	if err = unix.Ftruncate(m.supFD, int64(n)); err != nil {
		return fmt.Errorf("supervisor memory: ftruncate: %w", err)
	}
	if m.sup, err = mapShared(m.supFD, n, "the supervisor block"); err != nil {
		return err
	}
	m.space = mem.New(mem.Config{
		Memory: m.cfg.Guest, Window: m.window, Supervisor: m.sup, SupervisorGPA: abi.SupGPA,
		TableOffset: stub.Tables, Limit: m.cfg.Memory, Locked: m.Info.Locked, Huge: m.cfg.Huge,
		AddSlot: m.addSlot,
	})
	return m.fillSupervisor()
}

// fillSupervisor writes the descriptor tables and stubs and maps them: nothing of it can be written at
// CPL 3, and only the user page can be reached there.
func (m *Machine) fillSupervisor() error {
	var handler [firmware.Vectors]uint64
	for v := range handler {
		handler[v] = stub.Exception + uint64(v)*stub.ExceptionStep
	}
	idt := firmware.IDT(handler)
	copy(m.sup[stub.IDT:], idt[:])
	copy(m.sup[stub.Exceptions:], stub.ExceptionPage())
	copy(m.sup[stub.User:], stub.UserPage())
	for _, p := range []struct {
		off  uint64
		prot int
		user bool
	}{
		{stub.IDT, mem.Read, false}, {stub.Exceptions, mem.Read | mem.Exec, false}, {stub.User, mem.Read | mem.Exec, true},
	} {
		if err := m.space.MapSupervisor(abi.SupVA+p.off, abi.SupGPA+p.off, abi.Page, p.prot, p.user); err != nil {
			return err
		}
	}
	return m.space.MapSupervisor(abi.MMIOHole, abi.MMIOHole, abi.Page, mem.Read, false)
}

// stackSize is the main thread's stack, bytes: the default of RLIMIT_STACK. Below it nothing is mapped.
const stackSize = 8 << 20

func (m *Machine) load() error {
	im := m.image
	bias, err := im.Bias(abi.PIEBase)
	if err != nil {
		return fmt.Errorf("%s: %w", m.cfg.Program, err)
	}
	m.bias = bias
	m.Info.Bias, m.Info.Entry, m.Info.BuildID = bias, im.Entry+bias, im.BuildID
	low, high := im.Pages[0].VAddr+bias, (im.MaxVA+bias+abi.Page-1)&^(abi.Page-1)
	m.layOutPatching(low, high)
	texts := m.patching.spare()
	for _, p := range im.Pages {
		if p.Prot&elf.X != 0 {
			texts = append(texts, Span{p.VAddr + bias, p.VAddr + p.Size + bias})
		}
	}
	slices.SortFunc(texts, func(a, b Span) int { return cmp.Compare(a.Start, b.Start) })
	for _, t := range texts {
		m.space.SetText(t.Start, t.End)
	}
	for _, p := range im.Pages {
		prot := 0
		for bit, v := range map[elf.Prot]int{elf.R: mem.Read, elf.W: mem.Write, elf.X: mem.Exec} {
			if p.Prot&bit != 0 {
				prot |= v
			}
		}
		if err := m.space.MapFixed(p.VAddr+bias, p.VAddr+p.Size+bias, prot, m.cfg.Program); err != nil {
			return fmt.Errorf("%s: %w", m.cfg.Program, err)
		}
	}
	for i, s := range im.Segments {
		dst := m.window[s.VAddr+bias : s.VAddr+bias+s.FileSize]
		if err := im.ReadSegment(i, dst); err != nil {
			return fmt.Errorf("%s: %w", m.cfg.Program, err)
		}
	}
	m.space.SetBreak(max(im.MaxVA+bias, m.patching.what.SpareData.End))
	if err := m.space.MapFixed(abi.StackTop-stackSize, abi.StackTop, mem.Read|mem.Write, "[stack]"); err != nil {
		return err
	}
	return m.mapPatching()
}

// Close gives everything back. The vCPUs' threads must have ended.
func (m *Machine) Close() error {
	var errs []error
	if m.begun != nil {
		<-m.begun // whether it succeeded or not: what there is of it is closed below
		m.begun = nil
	}
	m.ender.Wait()
	if m.kernel != nil {
		m.kernel.Close()
		m.ender.Wait() // the kernel's timers may have begun one more meanwhile
	}
	if m.files != nil {
		errs = append(errs, m.files.Close())
	}
	for _, p := range m.vcpus {
		errs = append(errs, p.close())
	}
	if m.main != nil && len(m.vcpus) == 0 {
		errs = append(errs, m.main.close())
	}
	if m.vm != nil {
		errs = append(errs, m.vm.Close())
	}
	if m.sys != nil {
		errs = append(errs, m.sys.Close())
	}
	for _, a := range m.patching.aliases {
		errs = append(errs, unix.Munmap(a.mapping))
	}
	for _, b := range [][]byte{m.window, m.sup, m.vdso} {
		if b != nil {
			errs = append(errs, unmap(b))
		}
	}
	for _, fd := range []int{m.supFD, m.stopper} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	errs = slices.DeleteFunc(errs, func(e error) bool { return e == nil })
	if len(errs) > 0 {
		return errs[0]
	}
	return nil
}

// programError is an error of the program's, not of the machine's.
type programError struct{ error }

func (e programError) Unwrap() error { return e.error }

// IsProgramError reports whether New or Build failed because the program cannot be run.
func IsProgramError(err error) bool {
	var p programError
	return errors.As(err, &p)
}
