package firmware

import (
	"encoding/binary"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// Segment is a descriptor taken apart, as KVM_SET_SREGS wants it (struct kvm_segment).
type Segment struct {
	Base          uint64
	Limit         uint32 // bytes, granularity applied
	Selector      uint16
	Type          uint8
	P, DPL, DB, S uint8
	L, G          uint8
}

// GDTSize is the size in bytes of the GDT: 16 entries of 8 bytes, the last of them Linux's CPU number
// (GDT_ENTRY_CPUNODE in arch/x86/include/asm/segment.h).
const GDTSize = 16 * 8

// SelCPU is the selector whose limit is CPU | node<<12, which getcpu reads by LSL (Linux's __CPUNODE_SEG).
const SelCPU = 0x7b

// Flat 4 GiB descriptors of Linux's GDT (arch/x86/kernel/cpu/common.c, gdt_page), accessed bit set.
const (
	descKernelCS32 = 0x00cf9b000000ffff
	descKernelCS   = 0x00af9b000000ffff
	descData       = 0x00cf93000000ffff
	descUserCS32   = 0x00cffb000000ffff
	descUserData   = 0x00cff3000000ffff
	descUserCS     = 0x00affb000000ffff
)

// GDT gives the table of one vCPU: Linux's layout, with the TSS at tss and the CPU number for getcpu.
// cpu is below 4096, node below 256; higher bits are dropped.
func GDT(tss uint64, cpu, node uint32) [GDTSize]byte {
	var b [GDTSize]byte
	put := func(sel uint16, d uint64) { binary.LittleEndian.PutUint64(b[sel&^7:], d) }
	put(0x08, descKernelCS32)
	put(abi.SelKernelCS, descKernelCS)
	put(abi.SelKernelSS, descData)
	put(abi.SelUserCS32, descUserCS32)
	put(abi.SelUserSS, descUserData)
	put(abi.SelUserCS, descUserCS)
	// 64-bit TSS, 16 bytes, type 11: busy, as LTR would leave it (SDM vol. 3A, 8.2.3).
	const limit = TSSSize - 1
	put(abi.SelTSS, limit|tss&0xffffff<<16|0x8b<<40|tss>>24&0xff<<56)
	put(abi.SelTSS+8, tss>>32)
	// Read-only expand-down data of DPL 3, as Linux's setup_getcpu makes it; the limit is the message.
	info := uint64(cpu&0xfff | node&0xff<<12)
	put(SelCPU, info&0xffff|info>>16&0xf<<48|0xf5<<40|0x4<<52)
	return b
}

// SegmentOf takes the descriptor of sel out of a table: the value for KVM_SET_SREGS that agrees with
// what the guest would load. A selector beyond the table gives an unusable segment (P = 0).
func SegmentOf(gdt [GDTSize]byte, sel uint16) Segment {
	at := int(sel &^ 7)
	if sel&4 != 0 || at == 0 || at+8 > len(gdt) {
		return Segment{Selector: sel}
	}
	d := binary.LittleEndian.Uint64(gdt[at:])
	bit := func(n uint) uint8 { return uint8(d >> n & 1) }
	s := Segment{
		Selector: sel, Base: d>>16&0xffffff | d>>56<<24, Limit: uint32(d&0xffff | d>>48&0xf<<16),
		Type: uint8(d >> 40 & 0xf), S: bit(44), DPL: uint8(d >> 45 & 3), P: bit(47), L: bit(53), DB: bit(54), G: bit(55),
	}
	if s.S == 0 && at+16 <= len(gdt) { // system descriptors have 16 bytes in long mode
		s.Base |= binary.LittleEndian.Uint64(gdt[at+8:]) << 32
	}
	if s.G != 0 {
		s.Limit = s.Limit<<12 | 0xfff
	}
	return s
}

// TSS layout (SDM vol. 3A, 8.7 "Task Management in 64-bit Mode", figure 8-11).
const (
	tssRSP0   = 4
	tssIST1   = 36
	tssIOBase = 102
	tssBitmap = 104

	// TSSSize is the size in bytes of the TSS with an I/O bitmap that reaches abi.PortSyscall and the
	// final 0xff that the processor reads beyond it. Its limit is TSSSize-1 = 121.
	TSSSize = tssBitmap + abi.PortSyscall/8 + 1 + 1
)

// TSS gives a 64-bit TSS. At CPL 3 it permits OUT to abi.PortSyscall alone, in bytes: the PVM back end
// runs the system-call stub at CPL 3 (so the VMM must check RIP before it believes that port). stack is the
// top of the one supervisor stack, 16-byte aligned: RSP0, and IST1 for the gates of IDT.
func TSS(stack uint64) [TSSSize]byte {
	var b [TSSSize]byte
	binary.LittleEndian.PutUint64(b[tssRSP0:], stack)
	binary.LittleEndian.PutUint64(b[tssIST1:], stack)
	binary.LittleEndian.PutUint16(b[tssIOBase:], tssBitmap)
	for i := tssBitmap; i < TSSSize; i++ {
		b[i] = 0xff
	}
	b[tssBitmap+abi.PortSyscall/8] &^= 1 << (abi.PortSyscall % 8)
	return b
}

// Vectors is the number of exception vectors, and of gates in the IDT (SDM vol. 3A, 6.3.1).
const Vectors = 32

// IDTSize is the size in bytes of the IDT: 16-byte gates (SDM vol. 3A, 6.14.1).
const IDTSize = Vectors * 16

// IDT gives a table of interrupt gates on the kernel's code segment. handler[v] is the address of the
// stub of vector v. Every gate uses IST1: RSP0 alone is used only from CPL 3, and at CPL 0 behind a SYSCALL, which
// switches no stack, RSP is the program's: the frame would land wherever it points. Only #BP and #OF, which
// INT3 and INTO raise on the program's own behalf, may be called from CPL 3.
func IDT(handler [Vectors]uint64) [IDTSize]byte {
	const (
		ist1       = 1
		breakpoint = 3
		overflow   = 4
	)
	var b [IDTSize]byte
	le := binary.LittleEndian
	for v, h := range handler {
		g := b[16*v:]
		attr := byte(0x8e) // present, DPL 0, 64-bit interrupt gate: IF is cleared on entry
		if v == breakpoint || v == overflow {
			attr |= 3 << 5
		}
		le.PutUint16(g, uint16(h))
		le.PutUint16(g[2:], abi.SelKernelCS)
		g[4], g[5] = ist1, attr
		le.PutUint16(g[6:], uint16(h>>16))
		le.PutUint32(g[8:], uint32(h>>32))
	}
	return b
}
