package bare

import (
	"maps"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const interrupts2 = `           CPU0       CPU3       
 24:          1          7  IO-APIC   5-edge      ACPI:Ged
LOC:     162345        250   Local timer interrupts
RES:         11         12   Rescheduling interrupts
CAL:          3          4   Function call interrupts
ERR:          9
MIS:          0
PIN:          1          2   Posted-interrupt notification event
`

func TestFiguresOfACore(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(root+"/proc", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]string{
		"interrupts": interrupts2,
		"softirqs":   "                    CPU0       CPU3\n          HI:          0          5\n       TIMER:       1234         17\n",
		"stat":       "cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\ncpu3 11 12 13 14 15 16 17 18 19 20\nintr 5\n",
	} {
		if err := os.WriteFile(root+"/proc/"+name, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f, err := readCore(root, 3)
	want := figures{"interrupt:24": 7, "interrupt:LOC": 250, "interrupt:RES": 12, "interrupt:CAL": 4, "interrupt:PIN": 2, "softirq:HI": 5, "softirq:TIMER": 17,
		"core_steal_ns": 180_000_000}
	if err != nil || !maps.Equal(f, want) {
		t.Errorf("%v, %v; want %v", f, err, want)
	}
	if f.interrupts() != 275 {
		t.Errorf("%d interrupts", f.interrupts())
	}
	if _, err := readCore(root, 1); err == nil || !strings.Contains(err.Error(), "CPU 1 has no") {
		t.Errorf("a core that is not there: %v", err)
	}
}

func TestFiguresOfAThread(t *testing.T) {
	f := figures{}
	// proc(5): minflt is the 10th field, majflt the 12th, utime and stime the 14th and 15th; the name may hold brackets and blanks.
	stat := "4711 (a) R (b c) S 1 2 3 4 5 6 101 8 102 9 103 104 11 12"
	if err := parseStat(stat, f); err != nil || f[minorFaults] != 101 || f[majorFaults] != 102 || f[userNS] != 1_030_000_000 || f[systemNS] != 1_040_000_000 {
		t.Errorf("%v, %v", f, err)
	}
	if err := parseSchedstat("5 6 7\n", f); err != nil || f[runNS] != 5 || f[waitNS] != 6 || f[slices_] != 7 {
		t.Errorf("%v, %v", f, err)
	}
	status := "Name:\tvoluntary_ctxt_switches: 9\nvoluntary_ctxt_switches:\t30\nnonvoluntary_ctxt_switches:\t31\n"
	if err := parseStatus(status, f); err != nil || f[voluntary] != 30 || f[involuntary] != 31 {
		t.Errorf("%v, %v", f, err)
	}
	if err := parseIO("rchar: 1\nsyscr: 40\nsyscw: 41\n", f); err != nil || f[readCalls] != 40 || f[writeCalls] != 41 {
		t.Errorf("%v, %v", f, err)
	}
	if err := parseSched("a (1, #threads: 1)\n----\nse.nr_migrations                             :                   50\n", f); err != nil || f[migrations] != 50 {
		t.Errorf("%v, %v", f, err)
	}
	for _, bad := range []string{"", "1 a S 1", "1 (a) S 1 2", "1 (a) S 1 2 3 4 5 6 x 8 9 9 9 9 9"} {
		if err := parseStat(bad, figures{}); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("stat %q: %v", bad, err)
		}
	}
	if _, err := readThread("/proc/0/task/0"); err == nil {
		t.Error("figures of a thread that is not there")
	}
	// And on this kernel: what is read grows, and is what getrusage(2) says.
	own, err := readThread("/proc/thread-self")
	if err != nil {
		t.Fatal(err)
	}
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	if own[minorFaults] > uint64(u.Minflt) || own[voluntary] > uint64(u.Nvcsw) || u.Nvcsw > 0 && own[runNS] == 0 {
		t.Errorf("%v, getrusage %+v", own, u)
	}
}

// All intervals together are the last reading without the first, whatever was moved between the books.
func TestBordersLoseNothing(t *testing.T) {
	at := func(n uint64) figures {
		return figures{runNS: 1000 * n, voluntary: n, interrupt + "LOC": 10 * n, interrupt + "RES": n, minorFaults: 3}
	}
	th := newThread(0, 1, 3, at(1))
	th.seal(at(2))
	th.pardon(figures{interrupt + "RES": 4, interrupt + "LOC": 40}) // woken by one of two
	if th.base[interrupt+"RES"] != 3 || th.total[0][interrupt+"RES"] != 2 {
		t.Errorf("pardoned: base %v, open %v", th.base, th.total[0])
	}
	th.last = at(3)
	if c, s := th.snapshot(); c.Book[1].Guest != 1000 || s[1][interrupt+"LOC"] != 10 || c.Book[1].Kernel[1] != 10 {
		t.Errorf("while it runs: %v, %v", c.Book[1].Kernel, s)
	}
	th.unseal(at(5))
	th.last = at(9)
	th.end(now())
	th.end(now())
	_, s := th.snapshot()
	for name, n := range at(9) {
		if s[0][name]+s[1][name] != n-at(1)[name] {
			t.Errorf("%s: %d open, %d sealed, together not %d", name, s[0][name], s[1][name], n-at(1)[name])
		}
	}
	if s[1][voluntary] != 2 { // 3, and the call that ended it
		t.Errorf("sealed: %v", s[1])
	}
	if th.counts.Seals != 1 || th.counts.SealedIn == 0 || th.counts.Book[0].Total != 1 {
		t.Errorf("%d seals of %d ns, %d returns", th.counts.Seals, th.counts.SealedIn, th.counts.Book[0].Total)
	}
}

// A thread that gets a core, and another one, loses none of its own figures, and has those of each core for its time.
func TestMovesLoseNothing(t *testing.T) {
	own := func(n uint64) figures { return figures{runNS: 1000 * n, migrations: n} }
	with := func(f figures, loc uint64) figures {
		f[interrupt+"LOC"] = loc
		return f
	}
	th := newThread(1, 2, -1, own(0))
	th.moved(3, own(2), with(own(2), 500)) // a core that had 500 before
	if th.cpu() != 3 || th.movedAt == 0 {
		t.Errorf("on core %d", th.cpu())
	}
	th.seal(with(own(3), 510))
	th.pardon(with(own(4), 511)) // it came to the core as it woke up
	th.unseal(with(own(5), 530))
	th.moved(-1, with(own(6), 535), own(6))
	th.last = own(7)
	th.end(now())
	if _, s := th.snapshot(); s[0][runNS] != 5000 || s[1][runNS] != 2000 || s[1][migrations] != 1 || s[0][migrations] != 6 ||
		s[0][interrupt+"LOC"] != 15 || s[1][interrupt+"LOC"] != 20 || th.cpu() != -1 {
		t.Errorf("open %v, sealed %v", s[0], s[1])
	}
}

// No file of /proc, whatever is in it, makes more than an error.
func FuzzFigures(f *testing.F) {
	f.Add(interrupts2)
	f.Add("4711 (a) R (b c) S 1 2 3 4 5 6 101 8 102 9 103 104 11 12")
	f.Add("voluntary_ctxt_switches:\t30\nsyscr: 40\nse.nr_migrations : 50\ncpu3 11 12 13 14 15 16 17 18 19 20")
	f.Fuzz(func(t *testing.T, s string) {
		for name, parse := range map[string]func(string, figures) error{
			"stat": parseStat, "schedstat": parseSchedstat, "status": parseStatus, "io": parseIO, "sched": parseSched,
			"interrupts": func(s string, f figures) error { return perCPU(s, 3, interrupt, f) },
			"steal":      func(s string, f figures) error { return parseSteal(s, 3, f) },
		} {
			out := figures{}
			if err := parse(s, out); err != nil {
				continue
			}
			for figure, n := range out {
				if d := out.since(figures{figure: n}); d[figure] != 0 {
					t.Errorf("%s: %s: nothing since itself, and %d", name, figure, d[figure])
				}
			}
		}
	})
}
