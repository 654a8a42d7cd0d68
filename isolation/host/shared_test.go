package host

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// One value for the machine, behind a file for each CPU or in one file: owners of different cores come and go in any
// order, each keeps what it asked for while it is there, and the last one puts back what was.
func TestSharedSettingsCompose(t *testing.T) {
	one := map[string]string{ // CPUs 2 and 3 have one frequency
		cpuDir + "/cpu2/cpufreq/related_cpus": "2 3", cpuDir + "/cpu3/cpufreq/related_cpus": "2 3",
	}
	const (
		ce       = "sys/devices/system/machinecheck/machinecheck1/ignore_ce"
		governor = cpuDir + "/cpu2/cpufreq/scaling_governor"
		root     = "sys/fs/resctrl/schemata"
		ksm      = "sys/kernel/mm/ksm/run"
	)
	expect := func(t *testing.T, s *sim, what string, want map[string]string) {
		t.Helper()
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if got := Text(s, name); got != want[name] {
				t.Errorf("%s: /%s is %q, want %q", what, name, got, want[name])
			}
		}
	}
	taken := map[string]string{ce: "1", governor: "performance", ksm: "2"}
	for _, cpus := range [][2]int{{2, 3}, {3, 2}} {
		for _, first := range []int{0, 1} { // who leaves first: who came first, or who came last
			s := unpack(t, "four.txtar", one)
			before := snapshot(t, s.Root)
			a := &Applier{System: s, Dir: memory(t)}
			for _, c := range cpus {
				mustApply(t, a, Request{CPUs: []int{c}, Level: Max, Cache: true})
			}
			expect(t, s, "both are there", taken)
			expect(t, s, "both are there", map[string]string{root: "MB:0=100\n    L3:0=007"})
			mine := map[int]string{0: "fc0", 1: "038"}
			for i, c := range cpus {
				name := "sys/fs/resctrl/" + group([]int{c}) + "/schemata"
				expect(t, s, "both are there", map[string]string{name: "MB:0=100\n    L3:0=" + mine[i]})
			}
			mustRestore(t, a, cpus[first])
			expect(t, s, "one has left", taken)
			// The ways of who is there stay his alone; of the others, the longest run is the rest's.
			expect(t, s, "one has left", map[string]string{root: map[int]string{0: "MB:0=100\n    L3:0=fc0", 1: "MB:0=100\n    L3:0=03f"}[first]})
			mustRestore(t, a)
			same(t, "both have left", before, snapshot(t, s.Root))
		}
	}
}

// Half a cache partition would take ways from the cores themselves; and cores that are in somebody else's are not ours to
// take out of it, since the kernel does not put them back there.
func TestCachePartitionWholeOrNot(t *testing.T) {
	for name, c := range map[string]struct {
		overlay map[string]string
		refuse  string
	}{
		"refused": {nil, "sys/fs/resctrl/cloister-cpus-3/cpus_list"},
		"foreign": {map[string]string{"sys/fs/resctrl/db/cpus_list": "2-3", "sys/fs/resctrl/db/schemata": "MB:0=100"}, ""},
	} {
		s := unpack(t, "four.txtar", c.overlay)
		s.errno = map[string]error{c.refuse: unix.EINVAL}
		before := snapshot(t, s.Root)
		a := &Applier{System: s, Dir: memory(t)}
		res := mustApply(t, a, Request{CPUs: []int{3}, Cache: true})
		if got, want := Text(s, "sys/fs/resctrl/schemata"), "MB:0=100\n    L3:0=fff"; got != want {
			t.Errorf("%s: the rest has %q, want %q", name, got, want)
		}
		said := func(list []Remark, want string) bool {
			return slices.ContainsFunc(list, func(r Remark) bool { return strings.Contains(r.String(), want) })
		}
		if c.refuse != "" && !said(res.Refused, "the cache partition before it could not be made whole") || c.refuse == "" && !said(res.Cannot, "CPUs 3 belong to /sys/fs/resctrl/db") {
			t.Errorf("%s: refused %v, cannot %v", name, res.Refused, res.Cannot)
		}
		mustRestore(t, a)
		same(t, name, before, snapshot(t, s.Root))
	}
}

func TestWays(t *testing.T) {
	for _, c := range []struct {
		line  string
		taken []string
		want  string
	}{
		{"L3:0=fff;1=fff", nil, "L3:0=fff;1=fff"},
		{"L3:0=fff;1=fff", []string{"L3:0=fc0;1=fc0"}, "L3:0=3f;1=3f"},
		{"L3:0=fff", []string{"L3:0=38"}, "L3:0=fc0"},           // the longest run
		{"L3:0=fff", []string{"L3:0=e08"}, "L3:0=1f0"},          // of 1f7
		{"L3:0=ff", []string{"L3:0=18"}, "L3:0=7"},              // of two as long the lower
		{"L3:0=ff", []string{"L3:0=f0", "L3:1=f"}, "L3:0=f"},    // another cache's
		{"L3:0=ff", []string{"L3:0=f0", "L3:0=f"}, "no way of"}, // nothing left
		{"L3:0=xyz", nil, "no hexadecimal"},
		{"MB:0=100", nil, "no line L3:"},
	} {
		x := Setting{Word: "L3:", Format: Line, Rule: Ways}
		var holders []holder
		for _, w := range c.taken {
			holders = append(holders, holder{"x", w})
		}
		if len(holders) == 0 {
			holders = []holder{{"x", "L3:9=1"}}
		}
		got, err := x.value(c.line, holders, nil, nil)
		if got != c.want && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s without %v: %q (%v), want %q", c.line, c.taken, got, err, c.want)
		}
	}
	for _, c := range [][3]uint64{{0xfff, 0xfff, 0xfc0}, {0x1e0, 0x1e0, 0x180}, {0x7, 0x7, 0}, {0, 0, 0}, {0xf0f, 0xfff, 0xc00}, {0xf3f, 0xf3f, 0x038}, {0xfff, 0xc00, 0x03f}, {0xff, 0x0f, 0xf0}, {0xf, 0, 0}, {1<<63 | 7<<60, ^uint64(0), 3 << 62}} {
		if got := half(c[0], c[1]); got != c[2] {
			t.Errorf("half of %x, with %x for the rest: %x, want %x", c[0], c[1], got, c[2])
		}
	}
}

// Ways that somebody's group has are not taken, though the default group may use them too; those that nobody has are.
func TestWaysOfOthers(t *testing.T) {
	db := func(masks ...string) map[string]string {
		out := map[string]string{}
		for i, m := range masks {
			out["sys/fs/resctrl/db"+string(rune('0'+i))+"/cpus_list"], out["sys/fs/resctrl/db"+string(rune('0'+i))+"/schemata"] = "", m
		}
		return out
	}
	for name, c := range map[string]struct {
		overlay        map[string]string
		own, rest, why string
	}{
		"nobody's":            {nil, "L3:0=fc0", "L3:0=03f", ""},
		"the upper are":       {db("L3:0=fc0"), "L3:0=038", "L3:0=fc0", ""},
		"the lower are":       {db("L3:0=00f"), "L3:0=f00", "L3:0=0ff", ""},
		"the middle ones are": {db("L3:0=0f0"), "L3:0=c00", "L3:0=3ff", ""},
		"two have them":       {db("L3:0=c00", "L3:0=003"), "L3:0=3c0", "L3:0=03f", ""},
		"too few are left":    {db("L3:0=ff8"), "", "L3:0=fff", "of cache 0 the mask 7 is free or everybody's, which is too small to be split (the groups db0 below"},
		"all are somebody's":  {db("L3:0=ff0", "L3:0=00f"), "", "L3:0=fff", "the mask 0 is free or everybody's, which is too small to be split (the groups db0, db1 below"},
		"not known":           {db("MB:0=100"), "", "L3:0=fff", "which ways /sys/fs/resctrl/db0 has is not known"},
		"some are free":       {map[string]string{"sys/fs/resctrl/schemata": "MB:0=100\n    L3:0=00f", "sys/fs/resctrl/info/L3/cbm_mask": "fff"}, "L3:0=fc0", "L3:0=00f", ""},
		"no directory of his": {map[string]string{"sys/fs/resctrl/mon_groups/.dir": "", "sys/fs/resctrl/info/L3/cbm_mask": "fff"}, "L3:0=fc0", "L3:0=03f", ""},
	} {
		s := unpack(t, "four.txtar", c.overlay)
		before := snapshot(t, s.Root)
		a := &Applier{System: s, Dir: memory(t)}
		res := mustApply(t, a, Request{CPUs: []int{3}, Cache: true})
		line := func(file string) string {
			return Setting{Format: Line, Word: "L3:"}.canonical(Text(s, "sys/fs/resctrl/"+file))
		}
		want := func(text string) string { return Setting{Format: Line, Word: "L3:"}.canonical(text) }
		if line("schemata") != want(c.rest) || line("cloister-cpus-3/schemata") != want(c.own) {
			t.Errorf("%s: the cores have %s, want %s; the rest %s, want %s", name, line("cloister-cpus-3/schemata"), c.own, line("schemata"), c.rest)
		}
		said := slices.ContainsFunc(res.Cannot, func(r Remark) bool { return strings.Contains(r.String(), c.why) && !strings.Contains(r.String(), "\n") })
		if c.why != "" && !said {
			t.Errorf("%s: %v, want %q", name, res.Cannot, c.why)
		}
		mustRestore(t, a)
		same(t, name, before, snapshot(t, s.Root))
	}
}
