package workload

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// patchable is what of a program can be patched (abi.Note…). Places are labels, by number.
type patchable struct {
	functions []int // whose first instructions are five one-byte NOPs
	sites     []site
	word      uint64 // address of the word of its safe points; 0: it has none
}

// site is one abi.NoteSite.
type site struct {
	name          string
	kind          uint32
	label         int
	size          uint32 // of the instruction
	offset, width uint32 // abi.SiteImm: of the immediate
	target        int    // abi.SiteBranch: the label to which it jumps when it is on
}

// declare makes a program's notes, which will lie at addr, and its __patchable_function_entries. The first note is a build ID: of the code, its
// symbols and what can be patched, so that one patch fits a program whatever its options.
func (l labelled) declare(addr uint64, p *patchable, symtab []byte) (notes, entries []byte, err error) {
	at := func(label int) uint64 {
		off, ok := l.labels[byte(label)]
		if !ok && err == nil {
			err = fmt.Errorf("built-in program: label %d can be patched and is missing: this build of cloister is damaged", label)
		}
		return TextAddr + uint64(off)
	}
	const (
		gnuBuildID = 3  // NT_GNU_BUILD_ID of <elf.h>
		idSize     = 20 // as ld's
		idAt       = 12 + 4
	)
	notes = note("GNU", gnuBuildID, make([]byte, idSize))
	if p != nil {
		notes = append(notes, note(abi.NoteOwner, abi.NotePatchable, nil)...)
		// distance of a from the field that comes behind b in the description of the note that is appended next.
		distance := func(b []byte, a uint64) []byte {
			const header = 12 + (len(abi.NoteOwner)+1+3)&^3
			return binary.LittleEndian.AppendUint64(b, a-(addr+uint64(len(notes)+header+len(b))))
		}
		for _, s := range p.sites {
			b := binary.LittleEndian.AppendUint32(nil, s.kind)
			b = binary.LittleEndian.AppendUint32(b, s.size)
			b = distance(b, at(s.label))
			if s.kind == abi.SiteImm {
				b = binary.LittleEndian.AppendUint32(b, s.offset)
				b = binary.LittleEndian.AppendUint32(b, s.width)
			} else {
				b = distance(b, at(s.target))
			}
			notes = append(notes, note(abi.NoteOwner, abi.NoteSite, append(b, s.name+"\x00"...))...)
		}
		if p.word != 0 {
			notes = append(notes, note(abi.NoteOwner, abi.NoteSafeWord, distance(nil, p.word))...)
		}
		for _, f := range p.functions {
			entries = binary.LittleEndian.AppendUint64(entries, at(f))
		}
	}
	h := sha256.New()
	for _, b := range [][]byte{l.code, symtab, notes, entries} {
		h.Write(b)
	}
	copy(notes[idAt:], h.Sum(nil)[:idSize])
	return notes, entries, err
}

// note is one ELF note (System V gABI 4.1, "Note Section"), 4-byte aligned.
func note(owner string, typ uint32, description []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(owner)+1))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(description)))
	b = binary.LittleEndian.AppendUint32(b, typ)
	b = append(b, owner+"\x00"...)
	b = append(b, make([]byte, -len(b)&3)...)
	b = append(b, description...)
	return append(b, make([]byte, -len(b)&3)...)
}
