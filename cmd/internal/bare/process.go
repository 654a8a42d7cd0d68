package bare

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// process is the program. All its methods are called on the thread that started it: ptrace(2) demands it.
type process struct {
	pid      int
	pidfd    int
	listener int    // of its seccomp filter
	call     uint64 // address of a SYSCALL instruction in its vDSO
}

// startProgram starts a program. It stands at its first instruction when this returns, and dies when the
// calling thread does. If execve(2) refused it the error is a notRun.
func startProgram(path string, args, env []string) (*process, error) {
	p, err := os.StartProcess(path, args, &os.ProcAttr{
		Env:   env,
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Ptrace: true, Pdeathsig: unix.SIGKILL},
	})
	if err != nil {
		var e unix.Errno
		if errors.As(err, &e) {
			err = e
		}
		return nil, notRun{err}
	}
	c := &process{pid: p.Pid, pidfd: -1, listener: -1}
	var ws unix.WaitStatus
	if _, err := wait4(c.pid, &ws, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("wait for the program's start: %w", err), c.kill())
	}
	if !ws.Stopped() || ws.StopSignal() != unix.SIGTRAP {
		return nil, errors.Join(fmt.Errorf("the program did not stop at its start: %#x", ws), c.kill())
	}
	err = unix.PtraceSetOptions(c.pid, unix.PTRACE_O_EXITKILL|unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACEEXEC)
	if err == nil {
		c.pidfd, err = unix.PidfdOpen(c.pid, 0)
	}
	if err == nil {
		err = c.findCall()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take hold of the program: %w", err), c.kill())
	}
	return c, nil
}

// notRun says that execve(2) refused the program.
type notRun struct{ error }

func (n notRun) Unwrap() error { return n.error }

// wait4 is wait4(2) for any kind of child, and passes over interruptions.
func wait4(pid int, ws *unix.WaitStatus, options int) (int, error) {
	for {
		n, err := unix.Wait4(pid, ws, options|unix.WALL, nil)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// kill ends the program and reaps it.
func (c *process) kill() error {
	if err := unix.Kill(c.pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
		return fmt.Errorf("kill the program: %w", err)
	}
	for {
		var ws unix.WaitStatus
		if _, err := wait4(c.pid, &ws, 0); err != nil || ws.Exited() || ws.Signaled() {
			return nil // reaped, now or before
		}
	}
}

// close gives back the descriptors.
func (c *process) close() (err error) {
	for _, fd := range []int{c.pidfd, c.listener} {
		if fd >= 0 {
			err = errors.Join(err, unix.Close(fd))
		}
	}
	return err
}

// findCall looks for a SYSCALL instruction in the program's vDSO, so that nothing of the program itself has to
// be changed to inject one.
func (c *process) findCall() error {
	auxv, err := os.ReadFile(fmt.Sprintf("/proc/%d/auxv", c.pid))
	if err != nil {
		return err
	}
	const sysinfoEHDR = 33 // AT_SYSINFO_EHDR (include/uapi/linux/auxvec.h)
	for ; len(auxv) >= 16; auxv = auxv[16:] {
		if binary.LittleEndian.Uint64(auxv) != sysinfoEHDR {
			continue
		}
		at := binary.LittleEndian.Uint64(auxv[8:])
		text := make([]byte, 16<<10) // the vDSO has one or two pages
		n, err := c.read(at, text)
		if n == 0 {
			return fmt.Errorf("read its vDSO: %w", err)
		}
		if i := bytes.Index(text[:n], []byte{0x0f, 0x05}); i >= 0 { // SYSCALL: Intel SDM vol. 2B
			c.call = at + uint64(i)
			return nil
		}
	}
	return errors.New("it has no vDSO with a SYSCALL instruction: boot without vdso=0")
}

// read copies memory of the program, as far as there is any.
func (c *process) read(at uint64, b []byte) (int, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", c.pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	total := 0
	for total < len(b) {
		n, err := f.ReadAt(b[total:min(len(b), total+4096)], int64(at)+int64(total))
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// inject makes the stopped program execute one system call.
func (c *process) inject(nr uint64, args ...uint64) (uint64, error) {
	var saved unix.PtraceRegs
	if err := unix.PtraceGetRegs(c.pid, &saved); err != nil {
		return 0, fmt.Errorf("read its registers: %w", err)
	}
	r := saved
	r.Rip, r.Rax, r.Orig_rax = c.call, nr, ^uint64(0) // no call is under way that could be restarted
	for i, to := range []*uint64{&r.Rdi, &r.Rsi, &r.Rdx, &r.R10, &r.R8, &r.R9}[:len(args)] {
		*to = args[i]
	}
	if err := unix.PtraceSetRegs(c.pid, &r); err != nil {
		return 0, fmt.Errorf("set its registers: %w", err)
	}
	// Two stops: the call's entry and its exit.
	for range 2 {
		if err := c.toCall(); err != nil {
			return 0, err
		}
	}
	if err := unix.PtraceGetRegs(c.pid, &r); err != nil {
		return 0, fmt.Errorf("read its registers: %w", err)
	}
	if err := unix.PtraceSetRegs(c.pid, &saved); err != nil {
		return 0, fmt.Errorf("put its registers back: %w", err)
	}
	if e := -int64(r.Rax); e > 0 && e < 4096 {
		return 0, unix.Errno(e)
	}
	return r.Rax, nil
}

// ptrace makes a request that takes a number where others take an address.
func ptrace(request, tid int, addr, data uintptr) error {
	if _, _, e := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0); e != 0 {
		return e
	}
	return nil
}

// errEnded says that the program ended where it was expected to stop.
var errEnded = errors.New("the program ended while it was prepared")

// toCall runs the program to the next entry or exit of a system call; signals meanwhile are delivered.
func (c *process) toCall() error {
	sig := 0
	for {
		if err := ptrace(unix.PTRACE_SYSCALL, c.pid, 0, uintptr(sig)); err != nil {
			return fmt.Errorf("let the program go on: %w", err)
		}
		var ws unix.WaitStatus
		if _, err := wait4(c.pid, &ws, 0); err != nil {
			return fmt.Errorf("wait for the program: %w", err)
		}
		switch {
		case !ws.Stopped():
			return errEnded
		case ws.StopSignal() == unix.SIGTRAP|0x80: // PTRACE_O_TRACESYSGOOD
			return nil
		}
		sig = int(ws.StopSignal())
	}
}

// poke writes to memory of the stopped program.
func (c *process) poke(at uint64, b []byte) error {
	if _, err := unix.PtracePokeData(c.pid, uintptr(at), b); err != nil {
		return fmt.Errorf("write to its memory: %w", err)
	}
	return nil
}

// Flags of mlockall(2): include/uapi/asm-generic/mman.h.
const (
	mclCurrent = 1
	mclFuture  = 2
)

// listen installs the filter and takes its listener.
func (c *process) listen() error {
	var r unix.PtraceRegs
	if err := unix.PtraceGetRegs(c.pid, &r); err != nil {
		return fmt.Errorf("read its registers: %w", err)
	}
	at := (r.Rsp - 1024) &^ 15 // below the stack, where nothing is yet: a program has no red zone at its start
	if err := c.poke(at, filterBytes(at)); err != nil {
		return err
	}
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
	install := func() (uint64, error) {
		// A signal must not throw the thread out of a call that is being answered: Linux 5.19.
		fd, err := c.inject(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, at)
		if err == unix.EINVAL {
			fd, err = c.inject(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, at)
		}
		return fd, err
	}
	fd, err := install()
	if err == unix.EACCES { // seccomp(2): without CAP_SYS_ADMIN
		if _, err = c.inject(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err == nil {
			fd, err = install()
		}
	}
	if err != nil {
		return fmt.Errorf("install the filter that catches cloister_isolate: seccomp: %w (it needs Linux 5.5, and no listener above it)", err)
	}
	if c.listener, err = unix.PidfdGetfd(c.pidfd, int(fd), 0); err != nil {
		return fmt.Errorf("take the filter's listener: pidfd_getfd: %w", err)
	}
	if _, err := c.inject(unix.SYS_CLOSE, fd); err != nil {
		return fmt.Errorf("close the filter's listener in the program: %w", err)
	}
	return c.poke(at, make([]byte, len(filterBytes(at))))
}

// lock locks the program's memory, later mappings included where they could not fail by it. The remark says
// what is not locked.
func (c *process) lock() (remark string, err error) {
	var limit unix.Rlimit
	if err := unix.Prlimit(c.pid, unix.RLIMIT_MEMLOCK, nil, &limit); err != nil {
		return "", fmt.Errorf("prlimit: %w", err)
	}
	flags := uint64(mclCurrent | mclFuture)
	if limit.Cur != unix.RLIM_INFINITY && !mayLock() {
		flags, remark = mclCurrent, "memory that the program maps later is not locked: raise RLIMIT_MEMLOCK (ulimit -l unlimited) or run as root"
	}
	if _, err := c.inject(unix.SYS_MLOCKALL, flags); err == errEnded {
		return "", err
	} else if err != nil {
		remark = fmt.Sprintf("the program's memory is not locked: %v: raise RLIMIT_MEMLOCK (ulimit -l unlimited) or run as root", err)
	}
	return remark, nil
}

// mayLock reports whether this process has CAP_IPC_LOCK, and so the program.
func mayLock() bool {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	return unix.Capget(&h, &d[0]) == nil && d[0].Effective&(1<<unix.CAP_IPC_LOCK) != 0
}

// isWrite names the calls that --seal first-write waits for, as for a VM (vmm/serve.go): write, pwrite64, writev,
// pwritev, pwritev2, sendfile.
func isWrite(nr uint64) bool {
	switch nr {
	case unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_WRITEV, unix.SYS_PWRITEV, unix.SYS_PWRITEV2, unix.SYS_SENDFILE:
		return true
	}
	return false
}

// release lets the program run untraced.
func (c *process) release() error {
	if err := unix.PtraceDetach(c.pid); err != nil {
		return fmt.Errorf("let the program go: %w", err)
	}
	return nil
}
