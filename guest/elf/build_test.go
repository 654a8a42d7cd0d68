package elf

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

// ph is one program header of a hand-made file.
type ph struct {
	typ                       elf.ProgType
	flags                     elf.ProgFlag
	off, vaddr, filesz, memsz uint64
	align                     uint64
}

// file is a hand-made ELF: sound by default, so that each test spoils one thing.
type file struct {
	typ     elf.Type
	machine elf.Machine
	entry   uint64
	phs     []ph
	size    int // bytes in the file
	poke    map[int][]byte
}

const rx, rw, ro = elf.PF_R | elf.PF_X, elf.PF_R | elf.PF_W, elf.PF_R

func sound() *file {
	return &file{typ: elf.ET_EXEC, machine: elf.EM_X86_64, entry: 0x401000, size: 0x3000, poke: map[int][]byte{}, phs: []ph{
		{elf.PT_LOAD, ro, 0, 0x400000, 0x800, 0x800, 4096},
		{elf.PT_LOAD, rx, 0x1000, 0x401000, 0x100, 0x100, 4096},
		{elf.PT_LOAD, rw, 0x2000, 0x402000, 0x200, 0x5000, 4096},
	}}
}

func soundPIE() *file {
	f := sound()
	f.typ, f.entry = elf.ET_DYN, 0x1000
	for i := range f.phs {
		f.phs[i].vaddr -= 0x400000
	}
	return f
}

func (f *file) bytes() []byte {
	b := make([]byte, max(f.size, 64+56*len(f.phs)))
	for i := range b {
		b[i] = byte(i>>8) ^ byte(i)
	}
	le := binary.LittleEndian
	copy(b, "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	le.PutUint16(b[16:], uint16(f.typ))
	le.PutUint16(b[18:], uint16(f.machine))
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[24:], f.entry)
	le.PutUint64(b[32:], 64)
	le.PutUint64(b[40:], 0)
	le.PutUint32(b[48:], 0)
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], uint16(len(f.phs)))
	for i, p := range f.phs {
		h := b[64+56*i:]
		le.PutUint32(h, uint32(p.typ))
		le.PutUint32(h[4:], uint32(p.flags))
		for j, v := range []uint64{p.off, p.vaddr, p.vaddr, p.filesz, p.memsz, p.align} {
			le.PutUint64(h[8+8*j:], v)
		}
	}
	for off, data := range f.poke {
		copy(b[off:], data)
	}
	return b[:max(f.size, 0)]
}

func (f *file) load() (*Image, error) {
	b := f.bytes()
	return Load(bytes.NewReader(b), int64(len(b)))
}
