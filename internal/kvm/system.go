package kvm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// APIVersion is the only version of the KVM API there is (api.rst 4.1).
const APIVersion = 12

// Capabilities that gokvm has no name for, or that lie above the range of its type (include/uapi/linux/kvm.h).
const (
	capReadonlyMem     = 81
	capEnableCap       = 98 // on the VM
	capImmediateExit   = 136
	capX86DisableExits = 143
	capSyncRegs        = 74
	capStatsFD         = 203
	capTSCAttr         = 127 // KVM_CAP_VCPU_ATTRIBUTES
	capGuestDebug2     = 195
	capDisableQuirks2  = 213
)

// System is an open /dev/kvm.
type System struct {
	file    *os.File
	runSize int
}

// Device is the path of KVM's character device.
const Device = "/dev/kvm"

// Open opens /dev/kvm and checks that it offers what Cloister cannot do without. The error says what is
// missing and what to do about it.
func Open() (*System, error) {
	f, err := os.OpenFile(Device, os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open %s: not there: enable virtualisation in the firmware and load kvm-intel or kvm-amd (in a virtual machine: enable nested virtualisation)", Device)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("open %s: permission denied: add yourself to the group that owns it (usermod -aG kvm $USER) or run as root", Device)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w: check that the kernel has KVM", Device, err)
	}
	s := &System{file: f}
	if err := s.check(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return s, nil
}

func (s *System) check() error {
	v, err := gokvm.GetAPIVersion(s.file.Fd())
	if err != nil {
		return fmt.Errorf("%s: KVM_GET_API_VERSION: %w: this is not KVM's device: mknod %s c 10 232, or load kvm-intel or kvm-amd", Device, err, Device)
	}
	if v != APIVersion {
		return fmt.Errorf("%s: KVM API version %d, want %d: use a Linux kernel of 2.6.22 or later", Device, v, APIVersion)
	}
	for _, need := range []struct {
		cap  uintptr
		name string
		from string
	}{
		{capImmediateExit, "KVM_CAP_IMMEDIATE_EXIT", "4.11"},
		{capSyncRegs, "KVM_CAP_SYNC_REGS", "4.17"},
		{capReadonlyMem, "KVM_CAP_READONLY_MEM", "3.7"},
	} {
		if n, err := s.Capability(need.cap); err != nil || n == 0 {
			return fmt.Errorf("%s: no %s: needs Linux %s or later", Device, need.name, need.from)
		}
	}
	n, err := gokvm.GetVCPUMMmapSize(s.file.Fd())
	if err != nil || n < 4096 {
		return fmt.Errorf("%s: KVM_GET_VCPU_MMAP_SIZE: %d (%v)", Device, n, err)
	}
	s.runSize = int(n)
	return nil
}

// Capability is KVM_CHECK_EXTENSION on the system: 0 = not there.
func (s *System) Capability(c uintptr) (int, error) { return checkExtension(s.file.Fd(), c) }

// Close closes /dev/kvm. VMs made from it live on.
func (s *System) Close() error { return s.file.Close() }

// Backend says which implementation of KVM is loaded.
type Backend string

// The back ends Cloister knows.
const (
	VMX     Backend = "vmx"
	SVM     Backend = "svm"
	PVM     Backend = "pvm"
	Unnamed Backend = "unknown"
)

// DetectBackend reads which vendor module of KVM is present under root (normally "/"). It is a label
// for reports: no behaviour depends on it (docs/backends.md).
func DetectBackend(root string) Backend {
	for _, b := range []struct {
		module string
		b      Backend
	}{{"kvm_intel", VMX}, {"kvm_amd", SVM}, {"kvm_pvm", PVM}} {
		if _, err := os.Stat(filepath.Join(root, "sys/module", b.module)); err == nil {
			return b.b
		}
	}
	return Unnamed
}

// Nested reports whether the host itself runs under a hypervisor: then what that hypervisor does to
// the cores is invisible here, and no isolation can be certified.
func Nested(root string) bool {
	b, err := os.ReadFile(filepath.Join(root, "proc/cpuinfo"))
	if err != nil {
		return true // not known to be bare metal
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "flags") {
			return strings.Contains(line+" ", " hypervisor ") || strings.HasSuffix(strings.TrimSpace(line), " hypervisor")
		}
	}
	return true
}
