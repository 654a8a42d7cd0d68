package vcpu

import (
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/isolation/cores"
	"github.com/cloister-vmm/cloister/patch"
	"golang.org/x/sys/unix"
)

// The smallest machine that the loop can run: one page of 16-bit code at guest address 0, registers as
// after a reset. It has no page tables and no program; vmm's tests have those.

// syscallOut is where in the guests below the OUT stands that the loop takes for a system call's.
const syscallOut = 3

var (
	// guestMixed makes one constant system call, which the thread answers itself, and one PIO exit, which
	// Go answers, again and again.
	guestMixed = []byte{
		0xb8, 39, 0, // 0: mov $39,%ax
		0xe6, 0x80, // 3: out %al,$0x80
		0xe6, 0x10, // 5: out %al,$0x10
		0xeb, 0xf7, // 7: jmp 0
	}
	// guestConstant makes constant system calls only.
	guestConstant = []byte{
		0xb8, 39, 0, // 0: mov $39,%ax
		0xe6, 0x80, // 3: out %al,$0x80
		0xeb, 0xf9, // 5: jmp 0
	}
	// guestServed makes PIO exits only.
	guestServed = []byte{
		0xe6, 0x10, // 0: out %al,$0x10
		0xeb, 0xfc, // 2: jmp 0
	}
	// guestSpin never leaves.
	guestSpin = []byte{
		0xeb, 0xfe, // 0: jmp 0
	}
)

// handler is a Handler made of a function.
type handler func(*Exit) Answer

func (h handler) Serve(x *Exit) Answer { return h(x) }

func resumes(*Exit) Answer { return Answer{Kind: AnswerResume} }

type machine struct {
	*Thread
	set    *Set
	ledger *breaks.VCPU
}

// dedicated is the core for a test's vCPU: the last one, if another is left for the test; else -1.
func dedicated(t testing.TB) int {
	t.Helper()
	list, err := cores.Allowed()
	if err != nil {
		t.Fatal(err)
	}
	if len(list) < 2 {
		return -1
	}
	return list[len(list)-1]
}

// boot makes a machine that stands before its first instruction. It is ended with the test.
func boot(t testing.TB, code []byte, h handler, change ...func(*Config)) (*machine, *Stopped) {
	t.Helper()
	testenv.Need(t, testenv.KVM)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	sys, err := kvm.Open()
	must(err)
	vm, err := sys.NewVM()
	must(err)
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	must(err)
	copy(page, code)
	_, err = vm.AddMemory(0, 4096, uintptr(unsafe.Pointer(&page[0])), false)
	must(err)
	cpu, err := vm.NewVCPU(0)
	must(err)
	s, err := cpu.Sregs()
	must(err)
	s.CS.Base, s.CS.Selector = 0, 0
	must(cpu.SetSregs(s))
	// With interrupts allowed, as program guests run (vmm); none is ever injected.
	must(cpu.SetRegs(&kvm.Regs{RFLAGS: 0x202}))
	must(cpu.Prime())
	m := &machine{ledger: &breaks.VCPU{}}
	c := Config{
		VCPU: cpu, Ledger: m.ledger, CPU: dedicated(t), Window: uintptr(unsafe.Pointer(&page[0])), UserTop: 4096,
		SyscallStub: syscallOut, DoneStub: ^uint64(0) - 1, Serialise: 2, Handler: h, SpinHost: 2 * time.Microsecond, SpinService: 2 * time.Microsecond,
		Constant: func(nr uint64) (func() uint64, bool) { return func() uint64 { return 7 }, nr == 39 },
	}
	for _, f := range change {
		f(&c)
	}
	m.Thread, err = New(c)
	must(err)
	m.set = NewSet(m.Thread)
	born, err := m.set.Start()
	must(err)
	t.Cleanup(func() {
		if !m.ended() {
			p, err := m.set.Stop(5 * time.Second)
			must(err)
			must(p.End(5 * time.Second))
		}
		<-m.Done()
		must(m.Close())
		must(cpu.Close())
		must(vm.Close())
		must(sys.Close())
		must(unix.Munmap(page))
		runtime.KeepAlive(m)
	})
	return m, born
}

// seconds is a limit that only a broken stop reaches.
func seconds(n int) time.Duration { return time.Duration(n) * time.Second }

func (m *machine) stop(t testing.TB) *Stopped {
	t.Helper()
	p, err := m.set.Stop(seconds(10))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func resume(t testing.TB, p *Stopped) {
	t.Helper()
	if err := p.Resume(seconds(10)); err != nil {
		t.Fatal(err)
	}
}

// TestLines: what a stop looks at while it waits shares a line of 64 bytes with nothing that is written behind it, and what it uses shares a page.
func TestLines(t *testing.T) {
	var c control
	line := func(at uintptr) uintptr { return at / 64 }
	words, answers := line(unsafe.Offsetof(c.req)), line(unsafe.Offsetof(c.ack))
	for name, at := range map[string]uintptr{"goG": unsafe.Offsetof(c.goG), "rel": unsafe.Offsetof(c.rel), "quit": unsafe.Offsetof(c.quit), "sent": unsafe.Offsetof(c.sent),
		"blame": unsafe.Offsetof(c.blame), "lookFrom": unsafe.Offsetof(c.lookFrom), "lookTo": unsafe.Offsetof(c.lookTo)} {
		if line(at) != words {
			t.Errorf("%s is not in the line of req", name)
		}
	}
	for name, at := range map[string]uintptr{"at": unsafe.Offsetof(c.at), "atRIP": unsafe.Offsetof(c.atRIP), "syncTSC": unsafe.Offsetof(c.syncTSC)} {
		if line(at) != line(unsafe.Offsetof(c.ackTSC)) || line(at) == answers {
			t.Errorf("%s is not in the line of ackTSC, or that is ack's", name)
		}
	}
	if line(unsafe.Offsetof(c.synced)) != answers {
		t.Error("synced is not in the line of ack")
	}
	for name, at := range map[string]uintptr{"out": unsafe.Offsetof(c.own.out), "n": unsafe.Offsetof(c.own.n), "first": unsafe.Offsetof(c.own.first), "words": unsafe.Offsetof(c.own.words) + unsafe.Sizeof(Store{}) - 1} {
		if own := unsafe.Offsetof(c.own); own%64 != 0 || line(own+at) != line(own) {
			t.Errorf("%s is not in the line of in", name)
		}
	}
	for name, at := range map[string]uintptr{"in": unsafe.Offsetof(c.own), "bell": unsafe.Offsetof(c.bell), "doorAck": unsafe.Offsetof(c.doorAck), "attn": unsafe.Offsetof(c.attn), "ended": unsafe.Offsetof(c.ended)} {
		if line(at) == words || line(at) == answers {
			t.Errorf("%s is in a line that is waited for", name)
		}
	}
	n, top, m, err := newControl()
	if err != nil {
		t.Fatal(err)
	}
	at := uintptr(unsafe.Pointer(n))
	if last := at + unsafe.Offsetof(n.errno); at%64 != 0 || top+aboveStack != at || top>>12 != last>>12 {
		t.Errorf("control at %#x, what a stop uses of it to %#x: want a line's start, in one page, with the stack's top", at, last)
	}
	if err := unix.Munmap(m); err != nil {
		t.Error(err)
	}
}

// stores gives what a stop of the made-up world carries.
func (w *world) stores(list []patch.Store) []Store {
	out := make([]Store, len(list))
	for i, s := range list {
		out[i] = Store{To: uintptr(unsafe.Pointer(&s.To[0])), Old: s.Old, New: s.New}
	}
	return out
}

func wordAddr(p *uint64) uintptr { return uintptr(unsafe.Pointer(p)) }
