package observe

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// Statistics that one vCPU lacks leave its own kernel causes out, and nobody else's.
func TestStatisticsOfOneVCPU(t *testing.T) {
	vm, s := fake(t)
	s.VCPUs[1].NoStatistics = true
	text := scrape(t, MetricsHandler(vm, always(s)))
	for i, shown := range []bool{true, false} {
		if has := strings.Contains(text, fmt.Sprintf(`cloister_breaks_total{cause="host-interrupt",sealed="false",vcpu="%d"`, i)); has != shown {
			t.Errorf("vCPU %d: host-interrupt is shown: %v", i, has)
		}
	}
	st := NewStatus(vm, s)
	if v := &st.VCPUs[0]; v.Sealed.NotKnown != "" || *v.Sealed.ByCause["host-interrupt"].Count != 30 {
		t.Errorf("vCPU 0: %+v", v.Sealed)
	}
	if v := &st.VCPUs[1]; !strings.Contains(v.Open.NotKnown, "not read") || v.Open.ByCause["host-interrupt"].Count != nil {
		t.Errorf("vCPU 1: %+v", v.Open)
	}
}

// A vCPU's wall leaves its idle time out, the VM's does not.
func TestIdle(t *testing.T) {
	idle := breaks.Counts{ID: 1, State: breaks.StateIdle, TSCHz: hz, Start: 2 * hz, Idle: hz, IdleAt: 6 * hz}
	s := &Snapshot{VCPUs: []Ledger{{Counts: idle}}, Now: 12 * hz}
	st := NewStatus(VM{}, s)
	if v := st.VCPUs[0]; st.WallNS != 10e9 || v.WallNS != 3e9 || v.IdleNS != 7e9 || v.State != "idle" {
		t.Errorf("the VM ran for %d ns, its vCPU for %d and was idle for %d, %s", st.WallNS, v.WallNS, v.IdleNS, v.State)
	}
	// The end stops every clock.
	s.VCPUs[0].End = 8 * hz
	if st = NewStatus(VM{}, s); st.WallNS != 6e9 || st.VCPUs[0].WallNS != 3e9 || st.VCPUs[0].IdleNS != 3e9 {
		t.Errorf("after the end: %+v", st)
	}
	var b strings.Builder
	s.VCPUs = append(s.VCPUs, Ledger{Counts: breaks.Counts{TSCHz: hz, Start: hz}, Thread: "main"})
	if err := WriteStats(&b, nil, NewStatus(VM{}, s)); err != nil || !strings.Contains(b.String(), "without a thread 3s") {
		t.Errorf("%v:\n%s", err, b.String())
	}
}

// The guest chooses the names of its threads. However often it changes them, there are few series.
func TestThreadNamesAreBounded(t *testing.T) {
	vm, s := fake(t)
	names := map[string]bool{}
	h := MetricsHandler(vm, always(s))
	for i := range 100 {
		s.VCPUs[1].Thread = fmt.Sprintf("evil%d\n\x00", i)
		for line := range strings.Lines(scrape(t, h)) {
			if strings.HasPrefix(line, "cloister_vcpu_thread_info{") && strings.Contains(line, `vcpu="1"`) {
				names[line] = true
			}
		}
	}
	if len(names) != maxNames+1 {
		t.Errorf("%d series of one vCPU, want %d: %v", len(names), maxNames+1, names)
	}
	// A name that was shown before is still told.
	s.VCPUs[1].Thread = "evil0\n\x00"
	if text := scrape(t, h); !strings.Contains(text, `cloister_vcpu_thread_info{thread="evil0??",vcpu="1",vm="loop"} 1`) {
		t.Errorf("evil0 is not shown any more:\n%s", text)
	}
}

// With several vCPUs, one that was never sealed is not held against those that were.
func TestBudgetOfUnsealedVCPUs(t *testing.T) {
	vm, s := fake(t)
	var b strings.Builder
	if err := WriteStats(&b, nil, NewStatus(vm, s)); err != nil || strings.Contains(b.String(), "budget, vCPU 1") || !strings.Contains(b.String(), "budget, vCPU 0") {
		t.Errorf("%v:\n%s", err, b.String())
	}
	s.VCPUs[0].Seals = 0
	b.Reset()
	if err := WriteStats(&b, nil, NewStatus(vm, s)); err != nil || !strings.Contains(b.String(), "budget, vCPU 1: total<=100: untested") {
		t.Errorf("%v:\n%s", err, b.String())
	}
}
