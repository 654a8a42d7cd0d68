package bare

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"time"

	"github.com/cloister-vmm/cloister/cmd/internal/engine"
	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"golang.org/x/sys/unix"
)

// helperPeriod is how often the counters of threads that no budget is about are read.
const helperPeriod = 100 * time.Millisecond

// period is how often the list of threads is read and, with a budget, the counters of those that are sealed. Nothing
// of the program's is touched by it.
const period = 20 * time.Millisecond

// run is one native run.
type run struct {
	b       *engine.Bare
	p       *process
	main    *thread
	threads []*thread    // in order of appearance; the first is main
	beyond  map[int]bool // those that got no row, by their TIDs
	watched uint64       // when they were looked at last
	helped  uint64       // when the counters of the helpers were read last
	phases  []breaks.Timing
	last    time.Time
	warned  []string

	writing bool // traced until its first write
	inCall  bool // the next stop of its is a call's exit
	callNr  uint64

	gap *gap // nil: no record was registered

	budget *breaks.Budget

	signals chan os.Signal
	ask     chan func()   // what the servers want to know or to be done
	over    chan struct{} // closed when nothing is answered any more
	wake    int           // eventfd: one of the three, or a child's news
	stopped string        // why it was ended from outside; empty: it was not
	stopSig int
	ended   uint64 // when
	reaped  *unix.WaitStatus
}

// Main is `cloister run --bare`, its arguments those of run; it returns the exit status.
func Main(args []string) int {
	runtime.LockOSThread() // for good: it is the tracer, and the parent whose death kills the program
	b, status, err := engine.Claim(args)
	if err != nil {
		return max(status, session.Failf("%v", err))
	}
	defer b.Release()
	r := &run{b: b, beyond: map[int]bool{}, phases: b.Phases, last: time.Now(), wake: -1, ask: make(chan func(), 16), over: make(chan struct{})}
	status, err = r.whole()
	if err != nil {
		return max(status, session.Failf("%v", err))
	}
	return status
}

// stamp ends a phase of start-up.
func (r *run) stamp(phase string) {
	t := time.Now()
	r.phases = append(r.phases, breaks.Timing{Phase: phase, NS: uint64(t.Sub(r.last))})
	r.last = t
}

func (r *run) warn(format string, a ...any) {
	r.warned = append(r.warned, fmt.Sprintf(format, a...))
	if !r.b.Quiet {
		session.Failf(format, a...)
	}
}

// whole is the life of the run. An error comes with the status that it means.
func (r *run) whole() (status int, err error) {
	if r.b.Budget != "" {
		b, err := breaks.Parse(r.b.Budget)
		if err != nil {
			return session.StatusCloister, err // it was checked before
		}
		b.Backend = breaks.BackendBare
		r.budget = &b
	}
	if len(r.b.NoEffect) > 0 && !r.b.Quiet {
		session.Failf("%s: without effect on a native run", strings.Join(r.b.NoEffect, ", "))
	}
	if err := r.listenToSignals(); err != nil {
		return session.StatusCloister, err
	}
	if err := r.serveLookers(); err != nil {
		return session.StatusCloister, err
	}
	if err := r.start(); err != nil {
		if n := (notRun{}); errors.As(err, &n) {
			return session.StatusNotRun, err
		}
		return session.StatusCloister, err
	}
	err = r.prepare()
	for err == nil && r.reaped == nil {
		err = r.turn()
	}
	close(r.over)
	if err != nil {
		return session.StatusCloister, errors.Join(err, r.p.kill(), r.p.close())
	}
	if err := r.p.close(); err != nil {
		return session.StatusCloister, err
	}
	return r.finish(), nil
}

// listenToSignals makes the loop wake up for those that end the run, and for what the program does. One that
// was ignored when we were started stays ignored, for us and so for the program.
func (r *run) listenToSignals() (err error) {
	if r.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	in := make(chan os.Signal, 16)
	r.signals = make(chan os.Signal, 16)
	list := []os.Signal{unix.SIGCHLD}
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGABRT} {
		if !signal.Ignored(s) {
			list = append(list, s)
		}
	}
	signal.Notify(in, list...)
	go func() {
		for s := range in {
			if s != unix.SIGCHLD {
				r.signals <- s
			}
			r.wakeUp()
		}
	}()
	return nil
}

// wakeUp ends the loop's waiting.
func (r *run) wakeUp() {
	if _, err := unix.Write(r.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil && err != unix.EAGAIN { // full: it wakes up anyway
		session.Failf("eventfd: %v", err)
	}
}

// start starts the program, which stands then.
func (r *run) start() (err error) {
	path := r.b.ExecFn
	if r.b.BuiltIn { // a descriptor that is open for writing cannot be executed (ETXTBSY)
		f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", r.b.ELF.Fd()))
		if err == nil {
			err = r.b.ELF.Close()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", r.b.Program, err)
		}
		r.b.ELF = f
		path = fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	}
	r.p, err = startProgram(path, r.b.Args, r.b.Env)
	runtime.KeepAlive(r.b.ELF)
	if err != nil {
		return fmt.Errorf("%s: %w", r.b.Program, err)
	}
	r.stamp("exec")
	return nil
}

// prepare gives the standing program its core, priority, filter and locked memory, and lets it go.
func (r *run) prepare() error {
	b, p := r.b, r.p
	if b.CPU >= 0 {
		var set unix.CPUSet
		set.Set(b.CPU)
		if err := unix.SchedSetaffinity(p.pid, &set); err != nil {
			return fmt.Errorf("put the program on CPU %d: %w", b.CPU, err)
		}
	}
	if b.FIFO > 0 {
		if err := unix.SchedSetAttr(p.pid, priority(b.FIFO, true), 0); err != nil {
			return fmt.Errorf("SCHED_FIFO %d for the program: %w: run as root, or raise RLIMIT_RTPRIO", b.FIFO, err)
		}
	}
	if err := p.listen(); err != nil {
		return err
	}
	if b.Lock {
		remark, err := p.lock()
		if err != nil {
			return err
		}
		if remark != "" {
			r.warn("%s", remark)
		}
	}
	r.stamp("prepare")
	base, err := r.read(p.pid, b.CPU)
	if err != nil {
		return err
	}
	r.main = newThread(0, p.pid, b.CPU, base)
	r.main.name = threadName(p.pid, p.pid)
	if b.BuiltIn {
		r.main.name = b.Program // the kernel has the number of a descriptor
	}
	r.main.placedAs = r.main.name
	r.threads = []*thread{r.main}
	switch b.Seal {
	case "start":
		r.main.seal(base)
		if err := p.release(); err != nil {
			return err
		}
		return r.awaken(r.main, now())
	case "first-write":
		r.writing = true
		return r.toNextCall(0)
	}
	return p.release()
}

// read reads what a thread has spent, and its core if it owns one.
func (r *run) read(tid, cpu int) (figures, error) {
	f, err := readThread(threadDir(r.p.pid, tid))
	if err != nil || cpu < 0 {
		return f, err
	}
	core, err := readCore("/", cpu)
	if err != nil {
		return nil, err
	}
	f.add(core)
	return f, nil
}

func (r *run) readOf(t *thread) (figures, error) {
	return r.read(t.tid, t.cpu())
}

// turn waits for something to happen, and serves it.
func (r *run) turn() error {
	wait := period
	if r.b.For > 0 && r.stopped == "" {
		wait = max(0, min(wait, time.Duration(r.main.counts.Start+uint64(r.b.For)-min(now(), r.main.counts.Start+uint64(r.b.For)))))
	}
	fds := []unix.PollFd{{Fd: int32(r.wake), Events: unix.POLLIN}, {Fd: int32(r.p.pidfd), Events: unix.POLLIN}, {Fd: int32(r.p.listener), Events: unix.POLLIN}}
	ts := unix.NsecToTimespec(int64(wait))
	if _, err := unix.Ppoll(fds, &ts, nil); err != nil && err != unix.EINTR {
		return fmt.Errorf("wait for the program: ppoll: %w", err)
	}
	if fds[0].Revents != 0 {
		var b [8]byte
		if _, err := unix.Read(r.wake, b[:]); err != nil && err != unix.EAGAIN {
			return fmt.Errorf("eventfd: %w", err)
		}
	}
	if fds[1].Revents != 0 { // pidfd_open(2): every thread has ended
		return r.reap()
	}
	if fds[2].Revents&unix.POLLIN != 0 {
		if err := r.serve(); err != nil {
			return err
		}
	}
	if err := r.traced(); err != nil {
		return err
	}
	select {
	case s := <-r.signals:
		sig := s.(unix.Signal)
		r.stop(unix.SignalName(sig), int(sig))
	case f := <-r.ask:
		f()
		r.wakeUp() // there may be another
	default:
	}
	if r.b.For > 0 && now()-r.main.counts.Start >= uint64(r.b.For) {
		r.stop(fmt.Sprintf("--for %v is over", r.b.For), 0)
	}
	if r.stopped == "" && r.reaped == nil && now()-r.watched >= uint64(period) {
		r.watch()
	}
	return nil
}

// reap takes the last figures of a program that has ended: it is still listed until it is waited for.
func (r *run) reap() error {
	r.ended = now()
	r.lastLook()
	var ws unix.WaitStatus
	for {
		if _, err := wait4(r.p.pid, &ws, 0); err != nil {
			return fmt.Errorf("wait for the program's end: %w", err)
		}
		if ws.Exited() || ws.Signaled() {
			r.reaped = &ws
			return nil
		}
	}
}

// lastLook reads the first thread once more. The others are gone: their latest reading counts.
func (r *run) lastLook() {
	if r.main.final {
		return
	}
	if f, err := r.readOf(r.main); err == nil {
		r.main.last = f
	} else {
		r.warn("the program's last figures are those of %v before its end: %v", period, err)
	}
}

// serve answers one call that the filter gave to us.
func (r *run) serve() error {
	at := now()
	n, err := receive(r.p.listener)
	if err == unix.ENOENT || err == unix.EINTR {
		return nil // its thread died, or a signal took it out of the call
	}
	if err != nil {
		return fmt.Errorf("take a call of the program: %w", err)
	}
	t := r.thread(int(n.tid))
	switch {
	case t == nil && r.beyond[int(n.tid)]:
		return reply(r.p.listener, n.id, unix.EAGAIN)
	case t == nil: // of a process that the program forked
		return reply(r.p.listener, n.id, unix.ENOSYS)
	}
	switch uint64(n.nr) {
	case abi.SysIsolate:
		return r.isolate(t, n, at)
	case abi.SysGapRecord:
		return reply(r.p.listener, n.id, r.register(t, n.args[0]))
	}
	return reply(r.p.listener, n.id, unix.ENOSYS)
}

// isolate is cloister_isolate(on): the thread stands in it until it is answered.
func (r *run) isolate(t *thread, n notification, at uint64) error {
	on := n.args[0] == 1
	switch {
	case n.args[0] > 1:
		return reply(r.p.listener, n.id, unix.EINVAL)
	case on == (t.counts.Sealed != 0) || t.final:
		return reply(r.p.listener, n.id, 0)
	}
	r.settle(t.tid)
	if on {
		r.rename(t) // what it was called a moment ago: the sealed interval begins where it belongs
	}
	f, err := r.readOf(t)
	if err != nil {
		return err
	}
	if on {
		t.seal(f)
	} else {
		t.unseal(f)
	}
	t.book(t.half(), breaks.Seal, now()-at)
	if err := reply(r.p.listener, n.id, 0); err != nil || !on {
		return err
	}
	return r.awaken(t, at)
}

// settle waits until a thread whose call has been received sleeps in it: only then are its counters final.
func (r *run) settle(tid int) {
	for range 200 {
		if s := threadState(r.p.pid, tid); s != 'R' {
			return
		}
		time.Sleep(20 * time.Microsecond)
	}
}

// awaken looks at the core once the thread that was sealed runs, for the interrupt that woke it, and for its way to
// that core if it was given it since at.
func (r *run) awaken(t *thread, at uint64) error {
	if t.counts.CPU == breaks.NoCPU {
		return nil
	}
	for range 50 {
		if s := threadState(r.p.pid, t.tid); s == 'R' {
			break
		}
		time.Sleep(20 * time.Microsecond)
	}
	f, err := readCore("/", t.cpu())
	if err != nil {
		return err
	}
	if t.movedAt >= at {
		if own, err := readThread(threadDir(r.p.pid, t.tid)); err == nil { // else it has ended
			f.add(own)
		}
	}
	t.pardon(f)
	return nil
}

// stop ends the program from outside: its figures are taken while it stands.
func (r *run) stop(why string, sig int) {
	if r.stopped != "" || r.reaped != nil {
		return
	}
	r.stopped, r.stopSig = why, sig
	r.watch()
	err := unix.Kill(r.p.pid, unix.SIGSTOP)
	for i := 0; err == nil && i < 500 && r.runs(); i++ {
		time.Sleep(200 * time.Microsecond)
		if !r.writing { // a traced thread stops the others only when its signal has passed through us
			err = r.traced()
		}
	}
	for _, t := range r.threads {
		if t.final {
			continue
		}
		if f, err := r.readOf(t); err == nil {
			// How it came to stand is our doing: only its times, which lag behind in a thread that runs, are new.
			for _, name := range []string{runNS, waitNS, userNS, systemNS} {
				if n, ok := f[name]; ok {
					t.last[name] = n
				}
			}
		}
		t.counts.Kicks++
		t.end(now())
	}
	r.readGap()
	if err == nil {
		err = unix.Kill(r.p.pid, unix.SIGKILL)
	}
	if err != nil && err != unix.ESRCH {
		r.warn("end the program: %v", err)
	}
}

// runs reports whether a thread of the program still runs.
func (r *run) runs() bool {
	for _, t := range r.threads {
		if !t.final && threadState(r.p.pid, t.tid) == 'R' {
			return true
		}
	}
	return false
}
