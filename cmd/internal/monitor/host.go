package monitor

import (
	"fmt"
	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"strconv"
	"strings"

	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"golang.org/x/sys/unix"
)

// hostFacts is the machine as it is found now.
func hostFacts(cpu int) breaks.Host {
	h := breaks.Host{
		Backend: string(kvm.DetectBackend("/")), Nested: kvm.Nested("/"),
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
	for line := range strings.Lines(session.Fact("/proc/cpuinfo")) {
		k, v, _ := strings.Cut(line, ":")
		switch k, v = strings.TrimSpace(k), strings.TrimSpace(v); k {
		case "model name":
			h.CPU = v
		case "microcode":
			h.Microcode = v
		case "processor":
			h.CPUs++
		}
	}
	if b := strings.Fields(h.CommandLine); len(b) > 0 {
		for _, w := range b {
			if m, ok := strings.CutPrefix(w, "mitigations="); ok {
				h.Mitigations = m
			}
		}
	}
	return h
}
