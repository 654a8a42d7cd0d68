package profile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/guest/symbol"
	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/google/pprof/profile"
)

type names map[uint64][]symbol.Frame

func (n names) Frames(a uint64) []symbol.Frame { return n[a] }

var (
	table = names{
		0x1000: {{Func: "write", File: "/src/write.c", Line: 26}},
		0x1fff: {{Func: "emit", File: "/src/main.c", Line: 7, Inlined: true}, {Func: "space::loop()", Mangled: "_ZN5space4loopEv", File: "/src/main.c", Line: 20}},
		0x2fff: {{Func: "main", File: "/src/main.c", Line: 40}},
	}
	rows = []Sample{
		{Stack: []uint64{0x1000, 0x2000, 0x3000}, Cause: "syscall", Nr: "write", Count: 5, LostNs: 250_000, Sealed: true},
		{Stack: []uint64{0x1000, 0x2000, 0x3000}, Cause: "syscall", Nr: "write", Count: 2, LostNs: 90_000},
		{Stack: []uint64{0x9999}, Cause: "exc-page-fault", Count: 1, LostNs: 3_000_000},
		{Cause: "host-interrupt", Count: 40},
	}
)

func TestProfile(t *testing.T) {
	var b bytes.Buffer
	start := time.Unix(1700000000, 5)
	if err := Write(&b, Program{Path: "/bin/prog", BuildID: "abcd", Start: start, Duration: time.Second}, rows, table); err != nil {
		t.Fatal(err)
	}
	p, err := profile.Parse(&b)
	if err != nil {
		t.Fatal(err)
	}
	var sum [2]int64
	for _, s := range p.Sample {
		sum[0] += s.Value[0]
		sum[1] += s.Value[1]
	}
	if sum != [2]int64{48, 3_340_000} || len(p.Sample) != 4 {
		t.Errorf("%d samples with the sums %v", len(p.Sample), sum)
	}
	first := p.Sample[0]
	if got := fmt.Sprint(first.Label); got != "map[cause:[syscall] nr:[write] sealed:[true]]" {
		t.Errorf("labels %s", got)
	}
	var stack []string
	for _, l := range first.Location {
		for _, line := range l.Line {
			stack = append(stack, fmt.Sprintf("%s:%d", line.Function.Name, line.Line))
		}
	}
	if got := strings.Join(stack, " "); got != "[syscall write]:0 write:26 emit:7 space::loop():20 main:40" {
		t.Errorf("stack %s", got)
	}
	if p.Sample[3].Location[1].Line[0].Function.Name != "[no stack kept]" || p.Sample[2].Location[1].Line[0].Function.Name != "0x9999" {
		t.Error("unknown places have no names")
	}
	if p.DefaultSampleType != "lost" || p.TimeNanos != start.UnixNano() || p.DurationNanos != 1e9 || p.Mapping[0].BuildID != "abcd" {
		t.Errorf("header: %+v", p)
	}
	if err := Write(&b, Program{}, []Sample{{Count: 1 << 63}}, nil); err == nil {
		t.Error("a value that pprof cannot hold was accepted")
	}
	if err := Write(&b, Program{}, nil, nil); err != nil {
		t.Errorf("an empty profile: %v", err)
	}
	if err := Write(failing{}, Program{}, rows, nil); !errors.Is(err, errDisk) {
		t.Errorf("a writer that fails: %v", err)
	}
}

// TestGoToolPprof runs the reader that users run.
func TestGoToolPprof(t *testing.T) {
	testenv.Need(t, testenv.Tool("go"))
	file := filepath.Join(t.TempDir(), "breaks.pb.gz")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(Write(f, Program{Path: "/bin/prog"}, rows, table), f.Close()); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string][]string{
		"-top":                                 {`Type: lost`, `3000us +\d.*\[exc-page-fault\]`, `340us.*main`},
		"-top -sample_index=breaks":            {`Type: breaks`, `40 +\d.*\[host-interrupt\]`, `7 +\d.*\[syscall write\]`},
		"-top -tagfocus=sealed=true":           {`250us.*space::loop\(\)`},
		"-top -lines -sample_index=lost":       {`emit .*main\.c:7 \(inline\)`},
		"-tags -sample_index=breaks":           {`cause: Total 48`, `sealed: Total 48`},
		"-traces -sample_index=breaks -unit=s": {`\[syscall write\]`},
	} {
		cmd := exec.Command("go", append(append([]string{"tool", "pprof"}, strings.Fields(args)...), file)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", args, err, out)
		}
		for _, re := range want {
			if !regexp.MustCompile(re).Match(out) {
				t.Errorf("%s does not show %q:\n%s", args, re, out)
			}
		}
	}
}

var errDisk = errors.New("no space left")

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errDisk }

func writeTrace(t *testing.T, w *bytes.Buffer, n int) *Trace {
	t.Helper()
	const base = 1_763_000_000_123_456_789
	tr, err := NewTrace(w, base, "pro\"gram\n\xff")
	if err != nil {
		t.Fatal(err)
	}
	at := int64(base)
	for i := range n {
		if err := tr.Add(Event{VCPU: i % 2, StartNs: at, EndNs: at + 1001, Name: "guest"}); err != nil {
			t.Fatal(err)
		}
		if err := tr.Add(Event{VCPU: i % 2, StartNs: at + 1001, EndNs: at + 1500, Name: "syscall write", Cause: "syscall", Site: "main+0x3 (a.c:1)", Sealed: i%3 == 0}); err != nil {
			t.Fatal(err)
		}
		at += 1500
	}
	if err := tr.Lost(1, at, 7); err != nil {
		t.Fatal(err)
	}
	if err := tr.Lost(0, at+1, 1); err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestTrace(t *testing.T) {
	var b bytes.Buffer
	tr := writeTrace(t, &b, 1000)
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	var events []struct {
		Name, Cat, Ph string
		Pid, Tid      int
		Ts, Dur       json.Number
		Args          map[string]any
	}
	if err := json.Unmarshal(b.Bytes(), &events); err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, e := range events {
		count[e.Ph+" "+e.Name]++
	}
	want := map[string]int{"M process_name": 1, "M thread_name": 2, "M thread_sort_index": 2, "X guest": 1000, "X syscall write": 1000, "C lost events": 3, "i events lost": 2}
	if fmt.Sprint(count) != fmt.Sprint(want) {
		t.Errorf("events %v, want %v", count, want)
	}
	// The 7th and 8th are the first slices: names of the process, the counter, two for the track.
	guest, brk := events[4], events[5]
	if guest.Ts != "0.000" || guest.Dur != "1.001" || guest.Cat != "guest" || guest.Args["cause"] != nil {
		t.Errorf("guest slice %+v", guest)
	}
	if brk.Ts != "1.001" || brk.Dur != "0.499" || brk.Cat != "break" || brk.Args["cause"] != "syscall" || brk.Args["site"] != "main+0x3 (a.c:1)" || brk.Args["sealed"] != true {
		t.Errorf("break slice %+v", brk)
	}
	if last := events[len(events)-2]; last.Ph != "C" || last.Args["lost"] != 8.0 {
		t.Errorf("the counter ends as %+v", last)
	}
	if err := tr.Add(Event{VCPU: 0}); !errors.Is(err, errClosed) {
		t.Errorf("a closed trace takes events: %v", err)
	}
}

// TestTraceCut cuts a trace at every byte: every event before the cut survives Repair.
func TestTraceCut(t *testing.T) {
	var b bytes.Buffer
	if err := writeTrace(t, &b, 4).Close(); err != nil {
		t.Fatal(err)
	}
	whole := b.Bytes()
	for cut := range whole {
		fixed := Repair(whole[:cut])
		var events []json.RawMessage
		if err := json.Unmarshal(fixed, &events); err != nil {
			t.Fatalf("cut at %d: %v\n%s", cut, err, fixed)
		}
		// A line is one event; the one that the cut hits counts when only its comma is missing.
		lines := bytes.Count(whole[:cut], []byte("}\n")) + bytes.Count(whole[:cut], []byte("},\n"))
		if len(events) < lines {
			t.Fatalf("cut at %d: %d events of %d", cut, len(events), lines)
		}
	}
	if got := Repair(whole); !bytes.Equal(got, whole) {
		t.Error("a whole trace was changed")
	}
}

// TestTraceWritesWholeEvents: what reached the file at any time ends with an event, so that a reader of
// the array format needs no repair.
func TestTraceWritesWholeEvents(t *testing.T) {
	w := &chunks{t: t}
	tr, err := NewTrace(w, 0, "p")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5000 {
		if err := tr.Add(Event{StartNs: int64(i), EndNs: int64(i), Name: strings.Repeat("x", i%97)}); err != nil {
			t.Fatal(err)
		}
	}
	if w.n < 5 {
		t.Errorf("%d writes", w.n)
	}
}

type chunks struct {
	t *testing.T
	n int
}

func (c *chunks) Write(b []byte) (int, error) {
	c.n++
	if s := strings.TrimRight(string(b), ",\n"); !strings.HasSuffix(s, "}") {
		c.t.Errorf("a write ends with %q", s[max(0, len(s)-40):])
	}
	return len(b), nil
}

func TestTraceErrors(t *testing.T) {
	if _, err := NewTrace(failing{}, 0, ""); !errors.Is(err, errDisk) {
		t.Errorf("NewTrace = %v", err)
	}
	tr, err := NewTrace(&bytes.Buffer{}, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.Add(Event{StartNs: 2, EndNs: 1}); err == nil {
		t.Error("an event that ends before it starts was accepted")
	}
	if err := tr.Add(Event{StartNs: -5, EndNs: 1}); err != nil {
		t.Errorf("an event before the start of the trace: %v", err)
	}
}

// A track is named by its number, then by what it executes, each name once.
func TestTrackNames(t *testing.T) {
	var b bytes.Buffer
	tr, err := NewTrace(&b, 0, "p")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"rt", "rt", "rt, \"w\x1b"} {
		if err := errors.Join(tr.Track(3, name), tr.Add(Event{VCPU: 3, Name: "guest"}), tr.Add(Event{VCPU: 4, Name: "guest"})); err != nil {
			t.Fatal(err)
		}
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	var events []struct {
		Name string
		Tid  int
		Args map[string]any
	}
	if err := json.Unmarshal(b.Bytes(), &events); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range events {
		if e.Name == "thread_name" {
			got = append(got, fmt.Sprint(e.Tid, " ", e.Args["name"]))
		}
	}
	if want := []string{"3 vCPU 3: rt", "4 vCPU 4", "3 vCPU 3: rt, \"w\x1b"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
