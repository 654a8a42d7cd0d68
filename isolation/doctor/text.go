package doctor

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Encode writes the report as JSON.
func (r *Report) Encode(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

const width = 120

// clip keeps a cell on its line.
func clip(s string, n int) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) <= n {
		return s
	}
	return s[:max(0, n-3)] + "..."
}

// row is a finding with all CPUs that it was made for.
type row struct{ Finding }

// rows joins findings that differ only in their CPU, and sorts them by grade, then cost.
func (r *Report) rows() (list []row) {
	for _, f := range r.Findings {
		at := slices.IndexFunc(list, func(x row) bool { return x.ID == f.ID && x.State == f.State && x.What == f.What && x.Cap == f.Cap })
		if at < 0 {
			list = append(list, row{Finding: f})
			continue
		}
		list[at].CPUs = append(slices.Clone(list[at].CPUs), f.CPUs...)
	}
	slices.SortStableFunc(list, func(a, b row) int { return strings.Compare(string(b.Cap), string(a.Cap)) })
	return list
}

// evidence is the files and their values in n characters: of long paths the end is left, which tells most.
func (f *Finding) evidence(n int) string {
	for keep := 99; ; keep-- {
		var parts []string
		for _, e := range f.Evidence {
			if e.File != "" {
				parts = append(parts, tail(e.File, keep)+": "+strings.Join(strings.Fields(e.Value), " "))
			}
		}
		s := strings.Join(parts, "; ")
		if keep == 2 || len(s) <= n { // "cpumask" alone would be any
			return clip(s, n)
		}
	}
}

// tail keeps the last components of a path.
func tail(p string, keep int) string {
	parts := strings.Split(p, "/")
	if len(parts) <= keep {
		return p
	}
	return ".../" + strings.Join(parts[len(parts)-keep:], "/")
}

// how says what takes it away, in a word or a command.
func (f *Finding) how() string {
	switch f.Way {
	case RunTime, Max:
		return strings.TrimPrefix(f.apply, "cloister ")
	case Never:
		if f.Remedy != "" {
			return "nothing here: " + f.Remedy
		}
		return "nothing here"
	case Boot:
		if strings.HasPrefix(f.Remedy, "a kernel") {
			return f.Remedy
		}
		return "boot: " + f.Remedy
	case Module:
		return "module: " + f.Remedy
	}
	return f.Remedy
}

// WriteText prints one screen: what is wrong, and at its end, which stays on the screen, what to do first and the
// grades. With all, also what is well.
func (r *Report) WriteText(w io.Writer, all bool) error {
	var b strings.Builder
	nested := ""
	if r.Nested {
		nested = ", itself a guest: no zero is certified"
	}
	backend := "no KVM"
	if r.Backend != "" {
		backend = "KVM " + r.Backend
	}
	fmt.Fprintf(&b, "kernel %s, %s%s\n", r.Kernel, backend, nested)
	var well, unknown []string
	grade := Grade("")
	for _, f := range r.rows() {
		switch {
		case f.State == OK:
			well = append(well, f.ID)
			if !all {
				continue
			}
		case f.State == Unknown:
			unknown = append(unknown, f.ID)
		}
		if f.Cap != grade && !all {
			grade = f.Cap
			fmt.Fprintf(&b, "\n%s\n", headings[grade])
		} else if grade == "" {
			grade = f.Cap
			b.WriteString("\n")
		}
		name := f.ID
		if len(f.CPUs) > 0 {
			name += " [" + spell(f.CPUs) + "]"
		}
		mark := map[State]string{OK: "+", Wrong: "-", Unknown: "?"}[f.State]
		fmt.Fprintf(&b, "%s %-19s ", mark, clip(name, 19))
		if !all && !f.Cap.Below(B) { // the lesser ones get a line
			fmt.Fprintf(&b, "%-60s | %s\n", clip(f.What, 60), f.evidence(width-85))
			continue
		}
		leads := string(f.Cost) + ": " + strings.Join(f.Causes, ", ")
		text := f.What
		if f.State == OK {
			text = "looked at: " + text
		}
		what := clip(text, 78)
		fmt.Fprintf(&b, "%s | %s\n", what, clip(leads, width-25-len(what)))
		second := f.evidence(width - 22)
		if f.State != OK && f.how() != "" {
			if second = f.evidence(width - 25 - len(f.how())); f.evidence(9999) != second && len(f.how()) > 40 {
				second = f.evidence(width-22) + "\n" + strings.Repeat(" ", 22) + "| " + f.how()
			} else {
				second += " | " + f.how()
			}
		}
		fmt.Fprintf(&b, "%22s%s\n", "", second)
	}
	if len(well) > 0 {
		fmt.Fprintf(&b, "\nwell    %s\n", wrap(compact(well), 8))
	}
	if len(unknown) > 0 {
		fmt.Fprintf(&b, "unknown %s\n", wrap(compact(unknown), 8))
	}
	if len(r.Changes) > 0 {
		b.WriteString("\nWhat matters most\n")
	}
	for i, c := range r.Changes {
		how := c.Remedy
		if c.Way == Boot && !strings.HasPrefix(how, "a kernel") {
			how = "boot with " + how
		}
		fmt.Fprintf(&b, "  %d. %s   (%s)\n", i+1, how, clip(strings.Join(c.For, ", "), max(30, width-10-len(how))))
	}
	if len(r.LeftOut) > 0 {
		fmt.Fprintf(&b, "  CPU %s is left out of what is advised: the rest of the system, and the kernel itself, need one\n", spell(r.LeftOut))
	}
	b.WriteByte('\n')
	for _, c := range r.Cores {
		after := "no write can better that"
		if c.After != c.Grade {
			after = fmt.Sprintf("with host apply --cpu %d --level max: %s", c.CPU, c.After)
		}
		if c.Least != c.After {
			after += fmt.Sprintf(", or %s if %s stays", c.Least, strings.Join(c.mayStay, ", "))
		}
		fmt.Fprintf(&b, "CPU %-3d grade %s   for %s; %s\n", c.CPU, c.Grade, clip(strings.Join(c.Why, ", "), 60), after)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

var headings = map[Grade]string{
	F: "It cannot be given away", D: "Many times a second, or shared with other tasks (grade D)", C: "Every few seconds, or when others do certain things (grade C)",
	B: "Rarely, or not provable (grade B)", A: "No interruption, but slower (any grade)",
}

func compact(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}

// wrap breaks a list of words into lines.
func wrap(words []string, indent int) string {
	var b strings.Builder
	n := indent
	for i, w := range words {
		if i > 0 {
			if n+1+len(w) > width {
				b.WriteString("\n" + strings.Repeat(" ", indent))
				n = indent
			} else {
				b.WriteByte(' ')
				n++
			}
		}
		b.WriteString(w)
		n += len(w)
	}
	return b.String()
}
