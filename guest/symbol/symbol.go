package symbol

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/ianlancetaylor/demangle"
)

// Frame is what one guest address means.
type Frame struct {
	Func    string // demangled; "fn@0x401a20" when only the function's bounds are known
	Mangled string // as the linker knows it; empty for inlined functions without a linkage name
	File    string // empty when the program has no line information
	Line    int    // 0 with File empty
	Offset  uint64 // bytes from the start of the enclosing function that was not inlined
	Inlined bool   // Func was inlined into the next frame of Frames
}

// String is the form of reports: "name+0x12 (file.c:34)"; an inlined function has no offset of its own.
func (f Frame) String() string {
	s := f.Func
	if f.Inlined {
		s += " (inlined)"
	} else if f.Offset != 0 {
		s += fmt.Sprintf("+0x%x", f.Offset)
	}
	if f.File != "" {
		s += fmt.Sprintf(" (%s:%d)", f.File, f.Line)
	}
	return s
}

// Table knows the functions, lines and call frames of one program. It is safe for concurrent use.
type Table struct {
	bias   uint64
	closer io.Closer
	img    image
	names  nameTable
	cfi    *cfiTable
	goTab  *goTable // nil: not a Go program
	lines  *lineTable

	mu    sync.Mutex // guards cache and everything inside lines
	cache map[uint64][]Frame
}

// maxCache bounds the addresses whose frames are remembered.
const maxCache = 1 << 16

// Open reads the tables of a static or static-pie x86-64 ELF file. bias is what the loader added to
// the file's addresses: 0 for ET_EXEC, the load base for static-pie. The file stays open until Close.
// Missing tables are no error: a stripped program answers less.
func Open(path string, bias uint64) (*Table, error) {
	f, err := openFile(path)
	if err != nil {
		return nil, fmt.Errorf("read symbols: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("read symbols of %s: not a regular file; name the program's ELF file", path)
	}
	var t *Table
	if err == nil {
		if t, err = New(f, st.Size(), bias); err != nil {
			err = fmt.Errorf("read symbols of %s: %w", path, err)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	t.closer = f
	return t, nil
}

// New is Open for a file of size bytes that the caller holds; r must stay readable while the Table is
// in use.
func New(r io.ReaderAt, size int64, bias uint64) (*Table, error) {
	f, err := openELF(io.NewSectionReader(r, 0, size))
	if err != nil {
		return nil, err
	}
	t := &Table{bias: bias, img: newImage(f), cache: map[uint64][]Frame{}}
	t.goTab = newGoTable(f)
	t.cfi = newCFITable(f, t.img)
	t.names = newNameTable(f, t.img)
	t.lines = newLineTable(f, t.img)
	return t, nil
}

// Close releases the file that Open opened.
func (t *Table) Close() error {
	if t.closer == nil {
		return nil
	}
	return t.closer.Close()
}

// Lookup says what the guest address addr means: the innermost function there, inlined ones
// included. It answers false when nothing is known of addr. For a return address ask for addr-1, the
// call itself: the next instruction may be another line's or another function's.
func (t *Table) Lookup(addr uint64) (Frame, bool) {
	fs := t.Frames(addr)
	if len(fs) == 0 {
		return Frame{}, false
	}
	return fs[0], true
}

// Frames is Lookup with the whole chain of inlining, innermost first; the last one is the function
// that the linker knows. Callers must not change the slice.
func (t *Table) Frames(addr uint64) []Frame {
	a := addr - t.bias
	if !t.img.isCode(a) {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if fs, ok := t.cache[a]; ok {
		return fs
	}
	fs := t.frames(a)
	if len(t.cache) >= maxCache {
		clear(t.cache)
	}
	t.cache[a] = fs
	return fs
}

func (t *Table) frames(a uint64) []Frame {
	outer := Frame{}
	start, name, ok := t.function(a)
	if ok {
		outer.Mangled, outer.Offset = name, a-start
		outer.Func = pretty(name)
	}
	chain := t.lines.at(a)
	if len(chain) == 0 && t.goTab != nil {
		if file, line, ok := t.goTab.line(a); ok {
			outer.File, outer.Line = file, line
		}
	}
	if len(chain) == 0 {
		if outer.Func == "" && outer.File == "" {
			return nil
		}
		return []Frame{outer}
	}
	// The linker's name is the fuller one (namespaces, generics), and exists without DWARF DIEs.
	last := &chain[len(chain)-1]
	if outer.Func != "" {
		last.Func, last.Mangled = outer.Func, outer.Mangled
	}
	for i := range chain {
		chain[i].Offset = outer.Offset
	}
	return chain
}

// function finds the bounds and the name of the function at a link-time address.
func (t *Table) function(a uint64) (start uint64, name string, ok bool) {
	f, framed := t.cfi.find(a)
	// A label without a size reaches too far where the functions behind it were stripped.
	if s, found := t.names.find(a); found && !(framed && s.label && f.lo > s.addr) {
		if name := t.names.name(s); name != "" {
			return s.addr, name, true
		}
	}
	if t.goTab != nil {
		if g, ok := t.goTab.find(a); ok {
			return g.entry, t.goTab.name(g), true
		}
	}
	if framed {
		return f.lo, fmt.Sprintf("fn@0x%x", f.lo+t.bias), true
	}
	return 0, "", false
}

// pretty demangles C++ and Rust names; others come back as they are. Demangling is exponential in
// hostile names: the output is bounded to 8 KiB, beyond which it is cut.
func pretty(name string) (out string) {
	if len(name) > 4096 {
		return name[:4096]
	}
	defer func() {
		if recover() != nil {
			out = name
		}
	}()
	return demangle.Filter(name, demangle.MaxLength(13))
}

// sym is one function symbol; its name stays in the string table until it is asked for.
type sym struct {
	addr, size uint64
	name       uint32
	dynamic    bool
	label      bool  // the symbol tells no size; size is an upper bound
	rank       uint8 // of several names for one address the highest is told: global, weak, local
}

type nameTable struct {
	syms     []sym
	str, dyn []byte
}

// find returns the function that covers a. The label of a jump inside a larger function is not the
// function's name: a symbol that has a size of its own is preferred, a few steps back.
func (n *nameTable) find(a uint64) (s sym, ok bool) {
	i, exact := slices.BinarySearchFunc(n.syms, a, func(s sym, a uint64) int { return cmp.Compare(s.addr, a) })
	if !exact {
		i--
	}
	for k := 0; i >= 0 && k < 8; i, k = i-1, k+1 {
		c := n.syms[i]
		if a-c.addr >= c.size || c.label && ok {
			continue
		}
		if s, ok = c, true; !c.label {
			break
		}
	}
	return s, ok
}

func (n *nameTable) name(s sym) string {
	if s.dynamic {
		return cstring(n.dyn, uint64(s.name))
	}
	return cstring(n.str, uint64(s.name))
}
