package breaks

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// log is a sink that keeps what it was told, and refuses as often as asked.
type log struct {
	told   []string
	refuse int
}

func (l *log) Notify(n Notice) error {
	if l.refuse > 0 {
		l.refuse--
		return errors.New("busy")
	}
	l.told = append(l.told, fmt.Sprintf("%s/%d +%d =%d %d", n.Cause, n.Half, n.Count, n.Total, n.Lost))
	return nil
}

func (l *log) expect(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(l.told, want) {
		t.Errorf("told %q, want %q", l.told, want)
	}
	l.told = nil
}

func TestNotifier(t *testing.T) {
	var everything, faults, kernel log
	n, err := NewNotifier(
		Rule{Causes: []Cause{Syscall, ExcPageFault}, Sink: &everything},
		Rule{Causes: []Cause{ExcPageFault}, SealedOnly: true, Interval: 100, Sink: &faults},
		Rule{Causes: []Cause{HostInterrupt, KernelOther}, Sink: SinkFunc(kernel.Notify)},
	)
	if err != nil {
		t.Fatal(err)
	}
	observe := func(c *Counts, now uint64) {
		t.Helper()
		if err := n.Observe(c, now, BackendSVM); err != nil {
			t.Error(err)
		}
	}
	c := sealedLedger(1)
	observe(c, 1000)
	everything.expect(t)

	c.spend(Open, ExcPageFault, 1, 7)
	c.spend(Sealed, ExcPageFault, 2, 5)
	c.Book[Open].Kernel[KernelExits], c.Book[Sealed].Kernel[KernelExits] = 1, 5
	c.Book[Sealed].Kernel[KernelIRQ] = 2
	observe(c, 1000)
	everything.expect(t, "exc-page-fault/0 +1 =1 7", "exc-page-fault/1 +2 =2 10")
	faults.expect(t, "exc-page-fault/1 +2 =2 10")
	kernel.expect(t, "host-interrupt/1 +2 =2 0", "kernel-other/1 +1 =1 0")

	// Within the interval nothing is said; afterwards all of it, joined.
	for now := uint64(1010); now < 1100; now += 30 {
		c.spend(Sealed, ExcPageFault, 1, 5)
		c.Book[Sealed].Kernel[KernelExits]++
		observe(c, now)
	}
	faults.expect(t)
	observe(c, 1100)
	faults.expect(t, "exc-page-fault/1 +3 =5 15")

	// What a sink refused is offered again, and the other sinks are served all the same.
	everything.told, faults.refuse = nil, 1
	c.spend(Sealed, ExcPageFault, 1, 5)
	if err := n.Observe(c, 1300, BackendSVM); err == nil || !strings.Contains(err.Error(), "exc-page-fault on vCPU 0: busy") {
		t.Errorf("refused: %v", err)
	}
	everything.expect(t, "exc-page-fault/1 +1 =6 5")
	observe(c, 1301)
	faults.expect(t, "exc-page-fault/1 +1 =6 5")

	// The kernel's causes wait until their books close: now an exit is missing, then it is there.
	kernel.told = nil
	c.Book[Sealed].Kernel[KernelIRQ]++
	observe(c, 1400)
	kernel.expect(t)
	c.Book[Sealed].Kernel[KernelExits] += 2
	observe(c, 1500)
	kernel.expect(t, "host-interrupt/1 +1 =3 0")
}

func TestNewNotifierRefuses(t *testing.T) {
	var l log
	for _, r := range []Rule{{Sink: &l}, {Causes: []Cause{Syscall}}, {Causes: []Cause{NCause}, Sink: &l}} {
		if _, err := NewNotifier(r); err == nil {
			t.Errorf("%+v is accepted", r)
		}
	}
	var none Notifier
	if err := none.Observe(sealedLedger(1), 5, BackendSVM); err != nil {
		t.Errorf("the zero Notifier: %v", err)
	}
}
