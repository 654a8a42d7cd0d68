package bare

import (
	"fmt"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/guest/workload"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/isolation/cores"
	"golang.org/x/sys/unix"
)

// maxThreads is how many threads get a row: a program that makes threads without end must not fill our memory.
const maxThreads = 256

// thread finds a thread of the program; nil: it is none of the program's, or one too many.
func (r *run) thread(tid int) *thread {
	if t := r.known(tid); t != nil {
		return t
	}
	r.meet() // those that were made before it, too: they are numbered in their order
	return r.known(tid)
}

func (r *run) known(tid int) *thread {
	for _, t := range r.threads {
		if t.tid == tid && !t.final {
			return t
		}
	}
	return nil
}

// meet begins the ledgers of threads that are new, and gives all that there are; nil: the program is ending.
func (r *run) meet() (alive map[int]bool) {
	tids, err := cores.Threads(r.p.pid)
	if err != nil {
		return nil
	}
	alive = map[int]bool{}
	for _, tid := range tids {
		alive[tid] = true
		if r.known(tid) == nil {
			r.begin(tid)
		}
	}
	return alive
}

// begin begins the ledger of a thread, if there is room for it.
func (r *run) begin(tid int) {
	f, err := readThread(threadDir(r.p.pid, tid))
	if err != nil {
		return // it has ended
	}
	if len(r.threads) == maxThreads {
		if !r.beyond[tid] {
			r.beyond[tid] = true
			r.toOthers(tid)
		}
		return
	}
	none := figures{}
	for name := range f {
		none[name] = 0 // all that it has spent is of this run
	}
	t := newThread(len(r.threads), tid, -1, none)
	t.last, t.name = f, threadName(r.p.pid, tid)
	r.threads = append(r.threads, t)
	t.placedAs = t.name
	r.place(t, true)
}

// watch finds the threads that came and went, reads what they have spent, and judges it.
func (r *run) watch() {
	r.watched = now()
	alive := r.meet()
	if alive == nil {
		return // it is ending
	}
	all := r.stopped != "" || now()-r.helped >= uint64(helperPeriod)
	if all {
		r.helped = now()
	}
	for _, t := range r.threads {
		judged := r.budget != nil && t.counts.Seals > 0
		switch {
		case t.final:
		case !alive[t.tid]:
			t.end(now())
		case judged, all && t != r.main, r.stopped != "":
			if f, err := r.readOf(t); err == nil {
				t.last = f
			}
		}
		if !t.final && (all || r.b.Named) { // a thread may get its name late
			r.rename(t)
		}
	}
	r.judge()
}

// judge holds each sealed thread against the budget, and acts on the first breach.
func (r *run) judge() {
	if r.budget == nil || r.stopped != "" {
		return
	}
	for _, t := range r.threads {
		if t.counts.Seals == 0 || len(t.brokenBy) > 0 {
			continue
		}
		c, _ := t.snapshot()
		v := r.budget.Check(&c, now())
		if v.State != breaks.Broken {
			continue
		}
		t.brokenBy = v.BrokenBy()
		action, sig, err := session.ParseOnBreak(r.b.OnBreak)
		if action == "kill" {
			sig = int(unix.SIGKILL)
		}
		if err == nil && action != "report" { // it was checked before the run
			who := ""
			if len(r.threads) > 1 {
				who = fmt.Sprintf("vCPU %d: ", t.counts.ID)
			}
			r.stop("budget broken: "+who+t.brokenBy[0], sig)
			return
		}
	}
}

// gap is the record that the program has registered.
type gap struct {
	thread *thread
	at     uint64
	seized bool
	report *breaks.GapReport
	err    error
}

// register is cloister_gap_record(at). The record lies in the program's memory, which is gone when it has ended:
// from here on the thread is seized, so that it stops before that.
func (r *run) register(t *thread, at uint64) unix.Errno {
	if at%abi.Page != 0 {
		return unix.EINVAL
	}
	if n, _ := r.p.read(at, make([]byte, 2*abi.Page)); n < 2*abi.Page {
		return unix.EFAULT
	}
	seized := r.gap != nil && r.gap.seized
	if !seized && !r.writing {
		if err := ptrace(unix.PTRACE_SEIZE, t.tid, 0, unix.PTRACE_O_TRACEEXIT|unix.PTRACE_O_EXITKILL); err != nil {
			r.warn("the gap record is read only if the run is ended from outside: seize thread %d: %v", t.tid, err)
		} else {
			seized = true
		}
	}
	if r.gap != nil {
		t = r.gap.thread // it is the one that is seized
	}
	r.gap = &gap{thread: t, at: at, seized: seized}
	return 0
}

// readGap copies the record while its memory is there.
func (r *run) readGap() {
	g := r.gap
	if g == nil || g.report != nil {
		return
	}
	b := make([]byte, 2*abi.Page)
	n, err := r.p.read(g.at, b)
	if n < len(b) {
		g.err = fmt.Errorf("read the gap record: %w", err)
		return
	}
	rec, err := workload.DecodeRecord(b)
	if err == nil {
		var hz uint64
		if hz, err = r.b.TSCHz(); err == nil {
			var report breaks.GapReport
			report, err = breaks.Gaps(g.thread.counts.ID, &rec, hz)
			g.report = &report
		}
	}
	if g.err = err; err != nil {
		g.report = nil
	}
}

// traced serves the stops of the thread that is traced, if one is.
func (r *run) traced() error {
	tid := r.p.pid
	switch {
	case r.writing:
	case r.gap != nil && r.gap.seized:
		tid = r.gap.thread.tid
	default:
		return nil
	}
	for {
		// Stops only: an end is looked at before it is taken (reap).
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, tid, &info, unix.WSTOPPED|unix.WNOHANG|unix.WNOWAIT|unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || info.Signo == 0 {
			return nil // no stop, or no such thread any more
		}
		var ws unix.WaitStatus
		if _, err := wait4(tid, &ws, unix.WNOHANG|unix.WUNTRACED); err != nil {
			return fmt.Errorf("take a stop of the program: %w", err)
		}
		if !ws.Stopped() { // killed between the two
			if tid == r.p.pid && (ws.Exited() || ws.Signaled()) {
				r.ended, r.reaped = now(), &ws
			}
			return nil
		}
		if r.writing {
			err = r.atCall(ws)
		} else {
			err = r.atStop(tid, ws)
		}
		if err != nil && err != unix.ESRCH {
			return fmt.Errorf("let the program go on: %w", err)
		}
		if !r.writing && (r.gap == nil || !r.gap.seized) {
			return nil
		}
	}
}

// atStop serves a seized thread (ptrace(2), PTRACE_SEIZE): it is about to end, or gets a signal.
func (r *run) atStop(tid int, ws unix.WaitStatus) error {
	switch event := int(ws) >> 16; {
	case event == unix.PTRACE_EVENT_EXIT:
		r.readGap()
		r.gap.seized = false
		return unix.PtraceDetach(tid)
	case event == unix.PTRACE_EVENT_STOP:
		if s := ws.StopSignal(); s == unix.SIGSTOP || s == unix.SIGTSTP || s == unix.SIGTTIN || s == unix.SIGTTOU {
			return ptrace(unix.PTRACE_LISTEN, tid, 0, 0) // it stays stopped, as natively
		}
		return unix.PtraceCont(tid, 0)
	case event != 0:
		return unix.PtraceCont(tid, 0)
	}
	return unix.PtraceCont(tid, int(ws.StopSignal()))
}

// toNextCall lets the main thread run to the entry or exit of a system call.
func (r *run) toNextCall(sig int) error { return ptrace(unix.PTRACE_SYSCALL, r.p.pid, 0, uintptr(sig)) }

// atCall serves a stop of the main thread while its first write is waited for.
func (r *run) atCall(ws unix.WaitStatus) error {
	pid := r.p.pid
	if ws.StopSignal() != unix.SIGTRAP|0x80 { // PTRACE_O_TRACESYSGOOD
		sig := int(ws.StopSignal())
		var info [128]byte
		if int(ws)>>16 != 0 || signalInfo(pid, &info) == unix.EINVAL {
			sig = 0 // an event, or the program was stopped as a whole: PTRACE_TRACEME has no way to leave it so
		}
		return r.toNextCall(sig)
	}
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &regs); err != nil {
		return err
	}
	r.inCall = !r.inCall
	if r.inCall {
		r.callNr = regs.Orig_rax
		return r.toNextCall(0)
	}
	if !isWrite(r.callNr) || int64(regs.Rax) < 0 {
		return r.toNextCall(0)
	}
	f, err := r.readOf(r.main)
	if err != nil {
		return err
	}
	r.writing = false
	if r.main.counts.Sealed == 0 {
		r.main.seal(f)
	}
	if err := r.p.release(); err != nil {
		return err
	}
	return r.awaken(r.main, now())
}
