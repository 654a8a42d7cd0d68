package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/guest/workload"
	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/breaks"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/sys/unix"
)

// reported runs a guest quietly with --report and reads the report, which must keep to its schema and whose
// books must close.
func (b *box) reported(args ...string) (result, *breaks.Report) {
	b.t.Helper()
	name := filepath.Join(b.work, "report.json")
	if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
		b.t.Fatal(err)
	}
	r := b.cloister(append([]string{"run", "--quiet", "--report", name}, args...)...)
	return r, b.report(name, r)
}

func (b *box) report(name string, r result) *breaks.Report {
	b.t.Helper()
	rep := b.decoded(name, r)
	b.closed(rep)
	return rep
}

// decoded reads a report that must follow its schema.
func (b *box) decoded(name string, r result) *breaks.Report {
	b.t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil {
		b.t.Fatalf("no report: %v\nstatus %d, %s", err, r.status, tail(r.err))
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		b.t.Fatalf("the report is no JSON: %v", err)
	}
	s, err := jsonschema.NewCompiler().Compile(filepath.Join("..", "..", "isolation", "breaks", "report.schema.json"))
	if err != nil {
		b.t.Fatal(err)
	}
	if err := s.Validate(doc); err != nil {
		b.t.Errorf("the report breaks its schema: %v", err)
	}
	var rep breaks.Report
	if err := json.Unmarshal(raw, &rep); err != nil {
		b.t.Fatal(err)
	}
	if len(rep.VCPUs) == 0 {
		b.t.Fatal("no vCPU in the report")
	}
	if rep.Exit.Code != r.status {
		b.t.Errorf("exit.code %d, status %d", rep.Exit.Code, r.status)
	}
	return &rep
}

// closed adds the books up again.
func (b *box) closed(rep *breaks.Report) {
	b.t.Helper()
	if !rep.Books.Closed || rep.Books.Unknown != 0 {
		b.t.Errorf("the books do not close: %+v", rep.Books)
	}
	for _, v := range rep.VCPUs {
		b.addUp(v)
	}
}

func (b *box) addUp(v breaks.VCPUReport) {
	b.t.Helper()
	for _, book := range []breaks.BookReport{v.Breaks, v.Open, v.Sealed} {
		var n, lost uint64
		for _, c := range book.ByCause {
			n += c.Count
			if c.LostNS != nil {
				lost += *c.LostNS
			}
		}
		// Each cause's time is rounded down by itself.
		if n != book.Total || lost > book.LostNS || book.LostNS-lost > uint64(len(book.ByCause)) {
			b.t.Errorf("vCPU %d: causes add up to %d breaks and %d ns, the total is %d and %d", v.ID, n, lost, book.Total, book.LostNS)
		}
	}
	if v.Open.Total+v.Sealed.Total != v.Breaks.Total {
		b.t.Errorf("vCPU %d: open %d and sealed %d are not %d", v.ID, v.Open.Total, v.Sealed.Total, v.Breaks.Total)
	}
}

// count is how often a cause occurred, in both books, planned or not.
func count(rep *breaks.Report, c breaks.Cause) uint64 {
	book := rep.VCPUs[0].Breaks
	return book.ByCause[c.String()].Count + book.Planned[c.String()].Count
}

// Every cause that a program can provoke is counted, exactly as often as it occurred, under its name.
func TestEveryCauseIsCounted(t *testing.T) {
	b := newBox(t)
	hardware := testenv.Has(testenv.HardwareKVM)
	type sums struct {
		cause map[breaks.Cause]uint64
		nr    map[int]uint64
	}
	measure := func(n int) (got, want sums) {
		r, rep := b.reported("@exits", "--count", strconv.Itoa(n))
		if r.status != 0 || r.out+r.err != "" {
			t.Fatalf("--count %d: %+v", n, r)
		}
		got = sums{map[breaks.Cause]uint64{}, map[int]uint64{}}
		want = sums{map[breaks.Cause]uint64{}, map[int]uint64{}}
		for c := range breaks.NCause {
			got.cause[c] = count(rep, c)
		}
		for _, s := range rep.VCPUs[0].Breaks.Syscalls {
			got.nr[s.Nr] += s.Count
		}
		for _, e := range workload.Provocations(n) {
			c := e.Cause
			if hardware && e.Hardware != breaks.Unknown {
				c = e.Hardware
			}
			want.cause[c] += e.Count
			if c == breaks.Syscall && e.Nr < 400 {
				want.nr[int(e.Nr)] += e.Count
			}
		}
		if !hardware {
			// Ring 0 is emulated: the jump behind each provoked hlt, pio and mmio is one instruction more, and
			// each system call's way to the stub is a transit.
			want.cause[breaks.Emulation] += 3 * uint64(n)
			if onAMD() { // pvm cannot have CPUID trapped there: it is executed, and leaves the guest for nobody
				want.cause[breaks.Emulation] -= uint64(n)
			}
			want.cause[breaks.Transit] = want.cause[breaks.Syscall]
		}
		return got, want
	}
	const few, many = 7, 60
	g1, w1 := measure(few)
	g2, w2 := measure(many)
	for c := range breaks.NCause {
		switch c {
		case breaks.HostInterrupt, breaks.Setup, breaks.KernelOther:
			// The host's own, Cloister's own, and on hardware the rest of both.
			if c != breaks.KernelOther || !hardware {
				continue
			}
			if d := g2.cause[c] - g1.cause[c]; d < w2.cause[c]-w1.cause[c] {
				t.Errorf("%v: %d more for %d more", c, d, w2.cause[c]-w1.cause[c])
			}
		case breaks.PageFault:
			// The program's own image comes on top, the same each time.
			if d := g2.cause[c] - g1.cause[c]; d != many-few && !hardware || d < many-few {
				t.Errorf("%v: %d more for %d more", c, d, many-few)
			}
		default:
			if g1.cause[c] != w1.cause[c] || g2.cause[c] != w2.cause[c] {
				t.Errorf("%v: counted %d and %d, happened %d and %d", c, g1.cause[c], g2.cause[c], w1.cause[c], w2.cause[c])
			}
		}
	}
	for nr, n := range w2.nr {
		if g2.nr[nr] != n {
			t.Errorf("system call %d: counted %d, made %d", nr, g2.nr[nr], n)
		}
	}
	if g2.cause[breaks.Kick] != many || g2.cause[breaks.Seal] != 2*many || g2.cause[breaks.HLT] != many {
		t.Error("the table of provocations has lost one")
	}
}

// Every fault ends the program by its signal, is counted once under its cause, and is explained.
func TestEveryFaultIsReported(t *testing.T) {
	b := newBox(t)
	if len(workload.Faults()) < 20 {
		t.Fatal("where are the faults?")
	}
	emulated := testenv.Has(testenv.LabMachine) && testenv.Has(testenv.SVM)
	for _, f := range workload.Faults() {
		t.Run(f.Name, func(t *testing.T) {
			b.t = t
			r, rep := b.reported("@fault:" + f.Name)
			if f.NotUnder != "" && r.status == workload.Survived {
				t.Logf("the processor did not fault, as %s does not", f.NotUnder)
				return
			}
			if i := f.Instead; i != nil && emulated && r.status == 128+int(i.Signal) {
				t.Logf("vector %d in place of %d, as under %s", i.Vector, f.Vector, f.NotUnder)
				f.Vector, f.Signal = i.Vector, i.Signal
			}
			if want := 128 + int(f.Signal); r.status != want {
				t.Errorf("status %d, want %d", r.status, want)
			}
			if rep.Exit.Signal != int(f.Signal) || !strings.Contains(rep.Exit.Reason, unix.SignalName(f.Signal)) {
				t.Errorf("exit %+v", rep.Exit)
			}
			var seen []string
			n := uint64(0)
			for _, c := range append([]breaks.Cause{f.Cause()}, f.May...) {
				n += count(rep, c)
				seen = append(seen, fmt.Sprintf("%v %d", c, count(rep, c)))
			}
			if n != 1 {
				t.Errorf("counted %q, all: %+v", seen, rep.VCPUs[0].Breaks.ByCause)
			}
			x := rep.Fault
			if x == nil {
				t.Fatal("the report has no fault")
			}
			if x.Signal != unix.SignalName(f.Signal) || x.RIP == 0 && f.Name != "null" || len(x.Registers) < 18 || x.Registers["rip"] != x.RIP {
				t.Errorf("fault %+v", x)
			}
			if len(x.Backtrace) == 0 {
				t.Error("no backtrace")
			}
			if f.Vector == 14 && len(f.May) == 1 && x.Address == nil {
				t.Error("a page fault without an address")
			}
			if f.Name == "pf" && (x.Address == nil || *x.Address != 8) {
				t.Errorf("address %v, want 0x8", x.Address)
			}
		})
	}
	b.t = t
	if r := b.cloister("run", "@fault:no-such"); r.status != 127 || strings.Count(r.err, "\n") != 1 {
		t.Errorf("%+v", r)
	}
}

// line finds the line of a source that holds a mark.
func line(t *testing.T, file, mark string) int {
	t.Helper()
	src, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range strings.Split(string(src), "\n") {
		if strings.Contains(l, mark) {
			return i + 1
		}
	}
	t.Fatalf("%s has no %q", file, mark)
	return 0
}

// A crash deep in a program with DWARF names every function with its file and line, whatever it was built with.
func TestCrashIsExplained(t *testing.T) {
	b := newBox(t)
	src := filepath.Join("testdata", "programs", "crash.c")
	for _, v := range []struct {
		name string
		args []string
	}{
		{"crash-O0", []string{"-O0", "-g", "-static"}},
		{"crash-O2", []string{"-O2", "-g", "-static", "-fno-omit-frame-pointer"}},
		{"crash-pie", []string{"-O1", "-g", "-static-pie", "-fPIE", "-fomit-frame-pointer"}},
	} {
		t.Run(v.name, func(t *testing.T) {
			b.t = t
			prog := compile(t, "gcc", v.name, "crash.c", v.args...)
			r, rep := b.reported("--", prog)
			if r.status != 139 || rep.Fault == nil || rep.Fault.Address == nil || *rep.Fault.Address != 0xdead000 {
				t.Fatalf("status %d, fault %+v", r.status, rep.Fault)
			}
			var got []string
			for _, f := range rep.Fault.Backtrace {
				got = append(got, fmt.Sprintf("%s %s:%d", f.Symbol, filepath.Base(f.File), f.Line))
			}
			var want []string
			for _, w := range []struct{ f, mark string }{{"third", "CRASH"}, {"second", "SECOND"}, {"first", "FIRST"}, {"main", "MAIN"}} {
				want = append(want, fmt.Sprintf("%s crash.c:%d", w.f, line(t, src, "/* "+w.mark)))
			}
			if len(got) < 4 || v.name != "crash-O2" && !slices.Equal(got[:4], want) || got[0] != want[0] {
				t.Errorf("backtrace\n%q\nwant\n%q", got, want)
			}
			text := b.cloister("run", "--", prog)
			for _, say := range []string{"SIGSEGV", "0xdead000", "third", "crash.c:" + strconv.Itoa(line(t, src, "/* CRASH")), "main"} {
				if !strings.Contains(text.err, say) {
					t.Errorf("the printed report does not say %q:\n%s", say, tail(text.err))
				}
			}
		})
	}
	b.t = t
	prog := compile(t, "gcc", "crash-O0", "crash.c", "-O0", "-g", "-static")
	for arg, want := range map[string]struct {
		vcpu   uint32
		thread string
	}{"": {0, "crash-O0"}, "thread": {1, "the-hot-one"}} {
		r, rep := b.reported("--", prog, arg)
		if f := rep.Fault; r.status != 139 || f == nil || f.VCPU != want.vcpu || f.Name != want.thread || f.Thread-int(want.vcpu) != rep.VCPUs[0].Threads[0].ID {
			t.Errorf("%q: status %d, %+v, want %+v", arg, r.status, rep.Fault, want)
		}
		if text := b.cloister("run", "--", prog, arg); !strings.Contains(text.err, "thread "+want.thread+" (") || !strings.Contains(text.err, fmt.Sprintf(") on vCPU %d\n", want.vcpu)) {
			t.Errorf("%q: the printed report does not say which thread:\n%s", arg, tail(text.err))
		}
	}
	for arg, sig := range map[string]unix.Signal{"abort": unix.SIGABRT, "kill": unix.SIGUSR1} {
		r, rep := b.reported("--", prog, arg)
		if r.status != 128+int(sig) || rep.Exit.Signal != int(sig) {
			t.Errorf("%s: status %d, exit %+v", arg, r.status, rep.Exit)
		}
	}
}
