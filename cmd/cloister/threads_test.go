package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// threaded are the two C libraries' builds of testdata/programs/threads.c.
func threaded(t *testing.T) map[string]string {
	return map[string]string{
		"glibc": compile(t, "gcc", "threads-glibc", "threads.c", "-static", "-O1", "-pthread"),
		"musl":  compile(t, "musl-gcc", "threads-musl", "threads.c", "-static", "-O1", "-pthread"),
	}
}

// Threads do what they do natively: mutexes, conditions, barriers, semaphores, robust and priority-inheriting mutexes,
// timeouts; the end of the first thread, of all by one, of some that wait; a page that is dropped, or taken away,
// while another thread reads it without ever leaving the guest.
func TestThreads(t *testing.T) {
	b := newBox(t)
	for libc, prog := range threaded(t) {
		for _, mode := range []string{"many", "handover", "robust", "robust-pi", "priority", "timed", "drop", "take",
			"main-first", "exit-all", "exit-blocked"} {
			t.Run(libc+" "+mode, func(t *testing.T) {
				b.t = t
				b.same(process{argv: []string{prog, mode}}, nil)
			})
		}
	}
	b.t = t
}

// A thread is told the same virtual CPU by the vDSO, the system call and /proc, which is one that it may be on, and at once when
// it is moved; the vDSO costs no exit, with the host's clock and with our own.
func TestVirtualCPUs(t *testing.T) {
	b := newBox(t)
	for _, tool := range []string{"gcc", "musl-gcc"} {
		prog := compile(t, tool, "cpus-"+tool, "cpus.c", "-static", "-O1", "-pthread")
		natively := b.do(process{argv: []string{prog}})
		for _, clock := range [][]string{nil, {"--own-clock"}} {
			argv := slices.Concat([]string{b.bin, "run", "--quiet"}, clock, []string{"--", prog})
			b.compare(argv, natively, b.do(process{argv: argv}))
			r, rep := b.reported(append(clock, "--", prog, "loop")...)
			for _, c := range rep.VCPUs[0].Breaks.Syscalls {
				if c.Name == "getcpu" {
					t.Errorf("%s %q: %d system calls for a million looks", tool, clock, c.Count)
				}
			}
			if r.status != 0 {
				t.Errorf("%s %q: %+v", tool, clock, r)
			}
		}
	}
}

// futex(2) as natively: two mappings of one file are one word, private and shared words are two, requeue to words with
// priority inheritance, counts and refusals, and who is served first (which asks for real-time priorities: root's).
func TestFutexes(t *testing.T) {
	b := newBox(t, testenv.Root)
	n := b.same(process{argv: []string{compile(t, "gcc", "futexes", "futexes.c", "-static", "-O1", "-pthread"), "priorities"}}, nil)
	if n.status != 0 || !strings.Contains(n.out, "order 3: 90 20 5 5 0 0\n") {
		t.Errorf("natively: status %d, %s", n.status, tail(n.out))
	}
}

// clone and clone3 with arguments that nobody uses are refused, or make a thread, as natively.
func TestOddClones(t *testing.T) {
	b := newBox(t, testenv.Linux(6, 18)) // of a TLS beyond user memory
	n := b.same(process{argv: []string{compile(t, "gcc", "clones", "clones.c", "-static", "-O1")}}, nil)
	if n.status != 0 || strings.Count(n.out, "\n") < 80 {
		t.Errorf("natively: status %d, %s", n.status, tail(n.out))
	}
}

// The sixty-fifth thread is refused as at a limit of processes, and the others go on; then vCPUs are used again.
func TestThreadBomb(t *testing.T) {
	b := newBox(t)
	for libc, prog := range threaded(t) {
		r := b.do(process{argv: b.guest(prog, "bomb")})
		if want := "63 more threads, then Resource temporarily unavailable\n" + strings.Repeat("the last one\n", 3); r.status != 0 || r.out != want {
			t.Errorf("%s: %+v, want %q", libc, r, want)
		}
	}
}

// One thread is sealed and leaves the guest zero times, while two others write, allocate, and make threads.
func TestSealedBesideHelpers(t *testing.T) {
	b := newBox(t, testenv.CPUs(2))
	for libc, prog := range threaded(t) {
		for range 3 {
			r, rep := b.reported("--cpu", "1", "--budget", "user=0,syscall=0", "--", prog, "sealed")
			if r.status != 0 || r.out != "done\n" {
				t.Fatalf("%s: %+v", libc, r)
			}
			s := rep.VCPUs[0]
			for cause, c := range s.Sealed.ByCause {
				if cause != breaks.HostInterrupt.String() {
					t.Errorf("%s: sealed, %d of %s", libc, c.Count, cause)
				}
			}
			if s.Seals != 1 || s.SealedNS == 0 || rep.Budget == nil || !rep.Budget.OK {
				t.Errorf("%s: %+v, budget %+v", libc, s, rep.Budget)
			}
			if len(rep.VCPUs) < 3 {
				t.Errorf("%s: %d vCPUs in the report", libc, len(rep.VCPUs))
			}
			tids := map[int]bool{0: true}
			for _, v := range rep.VCPUs {
				if tids[v.TID] {
					t.Errorf("%s: vCPU %d is said to be the host's thread %d", libc, v.ID, v.TID)
				}
				tids[v.TID] = true
			}
			for _, v := range rep.VCPUs[1:] {
				if v.Breaks.ByCause[breaks.Syscall.String()].Count == 0 {
					t.Errorf("%s: vCPU %d made no system call", libc, v.ID)
				}
			}
		}
	}
}

// The first thread keeps the core of --cpu when it changes its name.
func TestThreadsKeepTheirCore(t *testing.T) {
	b := newBox(t, testenv.CPUs(2))
	prog := compile(t, "gcc", "placed", "placed.c", "-static", "-pthread")
	for _, args := range [][]string{{"--cpu", "1"}, {"--cpu", "1", "--place", "*=housekeeping"}, {"--cpu", "auto"}} {
		r, rep := b.reported(append(args, "--", prog, "first")...)
		if r.status != 0 || rep.VCPUs[0].CPU == nil || args[1] == "1" && *rep.VCPUs[0].CPU != 1 || rep.VCPUs[0].Threads[0].Name != "rt-first" {
			t.Errorf("%q: %+v, %+v", args, r, rep.VCPUs[0])
		}
	}
}

// A rule by name fits the first thread from its first instruction on, by the program's name; it loses the core with the name.
func TestFirstThreadByName(t *testing.T) {
	b := newBox(t, testenv.CPUs(2))
	prog := compile(t, "gcc", "placed-by-its-name", "placed.c", "-static", "-pthread") // longer than the 15 bytes of a name
	for _, c := range []struct {
		place string
		owns  bool
	}{{"placed-by-its-n=1", true}, {"placed*=1", true}, {"main-*=housekeeping,placed-?*=1", true}, {"placed-by-its-name=1", false}, {"main*=1", false}, {"rt-h*=1", false}} {
		r, rep := b.reported("--place", c.place, "--", prog)
		if r.status != 0 || (rep.VCPUs[0].CPU != nil) != c.owns || c.owns && *rep.VCPUs[0].CPU != 1 {
			t.Errorf("%s: %+v, %+v", c.place, r, rep.VCPUs[0])
		}
	}
	r, rep := b.reported("--place", "placed*=1", "--", prog, "first")
	if r.status != 0 || rep.VCPUs[0].CPU != nil || rep.VCPUs[0].Threads[0].Name != "rt-first" {
		t.Errorf("renamed: %+v, %+v", r, rep.VCPUs[0])
	}
	b.refused(125, []string{"placed-by-its-n", "CPU 1"}, "run", "--cpu", "0", "--place", "placed*=1", prog)
}

// What a reviewer's programs found: a signal of the process that another thread took while a call waited for it, words
// with priority inheritance whose owner ends while somebody waits, the base of GS, timers among faults.
func TestThreadsAgain(t *testing.T) {
	b := newBox(t)
	for _, name := range []string{"lost", "pi", "pi2", "gs", "race2"} {
		b.same(process{argv: []string{compile(t, "gcc", "again-"+name, "again_"+name+".c", "-static", "-O1", "-pthread")}}, nil)
	}
}
