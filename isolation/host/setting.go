package host

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/cores"
	"golang.org/x/sys/unix"
)

// Kind says what a setting is.
type Kind string

// The kinds of settings.
const (
	File      Kind = "file"      // Name is its path from the root
	Affinity  Kind = "affinity"  // of a thread; Name is TID@START, the value a CPU list
	Directory Kind = "directory" // a cgroup or a resctrl group; the value is "present" or "absent"
	Member    Kind = "member"    // the cgroup (version 2) of a thread, "threads:TID@START", or of its process, "procs:…"
)

// Format says how the value of a file is to be understood, so that "3" and "00000000,00000003" are one.
type Format string

// The formats of values.
const (
	Plain  Format = "text"
	List   Format = "list"   // 0-3,7
	Mask   Format = "mask"   // hexadecimal
	Choice Format = "choice" // always [madvise] never: the chosen word
	Switch Format = "switch" // a list of words, of which one is switched by +word and -word
	Line   Format = "line"   // one line of several, "L3:0=f;1=f"
)

// Rule says how a setting depends on who holds it.
type Rule string

// The rules.
const (
	Same   Rule = "same"   // one value for whoever holds it: of several, what the last to come wants
	Except Rule = "except" // a set of CPUs: the base without the cores of all holders
	Keep   Rule = "keep"   // what it was: nobody changes it, but the kernel by the way
	Ways   Rule = "ways"   // masks of cache ways: what it was without those that all holders want for themselves
)

// Setting is one thing of the host that has a value.
type Setting struct {
	Kind   Kind   `json:"kind"`
	Name   string `json:"name"` // a * in it stands for any: one value of the machine that many files show
	Format Format `json:"format,omitempty"`
	Rule   Rule   `json:"rule,omitempty"`
	Want   string `json:"want,omitempty"`   // the value, by the rule Same; the owner's ways, by the rule Ways
	Base   string `json:"base,omitempty"`   // what the rule Except takes from (empty: what it was); of a Member, the hierarchy
	Within string `json:"within,omitempty"` // a directory of ours that it comes and goes with
	Word   string `json:"word,omitempty"`   // of a Switch; of a Line, its beginning
}

func (x Setting) key() string { return string(x.Kind) + ":" + x.Name + ":" + x.Word }

// String is how messages name it.
func (x Setting) String() string {
	switch x.Kind {
	case Affinity:
		return "affinity of thread " + x.Name[:max(0, strings.IndexByte(x.Name, '@'))]
	case Member:
		id, _, _ := strings.Cut(x.Name, "@")
		return "cgroup of " + strings.NewReplacer("threads:", "thread ", "procs:", "process ").Replace(id)
	}
	return "/" + x.Name
}

// valid guards what comes out of a journal: a setting may reach into proc and sys, and to cpusets wherever they are
// mounted, and nowhere else.
func (x Setting) valid() error {
	name := x.Name
	switch x.Kind {
	case File, Directory:
		knob := strings.HasPrefix(name, "sys/") || strings.HasPrefix(name, "proc/")
		cpuset := x.Kind == File && (strings.HasPrefix(path.Base(name), "cpuset.") || strings.HasPrefix(path.Base(name), "cgroup.")) || x.Kind == Directory && ours(name)
		if path.Clean("/"+name) != "/"+name || !knob && !cpuset {
			return fmt.Errorf("%q is no file of /proc or /sys, nor a cpuset", name)
		}
	case Affinity, Member:
		if !strings.Contains(name, "@") {
			return fmt.Errorf("%q names no thread", name)
		}
		if x.Kind == Member && (path.Clean("/"+x.Base) != "/"+x.Base) {
			return fmt.Errorf("%q is no hierarchy of cgroups", x.Base)
		}
	default:
		return fmt.Errorf("a setting of kind %q", x.Kind)
	}
	switch x.Rule {
	case Same, Except, Keep, "":
	case Ways:
		if _, err := parseWays(x.Word, x.Want); err != nil {
			return err
		}
	default:
		return fmt.Errorf("a setting with the rule %q", x.Rule)
	}
	return nil
}

// file is the path that a setting's value is read from and written to.
func (x Setting) file(s System) string {
	dir, rest, any := strings.Cut(x.Name, "*")
	if !any {
		return x.Name
	}
	parent, prefix := path.Split(dir)
	names, err := s.Names(path.Clean(parent))
	if err != nil {
		return x.Name // not there, as reading it will say
	}
	for _, n := range names {
		if name := parent + n + rest; strings.HasPrefix(n, prefix) && Has(s, name) {
			return name
		}
	}
	return x.Name
}

// errGone: the thread has ended, and its settings with it.
var errGone = errors.New("it has ended")

// read gives the value as it stands.
func (x Setting) read(s System) (string, error) {
	switch x.Kind {
	case Directory:
		_, err := s.Names(x.Name)
		switch {
		case err == nil:
			return present, nil
		case errors.Is(err, fs.ErrNotExist):
			return absent, nil
		}
		return "", err
	case Affinity:
		t, ok := findThread(s, x.Name)
		if !ok {
			return "", errGone
		}
		return cores.Format(t.Allowed), nil
	case Member:
		_, id, _ := strings.Cut(x.Name, ":")
		t, ok := findThread(s, id)
		if !ok {
			return "", errGone
		}
		b, err := s.Read(fmt.Sprintf("proc/%d/cgroup", t.TID))
		if err != nil {
			return "", errGone
		}
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "0::"); ok {
				return strings.TrimSpace(v), nil
			}
		}
		return "", fmt.Errorf("thread %d is in no cgroup of version 2", t.TID)
	}
	b, err := s.Read(x.file(s))
	return strings.TrimRight(string(b), "\n"), err
}

const (
	present = "present"
	absent  = "absent"
)

// write sets the value; it is the writer's form of what canonical gives.
func (x Setting) write(s System, value string) error {
	switch x.Kind {
	case Directory:
		if value == present {
			return s.Mkdir(x.Name)
		}
		return s.Rmdir(x.Name)
	case Affinity:
		list, err := cores.ParseList(value)
		if err != nil {
			return err
		}
		t, ok := findThread(s, x.Name)
		if !ok {
			return errGone
		}
		if err = s.SetAffinity(t.TID, list); errors.Is(err, unix.ESRCH) {
			err = errGone
		}
		return err
	case Member:
		how, id, _ := strings.Cut(x.Name, ":")
		t, ok := findThread(s, id)
		if !ok {
			return errGone
		}
		err := s.Write(path.Join(x.Base, value, "cgroup."+how), fmt.Sprint(t.TID))
		if errors.Is(err, unix.ESRCH) {
			err = errGone
		}
		return err
	}
	if x.Format == Choice || x.Format == Switch || x.Format == Line {
		value = x.canonical(value)
	}
	return s.Write(x.file(s), value)
}

// canonical gives the same text for values that mean the same.
func (x Setting) canonical(raw string) string {
	raw = strings.TrimSpace(raw)
	switch {
	case x.Kind == Affinity || x.Format == List:
		if l, err := cores.ParseList(raw); err == nil {
			return cores.Format(l)
		}
	case x.Format == Mask:
		if l, err := ParseMask(raw); err == nil {
			return FormatMask(l)
		}
	case x.Format == Choice:
		if i, j := strings.IndexByte(raw, '['), strings.IndexByte(raw, ']'); i >= 0 && j > i {
			return raw[i+1 : j]
		}
	case x.Format == Switch:
		if raw == "+"+x.Word || slices.Contains(strings.Fields(raw), x.Word) {
			return "+" + x.Word
		}
		return "-" + x.Word
	case x.Format == Line:
		for line := range strings.Lines(raw) {
			l := strings.TrimSpace(line)
			if w, err := parseWays(x.Word, l); err == nil {
				return w.String() // the kernel pads with zeros
			} else if strings.HasPrefix(l, x.Word) {
				return l
			}
		}
	}
	return raw
}

func (x Setting) same(a, b string) bool { return x.canonical(a) == x.canonical(b) }

// value is what the setting has to be when it was orig before anybody came, and is held by these, who have these cores.
// Without holders that is orig itself. keep is where to put what was on the held cores alone.
func (x Setting) value(orig string, holders []holder, held, keep []int) (string, error) {
	if len(holders) == 0 {
		return orig, nil
	}
	switch x.Rule {
	case Except:
	case Keep:
		return orig, nil
	case Ways:
		return x.left(orig, holders)
	default:
		return holders[len(holders)-1].want, nil
	}
	base := x.Base
	if base == "" {
		base = orig
	}
	parse, format := cores.ParseList, cores.Format
	if x.Format == Mask {
		parse, format = ParseMask, FormatMask
	}
	list, err := parse(base)
	if err != nil {
		return "", fmt.Errorf("%s: %w", x, err)
	}
	left := minus(list, held)
	if len(left) == 0 { // it was on these cores alone: anywhere else
		left = keep
	}
	if len(left) == 0 {
		return "", fmt.Errorf("%s: no CPU is left for it", x)
	}
	return format(left), nil
}

// left is what the holders leave of the ways of a cache.
func (x Setting) left(orig string, holders []holder) (string, error) {
	all, err := parseWays(x.Word, x.canonical(orig))
	var taken []ways
	for _, h := range holders {
		if err != nil {
			break
		}
		var t ways
		t, err = parseWays(x.Word, h.want)
		taken = append(taken, t)
	}
	if err == nil {
		all, err = all.without(taken)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", x, err)
	}
	return all.String(), nil
}
