package monitor

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// maxRefused bounds the list of refused seals: a program that tries again for ever makes one entry for each reason.
const maxRefused = 100

// askedToSeal looks whether the core of a vCPU is still as quiet as the run requires, and answers the engine. The looking is
// done beside the loop, which has other vCPUs to watch; it interrupts none of them (doctor), and this one waits out of the guest.
func (m *monitor) askedToSeal(vcpu int) {
	core := -1
	if v, err := m.vcpu(vcpu); err == nil {
		core = v.cpu
	}
	if core < 0 {
		m.sealJudged(vcpu, core, errors.New("its thread has no core of its own: give it one with --place"))
		return
	}
	m.drift() // what happened since the last look
	require, own := m.plan.Require, m.ownThreads()
	go func() {
		err := judge(live, require, []int{core}, own)
		select {
		case m.ask <- func() { m.sealJudged(vcpu, core, err) }:
		case <-m.over: // nobody waits for it
		}
	}()
}

// sealJudged tells the engine, and remembers a refusal.
func (m *monitor) sealJudged(vcpu, core int, err error) {
	j := session.Judged{VCPU: vcpu}
	if err != nil {
		j.Error = err.Error()
		m.refuse(vcpu, core, j.Error)
	}
	if err := m.wire.Send(session.Message{Judged: &j}); err != nil {
		return // the engine has ended
	}
}

// refuse says a refusal once, and counts it when it comes again.
func (m *monitor) refuse(vcpu, core int, why string) {
	if n := len(m.iso.drifts); n > 0 {
		why += "; since the start: " + m.iso.drifts[n-1].String()
		if more := n - 1 + m.iso.dropped; more > 0 {
			why += fmt.Sprintf(" (and %d more)", more)
		}
	}
	at := slices.IndexFunc(m.iso.refused, func(r breaks.RefusedSeal) bool { return int(r.VCPU) == vcpu && r.Why == why })
	if at < 0 && len(m.iso.refused) == maxRefused {
		at = maxRefused - 1 // the last entry stands for the rest
	}
	if at >= 0 {
		m.iso.refused[at].Count++
		return
	}
	now, _ := m.moment()
	r := breaks.RefusedSeal{AtNS: now, VCPU: uint32(vcpu), Require: m.plan.Require, Why: why, Count: 1}
	if core >= 0 {
		r.CPU = &core
	}
	m.iso.refused = append(m.iso.refused, r)
	if !m.plan.Quiet {
		fmt.Fprintf(os.Stderr, "cloister: after %v: %s\n", time.Duration(now).Round(time.Millisecond), r)
	}
}
