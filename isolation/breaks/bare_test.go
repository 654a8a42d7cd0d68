package breaks

import (
	"bytes"
	"strings"
	"testing"
)

// bareLedger is a native run of 3 s, sealed for 2 of them.
func bareLedger(cpu uint32) Ledger {
	const ns = 1_000_000_000
	c := Counts{CPU: cpu, State: StateEnded, TSCHz: ns, Start: ns, End: 4 * ns, Seals: 1, SealedIn: 2 * ns}
	c.Book[Open].Guest, c.Book[Sealed].Guest = ns-5000, 2*ns-90_000
	c.spend(Open, Seal, 2, 40_000)
	c.spend(Open, End, 1, 0)
	c.Book[Open].Kernel[KernelIRQ], c.Book[Open].Kernel[KernelPageFixed] = 250, 34
	c.Book[Sealed].Kernel[KernelIRQ], c.Book[Sealed].Kernel[KernelPageFixed] = 500, 1
	l := Ledger{Counts: c, TID: 4711, Statistics: [2]map[string]uint64{
		{"run_ns": ns - 5000, "interrupt:LOC": 250, "minor_faults": 34, "major_faults": 0},
		{"run_ns": 2*ns - 90_000, "interrupt:LOC": 500, "minor_faults": 1, "major_faults": 0},
	}}
	l.Threads.Add(4711, "my-loop\x1b")
	return l
}

func bareFacts() Facts {
	return Facts{Host: Host{Backend: BackendBare, Kernel: "6.18.44"}, Program: Program{Path: "./my-loop", Seal: "call"}, Exit: Exit{Reason: "exit 0"},
		NotMeasured: []NotKnown{{"system calls, by number", "the kernel does not count them"}}}
}

func TestBareReport(t *testing.T) {
	r := Build(bareFacts(), []Ledger{bareLedger(1)})
	v := r.VCPUs[0]
	if v.TID != 4711 || len(v.Threads) != 1 || v.Threads[0].ID != 4711 || v.WallNS != 3e9 || v.SealedNS != 2e9 || v.GuestNS != 3e9-95_000 || v.Sealed.GuestNS != 2e9-90_000 {
		t.Errorf("%+v", v)
	}
	if n := v.Sealed.ByCause["host-interrupt"]; n.Count != 500 || n.LostNS != nil || v.Breaks.ByCause["page-fault"].Count != 35 || v.Sealed.Total != 501 {
		t.Errorf("%+v", v.Sealed)
	}
	if k := v.Breaks.Kernel; k["interrupt:LOC"] != 750 || k["run_ns"] != 3e9-95_000 || v.Sealed.Kernel["minor_faults"] != 1 || len(k) != 4 {
		t.Errorf("%v", k)
	}
	if !r.Books.ReturnsClosed || r.Books.KernelClosed || r.Books.Closed || len(r.Books.Why) != 1 {
		t.Errorf("%+v", r.Books)
	}
	if r.Certificate.Issued {
		t.Error("a certificate for a run whose system calls nobody counted")
	}
	var b bytes.Buffer
	if err := r.WriteText(&b, TextOptions{}); err != nil {
		t.Fatal(err)
	}
	golden(t, "report-bare.txt", b.Bytes())
	if strings.Contains(b.String(), "KVM") {
		t.Errorf("a native run's report speaks of KVM:\n%s", b.String())
	}
}

// Several threads make one table, in the words of a native run.
func TestBareThreadsReport(t *testing.T) {
	b, err := Parse("page-fault<=1,syscall=0")
	if err != nil {
		t.Fatal(err)
	}
	f := bareFacts()
	f.Budget = &b
	hot, helper := bareLedger(1), bareLedger(NoCPU)
	helper.Counts.ID, helper.TID, helper.Counts.Seals, helper.Counts.SealedIn = 1, 4712, 0, 0
	helper.Counts.Book[Sealed], helper.Statistics[Sealed] = Book{}, map[string]uint64{}
	helper.Counts.Book[Open].Kernel[KernelIRQ] = 0
	delete(helper.Statistics[Open], "interrupt:LOC")
	helper.Threads = Threads{}
	helper.Threads.Add(4712, "helper")
	r := Build(f, []Ledger{hot, helper})
	if len(r.Books.Why) != 1 || r.VCPUs[1].TID != 4712 || r.VCPUs[1].Threads[0] != (GuestThread{4712, "helper"}) {
		t.Errorf("%q, %+v", r.Books.Why, r.VCPUs[1])
	}
	out := text(t, r, TextOptions{})
	golden(t, "report-bare-threads.txt", out)
	for _, word := range []string{"KVM", "vCPU", "guest"} {
		if bytes.Contains(out, []byte(word)) {
			t.Errorf("a native run's report speaks of %s", word)
		}
	}
}

// What nobody counts is never kept, and is broken only by what is known.
func TestBareBudget(t *testing.T) {
	for _, x := range []struct {
		spec string
		cpu  uint32
		want State
	}{
		{"host-interrupt<=500", 1, Kept}, {"host-interrupt<=499", 1, Broken}, {"host-interrupt=0", NoCPU, Broken}, {"host-interrupt<=500", NoCPU, Unjudged},
		{"page-fault<=1", NoCPU, Kept}, {"page-fault=0", 1, Broken}, {"kernel<=501", 1, Kept}, {"kernel<=501", NoCPU, Unjudged}, {"emulation=0,mmio=0", 1, Kept},
		{"syscall=0", 1, Unjudged}, {"exceptions=0", 1, Unjudged}, {"signal=0", 1, Unjudged}, {"user=0", 1, Unjudged}, {"total<=501", 1, Unjudged}, {"total<=500", 1, Broken},
		{"lost<=1h", 1, Unjudged}, {"max<=1h", 1, Unjudged}, {"page-fault<=1,syscall=0", 1, Unjudged},
	} {
		b, err := Parse(x.spec)
		if err != nil {
			t.Fatal(err)
		}
		f := bareFacts()
		f.Budget = &b
		got := Build(f, []Ledger{bareLedger(x.cpu)}).Budget
		if got.State != x.want || got.OK != (x.want == Kept) {
			t.Errorf("%s: %+v, want %s", x.spec, got, x.want)
		}
	}
}

// A thread that was never sealed has no part in a budget that another one keeps or breaks.
func TestBudgetIsOfTheSealed(t *testing.T) {
	b, err := Parse("page-fault<=1")
	if err != nil {
		t.Fatal(err)
	}
	f := bareFacts()
	f.Budget = &b
	helper := bareLedger(NoCPU)
	helper.Counts.ID, helper.Counts.Seals, helper.Counts.SealedIn = 1, 0, 0
	if got := Build(f, []Ledger{bareLedger(1), helper}).Budget; got.State != Kept || len(got.Clauses) != 1 {
		t.Errorf("one sealed, one not: %+v", got)
	}
	if got := Build(f, []Ledger{helper}).Budget; got.State != Untested {
		t.Errorf("none sealed: %+v", got)
	}
}
