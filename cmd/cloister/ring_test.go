package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/guest/sdk/go/ring"
	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/breaks"
)

func ringProgram(t *testing.T) string {
	return compile(t, "gcc", "ring", "ring.c", "-static", "-O2", "-pthread")
}

const ringBudget = "user=0,page-fault=0,syscall=0"

// noBreaks: vCPU 0 was sealed, and nothing but the host's own interrupts disturbed it.
func noBreaks(t *testing.T, rep *breaks.Report) {
	t.Helper()
	v := rep.VCPUs[0]
	for cause, c := range v.Sealed.ByCause {
		if c.Count != 0 && cause != breaks.HostInterrupt.String() {
			t.Errorf("sealed, %d of %s", c.Count, cause)
		}
	}
	if v.Seals != 1 || v.SealedNS == 0 || rep.Budget == nil || !rep.Budget.OK {
		t.Errorf("%d seals, %d ns sealed, budget %+v", v.Seals, v.SealedNS, rep.Budget)
	}
}

// opened is the ring of a VM that is starting, as a host program opens it.
func (b *box) opened(vm, name string) *ring.Consumer {
	b.t.Helper()
	path := filepath.Join(b.runs, "vm", vm, "ring", name)
	for range 500 {
		c, err := ring.OpenConsumer(path)
		if err == nil {
			b.t.Cleanup(func() {
				if err := c.Close(); err != nil {
					b.t.Error(err)
				}
			})
			return c
		}
		if !errors.Is(err, os.ErrNotExist) {
			b.t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.t.Fatalf("no ring at %s", path)
	return nil
}

// record is what make in testdata/programs/ring.c makes.
func record(i uint64) []byte {
	rec := make([]byte, 8+i*7%300)
	binary.LittleEndian.PutUint64(rec, i)
	for k := 8; k < len(rec); k++ {
		rec[k] = byte(i + uint64(k))
	}
	return rec
}

// take gets every record up to the end and hands it over.
func take(t *testing.T, c *ring.Consumer, each func(rec []byte)) {
	t.Helper()
	buf := make([]byte, 512)
	end := time.Now().Add(limit)
	for {
		n, err := c.Get(buf)
		switch err {
		case nil:
			each(buf[:n])
		case io.EOF:
			return
		case ring.ErrEmpty:
			if time.Now().After(end) {
				t.Fatal("the producer does not go on")
			}
			time.Sleep(20 * time.Microsecond)
		default:
			t.Fatal(err)
		}
	}
}

// A sealed program gives records to a process of the host without a break: no exit, no fault. Every record arrives, whole
// and in order, also where the ring is full most of the time.
func TestRingToTheHost(t *testing.T) {
	toTheHost(t, noBreaks, []string{"--budget", ringBudget}, ringProgram(t), "produce")
}

// The same with Go's package in the program. Go's runtime may have a sealed goroutine give way when it has run for 10 ms and
// calls a function (docs/rings.md), so it is only held that the records make no exits: there are tens of thousands of them.
func TestRingFromGo(t *testing.T) {
	toTheHost(t, func(t *testing.T, rep *breaks.Report) {
		seals := uint64(0)
		for _, v := range rep.VCPUs {
			seals += v.Seals
			for cause, c := range v.Sealed.ByCause {
				if c.Count > 5000 && cause != breaks.HostInterrupt.String() && cause != breaks.Transit.String() {
					t.Errorf("vCPU %d: sealed, %d of %s", v.ID, c.Count, cause)
				}
			}
		}
		if seals != 1 {
			t.Errorf("%d seals", seals)
		}
	}, nil, goProgram(t, "goring"))
}

// toTheHost starts prog with args, the ring's path and the number of its records, under cloister with flags.
func toTheHost(t *testing.T, judge func(*testing.T, *breaks.Report), flags []string, prog string, args ...string) {
	t.Helper()
	b := newBox(t, testenv.CPUs(2))
	for size, count := range map[string]uint64{"1M": 200_000, "4K": 30_000} {
		report := filepath.Join(b.work, "report-"+size)
		p := b.started(slices.Concat([]string{"run", "--name", "rings", "--cpu", lastCPU(t), "--ring", "out=" + size, "--report", report, "--quiet"}, flags, []string{"--", prog},
			args, []string{ring.Path("out"), strconv.FormatUint(count, 10)})...)
		next := uint64(0)
		take(t, b.opened("rings", "out"), func(rec []byte) {
			if !bytes.Equal(rec, record(next)) {
				t.Fatalf("record %d of %s: %d bytes, the number %x", next, size, len(rec), rec[:8])
			}
			next++
		})
		r := p.wait()
		if r.status != 0 || next != count || !strings.HasPrefix(r.out, fmt.Sprintf("%d records, 0 dropped", count)) {
			t.Fatalf("%s: %d records of %d, %+v", size, next, count, r)
		}
		if size == "4K" && !strings.Contains(r.out, "full at times") {
			t.Errorf("%s: %s: the test does not try what it should", size, r.out)
		}
		judge(t, b.report(report, r))
	}
}

// The same between a sealed thread and a helper, over a ring of --ring and over memory of the program's own.
func TestRingToAThread(t *testing.T) {
	b := newBox(t, testenv.CPUs(2))
	prog := ringProgram(t)
	for _, path := range []string{ring.Path("own"), "-"} {
		r, rep := b.reported("--cpu", lastCPU(t), "--ring", "own=16K", "--budget", ringBudget, "--", prog, "thread", path, "100000")
		if r.status != 0 || !strings.Contains(r.out, "100000 records taken\n") || !strings.Contains(r.out, "100000 records, 0 dropped") {
			t.Fatalf("%s: %+v", path, r)
		}
		noBreaks(t, rep)
	}
	if r := b.do(process{argv: []string{prog, "thread", "-", "100000"}}); r.status != 0 || !strings.Contains(r.out, "100000 records taken\n") {
		t.Errorf("natively: %+v", r)
	}
	if r := b.do(process{argv: []string{prog, "produce", ring.Path("own"), "1"}}); r.status != 1 || r.out != "open: No such file or directory\n" {
		t.Errorf("natively there is no ring: %+v", r)
	}
}

// A producer that does not wait loses what it counts, and nothing else.
func TestRingOverflows(t *testing.T) {
	b := newBox(t, testenv.CPUs(2))
	const count = 50_000
	p := b.started("run", "--name", "rings", "--cpu", lastCPU(t), "--ring", "out=64K", "--budget", ringBudget, "--", ringProgram(t), "flood", ring.Path("out"), strconv.Itoa(count))
	c := b.opened("rings", "out")
	last, got := int64(-1), uint64(0)
	take(t, c, func(rec []byte) {
		i := binary.LittleEndian.Uint64(rec)
		if int64(i) <= last || !bytes.Equal(rec, record(i)) {
			t.Fatalf("record %d after %d, %d bytes", i, last, len(rec))
		}
		last, got = int64(i), got+1
	})
	dropped := c.Dropped()
	if r := p.wait(); r.status != 0 || got+dropped != count || dropped == 0 || !strings.HasPrefix(r.out, fmt.Sprintf("%d records, %d dropped", count, dropped)) {
		t.Errorf("%d records and %d dropped of %d: %+v", got, dropped, count, r)
	}
}

// The command copies lines in and records out, through a program that is sealed all the while.
func TestRingCommand(t *testing.T) {
	b := newBox(t, testenv.CPUs(2))
	p := b.started("run", "--name", "echo", "--cpu", lastCPU(t), "--ring", "in=4K", "--ring", "out=8K", "--budget", ringBudget, "--",
		ringProgram(t), "echo", ring.Path("in"), ring.Path("out"))
	p.running()
	if r := b.cloister("ring", "echo"); r.status != 0 || !strings.Contains(r.out, "in ") || !strings.Contains(r.out, " 4096 bytes\n") || !strings.Contains(r.out, " 8192 bytes\n") {
		t.Errorf("the list: %+v", r)
	}
	for args, want := range map[string]string{"echo no": "it has in, out", "echo ../engine": "no such ring", "no in": `no VM "no"`, "": "takes the name", "echo --write": "--write needs", "echo in --close": "--close needs"} {
		if r := b.cloister(append([]string{"ring"}, strings.Fields(args)...)...); r.status != 125 || !strings.Contains(r.err, want) || strings.Count(r.err, "\n") != 1 {
			t.Errorf("ring %s: %+v", args, r)
		}
	}
	var text strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&text, "line %d %s\n", i, strings.Repeat("x", i%100))
	}
	text.WriteString(strings.Repeat("long", 5000) + "\n" + "no newline")
	reader := b.started("ring", "echo", "out")
	if r := b.do(process{argv: []string{b.bin, "ring", "echo", "in", "--write"}, stdin: strings.NewReader("first\n")}); r.status != 0 {
		t.Fatalf("%+v", r)
	}
	if r := b.do(process{argv: []string{b.bin, "ring", "echo", "in", "--write", "--close"}, stdin: strings.NewReader(text.String())}); r.status != 0 {
		t.Fatalf("%+v", r)
	}
	if r := reader.wait(); r.status != 0 || r.err != "" || r.out != "first\n"+text.String() {
		t.Errorf("%d, %q, %d bytes of %d", r.status, r.err, len(r.out), text.Len()+6)
	}
	if r := p.wait(); r.status != 0 || r.out != "done\n" {
		t.Errorf("%+v", r)
	}
}

// A program that spoils its ring gets the reader to stop, in one line; it cannot make the file shorter under it.
func TestRingOfAHostileProgram(t *testing.T) {
	b := newBox(t)
	prog := ringProgram(t)
	for _, what := range []string{"head", "odd", "length", "hole"} {
		p := b.started("run", "--name", what, "--quiet", "--ring", "out=64K", "--", prog, "spoil", ring.Path("out"), what)
		p.running()
		r := b.cloister("ring", what, "out")
		var want strings.Builder
		for i := range uint64(5) {
			want.Write(record(i))
		}
		if r.status != 125 || !strings.Contains(r.err, "no ring can hold") || strings.Count(r.err, "\n") != 1 || r.out != want.String() {
			t.Errorf("%s: %d, %q, %d bytes", what, r.status, r.err, len(r.out))
		}
		if r := b.cloister("stop", what); r.status != 0 {
			t.Fatalf("%s: %+v", what, r)
		}
		p.wait()
	}
	p := b.started("run", "--name", "size", "--quiet", "--ring", "out=64K", "--", prog, "spoil", ring.Path("out"), "size")
	next := uint64(0)
	take(t, b.opened("size", "out"), func(rec []byte) {
		if !bytes.Equal(rec, record(next)) {
			t.Fatalf("record %d", next)
		}
		next++
	})
	if r := p.wait(); r.status != 0 || r.out != "-1 -1 -1 -1 -1\n" || next != 6 {
		t.Errorf("%d records, %+v", next, r)
	}
}

// What was written before the VM ended is read to the end, though the program closed nothing.
func TestRingOfAVMThatEnds(t *testing.T) {
	b := newBox(t)
	p := b.started("run", "--name", "ends", "--quiet", "--ring", "out=64K", "--", ringProgram(t), "spoil", ring.Path("out"), "never")
	p.running()
	reader := b.started("ring", "ends", "out")
	time.Sleep(300 * time.Millisecond)
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if r := reader.wait(); r.status != 0 || r.err != "" || len(r.out) == 0 {
		t.Errorf("%+v", r)
	}
	p.wait()
	if r := b.cloister("ring", "ends", "out"); r.status != 125 || !strings.Contains(r.err, `no VM "ends"`) {
		t.Errorf("when it is gone: %+v", r)
	}
}
