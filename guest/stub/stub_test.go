package stub

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/guest/abi"
	"golang.org/x/arch/x86/x86asm"
)

// listing is what a page must hold: the instructions from each offset on, in GNU syntax, with jump targets
// as offsets in the supervisor block, or data. Every byte that is in no listing must be INT3.
type listing map[int][]string

const done = "+0x40c0"

func userListing() listing {
	return listing{
		0x00: {"out %al,$0x80", "rex.W sysretq"},
		0x40: {"lock orb $0x0,(%rdi)", "add $0x1000,%rdi", "cmp %rsi,%rdi", "jb +0x4040", "jmp " + done},
		0x80: {"mov (%rdi),%al", "add $0x1000,%rdi", "cmp %rsi,%rdi", "jb +0x4080", "jmp " + done},
		0xc0: {"out %al,$0x80"},

		0x100: {"pause", "cmpl $0x0,(%rdi)", "je +0x4100", "jmp " + done},
		0x200: {".long 0"},
	}
}

func exceptionListing() listing {
	l := listing{
		0x400: {"hlt", "jmp " + done},
		0x410: {"out %al,$0x82", "jmp " + done},
		0x420: {fmt.Sprintf("mov %#x,%%al", uint64(abi.MMIOHole)), "jmp " + done},
	}
	for v := range 32 {
		l[v*ExceptionStep] = []string{fmt.Sprintf("out %%al,$%#x", 0x20+v)}
	}
	return l
}

// disassemble compares a page at offset at of the supervisor block with its listing.
func disassemble(page []byte, at int, want listing) (wrong []string) {
	rest := bytes.Clone(page)
	for off, lines := range want {
		pc := off
		for _, line := range lines {
			if line == ".long 0" && bytes.Equal(page[pc:pc+4], make([]byte, 4)) {
				copy(rest[pc:], []byte{0xcc, 0xcc, 0xcc, 0xcc})
				continue
			}
			in, err := x86asm.Decode(page[pc:], 64)
			if err != nil {
				wrong = append(wrong, fmt.Sprintf("+%#x: %v, want %s", at+pc, err, line))
				break
			}
			if got := text(in, at+pc); got != line {
				wrong = append(wrong, fmt.Sprintf("+%#x: %s, want %s", at+pc, got, line))
			}
			for i := range in.Len {
				rest[pc+i] = 0xcc
			}
			pc += in.Len
		}
	}
	for i, b := range rest {
		if b != 0xcc {
			wrong = append(wrong, fmt.Sprintf("+%#x: byte %#02x in no listing", at+i, b))
		}
	}
	return wrong
}

// text writes an instruction as the listings do.
func text(in x86asm.Inst, at int) string {
	if rel, ok := in.Args[0].(x86asm.Rel); ok {
		return fmt.Sprintf("%s +%#x", strings.ToLower(in.Op.String()), at+in.Len+int(rel))
	}
	return strings.Join(strings.Fields(strings.ReplaceAll(x86asm.GNUSyntax(in, 0, nil), ", ", ",")), " ")
}

func TestUserPage(t *testing.T) {
	for _, w := range disassemble(UserPage(), User, userListing()) {
		t.Error(w)
	}
}

func TestExceptionPage(t *testing.T) {
	for _, w := range disassemble(ExceptionPage(), Exceptions, exceptionListing()) {
		t.Error(w)
	}
}

// TestEveryByteCounts: a change of any byte of code, and of filler between, is seen.
func TestEveryByteCounts(t *testing.T) {
	for _, c := range []struct {
		page []byte
		at   int
		want listing
	}{{UserPage(), User, userListing()}, {ExceptionPage(), Exceptions, exceptionListing()}} {
		for i := range c.page {
			if c.page[i] == 0xcc && i%37 != 0 {
				continue // filler: a sample
			}
			for _, x := range []byte{0x01, 0x80} {
				p := bytes.Clone(c.page)
				p[i] ^= x
				if len(disassemble(p, c.at, c.want)) == 0 {
					t.Errorf("+%#x: %#02x for %#02x is not seen", c.at+i, p[i], c.page[i])
				}
			}
		}
	}
}

// TestEntriesMatchListings: the exported addresses are where the listings begin, and inside their pages.
func TestEntriesMatchListings(t *testing.T) {
	for _, c := range []struct {
		addr uint64
		page int
		want listing
	}{
		{SyscallEntry, User, userListing()}, {TouchWrite, User, userListing()}, {TouchRead, User, userListing()}, {SpinFlag, User, userListing()}, {abi.SupVA + FlagOffset, User, userListing()}, {Done, User, userListing()},
		{Exception, Exceptions, exceptionListing()}, {Exception + 31*ExceptionStep, Exceptions, exceptionListing()},
		{ProvokeHLT, Exceptions, exceptionListing()}, {ProvokePIO, Exceptions, exceptionListing()}, {ProvokeMMIO, Exceptions, exceptionListing()},
	} {
		if off := int(c.addr-abi.SupVA) - c.page; c.want[off] == nil {
			t.Errorf("%#x: no listing begins at +%#x", c.addr, off)
		}
	}
	if abi.SupVA+User+0xc0 != Done || done != fmt.Sprintf("+%#x", uint64(Done-abi.SupVA)) {
		t.Errorf("Done is %#x", uint64(Done))
	}
	if len(UserPage()) != abi.Page || len(ExceptionPage()) != abi.Page || RSP0(1) != abi.SupVA+Stack(1)+abi.Page || TSS(1) != RingCode(0)+abi.Page || RingCode(MaxVCPUs-1)+abi.Page != Tables {
		t.Error("a page is not a page")
	}
}

// TestPortsDiffer: no port of an exception or routine is another's.
func TestPortsDiffer(t *testing.T) {
	seen := map[int]bool{}
	for _, p := range []int{abi.PortSyscall, abi.DiagPort} {
		seen[p] = true
	}
	for v := range 32 {
		if p := abi.PortException + v; seen[p] || p > 0xff {
			t.Errorf("port %#x of vector %d is taken or too large for OUT imm8", p, v)
		}
	}
}
