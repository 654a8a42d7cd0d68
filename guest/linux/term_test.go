package linux

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openPTY returns a pseudo-terminal: the side of the user and the side of the program.
func openPTY(t *testing.T) (master, slave int) {
	t.Helper()
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open /dev/ptmx: %v (mount devpts)", err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = unix.Open("/dev/pts/"+itoa(n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unix.Close(master), unix.Close(slave) })
	return master, slave
}

// TestTerminal: a guest on a terminal sees its settings, changes them, waits for input so that it can be
// cut, and never makes the shell's descriptor non-blocking.
func TestTerminal(t *testing.T) {
	master, slave := openPTY(t)
	if err := unix.IoctlSetWinsize(slave, unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 99}); err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, func(c *Config) { c.Stdio = &[3]int{slave, slave, master} })
	b, h := g.buf(64), g.buf(64)
	for _, req := range []uint64{unix.TCGETS, unix.TCGETS2, unix.TIOCGWINSZ, unix.TIOCINQ, unix.TIOCOUTQ} {
		want := native(unix.SYS_IOCTL, uint64(slave), req, h)
		g.want(want, unix.SYS_IOCTL, 0, req, b)
		if !bytes.Equal(g.bytes(b, 64), g.bytes(h, 64)) {
			t.Errorf("ioctl %#x: guest %x, host %x", req, g.bytes(b, 64), g.bytes(h, 64))
		}
	}
	g.want(0, unix.SYS_IOCTL, 0, unix.TCGETS, b)
	g.bytes(b+12, 1)[0] &^= unix.ECHO
	for _, req := range []uint64{unix.TCSETS, unix.TCSETSW, unix.TCSETSF} {
		g.want(0, unix.SYS_IOCTL, 0, req, b)
	}
	if tio, err := unix.IoctlGetTermios(slave, unix.TCGETS); err != nil || tio.Lflag&unix.ECHO != 0 {
		t.Errorf("echo is still on: %v", err)
	}
	g.want(e(unix.ENOTTY), unix.SYS_IOCTL, 0, unix.TIOCSTI, g.str("x"))
	g.want(e(unix.EPERM), unix.SYS_IOCTL, 0, unix.TIOCSPGRP, g.words(1))

	time.AfterFunc(3*time.Millisecond, g.interrupt)
	if out := g.out(unix.SYS_READ, 0, b, 64); out.Kind != Interrupted {
		t.Errorf("read of a silent terminal: %+v", out)
	}
	g.drain()
	if _, err := unix.Write(master, []byte("line\n")); err != nil {
		t.Fatal(err)
	}
	g.want(5, unix.SYS_READ, 0, b, 64)
	// More output than the terminal takes, and nobody reads: the write is cut, not stuck.
	time.AfterFunc(20*time.Millisecond, g.interrupt)
	n := g.call(unix.SYS_WRITE, 1, g.mem.base+8*page, 48*page)
	if n <= 0 || n >= 48*page {
		t.Errorf("write to a full terminal = %d, want a part of it", n)
	}
	g.drain()
	// TCSETSW waits for the output, and can be cut.
	timer := time.AfterFunc(3*time.Millisecond, g.interrupt)
	out := g.out(unix.SYS_IOCTL, 0, unix.TCSETSW, b)
	timer.Stop()
	if out.Kind != Interrupted && out.Ret != 0 {
		t.Errorf("TCSETSW: %+v", out)
	}
	g.drain()
	for _, fd := range []int{slave, master} {
		if fl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || fl&unix.O_NONBLOCK != 0 {
			t.Errorf("the host's descriptor became non-blocking: %#x %v", fl, err)
		}
	}
	g.want(0, unix.SYS_FCNTL, 0, unix.F_SETFL, unix.O_NONBLOCK)
	g.want(e(unix.EAGAIN), unix.SYS_READ, 0, b, 64)
	if fl, err := unix.FcntlInt(uintptr(slave), unix.F_GETFL, 0); err != nil || fl&unix.O_NONBLOCK != 0 {
		t.Errorf("O_NONBLOCK of the guest reached the host: %#x %v", fl, err)
	}
}

// TestDescriptorFlags are the guest's own.
func TestDescriptorFlags(t *testing.T) {
	g := newGuest(t, nil)
	fds := g.buf(8)
	g.want(0, unix.SYS_PIPE2, fds, unix.O_CLOEXEC|unix.O_NONBLOCK)
	r := g.word(fds) & 0xffffffff
	g.want(1, unix.SYS_FCNTL, r, unix.F_GETFD)
	g.want(0, unix.SYS_FCNTL, r, unix.F_SETFD, 0)
	g.want(0, unix.SYS_FCNTL, r, unix.F_GETFD)
	g.want(0, unix.SYS_FCNTL, r, unix.F_SETFD, 1)
	g.want(1, unix.SYS_FCNTL, r, unix.F_GETFD)
	g.want(unix.O_NONBLOCK, unix.SYS_FCNTL, r, unix.F_GETFL)
	g.want(e(unix.EAGAIN), unix.SYS_READ, r, fds, 1)
	d := uint64(g.call(unix.SYS_FCNTL, r, unix.F_DUPFD, 20))
	g.want(0, unix.SYS_FCNTL, d, unix.F_GETFD)
	g.want(0, unix.SYS_IOCTL, d, fionbio, g.words(0))
	g.want(0, unix.SYS_FCNTL, r, unix.F_GETFL) // status flags are the description's
	open := len(g.k.FDs())
	g.want(e(unix.EFAULT), unix.SYS_PIPE, 8)
	if n := len(g.k.FDs()); n != open {
		t.Errorf("a failed pipe left %d descriptors", n-open)
	}
}
