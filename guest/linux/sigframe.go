package linux

import (
	"golang.org/x/sys/unix"
)

// The frame of a signal handler on x86-64 (arch/x86/kernel/signal_64.c, arch/x86/include/asm/sigframe.h: struct rt_sigframe),
// at RSP when the handler begins. The state of the FPU lies above it.
const (
	frameReturn  = 0 // pretcode: the restorer
	frameFlags   = 8 // struct ucontext: uc_flags, uc_link, uc_stack, uc_mcontext, uc_sigmask
	frameStack   = frameFlags + 16
	frameContext = frameStack + 24
	frameMask    = frameContext + 256
	frameInfo    = frameMask + 8
	frameSize    = frameInfo + siginfoSize

	redZone = 128 // the System V ABI lets a leaf function use it below RSP

	// uc_flags: UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS (arch/x86/include/uapi/asm/ucontext.h).
	ucFlags = 1 | 2 | 4
	// The selectors that a 64-bit program has (arch/x86/include/asm/segment.h: __USER_CS, __USER_DS).
	userCS, userDS = 0x33, 0x2b
)

// sigcontext is struct sigcontext_64 up to its reserved words (arch/x86/include/uapi/asm/sigcontext.h).
type sigcontext struct {
	r8, r9, r10, r11, r12, r13, r14, r15   uint64
	di, si, bp, bx, dx, ax, cx, sp, ip, fl uint64
	cs, _, _, ss                           uint16 // the second and third are gs and fs
	err, trapno, oldmask, cr2, fpstate     uint64
}

// RFLAGS bits.
const (
	flagTF, flagDF, flagRF = 1 << 8, 1 << 10, 1 << 16
	// flagsRestored is FIX_EFLAGS (arch/x86/kernel/signal.c): AC, RF, OF, DF, TF, SF, ZF, AF, PF, CF.
	flagsRestored = 1<<18 | flagRF | 1<<11 | flagDF | flagTF | 1<<7 | 1<<6 | 1<<4 | 1<<2 | 1
)

// canonical says whether an address may be loaded into RIP: with four-level paging bits 63 to 47 are alike.
func canonical(addr uint64) bool { return uint64(int64(addr<<16)>>16) == addr }

// enter makes t run the handler of action for e, on the registers in regs. False: the frame cannot be written, and nothing
// but the memory below the stack pointer has changed.
func (k *Kernel) enter(t *Task, regs *Registers, e *sigEntry, action *sigaction) bool {
	if action.flags&saRestorer == 0 {
		return false
	}
	sp := regs.RSP
	guarded := t.altSP.holds(sp) && t.altSP.flags&ssAutodisarm == 0 // nested on the alternate stack
	sp -= redZone
	if action.flags&saOnStack != 0 && t.altSP.mode(sp) == 0 {
		sp = t.altSP.sp + t.altSP.size
		guarded = true
	}
	area, errno := k.xstateFrame(t)
	if errno != 0 {
		return false
	}
	fpstate := (sp - uint64(len(area))) &^ 63
	sp = (fpstate-frameSize)&^15 - 8 // as after a CALL
	if guarded && !t.altSP.holds(sp) {
		return false
	}
	if k.copyOut(fpstate, area) != 0 {
		return false
	}
	saved := t.mask
	if t.restoreMask {
		saved = t.savedMask
	}
	var head [frameContext]byte
	order.PutUint64(head[frameReturn:], action.restorer)
	order.PutUint64(head[frameFlags:], ucFlags)
	copy(head[frameStack:], bytesOf(&t.altSP))
	sc := sigcontext{
		r8: regs.R8, r9: regs.R9, r10: regs.R10, r11: regs.R11, r12: regs.R12, r13: regs.R13, r14: regs.R14, r15: regs.R15,
		di: regs.RDI, si: regs.RSI, bp: regs.RBP, bx: regs.RBX, dx: regs.RDX, ax: regs.RAX, cx: regs.RCX,
		sp: regs.RSP, ip: regs.RIP, fl: regs.RFLAGS, cs: userCS, ss: userDS,
		err: t.trap.err, trapno: t.trap.vector, oldmask: saved, cr2: t.trap.cr2, fpstate: fpstate,
	}
	// The reserved words of sigcontext are not written, nor is siginfo for a handler that does not ask for it.
	if k.copyOut(sp, append(head[:], bytesOf(&sc)...)) != 0 || k.store64(sp+frameMask, saved) != 0 {
		return false
	}
	if action.flags&saSiginfo != 0 && k.copyOut(sp+frameInfo, e.info.bytes()) != 0 {
		return false
	}
	begin := initialXState(len(area) - xstateTail)
	copy(begin[mxcsrMaskAt:xmmAt], area[mxcsrMaskAt:mxcsrMaskAt+4]) // the processor's: the frame of a further signal has it from here
	t.CPU.PutXState(begin)
	regs.RDI, regs.RSI, regs.RDX, regs.RAX = e.sig, sp+frameInfo, sp+frameFlags, 0
	regs.RIP, regs.RSP = action.handler, sp
	regs.RFLAGS &^= flagDF | flagTF | flagRF
	t.restoreMask = false
	if t.altSP.flags&ssAutodisarm != 0 {
		t.altSP = sigaltstack{flags: ssDisable}
	}
	mask := t.mask | action.mask
	if action.flags&saNoDefer == 0 {
		mask |= sigBit(e.sig)
	}
	k.setMask(t, mask)
	return true
}

// sysRtSigreturn goes back to what a handler interrupted. Everything that it reads is the program's to forge.
func sysRtSigreturn(k *Kernel, t *Task, _ args) (uint64, unix.Errno) {
	regs := t.CPU.Registers()
	t.resumed = true
	if !k.leave(t, regs) {
		regs.RAX = 0
		k.force(t, kernelInfo(uint64(unix.SIGSEGV)), false)
	}
	return 0, 0
}

func (k *Kernel) leave(t *Task, regs *Registers) bool {
	regs.RCX, regs.R11 = regs.RIP, regs.RFLAGS // for a frame that tells of a bad one
	at := regs.RSP - 8
	if !accessOK(at, frameSize) {
		return false
	}
	mask, errno := k.load64(at + frameMask)
	if errno != 0 {
		return false
	}
	if _, errno := k.load64(at + frameFlags); errno != 0 {
		return false
	}
	k.setMask(t, mask)
	var ss sigaltstack
	if get(k, at+frameStack, &ss) != 0 {
		return false
	}
	_ = t.setAltStack(ss, regs.RSP) // Linux keeps the old one without a word
	var sc sigcontext
	if get(k, at+frameContext, &sc) != 0 {
		return false
	}
	*regs = Registers{
		RAX: sc.ax, RBX: sc.bx, RCX: sc.cx, RDX: sc.dx, RSI: sc.si, RDI: sc.di, RSP: sc.sp, RBP: sc.bp,
		R8: sc.r8, R9: sc.r9, R10: sc.r10, R11: sc.r11, R12: sc.r12, R13: sc.r13, R14: sc.r14, R15: sc.r15,
		RIP: sc.ip, RFLAGS: regs.RFLAGS&^flagsRestored | sc.fl&flagsRestored,
	}
	if k.cfg.Landing != nil {
		regs.RIP = k.cfg.Landing(regs.RIP)
	}
	return k.restoreXState(t, sc.fpstate)
}

// sigaltstack is stack_t of x86-64.
type sigaltstack struct {
	sp    uint64
	flags uint32
	_     uint32
	size  uint64
}

const (
	ssOnStack    = 1       // SS_ONSTACK
	ssDisable    = 2       // SS_DISABLE
	ssAutodisarm = 1 << 31 // SS_AUTODISARM
	minSigStack  = 2048    // MINSIGSTKSZ of x86-64
)

// holds says whether sp points into the stack (include/linux/sched/signal.h: __on_sig_stack).
func (s *sigaltstack) holds(sp uint64) bool { return sp > s.sp && sp-s.sp <= s.size }

// mode is SS_DISABLE, SS_ONSTACK or 0: there, and not in use (sas_ss_flags).
func (s *sigaltstack) mode(sp uint64) uint32 {
	switch {
	case s.size == 0:
		return ssDisable
	case s.flags&ssAutodisarm == 0 && s.holds(sp):
		return ssOnStack
	}
	return 0
}

// setAltStack is the second half of sigaltstack(2), called with stack pointer sp.
func (t *Task) setAltStack(ss sigaltstack, sp uint64) unix.Errno {
	if t.altSP.mode(sp) == ssOnStack {
		return unix.EPERM
	}
	switch ss.flags &^ ssAutodisarm {
	case ssDisable:
		ss.sp, ss.size = 0, 0
	case 0, ssOnStack:
		if ss.size < minSigStack && !(ss.sp == t.altSP.sp && ss.size == t.altSP.size && ss.flags == t.altSP.flags) {
			return unix.ENOMEM
		}
	default:
		return unix.EINVAL
	}
	t.altSP = sigaltstack{sp: ss.sp, flags: ss.flags, size: ss.size}
	return 0
}
