package linux

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
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

// Status is /proc/self/status (proc_pid_status(5)), as far as a program guest has an answer.
func (k *Kernel) Status() string {
	rss, size := k.usage()
	p := &k.proc
	var ignored, caught uint64
	for sig := uint64(1); sig <= maxSignal; sig++ {
		switch k.sig.action[sig].handler {
		case sigDFL:
		case sigIGN:
			ignored |= sigBit(sig)
		default:
			caught |= sigBit(sig)
		}
	}
	name := base(k.cfg.Exe)
	cpus := fmt.Sprintf("0-%d", k.cfg.CPUs-1)
	if k.cfg.CPUs == 1 {
		cpus = "0"
	}
	var b strings.Builder
	for _, l := range []struct {
		key   string
		value any
	}{
		{"Name", name[:min(len(name), 15)]}, {"State", "R (running)"}, {"Tgid", k.cfg.PID}, {"Ngid", 0},
		{"Pid", k.cfg.PID}, {"PPid", k.cfg.PPID}, {"TracerPid", 0},
		{"Uid", fmt.Sprintf("%d\t%d\t%[2]d\t%[2]d", p.uid, p.euid)}, {"Gid", fmt.Sprintf("%d\t%d\t%[2]d\t%[2]d", p.gid, p.egid)},
		{"FDSize", max(64, (len(k.fds.e)+63)&^63)}, {"VmPeak", kB(size)}, {"VmSize", kB(size)}, {"VmLck", kB(0)}, {"VmPin", kB(0)},
		{"VmHWM", kB(rss)}, {"VmRSS", kB(rss)}, {"RssAnon", kB(rss)}, {"RssFile", kB(0)}, {"RssShmem", kB(0)}, {"VmData", kB(rss)}, {"VmSwap", kB(0)},
		{"Threads", len(k.tasks)}, {"SigPnd", "0000000000000000"}, {"ShdPnd", fmt.Sprintf("%016x", k.sig.shared.set)},
		{"SigIgn", fmt.Sprintf("%016x", ignored)}, {"SigCgt", fmt.Sprintf("%016x", caught)}, {"NoNewPrivs", p.noNewPrivs}, {"Seccomp", 0},
		{"Cpus_allowed_list", cpus}, {"Mems_allowed_list", "0"},
	} {
		fmt.Fprintf(&b, "%s:\t%v\n", l.key, l.value)
	}
	return b.String()
}

func kB(bytes uint64) string { return fmt.Sprintf("%8d kB", bytes>>10) }

// Stat is /proc/self/stat: the 52 fields of proc_pid_stat(5). What a program guest does not count is 0.
func (k *Kernel) Stat() string {
	rss, size := k.usage()
	ticks := int64(0)
	if k.cfg.CPUTime != nil {
		ticks = k.cfg.CPUTime().Milliseconds() / 10 // USER_HZ is 100 on x86-64
	}
	name := base(k.cfg.Exe)
	f := make([]any, 0, 52)
	f = append(f, k.cfg.PID, "("+name[:min(len(name), 15)]+")", "R", k.cfg.PPID, k.proc.pgid, k.proc.sid, 0, -1, 0, 0, 0, 0, 0,
		ticks, 0, 0, 0, 20, 0, len(k.tasks), 0, 0, size, rss/(pageMask+1), uint64(k.lim.r[unix.RLIMIT_RSS].Cur))
	for len(f) < cap(f) {
		f = append(f, 0)
	}
	return fmt.Sprintln(f...)
}
