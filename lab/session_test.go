package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister-vmm/cloister/lab/wire"
)

// fakeQEMU puts a shell script into PATH in the emulator's place. $C and $M are
// the console and the message port.
func fakeQEMU(t *testing.T, script string) boot {
	t.Helper()
	dir := t.TempDir()
	text := "#!/bin/sh\nC=/dev/fd/3 M=/dev/fd/4\n" + script
	if err := os.WriteFile(filepath.Join(dir, "qemu-system-x86_64"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	m, err := Lookup("svm")
	if err != nil {
		t.Fatal(err)
	}
	// Seconds, not less: the suite shares two cores with the race detector.
	return boot{machine: m, dir: dir, limit: limit{boot: 3 * time.Second, silence: 3 * time.Second, stop: time.Second, answer: time.Second}}
}

func TestWatch(t *testing.T) {
	const (
		hello = `echo '{"Kind":"hello","Text":"6.1"}' > $M` + "\n"
		done  = `echo '{"Kind":"done","Status":1}' > $M` + "\n"
	)
	for _, c := range []struct {
		name, script string
		kinds        string   // what must be handled
		errs         []string // what the error must say; none: no error
	}{
		{"good", hello + done, "hello done", nil},
		{"noise on the port", "echo '[ 0.1] noise' > $M\n" + hello + done, "hello done", nil},
		{"does not switch off", hello + done + "exec sleep 1000", "hello done", nil},
		{"ends early", hello + "echo last words > $C\nexit 3", "hello", []string{"exit status 3", "before its job", "last words"}},
		{"does not start", "echo 'qemu: no such cpu' >&2; exit 1", "", []string{"exit status 1: qemu: no such cpu"}},
		{"panics", hello + "echo 'Kernel panic - not syncing: VFS' > $C\necho 'Call Trace' > $C\nexec sleep 1000", "hello", []string{"kernel panic: Kernel panic - not syncing: VFS", "Call Trace"}},
		{"panics and ends", "echo 'Kernel panic - not syncing: VFS' > $C", "", []string{"kernel panic: Kernel panic - not syncing: VFS"}},
		{"never up", "echo booting > $C\nread a; echo RIP=1 $a; exec sleep 1000", "", []string{"did not reach init within 3s", "RIP=1 info registers -a", "booting"}},
		{"falls silent", hello + "read a; read b; echo oops $b > $C; exec sleep 1000", "hello", []string{"no sign of life for 3s", "oops nmi"}},
		{"is loud", hello + "for i in 1 2 3 4 5 6 7 8; do sleep 0.5; echo '{\"Kind\":\"beat\"}' > $M; done\n" + done, "hello beat beat beat beat beat beat beat beat done", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("PATH", os.Getenv("PATH"))
			var kinds []string
			err := watch(context.Background(), fakeQEMU(t, c.script), func(m wire.Message) error {
				kinds = append(kinds, m.Kind)
				return nil
			})
			if got := strings.Join(kinds, " "); got != c.kinds {
				t.Errorf("handled %q, want %q", got, c.kinds)
			}
			if (err != nil) != (c.errs != nil) || err != nil && !errors.Is(err, ErrGuest) {
				t.Errorf("error %v, want one of the guest: %v", err, c.errs != nil)
			}
			for _, want := range c.errs {
				if !strings.Contains(fmt.Sprint(err), want) {
					t.Errorf("error %v\nlacks %q", err, want)
				}
			}
		})
	}
}

// A task that takes too long ends with the end of the console behind its stacks.
func TestConsoleOfALateTask(t *testing.T) {
	t.Setenv("PATH", os.Getenv("PATH"))
	for _, line := range []string{"panic: test timed out after 10m0s", "lab: x runs longer than 10m30s; SIGQUIT", "panic: other"} {
		script := `echo '{"Kind":"hello","Text":"6.1"}' > $M` + "\necho 'INFO: task blocked' > $C\nsleep 1\n" +
			`echo '{"Kind":"line","Text":"` + line + `"}' > $M` + "\n" + `echo '{"Kind":"end","Status":2}' > $M` + "\n" + `echo '{"Kind":"done","Status":1}' > $M` + "\n"
		var all []string
		if err := watch(t.Context(), fakeQEMU(t, script), func(m wire.Message) error {
			all = append(all, m.Kind+" "+m.Text)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		got := strings.Join(all, "|")
		want := line + "|line lab: end of the guest's console|line INFO: task blocked|end "
		if late := line != "panic: other"; strings.Contains(got, want) != late {
			t.Errorf("%q: %q", line, got)
		}
	}
}

// Whatever ends a run, the emulator and what it started are gone when watch returns.
func TestWatchLeavesNoProcess(t *testing.T) {
	for name, end := range map[string]func(context.CancelFunc) error{
		"cancelled": func(cancel context.CancelFunc) error { cancel(); return nil },
		"refused":   func(context.CancelFunc) error { return errors.New("disk full") },
	} {
		t.Run(name, func(t *testing.T) {
			pids := filepath.Join(t.TempDir(), "pids")
			b := fakeQEMU(t, "sleep 1000 &\necho $$ $! > "+pids+"\necho '{\"Kind\":\"hello\"}' > $M\nwait")
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			if err := watch(ctx, b, func(wire.Message) error { return end(cancel) }); err == nil || errors.Is(err, ErrGuest) {
				t.Errorf("watch = %v, want an error that is not the guest's", err)
			}
			text, err := os.ReadFile(pids)
			if err != nil {
				t.Fatal(err)
			}
			for f := range strings.FieldsSeq(string(text)) {
				pid, err := strconv.Atoi(f)
				if err != nil {
					t.Fatal(err)
				}
				if !gone(pid) {
					t.Errorf("process %d of the machine still runs", pid)
				}
			}
		})
	}
}

// gone waits for a killed process to be one: the group's orphan is reaped by init.
func gone(pid int) bool {
	for range 50 {
		if err := syscall.Kill(pid, 0); err == syscall.ESRCH {
			return true
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return true
		}
		time.Sleep(20 * time.Millisecond)
	}
	return false
}

func TestConsole(t *testing.T) {
	c := newConsole()
	for _, s := range []string{"a\r\nKernel pan", "ic - not sync", "ing: one\r\nKernel panic - not syncing: two\n", strings.Repeat("x", 3*maxConsoleLine)} {
		if n, err := c.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	if got := <-c.panicked; got != "Kernel panic - not syncing: one" {
		t.Errorf("panic %q", got)
	}
	if len(c.line) > maxConsoleLine {
		t.Errorf("keeps %d bytes of a line without end", len(c.line))
	}
	if got := lastLines("1\r\n2\n3\n", 2); got != "2\n3" {
		t.Errorf("lastLines = %q", got)
	}
	tl := tail{max: 10}
	for i := range 100 {
		fmt.Fprintf(&tl, "%02d", i)
	}
	if got := tl.String(); got != "9596979899" {
		t.Errorf("tail %q", got)
	}
}

// The lab killed outright takes its emulator along: nobody is left to clean up but
// the kernel.
func TestKilledLabLeavesNoProcess(t *testing.T) {
	if os.Getenv("LAB_TEST_VICTIM") != "" {
		m, err := Lookup("svm")
		if err != nil {
			t.Fatal(err)
		}
		b := boot{machine: m, dir: t.TempDir(), limit: limit{boot: time.Hour, silence: time.Hour, stop: time.Hour, answer: time.Second}}
		t.Fatal(watch(context.Background(), b, func(wire.Message) error { return nil }))
	}
	pid := filepath.Join(t.TempDir(), "pid")
	fakeQEMU(t, "echo $$ > "+pid+".new; mv "+pid+".new "+pid+"; exec sleep 1000")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	victim := exec.Command(self, "-test.run=^TestKilledLabLeavesNoProcess$")
	victim.Env = append(os.Environ(), "LAB_TEST_VICTIM=1", "TMPDIR="+t.TempDir())
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	var text []byte
	for range 500 {
		if text, err = os.ReadFile(pid); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	killErr := victim.Process.Kill()
	var exit *exec.ExitError
	if werr := victim.Wait(); !errors.As(werr, &exit) {
		t.Errorf("victim: %v", werr)
	}
	if err := errors.Join(err, killErr); err != nil {
		t.Fatal(err)
	}
	emulator, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if !gone(emulator) {
		if err := syscall.Kill(emulator, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		t.Errorf("the emulator %d outlived the lab", emulator)
	}
}

// The screen of Bochs is a terminal of its own making. If nobody reads it, a machine stops after
// some thousand characters; this one writes more than any terminal holds.
func TestBochsScreenIsRead(t *testing.T) {
	host, screen, err := openPTY()
	if err != nil {
		t.Fatal(err)
	}
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", screen.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	// As Bochs sets it; otherwise the kernel drops what does not fit.
	raw, err := unix.IoctlGetTermios(int(screen.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	raw.Iflag, raw.Oflag, raw.Lflag = 0, 0, 0
	if err := errors.Join(unix.IoctlSetTermios(int(screen.Fd()), unix.TCSETS, raw), screen.Close()); err != nil {
		t.Fatal(err)
	}
	e := &emulator{answers: &tail{max: 1 << 10}, screen: make(chan *os.File, 1)}
	w := &screenWatch{to: e.answers, found: e.readScreen}
	for _, part := range []string{"Next\r\nBochs connected to scr", "een \"" + name + "\"\r\n", "more\r\n"} {
		if _, err := io.WriteString(w, part); err != nil {
			t.Fatal(err)
		}
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := host.Write(make([]byte, 1<<20))
		wrote <- err
	}()
	select {
	case err := <-wrote:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("a screen that nobody reads stops its machine")
	}
	if err := errors.Join(host.Close(), (<-e.screen).Close()); err != nil {
		t.Error(err)
	}
}
