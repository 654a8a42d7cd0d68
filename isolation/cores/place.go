package cores

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Placed is a CPU that could be dedicated, and what speaks for it and against it.
type Placed struct {
	CPU   int
	Why   string // one line
	score int    // lower is better
}

// Place ranks the CPUs that may be dedicated, the best first: one of prepared, one that was isolated at boot, a whole core
// whose siblings are idle or off line, not CPU 0, on the NUMA node with the most free memory, with a last-level cache of few.
// allowed is where this process may run; prepared are CPUs that were made quiet for it, which have been taken from
// everybody's; used are those that somebody else has (Leased, or a journal of the host's), beside which only a core that
// was prepared comes before others. It only reads.
func (h Host) Place(allowed, prepared, used []int) ([]Placed, error) {
	online, err := h.list("online")
	if err != nil {
		return nil, err
	}
	if len(online) < 2 {
		return nil, fmt.Errorf("CPU %s is the only one: a dedicated core needs a second one for the rest of the system", Format(online))
	}
	isolated, nohz := h.optional("isolated"), h.optional("nohz_full")
	node, free := h.nodes()
	best := 0
	for n := range free {
		if free[n] > free[best] {
			best = n
		}
	}
	var out []Placed
	for _, c := range online {
		ready := slices.Contains(prepared, c)
		if !slices.Contains(allowed, c) && !slices.Contains(isolated, c) && !ready {
			continue // of another cpuset
		}
		p := Placed{CPU: c}
		var why []string
		say := func(points int, text string) {
			p.score += points
			if text != "" {
				why = append(why, text)
			}
		}
		if ready {
			say(-2000, "made quiet by cloister host apply")
		}
		if c == 0 {
			say(1000, "CPU 0, which has duties of its own")
		}
		if !slices.Contains(isolated, c) {
			say(400, "")
		} else {
			say(0, "isolated at boot")
		}
		if !slices.Contains(nohz, c) {
			say(200, "")
		} else {
			say(0, "without a tick")
		}
		siblings := slices.DeleteFunc(h.optional(fmt.Sprintf("cpu%d/topology/thread_siblings_list", c)), func(s int) bool { return s == c || !slices.Contains(online, s) })
		switch {
		case len(siblings) == 0:
			say(0, "a whole core")
		case len(Common(siblings, used)) > 0: // the two would slow each other down: no other merit makes up for that
			say(800, "shares its core with CPU "+Format(Common(siblings, used))+", which is in use")
		case slices.Contains(siblings, 0):
			say(120, "shares its core with CPU 0")
		case len(Common(siblings, isolated)) == len(siblings):
			say(20, "its sibling "+Format(siblings)+" is isolated too: leave it idle")
		default:
			say(80, "shares its core with CPU "+Format(siblings)+": keep that idle")
		}
		if n, ok := node[c]; ok && len(free) > 1 {
			if n == best {
				say(0, fmt.Sprintf("on node %d, which has the most free memory", n))
			} else {
				say(40, fmt.Sprintf("on node %d", n))
			}
		}
		if shared := h.optional(fmt.Sprintf("cpu%d/cache/index3/shared_cpu_list", c)); len(shared) > 0 {
			say(min(30, len(shared)), "")
			if len(shared) < len(online) {
				say(0, fmt.Sprintf("last-level cache of CPUs %s", Format(shared)))
			}
		}
		if len(why) == 0 {
			why = []string{"as good as any"}
		}
		p.Why = strings.Join(why, ", ")
		out = append(out, p)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no CPU can be dedicated: this process may run on %s, of %s on line", Format(allowed), Format(online))
	}
	// Of equals the last: distributions put their own work on the first.
	slices.SortStableFunc(out, func(a, b Placed) int {
		if a.score != b.score {
			return a.score - b.score
		}
		return b.CPU - a.CPU
	})
	return out, nil
}

// optional reads a list that need not be there.
func (h Host) optional(name string) []int {
	l, err := h.list(name)
	if err != nil {
		return nil
	}
	return l
}

// nodes gives each CPU's NUMA node and each node's free memory, kB.
func (h Host) nodes() (of map[int]int, free []int) {
	of = map[int]int{}
	for n := 0; ; n++ {
		dir := filepath.Join(h.Root, fmt.Sprintf("sys/devices/system/node/node%d", n))
		b, err := os.ReadFile(filepath.Join(dir, "cpulist"))
		if err != nil {
			return of, free
		}
		if l, err := ParseList(string(b)); err == nil {
			for _, c := range l {
				of[c] = n
			}
		}
		free = append(free, 0)
		b, err = os.ReadFile(filepath.Join(dir, "meminfo"))
		if err != nil {
			continue // no figure: as if none were free
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) >= 4 && f[2] == "MemFree:" {
				if kb, err := strconv.Atoi(f[3]); err == nil {
					free[n] = kb
				}
			}
		}
	}
}

// Common gives the members of a that b has too.
func Common(a, b []int) []int {
	return slices.DeleteFunc(slices.Clone(a), func(c int) bool { return !slices.Contains(b, c) })
}
