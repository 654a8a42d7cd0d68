package kvm

import (
	"errors"
	"fmt"
	"sync"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"
)

// Regs and Sregs are struct kvm_regs and struct kvm_sregs.
type (
	Regs    = gokvm.Regs
	Sregs   = gokvm.Sregs
	Segment = gokvm.Segment
)

// VM is one virtual machine. Its file descriptor belongs to the process that made it (api.rst 2).
type VM struct {
	fd  uintptr
	sys *System

	mu    sync.Mutex
	slots uint32
}

// NewVM is KVM_CREATE_VM. It is made again when a signal came meanwhile: the kernel then refuses to register
// KVM's MMU notifier (mm/mmap.c, mm_take_all_locks), and Go's runtime sends its threads signals at any time.
func (s *System) NewVM() (*VM, error) {
	fd, err := gokvm.CreateVM(s.file.Fd())
	for errors.Is(err, unix.EINTR) {
		fd, err = gokvm.CreateVM(s.file.Fd())
	}
	if err != nil {
		return nil, fmt.Errorf("KVM_CREATE_VM: %w: check free memory and the limit of open files", err)
	}
	return &VM{fd: fd, sys: s}, nil
}

// Exits that KVM_CAP_X86_DISABLE_EXITS can turn off (api.rst 7.13).
const (
	DisableMWAIT  = 1 << 0
	DisableHLT    = 1 << 1
	DisablePAUSE  = 1 << 2
	DisableCSTATE = 1 << 3
)

// DisableExits turns off those of the wanted exits that the kernel offers and returns them. It must be
// called before the first vCPU is made.
func (vm *VM) DisableExits(want int) (int, error) { return vm.disable(capX86DisableExits, want) }

// disable enables a capability whose argument is a mask, with those of the wanted bits that the kernel offers.
func (vm *VM) disable(capability uint32, want int) (int, error) {
	have, err := checkExtension(vm.fd, uintptr(capability))
	if err != nil {
		return 0, err
	}
	if want &= have; want == 0 {
		return 0, nil
	}
	return want, vm.enableCap(capability, uint64(want))
}

// QuirkFixHypercall: KVM answers the other vendor's hypercall instruction (VMMCALL on Intel) by writing its own over it
// (api.rst 7.31, KVM_X86_QUIRK_FIX_HYPERCALL_INSN; Linux 5.19). Without the quirk the instruction is #UD, as it is without a hypervisor.
const QuirkFixHypercall = 1 << 5

// DisableQuirks turns off those of the quirks that the kernel lets go (Linux 5.17 and later, each quirk from its own release) and returns them.
func (vm *VM) DisableQuirks(want int) (int, error) { return vm.disable(capDisableQuirks2, want) }

// AddMemory adds a memory slot: size bytes of host memory at hva appear at gpa. Both are page-aligned.
// A write to a read-only slot leaves the guest as KVM_EXIT_MMIO.
func (vm *VM) AddMemory(gpa, size uint64, hva uintptr, readonly bool) (slot uint32, err error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	r := &gokvm.UserspaceMemoryRegion{Slot: vm.slots, GuestPhysAddr: gpa, MemorySize: size, UserspaceAddr: uint64(hva)}
	if readonly {
		r.Flags = 1 << 1 // KVM_MEM_READONLY
	}
	if err := gokvm.SetUserMemoryRegion(vm.fd, r); err != nil {
		return 0, fmt.Errorf("KVM_SET_USER_MEMORY_REGION gpa %#x size %#x: %w", gpa, size, err)
	}
	vm.slots++
	return r.Slot, nil
}

// ReplaceMemory deletes a slot and adds it again: KVM drops every translation into it. The cost is
// milliseconds; no vCPU may be in the guest.
func (vm *VM) ReplaceMemory(slot uint32, gpa, size uint64, hva uintptr) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	for _, n := range []uint64{0, size} {
		r := &gokvm.UserspaceMemoryRegion{Slot: slot, GuestPhysAddr: gpa, MemorySize: n, UserspaceAddr: uint64(hva)}
		if err := gokvm.SetUserMemoryRegion(vm.fd, r); err != nil {
			return fmt.Errorf("KVM_SET_USER_MEMORY_REGION slot %d size %#x: %w", slot, n, err)
		}
	}
	return nil
}

// Close releases the VM; its vCPUs must be closed too before the kernel lets it go.
func (vm *VM) Close() error { return unix.Close(int(vm.fd)) }

// VCPU is one virtual CPU: a file descriptor and the page(s) it shares with the kernel.
type VCPU struct {
	fd      uintptr
	mapping []byte
	Run     *Run
}

// NewVCPU is KVM_CREATE_VCPU, with its kvm_run mapped.
func (vm *VM) NewVCPU(id int) (*VCPU, error) {
	fd, err := gokvm.CreateVCPU(vm.fd, id)
	if err != nil {
		return nil, fmt.Errorf("KVM_CREATE_VCPU %d: %w", id, err)
	}
	m, err := unix.Mmap(int(fd), 0, vm.sys.runSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("mmap kvm_run of vCPU %d: %w", id, err)
	}
	return &VCPU{fd: fd, mapping: m, Run: (*Run)(unsafe.Pointer(&m[0]))}, nil
}

// FD is the vCPU's file descriptor, for RunRaw and IoctlRaw.
func (v *VCPU) FD() uintptr { return v.fd }

// Sregs is KVM_GET_SREGS. The vCPU must not be inside KVM_RUN (the call would wait for it).
func (v *VCPU) Sregs() (*Sregs, error) {
	s, err := gokvm.GetSregs(v.fd)
	if err != nil {
		return nil, fmt.Errorf("KVM_GET_SREGS: %w", err)
	}
	return s, nil
}

// SetSregs is KVM_SET_SREGS.
func (v *VCPU) SetSregs(s *Sregs) error {
	if err := gokvm.SetSregs(v.fd, s); err != nil {
		return fmt.Errorf("KVM_SET_SREGS: %w", err)
	}
	return nil
}

// SetRegs is KVM_SET_REGS.
func (v *VCPU) SetRegs(r *Regs) error {
	if err := gokvm.SetRegs(v.fd, r); err != nil {
		return fmt.Errorf("KVM_SET_REGS: %w", err)
	}
	return nil
}

// StatsFD is KVM_GET_STATS_FD. Open it before the first KVM_RUN: later the call waits for the vCPU's
// mutex, which a guest that never exits holds for ever.
func (v *VCPU) StatsFD() (int, error) {
	r, e := ioctl(v.fd, ioStatsFD, 0)
	if e != 0 {
		return -1, fmt.Errorf("KVM_GET_STATS_FD: %w: the kernel's own exit counts need Linux 5.14 or later", e)
	}
	return int(r), nil
}

// Prime makes one KVM_RUN that returns at once (EINTR). The first KVM_RUN of a VM makes a kernel thread
// (kvm-nx-lpage-recovery) that inherits the caller's affinity and scheduling class, so it must come
// from a housekeeping thread, not from the pinned one. It also completes pending I/O.
func (v *VCPU) Prime() error {
	v.Run.ImmediateExit = 1
	_, e := ioctl(v.fd, ioRun, 0)
	v.Run.ImmediateExit = 0
	if e != unix.EINTR {
		return fmt.Errorf("KVM_RUN with immediate_exit: %v, want EINTR", e)
	}
	return nil
}

// Close unmaps kvm_run and closes the vCPU.
func (v *VCPU) Close() error {
	if err := unix.Munmap(v.mapping); err != nil {
		return fmt.Errorf("munmap kvm_run: %w", err)
	}
	return unix.Close(int(v.fd))
}
