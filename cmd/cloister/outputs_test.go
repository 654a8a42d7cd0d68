package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// A profile opens in go tool pprof: its totals are the report's, its functions the program's.
func TestProfileOpens(t *testing.T) {
	b := newBox(t, testenv.Tool("go"))
	prof := filepath.Join(b.work, "prof")
	r, rep := b.reported("--pprof", prof, "--", compile(t, "gcc", "seal", "seal.c", "-static", "-O1"), "7", "getppid")
	if r.status != 0 {
		t.Fatalf("%+v", r)
	}
	for index, want := range map[string][]string{"breaks": {"main", "Type: breaks"}, "lost": {"main", "Type: lost"}} {
		out, err := exec.Command("go", "tool", "pprof", "-top", "-cum", "-sample_index="+index, prof).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", index, err, out)
		}
		for _, w := range want {
			if !strings.Contains(string(out), w) {
				t.Errorf("%s: no %q in\n%s", index, w, out)
			}
		}
	}
	out, err := exec.Command("go", "tool", "pprof", "-raw", "-sample_index=breaks", prof).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n := strings.Count(string(out), "getppid"); n == 0 || rep.VCPUs[0].Sealed.ByCause["syscall"].Count != 7 {
		t.Errorf("%d samples of getppid, sealed %+v\n%s", n, rep.VCPUs[0].Sealed.ByCause, tail(string(out)))
	}
}

// A timeline is JSON with an event for every break that returned, in order, within the run.
func TestTraceIsATimeline(t *testing.T) {
	b := newBox(t)
	name := filepath.Join(b.work, "trace")
	r, rep := b.reported("--trace", name, "@exits", "--count", "20")
	if r.status != 0 {
		t.Fatalf("%+v", r)
	}
	raw := must(os.ReadFile(name))(t)
	type event struct {
		Name  string  `json:"name"`
		Phase string  `json:"ph"`
		TS    float64 `json:"ts"`
		Dur   float64 `json:"dur"`
	}
	var list []event
	if err := json.Unmarshal(raw, &list); err != nil {
		var o struct {
			Events []event `json:"traceEvents"`
		}
		if err := json.Unmarshal(raw, &o); err != nil {
			t.Fatalf("not JSON: %v\n%.300s", err, raw)
		}
		list = o.Events
	}
	kinds := map[string]uint64{}
	guest, end := 0, 0.0
	for _, e := range list {
		if e.Phase != "X" {
			continue
		}
		if e.TS < 0 || e.Dur < 0 || e.TS+0.01 < end {
			t.Fatalf("an event out of order: %+v after %f", e, end)
		}
		end = e.TS
		if e.Name == "guest" {
			guest++
		}
		kinds[e.Name]++
	}
	if kinds["hlt"] != 20 || kinds["pio"] != 20 || kinds["mmio"] != 20 || kinds["syscall getppid"] != 20 || guest < 100 {
		t.Errorf("%v", kinds)
	}
	if wall := float64(rep.VCPUs[0].WallNS) / 1e3; end > wall*1.1+1000 {
		t.Errorf("the last event is at %f us of %f", end, wall)
	}
	if rep.Books.EventsLost != 0 {
		t.Errorf("lost %d", rep.Books.EventsLost)
	}
}

// Standard output is the program's alone, whatever is asked for, and so is standard error with --quiet.
func TestStreamsAreThePrograms(t *testing.T) {
	b := newBox(t)
	prog := compile(t, "gcc", "seal", "seal.c", "-static", "-O1")
	all := []string{"run", "--timings", "--report", b.work + "/r", "--pprof", b.work + "/p", "--trace", b.work + "/t", "--metrics", "0", "--budget", "syscall=0"}
	r := b.cloister(append(all, "--", prog, "3", "write")...)
	if r.out != "xxxdone\n" || r.status != 124 {
		t.Errorf("%+v", r)
	}
	for _, say := range []string{"syscall", "budget", "books", "wall", "per second", "timings", "program"} {
		if !strings.Contains(r.err, say) {
			t.Errorf("the report does not say %q:\n%s", say, r.err)
		}
	}
	rep := b.report(b.work+"/r", r)
	phases := 0
	for _, p := range rep.Timings {
		if p.NS > 0 {
			phases++
		}
	}
	if phases < 5 || rep.Program.Path != prog || strings.Join(rep.Program.Args, " ") != "3 write" || len(rep.Program.SHA256) != 64 {
		t.Errorf("timings %+v, program %+v", rep.Timings, rep.Program)
	}
	if r := b.cloister("run", "--quiet", "--", prog, "3", "write"); r.out != "xxxdone\n" || r.err != "" || r.status != 0 {
		t.Errorf("--quiet: %+v", r)
	}
	// The same run in one process, for debugging.
	if r := b.cloister("run", "--one-process", "--report", b.work+"/r", "--", prog, "3", "write"); r.out != "xxxdone\n" || r.status != 0 {
		t.Errorf("--one-process: %+v", r)
	}
	b.report(b.work+"/r", result{})
}

// A system call that Cloister does not serve is answered, counted and named once.
func TestUnknownCallIsNamed(t *testing.T) {
	b := newBox(t)
	r := b.cloister("run", "--report", b.work+"/r", "@exits", "--count", "30")
	if n := strings.Count(r.err, "1000"); n < 1 || strings.Count(r.err, "unknown here") != 1 {
		t.Errorf("said %d times: %s", n, tail(r.err))
	}
	rep := b.report(b.work+"/r", r)
	if rep.VCPUs[0].Seals != 30 || rep.Host.Backend == "" || rep.Host.TSCHz == 0 || rep.Schema != breaks.Schema {
		t.Errorf("%+v", rep.Host)
	}
}
