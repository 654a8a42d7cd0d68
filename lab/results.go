package lab

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/cloister-vmm/cloister/internal/testenv/lanes"
	"github.com/cloister-vmm/cloister/lab/wire"
)

// results turns the lines of test binaries into events of go test -json, as they
// come, and shows them.
type results struct {
	out     eventFile // events as JSON; nil: nobody keeps them
	raw     io.Writer // every line as it comes; nil: only what failed
	show    *lanes.Show
	tasks   []wire.Task
	scratch string // directory for temporary files
	conv    *converter
	last    lanes.Event // the package's verdict, held until the status is known
	failed  bool
	note    func(string, ...any)
	noted   time.Time       // of the latest note
	passed  map[string]bool // packages of which a test has passed
	named   map[string]bool // packages of which tests were asked for by name

	running    int           // the task that has begun and not ended, plus one
	ended      map[int]bool  // tasks that have ended; true: a line came after that
	first      []lanes.Event // what another try starts with: the header, and the tries before it
	testFailed bool          // a test has said so, though its package may not have ended
}

// progress is how long nothing may be said of a package whose tests pass.
const progress = 20 * time.Second

// eventFile is what another try needs: it begins again. *os.File is one.
type eventFile interface {
	io.WriteSeeker
	Truncate(size int64) error
}

// converter is a running `go tool test2json`, the only program that knows how to
// read test output.
type converter struct {
	task   int
	cmd    *exec.Cmd
	in     io.WriteCloser
	events chan lanes.Event
	err    error // valid when events is closed
}

func (r *results) header(lane, kernel string, backend Backend) error {
	e := lanes.Header(lane, kernel, string(backend))
	r.first = []lanes.Event{e}
	return r.keep(e)
}

// again forgets what the last boot said and starts over, with one more event that says why.
func (r *results) again(why string) error {
	if err := r.settle(); err != nil {
		return err
	}
	r.running, r.ended, r.passed = 0, nil, nil
	r.show.Forget()
	r.first = append(r.first, lanes.Event{Action: lanes.Retry, Output: why})
	if r.out == nil {
		return nil
	}
	if err := r.out.Truncate(0); err != nil {
		return err
	}
	if _, err := r.out.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for _, e := range r.first {
		if err := r.keep(e); err != nil {
			return err
		}
	}
	return nil
}

func (r *results) keep(e lanes.Event) error {
	if r.out == nil {
		return nil
	}
	return json.NewEncoder(r.out).Encode(e)
}

func (r *results) start(task int) error {
	if err := r.abandon(); err != nil {
		return err
	}
	if task < 0 || task >= len(r.tasks) {
		return fmt.Errorf("the guest started task %d of %d", task, len(r.tasks))
	}
	if _, ended := r.ended[task]; ended {
		return fmt.Errorf("the guest started task %d again", task)
	}
	cmd := command(context.Background(), "go", "tool", "test2json", "-t", "-p", r.tasks[task].Name)
	cmd.Stderr, cmd.Env = os.Stderr, workIn(r.scratch) // go may have to build it
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	c := &converter{task: task, cmd: cmd, in: in, events: make(chan lanes.Event, 64)}
	go func() {
		defer close(c.events)
		lines := bufio.NewScanner(pipe)
		lines.Buffer(nil, 16<<20)
		for lines.Scan() {
			var e lanes.Event
			if c.err = json.Unmarshal(lines.Bytes(), &e); c.err != nil {
				return
			}
			c.events <- e
		}
		c.err = lines.Err()
	}()
	r.conv, r.last, r.running = c, lanes.Event{}, task+1
	return nil
}

func (r *results) line(task int, text string) error {
	if told, ended := r.ended[task]; ended {
		return r.late(task, text, told)
	}
	if r.conv == nil || r.conv.task != task {
		return fmt.Errorf("the guest sent a line of task %d, which does not run", task)
	}
	if r.raw != nil && text != "\x16=== NAME  " {
		// The marks of -test.v=test2json are for the converter only.
		if _, err := io.WriteString(r.raw, strings.TrimPrefix(text, "\x16")+"\n"); err != nil {
			return err
		}
	}
	// The converter may be waiting for its events to be taken.
	wrote := make(chan error, 1)
	go func() {
		_, err := io.WriteString(r.conv.in, text+"\n")
		wrote <- err
	}()
	for {
		select {
		case err := <-wrote:
			return err
		case e, ok := <-r.conv.events:
			if !ok {
				return errors.Join(<-wrote, fmt.Errorf("test2json ended early: %w", r.conv.err))
			}
			if err := r.event(e); err != nil {
				return err
			}
		}
	}
}

// late takes a line of a task that has ended: what a process that the task left behind goes on to print. It belongs to no
// test and is no reason to end the machine; of a flood the first line is kept.
func (r *results) late(task int, text string, told bool) error {
	if told {
		return nil
	}
	r.ended[task] = true
	e := lanes.Event{Action: "output", Package: r.tasks[task].Name,
		Output: fmt.Sprintf("lab: output of %s after its end, of which this line is kept: %s\n", r.tasks[task].Name, text)}
	return errors.Join(r.keep(e), r.show.Add(e))
}

func (r *results) event(e lanes.Event) error {
	if e.Test == "" && (e.Action == "pass" || e.Action == "fail" || e.Action == "skip") {
		r.last = e
		return nil
	}
	if e.Action == "run" && r.note != nil && r.raw == nil && time.Since(r.noted) > progress && !strings.Contains(e.Test, "/") {
		r.noted = time.Now()
		r.note("%s: %s", path.Base(e.Package), e.Test)
	}
	r.testFailed = r.testFailed || e.Action == "fail"
	if e.Action == "pass" {
		if r.passed == nil {
			r.passed = map[string]bool{}
		}
		r.passed[e.Package] = true
	}
	if err := r.keep(e); err != nil {
		return err
	}
	if r.raw != nil {
		return nil
	}
	return r.show.Add(e)
}

// end closes the running task. The status outranks what the output says: a
// binary that prints PASS and then dies has failed.
func (r *results) end(status int, why string) error {
	if err := r.settle(); err != nil {
		return err
	}
	if r.running == 0 {
		return nil
	}
	e := r.last
	e.Package = r.tasks[r.running-1].Name
	if r.ended == nil {
		r.ended = map[int]bool{}
	}
	r.ended[r.running-1], r.running = false, 0
	verdict := "ok  \t"
	if status == 0 && r.named[e.Package] && !r.passed[e.Package] {
		status, why = 1, why+" (none of the tests that were named has passed)"
	}
	if status != 0 || e.Action != "pass" {
		e.Action, verdict = "fail", "FAIL\t"
		r.failed = true
	}
	text := fmt.Sprintf("%s%s\t%.3fs%s\n", verdict, e.Package, e.Elapsed, why)
	last := lanes.Event{Action: "output", Package: e.Package, Output: text}
	for _, e := range []lanes.Event{last, e} {
		if err := errors.Join(r.keep(e), r.show.Add(e)); err != nil {
			return err
		}
	}
	return nil
}

// settle takes what the converter still holds of the running task.
func (r *results) settle() error {
	c := r.conv
	if c == nil {
		return nil
	}
	r.conv = nil
	err := c.in.Close()
	for e := range c.events {
		err = errors.Join(err, r.event(e))
	}
	if err := errors.Join(err, c.err, c.cmd.Wait()); err != nil {
		return fmt.Errorf("test2json: %w", err)
	}
	return nil
}

// abandon ends a task of which the guest will say no more.
func (r *results) abandon() error {
	return r.end(1, " (the guest ended first)")
}

// unbuilt records a package whose test binary does not build.
func (r *results) unbuilt(pkg, output string) error {
	r.failed = true
	for _, e := range []lanes.Event{
		{Action: "output", Package: pkg, Output: "# " + pkg + "\n" + strings.TrimRight(output, "\n") + "\n"},
		{Action: "output", Package: pkg, Output: "FAIL\t" + pkg + " [build failed]\n"},
		{Action: "fail", Package: pkg},
	} {
		if err := errors.Join(r.keep(e), r.show.Add(e)); err != nil {
			return err
		}
	}
	return nil
}

// saveFiles unpacks the tar archive on the results disk into dir and returns how
// many files it had. A disk that the guest did not write is all zeros: no files. They have at most left bytes in all: an
// archive can say that a file has more than there is, in holes, and would fill this machine's disk.
func saveFiles(disk, dir string, left int64) (n int, err error) {
	f, err := os.Open(disk)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	in := tar.NewReader(f)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("results disk: %w", err)
		}
		// The guest is under test: it does not choose where files go.
		if !filepath.IsLocal(h.Name) || h.Typeflag != tar.TypeReg {
			continue
		}
		name := filepath.Join(dir, h.Name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return n, err
		}
		out, err := os.Create(name)
		if err != nil {
			return n, err
		}
		size, err := io.Copy(out, io.LimitReader(in, left+1))
		if left -= size; left < 0 {
			err = errors.Join(errors.New("the guest's files are larger than the disk that they came on: this one is cut off, and later ones are left out"), err)
		}
		if err := errors.Join(err, out.Close()); err != nil {
			return n, fmt.Errorf("results disk: %s: %w", h.Name, err)
		}
		n++
	}
}
