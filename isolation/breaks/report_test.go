package breaks

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := "testdata/" + name
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; go test -update writes it anew. Got:\n%s", path, got)
	}
}

// sampleLedger is a run of 5 s, sealed for 4 of them, with some of everything.
func sampleLedger() Ledger {
	c := Counts{ID: 0, CPU: 1, State: StateEnded, TSCHz: hz, Start: hz, End: 6 * hz, Seals: 1, SealedAt: 2 * hz, Kicks: 1}
	c.LastOut, c.LastIn = c.End, c.End-1
	c.Book[Open].Guest, c.Book[Sealed].Guest = 29*hz/30, 3999*(hz/1000)
	c.spend(Open, Syscall, 14, 216_000)
	c.spend(Open, Syscall, 1, 3_100_000)
	c.spend(Open, Seal, 1, 220_000)
	c.spend(Open, ExcPageFault, 2, 175_000)
	c.spend(Open, Setup, 1, 90_000)
	c.spend(Sealed, Syscall, 12, 230_000)
	c.spend(Sealed, Kick, 1, 105_000)
	c.spend(Sealed, End, 1, 1000)
	number := func(half, nr int, n, each uint64) {
		c.Book[half].Syscall[nr].Count += n
		c.Book[half].Syscall[nr].Lost += n * each
	}
	number(Open, 9, 14, 216_000)
	number(Open, 0, 1, 3_100_000)
	number(Open, NSyscall-1, 1, 220_000)
	number(Sealed, 1, 12, 230_000)
	number(Sealed, sysExitGroup, 1, 1000)

	kernel := func(half int, exits, irq, fixed, emul uint64) {
		k := &c.Book[half].Kernel
		k[KernelExits], k[KernelIRQ], k[KernelPageFixed], k[KernelEmulation] = exits, irq, fixed, emul
	}
	kernel(Open, 15*2+2+2*2+1+240+33+60+2, 240, 33, 15+1+2+1+60)
	kernel(Sealed, 12*2+2+961+1+3, 961, 0, 12+1)
	c.RingCalls, c.RingHanded = 3, 1
	ring := &Ring{Waited: 30_000, Longest: 14_000}
	ring.Hist[13], ring.Hist[14] = 2, 1
	ring.Syscall[1] = Numbered{3, 30_000}

	return Ledger{Counts: c, Ring: ring, Sites: []Site{
		{RIP: 0x401234, RSP: 0x7ffff0000, Cause: uint32(Syscall) + 1, Nr: 1, Count: [2]uint64{0, 7}, Lost: [2]uint64{0, 7 * 230_000}, Max: 230_000},
		{}, // free
		{RIP: 0x401234, RSP: 0x7fffe0000, Cause: uint32(Syscall) + 1, Nr: 1, Count: [2]uint64{0, 5}, Lost: [2]uint64{0, 5 * 230_000}, Max: 230_000},
		{RIP: 0x402000, Cause: uint32(Syscall) + 1, Nr: 9, Count: [2]uint64{14, 0}, Lost: [2]uint64{14 * 216_000, 0}, Max: 216_000},
		{RIP: 0x402040, Cause: uint32(Syscall) + 1, Nr: 0, Count: [2]uint64{1, 0}, Lost: [2]uint64{3_100_000, 0}, Max: 3_100_000},
		{RIP: 0x403000, Cause: uint32(ExcPageFault) + 1, Nr: 14, Count: [2]uint64{2, 0}, Lost: [2]uint64{350_000, 0}, Max: 175_000},
		{RIP: 0x401300, Cause: uint32(Seal) + 1, Nr: abi.SysIsolate, Count: [2]uint64{1, 0}, Lost: [2]uint64{220_000, 0}, Max: 220_000},
	}}
}

func ptr[T any](v T) *T { return &v }

func sampleFacts(t *testing.T) Facts {
	budget, err := Parse("syscall<=2/s,max<=100us,lost<=1ms/s,exceptions=0")
	if err != nil {
		t.Fatal(err)
	}
	gap, err := Gaps(0, sampleGap(), hz)
	if err != nil {
		t.Fatal(err)
	}
	unlimited, two := int64(-1), 2
	var held Pauses
	for _, ns := range []uint64{19_400, 17_000, 300_000} {
		held.Add(ns)
	}
	return Facts{
		Version: "v0.1.0", Started: "2026-11-22T13:00:00Z",
		Host:    Host{Kernel: "6.18.44", CPU: "Example CPU", Backend: BackendPVM, Nested: true, Hypervisor: "KVMKVMKVM", Clocksource: "tsc", SMT: "off", RTRuntimeUS: &unlimited, CPUs: 2},
		Program: Program{Path: "./my-loop", SHA256: strings.Repeat("0f", 32), Args: []string{"--its", "--args"}, Seal: "call"},
		Exit:    Exit{Code: 124, Reason: "exited with status 0; budget broken"},
		Timings: []Timing{{"kvm", 1_418_000}, {"guest memory", 424_000}, {"first entry", 2_347_000}},
		Budget:  &budget,
		Gaps:    []GapReport{gap},
		Symbol: func(rip uint64) Location {
			return map[uint64]Location{0x401234: {Symbol: "main.tick", File: "loop.c", Line: 42}, 0x402000: {Symbol: "mmap"}, 0x403000: {Symbol: "evil\x1b[2J"}}[rip]
		},
		SyscallName: func(nr int) string { return map[int]string{0: "read", 1: "write", 9: "mmap", 231: "exit_group"}[nr] },
		Drift:       []Drift{{3_200_000_000, true, "the affinity of IRQ 24", "/proc/irq/24/smp_affinity_list", "0", "0-1"}},
		Patches: []PatchReport{
			{Number: 1, Outcome: "committed", Name: "replace filter=./new.o:filter", Actor: "uid 0 pid 17", Time: "2026-11-22T13:00:02.5Z", Stops: 2,
				VCPUs: []PatchPause{{ID: 0, CPU: ptr(1), Where: "guest", Break: true, StopNS: ptr(uint64(12_300)), PauseNS: ptr(uint64(19_400))}, {ID: 1, Where: "ended"}}},
			{Number: 2, Outcome: "committed", Name: "revert 1", Reverts: 1, Actor: "uid 0 pid 18", Time: "2026-11-22T13:00:02.7Z", Stops: 1},
			{Number: 3, Outcome: "refused", Name: "revert 1\x1b[2J", Reverts: 1, Actor: "uid 0 pid 18", Time: "2026-11-22T13:00:03Z", Reason: "vCPU 0 stood inside f"},
		},
		PatchPauses:  []PatchPauses{held.Report(0)},
		PatchLog:     &PatchLog{"/var/lib/cloister/patch/my-loop.jsonl", strings.Repeat("8c", 32)},
		RefusedSeals: []RefusedSeal{{900_000_000, 0, &two, "C", "CPU 2 is of grade D, not the C required, because of tasks", 3}},
		NotMeasured:  []NotKnown{{"host events", "no permission to load eBPF programs"}},
	}
}

func encode(t *testing.T, r *Report) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := r.Encode(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func faultReport(t *testing.T) *Report {
	f := sampleFacts(t)
	zero := Hex(0)
	f.Exit = Exit{Code: 139, Signal: 11, Reason: "ended by SIGSEGV"}
	f.Fault = &Fault{Signal: "SIGSEGV", VCPU: 2, Thread: 4713, Name: "hot", Address: &zero, RIP: 0x401234, Registers: map[string]Hex{"rax": 0, "rsp": 0x7fffefff0, "rip": 0x401234, "rbp": 1, "rdi": 0xffffffffffffffff},
		Backtrace: []Location{{RIP: 0x401234, Symbol: "main.tick", File: "loop.c", Line: 42}, {RIP: 0x401000}}}
	f.Budget, f.Gaps, f.Host.Nested = nil, nil, false
	f.NoStatistics = "the kernel has no KVM_GET_STATS_FD (5.14 has)"
	l := sampleLedger()
	l.Counts.Seals, l.Counts.SealedAt = 0, 0
	l.Counts.Book[Sealed] = Book{}
	l.Counts.CPU = NoCPU
	return Build(f, []Ledger{l})
}

func TestReportJSON(t *testing.T) {
	r := Build(sampleFacts(t), []Ledger{sampleLedger()})
	if !r.Books.Closed || len(r.Books.Why) > 0 {
		t.Errorf("books: %+v", r.Books)
	}
	out := encode(t, r)
	golden(t, "report.json", out)
	for range 20 {
		if again := encode(t, Build(sampleFacts(t), []Ledger{sampleLedger()})); !bytes.Equal(out, again) {
			t.Fatal("the same run encodes differently the second time")
		}
	}
	var back Report
	if err := json.Unmarshal(out, &back); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(encode(t, &back), out) {
		t.Error("a report does not survive being read and written")
	}
}

// What a reader adds up must add up: every total against the causes, the whole against its halves.
func TestReportAddsUp(t *testing.T) {
	for _, v := range Build(sampleFacts(t), []Ledger{sampleLedger()}).VCPUs {
		for name, b := range map[string]BookReport{"breaks": v.Breaks, "open": v.Open, "sealed": v.Sealed} {
			var total, lost, longest, returns uint64
			for cause, c := range b.ByCause {
				total += c.Count
				if p, _ := ParseCause(cause); p.FromKernel() != (c.LostNS == nil) || p.Planned() {
					t.Errorf("%s: %s: %+v", name, cause, c)
				}
				if c.LostNS != nil {
					lost += *c.LostNS
					longest = max(longest, *c.MaxNS)
					returns += c.Count
				}
			}
			for _, c := range b.Planned {
				returns += c.Count
			}
			if total != b.Total || lost != b.LostNS || longest != b.MaxNS || returns != b.Returns {
				t.Errorf("%s: %d breaks, %d ns, %d ns, %d returns; the causes say %d, %d, %d, %d", name, b.Total, b.LostNS, b.MaxNS, b.Returns, total, lost, longest, returns)
			}
		}
		if v.Breaks.Total != v.Open.Total+v.Sealed.Total || v.Breaks.Returns != v.Open.Returns+v.Sealed.Returns {
			t.Errorf("the halves do not make the whole")
		}
	}
}

func TestBooksThatDoNotClose(t *testing.T) {
	for name, x := range map[string]struct {
		spoil  func(*Ledger)
		why    string
		closed bool
	}{
		"a break without a cause":  {func(l *Ledger) { l.Counts.Book[Sealed].Total++ }, "vCPU 0, sealed: 15 returns of KVM_RUN, the causes add up to 14", false},
		"time without a cause":     {func(l *Ledger) { l.Counts.Book[Open].Lost += 5 }, "vCPU 0, open: 6784005 cycles outside the guest, the causes add up to 6784000", false},
		"a length without a break": {func(l *Ledger) { l.Counts.Book[Open].Cause[Kick].Hist[3]++ }, "kick counts 0 breaks and has the lengths of 1", false},
		"a call without its number": {func(l *Ledger) {
			l.Counts.Book[Sealed].Syscall[1].Count = 11
			l.Counts.Book[Sealed].Syscall[231].Count = 0
		}, "12 system calls", false},
		"a number without its call": {func(l *Ledger) { l.Counts.Book[Sealed].Syscall[1].Count = 14 }, "12 system calls", false},
		"time without its number":   {func(l *Ledger) { l.Counts.Book[Sealed].Syscall[1].Lost = 1 }, "12 system calls", false},
		"a kernel cause in a book":  {func(l *Ledger) { l.Counts.Book[Sealed].Cause[Transit].Count = 1 }, "transit has 1 breaks", false},
		"exits missing":             {func(l *Ledger) { l.Counts.Book[Sealed].Kernel[KernelExits] -= 2 }, "vCPU 0, sealed: KVM counted 989 exits, 1 fewer than the 990", false},
		"an unknown cause is said":  {func(l *Ledger) { l.Counts.spend(Sealed, Unknown, 1, 3) }, "", true},
		"lost events":               {func(l *Ledger) { l.EventsLost = 4 }, "4 events of the timeline", true},
		"lost sites":                {func(l *Ledger) { l.Counts.SiteLost = 4 }, "4 breaks found no room", true},
		"lost stacks":               {func(l *Ledger) { l.Counts.StackLost = 4 }, "4 sites found no room", true},
	} {
		t.Run(name, func(t *testing.T) {
			l := sampleLedger()
			x.spoil(&l)
			r := Build(sampleFacts(t), []Ledger{l})
			if r.Books.Closed != x.closed || !strings.Contains(strings.Join(r.Books.Why, "\n"), x.why) {
				t.Errorf("closed %v, %q; want %v, %q", r.Books.Closed, r.Books.Why, x.closed, x.why)
			}
			if len(r.Certificate.FailedClauses) <= len(Build(sampleFacts(t), []Ledger{sampleLedger()}).Certificate.FailedClauses) {
				t.Errorf("the certificate does not mind: %q", r.Certificate.FailedClauses)
			}
		})
	}
	if r := Build(Facts{}, nil); r.Books.Closed || r.Certificate.Issued {
		t.Errorf("a run without a ledger: %+v", r)
	}
}

// A run that was never sealed has shown nothing: no budget is kept by it, and no certificate earned.
func TestNeverSealed(t *testing.T) {
	l := sampleLedger()
	l.Counts.Seals, l.Counts.SealedAt = 0, 0
	r := Build(sampleFacts(t), []Ledger{l})
	if r.Budget.OK || r.Budget.State != Untested || len(r.Budget.BrokenBy) > 0 {
		t.Errorf("budget: %+v", r.Budget)
	}
	if !slices.Contains(r.Certificate.FailedClauses, "vCPU 0 was never sealed") || r.Certificate.Issued {
		t.Errorf("certificate: %+v", r.Certificate)
	}
}

func TestTopSitesAreInAnOrder(t *testing.T) {
	var sites []Site
	for i := range uint64(50) {
		sites = append(sites, Site{RIP: 0x1000 + i*7919%50, Cause: uint32(PIO) + 1, Count: [2]uint64{1, 0}, Lost: [2]uint64{30, 0}, Max: 30})
	}
	sites = append(sites, Site{RIP: 0x5000, Cause: uint32(PIO) + 1, Count: [2]uint64{2, 0}, Lost: [2]uint64{30, 0}}, Site{RIP: 0x6000, Cause: uint32(NCause) + 1, Lost: [2]uint64{1 << 40, 0}})
	top := Build(Facts{Sites: 5}, []Ledger{{Counts: Counts{TSCHz: hz}, Sites: sites}}).TopSites
	var got []string
	for _, s := range top {
		got = append(got, s.RIP.String())
	}
	if want := "0x5000 0x1000 0x1001 0x1002 0x1003"; strings.Join(got, " ") != want {
		t.Errorf("%v, want %s", got, want)
	}
}

func schema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	s, err := jsonschema.NewCompiler().Compile("report.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestReportsFollowTheSchema(t *testing.T) {
	s := schema(t)
	for name, r := range map[string]*Report{
		"sample": Build(sampleFacts(t), []Ledger{sampleLedger()}), "fault": faultReport(t), "empty": Build(Facts{}, nil), "zero": Build(Facts{}, []Ledger{{}}), "bare": Build(bareFacts(), []Ledger{bareLedger(1), bareLedger(NoCPU)}),
	} {
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(encode(t, r)))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(doc); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// And it is a schema that can say no.
	for path, wrong := range map[string]any{
		"schema": "cloister.report/v2", "vcpus": nil, "exit": map[string]any{"code": 0}, "patches": []any{map[string]any{"number": 1}}, "patch_log": "x", "host": map[string]any{}, "budget": "total=0",
	} {
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(encode(t, Build(sampleFacts(t), []Ledger{sampleLedger()}))))
		if err != nil {
			t.Fatal(err)
		}
		doc.(map[string]any)[path] = wrong
		if s.Validate(doc) == nil {
			t.Errorf("the schema accepts %s = %v", path, wrong)
		}
	}
}

// field is one JSON field of the report: "vcpus[].sealed.total".
type field struct {
	path string
	def  reflect.Type // the struct that has it
	name string
}

// fields walks a type of the report. Maps are written {}.
func fields(t reflect.Type, prefix string) (list []field) {
	switch t.Kind() {
	case reflect.Pointer:
		return fields(t.Elem(), prefix)
	case reflect.Slice:
		return fields(t.Elem(), prefix+"[]")
	case reflect.Map:
		return fields(t.Elem(), prefix+"{}")
	case reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			if f.Anonymous {
				for _, inner := range fields(f.Type, prefix) {
					if inner.def == f.Type {
						inner.def = t // its fields are t's own, to a reader of the JSON
					}
					list = append(list, inner)
				}
				continue
			}
			name := f.Tag.Get("json")
			path := strings.TrimPrefix(prefix+"."+name, ".")
			list = append(list, field{path, t, name})
			list = append(list, fields(f.Type, path)...)
		}
	}
	return list
}

// The schema has the fields of the Go types, no fewer and no more, and asks for each.
func TestSchemaHasTheFieldsOfTheTypes(t *testing.T) {
	raw, err := os.ReadFile("report.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	var have []string
	var walk func(node map[string]any, prefix string)
	walk = func(node map[string]any, prefix string) {
		if ref, ok := node["$ref"].(string); ok {
			walk(doc["$defs"].(map[string]any)[strings.TrimPrefix(ref, "#/$defs/")].(map[string]any), prefix)
		}
		for _, alternative := range asList(node["oneOf"]) {
			walk(alternative.(map[string]any), prefix)
		}
		if items, ok := node["items"].(map[string]any); ok {
			walk(items, prefix+"[]")
		}
		if more, ok := node["additionalProperties"].(map[string]any); ok {
			walk(more, prefix+"{}")
		}
		properties, _ := node["properties"].(map[string]any)
		for name, p := range properties {
			path := strings.TrimPrefix(prefix+"."+name, ".")
			have = append(have, path)
			if !slices.Contains(asList(node["required"]), any(name)) {
				t.Errorf("the schema does not require %s", path)
			}
			walk(p.(map[string]any), path)
		}
	}
	walk(doc, "")
	var want []string
	for _, f := range fields(reflect.TypeFor[Report](), "") {
		want = append(want, f.path)
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Errorf("the schema has\n%q\nthe types have\n%q", have, want)
	}
}

// The schema's two lists of causes are those of cause.go.
func TestSchemaHasTheCauses(t *testing.T) {
	raw, err := os.ReadFile("report.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	type enum struct{ Enum []string }
	var doc struct {
		Defs struct {
			Cause enum
			Book  struct {
				Properties struct {
					ByCause struct{ PropertyNames enum } `json:"by_cause"`
				}
			}
		} `json:"$defs"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	var all, counted []string
	for c := range NCause {
		all = append(all, c.String())
		if !c.Planned() {
			counted = append(counted, c.String())
		}
	}
	if got := doc.Defs.Cause.Enum; !slices.Equal(got, all) {
		t.Errorf("cause: the schema has\n%q\ncause.go\n%q", got, all)
	}
	if got := doc.Defs.Book.Properties.ByCause.PropertyNames.Enum; !slices.Equal(got, counted) {
		t.Errorf("by_cause: the schema has\n%q\ncause.go\n%q", got, counted)
	}
}

func asList(v any) []any {
	l, _ := v.([]any)
	return l
}

// docs/report.md has one row "| `path` | type | meaning |" for every field.
func TestFieldsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/report.md")
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z0-9_.\\[\\]{}]+)` \\| [^|]+ \\| [^|]{8,} \\|$").FindAllStringSubmatch(string(doc), -1) {
		have = append(have, row[1])
	}
	// The types that occur in several places are documented once, under the first of them.
	var want []string
	shared := map[reflect.Type]string{}
	for _, f := range fields(reflect.TypeFor[Report](), "") {
		place := strings.TrimSuffix(f.path, f.name)
		if first, ok := shared[f.def]; ok && first != place {
			continue
		}
		shared[f.def] = place
		want = append(want, f.path)
	}
	slices.Sort(have)
	slices.Sort(want)
	for _, w := range want {
		if !slices.Contains(have, w) {
			t.Errorf("docs/report.md does not have %s", w)
		}
	}
	for _, h := range have {
		if !slices.Contains(want, h) {
			t.Errorf("docs/report.md has %s, which no report has", h)
		}
	}
}
