package main

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/isolation/cores"
	"github.com/cloister-vmm/cloister/patch"
	"github.com/cloister-vmm/cloister/patch/running"
	"github.com/cloister-vmm/cloister/vmm"
	"golang.org/x/sys/unix"
)

// patchCommand is the hidden subcommand that patches a guest of its own.
const patchCommand = "patch"

// The two constants of c/patched.c.
const (
	patchA = 0x11111111
	patchB = 0x22222222
)

// patchTurn is one turn: a guest with some vCPUs, patched so often.
type patchTurn struct {
	vcpus, count   int
	cpu, fifo      int // core of the first vCPU, or -1: all of them share all CPUs
	patcher        int // CPU of who patches, or -1
	deferred       bool
	program        string
	site, counters uint64 // guest addresses
}

// patched is what turns have measured, cycles: from request to release, and each vCPU's pause.
type patched struct{ whole, pause samples }

// How long whoever waits looks before it sleeps, in the floor: as in Cloister (vcpu.Config.SpinStop), and what gave the floor its best figures.
const (
	patienceOwn    = 200 * time.Microsecond // the vCPU has a core of its own
	patienceShared = time.Microsecond
)

// patches times patches of one site: all vCPUs stopped, eight bytes stored, all serialised, all released.
func (b *bench) patches() error {
	if err := b.compile("gcc", "patch.c", "floor-patch", "-pthread"); err != nil {
		return err
	}
	if err := b.compile("gcc", "patched.c", "patched", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-Wl,--build-id"); err != nil {
		return err
	}
	at, err := symbols(b.path("patched"), "site", "passes")
	if err != nil {
		return err
	}
	base := patchTurn{cpu: b.cpu, patcher: b.housekeeping(), count: (minStops + b.rounds - 1) / b.rounds, program: b.path("patched"), site: at[0], counters: at[1]}
	one := base
	one.vcpus = 1
	if err := b.classes(func(fifo int, suffix string) error {
		t := one
		t.fifo = fifo
		return b.patchRows("patch, 1 vCPU on its own core"+suffix, t, limits{1.25, 1.25, none})
	}); err != nil {
		return err
	}
	base.cpu, base.patcher = -1, -1
	for _, n := range []int{1, 2, 4, 8, 16} {
		t := base
		t.vcpus = n
		if err := b.patchRows(fmt.Sprintf("patch, %d vCPUs on %d shared CPUs", n, runtime.NumCPU()), t, limits{none, none, none}); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) patchRows(what string, t patchTurn, l limits) error {
	var ours, floor, deferred patched
	add := func(to *patched, out []byte, err error) error {
		if err != nil {
			return err
		}
		p, err := split(out)
		to.whole, to.pause = append(to.whole, p.whole...), append(to.pause, p.pause...)
		return err
	}
	for i := range b.rounds {
		sides := []func() error{
			func() error {
				out, err := b.run(b.self, t.command()...)
				return add(&ours, out, err)
			},
			func() error {
				out, err := b.run(b.path("floor-patch"), t.floor(b.hz)...)
				return add(&floor, out, err)
			},
			func() error {
				d := t
				d.deferred = true
				out, err := b.run(b.self, d.command()...)
				return add(&deferred, out, err)
			},
		}
		for k := range sides {
			if err := sides[(i+k)%len(sides)](); err != nil {
				return err
			}
		}
	}
	b.report(what+", a vCPU's pause", pair{ours.pause, floor.pause}, l)
	b.report(what+", request to release", pair{ours.whole, floor.whole}, l)
	ns := 1e9 / float64(b.hz)
	b.rows = append(b.rows, Row{What: what + ", request to release, median, against the store alone (deferred)",
		Ours: ours.whole.quantile(0.5) * ns, Base: deferred.whole.quantile(0.5) * ns, Unit: "ns", Limit: none, N: min(len(ours.whole), len(deferred.whole))})
	return nil
}

func (t patchTurn) floor(hz uint64) []string {
	wait := patienceShared
	if t.cpu >= 0 {
		wait = patienceOwn
	}
	return []string{"-c", fmt.Sprint(t.cpu), "-f", fmt.Sprint(t.fifo), "-k", fmt.Sprint(t.patcher), "-n", fmt.Sprint(t.vcpus), "-s", fmt.Sprintf("%x", t.site),
		"-p", fmt.Sprintf("%x", t.counters), "-w", fmt.Sprint(uint64(wait.Seconds() * float64(hz))), fmt.Sprint(t.count), t.program, fmt.Sprint(t.vcpus)}
}

func (t patchTurn) command() []string {
	return []string{patchCommand, fmt.Sprintf("-vcpus=%d", t.vcpus), fmt.Sprintf("-count=%d", t.count), fmt.Sprintf("-cpu=%d", t.cpu), fmt.Sprintf("-fifo=%d", t.fifo),
		fmt.Sprintf("-patcher=%d", t.patcher), fmt.Sprintf("-deferred=%v", t.deferred), fmt.Sprintf("-site=%d", t.site), fmt.Sprintf("-counters=%d", t.counters), t.program}
}

func parsePatchTurn(args []string) (t patchTurn, err error) {
	f := flag.NewFlagSet("bench subcommand", flag.ContinueOnError)
	f.IntVar(&t.vcpus, "vcpus", 1, "")
	f.IntVar(&t.count, "count", 0, "")
	f.IntVar(&t.cpu, "cpu", -1, "")
	f.IntVar(&t.fifo, "fifo", 0, "")
	f.IntVar(&t.patcher, "patcher", -1, "")
	f.BoolVar(&t.deferred, "deferred", false, "")
	f.Uint64Var(&t.site, "site", 0, "")
	f.Uint64Var(&t.counters, "counters", 0, "")
	err = f.Parse(args)
	t.program = f.Arg(0)
	return t, err
}

// runPatch is one turn of ours: the machine, the patcher and the protocol are those of `cloister run`; no monitor, no log.
func runPatch(args []string) error {
	t, err := parsePatchTurn(args)
	if err != nil {
		return err
	}
	if t.cpu >= 0 {
		if err := keepOff(t.cpu); err != nil {
			return err
		}
	}
	runtime.GOMAXPROCS(max(4, runtime.GOMAXPROCS(0))) // as `cloister run` does
	m, ledgers, guest, err := t.machine()
	if err != nil {
		return err
	}
	p := running.New(m, t.program)
	if p == nil {
		return errors.New("the guest cannot be patched")
	}
	if err := errors.Join(m.Prepare(), m.Enter()); err != nil {
		return err
	}
	if err := t.allRun(guest); err != nil {
		return err
	}
	whole, err := t.patchAll(m, p)
	if err != nil {
		return err
	}
	time.Sleep(20 * time.Millisecond) // the last breaks are closed
	if err := m.Stop("enough patches", 0); err != nil {
		return err
	}
	r, err := m.Wait()
	if err != nil {
		return err
	}
	if r.Ended != "stopped" {
		return fmt.Errorf("the guest ended by itself (%s, status %d; 3: a constant that nobody wrote)", r.Ended, r.Code)
	}
	list := append(whole, 0)
	for _, l := range *ledgers {
		list = append(list, pauses(l)...)
	}
	return errors.Join(writeSamples(os.Stdout, list), m.Close())
}

// machine makes the guest; ledgers are complete when all its threads run.
func (t patchTurn) machine() (m *vmm.Machine, ledgers *[]*breaks.VCPU, guest int, err error) {
	f, err := os.Open(t.program)
	if err != nil {
		return nil, nil, 0, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, nil, 0, err
	}
	guest, err = vmm.NewGuestMemory(false)
	if err != nil {
		return nil, nil, 0, err
	}
	allowed, err := cores.Allowed()
	if err != nil {
		return nil, nil, 0, err
	}
	// Before there are vCPUs that an unmapping could interrupt: none comes later.
	b, err := unix.Mmap(-1, 0, breaks.LedgerSize*t.vcpus, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, nil, 0, fmt.Errorf("mmap the ledgers: %w", err)
	}
	ledgers = new([]*breaks.VCPU)
	m, err = vmm.New(vmm.Config{
		Program: t.program, ELF: int(f.Fd()), ELFSize: st.Size(), Args: []string{t.program, fmt.Sprint(t.vcpus)}, Env: []string{}, Cwd: "/",
		CPU: t.cpu, FIFO: t.fifo, CPUs: allowed, Housekeeping: allowed, Memory: 256 << 20, Lock: true, Seal: vmm.SealCall, Guest: guest, PatchSpace: 64 << 10,
		Ledgers: func(i int) (*breaks.VCPU, error) {
			l, err := breaks.At(b, i)
			if err == nil {
				*ledgers = append(*ledgers, l)
			}
			return l, err
		},
		Warn: func(w string) { fmt.Fprintln(os.Stderr, "bench patch:", w) }, Stamp: func(string) {}, GapRecord: func(uint64) {},
	})
	return m, ledgers, guest, err
}

// allRun waits until every thread of the guest makes passes.
func (t patchTurn) allRun(guest int) error {
	page := t.counters &^ 4095
	b, err := unix.Mmap(guest, int64(page), 2*4096, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap the guest's counters: %w", err)
	}
	for i := range t.vcpus {
		for end := time.Now().Add(20 * time.Second); binary.LittleEndian.Uint64(b[t.counters-page+64*uint64(i):]) == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				return fmt.Errorf("thread %d of the guest makes no passes", i)
			}
		}
	}
	return unix.Munmap(b)
}

// patchAll makes the patches, with pauses in which either side sleeps, as c/patch.c does.
func (t patchTurn) patchAll(m *vmm.Machine, p *patch.Patcher) (whole []uint64, err error) {
	if t.patcher >= 0 {
		runtime.LockOSThread()
		var set unix.CPUSet
		set.Set(t.patcher)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return nil, fmt.Errorf("pin to CPU %d: %w", t.patcher, err)
		}
	}
	load := func(v uint32) []byte { return binary.LittleEndian.AppendUint32([]byte{0xb8}, v) }
	plan := patch.Plan{Name: "bench", BuildID: p.State().BuildID, StopLimit: 10 * time.Second,
		Sites: []patch.Site{{Name: "site", Kind: patch.Imm, Addr: t.site, Old: load(patchA), New: load(patchB)}}}
	s := &plan.Sites[0]
	if _, err := m.Writable(s.Addr, len(s.New)); err != nil { // maps the alias; so does the floor
		return nil, err
	}
	for range t.count {
		time.Sleep(time.Duration(1000+rand.IntN(1000)) * time.Microsecond)
		if t.deferred {
			at := kvm.TSC()
			if err := storeNow(m, s); err != nil {
				return nil, err
			}
			whole = append(whole, kvm.TSC()-at)
		} else {
			r := p.Apply(plan)
			if r.Outcome != patch.Committed {
				return nil, fmt.Errorf("patch %d: %s: %s", r.Number, r.Outcome, r.Reason)
			}
			whole = append(whole, r.Released-r.Begun)
		}
		s.Old, s.New = s.New, s.Old
	}
	return whole, nil
}

// storeNow is the deferred variant: the bytes are there, and nobody has synchronised.
func storeNow(m *vmm.Machine, s *patch.Site) error {
	b, err := m.Writable(s.Addr&^7, 8)
	if err != nil {
		return err
	}
	var v [8]byte
	copy(v[:], b)
	copy(v[s.Addr&7:], s.New)
	atomic.StoreUint64(word(b), binary.LittleEndian.Uint64(v[:])) // ORDER(none): that nobody pairs with it is what is wrong with this variant
	return nil
}

// pauses are the breaks of a ledger that patches made.
func pauses(l *breaks.VCPU) (list []uint64) {
	for i := range min(l.EventNext, breaks.NEvent) {
		if e := &l.Events[i]; e.Cause == uint32(breaks.Patch) {
			list = append(list, e.In-e.Out)
		}
	}
	return list
}

// split takes a turn's output apart.
func split(out []byte) (p patched, err error) {
	w, err := words(out)
	if err != nil {
		return p, err
	}
	to := &p.whole
	for _, v := range w {
		if v == 0 {
			to = &p.pause
			continue
		}
		*to = append(*to, float64(v))
	}
	return p, nil
}

// symbols gives the guest addresses of some symbols of a program.
func symbols(name string, want ...string) (list []uint64, err error) {
	f, err := elf.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	all, err := f.Symbols()
	if err != nil {
		return nil, err
	}
	for _, w := range want {
		i := slices.IndexFunc(all, func(s elf.Symbol) bool { return s.Name == w })
		if i < 0 {
			return nil, fmt.Errorf("%s: no symbol %q", name, w)
		}
		list = append(list, all[i].Value)
	}
	return list, nil
}
