package symbol

import (
	"cmp"
	"debug/dwarf"
	"debug/elf"
	"math"
	"slices"
)

// lineTable answers file, line and inlining from DWARF, by debug/dwarf. Nothing is read before the
// first question, and a compilation unit is read when an address in it is asked for. Guarded by
// Table.mu.
//
// debug/dwarf trusts its input in ways that cost memory and time without limit; vet.go refuses such
// input before it gets there, and work is charged to a budget.
type lineTable struct {
	elf    *elf.File
	img    image
	opened bool
	d      *dwarf.Data // nil: no DWARF, or refused
	line   []byte
	units  []unit
	ranges []unitRange // sorted by lo
	rows   int         // in all loaded units
	budget int64
}

const (
	lineBudget = 1 << 27 // attributes read in a Table's life; a 50 MiB .debug_info has a third
	maxRows    = 4 << 20 // line rows and functions kept at a time
	maxRanges  = 4 << 20
	maxPath    = 4096 // bytes of a file name (PATH_MAX)
	maxInline  = 64   // depth of inlining
)

type unitRange struct {
	extent
	unit int
}

type unit struct {
	off    dwarf.Offset // of the unit's first entry
	loaded bool
	spans  []span // sorted by lo
	files  []string
	funcs  []dwarfFunc // sorted by lo
}

// span is a run of code that comes from one line.
type span struct {
	extent
	file, line int32
}

type dwarfFunc struct {
	extent
	off dwarf.Offset
}

func newLineTable(f *elf.File, img image) *lineTable {
	return &lineTable{elf: f, img: img, budget: lineBudget}
}

// at returns the frames at the link-time address a, innermost first, without offsets.
func (l *lineTable) at(a uint64) (chain []Frame) {
	defer func() {
		// debug/dwarf answers some malformed input with a panic: then the lines are not known.
		if recover() != nil {
			l.close()
			chain = nil
		}
	}()
	if !l.opened {
		l.opened = true
		l.open()
	}
	if l.d == nil {
		return nil
	}
	i, ok := l.unitOf(a)
	if !ok {
		return nil
	}
	u := &l.units[i]
	if !u.loaded {
		l.load(u)
	}
	file, line := u.lineAt(a)
	chain = l.inlined(u, a, file, line)
	if l.budget < 0 {
		l.close()
		return nil
	}
	return chain
}

func (l *lineTable) close() { l.d, l.units, l.ranges, l.line = nil, nil, nil, nil }

func (l *lineTable) open() {
	left := uint64(maxDebug)
	read := func(name string) []byte {
		_, b := section(l.elf, min(left, maxDebug/2), name)
		left -= uint64(len(b))
		return b
	}
	info, abbrev, str, lineStr := read(".debug_info"), read(".debug_abbrev"), read(".debug_str"), read(".debug_line_str")
	l.line = read(".debug_line")
	if !stringsBounded(str, maxNameLen) || !stringsBounded(lineStr, maxPath) {
		return
	}
	offs, ok := vetUnits(info, abbrev)
	if !ok || len(offs) == 0 {
		return
	}
	d, err := dwarf.New(abbrev, nil, nil, info, l.line, nil, read(".debug_ranges"), str)
	if err != nil {
		return // damaged: lines are not known
	}
	for name, b := range map[string][]byte{".debug_line_str": lineStr, ".debug_addr": read(".debug_addr"),
		".debug_str_offsets": read(".debug_str_offsets"), ".debug_rnglists": read(".debug_rnglists")} {
		if err := d.AddSection(name, b); err != nil {
			return
		}
	}
	l.d = d
	for _, off := range offs {
		e := l.entry(off)
		if e == nil || e.Tag != dwarf.TagCompileUnit {
			continue
		}
		for _, x := range l.extents(e) {
			l.ranges = append(l.ranges, unitRange{x, len(l.units)})
		}
		l.units = append(l.units, unit{off: off})
		if l.budget < 0 || len(l.ranges) > maxRanges {
			l.close()
			return
		}
	}
	slices.SortFunc(l.ranges, func(a, b unitRange) int { return cmp.Compare(a.lo, b.lo) })
}

// charge pays for an entry that was read.
func (l *lineTable) charge(e *dwarf.Entry) {
	cost := 1 + len(e.Field)
	for _, f := range e.Field {
		if s, ok := f.Val.(string); ok {
			cost += len(s) / 64
		}
	}
	l.budget -= int64(cost)
}

// entry reads the entry at off, nil if there is none.
func (l *lineTable) entry(off dwarf.Offset) *dwarf.Entry {
	r := l.d.Reader()
	r.Seek(off)
	return l.next(r)
}

func (l *lineTable) next(r *dwarf.Reader) *dwarf.Entry {
	if l.budget < 0 {
		return nil
	}
	e, err := r.Next()
	if err != nil || e == nil {
		return nil
	}
	l.charge(e)
	return e
}

// extents is the code of an entry. Functions that the linker dropped have ranges at 0: not code.
func (l *lineTable) extents(e *dwarf.Entry) []extent {
	if l.budget < 0 {
		return nil
	}
	rs, err := l.d.Ranges(e)
	if err != nil {
		return nil
	}
	l.budget -= int64(len(rs))
	var out []extent
	for _, r := range rs {
		if r[0] < r[1] && l.img.isCode(r[0]) {
			out = append(out, extent{r[0], r[1]})
		}
	}
	return out
}

// covering returns the index of the innermost of a few sorted extents around a, -1 for none.
func covering[T any](s []T, a uint64, of func(T) extent) int {
	i, _ := slices.BinarySearchFunc(s, a, func(x T, a uint64) int {
		if of(x).lo <= a {
			return -1
		}
		return 1
	})
	for k := 0; i > 0 && k < 16; k++ {
		i--
		if of(s[i]).has(a) {
			return i
		}
	}
	return -1
}

func (l *lineTable) unitOf(a uint64) (int, bool) {
	i := covering(l.ranges, a, func(r unitRange) extent { return r.extent })
	if i < 0 {
		return 0, false
	}
	return l.ranges[i].unit, true
}

// load reads a unit's lines and its functions.
func (l *lineTable) load(u *unit) {
	if l.rows > maxRows {
		for i := range l.units {
			v := &l.units[i]
			*v = unit{off: v.off}
		}
		l.rows = 0
	}
	u.loaded = true
	r := l.d.Reader()
	r.Seek(u.off)
	root := l.next(r)
	if root == nil {
		return
	}
	l.loadLines(u, root)
	for depth := 0; ; {
		e := l.next(r)
		if e == nil || len(u.funcs) > maxRows {
			break
		}
		if e.Tag == 0 {
			if depth--; depth < 0 {
				break
			}
			continue
		}
		if e.Tag == dwarf.TagSubprogram {
			for _, x := range l.extents(e) {
				u.funcs = append(u.funcs, dwarfFunc{x, e.Offset})
			}
		}
		if e.Children && !forward(r, e) {
			depth++
		}
	}
	slices.SortFunc(u.funcs, func(a, b dwarfFunc) int { return cmp.Compare(a.lo, b.lo) })
	l.rows += len(u.spans) + len(u.funcs)
}

// forward skips an entry's children where the file says where they end; functions inside functions
// and namespaces are looked into.
func forward(r *dwarf.Reader, e *dwarf.Entry) bool {
	switch e.Tag {
	case dwarf.TagNamespace, dwarf.TagSubprogram, dwarf.TagLexDwarfBlock, dwarf.TagModule,
		dwarf.TagStructType, dwarf.TagClassType, dwarf.TagUnionType, dwarf.TagEnumerationType:
		return false
	}
	return toSibling(r, e)
}

// toSibling goes to the next entry of the same level, if the file tells it and it lies ahead: one that
// lies behind would never end.
func toSibling(r *dwarf.Reader, e *dwarf.Entry) bool {
	to, ok := e.Val(dwarf.AttrSibling).(dwarf.Offset)
	if !ok || to <= e.Offset {
		return false
	}
	r.Seek(to)
	return true
}

func (l *lineTable) loadLines(u *unit, root *dwarf.Entry) {
	off, ok := root.Val(dwarf.AttrStmtList).(int64)
	dir, _ := root.Val(dwarf.AttrCompDir).(string)
	if !ok || len(dir) > maxPath || !vetLines(l.line, off) {
		return
	}
	lr, err := l.d.LineReader(root)
	if err != nil || lr == nil {
		return
	}
	index := map[*dwarf.LineFile]int32{}
	for i, f := range lr.Files() {
		name := ""
		if f != nil {
			name = f.Name
			if _, dup := index[f]; !dup {
				index[f] = int32(i)
			}
		}
		u.files = append(u.files, name)
	}
	var e, prev dwarf.LineEntry
	for open := false; len(u.spans) < maxRows && l.budget >= 0 && lr.Next(&e) == nil; {
		l.budget--
		if open && prev.Address < e.Address && l.img.isCode(prev.Address) && prev.Line <= math.MaxInt32 {
			if i, ok := index[prev.File]; ok {
				u.spans = append(u.spans, span{extent{prev.Address, e.Address}, i, int32(prev.Line)})
			}
		}
		prev, open = e, !e.EndSequence
	}
	slices.SortStableFunc(u.spans, func(a, b span) int { return cmp.Compare(a.lo, b.lo) })
}

func (u *unit) file(i int64) string {
	if i < 0 || i >= int64(len(u.files)) {
		return ""
	}
	return u.files[i]
}

func (u *unit) lineAt(a uint64) (string, int) {
	i := covering(u.spans, a, func(s span) extent { return s.extent })
	if i < 0 {
		return "", 0
	}
	s := u.spans[i]
	return u.file(int64(s.file)), int(s.line)
}

// inlined builds the chain at a: the function and, inside it, the inlined ones that cover a.
func (l *lineTable) inlined(u *unit, a uint64, file string, line int) []Frame {
	var chain []Frame // outermost first; File and Line are where the frame inside it was called
	if i := covering(u.funcs, a, func(f dwarfFunc) extent { return f.extent }); i >= 0 {
		r := l.d.Reader()
		r.Seek(u.funcs[i].off)
		if e := l.next(r); e != nil {
			chain = append(chain, l.named(e))
			if e.Children {
				chain = l.descend(u, r, a, chain)
			}
		}
	}
	if len(chain) == 0 {
		if file == "" {
			return nil
		}
		return []Frame{{File: file, Line: line}}
	}
	inner := &chain[len(chain)-1]
	inner.File, inner.Line = file, line
	slices.Reverse(chain)
	return chain
}

// descend reads the children of the entry just read, one level of inlining after the other.
func (l *lineTable) descend(u *unit, r *dwarf.Reader, a uint64, chain []Frame) []Frame {
	for depth := 1; depth > 0; {
		e := l.next(r)
		if e == nil {
			break
		}
		if e.Tag == 0 {
			depth--
			continue
		}
		inside := false
		switch e.Tag {
		case dwarf.TagLexDwarfBlock:
			inside = true
		case dwarf.TagInlinedSubroutine:
			inside = slices.ContainsFunc(l.extents(e), func(x extent) bool { return x.has(a) })
			if inside && len(chain) < maxInline {
				caller := &chain[len(chain)-1]
				callFile, _ := e.Val(dwarf.AttrCallFile).(int64)
				callLine, _ := e.Val(dwarf.AttrCallLine).(int64)
				caller.File, caller.Line = u.file(callFile), int(callLine)
				f := l.named(e)
				f.Inlined = true
				chain = append(chain, f)
			}
		}
		if !e.Children {
			continue
		}
		if inside {
			depth++
			continue
		}
		if !toSibling(r, e) {
			l.skip(r)
		}
	}
	return chain
}

// skip passes over children that the file gives no way around. Reader.SkipChildren recurses, as deep
// as the file says.
func (l *lineTable) skip(r *dwarf.Reader) {
	for depth := 1; depth > 0; {
		e := l.next(r)
		if e == nil {
			return
		}
		if e.Tag == 0 {
			depth--
		} else if e.Children {
			depth++
		}
	}
}

// named finds an entry's name, which may stand in the declaration that it refers to.
func (l *lineTable) named(e *dwarf.Entry) Frame {
	var f Frame
	for range 4 {
		for _, attr := range []dwarf.Attr{dwarf.AttrLinkageName, attrMIPSLinkageName} {
			if s, ok := e.Val(attr).(string); ok && f.Mangled == "" {
				f.Mangled = s
			}
		}
		if s, ok := e.Val(dwarf.AttrName).(string); ok && f.Func == "" {
			f.Func = s
		}
		off, ok := e.Val(dwarf.AttrAbstractOrigin).(dwarf.Offset)
		if !ok {
			if off, ok = e.Val(dwarf.AttrSpecification).(dwarf.Offset); !ok {
				break
			}
		}
		if e = l.entry(off); e == nil {
			break
		}
	}
	if f.Mangled != "" {
		f.Func = pretty(f.Mangled)
	}
	return f
}

// attrMIPSLinkageName is DW_AT_MIPS_linkage_name, what DWARF 3 and earlier call DW_AT_linkage_name.
const attrMIPSLinkageName = dwarf.Attr(0x2007)
