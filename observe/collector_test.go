package observe

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/cloister-vmm/cloister/patch"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

func scrape(t *testing.T, h http.Handler) string {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	if os.Getenv("CLOISTER_WRITE") == "golden" {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatalf("%v: CLOISTER_WRITE=golden writes it", err)
	}
	if got == string(want) {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			t.Fatalf("%s:%d:\n got %s\nwant %s\n(CLOISTER_WRITE=golden writes it anew)", name, i+1, g[i], w[i])
		}
	}
	t.Fatalf("%s has %d lines, got %d", name, len(w), len(g))
}

// The scrape of a fixed VM, byte for byte: two runs of the handler, since a map's order must not show.
func TestGoldenScrape(t *testing.T) {
	vm, s := fake(t)
	h := MetricsHandler(vm, always(s))
	first := scrape(t, h)
	golden(t, "testdata/scrape.txt", first)
	if second := scrape(t, h); second != first {
		t.Error("a second scrape of the same snapshot differs")
	}
}

func TestLint(t *testing.T) {
	vm, s := fake(t)
	problems, err := promlint.New(strings.NewReader(scrape(t, MetricsHandler(vm, always(s))))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// Every metric of the table is in the golden scrape, so that no row escapes the byte comparison.
func TestGoldenIsWhole(t *testing.T) {
	b, err := os.ReadFile("testdata/scrape.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range metrics {
		if !bytes.Contains(b, []byte("# TYPE "+m.name+" ")) {
			t.Errorf("the fake VM shows no %s", m.name)
		}
	}
}

// What is not known is not shown: no statistics, books that do not close, a vCPU that did not run yet.
func TestNotKnownIsNotShown(t *testing.T) {
	vm, s := fake(t)
	text := scrape(t, MetricsHandler(vm, always(s)))
	const second = `vcpu="1",vm="loop"} `
	for _, line := range []string{
		`cloister_breaks_total{cause="transit",sealed="false",` + second, `cloister_breaks_total{cause="kernel-other",sealed="false",` + second} {
		if strings.Contains(text, line) {
			t.Errorf("books that are not closed, and yet: %s", line)
		}
	}
	if !strings.Contains(text, `cloister_books_closed{sealed="false",`+second+"0\n") {
		t.Error("books that do not close are said to be closed")
	}
	for i := range s.VCPUs {
		s.VCPUs[i].NoStatistics = true
	}
	text = scrape(t, MetricsHandler(vm, always(s)))
	for c := range breaks.NCause {
		if has := strings.Contains(text, `cloister_breaks_total{cause="`+c.String()+`",`); has == c.FromKernel() {
			t.Errorf("without statistics: %s shown: %v", c, has)
		}
	}
	for _, name := range []string{"cloister_kvm_statistic_total{", "cloister_books_closed{", `cloister_budget_left_breaks{per="run",subject="kernel"`} {
		if strings.Contains(text, name) {
			t.Errorf("without statistics: %s is shown", name)
		}
	}
	for i := range s.VCPUs {
		s.VCPUs[i].TSCHz = 0
	}
	text = scrape(t, MetricsHandler(vm, always(s)))
	for _, name := range []string{"cloister_lost_seconds_total{", "cloister_wall_seconds_total{", "cloister_break_length_seconds_count{", "cloister_guest_seconds_total{"} {
		if strings.Contains(text, name) {
			t.Errorf("the TSC's frequency is not known, and yet: %s", name)
		}
	}
	s.VCPUs, s.Memory, s.Patches = nil, Memory{}, nil
	text = scrape(t, MetricsHandler(vm, always(s)))
	for _, name := range []string{"vcpu=", "cloister_patch", "cloister_process_resident_bytes{", "cloister_guest_memory_bytes{"} {
		if strings.Contains(text, name) {
			t.Errorf("before the first instruction: %s is shown", name)
		}
	}
}

func TestSnapshotFailuresAreCounted(t *testing.T) {
	vm, s := fake(t)
	broken := true
	h := MetricsHandler(vm, func(context.Context) (*Snapshot, error) {
		if broken {
			return nil, errors.New("torn")
		}
		return s, nil
	})
	scrape(t, h)
	if text := scrape(t, h); !strings.Contains(text, `cloister_snapshot_failures_total{vm="loop"} 2`) || strings.Contains(text, "cloister_breaks_total{") {
		t.Error(text)
	}
	broken = false
	if text := scrape(t, h); !strings.Contains(text, `cloister_snapshot_failures_total{vm="loop"} 2`) || !strings.Contains(text, "cloister_breaks_total{") {
		t.Error("one good snapshot later:\n" + text)
	}
}

var sample = regexp.MustCompile(`(?m)^(\w+_total\{[^}]*\}) (\S+)$`)

// A kernel cause is a difference and may come out lower than at the scrape before: a counter that falls
// would be read as a restart.
func TestCountersNeverFall(t *testing.T) {
	vm, s := fake(t)
	h := MetricsHandler(vm, always(s))
	before := sample.FindAllStringSubmatch(scrape(t, h), -1)
	b := &s.VCPUs[0].Book[breaks.Sealed]
	b.Kernel[breaks.KernelIRQ] -= 10
	b.Kernel[breaks.KernelExits] -= 10
	s.Now -= hz
	after := map[string]string{}
	for _, m := range sample.FindAllStringSubmatch(scrape(t, h), -1) {
		after[m[1]] = m[2]
	}
	if len(before) < 100 {
		t.Fatalf("only %d counters", len(before))
	}
	for _, m := range before {
		if after[m[1]] != m[2] {
			t.Errorf("%s was %s, is %s", m[1], m[2], after[m[1]])
		}
	}
}

// Labels take their values from closed lists, whatever a VM is called.
func TestHostileName(t *testing.T) {
	vm, s := fake(t)
	vm.Name = "a\"b\n\xff{}"
	text := scrape(t, MetricsHandler(vm, always(s)))
	if !strings.Contains(text, `vm="a\"b\n`+"\uFFFD"+`{}"`) {
		t.Error("the name was not escaped")
	}
	if p, err := promlint.New(strings.NewReader(text)).Lint(); err != nil || len(p) != 0 {
		t.Error(p, err)
	}
}

// A bucket's count is of breaks at most that long: checked against the definition of the ledger's.
func TestLengths(t *testing.T) {
	var c breaks.Counts
	for _, cycles := range []uint64{1, 1023, 1024, 1<<33 - 1, 1 << 33, 1<<39 - 1} {
		book(&c, 0, breaks.Syscall, 1, cycles)
	}
	n, got := lengths(&c.Book[0].Cause[breaks.Syscall].Hist, 1)
	want := map[float64]uint64{1023: 2, 1<<33 - 1: 4}
	for i := histFirst + 1; i < histLast; i++ {
		want[float64(breaks.BucketBound(i))] = 3
	}
	if n != 6 || !maps.Equal(got, want) {
		t.Errorf("%d, %v; want 6, %v", n, got, want)
	}
}

// docs/metrics.md has exactly the metrics and labels of the code, in its order.
func TestDocTable(t *testing.T) {
	doc, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[prometheus.ValueType]string{prometheus.CounterValue: "counter", prometheus.GaugeValue: "gauge", prometheus.UntypedValue: "histogram"}
	rows := regexp.MustCompile("(?m)^\\| `(cloister_\\w+)` \\| (\\w+) \\| ([^|]*) \\|").FindAllStringSubmatch(string(doc), -1)
	for i := range max(len(rows), len(metrics)) {
		var got, want string
		if i < len(rows) {
			got = rows[i][1] + " " + rows[i][2] + " " + strings.NewReplacer("`", "", ",", "").Replace(rows[i][3])
		}
		if i < len(metrics) {
			m := metrics[i]
			want = m.name + " " + kinds[m.kind] + " " + strings.Join(m.labels, " ")
		}
		if got != want {
			t.Errorf("row %d: docs/metrics.md has %q, the code %q", i+1, got, want)
		}
	}
	for _, words := range [][]string{states[:], {Starting, Open, Sealed, Parked, Ended, NotKnown}, breaks.KernelNames[:],
		{patch.Committed, patch.Refused, patch.Aborted, patch.RolledBack, patch.Dead}} {
		for _, w := range words {
			if !bytes.Contains(doc, []byte("`"+w+"`")) {
				t.Errorf("docs/metrics.md does not say what %q is", w)
			}
		}
	}
}

func TestOnlyMetricsAreServed(t *testing.T) {
	vm, s := fake(t)
	h := MetricsHandler(vm, always(s))
	for _, c := range []struct {
		method, path string
		status       int
	}{{"GET", "/", 200}, {"GET", "/metrics", 200}, {"HEAD", "/metrics", 200}, {"POST", "/metrics", 405}, {"GET", "/v1/vm", 404}, {"GET", "/metrics/x", 404}} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(c.method, c.path, nil))
		if _, err := io.Copy(io.Discard, w.Body); err != nil || w.Code != c.status {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, w.Code, c.status)
		}
	}
}

// A clone is a moment: what is counted later is not in it.
func TestPatchesClone(t *testing.T) {
	p := &Patches{Outcomes: map[string]uint64{"committed": 1}, Pauses: map[int]*Pauses{0: {}}}
	p.Pauses[0].Add(1)
	c := p.Clone()
	p.Outcomes["committed"]++
	p.Pauses[0].Add(1)
	p.Pauses[1] = &Pauses{}
	if c.Outcomes["committed"] != 1 || len(c.Pauses) != 1 || c.Pauses[0].Count != 1 || c.Pauses[0].atMost[0] != 1 {
		t.Errorf("%+v", c)
	}
}
