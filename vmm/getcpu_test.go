package vmm

import (
	"encoding/binary"
	"os"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/guest/linux"
	"github.com/cloister-vmm/cloister/internal/kvm"
	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// asksCPU is a guest of four threads, each of which stores at stopData, by its vCPU's index: at 0x200 one more than that, at 0x400
// what getcpu at address code says, at 0x600 what RDTSCP says beside the time, and at 0x800 that it has.
func asksCPU(code uint64, rdtscp bool) []byte {
	b := []byte{
		0xbb, 0x00, 0x00, 0x60, 0x00, // mov $stopData,%ebx
		0x41, 0xbc, 0x03, 0x00, 0x00, 0x00, // mov $3,%r12d
		0xbf, 0x00, 0x0f, 0x05, 0x00, // 1: mov $CLONE_VM|FS|FILES|SIGHAND|THREAD|SYSVSEM,%edi
		0x44, 0x89, 0xe6, // mov %r12d,%esi
		0xc1, 0xe6, 0x06, // shl $6,%esi
		0x48, 0x8d, 0xb4, 0x33, 0x00, 0x0c, 0x00, 0x00, // lea 0xc00(%rbx,%rsi),%rsi
		0xb8, 0x38, 0x00, 0x00, 0x00, // mov $56,%eax    clone
		0x0f, 0x05, // syscall
		0x85, 0xc0, // test %eax,%eax
		0x74, 0x05, // je 2f
		0x41, 0xff, 0xcc, // dec %r12d
		0x75, 0xdd, // jne 1b
		0xb8, 0x7b, 0x00, 0x00, 0x00, // 2: mov $0x7b,%eax
		0x0f, 0x03, 0xc0, // lsl %eax,%eax
		0x74, 0x02, // je 3f
		0x0f, 0x0b, // ud2
		0x41, 0x89, 0xc5, // 3: mov %eax,%r13d
		0xff, 0xc0, // inc %eax
		0x4a, 0x89, 0x84, 0xeb, 0x00, 0x02, 0x00, 0x00, // mov %rax,0x200(%rbx,%r13,8)
		0x4a, 0x8d, 0xbc, 0xeb, 0x00, 0x04, 0x00, 0x00, // lea 0x400(%rbx,%r13,8),%rdi
		0x31, 0xf6, // xor %esi,%esi
		0x48, 0xb8, // mov $code,%rax
	}
	b = binary.LittleEndian.AppendUint64(b, code)
	b = append(b, 0xff, 0xd0) // call *%rax
	if rdtscp {
		b = append(b, 0x0f, 0x01, 0xf9, // rdtscp
			0x4a, 0x89, 0x8c, 0xeb, 0x00, 0x06, 0x00, 0x00) // mov %rcx,0x600(%rbx,%r13,8)
	}
	return append(b, 0x4a, 0xff, 0x84, 0xeb, 0x00, 0x08, 0x00, 0x00, // incq 0x800(%rbx,%r13,8)
		0xb8, 0x22, 0x00, 0x00, 0x00, // 4: mov $34,%eax    pause
		0x0f, 0x05, // syscall
		0xeb, 0xf7) // jmp 4b
}

// Each vCPU finds itself in its GDT, and by it, and beside RDTSCP, the virtual CPU that the system call tells, on every back end.
func TestCPUOfEachVCPU(t *testing.T) {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	list, start, err := clockAreas(f)
	if err != nil || start == 0 {
		t.Fatalf("this kernel gives no vDSO: %v", err) // the tests of cmd/cloister have --own-clock
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	code := uint64(0)
	for _, a := range list {
		if a.exec {
			code = abi.VDSOBase + a.end - list[0].start
		}
	}
	_, _, _, d := kvm.CPUID(0x80000001, 0)
	rdtscp := d&(1<<27) != 0
	const threads = 4
	ledgers := make([]breaks.VCPU, threads)
	g := stopStart(t, asksCPU(code, rdtscp), func(c *Config) {
		c.CPU, c.CPUs, c.Housekeeping = -1, []int{7, 5, 6}, []int{5, 6} // numbers alone: nobody is moved
		c.Ledgers = func(i int) (*breaks.VCPU, error) { return &ledgers[i], nil }
	})
	word := func(at int) uint64 { return binary.LittleEndian.Uint64(g.window[stopData+at:]) }
	for i := range threads {
		for end := time.Now().Add(20 * time.Second); word(0x800+8*i) == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("vCPU %d does not say where it is: %x", i, g.window[stopData+0x200:stopData+0x220])
			}
		}
		want := uint64(1 + i%2) // spread over the two that are shared
		g.mu.Lock()
		task := &linux.Task{Data: g.vcpus[i]}
		g.mu.Unlock()
		if n := g.cpuOf(task); uint64(n) != want {
			t.Errorf("vCPU %d is on virtual CPU %d, want %d", i, n, want)
		}
		if word(0x200+8*i) != uint64(i)+1 || word(0x400+8*i) != want {
			t.Errorf("vCPU %d: by its GDT it is %d, getcpu says %d, want %d", i, int(word(0x200+8*i))-1, word(0x400+8*i), want)
		}
		if rdtscp && g.aux && word(0x600+8*i) != want {
			t.Errorf("vCPU %d: RDTSCP says %d, want %d", i, word(0x600+8*i), want)
		}
	}
}
