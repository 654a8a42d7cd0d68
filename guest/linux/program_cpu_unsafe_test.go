package linux

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// traceeCPU is the register state of a traced program. Its XSAVE area is the host's own: ptrace has it in the standard
// format and refuses what XRSTOR would.
type traceeCPU struct {
	pid    int
	host   unix.PtraceRegs
	regs   Registers
	xstate []byte
}

func (c *traceeCPU) FSBase() uint64        { return c.host.Fs_base }
func (c *traceeCPU) SetFSBase(v uint64)    { c.host.Fs_base = v }
func (c *traceeCPU) GSBase() uint64        { return c.host.Gs_base }
func (c *traceeCPU) SetGSBase(v uint64)    { c.host.Gs_base = v }
func (c *traceeCPU) Registers() *Registers { return &c.regs }

// fields are both forms of the registers, in one order.
func (c *traceeCPU) fields() (host, guest []*uint64) {
	h, g := &c.host, &c.regs
	return []*uint64{&h.Rax, &h.Rbx, &h.Rcx, &h.Rdx, &h.Rsi, &h.Rdi, &h.Rsp, &h.Rbp, &h.R8, &h.R9, &h.R10, &h.R11, &h.R12, &h.R13, &h.R14, &h.R15, &h.Rip, &h.Eflags},
		[]*uint64{&g.RAX, &g.RBX, &g.RCX, &g.RDX, &g.RSI, &g.RDI, &g.RSP, &g.RBP, &g.R8, &g.R9, &g.R10, &g.R11, &g.R12, &g.R13, &g.R14, &g.R15, &g.RIP, &g.RFLAGS}
}

func (c *traceeCPU) load() error {
	if err := unix.PtraceGetRegs(c.pid, &c.host); err != nil {
		return err
	}
	host, guest := c.fields()
	for i := range host {
		*guest[i] = *host[i]
	}
	return nil
}

func (c *traceeCPU) store() error {
	host, guest := c.fields()
	for i := range host {
		*host[i] = *guest[i]
	}
	c.host.Orig_rax = ^uint64(0) // the host must not restart anything
	return unix.PtraceSetRegs(c.pid, &c.host)
}

func (c *traceeCPU) regset(request uintptr, b []byte) (int, unix.Errno) {
	const xstate = 0x202 // NT_X86_XSTATE
	v := unix.Iovec{Base: unsafe.SliceData(b), Len: uint64(len(b))}
	_, _, e := unix.Syscall6(unix.SYS_PTRACE, request, uintptr(c.pid), xstate, uintptr(unsafe.Pointer(&v)), 0, 0)
	return int(v.Len), e
}

func (c *traceeCPU) XState() ([]byte, unix.Errno) {
	c.xstate = make([]byte, 1<<14)
	n, errno := c.regset(unix.PTRACE_GETREGSET, c.xstate)
	return c.xstate[:n], errno
}

func (c *traceeCPU) SetXState(b []byte) unix.Errno {
	_, errno := c.regset(unix.PTRACE_SETREGSET, b)
	return errno
}

func (c *traceeCPU) PutXState(b []byte) {
	if errno := c.SetXState(b); errno != 0 {
		panic(errno) // cannot be reached by input: the initial state is always taken
	}
}

// stopped serves a stop that is no system call: a kick or an exception.
func (c *traceeCPU) stopped(k *Kernel, task *Task, sig unix.Signal) (status int, ended bool, err error) {
	var out Outcome
	if sig == unix.SIGSTOP {
		out = k.Attend(task)
	} else {
		var info siginfo
		raw := make([]byte, siginfoSize)
		if _, _, e := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GETSIGINFO, uintptr(c.pid), 0, uintptr(unsafe.Pointer(&raw[0])), 0, 0); e != 0 {
			return 0, false, e
		}
		copy(bytesOf(&info), raw)
		f := Fault{Signal: sig, Code: info.code, Addr: order.Uint64(info.fields[:])}
		switch {
		case sig == unix.SIGSEGV && info.code != siKernel:
			f.Trap, f.Err = trapPF, 4 // the programs here read where nothing is mapped, and write where they may not
			if info.code == 2 {
				f.Err = 6
			}
		case sig == unix.SIGSEGV:
			f.Trap = trapGP
		case sig == unix.SIGILL:
			f.Trap = 6
		case sig == unix.SIGTRAP:
			f.Trap = 3
		case sig == unix.SIGFPE:
			f.Trap = 0
		}
		out = k.Fault(task, f)
	}
	switch out.Kind {
	case Kill:
		return 128 + int(out.Value), true, nil
	case Resume:
		return 0, false, c.store()
	case Continue:
		return 0, false, nil
	}
	return 0, false, fmt.Errorf("%v answered %+v", sig, out)
}
