package host

import (
	"fmt"
	"math/bits"
	"path"
	"strconv"
	"strings"

	"github.com/cloister-vmm/cloister/isolation/cores"
)

// ways are the masks of one line of a resctrl schemata file, "L3:0=fff;1=fff", one for each cache
// (Documentation/arch/x86/resctrl.rst).
type ways struct {
	word  string // the line's beginning
	ids   []string
	masks []uint64
}

func parseWays(word, line string) (w ways, err error) {
	w.word = word
	body, ok := strings.CutPrefix(line, word)
	if !ok {
		return w, fmt.Errorf("no line %s in /%s: mount -t resctrl resctrl /sys/fs/resctrl, on a processor that can partition its cache", word, resctrl+"/schemata")
	}
	for part := range strings.SplitSeq(body, ";") {
		id, mask, _ := strings.Cut(part, "=")
		m, err := strconv.ParseUint(mask, 16, 64)
		if err != nil {
			return w, fmt.Errorf("the mask %q of the cache is no hexadecimal number", part)
		}
		w.ids, w.masks = append(w.ids, id), append(w.masks, m)
	}
	return w, nil
}

func (w ways) String() string {
	parts := make([]string, len(w.ids))
	for i, id := range w.ids {
		parts[i] = fmt.Sprintf("%s=%x", id, w.masks[i])
	}
	return w.word + strings.Join(parts, ";")
}

// without gives what is left of each cache for the rest: the longest run of ways that nobody has taken, since
// processors may refuse a mask with a hole in it. Of two runs that are as long the lower one.
func (w ways) without(taken []ways) (ways, error) {
	left := ways{w.word, w.ids, make([]uint64, len(w.ids))}
	for i, id := range w.ids {
		free := w.masks[i]
		for _, t := range taken {
			for k, other := range t.ids {
				if other == id {
					free &^= t.masks[k]
				}
			}
		}
		if left.masks[i] = longestRun(free); left.masks[i] == 0 {
			return left, fmt.Errorf("no way of cache %s is left for the rest", id)
		}
	}
	return left, nil
}

func longestRun(mask uint64) (best uint64) {
	for at := 0; mask>>at != 0; {
		at += bits.TrailingZeros64(mask >> at)
		n := bits.TrailingZeros64(^(mask >> at))
		if run := (uint64(1)<<n - 1) << at; n > bits.OnesCount64(best) {
			best = run
		}
		at += n
	}
	return best
}

// topRun gives the longest run of ways in a mask, of two that are as long the upper one.
func topRun(mask uint64) uint64 {
	return bits.Reverse64(longestRun(bits.Reverse64(mask)))
}

// half gives a half of the longest run in a mask, the upper one unless nothing of rest were left then. Zero where it is too small.
func half(mask, rest uint64) uint64 {
	run := topRun(mask)
	n := bits.OnesCount64(run)
	low := (uint64(1)<<(n/2) - 1) << bits.TrailingZeros64(run)
	switch {
	case n < 4:
		return 0
	case rest&^(run&^low) != 0:
		return run &^ low
	case rest&^low != 0:
		return low
	}
	return 0
}

const resctrl = "sys/fs/resctrl"

// mask gives the ways of one cache; none of one that is not named.
func (w ways) mask(id string) uint64 {
	for i, other := range w.ids {
		if other == id {
			return w.masks[i]
		}
	}
	return 0
}

// open gives half of the ways of each cache that are the default group's or nobody's. Ways of a group that somebody has made are his,
// though the default group may use them too.
func (p *planner) open(x Setting) (ways, error) {
	root, err := parseWays(x.Word, x.canonical(Text(p.s, x.Name)))
	if err != nil {
		return root, err
	}
	names, err := p.s.Names(resctrl)
	if err != nil {
		return root, err
	}
	var groups []ways
	var who []string
	for _, n := range names {
		text := Text(p.s, path.Join(resctrl, n, "schemata"))
		if text == "" || n == group(p.r.CPUs) {
			continue // a file, or a directory of another kind
		}
		g, err := parseWays(x.Word, x.canonical(text))
		if err != nil {
			return root, fmt.Errorf("which ways /%s has is not known: %w", path.Join(resctrl, n), err)
		}
		groups, who = append(groups, g), append(who, n)
	}
	all, err := strconv.ParseUint(Text(p.s, resctrl+"/info/L3/cbm_mask"), 16, 64)
	if err != nil {
		all = 0 // not told: what the default group has is all that is known to be there
	}
	own := ways{x.Word, root.ids, make([]uint64, len(root.ids))}
	for i, id := range root.ids {
		open := root.masks[i] | all
		for _, g := range groups {
			open &^= g.mask(id)
		}
		if own.masks[i] = half(open, root.masks[i]); own.masks[i] == 0 {
			why := ""
			if len(who) > 0 {
				why = fmt.Sprintf(" (the groups %s below /%s have the rest)", strings.Join(who, ", "), resctrl)
			}
			return own, fmt.Errorf("of cache %s the mask %x is free or everybody's, which is too small to be split%s", id, open, why)
		}
	}
	return own, nil
}

// cache gives the cores half of the last-level cache's ways that nobody has yet, and the rest of the machine the
// other half.
func (p *planner) cache() {
	if !p.r.Cache {
		return
	}
	const what = "ways of the cache for the cores alone"
	x := Setting{Kind: File, Name: resctrl + "/schemata", Format: Line, Rule: Ways, Word: "L3:"}
	err := p.foreignPartition()
	free := ways{}
	if err == nil {
		free, err = p.open(x)
	}
	if err != nil {
		p.cannot(what, "%v", err)
		return
	}
	dir := path.Join(resctrl, group(p.r.CPUs))
	x.Want = free.String()
	p.set(Setting{Kind: Directory, Name: dir, Rule: Same, Want: present}, "a cache partition for the cores")
	p.set(Setting{Kind: File, Name: dir + "/schemata", Format: Line, Rule: Same, Word: x.Word, Want: x.Want, Within: dir}, "half of the ways")
	p.set(Setting{Kind: File, Name: dir + "/cpus_list", Format: List, Rule: Same, Want: cores.Format(p.r.CPUs), Within: dir}, "for whatever runs on the cores")
	n := len(p.plan.Steps)
	p.set(x, "and none of them for the rest")
	p.last(n) // else the cores would lose half of the cache with the rest
}

// foreignPartition refuses cores that are in somebody else's cache partition: when ours is removed the kernel gives
// them to the rest, and not back to it.
func (p *planner) foreignPartition() error {
	names, err := p.s.Names(resctrl)
	if err != nil {
		return err
	}
	for _, n := range names {
		if list, err := CPUs(p.s, path.Join(resctrl, n, "cpus_list")); err == nil && !ours(n) && meets(list, p.r.CPUs) {
			return fmt.Errorf("CPUs %s belong to /%s: take them out of it first", cores.Format(cores.Common(list, p.r.CPUs)), path.Join(resctrl, n))
		}
	}
	return nil
}
