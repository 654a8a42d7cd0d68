package symbol

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"golang.org/x/arch/x86/x86asm"
)

// TestUnwindStepped single-steps real programs from main to their end, keeps the true stack by watching
// every CALL and RET, and compares Unwind with it: with all registers, and with RIP and RSP alone.
// Unwind may know less than the truth; it may never say anything else.
func TestUnwindStepped(t *testing.T) {
	// Least share of the instructions at which the whole stack up to main has to be found.
	// What is missing with RIP and RSP alone are functions with alloca and with realigned stacks, whose
	// frame only RBP tells: dyn, aligned, and glibc's vfscanf, which Rust's start-up calls.
	least := map[string][2]float64{
		"glibc-O0": {.99, .90}, "glibc-O2": {.99, .78}, "glibc-dwarf4": {.99, .78}, "glibc-gz": {.99, .78},
		"static-pie-O2": {.99, .78}, "stripped-O2": {.99, .78}, "no-tables-O2": {.79, .77},
		"musl-O0": {.95, .86}, "musl-O2": {.95, .78}, "cpp-O0": {.99, .99}, "cpp-O2": {.99, .99},
		"rust-O": {.99, .65}, "rust-debug": {.99, .65}, "go": {.99, .99}, "go-stripped": {.99, .99},
	}
	for _, p := range programs {
		t.Run(p.name, func(t *testing.T) {
			if p.tool == "rustc" {
				testenv.NeedLong(t)
			}
			bin := build(t, p)
			// A Go program spends most of its first instructions in frames that are not compared.
			limit := 60000
			if testing.Short() && p.tool == "go" {
				limit = 40000 // how many depends on how its threads are scheduled
			} else if testing.Short() {
				limit = 10000
			}
			const fewest = 100
			s := step(t, bin, limit)
			t.Logf("%d instructions, %d compared; whole stack with all registers %.1f %%, with RIP and RSP %.1f %%",
				s.steps, s.compared, 100*s.share(0), 100*s.share(1))
			if s.compared < fewest {
				t.Errorf("only %d instructions were compared", s.compared)
			}
			for mode, want := range least[p.name] {
				if s.share(mode) < want {
					t.Errorf("mode %d: whole stacks at %.3f of the instructions, want at least %.3f; incomplete in %v",
						mode, s.share(mode), want, s.short[mode])
				}
			}
			t.Logf("incomplete, all registers: %s", s.worst(0))
			t.Logf("incomplete, RIP and RSP:   %s", s.worst(1))
		})
	}
}

type stepped struct {
	steps, compared int
	whole           [2]int
	short           [2]map[string]int // where stacks ended too early
}

func (s *stepped) share(mode int) float64 {
	return float64(s.whole[mode]) / float64(max(1, s.compared))
}

func (s *stepped) worst(mode int) string {
	var lines []string
	for k, n := range s.short[mode] {
		lines = append(lines, fmt.Sprintf("%6d %s", n, k))
	}
	slices.Sort(lines)
	slices.Reverse(lines)
	return strings.Join(lines[:min(8, len(lines))], "; ")
}

const stackSnapshot = 2048 // words

// step runs bin under ptrace from its main on.
func step(t *testing.T, bin string, limit int) *stepped {
	t.Helper()
	runtime.LockOSThread() // ptrace answers only the thread that attached
	defer runtime.UnlockOSThread()
	cmd := exec.Command(bin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	cmd.Env = []string{"GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1", "GOGC=off"}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	cmd.Stdout = null
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	defer func() {
		syscall.Kill(pid, syscall.SIGKILL)
		var ws syscall.WaitStatus
		syscall.Wait4(pid, &ws, 0, nil)
	}()
	wait := func() syscall.WaitStatus {
		var ws syscall.WaitStatus
		if _, err := syscall.Wait4(pid, &ws, 0, nil); err != nil {
			t.Fatalf("wait: %v", err)
		}
		return ws
	}
	wait()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	bias, main := whereIsMain(t, bin, pid)
	tab := open(t, bin, bias)
	runTo(t, pid, main, wait)

	s := &stepped{short: [2]map[string]int{{}, {}}}
	var regs syscall.PtraceRegs
	var shadow []uint64 // return addresses, outermost first
	var slots []uint64  // where each lies
	buf := make([]byte, 8*stackSnapshot)
	words := make([]uint64, 0, stackSnapshot)
	get := func() {
		if err := syscall.PtraceGetRegs(pid, &regs); err != nil {
			t.Fatalf("registers: %v", err)
		}
	}
	snapshot := func() {
		n, _ := mem.ReadAt(buf, int64(regs.Rsp)) // ends at the top of the stack
		words = words[:0]
		for b := buf[:n]; len(b) >= 8; b = b[8:] {
			words = append(words, binary.LittleEndian.Uint64(b))
		}
	}
	get()
	snapshot()
	shadow, slots = append(shadow, words[0]), append(slots, regs.Rsp) // whoever called main
	g, home := regs.R14, regs.Rsp                                     // Go: the goroutine, and its stack
	isGo := tab.goTab != nil
	var code [16]byte
	for ; s.steps < limit && len(shadow) > 0; s.steps++ {
		if _, err := mem.ReadAt(code[:], int64(regs.Rip)); err != nil {
			t.Fatalf("code at %#x: %v", regs.Rip, err)
		}
		// Every instruction at first, then a sample that is no multiple of a loop's length.
		if (s.steps < 3000 || s.steps%13 == 0) && (!isGo || regs.R14 == g && home-regs.Rsp < 1<<16) {
			snapshot()
			compare(t, tab, s, &regs, words, shadow)
			if t.Failed() {
				return s
			}
		}
		in, _ := x86asm.Decode(code[:], 64)
		sp := regs.Rsp
		if err := syscall.PtraceSingleStep(pid); err != nil {
			t.Fatalf("step: %v", err)
		}
		ws := wait()
		if ws.Exited() || ws.Signaled() {
			return s
		}
		if ws.StopSignal() != syscall.SIGTRAP {
			t.Fatalf("the program got %v at %#x", ws.StopSignal(), regs.Rip)
		}
		get()
		switch {
		case in.Op == x86asm.CALL && regs.Rsp == sp-8:
			snapshot()
			shadow, slots = append(shadow, words[0]), append(slots, regs.Rsp)
		case in.Op == x86asm.RET && !isGo:
			if slots[len(slots)-1] != sp {
				t.Fatalf("step %d: a RET at %#x does not match its CALL", s.steps, regs.Rip)
			}
			shadow, slots = shadow[:len(shadow)-1], slots[:len(slots)-1]
		}
		if regs.Rsp > home && (!isGo || regs.R14 == g && regs.Rsp-home < 1<<16) {
			return s // main returned
		}
		// A goroutine leaves its stack by other ways than RET: what lies below RSP is gone, what is on
		// another stack is not its own.
		for n := len(slots); isGo && regs.R14 == g && home-regs.Rsp < 1<<16 && n > 0 &&
			(slots[n-1] < regs.Rsp || home-slots[n-1] >= 1<<16); n-- {
			shadow, slots = shadow[:n-1], slots[:n-1]
		}
	}
	return s
}

func compare(t *testing.T, tab *Table, s *stepped, r *syscall.PtraceRegs, words, shadow []uint64) {
	all := Regs{RIP: r.Rip, RSP: r.Rsp, All: true, RAX: r.Rax, RBX: r.Rbx, RCX: r.Rcx, RDX: r.Rdx, RSI: r.Rsi, RDI: r.Rdi,
		RBP: r.Rbp, R8: r.R8, R9: r.R9, R10: r.R10, R11: r.R11, R12: r.R12, R13: r.R13, R14: r.R14, R15: r.R15}
	if fs := tab.Frames(r.Rip); len(fs) == 1 && (strings.HasPrefix(fs[0].Func, "runtime.morestack") || strings.HasPrefix(fs[0].Func, "gogo")) {
		return // they change stacks: the runtime itself does not unwind through them
	}
	s.compared++
	for mode, regs := range []Regs{all, {RIP: r.Rip, RSP: r.Rsp}} {
		got := tab.Unwind(regs, words, 64)
		if len(got) == 0 || got[0] != r.Rip {
			t.Fatalf("step %d: stack begins with %x, not with RIP %x", s.steps, got, r.Rip)
		}
		for i, a := range got[1:] {
			if i < len(shadow) && a != shadow[len(shadow)-1-i] {
				t.Fatalf("step %d, mode %d: frame %d is %s, in truth %s\nfound:\n%s\ntruth:\n%s", s.steps, mode, i+1,
					name(tab, a), name(tab, shadow[len(shadow)-1-i]), names(tab, got), names(tab, reversed(r.Rip, shadow)))
			}
		}
		// The last of shadow is where main returns to.
		if len(got) > len(shadow) {
			s.whole[mode]++
		} else {
			s.short[mode][name(tab, got[len(got)-1])]++
		}
	}
}

func reversed(pc uint64, shadow []uint64) []uint64 {
	out := slices.Clone(shadow)
	slices.Reverse(out)
	return append([]uint64{pc}, out...)
}

func name(t *Table, a uint64) string {
	fs := t.Frames(a - 1)
	if len(fs) == 0 {
		return fmt.Sprintf("%#x", a)
	}
	return fs[len(fs)-1].String()
}

func names(t *Table, as []uint64) string {
	var b strings.Builder
	for _, a := range as {
		fmt.Fprintf(&b, "  %#x %s\n", a, name(t, a))
	}
	return b.String()
}

// whereIsMain returns the load bias of a stopped process and the address of its main, or of its entry.
func whereIsMain(t *testing.T, bin string, pid int) (bias, main uint64) {
	t.Helper()
	f, err := elf.Open(bin)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	auxv, err := os.ReadFile(fmt.Sprintf("/proc/%d/auxv", pid))
	if err != nil {
		t.Fatal(err)
	}
	for b := auxv; len(b) >= 16; b = b[16:] {
		if binary.LittleEndian.Uint64(b) == 9 { // AT_ENTRY
			bias = binary.LittleEndian.Uint64(b[8:]) - f.Entry
		}
	}
	main = f.Entry
	if full, err := elf.Open(strings.TrimSuffix(bin, ".stripped")); err == nil {
		defer full.Close()
		f = full
	}
	if g := newGoTable(f); g != nil {
		for i := range g.nfunc {
			if fn, ok := g.find(g.text + uint64(binary.LittleEndian.Uint32(g.funcTab[8*i:]))); ok && g.name(fn) == "main.work" {
				return bias, fn.entry + bias
			}
		}
	}
	syms, _ := f.Symbols() // none: the entry has to do
	for _, want := range []string{"main"} {
		for _, s := range syms {
			if s.Name == want && elf.ST_TYPE(s.Info) == elf.STT_FUNC {
				return bias, s.Value + bias
			}
		}
	}
	return bias, main + bias
}

// runTo lets the stopped process run to addr.
func runTo(t *testing.T, pid int, addr uint64, wait func() syscall.WaitStatus) {
	t.Helper()
	var regs syscall.PtraceRegs
	if err := syscall.PtraceGetRegs(pid, &regs); err != nil {
		t.Fatal(err)
	}
	if regs.Rip == addr {
		return
	}
	old := make([]byte, 1)
	if _, err := syscall.PtracePeekText(pid, uintptr(addr), old); err != nil {
		t.Fatal(err)
	}
	if _, err := syscall.PtracePokeText(pid, uintptr(addr), []byte{0xcc}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.PtraceCont(pid, 0); err != nil {
		t.Fatal(err)
	}
	if ws := wait(); !ws.Stopped() || ws.StopSignal() != syscall.SIGTRAP {
		t.Fatalf("the program did not come to main: %#x", ws)
	}
	if _, err := syscall.PtracePokeText(pid, uintptr(addr), old); err != nil {
		t.Fatal(err)
	}
	if err := syscall.PtraceGetRegs(pid, &regs); err != nil {
		t.Fatal(err)
	}
	regs.Rip = addr
	if err := syscall.PtraceSetRegs(pid, &regs); err != nil {
		t.Fatal(err)
	}
}
