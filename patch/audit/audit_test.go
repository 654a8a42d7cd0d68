package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cloister-vmm/cloister/patch"
	"golang.org/x/sys/unix"
)

func record(n uint64) *patch.Record {
	return &patch.Record{Schema: patch.RecordSchema, VM: "loop", Started: "2026-11-22T13:00:00Z", Number: n, Name: fmt.Sprintf("replace <f> & %d", n),
		Actor: "uid 0 pid 17", Outcome: patch.Committed, Sites: []patch.Site{{Name: "f", Kind: patch.Redirect, Addr: 0x401000, Old: patch.Hex{0x90}, New: patch.Hex{0xcc}}}}
}

// log makes a log of n records and gives its path and its lines, ends included.
func log(t testing.TB, n int) (path string, lines []string, heads []Hash) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "loop.jsonl")
	for i := range n {
		_, h, err := Append(path, record(uint64(i+1)))
		if err != nil {
			t.Fatal(err)
		}
		heads = append(heads, h)
	}
	return path, strings.SplitAfter(content(t, path), "\n")[:n], heads
}

func content(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func verify(text string) (Summary, error) { return Verify(strings.NewReader(text), Hash{}, nil) }

// The form that docs/patching.md documents, by hand: others must be able to check a log without this package.
func TestForm(t *testing.T) {
	path, lines, heads := log(t, 3)
	prev := strings.Repeat("0", 64)
	for i, line := range lines {
		record, ok := strings.CutPrefix(line, `{"record":`)
		record, rest, ok2 := strings.Cut(record, `,"prev":"`+prev+`","hash":"`)
		p, err := hex.DecodeString(prev)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(append(p, record...))
		if want := hex.EncodeToString(sum[:]); !ok || !ok2 || rest != want+"\"}\n" || heads[i].String() != want {
			t.Fatalf("line %d: %s; want the hash %s, and Append says %s", i+1, line, want, heads[i])
		}
		prev = heads[i].String()
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	var got []uint64
	r, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s, err := Verify(r, heads[1], func(l Line) {
		rec, err := l.Decode()
		if err != nil || rec.Name != record(rec.Number).Name {
			t.Errorf("%+v, %v", rec, err)
		}
		got = append(got, rec.Number)
	})
	if err != nil || s.Lines != 3 || s.Head != heads[2] || s.HeadAt != 2 || len(s.Torn) != 0 || fmt.Sprint(got) != "[1 2 3]" {
		t.Errorf("%+v, %v, %v", s, err, got)
	}
	if h, err := Head(path); err != nil || h != heads[2] {
		t.Errorf("%s, %v", h, err)
	}
	if h, err := Head(path + ".no"); err != nil || h != (Hash{}) {
		t.Errorf("no log: %s, %v", h, err)
	}
	if s, err := verify(""); err != nil || s.Lines != 0 || s.Head != (Hash{}) {
		t.Errorf("an empty log: %+v, %v", s, err)
	}
}

// What can be done to a log, and what is said of it.
func TestFaults(t *testing.T) {
	_, l, heads := log(t, 5)
	other := strings.Replace(l[2], "replace", "rEplace", 1) // as long
	forged, _, err := encode(heads[1], func() *patch.Record { r := record(3); r.Actor = "nobody"; return r }())
	if err != nil {
		t.Fatal(err)
	}
	two := *record(1)
	two.Started = "2026-11-23T00:00:00Z"
	next, _, err := encode(Hash{1}, &two)
	if err != nil {
		t.Fatal(err)
	}
	join := func(s ...string) string { return strings.Join(s, "") }
	for _, c := range []struct {
		name, text string
		line       int
		kind       Kind
		why        string
	}{
		{"a byte of a record", join(l[0], l[1], other, l[3], l[4]), 3, Changed, "does not fit"},
		{"the first", join(strings.Replace(l[0], "uid 0", "uid 1", 1), l[1]), 1, Changed, "does not fit"},
		{"a digit of the last hash", join(l[0], strings.TrimSuffix(l[1], "\"}\n")[:len(l[1])-4]+"x\"}\n"), 2, Changed, "no line"},
		{"digits in capitals", join(l[0][:len(l[0])-67], strings.ToUpper(l[0][len(l[0])-67:])), 1, Changed, "no line"},
		{"a record with its hash", join(l[0], l[1], string(forged), l[3], l[4]), 3, Changed, "replaced"},
		{"garbage", join(l[0], "garbage\n", l[2]), 2, Changed, "no line"},
		{"garbage at the end", join(l[0], "garbage\n"), 2, Changed, "no line"},
		{"garbage twice", join(l[0], "{}\n", "{}\n", l[1]), 2, Changed, "no line"},
		{"garbage, and a torn line", join(l[0], "garbage\n", l[1][:20]), 2, Changed, "no line"},
		{"an empty line", join(l[0], "\n", l[1]), 2, Changed, "no line"},
		{"the bare record in place of its line", join(l[0], string(bare(t, l[1])), "\n", l[2]), 2, Changed, "no line"},
		{"one removed", join(l[0], l[1], l[3], l[4]), 3, Removed, "not in the log"},
		{"the first removed", join(l[1], l[2]), 1, Removed, "not in the log"},
		{"all of a run but its last removed", join(l[0], l[4]), 2, Removed, "not in the log"},
		{"two swapped", join(l[0], l[2], l[1], l[3]), 2, Reordered, "follows line 3, which"},
		{"the last one first", join(l[4], l[0], l[1], l[2], l[3]), 1, Reordered, "follows line 5, which"},
		{"the first one last", join(l[1], l[0]), 1, Reordered, "follows line 2, which"},
		{"twice the same", join(l[0], l[1], l[1], l[2]), 3, Reordered, "follows line 1, not line 2"},
		{"another log behind it", join(l[0], l[1], l[0], l[1]), 3, Reordered, "a log begins here"},
		{"another run's line", join(l[0], string(next)), 1, Changed, "replaced"},
		{"torn", join(l[0], l[1], l[2][:50]), 3, Torn, "no end"},
		{"torn in the first", l[0][:1], 1, Torn, "no end"},
		{"without the last line end", strings.TrimSuffix(join(l...), "\n"), 5, Torn, "only its line end"},
	} {
		_, err := verify(c.text)
		var f *Fault
		if !errors.As(err, &f) || f.Line != c.line || f.Kind != c.kind || !strings.Contains(f.Why, c.why) {
			t.Errorf("%s: %v; want line %d: %s: …%s…", c.name, err, c.line, c.kind, c.why)
		}
	}
	// A log that was cut is whole by itself; only who knows an older head sees it.
	if s, err := verify(join(l[0], l[1])); err != nil || s.Head != heads[1] {
		t.Errorf("%+v, %v", s, err)
	}
	_, err = Verify(strings.NewReader(join(l[0], l[1])), heads[2], nil)
	var f *Fault
	if !errors.As(err, &f) || f.Line != 3 || f.Kind != Cut || !strings.Contains(f.Why, heads[2].String()) {
		t.Errorf("cut: %v", err)
	}
	if s, err := Verify(strings.NewReader(join(l...)), heads[2], nil); err != nil || s.HeadAt != 3 {
		t.Errorf("%+v, %v", s, err)
	}
	broken := errors.New("broken disk")
	if _, err := Verify(io.MultiReader(strings.NewReader(l[0]), iotestErr{broken}), Hash{}, nil); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	if _, err := Verify(io.MultiReader(strings.NewReader(l[1]), iotestErr{broken}), Hash{}, nil); !errors.Is(err, broken) {
		t.Errorf("behind a fault: %v", err)
	}
}

type iotestErr struct{ err error }

func (e iotestErr) Read([]byte) (int, error) { return 0, e.err }

func bare(t *testing.T, line string) []byte {
	t.Helper()
	l, err := parse([]byte(strings.TrimSuffix(line, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return l.Record
}

// A line longer than there can be is neither kept nor read to its end, wherever it stands.
func TestLongLine(t *testing.T) {
	_, l, _ := log(t, 2)
	for _, c := range []struct {
		before string
		line   int
		kind   Kind
	}{{"", 1, Changed}, {l[0], 2, Changed}, {l[0] + "torn\n", 2, Changed}, {l[1], 1, Removed}} {
		long := &io.LimitedReader{R: zeros{}, N: 3 * MaxLine}
		_, err := Verify(io.MultiReader(strings.NewReader(c.before), long, strings.NewReader("\n"+l[1])), Hash{}, nil)
		var f *Fault
		if !errors.As(err, &f) || f.Line != c.line || f.Kind != c.kind {
			t.Errorf("behind %q: %v", c.before, err)
		}
		if long.N < MaxLine {
			t.Errorf("behind %q: %d bytes of it were read", c.before, 3*MaxLine-long.N)
		}
	}
	r := record(1)
	r.Name = strings.Repeat("x", MaxLine)
	if _, _, err := Append(filepath.Join(t.TempDir(), "log"), r); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Error(err)
	}
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, bytes.Repeat([]byte("0"), 3*MaxLine), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Check(path); err == nil || !strings.Contains(err.Error(), "no line has more than") {
		t.Error(err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// A crash may cut the last line anywhere. The log goes on, the pieces stay, the chain holds over them.
func TestTorn(t *testing.T) {
	path, lines, heads := log(t, 3)
	whole := strings.Join(lines, "")
	for cut := range len(lines[2]) {
		text := whole[:len(whole)-len(lines[2])+cut]
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		found, err := Check(path)
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		before, head, err := Append(path, record(4))
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		got := content(t, path)
		s, err := verify(got)
		want := Tail{Head: heads[1], Torn: cut, Size: int64(len(text))}
		torn, n := "[3]", 4
		switch cut {
		case 0:
			torn, n = "[]", 3
		case len(lines[2]) - 1: // only the line end was missing
			torn, want.Torn, want.Head = "[]", 0, heads[2]
		}
		if found != want || before != want || err != nil || s.Head != head || s.Lines != n || fmt.Sprint(s.Torn) != torn || !strings.HasPrefix(got, text) {
			t.Fatalf("cut at %d: found %+v, want %+v; %+v, %v", cut, before, want, s, err)
		}
		if said := before.TornText("F"); (said != "") != (want.Torn > 0) || want.Torn > 0 && !strings.Contains(said, fmt.Sprintf("%d bytes of a line at byte %d", cut, len(lines[0])+len(lines[1]))) {
			t.Fatal(said)
		}
		if cut > 0 && cut < len(lines[2])-1 {
			// Chained in is chained: the torn bytes cannot be changed, nor taken away, any more.
			spoilt := []byte(got)
			spoilt[len(lines[0])+len(lines[1])] ^= 1
			if _, err := verify(string(spoilt)); err == nil {
				t.Fatalf("cut at %d: the torn bytes were changed unseen", cut)
			}
			if _, err := verify(lines[0] + lines[1] + got[len(text)+1:]); err == nil {
				t.Fatalf("cut at %d: the torn line was removed unseen", cut)
			}
		}
	}
}

// Nothing is written behind a line that was changed, nor to what is no file.
func TestAppendRefuses(t *testing.T) {
	path, lines, _ := log(t, 2)
	for _, text := range []string{lines[0] + strings.Replace(lines[1], "uid 0", "uid 1", 1), lines[0] + "garbage\n", "\n", strings.Join(lines, "") + "\n",
		lines[0] + strings.Replace(lines[1], "uid 0", "uid 1", 1) + lines[1][:30]} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := Append(path, record(3))
		if err == nil || !strings.Contains(err.Error(), "--verify-log") || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.60q…: %v", text, err)
		}
		if content(t, path) != text {
			t.Errorf("%.60q… was written to", text)
		}
		if _, err := Check(path); err == nil {
			t.Errorf("%.60q…: Check sees nothing", text)
		}
		if h, err := Head(path); err == nil {
			t.Errorf("%.60q…: its head is %s", text, h)
		}
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"/dev/null", fifo, t.TempDir(), filepath.Join(t.TempDir(), "no", "log")} {
		if _, _, err := Append(p, record(1)); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", p, err)
		}
		if r, err := Open(p); err == nil {
			r.Close()
			t.Errorf("%s: opened", p)
		}
	}
}

// A disk that takes only a part takes nothing.
func TestNoSpace(t *testing.T) {
	path, lines, _ := log(t, 2)
	text := strings.Join(lines, "")
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	limit := unix.Rlimit{Cur: uint64(len(text)) + 100, Max: old.Max} // Go ignores SIGXFSZ: the write ends short, with EFBIG
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	_, _, err := Append(path, record(3))
	if e := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); e != nil {
		t.Fatal(e)
	}
	if !errors.Is(err, unix.EFBIG) || content(t, path) != text {
		t.Errorf("%v; the log has %d bytes, had %d", err, len(content(t, path)), len(text))
	}
	if _, _, err := Append(path, record(3)); err != nil {
		t.Error(err)
	}
	if s, err := verify(content(t, path)); err != nil || s.Lines != 3 {
		t.Errorf("%+v, %v", s, err)
	}
}

// VMs of one name in different run directories share a log.
func TestTogether(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for i := range 20 {
				if _, _, err := Append(path, record(uint64(i+1))); err != nil {
					t.Error(err)
				}
				if r, err := Open(path); err != nil {
					t.Error(err)
				} else if _, err := Verify(r, Hash{}, nil); err != nil || r.Close() != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if s, err := verify(content(t, path)); err != nil || s.Lines != 160 {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestParseHash(t *testing.T) {
	if h, err := ParseHash(strings.Repeat("aB", 32)); err != nil || h.String() != strings.Repeat("ab", 32) {
		t.Error(h, err)
	}
	for _, s := range []string{"", "ab", strings.Repeat("ab", 33), strings.Repeat("xy", 32)} {
		if _, err := ParseHash(s); err == nil || !strings.Contains(err.Error(), "64") {
			t.Errorf("%q: %v", s, err)
		}
	}
}
