package main

import (
	"fmt"
	"os"
	"regexp"
	"testing"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/guest/stub"
	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/internal/testenv"
)

func hostile(t *testing.T) string {
	return compile(t, "gcc", "hostile", "hostile.c", "-static", "-O1", "-g", "-w", "-no-pie")
}

// deviations are the cases that end otherwise than natively, each on purpose, or on one back end only.
var deviations = map[string]struct {
	status int
	where  []testenv.Requirement // none: everywhere
	why    string
}{
	"unmap_text":  {0, nil, "the program's text stays: munmap is refused"},
	"text_fixed":  {0, nil, "the program's text stays: MAP_FIXED over it is refused"},
	"fixed_stack": {0, nil, "the stack stays: MAP_FIXED over it is refused"},
	"vdso_fixed":  {0, nil, "the clock's pages stay: MAP_FIXED over them is refused"},
	"vdso_unmap":  {0, nil, "the clock's pages stay: munmap of them is refused"},
	"int20":       {132, []testenv.Requirement{testenv.PVM}, "this back end raises #UD for INT n"},
	"int8":        {132, []testenv.Requirement{testenv.PVM}, "this back end raises #UD for INT n"},
	"int14":       {132, []testenv.Requirement{testenv.PVM}, "this back end raises #UD for INT n"},
	"vmmcall_":    {0, []testenv.Requirement{testenv.SVM}, "KVM answers it itself, with -EPERM"},
	"vmcall_":     {0, []testenv.Requirement{testenv.VMX}, "KVM answers it itself, with -EPERM"},
	"iret0":       {139, []testenv.Requirement{testenv.SVM, testenv.LabMachine}, "natively, QEMU's fault is one of the kernel's, which kills"},
	"far0":        {139, []testenv.Requirement{testenv.SVM, testenv.LabMachine}, "natively, QEMU's fault is one of the kernel's, which kills"},
}

// onAMD says whether the processor is AMD's.
func onAMD() bool {
	_, vendor, _, _ := kvm.CPUID(0, 0)
	return vendor == 0x68747541 // "Auth", of AuthenticAMD
}

// deviates reports whether a case is one of deviations on this machine, and with which status.
func deviates(name string) (status int, why string, yes bool) {
	if name == "vmcall_" && onAMD() && testenv.Has(testenv.PVM) {
		return 132, "natively the hypervisor below answers, with #GP: SIGSEGV; the processor itself raises #UD", true
	}
	d, ok := deviations[name]
	for _, r := range d.where {
		ok = ok && testenv.Has(r)
	}
	return d.status, d.why, ok
}

// needAddress are the cases that are of no use without one, and those with a test of their own.
var needAddress = regexp.MustCompile(`^(jump|jump_here|jump_spin|peek|poke|map_there|eat|calls|holes|brk_extremes)$`)

// A hostile program ends itself at most, by the signal that it would get natively, and the VMM lives to report it.
func TestHostileAsNatively(t *testing.T) {
	b := newBox(t)
	prog := hostile(t)
	src, err := os.ReadFile("testdata/programs/hostile.c")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`CASE\((\w+)\)`).FindAllStringSubmatch(string(src), -1)
	ran := 0
	for _, m := range names {
		name := m[1]
		if name == "f" || needAddress.MatchString(name) {
			continue
		}
		ran++
		t.Run(name, func(t *testing.T) {
			b.t = t
			if want, why, ok := deviates(name); ok {
				if g, _ := b.reported("--rw", b.work, "--", prog, name); g.status != want {
					t.Errorf("status %d, want %d (%s)", g.status, want, why)
				}
				return
			}
			if name == "ranges" {
				testenv.Need(t, testenv.Linux(6, 18)) // older ones end it, by madvise of what is beyond the addresses
			}
			n := b.do(process{argv: []string{prog, name}})
			if name == "rsp_syscall" {
				// KVM's figures for it do not add up on every back end, and the report says so.
				b.compare([]string{name}, n, b.cloister("run", "--quiet", "--", prog, name))
				return
			}
			g, rep := b.reported("--rw", b.work, "--", prog, name)
			if n.status == 99 {
				t.Fatal("there is no such case")
			}
			b.compare([]string{name}, n, g)
			if g.status > 128 && (rep.Exit.Signal != g.status-128 || rep.Fault == nil) {
				t.Errorf("exit %+v, fault %+v", rep.Exit, rep.Fault)
			}
		})
	}
	b.t = t
	if ran < 60 {
		t.Errorf("%d cases", ran)
	}
}

// The supervisor's addresses: what CPL 3 may not reach faults, what it may execute there does no harm.
func TestSupervisorIsOutOfReach(t *testing.T) {
	b := newBox(t)
	prog := hostile(t)
	const segv, trap, survived = 139, 133, 0
	outAtCPL3 := survived
	if testenv.Has(testenv.LabMachine) && testenv.Has(testenv.SVM) {
		outAtCPL3 = segv // QEMU's TCG refuses OUT at CPL 3 (docs/backends.md)
	}
	for _, c := range []struct {
		what   string
		at     uint64
		status map[string]int // by case; one that is not listed must end by SIGSEGV
	}{
		{"GDT", abi.SupVA + stub.GDT(0), nil},
		{"IDT", abi.SupVA + stub.IDT, nil},
		{"TSS", abi.SupVA + stub.TSS(0), nil},
		{"stack", abi.SupVA + stub.StackTop(0) - 64, nil},
		{"first exception stub", stub.Exception, nil},
		{"page fault stub", stub.Exception + 14*stub.ExceptionStep, nil},
		{"provoked hlt", stub.ProvokeHLT, nil},
		{"provoked out", stub.ProvokePIO, nil},
		{"provoked mmio", stub.ProvokeMMIO, nil},
		{"page tables", abi.SupVA + stub.Tables, nil},
		{"behind user memory", abi.UserTop, nil},
		{"MMIO hole", abi.MMIOHole, nil},
		// Its jump is a system call like another: getpid.
		{"system call stub", stub.SyscallEntry, map[string]int{"jump": outAtCPL3, "peek": survived}},
		{"sysret in the stub", stub.SyscallEntry + 2, map[string]int{"peek": survived}},
		{"touching to write", stub.TouchWrite, map[string]int{"peek": survived}},
		{"touching to read", stub.TouchRead, map[string]int{"peek": survived}},
		{"done stub", stub.Done, map[string]int{"peek": survived}},
		{"filling of the stub page", stub.SyscallEntry + 0x300, map[string]int{"peek": survived, "jump": trap, "jump_here": trap, "jump_spin": trap}},
	} {
		t.Run(c.what, func(t *testing.T) {
			b.t = t
			for _, how := range []string{"jump", "jump_here", "jump_spin", "peek", "poke"} {
				want, ok := c.status[how]
				if !ok {
					want = segv
				}
				r := b.cloister("run", "--quiet", "--", prog, how, fmt.Sprintf("%#x", c.at))
				if r.status != want {
					t.Errorf("%s: status %d, want %d; %s", how, r.status, want, r.err)
				}
			}
			r := b.cloister("run", "--quiet", "--", prog, "map_there", fmt.Sprintf("%#x", c.at&^(abi.Page-1)))
			if want := "mmap refused\nmunmap 1\nmprotect -1\nwrite -1\nread -1\nsurvived\n"; r.out != want || r.status != 0 {
				t.Errorf("mapping there: %+v", r)
			}
		})
	}
	b.t = t
}

// Too much of everything: the limit holds, the program is told, the host is not filled.
func TestGreedy(t *testing.T) {
	b := newBox(t)
	prog := hostile(t)
	for _, c := range []struct{ name, want string }{
		{"eat", "ENOMEM\nsurvived\n"}, {"holes", "many\nsurvived\n"}, {"brk_extremes", "1\nsurvived\n"}, {"calls", "through\nsurvived\n"},
	} {
		r, rep := b.reported("--memory", "128M", "--rw", b.work, "--", prog, c.name)
		if r.status != 0 || r.out != c.want {
			t.Errorf("%s: status %d, %q, %s", c.name, r.status, r.out, tail(r.err))
		}
		if c.name == "calls" && rep.VCPUs[0].Breaks.ByCause["syscall"].Count < 1500 {
			t.Errorf("%+v", rep.VCPUs[0].Breaks.ByCause["syscall"])
		}
	}
	if r := b.cloister("run", "--quiet", "--memory", "12M", "--", prog, "null_read"); r.status != 139 {
		t.Errorf("in the least memory: %+v", r)
	}
}
