package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister-vmm/cloister/lab/wire"
)

// grace is how long a task may take to print its stacks after SIGQUIT. A Go
// program needs a second or two under emulation.
const grace = 20 * time.Second

func work() error {
	if err := mountAll(); err != nil {
		return err
	}
	b, err := os.ReadFile(wire.JobPath)
	if err != nil {
		return err
	}
	var job wire.Job
	if err := json.Unmarshal(b, &job); err != nil {
		return fmt.Errorf("%s: %w", wire.JobPath, err)
	}
	host, err := openHost()
	if err != nil {
		return err
	}
	for _, m := range job.Modules {
		if err := load(m); err != nil {
			return errors.Join(err, host.send(wire.Message{Kind: wire.KindNote, Text: err.Error()}))
		}
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	if err := holdVM(); err != nil {
		if err := host.send(wire.Message{Kind: wire.KindNote, Text: err.Error()}); err != nil {
			return err
		}
	}
	if err := host.send(hello()); err != nil {
		return err
	}
	go host.beat()

	status := 0
	for i, t := range job.Tasks {
		s, err := host.run(i, t, job.Env)
		if err != nil {
			return err
		}
		if s != 0 {
			status = 1
		}
	}
	if job.Shell {
		status = shell(job.Env)
	}
	if job.Disk != "" {
		if err := saveFiles(job.Disk); err != nil {
			status = max(status, 1)
			if err := host.send(wire.Message{Kind: wire.KindNote, Text: err.Error()}); err != nil {
				return err
			}
		}
	}
	return host.send(wire.Message{Kind: wire.KindDone, Status: status})
}

// holdVM makes a VM with a vCPU, which never runs, and keeps it as long as the machine lives.
//
// The first VM of a host and the last one to go switch static keys of the kernel, preempt_notifier_key
// above all: a jump in finish_task_switch, which every CPU runs all the time, becomes an INT3 and then a NOP
// or a jump again. QEMU's multi-threaded TCG at times keeps a translation with the INT3 (seen in QEMU 7.2:
// the kernel finds no INT3 there, returns, and meets it again for ever). Tests make hundreds of VMs, one
// after the other; beside this one none is the first.
func holdVM() error {
	// By hand, because the lab links nothing of what it tests (include/uapi/linux/kvm.h).
	const (
		createVM   = 0xae01 // KVM_CREATE_VM, type 0
		createVCPU = 0xae41 // KVM_CREATE_VCPU, id 0
	)
	kvm, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("hold a VM: /dev/kvm: %w", err)
	}
	vm, err := unix.IoctlRetInt(kvm, createVM)
	for err == unix.EINTR { // KVM makes a thread, and any signal of Go's runtime interrupts that
		vm, err = unix.IoctlRetInt(kvm, createVM)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("hold a VM: create: %w", err), unix.Close(kvm))
	}
	// Like kvm, they stay open: closing them would end the VM. KVM's own descriptors are close-on-exec.
	if _, err := unix.IoctlRetInt(vm, createVCPU); err != nil {
		return fmt.Errorf("hold a VM: vCPU: %w", err)
	}
	return nil
}

// host is the line to the runner.
type host struct {
	mu    sync.Mutex
	out   *json.Encoder
	grace time.Duration // that a task has to print its stacks, and its children to end
}

func openHost() (*host, error) {
	f, err := os.OpenFile(wire.ControlDev, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	if err := raw(int(f.Fd())); err != nil {
		return nil, fmt.Errorf("%s: %w", wire.ControlDev, err)
	}
	return &host{out: json.NewEncoder(f), grace: grace}, nil
}

// raw makes a terminal pass bytes as they are, at the highest speed of its clock.
func raw(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

func (h *host) send(m wire.Message) error {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return err
	}
	m.Uptime = float64(ts.Nano()/1e6) / 1e3
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.out.Encode(m)
}

func (h *host) beat() {
	for {
		time.Sleep(wire.BeatEvery)
		if err := h.send(wire.Message{Kind: wire.KindBeat}); err != nil {
			fmt.Fprintln(os.Stderr, "lab: init: beat:", err) // the host will miss it
			return
		}
	}
}

// run does one task and returns its status as a shell would give it. The error is
// of the machine, not of the task.
func (h *host) run(i int, t wire.Task, env []string) (int, error) {
	if err := h.send(wire.Message{Kind: wire.KindStart, Task: i, Text: t.Name}); err != nil {
		return 0, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(t.Argv[0], t.Argv[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = t.Dir, append(os.Environ(), env...), w, w
	// A group of its own, so that a hang takes its children along; a group and
	// not a session, because tests may want to make their own.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	startErr := cmd.Start()
	if err := w.Close(); err != nil {
		return 0, err
	}
	status := 127
	if startErr != nil {
		err = h.send(wire.Message{Kind: wire.KindLine, Task: i, Text: "lab: " + startErr.Error()})
	} else {
		watch := time.AfterFunc(t.Timeout, func() { h.stop(i, t, cmd.Process.Pid) })
		lines := make(chan error, 1)
		enough := make(chan struct{})
		go func() { lines <- h.lines(i, r, enough) }()
		status = exitStatus(cmd.Wait())
		watch.Stop()
		// A child left behind may hold the pipe open for ever; the task itself has ended.
		held := false
		select {
		case err = <-lines:
		case <-time.After(h.grace):
			held = true
		}
		if kerr := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); kerr != nil && kerr != syscall.ESRCH {
			err = errors.Join(err, kerr)
		}
		if held {
			// It may be in another group and go on writing. Nothing of a task may come after its end, so its end is told
			// only when nobody reads for it any more.
			close(enough)
			err = errors.Join(err, r.SetReadDeadline(time.Now()), <-lines,
				h.send(wire.Message{Kind: wire.KindLine, Task: i, Text: "lab: a process of this task still holds its output; killed"}))
			status = max(status, 1)
		}
		if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
			err = errors.Join(err, h.send(wire.Message{Kind: wire.KindLine, Task: i,
				Text: fmt.Sprintf("lab: ended by signal %d (%v); if nobody sent it, memory may have run out: give fewer packages at a time", ws.Signal(), ws.Signal())}))
		}
	}
	if err := errors.Join(err, r.Close()); err != nil {
		return 0, err
	}
	return status, h.send(wire.Message{Kind: wire.KindEnd, Task: i, Status: status})
}

// stop ends a task that does not end: SIGQUIT, on which Go programs print the
// stacks of all goroutines, and after the grace SIGKILL to its group.
func (h *host) stop(i int, t wire.Task, pid int) {
	text := fmt.Sprintf("lab: %s runs longer than %v; SIGQUIT", t.Name, t.Timeout)
	if err := h.send(wire.Message{Kind: wire.KindLine, Task: i, Text: text}); err != nil {
		fmt.Fprintln(os.Stderr, text)
	}
	if err := syscall.Kill(pid, syscall.SIGQUIT); err != nil {
		fmt.Fprintln(os.Stderr, "lab: SIGQUIT:", err) // it ended meanwhile
	}
	time.Sleep(h.grace)
	if err := syscall.Kill(-pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
		fmt.Fprintln(os.Stderr, "lab: SIGKILL:", err)
	}
}

// maxText bounds the text of one message, in bytes; a longer line comes in pieces.
const maxText = 64 << 10

// lines sends what r has until its end, or until enough is closed.
func (h *host) lines(i int, r io.Reader, enough <-chan struct{}) error {
	in := bufio.NewReaderSize(r, maxText)
	for {
		line, err := in.ReadSlice('\n')
		select {
		case <-enough:
			return nil
		default:
		}
		if len(line) > 0 {
			text := strings.TrimSuffix(string(line), "\n")
			if err := h.send(wire.Message{Kind: wire.KindLine, Task: i, Text: text}); err != nil {
				return err
			}
		}
		switch {
		case err == nil, errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			return nil
		default:
			return err
		}
	}
}

func exitStatus(err error) int {
	var exit *exec.ExitError
	if err == nil {
		return 0
	}
	if !errors.As(err, &exit) {
		return 127
	}
	if ws := exit.Sys().(syscall.WaitStatus); ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return exit.ExitCode()
}

// shell runs busybox on the console until it ends and returns its status.
func shell(env []string) int {
	tty, err := os.OpenFile(wire.ConsoleDev, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab: shell:", err)
		return 127
	}
	cmd := exec.Command("/bin/sh", "-i")
	cmd.Args[0] = "-sh"
	cmd.Dir = "/lab"
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	status := exitStatus(cmd.Run())
	if err := tty.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "lab: shell:", err)
	}
	return status
}
