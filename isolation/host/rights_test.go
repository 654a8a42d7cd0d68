package host

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Where a tree that is needed cannot be written nothing is: one line says which and what to do, and there is no journal. A
// plan can be had all the same.
func TestNothingWithoutRights(t *testing.T) {
	mounts := func(more string) map[string]string {
		return map[string]string{"proc/mounts": "sysfs /sys sysfs rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0" + more}
	}
	for name, c := range map[string]struct {
		overlay map[string]string
		spoil   func(*sim)
		want    []string
	}{
		"a read-only /sys":      {mounts(""), func(s *sim) { s.readOnly = []string{"sys/"} }, []string{"/sys ", "/sys/fs/cgroup ", "read-only file system"}},
		"a read-only /proc/sys": {mounts("\nproc /proc/sys proc ro 0 0"), func(s *sim) { s.readOnly = []string{"proc/sys/"} }, []string{"cannot write below /proc/sys (read-only file system, first /proc/sys/"}},
		"a read-only /proc/irq": {nil, func(s *sim) { s.readOnly = []string{"proc/irq/"} }, []string{"/proc/irq/default_smp_affinity"}},
		"cgroups of another":    {mounts(""), func(s *sim) { s.noCgroup = true }, []string{"cannot write below /sys/fs/cgroup (permission denied, first /sys/fs/cgroup"}},
		"cpusets of another":    {v1, func(s *sim) { s.noCgroup = true }, []string{"cannot write below /sys/fs/cgroup/cpuset (permission denied"}},
		"a cgroup namespace":    {map[string]string{"sys/fs/cgroup/cgroup.type": "domain", "sys/fs/cgroup/cpuset.cpus.partition": "member"}, func(*sim) {}, []string{"/sys/fs/cgroup is not the root of the hierarchy", "outside the container"}},
		"no cpusets in it":      {map[string]string{"sys/fs/cgroup/cgroup.type": "domain", "sys/fs/cgroup/cgroup.controllers": "memory pids"}, func(*sim) {}, []string{"/sys/fs/cgroup is not the root of the hierarchy"}},
	} {
		s := unpack(t, "four.txtar", c.overlay)
		c.spoil(s)
		before := snapshot(t, s.Root)
		a := &Applier{System: s, Dir: filepath.Join(memory(t), "none")}
		r := Request{CPUs: []int{3}}
		if p, err := Make(s, a.Dir, r); err != nil || len(p.Steps) < 20 {
			t.Errorf("%s: no plan: %v", name, err)
		}
		res, err := a.Apply(r)
		if err == nil {
			t.Errorf("%s: applied: %d changed, refused %v", name, res.Changed, res.Refused)
			continue
		}
		for _, want := range append(c.want, "nothing was changed") {
			if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %q does not say %q in one line", name, err, want)
			}
		}
		same(t, name, before, snapshot(t, s.Root))
		if _, err := os.Stat(a.Dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: there is a journal (%v)", name, err)
		}
	}
}

// Writable does not write, and says what open would.
func TestWritable(t *testing.T) {
	dir := t.TempDir()
	l := Live{dir}
	if err := os.WriteFile(filepath.Join(dir, "knob"), []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := l.Writable("knob"); err != nil {
		t.Error(err)
	}
	if err := l.Writable("."); err != nil {
		t.Error(err)
	}
	if err := l.Writable("none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what is not there: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "knob")); err != nil || string(b) != "1\n" {
		t.Errorf("it was touched: %q (%v)", b, err)
	}
}

// The cpuset controller stays on where somebody has come to need it, or the kernel says so: that is said once, and the cores are
// free for the next owner.
func TestControllerInUse(t *testing.T) {
	const control = simCgroup + "/cgroup.subtree_control"
	for name, c := range map[string]struct {
		files map[string]string
		errno error
		want  string
	}{
		"a cpuset":       {map[string]string{"cpuset.cpus": "0-1"}, nil, "/sys/fs/cgroup/other has come to use it"},
		"groups below":   {map[string]string{"cpuset.cpus": "", "cgroup.subtree_control": "cpu cpuset"}, nil, "/sys/fs/cgroup/other has come to use it"},
		"not a cpuset":   {map[string]string{"cpuset.cpus": "", "cgroup.subtree_control": "cpu"}, nil, ""},
		"busy":           {nil, unix.EBUSY, "the kernel says that it is in use"},
		"another reason": {nil, unix.EIO, "refused"},
	} {
		s := unpack(t, "four.txtar", nil)
		a := &Applier{System: s, Dir: memory(t)}
		mustApply(t, a, Request{CPUs: []int{3}})
		for file, text := range c.files {
			p := s.path(simCgroup + "/other/" + file)
			if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text+"\n"), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		s.errno = map[string]error{control: c.errno}
		list, err := a.Restore(nil)
		if c.want == "refused" {
			if err == nil || len(list) != 1 || len(list[0].Refused) != 1 {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || len(list) != 1 {
			t.Errorf("%s: %v, %v", name, list, err)
			continue
		}
		stays := strings.Contains(Text(s, control), "cpuset")
		if r := list[0]; c.want == "" && (len(r.Foreign) > 0 || stays) || c.want != "" && (len(r.Foreign) != 1 || !strings.Contains(r.Foreign[0].String(), c.want) || !stays) {
			t.Errorf("%s: left alone %v, on: %v, want %q", name, r.Foreign, stays, c.want)
		}
		mustApply(t, a, Request{CPUs: []int{3}})
	}
}

// A container that sees no hierarchy is no host without cpusets: half an isolation is none.
func TestCPUSetsNotMounted(t *testing.T) {
	for name, change := range map[string]map[string]string{
		"by /proc/cgroups":     {"proc/cgroups": "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t0\t1\t1\n"},
		"by /proc/self/cpuset": {"proc/self/cpuset": "/\n"},
	} {
		s := unpack(t, "four.txtar", with(none, change))
		before := snapshot(t, s.Root)
		if _, err := (&Applier{System: s, Dir: memory(t)}).Apply(Request{CPUs: []int{3}}); err == nil || !strings.Contains(err.Error(), "mount one") || !strings.Contains(err.Error(), "nothing was changed") {
			t.Errorf("%s: %v", name, err)
		}
		same(t, name, before, snapshot(t, s.Root))
	}
	s := unpack(t, "four.txtar", with(none, map[string]string{"proc/cgroups": "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t0\t1\t0\n"}))
	if _, err := (&Applier{System: s, Dir: memory(t)}).Apply(Request{CPUs: []int{3}}); err != nil {
		t.Errorf("switched off: %v", err)
	}
}
