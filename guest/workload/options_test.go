package workload

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"flag"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/isolation/breaks"
)

func TestBadOptions(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		hz   uint64
		want string
	}{
		{"@nothing", nil, testHz, "there are @spin"},
		{"spin", nil, testHz, "there are @spin"},
		{"", nil, 0, "there are @spin"},
		{"@fault:", nil, 0, "no fault of that name"},
		{"@fault:xyzzy", nil, 0, "there are de, bp"},
		{"@fault:de", []string{"--seal"}, 0, "it has no options"},
		{"@spin", []string{"--fast"}, 0, "--count, --seal, --write"},
		{"@spin", []string{"--count", "-1"}, 0, "invalid value"},
		{"@spin", []string{"--count"}, 0, "needs an argument"},
		{"@spin", []string{"10"}, 0, `unexpected argument "10"`},
		{"@exits", []string{"--count", "0"}, 0, "must be 1 to 4096"},
		{"@exits", []string{"--count", "4097"}, 0, "must be 1 to 4096"},
		{"@jitter", nil, 0, "frequency of the TSC is not known"},
		{"@jitter", []string{"--threshold", "0"}, testHz, "every pass would be a gap"},
		{"@jitter", []string{"--threshold", "1ns"}, 1000, "every pass would be a gap"},
		{"@jitter", []string{"--threshold=-1s"}, testHz, "must not be negative"},
		{"@jitter", []string{"--for", "1ns"}, 100_000_000, "shorter than one TSC cycle"},
		{"@jitter", []string{"--for", "200000h"}, 1 << 40, "more cycles than the TSC counts"},
		{"@jitter", []string{"--for", "200000h"}, math.MaxUint64, "more cycles than the TSC counts"},
		{"@jitter", []string{"--no-seal=perhaps"}, testHz, "invalid boolean value"},
		{"@cyclic", []string{"--period", "1ns"}, testHz, "give 1us or more"},
		{"@cyclic", []string{"--period", "0"}, testHz, "give 1us or more"},
		{"@control-loop", []string{"--period", "9us"}, testHz, "give 10us or more"},
		{"@control-loop", []string{"--period", "1ms", "--work", "1ms"}, testHz, "must be less than --period 1ms"},
		{"@control-loop", []string{"--work=-1s"}, testHz, "must not be negative"},
		{"@control-loop", nil, 0, "frequency of the TSC is not known"},
		{"@control-loop", []string{"--for", "1ns"}, 100_000_000, "shorter than one TSC cycle"},
		{"@control-loop", []string{"--safe-points=perhaps"}, testHz, "invalid boolean value"},
	} {
		b, err := ELF(c.name, c.args, c.hz)
		if err == nil || b != nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("ELF(%q, %q, %d): %d bytes, %v; want one line with %q", c.name, c.args, c.hz, len(b), err, c.want)
		}
	}
	if _, err := ELF("@spin", []string{"--help"}, 0); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("--help: %v", err)
	}
}

func paramsOf(t *testing.T, b []byte) (p params, r abi.GapRecord) {
	t.Helper()
	if _, err := binary.Decode(b[fileParams:], binary.LittleEndian, &p); err != nil {
		t.Fatal(err)
	}
	if _, err := binary.Decode(b[fileParams+RecordAddr-ParamsAddr:], binary.LittleEndian, &r); err != nil {
		t.Fatal(err)
	}
	return p, r
}

func TestOptionsReachTheProgram(t *testing.T) {
	p, _ := paramsOf(t, mustELF(t, "@spin", "--seal", "--count", "12"))
	if p.Seal != 1 || p.Count != 12 {
		t.Errorf("@spin: %+v", p)
	}
	b, err := ELF("@jitter", []string{"--threshold", "2us", "--for", "3s", "--passes", "7", "--warm-up", "9", "--dump", "--no-seal"}, 2_500_000_001)
	if err != nil {
		t.Fatal(err)
	}
	p, r := paramsOf(t, b)
	if p.Seal != 0 || p.Passes != 7 || p.Cycles != 7_500_000_003 || p.Warm != 9 || p.Dump != 1 {
		t.Errorf("@jitter: %+v", p)
	}
	if r.Magic != abi.GapMagic || r.Kind != abi.GapKindLoop || r.Threshold != 5000 || r.Min != math.MaxUint64 {
		t.Errorf("@jitter: magic %#x kind %d threshold %d min %d", r.Magic, r.Kind, r.Threshold, r.Min)
	}
	p, r = paramsOf(t, mustELF(t, "@cyclic", "--period", "250us"))
	if p.Seal != 1 || p.Passes != 0 || p.Cycles != 0 || p.Warm != 10 || r.Kind != abi.GapKindCyclic || r.Period != 250_000 || r.Threshold != 1000 {
		t.Errorf("@cyclic: %+v, period %d threshold %d", p, r.Period, r.Threshold)
	}
}

func TestList(t *testing.T) {
	list := List()
	if len(list) != len(programs())+1 {
		t.Fatalf("%d entries", len(list))
	}
	for _, w := range list {
		if !strings.HasPrefix(w.Name, "@") || w.Help == "" || strings.Contains(w.Help, "\n") {
			t.Errorf("%+v", w)
		}
		for _, o := range w.Options {
			if o.Name == "" || o.Help == "" {
				t.Errorf("%s: %+v", w.Name, o)
			}
		}
	}
	if o := list[0].Options[0]; o != (Option{"count", "N", "0", "end after N rounds (0: never)"}) {
		t.Errorf("%+v", o)
	}
}

func TestCycles(t *testing.T) {
	for _, c := range []struct {
		d    time.Duration
		hz   uint64
		want uint64
	}{
		{time.Second, 2_399_999_987, 2_399_999_987},
		{time.Microsecond, 2_500_000_000, 2500},
		{time.Nanosecond, 999_999_999, 0},
		{10 * 365 * 24 * time.Hour, 4_000_000_000, 10 * 365 * 24 * 3600 * 4_000_000_000},
	} {
		if got, err := cycles("x", c.d, c.hz); err != nil || got != c.want {
			t.Errorf("cycles(%v, %d) = %d, %v; want %d", c.d, c.hz, got, err, c.want)
		}
	}
}

func TestCyclesTooMany(t *testing.T) {
	for _, c := range []struct {
		d  time.Duration
		hz uint64
	}{{1 << 62, 1_000_000_000}, {1 << 62, 4_000_000_000}, {math.MaxInt64, math.MaxUint64}, {-1, 1}, {1, 0}} {
		if n, err := cycles("x", c.d, c.hz); err == nil {
			t.Errorf("cycles(%d, %d) = %d", c.d, c.hz, n)
		}
	}
}

func TestDecodeRecord(t *testing.T) {
	good := mustELF(t, "@cyclic")[fileParams+RecordAddr-ParamsAddr:]
	if r, err := DecodeRecord(good); err != nil || r.Kind != abi.GapKindCyclic || r.Period != 1_000_000 {
		t.Errorf("%v, kind %d, period %d", err, r.Kind, r.Period)
	}
	for want, spoil := range map[string]func([]byte) []byte{
		"4735 bytes, want 4736": func(b []byte) []byte { return b[:recordSize-1] },
		"magic 0x":              func(b []byte) []byte { b[0]++; return b },
		"kind 3":                func(b []byte) []byte { b[8] = 3; return b },
	} {
		if _, err := DecodeRecord(spoil(bytes.Clone(good))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestProvocations(t *testing.T) {
	sum := map[breaks.Cause]uint64{}
	for _, e := range Provocations(5) {
		sum[e.Cause] += e.Count
		if e.What == "" || e.Count == 0 || (e.Cause == breaks.Syscall) != (e.Nr != 0) {
			t.Errorf("%+v", e)
		}
	}
	want := map[breaks.Cause]uint64{
		breaks.Syscall: 3*5 + 5*5 + 3, breaks.HLT: 5, breaks.Kick: 5, breaks.PIO: 5, breaks.MMIO: 5,
		breaks.Emulation: 5, breaks.PageFault: 5, breaks.Seal: 10, breaks.End: 1,
	}
	for c := range breaks.NCause {
		if sum[c] != want[c] {
			t.Errorf("%v: %d, want %d", c, sum[c], want[c])
		}
	}
	if a, b := Provocations(-1), Provocations(1); len(a) != len(b) || a[0] != b[0] {
		t.Error("Provocations(-1) is not Provocations(1)")
	}
}

func FuzzOptions(f *testing.F) {
	for _, s := range []string{"@spin\n--seal\n--count\n3", "@jitter\n--for=1h\n--no-seal", "@cyclic\n--period\n20us", "@control-loop\n--work=3us\n--period=20us", "@exits\n--count=4096", "@fault:pf", "@jitter\n-threshold\n1e9h"} {
		f.Add(s, uint64(2_500_000_000))
	}
	f.Fuzz(func(t *testing.T, line string, hz uint64) {
		words := strings.Split(line, "\n")
		b, err := ELF(words[0], words[1:], hz)
		if (err == nil) != (b != nil) {
			t.Fatalf("%d bytes and %v", len(b), err)
		}
		if err != nil {
			return
		}
		if _, err := elf.NewFile(bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		if p, _ := paramsOf(t, b); p.Cycles >= 1<<62 || p.Seal > 1 {
			t.Fatalf("%+v", p)
		}
	})
}

func FuzzDecodeRecord(f *testing.F) {
	good, err := ELF("@jitter", nil, testHz)
	if err != nil {
		f.Fatal(err)
	}
	good = good[fileParams+RecordAddr-ParamsAddr:]
	f.Add(good[:recordSize])
	f.Add(good[:recordSize-1])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRecord(b)
		if err != nil {
			return
		}
		again, err := binary.Append(nil, binary.LittleEndian, &r)
		if err != nil {
			t.Fatal(err)
		}
		// The padding is not kept; everything else is.
		if !bytes.Equal(again[:96], b[:96]) || !bytes.Equal(again[128:], b[128:recordSize]) {
			t.Fatal("a record changed by decoding")
		}
	})
}
