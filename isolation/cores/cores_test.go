package cores

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"golang.org/x/sys/unix"
)

func TestParseList(t *testing.T) {
	for _, c := range []struct {
		in   string
		want []int
		text string
	}{
		{"", nil, ""}, {"0\n", []int{0}, "0"}, {"0-3,7", []int{0, 1, 2, 3, 7}, "0-3,7"}, {"7,0-1,1", []int{0, 1, 7}, "0-1,7"},
		{"5-5", []int{5}, "5"}, {"8191", []int{8191}, "8191"},
	} {
		got, err := ParseList(c.in)
		if err != nil || !slices.Equal(got, c.want) || Format(got) != c.text {
			t.Errorf("%q: %v %q %v", c.in, got, Format(got), err)
		}
	}
	for _, bad := range []string{"a", "1-", "-1", "3-1", "0,,1", "8192", "0-99999999999", "1 2"} {
		if got, err := ParseList(bad); err == nil {
			t.Errorf("%q: %v, want an error", bad, got)
		}
	}
}

func FuzzParseList(f *testing.F) {
	for _, s := range []string{"", "0-3,7", "1,1", "8191", "a", "0-8191,5"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list, err := ParseList(s)
		if err != nil {
			return
		}
		again, err := ParseList(Format(list))
		if err != nil || !slices.Equal(list, again) {
			t.Fatalf("%q: %v, written %q, read %v (%v)", s, list, Format(list), again, err)
		}
	})
}

// host makes a sysfs with the given lists.
func host(t *testing.T, present, online string) Host {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, "sys/devices/system/cpu")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]string{"present": present, "online": online} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(s+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Host{Root: root}
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		present, online string
		allowed         []int
		cpu             int
		want            string // part of the error; empty: none
	}{
		{"0-3", "0-3", []int{0, 1}, 1, ""},
		{"0-3", "0-3", []int{0, 1}, 9, "does not exist: this machine has 0-3"},
		{"0-3", "0-1", []int{0, 1}, 3, "offline"},
		{"0", "0", []int{0}, 0, "the only one"},
		{"0-8000", "0-8000", []int{0}, 7999, "outside this process's cpuset"}, // no machine of ours has it
	} {
		err := host(t, c.present, c.online).Check(c.cpu, c.allowed)
		switch {
		case c.want == "" && err != nil, c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("CPU %d of %s online %s allowed %v: %v, want %q", c.cpu, c.present, c.online, c.allowed, err, c.want)
		case err != nil && strings.Contains(err.Error(), "\n"):
			t.Errorf("more than a line: %q", err)
		}
	}
	if err := (Host{Root: t.TempDir()}).Check(0, []int{0, 1}); err == nil {
		t.Error("no sysfs, and no error")
	}
}

func TestLease(t *testing.T) {
	dir := t.TempDir()
	a, err := Take(dir, 3, "VM a (process 1)")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Take(dir, 3, "VM b"); err == nil || !strings.Contains(err.Error(), "CPU 3 is in use by VM a (process 1)") {
		t.Errorf("second lease: %v", err)
	}
	other, err := Take(dir, 4, "VM b")
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Release(); err != nil {
		t.Fatal(err)
	}
	if err := a.Release(); err != nil {
		t.Fatal(err)
	}
	if a, err = Take(dir, 3, "VM c"); err != nil {
		t.Fatalf("after the release: %v", err)
	}
	if err := a.Release(); err != nil {
		t.Fatal(err)
	}
	if _, err := Take(filepath.Join(dir, "none"), 3, "x"); err == nil {
		t.Error("a lease in a directory that is not there")
	}
}

// A process whose threads come and go is kept off a core, all but the one that is excepted.
func TestKeepOff(t *testing.T) {
	testenv.Need(t, testenv.MultiCPU)
	allowed, err := Allowed()
	if err != nil {
		t.Fatal(err)
	}
	last := allowed[len(allowed)-1]
	keep := Without(allowed, last)
	if slices.Contains(keep, last) || len(keep) != len(allowed)-1 {
		t.Fatalf("%v without %d: %v", allowed, last, keep)
	}
	c := exec.Command("sleep", "30")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = c.Process.Kill() // it may have ended
		_ = c.Wait()         // ended by the line before
	}()
	var got unix.CPUSet
	for i, want := range []int{1, 0} {
		if n, err := KeepOff(c.Process.Pid, keep); err != nil || n != want {
			t.Fatalf("pass %d moved %d (%v), want %d", i, n, err, want)
		}
	}
	if err := unix.SchedGetaffinity(c.Process.Pid, &got); err != nil || !slices.Equal(members(&got), keep) {
		t.Errorf("affinity %v (%v), want %v", members(&got), err, keep)
	}
	if n, err := KeepOff(c.Process.Pid, allowed, c.Process.Pid); err != nil || n != 0 {
		t.Errorf("an excepted thread was moved: %d (%v)", n, err)
	}
	if _, err := KeepOff(1<<30, keep); err == nil {
		t.Error("no such process, and no error")
	}
	if !usable(last) || usable(MaxCPU) && runtime.NumCPU() < MaxCPU {
		t.Error("usable does not tell a CPU that is there from one that is not")
	}
	var after unix.CPUSet
	if err := unix.SchedGetaffinity(0, &after); err != nil || !slices.Equal(members(&after), allowed) {
		t.Errorf("usable left the affinity at %v", members(&after))
	}
}
