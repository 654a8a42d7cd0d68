#include "textflag.h"

// The functions of the image, in the System V calling convention. They are never called where they
// stand: Image copies the bytes from code to the last mark and fills in the displacement of the data
// page. They touch neither the stack nor a callee-saved register, and refer to nothing outside.

// MARK(i) says that function i begins behind it; INT3s, so that no stray jump gets through.
#define MARK(i) LONG $0xCCCCCCCC; LONG $(0xCCCCCC00 + i)

// PAGE is LEAQ disp(RIP), R8 with the displacement that Image replaces.
#define PAGE BYTE $0x4C; BYTE $0x8D; BYTE $0x05; LONG $0x5AFEDA7A

// What to store at the end of now.
#define TIMESPEC $0
#define TIMEVAL $1
#define SECONDS $2

TEXT ·code(SB), NOSPLIT|NOFRAME, $0-0
	MARK(0)
	// int __vdso_clock_gettime(clockid_t DI, struct timespec *SI)
	MOVL	TIMESPEC, CX
	CMPL	DI, $11
	JHI	hostGettime

	// now: DI = clock ID, at most 11; SI = where to store; CX = what.
now:
	PAGE
retry:
	// ORDER(O5) vDSO data page, reader: loads gen (a), then the slot and the TSC (b), then gen again
	// (c). Pairs with Clock.publish, which fills a slot before it stores gen and leaves the newest
	// slot alone. Without (c) the slot could be half of k and half of k+2; without the LFENCE
	// between (a) and RDTSC the TSC could be older than the slot, from before the previous S. (c) may run
	// before RDTSC out of order: that is worth a few hundred cycles, S lies far more ahead.
	MOVQ	0(R8), R9
	TESTQ	R9, R9
	JZ	host
	MOVL	R9, R10
	ANDL	$1, R10
	SHLL	$8, R10
	LEAQ	256(R8)(R10*1), R10
	MOVQ	96(R10), AX
	BTQ	DI, AX
	JCC	host
	MOVQ	0(R10)(DI*8), R11
	ADDQ	$128, R10
	CMPL	DI, $4
	JNE	line
	ADDQ	$64, R10
line:
	// ORDER(O5) pairs with the store of gen in Clock.publish: without this LFENCE, RDTSC could run before (a).
	LFENCE
	RDTSC
	SHLQ	$32, DX
	ORQ	DX, AX
	SUBQ	0(R10), AX
	JCS	before
	MULQ	16(R10)
add:
	ADDQ	24(R10), AX
	ADCQ	32(R10), DX
	CMPQ	R9, 0(R8)
	JNE	retry

	// DX:AX is ns in fixed point; R9 = ns, DX = seconds by multiplication (x>>9 * M >> 75).
	SHRQ	$48, DX, AX
	ADDQ	R11, AX
	MOVQ	AX, R9
	SHRQ	$9, AX
	MOVQ	$0x44B82FA09B5A53, DX
	MULQ	DX
	SHRQ	$11, DX
	CMPL	CX, SECONDS
	JEQ	seconds
	IMUL3Q	$1000000000, DX, AX
	SUBQ	AX, R9
	TESTL	CX, CX
	JZ	store
	IMUL3Q	$274877907, R9, R9 // /1000: right below 2^32
	SHRQ	$38, R9
store:
	MOVQ	DX, 0(SI)
	MOVQ	R9, 8(SI)
	XORL	AX, AX
	RET

before: // T < S: subtract (S-T) * slope before S
	NEGQ	AX
	MULQ	8(R10)
	NEGQ	AX
	ADCQ	$0, DX
	NEGQ	DX
	JMP	add

seconds:
	MOVQ	DX, AX
	TESTQ	SI, SI
	JZ	done
	MOVQ	DX, 0(SI)
done:
	RET

host: // the page cannot serve this clock: ask the kernel, with the caller's arguments back in place
	TESTL	CX, CX
	JZ	hostGettime
	MOVQ	SI, DI
	XORL	SI, SI
	MOVL	$201, AX // time
	CMPL	CX, SECONDS
	JEQ	call
	MOVL	$96, AX // gettimeofday
	JMP	call
hostGettime:
	MOVL	$228, AX // clock_gettime
call:
	SYSCALL
	RET

	MARK(1)
	// int __vdso_gettimeofday(struct timeval *DI, struct timezone *SI)
	MOVL	$96, AX
	TESTQ	SI, SI
	JNZ	call
	XORL	AX, AX
	TESTQ	DI, DI
	JZ	done
	MOVQ	DI, SI
	XORL	DI, DI
	MOVL	TIMEVAL, CX
	JMP	now

	MARK(2)
	// time_t __vdso_time(time_t *DI)
	MOVQ	DI, SI
	XORL	DI, DI
	MOVL	SECONDS, CX
	JMP	now

	MARK(3)
	// int __vdso_clock_getres(clockid_t DI, struct timespec *SI): only clocks with the page's resolution
	CMPL	DI, $11
	JHI	hostGetres
	MOVL	$0x893, AX // 0 REALTIME, 1 MONOTONIC, 4 RAW, 7 BOOTTIME, 11 TAI
	BTL	DI, AX
	JCC	hostGetres
	PAGE
	MOVQ	16(R8), AX
	TESTQ	AX, AX
	JZ	hostGetres
	TESTQ	SI, SI
	JZ	noRes
	MOVQ	$0, 0(SI)
	MOVQ	AX, 8(SI)
noRes:
	XORL	AX, AX
	RET
hostGetres:
	MOVL	$229, AX
	SYSCALL
	RET

	MARK(4)
	// long __vdso_getcpu(unsigned *DI, unsigned *SI, void *DX): the limit of GDT entry 15, where Linux has the CPU,
	// is the vCPU here, and the page says which CPU that is. There is one node.
	PAGE
	MOVL	$0x7B, AX
	BYTE	$0x0F; BYTE $0x03; BYTE $0xC0 // LSL EAX, EAX
	JNE	hostCPU
	CMPL	AX, $63
	JHI	hostCPU
	MOVQ	1024(R8)(AX*8), AX
	SUBQ	$1, AX
	JCS	hostCPU
	TESTQ	DI, DI
	JZ	node
	MOVL	AX, 0(DI)
node:
	TESTQ	SI, SI
	JZ	gotCPU
	MOVL	$0, 0(SI)
gotCPU:
	XORL	AX, AX
	RET
hostCPU:
	MOVL	$309, AX
	SYSCALL
	RET
	MARK(5)

// func codeStart() unsafe.Pointer
TEXT ·codeStart(SB), NOSPLIT, $0-8
	LEAQ	·code(SB), AX
	MOVQ	AX, ret+0(FP)
	RET

// func tsc() uint64
TEXT ·tsc(SB), NOSPLIT, $0-8
	// ORDER(none): the counter is read after the loads before it, so that what they showed was true by then.
	LFENCE
	RDTSC
	SHLQ	$32, DX
	ORQ	DX, AX
	MOVQ	AX, ret+0(FP)
	RET

// func bracket(clock uint64, ts *[2]int64) (before, after uint64, errno int64)
TEXT ·bracket(SB), NOSPLIT, $0-40
	MOVQ	clock+0(FP), DI
	MOVQ	ts+8(FP), SI
	// ORDER(none): both LFENCEs keep RDTSC outside the system call that they bracket; nothing is shared.
	LFENCE
	RDTSC
	SHLQ	$32, DX
	ORQ	DX, AX
	MOVQ	AX, R8
	MOVL	$228, AX
	SYSCALL
	MOVQ	AX, R9
	// ORDER(none): as above, after the call.
	LFENCE
	RDTSC
	SHLQ	$32, DX
	ORQ	DX, AX
	MOVQ	R8, before+16(FP)
	MOVQ	AX, after+24(FP)
	MOVQ	R9, errno+32(FP)
	RET
