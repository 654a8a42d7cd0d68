package linux

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister-vmm/cloister/guest/vfs"
)

// The texts of /proc/self that only the kernel knows, for vfs.Options.

// limitRows are those of /proc/self/limits (fs/proc/base.c: lnames), in their order.
var limitRows = [rlimNlimits]struct{ name, unit string }{
	{"Max cpu time", "seconds"}, {"Max file size", "bytes"}, {"Max data size", "bytes"}, {"Max stack size", "bytes"},
	{"Max core file size", "bytes"}, {"Max resident set", "bytes"}, {"Max processes", "processes"}, {"Max open files", "files"},
	{"Max locked memory", "bytes"}, {"Max address space", "bytes"}, {"Max file locks", "locks"}, {"Max pending signals", "signals"},
	{"Max msgqueue size", "bytes"}, {"Max nice priority", ""}, {"Max realtime priority", ""}, {"Max realtime timeout", "us"},
}

// Limits is /proc/self/limits.
func (k *Kernel) Limits() string {
	show := func(v uint64) string {
		if v == unix.RLIM_INFINITY {
			return "unlimited"
		}
		return fmt.Sprint(v)
	}
	var b strings.Builder
	row := func(name, soft, hard, unit string) {
		if unit != "" {
			unit = fmt.Sprintf("%-10s", unit)
		}
		fmt.Fprintf(&b, "%-25s %-20s %-20s %s\n", name, soft, hard, unit)
	}
	row("Limit", "Soft Limit", "Hard Limit", "Units")
	for i, r := range limitRows {
		row(r.name, show(k.lim.r[i].Cur), show(k.lim.r[i].Max), r.unit)
	}
	return b.String()
}

// Texts are the files of /proc/self and of /proc/self/task/ID in which threads differ, for vfs.Options, which is there
// before the kernel is. They are called, as Limits and Statm, while a call is served.
func Texts(kernel func() *Kernel) map[string]func(thread int) (string, unix.Errno) {
	texts := map[string]func(int) (string, unix.Errno){}
	for name, text := range map[string]func(k *Kernel, t *Task, whole bool) string{
		"status": (*Kernel).status, "stat": (*Kernel).stat, "sched": (*Kernel).schedText, "schedstat": (*Kernel).schedStat,
	} {
		texts[name] = func(id int) (string, unix.Errno) {
			k := kernel()
			t := k.inProc(id)
			if t == nil {
				return "", unix.ESRCH
			}
			return text(k, t, id == 0), 0
		}
	}
	return texts
}

// Rename gives a thread the name that was written to its comm (fs/proc/base.c: comm_write); 0 is the first thread. It is
// for vfs.Options.
func (k *Kernel) Rename(thread int, name []byte) unix.Errno {
	t := k.inProc(thread)
	if t == nil {
		return unix.ESRCH
	}
	k.rename(t, name)
	return 0
}

// inProc finds a thread for /proc. The first one, which 0 stands for, stays there as long as the process does.
func (k *Kernel) inProc(id int) *Task {
	if k.first != nil && (id == 0 || id == k.first.ID) {
		return k.first
	}
	for _, t := range k.tasks {
		if t.ID == id {
			return t
		}
	}
	return nil
}

// usage is committed and mapped memory in bytes.
func (k *Kernel) usage() (rss, size uint64) {
	rss, _ = k.mem.Usage()
	for line := range strings.Lines(k.mem.Maps()) {
		var from, to uint64
		if n, err := fmt.Sscanf(line, "%x-%x", &from, &to); n == 2 && err == nil {
			size += to - from
		}
	}
	return min(rss, size), size
}

// Statm is /proc/self/statm (proc_pid_statm(5)). Memory that was committed counts as resident.
func (k *Kernel) Statm() string {
	rss, size := k.usage()
	const page = pageMask + 1
	return fmt.Sprintf("%d %d 0 0 0 %d 0\n", size/page, rss/page, rss/page)
}

// hostRows are the lines of the host's own /proc/self/status, whose order and form the guest's has.
func hostRows() []string {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil // a host that hides it: an empty file
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

// status is /proc/self/status (proc_pid_status(5)) of t: the rows that the host's has, with the guest's values. Those that
// the guest shares with the engine (identity, capabilities, the processor's state) are the host's own; a row that nobody
// has a value for is left out.
func (k *Kernel) status(t *Task, _ bool) string {
	own := k.statusRows(t)
	var b strings.Builder
	for _, row := range hostRows() {
		key, _, _ := strings.Cut(row, ":")
		switch key {
		case "Umask", "Ngid", "Kthread", "Groups", "CoreDumping", "THP_enabled", "untag_mask", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
			"Speculation_Store_Bypass", "SpeculationIndirectBranch", "Mems_allowed", "Mems_allowed_list":
			b.WriteString(row + "\n")
		default:
			if v, ok := own[key]; ok {
				fmt.Fprintf(&b, "%s:\t%v\n", key, v)
			}
		}
	}
	return b.String()
}

func (k *Kernel) statusRows(t *Task) map[string]any {
	p := &k.proc
	ignored, caught := k.handled()
	mask, list := k.cpuTexts(t)
	set := func(v uint64) string { return fmt.Sprintf("%016x", v) }
	rows := map[string]any{
		"Name": escapeName(t.Name()), "State": t.state(), "Tgid": k.cfg.PID, "Pid": t.ID, "PPid": k.cfg.PPID, "TracerPid": 0,
		"Uid": fmt.Sprintf("%d\t%d\t%[2]d\t%[2]d", p.uid, p.euid), "Gid": fmt.Sprintf("%d\t%d\t%[2]d\t%[2]d", p.gid, p.egid),
		"FDSize": max(64, (len(k.fds.e)+63)&^63), "NStgid": k.cfg.PID, "NSpid": t.ID, "NSpgid": p.pgid, "NSsid": p.sid,
		"Threads": k.threadCount(), "SigQ": fmt.Sprintf("%d/%d", k.sig.queued, k.lim.r[unix.RLIMIT_SIGPENDING].Cur),
		"SigPnd": set(t.pending.set), "ShdPnd": set(k.sig.shared.set), "SigBlk": set(t.mask &^ t.waits),
		"SigIgn": set(ignored), "SigCgt": set(caught), "NoNewPrivs": p.noNewPrivs, "Seccomp": 0, "Seccomp_filters": 0,
		"Cpus_allowed": mask, "Cpus_allowed_list": list,
	}
	if s, ok := k.switches(t); ok {
		rows["voluntary_ctxt_switches"], rows["nonvoluntary_ctxt_switches"] = s.Voluntary, s.Involuntary
	}
	if t.ended { // its memory and files are others'
		rows["FDSize"] = 0
		return rows
	}
	rss, size := k.usage()
	for key, bytes := range map[string]uint64{
		"VmPeak": size, "VmSize": size, "VmLck": 0, "VmPin": 0, "VmHWM": rss, "VmRSS": rss, "RssAnon": rss, "RssFile": 0, "RssShmem": 0,
		"VmData": rss, "VmLib": 0, "VmSwap": 0, "HugetlbPages": 0,
	} {
		rows[key] = kB(bytes)
	}
	return rows
}

func (k *Kernel) switches(t *Task) (Switches, bool) {
	if k.cfg.Switches == nil || t.ended {
		return Switches{}, false
	}
	return k.cfg.Switches(t)
}

func kB(bytes uint64) string { return fmt.Sprintf("%8d kB", bytes>>10) }

// handled are the sets of signals that are ignored and that have handlers.
func (k *Kernel) handled() (ignored, caught uint64) {
	for sig := uint64(1); sig <= maxSignal; sig++ {
		switch k.sig.action[sig].handler {
		case sigDFL:
		case sigIGN:
			ignored |= sigBit(sig)
		default:
			caught |= sigBit(sig)
		}
	}
	return ignored, caught
}

// escapeName is a name as status shows it (fs/proc/array.c: proc_task_name): the end of the line is the row's.
func escapeName(name string) string {
	return strings.NewReplacer("\\", "\\\\", "\n", "\\n").Replace(name)
}

// threadCount counts the first thread as long as the process lives, as Linux does.
func (k *Kernel) threadCount() int {
	n := len(k.tasks)
	if k.first != nil && k.first.ended {
		n++
	}
	return n
}

// state is the row State: R when the task executes, or is being served.
func (t *Task) state() string {
	switch {
	case t.ended:
		return "Z (zombie)"
	case t.blocked:
		return "S (sleeping)"
	}
	return "R (running)"
}

// cpuTexts is where t may run, as a mask and as a list.
func (k *Kernel) cpuTexts(t *Task) (mask, list string) {
	allowed := t.sched.affinity
	if allowed == nil {
		allowed = k.cpuMask()
	}
	has := func(i int) bool { return i < 8*len(allowed) && allowed[i/8]&(1<<(i%8)) != 0 }
	return vfs.CPUMask(k.cfg.CPUs, has), vfs.CPUList(k.cfg.CPUs, has)
}

// stat is /proc/self/stat: the 52 fields of proc_pid_stat(5). What a program guest does not count is 0. Of the process
// (whole) the times are all its threads'.
func (k *Kernel) stat(t *Task, whole bool) string {
	of := t
	if whole {
		of = nil
	}
	cpu, program := k.cpuTime(of)
	const tick = 10 * time.Millisecond // USER_HZ is 100 on x86-64
	var rss, size uint64
	if !t.ended {
		rss, size = k.usage()
	}
	// The terminal is the engine's: fields 7 and 8 of its own.
	tty, group := "0", "-1"
	if text, err := os.ReadFile("/proc/self/stat"); err == nil {
		if f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])); len(f) > 5 {
			tty, group = f[4], f[5]
		}
	}
	priority, exit := 20+t.sched.nice, int(unix.SIGCHLD)
	if p := t.sched.policy; p == unix.SCHED_FIFO || p == unix.SCHED_RR {
		priority = -1 - t.sched.priority
	}
	if t.ID != k.cfg.PID {
		exit = -1
	}
	cpuNumber := k.cfg.CPU
	if k.cfg.CPUOf != nil && !t.ended {
		cpuNumber = k.cfg.CPUOf(t)
	}
	ignored, caught := k.handled()
	const old = 1<<31 - 1 // the fields of signals have no room for more
	f := make([]any, 0, 52)
	f = append(f, t.ID, "("+t.Name()+")", t.state()[:1], k.cfg.PPID, k.proc.pgid, k.proc.sid, tty, group, 0, 0, 0, 0, 0,
		int64(program/tick), int64((cpu-program)/tick), 0, 0, priority, t.sched.nice, k.threadCount(), 0, int64(t.started/tick),
		size, rss/(pageMask+1), k.lim.r[unix.RLIMIT_RSS].Cur, 0, 0, 0, 0, 0,
		t.pending.set&old, (t.mask&^t.waits)&old, ignored&old, caught&old, 0, 0, 0, exit, cpuNumber, t.sched.priority, t.sched.policy)
	for len(f) < cap(f) {
		f = append(f, 0)
	}
	return fmt.Sprintln(f...)
}

// schedText is /proc/self/sched (kernel/sched/debug.c: proc_sched_show_task), as far as it is known here.
func (k *Kernel) schedText(t *Task, _ bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%d, #threads: %d)\n%s\n", t.Name(), t.ID, k.threadCount(), strings.Repeat("-", 67))
	cpu, _ := k.cpuTime(t)
	fmt.Fprintf(&b, "%-45s:%14d.%06d\n", "se.sum_exec_runtime", cpu.Milliseconds(), cpu.Nanoseconds()%1e6)
	row := func(name string, v any) { fmt.Fprintf(&b, "%-45s:%21d\n", name, v) }
	if s, ok := k.switches(t); ok {
		row("nr_switches", s.Voluntary+s.Involuntary)
		row("nr_voluntary_switches", s.Voluntary)
		row("nr_involuntary_switches", s.Involuntary)
	}
	priority := 120 + t.sched.nice
	if p := t.sched.policy; p == unix.SCHED_FIFO || p == unix.SCHED_RR {
		priority = 99 - t.sched.priority
	}
	row("policy", t.sched.policy)
	row("prio", priority)
	return b.String()
}

// schedStat is /proc/self/schedstat (Documentation/scheduler/sched-stats.rst): nanoseconds on a CPU and waiting for one, and
// how often it was put on one.
func (k *Kernel) schedStat(t *Task, _ bool) string {
	cpu, _ := k.cpuTime(t)
	s, _ := k.switches(t) // zeros where nobody knows: the file has no other form
	return fmt.Sprintf("%d %d %d\n", cpu.Nanoseconds(), s.Ready.Nanoseconds(), s.Slices)
}
