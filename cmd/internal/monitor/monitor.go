package monitor

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"io"
	"os"
	"os/signal"
	"slices"
	"time"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/guest/linux"
	"github.com/cloister-vmm/cloister/guest/symbol"
	"github.com/cloister-vmm/cloister/guest/workload"
	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/vmm"
	"golang.org/x/sys/unix"
)

// monitor is the process beside the engine: evidence, budget, report. It only reads the shared memory, so
// however slow it is, or killed, the guest does not notice.
type monitor struct {
	alone    bool // in a process of its own
	wire     session.Wire
	ledgers  *ledgers
	vcpus    []*vcpu // those that are known, by their numbers; vCPU 0 always is
	guest    int
	plan     session.Plan
	ready    session.Ready
	warned   []string
	gap      uint64
	budget   *breaks.Budget
	trims    bool // memory that is not needed is given back
	trimmer  trimmer
	stopping bool // the budget is broken, and the engine was told to end the run
	strays   int
	astray   bool // herd has found something for drive
	iso      isolation
	symbol   *symbol.Table
	trace    *tracer
	clock    clockStats
	ask      chan func()   // what the servers want to know of the fields above
	over     chan struct{} // closed when the loop answers no more
	last     loopState     // what it would answer then
	patches  patches
	ended    *session.Ended   // the run is over; a record may still be on its way
	patience <-chan time.Time // for that
}

// watch is how often the monitor looks at the ledger, where somebody wants to know (watches). It touches nothing of the
// guest's, but where guests share the housekeeping CPUs each look takes one of them from a guest: two more exits.
const watch = 10 * time.Millisecond

// Process is the whole of the monitor's process; it returns the exit status.
func Process() int {
	// The engine ends the run on these, or stops on them; the monitor stays to report it.
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
	if kind, err := unix.GetsockoptInt(session.FDSocket, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_SEQPACKET {
		return session.Failf("%s is started by `cloister run`, not by hand", session.MonitorCommand)
	}
	return watchVM(session.Wire{FD: session.FDSocket}, session.FDLedger, session.FDGuest, true)
}

// Run is the monitor of one VM, until its engine has ended, in the engine's own process.
func Run(w session.Wire, ledgerFD, guest int) int { return watchVM(w, ledgerFD, guest, false) }

// watchVM is either; alone says that the process has nothing else in it.
func watchVM(w session.Wire, ledgerFD, guest int, alone bool) int {
	m := &monitor{alone: alone, wire: w, guest: guest, ask: make(chan func()), over: make(chan struct{}), patches: newPatches()}
	if err := m.run(ledgerFD); err != nil {
		return session.Failf("monitor: %v", err)
	}
	return 0
}

func (m *monitor) run(ledgerFD int) error {
	var err error
	if m.ledgers, err = mapLedgers(ledgerFD); err != nil {
		return err
	}
	if _, err = m.vcpu(0); err != nil {
		return err
	}
	messages := make(chan session.Message)
	fail := make(chan error, 1)
	go m.read(messages, fail)
	tick := time.NewTicker(watch)
	defer tick.Stop()
	tick.Stop() // until there is a plan
	slow := time.NewTicker(time.Second)
	defer slow.Stop()
	for {
		select {
		case err := <-fail:
			switch {
			case m.ended != nil:
				return m.end()
			case errors.Is(err, io.EOF):
				return m.orphaned()
			}
			return err
		case msg := <-messages:
			if err := m.take(msg); err != nil {
				return err
			}
			if msg.Plan != nil && m.watches() {
				tick.Reset(watch)
			}
			if m.ended != nil && !m.patches.inEngine() {
				return m.end()
			}
		case <-m.patience:
			return m.end()
		case f := <-m.ask:
			f()
		case <-tick.C:
			m.look()
			if m.astray {
				m.drive()
			}
			if !m.watches() {
				tick.Stop()
			}
		case <-slow.C:
			if m.herd(); m.astray {
				tick.Reset(watch) // news of threads that are on their way come first
			}
			m.drift()
			if m.trims {
				if err := m.trimmer.look(); err != nil {
					m.trims = false
					if !m.plan.Quiet {
						session.Failf("%v", err) // it only costs memory
					}
				}
			}
			// The second between two looks begins here: where a look takes longer than that, news that came meanwhile would else have to
			// win against the next look, and a vCPU that is only new would be drift at its second.
			slow.Reset(time.Second)
		}
	}
}

func (m *monitor) read(out chan<- session.Message, fail chan<- error) {
	for {
		msg, _, err := m.wire.Receive()
		if err != nil {
			fail <- err
			return
		}
		out <- msg
	}
}

// take serves one message.
func (m *monitor) take(msg session.Message) error {
	switch {
	case msg.Plan != nil:
		m.plan = *msg.Plan
		if m.plan.Budget != "" {
			b, err := breaks.Parse(m.plan.Budget)
			if err != nil {
				return err
			}
			b.Backend = string(kvm.DetectBackend("/"))
			m.budget = &b
		}
		m.trace = newTracer(&m.plan)
		return m.serve()
	case msg.Ready != nil:
		m.ready = *msg.Ready
		m.patches.hear() // what can be patched was told before
		v := m.vcpus[0]
		m.first(v)
		if err := v.takeStats(msg.FDs); err != nil {
			return err
		}
		m.quiet()
		m.trims = m.alone // a collection in the engine is what the two processes are there to avoid
		return m.steer()
	case msg.Thread != nil:
		m.thread(*msg.Thread, msg.FDs)
	case msg.Seal != nil:
		m.askedToSeal(msg.Seal.VCPU)
	case msg.Warn != "":
		m.warn(msg.Warn)
	case msg.Gap != nil:
		m.gap = *msg.Gap
	case msg.Patchable != nil:
		if err := m.patches.take(msg.Patchable, msg.FDs); err != nil {
			m.warn(err.Error())
		}
	case msg.Patched != nil:
		m.patches.patched(msg.Patched, msg.FDs)
	case msg.Ended != nil:
		m.ended, m.patience = msg.Ended, time.After(patchPatience)
		m.patches.close()
	}
	return nil
}

// end makes the report.
func (m *monitor) end() error {
	m.patches.settle()
	m.last = m.loopState()
	close(m.over)
	m.drift() // what happened since the last look
	status := m.finish(*m.ended)
	status = max(status, m.restoreHost())
	if err := m.wire.Send(session.Message{Status: &status}); err != nil {
		return m.orphaned() // the engine did not wait
	}
	return nil
}

// warn tells the user, and the report.
func (m *monitor) warn(text string) {
	m.warned = append(m.warned, text)
	if !m.plan.Quiet {
		fmt.Fprintln(os.Stderr, "cloister:", text)
	}
}

// orphaned is the end of an engine that could not say how it ended.
func (m *monitor) orphaned() error {
	m.patches.settle()
	m.restoreHost()
	if m.plan.VMDir != "" {
		if err := session.RemoveDead(m.plan.VMDir, m.plan.Engine); err != nil {
			return err
		}
	}
	return errors.New("the engine process ended without a word (killed, or out of memory): the VM is gone, there is no report")
}

// watches says whether the ledger has to be looked at while the program runs: for a budget, or to empty the rings of
// events for a timeline before they come round.
func (m *monitor) watches() bool { return m.budget != nil || m.plan.Trace != "" }

// look takes a snapshot of each vCPU and holds it against the budget.
func (m *monitor) look() {
	m.trace.drain(m.vcpus)
	if m.budget == nil {
		return
	}
	for _, v := range m.vcpus {
		if v.broken || v.ledger.Seals == 0 {
			continue // nothing that was never sealed can break it, and a copy of its ledger is not for nothing
		}
		c, ok := v.counts()
		if !ok {
			continue
		}
		b := *m.budget
		if v.stats == nil {
			b.Backend = ""
		}
		if verdict := b.Check(&c, kvm.TSC()); verdict.State == breaks.Broken {
			v.broken = true
			for _, why := range verdict.BrokenBy() {
				v.brokenBy = append(v.brokenBy, fmt.Sprintf("vCPU %d: %s", v.id, why))
			}
			m.onBreak(v, verdict.BrokenBy())
		}
	}
}

// onBreak does what the user wants done when the budget is broken, once.
func (m *monitor) onBreak(v *vcpu, why []string) {
	if m.stopping {
		return
	}
	action, sig, err := session.ParseOnBreak(m.plan.OnBreak)
	if err != nil {
		return // it was checked before the run
	}
	switch action {
	case "kill":
		sig = int(unix.SIGKILL)
	case "report":
		return
	}
	m.stopping = true
	reason := "budget broken: " + first(why)
	if len(m.vcpus) > 1 {
		reason = "budget broken: " + first(v.brokenBy)
	}
	if err := m.wire.Send(session.Message{Stop: &session.Stop{Reason: reason, Signal: sig}}); err != nil {
		fmt.Fprintln(os.Stderr, "cloister: stop the run:", err)
	}
}

func first(list []string) string {
	if len(list) == 0 {
		return "?"
	}
	return list[0]
}

// finish builds the report and writes what was asked for; it returns the exit status.
func (m *monitor) finish(end session.Ended) int {
	status := end.Status
	if end.Error != "" {
		return max(status, session.Failf("%s", end.Error))
	}
	if m.plan.Quiet && end.Result.Ended == "error" {
		session.Failf("%s", end.Result.Reason) // an error is said even quietly
	}
	if m.plan.Quiet && m.plan.Report == "" && m.plan.Profile == "" && m.plan.Trace == "" && m.budget == nil {
		return status // nobody will read a report
	}
	m.trace.drain(m.vcpus)
	r := m.report(end)
	m.latch(r.Budget)
	status = budgetStatus(status, r.Budget, r.RefusedSeals)
	r.Exit.Code = status
	for _, err := range m.write(r, end) {
		status = max(session.StatusCloister, session.Failf("%v", err))
	}
	return status
}

// latch puts a breach that was seen while the program ran into the report: a burst is not forgiven because the
// average over a longer run is within the limit.
func (m *monitor) latch(b *breaks.BudgetState) {
	for _, v := range m.vcpus {
		if b == nil || !v.broken || slices.ContainsFunc(b.Clauses, func(c breaks.ClauseOfVCPU) bool {
			return int(c.VCPU) == v.id && c.State == breaks.Broken
		}) {
			continue
		}
		b.OK, b.State = false, breaks.Broken
		for _, why := range v.brokenBy {
			b.BrokenBy = append(b.BrokenBy, why+" (while it ran)")
		}
	}
}

// budgetStatus turns the verdict on a budget into the exit status. A gate must not be green because nobody
// looked: where the budget was not tested, or not all is known, a run that ended well is Cloister's failure.
func budgetStatus(status int, b *breaks.BudgetState, refused []breaks.RefusedSeal) int {
	switch {
	case b == nil || b.OK:
	case b.State == breaks.Broken:
		return session.StatusBudget
	case status == 0:
		why := "no vCPU ran"
		for _, c := range b.Clauses {
			if c.State == b.State {
				why = c.Why
			}
		}
		switch {
		case b.State != breaks.Untested:
		case len(refused) > 0:
			why += ": " + refused[len(refused)-1].String()
		default:
			why += ": call cloister_isolate(1), or use --seal start"
		}
		return session.Failf("the budget %s is %s, which is not kept: %s", b.Spec, b.State, why)
	}
	return status
}

func (m *monitor) report(end session.Ended) *breaks.Report {
	f := breaks.Facts{
		Version: session.Version(), Started: m.plan.Started, Host: hostFacts(m.plan.CPU),
		Program: breaks.Program{Path: m.plan.Program, Args: m.plan.Args[1:], Seal: m.plan.Seal, BuildID: hex.EncodeToString(m.ready.Info.BuildID)},
		Exit:    breaks.Exit{Signal: end.Result.Signal, Reason: m.reason(end.Result)},
		Timings: m.ready.Phases, Budget: m.budget, SyscallName: func(nr int) string { return linux.Name(uint64(nr)) },
		Symbol: m.locate,
	}
	f.Host.TSCHz = m.ready.Info.TSCHz
	ledgers := m.lastLedgers(&f)
	f.FailedClauses = append(f.FailedClauses, m.warned...)
	if s := m.clock.Load(); s != nil && s.Late > 0 { // ORDER(none): see steer
		f.FailedClauses = append(f.FailedClauses, fmt.Sprintf("the guest's clock was updated late %d times: it may have stepped back", s.Late))
	}
	m.patchFacts(&f)
	f.Drift, f.RefusedSeals = m.iso.drifts, m.iso.refused
	f.FailedClauses = append(f.FailedClauses, m.driftClauses()...)
	if m.strays > 0 {
		f.FailedClauses = append(f.FailedClauses, fmt.Sprintf("%d threads of Cloister's own were found on the dedicated core and moved", m.strays))
	}
	f.Program.SHA256 = m.openSymbols()
	f.Fault = m.fault(end.Result)
	if m.gap != 0 {
		if g, err := m.gapRecord(); err != nil {
			f.NotMeasured = append(f.NotMeasured, breaks.NotKnown{What: "gap_records", Why: err.Error()})
		} else {
			f.Gaps = append(f.Gaps, g)
		}
	}
	return breaks.Build(f, ledgers)
}

// lastLedgers are the ledgers of a run that is over, of all vCPUs that were used.
func (m *monitor) lastLedgers(f *breaks.Facts) (list []breaks.Ledger) {
	if err := m.find(); err != nil {
		f.FailedClauses = append(f.FailedClauses, err.Error())
	}
	statistics := slices.ContainsFunc(m.vcpus, func(v *vcpu) bool { return v.stats != nil })
	if !statistics {
		f.NoStatistics = "this kernel has no KVM_GET_STATS_FD"
	}
	for _, v := range m.vcpus {
		l := breaks.Ledger{Sites: v.ledger.Sites[:], EventsLost: m.trace.lostOf(v), TID: v.tid, Threads: v.threads, Ring: &v.ledger.Ring}
		if !v.ledger.Snapshot(&l.Counts) {
			f.FailedClauses = append(f.FailedClauses, fmt.Sprintf("the ledger of vCPU %d could not be read consistently", v.id))
		}
		l.Counts.ID = uint32(v.id)
		if v.ledger.Magic == 0 && v.id != 0 {
			continue // it was announced, and the run ended before it had anything to count
		}
		if v.stats == nil && statistics {
			l.NoStatistics = "the engine had no descriptor of its statistics"
		}
		list = append(list, l)
	}
	return list
}

func (m *monitor) reason(r vmm.Result) string {
	switch {
	case r.Ended == "stopped":
		return "stopped: " + r.Reason
	case r.Ended == "error":
		return r.Reason
	case r.Fault != nil:
		return fmt.Sprintf("%s: %s", unix.SignalName(unix.Signal(r.Signal)), r.Fault.Name)
	case r.Signal != 0:
		return unix.SignalName(unix.Signal(r.Signal))
	}
	return fmt.Sprintf("exit %d", r.Code)
}

// openSymbols reads the program's tables and gives its SHA-256.
func (m *monitor) openSymbols() string {
	h := sha256.New()
	if m.plan.Builtin != "" {
		b, err := workload.ELF(m.plan.Builtin, m.plan.Args[1:], m.ready.Info.TSCHz)
		if err != nil {
			return ""
		}
		h.Write(b)
		if t, err := symbol.New(bytes.NewReader(b), int64(len(b)), m.ready.Info.Bias); err == nil {
			m.symbol = t
		}
		return hex.EncodeToString(h.Sum(nil))
	}
	f, err := os.Open(m.plan.Program)
	if err != nil {
		return ""
	}
	defer f.Close()
	if _, err := io.Copy(h, f); err != nil {
		return ""
	}
	if t, err := symbol.Open(m.plan.Program, m.ready.Info.Bias); err == nil {
		m.symbol = t
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (m *monitor) locate(rip uint64) breaks.Location {
	l := breaks.Location{RIP: breaks.Hex(rip)}
	if rip >= abi.SupVA && rip < abi.SupVA+1<<20 {
		l.Symbol = "[cloister]"
		return l
	}
	if m.symbol == nil {
		return l
	}
	if f, ok := m.symbol.Lookup(rip); ok {
		l.Symbol, l.File, l.Line = f.Func, f.File, f.Line
	}
	return l
}

// guestBytes copies guest memory at a guest address; what is not there is left out.
func (m *monitor) guestBytes(addr uint64, n int) []byte {
	if addr >= abi.UserTop {
		return nil
	}
	b := make([]byte, min(uint64(n), abi.UserTop-addr))
	k, err := unix.Pread(m.guest, b, int64(addr))
	if err != nil {
		return nil
	}
	return b[:k]
}

func (m *monitor) gapRecord() (breaks.GapReport, error) {
	rec, err := workload.DecodeRecord(m.guestBytes(m.gap, 2*abi.Page))
	if err != nil {
		return breaks.GapReport{}, err
	}
	return breaks.Gaps(0, &rec, m.ready.Info.TSCHz)
}
