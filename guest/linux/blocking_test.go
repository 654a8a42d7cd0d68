package linux

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestInterruptCutsEveryWait makes each call that would wait for ever, and lets Interrupt come later.
func TestInterruptCutsEveryWait(t *testing.T) {
	var p [2]int // an empty pipe as standard input, blocking and shared as a shell's
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	g := newGuest(t, func(c *Config) { c.Stdio = &[3]int{p[0], c.Stdio[1], c.Stdio[2]} })
	if err := unix.Mkfifo(filepath.Join(g.dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	fds := g.buf(8)
	g.want(0, unix.SYS_PIPE2, fds, 0)
	r, w := g.word(fds)&0xffffffff, g.word(fds)>>32
	full := uint64(g.call(unix.SYS_FCNTL, w, unix.F_GETPIPE_SZ))
	g.want(0, unix.SYS_FCNTL, w, unix.F_SETFL, unix.O_NONBLOCK)
	big := g.mem.base + 32*page
	for n := uint64(0); n < full; n += 16 * page {
		g.want(16*page, unix.SYS_WRITE, w, big, 16*page)
	}
	g.want(e(unix.EAGAIN), unix.SYS_WRITE, w, big, 1)
	g.want(0, unix.SYS_FCNTL, w, unix.F_SETFL, 0)
	empty := g.buf(8)
	g.want(0, unix.SYS_PIPE2, empty, 0)
	er := g.word(empty) & 0xffffffff
	ep := uint64(g.call(unix.SYS_EPOLL_CREATE1, 0))
	evfd := uint64(g.call(unix.SYS_EVENTFD2, 0, 0))
	g.want(0, unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_ADD, er, g.words(1, 0))
	locked := uint64(g.call(unix.SYS_OPENAT, cwd, g.str("l"), unix.O_RDWR|unix.O_CREAT, 0o600))
	other, err := unix.Open(filepath.Join(g.dir, "l"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(other)
	if err := unix.Flock(other, unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := unix.FcntlFlock(uintptr(other), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
	fifo := g.str("fifo")
	rfifo := uint64(g.call(unix.SYS_OPENAT, cwd, fifo, unix.O_RDONLY, 0))
	pollIn := g.put([]byte{byte(er), 0, 0, 0, 1, 0, 0, 0})
	set := g.words(1 << er)
	lock := g.words(unix.F_WRLCK, 0, 0, 0)
	hour := g.words(3600, 0)
	b := g.buf(64)
	iov := g.words(b, 8, b+16, 8)
	never := g.words(1<<40, 0)
	null := uint64(g.call(unix.SYS_OPENAT, cwd, g.str("/dev/zero"), 0, 0))
	type c struct {
		nr uint64
		a  []uint64
	}
	calls := []c{
		{unix.SYS_READ, []uint64{0, b, 8}}, {unix.SYS_READ, []uint64{er, b, 8}}, {unix.SYS_READV, []uint64{0, iov, 2}},
		{unix.SYS_READ, []uint64{evfd, b, 8}}, {unix.SYS_READ, []uint64{rfifo, b, 8}},
		{unix.SYS_WRITE, []uint64{w, big, 100}}, {unix.SYS_WRITEV, []uint64{w, iov, 2}}, {unix.SYS_SENDFILE, []uint64{w, locked, 0, 0}},
		{unix.SYS_POLL, []uint64{pollIn, 1, ^uint64(0)}}, {unix.SYS_POLL, []uint64{pollIn, 1, 3600e3}}, {unix.SYS_PPOLL, []uint64{pollIn, 1, hour, 0, 8}},
		{unix.SYS_POLL, []uint64{0, 0, ^uint64(0)}}, {unix.SYS_SELECT, []uint64{64, set, 0, 0, 0}}, {unix.SYS_PSELECT6, []uint64{64, set, 0, 0, never, 0}},
		{unix.SYS_EPOLL_WAIT, []uint64{ep, b, 1, ^uint64(0)}}, {unix.SYS_EPOLL_PWAIT2, []uint64{ep, b, 1, hour, 0, 8}},
		{unix.SYS_NANOSLEEP, []uint64{hour, 0}}, {unix.SYS_NANOSLEEP, []uint64{never, b}}, {unix.SYS_CLOCK_NANOSLEEP, []uint64{0, 1, never, 0}}, {unix.SYS_CLOCK_NANOSLEEP, []uint64{1, 0, hour, 0}},
		{unix.SYS_FUTEX, []uint64{b + 32, 128, 0, 0}}, {unix.SYS_FUTEX, []uint64{b + 32, 0, 0, hour}}, {unix.SYS_FUTEX, []uint64{b + 32, 137 | 256, 0, never, 0, 1}},
		{unix.SYS_FLOCK, []uint64{locked, unix.LOCK_EX}}, {unix.SYS_FCNTL, []uint64{locked, unix.F_OFD_SETLKW, lock}},
		{unix.SYS_PAUSE, nil}, {unix.SYS_RT_SIGSUSPEND, []uint64{g.words(0), 8}}, {unix.SYS_RT_SIGTIMEDWAIT, []uint64{g.words(2), 0, hour, 8}},
	}
	_ = null
	for _, c := range calls {
		if c.nr == unix.SYS_SENDFILE {
			c.a[1], c.a[3] = uint64(g.call(unix.SYS_OPENAT, cwd, g.str("big"), unix.O_RDWR|unix.O_CREAT, 0o600)), 8
			g.call(unix.SYS_PWRITE64, c.a[1], b, 64, 0)
		}
		timer := time.AfterFunc(3*time.Millisecond, g.interrupt)
		start := time.Now()
		out := g.out(c.nr, c.a...)
		timer.Stop()
		if out.Kind != Interrupted || int64(out.Ret) != e(unix.EINTR) {
			t.Errorf("%s%x = %+v, want Interrupted", Name(c.nr), c.a, out)
		}
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("%s took %v to be cut", Name(c.nr), d)
		}
		g.drain()
	}
	// Opening a FIFO for writing waits for a reader.
	g.want(0, unix.SYS_CLOSE, rfifo)
	time.AfterFunc(8*time.Millisecond, g.interrupt)
	if out := g.out(unix.SYS_OPENAT, cwd, fifo, unix.O_WRONLY, 0); out.Kind != Interrupted {
		t.Errorf("open of a FIFO = %+v, want Interrupted", out)
	}
	g.drain()
	g.want(e(unix.ENXIO), unix.SYS_OPENAT, cwd, fifo, unix.O_WRONLY|unix.O_NONBLOCK, 0)
	// What had begun is reported, not cut: half of a big write.
	g.want(int64(page), unix.SYS_READ, r, big, page)
	time.AfterFunc(3*time.Millisecond, g.interrupt)
	g.want(int64(page), unix.SYS_WRITE, w, big, 16*page)
	g.drain()
}

func (g *guest) drain() {
	var b [8]byte
	_, _ = unix.Read(g.stop, b[:]) // EAGAIN: it was not raised
}

// TestDeadlineSurvivesInterrupt: a sleep that is cut again and again still ends in time.
func TestDeadlineSurvivesInterrupt(t *testing.T) {
	g := newGuest(t, nil)
	const span = 60 * time.Millisecond
	ts := g.words(0, uint64(span))
	cuts := 0
	for try := 0; cuts < 2; try++ { // on a busy machine the cuts may come too late
		if try == 20 {
			t.Fatalf("in %d sleeps of %v none was cut twice", try, span)
		}
		cuts = 0
		start := time.Now()
		for {
			timer := time.AfterFunc(10*time.Millisecond, g.interrupt)
			out := g.out(unix.SYS_NANOSLEEP, ts, 0)
			timer.Stop()
			g.drain()
			if out.Kind == Return {
				break
			}
			if cuts++; cuts == 1000 {
				t.Fatalf("a sleep of %v goes on for %v: each cut begins it anew", span, time.Since(start))
			}
		}
		if d := time.Since(start); d < span {
			t.Errorf("slept %v with %d cuts, want %v", d, cuts, span)
		}
	}
	// The next sleep is a new one, although its arguments are the same.
	start := time.Now()
	g.want(0, unix.SYS_NANOSLEEP, ts, 0)
	if d := time.Since(start); d < span {
		t.Errorf("the second sleep took %v, want %v", d, span)
	}
}

// TestPollAndSelect looks at ready descriptors, synthetic ones and bad ones.
func TestPollAndSelect(t *testing.T) {
	g := newGuest(t, nil)
	fds := g.buf(8)
	g.want(0, unix.SYS_PIPE, fds)
	r, w := g.word(fds)&0xffffffff, g.word(fds)>>32
	synth := uint64(g.call(unix.SYS_OPENAT, cwd, g.str("/proc/self/maps"), 0, 0))
	g.interrupt() // ready descriptors are seen although we are asked to stop
	p := g.put([]byte{byte(r), 0, 0, 0, 1, 0, 0, 0, byte(w), 0, 0, 0, 4, 0, 0, 0, 77, 0, 0, 0, 1, 0, 0, 0, byte(synth), 0, 0, 0, 1, 0, 0, 0})
	g.want(3, unix.SYS_POLL, p, 4, ^uint64(0))
	want := []byte{0, 4, 0x20, 1}
	for i, ev := range want {
		if got := g.bytes(p+uint64(8*i)+6, 1)[0]; got != ev {
			t.Errorf("poll slot %d: %#x, want %#x", i, got, ev)
		}
	}
	rs, ws := g.words(1<<r|1<<synth), g.words(1<<w)
	g.want(2, unix.SYS_SELECT, 64, rs, ws, 0, 0)
	if g.word(rs) != 1<<synth || g.word(ws) != 1<<w {
		t.Errorf("select: %#x %#x", g.word(rs), g.word(ws))
	}
	g.want(e(unix.EBADF), unix.SYS_SELECT, 64, g.words(1<<60), 0, 0, 0)
	ep := uint64(g.call(unix.SYS_EPOLL_CREATE, 1))
	g.want(0, unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_ADD, w, g.put([]byte{4, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}))
	g.want(e(unix.EPERM), unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_ADD, synth, g.buf(12))
	ev := g.buf(12)
	g.want(1, unix.SYS_EPOLL_WAIT, ep, ev, 10, ^uint64(0))
	if got := g.bytes(ev, 12); !bytes.Equal(got, []byte{4, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}) {
		t.Errorf("event %x", got)
	}
	g.drain()
	g.want(0, unix.SYS_CLOSE, w)
	g.want(0, unix.SYS_READ, r, ev, 1) // end of file, no wait
}

// An epoll knows an open file by each of its numbers, as long as there are not too many of them.
func TestEpollOfDuplicates(t *testing.T) {
	g := newGuest(t, nil)
	ev := g.call(unix.SYS_EVENTFD2, 1, 0)
	ep := uint64(g.call(unix.SYS_EPOLL_CREATE1, 0))
	add := func(fd uint64) int64 {
		return g.call(unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_ADD, fd, g.words(1, uint64(fd)))
	}
	if got := add(uint64(ev)); got != 0 {
		t.Fatal(got)
	}
	two := uint64(g.call(unix.SYS_DUP, uint64(ev)))
	if a, b := add(two), add(two); a != 0 || b != e(unix.EEXIST) {
		t.Errorf("%d, and again %d", a, b)
	}
	g.want(2, unix.SYS_EPOLL_WAIT, ep, g.buf(24), 2, 0)
	// Nobody may use up what the engine needs.
	got, n := int64(0), 0
	for ; got == 0 && n < 2*maxDuplicates; n++ {
		file := uint64(g.call(unix.SYS_EVENTFD2, 1, 0))
		keep := uint64(g.call(unix.SYS_DUP, file))
		g.want(0, unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_ADD, file, g.words(1))
		got = add(keep)
		g.want(0, unix.SYS_CLOSE, file)
	}
	if got != e(unix.ENOSPC) || g.k.fds.duplicates != maxDuplicates {
		t.Errorf("after %d: %d, %d duplicates", n, got, g.k.fds.duplicates)
	}
	g.k.fds.closeAll()
	if g.k.fds.duplicates != 0 {
		t.Errorf("%d duplicates are left", g.k.fds.duplicates)
	}
}

// TestStreams runs a child of the host at the other end of shared pipes.
func TestStreams(t *testing.T) {
	for _, reopened := range []bool{true, false} {
		in, feed, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		sink, out, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		g := newGuest(t, func(c *Config) { c.Stdio = &[3]int{int(in.Fd()), int(out.Fd()), -1} })
		g.want(e(unix.EBADF), unix.SYS_WRITE, 2, g.str("x"), 1)
		if !reopened { // as where /proc/self/fd cannot be opened
			for fd, f := range []*os.File{in, out} {
				d, _ := g.k.fds.get(uint64(fd))
				if _, err := unix.FcntlInt(uintptr(d.fd), unix.F_SETFL, 0); err != nil {
					t.Fatal(err)
				}
				d.wait = waitFirst
				_ = f
			}
		}
		const total = 1 << 20
		child := exec.Command("head", "-c", "1048576", "/dev/zero")
		child.Stdout = feed
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		count := make(chan int)
		go func() {
			n, b := 0, make([]byte, 7000)
			for {
				m, err := sink.Read(b)
				if n += m; err != nil {
					count <- n
					return
				}
			}
		}()
		buf := g.mem.base + 4*page
		for n := int64(0); n < total; {
			m := g.call(unix.SYS_READ, 0, buf, 50000)
			if m <= 0 {
				t.Fatalf("read = %d after %d bytes", m, n)
			}
			g.want(m, unix.SYS_WRITE, 1, buf, uint64(m))
			n += m
		}
		_ = child.Wait()
		_ = feed.Close()
		g.want(0, unix.SYS_READ, 0, buf, 1)
		g.k.Close()
		_ = out.Close()
		if n := <-count; n != total {
			t.Errorf("reopened=%v: %d bytes arrived, want %d", reopened, n, total)
		}
		_ = sink.Close()
		_ = in.Close()
	}
}

// TestBrokenPipe: SIGPIPE kills, unless it is ignored.
func TestBrokenPipe(t *testing.T) {
	g := newGuest(t, nil)
	fds := g.buf(8)
	g.want(0, unix.SYS_PIPE, fds)
	r, w := g.word(fds)&0xffffffff, g.word(fds)>>32
	g.want(0, unix.SYS_CLOSE, r)
	if out := g.out(unix.SYS_WRITE, w, fds, 1); out != (Outcome{Kind: Kill, Value: uint64(unix.SIGPIPE)}) {
		t.Errorf("write to a broken pipe: %+v", out)
	}
	g.want(0, unix.SYS_RT_SIGACTION, uint64(unix.SIGPIPE), g.words(sigIGN, 0, 0, 0), 0, 8)
	g.want(e(unix.EPIPE), unix.SYS_WRITE, w, fds, 1)
	g.want(0, unix.SYS_RT_SIGACTION, uint64(unix.SIGPIPE), g.words(sigDFL, 0, 0, 0), 0, 8)
	g.want(0, unix.SYS_RT_SIGPROCMASK, unix.SIG_BLOCK, g.words(sigBit(uint64(unix.SIGPIPE))), 0, 8)
	g.want(e(unix.EPIPE), unix.SYS_WRITE, w, fds, 1)
	set := g.buf(8)
	g.want(0, unix.SYS_RT_SIGPENDING, set, 8)
	if g.word(set) != sigBit(uint64(unix.SIGPIPE)) {
		t.Errorf("pending %#x", g.word(set))
	}
	if out := g.out(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, g.words(0), 0, 8); out.Kind != Kill {
		t.Errorf("unblocking a pending SIGPIPE: %+v", out)
	}
}

// TestSocketStream: standard streams may be sockets (inetd, a CI runner), shared and blocking.
func TestSocketStream(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[1])
	g := newGuest(t, func(c *Config) { c.Stdio = &[3]int{pair[1], pair[1], -1} })
	b := g.buf(64)
	time.AfterFunc(3*time.Millisecond, g.interrupt)
	if out := g.out(unix.SYS_READ, 0, b, 8); out.Kind != Interrupted {
		t.Errorf("read of a silent socket: %+v", out)
	}
	g.drain()
	if _, err := unix.Write(pair[0], []byte("hello")); err != nil {
		t.Fatal(err)
	}
	g.want(5, unix.SYS_READV, 0, g.words(b, 3, b+3, 8), 2)
	if got := string(g.bytes(b, 5)); got != "hello" {
		t.Errorf("read %q", got)
	}
	time.AfterFunc(20*time.Millisecond, g.interrupt)
	n := g.call(unix.SYS_WRITE, 1, g.mem.base, 60*page)
	for n < 1<<20 && n%(60*page) == 0 { // until the socket is full
		if out := g.out(unix.SYS_WRITE, 1, g.mem.base, 60*page); out.Kind != Return {
			break
		} else {
			n += int64(out.Ret)
		}
	}
	g.drain()
	if fl, err := unix.FcntlInt(uintptr(pair[1]), unix.F_GETFL, 0); err != nil || fl&unix.O_NONBLOCK != 0 {
		t.Errorf("the host's descriptor became non-blocking: %#x %v", fl, err)
	}
	g.want(e(unix.ENOTSOCK), unix.SYS_GETPEERNAME, 0, b, b)
	_ = unix.Close(pair[0])
	if out := g.out(unix.SYS_WRITE, 1, b, 1); out.Kind != Kill || out.Value != uint64(unix.SIGPIPE) {
		t.Errorf("write to a closed socket: %+v", out)
	}
}
