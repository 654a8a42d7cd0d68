package running

import (
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/patch"
	"github.com/cloister-vmm/cloister/vcpu"
	"github.com/cloister-vmm/cloister/vmm"
)

// New makes the patcher of a machine that was built. program is the path of its program, for who makes plans. It is nil when the program
// cannot be patched: it has no spare memory.
func New(m *vmm.Machine, program string) *patch.Patcher {
	w := m.Patchable()
	if w.SpareText.End == 0 {
		return nil
	}
	s := patch.State{
		Program: program, BuildID: hex.EncodeToString(m.Info.BuildID), Bias: m.Info.Bias,
		SpareText: patch.Space{Start: w.SpareText.Start, End: w.SpareText.End, Used: w.SpareText.Start},
		SpareData: patch.Space{Start: w.SpareData.Start, End: w.SpareData.End, Used: w.SpareData.Start},
		SafeRIPs:  w.SafeRIPs, Serialise: m.Info.Serialise, TSCHz: m.Info.TSCHz,
	}
	for _, t := range w.Text {
		s.Text = append(s.Text, patch.Range(t))
	}
	return patch.New(Guest{M: m}, s)
}

// Guest is a machine.
type Guest struct {
	M        *vmm.Machine
	rehearse bool // stops nothing
}

// Rehearsal is the same machine, whose Stop stops none of its vCPUs.
func (g Guest) Rehearsal() patch.Guest { return Guest{g.M, true} }

// Stop is patch.Guest's, as all that follow.
func (g Guest) Stop(number uint64, sites patch.Range, stores []patch.Store, limit time.Duration, meanwhile func()) (patch.Halt, error) {
	h := &halt{list: make([]patch.Place, 0, 8)} // before the stop: then all vCPUs wait
	why := vcpu.Purpose{Cause: breaks.Patch, Nr: number, From: sites.Start, To: sites.End, Stores: words(stores), Meanwhile: meanwhile}
	var err error
	if h.Halt, err = g.M.StopToPatch(why, limit, g.rehearse); errors.Is(err, vcpu.ErrDied) {
		err = fmt.Errorf("%w: %w", patch.ErrDied, err)
	}
	if err != nil {
		return nil, err
	}
	return h, nil
}

// Look gives bytes as the guest sees them.
func (g Guest) Look(addr uint64, n int) ([]byte, error) { return g.M.Look(addr, n) }

// Writable gives the same bytes through the alias.
func (g Guest) Writable(addr uint64, n int) ([]byte, error) { return g.M.Writable(addr, n) }

// Word gives an aligned word of text both ways.
func (g Guest) Word(addr uint64) (to, see []byte, ok bool) {
	see, err := g.M.Look(addr, 8)
	if err != nil {
		return nil, nil, false
	}
	to, err = g.M.Writable(addr, 8)
	return to, see, err == nil
}

// Prepare makes the alias, and reads it: its page is not looked up for the first time while the vCPUs wait.
func (g Guest) Prepare(addr uint64, n int) error {
	b, err := g.M.Writable(addr, n)
	if err == nil {
		runtime.KeepAlive(b[0])
	}
	return err
}

// SafePoints says whether the program has declared any by now.
func (g Guest) SafePoints() bool { return g.M.Patchable().SafePoints }

// Gather begins to wait for safe points.
func (g Guest) Gather(number uint64) { g.M.Gather(number) }

// Await waits for them.
func (g Guest) Await(until time.Time) string { return g.M.Await(until) }

// Scatter ends it.
func (g Guest) Scatter() { g.M.Scatter() }

// Sleep lets time pass.
func (g Guest) Sleep(d time.Duration) { time.Sleep(d) }

// Entries tells which functions are redirected.
func (g Guest) Entries(starts []uint64) { g.M.Entries(starts) }

// Condemn ends the run.
func (g Guest) Condemn(reason string) { g.M.Condemn(reason) }

// Exits is KVM's count.
func (g Guest) Exits() []uint64 { return g.M.Exits() }

// TSC is the host's.
func (g Guest) TSC() uint64 { return kvm.TSC() }

type halt struct {
	*vmm.Halt
	list []patch.Place
}

func (h *halt) Resume(limit time.Duration, then func()) error {
	return h.ResumeThen(limit, then)
}

func (h *halt) Synced(i int) uint64 { return h.SyncTSC(i) }

func (h *halt) Places() []patch.Place {
	list := h.list[:0]
	for _, v := range h.Halt.Places() {
		p := patch.Place{
			ID: v.ID, CPU: v.CPU, Ended: v.Ended, Guest: v.Guest, Thread: v.Thread, RIPs: v.RIPs, Events: v.Events, Unknown: v.Unknown,
			Returning: v.Returning, Safe: v.Safe, AckTSC: v.AckTSC, Where: v.Cause.String(),
		}
		switch {
		case v.Ended:
			p.Where = patch.WhereEnded
		case v.Idle:
			p.Where = patch.WhereIdle
		case v.Here:
			p.Where = patch.WhereSafePoint
		case v.Guest:
			p.Where = patch.WhereGuest
		}
		list = append(list, p)
	}
	return list
}
