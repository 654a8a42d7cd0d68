package symbol

import (
	"bytes"
	"debug/dwarf"
	"debug/elf"
	"encoding/binary"
	"os"
	"strings"
	"testing"
)

// TestHostileFiles: files made to be costly are refused, or answer less, at a bounded cost.
func TestHostileFiles(t *testing.T) {
	p := programs[3] // -gz: compressed DWARF
	good, err := os.ReadFile(build(t, p))
	if err != nil {
		t.Fatal(err)
	}
	e := mustELF(good)
	var code uint64
	for _, s := range mustSymbols(t, e) {
		if s.Name == "main" {
			code = s.Value
		}
	}
	le := binary.LittleEndian
	shoff := le.Uint64(good[40:])
	header := func(b []byte, name string) []byte {
		for i, s := range e.Sections {
			if s.Name == name {
				return b[shoff+uint64(i)*elfSection:][:elfSection]
			}
		}
		t.Fatalf("no section %s", name)
		return nil
	}
	content := func(b []byte, name string) []byte { return b[le.Uint64(header(b, name)[24:]):] }
	for _, tc := range []struct {
		name  string
		spoil func(b []byte)
		fails bool // Open fails; else lines are not known
	}{
		{"section names of 1 GiB", func(b []byte) { le.PutUint64(header(b, ".shstrtab")[32:], 1<<30) }, true},
		{"65535 program headers", func(b []byte) { le.PutUint16(b[56:], 0xffff) }, true},
		{"section headers beyond the file", func(b []byte) { le.PutUint64(b[40:], 1<<61) }, true},
		{"section headers at -1", func(b []byte) { le.PutUint64(b[40:], ^uint64(0)) }, true},
		{"32-bit", func(b []byte) { b[4] = 1 }, true},
		{"ARM", func(b []byte) { b[18] = 0xb7 }, true},
		{"relocatable", func(b []byte) { b[16] = 1 }, true},
		{".debug_info of 1 TiB after decompression", func(b []byte) { le.PutUint64(content(b, ".debug_info")[8:], 1<<40) }, false},
		{".debug_info of 2^63 bytes in the file", func(b []byte) {
			le.PutUint64(header(b, ".debug_info")[8:], 0)
			le.PutUint64(header(b, ".debug_info")[32:], 1<<63)
		}, true},
		{".debug_info of 2^62 bytes in the file", func(b []byte) {
			le.PutUint64(header(b, ".debug_info")[8:], 0)
			le.PutUint64(header(b, ".debug_info")[32:], 1<<62)
		}, false},
		{"damaged .debug_abbrev", func(b []byte) { clear(content(b, ".debug_abbrev")[40:60]) }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := bytes.Clone(good)
			tc.spoil(b)
			bounded(t, func() {
				tab, err := New(bytes.NewReader(b), int64(len(b)), 0)
				if (err != nil) != tc.fails {
					t.Fatalf("New = %v", err)
				}
				if err != nil {
					if strings.Contains(err.Error(), "\n") {
						t.Errorf("error of several lines: %v", err)
					}
					return
				}
				f, ok := tab.Lookup(code)
				if !ok || f.Func != "main" || f.File != "" {
					t.Errorf("Lookup = %+v, %v; want main without a file", f, ok)
				}
			})
		})
	}
	// The same questions to the file as it was: the cases above fail for their own reasons.
	tab, err := New(bytes.NewReader(good), int64(len(good)), 0)
	if err != nil {
		t.Fatal(err)
	}
	if f, ok := tab.Lookup(code); !ok || f.Func != "main" || f.File == "" {
		t.Errorf("Lookup = %+v, %v", f, ok)
	}
	// Every truncation of the headers, and some of the rest.
	for n := 0; n < len(good); n += 1 + n/8 {
		if tab, err := New(bytes.NewReader(good[:n]), int64(n), 0); err == nil {
			tab.Lookup(code)
		}
	}
}

func mustSymbols(t *testing.T, e *elf.File) []elf.Symbol {
	t.Helper()
	s, err := e.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestVetLines: line tables that cost debug/dwarf without bound are refused.
func TestVetLines(t *testing.T) {
	v5 := func(tables ...byte) []byte { return lineTableOf(5, append([]byte{8, 0}, nil...), tables, nil) }
	for name, tc := range map[string]struct {
		b    []byte
		want bool
	}{
		"honest":                      {v5(1, 1, 0x08, 1, 'd', 0, 1, 1, 0x08, 1, 'f', 0), true},
		"2^62 directories of nothing": {v5(0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0, 0), false},
		"2^40 files":                  {v5(1, 1, 0x08, 0, 1, 1, 0x08, 0x80, 0x80, 0x80, 0x80, 0x80, 0x20), false},
		"unknown form":                {v5(1, 1, 0x01, 1, 0, 0), false},
		"path of 8 KiB":               {v5(append(append([]byte{1, 1, 0x08, 1}, bytes.Repeat([]byte{'d'}, 8192)...), 0, 0, 0)...), false},
		"version 4":                   {lineTableOf(4, nil, []byte{'d', 0, 0, 'f', 0, 0, 0, 0, 0}, nil), true},
		"version 4 without end":       {lineTableOf(4, nil, []byte{'d', 0, 'e'}, nil), false},
		"define_file":                 {lineTableOf(4, nil, []byte{0, 0}, []byte{0, 6, 3, 'x', 0, 0, 0, 0}), false},
		"empty operation":             {lineTableOf(4, nil, []byte{0, 0}, []byte{0, 0}), false},
		"version 9":                   {lineTableOf(9, nil, []byte{0, 0}, nil), false},
		"cut":                         {lineTableOf(4, nil, []byte{0, 0}, nil)[:12], false},
	} {
		bounded(t, func() {
			if got := vetLines(tc.b, 0); got != tc.want {
				t.Errorf("%s: accepted %v, want %v", name, got, tc.want)
			}
		})
	}
	if vetLines(nil, 0) || vetLines([]byte{1, 2}, -1) || vetLines([]byte{1, 2}, 9) {
		t.Error("a table outside the section was accepted")
	}
}

func lineTableOf(version uint16, sizes, tables, program []byte) []byte {
	le := binary.LittleEndian
	head := []byte{1, 1, 1, 0xfb, 14, 13, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1}
	body := append(head, tables...)
	b := le.AppendUint16(nil, version)
	b = append(b, sizes...)
	b = le.AppendUint32(b, uint32(len(body)))
	b = append(append(b, body...), program...)
	return append(le.AppendUint32(nil, uint32(len(b))), b...)
}

// TestVetUnits: abbreviation tables that overlap are charged each time.
func TestVetUnits(t *testing.T) {
	le := binary.LittleEndian
	var abbrev, info []byte
	for i := range 20000 {
		abbrev = append(binary.AppendUvarint(abbrev, uint64(i+1)), 0x11, 0, 0, 0)
	}
	abbrev = append(abbrev, 0)
	unit := func(table uint32) []byte {
		return append(le.AppendUint32([]byte{8, 0, 0, 0, 4, 0}, table), 8, 0)
	}
	for range 5000 {
		info = append(info, unit(0)...)
	}
	if offs, ok := vetUnits(info, abbrev); !ok || len(offs) != 5000 || offs[1]-offs[0] != dwarf.Offset(len(unit(0))) {
		t.Errorf("units that share a table: %d, %v", len(offs), ok)
	}
	info = nil
	for i := range 5000 {
		info = append(info, unit(uint32(i*4))...)
	}
	bounded(t, func() {
		if _, ok := vetUnits(info, abbrev); ok {
			t.Error("5000 overlapping tables were accepted")
		}
	})
	wide := append([]byte{1, 0x11, 0}, bytes.Repeat([]byte{3, 0x19}, maxAttrs+1)...)
	if _, ok := vetUnits(unit(0), append(wide, 0, 0, 0)); ok {
		t.Error("an entry of too many attributes was accepted")
	}
	if _, ok := vetUnits([]byte{0xff, 0xff, 0xff, 0xff, 0, 0}, abbrev); ok {
		t.Error("64-bit DWARF was accepted")
	}
	if stringsBounded(bytes.Repeat([]byte{'x'}, 101), 100) || !stringsBounded([]byte("a\x00bb\x00"), 2) || !stringsBounded(nil, 0) {
		t.Error("stringsBounded is wrong")
	}
}

// TestDeepNesting: a million levels of blocks cost no stack, and sibling references that go back do
// not loop.
func TestDeepNesting(t *testing.T) {
	const n = 1 << 20
	le := binary.LittleEndian
	// 1: compile unit; 2: block; 3: function with low_pc, high_pc, sibling; 4: variable with sibling.
	abbrev := []byte{1, 0x11, 1, 0, 0, 2, 0x0b, 1, 0, 0, 3, 0x2e, 1, 0x11, 0x01, 0x12, 0x06, 0, 0, 4, 0x34, 1, 0x01, 0x13, 0, 0, 0}
	body := []byte{1, 3}
	body = le.AppendUint64(body, 0x1000)
	body = le.AppendUint32(body, 0x100)
	body = append(body, 4)
	body = le.AppendUint32(body, 11) // back to the unit's entry
	body = append(body, bytes.Repeat([]byte{2}, n)...)
	info := le.AppendUint32(nil, uint32(7+len(body)))
	info = append(info, 4, 0, 0, 0, 0, 0, 8)
	info = append(info, body...)
	d, err := dwarf.New(abbrev, nil, nil, info, nil, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	bounded(t, func() {
		l := &lineTable{opened: true, d: d, budget: lineBudget, units: []unit{{off: 11}}, ranges: []unitRange{{extent{0x1000, 0x1100}, 0}}}
		l.img.exec = []extent{{0x1000, 0x2000}}
		if chain := l.at(0x1010); len(chain) != 1 {
			t.Errorf("chain %v", chain)
		}
		if l.budget > lineBudget-n {
			t.Errorf("only %d entries were charged", lineBudget-l.budget)
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	bin := build(b, programs[11])
	for b.Loop() {
		t, err := Open(bin, 0)
		if err != nil {
			b.Fatal(err)
		}
		if err := t.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFirstLookup(b *testing.B) {
	bin := build(b, programs[11])
	for b.Loop() {
		t := open(b, bin, 0)
		s := t.names.syms[len(t.names.syms)/2]
		t.Frames(s.addr)
	}
}
