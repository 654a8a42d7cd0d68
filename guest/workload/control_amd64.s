#include "textflag.h"
#include "blob_amd64.h"

// func controlCode() *byte
TEXT ·controlCode(SB), NOSPLIT, $0-8
	LEAQ control<>(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// The @control-loop program. A period begins and ends with a call of filter, so that a patch which falls between the two shows; the schedule is
// absolute, as @cyclic's. It has a stack and keeps to the psABI around filter, which may become code of a compiler.
//
//	R15 params     R14 control     R13 TSC at which to end     R12 TSC at which this period, then the next, is due
//	BX  filter at the beginning, then the number of periods    CX  TSC up to which this period computes
//
// ORDER(O9) as the gap record: an entry of the history is written before Changes grows. Pairs with a reader's load of Changes before it copies the
// history. Without it a reader could take an entry's old bytes for a change.
TEXT control<>(SB), NOSPLIT|NOFRAME, $0
	LABEL(0)
	MOVQ $PARAMS, R15
	MOVQ $CONTROL, R14

	// The first call touches what the loop will: stack, filter, record.
	MOVQ C_SAMPLE(R14), DI
	LEAQ C_BEGIN(R14), SI
	CALL_TO(8)
	CMPQ P_SEAL(R15), $0
	JEQ  open
	CALL1(SYS_ISOLATE, $1)

open:
	NOW
	MOVQ  AX, R12
	MOVQ  $-1, R13
	MOVQ  P_CYCLES(R15), CX
	TESTQ CX, CX
	JEQ   period
	LEAQ  (AX)(CX*1), R13

period:
	LABEL(1)
	MOVQ C_SAMPLE(R14), DI
	LEAQ C_BEGIN(R14), SI
	CALL_TO(8)
	MOVQ AX, BX
	MOVQ R12, CX
	ADDQ C_WORK(R14), CX

work:
	NOW
	CMPQ AX, CX
	JCS  work
	MOVQ C_SAMPLE(R14), DI
	LEAQ C_END(R14), SI
	CALL_TO(8)
	ADDQ BX, AX
	SARQ $1, AX

	// The site rate.limit: its instruction begins at a multiple of 8, since a label has 7 bytes.
	PCALIGN $8
	BYTE    $0x90
	LABEL(2)
	BYTE    $0xb9; LONG $RATE_LIMIT // MOVL $RATE_LIMIT, CX
	CMPQ    AX, CX
	CMOVQGT CX, AX

	// The site output.off, a static branch to label 4.
	PCALIGN $8
	BYTE    $0x90
	LABEL(3)
	BYTE    $0x0f; BYTE $0x1f; BYTE $0x44; BYTE $0; BYTE $0
	JMP     record
	LABEL(4)
	XORL    AX, AX

record:
	MOVQ  C_END(R14), DX
	CMPQ  DX, C_BEGIN(R14)
	JEQ   whole
	ADDQ  $1, C_MIXED(R14)

whole:
	MOVQ  C_PERIODS(R14), BX
	MOVQ  BX, C_LATEST(R14)
	MOVQ  C_CHANGES(R14), CX
	TESTQ CX, CX
	JEQ   change
	CMPQ  AX, C_OUTPUT(R14)
	JNE   change
	CMPQ  DX, C_VERSION(R14)
	JEQ   same

change:
	MOVQ AX, C_OUTPUT(R14)
	MOVQ DX, C_VERSION(R14)
	MOVQ CX, SI
	ANDL $C_MASK, SI
	SHLQ $5, SI
	LEAQ C_HISTORY(R14)(SI*1), SI
	MOVQ BX, H_PERIOD(SI)
	MOVQ AX, H_OUTPUT(SI)
	MOVQ DX, H_VERSION(SI)
	MOVQ R12, H_DUE(SI)
	ADDQ $1, CX
	MOVQ CX, C_CHANGES(R14)

same:
	ADDQ $1, BX
	MOVQ BX, C_PERIODS(R14)
	ADDQ C_PERIOD(R14), R12
	NOW
	CMPQ AX, R12
	JCS  intime
	ADDQ $1, C_MISSED(R14)

intime:
	CMPQ C_LOG(R14), $0
	JEQ  point
	SUBQ $1, C_UNTIL(R14)
	JNE  point
	MOVQ C_LOG(R14), AX
	MOVQ AX, C_UNTIL(R14)
	LEAQ C_LINE(R14), SI
	LEAQ C_LATEST(R14), DX
	CALL_TO(9)

	// The safe point: this period's work is done, the next one's not begun.
point:
	LABEL(5)
	CMPL C_WAITS(R14), $0
	JEQ  next
	MOVL $SYS_SAFEPOINT, AX
	XORL DI, DI
	XORL SI, SI
	SYSCALL

next:
	CMPQ BX, P_PASSES(R15)
	JEQ  done
	CMPQ R12, R13
	JCC  done
	LABEL(6)

wait:
	NOW
	CMPQ AX, R12
	JCS  wait
	JMP  period

done:
	LABEL(7)
	CMPQ P_SEAL(R15), $0
	JEQ  print
	CALL1(SYS_ISOLATE, $0)

print:
	MOVQ C_CHANGES(R14), R13
	MOVQ R13, BX
	SUBQ $C_KEPT, BX
	JHI  lost
	XORL BX, BX
	JMP  history

lost:
	MOVQ BX, C_LOST(R14)
	LEAQ C_GONE(R14), SI
	LEAQ C_LOST(R14), DX
	CALL_TO(9)

history:
	CMPQ BX, R13
	JEQ  summary
	MOVQ BX, DX
	ANDL $C_MASK, DX
	SHLQ $5, DX
	LEAQ C_HISTORY(R14)(DX*1), DX
	LEAQ C_LINE(R14), SI
	CALL_TO(9)
	ADDQ $1, BX
	JMP  history

summary:
	LEAQ C_SUMMARY(R14), SI
	LEAQ C_PERIODS(R14), DX
	CALL_TO(9)
	CALL1(SYS_EXIT_GROUP, $0)

	// int64_t filter(int64_t sample, int64_t *version)
	PCALIGN $8
	BYTE $0x90
	LABEL(8)
	BYTE $0x90; BYTE $0x90; BYTE $0x90; BYTE $0x90; BYTE $0x90
	MOVQ $1, (SI)
	MOVQ DI, AX
	RET

	// Writes the text at SI, with the numbers at DX in place of its %s, to standard output. Keeps what the psABI keeps.
	LABEL(9)
	LEAQ C_BUFFER(R14), DI
	MOVL $10, R10

letter:
	MOVBLZX (SI), AX
	ADDQ    $1, SI
	TESTL   AX, AX
	JEQ     write
	CMPL    AX, $0x25
	JEQ     number
	MOVB    AX, (DI)
	ADDQ    $1, DI
	JMP     letter

number:
	MOVQ  (DX), AX
	ADDQ  $8, DX
	TESTQ AX, AX
	JGE   positive
	MOVB  $0x2d, (DI)
	ADDQ  $1, DI
	NEGQ  AX

positive:
	MOVQ DX, R8
	LEAQ C_BUFFER(R14), R9

digit:
	XORL  DX, DX
	DIVQ  R10
	ADDL  $0x30, DX
	SUBQ  $1, R9
	MOVB  DX, (R9)
	TESTQ AX, AX
	JNE   digit
	MOVQ  R8, DX
	LEAQ  C_BUFFER(R14), R8

copy:
	MOVB (R9), AX
	MOVB AX, (DI)
	ADDQ $1, R9
	ADDQ $1, DI
	CMPQ R9, R8
	JNE  copy
	JMP  letter

write:
	LEAQ  C_BUFFER(R14), SI
	MOVQ  DI, DX
	SUBQ  SI, DX

more:
	MOVL  $SYS_WRITE, AX
	MOVL  $1, DI
	SYSCALL
	TESTQ AX, AX
	JLE   failed
	ADDQ  AX, SI
	SUBQ  AX, DX
	JNE   more
	RET

failed:
	CALL1(SYS_EXIT_GROUP, $1)
	UD2
	LABEL_END
