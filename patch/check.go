package patch

import (
	"bytes"
	"errors"
	"fmt"
)

// check is P0, of this side: what can be known of a plan without a decoder and without a stop. s is the VM as it is.
func (p *Plan) check(s *State) error {
	if p.BuildID != s.BuildID {
		return fmt.Errorf("the plan is for build id %s, the VM runs %s: make it from the program that runs", orNone(p.BuildID), orNone(s.BuildID))
	}
	switch {
	case len(p.Sites) == 0:
		return errors.New("the plan changes nothing: name a function or a site")
	case len(p.Sites) > MaxSites:
		return fmt.Errorf("the plan has %d sites, at most %d", len(p.Sites), MaxSites)
	case p.Wait < 0 || p.StopLimit < 0:
		return fmt.Errorf("the plan waits for %v, for a stop %v: a time is not negative", p.Wait, p.StopLimit)
	case p.SafePoint && !s.SafePoints:
		return errors.New("the program declares no safe point, and the plan needs one: call cloister_safepoint() in its loop")
	}
	end := uint64(0)
	for i := range p.Sites {
		w := &p.Sites[i]
		n := uint64(len(w.Old))
		switch {
		case n == 0 || n > MaxSite || len(w.New) != len(w.Old):
			return fmt.Errorf("site %s at %#x: %d old and %d new bytes: want as many, 1 to %d", w.Name, w.Addr, len(w.Old), len(w.New), MaxSite)
		case !within(w.Addr, n, s.Text):
			return fmt.Errorf("site %s at %#x: not in the program's text", w.Name, w.Addr)
		case w.Addr < end:
			return fmt.Errorf("site %s at %#x: overlaps the site before it, or is out of order", w.Name, w.Addr)
		}
		end = w.Addr + n
	}
	total := 0
	for _, c := range []struct {
		what   string
		chunks []Chunk
		space  Space
	}{{"text", p.Text, s.SpareText}, {"data", p.Data, s.SpareData}} {
		at := c.space.Used
		for _, k := range c.chunks {
			n := uint64(len(k.Bytes))
			switch {
			case k.Addr < c.space.Start || n > c.space.End-c.space.Start || k.Addr > c.space.End-n:
				return fmt.Errorf("new %s at %#x, %d bytes: not within the spare %s %#x-%#x: run the program with more (--patchable=SIZE)", c.what, k.Addr, n, c.what, c.space.Start, c.space.End)
			case k.Addr < at:
				return fmt.Errorf("new %s at %#x: in use up to %#x: another patch came between, or two chunks overlap; try again", c.what, k.Addr, at)
			}
			at = k.Addr + n
			total += len(k.Bytes)
		}
	}
	if total > MaxBytes {
		return fmt.Errorf("the plan has %d bytes of new code and data, at most %d", total, MaxBytes)
	}
	return nil
}

func orNone(id string) string {
	if id == "" {
		return "(none)"
	}
	return id
}

func within(a, n uint64, list []Range) bool {
	for _, r := range list {
		if a >= r.Start && a < r.End && n <= r.End-a {
			return true
		}
	}
	return false
}

// reversal gives the sites that take patch number back: the newest one over each of its bytes.
func reversal(s *State, number uint64) ([]Site, error) {
	for i, a := range s.Applied {
		if a.Number != number {
			continue
		}
		back := make([]Site, len(a.Sites))
		for j, w := range a.Sites {
			for _, later := range s.Applied[i+1:] {
				for _, l := range later.Sites {
					if l.Addr < w.Addr+uint64(len(w.Old)) && w.Addr < l.Addr+uint64(len(l.Old)) {
						return nil, fmt.Errorf("patch %d: patch %d lies over its site %s: revert that first", number, later.Number, w.Name)
					}
				}
			}
			back[j] = w
			back[j].Old, back[j].New = w.New, w.Old
			back[j].Restartable = false // the bytes of a patch are not: build has refused them
		}
		return back, nil
	}
	return nil, fmt.Errorf("patch %d: not applied: `cloister patch VM --log` shows what was", number)
}

// bad says why vCPU v must not be resumed with these sites changed; empty: it may.
func bad(v *Place, sites []Site, safePoint bool) string {
	if v.Ended {
		return ""
	}
	if safePoint && !v.Safe {
		return fmt.Sprintf("vCPU %d (thread %q, %s at %#x) is not at a safe point", v.ID, v.Thread, v.Where, first(v.RIPs))
	}
	// It may return to the middle of an entry that becomes a JMP (vmm's landing), and be told so or not. In microseconds it is known.
	if v.Returning {
		return fmt.Sprintf("vCPU %d (thread %q) returns from a signal's handler, and to where is not known yet", v.ID, v.Thread)
	}
	for _, rip := range v.RIPs {
		for i := range sites {
			w := &sites[i]
			if rip < w.Addr || rip-w.Addr >= uint64(len(w.Old)) {
				continue
			}
			switch {
			case rip > w.Addr:
				return fmt.Sprintf("vCPU %d stands inside site %s, at %#x", v.ID, w.Name, rip)
			case w.Restartable:
				return fmt.Sprintf("vCPU %d may be half-way through the instruction of site %s, at %#x", v.ID, w.Name, rip)
			case v.Events != "":
				return fmt.Sprintf("vCPU %d stands at site %s with %s to be delivered", v.ID, w.Name, v.Events)
			case v.Unknown:
				return fmt.Sprintf("vCPU %d stands at site %s, and the kernel does not tell what waits to be delivered", v.ID, w.Name)
			}
		}
	}
	return ""
}

func first(list []uint64) uint64 {
	if len(list) == 0 {
		return 0
	}
	return list[0]
}

// compare is P4.
func compare(g Guest, sites []Site) error {
	for i := range sites {
		w := &sites[i]
		have, err := g.Look(w.Addr, len(w.Old))
		if err != nil {
			return fmt.Errorf("site %s at %#x: %w", w.Name, w.Addr, err)
		}
		if bytes.Equal(have, w.Old) {
			continue
		}
		hint := "the text is not what the plan was made from"
		if have[0] == 0xcc && w.Old[0] != 0xcc {
			hint = "somebody has planted a breakpoint there"
		}
		return fmt.Errorf("site %s at %#x: holds % x, the plan expects % x: %s", w.Name, w.Addr, have, []byte(w.Old), hint)
	}
	return nil
}
