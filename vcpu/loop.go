package vcpu

import (
	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// Everything in this file and in book.go runs on the vCPU's own thread, which the Go runtime does not know: no g, no
// growing stack, no allocation, no write barrier, no call into the runtime. Every function is nosplit
// and norace; loop_test.go disassembles them and compares their callees with a list.

// Steps of one turn, in order. docs/architecture.md argues the order; loop_test.go checks it.
//
//	E1 look at the stop request, park if there is one
//	E2 close the open break in the ledger
//	E3 KVM_RUN
//	X1 stamp the TSC, count the return, add the guest time
//	X2 name the cause, the number and the site
//	X3 answer here what can be answered here
//	X4 hand the rest to Go and wait
const (
	stepE1 = 1 + iota
	stepE2
	stepE3
	stepX1
	stepX2
	stepX3
	stepX4
	stepPark
	stepAck
	stepSync
	stepRelease
)

const (
	eINTR  = -4
	eAGAIN = -11
	eFAULT = -14
)

// attend lets Go look at the vCPU before it enters the guest again (O10). The word is taken back before Go
// looks, so that whoever sets it anew is looked at anew. It reports true when the thread shall end.
//
//go:nosplit
//go:norace
//go:nocheckptr
func attend(c *control) bool {
	store64(&c.attn, 0)
	if c.open != 0 && c.cause == uint64(breaks.Kick) {
		c.cause = uint64(breaks.Signal)
	}
	c.why = uint64(breaks.Signal)
	return handOver(c)
}

// classifyIO tells a system call or an exception, which leave the guest by the stubs' OUT, from an OUT
// of the program's own. The port alone proves nothing (where SYSCALL stays at CPL 3 the program can
// execute the same OUT): RIP must lie in the stub, at the OUT or just behind it.
//
//go:nosplit
//go:norace
//go:nocheckptr
func classifyIO(c *control) bool {
	r := c.run
	w := r.Exit[0]
	port := uint16(w >> 16)
	c.cause, c.nr = uint64(breaks.PIO), uint64(port)
	if w&0xff != 1 {
		return false // IN
	}
	rip := r.Regs.RIP
	switch {
	case port == abi.PortSyscall && (rip == c.stubRIP || rip == c.stubRIP+2):
		c.cause, c.nr = uint64(breaks.Syscall), uint64(uint32(r.Regs.RAX)) // Linux takes EAX (entry_SYSCALL_64)
		c.rip = r.Regs.RCX - 2
		if c.stay == 0 {
			// The first system call tells how this back end executes SYSCALL; the segments are synced
			// up to then.
			c.stay = 2
			if r.Sregs.CS.DPL == 3 {
				c.stay = 1
			}
			r.ValidRegs = kvm.SyncRegs
		}
		switch {
		case c.nr < constants && c.constOK[c.nr] != 0:
			answerRAX(c, c.constVal[c.nr])
			return true
		case c.nr == 60 || c.nr == 231: // exit, exit_group
			c.cause = uint64(breaks.End)
		case c.nr == abi.SysIsolate:
			c.cause = uint64(breaks.Seal)
		}
	case port == abi.PortSyscall && (rip == c.donRIP || rip == c.donRIP+2):
		c.cause = uint64(breaks.Setup)
	case port >= abi.PortException && port < abi.PortException+32 && rip-c.excRIP < 32*c.excStep:
		v := uint64(port - abi.PortException)
		c.nr = v
		c.cause = uint64(exceptionCause(v))
		// The frame that the CPU pushed: [error,] RIP, CS, RFLAGS, RSP, SS below RSP0.
		c.rip = peek(c.frame - 40)
		c.rsp = peek(c.frame - 16)
		if c.rip == c.donRIP {
			// A routine of ours ended where CPL 3 may not use the port after all (QEMU's TCG looks for an
			// available TSS, VT-x demands a busy one): the fault at that instruction says the same.
			c.cause, c.nr = uint64(breaks.Setup), 0
		}
	}
	return false
}

// exceptionCause is breaks.Exception without its bounds checks' way into the runtime.
//
//go:nosplit
//go:norace
func exceptionCause(v uint64) breaks.Cause {
	switch {
	case v <= 8:
		return breaks.ExcDivide + breaks.Cause(v)
	case v >= 10 && v <= 14:
		return breaks.ExcInvalidTSS + breaks.Cause(v-10)
	case v >= 16 && v <= 19:
		return breaks.ExcFPU + breaks.Cause(v-16)
	}
	return breaks.ExcOther
}

// answerRAX resumes behind a system call. Where SYSCALL left the vCPU at CPL 3, SYSRET would fault: RIP
// and RFLAGS are taken from where SYSCALL put them. Elsewhere the stub's own SYSRET does that.
//
//go:nosplit
//go:norace
//go:nocheckptr
func answerRAX(c *control, v uint64) {
	r := c.run
	r.Regs.RAX = v
	if c.stay == 1 {
		r.Regs.RIP = r.Regs.RCX
		r.Regs.RFLAGS = r.Regs.R11
	}
	r.DirtyRegs |= kvm.SyncRegs
}

// handOver is X4. It reports true when the thread shall end.
//
//go:nosplit
//go:norace
//go:nocheckptr
func handOver(c *control) bool {
	c.have = 0
	if c.why == uint64(breaks.Signal) || c.why == uint64(breaks.Syscall) && c.nr == sysRtSigreturn {
		complete(c)
		fetch(c) // a signal's frame holds it all: to be asked for it would be two more hand-overs each way
	}
	for !served(c) {
		if c.setX == 0 || c.ansKind == ansEnd {
			return answer(c)
		}
		c.setX = 0
		complete(c)
		ret := kvm.IoctlRaw(c.fd, kvm.IoSetXSave, c.xsaveAddr())
		if ret >= 0 {
			return answer(c)
		}
		c.errno, c.cause, c.have = uint64(-ret), uint64(breaks.InternalError), 0
		c.why = c.cause
	}
	return true
}

// sysRtSigreturn is rt_sigreturn(2) (arch/x86/entry/syscalls/syscall_64.tbl).
const sysRtSigreturn = 15

// fetch reads what Go may ask for, as far as KVM gives it.
//
//go:nosplit
//go:norace
//go:nocheckptr
func fetch(c *control) {
	if c.have&haveSregs == 0 && kvm.IoctlRaw(c.fd, kvm.IoGetSregs, c.sregsAddr()) >= 0 {
		c.have |= haveSregs
	}
	if c.have&haveXSave == 0 && kvm.IoctlRaw(c.fd, kvm.IoGetXSave, c.xsaveAddr()) >= 0 {
		c.have |= haveXSave
	}
}

// served has Go serve the exit. It reports true when the thread shall end.
//
//go:nosplit
//go:norace
//go:nocheckptr
func served(c *control) bool {
	store64(&c.hand, handPosted)
	knock(c)
	for {
		until := kvm.TSC() + c.spin
		for {
			h := load64(&c.hand)
			if h == handDone || h == handOp || load64(&c.req) != c.done {
				break
			}
			if kvm.TSC() >= until {
				b := load32(&c.bell)
				add32(&c.sleepBell, 1)
				h = load64(&c.hand)
				if h != handDone && h != handOp && load64(&c.req) == c.done {
					futexWait(&c.bell, b)
				}
				add32(&c.sleepBell, ^uint32(0))
			} else {
				pause()
			}
		}
		if load64(&c.req) != c.done {
			// A stop while Go serves: the vCPU is out of the guest, it parks from here.
			park(c)
			if load64(&c.quit) != 0 {
				return true
			}
			continue
		}
		if load64(&c.hand) == handOp {
			complete(c)
			switch c.op {
			case opIdle:
				idle(c)
			case opFetch:
				fetch(c)
			default:
				c.opRet = kvm.IoctlRaw(c.fd, c.op, c.opArg)
			}
			store64(&c.hand, handOpDone)
			knock(c)
			continue
		}
		break
	}
	store64(&c.hand, handIdle)
	return false
}

// answer carries out what Go answered. It reports true when the thread shall end.
//
//go:nosplit
//go:norace
//go:nocheckptr
func answer(c *control) bool {
	switch c.ansKind {
	case ansEnd:
		return true
	case ansRAX:
		answerRAX(c, c.ansRAX)
	case ansSregs:
		c.run.Sregs = c.sregs
		c.run.DirtyRegs |= kvm.SyncSregs
		answerRAX(c, c.ansRAX)
	case ansState:
		complete(c)
		c.run.Regs = c.regs
		c.run.Sregs = c.sregs
		c.run.DirtyRegs |= kvm.SyncRegs | kvm.SyncSregs
	}
	return false
}

// knock rings the server's bell; a system call only if it sleeps.
//
//go:nosplit
//go:norace
//go:nocheckptr
func knock(c *control) {
	add32(&c.doorReq, 1)
	if load32(&c.sleepReq) != 0 {
		futexWake(&c.doorReq)
	}
}

// From here to the end of park.go stands what a stop runs between leaving the guest and entering it, in as few pages as it takes: behind KVM_RUN none is in
// the TLB on a back end that has switched address spaces, and each costs some 400 cycles (nested pvm, 2.5 GHz) that all vCPUs wait for.

//go:nosplit
//go:norace
//go:nocheckptr
func step(c *control, s uint8) {
	if c.stepsOn != 0 && c.stepN < uint64(len(c.steps)) {
		c.steps[c.stepN&1023] = s
		c.stepN++
	}
}

//go:nosplit
//go:norace
//go:nocheckptr
func loop(c *control) {
	for {
		step(c, stepE1)
		for load64(&c.req) != c.done {
			park(c)
		}
		if load64(&c.quit) != 0 {
			break
		}
		if load64(&c.attn) != 0 {
			if attend(c) {
				break
			}
			continue
		}
		step(c, stepE2)
		in := kvm.TSC()
		enter(c, in)
		step(c, stepE3)
		ret, out := kvm.RunRaw(c.fd)
		if ret < 0 {
			warm(c)
		}
		step(c, stepX1)
		leave(c, in, out)
		step(c, stepX2)
		if classify(c, ret) {
			step(c, stepX3)
			continue
		}
		step(c, stepX4)
		c.why = c.cause
		if handOver(c) {
			break
		}
	}
	end(c)
}

// leave is X1: totals first, apart from the cause, so that the books can fail to close.
//
//go:nosplit
//go:norace
//go:nocheckptr
func leave(c *control, in, out uint64) {
	l := c.ledger
	c.book = c.sealed & 1
	b := &l.Book[c.book]
	put64(&l.Seq, l.Seq+1)
	b.Total++
	b.Guest += out - in
	l.LastOut = out
	l.State = breaks.StateServing
	put64(&l.Seq, l.Seq+1)
	c.open, c.out = 1, out
	c.run.DirtyRegs = 0
}

// classify is X2 and X3. It reports true when the guest can be entered again at once.
//
//go:nosplit
//go:norace
//go:nocheckptr
func classify(c *control, ret int64) bool {
	r := c.run
	c.cause, c.nr, c.errno = uint64(breaks.Unknown), 0, 0
	c.rip, c.rsp = r.Regs.RIP, r.Regs.RSP
	c.pend, c.kicked = 0, 0
	if ret < 0 {
		switch ret {
		case eINTR, eAGAIN:
			if load64(&c.req) != c.done {
				c.cause, c.kicked = uint64(breaks.Kick), 1
			} else {
				c.cause = uint64(breaks.SpuriousKick)
				for drain(&c.sigset, &c.zero) {
				}
			}
			return true
		case eFAULT:
			c.cause = uint64(breaks.MemoryFault)
		default:
			c.cause = uint64(breaks.InternalError)
		}
		c.errno = uint64(-ret)
		return false
	}
	switch r.ExitReason {
	case kvm.ExitIO:
		c.pend = 1
		return classifyIO(c)
	case kvm.ExitMMIO:
		c.pend = 1
		c.cause = uint64(breaks.MMIO)
	case kvm.ExitHLT:
		c.cause = uint64(breaks.HLT)
	case kvm.ExitDebug:
		c.cause = uint64(breaks.Debug)
	case kvm.ExitShutdown:
		c.cause = uint64(breaks.Shutdown)
	case kvm.ExitInternalError, kvm.ExitFailEntry:
		c.cause = uint64(breaks.InternalError)
	case kvm.ExitMemoryFault:
		c.cause = uint64(breaks.MemoryFault)
	case kvm.ExitIntr:
		c.cause = uint64(breaks.SpuriousKick)
		return true
	}
	return false
}

// complete lets KVM finish the I/O of the last exit: the instruction is only retired by the next
// KVM_RUN (api.rst 5, "KVM_EXIT_IO"), and would be from its old bytes. Race K6.
//
//go:nosplit
//go:norace
//go:nocheckptr
func complete(c *control) {
	if c.pend == 0 && c.run.DirtyRegs == 0 {
		return // registers that wait in the shared page would be missed by an ioctl
	}
	c.pend = 0
	storeByte(&c.run.ImmediateExit, 1)
	kvm.RunRaw(c.fd)
	storeByte(&c.run.ImmediateExit, 0)
	c.run.DirtyRegs = 0
	// A kicker's immediate_exit may just have been eaten. Its request is not: E1 looks at req again
	// before KVM_RUN, and its signal stays pending (it is blocked outside KVM_RUN).
	// ORDER(O1): pairs with P1 in Thread.request; without E1 behind it this store could lose a kick.
}
