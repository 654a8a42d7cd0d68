package doctor

import (
	"bytes"
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
