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
	"V2": {parkPending}, "V3 read": {parkRead, parkLook}, "V3 ack": {parkAck, parkEarly}, "V4": {parkGo}, "V5": {parkSync}, "V6 clear": {parkClear},
	"V6 again": {parkAgain}, "V7 drain": {parkDrain}, "V7 synced": {parkSynced}, "V8": {parkRel, parkNew}, "V8 last": {parkLast},
	"E1": {atTop}, "E3 run": {atRun}, "E3 enter": {atEntry}, "clear": {atClear},
}

func newReplay(t *testing.T, variant string, f faults, lines []string) *replay {
	r := &replay{world: newWorld(t, 1, 1+strings.Count(variant, "-DNV=2"), f), lines: lines}
	r.spins = true
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
		case strings.HasPrefix(what, "P2 ") || strings.HasPrefix(what, "P7 ") || what == "P5 read back":
			// It has seen what it waits for, without a step that another could see.
		default:
			r.part("the trail has %q, the code does %q", line, label)
		}
	}
	return false
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
	r.late = false
	found := r.until(fmt.Sprintf("%s %d", label, t.cfg.ID))
	switch {
	case r.wrong != "" || r.failed != "":
		return true
	case !found:
		return r.world.between(label, t) // behind the trail: in any order, and not for ever
	case label == "P1 signal":
		r.v[t.cfg.ID].sig = true
	}
	return r.late
}

// patch.Guest, with the trail's order in place of a random one.

func (r *replay) Stop(number uint64, sites patch.Range, limit time.Duration, meanwhile func()) (patch.Halt, error) {
	h, err := r.world.Stop(number, sites, limit, meanwhile)
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
	} else {
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

func (h replayHalt) Places() []patch.Place {
	h.r.until("P3")
	for _, v := range h.r.v {
		if v.at == atRun || v.at == atEntry || v.at == inGuest {
			h.r.fail("in-guest: vCPU %d is not stopped when Stop returns", c0(v))
		}
	}
	return h.fakeHalt.Places()
}

// run replays the trail: patches for as long as it has some, then what comes behind them.
func (r *replay) run() {
	from, to := byte(oldCode), byte(newCode)
	p := patch.New(r, patch.State{Text: []patch.Range{{Start: 0x1000, End: 0x1040}}, SafeRIPs: true})
	patches := func() bool {
		return slices.ContainsFunc(r.lines[min(r.next, len(r.lines)):], func(s string) bool { return s[0] == 'P' }) && r.wrong == "" && r.failed == ""
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
		switch got := p.Apply(plan(from, to)); {
		case r.failed == "" && got.Outcome != patch.Committed && !strings.Contains(got.Reason, ErrStopTimeout.Error()):
			r.part("%s: %s", got.Outcome, got.Reason)
		case got.Outcome == patch.Committed:
			from, to = to, from
		}
		r.writing = false
	}
	for ; r.next < len(r.lines) && r.wrong == "" && r.failed == ""; r.next++ {
		r.do(r.lines[r.next])
	}
}

func plan(from, to byte) patch.Plan {
	return patch.Plan{SafePoint: true, Wait: time.Minute, StopLimit: time.Hour, Sites: []patch.Site{
		{Name: "A", Kind: patch.Raw, Addr: siteA, Old: patch.Hex{from, from}, New: patch.Hex{to, to}},
		{Name: "B", Kind: patch.Raw, Addr: siteB, Old: patch.Hex{from}, New: patch.Hex{to}},
	}}
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
}

// modelOnly are the trails that end in a state which the real code cannot be brought to from outside, or which the world has not got.
var modelOnly = map[string]string{
	"nosync-stale.txt":                 "the same mistake as nosync-tornbytes, seen earlier",
	"resumedead-resumed.txt":           "condemn would have to be wrong (TestConformance has resumes that are late)",
	"resumelate-stale.txt":             "condemn would have to be wrong",
	"resumedoubt-memory.txt":           "Patcher.die would have to be wrong",
	"noback-memory.txt":                "Patcher.write would have to be wrong (TestConformance has stores that read back wrong)",
	"writelate-memory.txt":             "Patcher.once would have to be wrong",
	"entry-random-versions.txt":        "a plan without safe points (TestVersions on hardware)",
	"entry-random-norip-tornbytes.txt": "the world's A is one instruction (patch's own tests have RIPs inside)",
	"word-quiet-nolook-versions.txt":   "the world has no words: vmm has",
	"word-skiphere-tornbytes.txt":      "the world has no words",
	"word-noscatter-deadlock.txt":      "the world has no words",
	"sync-nosync-tornbytes.txt":        "the world's program writes no code of its own",
	"sync-kickonly-tornbytes.txt":      "the world's program writes no code of its own",
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
