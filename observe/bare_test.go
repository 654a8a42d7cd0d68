package observe

import (
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// What nobody counts of a native thread is shown neither as a metric nor as a figure: a 0 would be a lie.
func TestBareIsNotShownAsZero(t *testing.T) {
	c := breaks.Counts{CPU: breaks.NoCPU, State: breaks.StateGuest, Sealed: 1, TSCHz: 1e9, Start: 1e9, SealedAt: 2e9, Seals: 1}
	book(&c, breaks.Sealed, breaks.Seal, 1, 40_000)
	c.Book[breaks.Sealed].Kernel[breaks.KernelPageFixed] = 7
	c.Book[breaks.Sealed].Kernel[breaks.KernelIRQ] = 5 // of nobody's core
	own := c
	own.ID, own.CPU = 1, 3
	vm := VM{Name: "n", Backend: breaks.BackendBare}
	s := &Snapshot{VCPUs: []Ledger{{Counts: c, Thread: "hot"}, {Counts: own}}, Now: 5e9}
	page := scrape(t, MetricsHandler(vm, always(s)))
	for _, want := range []string{`cause="page-fault",sealed="true",vcpu="0",vm="n"} 7`, `cause="host-interrupt",sealed="true",vcpu="1",vm="n"} 5`,
		`cloister_books_closed{sealed="true",vcpu="0",vm="n"} 0`} {
		if !strings.Contains(page, want) {
			t.Errorf("no %s in\n%s", want, page)
		}
	}
	for _, bad := range []string{`cause="syscall"`, `cause="exc-page-fault"`, `cause="host-interrupt",sealed="true",vcpu="0"`, "cloister_kvm_statistic_total"} {
		if strings.Contains(page, bad) {
			t.Errorf("%s is shown", bad)
		}
	}
	st := NewStatus(vm, s)
	b := st.VCPUs[0].Sealed
	if k, ok := b.ByCause["host-interrupt"]; !ok || k.Count != nil || *b.ByCause["page-fault"].Count != 7 || b.Total != 7 || b.NotKnown == "" {
		t.Errorf("%+v", b)
	}
	if _, ok := b.ByCause["syscall"]; ok || *st.VCPUs[1].Sealed.ByCause["host-interrupt"].Count != 5 {
		t.Errorf("%+v", st.VCPUs)
	}
}
