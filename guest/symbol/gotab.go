package symbol

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"sort"
)

// goTable reads .gopclntab, which survives stripping: functions, lines, and how deep the stack is at
// each instruction. Layout: Go's src/internal/abi/symtab.go and src/runtime/symtab.go (pcHeader,
// _func), Go 1.20 and later. debug/gosym reads the same table but not the stack depths, and it
// copies the names of all functions at once, which a hostile table turns into terabytes.
type goTable struct {
	text                             uint64 // link-time address that entries are relative to
	nfunc                            int
	names, cu, files, pctab, funcTab []byte
}

const (
	goMagic    = 0xfffffff1 // abi.Go120PCLnTabMagic
	goHeader   = 8 + 8*8
	goFuncSize = 44 // bytes of runtime._func that are read
	goTopFrame = 1  // abi.FuncFlagTopFrame: the outermost frame of its stack
	goSPWrite  = 2  // abi.FuncFlagSPWrite: the recorded depth is not to be trusted
)

func newGoTable(f *elf.File) *goTable {
	_, b := section(f, maxSection, ".gopclntab", ".data.rel.ro.gopclntab")
	text := f.Section(".text")
	if text == nil {
		return nil
	}
	return parseGoTable(b, text.Addr)
}

// parseGoTable returns nil for what is no table of a version that it knows.
func parseGoTable(b []byte, text uint64) *goTable {
	le := binary.LittleEndian
	if len(b) < goHeader || le.Uint32(b) != goMagic || b[6] != 1 || b[7] != 8 {
		return nil
	}
	t := &goTable{text: text}
	word := func(i int) uint64 { return le.Uint64(b[8+8*i:]) }
	// A part runs to the section's end: the header does not tell lengths.
	for i, part := range []*[]byte{&t.names, &t.cu, &t.files, &t.pctab, &t.funcTab} {
		off := word(3 + i)
		if off > uint64(len(b)) {
			return nil
		}
		*part = b[off:]
	}
	if word(0) > uint64(len(t.funcTab))/8 || len(t.funcTab) < 4 {
		return nil
	}
	t.nfunc = int(word(0))
	if t.nfunc*8+4 > len(t.funcTab) {
		return nil
	}
	return t
}

// goFunc is one function of the table.
type goFunc struct {
	entry  uint64 // link-time
	record []byte // runtime._func, at least goFuncSize bytes
}

func (f goFunc) u32(off int) uint32 { return binary.LittleEndian.Uint32(f.record[off:]) }

// find returns the function at a link-time address.
func (t *goTable) find(a uint64) (goFunc, bool) {
	if a < t.text || a-t.text > 1<<32-1 {
		return goFunc{}, false
	}
	off := uint32(a - t.text)
	le := binary.LittleEndian
	entry := func(i int) uint32 { return le.Uint32(t.funcTab[8*i:]) }
	i := sort.Search(t.nfunc, func(i int) bool { return entry(i) > off }) - 1
	if i < 0 || off >= entry(i+1) { // the entry behind the last is the end of the text
		return goFunc{}, false
	}
	rec := uint64(le.Uint32(t.funcTab[8*i+4:]))
	if rec+goFuncSize > uint64(len(t.funcTab)) {
		return goFunc{}, false
	}
	return goFunc{t.text + uint64(entry(i)), t.funcTab[rec:]}, true
}

func (t *goTable) name(f goFunc) string { return cstring(t.names, uint64(f.u32(4))) }

// line returns the file and line of the link-time address a.
func (t *goTable) line(a uint64) (file string, line int, ok bool) {
	f, ok := t.find(a)
	if !ok {
		return "", 0, false
	}
	fileNo, ok1 := t.value(f, f.u32(20), a)
	n, ok2 := t.value(f, f.u32(24), a)
	at := (uint64(f.u32(32)) + uint64(uint32(fileNo))) * 4
	if !ok1 || !ok2 || fileNo < 0 || n <= 0 || at+4 > uint64(len(t.cu)) {
		return "", 0, false
	}
	file = cstring(t.files, uint64(binary.LittleEndian.Uint32(t.cu[at:])))
	return file, int(n), file != ""
}

// depth returns how far RSP lies below the return address at the link-time address a.
func (t *goTable) depth(f goFunc, a uint64) (uint64, bool) {
	if f.record[41]&(goTopFrame|goSPWrite) != 0 {
		return 0, false
	}
	v, ok := t.value(f, f.u32(16), a)
	return uint64(v), ok && v >= 0 && v%8 == 0
}

// value decodes a table of (value, address) deltas (Go's "pc-value table") up to the address a.
func (t *goTable) value(f goFunc, off uint32, a uint64) (int32, bool) {
	if off == 0 || uint64(off) >= uint64(len(t.pctab)) {
		return 0, false
	}
	d := decoder{b: t.pctab[off:]}
	v, pc := int32(-1), f.entry
	for first := true; !d.bad; first = false {
		u := uint32(d.uleb())
		if u == 0 && !first {
			return 0, false
		}
		v += int32(u>>1) ^ -int32(u&1)
		if pc += d.uleb(); a < pc && !d.bad {
			return v, true
		}
	}
	return 0, false
}

// cstring is the NUL-terminated string at off, "" when there is none.
func cstring(b []byte, off uint64) string {
	if off >= uint64(len(b)) {
		return ""
	}
	b = b[off:]
	b = b[:min(len(b), maxNameLen)]
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return string(b[:i])
	}
	return ""
}
