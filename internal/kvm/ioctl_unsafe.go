package kvm

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl numbers (include/uapi/linux/kvm.h); the size of the argument is in bits 16..29.
const (
	ioCheckExtension   = 0xae03
	ioGetSupportedID   = 0xc008ae05
	ioRun              = 0xae80
	ioGetRegs          = 0x8090ae81
	ioSetRegs          = 0x4090ae82
	ioGetSregs         = 0x8138ae83
	ioSetSregs         = 0x4138ae84
	ioSetMSRs          = 0x4008ae89
	ioSetSignalMask    = 0x4004ae8b
	ioSetCPUID2        = 0x4008ae90
	ioSetXCRs          = 0x4188aea7
	ioSetGuestDebug    = 0x4048ae9b
	ioEnableCap        = 0x4068aea3
	ioStatsFD          = 0xaece
	ioSetDeviceAttr    = 0x4018aee1
	ioHasDeviceAttr    = 0x4018aee3
	ioGetTSCKHz        = 0xaea3
	ioSetUserMemRegion = 0x4020ae46
)

// The numbers that a vCPU's own thread may be asked to execute (package vcpu).
const (
	IoGetSregs      = ioGetSregs
	IoGetVCPUEvents = 0x8040ae9f // KVM_GET_VCPU_EVENTS
	IoSetSregs      = ioSetSregs
	IoSetGuestDebug = ioSetGuestDebug
	IoSetMSRs       = ioSetMSRs
	IoGetXSave      = 0x9000aea4
	IoSetXSave      = 0x5000aea5
)

// XSave is struct kvm_xsave: the standard format of the XSAVE area (Intel SDM vol. 1, 13.4), as far as 4 KiB reach.
// AMX, whose state is larger, is not offered to guests (firmware.XCR0).
type XSave [4096]byte

func ioctl(fd, op, arg uintptr) (uintptr, unix.Errno) {
	r, _, e := unix.Syscall(unix.SYS_IOCTL, fd, op, arg)
	return r, e
}

// ioctlPtr passes p, which must point to the heap or to mmapped memory.
func ioctlPtr(fd, op uintptr, p unsafe.Pointer) (uintptr, unix.Errno) {
	r, _, e := unix.Syscall(unix.SYS_IOCTL, fd, op, uintptr(p))
	return r, e
}

func checkExtension(fd, c uintptr) (int, error) {
	r, e := ioctl(fd, ioCheckExtension, c)
	if e != 0 {
		return 0, fmt.Errorf("KVM_CHECK_EXTENSION %d: %w", c, e)
	}
	return int(r), nil
}

// CPUIDEntry is struct kvm_cpuid_entry2.
type CPUIDEntry struct {
	Function, Index, Flags, EAX, EBX, ECX, EDX uint32
	_                                          [3]uint32
}

// maxCPUID is more than any back end returns (46 on pvm, about 100 on large machines).
const maxCPUID = 256

type cpuid2 struct {
	n, _ uint32
	e    [maxCPUID]CPUIDEntry
}

// SupportedCPUID is KVM_GET_SUPPORTED_CPUID.
func (s *System) SupportedCPUID() ([]CPUIDEntry, error) {
	c := &cpuid2{n: maxCPUID}
	if _, e := ioctlPtr(s.file.Fd(), ioGetSupportedID, unsafe.Pointer(c)); e != 0 {
		return nil, fmt.Errorf("KVM_GET_SUPPORTED_CPUID: %w", e)
	}
	return c.e[:c.n], nil
}

// SetCPUID is KVM_SET_CPUID2; it comes before the control registers that depend on it.
func (v *VCPU) SetCPUID(entries []CPUIDEntry) error {
	if len(entries) > maxCPUID {
		return fmt.Errorf("KVM_SET_CPUID2: %d entries, at most %d", len(entries), maxCPUID)
	}
	c := &cpuid2{n: uint32(len(entries))}
	copy(c.e[:], entries)
	if _, e := ioctlPtr(v.fd, ioSetCPUID2, unsafe.Pointer(c)); e != 0 {
		return fmt.Errorf("KVM_SET_CPUID2: %w", e)
	}
	return nil
}

// MSR is one model-specific register.
type MSR struct {
	Index uint32
	_     uint32
	Value uint64
}

// MSRBlock is struct kvm_msrs with one entry.
type MSRBlock struct {
	N, _ uint32
	MSR  MSR
}

// SetMSRs is KVM_SET_MSRS; it fails naming the first register that the kernel did not take.
func (v *VCPU) SetMSRs(list []MSR) error {
	b := &struct {
		n, _ uint32
		m    [32]MSR
	}{n: uint32(len(list))}
	if copy(b.m[:], list) != len(list) {
		return fmt.Errorf("KVM_SET_MSRS: %d registers, at most %d", len(list), len(b.m))
	}
	done, e := ioctlPtr(v.fd, ioSetMSRs, unsafe.Pointer(b))
	if e != 0 {
		return fmt.Errorf("KVM_SET_MSRS: %w", e)
	}
	if int(done) != len(list) {
		return fmt.Errorf("KVM_SET_MSRS: register %#x refused", list[done].Index)
	}
	return nil
}

// SetXCR0 is KVM_SET_XCRS for XCR0 alone.
func (v *VCPU) SetXCR0(mask uint64) error {
	x := &struct {
		n, flags uint32
		e        [16]struct {
			xcr, _ uint32
			value  uint64
		}
		_ [16]uint64
	}{n: 1}
	x.e[0].value = mask
	if _, e := ioctlPtr(v.fd, ioSetXCRs, unsafe.Pointer(x)); e != 0 {
		return fmt.Errorf("KVM_SET_XCRS %#x: %w", mask, e)
	}
	return nil
}

// SetXSave is KVM_SET_XSAVE, for a vCPU whose thread does not run yet.
func (v *VCPU) SetXSave(x *XSave) error {
	if _, e := ioctlPtr(v.fd, IoSetXSave, unsafe.Pointer(x)); e != 0 {
		return fmt.Errorf("KVM_SET_XSAVE: %w", e)
	}
	return nil
}

// SetSignalMask sets the signals that are blocked while the vCPU's thread is inside KVM_RUN.
func (v *VCPU) SetSignalMask(blocked uint64) error {
	// struct kvm_signal_mask: u32 len, then the set, packed to 12 bytes.
	m := &[3]uint32{8, uint32(blocked), uint32(blocked >> 32)}
	if _, e := ioctlPtr(v.fd, ioSetSignalMask, unsafe.Pointer(m)); e != 0 {
		return fmt.Errorf("KVM_SET_SIGNAL_MASK: %w", e)
	}
	return nil
}

// deviceAttr is struct kvm_device_attr.
type deviceAttr struct {
	flags, group uint32
	attr, addr   uint64
}

// ZeroTSCOffset makes the guest's TSC the host's (Documentation/virt/kvm/devices/vcpu.rst, 4.1). It
// reports false where the kernel has no such attribute: then the offset was not changed.
func (v *VCPU) ZeroTSCOffset() (bool, error) {
	const tscCtrl, tscOffset = 0, 0
	zero := new(uint64)
	a := &deviceAttr{group: tscCtrl, attr: tscOffset, addr: uint64(uintptr(unsafe.Pointer(zero)))}
	if _, e := ioctlPtr(v.fd, ioHasDeviceAttr, unsafe.Pointer(a)); e != 0 {
		return false, nil
	}
	_, e := ioctlPtr(v.fd, ioSetDeviceAttr, unsafe.Pointer(a))
	if e != 0 {
		return false, fmt.Errorf("KVM_VCPU_TSC_OFFSET: %w", e)
	}
	// a holds zero's address as a number only: keep both alive over the call.
	keep(zero, a)
	return true, nil
}

//go:noinline
func keep(...any) {}

// TSCkHz is the frequency of the vCPU's TSC; 0 when KVM does not say.
func (v *VCPU) TSCkHz() uint64 {
	r, e := ioctl(v.fd, ioGetTSCKHz, 0)
	if e != 0 {
		return 0
	}
	return uint64(r)
}

// enableCap is KVM_ENABLE_CAP on the VM.
func (vm *VM) enableCap(c uint32, arg0 uint64) error {
	a := &struct {
		cap, flags uint32
		args       [4]uint64
		_          [64]byte
	}{cap: c}
	a.args[0] = arg0
	if _, e := ioctlPtr(vm.fd, ioEnableCap, unsafe.Pointer(a)); e != 0 {
		return fmt.Errorf("KVM_ENABLE_CAP %d(%#x): %w", c, arg0, e)
	}
	return nil
}
