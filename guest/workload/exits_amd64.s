#include "textflag.h"
#include "blob_amd64.h"

// func exitsCode() *byte
TEXT ·exitsCode(SB), NOSPLIT, $0-8
	LEAQ exits<>(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// The @exits program: it works through the table of steps that exits.go wrote, and ends with status 0, or
// with the number (from 1) of the first step whose result was not the expected one.
//
//	R15 step   R12 its number   R13 rounds left   R14 start of the mapping of OP_TOUCH
TEXT exits<>(SB), NOSPLIT|NOFRAME, $0
	LABEL(0)
	MOVQ $(PARAMS+P_STEPS), R15
	XORL R12, R12
	XORL R14, R14

step:
	ADDQ $1, R12
	MOVQ S_COUNT(R15), R13
	MOVQ S_OP(R15), AX
	CMPQ AX, $OP_SYSCALL
	JEQ  syscall
	CMPQ AX, $OP_CPUID
	JEQ  cpuid
	CMPQ AX, $OP_TOUCH
	JEQ  touch
	CMPQ AX, $OP_SEAL
	JEQ  seal
	CALL1(SYS_EXIT_GROUP, $0)

advance:
	ADDQ $S_SIZE, R15
	JMP  step

	LABEL(1)

syscall:
	MOVQ S_NR(R15), AX
	MOVQ S_ARG0(R15), DI
	MOVQ S_ARG1(R15), SI
	MOVQ S_ARG2(R15), DX
	MOVQ S_ARG3(R15), R10
	MOVQ S_ARG4(R15), R8
	MOVQ S_ARG5(R15), R9
	CMPQ S_BASE(R15), $BASE_ADD
	JNE  enter
	ADDQ R14, DI

enter:
	SYSCALL
	CMPQ S_CHECK(R15), $CHECK_NONE
	JEQ  fine
	CMPQ S_CHECK(R15), $CHECK_OK
	JEQ  positive
	CMPQ AX, S_WANT(R15)
	JEQ  fine
	CMPQ AX, S_OR(R15)
	JEQ  fine
	JMP  failed

	// Results from -4095 to -1 are error numbers (Linux's system call convention).
positive:
	CMPQ AX, $-4095
	JCC  failed

fine:
	CMPQ S_BASE(R15), $BASE_SAVE
	JNE  kept
	MOVQ AX, R14

kept:
	SUBQ $1, R13
	JNE  syscall
	JMP  advance

	LABEL(2)

cpuid:
	XORL AX, AX
	XORL CX, CX
	CPUID
	SUBQ $1, R13
	JNE  cpuid
	JMP  advance

	LABEL(3)

touch:
	MOVQ R14, AX

page:
	MOVB $1, (AX)
	ADDQ S_ARG0(R15), AX
	SUBQ $1, R13
	JNE  page
	JMP  advance

	LABEL(4)

seal:
	CALL1(SYS_ISOLATE, $1)
	CALL1(SYS_ISOLATE, $0)
	SUBQ $1, R13
	JNE  seal
	JMP  advance

	LABEL(5)

failed:
	CALL1(SYS_EXIT_GROUP, R12)
	UD2
	LABEL_END
