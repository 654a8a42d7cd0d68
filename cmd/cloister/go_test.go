package main

import (
	"fmt"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/isolation/breaks"
)

// goProgram builds testdata/NAME.
func goProgram(t *testing.T, name string) string {
	t.Helper()
	return program{Name: name, Tool: "go", Args: []string{"./testdata/" + name}}.build(t)
}

// A Go program with its collector, its scheduler and its SIGURG works at any number of threads.
func TestGoProgram(t *testing.T) {
	b := newBox(t)
	prog := goProgram(t, "busygo")
	for _, n := range []int{1, 2, 4, 8} {
		b.same(process{argv: []string{prog}, extra: []string{fmt.Sprint("GOMAXPROCS=", n)}}, nil)
	}
}

// One goroutine's thread is sealed and computes, while others log and allocate: no break of the user's.
func TestSealedGo(t *testing.T) {
	// Where CPUs take turns, the helpers on the one that is left need minutes; lab/testdata/sealed-go.txtar has two for them.
	b := newBox(t, testenv.CPUs(2), testenv.ParallelCPUs)
	prog := goProgram(t, "sealedgo")
	for range 3 {
		r, rep := b.reported("--cpu", "1", "--budget", "user=0", "--", prog)
		if r.status != 0 || r.out != "true true <nil>\n" {
			t.Fatalf("%+v, %+v", r, rep.Budget)
		}
		seals := uint64(0)
		for _, v := range rep.VCPUs {
			seals += v.Seals
			for cause, c := range v.Sealed.ByCause {
				if cause != breaks.HostInterrupt.String() {
					t.Errorf("vCPU %d: sealed, %d of %s", v.ID, c.Count, cause)
				}
			}
		}
		if seals != 1 || rep.Budget.State != breaks.Kept {
			t.Errorf("%d seals, budget %+v", seals, rep.Budget)
		}
	}
}
