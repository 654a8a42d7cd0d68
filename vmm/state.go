package vmm

import (
	"bufio"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/cloister-vmm/cloister/firmware"
	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/guest/elf"
	"github.com/cloister-vmm/cloister/guest/linux"
	"github.com/cloister-vmm/cloister/guest/mem"
	"github.com/cloister-vmm/cloister/guest/stub"
	"github.com/cloister-vmm/cloister/guest/vdso"
	"github.com/cloister-vmm/cloister/guest/vfs"
	"github.com/cloister-vmm/cloister/internal/kvm"
	"golang.org/x/sys/unix"
)

// MSRs of SYSCALL (Intel SDM vol. 4).
const (
	msrSTAR  = 0xc0000081
	msrLSTAR = 0xc0000082
	msrCSTAR = 0xc0000083
	msrFMASK = 0xc0000084

	rflagsUser = 0x202 // IF and the bit that is always one
	// What the program may have set: CF, PF, AF, ZF, SF, TF, DF, OF, RF, AC, ID (arch/x86/kernel/signal.c, FIX_EFLAGS).
	rflagsKeep = 0x250dd5
)

// The segments that a change of privilege loads.
var (
	code = kvm.Segment{Limit: 0xffffffff, Typ: 11, Present: 1, S: 1, L: 1, G: 1}
	data = kvm.Segment{Limit: 0xffffffff, Typ: 3, Present: 1, S: 1, DB: 1, G: 1}

	userCS, userSS     = segment(code, abi.SelUserCS, 3), segment(data, abi.SelUserSS, 3)
	kernelCS, kernelSS = segment(code, abi.SelKernelCS, 0), segment(data, abi.SelKernelSS, 0)
)

func segment(s kvm.Segment, selector uint16, dpl uint8) kvm.Segment {
	s.Selector, s.DPL = selector, dpl
	return s
}

// setState makes the first vCPU ready for the program's first instruction.
func (m *Machine) setState() error {
	p := m.main
	s, err := p.load()
	if err != nil {
		return err
	}
	m.kernel.SetXFeatures(m.xcr0)
	m.xsize = xsaveSize(m.entries, m.xcr0)
	m.Info.TSCHz = p.cpu.TSCkHz() * 1000
	if m.Info.TSCHz == 0 {
		return fmt.Errorf("KVM_GET_TSC_KHZ: unknown: Cloister needs a TSC of known frequency")
	}
	rsp, err := m.firstStack(m.entries)
	if err != nil {
		return err
	}
	regs := &kvm.Regs{RIP: m.Info.Entry, RSP: rsp, RFLAGS: rflagsUser}
	if m.cfg.Seal == SealStart {
		regs = p.sealBeforeStart(regs, s)
	}
	if err := p.cpu.SetRegs(regs); err != nil {
		return err
	}
	// From a housekeeping thread, before any pinning: see kvm.Prime.
	return p.cpu.Prime()
}

// load gives the vCPU, which has its CPUID, everything but its general registers: the control registers that depend
// on it, then all that a program finds when execve has returned.
func (p *processor) load() (*kvm.Sregs, error) {
	m := p.m
	s, err := p.cpu.Sregs()
	if err != nil {
		return nil, err
	}
	s.CS, s.SS = userCS, userSS
	null := kvm.Segment{Unusable: 1}
	s.DS, s.ES, s.FS, s.GS, s.LDT = null, null, null, null, null
	s.TR = kvm.Segment{Base: abi.SupVA + stub.TSS(p.id), Limit: firmware.TSSSize - 1, Selector: abi.SelTSS, Typ: 11, Present: 1}
	s.GDT.Base, s.GDT.Limit = abi.SupVA+stub.GDT(p.id), firmware.GDTSize-1
	s.IDT.Base, s.IDT.Limit = abi.SupVA+stub.IDT, firmware.IDTSize-1
	s.CR0, s.CR3, s.CR4, s.EFER = firmware.CR0Guest, m.space.Root(), firmware.CR4(m.entries), firmware.EFERGuest
	if err := p.cpu.SetSregs(s); err != nil {
		return nil, err
	}
	if p.id > 0 && m.xcr0 != 0 { // the first one has had it from offerCPUID
		if err := p.cpu.SetXCR0(m.xcr0); err != nil {
			return nil, err
		}
	}
	if err := p.cpu.SetMSRs([]kvm.MSR{
		{Index: msrSTAR, Value: firmware.StarGuest}, {Index: msrLSTAR, Value: stub.SyscallEntry},
		{Index: msrCSTAR, Value: stub.SyscallEntry}, {Index: msrFMASK, Value: firmware.FMaskGuest},
	}); err != nil {
		return nil, err
	}
	_, err = p.cpu.ZeroTSCOffset()
	return s, err
}

// offerCPUID gives the first vCPU its CPUID, with CR4 and XCR0. Whether the back end really takes XSAVE is only known
// by trying (pvm takes it without announcing it), so a refusal leaves it out and tries once more.
//
// What it has taken is every further one's.
func (p *processor) offerCPUID() error {
	m := p.m
	supported, err := m.sys.SupportedCPUID()
	if err != nil {
		return err
	}
	in := make([]firmware.Entry, len(supported))
	for i, e := range supported {
		in[i] = firmware.Entry{Function: e.Function, Index: e.Index, Flags: e.Flags, EAX: e.EAX, EBX: e.EBX, ECX: e.ECX, EDX: e.EDX}
	}
	host := func(leaf, sub uint32) firmware.Regs {
		a, b, c, d := kvm.CPUID(leaf, sub)
		return firmware.Regs{EAX: a, EBX: b, ECX: c, EDX: d}
	}
	pvm := kvm.DetectBackend("/") == kvm.PVM
	for _, o := range []firmware.CPUIDOptions{{Native: pvm}, {NoXSave: true}} {
		out := firmware.CPUID(in, host, o)
		if err = p.cpu.SetCPUID(cpuidList(out)); err != nil {
			return err
		}
		var s *kvm.Sregs
		if s, err = p.cpu.Sregs(); err != nil {
			return err
		}
		s.CR4 = firmware.CR4(out)
		x := firmware.XCR0(out)
		if err = p.cpu.SetSregs(s); err == nil && x != 0 {
			err = p.cpu.SetXCR0(x)
		}
		if err == nil {
			m.entries, m.xcr0, m.aux = out, x, !pvm && hasAux(out)
			return nil
		}
	}
	return err
}

// xsaveSize is the length of the XSAVE area in the standard format for the components of mask (Intel SDM vol. 1, 13.5).
func xsaveSize(entries []firmware.Entry, mask uint64) int {
	size := uint32(512 + 64) // legacy region and header
	for _, e := range entries {
		if e.Function == 0xd && e.Index >= 2 && e.Index < 63 && mask>>e.Index&1 != 0 {
			size = max(size, e.EAX+e.EBX)
		}
	}
	return min(int(size), len(kvm.XSave{}))
}

func cpuidList(entries []firmware.Entry) []kvm.CPUIDEntry {
	list := make([]kvm.CPUIDEntry, len(entries))
	for i, e := range entries {
		list[i] = kvm.CPUIDEntry{Function: e.Function, Index: e.Index, Flags: e.Flags, EAX: e.EAX, EBX: e.EBX, ECX: e.ECX, EDX: e.EDX}
	}
	return list
}

// mapOwnClock gives the guest our own vDSO. Its data page lies in the guest memory file at abi.VDSOBase,
// where the monitor goes on steering it.
func (m *Machine) mapOwnClock() (uint64, error) {
	const data, image = abi.VDSOBase, abi.VDSOBase + vdso.PageSize
	code, err := vdso.Image()
	if err != nil {
		return 0, err
	}
	for _, p := range []struct {
		at   uint64
		n    uint64
		prot int
		name string
	}{{data, vdso.PageSize, mem.Read, "[vvar]"}, {image, vdso.ImageSize, mem.Read | mem.Exec, "[vdso]"}} {
		if err := m.space.MapFixed(p.at, p.at+p.n, p.prot, p.name); err != nil {
			return 0, err
		}
	}
	copy(m.window[image:], code)
	c, err := vdso.NewClock(m.window[data:data+vdso.PageSize], vdso.Kernel{}, 0)
	if err != nil {
		return 0, fmt.Errorf("clock of the guest: %w", err)
	}
	if _, err := c.Update(); err != nil {
		return 0, fmt.Errorf("clock of the guest: %w", err)
	}
	if m.cpuTable, err = vdso.CPUsOf(m.window[data : data+vdso.PageSize]); err != nil {
		return 0, err
	}
	m.hasCPUTable = true
	m.Info.Clock = OwnClock
	m.clock = []touch{{entry: stub.TouchRead, from: data, to: image + vdso.ImageSize}}
	return image, nil
}

// OwnClock is Info.Clock when the guest has our own vDSO, which somebody has to steer.
const OwnClock = "own vDSO"

// memoryWriter writes to guest memory at guest addresses.
type memoryWriter struct{ m *Machine }

func (w memoryWriter) WriteAt(p []byte, off int64) (int, error) {
	dst, e := w.m.space.Out(uint64(off), uint64(len(p)))
	if e != 0 {
		return 0, fmt.Errorf("write %d bytes at guest address %#x: %w", len(p), off, e)
	}
	return copy(dst, p), nil
}

func (m *Machine) firstStack(entries []firmware.Entry) (uint64, error) {
	vdso, err := m.mapClock()
	if err != nil {
		return 0, err
	}
	s := elf.Start{
		Argv: m.cfg.Args, Envp: m.cfg.Env, ExecFn: m.cfg.ExecFn, Bias: m.bias,
		UID: uint32(unix.Getuid()), EUID: uint32(unix.Geteuid()), GID: uint32(unix.Getgid()), EGID: uint32(unix.Getegid()),
		SysinfoEHDR: vdso, StackSize: stackSize, MinSigStack: firmware.MinSigStack(entries),
	}
	s.HWCap, s.HWCap2 = firmware.HWCap(entries)
	if _, err := rand.Read(s.Random[:]); err != nil {
		return 0, fmt.Errorf("random bytes for AT_RANDOM: %w", err)
	}
	var stack stackCopy
	rsp, err := m.image.Stack(s, abi.StackTop, &stack)
	if err == nil {
		_, err = memoryWriter{m}.WriteAt(stack.text, stack.at)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: arguments and environment: %w", m.cfg.Program, err)
	}
	m.auxv = stack.auxv()
	return rsp, nil
}

// stackCopy keeps the first stack as it is written, for what /proc shows of it.
type stackCopy struct {
	text []byte
	at   int64
}

func (c *stackCopy) WriteAt(p []byte, off int64) (int, error) {
	c.text, c.at = append([]byte(nil), p...), off
	return len(p), nil
}

// auxv is the auxiliary vector, AT_NULL included: what follows argc, the arguments and the environment,
// each list ended by a null pointer.
func (c *stackCopy) auxv() []byte {
	p := c.text[8:]
	for lists := 2; lists > 0; p = p[8:] {
		if binary.LittleEndian.Uint64(p) == 0 {
			lists--
		}
	}
	for n := 0; ; n += 16 {
		if binary.LittleEndian.Uint64(p[n:]) == 0 {
			return p[:n+16]
		}
	}
}

// area is one of the kernel's own mappings in this process.
type area struct {
	start, end uint64
	exec       bool
	name       string
}

// clockAreas finds [vvar…] and [vdso], which the kernel keeps next to each other.
func clockAreas(maps io.Reader) (list []area, vdso uint64, err error) {
	sc := bufio.NewScanner(maps)
	for sc.Scan() {
		line := sc.Text()
		// Address, permissions, offset, device, inode, name (proc(5)); a file of such a name has an inode.
		f := strings.Fields(line)
		if len(f) != 6 || f[4] != "0" || !strings.HasPrefix(f[5], "[v") || f[5] == "[vsyscall]" {
			continue
		}
		a := area{name: f[5], exec: f[1] == "r-xp"}
		if _, err := fmt.Sscanf(line, "%x-%x", &a.start, &a.end); err != nil {
			return nil, 0, fmt.Errorf("read /proc/self/maps: %q: %w", line, err)
		}
		if a.name == "[vdso]" {
			vdso = a.start
		}
		list = append(list, a)
	}
	return list, vdso, sc.Err()
}

// mapClock gives the guest a clock that costs no exit and returns where its vDSO lies.
func (m *Machine) mapClock() (uint64, error) {
	if m.cfg.OwnClock {
		return m.mapOwnClock()
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	list, vdso, err := clockAreas(f)
	if err != nil {
		return 0, err
	}
	if vdso == 0 || len(list) < 2 {
		m.cfg.Warn("this kernel gives no vDSO: every clock reading of the program is a break")
		return 0, nil
	}
	m.Info.Clock = "host vDSO"
	base := list[0].start
	// What a clock reading touches: the time data, which is the first page of [vvar], and the code. Other
	// pages of [vvar] may have nothing behind them.
	m.clock = []touch{{entry: stub.TouchRead, from: abi.VDSOBase, to: abi.VDSOBase + abi.Page}}
	for _, a := range list {
		at := abi.VDSOBase + a.start - base
		if a.exec {
			if err := m.mapVDSO(a, at); err != nil {
				return 0, err
			}
			continue
		}
		if _, err := m.vm.AddMemory(at, a.end-a.start, uintptr(a.start), true); err != nil {
			return 0, fmt.Errorf("map the host's %s: %w", a.name, err)
		}
		if err := m.space.MapForeign(at, at+a.end-a.start, mem.Read, "[vvar]"); err != nil {
			return 0, err
		}
	}
	return abi.VDSOBase + vdso - base, nil
}

func (m *Machine) makeLinux() error {
	var err error
	if m.stopper, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if m.files, err = vfs.New(m.cfg.Mounts, vfs.Options{
		Exe: m.cfg.Program, ExeFD: m.cfg.ELF, Args: m.cfg.Args, Env: m.cfg.Env, Cwd: m.cfg.Cwd, CPUs: m.cpus(), Memory: m.cfg.Memory,
		PID: os.Getpid(), Maps: m.space.Maps, Hostname: host, Shared: m.cfg.Shared, Auxv: func() []byte { return m.auxv },
		Statm: func() string { return m.kernel.Statm() }, Limits: func() string { return m.kernel.Limits() },
		FreeMemory: func() uint64 { used, _ := m.space.Usage(); return m.cfg.Memory - min(used, m.cfg.Memory) },
		FDs:        func() []int { return m.kernel.FDs() },
		File:       func(fd int) *vfs.File { return m.kernel.File(fd) },
		Threads:    func() []vfs.Thread { return m.kernel.Tasks() },
		Self:       func() int { return m.kernel.Current().ID },
		Texts:      linux.Texts(func() *linux.Kernel { return m.kernel }),
		Rename:     func(thread int, name []byte) unix.Errno { return m.kernel.Rename(thread, name) },
		Getcwd:     func() string { return m.kernel.Getcwd() },
	}); err != nil {
		return err
	}
	m.kernel, err = linux.New(linux.Config{
		Memory: m.space, FS: m.files, Hostname: host, CPUTime: m.cpuTime, Switches: switches, Args: m.cfg.Args, Env: m.cfg.Env, Exe: m.cfg.Program, CPUs: m.cpus(),
		MemoryLimit: m.cfg.Memory, Net: m.cfg.Net, Warn: m.cfg.Warn, Interrupt: m.stopper,
		Stop: m.cfg.Stop, Dispose: m.cfg.Dispose,
		Isolate: m.isolate, GapRecord: m.gapRecord, Provoke: m.provoke, SafePoint: m.safePoint, Sync: m.sync, Landing: m.landing,
		Kick: m.kick, Seen: m.seen, Spawn: m.spawn, Renamed: m.renamed, Move: m.move, CPUOf: m.cpuOf, Barrier: m.barrier,
	})
	return err
}
