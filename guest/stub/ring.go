package stub

import (
	"encoding/binary"

	"github.com/cloister-vmm/cloister/guest/abi"
)

// A vCPU whose system calls go by the ring has two more pages: RingPage, through which stub and server talk, and
// behind it RingCode, where its LSTAR points then (docs/decisions/0010-ring-calls.md, docs/ordering.md O12).
func RingPage(i int) uint64 { return StackTop(i) }

// RingCode is the offset of the page with the stub of vCPU i.
func RingCode(i int) uint64 { return RingPage(i) + abi.Page }

// Words of the ring page, bytes from its beginning. Those that the guest writes and those that the server writes
// lie in different cache lines.
const (
	RingPosted  = 0x000 // calls that the guest has posted
	RingDone    = 0x040 // calls that the server has answered: equal to RingPosted when there is nothing to do
	RingResult  = 0x048 // of the latest
	RingByExit  = 0x050 // not 0: the latest has to be made by an exit
	RingNr      = 0x080 // number and six arguments of the latest call
	RingArgs    = 0x088
	RingTSC     = 0x0b8 // when it was posted
	RingReturn  = 0x0c0 // where SYSCALL will return to
	RingFlags   = 0x0c8 // RFLAGS that it will have
	RingSP      = 0x0d0 // RSP of the program
	RingNumbers = 0x100 // bit n: system call n goes by the ring
	ringStack   = 0x400 // end of a stack of one word
)

// RingCalls is how many system call numbers RingNumbers has bits for.
const RingCalls = 512

// RingStub is the code of a ring stub, as it lies in RingCode: the same for every vCPU, for the page of words lies
// before it. user says that SYSCALL stays at CPL 3 on this back end, so that the way back is no SYSRET.
//
// The stub may only change RCX, R11 and RAX, as SYSCALL does; all others it puts back.
func RingStub(user bool) (page []byte, spin, end uint64) {
	a := assembler{page: filled()}
	a.store(0x48, 0x0d, RingReturn) // mov %rcx,…
	a.store(0x4c, 0x1d, RingFlags)  // mov %r11,…
	a.store(0x48, 0x25, RingSP)     // mov %rsp,…
	for i, r := range [6][2]byte{{0x48, 0x3d}, {0x48, 0x35}, {0x48, 0x15}, {0x4c, 0x15}, {0x4c, 0x05}, {0x4c, 0x0d}} {
		a.store(r[0], r[1], RingArgs+uint64(i)*8) // mov %rdi,%rsi,%rdx,%r10,%r8,%r9
	}
	a.store(0x48, 0x05, RingNr)                                  // mov %rax,…
	a.code(0x48, 0x3d, 0x00, 0x02, 0x00, 0x00)                   // cmp $512,%rax
	a.jump(0x0f, 0x83)                                           // jae exit
	a.word(0x48, 0x05, RingNumbers, 0, 0x0f, 0xa3)               // bt %rax,…
	a.jump(0x0f, 0x83)                                           // jnc exit
	a.code(0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xc2) // rdtsc; shl $32,%rdx; or %rax,%rdx
	a.store(0x48, 0x15, RingTSC)                                 // mov %rdx,…
	a.load(0x48, 0x15, RingArgs+16)                              // mov …,%rdx
	a.load(0x48, 0x0d, RingPosted)                               // mov …,%rcx
	a.code(0x48, 0xff, 0xc1)                                     // inc %rcx
	a.store(0x48, 0x0d, RingPosted)                              // mov %rcx,…
	spin = uint64(a.at)
	a.code(0xf3, 0x90)                      // pause
	a.word(0x48, 0x0d, RingDone, 0, 0x39)   // cmp %rcx,…
	a.code(0x75, byte(int(spin)-(a.at+2)))  // jne spin
	a.word(0x48, 0x3d, RingByExit, 1, 0x83) // cmpq $0,…
	a.code(0x00)
	a.jump(0x0f, 0x85)             // jne exit
	a.load(0x48, 0x05, RingResult) // mov …,%rax
	a.load(0x48, 0x0d, RingReturn) // mov …,%rcx
	a.load(0x4c, 0x1d, RingFlags)  // mov …,%r11
	if user {
		a.word(0x48, 0x25, ringStack, 0, 0x8d) // lea …,%rsp
		a.code(0x41, 0x53, 0x9d)               // push %r11; popfq
		a.load(0x48, 0x25, RingSP)             // mov …,%rsp
		a.code(0xff, 0xe1)                     // jmp *%rcx
	} else {
		a.code(0x48, 0x0f, 0x07) // sysretq
	}
	exit := a.at
	a.load(0x48, 0x05, RingNr)
	a.load(0x48, 0x0d, RingReturn)
	a.load(0x4c, 0x1d, RingFlags)
	for _, j := range a.jumps {
		binary.LittleEndian.PutUint32(a.page[j:], uint32(exit-(j+4)))
	}
	return a.page, spin, uint64(a.at)
}

// RingStubFor is RingStub with its last jump, to the stub that leaves the guest, as vCPU i's page needs it.
func RingStubFor(i int, user bool) []byte {
	p, _, end := RingStub(user)
	p[end] = 0xe9 // jmp SyscallEntry
	binary.LittleEndian.PutUint32(p[end+1:], uint32(int64(User)-int64(RingCode(i)+end+5)))
	return p
}

// assembler puts instructions one behind the other; words of the ring page are addressed relative to RIP.
type assembler struct {
	page  []byte
	at    int
	jumps []int // displacements of the jumps to exit
}

func (a *assembler) code(b ...byte) { a.at += copy(a.page[a.at:], b) }

// word is an instruction with the operand at offset off of the ring page, and tail bytes of an immediate behind it.
func (a *assembler) word(rex, modrm byte, off uint64, tail int, op ...byte) {
	a.code(rex)
	a.code(op...)
	a.code(modrm)
	next := a.at + 4 + tail
	a.code(binary.LittleEndian.AppendUint32(nil, uint32(int64(off)-abi.Page-int64(next)))...)
}

func (a *assembler) store(rex, modrm byte, off uint64) { a.word(rex, modrm, off, 0, 0x89) }
func (a *assembler) load(rex, modrm byte, off uint64)  { a.word(rex, modrm, off, 0, 0x8b) }

// jump is a conditional jump to exit, whose place is not known yet.
func (a *assembler) jump(op ...byte) {
	a.code(op...)
	a.jumps = append(a.jumps, a.at)
	a.code(0, 0, 0, 0)
}
