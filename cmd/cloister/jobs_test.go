package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"golang.org/x/sys/unix"
)

// job runs argv as a shell with job control does: in a process group of its own, or in a session of its own, where nobody
// continues what stops by the terminal. It continues what stops, a second later, and tells what it saw. The
// signals of send go to it one after the other, from when it says that it is ready.
func (b *box) job(argv []string, session bool, send ...unix.Signal) (saw []string, out string, err error) {
	name := filepath.Join(b.t.TempDir(), "out")
	file, err := os.Create(name)
	if err != nil {
		return nil, "", err
	}
	defer file.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, "", err
	}
	defer null.Close()
	p, err := os.StartProcess(argv[0], argv, &os.ProcAttr{
		Dir: b.work, Env: append(append([]string{}, b.env...), "CLOISTER_RUN_DIR="+b.runs), Files: []*os.File{null, file, os.Stderr},
		Sys: &syscall.SysProcAttr{Setpgid: !session, Setsid: session},
	})
	if err != nil {
		return nil, "", err
	}
	var next time.Time
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		var ws unix.WaitStatus
		n, err := unix.Wait4(p.Pid, &ws, unix.WUNTRACED|unix.WNOHANG, nil)
		if err != nil {
			return saw, "", err
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return saw, "", err
		}
		switch {
		case n == 0 && len(send) > 0 && strings.Contains(string(text), "ready") && time.Now().After(next):
			err = p.Signal(send[0])
			send, next = send[1:], time.Now().Add(1500*time.Millisecond) // it stands for less
		case n == 0:
		case ws.Stopped():
			saw = append(saw, unix.SignalName(ws.StopSignal()))
			time.Sleep(time.Second)
			err = p.Signal(unix.SIGCONT)
		default:
			return append(saw, fmt.Sprint("status ", ws.ExitStatus(), " signal ", int(ws.Signal()))), string(text), nil
		}
		if err != nil {
			return saw, string(text), err
		}
	}
	return saw, "", errors.Join(fmt.Errorf("it does not end within %v", limit), p.Kill())
}

// A program that stops, stops cloister as the shell knows it, all its threads with it, and goes on where it was when it is
// continued; handlers, masks and orphaned process groups as natively.
func TestJobControl(t *testing.T) {
	testenv.NeedLong(t) // it stands still for seconds
	b := newBox(t)
	prog := compile(t, "gcc", "jobs", "jobs.c", "-static", "-O1", "-pthread")
	for _, c := range []struct {
		args    string
		session bool
		send    []unix.Signal
	}{
		{"self 19", false, nil}, {"self 20", false, nil}, {"self 22", false, nil},
		{"self 19", true, nil}, {"self 20", true, nil}, {"handler", false, nil}, {"blocked", false, nil},
		{"outside default", false, []unix.Signal{unix.SIGTSTP, unix.SIGUSR1}}, {"outside default", false, []unix.Signal{unix.SIGSTOP, unix.SIGUSR1}},
		{"outside ignored", false, []unix.Signal{unix.SIGTSTP, unix.SIGCONT, unix.SIGUSR1}}, {"outside handled", false, []unix.Signal{unix.SIGTSTP, unix.SIGUSR1}},
		{"outside default", true, []unix.Signal{unix.SIGTSTP, unix.SIGUSR1}}, {"outside handled", false, []unix.Signal{unix.SIGTTIN, unix.SIGCONT, unix.SIGUSR1}},
	} {
		argv := append([]string{prog}, strings.Fields(c.args)...)
		type seen struct {
			saw []string
			out string
			err error
		}
		natively := make(chan seen, 1)
		go func() {
			saw, out, err := b.job(argv, c.session, c.send...)
			natively <- seen{saw, out, err}
		}()
		saw, out, err := b.job(b.guest(argv...), c.session, c.send...)
		guest, native := seen{saw, out, err}, <-natively
		if err := errors.Join(native.err, guest.err); err != nil || !reflect.DeepEqual(native, guest) || !strings.Contains(guest.saw[len(guest.saw)-1], "status") {
			t.Errorf("%s, own session %v, sent %v: %v\nnatively %q %q\nguest    %q %q", c.args, c.session, c.send, err, native.saw, native.out, guest.saw, guest.out)
		}
	}
}
