package engine

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/patch"
)

// patcher makes the patches of one VM: a patch.Patcher, but in tests.
type patcher interface {
	Apply(patch.Plan) patch.Record
	State() patch.State
}

// patching is the engine's end of a patch.
type patching struct {
	patcher patcher // nil: the program cannot be patched. It is set before the monitor is heard

	patchMu   sync.Mutex // held while a patch is made
	patchOver bool       // the run is over
}

// patch serves one request of the monitor's, and always answers it: the monitor waits for that.
func (e *engine) patch(q session.Patch, fds []int) {
	e.patchMu.Lock()
	defer e.patchMu.Unlock()
	r := e.patched(q, fds)
	err := e.tellPatchable() // first: who is answered may ask for it
	if e := e.tellSealed("record", r, func(n int) session.Message { return session.Message{Patched: &session.Patched{ID: q.ID, Length: n}} }); e != nil {
		err = e
	}
	if err != nil && !e.o.quiet {
		session.Failf("patch %d (%s) may not be in the log: the monitor could not be told: %v", r.Number, r.Outcome, err)
	}
}

// patched makes the patch. What is refused here has got no number.
func (e *engine) patched(q session.Patch, fds []int) patch.Record {
	b, err := session.Unseal(fds, q.Length)
	var p patch.Plan
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	switch {
	case err != nil:
		err = fmt.Errorf("the plan did not reach the engine: %w", err)
	case e.patcher == nil:
		err = fmt.Errorf("the program cannot be patched: start it with --patchable")
	case e.patchOver:
		err = fmt.Errorf("the VM has ended")
	default:
		return e.patcher.Apply(p)
	}
	return patch.Record{Schema: patch.RecordSchema, BuildID: p.BuildID, Reverts: p.Revert, Name: p.Name, Actor: p.Actor, Digest: p.Digest,
		Time: time.Now().UTC().Format(time.RFC3339Nano), Outcome: patch.Refused, Reason: err.Error(), VCPUs: []patch.VCPU{}, Sites: []patch.Site{}}
}

// tellPatchable tells the monitor how patches stand, if the program can be patched.
func (e *engine) tellPatchable() error {
	if e.patcher == nil {
		return nil
	}
	return e.tellSealed("patchable", e.patcher.State(), func(n int) session.Message { return session.Message{Patchable: &session.Patchable{Length: n}} })
}

// tellSealed sends v as JSON in a sealed file, with the message for its length.
func (e *engine) tellSealed(name string, v any, m func(length int) session.Message) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	fd, err := session.Seal(name, b)
	if err != nil {
		return err
	}
	return e.link.tellSealed(m(len(b)), fd)
}

// noMorePatches waits for a patch that is being made. What is asked for later is refused.
func (e *engine) noMorePatches() {
	e.patchMu.Lock()
	defer e.patchMu.Unlock()
	e.patchOver = true
}
