package main

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// none as a Limit says that the row only informs.
const none = -1

// Row is one line of the table. Ours and Base are quantities of the same unit, measured in the same run.
type Row struct {
	What  string  // what is measured, unique in a table
	Ours  float64 // Cloister's, in Unit
	Base  float64 // what it is held against, in Unit; 0: nothing, Ours itself is held against Target
	Unit  string
	Limit float64 // target: ratio (or Ours, without a Base) at most this; none: the row only informs
	N     int     // samples on each side
	Why   string  // set when it could not be measured
}

// Ratio is Ours over Base, or Ours itself where there is no Base.
func (r Row) Ratio() float64 {
	if r.Base == 0 {
		return r.Ours
	}
	return r.Ours / r.Base
}

// missed is the verdict of a row beyond its target; one of them makes the status 1.
const missed = "not met"

// Verdict is "met", "not met", "-" for a row without a target, or "not measured: why". It judges the ratio as
// it is printed, so that a reader of the table comes to the same verdict.
func (r Row) Verdict() string {
	switch {
	case r.Why != "":
		return "not measured: " + r.Why
	case r.Limit < 0:
		return "-"
	case number(r.Ratio()) <= r.Limit:
		return "met"
	}
	return missed
}

func number(v float64) float64 {
	f, err := strconv.ParseFloat(format(v), 64)
	if err != nil {
		return v
	}
	return f
}

// format keeps three digits behind the point of small numbers and one of large ones.
func format(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 10:
		return strconv.FormatFloat(v, 'f', 3, 64)
	case v < 1000:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 0, 64)
}

const (
	tableHead = "| measurement | Cloister | floor | unit | ratio | target | n | verdict |"
	tableRule = "| --- | ---: | ---: | --- | ---: | ---: | ---: | --- |"
)

// WriteTable writes rows as a Markdown table.
func WriteTable(w io.Writer, rows []Row) error {
	b := bufio.NewWriter(w)
	fmt.Fprintln(b, tableHead)
	fmt.Fprintln(b, tableRule)
	for _, r := range rows {
		base, ratio, limit := "-", "-", "-"
		if r.Base != 0 {
			base, ratio = format(r.Base), format(r.Ratio())
		}
		if r.Limit >= 0 {
			limit = format(r.Limit)
		}
		ours := format(r.Ours)
		if r.Why != "" {
			ours, base, ratio = "-", "-", "-"
		}
		cells := []string{r.What, ours, base, r.Unit, ratio, limit, strconv.Itoa(r.N), r.Verdict()}
		for i, c := range cells {
			cells[i] = strings.NewReplacer("|", "/", "\n", " ").Replace(c)
		}
		fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | "))
	}
	return b.Flush()
}

// ParseTable reads the first table of WriteTable's in a document.
func ParseTable(r io.Reader) (rows []Row, err error) {
	sc := bufio.NewScanner(r)
	in := false
	for n := 1; sc.Scan(); n++ {
		line := sc.Text()
		switch {
		case line == tableHead:
			in = true
			continue
		case !in || line == tableRule:
			continue
		case !strings.HasPrefix(line, "|"):
			return rows, nil
		}
		row, err := parseRow(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		rows = append(rows, row)
	}
	if err := sc.Err(); err != nil {
		return nil, err
	}
	if !in {
		return nil, fmt.Errorf("no table with the heading %q", tableHead)
	}
	return rows, nil
}

func parseRow(line string) (r Row, err error) {
	cells := strings.Split(strings.Trim(line, "|"), "|")
	if len(cells) != 8 {
		return r, fmt.Errorf("%d cells, want 8", len(cells))
	}
	for i := range cells {
		cells[i] = strings.TrimSpace(cells[i])
	}
	r.What, r.Unit = cells[0], cells[3]
	if r.What == "" {
		return r, fmt.Errorf("a row without a name")
	}
	for _, c := range []struct {
		to   *float64
		cell string
	}{{&r.Ours, cells[1]}, {&r.Base, cells[2]}, {&r.Limit, cells[5]}} {
		if c.cell == "-" {
			if c.to == &r.Limit {
				r.Limit = none
			}
			continue
		}
		if *c.to, err = strconv.ParseFloat(c.cell, 64); err != nil || !(*c.to >= 0) {
			return r, fmt.Errorf("%s: %q is not a quantity", r.What, c.cell)
		}
	}
	if r.N, err = strconv.Atoi(cells[6]); err != nil || r.N < 0 {
		return r, fmt.Errorf("%s: %q is not a number of samples", r.What, cells[6])
	}
	r.Why, _ = strings.CutPrefix(cells[7], "not measured: ")
	if r.Why == cells[7] {
		r.Why = ""
	}
	return r, nil
}
