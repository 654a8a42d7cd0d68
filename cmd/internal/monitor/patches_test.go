package monitor

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/observe"
	"github.com/cloister-vmm/cloister/patch"
	"github.com/cloister-vmm/cloister/patch/audit"
	"golang.org/x/sys/unix"
)

// patchVM is a monitor with its loop and its control socket, and an engine that is the test.
type patchVM struct {
	t     *testing.T
	m     *monitor
	wire  session.Wire // the engine's end
	guest int
	log   string
	http  *observe.Client
	over  chan error // what the loop returned
	apply func(patch.Plan) patch.Record
	mute  atomic.Bool // it takes patches and answers none
	gone  atomic.Bool // its end of the wire is closed
}

// The text of the fake guest: two ranges and spare text.
var (
	fakeText  = []patch.Range{{Start: 0x1000, End: 0x2000}, {Start: 0x5000, End: 0x5010}}
	fakeSpare = patch.Space{Start: 0x8000, End: 0x9000, Used: 0x8100}
)

const fakeMemory = 0x10000

// newPatchVM starts it. apply makes the patches.
func newPatchVM(t *testing.T, patchable bool, apply func(patch.Plan) patch.Record) *patchVM {
	t.Helper()
	e := newEngine(t, 1)
	v := &patchVM{t: t, over: make(chan error, 1), apply: apply, log: filepath.Join(t.TempDir(), "log.jsonl")}
	var err error
	if v.guest, err = unix.MemfdCreate("guest", unix.MFD_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Pwrite(v.guest, bytes.Repeat([]byte{0x90}, fakeMemory), 0); err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	v.wire = session.Wire{FD: pair[1]}
	v.m = &monitor{wire: session.Wire{FD: pair[0]}, guest: v.guest, ask: make(chan func()), over: make(chan struct{}), patches: newPatches()}
	dir := t.TempDir()
	v.http = observe.NewClient(dir)
	v.send(session.Message{Plan: &session.Plan{Name: "loop", Program: "/opt/loop", Args: []string{"loop"}, CPU: -1, Engine: os.Getpid(), VMDir: dir, PatchLog: v.log, Quiet: true, Started: "2026-11-22T13:00:00Z"}})
	v.tell(patchable, 0)
	go func() { v.over <- v.m.run(e.fd) }()
	go v.serve()
	t.Cleanup(func() {
		v.close()
		select {
		case <-v.over:
		case <-time.After(20 * time.Second):
			t.Error("the loop does not end")
		}
	})
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := v.http.Status(t.Context()); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	return v
}

func (v *patchVM) send(m session.Message, fds ...int) {
	if err := v.wire.Send(m, fds...); err != nil {
		v.t.Errorf("engine: %v", err)
	}
}

// tell sends the state.
func (v *patchVM) tell(patchable bool, number uint64) {
	if !patchable {
		return
	}
	v.sealed(patch.State{Program: "/opt/loop", BuildID: "1234", Text: fakeText, SpareText: fakeSpare, Number: number, TSCHz: hz},
		func(n int) session.Message { return session.Message{Patchable: &session.Patchable{Length: n}} })
}

func (v *patchVM) sealed(what any, m func(int) session.Message) {
	b, err := json.Marshal(what)
	if err != nil {
		v.t.Error(err)
	}
	fd, err := session.Seal("x", b)
	if err != nil {
		v.t.Error(err)
	}
	v.send(m(len(b)), fd)
	if err := unix.Close(fd); err != nil {
		v.t.Error(err)
	}
}

// serve answers as the engine does, until the wire ends.
func (v *patchVM) serve() {
	for {
		m, fds, err := v.wire.Receive()
		if err != nil {
			return
		}
		if m.Patch == nil || v.mute.Load() {
			continue
		}
		b, err := session.Unseal(fds, m.Patch.Length)
		var p patch.Plan
		if err = errors.Join(err, json.Unmarshal(b, &p)); err != nil {
			v.t.Error(err)
		}
		go func() {
			r := v.apply(p)
			if v.gone.Load() {
				return
			}
			v.tell(true, r.Number)
			v.sealed(r, func(n int) session.Message {
				return session.Message{Patched: &session.Patched{ID: m.Patch.ID, Length: n}}
			})
		}()
	}
}

// close is the engine's sudden end.
func (v *patchVM) close() {
	if v.gone.Swap(true) {
		return
	}
	if err := unix.Shutdown(v.wire.FD, unix.SHUT_RDWR); err != nil {
		v.t.Error(err)
	}
}

// post sends a plan as a client does.
func (v *patchVM) post(p patch.Plan) (int, patch.Record, http.Header, string) {
	v.t.Helper()
	b, err := json.Marshal(p)
	if err != nil {
		v.t.Fatal(err)
	}
	status, h, body := v.ask("POST", "/v1/patch", b)
	var r patch.Record
	if status == 200 || status == 409 {
		if err := json.Unmarshal([]byte(body), &r); err != nil {
			v.t.Fatalf("%v: %s", err, body)
		}
	}
	return status, r, h, body
}

func (v *patchVM) ask(method, path string, body []byte) (int, http.Header, string) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.t.Context(), 20*time.Second)
	defer cancel()
	r, err := v.http.Do(ctx, method, path, body)
	if err != nil {
		v.t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := observe.ReadAnswer(r, maxState)
	if err != nil {
		v.t.Fatal(err)
	}
	return r.StatusCode, r.Header, string(b)
}

// records reads the log, which must be whole.
func (v *patchVM) records() (list []patch.Record, head audit.Hash) {
	v.t.Helper()
	r, err := audit.Open(v.log)
	if errors.Is(err, os.ErrNotExist) {
		return nil, head
	}
	if err != nil {
		v.t.Fatal(err)
	}
	defer r.Close()
	s, err := audit.Verify(r, audit.Hash{}, func(l audit.Line) {
		rec, err := l.Decode()
		if err != nil {
			v.t.Error(err)
		}
		list = append(list, rec)
	})
	if err != nil {
		v.t.Fatal(err)
	}
	return list, s.Head
}

// committed is the record of a patch that stopped a vCPU for 90 us and found another ended.
func committed(n uint64, p patch.Plan) patch.Record {
	return patch.Record{Schema: patch.RecordSchema, Number: n, Name: "the engine's", Actor: "the engine's", VM: "another", Outcome: patch.Committed, TSCHz: hz, Stops: 1,
		Requested: 1_000_000, Stopped: 1_030_000, FirstStore: 1_040_000, LastStore: 1_042_000, Released: 1_200_000, Sites: p.Sites,
		VCPUs: []patch.VCPU{{ID: 0, CPU: 1, Where: patch.WhereGuest, AckTSC: 1_020_000, SyncTSC: 1_100_000, Break: true}, {ID: 3, CPU: -1, Where: patch.WhereEnded, AckTSC: 5}}}
}

func hashOf(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// A patch goes to the engine and its record into the log; what is said of it is the monitor's, not the client's.
func TestPatchIsLogged(t *testing.T) {
	n := uint64(0)
	var v *patchVM
	v = newPatchVM(t, true, func(p patch.Plan) patch.Record {
		if p.DryRun {
			return patch.Record{Outcome: patch.Checked}
		}
		n++
		r := committed(n, p)
		if n == 2 {
			r.Outcome, r.Reason, r.VCPUs, r.Stops = patch.Refused, "vCPU 0 stood inside f", nil, 0
			return r
		}
		if _, err := unix.Pwrite(v.guest, []byte{0xcc}, 0x5000); err != nil {
			t.Error(err)
		}
		return r
	})
	text := bytes.Repeat([]byte{0x90}, 0x1010)
	before := hashOf(text)
	text[0x1000] = 0xcc
	after := hashOf(text)

	status, _, body := v.ask("GET", "/v1/patch", nil)
	var s patch.State
	if err := json.Unmarshal([]byte(body), &s); err != nil || status != 200 || s.BuildID != "1234" || s.TextSHA256 != before || s.Log != v.log || s.LogHead != "" {
		t.Fatalf("%d %s, %v", status, body, err)
	}
	p := patch.Plan{Name: "replace f\n\x1b[2J", Actor: "uid 0, honestly", BuildID: "1234", Digest: "00", Sites: []patch.Site{{Name: "f", Addr: 0x5000, Old: patch.Hex{0x90}, New: patch.Hex{0xcc}}}}
	p.DryRun = true
	if status, r, h, _ := v.post(p); status != 200 || r.Outcome != patch.Checked || h.Get(headerHead) != "" {
		t.Errorf("dry run: %d %+v %v", status, r, h)
	}
	p.DryRun = false
	status, r, h, _ := v.post(p)
	me := fmt.Sprintf("uid %d pid %d", os.Getuid(), os.Getpid())
	if status != 200 || r.VM != "loop" || r.Started != "2026-11-22T13:00:00Z" || r.Actor != me || r.Name != "replace f  [2J" || r.TextBefore != before || r.TextAfter != after || len(r.Sites) != 1 {
		t.Errorf("%d %+v", status, r)
	}
	if status, r, _, _ := v.post(p); status != 409 || r.Outcome != patch.Refused || r.VCPUs == nil || r.TextBefore != after || r.TextAfter != after {
		t.Errorf("%d %+v", status, r)
	}
	list, head := v.records()
	if len(list) != 2 || list[0].Actor != me || list[0].TextAfter != after || list[1].Outcome != patch.Refused {
		t.Errorf("%+v", list)
	}
	if h.Get(headerHead) == "" || h.Get(headerHead) == head.String() {
		t.Errorf("head %q after the first, %s after the second", h.Get(headerHead), head)
	}
	_, _, body = v.ask("GET", "/v1/patch", nil)
	if err := json.Unmarshal([]byte(body), &s); err != nil || s.LogHead != head.String() || s.Number != 2 || s.TextSHA256 != after {
		t.Errorf("%s, %v", body, err)
	}
	if _, _, body := v.ask("GET", "/v1/patch/log", nil); strings.Count(body, "\n") != 2 || !strings.Contains(body, head.String()) {
		t.Errorf("log: %s", body)
	}

	var f breaks.Facts
	v.m.patchFacts(&f)
	c := v.m.patches.snapshot()
	if len(f.Patches) != 2 || f.PatchLog == nil || f.PatchLog.Head != head.String() || f.PatchLog.File != v.log || len(f.FailedClauses) != 0 {
		t.Fatalf("%+v", f)
	}
	one, gone := f.Patches[0].VCPUs[0], f.Patches[0].VCPUs[1]
	if *one.StopNS != 10_000 || *one.PauseNS != 90_000 || *one.CPU != 1 || !one.Break || gone.StopNS != nil || gone.PauseNS != nil || gone.CPU != nil {
		t.Errorf("%+v, %+v", one, gone)
	}
	if c.Number != 2 || c.Outcomes[patch.Committed] != 1 || c.Outcomes[patch.Refused] != 1 || len(c.Pauses) != 1 || c.Pauses[0] == nil {
		t.Errorf("%+v", c)
	}
}

// The text is shown, and nothing else of the guest's memory.
func TestPatchText(t *testing.T) {
	v := newPatchVM(t, true, nil)
	if _, err := unix.Pwrite(v.guest, []byte("text"), 0x1ffc); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		query  string
		status int
	}{
		{"addr=0x1ffc&len=4", 200}, {"addr=4096&len=4096", 200}, {"addr=0x8000&len=4096", 200}, {"addr=0x5000&len=16", 200},
		{"addr=0x1ffc&len=5", 403}, {"addr=0xfff&len=2", 403}, {"addr=0&len=1", 403}, {"addr=0x3000&len=1", 403}, {"addr=0x8fff&len=2", 403},
		{"addr=0x1000&len=0x4010", 403}, {"addr=0xffffffffffffffff&len=4", 403}, {"addr=0xfffffffffffff000&len=0x2000", 403},
		{"addr=0x1000&len=0", 400}, {"addr=0x1000&len=99999999", 400}, {"addr=0x1000", 400}, {"len=1", 400}, {"addr=x&len=1", 400}, {"addr=0x1000&len=-1", 400},
	} {
		status, _, body := v.ask("GET", "/v1/patch/text?"+c.query, nil)
		if status != c.status || status == 200 && c.query == "addr=0x1ffc&len=4" && body != "text" {
			t.Errorf("%s: %d %.40q, want %d", c.query, status, body, c.status)
		}
	}
}

// One at a time; and while one waits, the monitor answers others.
func TestPatchOneAtATime(t *testing.T) {
	begun, go_ := make(chan struct{}, 1), make(chan struct{})
	v := newPatchVM(t, true, func(p patch.Plan) patch.Record {
		begun <- struct{}{}
		<-go_
		return committed(1, p)
	})
	done := make(chan int, 1)
	go func() {
		status, _, _, _ := v.post(patch.Plan{Name: "slow"})
		done <- status
	}()
	<-begun
	if status, _, h, body := v.post(patch.Plan{Name: "second"}); status != 503 || h.Get("Retry-After") == "" || !strings.Contains(body, errPatching.Error()) {
		t.Errorf("%d %s", status, body)
	}
	if _, err := v.http.Status(t.Context()); err != nil {
		t.Errorf("the monitor is blocked: %v", err)
	}
	if status, _, _ := v.ask("GET", "/v1/patch", nil); status != 200 {
		t.Errorf("the monitor is blocked: %d", status)
	}
	close(go_)
	if status := <-done; status != 200 {
		t.Error(status)
	}
	if list, _ := v.records(); len(list) != 1 {
		t.Errorf("%+v", list)
	}
}

// The engine is killed in the middle of a patch: the record says so, and the loop ends when it is logged.
func TestPatchEngineDies(t *testing.T) {
	var v *patchVM
	v = newPatchVM(t, true, func(p patch.Plan) patch.Record {
		if _, err := unix.Pwrite(v.guest, []byte{0xcc}, 0x1000); err != nil {
			t.Error(err)
		}
		v.close()
		return patch.Record{}
	})
	status, r, _, _ := v.post(patch.Plan{Name: "f", Digest: "ab", Sites: []patch.Site{{Name: "f", Addr: 0x1000}}})
	if status != 409 || r.Outcome != patch.Dead || r.Number != 1 || r.TextBefore == r.TextAfter || r.TextAfter == "" || !strings.Contains(r.Reason, "engine process ended") {
		t.Errorf("%d %+v", status, r)
	}
	if err := <-v.over; err == nil || !strings.Contains(err.Error(), "without a word") {
		t.Error(err)
	}
	v.over <- nil
	list, _ := v.records()
	if len(list) != 1 || list[0].Outcome != patch.Dead || list[0].Digest != "ab" || list[0].Schema != patch.RecordSchema || list[0].VM != "loop" || len(list[0].Sites) != 1 || list[0].BuildID != "1234" {
		t.Errorf("%+v", list)
	}
	if r.TSCHz != hz || r.VCPUs == nil {
		t.Errorf("%+v", r)
	}
}

// The run ends in the middle of a patch: the record that is still on its way is waited for, and one that never comes is not for long.
func TestPatchRunEnds(t *testing.T) {
	begun, go_ := make(chan struct{}, 1), make(chan struct{})
	v := newPatchVM(t, true, func(p patch.Plan) patch.Record {
		begun <- struct{}{}
		<-go_
		r := committed(1, p)
		r.Outcome = patch.Refused
		return r
	})
	done := make(chan patch.Record, 1)
	post := func() {
		_, r, _, _ := v.post(patch.Plan{Name: "late"})
		done <- r
	}
	go post()
	<-begun
	v.send(session.Message{Ended: &session.Ended{}})
	select {
	case err := <-v.over:
		t.Fatalf("the loop ended before the record had come: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(go_)
	if r := <-done; r.Outcome != patch.Refused {
		t.Errorf("%+v", r)
	}
	if err := <-v.over; err != nil {
		t.Error(err)
	}
	v.over <- nil
	if list, _ := v.records(); len(list) != 1 {
		t.Errorf("%+v", list)
	}
	if status, _, _, body := v.post(patch.Plan{Name: "later"}); status != 500 || !strings.Contains(body, "VM has ended") {
		t.Errorf("%d %s", status, body)
	}

	v = newPatchVM(t, true, nil)
	v.mute.Store(true)
	go post()
	for !v.m.patches.inEngine() {
		time.Sleep(time.Millisecond)
	}
	v.send(session.Message{Ended: &session.Ended{}})
	if r := <-done; r.Outcome != patch.Dead {
		t.Errorf("%+v", r)
	}
	if err := <-v.over; err != nil {
		t.Error(err)
	}
	v.over <- nil
}

// No patch is made that nobody could log; what could not be logged is, before the next one.
func TestPatchLogTrouble(t *testing.T) {
	n := uint64(0)
	var spoil func()
	v := newPatchVM(t, true, func(p patch.Plan) patch.Record {
		n++
		if spoil != nil {
			spoil()
		}
		return committed(n, p)
	})
	if err := os.WriteFile(v.log, []byte("garbage\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, _, _, body := v.post(patch.Plan{Name: "f"}); status != 500 || n != 0 || !strings.Contains(body, "nothing was changed") || !strings.Contains(body, "--verify-log") {
		t.Errorf("%d %s; %d patches", status, body, n)
	}
	if err := os.Remove(v.log); err != nil {
		t.Fatal(err)
	}
	spoil = func() {
		if err := os.WriteFile(v.log, []byte("garbage\n"), 0o600); err != nil {
			t.Error(err)
		}
	}
	status, r, h, _ := v.post(patch.Plan{Name: "f"})
	if status != 200 || r.Outcome != patch.Committed || h.Get(headerHead) != "" || !strings.Contains(h.Get(headerNote), "patch 1 is not logged") {
		t.Errorf("%d %+v %v", status, r, h)
	}
	spoil = nil
	var f breaks.Facts
	v.m.patchFacts(&f)
	if f.PatchLog != nil || len(f.FailedClauses) != 1 || !strings.Contains(f.FailedClauses[0], "patch 1 (committed) is not in the log") {
		t.Errorf("%+v", f)
	}
	if status, _, _, body := v.post(patch.Plan{Name: "g"}); status != 500 || n != 1 || !strings.Contains(body, "patch 1 is still to be logged") {
		t.Errorf("%d %s", status, body)
	}
	if err := os.WriteFile(v.log, []byte(`{"rec`), 0o600); err != nil { // as a crash leaves it
		t.Fatal(err)
	}
	status, _, h, _ = v.post(patch.Plan{Name: "g"})
	list, head := v.records()
	if status != 200 || n != 2 || len(list) != 2 || list[0].Name != "f" || list[1].Name != "g" || h.Get(headerHead) != head.String() || !strings.Contains(h.Get(headerNote), "is in the log now") {
		t.Errorf("%d %v %+v", status, h, list)
	}
	// And a torn line is said where it is found.
	text, err := os.ReadFile(v.log)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(v.log, append(text, "{"...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, h, _ = v.post(patch.Plan{Name: "h"}); !strings.Contains(h.Get(headerNote), "1 bytes of a line") {
		t.Errorf("%v", h)
	}
}

// What is no plan is refused before the engine hears of it.
func TestPatchBadRequests(t *testing.T) {
	v := newPatchVM(t, true, func(patch.Plan) patch.Record {
		t.Error("the engine was asked")
		return patch.Record{}
	})
	site := func(s string) string { return `{"Sites":[` + s + `]}` }
	for _, c := range []struct {
		body   string
		status int
		words  string
	}{
		{"", 400, "the plan"}, {"{", 400, "the plan"}, {"[]", 400, "the plan"}, {`{"Nmae":"x"}`, 400, "Nmae"}, {`{} {}`, 400, "follows"}, {`{"Wait":-1}`, 400, "-1ns"},
		{`{"Wait":3600000000001}`, 400, "1h"}, {`{"StopLimit":3600000000001}`, 400, "1h"}, {site(`{"old":"9"}`), 400, "the plan"}, {site(`{"old":"zz"}`), 400, "the plan"},
		{site(`{"name":"f","old":"` + strings.Repeat("90", 16) + `"}`), 400, "more than 15"}, {site(strings.Repeat(`{},`, patch.MaxSites) + `{}`), 400, "4097 sites"},
		{`{"Name":"` + strings.Repeat("x", maxNames+1) + `"}`, 400, "names"},
		{`{"Name":"` + strings.Repeat("x", maxPlan+2*(0x9000-0x8100)) + `"}`, 413, "at most 4201984"},
		{`{"Sites":` + strings.Repeat("[", 20000), 400, "the plan"},
	} {
		status, _, body := v.ask("POST", "/v1/patch", []byte(c.body))
		if status != c.status || !strings.Contains(body, c.words) || strings.Count(body, "\n") != 1 {
			t.Errorf("%.60q: %d %.300q; want %d with %q", c.body, status, body, c.status, c.words)
		}
	}
	for path, method := range map[string]string{"/v1/patch": "DELETE", "/v1/patch/text": "POST", "/v1/patch/log": "PUT"} {
		if status, _, body := v.ask(method, path, nil); status != 405 {
			t.Errorf("%s %s: %d %s", method, path, status, body)
		}
	}
	if list, _ := v.records(); len(list) != 0 {
		t.Errorf("%+v", list)
	}
}

// A program that cannot be patched says what is missing, and nothing of its memory.
func TestNotPatchable(t *testing.T) {
	v := newPatchVM(t, false, nil)
	v.m.patches.hear() // as Ready has it
	for _, path := range []string{"/v1/patch", "/v1/patch/text?addr=0x1000&len=1"} {
		if status, _, body := v.ask("GET", path, nil); status != 404 || !strings.Contains(body, "--patchable") {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if status, _, _, body := v.post(patch.Plan{Name: "f"}); status != 404 || !strings.Contains(body, "--patchable") {
		t.Errorf("%d %s", status, body)
	}
	if status, _, body := v.ask("GET", "/v1/patch/log", nil); status != 200 || body != "" {
		t.Errorf("%d %s", status, body)
	}
	if v.m.patches.snapshot() != nil {
		t.Error("metrics of what cannot be patched")
	}
}

// TestPatchWhileStarting: who asks before the engine has said what there is to patch waits for it, and is not told that there is nothing.
func TestPatchWhileStarting(t *testing.T) {
	v := newPatchVM(t, false, nil)
	time.AfterFunc(300*time.Millisecond, func() { v.tell(true, 0) })
	if status, _, body := v.ask("GET", "/v1/patch", nil); status != 200 || !strings.Contains(body, "/opt/loop") {
		t.Errorf("%d %s", status, body)
	}
}

// A record that cannot be read is not taken for one.
func TestPatchRecordUnreadable(t *testing.T) {
	var v *patchVM
	v = newPatchVM(t, true, func(patch.Plan) patch.Record {
		v.gone.Store(true) // it answers itself
		v.send(session.Message{Patched: &session.Patched{ID: 99, Length: 1}})
		v.send(session.Message{Patched: &session.Patched{ID: 1, Length: 1}})
		return patch.Record{}
	})
	status, _, _, body := v.post(patch.Plan{Name: "f"})
	v.gone.Store(false)
	if status != 500 || !strings.Contains(body, "what became of f is not known") {
		t.Errorf("%d %s", status, body)
	}
	var f breaks.Facts
	v.m.patchFacts(&f)
	if len(f.FailedClauses) != 1 {
		t.Errorf("%+v", f)
	}
}

// TestReportedPatches: a VM that was patched for weeks reports the latest patches, and says with which it begins.
func TestReportedPatches(t *testing.T) {
	m := &monitor{patches: newPatches()}
	for i := range 4*mostReported + 7 {
		m.patches.keep(&patch.Record{Number: uint64(i + 1), Name: "n", Outcome: patch.Committed})
	}
	if n := cap(m.patches.list); n > 4*mostReported {
		t.Errorf("room for %d patches is kept", n)
	}
	var f breaks.Facts
	m.patchFacts(&f)
	if n := len(f.Patches); n != mostReported || f.Patches[0].Number != 3*mostReported+8 || f.Patches[n-1].Number != 4*mostReported+7 {
		t.Fatalf("%d patches, from %d to %d", n, f.Patches[0].Number, f.Patches[len(f.Patches)-1].Number)
	}
	var out strings.Builder
	if err := breaks.Build(f, nil).WriteText(&out, breaks.TextOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, say := range []string{"the JSON report begins with patch 3008", "990 patches before these in the JSON report"} {
		if !strings.Contains(out.String(), say) {
			t.Errorf("the report does not say %q:\n%s", say, out.String())
		}
	}
}
