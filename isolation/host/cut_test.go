package host

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// moment is what a crash would leave just after a record was on disk, or a write made.
type moment struct {
	journal int // bytes
	host    map[string]string
}

// moments runs what writes a journal and keeps every moment, and the journal as it was at its longest.
func moments(t *testing.T, s *sim, a *Applier, run func() error) (list []moment, journal []byte) {
	t.Helper()
	name := filepath.Join(a.Dir, journalFile)
	look := func() error {
		b, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		if len(b) > len(journal) {
			journal = b
		}
		list = append(list, moment{len(b), snapshot(t, s.Root)})
		return err
	}
	if err := look(); err != nil {
		t.Fatal(err)
	}
	a.point = func(string) error { return look() }
	if err := run(); err != nil {
		t.Fatal(err)
	}
	a.point = nil
	return list, journal
}

// lay makes the tree and the journal what they were; now is the tree as it is, of which most need not be written.
func lay(t *testing.T, root string, now, host map[string]string, dir string, journal []byte) {
	t.Helper()
	var err error
	for name := range now {
		if _, there := host[name]; !there {
			err = errors.Join(err, os.Remove(filepath.Join(root, name)))
		}
	}
	for name, text := range host {
		if was, there := now[name]; there && was == text {
			continue
		}
		p := filepath.Join(root, name)
		err = errors.Join(err, os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644))
	}
	if err = errors.Join(err, os.WriteFile(filepath.Join(dir, journalFile), journal, 0o644)); err != nil {
		t.Fatal(err)
	}
}

func journalBytes(t *testing.T, a *Applier) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(a.Dir, journalFile))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A journal that was cut anywhere within a record, with the host as it was when that record was being written: restore puts
// everything back, of apply and of restore.
func TestJournalCutAnywhere(t *testing.T) {
	for what, first := range map[string]bool{"apply": false, "restore": true} {
		s := unpack(t, "four.txtar", beside())
		before := snapshot(t, s.Root)
		a := &Applier{System: s, Dir: memory(t)}
		mustApply(t, a, Request{CPUs: []int{2}})
		beside := snapshot(t, s.Root)
		do := func() error { _, err := a.Apply(Request{CPUs: []int{3}, Level: Max, Cache: true}); return err }
		if first {
			if err := do(); err != nil {
				t.Fatal(err)
			}
			do = func() error { _, err := a.Restore([]int{3}); return err }
		}
		list, journal := moments(t, s, a, do)
		cuts, now := 0, snapshot(t, s.Root)
		for i := 1; i < len(list) && !t.Failed(); i++ {
			was, is := list[i-1], list[i]
			if is.journal <= was.journal || testing.Short() && i%4 != 0 {
				continue // a write, or the journal was removed
			}
			cut := was.journal + 1 + (7*i)%(is.journal-was.journal-1)
			cuts++
			lay(t, s.Root, now, was.host, a.Dir, journal[:cut])
			mustRestore(t, a, 3)
			same(t, what+", restored beside another owner", beside, snapshot(t, s.Root))
			mustRestore(t, a)
			now = snapshot(t, s.Root)
			same(t, what+", all restored", before, now)
		}
		if want := len(list) / 3; !testing.Short() && cuts < want || cuts < want/4 {
			t.Errorf("%s: the journal was cut %d times only", what, cuts)
		}
	}
	// At every byte: what is taken is what was whole there, so the cuts above stand for all. Each cut is read from the start,
	// so of the lines behind the first eight only the ends, and every 23rd byte, which is another one in each line.
	_, _, good := journalOf(t)
	whole, lines := 0, 0
	for cut := range len(good) + 1 {
		if cut > 0 && good[cut-1] == '\n' {
			whole, lines = cut, lines+1
		}
		if end := cut < len(good) && good[cut] == '\n' || whole == cut; lines > 8 && !end && cut%23 != 0 {
			continue
		}
		if _, n, err := parseJournal(good[:cut]); err != nil || n != whole {
			t.Fatalf("cut at byte %d of %d: %d bytes are good, want %d (%v)", cut, len(good), n, whole, err)
		}
	}
}

// A last line that is whole and wrong is damage, not the torn beginning of a line: the write of which it told may have
// been made.
func TestDamagedLastLine(t *testing.T) {
	s := unpack(t, "four.txtar", none)
	a := &Applier{System: s, Dir: memory(t)}
	a.point = func(where string) error {
		if where == "write "+tunable {
			return errStopped // the last record is the set of what was just written
		}
		return nil
	}
	if _, err := a.Apply(Request{CPUs: []int{3}}); !errors.Is(err, errStopped) {
		t.Fatal(err)
	}
	a.point = nil
	name := filepath.Join(a.Dir, journalFile)
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, s.Root)
	last := bytes.LastIndexByte(good[:len(good)-1], '\n') + 1
	if !bytes.Contains(good[last:], []byte(`"op":"set"`)) {
		t.Fatalf("the last line is %s", good[last:])
	}
	for at := last; at < len(good); at++ {
		bad := bytes.Clone(good)
		bad[at] ^= 1
		if err := os.WriteFile(name, bad, 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := a.Restore(nil)
		if err == nil || !strings.Contains(err.Error(), "damaged") || !strings.Contains(err.Error(), "nothing was changed: put back by hand") || strings.Contains(err.Error(), "\n") {
			t.Fatalf("byte %d of the last line: %v", at-last, err)
		}
		if now, err := os.ReadFile(name); err != nil || !bytes.Equal(now, bad) {
			t.Fatalf("byte %d of the last line: the journal was touched (%v)", at-last, err)
		}
	}
	same(t, "damaged", before, snapshot(t, s.Root))
	if err := os.WriteFile(name, good, 0o644); err != nil {
		t.Fatal(err)
	}
	mustRestore(t, a)
	if got := Text(s, tunable); got != "1" {
		t.Errorf("%s is %s", tunable, got)
	}
}

// A record that was written in part is cut off at once: what comes behind it is read.
func TestTornInTheMiddle(t *testing.T) {
	s := unpack(t, "four.txtar", none)
	dir := memory(t)
	if said := limited(t, s, dir, "room", 1); said != "" {
		t.Fatal(said)
	}
	b, err := os.ReadFile(filepath.Join(dir, journalFile))
	if err != nil {
		t.Fatal(err)
	}
	st, whole, err := parseJournal(b)
	if err != nil || whole != len(b) || st.held["file:"+tunable+":"] == nil {
		t.Errorf("%d bytes of %d are good, %v held (%v)", whole, len(b), st.held, err)
	}
}

// A journal that cannot be written to its end, at any size: what was changed is undone at once, and of a second owner at the
// latest when there is room again.
func TestShortWrite(t *testing.T) {
	short := 0
	for _, two := range []bool{false, true} {
		step := 97
		if testing.Short() {
			step = 997
		}
		s := unpack(t, "four.txtar", beside())
		before := snapshot(t, s.Root)
		a := &Applier{System: s, Dir: memory(t)}
		var journal []byte
		if two {
			mustApply(t, a, Request{CPUs: []int{2}})
			journal = journalBytes(t, a)
		}
		others := snapshot(t, s.Root)
		for size := 400; ; size += step {
			at := size + len(journal)
			said := limited(t, s, a.Dir, "limited", at)
			if said == "" {
				break // it got through
			}
			short++
			if !strings.Contains(said, "host journal") || strings.Count(strings.TrimSpace(said), "\n") > 0 {
				t.Errorf("%d bytes: %q", at, said)
			}
			if !two {
				same(t, "undone at once", before, snapshot(t, s.Root))
			}
			mustRestore(t, a, 3)
			same(t, "restored beside another owner", others, snapshot(t, s.Root))
			mustRestore(t, a)
			same(t, "all restored", before, snapshot(t, s.Root))
			if two {
				lay(t, s.Root, before, others, a.Dir, journal)
			}
			if t.Failed() {
				t.Fatalf("at %d bytes, beside another: %v, it said %s", at, two, said)
			}
			step += step / 8 // the longer, the more of the same
		}
	}
	if short < 10 {
		t.Errorf("only %d of them were short", short)
	}
}
