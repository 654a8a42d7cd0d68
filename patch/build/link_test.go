package build

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/testenv"
)

// randomObject is an object in assembly, of sections that refer to each other and to the program in every way that a compiler does.
func randomObject(r *rand.Rand, far bool) string {
	symbols := []string{"filter", "own_text", "own_ro", "own_data", "own_bss", "gain", "scale", "title", "printf", "main", "hole", "own_text2", "number"}
	addend := func() string {
		if far && r.IntN(8) == 0 {
			return fmt.Sprintf("%+d", r.Int64N(1<<32-1<<16)-(1<<31-1<<15))
		}
		return fmt.Sprintf("%+d", r.IntN(4096)-2048)
	}
	data := func() string {
		s := symbols[r.IntN(len(symbols))]
		switch r.IntN(5) {
		case 0:
			return fmt.Sprintf(".long %s - . %s\n", s, addend())
		case 1:
			return fmt.Sprintf(".quad %s - . %s\n", s, addend())
		case 2:
			return fmt.Sprintf(".long %s %s\n", s, addend())
		case 3:
			return fmt.Sprintf(".byte %d\n.balign %d\n", r.IntN(256), 1<<r.IntN(6))
		}
		return fmt.Sprintf(".quad %s %s\n", s, addend())
	}
	code := func() string {
		s := symbols[r.IntN(len(symbols)-1)] // the assembler has no GOT for a number
		switch r.IntN(9) {
		case 0:
			return fmt.Sprintf("call %s\n", s)
		case 1:
			return fmt.Sprintf("lea %s%s(%%rip), %%rax\n", s, addend())
		case 2:
			return fmt.Sprintf("mov %s@GOTPCREL(%%rip), %%rax\n", s)
		case 3:
			return fmt.Sprintf("cmpl $0, %s@GOTPCREL(%%rip)\n", s)
		case 4:
			return fmt.Sprintf("movabs $%s%s, %%rax\n", s, addend())
		case 5:
			return fmt.Sprintf("mov $%s%s, %%eax\n", s, addend())
		case 6:
			return fmt.Sprintf("mov $%s%s, %%rax\n", s, addend())
		case 7:
			return fmt.Sprintf("jmp %s@PLT\n", s)
		}
		return fmt.Sprintf("movl $1234, %s%s(%%rip)\n", s, addend())
	}
	var b strings.Builder
	fill := func(f func() string) {
		for range 1 + r.IntN(12) {
			b.WriteString(f())
		}
	}
	b.WriteString(".weak hole\n.globl filter, own_text\n.set number, 0x12345\n.text\nfilter: nop\n.type filter, @function\n")
	fill(code)
	b.WriteString("own_text: nop\n")
	fill(code)
	b.WriteString(".section .text.unlikely, \"ax\"\nown_text2: nop\n")
	fill(code)
	fmt.Fprintf(&b, ".section .rodata\n.balign %d\nown_ro: .byte 1\n", 1<<r.IntN(7))
	fill(data)
	fmt.Fprintf(&b, ".data\n.balign %d\nown_data: .byte 2\n", 1<<r.IntN(7))
	fill(data)
	b.WriteString(".section .data.rel.ro, \"aw\"\n.byte 3\n")
	fill(data)
	fmt.Fprintf(&b, ".bss\n.balign %d\nown_bss: .skip %d\n", 1<<r.IntN(7), 1+r.IntN(5000))
	return b.String()
}

// TestRelocatesAsLd compares random objects with what ld makes of them at the same addresses, or refuses.
func TestRelocatesAsLd(t *testing.T) {
	testenv.Need(t, testenv.Tool("ld"), testenv.Tool("gcc"))
	n := 60
	if testing.Short() {
		n = 12
	}
	for _, b := range builds[:2] {
		file := targetFile(t, b.cc)
		linked := 0
		for seed := range n {
			t.Run(fmt.Sprintf("%s %d", b.name, seed), func(t *testing.T) {
				src := randomObject(rand.New(rand.NewPCG(uint64(seed), 1)), seed%3 == 0)
				obj := compile(t, "gcc", map[string]string{"new.s": src}, "-c")
				if compareWithLd(t, file, obj) {
					linked++
				}
				if t.Failed() {
					t.Log(src)
				}
			})
		}
		if linked < n/4 || linked == n {
			t.Errorf("%s: %d of %d were linked: too few, or none was refused", b.name, linked, n)
		}
	}
}

// TestGOTBase runs code that computes addresses from that of the GOT.
func TestGOTBase(t *testing.T) {
	for _, b := range builds[:2] {
		g := start(t, targetFile(t, b.cc))
		for _, extra := range []string{"", "mov gain@GOTPCREL(%rip), %rsi\nmov (%rsi), %rsi\nsub $3, %rsi\nadd %rsi, %rdi\n"} {
			obj := compile(t, "gcc", map[string]string{"new.s": `.text
				.globl filter
				.type filter, @function
				filter: ` + extra + `lea _GLOBAL_OFFSET_TABLE_(%rip), %rax
				movabs $mine@GOTOFF, %rdx
				mov (%rax,%rdx), %rcx
				movabs $gain@GOTOFF, %rdx
				add (%rax,%rdx), %rcx
				lea (%rcx,%rdi), %rax
				ret
				.data
				.quad 0
				mine: .quad 1000`}, "-c")
			g.apply(g.plan(replaceWith(obj)).Plan)
			if got := g.call("filter", 5); got != 1008 {
				t.Errorf("%s %q: filter(5) = %d, want 1008", b.name, extra, got)
			}
			g.reset()
		}
	}
}
