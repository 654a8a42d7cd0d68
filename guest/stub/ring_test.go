package stub

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/cloister-vmm/cloister/guest/abi"
	"golang.org/x/arch/x86/x86asm"
)

// ringListing is the stub in GNU syntax, with words of the ring page by their names.
func ringListing(user bool) []string {
	l := []string{
		"mov %rcx,return", "mov %r11,flags", "mov %rsp,sp",
		"mov %rdi,arg0", "mov %rsi,arg1", "mov %rdx,arg2", "mov %r10,arg3", "mov %r8,arg4", "mov %r9,arg5", "mov %rax,nr",
		"cmp $0x200,%rax", "jae exit", "bt %rax,numbers", "jae exit", // jnc
		"rdtsc", "shl $0x20,%rdx", "or %rax,%rdx", "mov %rdx,tsc", "mov arg2,%rdx",
		"mov posted,%rcx", "inc %rcx", "mov %rcx,posted",
		"spin: pause", "cmp %rcx,done", "jne spin", "cmpq $0x0,byexit", "jne exit",
		"mov result,%rax", "mov return,%rcx", "mov flags,%r11",
	}
	if user {
		l = append(l, "lea stack,%rsp", "push %r11", "popfq", "mov sp,%rsp", "jmp *%rcx")
	} else {
		l = append(l, "rex.W sysretq")
	}
	return append(l, "exit: mov nr,%rax", "mov return,%rcx", "mov flags,%r11", "jmp SYSCALL")
}

var ringWords = map[int64]string{RingPosted: "posted", RingDone: "done", RingResult: "result", RingByExit: "byexit", RingNr: "nr", RingTSC: "tsc",
	RingReturn: "return", RingFlags: "flags", RingSP: "sp", RingNumbers: "numbers", ringStack: "stack",
	RingArgs: "arg0", RingArgs + 8: "arg1", RingArgs + 16: "arg2", RingArgs + 24: "arg3", RingArgs + 32: "arg4", RingArgs + 40: "arg5"}

func TestRingStub(t *testing.T) {
	for _, user := range []bool{false, true} {
		for _, i := range []int{0, 1, MaxVCPUs - 1} {
			p := RingStubFor(i, user)
			_, spin, end := RingStub(user)
			labels := map[int]string{int(spin): "spin"}
			want := ringListing(user)
			exit := 0
			pc := 0
			var got []string
			type target struct {
				line, to int
			}
			var targets []target
			for n := range want {
				in, err := x86asm.Decode(p[pc:], 64)
				if err != nil {
					t.Fatalf("+%#x: %v", pc, err)
				}
				if strings.HasPrefix(want[n], "exit:") {
					exit = pc
					labels[exit] = "exit"
				}
				line := strings.Join(strings.Fields(strings.ReplaceAll(x86asm.GNUSyntax(in, 0, nil), ", ", ",")), " ")
				for _, arg := range in.Args {
					switch v := arg.(type) {
					case x86asm.Mem:
						if v.Base == x86asm.RIP {
							at := int64(pc) + int64(in.Len) + int64(int32(v.Disp)) + abi.Page
							name, ok := ringWords[at]
							if !ok {
								t.Errorf("+%#x: a word at %#x", pc, at)
							}
							line = strings.ReplaceAll(line, fmt.Sprintf("%#x(%%rip)", uint64(v.Disp)), name)
							if j := strings.Index(line, "(%rip)"); j >= 0 {
								k := strings.LastIndexAny(line[:j], " ,") + 1
								line = line[:k] + name + line[j+len("(%rip)"):]
							}
						}
					case x86asm.Rel:
						targets = append(targets, target{len(got), pc + in.Len + int(v)})
						line = strings.ToLower(in.Op.String()) + " "
					}
				}
				got = append(got, line)
				if l, ok := labels[pc]; ok {
					got[n] = l + ": " + got[n]
				}
				pc += in.Len
			}
			for _, x := range targets {
				name := labels[x.to]
				if int64(RingCode(i))+int64(x.to) == User {
					name = "SYSCALL"
				}
				got[x.line] += name
			}
			for n := range want {
				if got[n] != want[n] {
					t.Errorf("user %v, line %d: %q, want %q", user, n, got[n], want[n])
				}
			}
			if uint64(pc) != end+5 {
				t.Errorf("ends at %#x, want %#x", pc, end+5)
			}
			for _, b := range p[pc:] {
				if b != 0xcc {
					t.Fatal("something behind the stub")
				}
			}
		}
	}
	if RingNumbers+RingCalls/8 > ringStack-8 || binary.Size([6]uint64{})+RingArgs != RingTSC {
		t.Error("words overlap")
	}
}
