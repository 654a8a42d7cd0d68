package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/isolation/cores"
)

// --cpu auto passes over the cores that others have, also one that was isolated at boot and is offered for that, and over the other
// hardware thread of a core that somebody else has made quiet.
func TestRank(t *testing.T) {
	h := cores.Host{Root: t.TempDir()}
	files := map[string]string{"online": "4000-4007", "isolated": "4006-4007", "nohz_full": "4006-4007"}
	for c := 4000; c < 4008; c++ {
		files[fmt.Sprintf("cpu%d/topology/thread_siblings_list", c)] = fmt.Sprintf("%d-%d", c&^1, c|1)
	}
	for name, v := range files {
		p := filepath.Join(h.Root, "sys/devices/system/cpu", name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(v+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	allowed := []int{4000, 4001, 4002, 4003, 4004, 4005}
	for _, c := range []struct {
		mine, all []int
		fresh     bool
		want      string
	}{
		{nil, nil, true, "[4007 4006 4005 4004 4003 4002 4001 4000]"},
		{nil, []int{4007}, true, "[4005 4004 4003 4002 4001 4000 4006]"},
		{nil, []int{4006, 4007}, true, "[4005 4004 4003 4002 4001 4000]"},
		{[]int{4005}, []int{4005}, false, "[4005 4007 4006 4004 4003 4002 4001 4000]"},
	} {
		list, err := rank(h, allowed, c.mine, c.all, c.fresh)
		var got []int
		for _, p := range list {
			got = append(got, p.CPU)
		}
		if err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("mine %v, all %v, fresh %v: %v (%v), want %s", c.mine, c.all, c.fresh, got, err, c.want)
		}
	}
	all := append([]int{4006, 4007}, allowed...)
	if list, err := rank(h, allowed, nil, all, true); err == nil || !strings.Contains(err.Error(), "no CPU can be made quiet") {
		t.Errorf("all are: %v (%v)", list, err)
	}
}
