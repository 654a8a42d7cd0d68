package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	patching "github.com/cloister-vmm/cloister/patch"
	"golang.org/x/sys/unix"
)

// patched is a VM that is patched as a user does it.
type patched struct {
	*box
	vm    *background
	name  string
	state string // the state directory
}

func newPatched(t *testing.T, args ...string) *patched {
	t.Helper()
	p := &patched{box: newBox(t), name: "patched", state: filepath.Join(t.TempDir(), "state")}
	p.env = append(p.env, "CLOISTER_STATE_DIR="+p.state)
	p.vm = p.started(append([]string{"run", "--name", p.name}, args...)...)
	p.vm.running()
	return p
}

// answer is what `cloister patch --json` prints of a change.
type answer struct {
	Record patching.Record `json:"record"`
	Head   string          `json:"log_head"`
	Notes  []string        `json:"notes"`
}

// patch makes a change. On a machine that is busy a vCPU may not stop in time, or a thread not come to its safe point: that changes
// nothing, and is tried again.
func (p *patched) patch(status int, args ...string) answer {
	p.t.Helper()
	for end := time.Now().Add(limit / 2); ; {
		r := p.cloister(append([]string{"patch", p.name, "--json", "--timeout", "20s"}, args...)...)
		var a answer
		if err := json.Unmarshal([]byte(r.out), &a); err != nil {
			p.t.Fatalf("%q: %v: %+v", args, err, r)
		}
		if a.Record.Outcome == patching.Aborted && time.Now().Before(end) {
			if r.status != 1 || !strings.Contains(a.Record.Reason, "stop") {
				p.t.Errorf("%q: %+v", args, r)
			}
			continue
		}
		if r.status != status || r.err != "" {
			p.t.Fatalf("%q: status %d, want %d: %s%s", args, r.status, status, r.out, r.err)
		}
		return a
	}
}

// newFilter is an object with a new body for the filter of control loops.
func newFilter(t *testing.T) string {
	t.Helper()
	return compile(t, "gcc", "new_filter.o", "../../../../guest/sdk/c/example/new_filter.c", "-c", "-O2")
}

// controlLoop is the C example.
func controlLoop(t *testing.T) string {
	t.Helper()
	return compile(t, "gcc", "control_loop", "../../../../guest/sdk/c/example/control_loop.c", "-O2", "-static", "-Wl,--build-id")
}

// A sealed loop is patched in every way there is, taken back, and looked at: what the user is told, the program's output, the report, the metrics
// and the log say the same.
func TestPatch(t *testing.T) {
	report := filepath.Join(t.TempDir(), "report.json")
	p := newPatched(t, "--report", report, "--metrics", "0", "@control-loop", "--count", "0")
	list := p.cloister("patch", p.name, "--list")
	for _, w := range []string{"filter ", "its own", "rate.limit ", "0x3e8", "output.off ", "off ", "no patch stands", "declares safe points", "262144 bytes"} {
		if list.status != 0 || !strings.Contains(list.out, w) {
			t.Errorf("--list does not say %q: %+v", w, list)
		}
	}
	object := newFilter(t)
	if a := p.patch(0, "--replace", "filter="+object+":filter", "--dry-run"); a.Record.Outcome != patching.Checked || a.Record.Number != 0 || a.Head != "" || a.Record.TextBefore != a.Record.TextAfter {
		t.Errorf("%+v", a)
	}
	first := p.patch(0, "--replace", "filter="+object)
	r := first.Record
	if r.Outcome != patching.Committed || r.Number == 0 || len(r.Sites) != 1 || r.Sites[0].Kind != patching.Redirect || r.SpareText == 0 || r.TextBefore == r.TextAfter || len(r.TextAfter) != 64 ||
		r.Actor[:4] != "uid " || r.VM != p.name || len(r.VCPUs) != 1 || r.VCPUs[0].SyncTSC < r.LastStore || r.Released < r.VCPUs[0].SyncTSC {
		t.Errorf("%+v", r)
	}
	if r.VCPUs[0].Where != patching.WhereSafePoint {
		t.Errorf("it did not wait for a safe point: %+v", r.VCPUs)
	}
	set := p.patch(0, "--site", "rate.limit=0x2a", "--site", "output.off=on").Record
	if len(set.Sites) != 2 || set.TextBefore != r.TextAfter {
		t.Errorf("%+v", set)
	}
	if l := p.cloister("patch", p.name, "--list"); !strings.Contains(l.out, fmt.Sprintf("patch %d, at 0x", r.Number)) || !strings.Contains(l.out, "0x2a") || !strings.Contains(l.out, fmt.Sprintf("patch %d\n", set.Number)) {
		t.Errorf("%+v", l)
	}
	back := p.patch(0, "--revert", fmt.Sprint(set.Number)).Record
	if back.Reverts != set.Number || back.TextAfter != r.TextAfter {
		t.Errorf("%+v", back)
	}
	back = p.patch(0, "--revert", fmt.Sprint(r.Number)).Record
	if back.TextAfter != r.TextBefore {
		t.Errorf("%+v", back)
	}

	// Without a safe point one place at a time.
	now := p.patch(0, "--site", "rate.limit=8", "--now").Record
	if now.Outcome != patching.Committed {
		t.Errorf("%+v", now)
	}
	p.patch(0, "--revert", fmt.Sprint(now.Number), "--now")
	p.oneLine("--now", p.quietly("patch", p.name, "--now", "--site", "rate.limit=8", "--site", "output.off=on"), 125, []string{"2 places", "--now"})

	// The same as a bundle, which can be looked at first.
	bundle := filepath.Join(p.work, "both.cpatch")
	if b := p.cloister("patch", p.name, "--replace", "filter="+object, "--site", "rate.limit=7", "--bundle", bundle); b.status != 0 || !strings.Contains(b.out, "nothing was patched") {
		t.Errorf("%+v", b)
	}
	if a := p.patch(0, "--apply", bundle, "--dry-run"); a.Record.Outcome != patching.Checked {
		t.Errorf("%+v", a)
	}
	last := p.patch(0, "--apply", bundle)
	if len(last.Record.Sites) != 2 || len(last.Head) != 64 || len(last.Record.Digest) != 64 {
		t.Errorf("%+v", last)
	}

	// What a person sees.
	text := p.cloister("patch", p.name, "--revert", fmt.Sprint(last.Record.Number), "--timeout", "20s")
	if !regexp.MustCompile(`(?s)^patch \d+ (committed: revert|aborted, nothing was changed: revert).*\n  log head [0-9a-f]{64}\n$`).MatchString(text.out) || text.err != "" ||
		strings.Contains(text.out, "committed") && !strings.Contains(text.out, " us ") {
		t.Errorf("%+v", text)
	}
	head := text.out[strings.LastIndex(text.out, " ")+1:][:64]
	log := p.cloister("patch", p.name, "--log")
	if log.status != 0 || !strings.Contains(log.out, "the chain is whole") || !strings.Contains(log.out, head) || strings.Count(log.out, "committed") < 5 {
		t.Errorf("%+v", log)
	}
	metrics := scraped(t, p.vm.err.String())
	for _, w := range []string{`cloister_patches_total{outcome="committed",vm="patched"} `, `cloister_patches_total{outcome="dead",vm="patched"} 0`, "cloister_patch_number{", `cloister_patch_pause_seconds_count{vcpu="0",vm="patched"} `} {
		if !strings.Contains(metrics, w) {
			t.Errorf("the metrics have no %s", w)
		}
	}
	file := filepath.Join(p.state, "patch", p.name+".jsonl")
	if st, err := os.Stat(file); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}

	p.cloister("stop", p.name)
	end := p.vm.wait()
	var rep breaks.Report
	if b, err := os.ReadFile(report); err != nil || json.Unmarshal(b, &rep) != nil {
		t.Fatal(err)
	}
	committed := 0
	for _, x := range rep.Patches {
		if x.Outcome == patching.Committed {
			committed++
			if len(x.VCPUs) != 1 || x.VCPUs[0].PauseNS == nil {
				t.Errorf("%+v", x)
			}
		}
	}
	if committed < 5 || rep.PatchLog == nil || rep.PatchLog.Head != head || rep.PatchLog.File != file || !strings.Contains(end.err, "head "+head) || !strings.Contains(end.err, "cloister: patch 1 ") {
		t.Errorf("%d, %+v\n%s", committed, rep.PatchLog, end.err)
	}
	// The log outlives the VM.
	for _, args := range [][]string{{"--verify-log", p.name, "--head", rep.PatchLog.Head}, {"--verify-log", file}, {"--verify-log"}} {
		if v := p.cloister(append([]string{"patch"}, args...)...); v.status != 0 || v.err != "" || !strings.Contains(v.out, "the chain is whole, head "+head) {
			t.Errorf("%q: %+v", args, v)
		}
	}
	if l := p.cloister("patch", p.name, "--log"); l.status != 0 || l.out != log.out {
		t.Errorf("%+v", l)
	}
	whole := string(must(os.ReadFile(file))(t))
	if err := os.WriteFile(file, []byte(strings.Replace(whole, `"uid 0`, `"uid 9`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if v := p.cloister("patch", "--verify-log", p.name); !strings.HasPrefix(r.Actor, "uid 0") || v.status != 1 || !strings.Contains(v.err, "line 1: changed") {
		t.Errorf("%+v", v)
	}
}

func scraped(t *testing.T, stderr string) string {
	t.Helper()
	m := regexp.MustCompile(`metrics at (http://\S+)`).FindStringSubmatch(stderr)
	if m == nil {
		t.Fatalf("no metrics: %s", stderr)
	}
	r, err := http.Get(m[1])
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	return string(must(io.ReadAll(r.Body))(t))
}

// The program's own words: its output changes between two periods, none of which had two versions, and changes back.
func TestPatchChangesTheProgram(t *testing.T) {
	p := newPatched(t, "--", controlLoop(t), "1000", "10000")
	n := p.patch(0, "--replace", "filter="+newFilter(t)).Record.Number
	time.Sleep(100 * time.Millisecond)
	p.patch(0, "--revert", fmt.Sprint(n))
	r := p.vm.wait()
	if !regexp.MustCompile(`(?s)^period 0: output 100 \(version 1\)\nperiod \d+: output 200 \(version 2\)\nperiod \d+: output 100 \(version 1\)\n.*, 0 mixed\n$`).MatchString(r.out) || r.status != 0 {
		t.Errorf("%+v", r)
	}
}

// On huge pages, where a page of guest memory is larger than the text: the new function is the one that runs, the program can write to neither its old code nor its new
// code, and the engine has guest memory executable nowhere.
func TestPatchHugePages(t *testing.T) {
	const pages = 32 // --memory 64M, nothing of it twice
	testenv.Need(t, testenv.Root, testenv.HugePages(pages))
	release, err := testenv.ReserveHuge(pages)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := release(); err != nil {
			t.Error(err)
		}
	})
	program := compile(t, "gcc", "hugepatch", "hugepatch.c", "-O2", "-static", "-Wl,--build-id")
	p := newPatched(t, "--hugepages", "--memory", "64M", "--patchable", "--", program)
	n := p.patch(0, "--replace", "filter="+newFilter(t)).Record.Number
	aliases := 0
	for _, line := range strings.Split(string(must(os.ReadFile(fmt.Sprintf("/proc/%d/maps", p.vm.cmd.Process.Pid)))(t)), "\n") {
		f := strings.Fields(line)
		if len(f) < 6 || !strings.HasPrefix(f[5], "/memfd:cloister-guest") {
			continue
		}
		if aliases++; strings.Contains(f[1], "x") {
			t.Errorf("executable: %s", line)
		}
	}
	if aliases < 2 {
		t.Errorf("guest memory is mapped %d times, and not once for the guest and once for the patch", aliases)
	}
	p.vm.says("version 2")
	p.patch(0, "--revert", fmt.Sprint(n))
	want := `version 1: 100, code own, old code kept, new code kept, data written
version 2: 200, code elsewhere, old code kept, new code kept, data written
version 1: 100, code own, old code kept, new code kept, data written
`
	if r := p.vm.wait(); r.out != want || r.status != 0 {
		t.Errorf("%+v", r)
	}
}

// The engine is killed while a patch waits for its safe point: who asked is told, and the log says what happened, that nothing was changed among it.
func TestPatchEngineKilled(t *testing.T) {
	p := newPatched(t, "--", controlLoop(t), "1000", "60000000") // a safe point a minute
	results := make(chan result, 2)
	for range 2 {
		go func() {
			results <- p.do(process{argv: []string{p.bin, "patch", p.name, "--site", "rate.limit=1", "--timeout", "1m"}})
		}()
	}
	// Two cannot be made at once: when one was turned away, the other is under way.
	p.oneLine("the other", <-results, 125, []string{"another patch is being made"})
	time.Sleep(time.Second) // it hashes the text first
	if err := unix.Kill(p.vm.cmd.Process.Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r := <-results
	if r.status != 125 || r.err != "" || !strings.Contains(r.out, "patch 1 the VM was ended") || !strings.Contains(r.out, "engine process ended") {
		t.Errorf("%+v", r)
	}
	p.vm.wait()
	log := p.cloister("patch", p.name, "--log")
	var line struct{ Record patching.Record }
	if err := json.Unmarshal(must(os.ReadFile(filepath.Join(p.state, "patch", p.name+".jsonl")))(t), &line); err != nil {
		t.Fatal(err)
	}
	if x := line.Record; log.status != 0 || !strings.Contains(log.out, "dead") || x.Outcome != patching.Dead || x.TextBefore != x.TextAfter || len(x.Sites) != 2 || x.VM != p.name {
		t.Errorf("%+v\n%+v", x, log)
	}
}

// The file that the VM was started from may be another one by now, which is refused; the user can say where it is.
func TestPatchProgramMoved(t *testing.T) {
	b := newBox(t)
	p := &patched{box: b, name: "patched"}
	p.env = append(p.env, "CLOISTER_STATE_DIR="+t.TempDir())
	program := p.copyIn(controlLoop(t))
	log := filepath.Join(p.work, "patches.jsonl")
	p.vm = p.started("run", "--name", p.name, "--patch-log", "patches.jsonl", "--", program, "100000")
	p.vm.running()
	if err := os.Rename(program, program+".old"); err != nil {
		t.Fatal(err)
	}
	p.oneLine("moved", p.quietly("patch", p.name, "--list"), 125, []string{program, "--program"})
	other := compile(t, "gcc", "control_loop-kept", "../../../../guest/sdk/c/example/control_loop.c", "-DKEPT=63", "-Wno-error", "-static", "-Wl,--build-id")
	if err := os.WriteFile(program, must(os.ReadFile(other))(t), 0o755); err != nil {
		t.Fatal(err)
	}
	p.oneLine("built anew", p.quietly("patch", p.name, "--site", "rate.limit=1"), 125, []string{"build id", "give the file"})
	p.patch(0, "--site", "rate.limit=1", "--program", program+".old")
	if got := string(must(os.ReadFile(log))(t)); !strings.Contains(got, `"outcome":"committed"`) {
		t.Errorf("--patch-log: %s", got)
	}
	p.cloister("stop", p.name)
	if r := p.vm.wait(); !strings.Contains(r.err, "log "+log+", head ") {
		t.Errorf("%+v", r)
	}
}

// quietly runs a command whose VM is still there: what is left behind is not looked at.
func (p *patched) quietly(args ...string) result {
	p.t.Helper()
	return p.cloister(args...)
}

// oneLine is box.oneLine while the VM runs.
func (p *patched) oneLine(what string, r result, status int, words []string) {
	p.t.Helper()
	if r.status != status || r.out != "" || strings.Count(r.err, "\n") != 1 || !strings.HasPrefix(r.err, "cloister: ") || len(r.err) > 1200 {
		p.t.Errorf("%.300s: want status %d and one line on stderr: %+v", what, status, r)
	}
	for _, w := range words {
		if !strings.Contains(r.err, w) {
			p.t.Errorf("%.300s: does not say %q: %.500q", what, w, r.err)
		}
	}
}

// Whatever is wrong is refused whole, in one line that says what to do, and nothing is logged: it was no attempt.
func TestPatchBadInput(t *testing.T) {
	testenv.Need(t, testenv.Tool("gcc"))
	p := newPatched(t, "@control-loop", "--count", "0")
	object := newFilter(t)
	good := string(must(os.ReadFile(object))(t))
	undefined := p.file("undefined.c", "long nowhere(long); long filter(long x) { return nowhere(x) + 1; }")
	if b, err := exec.Command("gcc", "-c", "-O2", "-o", p.work+"/undefined.o", undefined).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	for name, content := range map[string]string{
		"empty.o": "", "garbage.o": strings.Repeat("garbage ", 99), "cut.o": good[:200], "other.o": good[:18] + "\xb7" + good[19:], // EM_AARCH64
		"b.cpatch": `{"schema":"cloister-bundle/1","build_id":"00112233","set":[{"site":"rate.limit","value":"1"}]}`, "new.cpatch": `{"schema":"cloister-bundle/9"}`, "x.cpatch": "x",
	} {
		p.file(name, content)
	}
	if err := unix.Mkfifo(p.work+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, words string }{
		{"nobody --list", `no VM "nobody"|running: patched`},
		{"patched --replace nothing=" + object, "nothing"}, {"patched --replace main=" + object, "main"}, {"patched --replace filter=" + object + ":other", "other"},
		{"patched --replace filter=./no.o", "no.o|no such file"}, {"patched --replace filter=.", "filter|regular file"}, {"patched --replace filter=fifo", "regular file"},
		{"patched --replace filter=/dev/zero:filter", "filter|/dev/zero|regular file|gcc -c"}, {"patched --replace filter=/dev/tty:x", "/dev/tty|regular file|gcc -c"}, {"patched --replace filter=/proc/self/mem", "filter|0 bytes"},
		{"patched --replace filter=/tmp:filter", "/tmp|regular file"}, {"patched --replace filter=empty.o", "filter|0 bytes"}, {"patched --replace filter=garbage.o", "garbage.o"},
		{"patched --replace filter=cut.o", "cut.o"}, {"patched --replace filter=other.o", "other.o"}, {"patched --replace filter=undefined.o", "nowhere"},
		{"patched --replace filter=" + object + " --replace filter=" + object, "twice"},
		{"patched --site nothing=1", "nothing"}, {"patched --site rate.limit=lots", "lots"}, {"patched --site rate.limit=0x100000000", "0x100000000"}, {"patched --site output.off=7", "output.off|on"},
		{"patched --site output.off=yes=no", "output.off|yes=no|on or off"}, {"patched --site rate.limit=0x1ffffffffffffffff", "rate.limit|4 bytes"}, {"patched --site rate.limit=++5", "rate.limit|++5|0x2a"}, {"patched --site rate.limit=1_0", "1_0"},
		{"patched --site rate.limit=" + strings.Repeat("9", 1e5), "rate.limit|0x2a"}, {"patched --site " + strings.Repeat("x", 300) + "=1", "--list"},
		{"patched --site output.off=off", "nothing would change"}, {"patched --apply no.cpatch", "no.cpatch|no such file"}, {"patched --apply b.cpatch", "00112233"}, {"patched --apply new.cpatch", "cloister-bundle/9"},
		{"patched --apply x.cpatch", "x.cpatch"}, {"patched --apply fifo", "regular file|--bundle"}, {"patched --apply /dev/null", "--apply|/dev/null|regular file|--bundle"}, {"patched --apply /proc/self/mem", "--apply /proc/self/mem|--bundle"},
		{"patched --apply /tmp", "/tmp|regular file|--bundle"}, {"patched --revert 7", "no patch 7|--list"},
		{"patched --site rate.limit=1 --bundle /no/such/dir/b", "--bundle"}, {"patched --program /etc/passwd --list", "ELF"}, {"patched --program /dev/null --list", "regular file"},
	} {
		p.oneLine(c.args, p.quietly(append([]string{"patch"}, strings.Fields(c.args)...)...), 125, strings.Split(c.words, "|"))
	}
	// With no name it is nobody's, even where one VM runs.
	for _, act := range [][]string{{"--list"}, {"--log"}, {"--site", "rate.limit=1"}, {"--revert", "1"}} {
		p.oneLine("no name", p.quietly(append([]string{"patch", ""}, act...)...), 125, []string{"name is empty", "cloister ps"})
	}
	for _, args := range []string{"stop", "stats", "ring"} {
		p.oneLine(args+" without a name", p.quietly(args, ""), 125, []string{"which VM?", p.name})
	}
	p.oneLine("a line's end", p.quietly("patch", p.name, "--apply", "a\nb"), 125, []string{"a; b: no such file", "--bundle"})
	if l := p.cloister("patch", p.name, "--log"); l.status != 0 || l.out != "no patch is logged\n" {
		t.Errorf("%+v", l)
	}
	// A program without a word on patches; then one without a monitor.
	other := p.started("run", "--quiet", "--name", "plain", "@spin")
	other.running()
	for _, args := range []string{"plain --list", "plain --site rate.limit=1", "plain --revert 1"} {
		p.oneLine(args, p.quietly(append([]string{"patch"}, strings.Fields(args)...)...), 125, []string{"VM plain", "cannot be patched", "--patchable"})
	}
	p.cloister("stop", "plain")
	other.wait()
	for _, line := range p.processes() {
		var pid int
		if _, err := fmt.Sscan(line, &pid); err == nil && strings.Contains(line, "cloister-monitor") {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Error(err)
			}
		}
	}
	for range 100 {
		if r := p.quietly("patch", p.name, "--list"); strings.Contains(r.err, "no monitor") {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	p.oneLine("no monitor", p.quietly("patch", p.name, "--list"), 125, []string{"VM patched", "no monitor"})
	p.oneLine("no monitor", p.quietly("patch", p.name, "--site", "rate.limit=1"), 125, []string{"VM patched", "no monitor"})
	p.cloister("stop", p.name)
	p.vm.wait()
}

// A native run and --patchable: it is said that it means nothing there.
func TestPatchBare(t *testing.T) {
	b := newBareBox(t)
	p := b.started("run", "--bare", "--name", "bare", "--patchable", "@spin")
	p.running()
	r := b.cloister("patch", "bare", "--list")
	if r.status != 125 || !strings.Contains(r.err, "natively") || strings.Count(r.err, "\n") != 1 {
		t.Errorf("%+v", r)
	}
	b.cloister("stop", "bare")
	if end := p.wait(); !strings.Contains(end.err, "--patchable") {
		t.Errorf("%+v", end)
	}
}

// A log that cannot be written, or is none, is refused before there is a guest; nothing of it is changed.
func TestPatchLogRefused(t *testing.T) {
	b := newBareBox(t)
	for _, name := range []string{"/no/such/dir/log", b.work, "/dev/null"} {
		b.refused(125, []string{"--patch-log", name}, "run", "--patch-log", name, "@exits")
	}
	for _, arg := range []string{"--patchable=0", "--patchable=65M", "--patchable=lots"} {
		b.refused(125, []string{arg, "4K", "64M"}, "run", arg, "@exits")
	}
	keep := b.file("keep", "content")
	b.refused(125, nil, "run", "--patch-log", keep, "--report", "/no/such/dir/f", "@exits")
	if got := must(os.ReadFile(keep))(t); !bytes.Equal(got, []byte("content")) {
		t.Errorf("%q", got)
	}
}

// Whoever is not the VM's user cannot reach its socket, and a patch that was refused there is no patch.
func TestPatchOfAnother(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.Package("util-linux")) // busybox has another setpriv
	p := newPatched(t, "@control-loop", "--count", "0")
	for _, dir := range []string{shared, p.runs, filepath.Dir(p.runs), filepath.Dir(filepath.Dir(p.runs)), p.work} {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	r := p.do(process{argv: []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", p.bin, "patch", p.name, "--site", "rate.limit=1"}})
	p.oneLine("another user", r, 125, []string{"permission denied"})
	p.cloister("stop", p.name)
	p.vm.wait()
}
