package linux

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cloister-vmm/cloister/guest/vfs"
	"github.com/cloister-vmm/cloister/internal/testenv"
)

// tracee is the memory of a real program, which runs on the host under PTRACE_SYSEMU: each of its
// system calls is served by a Kernel. Only calls on memory are made by the program itself, one
// instruction at a time.
type tracee struct {
	pid  int
	addr uint64 // of what Prefix gave out for writing
	out  []byte
}

const traceChunk = 1 << 20 // longer transfers are short here

func (m *tracee) move(nr uintptr, addr uint64, p []byte) int {
	if len(p) == 0 {
		return 0
	}
	local := unix.Iovec{Base: &p[0], Len: uint64(len(p))}
	var remote []unix.RemoteIovec // page by page: the host moves whole elements
	for done := 0; done < len(p); {
		n := min(len(p)-done, int(page-(addr+uint64(done))%page))
		remote = append(remote, unix.RemoteIovec{Base: uintptr(addr) + uintptr(done), Len: n})
		done += n
	}
	n, _, e := unix.Syscall6(nr, uintptr(m.pid), uintptr(unsafe.Pointer(&local)), 1,
		uintptr(unsafe.Pointer(&remote[0])), uintptr(len(remote)), 0)
	if e != 0 {
		return 0
	}
	return int(n)
}

func (m *tracee) flush() {
	m.move(unix.SYS_PROCESS_VM_WRITEV, m.addr, m.out)
	m.out = nil
}

func (m *tracee) Prefix(addr, n uint64, write bool) []byte {
	m.flush()
	p := make([]byte, min(n, traceChunk))
	p = p[:m.move(unix.SYS_PROCESS_VM_READV, addr, p)]
	if write {
		m.addr, m.out = addr, p
	}
	return p
}

func (m *tracee) exact(addr, n uint64, write bool) ([]byte, unix.Errno) {
	p := m.Prefix(addr, n, write)
	if uint64(len(p)) < n {
		return nil, unix.EFAULT
	}
	return p, 0
}

func (m *tracee) In(addr, n uint64) ([]byte, unix.Errno)  { return m.exact(addr, n, false) }
func (m *tracee) Out(addr, n uint64) ([]byte, unix.Errno) { return m.exact(addr, n, true) }
func (m *tracee) Map(_, _ uint64, _, _, _ int, _ int64) (uint64, unix.Errno) {
	return 0, unix.ENOMEM
}
func (m *tracee) Remap(_, _, _ uint64, _ int, _ uint64) (uint64, unix.Errno) { return 0, unix.ENOMEM }
func (m *tracee) Unmap(_, _ uint64) unix.Errno                               { return 0 }
func (m *tracee) Protect(_, _ uint64, _ int) unix.Errno                      { return 0 }
func (m *tracee) Brk(uint64) uint64                                          { return 0 }
func (m *tracee) Advise(_, _ uint64, _ int) unix.Errno                       { return 0 }
func (m *tracee) Sync(_, _ uint64, _ int) unix.Errno                         { return 0 }
func (m *tracee) Object(uint64) ([2]uint64, uint64, bool)                    { return [2]uint64{}, 0, false }
func (m *tracee) Mapped(addr, n uint64) bool                                 { return uint64(len(m.Prefix(addr, n, false))) == n }
func (m *tracee) Usage() (uint64, uint64)                                    { return 1 << 20, 1 << 30 }
func (m *tracee) Maps() string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", m.pid))
	if err != nil {
		return ""
	}
	return string(text)
}

// ownCalls are made by the program itself.
var ownCalls = map[uint64]bool{
	unix.SYS_MMAP: true, unix.SYS_MUNMAP: true, unix.SYS_MREMAP: true, unix.SYS_BRK: true,
	unix.SYS_MPROTECT: true, unix.SYS_MADVISE: true, unix.SYS_ARCH_PRCTL: true,
}

const ptraceSysemu = 31 // PTRACE_SYSEMU, arch/x86/include/uapi/asm/ptrace-abi.h

// trace runs argv in dir with its system calls served by a Kernel, and returns how it ended, as a
// shell's status.
func trace(argv []string, dir string, stdio [3]*os.File, warn func(string)) (int, error) {
	runtime.LockOSThread() // ptrace belongs to a thread
	defer runtime.UnlockOSThread()
	env := []string{"PATH=/usr/bin", "LC_ALL=C", "TZ=UTC"}
	// The child's own streams are not used: its reads and writes are ours.
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{Env: env, Sys: &syscall.SysProcAttr{Ptrace: true}})
	if err != nil {
		return 0, err
	}
	var ws unix.WaitStatus
	defer func() {
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _ = unix.Wait4(pid, &ws, 0, nil)
	}()
	if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil {
		return 0, err
	}
	mem := &tracee{pid: pid}
	var k *Kernel
	fs, err := vfs.New([]vfs.Mount{{Host: filepath.Dir(dir), Writable: true}, {Host: "/usr"}, {Host: "/etc"}}, vfs.Options{
		Exe: argv[0], Args: argv, Env: env, Cwd: dir, PID: os.Getpid(), Maps: mem.Maps,
		FDs: func() []int { return k.FDs() }, File: func(fd int) *vfs.File { return k.File(fd) }, Getcwd: func() string { return k.Getcwd() },
	})
	if err != nil {
		return 0, err
	}
	defer fs.Close()
	std := [3]int{}
	for i, f := range stdio {
		std[i] = int(f.Fd())
	}
	k, err = New(Config{Memory: mem, FS: fs, Args: argv, Exe: argv[0], Stdio: &std, Warn: warn, Interrupt: -1, CPUs: runtime.NumCPU(),
		Kick: func(*Task) { _ = unix.Kill(pid, unix.SIGSTOP) }})
	if err != nil {
		return 0, err
	}
	defer k.Close()
	cpu := &traceeCPU{pid: pid}
	area, errno := cpu.XState()
	if errno != 0 {
		return 0, errno
	}
	k.cfg.XFeatures = order.Uint64(area[swBytes:]) // ptrace says XCR0 there
	task, err := k.NewTask(cpu)
	if err != nil {
		return 0, err
	}
	if _, _, e := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SETOPTIONS, uintptr(pid), 0, unix.PTRACE_O_TRACESYSGOOD, 0, 0); e != 0 {
		return 0, e
	}
	step := func(request uintptr) error {
		if _, _, e := unix.Syscall6(unix.SYS_PTRACE, request, uintptr(pid), 0, 0, 0, 0); e != 0 {
			return e
		}
		_, err := unix.Wait4(pid, &ws, 0, nil)
		return err
	}
	for {
		if err := step(ptraceSysemu); err != nil {
			return 0, err
		}
		if !ws.Stopped() {
			return 0, fmt.Errorf("the program ended by itself: %#x", ws)
		}
		if err := cpu.load(); err != nil {
			return 0, err
		}
		if sig := ws.StopSignal(); sig != unix.SIGTRAP|0x80 {
			status, ended, err := cpu.stopped(k, task, sig)
			mem.flush()
			if ended || err != nil {
				return status, err
			}
			continue
		}
		regs := cpu.host
		nr := regs.Orig_rax
		if ownCalls[nr] {
			regs.Rip -= 2 // the SYSCALL instruction, once more and for real
			regs.Rax = nr
			start := regs.Rip
			if err := unix.PtraceSetRegs(pid, &regs); err != nil {
				return 0, err
			}
			// The first step may end on the way out of the call that was not made.
			for tries := 0; regs.Rip == start && tries < 3; tries++ {
				if err := errors.Join(step(unix.PTRACE_SINGLESTEP), unix.PtraceGetRegs(pid, &regs)); err != nil {
					return 0, err
				}
			}
			continue
		}
		out := k.Syscall(task, nr, args{regs.Rdi, regs.Rsi, regs.Rdx, regs.R10, regs.R8, regs.R9})
		mem.flush()
		switch out.Kind {
		case Exit:
			return int(out.Value), nil
		case Kill:
			return 128 + int(out.Value), nil
		}
		if out.Kind != Resume {
			cpu.regs.RAX = out.Ret
		}
		if err := cpu.store(); err != nil {
			return 0, err
		}
	}
}

// TestPrograms runs real static programs with their system calls served by a Kernel and compares
// output, files and status with a native run.
func TestPrograms(t *testing.T) {
	const busybox, bash = "busybox", "bash-static"
	script := `x=(a b c); for i in "${x[@]}"; do printf '%s-' $i; done; echo
		echo "pid $(( $$ > 0 ))"; declare -A m; m[k]=v; echo ${m[k]} ${#x[@]}
		while read -r l; do echo "<$l>"; done < f1; echo out > made; echo more >> made; read -r a < made; echo "$a"
		cd d && pwd | : ; [[ -d ../d && ! -e zz ]] && echo tests; printf '%(%Y)T\n' 0; umask; ulimit -n >/dev/null; type cd; exit 7`
	script = strings.ReplaceAll(script, "pwd | : ;", "") // no pipes: they fork
	progs := [][]string{
		{busybox, "echo", "hello"}, {busybox, "false"}, {busybox, "sha256sum", "f1", "f2"}, {busybox, "sort", "-r", "f2"},
		{busybox, "awk", "{s+=length($0)} END{print s, NR}", "f2"}, {busybox, "gzip", "-c", "f2"}, {busybox, "ls", "-la", "d"}, {busybox, "od", "-x", "f1"},
		{busybox, "cat", "f1", "none", "f2"}, {busybox, "cat"}, {busybox, "wc"}, {busybox, "cp", "-p", "f2", "d/copy"}, {busybox, "mv", "f1", "d/f1"},
		{busybox, "find", ".", "-type", "f"}, {busybox, "grep", "-n", "9", "f2"}, {busybox, "sed", "s/1/one/", "f1"}, {busybox, "tar", "-cf", "-", "d"},
		{busybox, "mkdir", "-p", "a/b/c"}, {busybox, "rm", "-r", "d"}, {busybox, "ln", "-s", "f1", "l"}, {busybox, "readlink", "-f", "d/../f1"},
		{busybox, "touch", "-d", "2001-02-03 04:05:06", "f1"}, {busybox, "chmod", "600", "f1"}, {busybox, "stat", "-c", "%s %a %F", "f1", "d"}, {busybox, "dd", "if=f2", "of=o", "bs=100", "count=7", "skip=1"},
		{busybox, "head", "-c", "100", "/dev/zero"}, {busybox, "sleep", "0.01"}, {busybox, "id"}, {busybox, "uname", "-a"}, {busybox, "pwd"}, {busybox, "tail", "-n", "3", "f2"},
		{busybox, "md5sum"}, {busybox, "tee", "t1"}, {busybox, "split", "-l", "100", "f2"}, {busybox, "nproc"}, {busybox, "env"}, {busybox, "kill", "-l"}, {busybox, "sh", "-c", "echo $((6*7)); kill -TERM $$; echo not"},
		{busybox, "sh", "-c", "cd d; pwd; read x; echo $x; exec 3>file; echo three >&3; exec 3>&-; set -- a b; echo $#"}, {busybox, "vi", "--help"}, {busybox, "diff", "f1", "f2"}, {busybox, "tty"}, {busybox, "timeout"},
		{bash, "-c", script}, {bash, "-c", "echo ${BASH_VERSION%%.*}; trap 'echo bye' EXIT; exit 3"}, {bash, "-c", "kill -9 $$"}, {bash, "-c", "mapfile -t a < f2; echo ${#a[@]} ${a[7]}; printf '%s\n' *"},
	}
	for _, argv := range progs {
		t.Run(argv[0]+" "+argv[1], func(t *testing.T) {
			testenv.Need(t, testenv.Tool(argv[0]))
			path, err := exec.LookPath(argv[0])
			if err != nil {
				t.Fatal(err)
			}
			compare(t, append([]string{path}, argv[1:]...))
		})
	}
}

// compare runs a program natively and served.
func compare(t *testing.T, argv []string) {
	t.Helper()
	want, got := runProgram(t, argv, false), runProgram(t, argv, true)
	if want != got {
		t.Errorf("%q\nnative: %.1500s\nserved: %.1500s", argv, want, got)
	}
}

const helloC = `#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/stat.h>
static __thread int tls = 5;
int main(int c, char **v) {
	char *b = malloc(3 << 20), line[64];
	memset(b, 'x', 3 << 20);
	FILE *f = fopen("f1", "r"), *o = fopen("made", "w");
	while (fgets(line, sizeof line, f)) fprintf(o, "%d %s", tls++, line);
	fclose(o);
	struct stat st; stat("made", &st);
	struct timespec ts = {0, 1000}; nanosleep(&ts, 0);
	printf("%s %d %ld %s %d\n", v[1], c, (long)st.st_size, getenv("LC_ALL"), getpid() > 0);
	fflush(stdout);
	if (c > 2) abort();
	return 42;
}`

// TestCompiled does the same for what the C compilers make: static, static-pie, musl and C++.
func TestCompiled(t *testing.T) {
	for _, c := range [][]string{
		{"gcc", "-static"}, {"gcc", "-static-pie"}, {"musl-gcc", "-static"}, {"g++", "-static", "-x", "c++", "-fpermissive", "-w"},
	} {
		t.Run(strings.Join(c[:2], " "), func(t *testing.T) {
			testenv.Need(t, testenv.Tool(c[0]))
			dir := t.TempDir()
			src, bin := filepath.Join(dir, "hello.c"), filepath.Join(dir, "hello")
			if err := os.WriteFile(src, []byte(helloC), 0o644); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(c[0], append(c[1:], "-O1", "-o", bin, src)...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v\n%s", c, err, out)
			}
			compare(t, []string{bin, "one"})
			compare(t, []string{bin, "one", "abort"})
		})
	}
}

// runProgram returns everything that can be seen of a run, natively or served.
func runProgram(t *testing.T, argv []string, served bool) string {
	t.Helper()
	parent := t.TempDir()
	dir := filepath.Join(parent, "w")
	var lines bytes.Buffer
	for i := range 500 {
		fmt.Fprintf(&lines, "%d line %x\n", i*7919%500, i*i)
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{"w/f1", []byte("first\n1 line\nlast")}, {"w/f2", lines.Bytes()}, {"w/d/in", []byte("in")}, {"stdin", []byte("from standard input\nand more\n")}} {
		path := filepath.Join(parent, f.name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f.data, 0o644); err != nil {
			t.Fatal(err)
		}
		old := unix.Timespec{Sec: 1e9}
		if err := unix.UtimesNano(path, []unix.Timespec{old, old}); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{dir + "/d", dir} {
		if err := unix.UtimesNano(d, []unix.Timespec{{Sec: 1e9}, {Sec: 1e9}}); err != nil {
			t.Fatal(err)
		}
	}
	var stdio [3]*os.File
	for i, name := range []string{"stdin", "stdout", "stderr"} {
		f, err := os.OpenFile(filepath.Join(parent, name), os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		stdio[i] = f
	}
	status := 0
	if served {
		var err error
		if status, err = trace(argv, dir, stdio, func(s string) { t.Errorf("%.60q: refused: %s", argv, s) }); err != nil {
			t.Fatalf("%q: %v", argv, err)
		}
	} else {
		cmd := &exec.Cmd{Path: argv[0], Args: argv, Dir: dir, Env: []string{"PATH=/usr/bin", "LC_ALL=C", "TZ=UTC"}, Stdin: stdio[0], Stdout: stdio[1], Stderr: stdio[2]}
		err := cmd.Run()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatalf("%q: %v", argv, err)
		}
		ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if status = ws.ExitStatus(); ws.Signaled() {
			status = 128 + int(ws.Signal())
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "status %d\n", status)
	for _, name := range []string{"stdout", "stderr"} {
		text, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %q\n", name, text)
	}
	b.WriteString(tree(t, dir))
	return strings.ReplaceAll(b.String(), parent, "PARENT")
}
