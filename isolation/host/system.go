package host

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/cores"
	"golang.org/x/sys/unix"
)

// System is a host: its files, by their paths without the leading slash, and the affinities of its threads.
// The kernel's is Live; a recorded tree can stand in for it wherever nothing but reading is done.
type System interface {
	// Read gives the bytes of a file.
	Read(name string) ([]byte, error)
	// Writable says, without writing, what keeps this process from writing a file or making something in a directory.
	Writable(name string) error
	// Write gives a file that exists a value, in one write.
	Write(name, value string) error
	// Names lists a directory, sorted.
	Names(dir string) ([]string, error)
	// Mkdir makes a directory.
	Mkdir(name string) error
	// Rmdir removes one that has no directories in it.
	Rmdir(name string) error
	// SetAffinity says on which CPUs a thread may run.
	SetAffinity(tid int, cpus []int) error
}

// Live is the host whose file system begins at Root: "/" is the machine itself.
type Live struct{ Root string }

func (l Live) path(name string) string { return filepath.Join(l.Root, name) }

// Read gives the bytes of a file. dev/cpu/N/msr@0x34 is one model-specific register, in decimal; to read it
// interrupts CPU N (msr(4)). dev/cpu_dma_latency is decimal too, microseconds. NAME@mode is the permissions of NAME, in octal.
func (l Live) Read(name string) ([]byte, error) {
	if file, ok := strings.CutSuffix(name, modeOf); ok && l.Root == "/" { // a recording has it by this name
		info, err := os.Stat(l.path(file))
		if err != nil {
			return nil, err
		}
		return fmt.Appendf(nil, "%o\n", info.Mode().Perm()), nil
	}
	if dev, reg, ok := strings.Cut(name, "/msr@"); ok && l.Root == "/" { // a recording has it by this name
		at, err := strconv.ParseInt(reg, 0, 64)
		if err != nil {
			return nil, err
		}
		f, err := os.Open(l.path(dev + "/msr"))
		if err != nil {
			return nil, err
		}
		defer f.Close()
		var b [8]byte
		if _, err := f.ReadAt(b[:], at); err != nil {
			return nil, err
		}
		return fmt.Appendln(nil, binary.LittleEndian.Uint64(b[:])), nil
	}
	b, err := os.ReadFile(l.path(name))
	if name == dmaLatency && len(b) == 4 && bytes.ContainsFunc(b, func(r rune) bool { return r < ' ' && r != '\n' || r > '~' }) {
		b = fmt.Appendln(nil, int32(binary.NativeEndian.Uint32(b)))
	}
	return b, err
}

// modeOf, behind the name of a file, names its permissions.
const modeOf = "@mode"

// dmaLatency holds, while it is open, the latency of sleep states that its holders bear, and gives the lowest of all, in
// binary (kernel/power/qos.c). To open it for a look asks for nothing and so changes nothing.
const dmaLatency = "dev/cpu_dma_latency"

// InUse reports whether another program that runs on this machine leases a CPU (package cores). Nobody runs on a recorded one.
func (l Live) InUse(cpu int) (bool, error) {
	if l.Root != "/" {
		return false, nil
	}
	return cores.InUse(cpu)
}

// inUse asks a system that can tell; others are not in use.
func inUse(s System, cpu int) (bool, error) {
	if u, ok := s.(interface{ InUse(cpu int) (bool, error) }); ok {
		return u.InUse(cpu)
	}
	return false, nil
}

// Writable is access(2), which knows of read-only mounts too.
func (l Live) Writable(name string) error {
	if err := unix.Access(l.path(name), unix.W_OK); err != nil {
		return &fs.PathError{Op: "access", Path: l.path(name), Err: err}
	}
	return nil
}

// Write writes to a file that exists: no knob is ever made by us.
func (l Live) Write(name, value string) error {
	f, err := os.OpenFile(l.path(name), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	// The kernel's files take a value whole, with one write(2).
	_, err = unix.Write(int(f.Fd()), []byte(value+"\n"))
	if err != nil {
		err = &fs.PathError{Op: "write", Path: f.Name(), Err: err}
	}
	return errors.Join(err, f.Close())
}

// Names lists a directory, sorted.
func (l Live) Names(dir string) ([]string, error) {
	f, err := os.Open(l.path(dir))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	names = slices.DeleteFunc(names, func(n string) bool { return n == dirMark })
	slices.Sort(names)
	return names, err
}

// Mkdir makes a directory.
func (l Live) Mkdir(name string) error { return os.Mkdir(l.path(name), 0o755) }

// Rmdir removes a directory; of a cgroup, whose files go with it.
func (l Live) Rmdir(name string) error {
	err := unix.Rmdir(l.path(name))
	if err != nil {
		return &fs.PathError{Op: "rmdir", Path: l.path(name), Err: err}
	}
	return nil
}

// SetAffinity is sched_setaffinity(2).
func (l Live) SetAffinity(tid int, cpus []int) error {
	var set unix.CPUSet
	for _, c := range cpus {
		if c >= len(set)*64 {
			return fmt.Errorf("CPU %d is beyond the %d of an affinity", c, len(set)*64)
		}
		set.Set(c)
	}
	return unix.SchedSetaffinity(tid, &set)
}

// Text reads a file and drops the blanks at its ends; "" where there is none to read.
func Text(s System, name string) string {
	b, err := s.Read(name)
	if err != nil {
		return "" // not there: not known, and every caller says so
	}
	return strings.TrimSpace(string(b))
}

// Has reports whether a file can be read.
func Has(s System, name string) bool {
	_, err := s.Read(name)
	return err == nil
}

// Since reports whether the kernel is of this version or a later one; not where the version cannot be read.
func Since(s System, major, minor int) bool {
	var a, b int
	if _, err := fmt.Sscanf(Text(s, "proc/sys/kernel/osrelease"), "%d.%d", &a, &b); err != nil {
		return false
	}
	return a > major || a == major && b >= minor
}

// CPUInfoAsks reports whether to read /proc/cpuinfo interrupts CPUs: before Linux 5.18 the kernel asks each one that has a tick for its
// frequency (arch_freq_prepare_all).
func CPUInfoAsks(s System) bool { return !Since(s, 5, 18) }

// CPUs reads a file that holds a CPU list.
func CPUs(s System, name string) ([]int, error) {
	b, err := s.Read(name)
	if err != nil {
		return nil, err
	}
	list, err := cores.ParseList(string(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return list, nil
}

// ParseMask reads a CPU mask as the kernel prints it: groups of eight hexadecimal digits, the highest first.
func ParseMask(s string) ([]int, error) {
	digits := strings.ReplaceAll(strings.TrimSpace(s), ",", "")
	if digits == "" || len(digits) > (cores.MaxCPU+1)/4 {
		return nil, fmt.Errorf("CPU mask %.40q: want hexadecimal digits", s)
	}
	var list []int
	for i := range len(digits) {
		v, err := strconv.ParseUint(digits[len(digits)-1-i:len(digits)-i], 16, 8)
		if err != nil {
			return nil, fmt.Errorf("CPU mask %.40q: want hexadecimal digits", s)
		}
		for b := range 4 {
			if v>>b&1 != 0 {
				list = append(list, i*4+b)
			}
		}
	}
	return list, nil
}

// FormatMask writes a CPU mask as the kernel takes it.
func FormatMask(cpus []int) string {
	top := 0
	for _, c := range cpus {
		top = max(top, c)
	}
	groups := make([]uint32, top/32+1)
	for _, c := range cpus {
		groups[c/32] |= 1 << (c % 32)
	}
	slices.Reverse(groups)
	var b strings.Builder
	fmt.Fprintf(&b, "%x", groups[0])
	for _, g := range groups[1:] {
		fmt.Fprintf(&b, ",%08x", g)
	}
	return b.String()
}

// minus gives a without the members of b.
func minus(a, b []int) []int {
	return slices.DeleteFunc(slices.Clone(a), func(c int) bool { return slices.Contains(b, c) })
}

// meets reports whether two lists have a member in common.
func meets(a, b []int) bool { return len(minus(a, b)) < len(a) }
