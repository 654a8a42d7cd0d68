package monitor

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/isolation/cores"
	"github.com/cloister-vmm/cloister/isolation/doctor"
	"github.com/cloister-vmm/cloister/isolation/host"
)

// isolation is what the monitor does to the host for one run, and what it notices there.
type isolation struct {
	owner   string // of the claim; empty: nothing was applied
	request host.Request
	result  *host.Result // nil: nothing was applied
	latency *os.File
	watch   *host.Watch
	drifts  []breaks.Drift
	dropped int
	refused []breaks.RefusedSeal
}

// maxDrifts bounds the list: whoever moves all interrupts back makes hundreds.
const maxDrifts = 100

// live is the machine itself.
var live = host.Live{Root: "/"}

// Prepared is session.PreparedCommand.
func Prepared() int {
	mine, all, err := (&host.Applier{}).Prepared()
	if err != nil {
		return session.Failf("%v", err)
	}
	fmt.Printf("%s\n%s\n", cores.Format(mine), cores.Format(all))
	return 0
}

// quiet makes the run's cores quiet, or says why they are not quiet enough, and tells the engine either.
func (m *monitor) quiet() {
	if len(m.plan.Owned) == 0 {
		return
	}
	var q session.Quiet
	if err := m.isolate(); err != nil {
		q.Error = err.Error()
	} else {
		m.startWatch() // before the first instruction: what is undone from then on is seen
	}
	if m.plan.Isolate {
		q.Partition = host.Partition(live, m.plan.Owned)
	}
	if m.plan.Isolate || m.plan.Require != "" {
		if err := m.wire.Send(session.Message{Quiet: &q}); err != nil {
			return // the engine has ended: orphaned gives the core back
		}
	}
}

func (m *monitor) startWatch() {
	w, err := host.NewWatch(live, m.plan.Owned, m.ownThreads())
	if err != nil {
		m.warned = append(m.warned, fmt.Sprintf("drift of the host is not watched: %v", err))
		return
	}
	w.Expect(m.plan.Engine) // of a vCPU that is made now the news may be on its way
	m.iso.watch = w
	if m.iso.result == nil {
		return
	}
	list, err := undone(&host.Applier{Waiting: waiting}, w, m.iso.request, m.iso.result)
	if err != nil {
		m.warned = append(m.warned, fmt.Sprintf("what was undone before the watch for drift began is not known: %v", err))
	}
	m.drifted(list)
}

// undone is what somebody has undone of an apply up to now: a watch takes what it finds for the way it shall be, so that what was undone
// before it began has to be asked for. What both have seen is told of once.
func undone(a *host.Applier, w *host.Watch, r host.Request, res *host.Result) ([]host.Drift, error) {
	list, err := a.Undone(r, res)
	now := slices.DeleteFunc(w.Check(), func(d host.Drift) bool {
		return slices.ContainsFunc(list, func(x host.Drift) bool { return x.File == d.File })
	})
	return append(list, now...), err
}

// ownThreads are those of the run's that the watch for drift has nothing to say of: the vCPUs' are where they shall be, and
// herd looks after the engine's others.
func (m *monitor) ownThreads() []int { return append(m.vcpuThreads(), os.Getpid()) }

// stopWatch ends the watch.
func (m *monitor) stopWatch() {
	if m.iso.watch == nil {
		return
	}
	if err := m.iso.watch.Close(); err != nil {
		session.Failf("%v", err)
	}
	m.iso.watch = nil
}

// isolate applies once for all cores of the run, and judges each. Threads of the program that are made later are let in by
// the engine.
func (m *monitor) isolate() error {
	if m.plan.Isolate {
		owner := fmt.Sprintf("VM %s", m.plan.Name)
		r := host.Request{Owner: owner, PID: m.plan.Engine, CPUs: m.plan.Owned, FIFO: m.plan.FIFO > 0}
		if m.plan.CPU >= 0 {
			r.Threads = []int{m.ready.Info.TID}
		}
		if m.plan.KeepQuiet {
			r.Outlive, r.Owner = true, fmt.Sprintf("VM %s (--keep)", m.plan.Name)
		}
		res, err := (&host.Applier{Waiting: waiting}).Apply(r)
		if err != nil {
			return fmt.Errorf("--isolate: %w", err)
		}
		m.iso.owner, m.iso.request, m.iso.result = res.Owner, r, res
		for _, x := range res.Refused {
			m.warn(fmt.Sprintf("--isolate: refused: %s", x))
		}
		if m.plan.CPU >= 0 {
			// Before Linux 6.2 a thread that enters a partition may run on each of its CPUs, whatever it was pinned to.
			if _, err := cores.Put(m.ready.Info.TID, []int{m.plan.CPU}); err != nil {
				return fmt.Errorf("--isolate: %w", err)
			}
		}
		if m.iso.latency, err = holdLatency(); err != nil {
			m.warn(err.Error())
		}
	}
	if m.plan.Require == "" {
		return nil
	}
	return judge(live, m.plan.Require, m.plan.Owned, m.ownThreads())
}

// judge holds cores against a required grade; own are the run's threads. The error is the reason why not.
func judge(s host.System, require string, cpus, own []int) error {
	want, err := doctor.ParseGrade(require)
	if err != nil {
		return fmt.Errorf("--require: %w", err)
	}
	r, err := doctor.Examine(s, cpus, own...)
	if err == nil {
		err = quietEnough(r, want)
	}
	if err != nil {
		return fmt.Errorf("--require %s: %w", want, err)
	}
	return nil
}

// drift looks whether somebody has undone what the core was made of.
func (m *monitor) drift() {
	if m.iso.watch == nil {
		return
	}
	m.iso.watch.Own(m.ownThreads())
	m.drifted(m.iso.watch.Check())
}

// drifted says what somebody has undone, and keeps it for the report.
func (m *monitor) drifted(list []host.Drift) {
	if len(list) == 0 {
		return
	}
	at, sealed := m.moment()
	for _, d := range list {
		if len(m.iso.drifts) == maxDrifts {
			m.iso.dropped++
			continue
		}
		m.iso.drifts = append(m.iso.drifts, breaks.Drift{AtNS: at, What: d.What, File: d.File, Was: d.Was, Is: d.Is, Sealed: sealed})
		if !m.plan.Quiet {
			fmt.Fprintf(os.Stderr, "cloister: after %v: drift: %s\n", time.Duration(at).Round(time.Millisecond), d)
		}
	}
}

// moment is now, as the report has it: since the first vCPU's first entry, and whether any vCPU is sealed.
func (m *monitor) moment() (at uint64, sealed bool) {
	for _, v := range m.vcpus {
		var c breaks.Counts
		if !v.ledger.Snapshot(&c) || c.Start == 0 {
			continue
		}
		if v.id == 0 {
			at = breaks.Nanoseconds(kvm.TSC()-c.Start, m.ready.Info.TSCHz)
		}
		sealed = sealed || c.Sealed != 0
	}
	return at, sealed
}

// driftClauses are what drift has to say against a certificate.
func (m *monitor) driftClauses() (list []string) {
	for _, d := range m.iso.drifts {
		list = append(list, "drift: "+d.String())
	}
	if m.iso.dropped > 0 {
		list = append(list, fmt.Sprintf("drift: %d more", m.iso.dropped))
	}
	if m.iso.watch != nil {
		for _, r := range m.iso.watch.Blind() {
			list = append(list, "drift is not watched: "+r.String())
		}
	}
	return list
}

// restoreHost gives the core back, unless it is to be kept. It returns the status that this asks for.
func (m *monitor) restoreHost() int {
	m.stopWatch()
	owner := m.iso.owner
	if owner == "" {
		return 0
	}
	m.iso.owner = ""
	if m.iso.latency != nil {
		if err := m.iso.latency.Close(); err != nil {
			session.Failf("%v", err)
		}
	}
	if m.plan.KeepQuiet {
		return 0
	}
	list, err := (&host.Applier{}).RestoreOwner(owner)
	for _, res := range list {
		if len(res.Foreign) > 0 && !m.plan.Quiet {
			var b strings.Builder
			if e := res.WriteText(&b, "given back"); e == nil {
				fmt.Fprint(os.Stderr, "cloister: ", b.String())
			}
		}
	}
	if err != nil {
		return session.Failf("%v", err)
	}
	return 0
}
