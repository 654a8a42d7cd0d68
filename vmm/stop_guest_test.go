package vmm

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/isolation/cores"
	"golang.org/x/sys/unix"
)

// Guests for tests of the stop: a few instructions each, with a counter in guest memory that tells whether
// they run.

const (
	stopText    = 0x400000
	stopData    = 0x600000 // one writable page; the counter is its first word
	stopEntry   = stopText + 64 + 2*56
	stopScratch = stopData + 0x100
)

var (
	stopSpin = []byte{
		0xbb, 0x00, 0x00, 0x60, 0x00, // mov $stopData,%ebx
		0x48, 0xff, 0x03, // 1: incq (%rbx)
		0xeb, 0xfb, // jmp 1b
	}
	stopBlocked = []byte{
		0xbb, 0x00, 0x00, 0x60, 0x00, // mov $stopData,%ebx
		0x48, 0x8d, 0xbb, 0x00, 0x01, 0x00, 0x00, // lea 0x100(%rbx),%rdi
		0xb8, 0x16, 0x00, 0x00, 0x00, // mov $22,%eax    pipe
		0x0f, 0x05, // syscall
		0x48, 0xff, 0x03, // 1: incq (%rbx)
		0x8b, 0xbb, 0x00, 0x01, 0x00, 0x00, // mov 0x100(%rbx),%edi
		0x48, 0x8d, 0xb3, 0x00, 0x02, 0x00, 0x00, // lea 0x200(%rbx),%rsi
		0xba, 0x01, 0x00, 0x00, 0x00, // mov $1,%edx
		0x31, 0xc0, // xor %eax,%eax    read
		0x0f, 0x05, // syscall
		0xeb, 0xe5, // jmp 1b
	}
)

// stopCalls makes a guest that makes one system call without arguments for ever.
func stopCalls(nr byte) []byte {
	return []byte{
		0xbb, 0x00, 0x00, 0x60, 0x00, // mov $stopData,%ebx
		0xb8, nr, 0x00, 0x00, 0x00, // 1: mov $nr,%eax
		0x0f, 0x05, // syscall
		0x48, 0xff, 0x03, // incq (%rbx)
		0xeb, 0xf4, // jmp 1b
	}
}

// stopELF wraps code in a static executable: one segment of text, one page of data.
func stopELF(t testing.TB, code []byte) *os.File {
	t.Helper()
	var b bytes.Buffer
	put := func(v any) {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	put(elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: stopEntry, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2, Shentsize: 64,
	})
	n := uint64(stopEntry - stopText + len(code))
	put(elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: stopText, Paddr: stopText, Filesz: n, Memsz: n, Align: 4096})
	put(elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_W), Vaddr: stopData, Paddr: stopData, Memsz: 4096, Align: 4096})
	b.Write(code)
	b.Write(make([]byte, 4096-b.Len()))
	name := filepath.Join(t.TempDir(), "guest")
	if err := os.WriteFile(name, b.Bytes(), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

type stopGuest struct {
	*Machine
	ledger *breaks.VCPU
	ended  bool
}

// stopCore is the core for the vCPU of a test: the last one, if another is left; else -1.
func stopCore(t testing.TB) int {
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

// stopStart runs code in a machine, which is ended with the test.
func stopStart(t testing.TB, code []byte, change ...func(*Config)) *stopGuest {
	t.Helper()
	testenv.Need(t, testenv.KVM)
	f := stopELF(t, code)
	guest, err := NewGuestMemory(false)
	if err != nil {
		t.Fatal(err)
	}
	g := &stopGuest{ledger: &breaks.VCPU{}}
	c := Config{
		Program: f.Name(), ExecFn: f.Name(), ELF: int(f.Fd()), ELFSize: 4096, Args: []string{"guest"}, Cwd: "/", CPU: stopCore(t),
		Memory: 64 << 20, Seal: SealCall, Ledgers: func(int) (*breaks.VCPU, error) { return g.ledger, nil }, Guest: guest, Warn: func(s string) { t.Log(s) }, Stamp: func(string) {},
		GapRecord: func(uint64) {},
	}
	for _, f := range change {
		f(&c)
	}
	g.Machine, err = New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !g.ended {
			if err := g.Stop("test", 0); err != nil {
				t.Error(err)
			}
		}
		if _, err := g.Wait(); err != nil {
			t.Error(err)
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		if err := unix.Close(guest); err != nil {
			t.Error(err)
		}
	})
	if err := g.Prepare(); err != nil {
		t.Fatal(err)
	}
	if err := g.Enter(); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *stopGuest) counter() uint64 { return binary.LittleEndian.Uint64(g.window[stopData:]) }

// runs waits until the guest has counted on from n.
func (g *stopGuest) runs(t testing.TB, n uint64) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); g.counter() == n; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("the guest stands at %d", n)
		}
	}
}
