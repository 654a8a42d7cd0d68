package build

import (
	"fmt"
	"sort"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/patch"
)

// Listing is what of a program can be patched, and what it is now.
type Listing struct {
	// Stripped says that functions have no names, so that none can be replaced.
	Stripped  bool       `json:"stripped"`
	Functions []Function `json:"functions"` // by name
	Sites     []Site     `json:"sites"`     // by name
	// SafePoints says that several places can change together.
	SafePoints bool     `json:"safe_points"`
	SafeWords  []uint64 `json:"safe_words,omitempty"` // declared by notes; a program may register more when it runs
	SafeRIPs   []uint64 `json:"safe_rips,omitempty"`
	SpareText  uint64   `json:"spare_text"` // bytes left for new code
	SpareData  uint64   `json:"spare_data"` // and for new data
}

// Function is one that can be replaced.
type Function struct {
	Name  string `json:"name"`
	File  string `json:"file,omitempty"` // of a file's own function
	Addr  uint64 `json:"addr"`
	Patch uint64 `json:"patch"` // number of the patch whose body it has; 0: its own
	Body  uint64 `json:"body"`  // address of what is executed; Addr: its own
}

// Site is a declared one.
type Site struct {
	Name  string   `json:"name"`
	Kind  string   `json:"kind"` // patch.Imm or patch.Branch
	Addrs []uint64 `json:"addrs"`
	Value string   `json:"value"`           // as Set takes it; "mixed" where its places differ
	Patch uint64   `json:"patch"`           // number of the latest patch that set it; 0: as built
	Error string   `json:"error,omitempty"` // why it cannot be set
}

// List says what can be patched. It reads what Open has proved to run.
func (p *Program) List() *Listing {
	l := &Listing{Stripped: p.symbols == nil, Functions: []Function{}, Sites: []Site{}, SafePoints: p.state.SafePoints,
		SafeWords: p.notes.safeWords, SafeRIPs: p.notes.safeRIPs, SpareText: left(p.state.SpareText), SpareData: left(p.state.SpareData)}
	type place struct {
		name string
		at   uint64
	}
	seen := map[place]bool{}
	for _, s := range p.symbols {
		if !s.function() || s.size == 0 || seen[place{s.name, s.addr}] {
			continue
		}
		at, old, err := p.entry(s)
		if err != nil {
			continue // it cannot be replaced: that is what the list says by leaving it out
		}
		seen[place{s.name, s.addr}] = true
		f := Function{Name: s.name, File: s.file, Addr: s.addr, Body: s.addr}
		if to, ok := jumpTo(old, at); ok {
			f.Patch, _, _ = p.patched(at, jmpLen)
			f.Body = to
		}
		l.Functions = append(l.Functions, f)
	}
	sort.Slice(l.Functions, func(a, b int) bool {
		x, y := l.Functions[a], l.Functions[b]
		return x.Name < y.Name || x.Name == y.Name && x.Addr < y.Addr
	})
	byName := map[string]int{}
	for _, d := range p.notes.sites {
		i, ok := byName[d.name]
		if !ok {
			i = len(l.Sites)
			byName[d.name] = i
			l.Sites = append(l.Sites, Site{Name: d.name, Kind: d.kindName()})
		}
		p.listSite(&l.Sites[i], d)
	}
	sort.Slice(l.Sites, func(a, b int) bool { return l.Sites[a].Name < l.Sites[b].Name })
	return l
}

func (p *Program) listSite(s *Site, d declared) {
	s.Addrs = append(s.Addrs, d.at)
	old, in, err := p.declaredCode(d)
	if err == nil && d.kindName() != s.Kind {
		err = fmt.Errorf("its notes name immediates and branches: give them two names and build the program again")
	}
	if err != nil {
		s.Error = err.Error()
		return
	}
	v := d.current(old, in)
	if len(s.Addrs) > 1 && v != s.Value {
		v = "mixed"
	}
	s.Value = v
	if n, _, _ := p.patched(d.at, d.length); n > s.Patch {
		s.Patch = n
	}
}

func (d declared) kindName() string {
	if d.kind == abi.SiteBranch {
		return patch.Branch
	}
	return patch.Imm
}

func left(s patch.Space) uint64 { return s.End - min(s.End, max(s.Used, s.Start)) }
