package vfs

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDev(t *testing.T) {
	f := openFS(t, Options{})
	read := func(name string) []byte {
		file, e := f.Open(nil, name, unix.O_RDWR, 0)
		if e != 0 {
			t.Fatalf("%s: %v", name, e)
		}
		defer file.Close()
		if file.Synthetic() {
			t.Errorf("%s has no host descriptor", name)
		}
		buf := make([]byte, 32)
		n, e := file.Read(buf)
		if e != 0 {
			t.Errorf("%s: %v", name, e)
		}
		return buf[:n]
	}
	if n := len(read("/dev/null")); n != 0 {
		t.Errorf("null gave %d bytes", n)
	}
	for _, name := range []string{"/dev/zero", "/dev/full"} {
		if b := read(name); !bytes.Equal(b, make([]byte, 32)) {
			t.Errorf("%s: %x", name, b)
		}
	}
	if bytes.Equal(read("/dev/urandom"), read("/dev/urandom")) || len(read("/dev/random")) == 0 {
		t.Error("random is not")
	}
	full, e := f.Open(nil, "/dev/full", unix.O_WRONLY, 0)
	wantErrno(t, "open full", e, 0)
	_, e = full.Write([]byte("x"))
	wantErrno(t, "write full", e, unix.ENOSPC)
	wantErrno(t, "close", full.Close(), 0)
	_, e = f.Open(nil, "/dev/ptmx", unix.O_RDWR, 0)
	wantErrno(t, "ptmx", e, unix.ENOENT)
	null, e := f.Open(nil, "/dev/null", unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC, 0o666)
	wantErrno(t, "shell redirection", e, 0)
	wantErrno(t, "close", null.Close(), 0)
	_, e = f.Open(nil, "/dev/null/", unix.O_RDWR, 0)
	wantErrno(t, "slash", e, unix.ENOTDIR)
	var a, b unix.Stat_t
	wantErrno(t, "stat", f.Stat(nil, "/dev/null", true, &a), 0)
	if err := unix.Stat("/dev/null", &b); err != nil {
		t.Fatal(err)
	}
	if a.Rdev != b.Rdev || a.Mode != b.Mode {
		t.Errorf("null: %o %#x, host %o %#x", a.Mode, a.Rdev, b.Mode, b.Rdev)
	}
}

func TestProc(t *testing.T) {
	var files = map[int]*File{}
	f := openFS(t, Options{
		Exe: "/bin/a-program-with-a-long-name", Args: []string{"prog", "", "x y"}, Env: []string{"A=b"}, PID: 42, CPUs: 3, Memory: 64 << 20,
		Hostname: "guest", Release: "6.1.0", Version: "#1", Maps: func() string { return "maps of the guest\n" },
		Auxv: func() []byte { return []byte{1, 2, 3} },
		FDs: func() []int {
			var out []int
			for fd := range files {
				out = append(out, fd)
			}
			return out
		},
		File: func(fd int) *File { return files[fd] },
	})
	for name, want := range map[string]string{
		"/proc/self/cmdline": "prog\x00\x00x y\x00", "/proc/42/environ": "A=b\x00", "/proc/self/auxv": "\x01\x02\x03",
		"/proc/self/maps": "maps of the guest\n", "/proc/thread-self/maps": "maps of the guest\n", "/proc/self/comm": "a-program-with-\n",
		"/proc/sys/kernel/osrelease": "6.1.0\n", "/proc/sys/kernel/hostname": "guest\n", "/sys/devices/system/cpu/online": "0-2\n",
		"/sys/devices/system/cpu/possible": "0-2\n", "/sys/devices/system/cpu/present": "0-2\n", "/proc/version": "Linux version 6.1.0 (cloister) #1\n",
		"/proc/mounts": "cloister / tmpfs ro,nosuid,nodev 0 0\ncloister /dev tmpfs ro,nosuid,nodev 0 0\ncloister /proc proc ro,nosuid,nodev 0 0\n",
	} {
		wantText(t, f, name, want)
	}
	for name, has := range map[string]string{
		"/proc/meminfo": "MemTotal:          65536 kB\n", "/proc/cpuinfo": "processor\t: 2\n", "/proc/stat": "cpu2 0", "/proc/uptime": " 0.00\n",
		"/proc/loadavg": "0.00 0.00 0.00 1/1 42\n", "/proc/self/status": "Pid:\t42\n", "/proc/self/stat": "42 (a-program-with-) R 0 42 42 0",
	} {
		got, e := slurp(f, nil, name)
		if e != 0 || !strings.Contains(got, has) {
			t.Errorf("%s: %v, no %q in %q", name, e, has, got)
		}
	}
	if got, _ := slurp(f, nil, "/proc/self/stat"); len(strings.Fields(got)) != 52 {
		t.Errorf("stat has %d fields", len(strings.Fields(got)))
	}
	for name, want := range map[string]string{
		"/proc/self": "42", "/proc/self/exe": "/bin/a-program-with-a-long-name", "/proc/self/root": "/", "/proc/self/cwd": "/", "/dev/stdin": "/proc/self/fd/0",
	} {
		got, e := f.Readlink(nil, name)
		if e != 0 || got != want {
			t.Errorf("readlink %s: %q, %v", name, got, e)
		}
	}
	for _, mine := range []string{strconv.Itoa(os.Getpid()), "1", "kcore", "sysrq-trigger", "kmsg", "self/mem", "self/ns", "self/environ/x"} {
		var st unix.Stat_t
		if e := f.Stat(nil, "/proc/"+mine, true, &st); e != unix.ENOENT && e != unix.ENOTDIR {
			t.Errorf("/proc/%s: %v", mine, e)
		}
	}
	for _, e := range []unix.Errno{
		func() unix.Errno { _, e := f.Open(nil, "/proc/version", unix.O_RDWR, 0); return e }(),
		f.Access(nil, "/proc/version", unix.W_OK, 0), f.Access(nil, "/proc/version", unix.X_OK, 0),
	} {
		wantErrno(t, "write to synthetic", e, unix.EACCES)
	}

	// Positions in synthetic files and directories.
	file, e := f.Open(nil, "/proc/self/cmdline", unix.O_RDONLY, 0)
	wantErrno(t, "open", e, 0)
	files[7] = file
	defer file.Close()
	buf := make([]byte, 3)
	for _, want := range []string{"pro", "g\x00\x00", "x y", "\x00", ""} {
		if n, e := file.Read(buf); e != 0 || string(buf[:n]) != want {
			t.Errorf("read %q, %v; want %q", buf[:n], e, want)
		}
	}
	if off, e := file.Seek(-2, unix.SEEK_END); e != 0 || off != 8 {
		t.Errorf("seek: %d, %v", off, e)
	}
	if n, e := file.Pread(buf, 1); e != 0 || string(buf[:n]) != "rog" {
		t.Errorf("pread %q %v", buf[:n], e)
	}
	_, e = file.Seek(-1, unix.SEEK_SET)
	wantErrno(t, "seek before the start", e, unix.EINVAL)
	_, e = file.Getdents(buf)
	wantErrno(t, "getdents of a file", e, unix.ENOTDIR)

	// Descriptors of the guest.
	if got := list(t, f, "/proc/self/fd", 100); len(got) != 3 || got["7"].kind != unix.DT_LNK {
		t.Errorf("fd lists %v", got)
	}
	if got, e := f.Readlink(nil, "/dev/fd/7"); e != 0 || got != "/proc/42/cmdline" {
		t.Errorf("fd 7: %q, %v", got, e)
	}
	wantText(t, f, "/proc/self/fd/7", "prog\x00\x00x y\x00")
	for _, name := range []string{"8", "07", "-1", "x", "99999999999999999999"} {
		if _, e := f.Readlink(nil, "/proc/self/fd/"+name); e != unix.ENOENT {
			t.Errorf("fd %s: %v", name, e)
		}
	}
	d, e := f.Open(nil, "/proc", unix.O_RDONLY, 0)
	wantErrno(t, "open", e, 0)
	defer d.Close()
	files[3] = d
	wantText(t, f, "/dev/fd/3/self/comm", "a-program-with-\n")
	if _, e := d.Getdents(make([]byte, 8)); e != unix.EINVAL {
		t.Errorf("short buffer: %v", e)
	}
	_, e = d.Read(buf)
	wantErrno(t, "read of a directory", e, unix.EISDIR)
}

// TestExe: the program can read itself even if no mount holds it, and only read.
func TestExe(t *testing.T) {
	name := t.TempDir() + "/prog"
	write(t, name, "\x7fELF")
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	f := openFS(t, Options{Exe: "/prog", ExeFD: fd})
	wantText(t, f, "/proc/self/exe", "\x7fELF")
	for what, e := range map[string]unix.Errno{
		"chmod": f.Chmod(nil, "/proc/self/exe", 0o777, 0), "truncate": f.Truncate(nil, "/proc/self/exe", 0),
	} {
		wantErrno(t, what, e, unix.EROFS)
	}
	for _, flags := range []int{unix.O_WRONLY, unix.O_RDWR, unix.O_TRUNC} {
		if _, e := f.Open(nil, "/proc/self/exe", flags, 0); e != unix.EACCES {
			t.Errorf("open %#x: %v", flags, e)
		}
	}
	var st unix.Stat_t
	if e := f.Stat(nil, "/proc/self/exe", true, &st); e != 0 || st.Size != 4 {
		t.Errorf("stat: %v, %d bytes", e, st.Size)
	}
}

// BenchmarkOpen is the price of an open and close against the host's, in the same run.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	write(b, dir+"/one/two/three/four/file", "x")
	f := openFS(b, Options{}, Mount{Host: dir, Guest: "/m"})
	b.Run("host", func(b *testing.B) {
		for b.Loop() {
			fd, err := unix.Open(dir+"/one/two/three/four/file", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				b.Fatal(err)
			}
			unix.Close(fd)
		}
	})
	for _, name := range []string{"/m/one/two/three/four/file", "/m/one/two/../two/three/four/file"} {
		b.Run(fmt.Sprintf("guest%d", strings.Count(name, "..")), func(b *testing.B) {
			for b.Loop() {
				file, e := f.Open(nil, name, unix.O_RDONLY, 0)
				if e != 0 {
					b.Fatal(e)
				}
				file.Close()
			}
		})
	}
}

// A shared file is the host's own memory under a name of the guest's, and its state is one by name and by descriptor.
func TestShared(t *testing.T) {
	fd, err := unix.MemfdCreate("shared", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, 8192); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		t.Fatal(err)
	}
	f := openFS(t, Options{Shared: map[string]int{"cloister/ring/out": fd, "top": fd}})
	for _, name := range []string{"/dev/cloister/ring/out", "/dev/top"} {
		file, e := f.Open(nil, name, unix.O_RDWR, 0)
		wantErrno(t, "open", e, 0)
		if _, e := file.Write([]byte("hello")); e != 0 {
			t.Fatal(e)
		}
		var b [5]byte
		if _, err := unix.Pread(fd, b[:], 0); err != nil || string(b[:]) != "hello" {
			t.Errorf("%s: the host reads %q, %v", name, b, err)
		}
		var byName, open unix.Stat_t
		wantErrno(t, "stat", f.Stat(nil, name, true, &byName), 0)
		wantErrno(t, "fstat", file.Stat(&open), 0)
		if byName.Ino != open.Ino || byName.Size != 8192 || byName.Mode != open.Mode {
			t.Errorf("%s: %+v by name, %+v by descriptor", name, byName, open)
		}
		wantErrno(t, "truncate", file.Truncate(0), unix.EPERM)
		wantErrno(t, "chmod", file.Chmod(0), unix.EROFS)
		_, e = f.Open(nil, name, unix.O_RDWR|unix.O_TRUNC, 0)
		wantErrno(t, "O_TRUNC", e, unix.EPERM)
		_, e = f.Open(nil, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0)
		wantErrno(t, "O_EXCL", e, unix.EEXIST)
		handle, e := f.Open(nil, name, unix.O_PATH, 0)
		wantErrno(t, "O_PATH", e, 0)
		wantErrno(t, "close", handle.Close(), 0)
		wantErrno(t, "close", file.Close(), 0)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
		t.Errorf("the descriptor was borrowed, and is closed: %v", err)
	}
	_, e := f.Open(nil, "/dev/cloister/ring/other", unix.O_RDWR, 0)
	wantErrno(t, "another name", e, unix.ENOENT)
	dir, e := f.Open(nil, "/dev/cloister/ring", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	wantErrno(t, "the directory", e, 0)
	wantErrno(t, "close", dir.Close(), 0)
}
