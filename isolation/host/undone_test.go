package host

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What somebody changes while an apply goes on, after the step that it undoes, is said at its end, is an error with Strict, and is
// left to him by Restore.
func TestChangedMeanwhile(t *testing.T) {
	const khuge = "sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs"
	for name, c := range map[string]struct {
		overlay           map[string]string
		after, file, text string // after the write to that file, somebody writes this
		want              string // what is said; "" for nothing
	}{
		"a value":              {nil, part, tunable, "7", "/" + tunable + ": we made it 120, and somebody has made it 7"},
		"one that was so":      {map[string]string{tunable: "120"}, part, tunable, "1", "/" + tunable + ": we made it 120, and somebody has made it 1"},
		"a mask":               {nil, part, wq, "f", "/" + wq + ": we made it 5, and somebody has made it f"},
		"a mask, made smaller": {nil, part, wq, "3", ""},
		"to what is as good":   {map[string]string{"sys/kernel/mm/ksm/run": "1"}, part, "sys/kernel/mm/ksm/run", "0", ""},
		"the cache's":          {nil, "sys/fs/resctrl/schemata", "sys/fs/resctrl/cloister-cpus-3/schemata", "    MB:0=100\n    L3:0=fff", "cloister-cpus-3/schemata: we made it L3:0=fc0, and somebody has made it L3:0=fff"},
		"the partition":        {nil, "thread 300", part, "isolated invalid (Cpu list in cpuset.cpus not exclusive)", "cpuset.cpus.partition: we made it isolated, and somebody has made it isolated invalid"},
		"in vain":              {nil, tunable, khuge, "5", ""}, // before its own step
		"nothing":              {nil, "", "", "", ""},
	} {
		for _, strict := range []bool{false, true}[:1+min(1, len(c.want))] {
			s := unpack(t, "four.txtar", with(watchable, c.overlay))
			before := snapshot(t, s.Root)
			put := func() { s.put(t, c.file, c.text+"\n") }
			s.hook = func(at string) {
				if at == c.after {
					put()
					s.hook = nil
				}
			}
			a := &Applier{System: s, Dir: memory(t), Strict: strict}
			res, err := a.Apply(Request{CPUs: []int{3}, Level: Max, Cache: true})
			if strict && c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "(--strict)") {
					t.Errorf("%s, strict: %v, want %q", name, err, c.want)
				}
				continue
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if got := len(res.Foreign); got != 0 && c.want == "" || c.want != "" && (got != 1 || !strings.Contains(res.Foreign[0].String(), c.want)) {
				t.Errorf("%s: %v, want %q", name, res.Foreign, c.want)
			}
			mustRestore(t, a)
			if name == "nothing" {
				same(t, name, before, snapshot(t, s.Root))
			}
		}
	}
}

// Between the end of an apply and the beginning of a watch nothing is lost: what changed then is asked for.
func TestUndone(t *testing.T) {
	r := Request{CPUs: []int{3}, Level: Max, Cache: true, FIFO: true}
	const boost = "proc/sys/vm/compaction_proactiveness"
	for name, c := range map[string]struct{ overlay, change map[string]string }{
		"nothing":              {nil, nil},
		"several":              {nil, map[string]string{tunable: "1", irq24: "0-3", "proc/sys/kernel/timer_migration": "1"}},
		"that was not written": {map[string]string{boost: "0"}, map[string]string{boost: "20"}},
		"of version 1":         {v1, map[string]string{"sys/fs/cgroup/cpuset/cpuset.sched_load_balance": "1"}},
		"that was so":          {with(v1, map[string]string{"sys/fs/cgroup/cpuset/cpuset.sched_load_balance": "0"}), map[string]string{"sys/fs/cgroup/cpuset/cpuset.sched_load_balance": "1"}},
	} {
		s := unpack(t, "four.txtar", with(watchable, c.overlay))
		a := &Applier{System: s, Dir: memory(t)}
		res := mustApply(t, a, r)
		w, look := watching(t, s)
		for file, text := range c.change {
			s.put(t, file, text+"\n")
		}
		before := snapshot(t, s.Root)
		list, err := a.Undone(r, res)
		if err != nil || len(list) != len(c.change) {
			t.Errorf("%s: %v, %v", name, list, err)
		}
		for file, text := range c.change {
			if !slices.ContainsFunc(list, func(d Drift) bool { return d.File == "/"+file && d.Is == text && d.Was != text }) {
				t.Errorf("%s: %v, want /%s", name, list, file)
			}
		}
		same(t, name, before, snapshot(t, s.Root))
		if got := strings.Count(look(), "\n"); got != len(c.change) {
			t.Errorf("%s: the watch, which was begun before, says %d things", name, got)
		}
		if w.Check() != nil {
			t.Errorf("%s: and again", name)
		}
		mustRestore(t, a)
		if _, err := a.Undone(r, res); err == nil || !strings.Contains(err.Error(), "has no cores any more") {
			t.Errorf("%s: given back: %v", name, err)
		}
	}
}

// What the kernel has refused was never so, and is said once.
func TestUndoneKnowsRefused(t *testing.T) {
	s := unpack(t, "four.txtar", nil)
	s.errno = map[string]error{irq24: unix.EIO, tunable: unix.EPERM}
	r := Request{CPUs: []int{3}}
	a := &Applier{System: s, Dir: memory(t)}
	res := mustApply(t, a, r)
	if list, err := a.Undone(r, res); err != nil || len(list) > 0 || len(res.Foreign) > 0 || len(res.Refused) != 2 {
		t.Errorf("%v, %v; %v, %v", list, err, res.Foreign, res.Refused)
	}
}
