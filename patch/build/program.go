package build

import (
	"bytes"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"

	"github.com/cloister-vmm/cloister/guest/abi"
	"github.com/cloister-vmm/cloister/patch"
)

// chunkSize is how much text is compared at a time, bytes.
const chunkSize = 1 << 20

// Program is a program's file beside its running image. Its methods may be called from several goroutines.
type Program struct {
	m       *image
	state   patch.State
	exec    []segment       // executable, by address
	applied []patch.Applied // that stand, oldest first
	symbols []symbol        // nil: stripped
	byName  map[string][]int
	entries []uint64 // addresses of patchable entries, ascending
	notes   notes
	stubs   map[uint64]uint64 // of functions chosen at start-up: resolver to PLT entry
	funcs   []int             // symbols that are functions with a size, by address
	bodies  *bodies
}

// Open reads the program's file, size bytes long, and compares it with what runs: text is the guest's text at the guest's own addresses. It refuses a file
// that is not the running program's. It keeps file, and reads no text after it has returned. Errors are one line: operation, object, remedy.
func Open(file io.ReaderAt, size int64, state patch.State, text io.ReaderAt) (*Program, error) {
	p := &Program{state: state, applied: slices.Clone(state.Applied), bodies: &bodies{known: map[[2]uint64]decoded{}}}
	sort.SliceStable(p.applied, func(a, b int) bool { return p.applied[a].Number < p.applied[b].Number })
	if err := p.open(file, size, text); err != nil {
		return nil, fmt.Errorf("open program %s: %w", state.Program, err)
	}
	return p, nil
}

func (p *Program) open(file io.ReaderAt, size int64, text io.ReaderAt) (err error) {
	if p.m, err = newImage(file, size); err != nil {
		return err
	}
	switch {
	case p.m.typ != elf.ET_EXEC && p.m.typ != elf.ET_DYN:
		return fmt.Errorf("an ELF file of type %v is no program: give the file that the VM runs", p.m.typ)
	case p.m.typ == elf.ET_EXEC && p.state.Bias != 0, p.state.Bias%abi.Page != 0, p.state.Bias >= 1<<47:
		return fmt.Errorf("it cannot run at bias %#x: give the file that the VM runs", p.state.Bias)
	}
	id, found, err := p.m.readNotes(p.state.Bias)
	if err != nil {
		return err
	}
	if id != p.state.BuildID {
		return fmt.Errorf("its build id is %s, the running program's is %s: give the file that the VM runs", orNone(id), orNone(p.state.BuildID))
	}
	p.notes = found
	for _, s := range p.m.segments {
		if s.typ == elf.PT_LOAD && s.flags&elf.PF_X != 0 && s.filesz > 0 {
			p.exec = append(p.exec, s)
		}
	}
	sort.Slice(p.exec, func(a, b int) bool { return p.exec[a].vaddr < p.exec[b].vaddr })
	if len(p.exec) == 0 {
		return errors.New("it has no executable segment: give the file that the VM runs")
	}
	for i, s := range p.exec {
		if i > 0 && p.exec[i-1].vaddr+p.exec[i-1].filesz > s.vaddr {
			return errors.New("its segments overlap: give the file that the VM runs")
		}
		if err := p.compare(s, text); err != nil {
			return err
		}
	}
	if err := p.readSymbols(); err != nil {
		return err
	}
	return p.readEntries()
}

func orNone(id string) string {
	if id == "" {
		return "none"
	}
	return id
}

// compare holds the running text of a segment against the file and the patches that stand.
func (p *Program) compare(s segment, text io.ReaderAt) error {
	at, end := s.vaddr+p.state.Bias, s.vaddr+p.state.Bias+s.filesz
	if !slices.ContainsFunc(p.state.Text, func(r patch.Range) bool { return at >= r.Start && end <= r.End }) {
		return fmt.Errorf("its text [%#x, %#x) is not the VM's: give the file that the VM runs", at, end)
	}
	for at < end {
		n := min(end-at, chunkSize)
		want, err := p.code(at, n)
		if err != nil {
			return err
		}
		got := make([]byte, n)
		if k, err := text.ReadAt(got, int64(at)); uint64(k) != n {
			return fmt.Errorf("read the running text at %#x: %w", at, orShort(err))
		}
		if !bytes.Equal(got, want) {
			i := 0
			for got[i] == want[i] {
				i++
			}
			return fmt.Errorf("text is not what we think: at %#x runs %#02x, the file and the patches that stand say %#02x: nobody else may patch the VM, and its file may not change: start it again", at+uint64(i), got[i], want[i])
		}
		at += n
	}
	return nil
}

func orShort(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

var errNotText = errors.New("is not in the program's text")

// code gives n bytes of text at a running address: the file's, under the sites of the patches that stand. Open has proved that they run.
func (p *Program) code(at, n uint64) ([]byte, error) {
	for _, s := range p.exec {
		if start := s.vaddr + p.state.Bias; at >= start && at-start < s.filesz && n <= s.filesz-(at-start) {
			b, err := p.m.read(s.off+(at-start), n)
			if err != nil {
				return nil, err
			}
			for _, a := range p.applied {
				for _, site := range a.Sites {
					overlay(b, at, site)
				}
			}
			return b, nil
		}
	}
	return nil, fmt.Errorf("%#x %w", at, errNotText)
}

// codeUpTo is code for the bytes that are there, at most n.
func (p *Program) codeUpTo(at, n uint64) []byte {
	for _, s := range p.exec {
		if start := s.vaddr + p.state.Bias; at >= start && at-start < s.filesz {
			b, err := p.code(at, min(n, s.filesz-(at-start)))
			if err != nil {
				return nil // cannot be read: nothing is known of it, and what needs it refuses
			}
			return b
		}
	}
	return nil
}

func (p *Program) isText(at uint64) bool { return len(p.codeUpTo(at, 1)) == 1 }

// loaded says that an address is in the program's image.
func (p *Program) loaded(at uint64) bool {
	return slices.ContainsFunc(p.m.segments, func(s segment) bool { return s.typ == elf.PT_LOAD && at-(s.vaddr+p.state.Bias) < s.memsz })
}

// overlay puts a site's new bytes over b, which is at the address at.
func overlay(b []byte, at uint64, s patch.Site) {
	lo, hi := max(s.Addr, at), min(s.Addr+uint64(len(s.New)), at+uint64(len(b)))
	if lo < hi {
		copy(b[lo-at:hi-at], s.New[lo-s.Addr:])
	}
}

// patched gives the latest patch that stands at exactly this site, or one that overlaps it otherwise.
func (p *Program) patched(at uint64, n int) (number uint64, site patch.Site, exact bool) {
	for _, a := range p.applied {
		for _, s := range a.Sites {
			if s.Addr < at+uint64(n) && at < s.Addr+uint64(len(s.New)) {
				number, site, exact = a.Number, s, s.Addr == at && len(s.New) == n
			}
		}
	}
	return number, site, exact
}

// BuildID gives the program's GNU build id in hexadecimal, or "" where it has none.
func (p *Program) BuildID() string { return p.state.BuildID }

// AtRest gives the State and the text of a program that does not run, as if it ran unpatched with all that it could declare: a bundle for it can be
// checked when it is made. file is size bytes long; name is for messages.
func AtRest(file io.ReaderAt, size int64, name string) (patch.State, io.ReaderAt, error) {
	bad := func(err error) (patch.State, io.ReaderAt, error) {
		return patch.State{}, nil, fmt.Errorf("open program %s: %w", name, err)
	}
	m, err := newImage(file, size)
	if err != nil {
		return bad(err)
	}
	s := patch.State{Program: name, SafePoints: true}
	if m.typ == elf.ET_DYN {
		s.Bias = abi.PIEBase
	}
	if s.BuildID, _, err = m.readNotes(s.Bias); err != nil {
		return bad(err)
	}
	end := s.Bias
	for _, g := range m.segments {
		if g.typ != elf.PT_LOAD {
			continue
		}
		if g.memsz > 1<<40 {
			return bad(errors.New("a segment is larger than any memory: build it again"))
		}
		end = max(end, s.Bias+g.vaddr+max(g.memsz, g.filesz))
		if g.flags&elf.PF_X != 0 && g.filesz > 0 {
			s.Text = append(s.Text, patch.Range{Start: s.Bias + g.vaddr, End: s.Bias + g.vaddr + g.filesz})
		}
	}
	end = (end + abi.Page - 1) &^ (abi.Page - 1)
	s.SpareText = patch.Space{Start: end, End: end + abi.PatchSpace, Used: end}
	s.SpareData = patch.Space{Start: end + abi.PatchSpace, End: end + 2*abi.PatchSpace, Used: end + abi.PatchSpace}
	return s, &atRest{m, s.Bias}, nil
}

// atRest reads the text of a program from its file.
type atRest struct {
	m    *image
	bias uint64
}

// ReadAt reads within one executable segment.
func (a *atRest) ReadAt(b []byte, at int64) (int, error) {
	for _, s := range a.m.segments {
		if start := s.vaddr + a.bias; s.typ == elf.PT_LOAD && s.flags&elf.PF_X != 0 && uint64(at) >= start && uint64(at)-start < s.filesz {
			got, err := a.m.read(s.off+(uint64(at)-start), min(uint64(len(b)), s.filesz-(uint64(at)-start)))
			if n := copy(b, got); n < len(b) || err != nil {
				return n, orShort(err)
			}
			return len(b), nil
		}
	}
	return 0, io.EOF
}

// readEntries finds the entries that -fpatchable-function-entry declared: addresses of the first NOP of a function, one a word, in sections of that name.
func (p *Program) readEntries() error {
	p.entries = nil
	for i := range p.m.sections {
		s := &p.m.sections[i]
		if s.name != "__patchable_function_entries" || s.typ == elf.SHT_NOBITS {
			continue
		}
		b, err := p.m.data(s, maxTable)
		if err != nil {
			return err
		}
		// In a position-independent program the linker may leave the word 0 and put the address into a relocation.
		relative, err := p.relative(s)
		if err != nil {
			return err
		}
		for off := 0; off+8 <= len(b); off += 8 {
			at := le.Uint64(b[off:])
			if a, ok := relative[s.addr+uint64(off)]; ok {
				at = a
			}
			// 0 is what a linker leaves of a function that it dropped.
			if at += p.state.Bias; at != p.state.Bias && p.isText(at) {
				p.entries = append(p.entries, at)
			}
		}
	}
	slices.Sort(p.entries)
	p.entries = slices.Compact(p.entries)
	return nil
}

// relative gives the words of a section that start-up code fills with an address of the program, by their own addresses.
func (p *Program) relative(of *section) (map[uint64]uint64, error) {
	out := map[uint64]uint64{}
	if p.m.typ != elf.ET_DYN {
		return out, nil
	}
	for i := range p.m.sections {
		s := &p.m.sections[i]
		if s.typ != elf.SHT_RELA || !s.has(elf.SHF_ALLOC) {
			continue
		}
		rs, err := p.m.relas(s)
		if err != nil {
			return nil, err
		}
		for _, r := range rs {
			if r.typ == elf.R_X86_64_RELATIVE && r.off >= of.addr && r.off-of.addr < of.size {
				out[r.off] = uint64(r.addend)
			}
		}
	}
	return out, nil
}

// buildIDOf is the description of an NT_GNU_BUILD_ID.
func buildIDOf(desc []byte) string { return hex.EncodeToString(desc) }
