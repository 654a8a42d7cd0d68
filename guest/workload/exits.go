package workload

import (
	"flag"
	"fmt"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// MaxProvoke is the most that --count of @exits may be: its mapping stays below 256 MiB.
const MaxProvoke = 4096

// Expect is what one provocation of @exits must leave in the books of a run, both books together.
type Expect struct {
	What  string
	Cause breaks.Cause
	Count uint64
	Nr    uint64 // the system call's number, where Cause is breaks.Syscall

	// Hardware is the cause in place of Cause on back ends where the processor itself leaves the guest
	// (vmx, svm); breaks.Unknown: the same on all.
	Hardware breaks.Cause
}

// Operations of a step, and what it asks of the result.
const (
	opEnd     = 0
	opSyscall = 1
	opCPUID   = 2
	opTouch   = 3
	opSeal    = 4

	checkNone  = 0
	checkOK    = 1 // no error number
	checkValue = 2 // Want or Or

	baseSave = 1 // the result is the base
	baseAdd  = 2 // the base is added to the first argument
)

// step is one line of the table that @exits works through.
type step struct {
	Op, Count, Nr   uint64
	Args            [6]uint64
	Check, Want, Or uint64
	Base            uint64
	_               [3]uint64
}

// Linux x86-64 system calls of @exits (arch/x86/entry/syscalls/syscall_64.tbl). 1000 is above all of them and
// below those of the x32 bit.
const (
	sysMmap         = 9
	sysMunmap       = 11
	sysMadvise      = 28
	sysGetppid      = 110
	sysClockGettime = 228
	sysUnknown      = 1000
)

// touchStride is the distance in bytes of the pages that @exits touches: KVM's shadow paging fills 8
// neighbouring entries at once (32 KiB), so each page beyond that is a fault of its own.
const touchStride = 64 << 10

type provocation struct {
	step
	expect []Expect
}

// provocations is the one source of both the program's table and of what the books must hold.
func provocations(n uint64) []provocation {
	const minusENOSYS = ^uint64(38 - 1)
	call := func(what string, nr, count uint64, s step, more ...Expect) provocation {
		s.Op, s.Nr, s.Count = opSyscall, nr, count
		return provocation{s, append([]Expect{{What: what, Cause: breaks.Syscall, Count: count, Nr: nr}}, more...)}
	}
	provoke := func(what string, arg uint64, cause breaks.Cause) provocation {
		p := call("provoke "+what, abi.SysProvoke, n, step{Args: [6]uint64{arg}, Check: checkValue, Or: minusENOSYS})
		if cause != breaks.Unknown {
			p.expect = append(p.expect, Expect{What: "provoke " + what, Cause: cause, Count: n})
		}
		return p
	}
	return []provocation{
		call("getppid", sysGetppid, n, step{Check: checkOK}),
		call("unknown system call", sysUnknown, n, step{Check: checkValue, Want: minusENOSYS, Or: minusENOSYS}),
		call("clock_gettime as a system call", sysClockGettime, n, step{Args: [6]uint64{1, ParamsAddr + scratchAt}, Check: checkOK}),
		provoke("hlt", abi.ProvokeHLT, breaks.HLT),
		provoke("cpuid", abi.ProvokeCPUID, breaks.Unknown),
		provoke("kick", abi.ProvokeKick, breaks.Kick),
		provoke("pio", abi.ProvokePIO, breaks.PIO),
		provoke("mmio", abi.ProvokeMMIO, breaks.MMIO),
		{step{Op: opCPUID, Count: n}, []Expect{{What: "CPUID", Cause: breaks.Emulation, Count: n, Hardware: breaks.KernelOther}}},
		// PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE, no file; then MADV_NOHUGEPAGE, which
		// a kernel without huge pages refuses.
		call("mmap", sysMmap, 1, step{Args: [6]uint64{0, n * touchStride, 3, 0x4022, ^uint64(0), 0}, Check: checkOK, Base: baseSave}),
		call("madvise", sysMadvise, 1, step{Args: [6]uint64{0, n * touchStride, 15}, Base: baseAdd}),
		{step{Op: opTouch, Count: n, Args: [6]uint64{touchStride}}, []Expect{{What: "first touch", Cause: breaks.PageFault, Count: n}}},
		call("munmap", sysMunmap, 1, step{Args: [6]uint64{0, n * touchStride}, Check: checkOK, Base: baseAdd}),
		{step{Op: opSeal, Count: n}, []Expect{{What: "seal and unseal", Cause: breaks.Seal, Count: 2 * n}}},
		{step{Op: opEnd}, []Expect{{What: "exit_group", Cause: breaks.End, Count: 1}}},
	}
}

// Provocations is what @exits --count n must leave in the books, in the order in which it happens; n is taken
// into 1..MaxProvoke. Only what the program itself does is listed: how the supervisor carries out SysProvoke
// may add breaks.Setup, and the page faults of the program's own image come on top unless it was pre-touched.
func Provocations(n int) []Expect {
	var all []Expect
	for _, p := range provocations(uint64(min(max(n, 1), MaxProvoke))) {
		all = append(all, p.expect...)
	}
	return all
}

func exitsOptions(fs *flag.FlagSet) fill {
	count := fs.Uint64("count", 10, "provoke each `N` times")
	return func(m *memory, _ uint64) error {
		if *count < 1 || *count > MaxProvoke {
			return fmt.Errorf("--count %d: must be 1 to %d", *count, MaxProvoke)
		}
		all := provocations(*count)
		if len(all) > maxSteps {
			return fmt.Errorf("%d steps, room for %d: this build of cloister is damaged", len(all), maxSteps)
		}
		for i, v := range all {
			m.params.Steps[i] = v.step
		}
		return nil
	}
}
