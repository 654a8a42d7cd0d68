package bare

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/cloister-vmm/cloister/cmd/internal/monitor"
	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"golang.org/x/sys/unix"
)

// ending is how the run ended: the status of the command, the signal that ended the program, and in words.
func (r *run) ending() (status, sig int, reason string) {
	switch {
	case r.stopped != "":
		if r.stopSig != 0 {
			status = session.StatusSignalled + r.stopSig
		}
		return status, r.stopSig, "stopped: " + r.stopped
	case r.reaped.Signaled():
		s := r.reaped.Signal()
		return session.StatusSignalled + int(s), int(s), unix.SignalName(s)
	}
	return r.reaped.ExitStatus(), 0, fmt.Sprintf("exit %d", r.reaped.ExitStatus())
}

// finish makes the report and writes what was asked for; it returns the exit status.
func (r *run) finish() int {
	status, sig, reason := r.ending()
	for _, t := range r.threads {
		t.end(r.ended)
	}
	if r.b.Quiet && r.b.Report == "" && r.budget == nil {
		return status // nobody will read a report
	}
	rep := r.report(breaks.Exit{Signal: sig, Reason: reason})
	for _, t := range r.threads {
		b := rep.Budget
		if b == nil || len(t.brokenBy) == 0 || slices.ContainsFunc(b.Clauses, func(c breaks.ClauseOfVCPU) bool {
			return c.VCPU == t.counts.ID && c.State == breaks.Broken
		}) {
			continue
		}
		b.OK, b.State = false, breaks.Broken
		for _, why := range t.brokenBy {
			b.BrokenBy = append(b.BrokenBy, fmt.Sprintf("vCPU %d: %s (while it ran)", t.counts.ID, why))
		}
	}
	status = monitor.BudgetStatus(status, rep.Budget)
	rep.Exit.Code = status
	if err := monitor.WriteReport(rep, r.b.Report, r.b.Quiet, r.b.Timings); err != nil {
		return max(session.StatusCloister, session.Failf("%v", err))
	}
	return status
}

func (r *run) report(exit breaks.Exit) *breaks.Report {
	b := r.b
	f := breaks.Facts{
		Version: session.Version(), Started: b.Started.UTC().Format(time.RFC3339), Host: monitor.HostFacts(b.CPU),
		Program: breaks.Program{Path: b.Program, Args: b.Args[1:], Seal: b.Seal, BuildID: hex.EncodeToString(b.BuildID)},
		Exit:    exit, Timings: r.phases, Budget: r.budget, NotMeasured: r.notMeasured(), FailedClauses: r.warned,
	}
	f.Host.Backend = breaks.BackendBare
	if hz, err := b.TSCHz(); err == nil {
		f.Host.TSCHz = hz
	}
	h := sha256.New()
	st, err := b.ELF.Stat()
	if err == nil {
		_, err = io.Copy(h, io.NewSectionReader(b.ELF, 0, st.Size()))
	}
	if err == nil {
		f.Program.SHA256 = hex.EncodeToString(h.Sum(nil))
	}
	if g := r.gap; g != nil && g.report != nil {
		f.Gaps = append(f.Gaps, *g.report)
	}
	var ledgers []breaks.Ledger
	for _, t := range r.threads {
		c, statistics := t.snapshot()
		l := breaks.Ledger{Counts: c, TID: t.tid, Statistics: statistics}
		l.Threads.Add(t.tid, t.name)
		ledgers = append(ledgers, l)
	}
	return breaks.Build(f, ledgers)
}

// notMeasured says what a VM's report has and a native one has not.
func (r *run) notMeasured() []breaks.NotKnown {
	list := []breaks.NotKnown{
		{What: "system calls, by number", Why: "the kernel counts a native thread's reads and writes only (read_calls, write_calls); to trace the others would disturb it"},
		{What: "exceptions and signals", Why: "the kernel keeps no count of them for a thread"},
		{What: "length of breaks", Why: "an interrupt or a fault is counted by the kernel and timed by nobody; wait_ns is the time that another thread had the core"},
		{What: "sites and stacks", Why: "nobody stands beside a native thread when it is disturbed"},
	}
	if !slices.ContainsFunc(r.threads, func(t *thread) bool { return t.cpu() >= 0 }) {
		list = append(list, breaks.NotKnown{What: "host-interrupt", Why: "the program has no core of its own whose interrupts could be counted: give it one (--cpu)"})
	}
	if len(r.threads) > 1 {
		list = append(list, breaks.NotKnown{What: "the last moments of threads other than the first",
			Why: fmt.Sprintf("their counters go with them: what they did in the last %v of their lives may be missing", helperPeriod)})
	}
	if n := len(r.beyond); n > 0 {
		list = append(list, breaks.NotKnown{What: fmt.Sprintf("%d threads", n), Why: fmt.Sprintf("a report has the first %d that were seen", maxThreads)})
	}
	for _, want := range []struct{ figure, why string }{
		{runNS, "this kernel has no schedstat (CONFIG_SCHED_INFO): guest_ns is not known"},
		{readCalls, "this kernel has no per-thread I/O accounting (CONFIG_TASK_XACCT), or does not show it to this user"},
		{migrations, "this kernel has no per-thread scheduler statistics (CONFIG_SCHED_DEBUG)"},
	} {
		if _, ok := r.main.last[want.figure]; !ok {
			list = append(list, breaks.NotKnown{What: want.figure, Why: want.why})
		}
	}
	if r.stopped == "" && r.reaped.Signaled() {
		list = append(list, breaks.NotKnown{What: "fault", Why: "the program was not traced when the signal ended it: its registers were not seen"})
	}
	if g := r.gap; g != nil && g.report == nil {
		why := "the program ended before it could be read"
		if g.err != nil {
			why = g.err.Error()
		}
		list = append(list, breaks.NotKnown{What: "gap_records", Why: why})
	}
	return list
}
