package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"golang.org/x/sys/unix"
)

// runDirs are tried in this order; the environment's CLOISTER_RUN_DIR comes first.
func runDir() (string, error) {
	dir := os.Getenv("CLOISTER_RUN_DIR")
	switch {
	case dir != "":
	case os.Geteuid() == 0:
		dir = "/run/cloister"
	case os.Getenv("XDG_RUNTIME_DIR") != "":
		dir = filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "cloister")
	default:
		dir = filepath.Join(os.TempDir(), fmt.Sprintf("cloister-%d", os.Getuid()))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("run directory: %w: set CLOISTER_RUN_DIR to a directory you can write", err)
	}
	return dir, nil
}

// newVMDir makes the directory of one VM; its lock shows that the engine lives.
func newVMDir(dir, name string) (string, error) {
	d := filepath.Join(dir, "vm", name)
	if err := os.MkdirAll(filepath.Dir(d), 0o755); err != nil {
		return "", fmt.Errorf("run directory: %w", err)
	}
	// One at a time, or two runs of one name could each take the other's directory for a dead VM's.
	all, err := lockVMs(filepath.Dir(d))
	if err != nil {
		return "", err
	}
	defer all.Close()
	for range 2 {
		err := os.Mkdir(d, 0o755)
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrExist) {
			return "", fmt.Errorf("run directory: %w", err)
		}
		if engineLives(d) {
			return "", fmt.Errorf("there is a VM %q already: choose another --name", name)
		}
		if err := os.RemoveAll(d); err != nil { // left by a kill -9
			return "", fmt.Errorf("remove what a dead VM left: %w", err)
		}
	}
	// It gets its name when it is locked and whole: `cloister ps` tries the lock of what it finds.
	f, err := os.OpenFile(filepath.Join(d, "engine.new"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return "", fmt.Errorf("run directory: %w", err)
	}
	keepFiles = append(keepFiles, f)
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return "", fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	if _, err := fmt.Fprintln(f, os.Getpid()); err != nil {
		return "", fmt.Errorf("run directory: %w", err)
	}
	if err := os.Rename(f.Name(), filepath.Join(d, "engine")); err != nil {
		return "", fmt.Errorf("run directory: %w", err)
	}
	return d, nil
}

// lockVMs keeps others from making and removing directories of VMs until the file is closed.
func lockVMs(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// removeDead removes the directory of a VM whose engine has ended, or is about to: a process that was
// killed closes its socket before it drops its lock. By now the directory may be another VM's of that name.
func removeDead(d string, engine int) error {
	all, err := lockVMs(filepath.Dir(d))
	if err != nil {
		return err
	}
	defer all.Close()
	if fact(filepath.Join(d, "engine")) != strconv.Itoa(engine) {
		return nil
	}
	return os.RemoveAll(d)
}

// engineLives looks whether the engine of a VM directory holds its lock.
func engineLives(d string) bool {
	f, err := os.Open(filepath.Join(d, "engine"))
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
}

// checkOutputs finds out before the run whether its files can be written.
func checkOutputs(o *options) error {
	for flag, name := range map[string]string{"--report": o.report, "--pprof": o.profile, "--trace": o.trace} {
		if name == "" {
			continue
		}
		_, statErr := os.Stat(name)
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o644)
		if err != nil {
			return fmt.Errorf("%s: %w: choose a path you can write", flag, err)
		}
		if err := f.Close(); err != nil {
			return fmt.Errorf("%s: %w", flag, err)
		}
		if errors.Is(statErr, os.ErrNotExist) {
			if err := os.Remove(name); err != nil {
				return fmt.Errorf("%s: %w", flag, err)
			}
		}
	}
	return nil
}

// clocksource is the kernel's. Only with "tsc" does its vDSO read the clock without a system call.
func clocksource() string {
	return fact("/sys/devices/system/clocksource/clocksource0/current_clocksource")
}

func fact(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "" // not there: not known, and shown so
	}
	return strings.TrimSpace(string(b))
}

// hostFacts is the machine as it is found now.
func hostFacts(cpu int) breaks.Host {
	h := breaks.Host{
		Backend: string(kvm.DetectBackend("/")), Nested: kvm.Nested("/"),
		Clocksource: clocksource(),
		SMT:         fact("/sys/devices/system/cpu/smt/control"),
		Isolated:    fact("/sys/devices/system/cpu/isolated"),
		NohzFull:    fact("/sys/devices/system/cpu/nohz_full"),
		CommandLine: fact("/proc/cmdline"),
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if cpu >= 0 {
		h.Governor = fact(fmt.Sprintf("/sys/devices/system/cpu/cpu%d/cpufreq/scaling_governor", cpu))
	}
	if n, err := strconv.ParseInt(fact("/proc/sys/kernel/sched_rt_runtime_us"), 10, 64); err == nil {
		h.RTRuntimeUS = &n
	}
	for line := range strings.Lines(fact("/proc/cpuinfo")) {
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

// tscHz asks KVM for the TSC's frequency, before there is a machine.
func tscHz() (uint64, error) {
	s, err := kvm.Open()
	if err != nil {
		return 0, err
	}
	defer s.Close()
	vm, err := s.NewVM()
	if err != nil {
		return 0, err
	}
	defer vm.Close()
	v, err := vm.NewVCPU(0)
	if err != nil {
		return 0, err
	}
	defer v.Close()
	if k := v.TSCkHz(); k != 0 {
		return k * 1000, nil
	}
	return 0, errors.New("KVM_GET_TSC_KHZ: unknown: Cloister needs a TSC of known frequency")
}
