package doctor

import (
	"fmt"
	"slices"

	"github.com/cloister-vmm/cloister/isolation/host"
)

// Some files are not answered from memory, but by an interrupt on the CPU that they are about. They are read only where
// nobody runs who would mind.

// inUse says who would mind an interrupt on a CPU: a running program that has leased it, other than the caller; empty when
// nobody would. Whoever cannot be asked is taken to mind.
func (e *examiner) inUse(cpu int) string {
	s, ok := e.s.(interface{ InUse(cpu int) (bool, error) })
	if !ok || e.own && slices.Contains(e.cpus, cpu) {
		return ""
	}
	used, err := s.InUse(cpu)
	switch {
	case err != nil:
		return fmt.Sprintf("not read: whether CPU %d is in use is not known, and reading it interrupts it", cpu)
	case used:
		return fmt.Sprintf("not read: CPU %d is in use, and reading it interrupts it", cpu)
	}
	return ""
}

// bystander is a CPU that nobody asked about, nobody has leased and nobody has set apart, on which a register can be read;
// or the reason why there is none.
func (e *examiner) bystander() (cpu int, why string) {
	apart, _ := e.listOf(cpuDir + "/isolated")
	full, _ := e.listOf(cpuDir + "/nohz_full")
	apart = append(apart, full...)
	for _, in := range host.CPUSets(e.s).Partitions(e.s) {
		apart = append(apart, in...)
	}
	others := slices.DeleteFunc(slices.Clone(e.online), func(c int) bool { return slices.Contains(e.cpus, c) })
	if len(others) == 0 {
		return -1, "no CPU to read it on that was not asked about"
	}
	for _, c := range others {
		if !slices.Contains(apart, c) && e.inUse(c) == "" {
			return c, ""
		}
	}
	return -1, "not read: each other CPU is isolated or in use, and reading it interrupts it"
}

// lookAt reads a file about a CPU that interrupts it, unless somebody would mind.
func (e *examiner) lookAt(cpu int, name string) (string, Evidence) {
	if why := e.inUse(cpu); why != "" {
		return "", Evidence{"/" + name, why}
	}
	return e.look(name)
}

// anyInUse says who would mind an interrupt on a CPU that is not known; empty when nobody would on any that is on line, but these.
func (e *examiner) anyInUse(but []int) string {
	for _, c := range minus(e.online, but) {
		if why := e.inUse(c); why != "" {
			return why
		}
	}
	return ""
}

// cpuinfo reads /proc/cpuinfo, unless that interrupts somebody (host.CPUInfoAsks): then why says that it was not read.
func (e *examiner) cpuinfo() (text, why string) {
	if host.CPUInfoAsks(e.s) {
		full, _ := e.listOf(cpuDir + "/nohz_full")
		if why := e.anyInUse(full); why != "" {
			return "", why
		}
	}
	return host.Text(e.s, "proc/cpuinfo"), ""
}
