package main

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/lab/wire"
)

// Of a task whose child goes on to write when it has ended nothing comes after its end, not even what was already read, and
// it has failed.
func TestNothingAfterTheEnd(t *testing.T) {
	r, w := io.Pipe()
	h := &host{out: json.NewEncoder(w), grace: 300 * time.Millisecond}
	late := make(chan int, 1)
	go func() {
		ended, n := false, 0
		for in := json.NewDecoder(r); ; {
			var m wire.Message
			if err := in.Decode(&m); err != nil {
				break
			}
			if ended {
				n++
			}
			ended = ended || m.Kind == wire.KindEnd
		}
		late <- n
	}()
	task := wire.Task{Name: "p", Dir: "/", Argv: []string{"/bin/sh", "-c", "while :; do echo flood; done &"}, Timeout: time.Minute}
	status, err := h.run(0, task, nil)
	if err != nil || status != 1 {
		t.Errorf("status %d, %v; want 1, because its output was still held", status, err)
	}
	time.Sleep(300 * time.Millisecond) // for what should not come
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if n := <-late; n != 0 {
		t.Errorf("%d messages after the end of the task", n)
	}
}

// task runs a shell's script as a task, and returns its status and the messages sent for it.
func task(t *testing.T, script string) (status int, messages []string) {
	t.Helper()
	r, w := io.Pipe()
	h := &host{out: json.NewEncoder(w), grace: time.Minute}
	got := make(chan []string, 1)
	go func() {
		var text []string
		for in := json.NewDecoder(r); ; {
			var m wire.Message
			if err := in.Decode(&m); err != nil {
				break
			}
			text = append(text, m.Kind+":"+m.Text)
		}
		got <- text
	}()
	status, err := h.run(0, wire.Task{Name: "p", Dir: "/", Argv: []string{"/bin/sh", "-c", script}, Timeout: time.Minute}, nil)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Error(err)
	}
	return status, <-got
}

// What an ordinary task prints comes whole, and so does its status.
func TestTaskIsWhole(t *testing.T) {
	status, text := task(t, "echo one; printf two; exit 7")
	if status != 7 || len(text) != 4 || text[0] != "start:p" || text[1] != "line:one" || text[2] != "line:two" || text[3] != "end:" {
		t.Errorf("status %d, %q", status, text)
	}
}

// A task that a signal has ended says so before its end: the kernel ends whom it likes when memory runs out, without a word on the task's output.
func TestKilledTaskSaysSo(t *testing.T) {
	status, text := task(t, "kill -9 $$")
	if status != 137 || len(text) != 3 || !strings.HasPrefix(text[1], "line:lab: ended by signal 9 (killed)") || text[2] != "end:" {
		t.Errorf("status %d, %q", status, text)
	}
}
