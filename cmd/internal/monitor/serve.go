package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/observe"
	"golang.org/x/sys/unix"
)

// serve starts the control socket and, with --metrics, the scrape; both are answered by goroutines of
// their own. What the monitor's loop owns they get from the loop (m.ask).
func (m *monitor) serve() error {
	p := &m.plan
	vm := observe.VM{Name: p.Name, Program: p.Program, Args: p.Args, Engine: p.Engine, Monitor: os.Getpid(), Started: p.Started,
		Version: session.Version(), Go: runtime.Version(), Metrics: p.Metrics, Backend: string(kvm.DetectBackend("/")), Budget: m.budget}
	source := m.source()
	if p.Metrics != "" {
		f := os.NewFile(uintptr(p.MetricsFD), "metrics")
		l, err := net.FileListener(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("--metrics: %w", err)
		}
		go m.answer("metrics", func() error { return observe.Serve(l, observe.MetricsHandler(vm, source)) })
		if !p.Quiet {
			fmt.Fprintf(os.Stderr, "cloister: metrics at http://%s/metrics\n", p.Metrics)
		}
	}
	// Without these the run is as good as with them, only harder to look at.
	if err := m.openControl(vm, source); err != nil {
		m.warned = append(m.warned, fmt.Sprintf("control socket: %v: `cloister ps` and `cloister stats` cannot see this VM's figures", err))
		if !p.Quiet {
			session.Failf("%s", m.warned[len(m.warned)-1])
		}
	}
	return nil
}

func (m *monitor) openControl(vm observe.VM, source observe.Source) error {
	err := replace(filepath.Join(m.plan.VMDir, session.FactsFile), func(w io.Writer) error {
		return json.NewEncoder(w).Encode(observe.NewStatus(vm, nil))
	})
	if err != nil {
		return err
	}
	l, err := observe.ListenControl(m.plan.VMDir)
	if err != nil {
		return err
	}
	// As SIGTERM would, which is what `cloister stop` sends when there is no monitor.
	end := func(reason string) error {
		if reason == "" {
			reason = "asked through the control socket"
		}
		return m.wire.Send(session.Message{Stop: &session.Stop{Reason: reason, Signal: int(unix.SIGTERM)}})
	}
	go m.answer("control socket", func() error { return observe.Serve(l, m.control(observe.ControlHandler(vm, source, end))) })
	return nil
}

// answer serves until the process ends; anything else that ends it is said.
func (m *monitor) answer(what string, serve func() error) {
	if err := serve(); err != nil && !m.plan.Quiet {
		session.Failf("%s: %v: it is served no more, the run goes on", what, err)
	}
}

// settle is how long a snapshot lets the ledger catch up with the statistics read before it: a return
// of KVM_RUN is counted by the kernel before the engine books it (breaks.KernelCauses).
const settle = 5 * time.Millisecond

// loopState is what only the monitor's loop may look at.
type loopState struct {
	vcpus  []vcpuState
	strays int
}

// vcpuState is the part of it that is about one vCPU.
type vcpuState struct {
	id         int
	ledger     *breaks.VCPU
	stats      int // descriptor of KVM's statistics, or -1
	thread     string
	eventsLost *uint64
}

// reader reads the statistics of one vCPU for the servers: a second one on the descriptor, since pread shares
// no position with the loop's own.
type reader struct {
	stats  *kvm.Stats
	values []uint64
}

// source takes snapshots for the servers. Of the engine it reads the shared ledger, the statistics
// descriptor and /proc/PID/statm: none of them takes a lock or costs an interrupt there.
func (m *monitor) source() observe.Source {
	var one sync.Mutex // the readers' buffers
	readers := map[int]*reader{}
	return func(ctx context.Context) (*observe.Snapshot, error) {
		state, err := m.askLoop(ctx)
		if err != nil {
			return nil, err
		}
		one.Lock()
		defer one.Unlock()
		for _, v := range state.vcpus {
			if err := readStats(readers, &v); err != nil {
				return nil, err
			}
		}
		if len(readers) > 0 {
			time.Sleep(settle)
		}
		s := &observe.Snapshot{Strays: uint64(state.strays), Patches: m.patches.snapshot()}
		for _, v := range state.vcpus {
			r := readers[v.id]
			l := observe.Ledger{Thread: v.thread, NoStatistics: r == nil, EventsLost: v.eventsLost}
			if !v.ledger.Snapshot(&l.Counts) {
				return nil, fmt.Errorf("the ledger of vCPU %d could not be read consistently", v.id)
			}
			if l.Start == 0 {
				continue // nothing ran yet, and the engine may still be filling it in
			}
			l.ID = uint32(v.id)
			if r != nil {
				addStatistics(&l.Counts, r.stats, r.values)
			}
			s.VCPUs = append(s.VCPUs, l)
		}
		s.Now = kvm.TSC()
		s.Memory = m.memory()
		return s, nil
	}
}

// readStats reads the statistics of a vCPU that has any.
func readStats(readers map[int]*reader, v *vcpuState) error {
	if v.stats < 0 {
		return nil
	}
	r := readers[v.id]
	if r == nil {
		s, err := kvm.NewStats(v.stats)
		if err != nil {
			return fmt.Errorf("vCPU %d: %w", v.id, err)
		}
		r = &reader{s, make([]uint64, len(s.Names))}
		readers[v.id] = r
	}
	return r.stats.Read(r.values)
}

// askLoop has the monitor's loop look at its own state.
func (m *monitor) askLoop(ctx context.Context) (loopState, error) {
	got := make(chan loopState, 1)
	select {
	case m.ask <- func() { got <- m.loopState() }:
		return <-got, nil
	case <-m.over: // it makes the report now
		return m.last, nil
	case <-ctx.Done():
		return loopState{}, errors.New("the monitor is busy")
	}
}

func (m *monitor) loopState() loopState {
	s := loopState{strays: m.strays}
	for _, v := range m.vcpus {
		one := vcpuState{id: v.id, ledger: v.ledger, stats: -1, thread: v.threads.Name()}
		if v.stats != nil {
			one.stats = v.stats.FD()
		}
		if m.plan.Trace != "" {
			lost := m.trace.lostOf(v)
			one.eventsLost = &lost
		}
		s.vcpus = append(s.vcpus, one)
	}
	return s
}

// memory leaves out what could not be read: a process that is ending has no figures.
func (m *monitor) memory() (mem observe.Memory) {
	if r, err := observe.ReadResident("/", m.plan.Engine); err == nil {
		mem.Engine = r
	}
	if r, err := observe.ReadResident("/", os.Getpid()); err == nil {
		mem.Monitor = r
	}
	var st unix.Stat_t
	if unix.Fstat(m.guest, &st) == nil {
		b := uint64(st.Blocks) * 512 // stat(2): in units of 512 bytes
		mem.Guest = &b
	}
	return mem
}
