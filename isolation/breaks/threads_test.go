package breaks

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// severalLedgers are four vCPUs: a main thread that was never sealed, two sealed loops of which the second
// is disturbed, and a helper without statistics whose threads came and went.
func severalLedgers() []Ledger {
	main := sampleLedger()
	main.Counts.CPU, main.Counts.Seals, main.Counts.SealedAt, main.Counts.Book[Sealed] = NoCPU, 0, 0, Book{}
	main.Threads.Add(100, "my-loop")

	calm := Ledger{Counts: Counts{ID: 1, CPU: 2, State: StateEnded, TSCHz: hz, Start: hz, End: 6 * hz, Seals: 1, SealedAt: 2 * hz}}
	calm.Counts.Book[Open].Guest, calm.Counts.Book[Sealed].Guest = hz, 4*hz
	calm.Threads.Add(101, "rt-calm")

	busy := sampleLedger()
	busy.Counts.ID, busy.Counts.CPU = 2, 3
	busy.Counts.spend(Sealed, ExcPageFault, 1, 240_000) // no exit of KVM's for it: made good in the next line
	busy.Counts.Book[Sealed].Kernel[KernelExits], busy.Counts.Book[Sealed].Kernel[KernelEmulation] = 12*2+2+961+1+2, 12+1+1
	busy.Threads.Add(102, "my-loop")
	busy.Threads.Add(102, "rt-busy")
	busy.Sites = slices.Clone(busy.Sites[:1])

	pool := Ledger{Counts: Counts{ID: 3, CPU: NoCPU, State: StateIdle, TSCHz: hz, Start: hz, End: 6 * hz, Idle: hz, IdleAt: 5 * hz}, NoStatistics: "its descriptor did not come"}
	pool.Counts.Book[Open].Guest = hz
	pool.Counts.spend(Open, Syscall, 3, 90_000)
	pool.Counts.spend(Open, Signal, 1, 9_000)
	pool.Counts.Book[Open].Syscall[1] = Numbered{3, 270_000}
	for i, name := range []string{"log\x1b[2Jger", "w1", "w2", "w3", "w3"} {
		pool.Threads.Add(103+i, name)
	}
	return []Ledger{main, calm, busy, pool}
}

func TestSeveralVCPUs(t *testing.T) {
	f := sampleFacts(t)
	r := Build(f, severalLedgers())
	golden(t, "report-threads.txt", text(t, r, TextOptions{}))

	if v := r.VCPUs[3]; v.WallNS != 3e9 || v.IdleNS != 2e9 {
		t.Errorf("wall %d ns, idle %d ns; of 5 s it was idle for 2", v.WallNS, v.IdleNS)
	}
	// The statistics of one are missing: its kernel causes are not known, those of the others are.
	for i, v := range r.VCPUs {
		if (v.Breaks.Kernel == nil) != (i == 3) {
			t.Errorf("vCPU %d: KVM's statistics are %v", i, v.Breaks.Kernel)
		}
	}
	if !slices.ContainsFunc(r.NotMeasured, func(n NotKnown) bool {
		return strings.Contains(n.What, "vCPU 3") && strings.Contains(n.Why, "descriptor")
	}) || r.Books.KernelClosed {
		t.Errorf("not measured: %+v, closed %v", r.NotMeasured, r.Books.KernelClosed)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(encode(t, r)))
	if err != nil {
		t.Fatal(err)
	}
	if err := schema(t).Validate(doc); err != nil {
		t.Error(err)
	}
}

// Each sealed vCPU is judged on its own, and one that was never sealed is not held against them.
func TestBudgetOfSeveralVCPUs(t *testing.T) {
	judged := func(s *BudgetState) (ids []uint32) {
		for _, c := range s.Clauses {
			ids = append(ids, c.VCPU)
		}
		return ids
	}
	l := severalLedgers()
	for _, x := range []struct {
		name    string
		spec    string
		ledgers []Ledger
		state   State
		judged  string
	}{
		{"the disturbed one breaks it", "exceptions=0", l, Broken, "[1 2]"},
		{"each has the whole budget", "exceptions<=1", l, Kept, "[1 2]"},
		{"without the disturbed one", "total=0", []Ledger{l[0], l[1], l[3]}, Kept, "[1]"},
		{"none was sealed", "total=0", []Ledger{l[0], l[3]}, Untested, "[0 3]"},
	} {
		b, err := Parse(x.spec)
		if err != nil {
			t.Fatal(err)
		}
		r := Build(Facts{Host: Host{Backend: BackendPVM}, Budget: &b}, x.ledgers)
		s := r.Budget
		if s.State != x.state || s.OK != (x.state == Kept) || fmt.Sprint(judged(s)) != x.judged {
			t.Errorf("%s: %s, ok %v, judged %v; want %s, %s", x.name, s.State, s.OK, judged(s), x.state, x.judged)
		}
		never := slices.ContainsFunc(r.Certificate.FailedClauses, func(s string) bool { return strings.Contains(s, "sealed") && strings.Contains(s, "ever") })
		if never != (x.state == Untested) {
			t.Errorf("%s: the certificate says %q", x.name, r.Certificate.FailedClauses)
		}
	}
	// Statistics that are missing for one sealed vCPU leave its clause open, and only its.
	b := must(Parse("host-interrupt<=100000"))
	calm, busy := l[1], l[2]
	calm.NoStatistics = "its descriptor did not come"
	s := Build(Facts{Host: Host{Backend: BackendPVM}, Budget: &b}, []Ledger{calm, busy}).Budget
	if s.State != Unjudged || s.Clauses[0].State != Unjudged || s.Clauses[1].State != Kept {
		t.Errorf("%+v", s)
	}
}

func TestTableOfManyVCPUs(t *testing.T) {
	var list []Ledger
	for i := range uint32(MaxVCPUs) {
		l := Ledger{Counts: Counts{ID: i, CPU: NoCPU, TSCHz: hz, Start: 1, End: hz}}
		l.Threads.Add(int(i), fmt.Sprintf("t%d", i))
		if i == 60 {
			l.Counts.Seals, l.Counts.SealedAt = 1, 1
		}
		list = append(list, l)
	}
	if why := Build(Facts{Host: Host{Backend: BackendPVM}, NoStatistics: "an old kernel"}, list).Books.Why; len(why) != 1 || strings.Contains(why[0], "vCPU") {
		t.Errorf("what is true of all is not said once: %q", why)
	}
	out := string(text(t, Build(Facts{Host: Host{Backend: BackendPVM}}, list), TextOptions{}))
	if !strings.Contains(out, "t60 ") || !strings.Contains(out, "48 vCPUs more") || strings.Count(out, "never") != vcpuRows {
		t.Errorf("the table is to have the sealed vCPU and %d rows in all:\n%s", vcpuRows, out)
	}
}

func TestThreads(t *testing.T) {
	var l Threads
	if l.Name() != "" {
		t.Errorf("nobody is called %q", l.Name())
	}
	for i := range MaxThreads + 3 {
		l.Add(i, "before")
		l.Add(i, fmt.Sprint("after ", i))
	}
	if len(l.List) != MaxThreads || l.NotKept != 3 || l.List[0] != (GuestThread{3, "after 3"}) || l.Name() != fmt.Sprint("after ", MaxThreads+2) {
		t.Errorf("%d kept, %d not, from %+v, now %q", len(l.List), l.NotKept, l.List[0], l.Name())
	}
	for in, want := range map[string]string{
		"": "", "rt loop": "rt loop", "exactly15bytes!": "exactly15bytes!", "exactly15bytes!!": "exactly15bytes!", "a\nb\x1b\x00": "a?b??",
		"\xff\xfe": "??", "\u202eabc": "?abc", strings.Repeat("ä", 8): strings.Repeat("ä", 7), strings.Repeat("\xc3", 99): strings.Repeat("?", 15),
	} {
		if got := ThreadName(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// A name comes out of the guest's memory: whatever is in it, what is shown of it is short and plain.
func FuzzThreadName(f *testing.F) {
	for _, s := range []string{"", "main", "a\x1b[2Jb", "\xf0\x9f\x98", strings.Repeat("日本", 9)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name := ThreadName(s)
		if len(name) > MaxThreadName || !utf8.ValidString(name) || strings.ContainsFunc(name, func(c rune) bool { return !unicode.IsPrint(c) }) || ThreadName(name) != name {
			t.Errorf("%q became %q", s, name)
		}
	})
}
