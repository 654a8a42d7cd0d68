package cores

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// MaxCPU bounds the numbers that ParseList takes (CONFIG_NR_CPUS of distribution kernels is 8192).
const MaxCPU = 8191

// ParseList reads a CPU list as the kernel writes them ("0-3,7"; Documentation/admin-guide/
// kernel-parameters.rst). An empty string is an empty list.
func ParseList(s string) ([]int, error) {
	var list []int
	if s = strings.TrimSpace(s); s == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		lo, hi, ranged := strings.Cut(part, "-")
		a, err := strconv.Atoi(lo)
		b := a
		if err == nil && ranged {
			b, err = strconv.Atoi(hi)
		}
		if err != nil || a < 0 || b < a || b > MaxCPU {
			return nil, fmt.Errorf("CPU list %q: %q is no CPU or range of CPUs (0..%d)", s, part, MaxCPU)
		}
		for ; a <= b; a++ {
			list = append(list, a)
		}
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

// Format writes a CPU list as the kernel would.
func Format(list []int) string {
	var parts []string
	for i := 0; i < len(list); {
		j := i
		for j+1 < len(list) && list[j+1] == list[j]+1 {
			j++
		}
		if i == j {
			parts = append(parts, strconv.Itoa(list[i]))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", list[i], list[j]))
		}
		i = j + 1
	}
	return strings.Join(parts, ",")
}

// Host is the CPUs of a machine, as sysfs under Root shows them.
type Host struct{ Root string }

func (h Host) list(name string) ([]int, error) {
	b, err := os.ReadFile(filepath.Join(h.Root, "sys/devices/system/cpu", name))
	if err != nil {
		return nil, fmt.Errorf("read the host's CPUs: %w", err)
	}
	return ParseList(string(b))
}

// Exist says in one line which of the CPUs is not among those that are present.
func Exist(present []int, cpus ...int) error {
	for _, c := range cpus {
		if !slices.Contains(present, c) {
			return fmt.Errorf("CPU %d does not exist: this machine has %s", c, Format(present))
		}
	}
	return nil
}

// check says whether cpu can be dedicated to one thread, as far as that can be told without going there.
func (h Host) check(cpu int, allowed []int) error {
	present, err := h.list("present")
	if err != nil {
		return err
	}
	online, err := h.list("online")
	if err != nil {
		return err
	}
	if err := Exist(present, cpu); err != nil {
		return err
	}
	switch {
	case !slices.Contains(online, cpu):
		return fmt.Errorf("CPU %d is offline: echo 1 >/sys/devices/system/cpu/cpu%d/online, or choose one of %s", cpu, cpu, Format(online))
	case len(Without(allowed, cpu)) == 0:
		return fmt.Errorf("CPU %d is the only one: a dedicated core needs a second one for the rest of the system", cpu)
	}
	return nil
}
