package host

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// journalOf gives the bytes of a journal with two owners in it.
func journalOf(t testing.TB) (*sim, *Applier, []byte) {
	t.Helper()
	s := unpack(t, "four.txtar", none)
	a := &Applier{System: s, Dir: memory(t)}
	for _, c := range []int{2, 3} {
		if _, err := a.Apply(Request{CPUs: []int{c}}); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(filepath.Join(a.Dir, journalFile))
	if err != nil {
		t.Fatal(err)
	}
	return s, a, b
}

// A torn end is an intent whose write never began; any other damage stops everything and changes nothing.
func TestDamagedJournal(t *testing.T) {
	s, a, good := journalOf(t)
	name := filepath.Join(a.Dir, journalFile)
	lines := bytes.SplitAfter(good, []byte("\n"))
	for _, c := range []struct {
		name string
		text []byte
		want string
	}{
		{"torn", append(bytes.Clone(good), `{"op":"set","ow`...), ""},
		{"a wrong last line", append(bytes.Clone(good), "{\"op\":\x00\x00\x00\n"...), "damaged"},
		{"an end that begins no record", append(bytes.Clone(good), "\x00\x00\x00"...), "damaged"},
		{"an end that is wrong", append(bytes.Clone(good), "{\"op\":\"release\",\"owner\":\"x\"}\t0"...), "damaged"},
		{"foreign, without an end", []byte("hello"), "line 1: it is damaged"},
		{"a bit", bytes.Replace(good, []byte("0-3"), []byte("0-2"), 1), "damaged"},
		{"a line lost", bytes.Join(append(append([][]byte{}, lines[:3]...), lines[4:]...), nil), "line 4"},
		{"the first line lost", bytes.Join(lines[1:], nil), "line 1: it is damaged"},
		{"foreign", []byte("hello\nworld\n"), "line 1: it is damaged"},
		{"another version", sealed(nil, `{"op":"open","version":"v9","boot":"x"}`), "version"},
		{"out of bounds", append(bytes.Clone(good), sealed(good, `{"op":"set","owner":"cloister host apply, CPUs 3","setting":{"kind":"file","name":"sys/../etc/passwd"},"old":"a","new":"b"}`)...), "no file of /proc or /sys"},
		{"an unknown field", append(bytes.Clone(good), sealed(good, `{"op":"release","owner":"x","extra":1}`)...), "unknown field"},
	} {
		if err := os.WriteFile(name, c.text, 0o644); err != nil {
			t.Fatal(err)
		}
		before := snapshot(t, s.Root)
		_, err := a.Restore([]int{1})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%s: %v, want %q in one line", c.name, err, c.want)
		}
		if c.want == "" {
			continue
		}
		if _, err := a.Apply(Request{CPUs: []int{1}}); err == nil {
			t.Errorf("%s: applied all the same", c.name)
		}
		same(t, c.name, before, snapshot(t, s.Root))
		if b, err := os.ReadFile(name); err != nil || !bytes.Equal(b, c.text) {
			t.Errorf("%s: the journal was touched (%v)", c.name, err)
		}
	}
}

// sealed makes a line that would be good after those of before.
func sealed(before []byte, text string) []byte {
	var sum uint32
	for line := range bytes.Lines(before) {
		if i := bytes.LastIndexByte(line, '\t'); i >= 0 {
			sum = crc32.Update(sum, castagnoli, line[:i])
		}
	}
	return fmt.Appendf([]byte(text), "\t%08x\n", crc32.Update(sum, castagnoli, []byte(text)))
}

// A reboot undoes everything by itself: the journal is void, damaged or not, and the next owner begins a new one. (A host whose
// power went is where a journal that outlives the boot has a spoilt end.)
func TestReboot(t *testing.T) {
	s, a, good := journalOf(t)
	if err := s.Live.Write(bootID, "99999999-2222-3333-4444-555555555555"); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"whole":          good,
		"a spoilt end":   append(bytes.Clone(good), make([]byte, 100)...),
		"a bit":          bytes.Replace(good, []byte("stat_interval"), []byte("stat_intervaX"), 1),
		"a spoilt start": append(bytes.Clone(good[:bytes.IndexByte(good, '\n')+1]), "hello\n"...),
	} {
		if err := os.WriteFile(filepath.Join(a.Dir, journalFile), text, 0o644); err != nil {
			t.Fatal(err)
		}
		before := snapshot(t, s.Root)
		if res := mustRestore(t, a); res != nil {
			t.Errorf("%s: restored %v of another boot", name, res)
		}
		same(t, name, before, snapshot(t, s.Root))
		mustApply(t, a, Request{CPUs: []int{1}})
		if claims, err := a.Claims(); err != nil || len(claims) != 1 {
			t.Errorf("%s: %v (%v)", name, claims, err)
		}
		mustRestore(t, a)
	}
	// Where the boot is not known nothing damaged is void, nor where the first line, which names it, is damaged.
	spoilt := bytes.Replace(good, []byte("stat_interval"), []byte("stat_intervaX"), 1)
	for name, c := range map[string]struct{ text, boot string }{
		"no boot ID":     {string(spoilt), ""},
		"the first line": {string(bytes.Replace(good, []byte("journal/v1"), []byte("journal/v2"), 1)), "99999999-2222-3333-4444-555555555555"},
	} {
		if err := os.WriteFile(filepath.Join(a.Dir, journalFile), []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := s.Live.Write(bootID, c.boot); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Restore(nil); err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Rights are what is lacking only where they are.
func TestNoJournal(t *testing.T) {
	for errno, want := range map[unix.Errno]string{unix.EACCES: "needs root", unix.EPERM: "needs root", unix.EROFS: "needs a directory /run/x that", unix.ENOSPC: "needs a directory /run/x that"} {
		if err := journalError("/run/x", &os.PathError{Op: "mkdir", Path: "/run/x", Err: errno}); !strings.Contains(err.Error(), want) || !errors.Is(err, errno) {
			t.Errorf("%s: %v, want %q", errno, err, want)
		}
	}
	dir := filepath.Join(memory(t), "file")
	if err := os.WriteFile(dir, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	a := &Applier{System: unpack(t, "four.txtar", none), Dir: dir}
	if _, err := a.Apply(Request{CPUs: []int{3}}); err == nil || strings.Contains(err.Error(), "needs root") || strings.Contains(err.Error(), "\n") {
		t.Errorf("a file in the directory's place: %v", err)
	}
}

// FuzzJournal: whatever the file holds, replaying it ends, its good part replays to the same, and a record that
// reaches out of /proc and /sys never gets through.
func FuzzJournal(f *testing.F) {
	_, _, good := journalOf(f)
	lines := bytes.SplitAfter(good, []byte("\n"))
	good = bytes.Join(lines[:min(8, len(lines))], nil)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte("hello\n"))
	for line := range bytes.Lines(good) {
		f.Add(bytes.Clone(line))
	}
	a := &Applier{System: unpack(f, "four.txtar", beside()), Dir: memory(f)} // with what is seen, and ways
	if _, err := a.Apply(Request{CPUs: []int{3}, Level: Max, Cache: true}); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(a.Dir, journalFile))
	if err != nil {
		f.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		f.Add(append(bytes.Clone(good), line...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		st, whole, err := parseJournal(b)
		if whole > len(b) {
			t.Fatalf("%d bytes of %d are good", whole, len(b))
		}
		for _, h := range st.held {
			if err := h.valid(); err != nil {
				t.Fatal(err)
			}
			if len(h.holders) == 0 || len(h.ours) == 0 {
				t.Fatalf("%s is held by nobody", h.Setting)
			}
		}
		if err != nil {
			return
		}
		again, n, err := parseJournal(b[:whole])
		if err != nil || n != whole || len(again.held) != len(st.held) || len(again.claims) != len(st.claims) {
			t.Fatalf("the good part replays to something else: %v", err)
		}
		// The last line as a record whose sum is right, so that the fuzzer gets past the sums.
		text, _, _ := bytes.Cut(bytes.TrimSuffix(b[bytes.LastIndexByte(bytes.TrimSuffix(b, []byte("\n")), '\n')+1:], []byte("\n")), []byte("\t"))
		if _, _, err := parseJournal(append(bytes.Clone(b[:whole]), sealed(b[:whole], string(text))...)); err != nil && strings.Contains(err.Error(), "\n") {
			t.Fatalf("more than a line: %v", err)
		}
	})
}

func TestMasks(t *testing.T) {
	for in, want := range map[string]string{"f": "f", "00000000,0000000f": "0,0000000f", "1,00000000": "1,00000000", "8": "8"} {
		l, err := ParseMask(in)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseMask(FormatMask(l))
		if err != nil || listOf(back) != listOf(l) {
			t.Errorf("%s: %v, written %s, want %s", in, l, FormatMask(l), want)
		}
	}
	for _, bad := range []string{"", "g", "-1", " ", strings.Repeat("f", 4096)} {
		if l, err := ParseMask(bad); err == nil {
			t.Errorf("%.10q: %v", bad, l)
		}
	}
}

// While another process has the journal a reader reads all the same, and a writer says once for what he waits, until he is stopped.
func TestBusyJournal(t *testing.T) {
	_, a, _ := journalOf(t)
	lock, err := os.Open(filepath.Join(a.Dir, lockFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if claims, err := a.Claims(); err != nil || len(claims) != 2 {
		t.Errorf("read while it is busy: %v (%v)", claims, err)
	}
	stop, told := make(chan struct{}), []string(nil)
	a.Stop, a.Waiting = stop, func(file string) {
		told = append(told, file)
		close(stop) // as Ctrl-C does
	}
	for name, f := range map[string]func() error{
		"apply":   func() error { _, err := a.Apply(Request{CPUs: []int{1}}); return err },
		"restore": func() error { _, err := a.Restore(nil); return err },
	} {
		if err := f(); err == nil || !strings.Contains(err.Error(), "nothing was changed") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(told) != 1 || told[0] != lock.Name() { // the second was stopped before it had anything to say
		t.Errorf("told %q", told)
	}
	// Who was not stopped goes on when the journal is free.
	a.Stop, a.Waiting = nil, func(string) {
		if err := lock.Close(); err != nil {
			t.Error(err)
		}
	}
	if list, err := a.Restore(nil); err != nil || len(list) != 2 {
		t.Errorf("when it was free: %v (%v)", list, err)
	}
}

// Where the boot cannot be told a whole journal is neither of this boot nor of another: it stays, and so does the host.
func TestBootUnknown(t *testing.T) {
	s, a, good := journalOf(t)
	id := s.path(bootID)
	if err := os.Rename(id, id+".away"); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"restore": func() error { _, err := a.Restore(nil); return err }(),
		"apply":   func() error { _, err := a.Apply(Request{CPUs: []int{1}}); return err }(),
	} {
		if err == nil || !strings.Contains(err.Error(), "boot_id cannot be read") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(a.Dir, journalFile)); err != nil || !bytes.Equal(b, good) {
		t.Errorf("the journal is not what it was (%v)", err)
	}
	if err := os.Rename(id+".away", id); err != nil {
		t.Fatal(err)
	}
	if list := mustRestore(t, a); len(list) == 0 {
		t.Error("nothing was restored")
	}
}
