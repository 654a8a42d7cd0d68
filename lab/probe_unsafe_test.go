package lab_test

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/internal/testenv"
)

// probeCode leaves the guest in three ways, a known number of times each: by PIO
// to the VMM, by CPUID which the kernel serves, and once by HLT. Real mode, CPL 0.
//
//	0:  be 0a 00    mov si, 10
//	3:  e6 10       out 0x10, al
//	5:  66 31 c0    xor eax, eax
//	8:  0f a2       cpuid
//	a:  4e          dec si
//	b:  75 f6       jnz 3
//	d:  f4          hlt
var probeCode = []byte{
	0xbe, 0x0a, 0x00, 0xe6, 0x10, 0x66, 0x31, 0xc0, 0x0f, 0xa2, 0x4e, 0x75, 0xf6, 0xf4,
}

const probeRounds = 10

// exitNames are the names of the three in kvm:kvm_exit
// (arch/x86/include/uapi/asm/svm.h and vmx.h).
var exitNames = map[string][3]string{
	"svm": {"io", "cpuid", "hlt"},
	"vmx": {"IO_INSTRUCTION", "CPUID", "HLT"},
}

// TestProbe is the lab's own: KVM runs CPL 0 code as hardware does, and
// kvm:kvm_exit reports exactly the exits that the code makes.
func TestProbe(t *testing.T) {
	testenv.Need(t, testenv.HardwareKVM, testenv.Root, testenv.Tracefs)
	v := probeVM(t)
	trace := traceExits(t)

	io, hlt := 0, 0
	for hlt == 0 {
		switch ret, _ := kvm.RunRaw(v.FD()); {
		case ret == -int64(syscall.EINTR):
			continue // the Go runtime's preemption signal
		case ret != 0:
			t.Fatalf("KVM_RUN: %v", syscall.Errno(-ret))
		}
		switch v.Run.ExitReason {
		case kvm.ExitIO:
			if out, size, port, count := v.Run.IO(); !out || size != 1 || port != 0x10 || count != 1 {
				t.Fatalf("exit %d: out=%v size=%d port=%#x count=%d, want out 0x10, al", io, out, size, port, count)
			}
			io++
		case kvm.ExitHLT:
			hlt++
		default:
			t.Fatalf("exit reason %d after %d PIO exits", v.Run.ExitReason, io)
		}
	}
	if io != probeRounds {
		t.Errorf("%d PIO exits reached the VMM, want %d", io, probeRounds)
	}
	got := trace()
	names := exitNames[testenv.Backend()]
	for i, want := range []int{probeRounds, probeRounds, 1} {
		if got[names[i]] != want {
			t.Errorf("kvm_exit counts %d × %s, want %d; all: %v", got[names[i]], names[i], want, got)
		}
	}
	t.Logf("back end %s, kvm_exit: %v", testenv.Backend(), got)
}

// probeVM makes a VM with one page of code and a vCPU at its start.
func probeVM(t *testing.T) *kvm.VCPU {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	sys, err := kvm.Open()
	must(err)
	vm, err := sys.NewVM()
	must(err)
	mem, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	must(err)
	copy(mem, probeCode)
	_, err = vm.AddMemory(0, 4096, uintptr(unsafe.Pointer(&mem[0])), false)
	must(err)
	v, err := vm.NewVCPU(0)
	must(err)
	t.Cleanup(func() {
		if err := errors.Join(v.Close(), vm.Close(), sys.Close(), unix.Munmap(mem)); err != nil {
			t.Error(err)
		}
	})
	s, err := v.Sregs()
	must(err)
	s.CS.Base, s.CS.Selector = 0, 0
	must(v.SetSregs(s))
	must(v.SetRegs(&kvm.Regs{RFLAGS: 2}))
	return v
}

// traceExits starts counting kvm:kvm_exit in an instance of its own; the returned
// function stops it and gives the counts by reason.
func traceExits(t *testing.T) func() map[string]int {
	t.Helper()
	dir := filepath.Join("/sys/kernel/tracing/instances", "lab-probe")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	set := func(file, value string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	set("events/kvm/kvm_exit/enable", "1")
	return func() map[string]int {
		t.Helper()
		set("events/kvm/kvm_exit/enable", "0")
		f, err := os.Open(filepath.Join(dir, "trace"))
		if err != nil {
			t.Fatal(err)
		}
		counts := map[string]int{}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			if m := exitReason.FindStringSubmatch(lines.Text()); m != nil {
				counts[strings.TrimPrefix(m[1], "EXIT_")]++
			}
		}
		if err := errors.Join(lines.Err(), f.Close()); err != nil {
			t.Fatal(err)
		}
		return counts
	}
}

var exitReason = regexp.MustCompile(`kvm_exit: .*reason (\S+)`)
