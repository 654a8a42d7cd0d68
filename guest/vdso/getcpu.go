package vdso

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
)

// MaxVCPUs is how many vCPUs a page can tell getcpu of.
const MaxVCPUs = 64

// CPUs is the part of a page that says which CPU a vCPU is. getcpu finds the vCPU's own index in the limit of entry 15 of
// the GDT, where Linux keeps the number of the CPU: the VMM puts it there, and on the PVM back end, whose guests run on the
// host's GDT, KVM does.
type CPUs struct{ page *dataPage }

// CPUsOf gives the CPUs of the page at the start of page, PageSize bytes, 8-byte aligned and shared with the guest: a
// clock's data page or one of its own.
func CPUsOf(page []byte) (CPUs, error) {
	p, err := asPage(page)
	return CPUs{p}, err
}

// Set makes getcpu answer cpu, 0 or more, on vCPU vcpu, 0 to MaxVCPUs-1. It takes effect at once, and may be called from
// any goroutine. A vCPU that was not set asks by system call.
func (c CPUs) Set(vcpu, cpu int) {
	c.page[wordCPUs+vcpu].Store(uint64(cpu) + 1) // ORDER(none): one word
}

// getcpu is the function's place in names.
const getcpu = 4

// GetCPU gives the code of getcpu as it is at address at, for a page of CPUs at address page. Both lie within 2 GiB.
func GetCPU(at, page uint64) ([]byte, error) {
	text, entry, err := codeBytes()
	if err != nil {
		return nil, err
	}
	text = bytes.Clone(text[entry[getcpu]:])
	mark := binary.LittleEndian.AppendUint32(nil, pageMark)
	i := bytes.Index(text, mark)
	if i < 0 || bytes.Count(text, mark) != 1 {
		return nil, fmt.Errorf("build getcpu: no reference to its page; build Cloister with an unmodified assembler")
	}
	binary.LittleEndian.PutUint32(text[i:], uint32(int32(int64(page)-int64(at)-int64(i)-4)))
	return text, nil
}

// Redirect makes getcpu in a vDSO image jump to code at offset code from the image's first byte. It reports false for an
// image that has no getcpu, and fails for one that cannot be read.
//
// It reads the headers itself: debug/elf takes many times as long, and this is in the way of every start.
func Redirect(image []byte, code uint64) (bool, error) {
	broken := fmt.Errorf("read the vDSO: %d bytes that are no complete ELF image", len(image))
	part := func(at, n uint64) []byte {
		if at > uint64(len(image)) || n > uint64(len(image))-at {
			return nil
		}
		return image[at : at+n]
	}
	le := binary.LittleEndian
	const header, section, symbol, jump = 64, 64, 24, 5 // bytes; jump: JMP with a displacement of 32 bits
	h := part(0, header)
	if h == nil || string(h[:4]) != elf.ELFMAG || h[elf.EI_CLASS] != byte(elf.ELFCLASS64) || le.Uint16(h[58:]) != section {
		return false, broken
	}
	sections := part(le.Uint64(h[40:]), section*uint64(le.Uint16(h[60:])))
	if sections == nil {
		return false, broken
	}
	body := func(i uint64) []byte { // of section i
		if i >= uint64(len(sections)/section) {
			return nil
		}
		s := sections[i*section:]
		return part(le.Uint64(s[24:]), le.Uint64(s[32:]))
	}
	for i := range uint64(len(sections) / section) {
		s := sections[i*section:]
		if elf.SectionType(le.Uint32(s[4:])) != elf.SHT_DYNSYM {
			continue
		}
		symbols, strs := body(i), body(uint64(le.Uint32(s[40:])))
		for ; len(symbols) >= symbol; symbols = symbols[symbol:] {
			name, at, size := uint64(le.Uint32(symbols)), le.Uint64(symbols[8:]), le.Uint64(symbols[16:])
			if name >= uint64(len(strs)) || !bytes.HasPrefix(strs[name:], append([]byte(names[getcpu]), 0)) {
				continue
			}
			f := part(at, jump)
			if f == nil || size < jump {
				return false, fmt.Errorf("the vDSO's %s is %d bytes at %#x: not the code of a function", names[getcpu], size, at)
			}
			f[0] = 0xe9
			le.PutUint32(f[1:], uint32(int32(int64(code)-int64(at)-jump)))
			return true, nil
		}
		return false, nil
	}
	return false, fmt.Errorf("%w: it has no symbols", broken)
}
