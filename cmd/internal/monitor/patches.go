package monitor

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/observe"
	"github.com/cloister-vmm/cloister/patch"
	"github.com/cloister-vmm/cloister/patch/audit"
	"golang.org/x/sys/unix"
)

// patches is the monitor's part in patching: it hands plans to the engine, one at a time, hashes the text before and after, and logs what
// became of each. Who asked waits in a goroutine of his own, and the loop for nobody: it takes mu for moments only.
type patches struct {
	making chan struct{} // has room for one: who is between the check of the log and the record in it
	heard  sync.Once
	told   chan struct{} // closed: the engine has said what there is to patch, or the run is over

	mu       sync.Mutex
	state    *patch.State         // as the engine told it last; nil once told is closed: the program cannot be patched
	over     bool                 // the run has ended: no more patches
	id       uint64               // of the latest request to the engine
	waiting  chan answer          // for the record of that request; nil: the engine has none
	asking   int                  // clients that wait for an answer
	list     []breaks.PatchReport // the latest, at least mostReported of them if there were so many
	unlogged []patch.Record       // that the log did not take, oldest first
	head     audit.Hash           // of the latest that it took
	trouble  []string             // for the report
	counts   observe.Patches
}

// answer is how a request to the engine ended. err: nobody knows what became of it.
type answer struct {
	record patch.Record
	dead   bool // the engine has ended without a word on it
	err    error
}

// made is a patch that has a record.
type made struct {
	patch.Record
	log   string     // path; empty: it is not logged
	head  audit.Hash // of its line
	notes []string   // about the log
}

// mostReported is how many patches stand in the report: a VM that is patched every second for weeks has the others in its log.
const mostReported = 1000

// startPatience is how long who asks waits for a VM that is being started.
const startPatience = 10 * time.Second

// patchPatience is how long the monitor waits for the record of a patch when the run has ended.
const patchPatience = 2 * time.Second

var (
	errNotPatchable = errors.New("the program cannot be patched: it does not ask for it (docs/patching.md, \"What a program declares\"); start the VM with --patchable")
	errPatching     = errors.New("another patch is being made: try again")
	errEndedVM      = errors.New("the VM has ended")
	errStarting     = errors.New("the VM is still being started: try again")
)

// take is for news of the engine: how patches stand.
func (p *patches) take(m *session.Patchable, fds []int) error {
	b, err := session.Unseal(fds, m.Length)
	s := new(patch.State)
	if err == nil {
		err = json.Unmarshal(b, s)
	}
	if err != nil {
		return fmt.Errorf("how patches stand is not known: %w", err)
	}
	defer p.hear()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state, p.counts.Number = s, s.Number
	if p.counts.Outcomes == nil {
		p.counts.Outcomes = map[string]uint64{patch.Committed: 0, patch.Refused: 0, patch.Aborted: 0, patch.RolledBack: 0, patch.Dead: 0}
		p.counts.Pauses = map[int]*observe.Pauses{}
	}
	return nil
}

// patched is for the record of a patch.
func (p *patches) patched(m *session.Patched, fds []int) {
	var a answer
	b, err := session.Unseal(fds, m.Length)
	if err == nil {
		err = json.Unmarshal(b, &a.record)
	}
	a.err = err
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting != nil && m.ID == p.id {
		p.waiting <- a // it has room for one
		p.waiting = nil
	}
}

func newPatches() patches { return patches{making: make(chan struct{}, 1), told: make(chan struct{})} }

// hear lets go on who waits for state: it is what it is.
func (p *patches) hear() {
	p.heard.Do(func() { close(p.told) })
}

// close lets no more patches begin. inEngine reports whether one has begun and has no record yet.
func (p *patches) close() {
	p.mu.Lock()
	p.over = true
	p.mu.Unlock()
	p.hear()
}

func (p *patches) inEngine() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waiting != nil
}

// settle is for the end of the engine: what it has not answered is dead. It waits until that is logged, within reason.
func (p *patches) settle() {
	p.mu.Lock()
	p.over = true
	if p.waiting != nil {
		p.waiting <- answer{dead: true}
		p.waiting = nil
	}
	p.mu.Unlock()
	select {
	case p.making <- struct{}{}: // whoever was there has left
		<-p.making
	case <-time.After(10 * time.Second): // a disk that hangs must not keep the report
	}
	for end := time.Now().Add(time.Second); p.asked(0) > 0 && time.Now().Before(end); { // nor a client that does not read
		time.Sleep(time.Millisecond)
	}
}

// asked counts clients that come, or go.
func (p *patches) asked(n int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asking += n
	return p.asking
}

// snapshot is for the metrics; nil: the program cannot be patched.
func (p *patches) snapshot() *observe.Patches {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == nil {
		return nil
	}
	return p.counts.Clone()
}

// current is a copy of the state. Of a VM that is being started it is waited for.
func (p *patches) current() (patch.State, error) {
	select {
	case <-p.told:
	case <-time.After(startPatience):
		return patch.State{}, errStarting
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == nil {
		return patch.State{}, errNotPatchable
	}
	return *p.state, nil
}

// patchState is what `GET /v1/patch` tells.
func (m *monitor) patchState() (s patch.State, err error) {
	if s, err = m.patches.current(); err != nil {
		return s, err
	}
	if s.TextSHA256, err = m.hashText(s.Text); err != nil {
		return s, err
	}
	if s.Log, err = m.patchLog(); err != nil {
		return s, err
	}
	head, err := audit.Head(s.Log)
	if err == nil && head != (audit.Hash{}) {
		s.LogHead = head.String()
	}
	return s, err
}

// patchLog is the path of the log.
func (m *monitor) patchLog() (string, error) {
	if m.plan.PatchLog != "" {
		return m.plan.PatchLog, nil
	}
	return session.PatchLog(m.plan.Name)
}

// hashText gives the SHA-256 of the running text: all ranges, one after the other.
func (m *monitor) hashText(text []patch.Range) (string, error) {
	h := sha256.New()
	for _, r := range text {
		if r.End < r.Start {
			return "", fmt.Errorf("text at %#x-%#x", r.Start, r.End)
		}
		n, err := io.Copy(h, io.NewSectionReader(guestMemory(m.guest), int64(r.Start), int64(r.End-r.Start)))
		if err == nil && n != int64(r.End-r.Start) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return "", fmt.Errorf("read the running text at %#x: %w", r.Start, err)
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// guestMemory reads the guest's memory by its descriptor, at the guest's addresses.
type guestMemory int

func (g guestMemory) ReadAt(b []byte, at int64) (int, error) {
	for n := 0; ; {
		k, err := unix.Pread(int(g), b[n:], at+int64(n))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return n, err
		}
		if n += k; n == len(b) {
			return n, nil
		}
		if k == 0 {
			return n, io.EOF
		}
	}
}

// patch has a plan carried out, and logged. An error says that nothing was changed, or, if it says so, that nobody knows.
// It is called by goroutines other than the loop's.
func (m *monitor) patch(plan patch.Plan) (*made, error) {
	p := &m.patches
	select {
	case p.making <- struct{}{}:
		defer func() { <-p.making }()
	default:
		return nil, errPatching
	}
	state, err := p.current()
	if err != nil {
		return nil, err
	}
	out := &made{}
	// First: a patch whose record nobody can write is not made.
	if !plan.DryRun {
		if out.log, out.notes, err = m.readyLog(); err != nil {
			return nil, fmt.Errorf("%w: nothing was changed", err)
		}
	}
	before, err := m.hashText(state.Text)
	if err != nil {
		return nil, fmt.Errorf("%w: nothing was changed", err)
	}
	asked := time.Now()
	reply, err := p.send(m.wire, plan)
	if err != nil {
		return nil, fmt.Errorf("%w: nothing was changed", err)
	}
	a := <-reply
	if a.err != nil {
		err := fmt.Errorf("what became of %s is not known: the engine's record cannot be read: %w", oneLine(plan.Name), a.err)
		p.complain(err.Error())
		return nil, err
	}
	r := &out.Record
	*r = a.record
	if a.dead {
		*r = patch.Record{Schema: patch.RecordSchema, BuildID: state.BuildID, Number: state.Number + 1, Reverts: plan.Revert, Digest: plan.Digest,
			Time: asked.UTC().Format(time.RFC3339Nano), Outcome: patch.Dead, Reason: "the engine process ended while the patch was made, and the guest with it",
			TSCHz: state.TSCHz, Sites: plan.Sites}
	}
	// These are the monitor's to say, whoever made the record.
	r.VM, r.Started, r.Name, r.Actor = m.plan.Name, m.plan.Started, plan.Name, plan.Actor
	if r.VCPUs == nil {
		r.VCPUs = []patch.VCPU{}
	}
	if r.Sites == nil {
		r.Sites = []patch.Site{}
	}
	r.TextBefore = before
	if r.TextAfter, err = m.hashText(state.Text); err != nil {
		out.notes = append(out.notes, err.Error())
	}
	if r.Number == 0 { // a dry run, or refused before it was an attempt
		out.log = ""
		return out, nil
	}
	p.keep(r)
	m.tellPatch(r)
	if out.head, err = m.logPatch(*r); err != nil {
		out.log, out.notes = "", append(out.notes, err.Error())
	}
	return out, nil
}

// send hands the plan to the engine.
func (p *patches) send(w session.Wire, plan patch.Plan) (<-chan answer, error) {
	b, err := json.Marshal(plan)
	if err != nil {
		return nil, err
	}
	fd, err := session.Seal("plan", b)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return nil, errEndedVM
	}
	p.id++
	if err := w.Send(session.Message{Patch: &session.Patch{ID: p.id, Length: len(b)}}, fd); err != nil {
		return nil, fmt.Errorf("the engine was not reached: %w", err)
	}
	p.waiting = make(chan answer, 1)
	return p.waiting, nil
}

// keep takes a record for the report and the metrics.
func (p *patches) keep(r *patch.Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.list = append(p.list, patchReport(r)); len(p.list) >= 2*mostReported {
		p.list = slices.Delete(p.list, 0, len(p.list)-mostReported)
	}
	p.counts.Number = max(p.counts.Number, r.Number)
	if p.counts.Outcomes == nil {
		return // nobody has told how patches stand; a test
	}
	p.counts.Outcomes[r.Outcome]++
	for i := range r.VCPUs {
		if ns := timesOf(r, &r.VCPUs[i]).pause; ns != nil {
			one := p.counts.Pauses[r.VCPUs[i].ID]
			if one == nil {
				one = &observe.Pauses{}
				p.counts.Pauses[r.VCPUs[i].ID] = one
			}
			one.Add(*ns)
		}
	}
}

func (p *patches) complain(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trouble = append(p.trouble, what)
}

// readyLog makes sure that a record can be appended, and appends what could not be before.
func (m *monitor) readyLog() (path string, notes []string, err error) {
	if path, err = m.patchLog(); err != nil {
		return "", nil, err
	}
	if m.plan.PatchLog == "" {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return "", nil, fmt.Errorf("patch log: %w: start the VM with --patch-log FILE", err)
		}
	}
	p := &m.patches
	p.mu.Lock()
	late := p.unlogged
	p.mu.Unlock()
	for len(late) > 0 {
		_, head, err := audit.Append(path, &late[0])
		if err != nil {
			return "", nil, fmt.Errorf("patch %d is still to be logged: %w", late[0].Number, err)
		}
		notes = append(notes, fmt.Sprintf("patch %d, which could not be logged when it was made, is in the log now", late[0].Number))
		late = late[1:]
		p.mu.Lock()
		p.unlogged, p.head = late, head
		p.mu.Unlock()
	}
	t, err := audit.Check(path)
	if torn := t.TornText(path); torn != "" {
		notes = append(notes, torn)
	}
	return path, notes, err
}

// logPatch appends a record; what the log does not take is kept for later.
func (m *monitor) logPatch(r patch.Record) (audit.Hash, error) {
	p := &m.patches
	path, err := m.patchLog()
	var head audit.Hash
	if err == nil {
		_, head, err = audit.Append(path, &r)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.unlogged = append(p.unlogged, r)
		return head, fmt.Errorf("patch %d is not logged: %w: no other is made before it is", r.Number, err)
	}
	p.head = head
	return head, nil
}

// tellPatch tells who started the run.
func (m *monitor) tellPatch(r *patch.Record) {
	if m.plan.Quiet {
		return
	}
	why := ""
	if r.Reason != "" {
		why = ": " + oneLine(r.Reason)
	}
	fmt.Fprintf(os.Stderr, "cloister: patch %d %s by %s: %s%s\n", r.Number, r.Outcome, r.Actor, oneLine(r.Name), why)
}

// patchFacts puts the patches into the report.
func (m *monitor) patchFacts(f *breaks.Facts) {
	p := &m.patches
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(p.counts.Pauses)) {
		f.PatchPauses = append(f.PatchPauses, p.counts.Pauses[id].Report(id))
	}
	f.Patches = append(f.Patches, p.list[max(0, len(p.list)-mostReported):]...)
	if p.head != (audit.Hash{}) {
		if path, err := m.patchLog(); err == nil { // it was appended to
			f.PatchLog = &breaks.PatchLog{File: path, Head: p.head.String()}
		}
	}
	f.FailedClauses = append(f.FailedClauses, p.trouble...)
	for _, r := range p.unlogged {
		f.FailedClauses = append(f.FailedClauses, fmt.Sprintf("patch %d (%s) is not in the log", r.Number, r.Outcome))
	}
}

func patchReport(r *patch.Record) breaks.PatchReport {
	out := breaks.PatchReport{Number: r.Number, Outcome: r.Outcome, Name: r.Name, Reverts: r.Reverts, Actor: r.Actor, Time: r.Time, Reason: r.Reason, Stops: r.Stops}
	for i := range r.VCPUs {
		v := &r.VCPUs[i]
		t := timesOf(r, v)
		one := breaks.PatchPause{ID: v.ID, Where: v.Where, Break: v.Break, StopNS: t.stop, PauseNS: t.pause}
		if v.CPU >= 0 {
			cpu := v.CPU
			one.CPU = &cpu
		}
		out.VCPUs = append(out.VCPUs, one)
	}
	return out
}

// times of a vCPU in a patch, ns; nil: there was none, or it is not known.
type times struct {
	stop    *uint64 // from the request to its acknowledgement
	stores  *uint64 // from the first store to the last
	sync    *uint64 // from the last store, or where none was made from the last acknowledgement, until it had serialised
	release *uint64 // from there until all were let go
	pause   *uint64 // from its acknowledgement until then
}

func timesOf(r *patch.Record, v *patch.VCPU) (t times) {
	between := func(from, to uint64) *uint64 {
		if r.TSCHz == 0 || from == 0 || to < from {
			return nil
		}
		ns := breaks.Nanoseconds(to-from, r.TSCHz)
		return &ns
	}
	if v.AckTSC == 0 || v.Where == patch.WhereEnded || v.Where == patch.WhereIdle {
		return t
	}
	t.stop = between(r.Requested, v.AckTSC)
	t.stores = between(r.FirstStore, r.LastStore)
	stored := r.LastStore
	if stored == 0 {
		stored = r.Stopped
	}
	t.sync = between(stored, v.SyncTSC)
	t.release = between(v.SyncTSC, r.Released)
	t.pause = between(v.AckTSC, r.Released)
	return t
}
