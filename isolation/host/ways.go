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

// upper gives the upper half of each cache's ways.
func (w ways) upper() (ways, error) {
	up := ways{w.word, w.ids, make([]uint64, len(w.ids))}
	for i, m := range w.masks {
		n := bits.OnesCount64(m)
		if n < 4 || longestRun(m) != m {
			return up, fmt.Errorf("the mask \"%s=%x\" of the cache is too small to be split, or is split already", w.ids[i], m)
		}
		low := (uint64(1)<<(n/2) - 1) << bits.TrailingZeros64(m)
		up.masks[i] = m &^ low
	}
	return up, nil
}

const resctrl = "sys/fs/resctrl"

// cache gives the cores half of the last-level cache's ways that nobody has yet, and the rest of the machine the
// other half.
func (p *planner) cache() {
	if !p.r.Cache {
		return
	}
	const what = "ways of the cache for the cores alone"
	x := Setting{Kind: File, Name: resctrl + "/schemata", Format: Line, Rule: Ways, Word: "L3:"}
	free, err := parseWays(x.Word, x.canonical(Text(p.s, x.Name)))
	if err == nil {
		free, err = free.upper()
	}
	if err == nil {
		err = p.foreignPartition()
	}
	if err != nil {
		p.cannot(what, "%v", err)
		return
	}
	dir := path.Join(resctrl, group(p.r.CPUs))
	x.Want = free.String()
	p.set(Setting{Kind: Directory, Name: dir, Rule: Same, Want: present}, "a cache partition for the cores")
	p.set(Setting{Kind: File, Name: dir + "/schemata", Format: Line, Rule: Same, Word: x.Word, Want: x.Want, Within: dir}, "the upper half of the ways")
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
