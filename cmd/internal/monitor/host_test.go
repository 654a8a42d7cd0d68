package monitor

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/host"
)

// A report says the same of the processor whichever way it was read.
func TestProcessorWithoutCPUInfo(t *testing.T) {
	loud, quiet := processorOf(live, kvm.CPUID), quietProcessor(live, kvm.CPUID)
	if host.CPUInfoAsks(live) {
		t.Logf("here both are of CPUID: %+v", quiet) // the trees below have both
	}
	if quiet.microcode == "" {
		quiet.microcode = loud.microcode // most guests have none in sysfs
	}
	if loud != quiet || quiet.model == "" || quiet.count == 0 {
		t.Errorf("/proc/cpuinfo: %+v; CPUID and sysfs: %+v", loud, quiet)
	}
}

// noCPUInfo fails the test when /proc/cpuinfo is read.
type noCPUInfo struct {
	host.Live
	t *testing.T
}

func (s noCPUInfo) Read(name string) ([]byte, error) {
	if name == "proc/cpuinfo" {
		s.t.Error("/proc/cpuinfo is read, which interrupts cores")
	}
	return s.Live.Read(name)
}

// On a kernel on which to read /proc/cpuinfo interrupts cores, a report is made without it.
func TestReportSparesCores(t *testing.T) {
	root := t.TempDir()
	put := func(name, text string) {
		p := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	put("sys/devices/system/cpu/online", "0-3")
	put("sys/devices/system/cpu/cpu0/microcode/version", "0x42")
	put("proc/cpuinfo", "processor\t: 0\nmodel name\t: Other\nmicrocode\t: 0x1\nflags\t\t: fpu hypervisor\n")
	brand := "  A Processor   @ 2.50GHz"
	brand += strings.Repeat("\x00", 48-len(brand))
	cpuid := func(leaf, _ uint32) (a, b, c, d uint32) {
		switch {
		case leaf == 0x80000000:
			return 0x80000008, 0, 0, 0
		case leaf > 0x80000000:
			at := brand[(leaf-0x80000002)*16:]
			word := func(i int) uint32 {
				return uint32(at[i]) | uint32(at[i+1])<<8 | uint32(at[i+2])<<16 | uint32(at[i+3])<<24
			}
			return word(0), word(4), word(8), word(12)
		}
		return 0, 0, 0, 0
	}
	put("proc/sys/kernel/osrelease", "5.15.0-1-amd64")
	if p, want := processorOf(noCPUInfo{host.Live{Root: root}, t}, cpuid), (processor{"A Processor   @ 2.50GHz", "0x42", 4, false}); p != want {
		t.Errorf("before 5.18: %+v, want %+v", p, want)
	}
	put("proc/sys/kernel/osrelease", "5.18.0")
	if p, want := processorOf(host.Live{Root: root}, cpuid), (processor{"Other", "0x1", 1, true}); p != want {
		t.Errorf("since 5.18: %+v, want %+v", p, want)
	}
}
