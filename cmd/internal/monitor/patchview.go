package monitor

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/cloister-vmm/cloister/patch"
	"github.com/cloister-vmm/cloister/patch/build"
)

// patchView shows what became of one patch.
type patchView struct {
	Record patch.Record `json:"record"`
	Head   string       `json:"log_head,omitempty"`
	Notes  []string     `json:"notes,omitempty"`
}

func (v *patchView) encode(w io.Writer) error { return encodeIndented(w, v) }

func encodeIndented(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// outcomes say what each means for the VM.
var outcomes = map[string]string{
	patch.Committed:  "committed",
	patch.Checked:    "nothing speaks against it, nothing was changed",
	patch.Refused:    "refused, nothing was changed",
	patch.Aborted:    "aborted, nothing was changed",
	patch.RolledBack: "rolled back, the old bytes are there again",
	patch.Dead:       "the VM was ended",
}

func (v *patchView) write(w io.Writer) error {
	r := &v.Record
	what := "dry run:" // or refused before it was an attempt
	if r.Number != 0 {
		what = "patch " + strconv.FormatUint(r.Number, 10)
	}
	outcome, ok := outcomes[r.Outcome]
	if !ok {
		outcome = oneLine(r.Outcome)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	// tabwriter keeps its first error until Flush.
	fmt.Fprintf(t, "%s %s: %s\n", what, outcome, oneLine(r.Name))
	if r.Reason != "" {
		fmt.Fprintf(t, "  why: %s\n", oneLine(r.Reason))
	}
	for _, n := range v.Notes {
		fmt.Fprintf(t, "  note: %s\n", oneLine(n))
	}
	if r.Number != 0 {
		fmt.Fprintf(t, "  %s\n", v.summary())
	}
	if r.Stops > 0 && len(r.VCPUs) > 0 {
		fmt.Fprintln(t, "\n  vCPU\tcore\tat\tstop\tstores\tsync\trelease\tpause\tbreak")
		for i := range r.VCPUs {
			u := &r.VCPUs[i]
			n := timesOf(r, u)
			fmt.Fprintf(t, "  %d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", u.ID, core(u.CPU), place(u), micro(n.stop), micro(n.stores), micro(n.sync), micro(n.release), micro(n.pause), yes(u.Break))
		}
	}
	if v.Head != "" {
		fmt.Fprintf(t, "\n  log head %s\n", v.Head)
	}
	return t.Flush()
}

// summary is what was changed, and by how many stops.
func (v *patchView) summary() string {
	r := &v.Record
	var parts []string
	add := func(n int, one, many string) {
		if n == 1 {
			parts = append(parts, "1 "+one)
		} else if n > 1 {
			parts = append(parts, fmt.Sprintf("%d %s", n, many))
		}
	}
	add(len(r.Sites), "site", "sites")
	add(r.SpareText, "byte of new code", "bytes of new code")
	add(r.SpareData, "byte of new data", "bytes of new data")
	parts = append(parts, map[bool]string{true: "1 stop", false: fmt.Sprintf("%d stops", r.Stops)}[r.Stops == 1])
	return strings.Join(parts, ", ")
}

func core(cpu int) string {
	if cpu < 0 {
		return "-"
	}
	return strconv.Itoa(cpu)
}

// place is where a vCPU was.
func place(u *patch.VCPU) string {
	s := oneLine(u.Where)
	if u.RIP != 0 {
		s += fmt.Sprintf(" %#x", u.RIP)
	}
	if u.Thread != "" {
		s += " (" + oneLine(u.Thread) + ")"
	}
	return s
}

// micro is a time in microseconds: one unit in all columns, so that they can be compared at a glance.
func micro(ns *uint64) string {
	if ns == nil {
		return "-"
	}
	return strconv.FormatFloat(float64(*ns)/1e3, 'f', 1, 64) + " us"
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// listView shows what of a VM can be patched.
type listView struct {
	State patch.State    `json:"state"`
	Can   *build.Listing `json:"can"`
}

func (v *listView) encode(w io.Writer) error { return encodeIndented(w, v) }

func (v *listView) write(w io.Writer, name string) error {
	s, l := &v.State, v.Can
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	id := "no build id"
	if s.BuildID != "" {
		id = "build id " + oneLine(s.BuildID)
	}
	fmt.Fprintf(t, "VM %s: %s, %s\n", oneLine(name), oneLine(s.Program), id)
	points := "it declares no safe points: one place at a time can change"
	if l.SafePoints {
		points = "it declares safe points: several places can change together"
	}
	fmt.Fprintf(t, "%s; %d bytes are left for new code, %d for new data\n", points, l.SpareText, l.SpareData)
	if l.Stripped {
		fmt.Fprintln(t, "its file is stripped: no function can be named")
	}
	fmt.Fprintln(t)
	if len(l.Functions) == 0 {
		fmt.Fprintln(t, "no function can be replaced: compile with -fpatchable-function-entry=5")
	} else {
		fmt.Fprintln(t, "FUNCTION\tFILE\tADDRESS\tBODY")
	}
	for i := range l.Functions {
		f := &l.Functions[i]
		body := "its own"
		if f.Patch != 0 {
			body = fmt.Sprintf("patch %d, at %#x", f.Patch, f.Body)
		}
		fmt.Fprintf(t, "%s\t%s\t%#x\t%s\n", oneLine(f.Name), dash(f.File), f.Addr, body)
	}
	fmt.Fprintln(t)
	if len(l.Sites) == 0 {
		fmt.Fprintln(t, "no site is declared (docs/patching.md)")
	} else {
		fmt.Fprintln(t, "SITE\tKIND\tVALUE\tPLACES\tSET BY")
	}
	for i := range l.Sites {
		x := &l.Sites[i]
		value, by := oneLine(x.Value), "the program"
		if x.Error != "" {
			value = "cannot be set: " + oneLine(x.Error)
		}
		if x.Patch != 0 {
			by = fmt.Sprintf("patch %d", x.Patch)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\n", oneLine(x.Name), x.Kind, value, len(x.Addrs), by)
	}
	fmt.Fprintln(t)
	if len(s.Applied) == 0 {
		fmt.Fprintln(t, "no patch stands")
	} else {
		fmt.Fprintln(t, "PATCH\tSITES\tWHAT")
	}
	for _, a := range s.Applied {
		what := oneLine(a.Name)
		if a.Since > 0 {
			what += fmt.Sprintf(" (and of those from patch %d on what lay under it, which a revert takes back as well)", a.Since)
		}
		fmt.Fprintf(t, "%d\t%d\t%s\n", a.Number, len(a.Sites), what)
	}
	return t.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return oneLine(s)
}
