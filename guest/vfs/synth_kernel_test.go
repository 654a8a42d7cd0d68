package vfs

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSys(t *testing.T) {
	f := openFS(t, Options{CPUs: 34})
	for name, want := range map[string]string{
		"online": "0-33", "offline": "", "kernel_max": "33", "cpu0/topology/core_id": "0", "cpu33/topology/thread_siblings_list": "33",
		"cpu33/topology/thread_siblings": "2,00000000", "cpu1/topology/core_siblings": "3,ffffffff", "cpu1/topology/core_siblings_list": "0-33",
	} {
		wantText(t, f, "/sys/devices/system/cpu/"+name, want+"\n")
	}
	wantText(t, f, "/sys/devices/system/node/node0/cpulist", "0-33\n")
	wantText(t, f, "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "2097152\n")
	if got := list(t, f, "/sys/devices/system/cpu", 4096); len(got) != 34+6+2 {
		t.Errorf("%d entries: %v", len(got), got)
	}
}

// TestHostSysctl finds the host's values where the guest reads them, and the host's files alone until then: to read
// sched_rt_runtime_us has the kernel rebuild the scheduling domains of all CPUs.
func TestHostSysctl(t *testing.T) {
	const name = "/proc/sys/kernel/sched_rt_runtime_us"
	keep, err := os.Open(name) // so that its inode is the one that is watched
	if err != nil {
		t.Fatal(err)
	}
	defer keep.Close()
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, name, unix.IN_OPEN|unix.IN_ACCESS); err != nil {
		t.Fatal(err)
	}
	opened := func() bool {
		n, err := unix.Read(watch, make([]byte, 4096))
		if err != nil && err != unix.EAGAIN {
			t.Fatal(err)
		}
		return n > 0
	}
	f := openFS(t, Options{Exe: "/prog"})
	if target, e := f.Readlink(nil, "/proc/self/exe"); e != 0 || target != "/prog" {
		t.Fatalf("/proc/self/exe leads to %q, %v", target, e)
	}
	if opened() {
		t.Errorf("%s was opened though nobody has read it", name)
	}
	for _, name := range []string{name, "/proc/sys/net/core/somaxconn"} {
		host, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		opened() // that was this test
		wantText(t, f, name, string(host))
	}
	if _, e := slurp(f, nil, name); e != 0 || !opened() {
		t.Errorf("%s was read (%v) and the host's file was not: the watch sees nothing", name, e)
	}
}

// TestSysForms compares with the host what does not depend on how many processors there are.
func TestSysForms(t *testing.T) {
	f := openFS(t, Options{})
	for _, name := range []string{"/proc/sys/kernel/ostype", "/proc/sys/kernel/cap_last_cap", "/proc/sys/kernel/ngroups_max", "/proc/sys/kernel/osrelease"} {
		host, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		wantText(t, f, name, string(host))
	}
	for _, name := range []string{"/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max", "/proc/sys/vm/max_map_count", "/proc/sys/vm/overcommit_memory", "/proc/sys/kernel/random/boot_id", "/proc/sys/fs/nr_open"} {
		host, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		mine, e := slurp(f, nil, name)
		if e != 0 || len(strings.Fields(mine)) != len(strings.Fields(string(host))) || !strings.HasSuffix(mine, "\n") {
			t.Errorf("%s: %q, %v; the host: %q", name, mine, e, host)
		}
	}
	// proc_pid_mountinfo(5): six fields, then optional ones up to a hyphen, then three.
	for _, mounts := range [][]Mount{nil, {{Host: t.TempDir(), Guest: "/", Writable: true}, {Host: t.TempDir(), Guest: "/a b"}}} {
		f, err := New(mounts, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		text, e := slurp(f, nil, "/proc/self/mountinfo")
		wantErrno(t, "mountinfo", e, 0)
		ids, root := map[string]bool{}, ""
		for line := range strings.Lines(text) {
			w := strings.Fields(line)
			if len(w) != 10 || w[6] != "-" || ids[w[0]] {
				t.Errorf("mountinfo: %q", line)
			}
			ids[w[0]] = true
			if w[4] == "/" {
				root = w[0]
			}
		}
		for line := range strings.Lines(text) {
			if w := strings.Fields(line); w[1] != root && w[4] != "/" {
				t.Errorf("mountinfo: %q does not hang below %q", line, root)
			}
		}
	}
}

func TestThreads(t *testing.T) {
	threads := []Thread{{42, "main"}, {50, "helper"}}
	f := openFS(t, Options{Exe: "/bin/prog", PID: 42, Threads: func() []Thread { return threads }, Maps: func() string { return "maps\n" }})
	wantText(t, f, "/proc/self/comm", "main\n")
	wantText(t, f, "/proc/self/task/50/comm", "helper\n")
	wantText(t, f, "/proc/42/task/42/maps", "maps\n")
	wantText(t, f, "/proc/thread-self/comm", "main\n")
	if got := list(t, f, "/proc/self/task", 4096); len(got) != 4 || got["50"].kind != unix.DT_DIR {
		t.Errorf("task lists %v", got)
	}
	var a, b unix.Stat_t
	wantErrno(t, "stat", f.Stat(nil, "/proc/self/task/50/maps", true, &a), 0)
	wantErrno(t, "stat", f.Stat(nil, "/proc/self/task/42/maps", true, &b), 0)
	if a.Ino == b.Ino {
		t.Errorf("two files with one inode number %d", a.Ino)
	}
	threads = threads[:1]
	wantErrno(t, "a thread that is gone", f.Stat(nil, "/proc/self/task/50/comm", true, &a), unix.ENOENT)
}
