package engine

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/cmd/internal/session"
	"github.com/cloister-vmm/cloister/patch"
	"golang.org/x/sys/unix"
)

// fakePatcher commits whatever it is given.
type fakePatcher struct {
	state patch.State
	begun chan struct{} // Apply tells it
	busy  chan struct{} // Apply waits for it
}

func (f *fakePatcher) Apply(p patch.Plan) patch.Record {
	f.begun <- struct{}{}
	<-f.busy
	f.state.Number++
	f.state.Applied = append(f.state.Applied, patch.Applied{Number: f.state.Number, Name: p.Name, Sites: p.Sites})
	return patch.Record{Number: f.state.Number, Name: p.Name, Outcome: patch.Committed, Sites: p.Sites}
}

func (f *fakePatcher) State() patch.State { return f.state }

// patchable is an engine that only listens, and the monitor's end of its wire.
func patchable(t *testing.T, p patcher) (*engine, session.Wire) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(pair[1], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}); err != nil {
		t.Fatal(err)
	}
	e := &engine{o: &options{}, status: make(chan int, 1), quiet: make(chan session.Quiet, 1), patching: patching{patcher: p}}
	e.link.wire = session.Wire{FD: pair[0]}
	if err := e.link.open(); err != nil {
		t.Fatal(err)
	}
	listening := make(chan struct{})
	go func() { e.listen(); close(listening) }()
	t.Cleanup(func() {
		if err := unix.Close(pair[1]); err != nil {
			t.Error(err)
		}
		<-listening
		if err := unix.Close(pair[0]); err != nil {
			t.Error(err)
		}
	})
	return e, session.Wire{FD: pair[1]}
}

func ask(t *testing.T, w session.Wire, id uint64, p patch.Plan) {
	t.Helper()
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := session.Seal("plan", b)
	if err == nil {
		err = w.Send(session.Message{Patch: &session.Patch{ID: id, Length: len(b)}}, fd)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(fd); err != nil {
		t.Fatal(err)
	}
}

// answer is the next message, which must be of the kind.
func answer[T any](t *testing.T, w session.Wire, length func(session.Message) (int, bool)) (v T, m session.Message) {
	t.Helper()
	m, fds, err := w.Receive()
	if err != nil {
		t.Fatal(err)
	}
	n, ok := length(m)
	if !ok {
		t.Fatalf("unexpected %+v", m)
	}
	b, err := session.Unseal(fds, n)
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err != nil {
		t.Fatal(err)
	}
	return v, m
}

func stateOf(m session.Message) (int, bool) {
	if m.Patchable == nil {
		return 0, false
	}
	return m.Patchable.Length, true
}

func recordOf(m session.Message) (int, bool) {
	if m.Patched == nil {
		return 0, false
	}
	return m.Patched.Length, true
}

// A plan goes to the patcher and its record back, whatever their size; the new state comes before the record.
func TestPatch(t *testing.T) {
	f := &fakePatcher{state: patch.State{Program: "/opt/loop", TSCHz: 2}, begun: make(chan struct{}, 8), busy: make(chan struct{})}
	close(f.busy)
	e, w := patchable(t, f)
	if err := e.tellPatchable(); err != nil {
		t.Fatal(err)
	}
	if s, _ := answer[patch.State](t, w, stateOf); s.Program != "/opt/loop" || s.TSCHz != 2 {
		t.Errorf("%+v", s)
	}
	big := patch.Plan{Name: "big", Text: []patch.Chunk{{Addr: 1 << 30, Bytes: make([]byte, 1<<20)}}}
	for i := range patch.MaxSites {
		big.Sites = append(big.Sites, patch.Site{Name: fmt.Sprintf("site.%d", i), Addr: uint64(i), Old: make([]byte, 5), New: make([]byte, 5)})
	}
	for i, p := range []patch.Plan{{Name: "small", Sites: []patch.Site{{Name: "f"}}}, big} {
		ask(t, w, uint64(70+i), p)
		s, _ := answer[patch.State](t, w, stateOf)
		r, m := answer[patch.Record](t, w, recordOf)
		if s.Number != uint64(i+1) || len(s.Applied) != i+1 || m.Patched.ID != uint64(70+i) || r.Number != s.Number || r.Name != p.Name || len(r.Sites) != len(p.Sites) {
			t.Errorf("state %d, record %d %s with %d sites for %d", s.Number, r.Number, r.Name, len(r.Sites), m.Patched.ID)
		}
	}
}

// Whatever comes is answered: the monitor waits.
func TestPatchRefused(t *testing.T) {
	refused := func(w session.Wire, words string) {
		t.Helper()
		r, m := answer[patch.Record](t, w, recordOf)
		if r.Outcome != patch.Refused || r.Number != 0 || r.Schema != patch.RecordSchema || r.VCPUs == nil || !strings.Contains(r.Reason, words) || m.Patched.ID != 9 {
			t.Errorf("%+v; want %q", r, words)
		}
	}
	e, w := patchable(t, nil)
	if err := e.tellPatchable(); err != nil { // and nothing is sent
		t.Fatal(err)
	}
	ask(t, w, 9, patch.Plan{Name: "x"})
	refused(w, "--patchable")

	f := &fakePatcher{begun: make(chan struct{}, 8), busy: make(chan struct{})}
	e, w = patchable(t, f)
	if err := w.Send(session.Message{Patch: &session.Patch{ID: 9, Length: 4}}); err != nil {
		t.Fatal(err)
	}
	answer[patch.State](t, w, stateOf)
	refused(w, "did not reach")

	// The end of a run waits for the patch that is being made, and the next one comes too late.
	ask(t, w, 9, patch.Plan{Name: "slow"})
	<-f.begun
	over := make(chan struct{})
	go func() { e.noMorePatches(); close(over) }()
	select {
	case <-over:
		t.Error("the run ended in the middle of a patch")
	case <-time.After(50 * time.Millisecond):
	}
	close(f.busy)
	answer[patch.State](t, w, stateOf)
	if r, _ := answer[patch.Record](t, w, recordOf); r.Outcome != patch.Committed {
		t.Errorf("%+v", r)
	}
	<-over
	ask(t, w, 9, patch.Plan{Name: "late"})
	answer[patch.State](t, w, stateOf)
	refused(w, "has ended")
	if f.state.Number != 1 {
		t.Errorf("%d patches were made", f.state.Number)
	}
}

func TestPatchableOption(t *testing.T) {
	for arg, want := range map[string]uint64{"": 0, "--patchable": 256 << 10, "--patchable=1M": 1 << 20, "--patchable=4097": 8192, "--patchable=64M": 64 << 20} {
		args := []string{"@spin"}
		if arg != "" {
			args = []string{arg, "@spin"}
		}
		if o, err := parseRun(args); err != nil || o.spare != want || o.program != "@spin" {
			t.Errorf("%q: %+v, %v; want %d", arg, o, err, want)
		}
	}
	for _, arg := range []string{"--patchable=", "--patchable=0", "--patchable=4095", "--patchable=65M", "--patchable=no", "--patchable=-1", "--patch-log="} {
		if _, err := parseRun([]string{arg, "@spin"}); err == nil || !strings.Contains(err.Error(), strings.TrimLeft(strings.Split(arg, "=")[0], "-")) {
			t.Errorf("%q: %v", arg, err)
		}
	}
}
