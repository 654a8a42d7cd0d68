package breaks

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"testing"
	"unicode"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// sampleGap is a record of a busy loop of 4 s: passes of some 25 cycles, 12 gaps.
func sampleGap() *abi.GapRecord {
	g := &abi.GapRecord{Magic: abi.GapMagic, Kind: abi.GapKindLoop, Threshold: 3000, Min: 24, Max: 40_000, Start: hz, Last: 5 * hz}
	g.Hist[5] = 399_000_000 // 16..31 cycles
	g.Hist[6] = 90_000
	g.Hist[7] = 1200
	g.Hist[9] = 31
	g.Hist[12] = 7 // 2048..4095: the threshold lies here
	g.Hist[16] = 5
	for _, n := range g.Hist {
		g.Passes += n
	}
	g.Gaps = 12
	for i := range g.Gaps {
		g.Ring[i] = abi.Gap{TSC: hz + i*hz/4, Length: 3000 + i*1000}
		g.Stolen += 3000 + i*1000
	}
	g.RingNext = g.Gaps
	return g
}

func text(t *testing.T, r *Report, o TextOptions) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := r.WriteText(&b, o); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestText(t *testing.T) {
	r := Build(sampleFacts(t), []Ledger{sampleLedger()})
	golden(t, "report.txt", text(t, r, TextOptions{Timings: true}))
	golden(t, "report-fault.txt", text(t, faultReport(t), TextOptions{}))
	golden(t, "report-color.txt", text(t, r, TextOptions{Color: true, Sites: 2}))
	quiet := Build(Facts{Host: Host{Backend: BackendVMX}, Program: Program{Path: "@spin"}, Exit: Exit{Reason: "stopped after 5s"}, Budget: &Budget{Spec: "total=0", Clauses: must(Parse("total=0")).Clauses}},
		[]Ledger{{Counts: Counts{CPU: 3, TSCHz: hz, Start: 1, End: 5*hz + 1, Seals: 1, SealedAt: 1, Book: [2]Book{{}, {Guest: 5 * hz}}}}})
	golden(t, "report-zero.txt", text(t, quiet, TextOptions{}))
	cyclic := sampleGap()
	cyclic.Kind, cyclic.Period = abi.GapKindCyclic, hz/1000
	cyclic.Hist = [abi.GapBuckets]uint64{0: 3, 8: 40}
	cyclic.Passes, cyclic.Gaps, cyclic.RingNext = 43, 0, 0
	g, err := Gaps(2, cyclic, hz)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := g.WriteText(&b, TextOptions{}); err != nil {
		t.Fatal(err)
	}
	golden(t, "gap-cyclic.txt", b.Bytes())
}

func must(b Budget, err error) Budget {
	if err != nil {
		panic(err)
	}
	return b
}

// Nothing that came out of a program may steer the terminal, and no line is ragged at its end.
func TestTextIsPlain(t *testing.T) {
	f := sampleFacts(t)
	f.Program.Path = "a\x1b]0;x\x07\nb"
	f.Exit.Reason = "\u202e\xff"
	f.Host.CPU = "x\ry"
	for line := range strings.Lines(string(text(t, Build(f, []Ledger{sampleLedger()}), TextOptions{}))) {
		line = strings.TrimSuffix(line, "\n")
		for _, c := range line {
			if !unicode.IsPrint(c) {
				t.Errorf("%q has %q", line, c)
			}
		}
		if strings.TrimRight(line, " ") != line {
			t.Errorf("%q ends in blanks", line)
		}
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestWritersReportErrors(t *testing.T) {
	r := Build(sampleFacts(t), nil)
	for name, err := range map[string]error{"text": r.WriteText(failingWriter{}, TextOptions{}), "JSON": r.Encode(failingWriter{}), "gap": r.GapRecords[0].WriteText(failingWriter{}, TextOptions{})} {
		if err == nil || !strings.Contains(err.Error(), "disk full") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDuration(t *testing.T) {
	for ns, want := range map[uint64]string{
		0: "0 ns", 999: "999 ns", 1000: "1.00 us", 9994: "9.99 us", 9996: "10.0 us", 99_960: "100 us", 999_400: "999 us", 999_600: "1.00 ms",
		72_000_000: "72.0 ms", 999_600_000: "1.00 s", 5_000_000_000: "5.00 s", 3_600_000_000_000: "3600 s",
	} {
		if got := duration(ns); got != want {
			t.Errorf("%d ns: %q, want %q", ns, got, want)
		}
	}
}

func TestNanoseconds(t *testing.T) {
	for _, x := range []struct{ cycles, hz, want uint64 }{
		{0, hz, 0}, {3, hz, 1}, {2, hz, 0}, {hz * 3600 * 24 * 365, hz, 3600 * 24 * 365 * 1e9}, {7, 0, 0},
		{math.MaxUint64, 1, math.MaxUint64}, {math.MaxUint64, 1e9, math.MaxUint64}, {math.MaxUint64, 2_500_000_000, 7378697629483820646},
	} {
		if got := Nanoseconds(x.cycles, x.hz); got != x.want {
			t.Errorf("%d cycles at %d Hz: %d ns, want %d", x.cycles, x.hz, got, x.want)
		}
	}
}

func TestQuantile(t *testing.T) {
	hist := make([]uint64, 64)
	hist[3], hist[10], hist[20] = 900, 90, 10 // 4..7, 512..1023, 524288..
	for _, x := range []struct {
		q, longest float64
		want       uint64
		ok         bool
	}{
		{.5, 0, 7, true}, {.9, 0, 7, true}, {.901, 0, 1023, true}, {.99, 0, 1023, true}, {.991, 0, 0, false}, {.9, 6, 6, true}, {0, 0, 0, false}, {1, 0, 0, false}, {math.NaN(), 0, 0, false},
	} {
		got, ok := Quantile(hist, x.q, uint64(x.longest))
		if got != x.want || ok != x.ok {
			t.Errorf("%v: %d, %v; want %d, %v", x.q, got, ok, x.want, x.ok)
		}
	}
	if _, ok := Quantile(nil, .5, 0); ok {
		t.Error("a quantile of nothing")
	}
	if _, ok := Quantile([]uint64{0, 100}, .9, 0); !ok {
		t.Error("ten of a hundred lie beyond the 90 % quantile")
	}
	hist[63] = 1 << 40
	if got, ok := Quantile(hist, .5, 0); !ok || got != 1<<63-1 {
		t.Errorf("top bucket: %d, %v", got, ok)
	}
}

func TestGapsNamesWhatIsWrong(t *testing.T) {
	for want, spoil := range map[string]func(*abi.GapRecord){
		"magic": func(g *abi.GapRecord) { g.Magic = 0 },
		"kind":  func(g *abi.GapRecord) { g.Kind = 3 },
	} {
		g := sampleGap()
		spoil(g)
		if _, err := Gaps(0, g, hz); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := Gaps(0, sampleGap(), 0); err == nil {
		t.Error("no frequency, and no error")
	}
	for want, spoil := range map[string]func(*abi.GapRecord){
		"":                    func(*abi.GapRecord) {},
		"the histogram holds": func(g *abi.GapRecord) { g.Passes += 2 },
		"gaps in":             func(g *abi.GapRecord) { g.Gaps = g.Passes + 1 },
		"before the first":    func(g *abi.GapRecord) { g.Last = 0 },
		"shortest":            func(g *abi.GapRecord) { g.Min = g.Max + 1 },
	} {
		g := sampleGap()
		spoil(g)
		r, err := Gaps(0, g, hz)
		if err != nil || r.Valid != (want == "") || !strings.Contains(r.Why, want) {
			t.Errorf("%q: %v, valid %v, %q", want, err, r.Valid, r.Why)
		}
	}
	// The ring keeps the latest ones and says how many are gone.
	g := sampleGap()
	g.RingNext, g.Gaps = abi.GapRing+5, abi.GapRing+5
	for i := range g.Ring {
		g.Ring[i].TSC = hz + uint64(i)*3
	}
	r, err := Gaps(0, g, hz)
	if err != nil || len(r.Latest) != abi.GapRing || r.NotKept != 5 || r.Latest[0].AtNS != 5 || r.Latest[abi.GapRing-1].AtNS != 4 {
		t.Errorf("%v: %d kept, %d not, from %+v to %+v", err, len(r.Latest), r.NotKept, r.Latest[0], r.Latest[len(r.Latest)-1])
	}
}

// A gap record lies in the guest's memory: no content of it may stop the monitor or its terminal.
func FuzzGaps(f *testing.F) {
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, sampleGap()); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes()[24:], uint64(hz))
	f.Add(bytes.Repeat([]byte{0xff}, 1000), uint64(1))
	f.Fuzz(func(t *testing.T, raw []byte, tscHz uint64) {
		rec := &abi.GapRecord{}
		block := make([]byte, binary.Size(rec))
		binary.LittleEndian.PutUint64(block, abi.GapMagic)
		block[8] = abi.GapKindLoop
		copy(block[24:], raw)
		if err := binary.Read(bytes.NewReader(block), binary.LittleEndian, rec); err != nil {
			t.Fatal(err)
		}
		g, err := Gaps(0, rec, tscHz)
		if err != nil {
			return
		}
		if len(g.Latest) > abi.GapRing || len(g.Histogram) > abi.GapBuckets || math.IsNaN(g.StolenPPM) || math.IsInf(g.StolenPPM, 0) {
			t.Errorf("%+v", g)
		}
		if g.MedianNS != nil && g.P9999NS != nil && *g.MedianNS > *g.P9999NS {
			t.Errorf("the median %d is above the 99.99th percentile %d", *g.MedianNS, *g.P9999NS)
		}
		r := Report{GapRecords: []GapReport{g}}
		if err := r.WriteText(&bytes.Buffer{}, TextOptions{}); err != nil {
			t.Error(err)
		}
		if err := r.Encode(&bytes.Buffer{}); err != nil {
			t.Error(err)
		}
	})
}
