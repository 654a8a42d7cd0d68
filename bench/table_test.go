package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/firmware"
)

func TestTableRoundTrip(t *testing.T) {
	rows := []Row{
		{What: "median", Ours: 74.5, Base: 73.5, Unit: "µs", Limit: 1.1, N: 30000},
		{What: "no target", Ours: 8197, Base: 4162, Unit: "µs", Limit: none, N: 3},
		{What: "alone", Ours: 13.6, Unit: "MiB", Limit: 12, N: 1},
		{What: "none at all", Ours: 0, Unit: "calls", Limit: 0, N: 7},
		{What: "one too many", Ours: 1, Unit: "calls", Limit: 0, N: 7},
		{What: "missing", Unit: "ms", Limit: 1.5, Why: "musl-gcc is not installed"},
	}
	var b bytes.Buffer
	b.WriteString("# heading\n\n- CPU: x | y\n\n")
	if err := WriteTable(&b, rows); err != nil {
		t.Fatal(err)
	}
	b.WriteString("\n| another | table |\n")
	got, err := ParseTable(&b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, rows) {
		t.Errorf("got %+v\nwant %+v", got, rows)
	}
	for i, want := range []string{"met", "-", "not met", "met", "not met", "not measured: musl-gcc is not installed"} {
		if v := got[i].Verdict(); v != want {
			t.Errorf("%s: verdict %q, want %q", got[i].What, v, want)
		}
	}
}

// A ratio is judged as it is printed: 1.1004 is printed as 1.100 and meets 1.1.
func TestVerdictOfPrintedRatio(t *testing.T) {
	for _, c := range []struct {
		ratio float64
		want  string
	}{{1.1004, "met"}, {1.1006, "not met"}, {math.Inf(1), "not met"}, {math.NaN(), "not met"}} {
		if got := (Row{Ours: c.ratio, Base: 1, Limit: 1.1}).Verdict(); got != c.want {
			t.Errorf("ratio %v: %q, want %q", c.ratio, got, c.want)
		}
	}
}

func TestParseTableRefuses(t *testing.T) {
	for _, bad := range []string{
		"| a | 1 |", "|  | 1 | 1 | µs | 1 | 1 | 1 | met |", "| a | x | 1 | µs | 1 | 1 | 1 | met |",
		"| a | -1 | 1 | µs | 1 | 1 | 1 | met |", "| a | NaN | 1 | µs | 1 | 1 | 1 | met |", "| a | 1 | 1 | µs | 1 | 1 | -1 | met |",
	} {
		if _, err := ParseTable(strings.NewReader(tableHead + "\n" + tableRule + "\n" + bad + "\n")); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
	if _, err := ParseTable(strings.NewReader("no table\n")); err == nil {
		t.Error("accepted a document without a table")
	}
}

func FuzzParseTable(f *testing.F) {
	f.Add("| a | 1 | 1 | µs | 1 | 1 | 1 | met |")
	f.Add("| a | - | - | µs | - | - | 0 | not measured: why |")
	f.Fuzz(func(t *testing.T, line string) {
		rows, err := ParseTable(strings.NewReader(tableHead + "\n" + line + "\n"))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := WriteTable(&b, rows); err != nil {
			t.Fatal(err)
		}
		again, err := ParseTable(&b)
		if err != nil || len(again) != len(rows) {
			t.Fatalf("what was parsed cannot be parsed again: %v\n%s", err, b.String())
		}
	})
}

// The committed results are a table of this format whose verdicts follow from its own figures.
func TestCommittedResults(t *testing.T) {
	data, err := os.ReadFile("RESULTS.md")
	if err != nil {
		t.Fatal(err)
	}
	rows, err := ParseTable(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"hot loop", "exit answered", "kick to stopped, under load", "start to exit", "resident memory", "clock"} {
		found := false
		for _, r := range rows {
			found = found || strings.HasPrefix(r.What, want)
		}
		if !found {
			t.Errorf("no row on %q", want)
		}
	}
	for line := range strings.Lines(string(data)) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if len(cells) != 8 || line == tableHead+"\n" || strings.HasPrefix(line, "| ---") {
			continue
		}
		ratio, limit, verdict := cells[4], cells[5], strings.TrimSuffix(cells[7], " |")
		if ratio == "-" {
			ratio = cells[1]
		}
		if limit == "-" || strings.HasPrefix(verdict, "not measured") {
			continue
		}
		over := mustParse(t, ratio) > mustParse(t, limit)
		if over != (verdict == "not met") {
			t.Errorf("verdict does not follow from the figures: %s", line)
		}
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, banned := range []string{root, os.TempDir()} {
		if bytes.Contains(data, []byte(banned+"/")) {
			t.Errorf("RESULTS.md holds a path of the machine: %s", banned)
		}
	}
}

func mustParse(t *testing.T, s string) float64 {
	t.Helper()
	r, err := parseRow("| a | " + s + " | - | - | - | - | 0 | - |")
	if err != nil {
		t.Fatal(err)
	}
	return r.Ours
}

func TestQuantile(t *testing.T) {
	s := samples{5, 1, 4, 2, 3}
	for q, want := range map[float64]float64{0: 1, 0.2: 1, 0.5: 3, 0.99: 5, 1: 5} {
		if got := s.quantile(q); got != want {
			t.Errorf("quantile %v: %v, want %v", q, got, want)
		}
	}
	if s[0] != 5 {
		t.Error("quantile reordered its input")
	}
}

// A clock that runs with the native one has no error; one that is 40 ns ahead has that; a reading that was
// interrupted is left out.
func TestErrorsOf(t *testing.T) {
	var native, guest []reading
	for i := range uint64(100) {
		native = append(native, reading{i * 1000, i * 400, i*1000 + 50})
	}
	for i := range uint64(98) {
		guest = append(guest, reading{i*1000 + 500, i*400 + 200 + 40, i*1000 + 550})
	}
	guest[7].after += 90_000
	guest[7].ns += 12_345
	errs, back := errorsOf(guest, native, 5000)
	if len(errs) != 97 || errs.quantile(0) != 40 || errs.quantile(1) != 40 {
		t.Errorf("%d errors from %v to %v, want 97 of 40", len(errs), errs.quantile(0), errs.quantile(1))
	}
	if back != 1 { // reading 8 lies behind the false reading 7
		t.Errorf("%d steps back, want 1", back)
	}
}

func TestResidents(t *testing.T) {
	got, err := residents([]byte(`00400000-00900000 r-xp 00000000 fe:00 123    /some/cloister
Pss:                2048 kB
c000000000-c000400000 rw-p 00000000 00:00 0
Pss:                1024 kB
7f0000000000-7f0800000000 rw-s 00000000 00:01 5    /memfd:cloister-guest (deleted)
Pss:               99999 kB
7f0900000000-7f0900080000 rw-s 00000000 00:01 6    /memfd:cloister-ledger (deleted)
Pss:                 476 kB
7ffe00000000-7ffe00001000 r-xp 00000000 00:00 0    [vdso]
Pss:                   4 kB
`))
	want := map[string]float64{"binary: code": 2048, "anonymous: heap, stacks, bss": 1024, "memfd cloister-ledger": 476}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v (%v), want %v", got, err, want)
	}
}

// What `floor -l` reads is what the floor would have been compiled with.
func TestOtherMachine(t *testing.T) {
	list := []firmware.Entry{{Function: 1, Index: 2, Flags: 3, EAX: 4, EBX: 5, ECX: 6, EDX: 7}, {Function: 8, EDX: 1 << 31}}
	b := otherMachine(list)
	if len(b) != 16+2*28 {
		t.Fatalf("%d bytes for two entries, want 16 and 28 for each", len(b))
	}
	header := layout(list)
	for i, name := range []string{"CR4_GUEST", "XCR0_GUEST"} {
		if want := fmt.Sprintf("#define %s %#xull\n", name, binary.LittleEndian.Uint64(b[8*i:])); !strings.Contains(header, want) {
			t.Errorf("the header has no %q", want)
		}
	}
	for i, want := range [][7]uint32{{1, 2, 3, 4, 5, 6, 7}, {8, 0, 0, 0, 0, 0, 1 << 31}} {
		var got [7]uint32
		for j := range got {
			got[j] = binary.LittleEndian.Uint32(b[16+28*i+4*j:])
		}
		line := fmt.Sprintf("{%#x,%#x,%#x,%#x,%#x,%#x,%#x},\n", got[0], got[1], got[2], got[3], got[4], got[5], got[6])
		if got != want || !strings.Contains(header, line) {
			t.Errorf("entry %d is %v, want %v, and the header to have %q", i, got, want, line)
		}
	}
}
