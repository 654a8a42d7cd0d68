package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/cloister-vmm/cloister/firmware"
	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/guest/stub"
	"github.com/cloister-vmm/cloister/internal/kvm"
	"golang.org/x/sys/unix"
)

// supervisor is the supervisor block below the page tables, as package vmm fills it.
func supervisor() []byte {
	b := make([]byte, stub.StackTop(0))
	gdt := firmware.GDT(abi.SupVA+stub.TSS(0), 0, 0)
	tss := firmware.TSS(stub.RSP0(0))
	var handler [firmware.Vectors]uint64
	for v := range handler {
		handler[v] = stub.Exception + uint64(v)*stub.ExceptionStep
	}
	idt := firmware.IDT(handler)
	copy(b[stub.GDT(0):], gdt[:])
	copy(b[stub.IDT:], idt[:])
	copy(b[stub.TSS(0):], tss[:])
	copy(b[stub.Exceptions:], stub.ExceptionPage())
	copy(b[stub.User:], stub.UserPage())
	return b
}

// layout is the header of c/floor.c: the guest that the floor runs is ours to the byte. entries are the CPUID of the machine
// that it is for; without them the floor has to be told (floor -l).
func layout(entries []firmware.Entry) string {
	var w strings.Builder
	for _, c := range []struct {
		name  string
		value uint64
	}{
		{"SUP_GPA", abi.SupGPA}, {"SUP_VA", abi.SupVA}, {"SUP_TABLES", stub.Tables}, {"SUP_USER", stub.User},
		{"SUP_GDT", stub.GDT(0)}, {"SUP_IDT", stub.IDT}, {"SUP_TSS", stub.TSS(0)}, {"GDT_LIMIT", firmware.GDTSize - 1},
		{"TSS_LIMIT", firmware.TSSSize - 1}, {"SYSCALL_ENTRY", stub.SyscallEntry}, {"USER_TOP", abi.UserTop},
		{"STACK_TOP", abi.StackTop}, {"VDSO_BASE", abi.VDSOBase}, {"SEL_USER_CS", abi.SelUserCS}, {"SEL_USER_SS", abi.SelUserSS},
		{"SEL_TSS", abi.SelTSS}, {"CR0_GUEST", firmware.CR0Guest}, {"CR4_GUEST", firmware.CR4(entries)},
		{"EFER_GUEST", firmware.EFERGuest}, {"XCR0_GUEST", firmware.XCR0(entries)}, {"STAR_GUEST", firmware.StarGuest},
		{"FMASK_GUEST", firmware.FMaskGuest}, {"RING_PAGE", stub.RingPage(0)}, {"RING_CODE", stub.RingCode(0)}, {"RING_POSTED", stub.RingPosted},
		{"RING_DONE", stub.RingDone}, {"RING_RESULT", stub.RingResult}, {"RING_NR", stub.RingNr}, {"RING_ARGS", stub.RingArgs},
		{"RING_NUMBERS", stub.RingNumbers},
	} {
		fmt.Fprintf(&w, "#define %s %#xull\n", c.name, c.value)
	}
	fmt.Fprintf(&w, "#define RING_CALLS %d, %d\n", unix.SYS_GETPPID, unix.SYS_GETRUSAGE)
	for _, c := range []struct {
		name string
		data []byte
	}{{"sup_block", supervisor()}, {"ring_stub", stub.RingStubFor(0, false)}, {"ring_stub_user", stub.RingStubFor(0, true)}} {
		fmt.Fprintf(&w, "static const unsigned char %s[] = {", c.name)
		for i, b := range c.data {
			if i%32 == 0 {
				w.WriteString("\n")
			}
			fmt.Fprintf(&w, "%d,", b)
		}
		w.WriteString("\n};\n")
	}
	w.WriteString("static const unsigned cpuid_entries[][7] = {\n")
	for _, e := range entries {
		fmt.Fprintf(&w, "{%#x,%#x,%#x,%#x,%#x,%#x,%#x},\n", e.Function, e.Index, e.Flags, e.EAX, e.EBX, e.ECX, e.EDX)
	}
	w.WriteString("};\n")
	return w.String()
}

// otherMachine is the file that `floor -l` reads.
func otherMachine(entries []firmware.Entry) []byte {
	b := binary.LittleEndian.AppendUint64(nil, firmware.CR4(entries))
	b = binary.LittleEndian.AppendUint64(b, firmware.XCR0(entries))
	for _, e := range entries {
		for _, v := range []uint32{e.Function, e.Index, e.Flags, e.EAX, e.EBX, e.ECX, e.EDX} {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
	}
	return b
}

// guestCPUID is what package vmm gives its vCPU, refusals of XSAVE included, and the TSC's frequency, Hz.
func guestCPUID() (entries []firmware.Entry, hz uint64, err error) {
	sys, err := kvm.Open()
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, sys.Close()) }()
	vm, err := sys.NewVM()
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, vm.Close()) }()
	cpu, err := vm.NewVCPU(0)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, cpu.Close()) }()
	supported, err := sys.SupportedCPUID()
	if err != nil {
		return nil, 0, err
	}
	in := make([]firmware.Entry, len(supported))
	for i, e := range supported {
		in[i] = firmware.Entry{Function: e.Function, Index: e.Index, Flags: e.Flags, EAX: e.EAX, EBX: e.EBX, ECX: e.ECX, EDX: e.EDX}
	}
	host := func(leaf, sub uint32) firmware.Regs {
		a, b, c, d := kvm.CPUID(leaf, sub)
		return firmware.Regs{EAX: a, EBX: b, ECX: c, EDX: d}
	}
	for _, o := range []firmware.CPUIDOptions{{Native: kvm.DetectBackend("/") == kvm.PVM}, {NoXSave: true}} {
		entries = firmware.CPUID(in, host, o)
		list := make([]kvm.CPUIDEntry, len(entries))
		for i, e := range entries {
			list[i] = kvm.CPUIDEntry{Function: e.Function, Index: e.Index, Flags: e.Flags, EAX: e.EAX, EBX: e.EBX, ECX: e.ECX, EDX: e.EDX}
		}
		if err = cpu.SetCPUID(list); err != nil {
			return nil, 0, err
		}
		s, e := cpu.Sregs()
		if e != nil {
			return nil, 0, e
		}
		s.CR4 = firmware.CR4(entries)
		if err = cpu.SetSregs(s); err == nil && firmware.XCR0(entries) != 0 {
			err = cpu.SetXCR0(firmware.XCR0(entries))
		}
		if err == nil {
			return entries, cpu.TSCkHz() * 1000, nil
		}
	}
	return nil, 0, err
}
