package vfs

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Options is what the synthetic part of the namespace shows. Every field may be left zero. The functions
// are called by the goroutine that reads or writes a file, at each read from its beginning, or that looks into a
// directory, and must not call the FS.
type Options struct {
	Exe     string   // guest path of the program: /proc/self/exe
	ExeFD   int      // host descriptor of the program, borrowed; if > 0, opening /proc/self/exe reads it even outside every mount
	Args    []string // /proc/self/cmdline
	Env     []string // /proc/self/environ, as NAME=value
	Cwd     string   // guest path of the first working directory; "/" if it is no directory of the guest
	PID     int      // name of /proc/PID, to which /proc/self leads; 0 means 1
	CPUs    int      // processors that the guest sees; 0 means 1
	Memory  uint64   // bytes of memory that the guest sees: /proc/meminfo
	Handles int      // most O_PATH handles held for positions; 0 means DefaultHandles

	// Shared are files below /dev, by their path from there, that the guest may open for reading and writing: memory files that
	// are sealed against shrinking. The descriptors are borrowed until Close. Nobody changes their mode or owner (EROFS).
	Shared map[string]int

	Hostname string // /proc/sys/kernel/hostname; empty means "cloister"
	Release  string // /proc/sys/kernel/osrelease; empty means the host's
	Version  string // /proc/sys/kernel/version; empty means the host's

	Maps       func() string // /proc/self/maps, lines as in proc(5)
	Statm      func() string // /proc/self/statm, in pages; nil gives zeros
	Limits     func() string // /proc/self/limits; nil gives an empty file
	Auxv       func() []byte // /proc/self/auxv
	FreeMemory func() uint64 // bytes, for /proc/meminfo; nil means Memory
	Getcwd     func() string // /proc/self/cwd; nil means Cwd

	Threads func() []Thread // /proc/self/task; nil means one, with the program's name
	Self    func() int      // number of the thread that asks, for /proc/thread-self; nil means PID
	// Texts are the files, by their names, in which threads differ: each fills /proc/self/NAME (thread 0) and
	// /proc/self/task/ID/NAME. A thread that is gone is ESRCH. Without "status" and "stat" there are minimal ones.
	Texts map[string]func(thread int) (string, unix.Errno)
	// Rename gives a thread the name that was written to its comm, as it was written; 0 is the process, whose first thread
	// is meant. nil: comm cannot be written.
	Rename func(thread int, name []byte) unix.Errno

	// FDs lists the guest's open descriptors and File returns the one called fd, nil if it is closed:
	// /proc/self/fd, /dev/fd, /dev/stdin and its companions. Both or none.
	FDs  func() []int
	File func(fd int) *File
}

func (o *Options) fill() {
	if o.PID <= 0 {
		o.PID = 1
	}
	if o.CPUs <= 0 {
		o.CPUs = 1
	}
	if o.Hostname == "" {
		o.Hostname = "cloister"
	}
	if !strings.HasPrefix(o.Cwd, "/") {
		o.Cwd = "/"
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil { // uname(2) fails for a bad address only
		if o.Release == "" {
			o.Release = unix.ByteSliceToString(u.Release[:])
		}
		if o.Version == "" {
			o.Version = unix.ByteSliceToString(u.Version[:])
		}
	}
}

func text(content func() string) *node {
	return &node{kind: nodeFile, mode: 0o444, content: func() ([]byte, unix.Errno) { return []byte(content()), 0 }}
}

func fixedText(s string) *node { return text(func() string { return s }) }

func linkTo(target string) *node {
	return &node{kind: nodeLink, link: func() string { return target }}
}

// synthetic builds the tree that every guest has, before anything is mounted.
func (f *FS) synthetic() *node {
	root := &node{kind: nodeDir, mode: 0o755}
	for _, d := range []struct {
		name           string
		mode           uint32
		opaque, sealed bool
		fill           func(*node)
	}{{"dev", 0o755, true, false, f.addDev}, {"proc", 0o555, true, true, f.addProc}, {"sys", 0o555, true, false, f.addSys}} {
		root.add(d.name, &node{kind: nodeDir, mode: d.mode, opaque: d.opaque, sealed: d.sealed, late: &late{fill: d.fill}})
	}
	return root
}

// addDev fills /dev. The devices are the host's own, opened only if they are what their name says
// (numbers: Documentation/admin-guide/devices.txt). There is no ptmx: a guest has no business on the
// host's pseudo-terminals.
func (f *FS) addDev(dev *node) {
	for name, number := range map[string][2]uint32{
		"null": {1, 3}, "zero": {1, 5}, "full": {1, 7}, "random": {1, 8}, "urandom": {1, 9}, "tty": {5, 0},
	} {
		dev.add(name, &node{kind: nodeDevice, mode: 0o666, host: "/dev/" + name, rdev: unix.Mkdev(number[0], number[1])})
	}
	for name, fd := range f.opt.Shared {
		dir, base := path.Split(name)
		at := dev
		if dir != "" {
			at = dev.dir(path.Clean(dir))
		}
		at.add(base, &node{kind: nodeShared, mode: 0o600, fd: fd})
	}
	dev.add("fd", linkTo("/proc/self/fd"))
	for i, name := range []string{"stdin", "stdout", "stderr"} {
		dev.add(name, linkTo("/proc/self/fd/"+strconv.Itoa(i)))
	}
}

func (f *FS) addProc(proc *node) {
	o := &f.opt
	pid := strconv.Itoa(o.PID)
	proc.add("self", linkTo(pid))
	proc.add("thread-self", &node{kind: nodeLink, link: func() string {
		if o.Self == nil {
			return pid + "/task/" + pid
		}
		return pid + "/task/" + strconv.Itoa(o.Self())
	}})
	f.self = proc.dir(pid)
	f.addSelf(f.self)
	f.self.add("task", &node{kind: nodeDir, mode: 0o555, names: f.taskNames, entry: f.taskEntry})
	proc.add("mounts", linkTo("self/mounts"))
	proc.add("cpuinfo", text(f.cpuinfo))
	proc.add("meminfo", text(f.meminfo))
	proc.add("stat", text(f.kernelStat))
	proc.add("uptime", text(func() string {
		up := time.Since(f.started).Seconds()
		return fmt.Sprintf("%.2f 0.00\n", up)
	}))
	proc.add("loadavg", text(func() string { return fmt.Sprintf("0.00 0.00 0.00 1/1 %d\n", o.PID) }))
	proc.add("version", text(func() string { return fmt.Sprintf("Linux version %s (cloister) %s\n", o.Release, o.Version) }))
	proc.add("filesystems", fixedText("nodev\tproc\nnodev\tsysfs\nnodev\ttmpfs\n"))
	f.addSysctl(proc.dir("sys"))
}

// addSelf fills /proc/PID from what the caller says of the program; nothing comes from the VMM's own.
func (f *FS) addSelf(self *node) {
	o := &f.opt
	exe := linkTo(o.Exe)
	if o.ExeFD > 0 {
		program := &File{fs: f, FD: o.ExeFD, Path: o.Exe, Flags: unix.O_RDONLY, borrowed: true}
		exe.file = func() *File { return program }
	}
	self.add("exe", exe)
	self.add("root", linkTo("/"))
	self.add("cwd", &node{kind: nodeLink, link: func() string {
		if o.Getcwd != nil {
			return o.Getcwd()
		}
		return f.cwd.Path()
	}})
	self.add("comm", f.comm(0))
	self.add("cmdline", fixedText(nulTerminated(o.Args)))
	environ := fixedText(nulTerminated(o.Env))
	environ.mode = 0o400
	self.add("environ", environ)
	auxv := &node{kind: nodeFile, mode: 0o400, content: func() ([]byte, unix.Errno) {
		if o.Auxv == nil {
			return nil, 0
		}
		return o.Auxv(), 0
	}}
	self.add("auxv", auxv)
	self.add("maps", text(func() string {
		if o.Maps == nil {
			return ""
		}
		return o.Maps()
	}))
	f.addTexts(self)
	self.add("statm", text(func() string {
		if o.Statm != nil {
			return o.Statm()
		}
		return "0 0 0 0 0 0 0\n"
	}))
	self.add("limits", text(func() string {
		if o.Limits != nil {
			return o.Limits()
		}
		return ""
	}))
	self.add("cgroup", fixedText("0::/\n")) // cgroups(7): the root of the only hierarchy
	self.add("mountinfo", text(f.mountInfo))
	self.add("mounts", text(f.mountTable))
	self.add("fd", &node{kind: nodeDir, mode: 0o500, names: f.fdNames, entry: f.fdEntry})
}

// programName is the name that execve(2) gives the first thread.
func (f *FS) programName() string {
	name := path.Base(f.opt.Exe)
	return name[:min(len(name), 15)] // TASK_COMM_LEN less its NUL
}

func nulTerminated(list []string) string {
	var b strings.Builder
	for _, s := range list {
		b.WriteString(s)
		b.WriteByte(0)
	}
	return b.String()
}

func (f *FS) fdNames() []string {
	if f.opt.FDs == nil {
		return nil
	}
	fds := slices.Clone(f.opt.FDs())
	slices.Sort(fds)
	names := make([]string, len(fds))
	for i, fd := range fds {
		names[i] = strconv.Itoa(fd)
	}
	return names
}

func (f *FS) fdEntry(name string) *node {
	fd, err := strconv.Atoi(name)
	if err != nil || fd < 0 || strconv.Itoa(fd) != name || f.opt.File == nil {
		return nil
	}
	file := f.opt.File(fd)
	if file == nil {
		return nil
	}
	return &node{
		kind: nodeLink, ino: 1<<32 + uint64(fd),
		link: func() string { return file.Path },
		file: func() *File { return file },
	}
}

// mountTable is /proc/self/mounts; spaces and their like are written as octal (proc_pid_mounts(5)).
func (f *FS) mountTable() string {
	escape := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`)
	var b strings.Builder
	line := func(kind, where, flag string) {
		fmt.Fprintf(&b, "cloister %s %s %s,nosuid,nodev 0 0\n", escape.Replace(where), kind, flag)
	}
	if f.ns.mount == nil {
		line("tmpfs", "/", "ro")
	}
	line("tmpfs", "/dev", "ro")
	line("proc", "/proc", "ro")
	for _, m := range f.mounts {
		flag := "ro"
		if m.writable {
			flag = "rw"
		}
		line("cloister", m.guest, flag)
	}
	return b.String()
}

// cpuinfo is the host's first processor, once for each of the guest's. The features are the host's: CPUID
// cannot hide them on every back end.
func (f *FS) cpuinfo() string {
	host, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		host = nil // then the numbers alone
	}
	block, _, _ := bytes.Cut(host, []byte("\n\n"))
	var b strings.Builder
	for i := range f.opt.CPUs {
		fmt.Fprintf(&b, "processor\t: %d\n", i)
		for line := range strings.SplitSeq(string(block), "\n") {
			key, _, _ := strings.Cut(line, ":")
			switch strings.TrimSpace(key) {
			case "processor", "":
			case "physical id":
				b.WriteString("physical id\t: 0\n")
			case "core id", "apicid", "initial apicid":
				fmt.Fprintf(&b, "%s: %d\n", key, i)
			case "siblings", "cpu cores":
				fmt.Fprintf(&b, "%s: %d\n", key, f.opt.CPUs)
			default:
				b.WriteString(line + "\n")
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func (f *FS) meminfo() string {
	free := f.opt.Memory
	if f.opt.FreeMemory != nil {
		free = min(free, f.opt.FreeMemory())
	}
	var b strings.Builder
	for _, l := range []struct {
		key   string
		bytes uint64
	}{
		{"MemTotal", f.opt.Memory}, {"MemFree", free}, {"MemAvailable", free}, {"Buffers", 0}, {"Cached", 0},
		{"SwapTotal", 0}, {"SwapFree", 0},
	} {
		fmt.Fprintf(&b, "%-15s %8d kB\n", l.key+":", l.bytes/1024)
	}
	return b.String()
}

func (f *FS) kernelStat() string {
	var b strings.Builder
	zeros := strings.Repeat(" 0", 10)
	b.WriteString("cpu " + zeros + "\n")
	for i := range f.opt.CPUs {
		fmt.Fprintf(&b, "cpu%d%s\n", i, zeros)
	}
	fmt.Fprintf(&b, "ctxt 0\nbtime %d\nprocesses 1\nprocs_running 1\nprocs_blocked 0\n", f.started.Unix())
	return b.String()
}

func protectedSymlinks() (bool, error) {
	b, err := os.ReadFile("/proc/sys/fs/protected_symlinks")
	if os.IsNotExist(err) {
		return true, nil // a host that hides it: be strict
	}
	if err != nil {
		return false, err
	}
	return strings.TrimSpace(string(b)) != "0", nil
}
