package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister-vmm/cloister/lab/wire"
)

// limits are wall times without a sign of life after which a machine hangs. They
// are many times what is usual (docs/lab.md has the numbers), because emulators
// share their cores with whatever else the host does.
type limit struct {
	boot    time.Duration // to the first message
	silence time.Duration // between two messages; wire.BeatEvery is of guest time
	stop    time.Duration // after "done"
	answer  time.Duration // for the monitor to answer, and for a panic to be printed
}

var limits = map[Backend]limit{
	SVM: {boot: 3 * time.Minute, silence: 90 * time.Second, stop: 20 * time.Second, answer: 5 * time.Second},
	VMX: {boot: 15 * time.Minute, silence: 5 * time.Minute, stop: time.Minute, answer: 10 * time.Second},
}

// ErrGuest wraps the ends of a machine that are the guest's own fault: a panic, a
// hang, an end before the job was done.
var ErrGuest = errors.New("guest")

// ErrEmulator wraps those of them that no test can have caused: the machine did not come up, or
// it shows the one fault of QEMU that is known to hang a machine (stalePatch). Only such a boot is tried again.
var ErrEmulator = fmt.Errorf("%w: the emulator hung", ErrGuest)

// stalePatch finds in the kernel's stacks a CPU that handles a breakpoint of text_poke. No kernel of the
// lab has another INT3 in its text, and handling one takes microseconds: a stack that is printed there is
// of a CPU that executes the INT3 for ever, from a stale translation (docs/backends.md).
var stalePatch = regexp.MustCompile(`\b(asm_)?exc_int3\b`)

// watch runs an emulator until the machine has done its job, and hands over each
// message of the guest. Whatever happens, it returns only when the emulator and
// all its threads are gone.
func watch(ctx context.Context, b boot, handle func(wire.Message) error) (err error) {
	e, err := start(b)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	handle = e.consoleOfLate(handle)

	silence := time.NewTimer(b.limit.boot)
	defer silence.Stop()
	var (
		said     bool // anything
		done     bool
		panicked string // the panic's line
		panicAt  = e.console.panicked
		messages = e.messages
	)
	hung := func(what string) error {
		report := e.report(true)
		kind := ErrGuest
		switch {
		case e.console.staleSeen():
			kind, what = ErrEmulator, what+": a CPU executes a breakpoint that the kernel has long removed"
		case !said:
			kind = ErrEmulator
		}
		err := fmt.Errorf("%w: %s%s", kind, what, report)
		// What it said before it hung may still be in the pipes, a failed test among it.
		if kerr := e.kill(); kerr != nil {
			return errors.Join(err, kerr)
		}
		for m := range e.messages {
			if herr := handle(m); herr != nil {
				return errors.Join(err, herr)
			}
		}
		return err
	}
	for {
		select {
		case <-ctx.Done():
			err := fmt.Errorf("the machine was stopped: %w", context.Cause(ctx))
			if errors.Is(ctx.Err(), context.DeadlineExceeded) { // what was it doing? Who interrupts does not wait for that
				err = fmt.Errorf("%w%s", err, e.report(true))
			}
			return err
		case <-e.console.stale:
			return hung("the kernel complains of a stuck CPU")
		case panicked = <-panicAt:
			// The rest of the panic, and of what the guest said before, follows; then
			// the machine restarts, which ends it.
			silence.Reset(b.limit.answer)
		case m, ok := <-messages:
			if !ok {
				messages = nil // the emulator is ending; its status follows
				continue
			}
			if !said && e.typing != nil {
				go drain(e.typing, b.input) // ends with the input or with the machine
			}
			said = true
			if panicked == "" {
				silence.Reset(b.limit.silence)
			}
			if err := handle(m); err != nil {
				return err
			}
			if m.Kind == wire.KindDone {
				done = true
				if panicked == "" {
					silence.Reset(b.limit.stop)
				}
			}
		case <-silence.C:
			switch {
			case panicked != "":
				return fmt.Errorf("%w: kernel panic: %s%s", ErrGuest, panicked, e.report(false))
			case b.gdb != "" || b.shell: // a person holds it
			case done:
				return nil // switching off is no part of the job
			case !said:
				return hung(fmt.Sprintf("did not reach init within %v", b.limit.boot))
			default:
				return hung(fmt.Sprintf("no sign of life for %v", b.limit.silence))
			}
		case <-e.ended:
			// What it said before it ended may still be in the pipes.
			if err := e.kill(); err != nil {
				return err
			}
			for m := range e.messages {
				if err := handle(m); err != nil {
					return err
				}
				done = done || m.Kind == wire.KindDone
			}
			e.readers.Wait()
			select {
			case panicked = <-panicAt:
			default:
			}
			if panicked != "" {
				return fmt.Errorf("%w: kernel panic: %s%s", ErrGuest, panicked, e.report(false))
			}
			if done {
				return nil
			}
			return fmt.Errorf("%w: the machine ended (%v) before its job%s", ErrGuest, e.status(), e.report(false))
		}
	}
}

// consoleOfLate shows the end of the console behind a task that was ended for the time that it took, before its end is told.
func (e *emulator) consoleOfLate(handle func(wire.Message) error) func(wire.Message) error {
	late := false
	return func(m wire.Message) error {
		switch {
		case m.Kind == wire.KindLine && tooLong(m.Text):
			late = true
		case m.Kind == wire.KindEnd && late:
			late = false
			text := "lab: end of the guest's console\n" + lastLines(e.console.String(), 60)
			for line := range strings.Lines(text) {
				if err := handle(wire.Message{Kind: wire.KindLine, Task: m.Task, Text: strings.TrimRight(line, "\r\n")}); err != nil {
					return err
				}
			}
		}
		return handle(m)
	}
}

// emulator is a running machine.
type emulator struct {
	cmd      *exec.Cmd
	console  *console
	messages chan wire.Message
	ended    chan struct{} // closed when the process has been waited for
	err      error         // of Wait, valid after ended
	monitor  io.WriteCloser
	answers  *tail    // what the monitor, or Bochs on its terminal, printed
	typing   *os.File // where a shell's input goes; nil: the terminal is the emulator's
	answer   time.Duration
	screen   chan *os.File // Bochs' own terminal, once it has told its name
	readers  sync.WaitGroup
	closers  []io.Closer
}

// start starts the emulator. It becomes the leader of its own process group and
// dies with this process (PR_SET_PDEATHSIG, see prctl(2)): the signal is tied to
// the thread that forked, which therefore stays locked until the end.
func start(b boot) (_ *emulator, err error) {
	e := &emulator{
		messages: make(chan wire.Message), ended: make(chan struct{}),
		console: newConsole(), answers: &tail{max: 16 << 10}, answer: b.limit.answer, screen: make(chan *os.File, 1),
	}
	defer func() {
		if err != nil {
			for _, c := range e.closers {
				err = errors.Join(err, c.Close())
			}
		}
	}()
	if b.machine.Backend == VMX {
		e.cmd, err = b.bochs()
	} else {
		e.cmd = b.qemu()
	}
	if err != nil {
		return nil, err
	}
	consoleR, consoleW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	controlR, controlW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, consoleR.Close(), consoleW.Close())
	}
	e.closers = []io.Closer{consoleR, controlR}
	theirs := []io.Closer{consoleW, controlW}
	e.cmd.ExtraFiles = []*os.File{consoleW, controlW} // 3 and 4, as in emulator.go
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}

	switch {
	case b.machine.Backend == VMX:
		host, pts, err := openPTY()
		if err != nil {
			return nil, errors.Join(err, consoleW.Close(), controlW.Close())
		}
		e.closers, theirs = append(e.closers, host), append(theirs, pts)
		e.cmd.Stdin, e.cmd.Stdout, e.cmd.Stderr = pts, pts, pts
		e.monitor = host
		e.readers.Go(func() { drain(&screenWatch{to: e.answers, found: e.readScreen}, host) })
	case b.shell:
		// In the terminal's foreground group, or reading the keyboard would stop it.
		e.cmd.SysProcAttr.Setpgid = false
		e.cmd.Stdin, e.cmd.Stdout, e.cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		if b.input != nil {
			// A serial port drops what comes before somebody listens.
			r, w, err := os.Pipe()
			if err != nil {
				return nil, errors.Join(err, consoleW.Close(), controlW.Close())
			}
			theirs, e.closers, e.cmd.Stdin = append(theirs, r), append(e.closers, w), r
			e.typing = w
		}
	default:
		if e.monitor, err = e.cmd.StdinPipe(); err != nil {
			return nil, errors.Join(err, consoleW.Close(), controlW.Close())
		}
		e.cmd.Stdout, e.cmd.Stderr = e.answers, e.answers
	}

	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		// A child that outlives the emulator holds its output open; what the
		// emulator itself said is there by then.
		e.cmd.WaitDelay = b.limit.answer
		err := e.cmd.Start()
		started <- err
		if err == nil {
			e.err = e.cmd.Wait()
			close(e.ended)
		}
	}()
	err = <-started
	for _, c := range theirs {
		err = errors.Join(err, c.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", e.cmd.Path, err)
	}
	e.readers.Go(func() { drain(e.console, consoleR) })
	e.readers.Go(func() { e.receive(controlR) })
	return e, nil
}

// drain copies until the other side is gone; a pseudo-terminal then says EIO.
func drain(w io.Writer, r io.Reader) {
	if _, err := io.Copy(w, r); err != nil && !errors.Is(err, syscall.EIO) && !errors.Is(err, os.ErrClosed) {
		if _, werr := fmt.Fprintf(w, "\nlab: reading: %v\n", err); werr != nil {
			return // the writers of this package never fail
		}
	}
}

// receive decodes messages. A line that is none (a kernel that prints on the
// wrong port) is kept with the console for a person to see.
func (e *emulator) receive(r io.Reader) {
	defer close(e.messages)
	in := bufio.NewScanner(r)
	in.Buffer(nil, 1<<20) // init sends at most 64 KB of text, which JSON can make six times as long
	for in.Scan() {
		var m wire.Message
		if err := json.Unmarshal(in.Bytes(), &m); err != nil {
			if _, err := fmt.Fprintf(e.console, "lab: no message: %q\n", in.Text()); err != nil {
				return
			}
			continue
		}
		e.messages <- m
	}
	if err := in.Err(); err != nil && !errors.Is(err, os.ErrClosed) {
		// Nothing more would be heard of the guest, and it would seem to hang.
		if _, err := fmt.Fprintf(e.console, "lab: what the guest says cannot be read: %v\n", errors.Join(err, e.kill())); err != nil {
			return
		}
	}
}

// kill ends the emulator and whatever it started. A child that lives on would hold
// the pipes open, and the readers would wait for it.
func (e *emulator) kill() error {
	target := e.cmd.Process.Pid
	if e.cmd.SysProcAttr.Setpgid {
		target = -target
	}
	if err := syscall.Kill(target, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
		return fmt.Errorf("kill %s: %w", e.cmd.Path, err)
	}
	return nil
}

// close kills what is left of the machine and waits for it.
func (e *emulator) close() error {
	err := e.kill()
	// Readers end when the last write end is gone; take what they still have.
	go func() {
		for range e.messages {
		}
	}()
	<-e.ended
	for _, c := range e.closers {
		err = errors.Join(err, c.Close())
	}
	e.readers.Wait()
	select {
	case s := <-e.screen:
		err = errors.Join(err, s.Close())
	default: // it has none
	}
	return err
}

// tooLong knows the lines that say that a task was ended for its time: Go's own, and init's for what Go's timeout does not end.
func tooLong(line string) bool {
	return strings.HasPrefix(line, "panic: test timed out after ") || strings.HasPrefix(line, "lab: ") && strings.HasSuffix(line, "; SIGQUIT")
}

// readScreen reads Bochs' screen, which the debugger's build puts on a terminal of its own. Nobody looks at it, but
// when its few kilobytes are full Bochs stops in write(2), and the machine with it.
func (e *emulator) readScreen(name string) {
	f, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		if _, err := fmt.Fprintf(e.answers, "\nlab: the screen of Bochs cannot be read, which will stop it: %v\n", err); err != nil {
			return // a tail never fails
		}
		return
	}
	e.screen <- f
	go drain(io.Discard, f) // ends with Bochs, or with the file
}

// screenLine is how Bochs names that terminal.
var screenLine = regexp.MustCompile(`Bochs connected to screen "(/dev/pts/[0-9]+)"`)

// screenWatch passes on what Bochs says and looks for the name of its screen.
type screenWatch struct {
	to    *tail
	found func(name string)
	done  bool
}

func (s *screenWatch) Write(p []byte) (int, error) {
	n, err := s.to.Write(p)
	if s.done {
		return n, err
	}
	// In what is kept and not in p: the line may come in pieces.
	if m := screenLine.FindStringSubmatch(s.to.String()); m != nil {
		s.done = true
		s.found(m[1])
	}
	return n, err
}

func (e *emulator) status() string {
	<-e.ended
	text := strings.TrimSpace(e.answers.String())
	if e.cmd.ProcessState == nil {
		return fmt.Sprint(e.err)
	}
	if text == "" || e.cmd.ProcessState.Success() {
		return e.cmd.ProcessState.String()
	}
	return e.cmd.ProcessState.String() + ": " + lastLines(text, 5)
}

// report says what a person wants to see of a machine that failed: with ask, the
// registers and, by an NMI, the kernel's stacks; then the end of its console.
func (e *emulator) report(ask bool) string {
	var b strings.Builder
	if ask && e.monitor != nil {
		if _, isPTY := e.monitor.(*os.File); isPTY && strings.HasSuffix(e.cmd.Path, "bochs") {
			// Bochs' debugger takes SIGINT as "stop and take commands".
			if err := e.cmd.Process.Signal(syscall.SIGINT); err != nil {
				fmt.Fprintf(&b, "\nlab: SIGINT: %v", err)
			}
			e.tell(&b, "r\nsreg\nbt 16\n")
		} else {
			e.tell(&b, "info registers -a\nnmi\n")
		}
		fmt.Fprintf(&b, "\n--- registers\n%s", lastLines(e.answers.String(), 120))
	}
	fmt.Fprintf(&b, "\n--- end of the guest's console\n%s\n---", lastLines(e.console.String(), 60))
	return b.String()
}

// tell gives the monitor commands and the machine time to answer.
func (e *emulator) tell(b *strings.Builder, commands string) {
	if _, err := io.WriteString(e.monitor, commands); err != nil {
		fmt.Fprintf(b, "\nlab: monitor: %v", err)
		return
	}
	select {
	case <-e.ended:
	case <-time.After(e.answer):
	}
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(strings.ReplaceAll(s, "\r", ""), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// tail keeps the last max bytes written to it.
type tail struct {
	mu  sync.Mutex
	b   []byte
	max int
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > 2*t.max {
		t.b = append(t.b[:0], t.b[len(t.b)-t.max:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b[max(0, len(t.b)-t.max):])
}

// console keeps the end of a machine's console and watches it for a panic.
type console struct {
	tail
	line     []byte
	panicked chan string // gets the first panic's line
	stale    chan bool   // is closed when stalePatch was seen
}

func newConsole() *console {
	return &console{tail: tail{max: 64 << 10}, panicked: make(chan string, 1), stale: make(chan bool)}
}

func (c *console) staleSeen() bool {
	select {
	case <-c.stale:
		return true
	default:
		return false
	}
}

var panicLine = regexp.MustCompile(`Kernel panic - not syncing: [^\r\n]*`)

// maxConsoleLine bounds a line that never ends, in bytes.
const maxConsoleLine = 4096

func (c *console) Write(p []byte) (int, error) {
	if n, err := c.tail.Write(p); err != nil {
		return n, err
	}
	c.line = append(c.line, p...)
	for {
		i := bytes.IndexByte(c.line, '\n')
		if i < 0 {
			break
		}
		if text := panicLine.Find(c.line[:i]); text != nil {
			select {
			case c.panicked <- string(text):
			default: // only the first counts
			}
		}
		if stalePatch.Match(c.line[:i]) && !c.staleSeen() {
			close(c.stale)
		}
		c.line = c.line[i+1:]
	}
	if len(c.line) > maxConsoleLine {
		c.line = append(c.line[:0:0], c.line[len(c.line)-maxConsoleLine:]...)
	}
	return len(p), nil
}
