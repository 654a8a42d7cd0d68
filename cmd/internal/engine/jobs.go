package engine

import (
	"fmt"
	"os/signal"
	"runtime"
	"time"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/vcpu"
	"golang.org/x/sys/unix"
)

// A signal that others send to the program reaches the engine: it is the process that they know. hearSignals takes over those
// that commonly end a program, so that there is a report. The others are the program's from when it first handles them: Go's
// runtime would drop them. SIGCHLD, SIGURG and SIGPROF stay out of it: the engine's own child and the runtime send them.
//
// Those of job control are as the program has them, at each moment: a handler's signal is taken over, an ignored one is ignored,
// which the terminal wants to know, and default actions are the host's. A stop stops all threads of the engine then, the vCPUs'
// among them, is told to the shell, and ends for all.

// jobSignal says of a signal of job control: its default action is no end.
func jobSignal(sig unix.Signal) bool {
	return sig == unix.SIGTSTP || sig == unix.SIGTTIN || sig == unix.SIGTTOU || sig == unix.SIGCONT
}

// offered are the others.
func offered(sig unix.Signal) bool {
	const firstFree, last = 35, 64 // of the real-time signals; those below are C libraries'
	switch sig {
	case unix.SIGVTALRM, unix.SIGWINCH, unix.SIGIO, unix.SIGPWR, unix.SIGSTKFLT, unix.SIGXCPU:
		return true
	}
	return sig >= firstFree && sig <= last && sig != vcpu.KickSignal
}

// dispose is vmm.Config.Dispose.
func (e *engine) dispose(sig unix.Signal, handled, ignored bool) {
	switch {
	case jobSignal(sig):
	case offered(sig) && handled && e.taken&(1<<(sig-1)) == 0:
		e.taken |= 1 << (sig - 1)
		signal.Notify(e.signals, sig)
		return
	default:
		return
	}
	// Reset does not put the default back where the runtime itself has none (runtime/signal_unix.go: sigdisable), so the
	// runtime's handler is kept and put in and out by hand.
	var err error
	if handled && e.taken&(1<<(sig-1)) == 0 {
		e.taken |= 1 << (sig - 1)
		signal.Notify(e.signals, sig)
		e.handlers[sig], err = action(sig, nil)
	} else {
		var a sigaction // the default
		switch {
		case handled:
			a = e.handlers[sig]
		case ignored:
			a = ignore
		}
		_, err = action(sig, &a)
	}
	if err != nil { // rt_sigaction fails for a wrong number only
		e.tell(session.Message{Warn: fmt.Sprintf("disposition of %s: %v", unix.SignalName(sig), err)})
	}
}

// quietJobs lets signals of job control go the host's way again, when no program is left that handles them.
func (e *engine) quietJobs() {
	for _, sig := range [...]unix.Signal{unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGCONT} {
		if e.taken&(1<<(sig-1)) != 0 {
			e.dispose(sig, false, false)
		}
	}
}

// stopSelf is vmm.Config.Stop. The signal is sent to the calling thread, so that nothing of it is executed between the stop and
// the continuation; the host stops the others within microseconds.
func (e *engine) stopSelf(sig unix.Signal) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Tgkill(unix.Getpid(), unix.Gettid(), sig); err != nil {
		e.tell(session.Message{Warn: fmt.Sprintf("stop by %s: %v: the program goes on", unix.SignalName(sig), err)})
	}
}

// wait returns when the guest has ended; signals and --for end it.
func (e *engine) wait() {
	var limit <-chan time.Time
	if e.o.limit > 0 {
		limit = time.After(e.o.limit)
	}
	// Formatted now: the first use of an interface makes the runtime write to pages of its own, and that would be
	// a flush of the sealed guest's core just before it is stopped.
	over := fmt.Sprintf("--for %v is over", e.o.limit)
	for {
		select {
		case <-e.machine.Done():
			e.quietJobs()
			return
		case <-limit:
			e.stop(over, 0)
		case s := <-e.signals:
			sig := s.(unix.Signal)
			if e.machine.Raise(int(sig)) {
				continue // the program's: it handles, blocks or ignores it
			}
			if jobSignal(sig) {
				e.stopSelf(sig) // it had a handler until just now
				continue
			}
			e.stop(unix.SignalName(sig), int(sig))
		}
	}
}
