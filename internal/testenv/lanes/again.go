package lanes

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// Again is the action of the event before what a second run says: Package was run again, of it the tests named in Output, separated
// by spaces; none: all of it.
const Again = "lane-again"

// maxAgain is how many failures of one run are looked at twice. More have one cause, and it is not chance.
const maxAgain = 3

// Rerun is what one package shall run again; without Tests all of it.
type Rerun struct {
	Package string
	Tests   []string
}

// Event is the one that goes before the events of the second run.
func (r Rerun) Event() Event {
	return Event{Action: Again, Package: r.Package, Output: strings.Join(r.Tests, " ")}
}

// Judge collects the events of a run and says what of its failures may be chance: a test that met the load of a machine. It is no
// chance, whatever a second run would say, if the race detector reports, something hangs, the Go runtime or the processor finds
// a fault, or it does not build (docs/decisions/0019-run-again.md).
type Judge struct {
	failed map[string]map[string]bool // package → its failed tests that are no subtests; none: the package itself failed
	open   map[key]bool               // tests that have begun and not ended
	broken map[string]bool            // packages that broke off: what came behind was never run
	grave  bool
}

// graver are the marks of what is never chance.
var graver = []string{"WARNING: DATA RACE", "panic: test timed out", "fatal error: ", "[signal SIG"}

// Add takes one event.
func (j *Judge) Add(e Event) {
	if j.failed == nil {
		j.failed, j.open, j.broken = map[string]map[string]bool{}, map[key]bool{}, map[string]bool{}
	}
	k := key{e.Package, e.Test}
	switch e.Action {
	case "build-fail":
		j.grave = true
	case "run":
		j.open[k] = true
	case "pass", "skip":
		delete(j.open, k)
	case "output":
		j.broken[e.Package] = j.broken[e.Package] || strings.HasPrefix(e.Output, "panic: ")
		for _, mark := range graver {
			j.grave = j.grave || strings.Contains(e.Output, mark)
		}
	case "fail":
		delete(j.open, k)
		if j.failed[e.Package] == nil {
			j.failed[e.Package] = map[string]bool{}
		}
		if e.Test != "" && !strings.Contains(e.Test, "/") {
			j.failed[e.Package][e.Test] = true
		}
	}
}

// Reruns is what to run again, by package; nothing if any failure is grave or there are too many.
func (j *Judge) Reruns() (list []Rerun) {
	n := 0
	for _, p := range slices.SortedFunc(maps.Keys(j.failed), cmp.Compare) {
		for k := range j.open {
			j.broken[p] = j.broken[p] || k.pkg == p
		}
		r := Rerun{Package: p}
		if !j.broken[p] {
			r.Tests = slices.Sorted(maps.Keys(j.failed[p]))
		}
		n += max(1, len(r.Tests))
		list = append(list, r)
	}
	if j.grave || n > maxAgain {
		return nil
	}
	return list
}

// again forgets what the first run said of what is run a second time.
func (c *counter) again(e Event) {
	names := strings.Fields(e.Output)
	c.pkgs[e.Package] = ""
	for k, t := range c.tests {
		top, _, _ := strings.Cut(k.test, "/")
		if k.pkg == e.Package && (len(names) == 0 || slices.Contains(names, top)) {
			*t = test{owed: t.seen && k.test == top}
		}
	}
	c.lane.Again = append(c.lane.Again, strings.TrimSpace(e.Package+" "+e.Output))
}
