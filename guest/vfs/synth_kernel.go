package vfs

import (
	"crypto/rand"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// What programs and their run-time libraries ask the kernel and the machine at start: jemalloc, OpenMP,
// hwloc, Go and Rust run-times. Figures are the guest's; a knob that the guest cannot turn shows the value
// that has the effect it sees.

// addSys fills /sys.
func (f *FS) addSys(sys *node) {
	n := f.opt.CPUs
	all := cpuList(n)
	cpu := sys.dir("devices/system/cpu")
	for _, name := range []string{"online", "possible", "present"} {
		cpu.add(name, fixedText(all+"\n"))
	}
	cpu.add("offline", fixedText("\n"))
	cpu.add("isolated", fixedText("\n"))
	cpu.add("kernel_max", fixedText(strconv.Itoa(n-1)+"\n"))
	// One package, no threads beside a core: what cpuinfo says, too.
	mask := cpuMask(n, func(int) bool { return true })
	for i := range n {
		own, number := cpuMask(n, func(j int) bool { return i == j }), strconv.Itoa(i)
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

// cpuList is 0-(n-1) in the kernel's list format (bitmap_print_to_pagebuf).
func cpuList(n int) string {
	if n == 1 {
		return "0"
	}
	return "0-" + strconv.Itoa(n-1)
}

// cpuMask is a mask in its hexadecimal format: words of 32 bits, the highest first, the first one as short
// as its bits allow.
func cpuMask(n int, has func(int) bool) string {
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
	// Of the host, whose network and scheduler the guest shares; left out where the host has none.
	for _, name := range []string{"net/core/somaxconn", "net/ipv4/ip_local_port_range", "kernel/sched_rt_runtime_us", "kernel/sched_rt_period_us"} {
		if value, err := os.ReadFile("/proc/sys/" + name); err == nil {
			i := strings.LastIndexByte(name, '/')
			sys.dir(name[:i]).add(name[i+1:], fixedText(string(value)))
		}
	}
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

// taskEntry is the directory of a thread: the files of the process, and a name of its own. Threads come
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
			alias.ino = dir.ino + uint64(i) + 1
			if base == "comm" {
				alias.content = func() []byte { return []byte(t.Name + "\n") }
			}
			dir.add(base, &alias)
		}
		return dir
	}
	return nil
}

// comm is the name of the thread that the process began with.
func (f *FS) comm() string {
	for _, t := range f.threads() {
		if t.ID == f.opt.PID {
			return t.Name + "\n"
		}
	}
	return f.programName() + "\n"
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
