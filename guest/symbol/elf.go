package symbol

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
)

// Bounds on what an untrusted file can make us hold. Ordinary programs stay far below them; what is
// beyond is left out of the table, never read in part.
const (
	maxHeaders  = 4096     // section and program headers, each
	maxSectStr  = 64 << 10 // bytes of section names
	maxSection  = 64 << 20 // bytes of one section, after decompression
	maxDebug    = 256 << 20
	maxNameLen  = 64 << 10 // bytes of one mangled name
	maxSymbols  = 4 << 20
	maxFDEs     = 4 << 20
	elfHeader64 = 64 // sizes of the ELF64 structures (System V gABI, "ELF Header", "Sections")
	elfSection  = 64
	elfSym64    = 24
)

// openFile opens without waiting for the writer of a FIFO.
func openFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// preflight refuses headers that would make debug/elf hold more than a few hundred MiB: it copies the
// name of every section out of one string table, and both sizes are the file's to choose.
func preflight(r io.ReaderAt) error {
	var h [elfHeader64]byte
	if _, err := r.ReadAt(h[:], 0); err != nil {
		return errors.New("file is shorter than an ELF header")
	}
	if string(h[:4]) != elf.ELFMAG || elf.Class(h[elf.EI_CLASS]) != elf.ELFCLASS64 || elf.Data(h[elf.EI_DATA]) != elf.ELFDATA2LSB {
		return errors.New("not a 64-bit little-endian ELF file")
	}
	le := binary.LittleEndian
	shoff := le.Uint64(h[40:])
	phnum, shnum, shstr := le.Uint16(h[56:]), le.Uint16(h[60:]), le.Uint16(h[62:])
	switch {
	case phnum > maxHeaders || shnum > maxHeaders:
		return fmt.Errorf("more than %d headers", maxHeaders)
	case shoff == 0:
		return nil
	case shnum == 0 || le.Uint16(h[58:]) != elfSection || shoff > 1<<62:
		return errors.New("section headers are malformed")
	case shstr >= shnum:
		return nil // debug/elf reports it
	}
	var s [elfSection]byte
	if _, err := r.ReadAt(s[:], int64(shoff)+int64(shstr)*elfSection); err != nil {
		return errors.New("section headers lie outside the file")
	}
	if le.Uint64(s[32:]) > maxSectStr {
		return fmt.Errorf("section names are longer than %d bytes", maxSectStr)
	}
	return nil
}

// openELF is elf.NewFile for a file that may be hostile.
func openELF(r io.ReaderAt) (f *elf.File, err error) {
	if err := preflight(r); err != nil {
		return nil, err
	}
	defer func() {
		if p := recover(); p != nil {
			f, err = nil, errors.New("ELF headers are malformed")
		}
	}()
	if f, err = elf.NewFile(r); err != nil {
		return nil, err
	}
	if f.Machine != elf.EM_X86_64 || f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return nil, fmt.Errorf("an %v file for %v is no x86-64 program", f.Type, f.Machine)
	}
	return f, nil
}

// section reads one section whole, or nothing when it is absent, too large or damaged.
func section(f *elf.File, limit uint64, names ...string) (*elf.Section, []byte) {
	for _, name := range names {
		if s := f.Section(name); s != nil && s.Type != elf.SHT_NOBITS && s.Size <= limit {
			if b, err := s.Data(); err == nil {
				return s, b
			}
		}
	}
	return nil, nil
}

// extent is a half-open range of link-time addresses.
type extent struct{ lo, hi uint64 }

func (e extent) has(a uint64) bool { return a >= e.lo && a < e.hi }

// image is the loadable part of the file, for the few readers that need code bytes.
type image struct {
	loads []*elf.Prog
	exec  []extent
	stubs []extent // sections of PLT entries: jumps that push nothing
}

func newImage(f *elf.File) image {
	var m image
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD || p.Memsz == 0 || p.Vaddr+p.Memsz < p.Vaddr {
			continue
		}
		m.loads = append(m.loads, p)
		if p.Flags&elf.PF_X != 0 {
			m.exec = append(m.exec, extent{p.Vaddr, p.Vaddr + p.Memsz})
		}
	}
	for _, x := range f.Sections {
		// A static program's PLT (for functions chosen at start-up) has no lazy-binding entry 0,
		// which would push. Dynamic ones are not our guests.
		if strings.HasPrefix(x.Name, ".plt") || x.Name == ".iplt" {
			m.stubs = append(m.stubs, extent{x.Addr, x.Addr + min(x.Size, maxSection)})
		}
	}
	return m
}

func (m image) isStub(a uint64) bool {
	for _, e := range m.stubs {
		if e.has(a) {
			return true
		}
	}
	return false
}

func (m image) isCode(a uint64) bool {
	for _, e := range m.exec {
		if e.has(a) {
			return true
		}
	}
	return false
}

// bytes reads up to n file-backed bytes at a link-time address; fewer at the end of a segment.
func (m image) bytes(a uint64, n int) []byte {
	for _, p := range m.loads {
		if off := a - p.Vaddr; a >= p.Vaddr && off < p.Filesz {
			b := make([]byte, min(uint64(n), p.Filesz-off))
			k, _ := p.ReadAt(b, int64(off)) // a short read is a truncated file: less is known
			return b[:k]
		}
	}
	return nil
}
