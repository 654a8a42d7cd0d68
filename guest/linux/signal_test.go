package linux

import (
	"encoding/binary"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newFPU makes the fake CPU's area one that a processor would write.
func newFPU(c *fakeCPU) {
	copy(c.xstate[:], initialXState(len(c.xstate)))
	order.PutUint32(c.xstate[mxcsrMaskAt:], 0xffff)
}

// threads is a guest with n tasks, and a record of who was kicked.
func threads(t testing.TB, n int) (*guest, []*Task, map[*Task]int) {
	kicks := map[*Task]int{}
	var all []*Task
	g := newGuest(t, func(c *Config) {
		c.Kick = func(t *Task) { kicks[t]++ }
		c.Spawn = func(child *Task, regs *Registers, _ uint64) unix.Errno {
			cpu := &fakeCPU{regs: *regs}
			newFPU(cpu)
			child.CPU = cpu
			all = append(all, child)
			return 0
		}
	})
	newFPU(g.task.CPU.(*fakeCPU))
	all = append(all, g.task)
	for i := 1; i < n; i++ {
		stack := g.mem.base + uint64(60-2*i)*page
		g.want(int64(g.task.ID+i), unix.SYS_CLONE, cloneThread, stack, 0, 0, 0)
	}
	g.task.CPU.Registers().RSP = g.mem.base + 62*page
	return g, all, kicks
}

func (g *guest) handle(sig unix.Signal, flags uint64) {
	g.t.Helper()
	g.want(0, unix.SYS_RT_SIGACTION, uint64(sig), g.words(0x401000, flags|saRestorer|saSiginfo, 0x402000, 0), 0, 8)
}

func (g *guest) as(t *Task, nr uint64, a ...uint64) Outcome {
	var r [6]uint64
	copy(r[:], a)
	return g.k.Syscall(t, nr, r)
}

// TestRestartClasses holds the table to signal(7): a call that a handler cuts is made again, or not, by its class and SA_RESTART.
func TestRestartClasses(t *testing.T) {
	for _, c := range []struct {
		nr   uint64
		a    args
		want restart
	}{
		{unix.SYS_READ, args{}, restartIfAsked}, {unix.SYS_WRITEV, args{}, restartIfAsked}, {unix.SYS_FLOCK, args{}, restartIfAsked}, {unix.SYS_OPENAT, args{}, restartIfAsked},
		{unix.SYS_FCNTL, args{}, restartIfAsked}, {unix.SYS_FUTEX, args{1: futexWait | futexPrivate}, restartIfAsked}, {unix.SYS_FUTEX, args{1: futexWait, 3: 1}, restartNever},
		{unix.SYS_FUTEX, args{1: futexWaitBitset | futexRealtime, 3: 1}, restartNever}, {unix.SYS_FUTEX, args{1: futexWaitBitset}, restartIfAsked},
		{unix.SYS_FUTEX, args{1: futexLockPI | futexPrivate, 3: 1}, restartAlways}, {unix.SYS_FUTEX, args{1: futexLockPI2}, restartAlways},
		{unix.SYS_PAUSE, args{}, restartNever}, {unix.SYS_RT_SIGSUSPEND, args{}, restartNever}, {unix.SYS_RT_SIGTIMEDWAIT, args{}, restartNever}, {unix.SYS_POLL, args{}, restartNever},
		{unix.SYS_PPOLL, args{}, restartNever}, {unix.SYS_SELECT, args{}, restartNever}, {unix.SYS_PSELECT6, args{}, restartNever}, {unix.SYS_EPOLL_WAIT, args{}, restartNever},
		{unix.SYS_EPOLL_PWAIT, args{}, restartNever}, {unix.SYS_EPOLL_PWAIT2, args{}, restartNever}, {unix.SYS_NANOSLEEP, args{}, restartNever}, {unix.SYS_CLOCK_NANOSLEEP, args{}, restartNever},
	} {
		if got := restartClass(c.nr, c.a); got != c.want {
			t.Errorf("%s%x: class %d, want %d", Name(c.nr), c.a, got, c.want)
		}
		for _, asked := range []bool{false, true} {
			regs := Registers{RIP: 0x1002, RFLAGS: 0x246, RAX: 99}
			(&returning{nr: c.nr, a: c.a, errno: eRestart}).settle(&regs, asked)
			want := Registers{RIP: 0x1002, RFLAGS: 0x246, RAX: negate(unix.EINTR), RCX: 0x1002, R11: 0x246}
			if c.want == restartAlways || c.want == restartIfAsked && asked {
				want.RIP, want.RAX = 0x1000, c.nr
			}
			if regs != want {
				t.Errorf("%s%x, SA_RESTART %v: %+v", Name(c.nr), c.a, asked, regs)
			}
		}
	}
}

// TestTargets: who is told of a signal.
func TestTargets(t *testing.T) {
	g, all, kicks := threads(t, 3)
	pid := uint64(g.task.ID)
	told := func(what string, want ...*Task) {
		t.Helper()
		if len(kicks) != len(want) {
			t.Errorf("%s: %d tasks were told, want %d", what, len(kicks), len(want))
		}
		for _, w := range want {
			if kicks[w] == 0 {
				t.Errorf("%s: task %d was not told", what, w.ID)
			}
		}
		clear(kicks)
	}
	g.handle(unix.SIGUSR1, 0)
	g.as(all[2], unix.SYS_KILL, pid, uint64(unix.SIGUSR1))
	told("of the process", all[0])
	if out := g.k.Attend(all[0]); out.Kind != Resume || all[0].CPU.Registers().RIP != 0x401000 {
		t.Errorf("main: %+v", out)
	}
	if out := g.k.Attend(all[0]); out.Kind != Continue {
		t.Errorf("nothing is left: %+v", out)
	}
	// main is in the handler and blocks it: another one takes the next.
	g.as(all[2], unix.SYS_KILL, pid, uint64(unix.SIGUSR1))
	told("while main blocks it", all[1])
	if out := g.k.Attend(all[2]); out.Kind != Continue {
		t.Errorf("it is another one's: %+v", out)
	}
	if out := g.k.Attend(all[1]); out.Kind != Resume {
		t.Errorf("the one that was told: %+v", out)
	}
	g.as(all[1], unix.SYS_TGKILL, pid, uint64(all[2].ID), uint64(unix.SIGUSR1))
	told("of a thread", all[2])
	if out := g.k.Attend(all[2]); out.Kind != Resume {
		t.Errorf("of a thread: %+v", out)
	}
	clear(kicks)
	g.as(all[1], unix.SYS_TGKILL, pid, uint64(all[2].ID), uint64(unix.SIGUSR1))
	told("of a thread that blocks it")
	// What a task blocks while it waits for the process goes to another one.
	g.handle(unix.SIGUSR2, 0)
	for _, t := range all[1:] {
		g.as(t, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, g.words(^uint64(0)), 0, 8)
	}
	g.as(all[1], unix.SYS_KILL, pid, uint64(unix.SIGUSR2))
	told("main", all[0])
	g.as(all[1], unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, g.words(0), 0, 8)
	if all[1].CPU.Registers().RIP != 0x401000 {
		t.Error("whoever unblocks it takes it")
	}
	if g.k.pendingFor(all[0])&sigBit(12) != 0 {
		t.Error("it was taken and is still there")
	}
	// An end of the program reaches it whoever is asked.
	clear(kicks)
	if out := g.as(all[1], unix.SYS_KILL, pid, uint64(unix.SIGKILL)); out.Kind != Kill || out.Value != 9 {
		t.Errorf("SIGKILL: %+v", out)
	}
	told("the end", all[0], all[2])
}

// TestWaitingThread: a signal ends the waits of the thread that it is for, and sigtimedwait takes one that all block.
func TestWaitingThread(t *testing.T) {
	g, all, _ := threads(t, 2)
	pid := uint64(g.task.ID)
	g.handle(unix.SIGUSR1, saRestart)
	set, info, forever := g.words(sigBit(10)|sigBit(40)), g.buf(128), g.words(0)
	_ = forever
	for _, task := range all {
		g.as(task, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, set, 0, 8)
	}
	wait := func(task *Task, nr uint64, a ...uint64) chan Outcome {
		done := make(chan Outcome, 1)
		go func() { done <- g.as(task, nr, a...) }()
		for range 1000 {
			g.k.big.Lock()
			blocked := task.blocked
			g.k.big.Unlock()
			if blocked {
				return done
			}
			time.Sleep(time.Millisecond)
		}
		t.Fatal("it does not wait")
		return nil
	}
	done := wait(all[1], unix.SYS_RT_SIGTIMEDWAIT, set, info, 0, 8)
	g.want(0, unix.SYS_KILL, pid, 10)
	if out := <-done; out.Kind != Return || out.Ret != 10 || binary.LittleEndian.Uint32(g.bytes(info, 4)) != 10 {
		t.Errorf("sigtimedwait: %+v", out)
	}
	done = wait(all[1], unix.SYS_RT_SIGSUSPEND, g.words(0), 8)
	g.want(0, unix.SYS_TKILL, uint64(all[1].ID), 10)
	if out := <-done; out.Kind != Resume || all[1].CPU.Registers().RIP != 0x401000 {
		t.Errorf("sigsuspend: %+v", out)
	}
	if all[1].mask != sigBit(10) {
		t.Errorf("in the handler %#x is blocked", all[1].mask)
	}
	all[1].CPU.Registers().RSP += 8 // the handler's RET
	if out := g.as(all[1], unix.SYS_RT_SIGRETURN); out.Kind != Resume || int64(all[1].CPU.Registers().RAX) != e(unix.EINTR) {
		t.Errorf("sigreturn: %+v %+v", out, all[1].CPU.Registers())
	}
	if all[1].mask != sigBit(10)|sigBit(40) {
		t.Errorf("after sigsuspend %#x is blocked", all[1].mask)
	}
}

// TestQueueLimit: RLIMIT_SIGPENDING bounds what is queued.
func TestQueueLimit(t *testing.T) {
	g, all, _ := threads(t, 1)
	pid := uint64(g.task.ID)
	g.want(0, unix.SYS_PRLIMIT64, 0, unix.RLIMIT_SIGPENDING, g.words(3, 3), 0)
	g.want(0, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, g.words(^uint64(0)), 0, 8)
	queue := make([]byte, 128)
	binary.LittleEndian.PutUint32(queue[8:], 0xffffffff) // SI_QUEUE
	info := g.put(queue)
	for range 3 {
		g.want(0, unix.SYS_RT_SIGQUEUEINFO, pid, 40, info)
	}
	g.want(e(unix.EAGAIN), unix.SYS_RT_SIGQUEUEINFO, pid, 40, info)
	g.want(0, unix.SYS_KILL, pid, 41)  // without its siginfo
	g.want(0, unix.SYS_TKILL, pid, 15) // nor this
	if all[0].pending.set != sigBit(15) || g.k.sig.shared.set != sigBit(40)|sigBit(41) || g.k.sig.queued != 3 {
		t.Errorf("%#x %#x %d", all[0].pending.set, g.k.sig.shared.set, g.k.sig.queued)
	}
	for _, want := range []int64{15, 40, 40, 40, 41, e(unix.EAGAIN)} {
		g.want(want, unix.SYS_RT_SIGTIMEDWAIT, g.words(^uint64(0)), info, g.words(0, 0), 8)
	}
	if g.k.sig.queued != 0 {
		t.Errorf("%d are counted, none is there", g.k.sig.queued)
	}
}

// TestRaise: signals from outside are the program's when it has said what becomes of them.
func TestRaise(t *testing.T) {
	g, all, kicks := threads(t, 2)
	want := func(what string, sig unix.Signal, want bool) {
		t.Helper()
		if got := g.k.Raise(int(sig)); got != want {
			t.Errorf("%s: %v", what, got)
		}
	}
	want("default", unix.SIGTERM, false)
	want("no signal", 0, false)
	want("no signal", 65, false)
	want("SIGKILL", unix.SIGKILL, false)
	want("ignored by default", unix.SIGWINCH, true)
	if g.k.sig.shared.set != 0 || len(kicks) != 0 {
		t.Errorf("something is pending: %#x", g.k.sig.shared.set)
	}
	g.handle(unix.SIGTERM, 0)
	want("handled", unix.SIGTERM, true)
	if kicks[all[0]] != 1 {
		t.Error("main was not told")
	}
	if out := g.k.Attend(all[0]); out.Kind != Resume {
		t.Errorf("%+v", out)
	}
	g.want(0, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, g.words(sigBit(2)), 0, 8)
	want("blocked by one of two", unix.SIGINT, false)
	g.as(all[1], unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, g.words(sigBit(2)), 0, 8)
	want("blocked by all", unix.SIGINT, true)
	g.k.End()
	want("over", unix.SIGTERM, false)
}

// TestFault: an exception reaches its handler with everything about it, or ends the program.
func TestFault(t *testing.T) {
	g, all, _ := threads(t, 1)
	f := Fault{Signal: unix.SIGSEGV, Code: 2, Addr: 0x123456, Trap: 14, Err: 7}
	if out := g.k.Fault(g.task, f); out.Kind != Kill || out.Value != 11 {
		t.Errorf("without a handler: %+v", out)
	}
	g.handle(unix.SIGSEGV, 0)
	regs := all[0].CPU.Registers()
	regs.RIP, regs.RCX, regs.RFLAGS = 0x400123, 0xc0ffee, 0x10646
	if out := g.k.Fault(g.task, f); out.Kind != Resume || regs.RIP != 0x401000 || regs.RDI != 11 || regs.RFLAGS != 0x246 {
		t.Fatalf("%+v %+v", out, regs)
	}
	uc := regs.RDX + 40
	if g.word(regs.RSI+8)&0xffffffff != 2 || g.word(regs.RSI+16) != 0x123456 || g.word(uc+128) != 0x400123 || g.word(uc+112) != 0xc0ffee || g.word(uc+152) != 7 || g.word(uc+160) != 14 || g.word(uc+176) != 0x123456 {
		t.Errorf("info %x context %x", g.bytes(regs.RSI, 24), g.bytes(uc, 184))
	}
	if out := g.k.Fault(g.task, f); out.Kind != Kill || out.Value != 11 {
		t.Errorf("in its own handler: %+v", out)
	}
}

// TestTimers: they ring in time, count what is missed, and Close ends their goroutine.
func TestTimers(t *testing.T) {
	before := openFDs(t)
	t.Run("", func(t *testing.T) {
		cpu, own := time.Duration(0), time.Duration(0)
		g := newGuest(t, func(c *Config) {
			c.CPUTime = func(t *Task) (time.Duration, time.Duration) {
				if t != nil {
					return own, own
				}
				return cpu, cpu / 2
			}
		})
		newFPU(g.task.CPU.(*fakeCPU))
		g.want(0, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, g.words(^uint64(0)), 0, 8)
		all, info, soon := g.words(^uint64(0)), g.buf(128), g.words(2, 0)
		id := g.buf(8)
		event := g.words(0x55, uint64(40)|sigevThreadID<<32, uint64(g.task.ID))
		g.want(0, unix.SYS_TIMER_CREATE, unix.CLOCK_REALTIME, event, id)
		g.want(0, unix.SYS_TIMER_SETTIME, g.word(id), 0, g.words(0, 1e6, 0, 1e6), 0)
		g.want(40, unix.SYS_RT_SIGTIMEDWAIT, all, info, soon, 8)
		time.Sleep(20 * time.Millisecond)
		g.want(40, unix.SYS_RT_SIGTIMEDWAIT, all, info, soon, 8)
		if n := g.call(unix.SYS_TIMER_GETOVERRUN, g.word(id)); n < 10 || g.word(info+16)>>32 != uint64(n) || g.word(info+24) != 0x55 {
			t.Errorf("overrun %d, info %x", n, g.bytes(info, 32))
		}
		g.want(0, unix.SYS_TIMER_DELETE, g.word(id))
		if g.k.sig.queued != 0 {
			t.Errorf("%d are queued", g.k.sig.queued)
		}
		// A CPU clock stands still, then it runs: each by itself.
		advance := func(clock *time.Duration, by time.Duration) {
			g.k.big.Lock()
			*clock += by
			g.k.big.Unlock()
		}
		still, clock := g.words(0, 30e6), g.buf(16)
		g.want(0, unix.SYS_TIMER_CREATE, unix.CLOCK_THREAD_CPUTIME_ID, event, id)
		g.want(0, unix.SYS_TIMER_SETTIME, g.word(id), 0, g.words(0, 0, 0, 5e6), 0)
		advance(&cpu, 10*time.Millisecond)
		g.want(e(unix.EAGAIN), unix.SYS_RT_SIGTIMEDWAIT, all, info, still, 8)
		advance(&own, 6*time.Millisecond)
		g.want(40, unix.SYS_RT_SIGTIMEDWAIT, all, info, soon, 8)
		for id, want := range map[int32]uint64{
			unix.CLOCK_PROCESS_CPUTIME_ID: 10e6, unix.CLOCK_THREAD_CPUTIME_ID: 6e6, cpuClockID(0, cpuVirt): 5e6, cpuClockID(g.task.ID, cpuSched): 10e6,
			cpuClockID(g.task.ID, cpuThread|cpuVirt): 6e6,
		} {
			if g.want(0, unix.SYS_CLOCK_GETTIME, uint64(int64(id)), clock); g.word(clock+8) != want {
				t.Errorf("clock %d says %d ns, want %d", id, g.word(clock+8), want)
			}
		}
		g.want(0, unix.SYS_SETITIMER, unix.ITIMER_VIRTUAL, g.words(0, 0, 0, 10000), 0)
		g.want(0, unix.SYS_SETITIMER, unix.ITIMER_PROF, g.words(0, 0, 0, 10000), 0)
		g.want(e(unix.EAGAIN), unix.SYS_RT_SIGTIMEDWAIT, all, info, g.words(0, 30e6), 8)
		advance(&cpu, 11*time.Millisecond)
		g.want(int64(unix.SIGPROF), unix.SYS_RT_SIGTIMEDWAIT, all, info, soon, 8)
		g.want(e(unix.EAGAIN), unix.SYS_RT_SIGTIMEDWAIT, all, info, still, 8) // half of it was in the program
		advance(&cpu, 10*time.Millisecond)
		g.want(int64(unix.SIGVTALRM), unix.SYS_RT_SIGTIMEDWAIT, all, info, soon, 8)
		// A flood that nobody looks at is one signal.
		g.want(0, unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, 0, id)
		g.want(0, unix.SYS_TIMER_SETTIME, g.word(id), 0, g.words(0, 1, 0, 1), 0)
		time.Sleep(5 * time.Millisecond)
		g.k.big.Lock()
		if n := len(g.k.sig.shared.list[14]); n != 1 {
			t.Errorf("%d signals", n)
		}
		g.k.big.Unlock()
	})
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// FuzzSigreturn returns through frames of which every byte may be forged: nothing but the program's own state may change,
// and the registers that come out are ones that a virtual CPU takes.
func FuzzSigreturn(f *testing.F) {
	f.Add([]byte{}, uint16(0), uint64(0))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, uint16(frameContext+128), uint64(0))
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8}, uint16(456+512), uint64(64))
	f.Add([]byte{0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f}, uint16(456+464+12), uint64(1<<63))
	f.Fuzz(func(t *testing.T, forged []byte, at uint16, move uint64) {
		g, all, _ := threads(t, 1)
		g.k.cfg.XFeatures = 7
		g.handle(unix.SIGUSR1, saOnStack)
		g.want(0, unix.SYS_SIGALTSTACK, g.words(g.mem.base+30*page, 0, 10*page), 0)
		if out := g.out(unix.SYS_TKILL, uint64(g.task.ID), 10); out.Kind != Resume {
			t.Fatalf("%+v", out)
		}
		regs := all[0].CPU.Registers()
		frame := g.bytes(regs.RSP, g.mem.base+40*page-regs.RSP)
		if int(at) < len(frame) {
			copy(frame[at:], forged)
		}
		regs.RSP += 8 + move
		out := g.out(unix.SYS_RT_SIGRETURN)
		if out.Kind != Resume && out != (Outcome{Kind: Kill, Value: 11}) {
			t.Fatalf("%+v", out)
		}
		if out.Kind == Resume && (!canonical(regs.RIP) || regs.RFLAGS&^flagsRestored != 0) {
			t.Fatalf("%+v", regs)
		}
		x, _ := all[0].CPU.XState()
		if bv := order.Uint64(x[xstateBV:]); bv&^7 != 0 || order.Uint32(x[mxcsrAt:])&^0xffff != 0 || order.Uint64(x[xstateBV+8:]) != 0 {
			t.Fatalf("XSAVE header %x, MXCSR %x", x[xstateBV:xsaveHeader], x[mxcsrAt:mxcsrAt+4])
		}
		if all[0].mask&unblockable != 0 || !g.mem.guardsIntact() {
			t.Fatalf("mask %#x", all[0].mask)
		}
	})
}
