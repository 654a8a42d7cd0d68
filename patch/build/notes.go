package build

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/patch"
)

// Bounds on the notes of a program.
const (
	maxNotes     = 16 << 20 // bytes of notes
	maxNoteCount = 1 << 16  // of Cloister's
)

// declared is one instruction that a note names; all addresses are the running ones.
type declared struct {
	name   string
	kind   uint32 // abi.SiteImm or abi.SiteBranch
	at     uint64
	length int
	off    int    // of the immediate, from at
	width  int    // of the immediate
	target uint64 // of the branch, when on
}

// notes is what a program says of itself.
type notes struct {
	sites     []declared // in the file's order
	safeWords []uint64
	safeRIPs  []uint64
	patchable bool
}

// readNotes reads the segments of notes: a stripped program has them too. The build id is hex, or "" where there is none.
func (m *image) readNotes(bias uint64) (id string, out notes, err error) {
	total, count := uint64(0), 0
	for _, s := range m.segments {
		if s.typ != elf.PT_NOTE {
			continue
		}
		if total += s.filesz; total > maxNotes {
			return "", notes{}, fmt.Errorf("it has more than %d bytes of notes: build it again", maxNotes)
		}
		b, err := m.read(s.off, s.filesz)
		if err != nil {
			return "", notes{}, err
		}
		align := uint64(4) // Elf64_Nhdr (System V gABI, "Note Section"): both parts are padded, since 2018 to 8 in segments of that alignment
		if s.align == 8 {
			align = 8
		}
		for at := uint64(0); at+12 <= uint64(len(b)); {
			nameLen, descLen, kind := uint64(le.Uint32(b[at:])), uint64(le.Uint32(b[at+4:])), le.Uint32(b[at+8:])
			descAt := (at + 12 + nameLen + align - 1) &^ (align - 1)
			if descAt+descLen > uint64(len(b)) {
				return "", notes{}, errors.New("its notes are damaged: build it again")
			}
			owner, desc := string(bytes.TrimRight(b[at+12:min(at+12+nameLen, at+12+maxOwner, uint64(len(b)))], "\x00")), b[descAt:descAt+descLen]
			at = (descAt + descLen + align - 1) &^ (align - 1)
			switch {
			case owner == "GNU" && kind == 3 && id == "": // NT_GNU_BUILD_ID
				if len(desc) > 64 {
					return "", notes{}, errors.New("its build id is longer than 64 bytes: build it again")
				}
				id = buildIDOf(desc)
			case owner == abi.NoteOwner:
				if count++; count > maxNoteCount {
					return "", notes{}, fmt.Errorf("it has more than %d notes of %s: build it again", maxNoteCount, abi.NoteOwner)
				}
				if err := out.add(kind, desc, s.vaddr+descAt+bias); err != nil {
					return "", notes{}, fmt.Errorf("its note %d of %s %w: build it again with this version's SDK", count, abi.NoteOwner, err)
				}
			}
		}
	}
	return id, out, nil
}

// maxOwner is more than the owner's name that we look for, bytes.
const maxOwner = 16

// add takes one note whose description runs at the address base. Kinds that it does not know are newer than it, and are passed over.
func (n *notes) add(kind uint32, b []byte, base uint64) error {
	// word gives the address in the field at off: a distance from the field itself.
	word := func(off int) uint64 { return base + uint64(off) + le.Uint64(b[off:]) }
	switch kind {
	case abi.NotePatchable:
		n.patchable = true
	case abi.NoteSafeWord, abi.NoteSafeRIP:
		if len(b) != 8 {
			return fmt.Errorf("has %d bytes, not the 8 of an address", len(b))
		}
		if kind == abi.NoteSafeWord {
			n.safeWords = append(n.safeWords, word(0))
		} else {
			n.safeRIPs = append(n.safeRIPs, word(0))
		}
	case abi.NoteSite:
		if len(b) < 24 {
			return errors.New("is too short for a site")
		}
		i := bytes.IndexByte(b[24:], 0)
		if i <= 0 || i > abi.SiteName || !oneLine(string(b[24:24+i]), abi.SiteName) || len(bytes.TrimRight(b[24+i:], "\x00")) > 0 {
			return fmt.Errorf("has no name of 1 to %d printable bytes", abi.SiteName)
		}
		length := le.Uint32(b[4:])
		if length == 0 || length > patch.MaxSite {
			return fmt.Errorf("is of an instruction of %d bytes", length)
		}
		d := declared{name: string(b[24 : 24+i]), kind: le.Uint32(b), at: word(8), length: int(length)}
		switch d.kind {
		case abi.SiteImm:
			off, width := le.Uint32(b[16:]), le.Uint32(b[20:])
			if width != 1 && width != 2 && width != 4 && width != 8 || off == 0 || off > length || width != length-off {
				return fmt.Errorf("puts an immediate of %d bytes at %d of an instruction of %d", width, off, length)
			}
			d.off, d.width = int(off), int(width)
		case abi.SiteBranch:
			if length != jmpLen {
				return fmt.Errorf("is of a branch of %d bytes, not %d", length, jmpLen)
			}
			d.target = word(16)
		default:
			return fmt.Errorf("is of an unknown kind of site, %d", d.kind)
		}
		n.sites = append(n.sites, d)
	}
	return nil
}

// named gives the sites of one name.
func (n *notes) named(name string) (out []declared) {
	for _, d := range n.sites {
		if d.name == name {
			out = append(out, d)
		}
	}
	return out
}
