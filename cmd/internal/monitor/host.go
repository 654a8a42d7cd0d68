package monitor

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/isolation/host"
	"golang.org/x/sys/unix"
)

// hostFacts is the machine as it is found now.
func hostFacts(cpu int) breaks.Host {
	h := breaks.Host{
		Backend:     string(kvm.DetectBackend("/")),
		Clocksource: session.Clocksource(),
		SMT:         session.Fact("/sys/devices/system/cpu/smt/control"),
		Isolated:    session.Fact("/sys/devices/system/cpu/isolated"),
		NohzFull:    session.Fact("/sys/devices/system/cpu/nohz_full"),
		CommandLine: session.Fact("/proc/cmdline"),
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if cpu >= 0 {
		h.Governor = session.Fact(fmt.Sprintf("/sys/devices/system/cpu/cpu%d/cpufreq/scaling_governor", cpu))
	}
	if n, err := strconv.ParseInt(session.Fact("/proc/sys/kernel/sched_rt_runtime_us"), 10, 64); err == nil {
		h.RTRuntimeUS = &n
	}
	p := processorOf(live, kvm.CPUID)
	h.CPU, h.Microcode, h.CPUs, h.Nested = p.model, p.microcode, p.count, p.nested
	if b := strings.Fields(h.CommandLine); len(b) > 0 {
		for _, w := range b {
			if m, ok := strings.CutPrefix(w, "mitigations="); ok {
				h.Mitigations = m
			}
		}
	}
	return h
}

// processor is what a report says of the machine's.
type processor struct {
	model, microcode string // "" if not known
	count            int    // on line
	nested           bool   // it runs under a hypervisor, or that is not known
}

// processorOf reads it from /proc/cpuinfo; where that would interrupt cores, on which others may run sealed, from the instruction that
// the kernel has it from and from sysfs, which has no microcode in most guests.
func processorOf(s host.System, cpuid func(leaf, sub uint32) (eax, ebx, ecx, edx uint32)) (p processor) {
	if host.CPUInfoAsks(s) {
		return quietProcessor(s, cpuid)
	}
	p.nested = true
	for line := range strings.Lines(host.Text(s, "proc/cpuinfo")) {
		k, v, _ := strings.Cut(line, ":")
		switch k, v = strings.TrimSpace(k), strings.TrimSpace(v); k {
		case "model name":
			p.model = v
		case "microcode":
			p.microcode = v
		case "processor":
			p.count++
		case "flags":
			p.nested = slices.Contains(strings.Fields(v), "hypervisor")
		}
	}
	return p
}

// quietProcessor asks only the CPU that it runs on (Intel SDM volume 2A, CPUID: leaf 1, and the brand string of leaves 0x80000002 to 4).
func quietProcessor(s host.System, cpuid func(leaf, sub uint32) (eax, ebx, ecx, edx uint32)) (p processor) {
	if most, _, _, _ := cpuid(0x80000000, 0); most >= 0x80000004 {
		var name []byte
		for leaf := uint32(0x80000002); leaf <= 0x80000004; leaf++ {
			a, b, c, d := cpuid(leaf, 0)
			for _, r := range []uint32{a, b, c, d} {
				name = binary.LittleEndian.AppendUint32(name, r)
			}
		}
		name, _, _ = bytes.Cut(name, []byte{0})
		p.model = strings.TrimSpace(string(name)) // as the kernel does
	}
	_, _, features, _ := cpuid(1, 0)
	p.nested = features>>31 != 0
	p.microcode = host.Text(s, "sys/devices/system/cpu/cpu0/microcode/version")
	if list, err := host.CPUs(s, "sys/devices/system/cpu/online"); err == nil {
		p.count = len(list)
	}
	return p
}
