package vmm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/guest/elf"
	"github.com/cloister-vmm/cloister/guest/linux"
	"github.com/cloister-vmm/cloister/guest/mem"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/vcpu"
	"golang.org/x/sys/unix"
)

// Span is guest addresses [Start, End).
type Span struct{ Start, End uint64 }

// Patchable is what of the program can be patched: nothing when SpareText is empty.
type Patchable struct {
	Text                 []Span // the program's, in read-only slots
	SpareText, SpareData Span
	SafePoints           bool // it declares some, or may yet (SafepointWord)
	SafeRIPs             bool
}

// patching is the machine's side of a patch: spare memory, the alias, safe points.
type patching struct {
	what    Patchable
	rips    []uint64 // declared safe instructions
	aliases []alias  // writable views of text; made at the first patch, never unmapped while the guest runs

	mu       sync.Mutex
	words    []uint64 // addresses of safe words
	left     []uint64 // those that Scatter has yet to clear
	number   uint64   // of the patch that waits for safe points; 0: none
	epoch    uint64   // of the latest Gather
	arrived  chan struct{}
	released chan struct{}
	entries  []uint64 // functions that are redirected
}

// alias is the writable view of one range of text.
type alias struct {
	Span
	b       []byte
	mapping []byte // of whole pages, with b in it
}

// safe is a processor's part. Guarded by patching.mu.
type safe struct {
	here  bool   // waits at a safe point
	quiet bool   // runs nothing that is patched
	epoch uint64 // for which its wait was planned
}

const redirectSize = 5 // bytes of a patchable entry: JMP rel32

// layOutPatching reserves spare memory next to the image, if the program says that it can be patched or the user does.
func (m *Machine) layOutPatching(low, high uint64) {
	s := &m.patching
	s.arrived, s.released = make(chan struct{}, 1), make(chan struct{})
	n := m.cfg.PatchSpace
	for _, note := range m.image.Notes {
		switch note.Type {
		case abi.NoteSite, abi.NotePatchable:
			if n == 0 {
				n = abi.PatchSpace
			}
		case abi.NoteSafeRIP:
			s.rips = append(s.rips, note.Addr+m.bias)
		case abi.NoteSafeWord:
			if len(s.words) < abi.SafeWords && (note.Addr+m.bias)%4 == 0 {
				s.words = append(s.words, note.Addr+m.bias)
			}
		}
	}
	if n == 0 {
		return
	}
	n = (n + abi.Page - 1) &^ (abi.Page - 1)
	at := low - 2*n // reachable by a JMP from the program's text
	if low < abi.LowestUser+2*n {
		at = high
	}
	s.what.SpareText, s.what.SpareData = Span{at, at + n}, Span{at + n, at + 2*n}
}

// mapPatching maps what layOutPatching has reserved, and makes the window read-only over text: from here on the alias is the only
// way to write there.
func (m *Machine) mapPatching() error {
	s := &m.patching
	for _, p := range m.image.Pages {
		if p.Prot&elf.X != 0 {
			s.what.Text = append(s.what.Text, Span{p.VAddr + m.bias, p.VAddr + p.Size + m.bias})
		}
	}
	s.what.SafePoints, s.what.SafeRIPs = len(s.words)+len(s.rips) > 0, len(s.rips) > 0
	if s.what.SpareText.End > 0 {
		if err := m.space.MapFixed(s.what.SpareText.Start, s.what.SpareText.End, mem.Read|mem.Exec, "[patch text]"); err != nil {
			return fmt.Errorf("spare text for patches: %w", err)
		}
		if err := m.space.MapFixed(s.what.SpareData.Start, s.what.SpareData.End, mem.Read|mem.Write, "[patch data]"); err != nil {
			return fmt.Errorf("spare data for patches: %w", err)
		}
	}
	if m.cfg.Huge {
		return nil // a page of the window is then larger than the text
	}
	for _, t := range s.textSpans() {
		if err := unix.Mprotect(m.window[t.Start:t.End], unix.PROT_READ); err != nil {
			return fmt.Errorf("make the text at %#x read-only: %w", t.Start, err)
		}
	}
	return nil
}

func (s *patching) textSpans() []Span { return append(s.spare(), s.what.Text...) }

// text is the range of text, the spare one included, that holds n bytes at addr.
func (s *patching) text(addr uint64, n int) (Span, bool) {
	if s.what.SpareText.holds(addr, n) {
		return s.what.SpareText, true
	}
	for _, t := range s.what.Text {
		if t.holds(addr, n) {
			return t, true
		}
	}
	return Span{}, false
}

// spare is the spare text, if there is any.
func (s *patching) spare() []Span {
	if s.what.SpareText.End == 0 {
		return nil
	}
	return []Span{s.what.SpareText}
}

// Patchable tells what of the program can be patched.
func (m *Machine) Patchable() Patchable {
	s := &m.patching
	p := s.what
	s.mu.Lock()
	p.SafePoints = p.SafePoints || len(s.words) > 0
	s.mu.Unlock()
	return p
}

// Look gives n bytes at addr, which must be text, spare text or spare data, as the guest sees them.
func (m *Machine) Look(addr uint64, n int) ([]byte, error) {
	s := &m.patching
	if _, ok := s.text(addr, n); ok || s.what.SpareData.holds(addr, n) {
		return m.window[addr : addr+uint64(n)], nil
	}
	return nil, fmt.Errorf("guest address %#x, %d bytes: not within one range of text", addr, n)
}

// Writable gives the same bytes to be written. Only for who patches, while no vCPU executes them.
func (m *Machine) Writable(addr uint64, n int) ([]byte, error) {
	s := &m.patching
	if s.what.SpareData.holds(addr, n) {
		return m.window[addr : addr+uint64(n)], nil
	}
	for i := range s.aliases {
		if t := &s.aliases[i]; t.holds(addr, n) {
			return t.b[addr-t.Start : addr-t.Start+uint64(n)], nil
		}
	}
	t, ok := s.text(addr, n)
	if !ok {
		return nil, fmt.Errorf("guest address %#x, %d bytes: not within one range of text", addr, n)
	}
	// Shared pages of the guest's own memory file; populated, so that no store waits for a fault while the vCPUs do.
	whole := t
	if m.cfg.Huge { // a mapping is of whole pages
		whole.Start, whole.End = t.Start&^(hugePage-1), (t.End+hugePage-1)&^(hugePage-1)
	}
	b, err := unix.Mmap(m.cfg.Guest, int64(whole.Start), int(whole.End-whole.Start), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map the text at %#x for writing: %w", t.Start, err)
	}
	s.aliases = append(s.aliases, alias{t, b[t.Start-whole.Start:], b})
	b = b[t.Start-whole.Start:]
	return b[addr-t.Start : addr-t.Start+uint64(n)], nil
}

// hugePage is the size of the pages of hugetlbfs that guest memory may have.
const hugePage = 2 << 20

func (t Span) holds(addr uint64, n int) bool {
	return addr >= t.Start && addr < t.End && uint64(n) <= t.End-addr
}

// Halt is the machine stopped for a patch.
type Halt struct {
	*vcpu.Stopped
	m    *Machine
	list []Place         // room for Places
	was  *unix.SchedAttr // scheduling class of the thread that patches, if it was changed
}

// Place is a vCPU's while it is stopped.
type Place struct {
	vcpu.Place
	Thread string // name of the guest's thread
	Idle   bool   // it has none
	Here   bool   // waits at its safe point
	Safe   bool   // Here, quiet, idle, or at a declared instruction
}

// StopToPatch stops every vCPU for a patch. With rehearse it goes the same way and stops none (vcpu.Set.Rehearsal).
func (m *Machine) StopToPatch(why vcpu.Purpose, limit time.Duration, rehearse bool) (*Halt, error) {
	m.mu.Lock()
	n := len(m.vcpus)
	m.mu.Unlock()
	h := &Halt{m: m, list: make([]Place, 0, n+1)} // before the stop: then all vCPUs wait
	set := m.set
	if rehearse {
		set = set.Rehearsal()
	} else {
		select {
		case <-m.done: // nothing would be stopped, and nothing patched
			return nil, errors.New("the program has ended")
		default:
		}
		h.hurry()
	}
	p, err := set.StopFor(why, limit)
	if err != nil {
		h.calm()
		return nil, err
	}
	h.Stopped = p
	return h, nil
}

// ResumeThen is vcpu.Stopped's.
func (h *Halt) ResumeThen(limit time.Duration, then func()) error {
	defer h.calm()
	return h.Stopped.ResumeThen(limit, then)
}

// End is vcpu.Stopped's.
func (h *Halt) End(limit time.Duration) error {
	defer h.calm()
	return h.Stopped.End(limit)
}

// hurry puts the calling thread into SCHED_FIFO, with the vCPUs' priority or, where they have none, the lowest, up to calm: while they are stopped, what they wait for is
// this thread, and on its CPU anybody may be busy, the Go runtime's own threads before all. It never spins for long (vcpu.Config.SpinStop), so it keeps nobody away.
func (h *Halt) hurry() {
	runtime.LockOSThread()
	was, err := unix.SchedGetAttr(0, 0)
	if err == nil {
		err = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: uint32(max(1, h.m.cfg.FIFO))}, 0)
	}
	if err != nil {
		if h.m.cfg.FIFO != 0 { // who may not have it for vCPUs may not have it here, and has not asked
			h.m.cfg.Warn(fmt.Sprintf("the thread that patches stays in its scheduling class: %v", err))
		}
		runtime.UnlockOSThread()
		return
	}
	h.was = was
}

func (h *Halt) calm() {
	if h.was == nil {
		return
	}
	if err := unix.SchedSetAttr(0, h.was, 0); err != nil {
		// Locked for good: the thread, which is too important now, ends with the goroutine.
		h.m.cfg.Warn(fmt.Sprintf("the thread that patched stays in SCHED_FIFO: %v", err))
		return
	}
	h.was = nil
	runtime.UnlockOSThread()
}

// Places tells where each vCPU stands, or stood, in the function that ResumeThen calls, where none was Near.
func (h *Halt) Places() []Place {
	m := h.m
	list := h.list[:0]
	m.mu.Lock()
	defer m.mu.Unlock()
	m.patching.mu.Lock()
	defer m.patching.mu.Unlock()
	for i := range h.VCPUs() {
		v := Place{Place: h.Place(i)}
		p := m.vcpus[v.ID]
		// Who was taken out of the guest's code was neither, whatever it is by now, if it was let go.
		v.Idle, v.Here = !p.busy && !v.Between && v.Cause == breaks.Unknown, p.safe.here && !v.Between
		v.Thread = p.name
		v.Safe = v.Idle || v.Here || p.safe.quiet || v.Between && slices.Contains(m.patching.rips, v.RIPs[0])
		list = append(list, v)
	}
	return list
}

// Exits is KVM's count of the exits of each vCPU, by number; 0: it gives none. It touches no vCPU that runs.
func (m *Machine) Exits() []uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]uint64, len(m.vcpus))
	for i, p := range m.vcpus {
		if p.stats == nil || p.exitsAt < 0 {
			continue
		}
		n, err := p.stats.One(p.exitsAt)
		if err != nil {
			m.cfg.Warn(err.Error())
		}
		list[i] = n
	}
	return list
}

// Gather asks every thread to wait at its next safe point for patch number.
func (m *Machine) Gather(number uint64) {
	s := &m.patching
	s.mu.Lock()
	defer s.mu.Unlock()
	s.number = number
	s.epoch++
	setWords(s.words, 1, m.out)
}

// Await returns empty when every thread that must come waits at its safe point, or at until the name of one that does not.
func (m *Machine) Await(until time.Time) (missing string) {
	for {
		if missing = m.missing(); missing == "" {
			return ""
		}
		left := time.Until(until)
		if left <= 0 {
			return missing
		}
		select {
		case <-m.patching.arrived:
		case <-time.After(min(left, 5*time.Millisecond)): // threads that end come by no other way
		case <-m.done:
			return ""
		}
	}
}

func (m *Machine) missing() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &m.patching
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range m.vcpus {
		if p.busy && !p.safe.here && !p.safe.quiet {
			return fmt.Sprintf("thread %q (vCPU %d)", p.name, p.id)
		}
	}
	return ""
}

// Scatter lets the threads go on that wait at a safe point. Its first call does not wait, since vCPUs may be stopped: safe words that cannot be looked up at once, while
// a thread changes mappings, are left for the next call. A thread that calls meanwhile goes on at once.
func (m *Machine) Scatter() {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &m.patching
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.number == 0 {
		if words := s.left; len(words) > 0 {
			s.left = nil
			// Nobody waits for what these locks guard.
			s.mu.Unlock()
			m.mu.Unlock()
			setWords(words, 0, m.out)
			m.mu.Lock()
			s.mu.Lock()
		}
		return
	}
	s.left = setWords(s.words, 0, m.space.OutNow)
	s.number = 0
	for _, p := range m.vcpus {
		p.safe.here = false
	}
	close(s.released)
	s.released = make(chan struct{})
}

// setWords writes the program's safe words, and returns those that out calls busy. One that is no longer there, or lies in a file that has shrunk, is passed over.
func setWords(words []uint64, v uint32, out func(a, n uint64) (b []byte, busy bool)) (left []uint64) {
	for _, a := range words {
		b, busy := out(a, 4)
		switch {
		case busy:
			left = append(left, a)
		case b != nil:
			_ = linux.Safely(func() { storeWord(b, v) }) // the fault of that file
		}
	}
	return left
}

// out is mem.Space.Out for setWords: nothing is busy to who waits.
func (m *Machine) out(a, n uint64) ([]byte, bool) {
	b, _ := m.space.Out(a, n) // nil where there is nothing
	return b, false
}

// Entries tells which functions are redirected.
func (m *Machine) Entries(starts []uint64) {
	s := &m.patching
	s.mu.Lock()
	s.entries = slices.Clone(starts)
	s.mu.Unlock()
}

// landing is linux.Config.Landing. A signal may have interrupted a function among the NOPs of its entry, which are a JMP now. They have no
// effect, so the entry is as good a place to return to, and the JMP is what the function begins with.
func (m *Machine) landing(rip uint64) uint64 {
	s := &m.patching
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.entries {
		if rip > e && rip < e+redirectSize {
			return e
		}
	}
	return rip
}

// Condemn ends the run with an error; the vCPUs have been told to end.
func (m *Machine) Condemn(reason string) {
	m.setResult(Result{Ended: "error", Reason: reason})
	m.ends()
	m.kernel.End()
	var one [8]byte
	binary.LittleEndian.PutUint64(one[:], 1)
	if _, err := unix.Write(m.stopper, one[:]); err != nil {
		m.cfg.Warn("end blocking calls: " + err.Error())
	}
}

// fail is Condemn for who may hold the kernel's lock, which Condemn takes, or be within a stop: no vCPU goes on behind it, and the rest follows by itself.
func (m *Machine) fail(reason string) {
	m.setResult(Result{Ended: "error", Reason: reason})
	m.ends()
	m.ender.Add(1)
	go func() {
		defer m.ender.Done()
		m.Condemn(reason)
	}()
}

// died is vcpu.Set.Died. A run that was to be stopped, and could not be any more, was not stopped.
func (m *Machine) died(err error) {
	m.mu.Lock()
	if m.result != nil && m.result.Ended == "stopped" {
		m.result = &Result{Ended: "error", Reason: err.Error()}
	}
	m.mu.Unlock()
	m.fail(err.Error())
}

// safePoint is linux.Config.SafePoint.
func (m *Machine) safePoint(what, arg uint64) unix.Errno {
	p := m.kernel.Current().Data.(*processor)
	s := &m.patching
	switch what {
	case abi.SafepointHere:
		p.want = wantSafePoint
		return 0
	case abi.SafepointWord:
		if arg%4 != 0 {
			return unix.EINVAL
		}
		if _, e := m.space.Out(arg, 4); e != 0 {
			return e
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		switch {
		case slices.Contains(s.words, arg):
			return 0
		case len(s.words) >= abi.SafeWords:
			return unix.ENOSPC
		}
		s.words = append(s.words, arg)
		if s.number != 0 {
			setWords(s.words, 1, m.out)
		}
		return 0
	case abi.SafepointQuiet:
		if arg > 1 {
			return unix.EINVAL
		}
		s.mu.Lock()
		p.safe.quiet = arg == 1
		s.mu.Unlock()
		s.arrive()
		return 0
	}
	return unix.EINVAL
}

// forget is told that p's thread has ended.
func (s *patching) forget(p *processor) {
	s.mu.Lock()
	p.safe = safe{epoch: p.safe.epoch}
	s.mu.Unlock()
	s.arrive()
}

func (s *patching) arrive() {
	select {
	case s.arrived <- struct{}{}:
	default:
	}
}

// waitSafe keeps the thread, whose call is being answered, out of the guest until the patch that waits for it is made. Its break is
// planned: once for each patch, so that a program cannot hide its calls behind one.
func (p *processor) waitSafe() {
	s := &p.m.patching
	s.mu.Lock()
	if p.safe.epoch != s.epoch {
		p.safe.epoch = s.epoch
		p.x.Book(breaks.SafePoint, s.number)
	}
	waits, released := s.number != 0, s.released
	p.safe.here = waits
	s.mu.Unlock()
	if !waits {
		return
	}
	s.arrive()
	select {
	case <-released:
	case <-p.m.over:
	}
}

// sync is linux.Config.Sync.
func (m *Machine) sync() unix.Errno {
	if m.serialise("serialise all vCPUs") != nil {
		return unix.ETIMEDOUT
	}
	return 0
}

// serialise is the stop of a patch without stores. The error is that of a stop that came to nothing; any other ends the run.
func (m *Machine) serialise(what string) error {
	p, err := m.set.StopFor(vcpu.Purpose{Cause: breaks.Sync}, stopLimit)
	if errors.Is(err, vcpu.ErrStopTimeout) {
		return err
	}
	if err == nil {
		err = p.Resume(resumeLimit)
	}
	if err != nil {
		m.fail(what + ": " + err.Error())
	}
	return nil
}

// storeWord is a store that other vCPUs see whole.
func storeWord(b []byte, v uint32) {
	atomic.StoreUint32(word32(b), v) // ORDER(O13): after the patch's number was set; pairs with the program's load, and the call that follows it. Without the order that call would find no patch
}
