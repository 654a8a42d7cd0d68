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

// What an ordinary task prints comes whole, and so does its status.
func TestTaskIsWhole(t *testing.T) {
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
	status, err := h.run(0, wire.Task{Name: "p", Dir: "/", Argv: []string{"/bin/sh", "-c", "echo one; printf two; exit 7"}, Timeout: time.Minute}, nil)
	if err := errors.Join(err, w.Close()); err != nil || status != 7 {
		t.Errorf("status %d, %v", status, err)
	}
	if text := <-got; len(text) != 4 || text[0] != "start:p" || text[1] != "line:one" || text[2] != "line:two" || text[3] != "end:" {
		t.Errorf("%q", text)
	}
}

// A task that a signal has ended says so before its end: the kernel ends whom it likes when memory runs out, without a word on the task's output.
func TestKilledTaskSaysSo(t *testing.T) {
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
	status, err := h.run(0, wire.Task{Name: "p", Dir: "/", Argv: []string{"/bin/sh", "-c", "kill -9 $$"}, Timeout: time.Minute}, nil)
	if err := errors.Join(err, w.Close()); err != nil || status != 137 {
		t.Errorf("status %d, %v", status, err)
	}
	if text := <-got; len(text) != 3 || !strings.HasPrefix(text[1], "line:lab: ended by signal 9 (killed)") || text[2] != "end:" {
		t.Errorf("%q", text)
	}
}
