package stub

import (
	"encoding/binary"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// Offsets in the supervisor block, bytes.
const (
	IDT        = 0x1000
	Exceptions = 0x3000
	User       = 0x4000
	PerVCPU    = 0x10000 // for each vCPU: TSS, stack, ring page, ring stub
	Tables     = PerVCPU + MaxVCPUs*4*abi.Page
)

// MaxVCPUs is how many vCPUs the block has room for.
const MaxVCPUs = 64

// TSS is the offset of vCPU i's task state segment, i from 0 to MaxVCPUs-1.
func TSS(i int) uint64 { return PerVCPU + uint64(i)*4*abi.Page }

// GDT is the offset of its descriptor table, on the page of the TSS.
func GDT(i int) uint64 { return TSS(i) + abi.Page/2 }

// Stack is the offset of the page of its supervisor stack.
func Stack(i int) uint64 { return TSS(i) + abi.Page }

// StackTop is the end of that stack.
func StackTop(i int) uint64 { return Stack(i) + abi.Page }

// RSP0 is the guest address of StackTop(i).
func RSP0(i int) uint64 { return abi.SupVA + StackTop(i) }

// Guest addresses.
const (
	SyscallEntry = abi.SupVA + User         // LSTAR
	TouchWrite   = abi.SupVA + User + 0x40  // RDI, RSI: make every page of [RDI,RSI) present and writable
	TouchRead    = abi.SupVA + User + 0x80  // RDI, RSI: make every page readable
	Done         = abi.SupVA + User + 0xc0  // leaves the guest: a routine has ended
	Exception    = abi.SupVA + Exceptions   // stub of vector 0
	SpinFlag     = abi.SupVA + User + 0x100 // RDI: spin until the word at RDI is not 0
	FlagOffset   = User + 0x200             // of such a word in the block; CPL 3 can read it
	ProvokeHLT   = abi.SupVA + Exceptions + 0x400
	ProvokePIO   = abi.SupVA + Exceptions + 0x410
	ProvokeMMIO  = abi.SupVA + Exceptions + 0x420
)

// ExceptionStep is the distance between two exception stubs, bytes.
const ExceptionStep = 16

// UserPage is the page that CPL 3 may execute.
func UserPage() []byte {
	p := filled()
	put(p, 0x00, // LSTAR. RCX = return address, R11 = RFLAGS
		0xe6, abi.PortSyscall, // out %al,$0x80
		0x48, 0x0f, 0x07) // sysretq
	put(p, 0x40,
		0xf0, 0x80, 0x0f, 0x00, // lock orb $0,(%rdi)    writes without changing
		0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add $4096,%rdi
		0x48, 0x39, 0xf7, // cmp %rsi,%rdi
		0x72, 0xf0, // jb .-14
		0xeb, 0xc0-0x40-18) // jmp done
	put(p, 0x80,
		0x8a, 0x07, // mov (%rdi),%al
		0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add $4096,%rdi
		0x48, 0x39, 0xf7, // cmp %rsi,%rdi
		0x72, 0xf2, // jb .-12
		0xeb, 0xc0-0x80-16) // jmp done
	put(p, 0x100,
		0xf3, 0x90, // pause
		0x83, 0x3f, 0x00, // cmpl $0,(%rdi)
		0x74, 0xf9, // je .-5
		0xeb, 0xb7) // jmp done
	put(p, 0x200, 0, 0, 0, 0) // the flag
	put(p, 0xc0,
		0xe6, abi.PortSyscall) // done: out %al,$0x80
	return p
}

// ExceptionPage is the page that only CPL 0 may execute.
func ExceptionPage() []byte {
	p := filled()
	for v := range 32 {
		put(p, v*ExceptionStep, 0xe6, byte(abi.PortException+v)) // out %al,$0x20+v
	}
	put(p, 0x400, 0xf4) // hlt
	jmp(p, 0x401)
	put(p, 0x410, 0xe6, abi.DiagPort) // out %al,$0x82
	jmp(p, 0x412)
	put(p, 0x420, 0xa0) // mov MMIOHole,%al
	binary.LittleEndian.PutUint64(p[0x421:], abi.MMIOHole)
	jmp(p, 0x429)
	return p
}

// jmp puts a jump to Done at offset off of the exception page.
func jmp(p []byte, off int) {
	p[off] = 0xe9
	rel := int32(User + 0xc0 - (Exceptions + off + 5))
	binary.LittleEndian.PutUint32(p[off+1:], uint32(rel))
}

// filled is a page of INT3: straying into it is an exception, never an accident.
func filled() []byte {
	p := make([]byte, abi.Page)
	for i := range p {
		p[i] = 0xcc
	}
	return p
}

func put(p []byte, off int, code ...byte) { copy(p[off:], code) }
