package monitor

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/patch"
	"github.com/cloister-vmm/cloister/patch/audit"
	"github.com/cloister-vmm/cloister/patch/build"
	"golang.org/x/sys/unix"
)

// printed runs f and gives what it printed on both streams.
func printed(t *testing.T, f func() int) (status int, out, errs string) {
	t.Helper()
	o, e := os.Stdout, os.Stderr
	defer func() { os.Stdout, os.Stderr = o, e }()
	var files [2]*os.File
	for i := range files {
		var err error
		if files[i], err = os.Create(filepath.Join(t.TempDir(), "stream")); err != nil {
			t.Fatal(err)
		}
	}
	os.Stdout, os.Stderr = files[0], files[1]
	status = f()
	var text [2]string
	for i, f := range files {
		b, err := os.ReadFile(f.Name())
		if err != nil || f.Close() != nil {
			t.Fatal(err)
		}
		text[i] = string(b)
	}
	return status, text[0], text[1]
}

// Command lines that make no sense: one line, which says what would.
func TestPatchCommandLine(t *testing.T) {
	t.Setenv("CLOISTER_RUN_DIR", t.TempDir())
	t.Setenv("CLOISTER_STATE_DIR", t.TempDir())
	for _, c := range []struct{ args, words string }{
		{"", "say what to do|--list"}, {"vm", "say what to do"}, {"--list", "which VM"}, {"a b --list", "one VM"}, {"vm --nonsense", "nonsense|cloister patch -h"},
		{"vm --list --log", "--list and --log exclude"}, {"vm --revert 1 --site a=1", "--revert and --replace or --site exclude"}, {"vm --apply f --replace f=o:f", "exclude|--bundle"},
		{"vm --list --dry-run", "--dry-run needs a change"}, {"vm --log --timeout 1s", "--timeout is for a change"}, {"vm --list --now", "--now is for"}, {"vm --site a=1 --timeout 0s", "--timeout 0s"},
		{"vm --site a=1 --timeout 2h", "at most 1h"}, {"vm --site a=1 --timeout soon", "soon"}, {"vm --site a", "SITE=VALUE"}, {"vm --site =1", "SITE=VALUE"}, {"vm --site a=", "SITE=VALUE"},
		{"vm --replace f", "OBJECT"}, {"vm --replace =x.o", "OBJECT"}, {"vm --replace f=", "OBJECT"}, {"vm --revert 0", `--revert "0"|--list`}, {"vm --revert -1", `--revert "-1"|--list`},
		{"vm --revert x", `--revert "x"`}, {"vm --revert 0x1", `"0x1"`}, {"vm --revert 99999999999999999999", `"99999999999999999999"|--list`}, {"vm --revert=", "--revert is given and says nothing"}, {"vm --apply=", "--apply is given"}, {"vm --bundle out", "say what to do"}, {"vm --revert 1 --bundle out", "--bundle needs something"},
		{"vm --site a=1 --bundle out --dry-run", "--bundle changes nothing"}, {"vm --list --head 00", "--head is for"}, {"--verify-log a b", "one VM or file"},
		{"--verify-log --head 12", "--head|64 hexadecimal"}, {"--verify-log --head " + strings.Repeat("0g", 32), "64 hexadecimal"}, {"--verify-log --head " + strings.Repeat("00", 32), "name the VM"},
		{"--verify-log nobody", "nobody|no such file"}, {"--verify-log /no/such/file", "/no/such/file"}, {"--verify-log /dev/null", "/dev/null|not a regular file|path of a log"}, {"--verify-log /dev/zero", "not a regular file"}, {"--verify-log /tmp", "/tmp|not a regular file"},
		{"--verify-log /proc/self/mem", "/proc/self/mem|not a regular file|path of a log"}, {"--verify-log /proc/self/maps", "not a regular file"},
		{"--verify-log ./" + strings.Repeat("x", 300), "too long|path of a log"}, {"nobody --list", "no VM \"nobody\""},
		{"nobody --log", "no VM \"nobody\""}, {"../x --log", "no VM \"../x\""}, {"nobody --site a=1", "no VM \"nobody\""},
	} {
		status, out, errs := printed(t, func() int { return Patch(strings.Fields(c.args)) })
		if status != 125 || out != "" || strings.Count(errs, "\n") != 1 || !strings.HasPrefix(errs, "cloister: ") {
			t.Errorf("patch %s: %d, %q, %q", c.args, status, out, errs)
		}
		for _, w := range strings.Split(c.words, "|") {
			if !strings.Contains(errs, w) {
				t.Errorf("patch %s: does not say %q: %q", c.args, w, errs)
			}
		}
	}
	for _, c := range []struct {
		args  []string
		words string
	}{
		{[]string{"", "--list"}, "name is empty|cloister ps"}, {[]string{"", "--site", "a=1"}, "name is empty"}, {[]string{"", "--log"}, "name is empty"}, {[]string{"--verify-log", ""}, "no VM of that name"},
		{[]string{"--verify-log", "/a\nb"}, "/a; b: no such file|path of a log"}, {[]string{"--verify-log", "a\nb"}, `"a\nb"`}, {[]string{"a\nb", "--list"}, `no VM "a\nb"`},
		{[]string{"vm", "--replace", strings.Repeat("x", 1e5)}, "OBJECT:SYMBOL"}, {[]string{"vm", "--site", strings.Repeat("x", 1e5)}, "SITE=VALUE"},
	} {
		status, out, errs := printed(t, func() int { return Patch(c.args) })
		if status != 125 || out != "" || strings.Count(errs, "\n") != 1 || !strings.HasPrefix(errs, "cloister: ") || len(errs) > 300 {
			t.Errorf("patch %.80q: %d, %q, %.1000q", c.args, status, out, errs)
		}
		for _, w := range strings.Split(c.words, "|") {
			if !strings.Contains(errs, w) {
				t.Errorf("patch %.80q: does not say %q: %.1000q", c.args, w, errs)
			}
		}
	}
	if status, out, errs := printed(t, func() int { return Patch([]string{"-h"}) }); status != 0 || errs != "" || !strings.Contains(out, "--verify-log") || !strings.Contains(out, "Exit status") {
		t.Errorf("%d %q %q", status, out, errs)
	}
}

// The log of a VM that has ended, by its name and by its path; whole, torn, changed and cut.
func TestVerifyLogCommand(t *testing.T) {
	state := filepath.Join(t.TempDir(), "a[b]*") // no pattern
	t.Setenv("CLOISTER_RUN_DIR", t.TempDir())
	t.Setenv("CLOISTER_STATE_DIR", state)
	run := func(args ...string) (int, string, string) { return printed(t, func() int { return Patch(args) }) }
	if status, out, errs := run("--verify-log"); status != 0 || errs != "" || !strings.Contains(out, "there is no patch log") {
		t.Errorf("%d %q %q", status, out, errs)
	}
	if err := os.MkdirAll(filepath.Join(state, "patch"), 0o700); err != nil {
		t.Fatal(err)
	}
	var heads []string
	log := filepath.Join(state, "patch", "loop.jsonl")
	for n := uint64(1); n <= 3; n++ {
		r := committed(n, patch.Plan{})
		r.VM, r.Name, r.Started, r.Time = "loop", "replace \x1b[2J", "2026-11-22T13:00:00Z", "2026-11-22T13:00:05.123456789Z"
		if n == 2 {
			r.Outcome, r.Reason = patch.Aborted, "vCPU 0 did not stop"
		}
		_, h, err := audit.Append(log, &r)
		if err != nil {
			t.Fatal(err)
		}
		heads = append(heads, h.String())
	}
	for _, args := range [][]string{{"--verify-log"}, {"--verify-log", "loop"}, {"--verify-log", log}, {"--verify-log", "loop", "--head", heads[0]}, {"--head", strings.ToUpper(heads[2]), "--verify-log", log}} {
		status, out, errs := run(args...)
		if status != 0 || errs != "" || !strings.Contains(out, "3 lines, the chain is whole, head "+heads[2]) || strings.Contains(out, "it has the hash") != (len(args) > 3) {
			t.Errorf("%q: %d %q %q", args, status, out, errs)
		}
	}
	status, out, errs := run("loop", "--log")
	if status != 0 || errs != "" || strings.Count(out, "\n") != 7 || !strings.Contains(out, "aborted") || !strings.Contains(out, "replace  [2J: vCPU 0 did not stop") ||
		!strings.Contains(out, "2026-11-22 13:00:05.123") || !strings.Contains(out, "90.0 us") || !strings.Contains(out, "the chain is whole: 3 lines, head "+heads[2]) {
		t.Errorf("%d %s %q", status, out, errs)
	}
	if status, out, _ := run("loop", "--log", "--json"); status != 0 || out != readFile(t, log) {
		t.Errorf("%d %s", status, out)
	}
	whole := readFile(t, log)
	lines := strings.SplitAfter(whole, "\n")
	for _, c := range []struct {
		name, text, words string
		args              []string
	}{
		{"changed", strings.Replace(whole, "did not stop", "did not Stop", 1), "line 2: changed", nil},
		{"removed", lines[0] + lines[2], "line 2: removed", nil},
		{"cut", lines[0] + lines[1], "line 3: cut", []string{"--head", heads[2]}},
		{"torn", lines[0] + "\x00\x00", "line 2: torn", nil},
		{"changed", lines[0] + lines[1][:99] + "\x00\x00" + lines[1][101:] + lines[2], "line 2: changed", nil},
		{"changed", lines[0] + lines[1][:99] + "\n" + lines[2], "line 2: changed", nil},
		{"torn", whole[:len(whole)-9], "line 3: torn", nil},
	} {
		if err := os.WriteFile(log, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		status, out, errs := run(append([]string{"--verify-log", "loop"}, c.args...)...)
		if status != 1 || out != "" || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, c.words) || !strings.Contains(errs, log) {
			t.Errorf("%s: %d %q %q", c.name, status, out, errs)
		}
		status, out, _ = run(append([]string{"--verify-log", "--json", "loop"}, c.args...)...)
		var v []verdict
		if err := json.Unmarshal([]byte(out), &v); err != nil || status != 1 || len(v) != 1 || v[0].OK || v[0].Kind != c.name || v[0].Line == 0 {
			t.Errorf("%s: %d %s, %v", c.name, status, out, err)
		}
		if status, out, errs := run("loop", "--log"); c.args == nil && (status != 1 || !strings.Contains(out, "PATCH") || !strings.Contains(errs, c.words)) {
			t.Errorf("%s: %d %q %q", c.name, status, out, errs)
		}
	}
	r := committed(4, patch.Plan{})
	if _, _, err := audit.Append(log, &r); err != nil { // behind the torn line
		t.Fatal(err)
	}
	if status, out, errs := run("--verify-log", "loop"); status != 0 || errs != "" || !strings.Contains(out, "chained in: line 3") {
		t.Errorf("%d %q %q", status, out, errs)
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestPatchView(t *testing.T) {
	v := patchView{Record: committed(3, patch.Plan{Sites: []patch.Site{{Name: "f"}, {Name: "g"}}}), Head: strings.Repeat("8c", 32), Notes: []string{"a note"}}
	v.Record.Name, v.Record.SpareText, v.Record.VCPUs[0].RIP, v.Record.VCPUs[0].Thread = "replace f", 212, 0x401000, "ma\x1bin"
	text := func() string {
		t.Helper()
		var b bytes.Buffer
		if err := v.write(&b); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	// A cycle is half a nanosecond: stop 20000, stores 2000, sync 58000, release 100000, pause 180000 cycles.
	want := `patch 3 committed: replace f
  note: a note
  2 sites, 212 bytes of new code, 1 stop

  vCPU  core  at                      stop     stores  sync     release  pause    break
  0     1     guest 0x401000 (ma in)  10.0 us  1.0 us  29.0 us  50.0 us  90.0 us  yes
  3     -     ended                   -        -       -        -        -        no

  log head ` + v.Head + "\n"
	if got := text(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	v = patchView{Record: patch.Record{Outcome: patch.Refused, Name: "f", Reason: "a\nreason"}}
	if got := text(); got != "dry run: refused, nothing was changed: f\n  why: a reason\n" {
		t.Errorf("%s", got)
	}
	// The clock of a record is not trusted to go forward, nor to be known.
	odd := committed(1, patch.Plan{})
	odd.Released = 1
	if n := timesOf(&odd, &odd.VCPUs[0]); n.pause != nil || n.release != nil || n.stop == nil {
		t.Errorf("%+v", n)
	}
	if odd.TSCHz = 0; timesOf(&odd, &odd.VCPUs[0]).stop != nil {
		t.Error("a time without a clock")
	}
}

func TestPatchListView(t *testing.T) {
	v := listView{State: patch.State{Program: "/opt/loop", BuildID: "12ab", Applied: []patch.Applied{{Number: 2, Name: "set a=1", Sites: make([]patch.Site, 2), Since: 1}}},
		Can: &build.Listing{Functions: []build.Function{{Name: "filter", File: "f.c", Addr: 0x401000, Patch: 1, Body: 0x300000}, {Name: "g", Addr: 0x402000, Body: 0x402000}},
			Sites: []build.Site{{Name: "a", Kind: patch.Imm, Addrs: []uint64{1, 2}, Value: "1", Patch: 2}, {Name: "b", Kind: patch.Branch, Addrs: []uint64{3}, Error: "no"}}, SafePoints: true, SpareText: 7}}
	var b bytes.Buffer
	if err := v.write(&b, "loop"); err != nil {
		t.Fatal(err)
	}
	want := `VM loop: /opt/loop, build id 12ab
it declares safe points: several places can change together; 7 bytes are left for new code, 0 for new data

FUNCTION  FILE  ADDRESS   BODY
filter    f.c   0x401000  patch 1, at 0x300000
g         -     0x402000  its own

SITE  KIND    VALUE              PLACES  SET BY
a     imm     1                  2       patch 2
b     branch  cannot be set: no  1       the program

PATCH  SITES  WHAT
2      2      set a=1 (and of those from patch 1 on what lay under it, which a revert takes back as well)
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	v = listView{Can: &build.Listing{Stripped: true}}
	b.Reset()
	if err := v.write(&b, "loop"); err != nil {
		t.Fatal(err)
	}
	for _, w := range []string{"no build id", "stripped", "no function can be replaced", "no site is declared", "no patch stands", "one place at a time"} {
		if !strings.Contains(b.String(), w) {
			t.Errorf("does not say %q:\n%s", w, b.String())
		}
	}
}

// What the builder reads the running text through.
func TestPatchClientReadsText(t *testing.T) {
	v := newPatchVM(t, true, nil)
	if _, err := unix.Pwrite(v.guest, []byte("text"), 0x1ffc); err != nil {
		t.Fatal(err)
	}
	p := &patchClient{vm: running{name: "loop"}, http: v.http}
	b := make([]byte, 8)
	if n, err := p.ReadAt(b, 0x1ff8); n != 8 || err != nil || string(b[4:]) != "text" {
		t.Errorf("%d %q %v", n, b, err)
	}
	if _, err := p.ReadAt(b, 0x1ffc); err == nil || !strings.Contains(err.Error(), "VM loop: 8 bytes at 0x1ffc are not") {
		t.Error(err)
	}
}
