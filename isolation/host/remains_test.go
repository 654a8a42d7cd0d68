package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func remark(list []Remark, what string) string {
	for _, r := range list {
		if strings.HasPrefix(r.What, what) {
			return r.Why
		}
	}
	return ""
}

// newThread makes a thread that may run anywhere.
func newThread(t *testing.T, s *sim, tid int) {
	t.Helper()
	dir := s.path(fmt.Sprintf("proc/%d/task/%d", tid, tid))
	stat := strings.Replace(fourOwner, "400 (vcpu owner)", fmt.Sprintf("%d (forked)", tid), 1)
	for name, text := range map[string]string{"stat": stat, "status": "Name:\tforked\nCpus_allowed_list:\t0-3\n"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// What was moved and comes back, and what comes faster than it can be moved, is reported with its cause; with --strict it is
// an error, and everything is undone.
func TestComesBack(t *testing.T) {
	for name, c := range map[string]struct {
		hook func(*testing.T, *sim, string)
		what string
		why  string
	}{
		"a thread": {func(t *testing.T, s *sim, name string) {
			if name == "thread 401" {
				if err := s.allow(300, []int{2, 3}); err != nil {
					t.Error(err)
				}
			}
		}, "thread 300 (daemon (odd) name)", "it was moved and has come back"},
		"an interrupt": {func(t *testing.T, s *sim, name string) {
			if name == tunable {
				if err := s.Live.Write(irq24, "0-3"); err != nil {
					t.Error(err)
				}
			}
		}, "IRQ 24 (ahci)", "it was moved and has come back: irqbalance"},
		"threads without end": {func(t *testing.T, s *sim, name string) {
			if strings.HasPrefix(name, "thread ") {
				s.made++
				newThread(t, s, 1000+s.made)
			}
		}, "thread 11", "threads are made faster than they can be moved"},
	} {
		for _, strict := range []bool{false, true} {
			s := unpack(t, "four.txtar", none)
			before := snapshot(t, s.Root)
			s.hook = func(name string) { c.hook(t, s, name) }
			a := &Applier{System: s, Dir: memory(t), Strict: strict}
			res, err := a.Apply(Request{CPUs: []int{3}})
			s.hook = nil
			switch {
			case strict:
				if err == nil || !strings.Contains(err.Error(), c.why) || !strings.Contains(err.Error(), "--strict") || strings.Contains(err.Error(), "\n") {
					t.Errorf("%s, strict: %v", name, err)
				}
			case err != nil:
				t.Errorf("%s: %v", name, err)
			default:
				if why := remark(res.Cannot, c.what); !strings.Contains(why, c.why) {
					t.Errorf("%s: %q, want %q in %v", name, why, c.why, res.Cannot)
				}
				mustRestore(t, a)
			}
			after := snapshot(t, s.Root)
			for file := range after { // threads that are new are not ours to end
				if _, was := before[file]; !was && strings.HasPrefix(file, "proc/1") {
					delete(after, file)
				}
			}
			same(t, name, before, after)
		}
	}
}

// An interrupt or a thread that comes while the others are moved is moved too.
func TestComesMeanwhile(t *testing.T) {
	s := unpack(t, "four.txtar", none)
	s.hook = func(name string) {
		if name != tunable {
			return
		}
		newThread(t, s, 1001)
		if err := os.MkdirAll(s.path("proc/irq/30/usb"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.path("proc/irq/30/smp_affinity_list"), []byte("2-3\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	a := &Applier{System: s, Dir: memory(t), Strict: true}
	mustApply(t, a, Request{CPUs: []int{3}})
	s.hook = nil
	if got := Text(s, "proc/irq/30/smp_affinity_list"); got != "2" {
		t.Errorf("the interrupt goes to %s", got)
	}
	if got := allowed(s, 1001); got != "0-2" {
		t.Errorf("the thread may run on %s", got)
	}
	mustRestore(t, a)
	if got := Text(s, "proc/irq/30/smp_affinity_list"); got != "2-3" {
		t.Errorf("restored, the interrupt goes to %s", got)
	}
}

// After an apply each interrupt that may still come to the cores is named with what keeps it there.
func TestRemainingInterrupts(t *testing.T) {
	const irq26 = "proc/irq/26/smp_affinity_list"
	for debug, want := range map[string]string{
		"":                                "the kernel refuses to move it: its driver keeps it there, as it seems (no /sys/kernel/debug/irq/irqs/26 tells)",
		"IRQD_AFFINITY_MANAGED":           "the kernel manages it itself: isolcpus=managed_irq,3 at boot, or fewer queues of the device",
		"IRQD_NO_BALANCING IRQD_PER_CPU":  "its driver keeps it there",
		"IRQD_AFFINITY_MANAGED elsewhere": "the kernel manages it itself: isolcpus=managed_irq,3 at boot, or fewer queues of the device; now it goes to CPU 1",
	} {
		flags, elsewhere := strings.CutSuffix(debug, " elsewhere")
		overlay := map[string]string{}
		if debug != "" {
			overlay["sys/kernel/debug/irq/irqs/26"] = flags
		}
		if elsewhere {
			overlay["proc/irq/26/effective_affinity_list"] = "1"
		}
		s := unpack(t, "four.txtar", overlay)
		s.errno = map[string]error{irq26: unix.EIO}
		a := &Applier{System: s, Dir: memory(t)}
		res := mustApply(t, a, Request{CPUs: []int{3}})
		if why := remark(res.Cannot, "IRQ 26 (nvme0q4)"); why != want {
			t.Errorf("%q: %q, want %q", debug, why, want)
		}
		if n := len(slices.DeleteFunc(slices.Clone(res.Cannot), func(r Remark) bool { return !strings.HasPrefix(r.What, "IRQ ") })); n != 1 {
			t.Errorf("%q: %d interrupts stay: %v", debug, n, res.Cannot)
		}
	}
}

// Permissions are read from the machine itself, and from a recording by the name that they have there.
func TestModeIsRead(t *testing.T) {
	const name = "proc/sys/kernel/osrelease" + modeOf
	r := &Recorder{System: Live{"/"}}
	if got := Text(r, name); got != "444" || string(r.read[name]) != "444\n" {
		t.Errorf("%q, recorded %q", got, r.read[name])
	}
	if got := Text(unpack(t, "four.txtar", map[string]string{name: "640"}), name); got != "640" {
		t.Errorf("recorded as 640, it is %q", got)
	}
	if _, err := (Live{"/"}).Read("proc/nosuch" + modeOf); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of what is not there: %v", err)
	}
}
