package vfs

import (
	"crypto/rand"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What programs and their run-time libraries ask the kernel and the machine at start: jemalloc, OpenMP,
// hwloc, Go and Rust run-times. Figures are the guest's; a knob that the guest cannot turn shows the value
// that has the effect it sees.

// addSys fills /sys.
func (f *FS) addSys(sys *node) {
	n := f.opt.CPUs
	every := func(int) bool { return true }
	all := CPUList(n, every)
	cpu := sys.dir("devices/system/cpu")
	for _, name := range []string{"online", "possible", "present"} {
		cpu.add(name, fixedText(all+"\n"))
	}
	cpu.add("offline", fixedText("\n"))
	cpu.add("isolated", fixedText("\n"))
	cpu.add("kernel_max", fixedText(strconv.Itoa(n-1)+"\n"))
	// One package, no threads beside a core: what cpuinfo says, too.
	mask := CPUMask(n, every)
	for i := range n {
		own, number := CPUMask(n, func(j int) bool { return i == j }), strconv.Itoa(i)
		topology := cpu.dir("cpu" + number + "/topology")
		for name, value := range map[string]string{
			"core_id": number, "physical_package_id": "0", "die_id": "0", "thread_siblings": own, "thread_siblings_list": number,
			"core_cpus": own, "core_cpus_list": number, "core_siblings": mask, "core_siblings_list": all, "package_cpus": mask, "package_cpus_list": all,
		} {
			topology.add(name, fixedText(value+"\n"))
		}
	}
	nodes := sys.dir("devices/system/node")
	for _, name := range []string{"online", "possible", "has_cpu", "has_memory", "has_normal_memory"} {
		nodes.add(name, fixedText("0\n"))
	}
	nodes.dir("node0").add("cpulist", fixedText(all+"\n"))
	nodes.dir("node0").add("cpumap", fixedText(mask+"\n"))
	// The VMM chooses the page size: advice about it is accepted and has no effect. 2 MiB is what a page
	// middle directory maps on x86-64.
	huge := sys.dir("kernel/mm/transparent_hugepage")
	huge.add("enabled", fixedText("always madvise [never]\n"))
	huge.add("defrag", fixedText("always defer defer+madvise madvise [never]\n"))
	huge.add("hpage_pmd_size", fixedText("2097152\n"))
}

// CPUList is those of the processors 0 to n-1 that has says, in the kernel's list format (bitmap_print_to_pagebuf): "0-2,5".
func CPUList(n int, has func(int) bool) string {
	var list []string
	for i := 0; i < n; i++ {
		first := i
		for i < n && has(i) {
			i++
		}
		switch i - first {
		case 0:
		case 1:
			list = append(list, strconv.Itoa(first))
		default:
			list = append(list, fmt.Sprintf("%d-%d", first, i-1))
		}
	}
	return strings.Join(list, ",")
}

// CPUMask is the same as a mask in its hexadecimal format: words of 32 bits, the highest first, the first one as short
// as its bits allow.
func CPUMask(n int, has func(int) bool) string {
	var words []string
	for from := 0; from < n; from += 32 {
		var w uint32
		for i := from; i < min(n, from+32); i++ {
			if has(i) {
				w |= 1 << (i - from)
			}
		}
		digits := (min(n-from, 32) + 3) / 4
		words = append(words, fmt.Sprintf("%0*x", digits, w))
	}
	slices.Reverse(words)
	return strings.Join(words, ",")
}

// addSysctl fills /proc/sys. Most are defaults of Documentation/admin-guide/sysctl.
func (f *FS) addSysctl(sys *node) {
	o := &f.opt
	for name, value := range map[string]string{
		"kernel/osrelease": o.Release, "kernel/hostname": o.Hostname, "kernel/ostype": "Linux", "kernel/version": o.Version,
		"kernel/domainname": "(none)", "kernel/pid_max": "4194304", "kernel/threads-max": "65536", "kernel/cap_last_cap": "40",
		"kernel/ngroups_max": "65536", "kernel/randomize_va_space": "0", "kernel/perf_event_paranoid": "4", "kernel/yama/ptrace_scope": "3",
		"kernel/random/boot_id": newBootID(), "kernel/random/entropy_avail": "256",
		"vm/overcommit_memory": "0", "vm/overcommit_ratio": "50", "vm/max_map_count": "65530", "vm/mmap_min_addr": "65536", "vm/nr_hugepages": "0",
		"fs/file-max": "9223372036854775807", "fs/nr_open": "1048576", "fs/pipe-max-size": "1048576",
	} {
		dir, base := sys, name
		if i := strings.LastIndexByte(name, '/'); i >= 0 {
			dir, base = sys.dir(name[:i]), name[i+1:]
		}
		dir.add(base, fixedText(value+"\n"))
	}
	// Of the host, whose network and scheduler the guest shares; left out where the host has none. Read when the guest reads
	// them, not before: a mere read of sched_rt_* has Linux 6.18 rebuild the scheduling domains of all CPUs (sched_rt_handler
	// in kernel/sched/rt.c; seen by perf), and every static glibc program comes by here on its way to /proc/self/exe.
	for _, name := range []string{"net/core/somaxconn", "net/ipv4/ip_local_port_range", "kernel/sched_rt_runtime_us", "kernel/sched_rt_period_us"} {
		host := "/proc/sys/" + name
		if unix.Access(host, unix.R_OK) == nil {
			i := strings.LastIndexByte(name, '/')
			sys.dir(name[:i]).add(name[i+1:], &node{kind: nodeFile, mode: 0o444, content: func() ([]byte, unix.Errno) { return hostFile(host) }})
		}
	}
}

// hostFile is what a file of the host's holds now.
func hostFile(name string) ([]byte, unix.Errno) {
	b, err := os.ReadFile(name)
	return b, errno(err)
}

// Thread is a thread of the guest, for /proc/self/task.
type Thread struct {
	ID   int
	Name string // at most 15 bytes: comm
}

// threads are the guest's, sorted; one that is the process when nobody says.
func (f *FS) threads() []Thread {
	if f.opt.Threads == nil {
		return []Thread{{f.opt.PID, f.programName()}}
	}
	list := slices.Clone(f.opt.Threads())
	slices.SortFunc(list, func(a, b Thread) int { return a.ID - b.ID })
	return list
}

func (f *FS) taskNames() (names []string) {
	for _, t := range f.threads() {
		names = append(names, strconv.Itoa(t.ID))
	}
	return names
}

// taskEntry is the directory of a thread: the files of the process, and some of its own. Threads come
// and go, so the directory is made when it is looked up.
func (f *FS) taskEntry(name string) *node {
	for _, t := range f.threads() {
		if strconv.Itoa(t.ID) != name {
			continue
		}
		dir := &node{kind: nodeDir, mode: 0o555, ino: 2<<32 + uint64(t.ID)<<8}
		for i, base := range f.self.list() {
			if base == "task" {
				continue
			}
			alias := *f.self.children[base]
			switch own := f.opt.Texts[base]; {
			case base == "comm":
				alias = *f.comm(t.ID)
			case own != nil:
				alias = *ofThread(own, t.ID)
			}
			alias.ino = dir.ino + uint64(i) + 1
			dir.add(base, &alias)
		}
		return dir
	}
	return nil
}

// ofThread is a file whose content depends on the thread; 0: on the process.
func ofThread(content func(int) (string, unix.Errno), thread int) *node {
	return &node{kind: nodeFile, mode: 0o444, content: func() ([]byte, unix.Errno) {
		s, e := content(thread)
		return []byte(s), e
	}}
}

// addTexts fills /proc/PID with the files that threads have of their own.
func (f *FS) addTexts(self *node) {
	o, name := &f.opt, f.programName()
	self.add("status", text(func() string {
		uid, gid := f.uid, unix.Getegid()
		return fmt.Sprintf("Name:\t%s\nState:\tR (running)\nTgid:\t%[2]d\nPid:\t%[2]d\nPPid:\t0\nTracerPid:\t0\n"+
			"Uid:\t%[3]d\t%[3]d\t%[3]d\t%[3]d\nGid:\t%[4]d\t%[4]d\t%[4]d\t%[4]d\nThreads:\t1\n", name, o.PID, uid, gid)
	}))
	self.add("stat", text(func() string {
		// proc_pid_stat(5) has 52 fields: six are said here, the rest is 0.
		return fmt.Sprintf("%d (%s) R 0 %d %d", o.PID, name, o.PID, o.PID) + strings.Repeat(" 0", 46) + "\n"
	}))
	for name, content := range o.Texts {
		self.add(name, ofThread(content, 0))
	}
}

// comm is the file with the name of a thread; 0 is the one that the process began with.
func (f *FS) comm(thread int) *node {
	n := &node{kind: nodeFile, mode: 0o444, content: func() ([]byte, unix.Errno) {
		for _, t := range f.threads() {
			if t.ID == thread || thread == 0 && t.ID == f.opt.PID {
				return []byte(t.Name + "\n"), 0
			}
		}
		if thread == 0 {
			return []byte(f.programName() + "\n"), 0
		}
		return nil, unix.ESRCH
	}}
	if rename := f.opt.Rename; rename != nil {
		n.mode = 0o644
		n.write = func(name []byte) unix.Errno { return rename(thread, name) }
	}
	return n
}

// mountInfo is /proc/self/mountinfo (proc_pid_mountinfo(5)). Mounts are numbered in their order, and all
// but the root hang below the root.
func (f *FS) mountInfo() string {
	const first, outside = 20, 1
	lines := strings.Split(strings.TrimSuffix(f.mountTable(), "\n"), "\n")
	root := first + slices.IndexFunc(lines, func(l string) bool { return strings.Fields(l)[1] == "/" })
	var b strings.Builder
	for i, line := range lines {
		w := strings.Fields(line) // source, mount point, type, options, 0, 0
		parent := root
		if first+i == root {
			parent = outside
		}
		mode, _, _ := strings.Cut(w[3], ",")
		fmt.Fprintf(&b, "%d %d 0:%d / %s %s - %s %s %s\n", first+i, parent, first+i, w[1], w[3], w[2], w[0], mode)
	}
	return b.String()
}

// newBootID is the boot_id of random(4): the guest was started now, whatever the host's says.
func newBootID() string {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil { // never returns an error (crypto/rand)
		return "00000000-0000-4000-8000-000000000000"
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80 // RFC 9562, version 4
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
