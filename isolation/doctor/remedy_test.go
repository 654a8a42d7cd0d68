package doctor

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"
)

// What is to be added to the kernel's command line leaves a CPU to the rest of the system, for the kernel takes one back otherwise; it keeps
// what is set apart already; and the report says which CPU was left out.
func TestBootRemediesLeaveACPU(t *testing.T) {
	two := map[string]string{cpuDir + "/online": "0-1", cpuDir + "/present": "0-1", "proc/mounts": "proc /proc proc rw 0 0", "-sys/fs/cgroup": ""}
	managed := map[string]string{"sys/kernel/debug/irq/irqs/24": "IRQD_AFFINITY_MANAGED", "proc/irq/24/smp_affinity_list": "0-3"}
	for name, c := range map[string]struct {
		set  map[string]string
		ask  []int
		want map[string]string // remedies by finding
		left string
	}{
		"both of two":      {two, []int{0, 1}, map[string]string{"tick": "nohz_full=1", "sched-domain": "isolcpus=domain,managed_irq,1", "rcu": "rcu_nocbs=1"}, "CPU 0 is left out"},
		"all of them":      {two, nil, map[string]string{"tick": "nohz_full=1"}, "CPU 0 is left out"},
		"one of two":       {two, []int{1}, map[string]string{"tick": "nohz_full=1", "sched-domain": "isolcpus=domain,managed_irq,1"}, ""},
		"the first of two": {two, []int{0}, map[string]string{"tick": "nohz_full=0"}, ""},
		"the only one": {map[string]string{cpuDir + "/online": "0", cpuDir + "/present": "0", "proc/mounts": "proc /proc proc rw 0 0", "-sys/fs/cgroup": ""}, []int{0},
			map[string]string{"tick": "", "sched-domain": ""}, ""},
		"two are already": {map[string]string{cpuDir + "/nohz_full": "1-2", "proc/cmdline": "rcu_nocbs=2"}, []int{3}, map[string]string{"tick": "nohz_full=1-3", "rcu": "rcu_nocbs=1-3"}, ""},
		"all others are":  {map[string]string{cpuDir + "/nohz_full": "0-2"}, []int{3}, map[string]string{"tick": "nohz_full=1-3"}, "CPU 0 is left out"},
		"one is off line": {map[string]string{cpuDir + "/online": "0-2"}, []int{0, 1, 2, 3}, map[string]string{"tick": "nohz_full=1-3"}, "CPU 0 is left out"},
		"managed":         {managed, nil, map[string]string{"irq-managed": "isolcpus=managed_irq,1-3, or fewer queues (ethtool -L)"}, "CPU 0 is left out"},
	} {
		r := examine(t, tree(t, "four.txtar", c.set), c.ask...)
		var text bytes.Buffer
		if err := r.WriteText(&text, false); err != nil {
			t.Fatal(err)
		}
		if one := name == "the only one"; one != (len(r.Changes) == 1 && r.Changes[0].Remedy == secondCPU) {
			t.Errorf("%s: advised is %+v", name, r.Changes)
		}
		for id, want := range c.want {
			f := r.find(id)
			if f == nil || f.State != Wrong || f.Remedy != want && !strings.HasSuffix(f.Remedy, ", and "+want) || (f.Way == Never) != (want == "") {
				t.Errorf("%s: %s is %+v, want the remedy %q", name, id, f, want)
			}
		}
		if said := strings.Contains(text.String(), "left out"); said != (c.left != "") || !strings.Contains(text.String(), c.left) || len(r.LeftOut) == 0 == said {
			t.Errorf("%s: left out %v, want %q in\n%s", name, r.LeftOut, c.left, text.String())
		}
		for _, f := range r.Findings {
			if f.Way == Boot && slices.ContainsFunc(r.LeftOut, func(c int) bool { return strings.HasSuffix(f.Remedy, "="+spell([]int{c})) }) {
				t.Errorf("%s: %s wants CPU %v, which is left out: %s", name, f.ID, r.LeftOut, f.Remedy)
			}
		}
	}
}

// How much of the bandwidth of memory is all of it depends on the processor and the mount.
func TestBandwidth(t *testing.T) {
	amd, mbps := map[string]string{"proc/cpuinfo": "vendor_id : AuthenticAMD\nflags : mba"}, map[string]string{"proc/mounts": "resctrl /sys/fs/resctrl resctrl rw,mba_MBps 0 0"}
	schemata := func(mb string) map[string]string {
		return map[string]string{"sys/fs/resctrl/schemata": "MB:" + mb + "\n    L3:0=fff"}
	}
	for name, c := range map[string]struct {
		line  map[string]string
		on    map[string]string
		state State
		how   string
	}{
		"all":               {schemata("0=100;1=100"), nil, Wrong, "echo"},
		"half":              {schemata("0= 50;1= 50"), nil, OK, ""},
		"half of one":       {schemata("0=50;1=100"), nil, Wrong, "echo"},
		"all of AMD's":      {schemata("0=2048"), amd, Wrong, "echo"},
		"half of AMD's":     {schemata("0=1024"), amd, OK, ""},
		"all MB/s":          {schemata("0=4294967295"), mbps, Wrong, "echo"},
		"some MB/s":         {schemata("0=6000"), mbps, OK, ""},
		"not a number":      {schemata("0=much"), nil, Wrong, "echo"},
		"not mounted":       {map[string]string{"-sys/fs/resctrl": "", "proc/cpuinfo": "flags : mba"}, nil, Wrong, "mount -t resctrl"},
		"no such processor": {map[string]string{"-sys/fs/resctrl": "", "proc/cpuinfo": "flags : fpu"}, nil, "", ""},
	} {
		f := examine(t, tree(t, "four.txtar", quiet, c.on, c.line), 3).find("bandwidth")
		if c.state == "" && f == nil {
			continue
		}
		if f == nil || f.State != c.state || f.State == Wrong && !strings.HasPrefix(f.how(), c.how) {
			t.Errorf("%s: %+v, want %s by %s", name, f, c.state, c.how)
		}
	}
}

// docs/isolation.md lists every finding that can be made, in the row of its knob with the ways in which it can be taken away, and no other.
func TestTableOfKnobs(t *testing.T) {
	made := map[string]map[string]bool{} // ways by finding
	look := func(r *Report) {
		for _, f := range r.Findings {
			if made[f.ID] == nil {
				made[f.ID] = map[string]bool{}
			}
			made[f.ID][string(f.Way)] = true
		}
	}
	for _, archive := range []string{"four.txtar", "nested.txtar", "nohz.txtar", "plain.txtar"} {
		look(examine(t, tree(t, archive)))
	}
	look(examine(t, tree(t, "four.txtar", none), 3))
	for _, c := range wrongs {
		if made[c.id] != nil {
			continue // TestEachFindingAlone has them all
		}
		look(examine(t, tree(t, "four.txtar", quiet, c.set), 3))
	}
	look(examine(t, tree(t, "four.txtar", quiet, map[string]string{"proc/irq/24/smp_affinity_list": "0-3", "sys/kernel/irq/24/chip_name": "PCI-MSI"}), 3))
	b, err := os.ReadFile("../../docs/isolation.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(b), "| knob | finding | way |\n| --- | --- | --- |\n")
	table, _, ok2 := strings.Cut(table, "\n\n")
	if !ok || !ok2 {
		t.Fatal("docs/isolation.md has no such table")
	}
	listed := map[string]map[string]bool{}
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.Trim(line, "| \n"), " | ")
		if strings.HasPrefix(line, "| *") {
			continue
		}
		for _, id := range strings.Split(cells[1], ", ") {
			if strings.HasPrefix(id, "none: ") {
				break // and why not
			}
			id = strings.Trim(id, "`")
			if listed[id] == nil {
				listed[id] = map[string]bool{}
			}
			if len(cells) < 3 {
				t.Errorf("no way in %q", line)
				continue
			}
			for _, w := range strings.Split(cells[2], ", ") {
				listed[id][w] = true
			}
		}
	}
	for id, ways := range made {
		for w := range ways {
			if !listed[id][w] {
				t.Errorf("%s, %s: not in the table of docs/isolation.md: %v", id, w, listed[id])
			}
		}
	}
	for id := range listed {
		if made[id] == nil {
			t.Errorf("the table of docs/isolation.md lists %q, which no machine of these tests has", id)
		}
	}
	for _, knob := range []string{"rcu_nocb_poll", "skew_tick", "energy_perf_bias", "intel_uncore_frequency", "preemption_timer", "MBA", "CAT", "isolcpus=domain", "managed_irq", "nohz_full", "halt_poll_ns", "kvmclock_periodic_sync"} {
		if !strings.Contains(table, knob) {
			t.Errorf("the table has no row for %s", knob)
		}
	}
}

// none is a host without cpusets.
var none = map[string]string{"proc/mounts": "proc /proc proc rw 0 0", "-sys/fs/cgroup": ""}
