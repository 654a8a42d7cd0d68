package profile

import (
	"cmp"
	"fmt"
	"io"
	"time"

	"github.com/cloister-vmm/cloister/guest/symbol"
	"github.com/google/pprof/profile"
)

// Sample is one row of a break profile: breaks of one cause, at one guest stack, in one book.
type Sample struct {
	Stack  []uint64 // innermost first, as symbol.Table.Unwind returns it; may be empty
	Cause  string   // value of the label "cause"
	Nr     string   // name of the system call, port or vector; "" when the cause has none
	Count  uint64   // breaks
	LostNs uint64   // nanoseconds outside the guest
	Sealed bool     // value of the label "sealed": "true" or "false"
}

// Program is what a profile says of the program itself; every field may be empty.
type Program struct {
	Path     string
	BuildID  string
	Start    time.Time
	Duration time.Duration
}

// Symbolizer names the functions at a guest address, innermost first; *symbol.Table is one. nil names
// nothing.
type Symbolizer interface {
	Frames(addr uint64) []symbol.Frame
}

// Write writes samples as a gzip-compressed pprof profile with the sample types breaks/count and
// lost/nanoseconds (the default). Each sample's leaf is a frame of its own that names what the guest
// left for, "[syscall write]", so that `go tool pprof -top` reads as a list of causes and -peek, -tree
// and the flame graph show the functions above. It fails only when w does, or with more than 2^63-1
// breaks or nanoseconds.
func Write(w io.Writer, prog Program, samples []Sample, sym Symbolizer) error {
	b := builder{
		sym:   sym,
		locs:  map[place]*profile.Location{},
		funcs: map[function]*profile.Function{},
		p: &profile.Profile{
			SampleType:        []*profile.ValueType{{Type: "breaks", Unit: "count"}, {Type: "lost", Unit: "nanoseconds"}},
			DefaultSampleType: "lost",
			PeriodType:        &profile.ValueType{Type: "breaks", Unit: "count"},
			Period:            1, // every break is in it; nothing was sampled
			DurationNanos:     prog.Duration.Nanoseconds(),
		},
	}
	if !prog.Start.IsZero() {
		b.p.TimeNanos = prog.Start.UnixNano()
	}
	b.program = &profile.Mapping{ID: 1, Start: 0, Limit: 1 << 47, File: prog.Path, BuildID: prog.BuildID,
		HasFunctions: sym != nil, HasFilenames: sym != nil, HasLineNumbers: sym != nil, HasInlineFrames: sym != nil}
	b.p.Mapping = []*profile.Mapping{b.program}
	for i, s := range samples {
		if int64(s.Count) < 0 || int64(s.LostNs) < 0 {
			return fmt.Errorf("write profile: sample %d has a value beyond 2^63-1", i)
		}
		b.add(s)
	}
	if err := b.p.CheckValid(); err != nil {
		return fmt.Errorf("write profile: %w", err)
	}
	if err := b.p.Write(w); err != nil {
		return fmt.Errorf("write profile: %w", err)
	}
	return nil
}

// place is a location: an address, or a name for what has none.
type place struct {
	addr uint64
	name string
}

type function struct{ name, mangled, file string }

type builder struct {
	p       *profile.Profile
	sym     Symbolizer
	program *profile.Mapping
	locs    map[place]*profile.Location
	funcs   map[function]*profile.Function
}

func (b *builder) add(s Sample) {
	leaf := "[" + s.Cause + "]"
	if s.Nr != "" {
		leaf = "[" + s.Cause + " " + s.Nr + "]"
	}
	out := &profile.Sample{
		Location: []*profile.Location{b.location(place{name: leaf})},
		Value:    []int64{int64(s.Count), int64(s.LostNs)},
		Label:    map[string][]string{"cause": {s.Cause}, "sealed": {fmt.Sprint(s.Sealed)}},
	}
	if s.Nr != "" {
		out.Label["nr"] = []string{s.Nr}
	}
	for i, a := range s.Stack {
		if i > 0 && a > 0 {
			a-- // the call, not what it returns to
		}
		out.Location = append(out.Location, b.location(place{addr: a}))
	}
	if len(s.Stack) == 0 {
		out.Location = append(out.Location, b.location(place{name: "[no stack kept]"}))
	}
	b.p.Sample = append(b.p.Sample, out)
}

func (b *builder) location(at place) *profile.Location {
	if l, ok := b.locs[at]; ok {
		return l
	}
	l := &profile.Location{ID: uint64(len(b.p.Location) + 1), Address: at.addr}
	switch {
	case at.name != "":
		l.Line = []profile.Line{{Function: b.function(function{name: at.name})}}
	case b.sym != nil:
		l.Mapping = b.program
		for _, f := range b.sym.Frames(at.addr) {
			l.Line = append(l.Line, profile.Line{Function: b.function(function{f.Func, f.Mangled, f.File}), Line: int64(f.Line)})
		}
	}
	if len(l.Line) == 0 {
		// Named here, because pprof would look for the file and symbolize it with its own tools.
		l.Line = []profile.Line{{Function: b.function(function{name: fmt.Sprintf("0x%x", at.addr)})}}
	}
	b.locs[at] = l
	b.p.Location = append(b.p.Location, l)
	return l
}

func (b *builder) function(f function) *profile.Function {
	if g, ok := b.funcs[f]; ok {
		return g
	}
	g := &profile.Function{ID: uint64(len(b.p.Function) + 1), Name: f.name, SystemName: cmp.Or(f.mangled, f.name), Filename: f.file}
	b.funcs[f] = g
	b.p.Function = append(b.p.Function, g)
	return g
}
