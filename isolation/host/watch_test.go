package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is undone is noticed once, with both values; what has nothing to do with the core is not.
func TestWatch(t *testing.T) {
	s := unpack(t, "four.txtar", map[string]string{"sys/fs/cgroup/user.slice/a/cgroup.threads": "", "sys/fs/cgroup/user.slice/a/cgroup.procs": ""})
	a := &Applier{System: s, Dir: memory(t)}
	mustApply(t, a, Request{CPUs: []int{3}})
	before := snapshot(t, s.Root)
	w, err := NewWatch(s, []int{3}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := w.Check(); d != nil {
		t.Errorf("nothing has happened: %v", d)
	}
	same(t, "watching", before, snapshot(t, s.Root))
	for name, v := range map[string]string{irq24: "0-3", "proc/irq/26/smp_affinity_list": "1", cpuDir + "/cpu3/cpufreq/scaling_governor": "powersave", part: "isolated invalid (x)", cpuDir + "/cpu2/cpufreq/scaling_governor": "x"} {
		if err := s.Live.Write(name, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.SetAffinity(300, []int{2, 3}); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(s.path("proc/irq/99"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Root, "proc/irq/99/smp_affinity_list"), []byte("0-2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	said := ""
	got := w.Check()
	for _, d := range got {
		said += d.String() + "\n"
	}
	for _, want := range []string{
		"the affinity of IRQ 24: /" + irq24 + " was 0-2, is 0-3", "the governor: /sys/devices/system/cpu/cpu3/cpufreq/scaling_governor was performance, is powersave",
		"the partition: /" + part + " was isolated, is isolated invalid (x)", "thread 300 (daemon (odd) name) may run there: /proc/300/task/300/status was not there, is 2-3",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("it does not say %q:\n%s", want, said)
		}
	}
	if len(got) != 4 {
		t.Errorf("%d drifts:\n%s", len(got), said)
	}
	if d := w.Check(); d != nil {
		t.Errorf("said twice: %v", d)
	}
	if err := s.Live.Write("proc/irq/99/smp_affinity_list", "3"); err != nil {
		t.Fatal(err)
	}
	if d := w.Check(); len(d) != 1 || d[0].What != "the affinity of IRQ 99" {
		t.Errorf("an interrupt that was set up later: %v", d)
	}
}
