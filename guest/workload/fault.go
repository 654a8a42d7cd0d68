package workload

import (
	"fmt"
	"strings"
	"syscall"

	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// Survived is the status of a @fault program whose instruction did not fault.
const Survived = 77

// Refused is the status of a program with --seal that may not be sealed (EAGAIN; cloister run --require): EX_TEMPFAIL of sysexits.h.
const Refused = 75

// Fault is one program of @fault: what it does, and how native Linux ends it
// (arch/x86/kernel/traps.c, arch/x86/mm/fault.c).
type Fault struct {
	Name   string // @fault:Name
	Help   string
	Vector uint8 // the exception that the processor raises natively
	Signal syscall.Signal

	// May lists what the break may be counted as besides breaks.Exception(Vector): back ends differ in what
	// an instruction at CPL 3 does.
	May []breaks.Cause

	// NotUnder names emulators that do not raise the exception: the program ends with Survived there, or as
	// Instead says.
	NotUnder string

	// Instead is what NotUnder raises in its place; nil: nothing.
	Instead *Outcome
}

// Outcome is an exception and how native Linux ends a program by it.
type Outcome struct {
	Vector uint8
	Signal syscall.Signal
}

// Cause is what the break is counted as where the back end raises the native exception.
func (f Fault) Cause() breaks.Cause { return breaks.Exception(f.Vector) }

// Faults is the table of the programs of @fault. The index is the label's number in fault_amd64.s.
func Faults() []Fault {
	pio := []breaks.Cause{breaks.PIO}
	gp := []breaks.Cause{breaks.ExcProtection}
	pf := []breaks.Cause{breaks.MemoryFault}
	return []Fault{
		{Name: "de", Help: "division by zero", Vector: 0, Signal: syscall.SIGFPE},
		{Name: "bp", Help: "int3", Vector: 3, Signal: syscall.SIGTRAP},
		{Name: "ud", Help: "ud2", Vector: 6, Signal: syscall.SIGILL},
		{Name: "gp", Help: "load from a non-canonical address", Vector: 13, Signal: syscall.SIGSEGV},
		{Name: "pf", Help: "write to address 8", Vector: 14, Signal: syscall.SIGSEGV, May: pf},
		{Name: "of", Help: "int $4", Vector: 4, Signal: syscall.SIGSEGV, May: gp},
		{Name: "ac", Help: "misaligned load with EFLAGS.AC", Vector: 17, Signal: syscall.SIGBUS, NotUnder: "qemu-tcg"},
		{Name: "icebp", Help: "int1", Vector: 1, Signal: syscall.SIGTRAP, NotUnder: "qemu-tcg", Instead: &Outcome{6, syscall.SIGILL}},
		{Name: "tf", Help: "EFLAGS.TF", Vector: 1, Signal: syscall.SIGTRAP},
		{Name: "xm", Help: "SSE division by zero, unmasked", Vector: 19, Signal: syscall.SIGFPE, NotUnder: "qemu-tcg"},
		{Name: "mf", Help: "x87 division by zero, unmasked", Vector: 16, Signal: syscall.SIGFPE},
		{Name: "ss", Help: "load from a non-canonical address through RBP", Vector: 12, Signal: syscall.SIGBUS, NotUnder: "qemu-tcg", Instead: &Outcome{13, syscall.SIGSEGV}},
		{Name: "pio", Help: "out to the supervisor's own port", Vector: 13, Signal: syscall.SIGSEGV, May: pio},
		{Name: "pio-in", Help: "in from a port of the host's", Vector: 13, Signal: syscall.SIGSEGV, May: pio},
		{Name: "hlt", Help: "hlt", Vector: 13, Signal: syscall.SIGSEGV},
		{Name: "cli", Help: "cli", Vector: 13, Signal: syscall.SIGSEGV},
		{Name: "msr", Help: "rdmsr", Vector: 13, Signal: syscall.SIGSEGV},
		{Name: "cr", Help: "write to CR3", Vector: 13, Signal: syscall.SIGSEGV},
		{Name: "nx", Help: "jump to data", Vector: 14, Signal: syscall.SIGSEGV, May: pf},
		{Name: "text", Help: "write to the program's code", Vector: 14, Signal: syscall.SIGSEGV, May: pf},
		{Name: "null", Help: "jump to address 0", Vector: 14, Signal: syscall.SIGSEGV, May: pf},
		{Name: "stack", Help: "stack overflow", Vector: 14, Signal: syscall.SIGSEGV, May: pf},
		{Name: "sup", Help: "jump to the supervisor's addresses", Vector: 14, Signal: syscall.SIGSEGV, May: append(gp, pf...)},
		{Name: "jump", Help: "jump to a non-canonical address", Vector: 13, Signal: syscall.SIGSEGV},
	}
}

func faultELF(name string, args []string) ([]byte, error) {
	if len(args) > 0 {
		return nil, fmt.Errorf("%s%s: unexpected argument %q; it has no options", faultPrefix, name, args[0])
	}
	entry := -1
	var known, labels []string
	for i, f := range Faults() {
		if f.Name == name {
			entry = i
		}
		known = append(known, f.Name)
		labels = append(labels, "fault_"+strings.ReplaceAll(f.Name, "-", "_"))
	}
	if entry < 0 {
		return nil, fmt.Errorf("workload %q: there is no fault of that name; there are %s", faultPrefix+name, strings.Join(known, ", "))
	}
	l, err := extract(faultCode())
	if err != nil {
		return nil, err
	}
	return image(l, append(labels, "fault_survived"), entry, &memory{})
}
