package vdso

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister-vmm/cloister/internal/testenv"
)

// TestImageParses holds the image against debug/elf.
func TestImageParses(t *testing.T) {
	img, err := Image()
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.NewFile(bytes.NewReader(img))
	if err != nil {
		t.Fatal(err)
	}
	if len(img) != ImageSize || f.Type != elf.ET_DYN || f.Machine != elf.EM_X86_64 || f.Progs[0].Type != elf.PT_LOAD {
		t.Errorf("%d bytes, %+v", len(img), f.FileHeader)
	}
	syms, err := f.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	if len(syms) != len(names)+1 {
		t.Fatalf("%d symbols", len(syms))
	}
	text := f.Section(".text")
	for i, n := range names {
		s := syms[i]
		if s.Name != n || s.Version != "LINUX_2.6" || s.Value < text.Addr || s.Value+s.Size > text.Addr+text.Size || s.Size == 0 {
			t.Errorf("symbol %d: %+v", i, s)
		}
		// Behind each function stand the INT3s of the next mark, or the end.
		if end := s.Value + s.Size; end < text.Addr+text.Size && !bytes.Equal(img[end:end+4], []byte{0xcc, 0xcc, 0xcc, 0xcc}) {
			t.Errorf("%s does not end at a mark", n)
		}
	}
	if so, err := f.DynString(elf.DT_SONAME); err != nil || len(so) != 1 || so[0] != "linux-vdso.so.1" {
		t.Errorf("name %q, %v", so, err)
	}
	if again, err := Image(); err != nil || !bytes.Equal(again, img) || &again[0] == &img[0] {
		t.Error("Image does not give equal, separate copies")
	}
	for _, v := range []struct {
		s string
		h uint32
	}{{"LINUX_2.6", 0x3ae75f6}, {"linux-vdso.so.1", elfHash("linux-vdso.so.1")}} { // the first as in Go's runtime and glibc
		if elfHash(v.s) != v.h {
			t.Errorf("hash of %q: %#x", v.s, elfHash(v.s))
		}
	}
}

// TestHashTables looks names up as dynamic linkers do, by both tables: all that are there, and some that
// are not, for which the chains must end.
func TestHashTables(t *testing.T) {
	img, err := Image()
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.NewFile(bytes.NewReader(img))
	if err != nil {
		t.Fatal(err)
	}
	all := append(append([]string{""}, names...), version)
	word := func(section string, i int) uint32 {
		b, err := f.Section(section).Data()
		if err != nil || 4*i+4 > len(b) {
			t.Fatalf("word %d of %s: %v", i, section, err)
		}
		return binary.LittleEndian.Uint32(b[4*i:])
	}
	sysv := func(name string) uint32 {
		buckets := word(".hash", 0)
		i := word(".hash", 2+int(elfHash(name)%buckets))
		for ; i != 0 && all[i] != name; i = word(".hash", 2+int(buckets+i)) {
		}
		return i
	}
	gnu := func(name string) uint32 {
		h := uint32(5381)
		for _, c := range []byte(name) {
			h = h*33 + uint32(c)
		}
		bloom := uint64(word(".gnu.hash", 4)) | uint64(word(".gnu.hash", 5))<<32
		if bloom>>(h%64)&1 == 0 || bloom>>(h>>word(".gnu.hash", 3)%64)&1 == 0 {
			return 0
		}
		for i := word(".gnu.hash", 6); ; i++ {
			c := word(".gnu.hash", 7+int(i-word(".gnu.hash", 1)))
			if c|1 == h|1 && all[i] == name {
				return i
			}
			if c&1 != 0 {
				return 0
			}
		}
	}
	for i, n := range all[1:] {
		if a, b := sysv(n), gnu(n); a != uint32(i+1) || b != a {
			t.Errorf("%s is symbol %d, found as %d and %d", n, i+1, a, b)
		}
	}
	for i := range 1000 {
		n := fmt.Sprintf("__vdso_nothing%d", i)
		if sysv(n) != 0 || gnu(n) != 0 {
			t.Errorf("%s was found", n)
		}
	}
}

// TestRuntimesAccept starts programs of each C library and language with our image as their vDSO
// (AT_SYSINFO_EHDR rewritten by ptrace before their first instruction), while a Clock updates the page:
// they find it, so they make no clock_gettime system call but the ones they make on purpose.
func TestRuntimesAccept(t *testing.T) {
	for _, c := range []struct {
		name, tool string
		args       []string
		calls      int // clock_gettime system calls made on purpose
	}{
		{"glibc", "gcc", []string{"-O2", "-static", "-o", "OUT", "testdata/clockcheck.c"}, 2001},
		{"glibc static-pie", "gcc", []string{"-O2", "-static-pie", "-o", "OUT", "testdata/clockcheck.c"}, 2001},
		{"glibc dynamic", "gcc", []string{"-O2", "-o", "OUT", "testdata/clockcheck.c"}, 2001},
		{"musl", "musl-gcc", []string{"-O2", "-static", "-o", "OUT", "testdata/clockcheck.c"}, 2001},
		{"Rust", "rustc", []string{"-O", "-C", "target-feature=+crt-static", "-o", "OUT", "testdata/clockcheck.rs"}, 0},
		{"Go", "go", []string{"build", "-o", "OUT", "testdata/clockcheck/main_unsafe.go"}, 2000},
	} {
		t.Run(c.name, func(t *testing.T) {
			testenv.Need(t, testenv.Tool(c.tool))
			out := filepath.Join(t.TempDir(), "clockcheck")
			for i, a := range c.args {
				if a == "OUT" {
					c.args[i] = out
				}
			}
			if b, err := exec.Command(c.tool, c.args...).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, b)
			}
			n := mapNative(t)
			clock, err := NewClock(n.page, Kernel{}, 0)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error)
			go func() { done <- clock.Run(ctx, nil) }()
			text, calls, used := runTraced(t, out, n.file)
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			var reads, back, ns, half int64
			if _, err := fmt.Sscan(text, &reads, &back, &ns, &half); err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			t.Logf("%d reads, %d backwards, error %d ns give or take %d; %d clock_gettime calls", reads, back, ns, half, calls)
			if !used {
				t.Error("the program was not given our image")
			}
			if reads < 1000000 || back != 0 || calls > c.calls || calls < c.calls {
				t.Errorf("%d calls instead of %d, %d backward steps", calls, c.calls, back)
			}
			if lim := 100 + half; ns > lim || ns < -lim {
				t.Errorf("%d ns off", ns)
			}
		})
	}
}

// runTraced runs a program whose vDSO is the file of mapNative. It gives its output and the number
// of its clock_gettime system calls.
func runTraced(t *testing.T, path string, image *os.File) (output string, calls int, used bool) {
	t.Helper()
	runtime.LockOSThread() // ptrace belongs to a thread
	defer runtime.UnlockOSThread()
	var buf bytes.Buffer
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command(path)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = w, os.Stderr, []*os.File{image} // fd 3
	cmd.SysProcAttr = &unix.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	pid := cmd.Process.Pid
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil || !ws.Stopped() {
		t.Fatalf("%v %v", err, ws)
	}
	if err := unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_EXITKILL); err != nil {
		t.Fatal(err)
	}
	const at = 0x6000_0000_0000
	inject(t, pid, at, PageSize, unix.PROT_READ, 0)
	inject(t, pid, at+PageSize, ImageSize, unix.PROT_READ|unix.PROT_EXEC, PageSize)
	used = replaceVDSO(t, pid, at+PageSize)
	calls = countCalls(t, pid)
	if _, err := buf.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(buf.String()), calls, used
}

// inject makes the stopped process map a part of its fd 3.
func inject(t *testing.T, pid int, addr, size uint64, prot int, off int64) {
	t.Helper()
	var old unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &old); err != nil {
		t.Fatal(err)
	}
	code := make([]byte, 8)
	if _, err := unix.PtracePeekText(pid, uintptr(old.Rip), code); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.PtracePokeText(pid, uintptr(old.Rip), []byte{0x0f, 0x05, 0xcc, 0x90, 0x90, 0x90, 0x90, 0x90}); err != nil {
		t.Fatal(err)
	}
	regs := old
	regs.Rax, regs.Rdi, regs.Rsi, regs.Rdx = unix.SYS_MMAP, addr, size, uint64(prot)
	regs.R10, regs.R8, regs.R9 = unix.MAP_SHARED|unix.MAP_FIXED, 3, uint64(off)
	if err := unix.PtraceSetRegs(pid, &regs); err != nil {
		t.Fatal(err)
	}
	if err := unix.PtraceCont(pid, 0); err != nil {
		t.Fatal(err)
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil || !ws.Stopped() || ws.StopSignal() != unix.SIGTRAP {
		t.Fatalf("%v %v", err, ws)
	}
	if err := unix.PtraceGetRegs(pid, &regs); err != nil || regs.Rax != addr {
		t.Fatalf("mmap in the program: %#x, %v", regs.Rax, err)
	}
	if _, err := unix.PtracePokeText(pid, uintptr(old.Rip), code); err != nil {
		t.Fatal(err)
	}
	if err := unix.PtraceSetRegs(pid, &old); err != nil {
		t.Fatal(err)
	}
}

// replaceVDSO rewrites AT_SYSINFO_EHDR on the first stack.
func replaceVDSO(t *testing.T, pid int, addr uint64) bool {
	t.Helper()
	const sysinfoEHDR = 33
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &regs); err != nil {
		t.Fatal(err)
	}
	word := func(a uint64) uint64 {
		b := make([]byte, 8)
		if _, err := unix.PtracePeekData(pid, uintptr(a), b); err != nil {
			t.Fatal(err)
		}
		return binary.LittleEndian.Uint64(b)
	}
	a := regs.Rsp + 8 + 8*word(regs.Rsp) + 8
	for word(a) != 0 {
		a += 8
	}
	for a += 8; word(a) != 0; a += 16 {
		if word(a) == sysinfoEHDR {
			_, err := unix.PtracePokeData(pid, uintptr(a+8), binary.LittleEndian.AppendUint64(nil, addr))
			return err == nil
		}
	}
	return false
}

// countCalls lets the program run to its end.
func countCalls(t *testing.T, pid int) (calls int) {
	t.Helper()
	entering := map[int]bool{}
	next := pid
	for sig := 0; ; {
		if err := unix.PtraceSyscall(next, sig); err != nil && err != unix.ESRCH {
			t.Fatal(err)
		}
		var ws unix.WaitStatus
		var err error
		if next, err = unix.Wait4(-1, &ws, unix.WALL, nil); err != nil {
			t.Fatal(err)
		}
		sig = 0
		switch {
		case ws.Exited() || ws.Signaled():
			if next == pid {
				if ws.ExitStatus() != 0 {
					t.Errorf("the program ended with %v", ws)
				}
				return calls
			}
			next = pid // a thread is gone; ESRCH if pid is running is passed over above
		case ws.StopSignal() == unix.SIGTRAP|0x80:
			entering[next] = !entering[next]
			var regs unix.PtraceRegs
			if err := unix.PtraceGetRegs(next, &regs); err == nil && entering[next] && regs.Orig_rax == unix.SYS_CLOCK_GETTIME {
				calls++
			}
		case ws.StopSignal() == unix.SIGTRAP || ws.StopSignal() == unix.SIGSTOP: // clone event, new thread
		default:
			sig = int(ws.StopSignal())
		}
	}
}
