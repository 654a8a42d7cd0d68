package kvm

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/cloister-vmm/cloister/internal/testenv"
)

// layout is every offset, size and number that this package states, in the kernel's own words.
func layout() []struct {
	c    string // an expression over linux/kvm.h
	ours uint64
} {
	var (
		r Run
		g Regs
		s Sregs
		e CPUIDEntry
		m MSR
		d deviceAttr
		c cpuid2
		x Segment
	)
	return []struct {
		c    string
		ours uint64
	}{
		{"offsetof(struct kvm_run, request_interrupt_window)", uint64(unsafe.Offsetof(r.RequestInterruptWindow))},
		{"offsetof(struct kvm_run, immediate_exit)", uint64(unsafe.Offsetof(r.ImmediateExit))},
		{"offsetof(struct kvm_run, exit_reason)", uint64(unsafe.Offsetof(r.ExitReason))},
		{"offsetof(struct kvm_run, ready_for_interrupt_injection)", uint64(unsafe.Offsetof(r.ReadyForInjection))},
		{"offsetof(struct kvm_run, if_flag)", uint64(unsafe.Offsetof(r.IfFlag))},
		{"offsetof(struct kvm_run, flags)", uint64(unsafe.Offsetof(r.Flags))},
		{"offsetof(struct kvm_run, cr8)", uint64(unsafe.Offsetof(r.CR8))},
		{"offsetof(struct kvm_run, apic_base)", uint64(unsafe.Offsetof(r.APICBase))},
		{"offsetof(struct kvm_run, io)", uint64(unsafe.Offsetof(r.Exit))},
		{"offsetof(struct kvm_run, kvm_valid_regs)", uint64(unsafe.Offsetof(r.ValidRegs))},
		{"offsetof(struct kvm_run, kvm_dirty_regs)", uint64(unsafe.Offsetof(r.DirtyRegs))},
		{"offsetof(struct kvm_run, s.regs.regs)", uint64(unsafe.Offsetof(r.Regs))},
		{"offsetof(struct kvm_run, s.regs.sregs)", uint64(unsafe.Offsetof(r.Sregs))},
		{"sizeof(((struct kvm_run *)0)->padding)", uint64(unsafe.Sizeof(r.Exit))},

		// The union's members, as this package and vcpu read them from Run.Exit.
		{"offsetof(struct kvm_run, io.direction) - offsetof(struct kvm_run, io)", 0},
		{"offsetof(struct kvm_run, io.size) - offsetof(struct kvm_run, io)", 1},
		{"offsetof(struct kvm_run, io.port) - offsetof(struct kvm_run, io)", 2},
		{"offsetof(struct kvm_run, io.count) - offsetof(struct kvm_run, io)", 4},
		{"offsetof(struct kvm_run, mmio.phys_addr) - offsetof(struct kvm_run, io)", 0},
		{"offsetof(struct kvm_run, mmio.is_write) - offsetof(struct kvm_run, io)", 20},

		{"sizeof(struct kvm_regs)", uint64(unsafe.Sizeof(g))},
		{"offsetof(struct kvm_regs, rax)", uint64(unsafe.Offsetof(g.RAX))},
		{"offsetof(struct kvm_regs, rsi)", uint64(unsafe.Offsetof(g.RSI))},
		{"offsetof(struct kvm_regs, rsp)", uint64(unsafe.Offsetof(g.RSP))},
		{"offsetof(struct kvm_regs, rbp)", uint64(unsafe.Offsetof(g.RBP))},
		{"offsetof(struct kvm_regs, r8)", uint64(unsafe.Offsetof(g.R8))},
		{"offsetof(struct kvm_regs, r15)", uint64(unsafe.Offsetof(g.R15))},
		{"offsetof(struct kvm_regs, rip)", uint64(unsafe.Offsetof(g.RIP))},
		{"offsetof(struct kvm_regs, rflags)", uint64(unsafe.Offsetof(g.RFLAGS))},
		{"sizeof(struct kvm_sregs)", uint64(unsafe.Sizeof(s))},
		{"offsetof(struct kvm_sregs, cs)", uint64(unsafe.Offsetof(s.CS))},
		{"offsetof(struct kvm_sregs, fs)", uint64(unsafe.Offsetof(s.FS))},
		{"offsetof(struct kvm_sregs, gs)", uint64(unsafe.Offsetof(s.GS))},
		{"offsetof(struct kvm_sregs, ss)", uint64(unsafe.Offsetof(s.SS))},
		{"offsetof(struct kvm_sregs, tr)", uint64(unsafe.Offsetof(s.TR))},
		{"offsetof(struct kvm_sregs, gdt)", uint64(unsafe.Offsetof(s.GDT))},
		{"offsetof(struct kvm_sregs, idt)", uint64(unsafe.Offsetof(s.IDT))},
		{"offsetof(struct kvm_sregs, cr0)", uint64(unsafe.Offsetof(s.CR0))},
		{"offsetof(struct kvm_sregs, cr2)", uint64(unsafe.Offsetof(s.CR2))},
		{"offsetof(struct kvm_sregs, cr3)", uint64(unsafe.Offsetof(s.CR3))},
		{"offsetof(struct kvm_sregs, cr4)", uint64(unsafe.Offsetof(s.CR4))},
		{"offsetof(struct kvm_sregs, efer)", uint64(unsafe.Offsetof(s.EFER))},
		{"sizeof(struct kvm_segment)", uint64(unsafe.Sizeof(x))},
		{"offsetof(struct kvm_segment, selector)", uint64(unsafe.Offsetof(x.Selector))},
		{"offsetof(struct kvm_segment, type)", uint64(unsafe.Offsetof(x.Typ))},
		{"offsetof(struct kvm_segment, dpl)", uint64(unsafe.Offsetof(x.DPL))},
		{"offsetof(struct kvm_segment, unusable)", uint64(unsafe.Offsetof(x.Unusable))},
		{"sizeof(struct kvm_cpuid_entry2)", uint64(unsafe.Sizeof(e))},
		{"offsetof(struct kvm_cpuid_entry2, eax)", uint64(unsafe.Offsetof(e.EAX))},
		{"offsetof(struct kvm_cpuid2, entries)", uint64(unsafe.Offsetof(c.e))},
		{"sizeof(struct kvm_msr_entry)", uint64(unsafe.Sizeof(m))},
		{"offsetof(struct kvm_msr_entry, data)", uint64(unsafe.Offsetof(m.Value))},
		{"offsetof(struct kvm_msrs, entries)", 8},
		{"sizeof(struct kvm_device_attr)", uint64(unsafe.Sizeof(d))},
		{"offsetof(struct kvm_device_attr, addr)", uint64(unsafe.Offsetof(d.addr))},
		{"sizeof(struct kvm_xcrs)", 392},
		{"offsetof(struct kvm_xcrs, xcrs)", 8},
		{"sizeof(struct kvm_enable_cap)", 104},
		{"offsetof(struct kvm_enable_cap, args)", 8},
		{"sizeof(struct kvm_stats_header)", 24},
		{"offsetof(struct kvm_stats_header, name_size)", 4},
		{"offsetof(struct kvm_stats_header, num_desc)", 8},
		{"offsetof(struct kvm_stats_header, desc_offset)", 16},
		{"offsetof(struct kvm_stats_header, data_offset)", 20},
		{"offsetof(struct kvm_stats_desc, size)", 6},
		{"offsetof(struct kvm_stats_desc, offset)", 8},
		{"offsetof(struct kvm_stats_desc, name)", 16},

		{"KVM_API_VERSION", APIVersion},
		{"KVM_CHECK_EXTENSION", ioCheckExtension}, {"KVM_GET_SUPPORTED_CPUID", ioGetSupportedID}, {"KVM_RUN", ioRun},
		{"KVM_GET_REGS", ioGetRegs}, {"KVM_SET_REGS", ioSetRegs}, {"KVM_GET_SREGS", ioGetSregs}, {"KVM_SET_SREGS", ioSetSregs},
		{"KVM_SET_MSRS", ioSetMSRs}, {"KVM_SET_SIGNAL_MASK", ioSetSignalMask}, {"KVM_SET_CPUID2", ioSetCPUID2},
		{"KVM_SET_XCRS", ioSetXCRs}, {"KVM_SET_GUEST_DEBUG", ioSetGuestDebug}, {"KVM_ENABLE_CAP", ioEnableCap},
		{"KVM_GET_STATS_FD", ioStatsFD}, {"KVM_SET_DEVICE_ATTR", ioSetDeviceAttr}, {"KVM_HAS_DEVICE_ATTR", ioHasDeviceAttr},
		{"KVM_GET_TSC_KHZ", ioGetTSCKHz}, {"KVM_SET_USER_MEMORY_REGION", ioSetUserMemRegion},
		{"KVM_CAP_READONLY_MEM", capReadonlyMem}, {"KVM_CAP_ENABLE_CAP_VM", capEnableCap}, {"KVM_CAP_IMMEDIATE_EXIT", capImmediateExit},
		{"KVM_CAP_X86_DISABLE_EXITS", capX86DisableExits}, {"KVM_CAP_SYNC_REGS", capSyncRegs}, {"KVM_CAP_BINARY_STATS_FD", capStatsFD},
		{"KVM_CAP_VCPU_ATTRIBUTES", capTSCAttr}, {"KVM_CAP_SET_GUEST_DEBUG2", capGuestDebug2},
		{"KVM_CAP_DISABLE_QUIRKS2", capDisableQuirks2}, {"KVM_X86_QUIRK_FIX_HYPERCALL_INSN", QuirkFixHypercall},
		{"KVM_X86_DISABLE_EXITS_MWAIT", DisableMWAIT}, {"KVM_X86_DISABLE_EXITS_HLT", DisableHLT},
		{"KVM_X86_DISABLE_EXITS_PAUSE", DisablePAUSE}, {"KVM_X86_DISABLE_EXITS_CSTATE", DisableCSTATE},
		{"KVM_MEM_READONLY", 1 << 1}, {"KVM_SYNC_X86_REGS", SyncRegs}, {"KVM_SYNC_X86_SREGS", SyncSregs},
		{"KVM_VCPU_TSC_CTRL", 0}, {"KVM_VCPU_TSC_OFFSET", 0},
		{"KVM_EXIT_UNKNOWN", ExitUnknown}, {"KVM_EXIT_EXCEPTION", ExitException}, {"KVM_EXIT_IO", ExitIO}, {"KVM_EXIT_IO_OUT", 1},
		{"KVM_EXIT_HYPERCALL", ExitHypercall}, {"KVM_EXIT_DEBUG", ExitDebug}, {"KVM_EXIT_HLT", ExitHLT}, {"KVM_EXIT_MMIO", ExitMMIO},
		{"KVM_EXIT_SHUTDOWN", ExitShutdown}, {"KVM_EXIT_FAIL_ENTRY", ExitFailEntry}, {"KVM_EXIT_INTR", ExitIntr},
		{"KVM_EXIT_INTERNAL_ERROR", ExitInternalError}, {"KVM_EXIT_SYSTEM_EVENT", ExitSystemEvent},
		{"KVM_EXIT_X86_RDMSR", ExitX86RDMSR}, {"KVM_EXIT_X86_WRMSR", ExitX86WRMSR}, {"KVM_EXIT_MEMORY_FAULT", ExitMemoryFault},
	}
}

// newer are names that the headers of a kernel older than the one Cloister may run on lack (Debian 12: 6.1).
var newer = map[string]string{"KVM_EXIT_MEMORY_FAULT": "39"} // Linux 6.8

// TestLayout compiles the kernel's header and compares.
func TestLayout(t *testing.T) {
	testenv.Need(t, testenv.Tool("gcc"))
	dir := t.TempDir()
	src := filepath.Join(dir, "layout.c")
	var b bytes.Buffer
	b.WriteString("#include <stddef.h>\n#include <stdio.h>\n#include <linux/kvm.h>\n#include <asm/kvm.h>\n")
	for name, value := range newer {
		fmt.Fprintf(&b, "#ifndef %s\n#define %s %s\n#endif\n", name, name, value)
	}
	b.WriteString("int main(void) {\n")
	for _, l := range layout() {
		fmt.Fprintf(&b, "printf(\"%%llu\\n\", (unsigned long long)(%s));\n", l.c)
	}
	b.WriteString("return 0; }\n")
	if err := os.WriteFile(src, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "layout")
	if out, err := exec.Command("gcc", "-Wall", "-o", bin, src).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	out, err := exec.Command(bin).Output()
	if err != nil {
		t.Fatal(err)
	}
	got := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	if len(got) != len(layout()) {
		t.Fatalf("%d lines for %d expressions", len(got), len(layout()))
	}
	for i, l := range layout() {
		if string(got[i]) != fmt.Sprint(l.ours) {
			t.Errorf("%s is %s (%#x here)", l.c, got[i], l.ours)
		}
	}
}
