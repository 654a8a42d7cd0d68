package vmm

import (
	"fmt"
	"slices"

	"github.com/cloister-vmm/cloister/firmware"
	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/guest/linux"
	"github.com/cloister-vmm/cloister/guest/mem"
	"github.com/cloister-vmm/cloister/guest/stub"
	"github.com/cloister-vmm/cloister/guest/vdso"
	"golang.org/x/sys/unix"
)

// getcpu costs no exit: the vDSO reads a table that is written whenever a thread is placed. The host's own vDSO would tell
// numbers of the host, so the guest has a copy of it whose getcpu is ours.

// mapVDSO gives the guest a copy of the host's vDSO at guest address at, behind it our getcpu, and behind that its page.
func (m *Machine) mapVDSO(a area, at uint64) error {
	size := a.end - a.start
	code, page := at+size, at+size+abi.Page
	var err error
	if m.vdso, err = unix.Mmap(-1, 0, int(size+2*abi.Page), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS); err != nil {
		return fmt.Errorf("memory for the vDSO: %w", err)
	}
	copy(m.vdso, hostBytes(uintptr(a.start), size))
	getcpu, err := vdso.GetCPU(code, page)
	if err != nil {
		return err
	}
	copy(m.vdso[size:], getcpu)
	if _, err := vdso.Redirect(m.vdso[:size], size); err != nil { // without a getcpu in it programs ask by system call
		m.cfg.Warn(fmt.Sprintf("getcpu of the vDSO tells numbers of the host: %v", err))
	}
	if m.cpuTable, err = vdso.CPUsOf(m.vdso[size+abi.Page:]); err != nil {
		return err
	}
	m.hasCPUTable = true
	if _, err := m.vm.AddMemory(at, size+2*abi.Page, addr(m.vdso), true); err != nil {
		return fmt.Errorf("map the vDSO: %w", err)
	}
	m.clock = append(m.clock, touch{entry: stub.TouchRead, from: at, to: page + abi.Page})
	if err := m.space.MapForeign(at, page, mem.Read|mem.Exec, "[vdso]"); err != nil {
		return err
	}
	return m.space.MapForeign(page, page+abi.Page, mem.Read, "[vvar]")
}

// cpuNumber is the virtual CPU that p's thread is on. Those that float are spread over the virtual CPUs that they share: they
// keep one, while the host may move them.
func (m *Machine) cpuNumber(p *processor) int {
	if i := slices.Index(m.cfg.CPUs, p.host); i >= 0 {
		return i
	}
	list := p.shared
	if list == nil {
		list = m.cfg.Housekeeping
	}
	var shared []int
	for i, c := range m.cfg.CPUs {
		if slices.Contains(list, c) {
			shared = append(shared, i)
		}
	}
	if len(shared) == 0 {
		return 0
	}
	return shared[p.id%len(shared)]
}

// cpuOf is linux.Config.CPUOf.
func (m *Machine) cpuOf(t *linux.Task) int { return m.cpuNumber(t.Data.(*processor)) }

// number tells p's program where it is now.
func (m *Machine) number(p *processor) {
	n := m.cpuNumber(p)
	if m.hasCPUTable {
		m.cpuTable.Set(p.id, n)
	}
	p.number.Store(int64(n)) // ORDER(none): one word
}

const msrTSCAux = 0xc0000103 // IA32_TSC_AUX (Intel SDM vol. 4): RDTSCP and RDPID read it

// hasAux says whether a guest with this CPUID has RDTSCP or RDPID. They read a register of its own, but on the PVM back end,
// where they show the host's.
func hasAux(entries []firmware.Entry) bool {
	return slices.ContainsFunc(entries, func(e firmware.Entry) bool {
		return e.Function == 0x80000001 && e.EDX&(1<<27) != 0 || e.Function == 7 && e.Index == 0 && e.ECX&(1<<22) != 0
	})
}

// setAux makes RDTSCP and RDPID tell what getcpu does, from when the vCPU is next out of the guest.
func (p *processor) setAux(set func(index uint32, value uint64) error) {
	n := p.number.Load() // ORDER(none): one word
	if !p.m.aux || n == p.aux {
		return
	}
	p.aux = n
	if err := set(msrTSCAux, uint64(n)); err != nil {
		p.m.cfg.Warn("the CPU number beside the time stamp (RDTSCP, RDPID) is not set: " + err.Error())
	}
}
