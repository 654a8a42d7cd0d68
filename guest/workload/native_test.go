package workload

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"golang.org/x/sys/unix"
)

// start runs image as a process of its own, in a directory that takes its core dump.
func start(t *testing.T, image []byte, out *bytes.Buffer) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), executable(t, image))
	cmd.Dir = filepath.Dir(cmd.Path)
	if out != nil {
		cmd.Stdout = out
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func executable(t *testing.T, image []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(file, image, 0o700); err != nil {
		t.Fatal(err)
	}
	return file
}

func run(t *testing.T, image []byte) ([]byte, syscall.WaitStatus, *syscall.Rusage) {
	t.Helper()
	var out bytes.Buffer
	cmd := start(t, image, &out)
	watchdog := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer watchdog.Stop()
	if err := cmd.Wait(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.Bytes(), cmd.ProcessState.Sys().(syscall.WaitStatus), cmd.ProcessState.SysUsage().(*syscall.Rusage)
}

func TestSpinNative(t *testing.T) {
	for _, args := range [][]string{{"--count", "1"}, {"--count", "1000000", "--seal"}} {
		out, status, _ := run(t, mustELF(t, "@spin", args...))
		if !status.Exited() || status.ExitStatus() != 0 || len(out) != 0 {
			t.Errorf("@spin %q: status %v, output %q", args, status, out)
		}
	}
	if out, status, _ := run(t, mustELF(t, "@spin", "--count", "1", "--seal", "--write")); status.ExitStatus() != 0 || string(out) != "@spin\n" {
		t.Errorf("@spin --write: status %v, output %q", status, out)
	}
	cmd := start(t, mustELF(t, "@spin"), nil)
	time.Sleep(200 * time.Millisecond)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != syscall.SIGTERM {
		t.Errorf("@spin for ever ended by itself: %v", err)
	}
	if cmd.ProcessState.UserTime() == 0 {
		t.Error("@spin for ever used no time")
	}
}

// books checks what every record must satisfy, whatever the machine did to the program.
func books(t *testing.T, r abi.GapRecord) {
	t.Helper()
	var sum, above uint64
	for i, n := range r.Hist {
		sum += n
		if i > bits.Len64(r.Threshold) {
			above += n
		}
		if n > 0 && i < 63 && (i < bits.Len64(r.Min) || i > bits.Len64(r.Max)) {
			t.Errorf("bucket %d holds %d passes outside min %d, max %d", i, n, r.Min, r.Max)
		}
	}
	if sum != r.Passes {
		t.Errorf("the histogram holds %d passes, want %d", sum, r.Passes)
	}
	if r.Hist[bits.Len64(r.Min)] == 0 || r.Hist[bits.Len64(r.Max)] == 0 || r.Min > r.Max {
		t.Errorf("min %d, max %d, histogram %v", r.Min, r.Max, r.Hist)
	}
	atLeast := above
	if r.Gaps < atLeast || r.Gaps > above+r.Hist[bits.Len64(r.Threshold)] || r.RingNext != r.Gaps {
		t.Errorf("%d gaps, %d in the ring; the histogram says %d to %d", r.Gaps, r.RingNext, atLeast, above+r.Hist[bits.Len64(r.Threshold)])
	}
	var stolen, last uint64
	for i := range min(r.Gaps, abi.GapRing) {
		g := r.Ring[(r.Gaps-1-i)%abi.GapRing]
		if g.Length < r.Threshold || g.Length > r.Max || g.TSC < r.Start || g.TSC > r.Last || (last != 0 && g.TSC >= last) {
			t.Errorf("gap %d: %+v after %d; threshold %d, run %d to %d", r.Gaps-1-i, g, last, r.Threshold, r.Start, r.Last)
		}
		last = g.TSC
		stolen += g.Length
	}
	if r.Gaps <= abi.GapRing && stolen != r.Stolen || stolen > r.Stolen {
		t.Errorf("stolen %d, the ring holds %d in %d gaps", r.Stolen, stolen, r.Gaps)
	}
}

func TestJitterNative(t *testing.T) {
	for _, threshold := range []string{"1ns", "1us", "1s"} {
		out, status, _ := run(t, mustELF(t, "@jitter", "--passes", "200000", "--dump", "--threshold", threshold))
		if status.ExitStatus() != 0 || len(out) != recordSize {
			t.Fatalf("status %v, %d bytes", status, len(out))
		}
		r, err := DecodeRecord(out)
		if err != nil {
			t.Fatal(err)
		}
		if r.Kind != abi.GapKindLoop || r.Passes != 200000 {
			t.Errorf("kind %d, %d passes", r.Kind, r.Passes)
		}
		books(t, r)
		if total := r.Last - r.Start; r.Min*r.Passes > total || r.Max > total || r.Stolen > total {
			t.Errorf("min %d, max %d, stolen %d of %d cycles", r.Min, r.Max, r.Stolen, total)
		}
		if threshold == "1ns" && (r.Gaps != r.Passes || r.Stolen != r.Last-r.Start) {
			t.Errorf("threshold of one cycle: %d gaps of %d passes, stolen %d of %d", r.Gaps, r.Passes, r.Stolen, r.Last-r.Start)
		}
		t.Logf("threshold %s: min %d max %d, %d gaps", threshold, r.Min, r.Max, r.Gaps)
	}
}

// TestThresholdIsAGap: a pass of exactly the threshold counts. The threshold is the shortest pass of the run
// before, which the next one soon meets; the shortest of all may be one that comes once in a thousand runs.
func TestThresholdIsAGap(t *testing.T) {
	threshold := uint64(1)
	for range 200 {
		image := mustELF(t, "@jitter", "--passes", "100000", "--dump", "--threshold", time.Duration(threshold).String())
		out, _, _ := run(t, image)
		r, err := DecodeRecord(out)
		if err != nil {
			t.Fatal(err)
		}
		if r.Min == threshold {
			if r.Gaps != r.Passes {
				t.Errorf("threshold and shortest pass are %d; %d gaps, want all %d passes", threshold, r.Gaps, r.Passes)
			}
			return
		}
		threshold = r.Min
	}
	t.Errorf("no run in 200 had the shortest pass of the run before, %d cycles", threshold)
}

func TestJitterEndsByTime(t *testing.T) {
	// The options' cycles are real TSC cycles, of whatever frequency.
	out, status, _ := run(t, mustELF(t, "@jitter", "--for", "100ms", "--dump", "--no-seal", "--warm-up", "0"))
	r, err := DecodeRecord(out)
	if err != nil || status.ExitStatus() != 0 {
		t.Fatal(status, err)
	}
	books(t, r)
	if total := r.Last - r.Start; total < 100_000_000 || total >= 100_000_000+r.Max {
		t.Errorf("ran for %d cycles, want 100000000 (longest pass %d)", total, r.Max)
	}
}

func TestCyclicNative(t *testing.T) {
	const period, passes = 50_000, 2000
	out, status, _ := run(t, mustELF(t, "@cyclic", "--period", "50us", "--passes", "2000", "--dump"))
	if status.ExitStatus() != 0 {
		t.Fatal(status)
	}
	r, err := DecodeRecord(out)
	if err != nil {
		t.Fatal(err)
	}
	books(t, r)
	late := r.Last - r.Start - passes*period // of the last wake-up: the schedule is absolute
	if r.Kind != abi.GapKindCyclic || r.Period != period || r.Passes != passes || late < r.Min || late > r.Max {
		t.Errorf("kind %d, period %d, %d passes, the last one late by %d (min %d, max %d)", r.Kind, r.Period, r.Passes, int64(late), r.Min, r.Max)
	}
}

// TestCyclicSkipsNothing stops the program for some periods: each of them must be a late wake-up.
func TestCyclicSkipsNothing(t *testing.T) {
	const period = 20_000_000
	image := mustELF(t, "@cyclic", "--period", "20ms", "--warm-up", "0", "--threshold", "5ms")
	cmd := start(t, image, nil)
	defer cmd.Wait()
	defer cmd.Process.Kill()
	time.Sleep(300 * time.Millisecond)
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(400 * time.Millisecond)
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	// The program may be stalled, or catching up, at the moment of the reading: look until it is not.
	var r abi.GapRecord
	for range 200 {
		time.Sleep(20 * time.Millisecond)
		r = live(t, cmd.Process.Pid)
		due := (r.Last - r.Start) / period
		if missed := r.Max / period; missed >= 5 && r.Gaps >= missed && due <= r.Passes+1 && r.Passes <= due+1 {
			return
		}
	}
	t.Errorf("longest lateness %d is %d periods; %d wake-ups were late, %d made in %d periods", r.Max, r.Max/period, r.Gaps, r.Passes, (r.Last-r.Start)/period)
}

// live reads the record of a running program, as the monitor does through shared memory.
func live(t *testing.T, pid int) abi.GapRecord {
	t.Helper()
	b := make([]byte, recordSize)
	local := []unix.Iovec{{Base: &b[0], Len: recordSize}}
	n, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: RecordAddr, Len: recordSize}}, 0)
	// exec.Cmd.Start returns when execve has closed the files, shortly before it maps the program.
	for try := 0; err == unix.EFAULT && try < 500; try++ {
		time.Sleep(10 * time.Millisecond)
		n, err = unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: RecordAddr, Len: recordSize}}, 0)
	}
	if err != nil || n != recordSize {
		t.Fatalf("process_vm_readv: %d, %v", n, err)
	}
	r, err := DecodeRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestJitterForEver(t *testing.T) {
	cmd := start(t, mustELF(t, "@jitter"), nil)
	defer cmd.Wait()
	defer cmd.Process.Kill()
	deadline := time.Now().Add(20 * time.Second)
	var first abi.GapRecord
	for time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
		r := live(t, cmd.Process.Pid)
		if r.Start != first.Start { // the first reading, or the end of the warm-up
			first = r
		} else if r.Passes > first.Passes && r.Last > first.Last {
			return
		}
	}
	t.Errorf("the record did not move: %d passes", first.Passes)
}

func TestExitsNative(t *testing.T) {
	out, status, few := run(t, mustELF(t, "@exits", "--count", "8"))
	if !status.Exited() || status.ExitStatus() != 0 || len(out) != 0 {
		t.Fatalf("status %v (exit status n: step n failed), output %q", status, out)
	}
	_, status, many := run(t, mustELF(t, "@exits", "--count", "1008"))
	if status.ExitStatus() != 0 {
		t.Fatal(status)
	}
	// 1000 pages more are 1000 first touches more, and two to four page-table pages are no faults.
	if d := many.Minflt - few.Minflt; d < 995 || d > 1005 {
		t.Errorf("1000 pages more gave %d faults more", d)
	}
}

// TestExitsNoticesAWrongResult: a step whose expectation is wrong ends the program with its number.
func TestExitsNoticesAWrongResult(t *testing.T) {
	image := mustELF(t, "@exits", "--count", "1")
	p, _ := paramsOf(t, image)
	p.Steps[1].Want, p.Steps[1].Or = 5, 6
	b, err := binary.Append(nil, binary.LittleEndian, &p)
	if err != nil {
		t.Fatal(err)
	}
	copy(image[fileParams:], b)
	if _, status, _ := run(t, image); status.ExitStatus() != 2 {
		t.Errorf("status %v, want 2", status)
	}
}

// TestProvocationsAreMade counts the system calls of @exits under ptrace.
func TestProvocationsAreMade(t *testing.T) {
	const n = 3
	image := mustELF(t, "@exits", "--count", "3")
	want := map[uint64]uint64{231: 1, abi.SysIsolate: 0}
	for _, e := range Provocations(n) {
		switch e.Cause {
		case breaks.Syscall:
			want[e.Nr] += e.Count
		case breaks.Seal:
			want[abi.SysIsolate] += e.Count
		}
	}
	got := map[uint64]uint64{}

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command(executable(t, image))
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &ws, 0, nil); err != nil {
		t.Fatal(err)
	}
	for entering := true; ; entering = !entering {
		if err := syscall.PtraceSyscall(pid, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := syscall.Wait4(pid, &ws, 0, nil); err != nil {
			t.Fatal(err)
		}
		if ws.Exited() || ws.Signaled() {
			break
		}
		var regs syscall.PtraceRegs
		if err := syscall.PtraceGetRegs(pid, &regs); err != nil {
			t.Fatal(err)
		}
		if entering {
			got[regs.Orig_rax]++
		}
		if entering && regs.Orig_rax == sysMunmap {
			touched(t, pid, uintptr(regs.Rdi), n)
		}
	}
	if ws.ExitStatus() != 0 {
		t.Errorf("status %v", ws)
	}
	for nr, c := range want {
		if got[nr] != c {
			t.Errorf("system call %d: %d times, want %d", nr, got[nr], c)
		}
	}
	if len(got) != len(want) {
		t.Errorf("made %v, want %v", got, want)
	}
}

// touched checks, before the mapping at base is taken away, that the right pages were written.
func touched(t *testing.T, pid int, base uintptr, n int) {
	t.Helper()
	for i := range n {
		for at, want := range map[uintptr]byte{base + uintptr(i)*touchStride: 1, base + uintptr(i)*touchStride + abi.Page: 0} {
			var b [8]byte
			if _, err := syscall.PtracePeekData(pid, at, b[:]); err != nil || b[0] != want {
				t.Errorf("page %d of the mapping: %d at %#x, want %d (%v)", i, b[0], at, want, err)
			}
		}
	}
}

func TestFaultsNative(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range Faults() {
		t.Run(f.Name, func(t *testing.T) {
			if seen[f.Name] || f.Help == "" || f.Cause() == breaks.ExcOther {
				t.Errorf("%+v", f)
			}
			seen[f.Name] = true
			_, status, _ := run(t, mustELF(t, faultPrefix+f.Name))
			if !status.Signaled() || status.Signal() != f.Signal {
				t.Errorf("ended with %v (exit %d, signal %v), want %v", status, status.ExitStatus(), status.Signal(), f.Signal)
			}
		})
	}
}
