package workload

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/guest/abi"
	"golang.org/x/arch/x86/x86asm"
	"golang.org/x/sys/unix"
)

// place is what a program says of one place of its own, read back from its file.
type place struct {
	kind, size    uint32
	addr, target  uint64
	offset, width uint32
}

// places reads the notes and the patchable functions of a program: sites by name, functions by symbol, the safe word as "".
func places(t *testing.T, image []byte) map[string]place {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]place{}
	le := binary.LittleEndian
	s := f.SectionByType(elf.SHT_NOTE)
	b, err := s.Data()
	if err != nil {
		t.Fatal(err)
	}
	for addr := s.Addr; len(b) > 0; {
		nameSize, size, typ := le.Uint32(b), le.Uint32(b[4:]), le.Uint32(b[8:])
		from := 12 + (nameSize+3)&^3
		d := b[from : from+size]
		far := func(n uint64) uint64 { return addr + uint64(from) + n + le.Uint64(d[n:]) }
		if string(b[12:12+nameSize]) == abi.NoteOwner+"\x00" {
			switch typ {
			case abi.NotePatchable:
			case abi.NoteSafeWord:
				all[""] = place{addr: far(0)}
			case abi.NoteSite:
				p := place{kind: le.Uint32(d), size: le.Uint32(d[4:]), addr: far(8)}
				if p.kind == abi.SiteImm {
					p.offset, p.width = le.Uint32(d[16:]), le.Uint32(d[20:])
				} else {
					p.target = far(16)
				}
				all[strings.TrimSuffix(string(d[24:]), "\x00")] = p
			default:
				t.Fatalf("note of type %d", typ)
			}
		}
		next := from + (size+3)&^3
		b, addr = b[next:], addr+uint64(next)
	}
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	entries, err := f.Section("__patchable_function_entries").Data()
	if err != nil {
		t.Fatal(err)
	}
	for ; len(entries) > 0; entries = entries[8:] {
		for _, sym := range symbols {
			if sym.Value == le.Uint64(entries) {
				all[sym.Name] = place{addr: sym.Value, size: 5}
			}
		}
	}
	return all
}

// TestControlPlaces holds what @control-loop declares against its code.
func TestControlPlaces(t *testing.T) {
	image := mustELF(t, "@control-loop")
	all := places(t, image)
	if len(all) != 4 || all[""].addr != ControlAddr || all["rate.limit"].kind != abi.SiteImm || all["output.off"].kind != abi.SiteBranch || all["filter"].addr == 0 {
		t.Fatalf("%+v", all)
	}
	for name, p := range all {
		if name == "" {
			continue
		}
		code := image[p.addr-imageBase:][:p.size]
		inst, err := x86asm.Decode(code, 64)
		if p.addr%8 != 0 {
			t.Errorf("%s begins at %#x, not at a multiple of 8", name, p.addr)
		}
		switch {
		case name == "filter":
			if !bytes.Equal(code, bytes.Repeat([]byte{0x90}, 5)) {
				t.Errorf("filter begins with % x", code)
			}
		case err != nil || inst.Len != int(p.size):
			t.Errorf("%s: % x is %v (%v)", name, code, inst, err)
		case p.kind == abi.SiteImm && (inst.Op != x86asm.MOV || p.width != 4 || binary.LittleEndian.Uint32(code[p.offset:]) != rateLimit):
			t.Errorf("%s: %v, immediate of %d bytes at %d", name, inst, p.width, p.offset)
		case p.kind == abi.SiteBranch && inst.Op != x86asm.NOP:
			t.Errorf("%s: %v", name, inst)
		}
	}
	if _, ok := places(t, mustELF(t, "@control-loop", "--safe-points=false"))[""]; ok {
		t.Error("--safe-points=false declares a safe word")
	}
	id := func(image []byte) string { return string(image[headersSize+16:][:20]) }
	if id(image) != id(mustELF(t, "@control-loop", "--period", "1ms")) || id(image) == id(mustELF(t, "@cyclic")) {
		t.Error("the build ID depends on the options, or on nothing")
	}
}

func TestControlNative(t *testing.T) {
	out, status, _ := run(t, mustELF(t, "@control-loop", "--count", "40", "--period", "1ms", "--log-every", "20"))
	lines := strings.Split(string(out), "\n")
	if !status.Exited() || status.ExitStatus() != 0 || len(lines) != 5 || lines[0] != "period 19: output 100 (version 1)" || lines[1] != "period 39: output 100 (version 1)" ||
		lines[2] != "period 0: output 100 (version 1)" || !strings.HasPrefix(lines[3], "@control-loop: 40 periods, ") || !strings.HasSuffix(lines[3], " missed, 0 mixed") {
		t.Errorf("status %v, output\n%s", status, out)
	}
	begun := time.Now()
	out, status, _ = run(t, mustELF(t, "@control-loop", "--for", "200ms", "--no-seal"))
	var periods, missed, mixed int
	if n, err := fmt.Sscanf(string(out), "period 0: output 100 (version 1)\n@control-loop: %d periods, %d missed, %d mixed", &periods, &missed, &mixed); n != 3 || status.ExitStatus() != 0 {
		t.Errorf("status %v, output (%v)\n%s", status, err, out)
	}
	// testHz makes --for 200 million cycles, and a period 10 million.
	if took := time.Since(begun); periods != 20 || took < 20*time.Millisecond {
		t.Errorf("%d periods in %v", periods, took)
	}
}

// TestControlCountsMissedPeriods stops the program for some periods: each is missed and none skipped.
func TestControlCountsMissedPeriods(t *testing.T) {
	cmd := start(t, mustELF(t, "@control-loop", "--period", "20ms"), nil)
	defer cmd.Wait()
	defer cmd.Process.Kill()
	var before ControlRecord
	for before.Periods < 5 {
		time.Sleep(10 * time.Millisecond)
		before = liveControl(t, cmd.Process.Pid)
	}
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	var r ControlRecord
	for range 200 {
		time.Sleep(10 * time.Millisecond)
		// 300 ms are 15 periods of 20 million cycles at 1 GHz, and more on a faster TSC.
		if r = liveControl(t, cmd.Process.Pid); r.Missed >= before.Missed+14 && r.Periods >= before.Periods+14 && r.Changes == 1 && r.Mixed == 0 {
			return
		}
	}
	t.Errorf("%d periods, %d missed, %d mixed, %d changes; before: %d, %d", r.Periods, r.Missed, r.Mixed, r.Changes, before.Periods, before.Missed)
}

// liveControl reads the record of a running program.
func liveControl(t *testing.T, pid int) ControlRecord {
	t.Helper()
	b := make([]byte, binary.Size(ControlRecord{}))
	for range 500 {
		_, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}, []unix.RemoteIovec{{Base: ControlAddr, Len: len(b)}}, 0)
		if err == nil {
			r, err := DecodeControl(b)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		if err != unix.EFAULT { // not mapped yet
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the program maps no record")
	return ControlRecord{}
}

// patcher is the tracer of one @control-loop: it does by ptrace what a patch does.
type patcher struct {
	*testing.T
	pid int
	all map[string]place
	// spare is where a new filter lies: behind the program's code, in its last page.
	spare uint64
}

func (p *patcher) poke(addr uint64, b []byte) {
	p.Helper()
	if _, err := syscall.PtracePokeText(p.pid, uintptr(addr), b); err != nil {
		p.Fatal(err)
	}
}

func (p *patcher) jump(from, to uint64) {
	p.poke(from, binary.LittleEndian.AppendUint32([]byte{0xe9}, uint32(to-from-5)))
}

// newFilter is `*version = 2; return 2 * sample;`.
var newFilter = []byte{0x48, 0xc7, 0x06, 2, 0, 0, 0, 0x48, 0x8d, 0x04, 0x3f, 0xc3}

// trace runs image and calls atPoint with 1, 2, ... at its safe points, which its word asks for from the first on; it returns its output.
func trace(t *testing.T, image []byte, atPoint func(p *patcher, n int)) string {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	l, err := extract(controlCode())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(executable(t, image))
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &patcher{t, cmd.Process.Pid, places(t, image), (TextAddr + uint64(len(l.code)) + 15) &^ 15}
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(p.pid, &ws, 0, nil); err != nil {
		t.Fatal(err)
	}
	p.poke(p.all[""].addr, []byte{1, 0, 0, 0})
	n := 0
	for entering := true; ; entering = !entering {
		if err := syscall.PtraceSyscall(p.pid, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := syscall.Wait4(p.pid, &ws, 0, nil); err != nil {
			t.Fatal(err)
		}
		if ws.Exited() || ws.Signaled() {
			break
		}
		if sig := ws.StopSignal(); sig != syscall.SIGTRAP {
			syscall.Kill(p.pid, syscall.SIGKILL)
			t.Fatalf("%v after %d safe points", sig, n)
		}
		var regs syscall.PtraceRegs
		if err := syscall.PtraceGetRegs(p.pid, &regs); err != nil {
			t.Fatal(err)
		}
		if entering && regs.Orig_rax == abi.SysSafepoint {
			if regs.Rdi != abi.SafepointHere {
				t.Errorf("SysSafepoint(%d)", regs.Rdi)
			}
			n++
			atPoint(p, n)
		}
	}
	if !ws.Exited() || ws.ExitStatus() != 0 {
		t.Errorf("status %v", ws)
	}
	// The tracer has waited for the program; what is left is its output.
	if err := cmd.Wait(); err != nil && !strings.Contains(err.Error(), "no child") {
		t.Fatal(err)
	}
	return out.String()
}

// TestControlIsPatchedBetweenPeriods changes each place of @control-loop at a safe point: the next period shows it, whole.
func TestControlIsPatchedBetweenPeriods(t *testing.T) {
	image := mustELF(t, "@control-loop", "--count", "60", "--period", "100us")
	got := trace(t, image, func(p *patcher, n int) {
		limit, off := p.all["rate.limit"], p.all["output.off"]
		switch n {
		case 10:
			p.poke(p.spare, newFilter)
			p.jump(p.all["filter"].addr, p.spare)
		case 20:
			p.poke(limit.addr+uint64(limit.offset), []byte{42, 0, 0, 0})
		case 30:
			p.jump(off.addr, off.target)
		case 40:
			p.poke(off.addr, []byte{0x0f, 0x1f, 0x44, 0, 0})
		case 50:
			p.poke(p.all[""].addr, []byte{0, 0, 0, 0})
		case 51:
			p.Error("a safe point that no word asked for")
		}
	})
	const want = "period 0: output 100 (version 1)\nperiod 10: output 200 (version 2)\nperiod 20: output 42 (version 2)\n" +
		"period 30: output 0 (version 2)\nperiod 40: output 42 (version 2)\n@control-loop: 60 periods, "
	if !strings.HasPrefix(got, want) || !strings.HasSuffix(got, " missed, 0 mixed\n") {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// TestControlKeepsItsLatestChanges makes more changes than the history holds.
func TestControlKeepsItsLatestChanges(t *testing.T) {
	image := mustELF(t, "@control-loop", "--count", "100", "--period", "50us")
	got := trace(t, image, func(p *patcher, n int) {
		limit := p.all["rate.limit"]
		p.poke(limit.addr+uint64(limit.offset), binary.LittleEndian.AppendUint32(nil, uint32(n%50)))
	})
	var want strings.Builder
	fmt.Fprintf(&want, "%d earlier changes are not kept\n", 100-ControlKept)
	for n := 100 - ControlKept; n < 100; n++ {
		fmt.Fprintf(&want, "period %d: output %d (version 1)\n", n, n%50)
	}
	if !strings.HasPrefix(got, want.String()) {
		t.Errorf("got\n%swant\n%s", got, want.String())
	}
}

// TestControlSeesMixture replaces filter while the program computes: that period has both versions, and its output is neither's.
func TestControlSeesMixture(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	image := mustELF(t, "@control-loop", "--count", "20", "--period", "200ms", "--work", "190ms", "--safe-points=false")
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	var from, to uint64 // of the code that runs between the two calls
	for _, s := range symbols {
		switch s.Name {
		case "control_period":
			from = s.Value
		case "control_limit":
			to = s.Value
		}
	}
	var out bytes.Buffer
	cmd := start(t, image, &out)
	p := &patcher{t, cmd.Process.Pid, places(t, image), to&^0xfff + 0xf00}
	for liveControl(t, p.pid).Periods < 3 {
		time.Sleep(time.Millisecond)
	}
	if err := syscall.PtraceAttach(p.pid); err != nil {
		t.Fatal(err)
	}
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(p.pid, &ws, 0, nil); err != nil {
		t.Fatal(err)
	}
	var regs syscall.PtraceRegs
	for try := 0; ; try++ {
		if err := syscall.PtraceGetRegs(p.pid, &regs); err != nil {
			t.Fatal(err)
		}
		if from+32 < regs.Rip && regs.Rip < to-32 {
			break
		}
		if try == 1000 {
			t.Fatalf("never stopped between the calls: %#x", regs.Rip)
		}
		if err := syscall.PtraceSingleStep(p.pid); err != nil {
			t.Fatal(err)
		}
		if _, err := syscall.Wait4(p.pid, &ws, 0, nil); err != nil {
			t.Fatal(err)
		}
	}
	p.poke(p.spare, newFilter)
	p.jump(p.all["filter"].addr, p.spare)
	if err := syscall.PtraceDetach(p.pid); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	var a, b int
	rest := out.String()
	if n, err := fmt.Sscanf(rest, "period 0: output 100 (version 1)\nperiod %d: output 150 (version 2)\nperiod %d: output 200 (version 2)\n", &a, &b); n != 2 || b != a+1 ||
		!strings.HasSuffix(rest, " 1 mixed\n") {
		t.Errorf("%v\n%s", err, rest)
	}
}

func FuzzDecodeControl(f *testing.F) {
	image, err := ELF("@control-loop", nil, testHz)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(image[fileParams+ControlAddr-ParamsAddr:][:binary.Size(ControlRecord{})])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeControl(b)
		if (err == nil) != (len(b) >= binary.Size(r) && binary.LittleEndian.Uint64(b[64:]) == ControlMagic) {
			t.Fatalf("%d bytes: %v", len(b), err)
		}
	})
}
