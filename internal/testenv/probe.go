package testenv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The requirements. CPUs(n), Tool(name) and Package(name) make more.
var (
	// KVM: /dev/kvm can be opened for reading and writing.
	KVM = Requirement{"kvm", probeKVM}
	// HardwareKVM: KVM runs on VMX or SVM, real or emulated, so that CPL 0 guest
	// code runs as on hardware and the kvm_exit tracepoint fires.
	HardwareKVM = Requirement{"hardware-kvm", probeHardware}
	// SVM: the back end is kvm-amd.
	SVM = backendIs("svm")
	// VMX: the back end is kvm-intel.
	VMX = backendIs("vmx")
	// PVM: the back end is the software one of nested machines without VMX or SVM.
	PVM = backendIs("pvm")
	// Root: effective user id 0.
	Root = Requirement{"root", probeRoot}
	// MultiCPU: at least two CPUs are usable by this process, isolated ones included.
	MultiCPU = Requirement{"multicpu", func() error { return probeCPUs(2) }}
	// IsolatedCore: at least one CPU was taken from the scheduler by isolcpus= or a
	// cpuset partition. See IsolatedCPUs for which.
	IsolatedCore = Requirement{"isolated-core", probeIsolated}
	// NoHzFull: at least one CPU runs without a periodic tick (nohz_full=).
	NoHzFull = Requirement{"nohz-full", probeNoHz}
	// Tracefs: the kvm tracepoints can be read and instances made.
	Tracefs = Requirement{"tracefs", probeTracefs}
	// BTF: the kernel carries its type information for eBPF.
	BTF = Requirement{"btf", probeBTF}
	// Cgroup2: the unified hierarchy with the cpuset controller is mounted.
	Cgroup2 = Requirement{"cgroup2", probeCgroup2}
	// Trace: this process may trace its children and take descriptors from them, which the system call filters of
	// some containers forbid.
	Trace = Requirement{"trace", probeTrace}
	// KernelGuest: whole kernels boot in reasonable time, and there is one to boot
	// (see GuestKernel). Software back ends take about an hour to unpack one.
	KernelGuest = Requirement{"kernel-guest", probeKernelGuest}
	// ParallelCPUs: the CPUs run at the same time. Those of most lab machines take turns, which starves
	// and slows what counts on another CPU (package lab).
	ParallelCPUs = Requirement{"parallel-cpus", probeParallel}
	// LabMachine: this is a machine of the lab (package lab): disposable, root's, and
	// with nothing else running, so that a test may change it.
	LabMachine = Requirement{"lab-machine", probeLabMachine}
)

// CPUs requires n CPUs usable by this process, isolated ones included.
func CPUs(n int) Requirement {
	return Requirement{fmt.Sprintf("cpus:%d", n), func() error { return probeCPUs(n) }}
}

// HugePages requires that the kernel can set n pages of 2 MiB apart, besides those that are; it is asked to, and they are given back.
func HugePages(n int) Requirement {
	return Requirement{fmt.Sprintf("huge-pages:%d", n), func() error {
		release, err := ReserveHuge(n)
		if err != nil {
			return err
		}
		return release()
	}}
}

// ReserveHuge sets n pages of 2 MiB apart, besides those that are (Documentation/admin-guide/mm/hugetlbpage.rst), until release.
func ReserveHuge(n int) (release func() error, err error) {
	const file = "/proc/sys/vm/nr_hugepages"
	read := func() (int, error) {
		b, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(string(b)))
	}
	write := func(n int) error { return os.WriteFile(file, []byte(strconv.Itoa(n)), 0) }
	old, err := read()
	if err == nil {
		err = write(old + n)
	}
	if err != nil {
		return nil, err
	}
	release = func() error { return write(old) }
	if got, err := read(); err != nil || got < old+n {
		return nil, errors.Join(fmt.Errorf("%s: %d of %d pages: memory is too fragmented, or too little", file, got, old+n), err, release())
	}
	return release, nil
}

// Linux requires a kernel of that version or a later one, for what is held against its own answers and was answered otherwise before.
func Linux(major, minor int) Requirement {
	want := fmt.Sprintf("linux:%d.%d", major, minor)
	return Requirement{want, func() error {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return err
		}
		release := unix.ByteSliceToString(u.Release[:])
		var a, b int
		if n, err := fmt.Sscanf(release, "%d.%d", &a, &b); n != 2 {
			return fmt.Errorf("kernel %s: %w", release, err)
		}
		if a < major || a == major && b < minor {
			return fmt.Errorf("the guest answers as Linux %d.%d does, and this kernel is %s", major, minor, release)
		}
		return nil
	}}
}

// Tool requires an executable of that name in PATH.
func Tool(name string) Requirement {
	return Requirement{"tool:" + name, func() error {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("%s is not in PATH", name)
		}
		return nil
	}}
}

// Package requires a Debian package to be installed, for programs and libraries that are tested as Debian ships them.
func Package(name string) Requirement {
	return Requirement{"package:" + name, func() error {
		out, err := exec.Command("dpkg-query", "-W", "-f", "${db:Status-Status}", name).Output()
		if err != nil || string(out) != "installed" {
			return fmt.Errorf("the Debian package %s is not installed", name)
		}
		return nil
	}}
}

func probeKVM() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

func probeTrace() error {
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return fmt.Errorf("pidfd_open: %w", err)
	}
	fd, err := unix.PidfdGetfd(self, self, 0) // of oneself: the kernel asks for no right, a filter may refuse
	if err == nil {
		err = unix.Close(fd)
	}
	if err != nil {
		err = fmt.Errorf("pidfd_getfd: %w", err)
	}
	return errors.Join(err, unix.Close(self))
}

func probeRoot() error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("effective user id is %d", uid)
	}
	return nil
}

// probeCPUs counts what this process runs on and what it could move to: isolcpus=
// takes CPUs out of the affinity that a process starts with, but not out of reach.
// Merely being online is not enough, since a cpuset may confine us.
func probeCPUs(n int) error {
	have := runtime.NumCPU()
	isolated, err := IsolatedCPUs()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var own unix.CPUSet
	if err := unix.SchedGetaffinity(0, &own); err != nil {
		return fmt.Errorf("sched_getaffinity: %w", err)
	}
	for _, c := range isolated {
		if !own.IsSet(c) {
			have++
		}
	}
	if have < n {
		return fmt.Errorf("%d CPU usable, %d needed", have, n)
	}
	return nil
}

// Backend returns what stands behind /dev/kvm: "svm", "vmx", "pvm", or "none"
// where it cannot be opened or its vendor module is not known.
func Backend() string {
	if KVM.check() != nil {
		return "none"
	}
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		cpuinfo = nil // the module list alone decides
	}
	return backendOf(func(module string) bool {
		_, err := os.Stat(filepath.Join("/sys/module", module))
		return err == nil
	}, string(cpuinfo))
}

// backendOf decides from the vendor modules. One that is built in is listed even
// where its CPU is missing, so the software back end, loaded on purpose, comes
// first, and two hardware ones are told apart by the CPU's flags.
func backendOf(loaded func(string) bool, cpuinfo string) string {
	flag := func(f string) bool {
		for line := range strings.Lines(cpuinfo) {
			if !strings.HasPrefix(line, "flags") {
				continue
			}
			for _, have := range strings.Fields(line) {
				if have == f {
					return true
				}
			}
			return false
		}
		return false
	}
	amd, intel := loaded("kvm_amd"), loaded("kvm_intel")
	switch {
	case loaded("kvm_pvm"):
		return "pvm"
	case amd && intel && flag("svm"), amd && !intel:
		return "svm"
	case intel:
		return "vmx"
	}
	return "none"
}

func probeHardware() error {
	if b := Backend(); b != "svm" && b != "vmx" {
		return fmt.Errorf("the KVM back end is %s", b)
	}
	return nil
}

func backendIs(want string) Requirement {
	return Requirement{want, func() error {
		if b := Backend(); b != want {
			return fmt.Errorf("the KVM back end is %s", b)
		}
		return nil
	}}
}

// IsolatedCPUs returns the CPUs that isolcpus= or a cpuset partition took from the
// scheduler, ascending. It is empty where IsolatedCore is missing.
func IsolatedCPUs() ([]int, error) {
	return cpuFile("/sys/devices/system/cpu/isolated")
}

func probeIsolated() error {
	cpus, err := IsolatedCPUs()
	if err == nil && len(cpus) == 0 {
		err = errors.New("/sys/devices/system/cpu/isolated is empty")
	}
	return err
}

func probeNoHz() error {
	cpus, err := cpuFile("/sys/devices/system/cpu/nohz_full")
	if err == nil && len(cpus) == 0 {
		err = errors.New("/sys/devices/system/cpu/nohz_full is empty")
	}
	return err
}

func cpuFile(path string) ([]int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	cpus, err := parseCPUList(string(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return cpus, nil
}

// maxCPU is the largest CPU number a list may hold: the kernel's own limit for
// x86 (CONFIG_NR_CPUS at most 8192). It keeps a bad list from filling memory.
const maxCPU = 8191

// parseCPUList reads the kernel's list format ("2-3,7"). The kernel prints
// "(null)" for nohz_full where the parameter was not given.
func parseCPUList(s string) ([]int, error) {
	s = strings.TrimSpace(s)
	if s == "" || s == "(null)" {
		return nil, nil
	}
	var cpus []int
	for part := range strings.SplitSeq(s, ",") {
		lo, hi, isRange := strings.Cut(part, "-")
		first, err := strconv.Atoi(lo)
		last := first
		if err == nil && isRange {
			last, err = strconv.Atoi(hi)
		}
		if err != nil || first < 0 || last < first || last > maxCPU {
			return nil, fmt.Errorf("CPU list %q: part %q is not a CPU or a range of CPUs", s, part)
		}
		if len(cpus) > 0 && first <= cpus[len(cpus)-1] {
			return nil, fmt.Errorf("CPU list %q: part %q does not ascend", s, part)
		}
		for c := first; c <= last; c++ {
			cpus = append(cpus, c)
		}
	}
	return cpus, nil
}

func probeTracefs() error {
	const dir = "/sys/kernel/tracing"
	if _, err := os.Stat(dir + "/instances"); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is not mounted; mount -t tracefs tracefs %s", dir, dir)
	} else if err != nil {
		return err
	}
	f, err := os.OpenFile(dir+"/trace_marker", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

func probeBTF() error {
	f, err := os.Open("/sys/kernel/btf/vmlinux")
	if err != nil {
		return err
	}
	return f.Close()
}

func probeCgroup2() error {
	b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("no unified hierarchy at /sys/fs/cgroup")
	}
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(b)) {
		if c == "cpuset" {
			return nil
		}
	}
	return fmt.Errorf("/sys/fs/cgroup has the controllers %q, not cpuset", strings.TrimSpace(string(b)))
}

// GuestKernelVar names the environment variable with the path of a bzImage that
// tests may boot as a guest. The lab sets it.
const GuestKernelVar = "CLOISTER_GUEST_KERNEL"

// GuestKernel returns the path of the guest kernel for tests that declared
// KernelGuest; empty where there is none.
func GuestKernel() string { return os.Getenv(GuestKernelVar) }

func probeKernelGuest() error {
	if err := probeHardware(); err != nil {
		return err
	}
	path := GuestKernel()
	if path == "" {
		return fmt.Errorf("%s is not set", GuestKernelVar)
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%s: %w", GuestKernelVar, err)
	}
	return f.Close()
}

// LabMachineVar names the environment variable with the name of the lab machine
// that this is. The lab sets it.
const LabMachineVar = "CLOISTER_LAB_MACHINE"

func probeLabMachine() error {
	if os.Getenv(LabMachineVar) == "" {
		return fmt.Errorf("%s is not set: this is no lab machine", LabMachineVar)
	}
	return nil
}

// LabSerialVar names the environment variable that is set in a lab machine whose CPUs take turns.
const LabSerialVar = "CLOISTER_LAB_SERIAL"

func probeParallel() error {
	if os.Getenv(LabSerialVar) != "" {
		return errors.New("the CPUs of this lab machine take turns; those of svm-parallel do not")
	}
	return nil
}
