package lab_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

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
		for _, p := range probes {
			if err := probe("-:lab/" + p[0]); err != nil && !errors.Is(err, os.ErrNotExist) {
				ts.Fatalf("%v", err)
			}
		}
	})
	set := func(file, value string) {
		ts.Check(os.WriteFile(filepath.Join(tracing, file), []byte(value), 0o600))
	}
	set("buffer_size_kb", "8192")
	for _, e := range []string{"kvm", "irq_vectors", "irq", "sched", "timer", "workqueue"} {
		set(filepath.Join("events", e, "filter"), fmt.Sprintf("CPU == %d", cpu))
	}
	for _, e := range []string{"kvm/kvm_exit", "kvm/kvm_entry", "irq_vectors", "irq", "sched/sched_switch", "timer/hrtimer_expire_entry", "workqueue/workqueue_execute_start"} {
		set(filepath.Join("events", e, "enable"), "1")
	}
	// Who interrupts this CPU from another one, with the kernel's stack.
	for _, p := range probes {
		ts.Check(probe("p:lab/" + p[0] + " " + p[1]))
		if p[2] != "" {
			set("events/lab/"+p[0]+"/filter", fmt.Sprintf(p[2], cpu))
		}
		set("events/lab/"+p[0]+"/trigger", "stacktrace")
		set("events/lab/"+p[0]+"/enable", "1")
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

// probes are where the kernel interrupts other CPUs: name, function with arguments, and a filter for the CPU that is looked at.
var probes = [][3]string{
	{"call", "smp_call_function_many_cond", ""},
	{"resched", "native_smp_send_reschedule to=%di:s32", "to == %d"},
}

// probe adds or removes a probe of the kernel's (Documentation/trace/kprobetrace.rst).
func probe(what string) error {
	f, err := os.OpenFile("/sys/kernel/tracing/kprobe_events", os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(what + "\n")
	return errors.Join(err, f.Close())
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
		for _, c := range e.causes {
			if _, cause, _ := strings.Cut(c, ":"); !slices.Contains(args[2:], cause) {
				verdict = " <- not among what may come"
			}
		}
		if verdict != "" || len(e.causes) == 0 {
			bad++
			verdict += before(ts.ReadFile(args[0]), e.at)
		}
		fmt.Fprintf(&text, "%s %s%s\n", e.at, strings.Join(e.causes, " "), verdict)
	}
	ts.Check(os.WriteFile(ts.MkAbs("interrupts.txt"), []byte(text.String()), 0o644))
	ts.Setenv("INTERRUPTS", strconv.Itoa(len(list)))
	ts.Logf("%d interrupts since the guest last left by itself:\n%s", len(list), &text)
	if bad > 0 {
		ts.Fatalf("%d of %d interrupts have no cause, or one that may not come", bad, len(list))
	}
}

// before is the end of what a trace has before the event at a time, with stacks.
func before(trace, at string) string {
	head, _, _ := strings.Cut(trace, " "+at+": kvm_exit")
	lines := strings.Split(head, "\n")
	return "\n\t" + strings.Join(lines[max(0, len(lines)-40):], "\n\t")
}

// interrupt is one exit by an interrupt.
type interrupt struct {
	at     string   // seconds of the trace's clock
	causes []string // VECTOR:CAUSE for each vector that the host took there; what has none is VECTOR:unknown
}

// event is one line of a trace: TASK-PID [CPU] FLAGS TIME: NAME: REST (Documentation/trace/ftrace.rst).
var event = regexp.MustCompile(`^\s*(.+)-\d+\s+\[(\d+)\]\s+\S+\s+(\d+\.\d+): (\w+): (.*)$`)

var (
	workFunction = regexp.MustCompile(`function[ =](\w+)`)
	handlerName  = regexp.MustCompile(`name=(\S+)`)
	nextTask     = regexp.MustCompile(`next_comm=(.+) next_pid=`)
)

const (
	// flushTime is how long after the engine has asked for a flush its interrupt comes at the latest, in seconds of a machine whose CPUs take turns.
	flushTime = 0.05
	// engine is what the threads are called whose memory the guest's is; a flush by another process is of other memory, and comes to other cores.
	engineComm = "cloister"
)

// Causes that are no function's name.
const (
	unknownCause = "unknown"
	flushCause   = "flush"    // the engine has changed its memory
	endCause     = "end"      // the vCPU's thread was woken, and did not enter the guest again
	selfCause    = "irq_work" // the kernel's own, queued by what it did there
)

// sender is who has interrupted other CPUs.
type sender struct {
	name string
	at   float64
	from string // the first function of its stack that is not onTheWay
}

// toldAt says whether what comes at a time may be what it has sent.
func (s *sender) toldAt(at float64) bool { return s.name != "" && at-s.at < flushTime }

// onTheWay are functions between who interrupts other CPUs and our probe.
var onTheWay = []string{"kprobe_trace_func", "kprobe_dispatcher", "kprobe_ftrace_handler", "smp_call_function_many_cond", "smp_call_function_many", "smp_call_function",
	"on_each_cpu_cond_mask", "native_smp_send_reschedule", "kvm_vcpu_kick", "kvm_make_vcpu_request"}

// causes names for each exit by an interrupt on a CPU, since the last for another reason, what the kernel did there and why. The host takes an interrupt before the exit
// is recorded, and what it wakes runs after that. A cause is of one vector: an interrupt that nothing explains is not hidden by one that came with it.
func causes(trace string, cpu int) (list []interrupt) {
	var now interrupt    // what was taken since the guest was entered
	var wakes *interrupt // the last exit, if it has a wake-up that nothing has explained yet
	inGuest, over := false, false
	flushed := -1.0 // when the engine has asked for a flush
	var sent, call, resched sender
	ends := func() { // of a sender's stack
		switch sent.name {
		case "call":
			call = sent
		case "resched":
			resched = sent
		}
		sent = sender{}
	}
	set := func(e *interrupt, cause string, vectors ...string) {
		for i, c := range e.causes {
			if v, of, _ := strings.Cut(c, ":"); of == unknownCause && slices.ContainsFunc(vectors, func(p string) bool { return strings.HasPrefix(v, p) }) {
				e.causes[i] = v + ":" + cause
			}
		}
	}
	for line := range strings.Lines(trace) {
		if f, ok := strings.CutPrefix(strings.TrimSpace(line), "=> "); ok {
			if sent.name != "" && !slices.Contains(onTheWay, f) && !strings.HasPrefix(f, "0x") {
				sent.from = f
				ends()
			}
			continue
		}
		m := event.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if m == nil || over {
			continue
		}
		comm, at, name, rest := m[1], m[3], m[4], m[5]
		seconds, err := strconv.ParseFloat(at, 64)
		if err != nil {
			continue
		}
		if name == "tlb_flush" && comm == engineComm {
			flushed = seconds
		}
		if name == "call" || name == "resched" {
			sent = sender{name: name, at: seconds}
		}
		if on, err := strconv.Atoi(m[2]); err != nil || on != cpu {
			continue
		}
		vector, entered := strings.CutSuffix(name, "_entry")
		switch {
		case name == "kvm_entry":
			now, wakes, inGuest = interrupt{}, nil, true
		case name == "kvm_exit":
			inGuest, wakes = false, nil
			if r := exitReason.FindStringSubmatch(line); r == nil || strings.TrimPrefix(r[1], "EXIT_") != "interrupt" {
				list = nil
				continue
			}
			now.at = at
			list = append(list, now)
			wakes = &list[len(list)-1]
		case name == "sched_switch":
			switch next := nextTask.FindStringSubmatch(rest); {
			case strings.Contains(rest, "prev_comm="+engineComm+" ") && (strings.Contains(rest, "prev_state=X") || strings.Contains(rest, "prev_state=Z")):
				over = true // the vCPU's thread has ended
			case wakes != nil && next != nil && !strings.HasPrefix(next[1], "kworker/") && next[1] != engineComm && !strings.HasPrefix(next[1], "swapper/"):
				set(wakes, "task-"+next[1], "reschedule", "call_function_single")
				wakes = nil
			}
		case name == "workqueue_execute_start":
			if f := workFunction.FindStringSubmatch(rest); f != nil && wakes != nil && strings.HasPrefix(comm, "kworker/") {
				set(wakes, f[1], "reschedule", "call_function_single")
				wakes = nil
			}
		case !inGuest: // what comes while the host works, or another task, interrupts no guest
		case name == "hrtimer_expire_entry":
			if f := workFunction.FindStringSubmatch(rest); f != nil {
				set(&now, f[1], "local_timer")
			}
		case name == "irq_handler_entry":
			if f := handlerName.FindStringSubmatch(rest); f != nil {
				now.causes = append(now.causes, "irq:"+f[1])
			}
		case entered && strings.HasPrefix(rest, "vector="):
			now.causes = append(now.causes, vector+":"+unknownCause)
			switch {
			case strings.HasPrefix(vector, "call_function") && seconds-flushed < flushTime && flushed >= 0:
				set(&now, flushCause, vector)
				flushed = -1
			case vector == "call_function" && call.toldAt(seconds) && call.from != "flush_tlb_mm_range": // that one goes to CPUs of its own process alone
				set(&now, call.from, vector)
				call = sender{}
			case vector == "reschedule" && resched.toldAt(seconds) && resched.from == "kvmclock_update_fn":
				set(&now, resched.from, vector)
				resched = sender{}
			case vector == "irq_work":
				set(&now, selfCause, vector)
			}
		}
	}
	if wakes != nil {
		set(wakes, endCause, "reschedule")
	}
	return list
}

func TestCauses(t *testing.T) {
	const worker, vcpu = " kworker/2:0-30 [002] ..... ", " cloister-9 [002] ..... "
	for _, c := range []struct{ name, trace, want string }{
		{"none", "", ""},
		{"nothing since", vcpu + "1.0: kvm_exit: vcpu 0 reason interrupt rip 0x1\n" + vcpu + "2.0: kvm_exit: vcpu 0 reason io rip 0x1\n", ""},
		{"a worker", "E\nreschedule\ncall_function_single\nX\n" + vcpu + "3.1: sched_switch: prev_comm=cloister prev_pid=9 prev_state=R ==> next_comm=kworker/2:0 next_pid=30 next_prio=1\n" +
			worker + "3.2: workqueue_execute_start: work struct 1: function lru_add_drain_per_cpu\n" + worker + "3.2: workqueue_execute_start: work struct 1: function wq_barrier_func\n" +
			" kworker/1:0-31 [001] ..... 3.2: workqueue_execute_start: work struct 1: function elsewhere\nE\n", "reschedule:lru_add_drain_per_cpu call_function_single:lru_add_drain_per_cpu"},
		{"another task", "E\nreschedule\nX\n" + vcpu + "3.1: sched_switch: prev_comm=cloister prev_pid=9 prev_state=R ==> next_comm=migration/2 next_pid=3 next_prio=1\nE\n", "reschedule:task-migration/2"},
		{"the timer", "E\nlocal_timer\n" + vcpu + "4.0: hrtimer_expire_entry: hrtimer=1 function=tick_sched_timer now=2\n" + vcpu + "4.0: softirq_entry: vec=1 [action=TIMER]\nirq_work\nX\nE\n",
			"local_timer:tick_sched_timer irq_work:irq_work"},
		{"a timer without a function", "E\nlocal_timer\nX\nE\n", "local_timer:unknown"},
		{"the engine's flush", "E\n cloister-8 [001] ...2. 2.999: tlb_flush: pages:1 reason:remote ipi send (4)\n cloister-monito-7 [001] ...2. 2.9995: tlb_flush: pages:1 reason:remote ipi send (4)\n => wp_page_copy\ncall_function\nX\nE\n", "call_function:flush"},
		{"another's flush", "E\n cloister-monito-7 [001] ...2. 2.999: tlb_flush: pages:1 reason:remote ipi send (4)\ncall_function\nX\nE\n", "call_function:unknown"},
		{"an old flush", "E\n cloister-8 [001] ...2. 2.9: tlb_flush: pages:1 reason:remote ipi send (4)\ncall_function\nX\nE\n", "call_function:unknown"},
		{"one hides no other", "E\nreschedule\ncall_function_single\nX\n", "reschedule:end call_function_single:unknown"},
		{"pages are made huge", "E\n khugepaged-53 [001] ...1. 2.99: call: (smp_call_function_many_cond+0x0/0x330)\n khugepaged-53 [001] ...1. 2.99: <stack trace>\n => kprobe_trace_func\n => 0xffffffffc048b0c8\n" +
			" => smp_call_function_many_cond\n => smp_call_function\n => collapse_huge_page\n => khugepaged\ncall_function\nreschedule\nX\nE\ncall_function\nX\nE\n", "call_function:collapse_huge_page reschedule:unknown; call_function:unknown"},
		{"somebody else's pages", "E\n cloister-monito-7 [001] ...1. 2.99: call: (smp_call_function_many_cond+0x0/0x330)\n cloister-monito-7 [001] ...1. 2.99: <stack trace>\n" +
			" => smp_call_function_many_cond\n => on_each_cpu_cond_mask\n => flush_tlb_mm_range\ncall_function\nX\nE\n", "call_function:unknown"},
		{"the clock", "E\n kworker/1:0-31 [001] ..... 2.99: resched: (native_smp_send_reschedule+0x0/0x40) to=2\n kworker/1:0-31 [001] ..... 2.99: <stack trace>\n => native_smp_send_reschedule\n => kvm_vcpu_kick\n => kvmclock_update_fn\nreschedule\nX\nE\nreschedule\nX\nE\n", "reschedule:kvmclock_update_fn; reschedule:unknown"},
		{"a device", "E\n" + vcpu + "3.0: irq_handler_entry: irq=27 name=virtio0-req.2\nX\nE\n", "irq:virtio0-req.2"},
		{"between two stays", "E\nreschedule\nX\nlocal_timer\nE\nX\nE\n", "reschedule:unknown; "},
		{"the end", "E\nreschedule\nX\n" + vcpu + "9.0: sched_switch: prev_comm=cloister prev_pid=9 prev_prio=1 prev_state=X ==> next_comm=swapper/2 next_pid=0 next_prio=1\n" +
			worker + "60.0: workqueue_execute_start: work struct 1: function vmstat_update\n", "reschedule:end"},
		{"no end", "E\nreschedule\nX\nE\n", "reschedule:unknown"},
	} {
		text := strings.NewReplacer("E\n", vcpu+"3.0: kvm_entry: vcpu 0, rip 0x1\n", "X\n", vcpu+"3.0: kvm_exit: vcpu 0 reason interrupt rip 0x1\n").Replace("\n" + c.trace)
		for _, v := range []string{"reschedule", "call_function_single", "call_function", "local_timer", "irq_work"} {
			text = strings.ReplaceAll(text, "\n"+v+"\n", "\n"+vcpu+"3.0: "+v+"_entry: vector=1\n")
		}
		var got []string
		for _, e := range causes(text, 2) {
			got = append(got, strings.Join(e.causes, " "))
		}
		if strings.Join(got, "; ") != c.want {
			t.Errorf("%s: %q, want %q", c.name, strings.Join(got, "; "), c.want)
		}
	}
}
