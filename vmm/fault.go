package vmm

import (
	"encoding/binary"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/guest/stub"
	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/vcpu"
	"golang.org/x/sys/unix"
)

// exceptions maps vectors to the signal that Linux sends for them (arch/x86/kernel/traps.c,
// arch/x86/entry) and to their names (Intel SDM vol. 3A, table 6-1).
var exceptions = map[int]struct {
	signal unix.Signal
	name   string
	code   bool // the CPU pushes an error code
}{
	0: {unix.SIGFPE, "divide error", false}, 1: {unix.SIGTRAP, "debug exception", false},
	3: {unix.SIGTRAP, "breakpoint", false}, 4: {unix.SIGSEGV, "overflow", false},
	5: {unix.SIGSEGV, "bound range exceeded", false}, 6: {unix.SIGILL, "invalid opcode", false},
	7: {unix.SIGSEGV, "device not available", false}, 8: {unix.SIGSEGV, "double fault", true},
	10: {unix.SIGSEGV, "invalid TSS", true}, 11: {unix.SIGBUS, "segment not present", true},
	12: {unix.SIGBUS, "stack segment fault", true}, 13: {unix.SIGSEGV, "general protection fault", true},
	14: {unix.SIGSEGV, "page fault", true}, 16: {unix.SIGFPE, "x87 floating-point error", false},
	17: {unix.SIGBUS, "alignment check", true}, 18: {unix.SIGBUS, "machine check", false},
	19: {unix.SIGFPE, "SIMD floating-point error", false}, 21: {unix.SIGSEGV, "control protection", true},
}

// exception ends the program by the signal of an exception that the stubs reported. The frame lies on the
// supervisor stack: [error,] RIP, CS, RFLAGS, RSP, SS below RSP0.
func (p *processor) exception(x *vcpu.Exit) vcpu.Answer {
	v := int(x.Nr)
	e, ok := exceptions[v]
	if !ok {
		e.signal, e.name = unix.SIGSEGV, "exception"
	}
	word := func(below int) uint64 { return binary.LittleEndian.Uint64(p.m.sup[int(stub.StackTop(p.id))-below:]) }
	f := &Fault{Vector: v, Name: e.name, Regs: registers(x.Regs())}
	f.Regs["rip"], f.Regs["rflags"], f.Regs["rsp"] = word(40), word(24), word(16)
	if e.code {
		f.Error = word(48)
	}
	if v == 14 {
		s, err := x.Sregs()
		if err != nil {
			return p.broken(err.Error())
		}
		f.Address, f.HasAddress = s.CR2, true
	}
	if rip := f.Regs["rip"]; p.routine != nil && v == 14 && rip >= stub.TouchWrite && rip < stub.Done {
		// Another thread of the program has unmapped the page since the list was made: the next one.
		r := x.Regs()
		if next := r.RDI + abi.Page; next < r.RSI {
			entry := uint64(stub.TouchWrite)
			if rip >= stub.TouchRead {
				entry = stub.TouchRead
			}
			p.routine.queue = append([]touch{{entry: entry, from: next, to: r.RSI}}, p.routine.queue...)
		}
		return p.routineDone()
	}
	if word(32)&3 != 3 {
		return p.broken("exception in the supervisor: " + e.name)
	}
	return p.end(Result{Signal: int(e.signal), Ended: "signal", Fault: f})
}

// fault ends the program for an exit that is not an exception of the guest's CPU.
func (p *processor) fault(x *vcpu.Exit, sig unix.Signal, vector int) vcpu.Answer {
	f := &Fault{Vector: vector, Name: x.Cause.String(), Regs: registers(x.Regs())}
	if gpa, _ := x.MMIO(); x.Cause.String() == "mmio" {
		f.Address, f.HasAddress = gpa, true
	}
	return p.end(Result{Signal: int(sig), Ended: "signal", Fault: f})
}

func registers(r *kvm.Regs) map[string]uint64 {
	return map[string]uint64{
		"rax": r.RAX, "rbx": r.RBX, "rcx": r.RCX, "rdx": r.RDX, "rsi": r.RSI, "rdi": r.RDI, "rsp": r.RSP, "rbp": r.RBP,
		"r8": r.R8, "r9": r.R9, "r10": r.R10, "r11": r.R11, "r12": r.R12, "r13": r.R13, "r14": r.R14, "r15": r.R15,
		"rip": r.RIP, "rflags": r.RFLAGS,
	}
}
