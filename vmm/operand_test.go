package vmm

import (
	"encoding/hex"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/internal/kvm"
	"golang.org/x/arch/x86/x86asm"
)

const atRIP, atFS, atGS = 0x40_1000, 0x7000_0000_0000, 0x6000_0000_0000

// apart are registers that differ in every way that matters: no sum of two is a third one.
func apart() *kvm.Regs {
	return &kvm.Regs{RAX: 1 << 20, RCX: 3 << 21, RDX: 5 << 23, RBX: 7 << 25, RSP: 11 << 27, RBP: 13 << 29, RSI: 17<<31 + 8, RDI: 19<<33 + 16,
		R8: 23<<20 + 32, R9: 29<<21 + 64, R10: 31<<23 + 128, R11: 37<<25 + 256, R12: 41<<27 + 512, R13: 43<<29 + 1024, R14: 47<<31 + 2048, R15: 53 << 33, RIP: atRIP}
}

// TestOperands: the encodings that x86asm gets wrong (as(1) of binutils 2.44 made the bytes), and those that name no operand.
func TestOperands(t *testing.T) {
	r := apart()
	for _, c := range []struct {
		code, what string
		want       uint64
	}{
		{"c5fe6f07", "vmovdqu (%rdi),%ymm0", r.RDI},
		{"c4c17e6f4710", "vmovdqu 0x10(%r15),%ymm0", r.R15 + 0x10},
		{"c4a17e7f4c8008", "vmovdqu %ymm1,0x8(%rax,%r8,4)", r.RAX + 4*r.R8 + 8},
		{"c5fc28051f000000", "vmovaps 0x1f(%rip),%ymm0", atRIP + 8 + 0x1f},
		{"c5f8c6051f00000001", "vshufps $1,0x1f(%rip),%xmm0,%xmm0", atRIP + 9 + 0x1f},
		{"c4e37d18051f00000001", "vinsertf128 $1,0x1f(%rip),%ymm0,%ymm0", atRIP + 10 + 0x1f},
		{"c4e2fbf60e", "mulx (%rsi),%rax,%rcx", r.RSI},
		{"62f1fe486f07", "vmovdqu64 (%rdi),%zmm0", r.RDI},
		{"62f1fe486f4701", "vmovdqu64 0x40(%rdi),%zmm0", r.RDI + 0x40},
		{"62f1fe286f47ff", "vmovdqu64 -0x20(%rdi),%ymm0", r.RDI - 0x20},
		{"62f1fe486f8741000000", "vmovdqu64 0x41(%rdi),%zmm0", r.RDI + 0x41},
		{"6291fe486f04f7", "vmovdqu64 (%r15,%r14,8),%zmm0", r.R15 + 8*r.R14},
		{"62b1fe486f04c0", "vmovdqu64 (%rax,%r8,8),%zmm0", r.RAX + 8*r.R8},
		{"62e17e00584f10", "vaddss 0x40(%rdi),%xmm16,%xmm17", r.RDI + 0x40},
		{"62e1ff00584f08", "vaddsd 0x40(%rdi),%xmm16,%xmm17", r.RDI + 0x40},
		{"62e1fd082e4f08", "vucomisd 0x40(%rdi),%xmm17", r.RDI + 0x40},
		{"62e27d48304f02", "vpmovzxbw 0x40(%rdi),%zmm17", r.RDI + 0x40},
		{"62e27d48244f04", "vpmovsxwq 0x40(%rdi),%zmm17", r.RDI + 0x40},
		{"62e17d50fe4f10", "vpaddd 0x40(%rdi){1to16},%zmm16,%zmm17", r.RDI + 0x40},
		{"62e27d48784f40", "vpbroadcastb 0x40(%rdi),%zmm17", r.RDI + 0x40},
		{"62e2fd48194f08", "vbroadcastsd 0x40(%rdi),%zmm17", r.RDI + 0x40},
		{"62f17520744702", "vpcmpeqb 0x40(%rdi),%ymm17,%k0", r.RDI + 0x40},
		{"62e17540da5701", "vpminub 0x40(%rdi),%zmm17,%zmm18", r.RDI + 0x40},
		{"62e17e485b4f01", "vcvttps2dq 0x40(%rdi),%zmm17", r.RDI + 0x40},
		{"64488b042500000000", "mov %fs:0,%rax", atFS},
		{"65488b4310", "mov %gs:0x10(%rbx),%rax", atGS + r.RBX + 0x10},
		{"64a14142434445464748", "movabs %fs:…,%eax", atFS + 0x4847464544434241},
		{"67a141424344", "addr32 mov 0x44434241,%eax", 0x44434241},
		{"d7", "xlat", r.RBX},
		{"f3a4", "rep movsb, from", r.RSI},
		{"f3a4", "rep movsb, to", r.RDI},
		{"64a4", "movsb from %fs", atFS + r.RSI},
		{"64a4", "movsb from %fs, to", r.RDI},
		{"f3aa", "rep stosb", r.RDI},
		{"660ff7c1", "maskmovdqu", r.RDI},
		{"660f38f80e", "movdir64b (%rsi),%rcx, from", r.RSI},
		{"660f38f80e", "movdir64b (%rsi),%rcx, to", r.RCX},
		{"50", "push %rax", r.RSP - 8},
		{"5d", "pop %rbp", r.RSP},
		{"c3", "ret", r.RSP},
		{"c9", "leave", r.RBP},
		{"ff5310", "call *0x10(%rbx), the word", r.RBX + 0x10},
		{"ff5310", "call *0x10(%rbx), the stack", r.RSP - 8},
		{"6766c70534120000cdab", "addr32 movw $0xabcd,0x1234(%eip)", atRIP + 10 + 0x1234},
		{"f605341200007f", "testb $0x7f,0x1234(%rip)", atRIP + 7 + 0x1234},
		{"f71534120000", "notl 0x1234(%rip)", atRIP + 6 + 0x1234},
	} {
		code, err := hex.DecodeString(c.code)
		if err != nil {
			t.Fatal(err)
		}
		list := operands(append(code, 0x90, 0x90), r, atFS, atGS)
		if code[0] == 0x62 && list[0] != c.want {
			t.Errorf("%s (%s): %#x is first", c.what, c.code, list[0])
		}
		if !slices.Contains(list, c.want) {
			t.Errorf("%s (%s): %#x is not in %#x", c.what, c.code, c.want, list)
		}
		for n := range code { // as far as the next page: whatever comes, no panic
			operands(code[:n], r, atFS, atGS)
		}
	}
	if list := operands([]byte{0x48, 0x89, 0xc8}, r, 0, 0); len(list) != 0 {
		t.Errorf("mov %%rcx,%%rax names %#x", list)
	}
}

// effective is the address that x86asm reads out of the same bytes.
func effective(in x86asm.Inst, m x86asm.Mem, r *kvm.Regs) (a uint64, ok bool) {
	all := registersInOrder(r)
	value := func(reg x86asm.Reg) uint64 {
		switch {
		case reg == 0:
			return 0
		case reg == x86asm.RIP || reg == x86asm.EIP:
			return atRIP + uint64(in.Len)
		case reg >= x86asm.EAX && reg <= x86asm.R15L:
			return all[reg-x86asm.EAX]
		case reg >= x86asm.RAX && reg <= x86asm.R15:
			return all[reg-x86asm.RAX]
		}
		ok = false
		return 0
	}
	ok = true
	if in.Opcode>>26 != 0xa0>>2 { // but for MOV with an absolute address: x86asm leaves the sign of 32 bits out
		m.Disp = int64(int32(m.Disp))
	}
	a = value(m.Base) + value(m.Index)*uint64(m.Scale) + uint64(m.Disp)
	if in.AddrSize == 32 {
		a = uint64(uint32(a))
	}
	switch m.Segment {
	case x86asm.FS:
		a += atFS
	case x86asm.GS:
		a += atGS
	}
	return a, ok
}

func agree(t *testing.T, code []byte) (compared bool) {
	t.Helper()
	r := apart()
	list := operands(code, r, atFS, atGS)
	in, err := x86asm.Decode(code, 64)
	if err != nil || in.Op == x86asm.LEA || in.Op == x86asm.NOP {
		return false
	}
	for i, p := range in.Prefix {
		if p == 0 {
			break
		}
		// x86asm keeps only some of many prefixes, and takes VEX and EVEX for some of them.
		if i > 3 || p.IsVEX() || p.IsEVEX() {
			return false
		}
	}
	if strings.HasPrefix(in.Op.String(), "PREFETCH") {
		return false // touches nothing
	}
	for _, arg := range in.Args {
		m, isMem := arg.(x86asm.Mem)
		if !isMem || in.Op == x86asm.XLATB {
			continue
		}
		if a, ok := effective(in, m, r); ok {
			compared = true
			if !slices.Contains(list, a) {
				t.Errorf("%x (%v): %#x is not in %#x", code[:in.Len], in, a, list)
			}
		}
	}
	return compared
}

// TestOperandsAgree holds the decoder against golang.org/x/arch/x86/x86asm on random bytes, but for VEX and EVEX, which that takes for prefixes.
func TestOperandsAgree(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	n := 0
	for range 200_000 {
		code := make([]byte, 15)
		for i := range code {
			code[i] = byte(rnd.Uint32())
		}
		switch rnd.IntN(4) { // more of what is rare
		case 0:
			code[0] = 0x0f
		case 1:
			code[0], code[1] = 0x40|code[0]&15, 0x0f
		case 2:
			code[0] = []byte{0x64, 0x65, 0x66, 0x67, 0xf2, 0xf3}[rnd.IntN(6)]
		}
		if agree(t, code) {
			n++
		}
		if t.Failed() && n > 20 {
			break
		}
	}
	t.Logf("%d instructions with an operand in memory", n)
	if n < 50_000 {
		t.Errorf("only %d instructions were compared", n)
	}
}

func FuzzOperands(f *testing.F) {
	f.Add([]byte{0x48, 0x8b, 0x04, 0x25, 1, 2, 3, 4})
	f.Add([]byte{0x62, 0xf1, 0xfe, 0x48, 0x6f, 0x47, 0x01})
	f.Fuzz(func(t *testing.T, code []byte) { agree(t, code) })
}
