package running_test

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/isolation/cores"
	"github.com/cloister-vmm/cloister/patch"
	"github.com/cloister-vmm/cloister/patch/running"
	"github.com/cloister-vmm/cloister/vmm"
	"golang.org/x/sys/unix"
)

// The guest of these tests: N threads that call f, then g, for ever. Both return the same constant, A or B, by one instruction
// whose immediate crosses a cache line or a page. Each thread counts passes, values that are neither (torn), and passes in which the two
// differed (mixed). In every pass it looks at its safe word.

const (
	base  = 0x400000
	data  = 0x600000
	dataN = 0x10000
	valA  = 0x11111111
	valB  = 0x22222222
)

// Where f and g lie: so that the four bytes of the immediate cross what the name says.
const (
	fLine = base + 0x103d // b8 at …3d, immediate 3e 3f | 40 41
	gLine = base + 0x117d
	fPage = base + 0x1ffd
	gPage = base + 0x2ffd
)

type asm struct {
	b      bytes.Buffer
	labels map[string]int
	fix    map[int]string // offset of a rel32: its target
	fixAbs map[int]string // the same of an absolute address
}

func (a *asm) put(b ...byte)    { a.b.Write(b) }
func (a *asm) imm(v uint32)     { a.b.Write(binary.LittleEndian.AppendUint32(nil, v)) }
func (a *asm) at(name string)   { a.labels[name] = a.b.Len() }
func (a *asm) rel(name string)  { a.fix[a.b.Len()] = name; a.imm(0) }
func (a *asm) abs(name string)  { a.fixAbs[a.b.Len()] = name; a.imm(0) }
func (a *asm) jmp(name string)  { a.put(0xe9); a.rel(name) }
func (a *asm) je(name string)   { a.put(0x0f, 0x84); a.rel(name) }
func (a *asm) jne(name string)  { a.put(0x0f, 0x85); a.rel(name) }
func (a *asm) call(name string) { a.put(0xe8); a.rel(name) }

// singleStep, as the call of tearELF, has thread 0 run with the trap flag: a signal behind every instruction.
var singleStep = [3]uint32{1 << 31}

// singleStepNOPs is the same, with five NOPs before f and g's bodies.
var singleStepNOPs = [3]uint32{1 << 31, 1}

// tearELF makes the guest with n threads; call, if not 0, is a system call that thread 0 makes in every pass, with two arguments.
func tearELF(n int, page bool, call [3]uint32) []byte {
	const entry = 64 + 2*56
	f, g := fLine, gLine
	if page {
		f, g = fPage, gPage
	}
	a := &asm{labels: map[string]int{"f": f - base, "g": g - base}, fix: map[int]string{}, fixAbs: map[int]string{}}
	a.b.Write(make([]byte, entry))
	a.put(0xbf)
	a.imm(abi.SafepointWord) // mov $1,%edi
	a.put(0xbe)
	a.imm(data) // mov $data,%esi
	a.put(0xb8)
	a.imm(abi.SysSafepoint)
	a.put(0x0f, 0x05)
	a.put(0x41, 0xbe)
	a.imm(uint32(max(n, -n) - 1)) // mov $n-1,%r14d
	a.at("spawn")
	a.put(0x45, 0x85, 0xf6) // test %r14d,%r14d
	a.je("run")
	a.put(0xbf)
	a.imm(0x50f00)          // CLONE_VM|FS|FILES|SIGHAND|THREAD|SYSVSEM
	a.put(0x44, 0x89, 0xf6) // mov %r14d,%esi
	a.put(0xc1, 0xe6, 10)   // shl $10,%esi
	a.put(0x81, 0xc6)
	a.imm(data + 0x2000)                                  // add $data+0x2000,%esi
	a.put(0x31, 0xd2, 0x45, 0x31, 0xd2, 0x45, 0x31, 0xc0) // xor %edx,%edx; %r10d; %r8d
	a.put(0xb8, 56, 0, 0, 0, 0x0f, 0x05, 0x85, 0xc0)      // clone; test %eax,%eax
	a.je("run")
	a.put(0x41, 0xff, 0xce) // dec %r14d
	a.jmp("spawn")
	a.at("run")
	a.put(0x44, 0x89, 0xf3, 0xc1, 0xe3, 6, 0x81, 0xc3) // mov %r14d,%ebx; shl $6; add
	a.imm(data + 0x40)
	if call[0] == singleStep[0] {
		a.put(0x45, 0x85, 0xf6) // test %r14d,%r14d
		a.jne("loop")
		const action = data + 0x3000
		for off, v := range map[uint32]string{0: "handler", 16: "restorer"} {
			a.put(0x48, 0xc7, 0x04, 0x25) // movq $v,action+off
			a.imm(action + off)
			a.abs(v)
		}
		a.put(0x48, 0xc7, 0x04, 0x25)
		a.imm(action + 8)
		a.imm(0x04000000) // SA_RESTORER
		a.put(0xb8)
		a.imm(unix.SYS_RT_SIGACTION)
		a.put(0xbf)
		a.imm(uint32(unix.SIGTRAP))
		a.put(0xbe)
		a.imm(action)
		a.put(0x31, 0xd2, 0x41, 0xba, 8, 0, 0, 0, 0x0f, 0x05)       // xor %edx,%edx; mov $8,%r10d; syscall
		a.put(0x9c, 0x81, 0x0c, 0x24, 0x00, 0x01, 0x00, 0x00, 0x9d) // pushfq; orl $0x100,(%rsp); popfq: the trap flag
	}
	a.at("loop")
	a.put(0x83, 0x3c, 0x25)
	a.imm(data)
	a.put(0) // cmpl $0,data
	a.jne("safe")
	if call[0] != 0 && call[0] != singleStep[0] {
		a.put(0x45, 0x85, 0xf6) // test %r14d,%r14d
		a.jne("no call")
		a.put(0xb8)
		a.imm(call[0])
		a.put(0xbf)
		a.imm(call[1])
		a.put(0xbe)
		a.imm(call[2])
		a.put(0x0f, 0x05)
		a.at("no call")
	}
	a.call("f")
	check := func(next string) {
		a.put(0x3d)
		a.imm(valA)
		a.je(next)
		a.put(0x3d)
		a.imm(valB)
		a.je(next)
		a.put(0x48, 0xff, 0x43, 8) // incq 8(%rbx)
		a.put(0x89, 0x43, 24)      // mov %eax,24(%rbx)
		a.at(next)
	}
	check("f is whole")
	a.put(0x41, 0x89, 0xc4) // mov %eax,%r12d
	a.call("g")
	check("g is whole")
	a.put(0x44, 0x39, 0xe0) // cmp %r12d,%eax
	a.je("same")
	a.put(0x48, 0xff, 0x43, 16) // incq 16(%rbx)
	a.at("same")
	a.put(0x48, 0xff, 0x03) // incq (%rbx)
	a.jmp("loop")
	a.at("safe")
	a.put(0xb8)
	a.imm(abi.SysSafepoint)
	a.put(0x31, 0xff, 0x0f, 0x05) // xor %edi,%edi; syscall
	a.jmp("loop")

	a.at("handler")
	a.put(0xc3)
	a.at("restorer")
	a.put(0xb8)
	a.imm(unix.SYS_RT_SIGRETURN)
	a.put(0x0f, 0x05)

	b := make([]byte, 0x4000)
	copy(b, a.b.Bytes())
	for at, name := range a.fixAbs {
		binary.LittleEndian.PutUint32(b[at:], uint32(base+a.labels[name]))
	}
	for at, name := range a.fix {
		binary.LittleEndian.PutUint32(b[at:], uint32(a.labels[name]-at-4))
	}
	for _, at := range []int{f - base, g - base} {
		body := []byte{0xb8, 0x11, 0x11, 0x11, 0x11, 0xc3}
		if call == singleStepNOPs {
			body = append([]byte{0x90, 0x90, 0x90, 0x90, 0x90}, body...)
		}
		copy(b[at:], body)
	}
	var h bytes.Buffer
	_ = binary.Write(&h, binary.LittleEndian, elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: base + entry, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2, Shentsize: 64,
	}) // to memory
	size := uint64(len(b))
	_ = binary.Write(&h, binary.LittleEndian, elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: base, Paddr: base, Filesz: size, Memsz: size, Align: 4096})
	_ = binary.Write(&h, binary.LittleEndian, elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_W), Vaddr: data, Paddr: data, Memsz: dataN, Align: 4096})
	copy(b, h.Bytes())
	return b
}

type guest struct {
	*vmm.Machine
	*patch.Patcher
	mu      sync.Mutex // ledgers: vCPUs come while the test runs
	ledgers []*breaks.VCPU
	mem     []byte // data
	text    []byte // text, writable: what the deferred variant uses
	f, g    uint64
	core    int
	n       int
}

// start runs the guest with n threads.
func start(t testing.TB, n int, page bool) *guest { return startCalling(t, n, page, [3]uint32{}) }

// startCalling is start with a system call in every pass of thread 0. n below 0: -n threads, the first of which does not come back from it.
func startCalling(t testing.TB, n int, page bool, call [3]uint32) *guest {
	t.Helper()
	return startIn(t, n, page, call, 0)
}

// startIn is startCalling with the first vCPU in SCHED_FIFO, if fifo is not 0.
func startIn(t testing.TB, n int, page bool, call [3]uint32, fifo int) *guest {
	t.Helper()
	testenv.Need(t, testenv.KVM)
	code := tearELF(n, page, call)
	name := filepath.Join(t.TempDir(), "guest")
	if err := os.WriteFile(name, code, 0o755); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := vmm.NewGuestMemory(false)
	if err != nil {
		t.Fatal(err)
	}
	list, err := cores.Allowed()
	if err != nil {
		t.Fatal(err)
	}
	core := -1
	if len(list) > 1 {
		core = list[len(list)-1]
	}
	w := &guest{n: max(n, -n), f: fLine, g: gLine, core: core}
	if page {
		w.f, w.g = fPage, gPage
	}
	m, err := vmm.New(vmm.Config{
		Program: name, ExecFn: name, ELF: int(file.Fd()), ELFSize: int64(len(code)), Args: []string{name}, Cwd: "/", CPU: core, FIFO: fifo, CPUs: list,
		Housekeeping: list, Memory: 64 << 20, PatchSpace: 64 << 10, Builtin: true, Seal: vmm.SealCall, Guest: fd, Stamp: func(string) {}, GapRecord: func(uint64) {},
		Ledgers: func(int) (*breaks.VCPU, error) {
			l := new(breaks.VCPU)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.ledgers = append(w.ledgers, l)
			return l, nil
		},
		Warn: func(s string) { t.Log(s) },
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Machine, w.Patcher = m, running.New(m, name)
	if w.mem, err = unix.Mmap(fd, data, dataN, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	if w.text, err = unix.Mmap(fd, base, 0x4000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	if err := m.Prepare(); err != nil {
		t.Fatal(err)
	}
	if err := m.Enter(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		select {
		case <-m.Done():
		default:
			if err := m.Stop("test", 0); err != nil {
				t.Error(err)
			}
			<-m.Done()
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		for _, b := range [][]byte{w.mem, w.text} {
			if err := unix.Munmap(b); err != nil {
				t.Error(err)
			}
		}
		_, _ = unix.Close(fd), file.Close()
	})
	for i := range w.n {
		if n > 0 || i > 0 {
			w.moves(t, i)
		}
	}
	return w
}

func (w *guest) ledger(i int) *breaks.VCPU {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ledgers[i]
}

// moves waits until thread i makes passes.
func (w *guest) moves(t testing.TB, i int) {
	t.Helper()
	was := w.count(i, 0)
	for end := time.Now().Add(20 * time.Second); w.count(i, 0) < was+3; time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("thread %d makes no passes", i)
		}
	}
}

// count reads one of thread i's counters: 0 passes, 1 torn, 2 mixed, 3 what a torn one was.
func (w *guest) count(i, what int) uint64 {
	return atomic.LoadUint64(word(w.mem[0x40+64*i+8*what:]))
}

func (w *guest) sum(what int) (n uint64) {
	for i := range w.n {
		n += w.count(i, what)
	}
	return n
}

func load(v uint32) []byte { return binary.LittleEndian.AppendUint32([]byte{0xb8}, v) }

// plan flips f and g from one value to the other.
func (w *guest) plan(from, to uint32, safe bool) patch.Plan {
	return patch.Plan{
		Name: "flip", SafePoint: safe, Wait: 5 * time.Second, StopLimit: 5 * time.Second,
		Sites: []patch.Site{
			{Name: "f", Kind: patch.Imm, Addr: w.f, Old: load(from), New: load(to)},
			{Name: "g", Kind: patch.Imm, Addr: w.g, Old: load(from), New: load(to)},
		},
	}
}
