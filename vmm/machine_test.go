package vmm

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/guest/workload"
	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"golang.org/x/sys/unix"
)

// held is what a machine takes from this process: descriptors and mappings of its memory.
func held(t *testing.T) (fds, mappings int) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return len(list), bytes.Count(maps, []byte("memfd:cloister-")) + bytes.Count(maps, []byte("kvm-vcpu"))
}

// A machine that was built, and one that could not be, give everything back.
func TestNewGivesBack(t *testing.T) {
	testenv.Need(t, testenv.KVM)
	good, err := workload.ELF("@exits", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	config := func(data []byte) Config {
		name := filepath.Join(t.TempDir(), "program")
		if err := os.WriteFile(name, data, 0o755); err != nil {
			t.Fatal(err)
		}
		elf, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		guest, err := NewGuestMemory(false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(elf); unix.Close(guest) })
		return Config{
			Program: name, ExecFn: name, ELF: elf, ELFSize: int64(len(data)), Args: []string{name}, Cwd: "/", CPU: -1, Memory: 64 << 20,
			Seal: SealCall, Ledgers: func(int) (*breaks.VCPU, error) { return new(breaks.VCPU), nil }, Guest: guest, Warn: func(string) {}, Stamp: func(string) {}, GapRecord: func(uint64) {},
		}
	}
	for _, c := range []struct {
		name    string
		change  func(*Config)
		data    []byte
		says    string
		program bool // it is the program's fault
	}{
		{"good", func(*Config) {}, good, "", false},
		{"not an ELF", func(*Config) {}, []byte("#!/bin/sh\n"), "script", true},
		{"cut", func(*Config) {}, good[:100], "", true},
		{"guest memory is no descriptor", func(c *Config) { c.Guest = 1 << 20 }, good, "bad file descriptor", false},
		{"program is no descriptor", func(c *Config) { c.ELF = 1 << 20 }, good, "bad file descriptor", true},
		{"arguments beyond the stack", func(c *Config) { c.Args = []string{strings.Repeat("x", 9<<20)} }, good, "arguments", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config(c.data)
			c.change(&cfg)
			fds, mappings := held(t)
			m, err := New(cfg)
			if (err == nil) != (c.says == "" && !c.program) {
				t.Fatalf("error %v", err)
			}
			if err != nil && (!strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 500) {
				t.Errorf("says %.600v", err)
			}
			if err != nil && IsProgramError(err) != c.program {
				t.Errorf("the program's fault: %v: %v", IsProgramError(err), err)
			}
			if err == nil {
				if m.Info.TSCHz == 0 || m.Info.Entry < abi.LowestUser || m.Info.Clock == "" {
					t.Errorf("%+v", m.Info)
				}
				if f, n := held(t); f <= fds || n <= mappings {
					t.Error("a machine that holds nothing: this test measures the wrong thing")
				}
				if err := m.Close(); err != nil {
					t.Error(err)
				}
			}
			if f, n := held(t); f != fds || n != mappings {
				t.Errorf("%d descriptors and %d mappings, before %d and %d", f, n, fds, mappings)
			}
		})
	}
}

// A machine that was begun and whose start failed elsewhere gives everything back, whatever of it was there by then.
func TestBeginGivesBack(t *testing.T) {
	testenv.Need(t, testenv.KVM)
	fds, mappings := held(t)
	for range 20 {
		m := Begin()
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		if f, n := held(t); f != fds || n != mappings {
			t.Fatalf("%d descriptors and %d mappings, before %d and %d", f, n, fds, mappings)
		}
		if m.main == nil || m.entries == nil {
			t.Fatal("Close did not wait for what Begin makes, or there was no vCPU: this test measures the wrong thing")
		}
	}
}

// TestSerialiseKind: which instruction serialises follows from CPUID alone, and a machine tells which one it is.
func TestSerialiseKind(t *testing.T) {
	for _, c := range []struct {
		name       string
		top        uint32
		serialize  bool
		hypervisor string
		want       string
	}{
		{"new processor", 0x20, true, "", "SERIALIZE"},
		{"new processor, of a hypervisor", 0x20, true, "KVMKVMKVM", "SERIALIZE"},
		{"older processor", 0x16, false, "", "CPUID"},
		{"older processor, of a hypervisor", 0x16, false, "KVMKVMKVM", "IRET"},
		{"older processor, of one without a name", 0x16, false, "-", "IRET"},
		{"emulator", 0x16, false, "TCGTCGTCGTCG", "CPUID"},
		{"emulator of a new processor", 0x20, true, "TCGTCGTCGTCG", "SERIALIZE"},
		{"no leaf 7", 6, true, "", "CPUID"},
		{"no leaf 7, of a hypervisor", 6, true, "KVMKVMKVM", "IRET"},
	} {
		got := serialising[serialiseKind(func(leaf, sub uint32) (a, b, ecx, d uint32) {
			switch {
			case leaf == 0x40000000 && len(c.hypervisor) > 4:
				return leaf, binary.LittleEndian.Uint32([]byte(c.hypervisor)), 0, 0
			case leaf > c.top || sub != 0:
				return ^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0)
			case leaf == 0:
				return c.top, 0, 0, 0
			case leaf == 1 && c.hypervisor != "":
				return 0, 0, 1 << 31, 0
			case leaf == 7 && c.serialize:
				return 0, 0, 0, 1 << 14
			}
			return 0, 0, ^uint32(1 << 31), ^uint32(1 << 14)
		})]
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
