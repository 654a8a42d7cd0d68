package patch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Limits of the protocol. A healthy machine needs some tens of microseconds for each; reaching one means that a core is held by something else.
const (
	StopLimit   = 100 * time.Millisecond
	ResumeLimit = time.Second
)

// Back-off between two stops in vain: it doubles from the first to the last.
const (
	firstPause = 100 * time.Microsecond
	lastPause  = 5 * time.Millisecond
)

// Patcher patches one VM.
type Patcher struct {
	g Guest

	mu    sync.Mutex // one patch at a time (I7)
	state State
	dead  string // why the VM was ended by a patch; empty: it was not

	// at, in tests, is called at each numbered step; an error is taken for a failure of that step.
	at func(step string) error
}

// New makes the patcher of a VM whose Text, spare memory, BuildID and SafePoints are those of s.
func New(g Guest, s State) *Patcher {
	s.StopLimit, s.ResumeLimit = StopLimit, ResumeLimit
	return &Patcher{g: g, state: s}
}

// State is the VM as the next plan has to be made for it.
func (p *Patcher) State() State {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.state
	s.SafePoints = p.g.SafePoints()
	s.Applied = append([]Applied(nil), s.Applied...)
	return s
}

// Apply carries a plan out, and tells what became of it. A dry run has no number, and the outcome Checked or Refused.
func (p *Patcher) Apply(plan Plan) Record {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := &attempt{p: p, plan: &plan, sites: plan.Sites, r: Record{
		Schema: RecordSchema, BuildID: p.state.BuildID, Reverts: plan.Revert, Name: plan.Name, Actor: plan.Actor, Digest: plan.Digest,
		Time: time.Now().Format(time.RFC3339Nano), Requested: p.g.TSC(), TSCHz: p.state.TSCHz, Outcome: Refused,
	}}
	if !plan.DryRun {
		p.state.Number++
		a.r.Number = p.state.Number
	}
	if err := a.prepare(); err != nil {
		a.r.Reason = err.Error()
	} else if plan.DryRun {
		a.r.Outcome = Checked
	} else {
		a.run()
	}
	a.r.Sites = a.sites
	if a.r.Outcome == Committed {
		p.commit(a)
	}
	return a.r
}

// commit keeps what State and a later revert need.
func (p *Patcher) commit(a *attempt) {
	s := &p.state
	if n := len(a.plan.Text); n > 0 {
		s.SpareText.Used = a.plan.Text[n-1].Addr + uint64(len(a.plan.Text[n-1].Bytes))
	}
	if n := len(a.plan.Data); n > 0 {
		s.SpareData.Used = a.plan.Data[n-1].Addr + uint64(len(a.plan.Data[n-1].Bytes))
	}
	if a.plan.Revert == 0 {
		s.Applied = fold(append(s.Applied, Applied{Number: a.r.Number, Name: a.plan.Name, Sites: a.sites}))
		return
	}
	kept := make([]Applied, 0, len(s.Applied))
	for _, old := range s.Applied {
		if old.Number != a.plan.Revert {
			kept = append(kept, old)
		}
	}
	s.Applied = kept
}

// fold leaves MostApplied of the patches that later ones have overwritten in whole; the oldest of them become part of
// those. What is left explains the same text, and each of its bytes can still be taken back to what the program had.
func fold(list []Applied) []Applied {
	if len(list) <= MostApplied {
		return list
	}
	under := 0
	for i := range list {
		if overwritten(list, i) {
			under++
		}
	}
	for i := 0; i < len(list) && under > MostApplied; {
		if !overwritten(list, i) {
			i++
			continue
		}
		oldest := list[i].Number
		if list[i].Since > 0 {
			oldest = list[i].Since
		}
		for j := range list[i].Sites {
			at, w := above(list, i, &list[i].Sites[j])
			// A record that somebody may still read has the same sites: they are copied.
			list[at].Sites = slices.Clone(list[at].Sites)
			list[at].Sites[w].Old = list[i].Sites[j].Old
			if o := &list[at]; o.Since == 0 || o.Since > oldest {
				o.Since = oldest
			}
		}
		list = slices.Delete(list, i, i+1)
		under--
	}
	return list
}

// overwritten says whether later patches lie over each site of patch i, exactly.
func overwritten(list []Applied, i int) bool {
	for j := range list[i].Sites {
		if at, _ := above(list, i, &list[i].Sites[j]); at < 0 {
			return false
		}
	}
	return true
}

// above is the next patch over a site of patch i, and which of its sites; -1: there is none, or it has other bounds.
func above(list []Applied, i int, under *Site) (at, site int) {
	for at := i + 1; at < len(list); at++ {
		for j := range list[at].Sites {
			over := &list[at].Sites[j]
			switch {
			case over.Addr == under.Addr && len(over.Old) == len(under.Old):
				return at, j
			case over.Addr < under.Addr+uint64(len(under.Old)) && under.Addr < over.Addr+uint64(len(over.Old)):
				return -1, 0
			}
		}
	}
	return -1, 0
}

// entries is every function entry that is a JMP, if the sites of a are in force; nil: without them.
func (p *Patcher) entries(a *attempt) (list []uint64) {
	for _, old := range p.state.Applied {
		if a != nil && old.Number == a.plan.Revert {
			continue
		}
		for _, w := range old.Sites {
			if w.Kind == Redirect {
				list = append(list, w.Addr)
			}
		}
	}
	if a != nil && a.plan.Revert == 0 {
		for _, w := range a.sites {
			if w.Kind == Redirect {
				list = append(list, w.Addr)
			}
		}
	}
	return list
}

// redirects says whether a changes which functions are redirected.
func (a *attempt) redirects() bool {
	for i := range a.sites {
		if a.sites[i].Kind == Redirect {
			return true
		}
	}
	return false
}

// attempt is one patch on its way.
type attempt struct {
	p     *Patcher
	plan  *Plan
	sites []Site
	r     Record

	retries map[int]int // stops in vain, by vCPU
	before  []uint64    // what Guest.Entries was told last …
	entries []uint64    // … and is told when the patch is committed
	exits   []uint64    // before the stop, by vCPU

	dry     bool      // rehearse: nothing is stored, no step is told of
	scratch [3]uint64 // where a rehearsal stores: words, as text has them, for MaxSite bytes at any place of the first
}

func (a *attempt) step(name string) error {
	if a.p.at != nil && !a.dry {
		return a.p.at(name)
	}
	return nil
}

func (a *attempt) stopLimit() time.Duration {
	if a.plan.StopLimit > 0 {
		return a.plan.StopLimit
	}
	return a.p.state.StopLimit
}

// prepare is P0.
func (a *attempt) prepare() error {
	p := a.p
	p.state.SafePoints = p.g.SafePoints()
	if p.dead != "" {
		return fmt.Errorf("the VM was ended by a patch: %s", p.dead)
	}
	if n := a.plan.Revert; n != 0 {
		if len(a.plan.Sites)+len(a.plan.Text)+len(a.plan.Data) > 0 {
			return fmt.Errorf("revert of patch %d: the plan has sites of its own", n)
		}
		back, err := reversal(&p.state, n)
		if err != nil {
			return err
		}
		a.sites = back
		a.plan.BuildID = p.state.BuildID
		a.plan.SafePoint = (len(back) > 1 || a.plan.SafePoint) && p.state.SafePoints
		a.plan.Sites = back
	}
	if err := a.plan.check(&p.state); err != nil {
		return err
	}
	if err := compare(p.g, a.sites); err != nil { // again when stopped; here a wrong plan costs no stop
		return err
	}
	for i := range a.sites {
		if w := &a.sites[i]; !a.plan.DryRun {
			if err := p.g.Prepare(w.Addr, len(w.New)); err != nil {
				return fmt.Errorf("site %s at %#x: %w", w.Name, w.Addr, err)
			}
		}
	}
	a.before, a.entries = p.entries(nil), p.entries(a)
	return nil
}

// run is P1 to P8, again while a vCPU stands where it must not, up to the plan's limit.
func (a *attempt) run() {
	g := a.p.g
	limit := a.plan.Wait
	if limit == 0 {
		limit = DefaultWait
	}
	deadline := time.Now().Add(limit)
	if err := a.load(); err != nil {
		a.r.Reason = err.Error()
		return
	}
	if a.plan.SafePoint {
		g.Gather(a.r.Number)
		defer g.Scatter()
	}
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		if a.plan.SafePoint {
			// Who comes by itself is not kicked. Who does not may still be found at a declared instruction, if there is one.
			until := deadline
			if a.p.state.SafeRIPs {
				until = time.Now().Add(pause)
			}
			if missing := g.Await(until); missing != "" && !a.p.state.SafeRIPs {
				a.r.Reason = fmt.Sprintf("%s did not come to a safe point within %v: have it call cloister_safepoint(), or cloister_quiet(1) if it never runs patched code", missing, limit)
				break
			}
		}
		stores := a.stores()
		if stores == nil {
			a.rehearse()
		}
		again, why := a.once(g, stores)
		if !again {
			break
		}
		if time.Now().Add(pause).After(deadline) {
			a.r.Outcome, a.r.Reason = Refused, fmt.Sprintf("%s, after %d stops within %v", why, a.r.Stops, limit)
			break
		}
		g.Sleep(pause)
	}
	if a.r.Outcome != Committed {
		a.unload()
	}
}

// load writes new code and data where nobody has ever executed or used them.
func (a *attempt) load() error {
	for _, list := range [][]Chunk{a.plan.Text, a.plan.Data} {
		for _, c := range list {
			if len(c.Bytes) == 0 {
				continue
			}
			to, err := a.p.g.Writable(c.Addr, len(c.Bytes))
			if err != nil {
				return fmt.Errorf("load %d bytes at %#x: %w", len(c.Bytes), c.Addr, err)
			}
			copy(to, c.Bytes)
		}
	}
	for _, c := range a.plan.Text {
		a.r.SpareText += len(c.Bytes)
	}
	for _, c := range a.plan.Data {
		a.r.SpareData += len(c.Bytes)
	}
	return nil
}

// unload leaves the spare memory as it was found.
func (a *attempt) unload() {
	for _, list := range [][]Chunk{a.plan.Text, a.plan.Data} {
		for _, c := range list {
			if to, err := a.p.g.Writable(c.Addr, len(c.Bytes)); err == nil {
				clear(to)
			}
		}
	}
	a.r.SpareText, a.r.SpareData = 0, 0
}

// stores is the patch as the last vCPU to stop can make it, without a judgement of Go's: nil when it cannot be made so.
func (a *attempt) stores() (list []Store) {
	if a.plan.SafePoint || a.p.at != nil || a.restartable() {
		return nil
	}
	at := uint64(0) // of the last word
	for i := range a.sites {
		w := &a.sites[i]
		for k := range w.New {
			addr := w.Addr + uint64(k)
			if len(list) == 0 || addr&^7 != at {
				at = addr &^ 7
				to, see, ok := a.p.g.Word(at)
				if !ok || len(list) == MostStores || !bytes.Equal(to, see) {
					return nil
				}
				v := binary.LittleEndian.Uint64(see)
				list = append(list, Store{To: to, Old: v, New: v})
			}
			s, shift := &list[len(list)-1], 8*(addr&7)
			s.Old = s.Old&^(0xff<<shift) | uint64(w.Old[k])<<shift
			s.New = s.New&^(0xff<<shift) | uint64(w.New[k])<<shift
		}
	}
	return list
}

// restartable says whether some site needs more than that no vCPU is Near: its first address is not good either.
func (a *attempt) restartable() bool {
	return slices.ContainsFunc(a.sites, func(w Site) bool { return w.Restartable })
}

// once is one stop. again says that a vCPU stood where it must not, and why.
func (a *attempt) once(g Guest, stores []Store) (again bool, why string) {
	if err := a.step("P1"); err != nil {
		a.r.Outcome, a.r.Reason = Aborted, err.Error()
		return false, ""
	}
	if !a.dry {
		a.exits = g.Exits()
	}
	// What the record says of a stop is of the last one, or nothing.
	a.r.Stopped, a.r.Begun, a.r.Generation, a.r.FirstStore, a.r.LastStore, a.r.Released, a.r.VCPUs = 0, 0, 0, 0, 0, 0, nil
	end := &a.sites[len(a.sites)-1]
	within := Range{a.sites[0].Addr, end.Addr + uint64(len(end.Old))}
	var h Halt
	var places []Place
	ask := func() {
		if places == nil {
			places = h.Places()
		}
	}
	var err error
	glance := a.glance
	if stores != nil {
		glance = nil // it would fetch the words' lines from who stores there
	}
	if a.redirects() && !a.dry {
		// Those that are, and those that may be from here on: at one that is not, NOPs are executed once more.
		g.Entries(slices.Concat(a.before, a.entries))
		defer func() {
			now := a.before
			if a.r.Outcome == Committed {
				now = a.entries
			}
			g.Entries(now)
		}()
	}
	h, err = g.Stop(a.r.Number, within, stores, a.stopLimit(), glance) // P1, P2. From here to P8 every vCPU waits: what can be done before or behind is not done here
	a.r.Stops++
	if err != nil {
		if a.r.Outcome, a.r.Reason = Aborted, err.Error(); errors.Is(err, ErrDied) {
			a.r.Outcome, a.p.dead = Dead, err.Error()
			g.Condemn("patch " + a.plan.Name + ": " + a.p.dead)
		}
		return false, ""
	}
	a.r.Stopped, a.r.Begun, a.r.Generation = g.TSC(), h.Begun(), h.Generation()
	var outcome, reason string
	made, doubt, first, last := h.Made()
	switch {
	case made: // P3 to P6 by the last vCPU
		// It has seen the last acknowledgement, its own, when it began.
		outcome, a.r.Stopped, a.r.FirstStore, a.r.LastStore = Committed, first, first, last
	case doubt:
		a.r.FirstStore = first
		outcome, reason = Dead, "the vCPU that stores does not finish, or what it stores reads back as something else, and so does what was there before"
	default:
		if why, places = a.judge(h); why != "" {
			outcome, reason = Refused, why
			break
		}
		outcome, reason = a.change()
	}
	if outcome == Dead {
		ask()
		a.die(h, places, reason)
		return false, ""
	}
	if outcome == Committed && !a.dry && a.plan.SafePoint {
		g.Scatter() // they wake when the vCPUs do
	}
	if err = a.step("P6"); err == nil {
		err = h.Resume(ResumeLimit, ask) // P6, P7, P8
	} else {
		err = errors.Join(err, h.End(ResumeLimit))
	}
	a.r.Released = h.Released()
	if a.dry {
		return false, ""
	}
	a.where(h, places, g.Exits())
	a.r.Outcome, a.r.Reason = outcome, reason
	if err != nil {
		a.p.dead = err.Error()
		a.r.Outcome, a.r.Reason = Dead, err.Error()
		g.Condemn("patch " + a.plan.Name + ": " + err.Error())
		return false, ""
	}
	return why != "", why
}

// judge is P3. Where none is near a site, and none must be at a safe point, no place decides anything: it is only recorded.
func (a *attempt) judge(h Halt) (why string, places []Place) {
	if !a.plan.SafePoint && !a.restartable() && !h.Near() {
		return "", nil
	}
	places = h.Places()
	for i := range places {
		if b := bad(&places[i], a.sites, a.plan.SafePoint); b != "" && why == "" {
			why = b
			if a.retries == nil {
				a.retries = map[int]int{}
			}
			a.retries[places[i].ID]++
		}
	}
	return why, places
}

// rehearse is once, with a guest that it does not stop and stores to memory of its own, before the vCPUs are asked to stop: code that is in no cache is
// fetched then, and not while all of them wait. A record that is thrown away is made of it.
func (a *attempt) rehearse() {
	if g := a.p.g.Rehearsal(); g != nil {
		b := *a
		b.dry = true
		b.once(g, nil)
	}
}

// glance looks at the sites while the vCPUs come out: the kick was a system call, and what is behind it is far again. What it finds does not matter, P4
// compares again.
func (a *attempt) glance() {
	if compare(a.p.g, a.sites) != nil {
		return
	}
	for i := range a.sites {
		if a.p.g.Prepare(a.sites[i].Addr, len(a.sites[i].New)) != nil {
			return
		}
	}
}

// change is P4 and P5.
func (a *attempt) change() (outcome, reason string) {
	err := compare(a.p.g, a.sites)
	if err == nil {
		err = a.step("P4")
	}
	if err != nil {
		return Refused, err.Error()
	}
	return a.write()
}

// writable is where a site is written.
func (a *attempt) writable(w *Site) ([]byte, error) {
	if !a.dry {
		return a.p.g.Writable(w.Addr, len(w.New))
	}
	at := w.Addr & 7
	return room(&a.scratch)[at : at+uint64(len(w.New))], a.p.g.Prepare(w.Addr, len(w.New))
}

// write is P5: every site, read back; on a difference every site back, and read back.
func (a *attempt) write() (outcome, reason string) {
	g := a.p.g
	begun := 0 // of the sites, in order: what must be taken back
	var failed error
	a.r.FirstStore = g.TSC()
	for i := range a.sites {
		w := &a.sites[i]
		to, err := a.writable(w)
		if err == nil {
			begun++
			store(to, w.Addr, w.New)
			err = a.step("P5 store")
		}
		if err != nil {
			failed = fmt.Errorf("site %s at %#x: %w", w.Name, w.Addr, err)
			break
		}
	}
	a.r.LastStore = g.TSC()
	if failed == nil {
		if failed = reads(g, a.sites, !a.dry); failed == nil {
			failed = a.step("P5 read back")
		}
	}
	if failed == nil || a.dry {
		return Committed, ""
	}
	journal := a.sites[:begun]
	for _, w := range journal {
		to, err := g.Writable(w.Addr, len(w.Old))
		if err != nil {
			return Dead, fmt.Sprintf("%v; taking it back: %v", failed, err)
		}
		store(to, w.Addr, w.Old)
	}
	if err := errors.Join(reads(g, journal, false), a.step("P5 take back")); err != nil {
		return Dead, fmt.Sprintf("%v; taking it back: %v", failed, err)
	}
	return RolledBack, failed.Error()
}

// die ends a VM whose text is in doubt: nobody executes it again.
func (a *attempt) die(h Halt, places []Place, reason string) {
	if err := h.End(ResumeLimit); err != nil {
		reason += "; end: " + err.Error()
	}
	a.where(h, places, nil)
	a.p.dead = reason
	a.r.Outcome, a.r.Reason, a.r.Released = Dead, reason, a.p.g.TSC()
	a.p.g.Condemn("patch " + a.plan.Name + ": " + reason)
}

// where records the vCPUs as they stood, and behind the resume what they did since; exits are KVM's counts now.
func (a *attempt) where(h Halt, places []Place, exits []uint64) {
	a.r.VCPUs = make([]VCPU, len(places))
	count := func(list []uint64, id int) uint64 {
		if id >= len(list) {
			return 0 // a vCPU that was made since then
		}
		return list[id]
	}
	for i, v := range places {
		a.r.VCPUs[i] = VCPU{
			ID: v.ID, CPU: v.CPU, RIP: first(v.RIPs), Where: v.Where, Thread: v.Thread, Events: v.Events, AckTSC: v.AckTSC,
			Serialise: a.p.state.Serialise, Exits: count(a.exits, v.ID), ExitsAt: count(exits, v.ID),
			Break: v.Guest || v.Where == WhereSafePoint, Retries: a.retries[v.ID],
		}
		if !v.Ended {
			a.r.VCPUs[i].SyncTSC = h.Synced(i)
		}
	}
}
