package engine

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// rule is one clause of --place: which threads of the program, and the host core that they own (-1: none, they
// share the housekeeping cores). The first rule that fits a thread is its.
type rule struct {
	order   int    // the thread's number, 0 is the first one; -1: pattern says it
	pattern string // of the thread's name, as path.Match has it
	cpu     int
}

// housekeeping in --place: no core of its own.
const housekeeping = "housekeeping"

// parsePlace reads main=1,rt*=2,#3=4,*=housekeeping.
func parsePlace(s string) (list []rule, err error) {
	for _, clause := range strings.Split(s, ",") {
		who, where, ok := strings.Cut(clause, "=")
		if !ok || who == "" {
			return nil, fmt.Errorf("%q: want THREAD=CPU or THREAD=housekeeping, such as main=1,rt*=2,*=housekeeping", clause)
		}
		r := rule{order: -1, pattern: who, cpu: -1}
		if where != housekeeping {
			if r.cpu, err = strconv.Atoi(where); err != nil || r.cpu < 0 {
				return nil, fmt.Errorf("%q: want the number of one CPU, or housekeeping", clause)
			}
		}
		switch {
		case who == "main":
			r.order = 0
		case who[0] == '#':
			if r.order, err = strconv.Atoi(who[1:]); err != nil || r.order < 0 {
				return nil, fmt.Errorf("%q: want # and the number of a thread in the order in which they are made, the first is #0", clause)
			}
		default:
			if _, err := path.Match(who, ""); err != nil {
				return nil, fmt.Errorf("%q: a pattern of names, with * ? [a-z]: %w", clause, err)
			}
		}
		list = append(list, r)
	}
	if len(list) == 0 {
		return nil, errors.New("want THREAD=CPU, such as main=1")
	}
	return list, nil
}

// place is vmm.Config.Place.
func (o *options) placeOf(order int, name string) int {
	for _, r := range o.place {
		fits := r.order == order
		if r.order < 0 {
			fits, _ = path.Match(r.pattern, name) // the pattern was tried when it was read
		}
		if fits {
			return r.cpu
		}
	}
	return -1
}

// firstName is the name that the first thread begins with: that of the program's file, as execve(2) has it.
func (o *options) firstName() string {
	const longest = 15 // TASK_COMM_LEN without its NUL
	name := path.Base(o.program)
	return name[:min(len(name), longest)]
}

// dedicated are the cores that the run owns, the first thread's first.
func (o *options) dedicated() (list []int) {
	if o.cpu >= 0 {
		list = append(list, o.cpu)
	}
	for _, r := range o.place {
		if r.cpu >= 0 && !slices.Contains(list, r.cpu) {
			list = append(list, r.cpu)
		}
	}
	return list
}
