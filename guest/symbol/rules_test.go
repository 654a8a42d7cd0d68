package symbol

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"slices"
	"testing"
)

// made is a program of which only the given is known: call frame instructions for [0x1000, 0x1100)
// (after "CFA = RSP+8, return address at CFA-8"), and code from 0x2000 on with one function in it.
func made(ins, code []byte) *Table {
	cie := []byte{0, 0, 0, 0, 1, 'z', 'R', 0, 1, 0x78, 16, 1, 0x00, 0x0c, 7, 8, 0x90, 1}
	fde := binary.LittleEndian.AppendUint64(nil, 0x1000)
	fde = binary.LittleEndian.AppendUint64(fde, 0x100)
	fde = append(append(fde, 0), ins...)
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(cie)))
	b = append(b, cie...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(fde)+4))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(b)))
	b = append(b, fde...)
	t := &Table{cfi: &cfiTable{data: b, addr: 0x400000}, lines: &lineTable{opened: true}, cache: map[uint64][]Frame{}}
	t.cfi.index()
	n := uint64(len(code))
	t.img.exec = []extent{{0x1000, 0x1200}, {0x2000, 0x2000 + n}}
	t.img.loads = []*elf.Prog{{ProgHeader: elf.ProgHeader{Vaddr: 0x2000, Filesz: n, Memsz: n}, ReaderAt: bytes.NewReader(code)}}
	if n > 0 {
		t.names = nameTable{syms: []sym{{addr: 0x2000, size: n, name: 1}}, str: []byte("\x00f\x00")}
	}
	return t
}

// TestUnwindRules checks single rules where a mistake would be rare in real programs.
func TestUnwindRules(t *testing.T) {
	const sp = 0x8000
	// A function that calls itself at 0x2005 (the return address), and nothing else.
	call := []byte{0xe8, 0xfb, 0xff, 0xff, 0xff}
	for _, tc := range []struct {
		name      string
		ins, code []byte
		regs      Regs
		stack     []uint64
		want      []uint64
	}{
		{"a call that ends its function", nil, nil, Regs{RIP: 0x1000}, []uint64{0x1100, 0x1050, 0}, []uint64{0x1000, 0x1100, 0x1050}},
		{"frame on RBX, which the callee left alone", []byte{0x02, 0x80, 0x0d, 3, 0x0e, 24}, nil,
			Regs{RIP: 0x1010, All: true, RBX: sp}, []uint64{0x1090, 0x11, 0x1020, 0}, []uint64{0x1010, 0x1090, 0x1020}},
		{"frame on RBX, which is not known", []byte{0x02, 0x80, 0x0d, 3, 0x0e, 24}, nil,
			Regs{RIP: 0x1010}, []uint64{0x1090, 0x11, 0x1020, 0}, []uint64{0x1010, 0x1090}},
		{"CFA by expression: RSP + 16", []byte{0x0f, 4, 0x77, 8, 0x38, 0x22}, nil, Regs{RIP: 0x1010}, []uint64{7, 0x1020}, []uint64{0x1010, 0x1020}},
		{"a frame that does not climb", []byte{0x0e, 0, 0x11, 16, 0}, nil, Regs{RIP: 0x1010}, bytes8(0x1020, 200), []uint64{0x1010}},
		{"return address undefined: outermost", []byte{0x07, 16}, nil, Regs{RIP: 0x1010}, []uint64{0x1020}, []uint64{0x1010}},
		{"unknown instruction", []byte{0x3f}, nil, Regs{RIP: 0x1010}, []uint64{0x1020}, []uint64{0x1010}},
		{"restore without remember", []byte{0x0b}, nil, Regs{RIP: 0x1010}, []uint64{0x1020}, []uint64{0x1010}},
		{"code before any push", nil, call, Regs{RIP: 0x2000}, []uint64{0x2005}, []uint64{0x2000, 0x2005}},
		{"a word that no call pushed", nil, append(call, 0x90), Regs{RIP: 0x2000}, []uint64{0x2006}, []uint64{0x2000}},
		// CALL f; AND RSP, -16; NOP: RBP is the caller's, and following it would lose a frame.
		{"no frame pointer of its own", nil, append(slices.Clone(call), 0x48, 0x83, 0xe4, 0xf0, 0x90),
			Regs{RIP: 0x2009, All: true, RBP: sp}, []uint64{sp + 32, 0x2005, 0, 0}, []uint64{0x2009}},
		// JNE +1; PUSH RBX; CALL: the CALL would have two depths.
		{"two depths at one instruction", nil, []byte{0x75, 0x01, 0x53, 0xe8, 0xf8, 0xff, 0xff, 0xff}, Regs{RIP: 0x2003}, []uint64{0x2008, 0x2008}, []uint64{0x2003}},
		// PUSH RBP; MOV RBP, RSP; AND RSP, -16; CALL f: only RBP tells, and it is set up at the start.
		{"frame pointer", nil, []byte{0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xe4, 0xf0, 0xe8, 0xf3, 0xff, 0xff, 0xff},
			Regs{RIP: 0x2008, All: true, RBP: sp + 8}, []uint64{0, 0, 0x200d, 0}, []uint64{0x2008, 0x200d}},
	} {
		tc.regs.RSP = sp
		if got := made(tc.ins, tc.code).Unwind(tc.regs, tc.stack, 16); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %x, want %x", tc.name, got, tc.want)
		}
	}
}

func bytes8(v uint64, n int) []uint64 { return slices.Repeat([]uint64{v}, n) }

// TestStubsHaveNoName: a label without a size does not reach into the PLT behind its section.
func TestStubsHaveNoName(t *testing.T) {
	tab := open(t, build(t, programs[1]), 0)
	if len(tab.img.stubs) == 0 {
		t.Fatal("a static glibc program has a PLT")
	}
	for _, x := range tab.img.stubs {
		if f, ok := tab.Lookup(x.lo + 6); ok {
			t.Errorf("%#x in the PLT is %v", x.lo+6, f)
		}
	}
}
