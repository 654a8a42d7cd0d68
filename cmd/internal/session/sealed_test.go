package session

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What is longer than a packet comes over the wire whole, and cannot be changed behind the receiver's back.
func TestSealed(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b := Wire{pair[0]}, Wire{pair[1]}
	for _, body := range [][]byte{bytes.Repeat([]byte("0123456789"), maxMessage), {}} {
		fd, err := Seal("plan", body)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Send(Message{Patch: &Patch{7, len(body)}}, fd); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(fd, []byte("x")); err != unix.EPERM {
			t.Errorf("a sealed file was written to: %v", err)
		}
		if err := unix.Close(fd); err != nil {
			t.Fatal(err)
		}
		m, fds, err := b.Receive()
		if err != nil || m.Patch == nil || m.Patch.ID != 7 {
			t.Fatalf("%+v, %v", m, err)
		}
		got, err := Unseal(fds, m.Patch.Length)
		if err != nil || !bytes.Equal(got, body) {
			t.Errorf("%d bytes, %v; want %d", len(got), err, len(body))
		}
		if _, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GETFD, 0); err != unix.EBADF {
			t.Errorf("the descriptor is still open: %v", err)
		}
	}
	if _, err := Seal("plan", make([]byte, MaxSealed+1)); err == nil {
		t.Error("there is no bound")
	}
}

func TestUnsealRefuses(t *testing.T) {
	file := func(make func() (int, error)) []int {
		t.Helper()
		fd, err := make()
		if err != nil {
			t.Fatal(err)
		}
		return []int{fd}
	}
	sealed := func() (int, error) { return Seal("x", []byte("four")) }
	open := func() (int, error) {
		fd, err := unix.MemfdCreate("x", unix.MFD_ALLOW_SEALING)
		if err == nil {
			err = unix.Ftruncate(fd, 4)
		}
		return fd, err
	}
	for name, c := range map[string]struct {
		fds    []int
		length int
	}{
		"no seals":      {file(open), 4},
		"no memfd":      {file(func() (int, error) { return unix.Open("/dev/null", unix.O_RDONLY, 0) }), 0},
		"shorter":       {file(sealed), 5},
		"longer":        {file(sealed), 3},
		"negative":      {file(sealed), -1},
		"nothing":       {nil, 4},
		"two":           {append(file(sealed), file(sealed)...), 4},
		"out of bounds": {file(sealed), MaxSealed + 1},
	} {
		if b, err := Unseal(c.fds, c.length); err == nil {
			t.Errorf("%s: %q", name, b)
		}
		for _, fd := range c.fds {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != unix.EBADF {
				t.Errorf("%s: a descriptor is still open: %v", name, err)
			}
		}
	}
}

func TestPatchLog(t *testing.T) {
	t.Setenv("CLOISTER_STATE_DIR", "/somewhere")
	if p, err := PatchLog("loop"); err != nil || p != "/somewhere/patch/loop.jsonl" {
		t.Error(p, err)
	}
	t.Setenv("CLOISTER_STATE_DIR", "")
	t.Setenv("XDG_STATE_HOME", "relative")
	t.Setenv("HOME", "/nobody")
	p, err := PatchLog("loop")
	want := "/nobody/.local/state/cloister/patch/loop.jsonl"
	if os.Geteuid() == 0 {
		want = "/var/lib/cloister/patch/loop.jsonl"
	}
	if err != nil || p != want {
		t.Error(p, err)
	}
	if os.Geteuid() != 0 {
		t.Setenv("XDG_STATE_HOME", "/state")
		if p, err := PatchLog("loop"); err != nil || p != "/state/cloister/patch/loop.jsonl" {
			t.Error(p, err)
		}
		t.Setenv("XDG_STATE_HOME", "")
		t.Setenv("HOME", "")
		if p, err := PatchLog("loop"); err == nil || !strings.Contains(err.Error(), "CLOISTER_STATE_DIR") {
			t.Error(p, err)
		}
	}
	if !filepath.IsAbs(p) {
		t.Error(p)
	}
}
