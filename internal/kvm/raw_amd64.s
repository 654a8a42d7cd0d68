#include "textflag.h"

// func RunRaw(fd uintptr) (ret int64, tsc uint64)
TEXT ·RunRaw(SB),NOSPLIT,$0-24
	MOVQ fd+0(FP), DI
	MOVQ $0xae80, SI // KVM_RUN
	XORL DX, DX
	MOVQ $16, AX     // SYS_ioctl
	SYSCALL
	MOVQ AX, ret+8(FP)
	// ORDER(none): statistic. LFENCE keeps RDTSC from executing before the system call has returned.
	LFENCE
	RDTSC
	SHLQ $32, DX
	ORQ  DX, AX
	MOVQ AX, tsc+16(FP)
	RET

// func IoctlRaw(fd, op, arg uintptr) (ret int64)
TEXT ·IoctlRaw(SB),NOSPLIT,$0-32
	MOVQ fd+0(FP), DI
	MOVQ op+8(FP), SI
	MOVQ arg+16(FP), DX
	MOVQ $16, AX
	SYSCALL
	MOVQ AX, ret+24(FP)
	RET

// func TSC() uint64
TEXT ·TSC(SB),NOSPLIT,$0-8
	LFENCE // ORDER(none): statistic; RDTSC must not execute before earlier loads
	RDTSC
	SHLQ $32, DX
	ORQ  DX, AX
	MOVQ AX, ret+0(FP)
	RET

// func CPUID(leaf, sub uint32) (eax, ebx, ecx, edx uint32)
TEXT ·CPUID(SB),NOSPLIT,$0-24
	MOVL leaf+0(FP), AX
	MOVL sub+4(FP), CX
	CPUID
	MOVL AX, eax+8(FP)
	MOVL BX, ebx+12(FP)
	MOVL CX, ecx+16(FP)
	MOVL DX, edx+20(FP)
	RET
