package kvm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"golang.org/x/sys/unix"
)

func TestDetectBackend(t *testing.T) {
	root := t.TempDir()
	if b := DetectBackend(root); b != Unnamed {
		t.Errorf("no module: %s", b)
	}
	for module, want := range map[string]Backend{"kvm_intel": VMX, "kvm_amd": SVM, "kvm_pvm": PVM} {
		dir := filepath.Join(t.TempDir(), "sys/module", module)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if b := DetectBackend(filepath.Join(dir, "../../..")); b != want {
			t.Errorf("%s: %s", module, b)
		}
	}
}

func TestNested(t *testing.T) {
	for text, want := range map[string]bool{
		"processor\t: 0\nflags\t\t: fpu vme hypervisor lahf_lm\n": true,
		"processor\t: 0\nflags\t\t: fpu vme hypervisor\n":         true,
		"processor\t: 0\nflags\t\t: fpu vme hypervisors\n":        false,
		"processor\t: 0\nflags\t\t: fpu vme\n":                    false,
		"":                                                        true, // not known to be bare metal
	} {
		root := t.TempDir()
		if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "proc/cpuinfo"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := Nested(root); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	if !Nested(t.TempDir()) {
		t.Error("without /proc/cpuinfo: not nested")
	}
}

// TestErrorsNameTheCall: a descriptor that is not KVM's gives one line that names the ioctl.
func TestErrorsNameTheCall(t *testing.T) {
	fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	sys := &System{file: null, runSize: 4096}
	vm := &VM{fd: uintptr(fd), sys: sys}
	cpu := &VCPU{fd: uintptr(fd), Run: &Run{}}
	second := func(_ any, err error) error { return err }
	for call, err := range map[string]error{
		"KVM_GET_API_VERSION":        sys.check(),
		"KVM_CHECK_EXTENSION":        second(sys.Capability(1)),
		"KVM_CREATE_VM":              second(sys.NewVM()),
		"KVM_GET_SUPPORTED_CPUID":    second(sys.SupportedCPUID()),
		"KVM_CREATE_VCPU":            second(vm.NewVCPU(0)),
		"KVM_SET_USER_MEMORY_REGION": second(vm.AddMemory(0, 4096, 0, false)),
		"KVM_ENABLE_CAP":             vm.enableCap(1, 0),
		"KVM_SET_CPUID2":             cpu.SetCPUID(nil),
		"KVM_GET_SREGS":              second(cpu.Sregs()),
		"KVM_SET_SREGS":              cpu.SetSregs(&Sregs{}),
		"KVM_SET_REGS":               cpu.SetRegs(&Regs{}),
		"KVM_SET_MSRS":               cpu.SetMSRs([]MSR{{Index: 1}}),
		"KVM_SET_XCRS":               cpu.SetXCR0(1),
		"KVM_SET_SIGNAL_MASK":        cpu.SetSignalMask(0),
		"KVM_GET_STATS_FD":           second(cpu.StatsFD()),
		"KVM_RUN":                    cpu.Prime(),
		"KVM statistics":             second(NewStats(fd)),
	} {
		if err == nil {
			t.Errorf("%s on /dev/null succeeded", call)
		} else if !strings.Contains(err.Error(), call) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %q", call, err)
		}
	}
	if err := cpu.SetMSRs(make([]MSR, 33)); err == nil || !strings.Contains(err.Error(), "at most 32") {
		t.Errorf("33 registers: %v", err)
	}
	if err := cpu.SetCPUID(make([]CPUIDEntry, maxCPUID+1)); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("too many entries: %v", err)
	}
	if cpu.TSCkHz() != 0 {
		t.Error("/dev/null has a TSC")
	}
	if ok, err := cpu.ZeroTSCOffset(); ok || err != nil {
		t.Errorf("TSC offset of /dev/null: %v, %v", ok, err)
	}
	if err := sys.Close(); err != nil {
		t.Error(err)
	}
	if err := sys.Close(); err == nil {
		t.Error("closed twice without an error")
	}
}

// TestRawErrno: what RunRaw and IoctlRaw return for a failure is -errno, and the TSC is read all the same.
func TestRawErrno(t *testing.T) {
	before := TSC()
	ret, tsc := RunRaw(^uintptr(0))
	if after := TSC(); ret != -int64(unix.EBADF) || tsc < before || tsc > after {
		t.Errorf("KVM_RUN on no descriptor: %d at %d, between %d and %d", ret, tsc, before, after)
	}
	if ret := IoctlRaw(^uintptr(0), ioGetSregs, 0); ret != -int64(unix.EBADF) {
		t.Errorf("ioctl on no descriptor: %d", ret)
	}
}

func TestIO(t *testing.T) {
	r := &Run{}
	r.Exit[0] = 1 | 4<<8 | 0x1234<<16 | 7<<32
	if out, size, port, n := r.IO(); !out || size != 4 || port != 0x1234 || n != 7 {
		t.Errorf("%v %d %#x %d", out, size, port, n)
	}
	r.Exit[0] = 1 << 8
	if out, size, _, _ := r.IO(); out || size != 1 {
		t.Errorf("IN: %v %d", out, size)
	}
}

// TestMachine makes and closes a VM on the real device, and leaves no descriptor behind.
func TestMachine(t *testing.T) {
	testenv.Need(t, testenv.KVM)
	open := func() int {
		t.Helper()
		e, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(e)
	}
	before := open()
	sys, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	vm, err := sys.NewVM()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vm.AddMemory(123, 4096, 0, false); err == nil {
		t.Error("a slot at an odd address")
	}
	if n, err := vm.DisableExits(0); n != 0 || err != nil {
		t.Errorf("no exits to disable: %d, %v", n, err)
	}
	if n, err := vm.DisableQuirks(0); n != 0 || err != nil {
		t.Errorf("no quirks to disable: %d, %v", n, err)
	}
	if n, err := vm.DisableQuirks(1<<31 | QuirkFixHypercall); n&^QuirkFixHypercall != 0 || err != nil {
		t.Errorf("of quirks that there are not: %#x, %v", n, err)
	}
	cpu, err := vm.NewVCPU(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vm.NewVCPU(0); err == nil {
		t.Error("vCPU 0 twice")
	}
	if cpu.FD() == 0 || cpu.TSCkHz() == 0 {
		t.Errorf("descriptor %d, TSC %d kHz", cpu.FD(), cpu.TSCkHz())
	}
	fd, err := cpu.StatsFD()
	if err != nil {
		t.Fatal(err)
	}
	stats, err := NewStats(fd)
	if err != nil {
		t.Fatal(err)
	}
	if stats.Index("exits") < 0 || stats.Index("no such") != -1 {
		t.Errorf("names %q", stats.Names)
	}
	v := make([]uint64, len(stats.Names))
	if err := cpu.Prime(); err != nil {
		t.Error(err)
	}
	if err := stats.Read(v); err != nil {
		t.Error(err)
	}
	if err := cpu.SetMSRs([]MSR{{Index: 0xdeadbeef}}); err == nil || !strings.Contains(err.Error(), "0xdeadbeef") {
		t.Errorf("a register that is not there: %v", err)
	}
	for _, close := range []func() error{cpu.Close, vm.Close, sys.Close, func() error { return unix.Close(fd) }} {
		if err := close(); err != nil {
			t.Error(err)
		}
	}
	if after := open(); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}
