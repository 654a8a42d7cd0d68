package vmm

import (
	"bytes"
	"encoding/binary"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/guest/linux"
	"github.com/cloister-vmm/cloister/guest/stub"
	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
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
	word := func(below int) uint64 { return binary.LittleEndian.Uint64(p.m.sup[int(stub.StackTop(p.id))-below:]) }
	if v == 13 && p.hypercallAt(word(40)) {
		v = 6
	}
	e, ok := exceptions[v]
	if !ok {
		e.signal, e.name = unix.SIGSEGV, "exception"
	}
	f := p.newFault(v, e.name)
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
	p.regs = linux.Registers(*x.Regs())
	p.regs.RIP, p.regs.RFLAGS, p.regs.RSP = f.Regs["rip"], f.Regs["rflags"], f.Regs["rsp"]
	p.haveRegs = true
	code, addr := p.signalCode(v, f)
	return p.deliver(f, linux.Fault{Signal: e.signal, Code: code, Addr: addr, Trap: uint64(v), Err: f.Error})
}

// hypercallAt says whether VMCALL or VMMCALL stands at rip. The other vendor's is #UD to a processor; KVM intercepts that, and raises #GP for VMCALL at CPL 3
// (arch/x86/kvm/emulate.c: privileged there; VMMCALL is not, see kvm.QuirkFixHypercall). No processor raises #GP for either.
func (p *processor) hypercallAt(rip uint64) bool {
	var code []byte
	if linux.Safely(func() { code = append(code, p.m.space.Prefix(rip, 3, false)...) }) != 0 {
		return false
	}
	return bytes.Equal(code, []byte{0x0f, 0x01, 0xc1}) || bytes.Equal(code, []byte{0x0f, 0x01, 0xd9})
}

// newFault is an exception of the thread that p executes.
func (p *processor) newFault(vector int, name string) *Fault {
	f := &Fault{VCPU: p.id, Vector: vector, Name: name, Regs: registers(p.x.Regs())}
	if p.task != nil {
		f.Task, f.Thread = p.task.ID, p.task.Name()
	}
	return f
}

// Codes of siginfo (include/uapi/asm-generic/siginfo.h).
const (
	siKernel                                                         = 0x80
	segvMapErr, segvAccErr                                           = 1, 2
	busAdrAln, busAdrErr                                             = 1, 2
	illIllOpn, trapTrace                                             = 2, 2
	fpeIntDiv, fpeFltDiv, fpeFltOvf, fpeFltUnd, fpeFltRes, fpeFltInv = 1, 3, 4, 5, 6, 7
)

// signalCode is si_code and si_addr of an exception (arch/x86/kernel/traps.c, arch/x86/mm/fault.c).
func (p *processor) signalCode(vector int, f *Fault) (int32, uint64) {
	rip := f.Regs["rip"]
	switch vector {
	case 0:
		return fpeIntDiv, rip
	case 1:
		return trapTrace, rip
	case 6:
		return illIllOpn, rip
	case 14:
		if p.m.space.Mapped(f.Address, 1) {
			return segvAccErr, f.Address
		}
		return segvMapErr, f.Address
	case 16, 19:
		return p.floatCode(vector), rip
	case 17:
		return busAdrAln, 0
	}
	return siKernel, 0
}

// floatCode is fpu__exception_code of the kernel (arch/x86/kernel/fpu/core.c).
func (p *processor) floatCode(vector int) int32 {
	area, errno := p.XState()
	if errno != 0 {
		return 0
	}
	word := binary.LittleEndian.Uint16
	raised := word(area[2:]) &^ word(area[0:]) // status and control of the x87
	if vector == 19 {
		mxcsr := binary.LittleEndian.Uint32(area[24:])
		raised = uint16(mxcsr &^ (mxcsr >> 7))
	}
	switch {
	case raised&1 != 0:
		return fpeFltInv
	case raised&4 != 0:
		return fpeFltDiv
	case raised&8 != 0:
		return fpeFltOvf
	case raised&0x12 != 0:
		return fpeFltUnd
	case raised&0x20 != 0:
		return fpeFltRes
	}
	return 0
}

// deliver gives the program the signal of an exception; one that it does not handle ends the run.
func (p *processor) deliver(f *Fault, s linux.Fault) vcpu.Answer {
	out := p.m.kernel.Fault(p.task, s)
	if out.Kind == linux.Kill {
		r := Result{Signal: int(out.Value), Ended: "signal"}
		if out.Value == uint64(s.Signal) {
			r.Fault = f
		}
		return p.end(r)
	}
	return p.outcome(out)
}

// fault ends the program for an exit that is not an exception of the guest's CPU.
func (p *processor) fault(x *vcpu.Exit, sig unix.Signal, vector int) vcpu.Answer {
	f := p.newFault(vector, x.Cause.String())
	if gpa, _ := x.MMIO(); x.Cause == breaks.MMIO {
		f.Address, f.HasAddress = gpa, true
	}
	told := linux.Fault{Signal: sig, Code: siKernel, Trap: uint64(max(0, vector))}
	if sig == unix.SIGBUS {
		told.Code = busAdrErr
	}
	if x.Cause == breaks.MemoryFault {
		if f.Address, f.HasAddress = p.lostAt(); f.HasAddress {
			told.Trap, told.Err = 14, pfUser // a page fault for the program (arch/x86/mm/fault.c: do_sigbus)
		}
	}
	told.Addr = f.Address
	return p.deliver(f, told)
}

// pfUser is the bit of a page fault's error code that says that it came at CPL 3 (Intel SDM vol. 3A, 4.7). Whether it was a write is not told.
const pfUser = 4

// lostAt is where the instruction at RIP touched a page that cannot be touched although it is mapped: one beyond the end of a shared file's
// mapping. KVM says only that there was one (KVM_RUN: EFAULT).
func (p *processor) lostAt() (uint64, bool) {
	r := p.x.Regs()
	if p.lost(r.RIP) {
		return r.RIP, true
	}
	n := uint64(15) // the longest instruction: Intel SDM vol. 2A, 2.3.11
	page := func(a uint64) uint64 { return a &^ (abi.Page - 1) }
	if next := page(r.RIP) + abi.Page; r.RIP+n > next && p.lost(next) {
		n = next - r.RIP
	}
	s, err := p.x.Sregs()
	if err != nil {
		return 0, false
	}
	var code []byte
	if linux.Safely(func() { code = append(code, p.m.space.Prefix(r.RIP, n, false)...) }) != 0 {
		return r.RIP, true // somebody has made that file shorter meanwhile
	}
	list := operands(code, r, s.FS.Base, s.GS.Base)
	for _, a := range list {
		if p.lost(a) {
			return a, true
		}
	}
	for _, a := range append(list, r.RIP) {
		if next := page(a) + abi.Page; p.lost(next) { // the operand begins before it
			return next, true
		}
	}
	return 0, false
}

// lost reports whether the guest may touch the byte at a, and the host cannot.
func (p *processor) lost(a uint64) bool {
	b, errno := p.m.space.In(a, 1)
	return errno == 0 && linux.Safely(func() { p.probed = b[0] }) != 0
}

func registers(r *kvm.Regs) map[string]uint64 {
	return map[string]uint64{
		"rax": r.RAX, "rbx": r.RBX, "rcx": r.RCX, "rdx": r.RDX, "rsi": r.RSI, "rdi": r.RDI, "rsp": r.RSP, "rbp": r.RBP,
		"r8": r.R8, "r9": r.R9, "r10": r.R10, "r11": r.R11, "r12": r.R12, "r13": r.R13, "r14": r.R14, "r15": r.R15,
		"rip": r.RIP, "rflags": r.RFLAGS,
	}
}
