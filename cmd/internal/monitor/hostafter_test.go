package monitor

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/isolation/doctor"
	"github.com/cloister-vmm/cloister/isolation/host"
	"golang.org/x/tools/txtar"
)

// What is said after an apply is what the doctor finds then, with what keeps it: on a recorded machine on which everything was
// refused its grade is what it was, and nothing is promised.
func TestAfterSaysWhatRemains(t *testing.T) {
	a, err := txtar.ParseFile("../../../isolation/host/testdata/four.txtar")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for _, f := range append(a.Files, txtar.File{Name: "sys/kernel/irq/26/chip_name", Data: []byte("PCI-MSI\n")}) {
		p := filepath.Join(root, f.Name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, f.Data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	res := &host.Result{Owner: "x", CPUs: []int{3}, Changed: 1, Written: []string{"/proc/irq/default_smp_affinity"}, Refused: []host.Remark{{What: "/proc/sys/vm/stat_interval", Why: "operation not permitted"}}, Foreign: []host.Remark{},
		Cannot: []host.Remark{{What: "IRQ 26 (nvme0q4)", Why: "the kernel manages it itself"}, {What: "IRQ 27 (a)", Why: "b"}, {What: "IRQ 28 (c)", Why: "d"}, {What: "thread 7 (e)", Why: "it came back"}}}
	now, err := after(host.Live{Root: root}, res, host.RunTime)
	if err != nil {
		t.Fatal(err)
	}
	var text, js bytes.Buffer
	if err := errors.Join(now.WriteText(&text), now.Encode(&js)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"stays: IRQ 26 (nvme0q4): the kernel manages it itself",
		"remains, grade D: irq: interrupts of devices may come to it; IRQ 26 (nvme0q4): the kernel manages it itself; IRQ 27 (a): b; and 1 more, above",
		"irq-perhaps (unknown): some may come to it, and whether the kernel lets them be moved is not known; IRQ 26 (nvme0q4): the kernel manages it itself",
		"vmstat: memory statistics are folded on each core, every so many s; /proc/sys/vm/stat_interval: operation not permitted",
		"tasks: other threads may run on it; thread 7 (e): it came back",
		"irq-default: interrupts that are set up later may come to it; it was changed, and somebody or something has undone that",
		"khugepaged drains each core's page lists, every so many ms; nothing that was written is for it",
		"remains, grade D: tick", "only at boot",
		"remains, grade C: rt-throttling", "not without --level max",
		"CPU 3 is of grade D now, because of ",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in:\n%s", want, text.String())
		}
	}
	var back struct {
		Owner   string
		Cannot  []host.Remark
		Cores   []reached
		Remains []struct{ ID, Because string }
	}
	if err := json.Unmarshal(js.Bytes(), &back); err != nil || back.Owner != "x" || len(back.Cannot) != 4 || back.Cores[0].Grade != doctor.D || len(back.Remains) < 5 {
		t.Fatalf("%v: %.300s", err, js.String())
	}
	for _, f := range back.Remains {
		if f.ID == "" || f.Because == "" {
			t.Errorf("it says too little: %+v", f)
		}
	}
	for _, f := range now.Remains {
		if f.State == doctor.OK || f.Cap == doctor.A {
			t.Errorf("%s remains, and is well", f.ID)
		}
	}
}

// What nobody wrote nobody has undone; and what keeps a thread keeps the tick.
func TestBecause(t *testing.T) {
	at := func(file string) []doctor.Evidence { return []doctor.Evidence{{File: file}} }
	res := &host.Result{Written: []string{"/proc/sys/kernel/nmi_watchdog", "/sys/devices/system/machinecheck/machinecheck*/ignore_ce"}, Cannot: []host.Remark{{What: "thread 300 (daemon)", Why: "it came back"}}}
	for _, c := range []struct {
		f     doctor.Finding
		level host.Level
		want  string
	}{
		{doctor.Finding{ID: "nmi", Way: doctor.Max, Evidence: at("/proc/interrupts")}, host.Max, "nothing that was written is for it"},
		{doctor.Finding{ID: "nmi", Way: doctor.Max, Evidence: at("/proc/sys/kernel/nmi_watchdog")}, host.Max, "has undone that"},
		{doctor.Finding{ID: "machine-check", Way: doctor.RunTime, Evidence: at("/sys/devices/system/machinecheck/machinecheck3/ignore_ce")}, host.RunTime, "has undone that"},
		{doctor.Finding{ID: "tick-tasks", Way: doctor.RunTime, Evidence: at("/proc/*/status")}, host.RunTime, "thread 300 (daemon): it came back"},
		{doctor.Finding{ID: "timers", Way: doctor.Max, Evidence: at("/proc/timer_list")}, host.RunTime, "not without --level max"},
	} {
		if got := because(c.f, c.level, res); !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.f.ID, got, c.want)
		}
	}
}
