package linux

import (
	"encoding/binary"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister-vmm/cloister/guest/vfs"
)

// TestMain ignores SIGXFSZ as the engine does: the Go runtime would end the process, where the guest
// has to see EFBIG.
func TestMain(m *testing.M) {
	signal.Ignore(unix.SIGXFSZ)
	// Programs that abort natively must not leave a core file among what is compared.
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

type fakeCPU struct {
	fs, gs uint64
	regs   Registers
	xstate [4096]byte
}

func (c *fakeCPU) FSBase() uint64     { return c.fs }
func (c *fakeCPU) SetFSBase(v uint64) { c.fs = v }
func (c *fakeCPU) GSBase() uint64     { return c.gs }
func (c *fakeCPU) SetGSBase(v uint64) { c.gs = v }

func (c *fakeCPU) Registers() *Registers         { return &c.regs }
func (c *fakeCPU) XState() ([]byte, unix.Errno)  { return c.xstate[:], 0 }
func (c *fakeCPU) SetXState(b []byte) unix.Errno { copy(c.xstate[:], b); return 0 }
func (c *fakeCPU) PutXState(b []byte)            { copy(c.xstate[:], b) }

// guest is a kernel with an arena and a writable directory.
type guest struct {
	t     testing.TB
	k     *Kernel
	task  *Task
	mem   *arena
	dir   string
	stop  int        // the Interrupt eventfd
	mu    sync.Mutex // guards the next two
	ended bool
	warns []string
	next  uint64 // where the next argument is put in the arena
}

func newGuest(t testing.TB, mod func(*Config)) *guest {
	t.Helper()
	g := &guest{t: t, mem: newArena(t, 64), dir: t.TempDir()}
	var err error
	if g.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	opt := vfs.Options{
		PID: os.Getpid(), Maps: g.mem.Maps, Cwd: g.dir,
		FDs: func() []int { return g.k.FDs() }, File: func(fd int) *vfs.File { return g.k.File(fd) },
		Getcwd:  func() string { return g.k.Getcwd() },
		Threads: func() []vfs.Thread { return g.k.Tasks() }, Self: func() int { return g.k.Current().ID },
		Texts: Texts(func() *Kernel { return g.k }), Rename: func(id int, name []byte) unix.Errno { return g.k.Rename(id, name) },
		Statm: func() string { return g.k.Statm() }, Limits: func() string { return g.k.Limits() },
	}
	fs, err := vfs.New([]vfs.Mount{{Host: g.dir, Writable: true}}, opt)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Memory: g.mem, FS: fs, Args: []string{"prog"}, Exe: "/bin/program-with-a-long-name", Interrupt: g.stop,
		Stdio: &[3]int{null, null, null},
		Warn: func(s string) {
			g.mu.Lock()
			g.warns = append(g.warns, s)
			g.mu.Unlock()
		},
	}
	if mod != nil {
		mod(&cfg)
	}
	if g.k, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	if g.task, err = g.k.NewTask(&fakeCPU{}); err != nil {
		t.Fatal(err)
	}
	g.next = g.mem.base
	t.Cleanup(func() {
		g.mu.Lock()
		g.ended = true
		g.mu.Unlock()
		g.k.Close()
		_ = fs.Close()
		_ = unix.Close(null)
		_ = unix.Close(g.stop)
	})
	return g
}

// call makes a system call that returns; the result is as in RAX.
func (g *guest) call(nr uint64, a ...uint64) int64 {
	g.t.Helper()
	out := g.out(nr, a...)
	if out.Kind != Return {
		g.t.Fatalf("%s%v: outcome %+v, want a return", Name(nr), a, out)
	}
	return int64(out.Ret)
}

func (g *guest) out(nr uint64, a ...uint64) Outcome {
	var r [6]uint64
	copy(r[:], a)
	return g.k.Syscall(g.task, nr, r)
}

func (g *guest) want(want int64, nr uint64, a ...uint64) {
	g.t.Helper()
	if got := g.call(nr, a...); got != want {
		g.t.Errorf("%s%x = %d, want %d", Name(nr), a, got, want)
	}
}

// put places bytes in the arena, 16-aligned, and returns their address. The arena is a ring.
func (g *guest) put(b []byte) uint64 {
	n := (uint64(len(b)) + 15) &^ 15
	if g.next+n > g.mem.base+uint64(g.mem.pages)*page {
		g.next = g.mem.base
	}
	at := g.next
	g.next += n
	copy(g.bytes(at, uint64(len(b))), b)
	return at
}

func (g *guest) str(s string) uint64 { return g.put(append([]byte(s), 0)) }
func (g *guest) buf(n int) uint64    { return g.put(make([]byte, n)) }
func (g *guest) words(v ...uint64) uint64 {
	var b []byte
	for _, w := range v {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return g.put(b)
}

func (g *guest) bytes(addr, n uint64) []byte {
	off := guardPages*page + addr - g.mem.base
	return g.mem.all[off : off+n]
}

func (g *guest) word(addr uint64) uint64 { return binary.LittleEndian.Uint64(g.bytes(addr, 8)) }

// interrupt may come late from a timer, after the end of the test that has set it.
func (g *guest) interrupt() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended {
		return
	}
	if _, err := unix.Write(g.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		g.t.Error(err)
	}
}

func (g *guest) warned(part string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, w := range g.warns {
		if strings.Contains(w, part) {
			return true
		}
	}
	return false
}

func e(errno unix.Errno) int64 { return -int64(errno) }

func TestFileRoundTrip(t *testing.T) {
	g := newGuest(t, nil)
	fd := g.call(unix.SYS_OPENAT, cwd, g.str("f"), unix.O_RDWR|unix.O_CREAT, 0o640)
	if fd != 3 {
		t.Fatalf("open = %d, want the lowest free descriptor, 3", fd)
	}
	f := uint64(fd)
	g.want(5, unix.SYS_WRITE, f, g.put([]byte("hello")), 5)
	g.want(0, unix.SYS_LSEEK, f, 0, unix.SEEK_SET)
	b := g.buf(16)
	g.want(5, unix.SYS_READ, f, b, 16)
	if got := string(g.bytes(b, 5)); got != "hello" {
		t.Errorf("read %q", got)
	}
	d := uint64(g.call(unix.SYS_DUP, f))
	g.want(2, unix.SYS_LSEEK, d, 2, unix.SEEK_SET)
	g.want(3, unix.SYS_READ, f, b, 16) // the offset is shared
	g.want(0, unix.SYS_CLOSE, f)
	g.want(e(unix.EBADF), unix.SYS_READ, f, b, 16)
	g.want(5, unix.SYS_PREAD64, d, b, 16, 0)
	host, err := os.ReadFile(filepath.Join(g.dir, "f"))
	if err != nil || string(host) != "hello" {
		t.Errorf("host sees %q, %v", host, err)
	}
}

func TestOutcomes(t *testing.T) {
	g := newGuest(t, nil)
	for _, c := range []struct {
		nr   uint64
		a    []uint64
		want Outcome
	}{
		{unix.SYS_EXIT_GROUP, []uint64{0x107}, Outcome{Kind: Exit, Value: 7}},
		{unix.SYS_KILL, []uint64{uint64(os.Getpid()), 15}, Outcome{Kind: Kill, Value: 15}},
		{unix.SYS_TGKILL, []uint64{uint64(os.Getpid()), uint64(os.Getpid()), 6}, Outcome{Kind: Kill, Value: 6}},
		{unix.SYS_KILL, []uint64{uint64(os.Getpid()), 17}, Outcome{}},
		{unix.SYS_KILL, []uint64{uint64(os.Getpid()), 0}, Outcome{}},
		{unix.SYS_KILL, []uint64{1, 9}, Outcome{Ret: negate(unix.ESRCH)}},
		{unix.SYS_KILL, []uint64{uint64(os.Getpid()), 65}, Outcome{Ret: negate(unix.EINVAL)}},
		{unix.SYS_FORK, nil, Outcome{Ret: negate(unix.ENOSYS)}},
		{unix.SYS_SOCKET, []uint64{2, 1, 0}, Outcome{Ret: negate(unix.EAFNOSUPPORT)}},
		{100000, nil, Outcome{Ret: negate(unix.ENOSYS)}},
		{unix.SYS_EXIT, []uint64{3}, Outcome{Kind: Exit, Value: 3}},
	} {
		if got := g.out(c.nr, c.a...); got != c.want {
			t.Errorf("%s%v = %+v, want %+v", Name(c.nr), c.a, got, c.want)
		}
	}
	for _, part := range []string{"fork", "socket (41)", "100000"} {
		if !g.warned(part) {
			t.Errorf("no warning about %s in %q", part, g.warns)
		}
	}
	g.out(unix.SYS_SOCKET)
	if u := g.k.Unknown(); u[unix.SYS_SOCKET] != 2 || u[100000] != 1 {
		t.Errorf("Unknown = %v", u)
	}
	if len(g.warns) != 3 {
		t.Errorf("each refused thing is named once; got %q", g.warns)
	}
}

func TestConstantsAgree(t *testing.T) {
	g := newGuest(t, nil)
	n := 0
	for nr := range uint64(tableSize) {
		f, ok := g.k.Constant(nr)
		if !ok {
			continue
		}
		n++
		if got, want := int64(f()), native(nr); got != want && nr != unix.SYS_GETTID {
			t.Errorf("Constant(%s) = %d, the host says %d", Name(nr), got, want)
		}
		if got := g.call(nr); got != int64(f()) {
			t.Errorf("%s = %d, Constant says %d", Name(nr), got, f())
		}
	}
	if n != 7 {
		t.Errorf("%d constant calls, want 7", n)
	}
	if _, ok := g.k.Constant(unix.SYS_READ); ok {
		t.Error("read is no constant")
	}
}
