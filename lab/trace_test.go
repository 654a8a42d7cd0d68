package lab_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// exits CPU DURATION [REASON…]: in that time, kvm:kvm_exit fires on the CPU for
// these reasons only. With "!", something else fires too.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: exits CPU DURATION [REASON…]")
	}
	d, err := time.ParseDuration(args[1])
	ts.Check(err)
	dir := "/sys/kernel/tracing/instances/lab-scenario"
	ts.Check(os.Mkdir(dir, 0o700))
	defer func() { ts.Check(os.Remove(dir)) }()
	enable := filepath.Join(dir, "events/kvm/kvm_exit/enable")
	ts.Check(os.WriteFile(enable, []byte("1"), 0o600))
	time.Sleep(d)
	ts.Check(os.WriteFile(enable, []byte("0"), 0o600))
	b, err := os.ReadFile(filepath.Join(dir, "per_cpu", "cpu"+args[0], "trace"))
	ts.Check(err)
	var other []string
	for line := range strings.Lines(string(b)) {
		m := exitReason.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		known := false
		for _, r := range args[2:] {
			known = known || strings.TrimPrefix(m[1], "EXIT_") == r
		}
		if !known {
			other = append(other, strings.TrimSpace(line))
		}
	}
	ts.Logf("%d other exits on CPU %s in %v\n%s", len(other), args[0], d, strings.Join(other, "\n"))
	if (len(other) > 0) != neg {
		ts.Fatalf("%d exits for other reasons than %v", len(other), args[2:])
	}
}

// tracing is the trace instance of the commands trace and traced. Scripts run one after the other.
const tracing = "/sys/kernel/tracing/instances/lab-record"

// trace CPU: until `traced`, every guest exit, interrupt, timer and switch on that CPU is recorded, and
// wherever another CPU's translations are flushed from, with the kernel's stack.
func trace(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: trace CPU")
	}
	cpu, err := strconv.ParseUint(args[0], 10, 5)
	ts.Check(err)
	ts.Check(os.Mkdir(tracing, 0o700))
	ts.Defer(func() {
		if err := os.Remove(tracing); err != nil && !errors.Is(err, os.ErrNotExist) {
			ts.Fatalf("%v", err)
		}
	})
	set := func(file, value string) {
		ts.Check(os.WriteFile(filepath.Join(tracing, file), []byte(value), 0o600))
	}
	set("buffer_size_kb", "8192")
	for _, e := range []string{"kvm", "irq_vectors", "irq", "sched", "timer", "workqueue"} {
		set(filepath.Join("events", e, "filter"), fmt.Sprintf("CPU == %d", cpu))
	}
	for _, e := range []string{"kvm/kvm_exit", "irq_vectors", "irq", "sched/sched_switch", "timer/hrtimer_expire_entry", "workqueue/workqueue_execute_start"} {
		set(filepath.Join("events", e, "enable"), "1")
	}
	// Who asked another CPU to flush, and from where: TLB_REMOTE_SEND_IPI of include/linux/mm_types.h.
	const remoteFlush = "reason == 4"
	set("events/tlb/tlb_flush/filter", remoteFlush)
	set("events/tlb/tlb_flush/trigger", "stacktrace if "+remoteFlush)
	set("events/tlb/tlb_flush/enable", "1")
	// A write to a page that is there but is shared makes a copy of it, and a flush: user, write, present
	// (arch/x86/include/asm/trap_pf.h).
	set("events/exceptions/page_fault_user/filter", "error_code == 7")
	set("events/exceptions/page_fault_user/enable", "1")
}

// traced FILE: the end of `trace`. FILE gets the events; $EXITS is how often the
// guest was left, $EXITS_reason how often for that reason (EXITS_npf). An event that
// was lost fails the script: a list with holes proves nothing.
func traced(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: traced FILE")
	}
	ts.Check(os.WriteFile(filepath.Join(tracing, "tracing_on"), []byte("0"), 0o600))
	b, err := os.ReadFile(filepath.Join(tracing, "trace"))
	ts.Check(err)
	stats, err := filepath.Glob(filepath.Join(tracing, "per_cpu", "cpu*", "stats"))
	ts.Check(err)
	for _, f := range stats {
		s, err := os.ReadFile(f)
		ts.Check(err)
		for line := range strings.Lines(string(s)) {
			if name, n, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && n != "0" && (name == "overrun" || name == "dropped events" || name == "commit overrun") {
				ts.Fatalf("%s: events were lost: %s", f, line)
			}
		}
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o644))
	total, reasons := 0, map[string]int{}
	var since []string // the last exit that was the guest's own doing
	for line := range strings.Lines(string(b)) {
		if m := exitReason.FindStringSubmatch(line); m != nil {
			r := strings.TrimPrefix(m[1], "EXIT_")
			total++
			reasons[r]++
			if r != "interrupt" {
				since = since[:0]
			}
		}
		since = append(since, strings.TrimRight(line, "\n"))
	}
	ts.Logf("since the guest last left by itself:\n%s", strings.Join(since[:min(len(since), 60)], "\n"))
	ts.Setenv("EXITS", strconv.Itoa(total))
	for r, n := range reasons {
		ts.Setenv("EXITS_"+r, strconv.Itoa(n))
	}
	ts.Logf("%d exits: %v", total, reasons)
}

// interrupts FILE CPU CAUSE…: of FILE, which `traced` wrote, each exit by an interrupt since the guest last left by itself, with what caused it. One
// without a cause, or with one that is not among those named, fails the script. $INTERRUPTS is how many there were; the list is in interrupts.txt.
func interrupts(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: interrupts FILE CPU CAUSE…")
	}
	cpu, err := strconv.ParseUint(args[1], 10, 5)
	ts.Check(err)
	list := causes(ts.ReadFile(args[0]), int(cpu))
	var text strings.Builder
	bad := 0
	for _, e := range list {
		verdict := ""
		if len(e.causes) == 0 || slices.ContainsFunc(e.causes, func(c string) bool { return !slices.Contains(args[2:], c) }) {
			verdict = " <- not among those that may come"
			bad++
		}
		fmt.Fprintf(&text, "%s %s: %s%s\n", e.at, strings.Join(e.vectors, "+"), strings.Join(e.causes, " "), verdict)
	}
	ts.Check(os.WriteFile(ts.MkAbs("interrupts.txt"), []byte(text.String()), 0o644))
	ts.Setenv("INTERRUPTS", strconv.Itoa(len(list)))
	ts.Logf("%d interrupts since the guest last left by itself:\n%s", len(list), &text)
	if bad > 0 {
		ts.Fatalf("%d of %d interrupts have no cause, or one that may not come", bad, len(list))
	}
}

// interrupt is one exit by an interrupt.
type interrupt struct {
	at      string   // seconds of the trace's clock
	vectors []string // of the interrupts that the host took there
	causes  []string // a worker's function, a timer's, "softirq-TIMER", "flush-by-COMM"; "wake-up": the vCPU's thread was told to leave
}

// event is one line of a trace: TASK-PID [CPU] FLAGS TIME: NAME: REST (Documentation/trace/ftrace.rst).
var event = regexp.MustCompile(`^\s*(.+)-\d+\s+\[(\d+)\]\s+\S+\s+(\d+\.\d+): (\w+): (.*)$`)

// flushTime is how long after somebody has asked for a flush its interrupt comes at the latest, in seconds of a machine whose CPUs take turns.
const flushTime = 0.05

var workFunction = regexp.MustCompile(`function[ =](\w+)`)

// causes names for each exit by an interrupt on a CPU, since the last for another reason, what the kernel did there and why. The host takes an interrupt before the exit
// is recorded, and what it wakes runs after that.
func causes(trace string, cpu int) (list []interrupt) {
	var now interrupt         // what was taken since the last exit
	flush, flushed := "", 0.0 // who asked for the latest flush, and when
	add := func(to *[]string, s string) {
		if !slices.Contains(*to, s) {
			*to = append(*to, s)
		}
	}
	worked := func(e *interrupt, function string) { // what a wake-up was for is its cause
		e.causes = slices.DeleteFunc(e.causes, func(c string) bool { return c == "wake-up" })
		add(&e.causes, function)
	}
	for line := range strings.Lines(trace) {
		m := event.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if m == nil {
			continue
		}
		comm, at, name, rest := m[1], m[3], m[4], m[5]
		seconds, err := strconv.ParseFloat(at, 64)
		if err != nil {
			continue
		}
		if name == "tlb_flush" {
			flush, flushed = comm, seconds
		}
		if on, err := strconv.Atoi(m[2]); err != nil || on != cpu {
			continue
		}
		vector, entered := strings.CutSuffix(name, "_entry")
		switch {
		case name == "kvm_exit":
			r := exitReason.FindStringSubmatch(line)
			if r == nil || strings.TrimPrefix(r[1], "EXIT_") != "interrupt" {
				list = nil
			} else {
				now.at = at
				list = append(list, now)
			}
			now = interrupt{}
		case name == "sched_switch": // what came while another task ran, or none, interrupted no guest
			now = interrupt{}
		case name == "workqueue_execute_start" && len(list) > 0:
			if f := workFunction.FindStringSubmatch(rest); f != nil && f[1] != "wq_barrier_func" { // the barrier is the waiter's, behind the work
				worked(&list[len(list)-1], f[1])
			}
		case name == "hrtimer_expire_entry":
			if f := workFunction.FindStringSubmatch(rest); f != nil {
				add(&now.causes, f[1])
			}
		case name == "softirq_entry":
			if _, action, ok := strings.Cut(rest, "action="); ok {
				add(&now.causes, "softirq-"+strings.TrimSuffix(action, "]"))
			}
		case entered && strings.HasPrefix(rest, "vector="):
			add(&now.vectors, vector)
			switch {
			case strings.HasPrefix(vector, "call_function") && flush != "" && seconds-flushed < flushTime:
				add(&now.causes, "flush-by-"+flush)
			case vector == "reschedule":
				add(&now.causes, "wake-up")
			}
		}
	}
	return list
}

func TestCauses(t *testing.T) {
	const trace = ` cloister-9 [002] ..... 1.0: kvm_exit: vcpu 0 reason interrupt rip 0x1
 cloister-9 [002] ..... 2.0: kvm_exit: vcpu 0 reason io rip 0x1
 cloister-9 [002] dnh1. 3.0: reschedule_entry: vector=253
 cloister-9 [002] dNh1. 3.0: call_function_single_entry: vector=251
 cloister-9 [002] .N... 3.1: kvm_exit: vcpu 0 reason interrupt rip 0x401060
 kworker/2:0-30 [002] ..... 3.2: workqueue_execute_start: work struct 1: function lru_add_drain_per_cpu
 kworker/2:0-30 [002] ..... 3.2: workqueue_execute_start: work struct 1: function wq_barrier_func
 kworker/1:0-31 [001] ..... 3.2: workqueue_execute_start: work struct 1: function elsewhere
 cloister-9 [002] d.h1. 4.0: local_timer_entry: vector=236
 cloister-9 [002] d.h1. 4.0: hrtimer_expire_entry: hrtimer=1 function=tick_sched_timer now=2
 cloister-9 [002] d.h1. 4.0: local_timer_exit: vector=236
 cloister-9 [002] ..s1. 4.0: softirq_entry: vec=1 [action=TIMER]
 cloister-9 [002] .N... 4.1: kvm_exit: vcpu 0 reason interrupt rip 0x401060
 cloister-8 [001] ...2. 5.0: tlb_flush: pages:1 reason:remote ipi send (4)
 => wp_page_copy
 cloister-9 [002] d.h1. 5.03: call_function_entry: vector=252
 cloister-9 [002] ..... 5.2: kvm_exit: vcpu 0 reason interrupt rip 0x401060
 cloister-9 [002] d..2. 5.3: sched_switch: prev_comm=cloister ==> next_comm=swapper/2
 <idle>-0 [002] d.h1. 5.9: call_function_single_entry: vector=251
 <idle>-0 [002] d..2. 5.9: sched_switch: prev_comm=swapper/2 ==> next_comm=cloister
 cloister-9 [002] d.h1. 6.0: call_function_single_entry: vector=251
 cloister-9 [002] ..... 6.1: kvm_exit: vcpu 0 reason interrupt rip 0x401060
 cloister-9 [002] d.h1. 7.0: reschedule_entry: vector=253
 cloister-9 [002] ..... 7.1: kvm_exit: vcpu 0 reason interrupt rip 0x401060
`
	want := []interrupt{
		{"3.1", []string{"reschedule", "call_function_single"}, []string{"lru_add_drain_per_cpu"}},
		{"4.1", []string{"local_timer"}, []string{"tick_sched_timer", "softirq-TIMER"}},
		{"5.2", []string{"call_function"}, []string{"flush-by-cloister"}},
		{"6.1", []string{"call_function_single"}, nil},
		{"7.1", []string{"reschedule"}, []string{"wake-up"}},
	}
	if got := causes(trace, 2); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
}
