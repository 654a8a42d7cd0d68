package monitor

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/cores"
	"github.com/cloister-vmm/cloister/isolation/host"
)

// A core's lease is held until everything is put back and reported, and is then free; while somebody else has it nothing is
// put back, and he is named.
func TestLeaseOutlivesRestore(t *testing.T) {
	testenv.Need(t, testenv.Root)
	root, run := t.TempDir(), t.TempDir()
	t.Setenv("CLOISTER_RUN_DIR", run)
	const cpu = 4071 // nobody else's
	knob := "proc/sys/vm/stat_interval"
	for name, text := range map[string]string{
		"sys/devices/system/cpu/online": "0,4071", "sys/devices/system/cpu/present": "0,4071", "proc/mounts": "",
		"proc/sys/kernel/random/boot_id": "1", knob: "1",
	} {
		p := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	s := host.Live{Root: root}
	a := &host.Applier{System: s, Dir: filepath.Join(root, "run")}
	if _, err := a.Apply(host.Request{CPUs: []int{cpu}}); err != nil {
		t.Fatal(err)
	}
	all := func(host.Claim) bool { return true }
	lease, err := cores.Take(run, cpu, "a VM")
	if err != nil {
		t.Fatal(err)
	}
	err = restoreLeased(a, all, func(*host.Result) error { t.Error("restored under a running VM"); return nil })
	if err == nil || !strings.Contains(err.Error(), "CPUs 4071 are not given back: CPU 4071 is in use by a VM") || host.Text(s, knob) != "120" {
		t.Errorf("%v; %s is %s", err, knob, host.Text(s, knob))
	}
	if err := lease.Release(); err != nil {
		t.Fatal(err)
	}
	reported := 0
	err = restoreLeased(a, all, func(*host.Result) error {
		reported++
		if l, err := cores.Take(run, cpu, "another"); err == nil {
			t.Error("the lease was given back before the report", l.Release())
		}
		return nil
	})
	if err != nil || reported != 1 || host.Text(s, knob) != "1" {
		t.Errorf("%v, %d reports; %s is %s", err, reported, knob, host.Text(s, knob))
	}
	if lease, err = cores.Take(run, cpu, "another"); err != nil {
		t.Fatal(err)
	}
	if err := lease.Release(); err != nil {
		t.Fatal(err)
	}
}
