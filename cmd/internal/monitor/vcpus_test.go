package monitor

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/isolation/cores"
	"github.com/cloister-vmm/cloister/vmm"
	"golang.org/x/sys/unix"
)

// hz makes a cycle half a nanosecond, so that a forgotten conversion shows.
const hz = 2_000_000_000

// engine is the other side of a monitor: ledgers that can be written, and its end of the wire.
type engine struct {
	fd   int
	mem  []byte
	wire session.Wire
}

func newEngine(t *testing.T, ledgers int) *engine {
	t.Helper()
	fd, err := unix.MemfdCreate(session.LedgerName, unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Ftruncate(fd, int64(ledgers)*int64(breaks.LedgerSize)); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(fd, 0, ledgers*breaks.LedgerSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(mem); err != nil {
			t.Error(err)
		}
	})
	return &engine{fd: fd, mem: mem}
}

// vcpu brings a ledger into use, as an engine does: the magic before the start.
func (e *engine) vcpu(t *testing.T, id int, cpu uint32) *breaks.VCPU {
	t.Helper()
	l, err := breaks.At(e.mem, id)
	if err != nil {
		t.Fatal(err)
	}
	l.ID, l.CPU, l.TSCHz, l.State = uint32(id), cpu, hz, breaks.StateServing
	l.Magic = breaks.LedgerMagic
	l.Start = hz + uint64(id)*hz
	return l
}

// spend books n breaks of a cause.
func spend(l *breaks.VCPU, half int, cause breaks.Cause, n uint64) {
	b := &l.Book[half]
	b.Total += n
	b.Cause[cause].Count += n
	b.Cause[cause].Hist[0] += n
	if cause == breaks.Syscall {
		b.Syscall[1].Count += n
	}
}

// statistics is a descriptor as KVM_GET_STATS_FD gives one (api.rst 4.133), with one value a name.
func statistics(t *testing.T, values map[string]uint64) int {
	t.Helper()
	const nameSize, desc = 24, 48
	le := binary.LittleEndian
	data := desc + len(values)*(16+nameSize)
	b := make([]byte, data+8*len(values))
	for at, v := range map[int]int{4: nameSize, 8: len(values), 12: 24, 16: desc, 20: data} {
		le.PutUint32(b[at:], uint32(v))
	}
	i := 0
	for name, v := range values {
		d := b[desc+i*(16+nameSize):]
		le.PutUint16(d[6:], 1)
		le.PutUint32(d[8:], uint32(8*i))
		copy(d[16:16+nameSize], name)
		le.PutUint64(b[data+8*i:], v)
		i++
	}
	fd, err := unix.MemfdCreate("statistics", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Pwrite(fd, b, 0); err != nil || n != len(b) {
		t.Fatal(n, err)
	}
	return fd
}

// newMonitor is one that knows vCPU 0, without a process and a wire.
func newMonitor(t *testing.T, e *engine) *monitor {
	t.Helper()
	m := &monitor{guest: -1, ask: make(chan func()), over: make(chan struct{}), plan: session.Plan{Program: "/opt/rt-loop-of-mine", Args: []string{"x"}, CPU: -1, Engine: os.Getpid(), Quiet: true}}
	m.trace = newTracer(&m.plan)
	var err error
	if m.ledgers, err = mapLedgers(e.fd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.ledgers.unmap(); err != nil {
			t.Error(err)
		}
	})
	if _, err := m.vcpu(0); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestLedgers(t *testing.T) {
	for _, n := range []int{1, breaks.MaxVCPUs} { // an engine of before there were threads, and one with them
		e := newEngine(t, n)
		e.vcpu(t, n-1, 1)
		var before, after unix.Stat_t
		if err := unix.Fstat(e.fd, &before); err != nil {
			t.Fatal(err)
		}
		m := newMonitor(t, e)
		if got, err := m.ledgers.used(); err != nil || !slices.Equal(got, []int{n - 1}) {
			t.Errorf("of %d ledgers: %d in use (%v), want the last one", n, got, err)
		}
		if err := unix.Fstat(e.fd, &after); err != nil || after.Blocks > before.Blocks+8 { // a page for vCPU 0
			t.Errorf("looking at %d ledgers took %d blocks of memory (%v)", n, after.Blocks-before.Blocks, err)
		}
		if _, err := m.vcpu(n); err == nil {
			t.Errorf("of %d ledgers there is one more", n)
		}
	}
	e := newEngine(t, 1)
	for _, size := range []int64{0, 4096, int64(breaks.LedgerSize) + 1, (breaks.MaxVCPUs + 1) * int64(breaks.LedgerSize)} {
		fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Ftruncate(fd, size); err != nil {
			t.Fatal(err)
		}
		if _, err := mapLedgers(fd); err == nil || !strings.Contains(err.Error(), "different builds") {
			t.Errorf("%d bytes: %v", size, err)
		}
		if err := unix.Close(fd); err != nil {
			t.Fatal(err)
		}
	}
	e.vcpu(t, 0, 1).Magic = 7
	l, err := mapLedgers(e.fd)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.snapshot(); err == nil || !strings.Contains(err.Error(), "bad magic") {
		t.Errorf("a ledger of another build: %v", err)
	}
	if err := l.unmap(); err != nil {
		t.Fatal(err)
	}
}

// What `cloister ps` sees of a VM without a monitor: every ledger in use whose vCPU has run.
func TestSnapshotOfLedgers(t *testing.T) {
	e := newEngine(t, breaks.MaxVCPUs)
	e.vcpu(t, 0, 1)
	e.vcpu(t, 2, breaks.NoCPU)
	e.vcpu(t, 3, 2).Start = 0
	m := newMonitor(t, e)
	s, err := m.ledgers.snapshot()
	if err != nil || len(s.VCPUs) != 2 || s.VCPUs[1].ID != 2 || !s.VCPUs[0].NoStatistics {
		t.Errorf("%+v, %v", s, err)
	}
}

// News of threads: names, cores and thread ids, the statistics that come with the first; and what is wrong.
func TestThreadNews(t *testing.T) {
	e := newEngine(t, 4)
	e.vcpu(t, 0, breaks.NoCPU)
	e.vcpu(t, 1, 3)
	m := newMonitor(t, e)
	m.ready.Info.TID = 500
	m.first(m.vcpus[0])
	m.thread(session.Thread{VCPU: 2, TID: 502, Task: 12, Name: "log\x1b[2Jger", CPU: -1}, nil)
	m.thread(session.Thread{VCPU: 1, TID: 501, Task: 11, Name: "rt-loop-of-mine", CPU: 3}, []int{statistics(t, map[string]uint64{"exits": 7})})
	m.thread(session.Thread{VCPU: 1, TID: 501, Task: 11, Name: "hot", CPU: 3}, nil)
	m.thread(session.Thread{VCPU: 2, TID: 502, Task: 14, Name: "second", CPU: -1}, nil)
	m.thread(session.Thread{VCPU: 0, TID: 500, Task: os.Getpid(), Name: "renamed", CPU: -1}, nil)

	var got []string
	for _, v := range m.vcpus {
		got = append(got, trackName(&v.threads))
	}
	if want := []string{"renamed", "hot", "log?[2Jger, second"}; !slices.Equal(got, want) {
		t.Errorf("threads %q, want %q", got, want)
	}
	if n := len(m.vcpus[0].threads.List); n != 1 {
		t.Errorf("vCPU 0 had %d threads: a new name is no new thread", n)
	}
	if m.vcpus[1].stats == nil || m.vcpus[0].stats != nil || m.vcpus[2].stats != nil {
		t.Error("statistics went to the wrong vCPU")
	}
	if !slices.Equal(m.vcpuThreads(), []int{500, 501, 502}) {
		t.Errorf("threads %d", m.vcpuThreads())
	}
	m.plan.Keep = []int{0, 1, 3}
	if owned, keep := m.owned(); !slices.Equal(owned, []int{3}) || !slices.Equal(keep, []int{0, 1}) {
		t.Errorf("cores %d are owned, %d left", owned, keep)
	}
	if len(m.warned) != 0 {
		t.Errorf("warned %q", m.warned)
	}
	for _, id := range []int{-1, 4, 1 << 30} {
		m.thread(session.Thread{VCPU: id}, nil)
	}
	empty, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	m.thread(session.Thread{VCPU: 3, CPU: -1}, []int{empty})
	if len(m.warned) != 4 || !strings.Contains(m.warned[3], "vCPU 3") || len(m.vcpus) != 4 {
		t.Errorf("%d vCPUs, warned %q", len(m.vcpus), m.warned)
	}
	if err := unix.Close(empty); err == nil {
		t.Error("a descriptor that was not taken was left open")
	}
}

// The statistics of one vCPU are missing: its kernel causes are not known, those of the other are.
func TestStatisticsAreOfOneVCPU(t *testing.T) {
	e := newEngine(t, 4)
	e.vcpu(t, 0, 1)
	e.vcpu(t, 1, breaks.NoCPU)
	m := newMonitor(t, e)
	if err := m.vcpus[0].takeStats([]int{statistics(t, map[string]uint64{"exits": 9, "irq_exits": 5})}); err != nil {
		t.Fatal(err)
	}
	m.thread(session.Thread{VCPU: 1, TID: 2, Task: 2, Name: "helper", CPU: -1}, nil)
	m.thread(session.Thread{VCPU: 2, TID: 3, Task: 3, Name: "never ran", CPU: -1}, nil)

	go func() { (<-m.ask)() }()
	s, err := m.source()(context.Background())
	if err != nil || len(s.VCPUs) != 2 {
		t.Fatalf("%+v, %v", s, err)
	}
	if a, b := s.VCPUs[0], s.VCPUs[1]; a.NoStatistics || a.Book[breaks.Open].Kernel[breaks.KernelIRQ] != 5 || !b.NoStatistics || b.Thread != "helper" || b.ID != 1 {
		t.Errorf("%+v\n%+v", a.NoStatistics, b.NoStatistics)
	}
	e.vcpu(t, 3, breaks.NoCPU) // in use, and no word of it came
	var f breaks.Facts
	list := m.lastLedgers(&f)
	var ids []uint32
	for _, l := range list {
		ids = append(ids, l.Counts.ID)
	}
	if !slices.Equal(ids, []uint32{0, 1, 3}) || f.NoStatistics != "" || list[0].NoStatistics != "" || list[1].NoStatistics == "" || list[1].TID != 2 || list[2].TID != 0 || len(f.FailedClauses) != 0 {
		t.Errorf("ledgers of %d, threads %d and %d, %+v", ids, list[1].TID, list[2].TID, f)
	}
	m.vcpus[0].stats = nil
	if m.lastLedgers(&f); f.NoStatistics == "" {
		t.Error("nobody has statistics, and the report does not say so")
	}
}

// A whole run: a sealed helper breaks the budget while the main thread makes system calls as it likes.
func TestBudgetOfAThread(t *testing.T) {
	e := newEngine(t, breaks.MaxVCPUs)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(pair[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}); err != nil {
		t.Fatal(err) // without it a monitor that says nothing hangs the test
	}
	e.wire = session.Wire{FD: pair[0]}
	dir := t.TempDir()
	over := make(chan int)
	go func() { over <- Run(session.Wire{FD: pair[1]}, e.fd, -1) }()
	say := func(m session.Message) {
		t.Helper()
		if err := e.wire.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	say(session.Message{Plan: &session.Plan{Name: "x", Program: "/opt/loop", Args: []string{"loop"}, CPU: -1, Engine: os.Getpid(), VMDir: dir,
		Budget: "syscall=0", OnBreak: "stop", Report: filepath.Join(dir, "report.json"), Quiet: true, Started: "2026-11-22T13:00:00Z"}})
	ended := []*breaks.VCPU{e.vcpu(t, 0, breaks.NoCPU), e.vcpu(t, 1, 1), e.vcpu(t, 2, 2)}
	spend(ended[0], breaks.Open, breaks.Syscall, 50)
	for _, l := range ended[1:] {
		l.Seals, l.SealedAt, l.Sealed = 1, 2*hz, 1
	}
	say(session.Message{Ready: &session.Ready{Info: vmm.Info{TSCHz: hz}}})
	for i := 1; i < 3; i++ {
		say(session.Message{Thread: &session.Thread{VCPU: i, TID: 1, Task: 100 + i, Name: []string{"", "calm", "busy"}[i], CPU: i}})
	}
	spend(ended[2], breaks.Sealed, breaks.Syscall, 1)
	msg, _, err := e.wire.Receive()
	if err != nil || msg.Stop == nil || !strings.Contains(msg.Stop.Reason, "vCPU 2: syscall=0: 1 in") {
		t.Fatalf("%+v, %v", msg, err)
	}
	for _, l := range ended {
		l.State, l.End = breaks.StateEnded, 9*hz
	}
	say(session.Message{Ended: &session.Ended{Result: vmm.Result{Ended: "stopped", Wall: time.Second}}})
	if msg, _, err = e.wire.Receive(); err != nil || msg.Status == nil || *msg.Status != session.StatusBudget {
		t.Fatalf("%+v, %v", msg, err)
	}
	if status := <-over; status != 0 {
		t.Errorf("the monitor ended with %d", status)
	}
	b, err := os.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r breaks.Report
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.VCPUs) != 3 || r.VCPUs[0].Threads[0].Name != "loop" || r.VCPUs[2].Threads[0] != (breaks.GuestThread{ID: 102, Name: "busy"}) || *r.VCPUs[1].CPU != 1 {
		t.Errorf("%+v", r.VCPUs)
	}
	if s := r.Budget; s.State != breaks.Broken || len(s.Clauses) != 2 || s.Clauses[0].State != breaks.Kept || s.Clauses[1].State != breaks.Broken || len(s.BrokenBy) != 1 {
		t.Errorf("%+v", s)
	}
}

// A breach of one vCPU that was seen while it ran is not lost behind a breach of another at the end.
func TestLatchOfEachVCPU(t *testing.T) {
	m := &monitor{vcpus: []*vcpu{{id: 0}, {id: 1, broken: true, brokenBy: []string{"vCPU 1: a burst"}}, {id: 2, broken: true, brokenBy: []string{"vCPU 2: more"}}}}
	clause := func(id uint32, s breaks.State) breaks.ClauseOfVCPU {
		return breaks.ClauseOfVCPU{VCPU: id, ClauseVerdict: breaks.ClauseVerdict{State: s}}
	}
	b := &breaks.BudgetState{OK: false, State: breaks.Broken, BrokenBy: []string{"vCPU 2: more"}, Clauses: []breaks.ClauseOfVCPU{clause(1, breaks.Kept), clause(2, breaks.Broken)}}
	m.latch(b)
	if !slices.Equal(b.BrokenBy, []string{"vCPU 2: more", "vCPU 1: a burst (while it ran)"}) {
		t.Errorf("%q", b.BrokenBy)
	}
	b = &breaks.BudgetState{OK: true, State: breaks.Kept, Clauses: []breaks.ClauseOfVCPU{clause(1, breaks.Kept), clause(2, breaks.Kept)}}
	if m.latch(b); b.OK || b.State != breaks.Broken || len(b.BrokenBy) != 2 {
		t.Errorf("%+v", b)
	}
	m.latch(nil) // no budget was given
}

// Threads of the engine are kept off every owned core; a vCPU's own are left alone, but one that owns no
// core may not be on another's.
func TestStrays(t *testing.T) {
	testenv.Need(t, testenv.MultiCPU)
	allowed, err := cores.Allowed()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("sleep", "30")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = c.Process.Kill() // it may have ended
		_ = c.Wait()         // ended by the line before
	}()
	tid, core := c.Process.Pid, allowed[len(allowed)-1]
	m := newMonitor(t, newEngine(t, 2))
	m.plan.Engine, m.plan.Keep, m.ready.Info.TID = tid, allowed, 1<<30
	m.first(m.vcpus[0])
	pass := func() (strays int) {
		before := m.strays
		if m.herd(); m.astray {
			m.drive()
		}
		return m.strays - before
	}
	if n := pass(); n != 0 || !cores.MayRunOn(tid, []int{core}) {
		t.Errorf("nobody owns a core, and %d threads were moved", n)
	}
	v, err := m.vcpu(1)
	if err != nil {
		t.Fatal(err)
	}
	v.tid, v.cpu = tid, core
	if n := pass(); n != 0 || !cores.MayRunOn(tid, []int{core}) {
		t.Error("a vCPU was driven off its own core")
	}
	m.vcpus[0].cpu = core
	v.cpu = -1
	if n := pass(); n != 1 || cores.MayRunOn(tid, []int{core}) {
		t.Error("a vCPU without a core was left on another's")
	}
	if ok, err := cores.Put(tid, allowed); !ok || err != nil {
		t.Fatal(ok, err)
	}
	v.tid = 0
	if m.herd(); !m.astray || m.strays != 1 {
		t.Error("a stray was not seen, or moved before the news could come in")
	}
	if m.drive(); m.strays != 2 || m.astray || cores.MayRunOn(tid, []int{core}) {
		t.Errorf("%d strays", m.strays)
	}
	if n := pass(); n != 0 {
		t.Errorf("%d moved twice", n)
	}
}

// Each vCPU has a track with its name on one clock; no guest time is drawn where there was no thread.
func TestTraceOfSeveralVCPUs(t *testing.T) {
	e := newEngine(t, 4)
	m := newMonitor(t, e)
	m.plan.Trace = filepath.Join(t.TempDir(), "trace.json")
	m.trace = newTracer(&m.plan)
	m.first(m.vcpus[0])
	m.thread(session.Thread{VCPU: 1, TID: 2, Task: 2, Name: "rt", CPU: 1}, nil)
	a, b := e.vcpu(t, 0, 0), e.vcpu(t, 1, 1) // they start at 1 s and 2 s
	event := func(l *breaks.VCPU, cause uint32, out, in uint64) {
		l.Events[l.EventNext%breaks.NEvent] = breaks.Event{Out: out, In: in, Cause: cause}
		l.EventNext++
	}
	event(a, uint32(breaks.Syscall), 2*hz, 3*hz)
	event(b, uint32(breaks.End), 4*hz, 5*hz)
	m.trace.drain(m.vcpus)
	event(b, breaks.EventIdle, 5*hz, 7*hz)
	event(b, uint32(breaks.Signal), 8*hz, 9*hz)
	event(b, uint32(breaks.End), 10*hz, 11*hz)
	event(b, uint32(breaks.Kick), 20*hz, 21*hz) // after an end without an EventIdle
	m.thread(session.Thread{VCPU: 1, TID: 2, Task: 3, Name: "second", CPU: 1}, nil)
	if err := m.trace.close(m.vcpus); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(m.plan.Trace)
	if err != nil {
		t.Fatal(err)
	}
	var events []struct {
		Name, Ph string
		Tid      int
		Ts, Dur  float64
		Args     map[string]any
	}
	if err := json.Unmarshal(raw, &events); err != nil {
		t.Fatal(err)
	}
	type slice struct {
		tid      int
		name     string
		from, to float64 // seconds
	}
	var got []slice
	tracks := map[int]any{}
	for _, e := range events {
		switch e.Ph {
		case "X":
			got = append(got, slice{e.Tid, e.Name, e.Ts / 1e6, (e.Ts + e.Dur) / 1e6})
		case "M":
			if e.Name == "thread_name" {
				tracks[e.Tid] = e.Args["name"]
			}
		}
	}
	want := []slice{{0, "guest", 0, 1}, {0, "syscall read", 1, 2}, {1, "guest", 1, 3}, {1, "end", 3, 4},
		{1, "guest", 6, 7}, {1, "signal", 7, 8}, {1, "guest", 8, 9}, {1, "end", 9, 10}, {1, "kick", 19, 20}}
	if !slices.Equal(got, want) {
		t.Errorf("slices\n%v, want\n%v", got, want)
	}
	if tracks[0] != "vCPU 0: rt-loop-of-mine" || tracks[1] != "vCPU 1: rt, second" {
		t.Errorf("tracks %v", tracks)
	}
	// One that is still writing loses nothing: what was read then is read again.
	b.Seq++
	if _, is := eventAt(m.vcpus[1], b.EventNext-1); is != unsure {
		t.Errorf("an event of a vCPU that writes: %d", is)
	}
	b.Seq++
	if _, is := eventAt(m.vcpus[1], b.EventNext-1); is != unread {
		t.Errorf("an event of a vCPU that has written: %d", is)
	}
	if _, is := eventAt(m.vcpus[1], b.EventNext-breaks.NEvent); is != overwritten {
		t.Errorf("an event that is being overwritten: %d", is)
	}
	// An overrun is one vCPU's.
	b.EventNext += breaks.NEvent + 5
	m.trace.drain(m.vcpus) // the file is closed; what it lost counts all the same
	if m.trace.lostOf(m.vcpus[0]) != 0 || m.trace.lostOf(m.vcpus[1]) != 5 {
		t.Errorf("lost %d and %d", m.trace.lostOf(m.vcpus[0]), m.trace.lostOf(m.vcpus[1]))
	}
}
