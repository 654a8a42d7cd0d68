package vcpu

import (
	"bufio"
	"fmt"
	"io/fs"
	"maps"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/model"
	"github.com/cloister-vmm/cloister/patch"
)

// replay is a world whose order of steps is a counter-example of model/patch.pml: one line, one step of the real code.
type replay struct {
	*world
	lines []string
	next  int
	late  bool   // the trail has a stop that is given up
	wrong string // where the real code and the trail part
}

// parkLabels are the trail's labels of parkStep's steps.
var parkLabels = map[string][]uint8{
	"V2": {parkPending}, "V3 read": {parkRead, parkLook}, "V3 ack": {parkTake, parkAck, parkEarly}, "V4": {parkEarly, parkGo}, "V5": {parkSync}, "V6 clear": {parkClear},
	"V6 again": {parkAgain}, "V7 drain": {parkDrain}, "V7 synced": {parkOut, parkOwed, parkSynced}, "V8": {parkRel, parkNew}, "V8 last": {parkLast},
	"E1": {atTop}, "E3 run": {atRun}, "E3 enter": {atEntry}, "clear": {atClear},
	"V3 take": {parkTake, parkCompare}, "V3 read back": {parkReadBack}, "V7 out": {parkOut}, "V7 ack": {parkOwed},
}

// eachLabels are those of steps that come once for each word or vCPU.
var eachLabels = regexp.MustCompile(`^(V3 store|V3 go|V7 rel) (\d)$`)

var eachSteps = map[string]uint8{"V3 store": parkStore, "V3 go": parkGoAll, "V7 rel": parkRelAll}

func newReplay(t *testing.T, variant string, f faults, lines []string) *replay {
	r := &replay{world: newWorld(t, 1, 1+strings.Count(variant, "-DNV=2"), f), lines: lines}
	r.spins = true
	r.trail = strings.Contains(variant, "-DLAST")
	r.one = r.trail
	r.set.between = r.between
	return r
}

func (r *replay) part(format string, a ...any) {
	if r.wrong == "" {
		r.wrong = fmt.Sprintf("step %d: ", r.next) + fmt.Sprintf(format, a...)
	}
}

// until does the others' steps up to the patcher's step label, and that the patcher does itself. It reports whether there was one.
func (r *replay) until(label string) bool {
	for ; r.next < len(r.lines) && r.wrong == "" && r.failed == ""; r.next++ {
		line := r.lines[r.next]
		who, what, _ := strings.Cut(line, " ")
		switch {
		case who != "P":
			r.do(line)
		case what == label:
			r.next++
			return true
		case strings.HasPrefix(label, "P2 ") && what == "P2 late "+label[3:]:
			r.next++
			r.late = true
			return true
		case passed(what):
		default:
			r.part("the trail has %q, the code does %q", line, label)
		}
	}
	return false
}

// passed are steps of the patcher that the code is not held up at: it has seen what it waits for, without a step that another could see, or does this together with the
// step before, or the next, and no other looks between.
func passed(what string) bool {
	switch what {
	case "P2 mine":
		return false
	case "P5 read back", "P1 offer", "out mine", "P8 mine":
		return true
	}
	return strings.HasPrefix(what, "P2 ") || strings.HasPrefix(what, "P7 ")
}

// do is one step of a vCPU's thread, or of its front end.
func (r *replay) do(line string) {
	var i, k int
	if n, _ := fmt.Sscanf(line, "F%d copy %d", &i, &k); n == 2 {
		v := r.v[i]
		v.have[k], v.stale[k] = true, r.code(k)
		return
	}
	who, label, _ := strings.Cut(line, " ")
	if n, _ := fmt.Sscanf(who, "V%d", &i); n != 1 || i >= len(r.v) {
		r.part("%q: unknown", line)
		return
	}
	v := r.v[i]
	switch label {
	case "A", "B", "kicked", "exit":
		if v.at != inGuest || label == "A" && v.mid || label == "B" && !v.mid || label == "kicked" && !v.sig {
			r.part("%q: vCPU %d is at %d, between A and B: %v, signal: %v", line, i, v.at, v.mid, v.sig)
			return
		}
		switch label {
		case "kicked":
			r.interrupted(v)
		case "exit":
			v.at = atTop
			if r.f.deferred {
				v.serialise()
			}
		default:
			r.execute(v)
		}
	default:
		if m := eachLabels.FindStringSubmatch(label); m != nil {
			if m[1] == "V3 store" && m[2] == "2" {
				return // B is not patched here
			}
			if v.at != eachSteps[m[1]] {
				r.part("%q: vCPU %d is at %d", line, i, v.at)
				return
			}
			r.step(v)
			return
		}
		at, ok := parkLabels[label]
		if !ok || !slices.Contains(at, v.at) {
			r.part("%q: vCPU %d is at %d", line, i, v.at)
			return
		}
		was := v.at
		for n := 0; n < 3 && slices.Contains(at, v.at); n++ {
			r.step(v)
		}
		if slices.Contains(at, v.at) && len(at) == 1 || v.at == was {
			r.part("%q: vCPU %d stays at %d", line, i, v.at)
		}
	}
}

func (r *replay) between(label string, t *Thread) (late bool) {
	if label == "P1 signal" && r.f.noImm {
		t.c.run.ImmediateExit = 0 // before another looks
	}
	if label == "P2" && r.f.noWait {
		t.c.ack = r.set.gen
		return false
	}
	step := fmt.Sprintf("%s %d", label, t.cfg.ID)
	if label == "P1 in" || label == "P2 mine" {
		if step = label; !r.trail || label == "P1 in" && r.f.notCounted {
			return false
		}
	}
	r.uncount(label, t)
	if r.f.giveUpBlind && r.late {
		r.world.late = true
		r.blind(label)
		if label == "P2 mine" {
			return false
		}
	}
	r.late = false
	found := r.until(step)
	switch {
	case r.wrong != "" || r.failed != "":
		r.world.between(label, t) // what the code waits for comes
		return true
	case !found:
		return r.world.between(label, t) // behind the trail: in any order, and not for ever
	case label == "P1 signal":
		r.v[t.cfg.ID].sig = true
	}
	return r.late
}

// patch.Guest, with the trail's order in place of a random one.

func (r *replay) Stop(number uint64, sites patch.Range, stores []patch.Store, limit time.Duration, meanwhile func()) (patch.Halt, error) {
	h, err := r.world.Stop(number, sites, stores, limit, meanwhile)
	if err != nil {
		return nil, err
	}
	return replayHalt{h.(fakeHalt), r}, nil
}

func (r *replay) Look(addr uint64, n int) ([]byte, error) { return r.mem[addr-0x1000:][:n], nil }

func (r *replay) Writable(addr uint64, n int) ([]byte, error) {
	if addr == siteA {
		r.until("P5 store 0")
		r.until("P5 store 1")
	}
	if addr == siteB || r.one {
		r.until("P5 store 2")
	}
	r.writing = true
	return r.mem[addr-0x1000:][:n], nil
}

func (r *replay) Await(time.Time) string { return "" }
func (r *replay) Sleep(time.Duration)    {}

type replayHalt struct {
	fakeHalt
	r *replay
}

func (h replayHalt) Near() bool {
	h.looks()
	return h.fakeHalt.Near()
}

func (h replayHalt) Places() []patch.Place {
	if !h.r.one {
		h.looks()
	}
	return h.fakeHalt.Places()
}

// looks is P3.
func (h replayHalt) looks() {
	h.r.until("P3")
	for _, v := range h.r.v {
		if v.at == atRun || v.at == atEntry || v.at == inGuest {
			h.r.fail("in-guest: vCPU %d is not stopped when Stop returns", c0(v))
		}
	}
}

// run replays the trail: patches for as long as it has some, then what comes behind them.
func (r *replay) run() {
	from, to := byte(oldCode), byte(newCode)
	p := patch.New(r, patch.State{Text: []patch.Range{{Start: 0x1000, End: 0x1040}}, SafeRIPs: true})
	patches := func() bool {
		return slices.ContainsFunc(r.lines[min(r.next, len(r.lines)):], func(s string) bool { return s[0] == 'P' && !passed(s[2:]) }) && r.wrong == "" && r.failed == ""
	}
	for patches() {
		if r.f.deferred {
			for k, at := range []int{siteA, siteA + 1, siteB} {
				if r.until(fmt.Sprintf("P5 store %d", k)) {
					r.write(at, to)
				}
			}
			continue
		}
		switch got := p.Apply(r.plan(from, to)); {
		case r.failed == "" && got.Outcome != patch.Committed && !strings.Contains(got.Reason, ErrStopTimeout.Error()):
			r.part("%s: %s", got.Outcome, got.Reason)
		case got.Outcome == patch.Committed:
			from, to = to, from
		}
		r.writing = false
	}
	for ; r.next < len(r.lines) && r.wrong == "" && r.failed == ""; r.next++ {
		if what, ok := strings.CutPrefix(r.lines[r.next], "P "); !ok || !passed(what) {
			r.do(r.lines[r.next])
		}
	}
	if r.wrong == "" && !r.f.deferred {
		r.goOn()
	}
}

func (w *world) plan(from, to byte) patch.Plan {
	p := patch.Plan{SafePoint: !w.one, Wait: time.Minute, StopLimit: time.Hour, Sites: []patch.Site{
		{Name: "A", Kind: patch.Raw, Addr: siteA, Old: patch.Hex{from, from}, New: patch.Hex{to, to}},
		{Name: "B", Kind: patch.Raw, Addr: siteB, Old: patch.Hex{from}, New: patch.Hex{to}},
	}}
	if w.one {
		p.Sites = p.Sites[:1]
	}
	return p
}

// readTrail gives the variant that a trail is of, what it must end in, and its steps.
func readTrail(t *testing.T, file string) (variant, want string, lines []string) {
	t.Helper()
	f, err := model.Files.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := regexp.MustCompile(`^# patch\.pml (.*): ([a-z-]+)$`)
	for s := bufio.NewScanner(f); s.Scan(); {
		if m := head.FindStringSubmatch(s.Text()); m != nil {
			variant, want = m[1], m[2]
		}
		if !strings.HasPrefix(s.Text(), "#") && s.Text() != "cycle" {
			lines = append(lines, s.Text())
		}
	}
	if variant == "" || len(lines) == 0 {
		t.Fatalf("%s: no trail", file)
	}
	return variant, want, lines
}

// replayed are the trails whose mistake the world can make around the real code, and what the mistake is found as.
var replayed = map[string]struct {
	f    faults
	want string
}{
	"deferred-tornbytes.txt":   {faults{deferred: true}, "torn"},
	"nosync-tornbytes.txt":     {faults{noSync: true}, "torn"},
	"syncbefore-tornbytes.txt": {faults{syncBefore: true}, "torn"},
	"noplace-versions.txt":     {faults{noPlace: true}, "mixed"},
	"nowait-in-guest.txt":      {faults{noWait: true}, "in-guest"},
	"noimm-starved.txt":        {faults{noImm: true, handler: true}, "lost"},
	"lateclear-starved.txt":    {faults{lateClear: true, handler: true}, "lost"},

	"last-untagged-in-guest.txt":    {faults{untagged: true}, "in-guest"},
	"last-giveupblind-in-guest.txt": {faults{giveUpBlind: true}, "in-guest"},
	"last-notcounted-starved.txt":   {faults{notCounted: true}, "lost"},
}

// modelOnly are the trails that end in a state which the real code cannot be brought to from outside, or which the world has not got.
var modelOnly = map[string]string{
	"nosync-stale.txt":                          "the same mistake as nosync-tornbytes, seen earlier",
	"resumedead-resumed.txt":                    "condemn would have to be wrong (TestConformance has resumes that are late)",
	"resumelate-stale.txt":                      "condemn would have to be wrong",
	"resumedoubt-memory.txt":                    "Patcher.die would have to be wrong",
	"noback-memory.txt":                         "Patcher.write would have to be wrong (TestConformance has stores that read back wrong)",
	"writelate-memory.txt":                      "Patcher.once would have to be wrong",
	"entry-random-versions.txt":                 "a plan without safe points (TestVersions on hardware)",
	"entry-random-norip-tornbytes.txt":          "the world's A is one instruction (patch's own tests have RIPs inside)",
	"word-quiet-nolook-versions.txt":            "the world has no words: vmm has",
	"word-skiphere-tornbytes.txt":               "the world has no words",
	"word-noscatter-deadlock.txt":               "the world has no words",
	"last-outblind-resumed.txt":                 "claimOut would have to be wrong (TestConformanceCanFail has it so)",
	"last-lookonce-deadlock.txt":                "giveUp would have to be wrong (TestConformance has stores of the last vCPU's that read back wrong)",
	"last-undonelate-stale.txt":                 "giveUp would have to be wrong",
	"last-lowers-deadlock.txt":                  "nextOf would have to be wrong (TestLettingGoNeverLowers)",
	"last-resend-resendblind-spurious.txt":      "the world does not send again (TestAgainTakesTheOffer)",
	"last-nearblind-versions.txt":               "the world's stop with stores patches A alone",
	"last-entry-random-nearblind-tornbytes.txt": "the world's A is one instruction",
	"sync-nosync-tornbytes.txt":                 "the world's program writes no code of its own",
	"sync-kickonly-tornbytes.txt":               "the world's program writes no code of its own",
}

func TestTrails(t *testing.T) {
	files, err := fs.Glob(model.Files, "trails/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	variants := map[string]bool{}
	for _, file := range files {
		name := path.Base(file)
		variant, must, lines := readTrail(t, file)
		variants[must+" "+variant] = true
		seen[name] = true
		c, ok := replayed[name]
		if !ok {
			if modelOnly[name] == "" {
				t.Errorf("%s: neither replayed nor said why not", name)
			}
			continue
		}
		t.Run(name, func(t *testing.T) {
			r := newReplay(t, variant, c.f, lines)
			r.run()
			kind, _, _ := strings.Cut(r.failed, ":")
			if r.wrong != "" || kind != c.want || r.next < len(r.lines) {
				t.Errorf("%s: %d of %d steps, %q, want %s (%s)", variant, r.next, len(r.lines), r.failed, c.want, r.wrong)
			}
			// Without the mistake the same order is harmless, or the code does not go along with it.
			r = newReplay(t, variant, faults{handler: c.f.handler}, lines)
			if r.run(); r.failed != "" {
				t.Errorf("without the mistake: %s", r.failed)
			}
		})
	}
	for name := range maps.Keys(modelOnly) {
		if !seen[name] {
			t.Errorf("%s: no such trail", name)
		}
	}
	for name := range maps.Keys(replayed) {
		if !seen[name] {
			t.Errorf("%s: no such trail", name)
		}
	}

	// Every wrong variant has its trail.
	source, err := model.Files.ReadFile("patch.pml")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, m := range regexp.MustCompile(`(?m)^ \* run: ([a-z-]+) +((?:-[DO]\S+ ?)+)`).FindAllStringSubmatch(string(source), -1) {
		if key := m[1] + " " + strings.TrimSpace(m[2]); m[1] != "pass" {
			if n++; !variants[key] {
				t.Errorf("no trail of %q: run model/trails/make", key)
			}
		}
	}
	if n != len(variants) {
		t.Errorf("%d trails, %d wrong variants: run model/trails/make", len(variants), n)
	}
}

// TestModelWalks: the code goes along with the model's steps, wherever they lead, and nothing fails. So the model is a model of the code.
func TestModelWalks(t *testing.T) {
	testenv.Need(t, testenv.Tool("spin"))
	looks := regexp.MustCompile(`^(V\d+ [AB]) (\d)(?: (\d))?$`)
	steps, lates := 0, 0
	for _, c := range []struct {
		flags string
		f     faults
	}{
		{"-DNV=1 -DNSTOP=4 -DGIVEUP", faults{}},
		{"-DNV=2 -DNSTOP=4 -DGIVEUP", faults{}},
		{"-DNV=2 -DNSTOP=4 -DGIVEUP -DHANDLER", faults{handler: true}},
		{"-DLAST -DNV=1 -DNSTOP=4 -DGIVEUP", faults{}},
		{"-DLAST -DNV=2 -DNSTOP=4 -DGIVEUP", faults{}},
		{"-DLAST -DNV=2 -DNSTOP=4 -DGIVEUP -DHANDLER", faults{handler: true}},
	} {
		for seed := range 40 {
			args := append([]string{"-T", fmt.Sprintf("-n%d", seed+1), "-u3000"}, strings.Fields(c.flags)...)
			cmd := exec.CommandContext(t.Context(), "spin", append(args, "patch.pml")...)
			cmd.Dir = "../model"
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("spin: %v\n%s", err, out)
			}
			var lines []string
			for _, line := range strings.Split(string(out), "\n") {
				if m := looks.FindStringSubmatch(line); m != nil {
					if m[2] == "3" || m[3] != "" && m[3] != m[2] {
						t.Fatalf("%s, seed %d: %q in a right variant", c.flags, seed+1, line)
					}
					line = m[1]
				}
				if strings.HasPrefix(line, "P ") || strings.HasPrefix(line, "V") {
					lines = append(lines, line)
				}
				if strings.Contains(line, "P2 late") {
					lates++
				}
			}
			r := newReplay(t, c.flags, c.f, lines)
			if r.run(); r.wrong != "" || r.failed != "" || r.next < len(lines) {
				t.Fatalf("%s, seed %d: %d of %d steps: %q, %s", c.flags, seed+1, r.next, len(lines), r.failed, r.wrong)
			}
			steps += len(lines)
		}
	}
	if lates == 0 || steps < 10_000 {
		t.Errorf("%d steps, %d stops given up", steps, lates)
	}
	t.Logf("%d steps, %d stops given up", steps, lates)
}
