package vcpu

import (
	"errors"
	"slices"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/cores"
	"golang.org/x/sys/unix"
)

// affinity is where a thread may run, of CPUs 0 to 63.
func affinity(t *testing.T, tid int) (list []int) {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(tid, &set); err != nil {
		t.Fatal(err)
	}
	for c := range 64 {
		if set.IsSet(c) {
			list = append(list, c)
		}
	}
	return list
}

// A thread is let in before it is pinned, at its start and at each move; who is not let in stays where he is.
func TestAdmit(t *testing.T) {
	testenv.Need(t, testenv.MultiCPU)
	core := dedicated(t)
	all, err := cores.Allowed()
	if err != nil {
		t.Fatal(err)
	}
	rest := cores.Without(all, core)
	type call struct{ to, was []int }
	var calls []call
	var refuse error
	m, born := boot(t, guestSpin, nil, func(c *Config) {
		c.Admit = func(tid int, cpus []int) error {
			calls = append(calls, call{slices.Clone(cpus), affinity(t, tid)})
			return refuse
		}
	})
	resume(t, born)
	for _, cpus := range [][]int{rest, {core}} {
		if err := m.Move(cpus, false); err != nil {
			t.Fatal(err)
		}
		if got := affinity(t, m.TID()); !slices.Equal(got, cpus) {
			t.Errorf("moved to %v, it may run on %v", cpus, got)
		}
	}
	for i, want := range []call{{[]int{core}, all}, {rest, []int{core}}, {[]int{core}, rest}} {
		if len(calls) <= i || !slices.Equal(calls[i].to, want.to) || !slices.Equal(calls[i].was, want.was) {
			t.Fatalf("calls %v, want the %dth to be %v", calls, i, want)
		}
	}
	refuse = errors.New("not here")
	if err := m.Move(rest, false); !errors.Is(err, refuse) {
		t.Errorf("not admitted, and moved: %v", err)
	}
	if got := affinity(t, m.TID()); !slices.Equal(got, []int{core}) {
		t.Errorf("not admitted, it may run on %v", got)
	}
}
