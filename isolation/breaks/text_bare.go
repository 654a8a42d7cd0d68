package breaks

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// statistics shows the kernel's own figures of native threads, added up, but for those that are 0.
func (p *page) statistics(list []VCPUReport) {
	var sum [2]map[string]uint64
	for half := range sum {
		sum[half] = map[string]uint64{}
	}
	var names []string
	for i := range list {
		v := &list[i]
		for half, b := range []*BookReport{&v.Open, &v.Sealed} {
			for name, n := range b.Kernel {
				sum[half][name] += n
				if n != 0 && !slices.Contains(names, name) {
					names = append(names, name)
				}
			}
		}
	}
	if len(names) == 0 {
		return
	}
	slices.Sort(names)
	title := "the kernel's own figures"
	if len(list) > 1 {
		title += fmt.Sprintf(" of the %d threads", len(list))
	}
	p.line("")
	p.line("  %s", p.paint(bold, title))
	t := table{left: []int{0}}
	t.row("figure", "sealed", "open")
	for _, name := range names {
		show := func(n uint64) string {
			if strings.HasSuffix(name, "_ns") {
				return duration(n)
			}
			return strconv.FormatUint(n, 10)
		}
		t.row(clean(name), show(sum[Sealed][name]), show(sum[Open][name]))
	}
	t.write(p, "    ")
}

// noun is what the report has a row for: a vCPU, or a thread of a native run.
func (p *page) noun() string {
	if p.bare {
		return "thread"
	}
	return "vCPU"
}
