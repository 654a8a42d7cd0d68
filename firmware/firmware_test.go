package firmware

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/cloister-vmm/cloister/guest/abi"
)

func TestGDT(t *testing.T) {
	const tss = 0x7fff_c123_4567_89a0 & 0xffff_ffff_ffff
	gdt := GDT(tss, 3, 2)
	// The words that a running x86-64 Linux has in gdt_page.
	for sel, want := range map[uint16]uint64{
		0x08: 0x00cf9b000000ffff, 0x10: 0x00af9b000000ffff, 0x18: 0x00cf93000000ffff,
		0x20: 0x00cffb000000ffff, 0x28: 0x00cff3000000ffff, 0x30: 0x00affb000000ffff,
		0x78: 0x0040f50000002003,
	} {
		if got := binary.LittleEndian.Uint64(gdt[sel:]); got != want {
			t.Errorf("entry %#x: %#x, want %#x", sel, got, want)
		}
	}
	for _, c := range []struct {
		sel  uint16
		want Segment
	}{
		{abi.SelKernelCS, Segment{Limit: 0xffffffff, Type: 11, P: 1, S: 1, L: 1, G: 1}},
		{abi.SelKernelSS, Segment{Limit: 0xffffffff, Type: 3, P: 1, S: 1, DB: 1, G: 1}},
		{abi.SelUserCS32, Segment{Limit: 0xffffffff, Type: 11, P: 1, DPL: 3, S: 1, DB: 1, G: 1}},
		{abi.SelUserSS, Segment{Limit: 0xffffffff, Type: 3, P: 1, DPL: 3, S: 1, DB: 1, G: 1}},
		{abi.SelUserCS, Segment{Limit: 0xffffffff, Type: 11, P: 1, DPL: 3, S: 1, L: 1, G: 1}},
		{abi.SelTSS, Segment{Base: tss, Limit: 121, Type: 11, P: 1}},
		{SelCPU, Segment{Limit: 0x2003, Type: 5, P: 1, DPL: 3, S: 1, DB: 1}},
		{0, Segment{}}, {0x80, Segment{}}, {0x14, Segment{}}, {0xffff, Segment{}},
	} {
		c.want.Selector = c.sel
		if got := SegmentOf(gdt, c.sel); got != c.want {
			t.Errorf("selector %#x: %+v\nwant %+v", c.sel, got, c.want)
		}
	}
}

// allowed does what the processor does for OUT of one byte at CPL 3 (SDM vol. 1, 19.5.2).
func allowed(tss []byte, port int) bool {
	at := int(binary.LittleEndian.Uint16(tss[102:])) + port/8
	if at+1 >= len(tss) { // it reads two bytes, both within the limit
		return false
	}
	return binary.LittleEndian.Uint16(tss[at:])>>(port%8)&1 == 0
}

func TestTSS(t *testing.T) {
	tss := TSS(0x1000)
	if len(tss) != 122 || tss[121] != 0xff {
		t.Errorf("%d bytes, the last %#x", len(tss), tss[len(tss)-1])
	}
	le := binary.LittleEndian
	for at := 4; at < 100; at += 8 { // RSP0 to 2, a reserved word, IST1 to 7, a reserved word
		if got, used := le.Uint64(tss[at:]), at == 4 || at == 36; used && got != 0x1000 || !used && got != 0 {
			t.Errorf("the stack at offset %d is %#x", at, got)
		}
	}
	for port := range 0x10000 {
		if got := allowed(tss[:], port); got != (port == abi.PortSyscall) {
			t.Errorf("port %#x allowed: %v", port, got)
		}
	}
}

func TestIDT(t *testing.T) {
	var h [Vectors]uint64
	for v := range h {
		h[v] = 0x7fff_c000_1000 + uint64(v)*8
	}
	idt := IDT(h)
	for v := range h {
		g := idt[16*v:]
		le := binary.LittleEndian
		addr := uint64(le.Uint16(g)) | uint64(le.Uint16(g[6:]))<<16 | uint64(le.Uint32(g[8:]))<<32
		dpl, typ, wantDPL := g[5]>>5&3, g[5]&0x1f, byte(0)
		if v == 3 || v == 4 {
			wantDPL = 3
		}
		if addr != h[v] || le.Uint16(g[2:]) != abi.SelKernelCS || g[4] != 1 || dpl != wantDPL || typ != 0xe || g[5]>>7 != 1 || le.Uint32(g[12:]) != 0 {
			t.Errorf("gate %d: % x", v, g[:16])
		}
	}
}

func TestPTE(t *testing.T) {
	if got := PTETable(0x8_0000_1000); got != 0x8_0000_1027 {
		t.Errorf("table %#x", got)
	}
	if got := PTELeaf(0x20_0000, PTEUser|PTEHuge|PTENX); got != 0x8000_0000_0020_00e5 {
		t.Errorf("leaf %#x", got)
	}
	// Address bits never spill into flags, whatever the caller passes.
	if got := PTETable(^uint64(0)); got != PTEAddr|0x27 {
		t.Errorf("table of a bad address %#x", got)
	}
	for level, want := range map[int]int{1: 4, 2: 3, 3: 2, 4: 1} {
		if got := PTEIndex(1<<39|2<<30|3<<21|4<<12|5, level); got != want {
			t.Errorf("index at level %d: %d", level, got)
		}
	}
}

func TestTablesAreDeterministic(t *testing.T) {
	a, b := GDT(1, 2, 3), GDT(1, 2, 3)
	if !bytes.Equal(a[:], b[:]) {
		t.Error("two calls differ")
	}
}
