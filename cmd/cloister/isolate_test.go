package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"golang.org/x/tools/txtar"
)

// None of these runs changes the host: real writes are made in the lab (lab/testdata/host-*.txtar).

// The doctor answers on any machine, in both forms, and again from a recording of itself.
func TestDoctor(t *testing.T) {
	b := newBareBox(t)
	cpu := lastCPU(t)
	text := b.cloister("doctor", "--cpu", cpu)
	if text.status != 0 || !strings.Contains(text.out, "CPU "+cpu) || !strings.Contains(text.out, "grade") {
		t.Fatalf("status %d\n%s%s", text.status, text.out, text.err)
	}
	js := b.cloister("doctor", "--json", "--record", "tree.txtar")
	var r struct {
		Schema   string
		Cores    []struct{ Grade string }
		Findings []struct {
			ID, State, What, Cost, Way string
			Evidence                   []struct{ File, Value string }
			Causes                     []string
		}
	}
	if err := json.Unmarshal([]byte(js.out), &r); err != nil || r.Schema != "cloister.doctor/v1" || len(r.Cores) == 0 || len(r.Findings) < 40 {
		t.Fatalf("%v: %.200s", err, js.out)
	}
	for _, f := range r.Findings {
		if f.ID == "" || f.What == "" || f.Cost == "" || f.Way == "" || len(f.Evidence) == 0 || len(f.Causes) == 0 {
			t.Errorf("it says too little: %+v", f)
		}
	}
	a, err := txtar.ParseFile(filepath.Join(b.work, "tree.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range a.Files {
		p := filepath.Join(b.work, "tree", f.Name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, f.Data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	again := b.cloister("doctor", "--root", "tree", "--json")
	was := r.Cores
	if err := json.Unmarshal([]byte(again.out), &r); err != nil || again.status != 0 || !slices.Equal(was, r.Cores) {
		t.Errorf("of the recording it says %v, of the machine %v (%v, %s)", r.Cores, was, err, again.err)
	}
}

// What is asked for wrongly is refused with a line, before anything is done.
func TestIsolationBadInput(t *testing.T) {
	b := newBareBox(t)
	// The machine's, not this process's: isolcpus= and cpusets leave a process fewer.
	all, notAll := strings.TrimSpace(string(must(os.ReadFile("/sys/devices/system/cpu/online"))(t))), "are all there are"
	if !strings.ContainsAny(all, "-,") {
		notAll = "is the only one"
	}
	for _, c := range []struct {
		want string
		args []string
	}{
		{"CPU 8000 does not exist", []string{"doctor", "--cpu", "8000"}},
		{"the list is empty", []string{"doctor", "--cpu", ""}},
		{"is no CPU or range", []string{"doctor", "--cpu", "1-0"}},
		{"choose A, B, C or D", []string{"doctor", "--require", "E"}},
		{"choose A, B, C or D", []string{"doctor", "--require", "b"}},
		{"give --dry-run too", []string{"host", "apply", "--cpu", "0", "--all"}},
		{"--dry-run changes nothing", []string{"host", "apply", "--cpu", "0", "--dry-run", "--hold"}},
		{"leave --cpu out", []string{"host", "restore", "--cpu", "0", "--owner", "x"}},
		{"CPU 8000 does not exist", []string{"host", "restore", "--cpu", "8000"}},
		{"takes no arguments", []string{"doctor", "now"}},
		{"read the host's CPUs", []string{"doctor", "--root", "/nowhere"}},
		{"choose apply, restore or status", []string{"host"}},
		{"choose apply, restore or status", []string{"host", "undo"}},
		{"which CPUs", []string{"host", "apply", "--dry-run"}},
		{"choose run-time or max", []string{"host", "apply", "--cpu", "0", "--level", "high"}},
		{"does not exist", []string{"host", "apply", "--dry-run", "--cpu", "8000"}},
		{notAll, []string{"host", "apply", "--dry-run", "--cpu", all}},
		{"--isolate: which core", []string{"run", "--isolate", "@spin"}},
		{"--require: of which core", []string{"run", "--require", "B", "@spin"}},
		{"--isolate: which core", []string{"run", "--isolate", "--place", "*=housekeeping", "@spin"}},
		{"--isolate and --require are for VMs", []string{"run", "--bare", "--cpu", "0", "--isolate", "@spin"}},
		{"--isolate and --require are for VMs", []string{"run", "--bare", "--cpu", "0", "--require", "D", "@spin"}},
		{"--seal start and --require: the first thread has no core", []string{"run", "--require", "D", "--place", "x=0", "--seal", "start", "@spin"}},
		{"--keep: there is no --isolate", []string{"run", "--cpu", "0", "--keep", "@spin"}},
		{"--require \"G\": choose", []string{"run", "--cpu", "0", "--require", "G", "@spin"}},
		{"want the number of one CPU, or auto", []string{"run", "--cpu", "best", "@spin"}},
	} {
		r := b.cloister(c.args...)
		if r.status != 125 || !strings.Contains(r.err, c.want) || strings.Count(strings.TrimSpace(r.err), "\n") != 0 {
			t.Errorf("%q: status %d, %q, want 125 and %q in one line", c.args, r.status, r.err, c.want)
		}
	}
	if r := b.cloister("host", "restore", "--cpu", lastCPU(t)); r.status != 0 || !strings.Contains(r.out, "nothing to give back") {
		t.Errorf("restore of what nobody has: %d %q", r.status, r.out+r.err)
	}
	if r := b.cloister("host", "status", "--json"); r.status != 0 || !strings.HasPrefix(r.out, "[") {
		t.Errorf("status: %d %q", r.status, r.out+r.err)
	}
}

// A plan is printed and nothing is done.
func TestHostDryRun(t *testing.T) {
	testenv.Need(t, testenv.MultiCPU)
	b := newBareBox(t)
	cpu := lastCPU(t)
	mask, err := os.ReadFile("/proc/irq/default_smp_affinity")
	if err != nil {
		t.Fatal(err)
	}
	r := b.cloister("host", "apply", "--cpu", cpu, "--dry-run", "--json")
	var p struct {
		Schema string
		Steps  []struct{ Old, New, Why string }
	}
	if err := json.Unmarshal([]byte(r.out), &p); r.status != 0 || err != nil || p.Schema != "cloister.host-plan/v1" || len(p.Steps) == 0 {
		t.Fatalf("%d, %v: %.300s", r.status, err, r.out+r.err)
	}
	if again, err := os.ReadFile("/proc/irq/default_smp_affinity"); err != nil || !slices.Equal(again, mask) {
		t.Errorf("a dry run has changed /proc/irq/default_smp_affinity to %q (%v)", again, err)
	}
}

// A core that is not quiet enough is refused with the reason, before the first instruction; one that is, is not.
func TestRequireGrade(t *testing.T) {
	b := newBox(t, testenv.MultiCPU)
	cpu := lastCPU(t)
	var r struct{ Cores []struct{ Grade string } }
	if err := json.Unmarshal([]byte(b.cloister("doctor", "--cpu", cpu, "--json").out), &r); err != nil {
		t.Fatal(err)
	}
	has := r.Cores[0].Grade
	if run := b.cloister("run", "--quiet", "--cpu", cpu, "--require", has, "--for", "200ms", "@spin"); run.status != 0 {
		t.Errorf("it has grade %s: status %d, %s", has, run.status, run.err)
	}
	if has == "A" {
		return // hardware that nothing disturbs: there is no better grade to ask for
	}
	run := b.cloister("run", "--quiet", "--cpu", cpu, "--require", string(has[0]-1), "--for", "200ms", "@spin")
	if run.status != 125 || strings.Count(run.err, "\n") != 1 || !strings.Contains(run.err, "is of grade "+has) || !strings.Contains(run.err, "cloister doctor --cpu "+cpu) {
		t.Errorf("status %d, %q", run.status, run.err)
	}
}

// --cpu auto takes the best core that nobody has, and says why.
func TestCPUAuto(t *testing.T) {
	b := newBox(t, testenv.MultiCPU)
	r := b.cloister("run", "--cpu", "auto", "--for", "200ms", "--report", "r.json", "@spin")
	if r.status != 0 || !strings.Contains(r.err, "--cpu auto: CPU ") {
		t.Fatalf("status %d\n%s", r.status, r.err)
	}
	raw, err := os.ReadFile(filepath.Join(b.work, "r.json"))
	if err != nil {
		t.Fatal(err)
	}
	var rep struct{ VCPUs []struct{ CPU *int } }
	if err := json.Unmarshal(raw, &rep); err != nil || rep.VCPUs[0].CPU == nil {
		t.Fatalf("%v: the report names no core", err)
	}
	noLeaseFiles(t, b)
}

// A lease's file goes with the lease, also when the run is refused after it was taken.
func TestLeaseFilesGo(t *testing.T) {
	b := newBox(t, testenv.MultiCPU)
	cpu := lastCPU(t)
	if r := b.cloister("run", "--quiet", "--cpu", cpu, "--for", "100ms", "@spin"); r.status != 0 {
		t.Fatalf("status %d, %s", r.status, r.err)
	}
	noLeaseFiles(t, b)
	if r := b.cloister("run", "--quiet", "--cpu", cpu, "--report", "no/such/r.json", "@spin"); r.status != 125 {
		t.Fatalf("status %d, %s", r.status, r.err)
	}
	noLeaseFiles(t, b)
}

func noLeaseFiles(t *testing.T, b *box) {
	t.Helper()
	if list, err := filepath.Glob(filepath.Join(b.runs, "*.lease")); err != nil || len(list) > 0 {
		t.Errorf("leases left: %v (%v)", list, err)
	}
}
