package cores

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// machine makes a sysfs of n CPUs.
func machine(t *testing.T, n int, files map[string]string) Host {
	t.Helper()
	h := Host{t.TempDir()}
	all := map[string]string{"cpu/online": fmt.Sprintf("0-%d", n-1), "cpu/present": fmt.Sprintf("0-%d", n-1)}
	for k, v := range files {
		all[k] = v
	}
	for name, v := range all {
		p := filepath.Join(h.Root, "sys/devices/system", name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(v+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func TestPlace(t *testing.T) {
	smt := map[string]string{}
	for c := range 8 {
		smt[fmt.Sprintf("cpu/cpu%d/topology/thread_siblings_list", c)] = fmt.Sprintf("%d,%d", c%4, c%4+4)
	}
	with := func(more map[string]string) map[string]string {
		out := map[string]string{}
		for _, m := range []map[string]string{smt, more} {
			for k, v := range m {
				out[k] = v
			}
		}
		return out
	}
	meminfo := func(n, kb int) string {
		return fmt.Sprintf("Node %d MemTotal: 999 kB\nNode %d MemFree: %d kB", n, n, kb)
	}
	for name, c := range map[string]struct {
		n       int
		files   map[string]string
		allowed []int
		cpu     int
		why     string
		ready   []int
	}{
		"two CPUs":         {2, nil, []int{0, 1}, 1, "a whole core", nil},
		"isolated":         {4, map[string]string{"cpu/isolated": "2", "cpu/nohz_full": "2"}, []int{0, 1, 3}, 2, "isolated at boot, without a tick", nil},
		"a tick less":      {4, map[string]string{"cpu/isolated": "2-3", "cpu/nohz_full": "2"}, []int{0, 1}, 2, "without a tick", nil},
		"hyperthreads":     {8, smt, []int{0, 1, 2, 3, 4, 5, 6, 7}, 7, "shares its core with CPU 3: keep that idle", nil},
		"not CPU 0's":      {2, map[string]string{"cpu/cpu1/topology/thread_siblings_list": "0-1"}, []int{0, 1}, 1, "shares its core with CPU 0", nil},
		"sibling off":      {8, with(map[string]string{"cpu/online": "0-5,7"}), []int{0, 1, 2, 3, 4, 5, 7}, 2, "a whole core", nil},
		"memory":           {4, map[string]string{"node/node0/cpulist": "0-1", "node/node1/cpulist": "2-3", "node/node0/meminfo": meminfo(0, 900), "node/node1/meminfo": meminfo(1, 100)}, []int{0, 1, 2, 3}, 1, "node 0, which has the most free memory", nil},
		"a smaller cache":  {4, map[string]string{"cpu/cpu1/cache/index3/shared_cpu_list": "0-1", "cpu/cpu2/cache/index3/shared_cpu_list": "2-3", "cpu/cpu3/cache/index3/shared_cpu_list": "0-3"}, []int{0, 1, 2, 3}, 2, "last-level cache of CPUs 2-3", nil},
		"a cpuset":         {4, nil, []int{0, 1}, 1, "a whole core", nil},
		"made quiet":       {4, map[string]string{"cpu/isolated": "2", "cpu/nohz_full": "2"}, []int{0, 3}, 1, "made quiet by cloister host apply, a whole core", []int{1}},
		"made quiet, gone": {4, map[string]string{"cpu/online": "0,2-3"}, []int{0, 2, 3}, 3, "a whole core", []int{1}},
	} {
		got, err := machine(t, c.n, c.files).Place(c.allowed, c.ready, nil)
		if err != nil || got[0].CPU != c.cpu || !strings.Contains(got[0].Why, c.why) {
			t.Errorf("%s: %+v (%v), want CPU %d for %q", name, got, err, c.cpu, c.why)
			continue
		}
		if last := got[len(got)-1]; last.CPU != 0 {
			t.Errorf("%s: CPU 0 is not the last choice: %+v", name, got)
		}
	}
	for _, c := range []struct {
		n       int
		allowed []int
	}{{1, []int{0}}, {4, []int{9}}} {
		if got, err := machine(t, c.n, nil).Place(c.allowed, nil, nil); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%d CPUs, allowed %v: %+v, %v", c.n, c.allowed, got, err)
		}
	}
}

// Two owners do not share a core while there is another one that is not CPU 0: its being isolated, its memory and its caches do not
// make up for that. Only what was prepared for the caller comes first all the same. The used ones are Take's to refuse.
func TestPlaceBesideOwners(t *testing.T) {
	for name, c := range map[string]struct {
		isolated       string
		prepared, used []int
		want           string // the order, without the used ones
		why            string // said of the last but CPU 0
	}{
		"one owner":       {"", nil, []int{7}, "[5 4 3 2 1 6 0]", "shares its core with CPU 7, which is in use"},
		"two":             {"", nil, []int{5, 7}, "[3 2 1 6 4 0]", "shares its core with CPU 5, which is in use"},
		"isolated beside": {"6-7", nil, []int{7}, "[5 4 3 2 1 6 0]", "isolated at boot, without a tick, shares its core with CPU 7, which is in use"},
		"prepared beside": {"", []int{6}, []int{7}, "[6 5 4 3 2 1 0]", "shares its core with CPU 0"},
		"none":            {"", nil, nil, "[7 6 5 4 3 2 1 0]", "shares its core with CPU 0"},
	} {
		files := map[string]string{"cpu/isolated": c.isolated, "cpu/nohz_full": c.isolated}
		for n := range 8 {
			files[fmt.Sprintf("cpu/cpu%d/topology/thread_siblings_list", n)] = fmt.Sprintf("%d-%d", n&^1, n|1)
		}
		list, err := machine(t, 8, files).Place([]int{0, 1, 2, 3, 4, 5, 6, 7}, c.prepared, c.used)
		if err != nil {
			t.Fatal(err)
		}
		list = slices.DeleteFunc(list, func(p Placed) bool { return slices.Contains(c.used, p.CPU) })
		var order []int
		for _, p := range list {
			order = append(order, p.CPU)
		}
		if last := list[len(list)-2]; fmt.Sprint(order) != c.want || !strings.Contains(last.Why, c.why) {
			t.Errorf("%s: %v (%d: %s), want %s, %q", name, order, last.CPU, last.Why, c.want, c.why)
		}
	}
}
