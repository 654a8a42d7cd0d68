package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
)

// System calls at random, with arguments that are right, nearly right and wrong, answer a guest what this machine's kernel
// answers natively: the same results, the same errors, the same bytes. docs/compatibility.md says what is left out.
func TestCallsAsNatively(t *testing.T) {
	b := newBox(t)
	prog := compile(t, "gcc", "calls", "calls.c", "-static", "-O1")
	const steps = 2000
	seeds := []int{1, 2, 3, 4, 5, 13} // 13: a record lock that the closing of another eventfd takes away
	if testing.Short() {
		seeds = seeds[:2]
	}
	for _, kind := range []string{"files", "memory", "sockets"} {
		t.Run(kind, func(t *testing.T) {
			if kind == "files" {
				testenv.Need(t, testenv.Linux(6, 18)) // on the lab's 6.1 the program itself does not end, natively; why was not looked into
			}
			for _, seed := range seeds {
				argv := []string{prog, fmt.Sprint(seed), fmt.Sprint(steps), kind}
				b.stage(compatible{})
				n := b.do(process{argv: argv})
				if n.status != 0 || strings.Count(n.out, "\n") < steps {
					t.Fatalf("%q natively: %+v", argv, n)
				}
				b.stage(compatible{})
				g := b.cloister(slices.Concat([]string{"run", "--quiet", "--net", "host", "--rw", ".", "--"}, argv)...)
				if g.out == n.out && g.status == n.status {
					continue
				}
				for i, line := range strings.Split(g.out, "\n") {
					if want := strings.Split(n.out, "\n"); i >= len(want) || line != want[i] {
						t.Errorf("%q: line %d is %q, natively %q", argv, i+1, line, append(want, "")[min(i, len(want))])
						break
					}
				}
				if g.status != n.status {
					t.Errorf("%q: status %d, natively %d: %s", argv, g.status, n.status, tail(g.err))
				}
			}
		})
	}
}
