package build

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/internal/testenv"
	"github.com/cloister-vmm/cloister/patch"
)

// maxFuzzTime is far above what the fuzzer's sizes take (milliseconds), and far below what an unbounded loop would.
const maxFuzzTime = 5 * time.Second

// bounded fails when f takes too long, or allocates out of proportion.
func bounded(t *testing.T, f func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	f()
	if d := time.Since(start); d > maxFuzzTime {
		t.Errorf("took %v", d)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<30 {
		t.Errorf("allocated %d MiB", n>>20)
	}
}

// textAt is where the text of handMade runs.
const textAt = 0x401000

// handMade is a program that no compiler made: its text, one function f over all of it, which can be replaced, and some names.
func handMade(code []byte) *Program {
	text := append([]byte("\x90\x90\x90\x90\x90"), code...)
	p := &Program{
		m:     &image{r: bytes.NewReader(text), size: uint64(len(text)), typ: elf.ET_EXEC},
		exec:  []segment{{typ: elf.PT_LOAD, flags: elf.PF_X, vaddr: textAt, filesz: uint64(len(text))}},
		state: patch.State{SafePoints: true, SpareText: patch.Space{Start: 0x500000, End: 0x540000, Used: 0x500000}, SpareData: patch.Space{Start: 0x540000, End: 0x580000, Used: 0x540000}},
		symbols: []symbol{{name: "f", addr: textAt, size: uint64(len(text)), kind: elf.STT_FUNC}, {name: "data", addr: 0x480000, kind: elf.STT_OBJECT},
			{name: "tls", kind: elf.STT_TLS}, {name: "late", addr: 0x402000, kind: elf.STT_GNU_IFUNC}},
		byName: map[string][]int{"f": {0}, "data": {1}, "tls": {2}, "late": {3}, "filter": {0}, "printf": {0}},
		funcs:  []int{0}, entries: []uint64{textAt}, stubs: map[uint64]uint64{}, bodies: &bodies{known: map[[2]uint64]decoded{}},
	}
	return p
}

// soundPlan holds a plan against what every plan must keep.
func soundPlan(t *testing.T, p *Program, m *Made) {
	t.Helper()
	for _, part := range []struct {
		chunks []patch.Chunk
		space  patch.Space
	}{{m.Plan.Text, p.state.SpareText}, {m.Plan.Data, p.state.SpareData}} {
		for _, c := range part.chunks {
			if c.Addr < part.space.Used || c.Addr+uint64(len(c.Bytes)) > part.space.End || len(c.Bytes) == 0 {
				t.Errorf("chunk of %d bytes at %#x outside of %+v", len(c.Bytes), c.Addr, part.space)
			}
		}
	}
	last := uint64(0)
	for _, s := range m.Plan.Sites {
		old, err := p.code(s.Addr, uint64(len(s.Old)))
		if err != nil || !bytes.Equal(old, s.Old) || len(s.Old) != len(s.New) || len(s.Old) == 0 || len(s.Old) > patch.MaxSite || s.Addr < last || bytes.Equal(s.Old, s.New) {
			t.Errorf("site %+v: %x runs there (%v)", s, old, err)
		}
		last = s.Addr + uint64(len(s.Old))
		if s.Kind == patch.Redirect {
			to, ok := jumpTo(s.New, s.Addr)
			if !ok || len(m.Plan.Text) != 1 || to < m.Plan.Text[0].Addr || to >= m.Plan.Text[0].Addr+uint64(len(m.Plan.Text[0].Bytes)) {
				t.Errorf("site %+v does not lead into the new text", s)
			}
		} else if in, err := single(s.New); err != nil || leaves(in) {
			t.Errorf("site %+v: new bytes are %v, %v", s, in, err)
		}
	}
	if (len(m.Plan.Sites) > 1) != m.Plan.SafePoint {
		t.Errorf("%d sites, safe point %v", len(m.Plan.Sites), m.Plan.SafePoint)
	}
}

// edited gives a copy of a file, cut at n bytes, with changes: of each four bytes of edits two are a place, one says what to put there, one is its value.
// The fuzzer finds its way faster in a few changes than in a whole file.
func edited(file, edits []byte, n uint16) []byte {
	b := bytes.Clone(file[:min(len(file), int(n))])
	for ; len(edits) >= 4 && len(b) >= 16; edits = edits[4:] {
		at, v := int(le.Uint16(edits))%(len(b)-8), edits[3]
		switch edits[2] % 8 {
		case 0:
			b[at] = v
		case 1:
			b[at] ^= 1 << (v % 8)
		case 2:
			le.PutUint64(b[at&^7:], 1<<(v%64))
		case 3:
			le.PutUint64(b[at&^7:], ^uint64(v))
		case 4:
			le.PutUint32(b[at&^3:], uint32(v))
		case 5:
			le.PutUint64(b[at&^7:], uint64(v))
		case 6:
			le.PutUint64(b[at&^7:], le.Uint64(b[at&^7:])+uint64(int64(int8(v))))
		case 7:
			copy(b[at&^7:], b[int(v)*8%(len(b)-8):][:8])
		}
	}
	return b
}

// FuzzObject loads objects that are nearly what a compiler makes.
func FuzzObject(f *testing.F) {
	seeds := [][]byte{bytes.Repeat([]byte("\x7fELF"), 40)}
	if testenv.Has(testenv.Tool("gcc")) {
		for _, body := range newBodies {
			seeds = append(seeds, newObject(f, body.text, "-O2 -fno-pie"), newObject(f, body.text, "-O2 -fPIC"))
		}
	}
	for i, s := range seeds {
		f.Add(uint8(i), []byte{}, uint16(len(s)))
		f.Add(uint8(i), []byte{0x40, 0, 1, 2}, uint16(len(s)))
	}
	f.Fuzz(func(t *testing.T, which uint8, edits []byte, n uint16) {
		obj := edited(seeds[int(which)%len(seeds)], edits, n)
		if len(obj) == 0 {
			return
		}
		bounded(t, func() {
			p := handMade([]byte("\x90\xc3"))
			m, err := p.Plan(&Bundle{Replace: []Replace{{Function: "f", Symbol: "filter", File: "new.o", Object: obj}}})
			if err == nil {
				soundPlan(t, p, m)
			} else if m != nil {
				t.Error("a plan beside an error")
			}
		})
	})
}

// FuzzNotes reads notes, and sets every site that they name.
func FuzzNotes(f *testing.F) {
	f.Add(slices.Concat(note(abi.NoteSite, siteNote(abi.SiteImm, 5, 0x401005-0x1000-24-8, 1|4<<32, "limit")), note(abi.NoteSafeWord, make([]byte, 8)), note(abi.NotePatchable, nil)), []byte("\xb8\x01\x02\x03\x04\xc3"), "77")
	f.Add(note(abi.NoteSite, siteNote(abi.SiteBranch, 5, 0x401005-0x1000-24-8, 0x40100a-0x1000-24-16, "trace")), []byte("\x0f\x1f\x44\x00\x00\xc3"), "on")
	f.Fuzz(func(t *testing.T, b, code []byte, value string) {
		bounded(t, func() {
			_, n, err := withNotes(b).readNotes(0)
			if err != nil {
				return
			}
			p := handMade(code)
			p.notes = n
			for _, s := range p.List().Sites[:min(20, len(p.List().Sites))] {
				if m, err := p.Plan(setting(s.Name, value)); err == nil {
					soundPlan(t, p, m)
				}
			}
		})
	})
}

// FuzzBundle decodes files; what is taken for a bundle is one file only.
func FuzzBundle(f *testing.F) {
	f.Add([]byte(`{"schema":"cloister-bundle/1","build_id":"00ff","comment":"c","replace":[{"function":"f","symbol":"filter","file":"new.o","object":"f0VMRg=="}],"set":[{"site":"a","value":"1"}],"raw":[{"function":"f","offset":5,"old":"90","new":"f8"}]}`))
	f.Fuzz(func(t *testing.T, file []byte) {
		bounded(t, func() {
			b, err := Decode(bytes.NewReader(file))
			if err != nil {
				return
			}
			one, err := b.Encode()
			if err != nil {
				t.Fatalf("decoded, and not encoded: %v", err)
			}
			again, err := Decode(bytes.NewReader(one))
			if err != nil {
				t.Fatalf("encoded, and not decoded: %v", err)
			}
			two, err := again.Encode()
			if err != nil || !bytes.Equal(one, two) {
				t.Errorf("encoded twice it is two files: %v\n%s\n%s", err, one, two)
			}
			p := handMade([]byte("\x90\xc3"))
			b.BuildID = ""
			if m, err := p.Plan(b); err == nil {
				soundPlan(t, p, m)
			}
		})
	})
}

// FuzzEntries gives words to the reader of __patchable_function_entries, and relocations that fill them.
func FuzzEntries(f *testing.F) {
	f.Add(binary.LittleEndian.AppendUint64(nil, textAt), []byte{}, false, uint64(24))
	f.Add(make([]byte, 16), binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, 0x2008), 8), textAt), true, uint64(24))
	f.Fuzz(func(t *testing.T, words, relas []byte, pie bool, entsize uint64) {
		bounded(t, func() {
			p := handMade([]byte("\x90\xc3"))
			text := make([]byte, p.m.size)
			if _, err := p.m.r.ReadAt(text, 0); err != nil {
				t.Fatal(err)
			}
			all := slices.Concat(text, words, relas)
			p.m.r, p.m.size = bytes.NewReader(all), uint64(len(all))
			if pie {
				p.m.typ = elf.ET_DYN
			}
			p.m.sections = []section{
				{name: "__patchable_function_entries", typ: elf.SHT_PROGBITS, addr: 0x2000, off: uint64(len(text)), size: uint64(len(words))},
				{name: ".rela.dyn", typ: elf.SHT_RELA, flags: elf.SHF_ALLOC, off: uint64(len(text) + len(words)), size: uint64(len(relas)), entsize: entsize},
			}
			if err := p.readEntries(); err != nil {
				return
			}
			for _, at := range p.entries {
				if !p.isText(at) {
					t.Errorf("entry %#x is no text", at)
				}
			}
			p.List()
		})
	})
}

// FuzzProgram gives files that are nearly programs to everything that reads one.
func FuzzProgram(f *testing.F) {
	seeds := [][]byte{bytes.Repeat([]byte("\x7fELF"), 40)}
	if testenv.Has(testenv.Tool("gcc")) {
		for _, flags := range []string{"-static", "-static-pie"} {
			seeds = append(seeds, compile(f, "gcc", map[string]string{"new.c": `__attribute__((noinline)) int filter(int x) { return x + 1; } void _start(void) { for (int i = 0;; ) {
				__asm__ volatile("1: movl $7, %0\n2: .pushsection .note.cloister, \"a\", @note\n.balign 4\n.long 9, 6f - 5f, 1\n.asciz \"Cloister\"\n.balign 4\n5: .long 1, 2b - 1b\n.quad 1b - .\n.long 1, 4\n.asciz \"limit\"\n6: .balign 4\n.popsection" : "=r"(i));
				i = filter(i); } }`}, "-O2", "-nostdlib", "-fpatchable-function-entry=5", "-Wl,-z,noseparate-code", flags))
		}
	}
	for i, s := range seeds {
		f.Add(uint8(i), []byte{}, uint16(len(s)))
		f.Add(uint8(i), []byte{0x40, 0, 1, 2}, uint16(len(s)))
	}
	f.Fuzz(func(t *testing.T, which uint8, edits []byte, n uint16) {
		file := edited(seeds[int(which)%len(seeds)], edits, n)
		bounded(t, func() {
			state, text, err := AtRest(bytes.NewReader(file), int64(len(file)), "fuzzed")
			if err != nil {
				return
			}
			p, err := Open(bytes.NewReader(file), int64(len(file)), state, text)
			if err != nil {
				return
			}
			l := p.List()
			for _, s := range l.Sites[:min(10, len(l.Sites))] {
				if m, err := p.Plan(setting(s.Name, "1")); err == nil {
					soundPlan(t, p, m)
				}
			}
			for _, fn := range l.Functions[:min(10, len(l.Functions))] {
				for off := range uint64(8) {
					if m, err := p.Plan(&Bundle{Raw: []Raw{{Function: fn.Name, Offset: off, Old: p.codeUpTo(fn.Addr+off, 1), New: []byte{0xf8}}}}); err == nil {
						soundPlan(t, p, m)
					}
				}
			}
		})
	})
}

// FuzzCode exchanges instructions of code that no compiler made.
func FuzzCode(f *testing.F) {
	f.Add([]byte("\x0f\x1f\x44\x00\x00\x75\xf9\x83\xc0\x01\xc3"), uint64(10), []byte("\x83\xc0\x02"))
	f.Add([]byte("\xc5\xf8\x77\xc3\x62\xf1\x7d\x48\x6f\x44\x24\x01\xf3\xaa\xeb\xfe"), uint64(17), []byte("\x66\x90"))
	f.Fuzz(func(t *testing.T, code []byte, off uint64, now []byte) {
		bounded(t, func() {
			p := handMade(code)
			old := p.codeUpTo(textAt+off, uint64(len(now)))
			if off > 1<<20 || len(now) == 0 || len(old) != len(now) {
				return
			}
			m, err := p.Plan(&Bundle{Raw: []Raw{{Function: "f", Offset: off, Old: old, New: now}}})
			if err != nil {
				return
			}
			soundPlan(t, p, m)
			// What was proved of the old instruction is so of the new one: the function decodes, and its other instructions are the same.
			q := handMade(code)
			q.applied = []patch.Applied{{Number: 1, Sites: m.Plan.Sites}}
			a, err1 := p.body(textAt)
			b, err2 := q.body(textAt)
			if err1 != nil || err2 != nil || !slices.Equal(a.starts, b.starts) {
				t.Errorf("instructions begin elsewhere afterwards: %v, %v", err1, err2)
			}
		})
	})
}
