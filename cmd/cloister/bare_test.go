package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/guest/workload"
	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/observe"
	"golang.org/x/sys/unix"
)

// newNativeBox is for runs with --bare, which need no KVM.
func newNativeBox(t *testing.T, needs ...testenv.Requirement) *box {
	t.Helper()
	testenv.Need(t, append(needs, testenv.Trace, testenv.ParallelCPUs)...) // a thread with a core is looked at by others on theirs
	return newBareBox(t)
}

// native runs `cloister run --bare` and reads its report.
func (b *box) native(args ...string) (result, *breaks.Report) {
	b.t.Helper()
	name := filepath.Join(b.work, "bare.json")
	if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
		b.t.Fatal(err)
	}
	r := b.cloister(append([]string{"run", "--bare", "--quiet", "--report", name}, args...)...)
	return r, b.decoded(name, r)
}

// nativeStart starts one in the background and waits until its program runs; it gives the program's pid.
func (b *box) nativeStart(args ...string) (*background, int) {
	b.t.Helper()
	p := b.started(append([]string{"run", "--bare", "--quiet"}, args...)...)
	for range 500 {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", p.cmd.Process.Pid))
		if pid, e := strconv.Atoi(strings.TrimSpace(string(children))); err == nil && e == nil {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err == nil && bytes.Contains(status, []byte("TracerPid:\t0\n")) && bytes.Contains(status, []byte("Seccomp:\t2\n")) {
				return p, pid
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.t.Fatalf("the program does not run: %s", tail(p.err.String()))
	return nil, 0
}

// What a native run shows of the program is what the program shows: bytes, arguments, environment, status.
func TestBareIsNative(t *testing.T) {
	b := newNativeBox(t)
	hello := compile(t, "gcc", "hello", "hello.c", "-static")
	for _, p := range []process{
		{argv: []string{hello}},
		{argv: []string{hello, "one", "", "two words"}, extra: []string{"A=1", "A=2", "EMPTY="}},
		{argv: []string{compile(t, "gcc", "hello-pie", "hello.c", "-static-pie")}},
		{argv: []string{compile(t, "gcc", "seal", "seal.c", "-static", "-O1"), "2", "write", "reseal", "map"}},
	} {
		bare := p
		bare.argv = append([]string{b.bin, "run", "--bare", "--quiet", "--"}, p.argv...)
		p.stdin, bare.stdin = strings.NewReader("input\n"), strings.NewReader("input\n")
		b.compare(p.argv, b.do(p), b.do(bare))
	}
	for _, f := range workload.Faults() {
		r, rep := b.native("@fault:" + f.Name)
		if f.NotUnder != "" && r.status == workload.Survived {
			continue // the processor does not fault
		}
		if r.status <= 128 || rep.Exit.Signal != r.status-128 || !strings.HasPrefix(rep.Exit.Reason, "SIG") {
			t.Errorf("@fault:%s: %+v, %+v", f.Name, r, rep.Exit)
		}
	}
}

// The sealed book has what was done while sealed and nothing else, as far as the kernel counts it.
func TestBareSeals(t *testing.T) {
	b := newNativeBox(t)
	prog := compile(t, "gcc", "seal", "seal.c", "-static", "-O1")
	r, rep := b.native("--", prog, "7", "write")
	v := rep.VCPUs[0]
	if r.status != 0 || v.Seals != 1 || v.Sealed.Kernel["write_calls"] != 7 || v.Open.Kernel["write_calls"] != 2 { // "done" and its newline
		t.Errorf("%+v; sealed %v, open %v", r, v.Sealed.Kernel, v.Open.Kernel)
	}
	if v.SealedNS == 0 || v.SealedNS >= v.WallNS || v.GuestNS == 0 || v.GuestNS > v.WallNS || v.Open.Planned["seal"].Count != 1 || v.Sealed.Planned["seal"].Count != 1 || v.Open.Planned["end"].Count != 1 {
		t.Errorf("%+v", v)
	}
	if rep.Host.Backend != breaks.BackendBare || rep.Host.TSCHz == 0 || len(v.Threads) != 1 || v.Threads[0].ID != v.TID || v.TID == 0 || v.Threads[0].Name != "seal" || len(rep.Program.SHA256) != 64 || rep.Books.Closed {
		t.Errorf("host %+v, program %+v, thread %d, %+v", rep.Host, rep.Program, v.TID, v.Threads)
	}
	// A page that is mapped while sealed is a fault while sealed, locked or not; the border's own sleep is none of it.
	for _, lock := range []string{"--no-lock=false", "--no-lock"} {
		_, rep = b.native(lock, "--", prog, "40", "map")
		if n := rep.VCPUs[0].Sealed; n.ByCause["page-fault"].Count < 40 || n.Kernel["voluntary_switches"] != 0 {
			t.Errorf("%s: %+v", lock, n)
		}
	}
	if _, rep = b.native("--", prog, "3", "reseal"); rep.VCPUs[0].Seals != 4 || rep.VCPUs[0].Breaks.Planned["seal"].Count != 8 {
		t.Errorf("sealed four times: %+v", rep.VCPUs[0])
	}
	for policy, want := range map[string]uint64{"start": 9, "first-write": 8, "call": 7} { // 7, "done", newline
		_, rep = b.native("--seal", policy, "--", prog, "7", "write", "never")
		if policy == "call" {
			_, rep = b.native("--", prog, "7", "write")
		}
		v := rep.VCPUs[0]
		if policy != "call" { // the program seals itself as well: its own calls end what the policy began
			_, rep = b.native("--seal", policy, "--", "busybox", "seq", "3")
			v, want = rep.VCPUs[0], map[string]uint64{"start": 1, "first-write": 0}[policy]
		}
		if v.Seals != 1 || v.Sealed.Kernel["write_calls"] != want || rep.Program.Seal != policy {
			t.Errorf("--seal %s: %d seals, %v", policy, v.Seals, v.Sealed.Kernel)
		}
	}
}

// A gate on what the kernel counts works natively; one on what it does not count is never green.
func TestBareBudget(t *testing.T) {
	b := newNativeBox(t)
	prog := compile(t, "gcc", "seal", "seal.c", "-static", "-O1")
	for _, c := range []struct {
		budget string
		what   []string
		status int
		state  breaks.State
		says   string
	}{
		{"page-fault<=5", []string{"2", "compute"}, 0, breaks.Kept, ""},
		{"page-fault=0", []string{"5", "map"}, 124, breaks.Broken, ""},
		{"syscall=0", []string{"2", "compute"}, 125, breaks.Unjudged, "counted by nobody"},
		{"max<=1s", []string{"2", "compute"}, 125, breaks.Unjudged, "measured by nobody"},
		{"host-interrupt=0", []string{"2", "compute"}, 125, breaks.Unjudged, "--cpu"},
		{"page-fault=0", []string{"1", "never"}, 125, breaks.Untested, "--seal start"},
	} {
		r, rep := b.native(append([]string{"--budget", c.budget, "--", prog}, c.what...)...)
		if r.status != c.status || rep.Budget.State != c.state || !strings.Contains(r.err, c.says) || strings.Count(r.err, "\n") > 1 {
			t.Errorf("%s %q: %+v, %+v", c.budget, c.what, r, rep.Budget)
		}
	}
	for action, signal := range map[string]unix.Signal{"stop": 0, "kill": unix.SIGKILL, "signal=USR1": unix.SIGUSR1} {
		r, rep := b.native("--budget", "page-fault=0", "--on-break", action, "--", prog, "5", "map", "spin")
		if r.status != 124 || r.out != "" || rep.Exit.Signal != int(signal) || !strings.Contains(rep.Exit.Reason, "budget broken: page-fault=0") {
			t.Errorf("%s: %+v, %+v", action, r, rep.Exit)
		}
	}
}

// A native run ends as a VM does: by --for, by a signal, with what started it; and nothing of it stays.
func TestBareEnds(t *testing.T) {
	b := newNativeBox(t)
	if r, rep := b.native("--for", "300ms", "@spin"); r.status != 0 || rep.Exit.Reason != "stopped: --for 300ms is over" || rep.VCPUs[0].WallNS < 300e6 || rep.VCPUs[0].WallNS > 30e9 {
		t.Errorf("--for: %+v, %+v", r, rep.Exit)
	}
	for _, s := range []unix.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT} {
		name := filepath.Join(b.work, "end.json")
		p, pid := b.nativeStart("--report", name, "@spin")
		if err := p.cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		r := p.wait()
		if rep := b.decoded(name, r); r.status != 128+int(s) || rep.Exit.Signal != int(s) || rep.Exit.Reason != "stopped: "+unix.SignalName(s) {
			t.Errorf("%v: %+v, %+v", s, r, rep.Exit)
		}
		if err := unix.Kill(pid, 0); err != unix.ESRCH {
			t.Errorf("%v: the program is still there (%v)", s, err)
		}
	}
	p, pid := b.nativeStart("--name", "k", "@spin")
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if r := p.wait(); r.status != 137 {
		t.Errorf("%+v", r)
	}
	for i := 0; alive(pid); i++ {
		if i > 500 {
			t.Fatal("the program outlives cloister by five seconds")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if r := b.cloister("run", "--bare", "--quiet", "--name", "k", "@spin", "--count", "10"); r.status != 0 { // takes what the dead one left
		t.Errorf("%+v", r)
	}
	// A program that ends by a signal of its own, from outside.
	p, pid = b.nativeStart("@spin")
	if err := unix.Kill(pid, unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if r := p.wait(); r.status != 128+int(unix.SIGUSR1) {
		t.Errorf("%+v", r)
	}
	p, _ = b.nativeStart("--name", "s", "@spin")
	if r := b.cloister("stop", "s"); r.status != 0 {
		t.Errorf("stop: %+v", r)
	}
	if r := p.wait(); r.status != 143 {
		t.Errorf("stopped: %+v", r)
	}
}

// alive: there, and no zombie that waits for the machine's init.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !bytes.Contains(b, []byte(") Z "))
}

// The program gets what was asked for before its first instruction, and nothing else is left on it.
func TestBarePlacement(t *testing.T) {
	b := newNativeBox(t, testenv.Root, testenv.MultiCPU)
	cpu := lastCPU(t)
	ignored := "?"
	for _, line := range strings.SplitAfter(string(must(os.ReadFile("/proc/self/status"))(t)), "\n") {
		if strings.HasPrefix(line, "SigIgn:") {
			ignored = line // who started the tests may have ignored some, and that is inherited
		}
	}
	p, pid := b.nativeStart("--cpu", cpu, "--fifo", "7", "@spin")
	status := string(must(os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)))(t))
	for _, want := range []string{"Cpus_allowed_list:\t" + cpu + "\n", "NoNewPrivs:\t0\n", "Seccomp_filters:\t1\n", "TracerPid:\t0\n", "SigBlk:\t0000000000000000\n", ignored} {
		if !strings.Contains(status, want) {
			t.Errorf("no %q in\n%s", want, status)
		}
	}
	if strings.Contains(status, "VmLck:\t       0 kB") {
		t.Errorf("its memory is not locked:\n%s", status)
	}
	attr, err := unix.SchedGetAttr(pid, 0)
	if err != nil || attr.Policy != unix.SCHED_FIFO || attr.Priority != 7 || attr.Flags&unix.SCHED_FLAG_RESET_ON_FORK == 0 {
		t.Errorf("%+v, %v", attr, err)
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil || len(fds) < 3 {
		t.Errorf("descriptors %v, %v", fds, err)
	}
	for _, fd := range fds {
		to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
		if err != nil || strings.HasPrefix(to, "anon_inode:") || strings.HasPrefix(to, "/memfd:") || strings.Contains(to, b.runs) {
			t.Errorf("descriptor %s is %q (%v)", fd.Name(), to, err)
		}
	}
	// Whoever watches is not on that core.
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", parentOf(t, pid)))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("%v, %v", tasks, err)
	}
	for _, name := range tasks {
		if s, err := os.ReadFile(name); err == nil && strings.Contains(string(s), "Cpus_allowed_list:\t"+cpu+"\n") {
			t.Errorf("%s is on CPU %s", name, cpu)
		}
	}
	if err := p.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.wait()
}

func parentOf(t *testing.T, pid int) int {
	t.Helper()
	_, after, ok := strings.Cut(string(must(os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)))(t)), "PPid:\t")
	line, _, _ := strings.Cut(after, "\n")
	n, err := strconv.Atoi(line)
	if !ok || err != nil {
		t.Fatal(err)
	}
	return n
}

// With a core of its own a run knows the interrupts of that core, which are what the kernel's table gained.
func TestBareInterrupts(t *testing.T) {
	b := newNativeBox(t, testenv.Root, testenv.MultiCPU)
	cpu, err := strconv.Atoi(lastCPU(t))
	if err != nil {
		t.Fatal(err)
	}
	local := func() uint64 {
		table := string(must(os.ReadFile("/proc/interrupts"))(t))
		head, rest, _ := strings.Cut(table, "\n")
		column := slices.Index(strings.Fields(head), fmt.Sprintf("CPU%d", cpu))
		_, line, _ := strings.Cut(rest, "LOC:")
		n, err := strconv.ParseUint(strings.Fields(line)[column], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := local()
	_, rep := b.native("--cpu", strconv.Itoa(cpu), "--seal", "start", "--for", "1s", "@spin")
	after := local()
	v := rep.VCPUs[0]
	var sum uint64
	for name, n := range v.Sealed.Kernel {
		if strings.HasPrefix(name, "interrupt:") {
			sum += n
		}
	}
	if n := v.Sealed.Kernel["interrupt:LOC"]; n == 0 || n > after-before || v.Sealed.ByCause["host-interrupt"].Count != sum || *v.CPU != uint32(cpu) {
		t.Errorf("%d local timer interrupts of %d; %d by name, by cause %+v", n, after-before, sum, v.Sealed.ByCause)
	}
}

// A gap record is read before its memory goes, however the program ends.
func TestBareGapRecord(t *testing.T) {
	b := newNativeBox(t)
	for _, args := range [][]string{{"--for", "500ms", "@jitter"}, {"@jitter", "--passes", "200000"}, {"@cyclic", "--for", "200ms"}} {
		r, rep := b.native(args...)
		if r.status != 0 || len(rep.GapRecords) != 1 || rep.GapRecords[0].Passes == 0 || !rep.GapRecords[0].Valid {
			t.Errorf("%q: %+v, %+v, %+v", args, r, rep.GapRecords, rep.NotMeasured)
			continue
		}
		if g := rep.GapRecords[0]; len(args) == 3 && args[1] == "--passes" && g.Passes != 200000 || g.DurationNS == 0 || g.DurationNS > rep.VCPUs[0].WallNS {
			t.Errorf("%q: %d passes in %d ns of %d", args, g.Passes, g.DurationNS, rep.VCPUs[0].WallNS)
		}
	}
}

// Each thread has a row; a helper is not on the sealed one's core, and has none of its priority.
func TestBareThreads(t *testing.T) {
	b := newNativeBox(t, testenv.Root, testenv.MultiCPU)
	prog := compile(t, "gcc", "helpers", "helpers.c", "-static", "-pthread")
	r, rep := b.native("--cpu", lastCPU(t), "--fifo", "5", "--budget", "page-fault<=1", "--", prog, "300")
	if r.status != 0 || r.out != "done\n" || len(r.err) < 20 || len(rep.VCPUs) != 2 {
		t.Fatalf("%+v, %d threads", r, len(rep.VCPUs))
	}
	hot, helper := rep.VCPUs[0], rep.VCPUs[1]
	if hot.CPU == nil || hot.Seals != 1 || hot.Sealed.Kernel["write_calls"] != 0 || hot.Sealed.ByCause["page-fault"].Count > 1 {
		t.Errorf("the sealed thread: %+v", hot)
	}
	if helper.CPU != nil || helper.Threads[0].Name != "helper" || helper.Seals != 0 || helper.Open.Kernel["write_calls"] < 20 || helper.Open.Kernel["minor_faults"] < 300 || helper.Open.Kernel["migrations"] == 0 {
		t.Errorf("the helper: %+v", helper)
	}
	// Threads without end take rows up to a limit, and the others are counted.
	r, rep = b.native("--no-lock", "--", prog, "300", "400")
	if r.status != 0 || len(rep.VCPUs) != 256 || !slices.ContainsFunc(rep.NotMeasured, func(n breaks.NotKnown) bool { return n.What == "146 threads" }) {
		t.Errorf("%d rows; %+v", len(rep.VCPUs), rep.NotMeasured)
	}
	if helper.TID == hot.TID || helper.ID != 1 {
		t.Errorf("thread %d and %d", hot.TID, helper.TID)
	}
}

// --place means natively what it means in a VM: by name, also one that a thread gives itself just before it is sealed,
// and by order; the class goes with the core, and nobody else is on it.
func TestBarePlace(t *testing.T) {
	b := newNativeBox(t, testenv.Root, testenv.MultiCPU)
	prog := compile(t, "gcc", "placed", "placed.c", "-static", "-pthread")
	cpu := lastCPU(t)
	for _, c := range []struct {
		place string
		row   int // that has the core
	}{
		{"rt*=" + cpu + ",*=housekeeping", 2},
		{"#2=" + cpu, 2},
		{"#1=housekeeping,rt-h?t=" + cpu, 2},
		{"#1=" + cpu, 1},
		{"main=" + cpu + ",#2=housekeeping", 0},
	} {
		r, rep := b.native("--place", c.place, "--fifo", "3", "--budget", "page-fault<=100", "--", prog)
		if r.status != 0 || len(rep.VCPUs) != 4 {
			t.Fatalf("%s: %+v, %d threads", c.place, r, len(rep.VCPUs))
		}
		if on := "CPU " + cpu + "\nfifo\n"; (r.out == on) != (c.row == 2) || c.row != 2 && (strings.Contains(r.out, on) || !strings.HasSuffix(r.out, "other\n")) {
			t.Errorf("%s: the sealed thread says %q", c.place, r.out)
		}
		for i, v := range rep.VCPUs {
			interrupts := v.Breaks.ByCause[breaks.HostInterrupt.String()].Count
			if (v.CPU != nil) != (i == c.row) || v.CPU != nil && strconv.Itoa(int(*v.CPU)) != cpu || (interrupts > 0) != (i == c.row) || (v.Seals == 1) != (i == 2) {
				t.Errorf("%s: row %d: core %v, %d interrupts, %d seals, %+v", c.place, i, v.CPU, interrupts, v.Seals, v.Threads)
			}
		}
		if c.row == 2 {
			if hot := rep.VCPUs[2]; hot.Threads[0].Name != "rt-hot" || hot.Sealed.Kernel["interrupt:LOC"] == 0 || hot.Sealed.Kernel["migrations"] != 0 || hot.Sealed.Kernel["interrupt:LOC"] > 5000 {
				t.Errorf("%s: %+v", c.place, hot)
			}
		}
	}
	// The first thread keeps the core of --cpu, whatever it calls itself.
	if r, rep := b.native("--cpu", cpu, "--", prog, "first"); r.status != 0 || rep.VCPUs[0].CPU == nil || rep.VCPUs[0].Threads[0].Name != "rt-first" {
		t.Errorf("%+v, %+v", r, rep.VCPUs[0])
	}
}

// A native run is looked at as a VM is: ps, stats, a scrape, stop.
func TestBareIsServed(t *testing.T) {
	b := newNativeBox(t)
	p, pid := b.nativeStart("--name", "seen", "--metrics", "0", "--seal", "start", "@spin")
	var s observe.Status
	for i := 0; s.WallNS < 100e6; i++ {
		var list []observe.Status
		if r := b.cloister("ps", "--json"); json.Unmarshal([]byte(r.out), &list) != nil || i > 500 {
			t.Fatalf("ps: %+v", r)
		}
		if len(list) == 1 {
			s = list[0]
		}
		time.Sleep(10 * time.Millisecond)
	}
	if s.Name != "seen" || s.Engine != p.cmd.Process.Pid || s.State != observe.Sealed || s.VCPUs[0].SealedNS == 0 || s.VCPUs[0].Sealed.GuestNS == 0 || s.Memory.Guest == nil {
		t.Errorf("%+v", s)
	}
	page := fetch(t, "http://"+s.Metrics+"/metrics")
	if !strings.Contains(page, `cloister_breaks_total{cause="page-fault",sealed="true",vcpu="0",vm="seen"} `) || !strings.Contains(page, `cloister_vcpu_thread_info{thread="@spin"`) || strings.Contains(page, `cause="syscall"`) {
		t.Error(page)
	}
	if r := b.cloister("stats", "seen"); r.status != 0 || !strings.Contains(r.out, "page-fault") && !strings.Contains(r.out, "counted by nobody") {
		t.Errorf("%+v", r)
	}
	if r := b.cloister("stop", "seen"); r.status != 0 || alive(pid) {
		t.Errorf("stop: %+v", r)
	}
	if r := p.wait(); r.status != 143 {
		t.Errorf("%+v", r)
	}
	taken := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer taken.Close()
	b.refused(125, []string{"--metrics", "another address"}, "run", "--bare", "--metrics", taken.Addr().String(), "@spin")
}

// Nonsense is refused in one line with the status that it has for a VM.
func TestBareRefuses(t *testing.T) {
	b := newNativeBox(t)
	for _, c := range []struct {
		args   string
		status int
		words  string
	}{
		{"run --bare", 125, "no program"}, {"run --bare --fifo 100 @spin", 125, "1 to 99"}, {"run --bare --budget nonsense=0 @spin", 125, "nonsense"},
		{"run --bare --cpu 4000 @spin", 125, "CPU 4000 does not exist"}, {"run --bare --report /no/such/dir/r @spin", 125, "--report"},
		{"run --bare --trace t @spin", 125, "--bare"}, {"run --bare --pprof p @spin", 125, "--bare"},
		{"run --bare @nonsense", 127, "@jitter"}, {"run --bare no-such-program", 127, "PATH"}, {"run --bare /etc", 126, "regular file"},
		{"run --bare /etc/passwd", 126, "executable"},
	} {
		b.refused(c.status, strings.Split(c.words, "|"), strings.Fields(c.args)...)
	}
	script := b.file("script", "#!/bin/sh\necho no\n")
	if err := os.Chmod(script, 0o755); err != nil {
		t.Fatal(err)
	}
	b.refused(126, []string{"script"}, "run", "--bare", script)
	good, err := workload.ELF("@fault:ud", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	b.refused(126, []string{"interpreter", interpreter}, "run", "--bare", b.program("dynamic", dynamic(good)))
	if r := b.cloister("run", "--bare", "--memory", "2G", "--ro", "/etc", "--net", "host", "--own-clock", "@spin", "--count", "3"); r.status != 0 || !strings.Contains(r.err, "--memory, --net, --own-clock, --ro and --rw: ") || !strings.Contains(r.err, "without effect") {
		t.Errorf("%+v", r)
	}
	if r := b.cloister("run", "--bare", "-h"); r.status != 0 || !strings.Contains(r.out, "--bare") {
		t.Errorf("%+v", r)
	}
}

// The same program both ways: whatever the one report has the other has, under the same name, and what can be
// known of both means the same.
func TestBareComparesWithVM(t *testing.T) {
	b := newBox(t, testenv.Trace)
	prog := compile(t, "gcc", "seal", "seal.c", "-static", "-O1")
	args := []string{"--budget", "page-fault<=50", "--", prog, "9", "write", "reseal"}
	rv, vm := b.reported(args...)
	rb, bare := b.native(args...)
	if rv.out != rb.out || rv.status != rb.status || rv.err != rb.err {
		t.Errorf("%+v\n%+v", rv, rb)
	}
	paths := func(r *breaks.Report) (list []string) {
		raw, err := json.Marshal(r)
		var doc any
		if err = errors.Join(err, json.Unmarshal(raw, &doc)); err != nil {
			t.Fatal(err)
		}
		var walk func(v any, at string)
		walk = func(v any, at string) {
			switch v := v.(type) {
			case map[string]any:
				for k, x := range v {
					if strings.HasSuffix(at, "by_cause") || strings.HasSuffix(at, "planned") || strings.HasSuffix(at, "kernel") && at != ".host.kernel" {
						continue // keys that are data
					}
					walk(x, at+"."+k)
				}
			case []any:
				if len(v) > 0 && !strings.Contains(at, "not_measured") && !strings.Contains(at, "top_sites") && !strings.Contains(at, "syscalls") {
					walk(v[0], at+"[]")
				}
			}
			list = append(list, at)
		}
		walk(doc, "")
		slices.Sort(list)
		return slices.DeleteFunc(slices.Compact(list), func(p string) bool { return strings.HasPrefix(p, ".books.why") })
	}
	if a, c := paths(vm), paths(bare); !slices.Equal(a, c) {
		t.Errorf("fields of the VM's report\n%q\nof the native one\n%q", a, c)
	}
	v, n := vm.VCPUs[0], bare.VCPUs[0]
	if v.Seals != n.Seals || v.Open.Planned["seal"].Count != n.Open.Planned["seal"].Count || v.Sealed.Planned["seal"].Count != n.Sealed.Planned["seal"].Count ||
		v.Breaks.Planned["end"].Count != n.Breaks.Planned["end"].Count || v.Sealed.ByCause["syscall"].Count != n.Sealed.Kernel["write_calls"]+n.Sealed.Kernel["read_calls"] {
		t.Errorf("%d and %d seals; %+v and %+v", v.Seals, n.Seals, v.Sealed, n.Sealed)
	}
	if vm.Program.SHA256 != bare.Program.SHA256 || vm.Program.BuildID != bare.Program.BuildID || !slices.Equal(vm.Program.Args, bare.Program.Args) ||
		vm.Exit != bare.Exit || vm.Host.TSCHz != bare.Host.TSCHz || vm.Budget.Spec != bare.Budget.Spec {
		t.Errorf("%+v %+v\n%+v %+v", vm.Program, vm.Exit, bare.Program, bare.Exit)
	}
	vm.Host.Backend = bare.Host.Backend
	if !reflect.DeepEqual(vm.Host, bare.Host) {
		t.Errorf("%+v\n%+v", vm.Host, bare.Host)
	}
}
