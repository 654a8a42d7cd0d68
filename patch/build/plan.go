package build

import (
	"encoding/hex"
	"errors"
	"fmt"
	"sort"
	"strings"

	"github.com/cloister-vmm/cloister/patch"
)

// Made is a plan, and what its author should know.
type Made struct {
	// Plan has no Actor, Wait or DryRun: the caller fills them in.
	Plan patch.Plan
	// Notes are remarks, one line each: what was left out of an object, and which sites are not seen whole by the processor's fetch.
	Notes []string
}

// Plan makes the plan of a request: all of it, or an error of one line (operation, object, remedy). It changes nothing, so that it may be called again.
func (p *Program) Plan(b *Bundle) (*Made, error) {
	if err := b.check(false); err != nil {
		return nil, err
	}
	if b.BuildID != "" && !strings.EqualFold(b.BuildID, p.state.BuildID) {
		return nil, fmt.Errorf("apply bundle: it is for build id %s, the running program's is %s: make it again for this program", b.BuildID, orNone(p.state.BuildID))
	}
	m := &Made{Plan: patch.Plan{Name: b.title(), BuildID: p.state.BuildID}}
	var err error
	if m.Plan.Digest, err = b.sum(); err != nil {
		return nil, err
	}
	if err := p.replaceAll(b.Replace, m); err != nil {
		return nil, err
	}
	for _, s := range b.Set {
		sites, err := p.set(s.Site, s.Value)
		if err != nil {
			return nil, fmt.Errorf("set site %s: %w", s.Site, err)
		}
		m.Plan.Sites = append(m.Plan.Sites, sites...)
	}
	for _, r := range b.Raw {
		s, err := p.exchange(r)
		if err != nil {
			return nil, fmt.Errorf("change %s+%#x: %w", r.Function, r.Offset, err)
		}
		m.Plan.Sites = append(m.Plan.Sites, s)
	}
	return m, p.finish(m)
}

// replaceAll redirects the functions to new bodies. An object that has several of them is loaded once: they share its data.
func (p *Program) replaceAll(all []Replace, m *Made) error {
	const int3 = 0xcc // between functions, where nobody should come
	text, data := newRegion("spare text", p.state.SpareText, int3), newRegion("spare data", p.state.SpareData, 0)
	type entry struct {
		at  uint64
		old []byte
	}
	entries := make([]entry, len(all))
	for i, r := range all {
		f, err := p.function(r.Function)
		if err == nil {
			entries[i].at, entries[i].old, err = p.entry(f)
		}
		if err == nil && p.state.SpareText.End <= p.state.SpareText.Start {
			err = errors.New("the VM has no spare text: start it with --patchable")
		}
		if err != nil {
			return fmt.Errorf("replace %s: %w", r.Function, err)
		}
	}
	loaded := map[string]*object{}
	for i, r := range all {
		o := loaded[string(r.Object)]
		if o == nil {
			var err error
			if o, err = p.load(r.Object, all, text, data); err != nil {
				return fmt.Errorf("replace %s: %s: %w", r.Function, r.File, err)
			}
			loaded[string(r.Object)] = o
			for _, l := range o.left {
				m.Notes = append(m.Notes, r.File+": "+l)
			}
		}
		b, err := jump(entries[i].at, o.bodies[r.Symbol])
		if err != nil {
			return fmt.Errorf("replace %s: %w: start the program again with the new function in it", r.Function, err)
		}
		m.Plan.Sites = append(m.Plan.Sites, patch.Site{Name: r.Function, Kind: patch.Redirect, Addr: entries[i].at, Old: entries[i].old, New: b})
	}
	if c, ok := text.cut(); ok {
		m.Plan.Text = append(m.Plan.Text, c)
	}
	if c, ok := data.cut(); ok {
		m.Plan.Data = append(m.Plan.Data, c)
	}
	return nil
}

// finish orders the sites and holds them against each other.
func (p *Program) finish(m *Made) error {
	sites := m.Plan.Sites
	sort.SliceStable(sites, func(a, b int) bool { return sites[a].Addr < sites[b].Addr })
	switch {
	case len(sites) == 0:
		return fmt.Errorf("%s: nothing would change: the sites have these values", m.Plan.Name)
	case len(sites) > patch.MaxSites:
		return fmt.Errorf("%s: %d sites are more than %d: make several patches", m.Plan.Name, len(sites), patch.MaxSites)
	}
	for i, s := range sites {
		if i > 0 && sites[i-1].Addr+uint64(len(sites[i-1].Old)) > s.Addr {
			return fmt.Errorf("%s and %s change the same bytes, at %#x: leave one out", sites[i-1].Name, s.Name, s.Addr)
		}
		if s.Addr/8 != (s.Addr+uint64(len(s.Old))-1)/8 {
			m.Notes = append(m.Notes, fmt.Sprintf("%s: the %d bytes at %#x cross an 8-byte border: they are not stored at once, the stop alone makes them whole", s.Name, len(s.Old), s.Addr))
		}
		if s.Restartable {
			m.Notes = append(m.Notes, fmt.Sprintf("%s: the instruction %s at %#x can be half done: no thread may stand there, which can take several stops", s.Name, hex.EncodeToString(s.Old), s.Addr))
		}
	}
	if len(sites) > 1 {
		if m.Plan.SafePoint = true; !p.state.SafePoints {
			return fmt.Errorf("%s: %d places change together, and the program has declared no safe point: call cloister_safepoint() in its loop, or patch them one by one", m.Plan.Name, len(sites))
		}
	}
	return nil
}
