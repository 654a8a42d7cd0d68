package breaks

import "fmt"

// Back ends as `host.backend` of the report names them.
const (
	BackendVMX = "vmx" // Intel VT-x
	BackendSVM = "svm" // AMD SVM
	BackendPVM = "pvm" // the software back end: shadow paging, no virtualisation hardware
)

// BackendBare says that there is no virtual machine: the ledger is of a native thread. Its Kernel[KernelIRQ] are the
// interrupts of the thread's core, Kernel[KernelPageFixed] its page faults; its other causes are in nobody's books.
const BackendBare = "bare"

// whyBare is why the books of a native thread do not close.
const whyBare = "a native thread's system calls, exceptions and signals are counted by nobody"

// Uncounted says why the count of a cause is not known, or not known whole, for a vCPU; empty: it is what it
// seems to be. ok and why are KernelCauses' own.
func (c *Counts) Uncounted(cause Cause, backend string, ok bool, why string) string {
	if backend != BackendBare {
		_, readable := tolls(backend)
		if !cause.FromKernel() || ok || readable && direct(cause) {
			return ""
		}
		return why
	}
	switch {
	case cause == HostInterrupt && c.CPU == NoCPU:
		return "the thread has no core of its own whose interrupts could be counted: give it one (--cpu)"
	case cause == Syscall, cause == SpuriousKick, cause == Signal, cause >= ExcDivide && cause <= ExcOther:
		return whyBare
	}
	return "" // the kernel's own counter, or something that only a virtual machine has
}

// Indices into Counts.Book.
const (
	Open   = 0
	Sealed = 1
)

// toll is what one return of KVM_RUN has cost in KVM's own statistics by the time it is booked.
type toll struct {
	exits    uint64 // `exits` that are the return itself
	emulated uint64 // `insn_emulation`
	transits uint64 // `exits` on the way to it: the switch that SYSCALL or an exception costs on pvm
}

// tolls says for each back end what a return by each cause costs. This table and kernelCauses below
// are the whole arithmetic of the kernel's half of the books; docs/breaks.md gives the measurements
// behind every line, and kernel_test.go holds them to the recorded figures.
//
// A cause that is not listed costs nothing: a kick's exit is the interrupt that brought it
// (irq_exits), and End is charged only when a system call was the end (see endings).
func tolls(backend string) (t [NCause]toll, ok bool) {
	switch backend {
	case BackendVMX, BackendSVM:
		for _, c := range []Cause{Syscall, Seal, SafePoint, PIO, HLT, Debug} {
			t[c] = toll{exits: 1}
		}
		// The emulator decodes an access to a hole; it does not for OUT, whose exit carries the operand.
		t[MMIO] = toll{exits: 1, emulated: 1}
		// Delivered by the processor through the guest's IDT; the stub's OUT is the only exit.
		for c := ExcDivide; c <= ExcOther; c++ {
			t[c] = toll{exits: 1}
		}
	case BackendPVM:
		t[Debug] = toll{exits: 1}
		for _, c := range []Cause{PIO, MMIO, HLT} {
			t[c] = toll{exits: 1, emulated: 1}
		}
		// The stub's OUT, and one switch before it to get from the program to the stub.
		t[Syscall] = toll{exits: 1, emulated: 1, transits: 1}
		t[Seal], t[SafePoint] = t[Syscall], t[Syscall]
		for c := ExcDivide; c <= ExcOther; c++ {
			t[c] = t[Syscall]
		}
		// KVM tries to emulate what raised #GP before it delivers it; INT 0x80 goes that way and ends as #UD.
		t[ExcProtection].emulated = 2
		t[ExcInvalidOpcode].emulated = 2
	default:
		return t, false
	}
	return t, true
}

// perhaps are the causes of returns that may or may not have been an exit and an emulation each: a
// refused entry makes none, Setup is both routines of the guest and work without it. They take up to
// one exit and one emulation each of what is left over, and none of them belongs to a healthy sealed
// interval.
var perhaps = [...]Cause{Unknown, Shutdown, InternalError, MemoryFault, Setup}

// Linux x86-64 numbers of the system calls that end a program (arch/x86/entry/syscalls/syscall_64.tbl).
const (
	sysExit      = 60
	sysExitGroup = 231
)

// endings counts the End returns of a book that were a system call of the program. The other way to
// end, a stop, makes no exit of its own.
func endings(b *Book) uint64 {
	return min(b.Cause[End].Count, add(b.Syscall[sysExit].Count, b.Syscall[sysExitGroup].Count))
}

// KernelCauses turns the statistics of a book and its returns of KVM_RUN into counts of the causes
// that are FromKernel. The other entries of counts are 0.
//
// The result is exact when the statistics and the returns are of the same moment, that is while the
// vCPU is out of the guest. For a running one, pair a snapshot with statistics read some
// milliseconds before it: an exit may then be missing, but none is counted that no return explains yet.
//
// With ok == false, why says what does not add up; HostInterrupt, PageFault and Emulation are then
// still the kernel's own figures, Transit and KernelOther are 0 because they are not known. An empty
// backend says that the statistics could not be read.
//
// The border of the sealed interval makes exits too, in a book that does not hold its return:
// use Counts.KernelCauses for a half of a whole ledger.
func KernelCauses(b *Book, backend string) (counts [NCause]uint64, ok bool, why string) {
	return kernelCauses(b, backend, b.Cause[Seal].Count, endings(b), 0)
}

// KernelCauses is the function of the same name for one half (Open or Sealed) of a ledger.
//
// The call that ends a sealed interval is booked as Seal in the open book, while its exits happened
// before the border and are in the sealed book's statistics: they are charged where they happened.
//
// It relies on three habits of the writer: SealedAt stays set when the run ends sealed; End is booked in
// the half that the statistics of the last exit go to; an exit or exit_group that ends the run is
// numbered in that half's Syscall.
func (c *Counts) KernelCauses(half int, backend string) (counts [NCause]uint64, ok bool, why string) {
	seals := add(c.Book[Open].Cause[Seal].Count, c.Book[Sealed].Cause[Seal].Count)
	unseals := c.Seals
	if c.SealedAt != 0 && unseals > 0 {
		unseals--
	}
	unseals = min(unseals, seals)
	if half == Sealed {
		return kernelCauses(&c.Book[Sealed], backend, unseals, endings(&c.Book[Sealed]), c.RingCalls)
	}
	return kernelCauses(&c.Book[Open], backend, seals-unseals, endings(&c.Book[Open]), 0)
}

// kernelCauses solves
//
//	exits = returns that are exits + their transits + irq_exits + pf_fixed + emulation + other
//
// for the last term; the others are counted. seals and ends are the returns by Seal and by an ending system call whose exits
// are in b.Kernel; rings the system calls that the ring answered: on pvm SYSCALL itself is a transit of its.
func kernelCauses(b *Book, backend string, seals, ends, rings uint64) (counts [NCause]uint64, ok bool, why string) {
	if backend == "" {
		return counts, false, "KVM's statistics were not read: exits that the kernel served itself are not known"
	}
	if backend == BackendBare {
		counts[HostInterrupt], counts[PageFault] = b.Kernel[KernelIRQ], b.Kernel[KernelPageFixed]
		return counts, false, whyBare
	}
	t, known := tolls(backend)
	if !known {
		return counts, false, fmt.Sprintf("back end %q: it is not known what its statistics count (known: vmx, svm, pvm)", backend)
	}

	var returns, emulated, transits, planned uint64
	for c := range t {
		n := b.Cause[c].Count
		if Cause(c) == Seal {
			n = add(seals, ends)
		}
		if Cause(c).Planned() {
			planned = add(planned, n*t[c].transits)
		}
		returns = add(returns, n*t[c].exits) // n times 0 or 1
		emulated = add(emulated, n*t[c].emulated)
		transits = add(transits, n*t[c].transits)
	}
	if backend == BackendPVM {
		transits = add(transits, rings)
	}
	var maybe uint64
	for _, c := range perhaps {
		maybe = add(maybe, b.Cause[c].Count)
	}

	exits, irq := b.Kernel[KernelExits], b.Kernel[KernelIRQ]
	// The interrupt of the stop that ends the run is the end itself, which is planned; so is that of a patch.
	counts[HostInterrupt] = span(add(span(ends, b.Cause[End].Count), b.Cause[Patch].Count), irq)
	counts[PageFault] = b.Kernel[KernelPageFixed]
	// Floored: a return whose instruction KVM knew without decoding it is no error, and the return
	// itself is counted elsewhere.
	counts[Emulation] = span(add(emulated, maybe), b.Kernel[KernelEmulation])

	need := add(add(returns, transits), add(add(irq, counts[PageFault]), counts[Emulation]))
	if need > exits && backend == BackendSVM && excepted(b) {
		// The delivery of INT3 or INT n may fault in the nested tables. KVM then fills them and injects the
		// event again, for which it decodes the instruction, since the processor need not give its length
		// (arch/x86/kvm/svm/svm.c, svm_update_soft_interrupt_rip): decoded, but within an exit that pf_fixed has.
		within := min(need-exits, counts[Emulation], counts[PageFault])
		counts[Emulation] -= within
		need -= within
	}
	if need > exits {
		return counts, false, fmt.Sprintf(
			"KVM counted %d exits, %d fewer than the %d that are accounted for: %d returns, %d transits, %d irq_exits, %d pf_fixed, %d emulated (insn_emulation %d)",
			exits, need-exits, need, returns, transits, irq, counts[PageFault], counts[Emulation], b.Kernel[KernelEmulation])
	}
	// The transit of a planned return belongs to that return, else no sealed interval could end in zero.
	counts[Transit] = span(planned, transits)
	counts[KernelOther] = span(maybe, exits-need)
	return counts, true, ""
}

// excepted reports whether an exception of the guest is in the book.
func excepted(b *Book) bool {
	for c := ExcDivide; c <= ExcOther; c++ {
		if b.Cause[c].Count > 0 {
			return true
		}
	}
	return false
}
