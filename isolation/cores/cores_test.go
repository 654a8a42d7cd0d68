package cores

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
	} {
		err := host(t, c.present, c.online).check(c.cpu, c.allowed)
		switch {
		case c.want == "" && err != nil, c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("CPU %d of %s online %s allowed %v: %v, want %q", c.cpu, c.present, c.online, c.allowed, err, c.want)
		case err != nil && strings.Contains(err.Error(), "\n"):
			t.Errorf("more than a line: %q", err)
		}
	}
	if err := (Host{Root: t.TempDir()}).check(0, []int{0, 1}); err == nil {
		t.Error("no sysfs, and no error")
	}
}

// Nobody steps onto a core that somebody else has leased: to try whether a thread may go there comes after the lease, which
// is given back if it may not.
func TestTakeTriesAfterTheLease(t *testing.T) {
	const cpu = 4093 // no machine of ours has it
	h, dir := host(t, "0-4094", "0-4094"), t.TempDir()
	tried, leased := 0, false
	usable = func(cpu int) bool {
		_, err := os.Stat(filepath.Join(dir, "cpu-4093.lease"))
		tried, leased = tried+1, err == nil
		return pinned(cpu)
	}
	defer func() { usable = pinned }()
	first, err := Take(dir, cpu, "VM a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Take(dir, cpu, "VM b", []int{0, 1}); err == nil || !strings.Contains(err.Error(), "in use by VM a") || tried != 0 {
		t.Errorf("a leased core: %v, tried %d times", err, tried)
	}
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Take(dir, cpu, "VM b", []int{0, 1}); err == nil || !strings.Contains(err.Error(), "outside this process's cpuset: choose one of 0-1") || strings.Contains(err.Error(), "\n") || tried != 1 || !leased {
		t.Errorf("a free one, outside the cpuset: %v, tried %d times, leased then: %v", err, tried, leased)
	}
	// The lease of the one that could not be used was given back. One that the process is on anyway is not tried.
	l, err := h.Take(dir, cpu, "VM c", []int{0, cpu})
	if err != nil || tried != 1 {
		t.Fatalf("%v, tried %d times", err, tried)
	}
	if err := l.Release(); err != nil {
		t.Error(err)
	}
	if _, err := h.Take(dir, 4095, "VM c", []int{0}); err == nil || !strings.Contains(err.Error(), "does not exist") || tried != 1 {
		t.Errorf("one that is not there: %v, tried %d times", err, tried)
	}
}

// Who leases what is asked of the machine, for the CPUs on line.
func TestLeased(t *testing.T) {
	lock, err := claimName(4092) // as another process does
	if err != nil {
		t.Fatal(err)
	}
	list, err := host(t, "4090-4094", "4091-4094").Leased()
	if err != nil || !slices.Equal(list, []int{4092}) {
		t.Errorf("leased: %v (%v)", list, err)
	}
	if err := unix.Close(lock); err != nil {
		t.Fatal(err)
	}
	if list, err := host(t, "4090-4094", "4091-4094").Leased(); err != nil || len(list) > 0 {
		t.Errorf("released: %v (%v)", list, err)
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

// A lease leaves nothing behind, and the file that a killed owner left is used and removed by the next one.
func TestLeaseLeavesNoFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "cpu-4095.lease")
	empty := func(when string) {
		t.Helper()
		if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
			t.Errorf("%s: %v (%v) is left", when, list, err)
		}
	}
	for _, before := range []string{"", "VM that was killed (process 9)\n"} {
		if before != "" {
			if err := os.WriteFile(file, []byte(before), 0o666); err != nil {
				t.Fatal(err)
			}
		}
		l, err := Take(dir, 4095, "VM a")
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(file); err != nil || string(b) != "VM a\n" {
			t.Errorf("the file says %q (%v)", b, err)
		}
		if used, err := InUse(4095); err != nil || used {
			t.Errorf("our own, and in use by another: %v (%v)", used, err)
		}
		// Another directory, so only the name excludes.
		other := t.TempDir()
		if _, err := Take(other, 4095, "VM b"); err == nil || !strings.Contains(err.Error(), "another run directory") {
			t.Errorf("a second owner in another directory: %v", err)
		}
		if list, err := os.ReadDir(other); err != nil || len(list) > 0 {
			t.Errorf("a lease that was refused leaves %v (%v)", list, err)
		}
		if err := l.Release(); err != nil {
			t.Error(err)
		}
		empty("after the release")
	}
	lock, err := claimName(4095) // as another process does
	if err != nil {
		t.Fatal(err)
	}
	if used, err := InUse(4095); err != nil || !used {
		t.Errorf("leased, and in use: %v (%v)", used, err)
	}
	if err := unix.Close(lock); err != nil {
		t.Fatal(err)
	}
	if used, err := InUse(4095); err != nil || used {
		t.Errorf("released, and in use: %v (%v)", used, err)
	}
	// The name is not the file's any more: who removed it is not robbed of his own.
	l, err := Take(dir, 4095, "VM a")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file, file+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := l.Release(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("a file that was not the lease's: %v", err)
	}
}

// Owners come and go at the same time: never two at once, although each removes the file.
func TestLeaseRace(t *testing.T) {
	dir := t.TempDir()
	var holders, taken atomic.Int32
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			for range 400 {
				f, err := lockFile(filepath.Join(dir, "x"))
				if err != nil {
					continue
				}
				if holders.Add(1) != 1 {
					t.Error("two hold the file")
				}
				taken.Add(1)
				runtime.Gosched()
				holders.Add(-1)
				if err := dropFile(f); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	if taken.Load() < 50 {
		t.Errorf("taken %d times of 3200", taken.Load())
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
