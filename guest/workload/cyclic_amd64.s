#include "textflag.h"
#include "blob_amd64.h"

// func cyclicCode() *byte
TEXT ·cyclicCode(SB), NOSPLIT, $0-8
	LEAQ cyclic<>(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// The @cyclic program: wake-ups on an absolute schedule, none skipped (as jitterdebugger does), so a stall
// of ten periods is ten late wake-ups and the distribution needs no correction.
//
//	R15 params     R14 record     R13 passes to make (0: no limit)   DI  TSC at which to end
//	R8  due TSC    R9  passes     R10 min   R11 max   R12 threshold  SI  gaps written to the ring
//	BX  lateness of this pass
//
// ORDER(O9) gap record, writer side, as in jitter_amd64.s. Pairs with the reader's loads of RingNext before and
// after it copies the ring, and of Passes before Hist. Without it a reader could take an old entry for a new one.
TEXT cyclic<>(SB), NOSPLIT|NOFRAME, $0
	LABEL(0)
	MOVQ  $PARAMS, R15
	MOVQ  $RECORD, R14
	MOVQ  P_WARM(R15), R13
	MOVQ  $-1, DI
	TESTQ R13, R13
	JNE   warm

measure:
	MOVQ $1, P_PHASE(R15)
	MOVL $R_PASSES, CX

clear:
	MOVQ $0, (R14)(CX*1)
	ADDQ $8, CX
	CMPQ CX, $R_SIZE
	JNE  clear
	MOVQ $-1, R_MIN(R14)
	CALL1(SYS_GAPRECORD, R14)
	CMPQ P_SEAL(R15), $0
	JEQ  open
	SEAL(open)

open:
	MOVQ  P_PASSES(R15), R13
	MOVQ  P_CYCLES(R15), DI
	TESTQ DI, DI
	JNE   warm
	MOVQ  $-1, DI

warm:
	XORL R9, R9
	MOVQ $-1, R10
	XORL R11, R11
	MOVQ R_THRESHOLD(R14), R12
	XORL SI, SI
	NOW
	MOVQ AX, R8
	MOVQ AX, R_START(R14)
	MOVQ AX, R_LAST(R14)
	CMPQ DI, $-1
	JEQ  again
	ADDQ AX, DI

	// The schedule is absolute: lateness never moves the wake-ups that follow.
again:
	ADDQ R_PERIOD(R14), R8
	LABEL(1)
	PCALIGN $32

wait:
	NOW
	CMPQ AX, R8
	JCS  wait
	LABEL(2)
	MOVQ AX, BX
	SUBQ R8, BX
	LEAQ 1(BX)(BX*1), CX
	BSRQ CX, CX
	ADDQ $1, R_HIST(R14)(CX*8)
	ADDQ $1, R9
	MOVQ R9, R_PASSES(R14)
	MOVQ AX, R_LAST(R14)
	CMPQ BX, R10
	JCC  more
	MOVQ BX, R10
	MOVQ BX, R_MIN(R14)

more:
	CMPQ BX, R11
	JLS  gaps
	MOVQ BX, R11
	MOVQ BX, R_MAX(R14)

gaps:
	CMPQ BX, R12
	JCS  next
	ADDQ BX, R_STOLEN(R14)
	ADDQ $1, R_GAPS(R14)
	MOVQ SI, CX
	ANDL $R_RINGMASK, CX
	SHLQ $4, CX
	MOVQ AX, R_RING(R14)(CX*1)
	MOVQ BX, (R_RING+8)(R14)(CX*1)
	ADDQ $1, SI
	MOVQ SI, R_RINGNEXT(R14)

next:
	CMPQ R9, R13
	JEQ  done
	CMPQ AX, DI
	JCS  again

done:
	LABEL(3)
	CMPQ P_PHASE(R15), $0
	JEQ  measure
	CMPQ P_SEAL(R15), $0
	JEQ  dump
	CALL1(SYS_ISOLATE, $0)

dump:
	CMPQ P_DUMP(R15), $0
	JEQ  out
	MOVL $R_SIZE, R12

write:
	MOVL  $SYS_WRITE, AX
	MOVL  $1, DI
	MOVQ  R14, SI
	MOVQ  R12, DX
	SYSCALL
	TESTQ AX, AX
	JLE   failed
	ADDQ  AX, R14
	SUBQ  AX, R12
	JNE   write

out:
	CALL1(SYS_EXIT_GROUP, $0)

failed:
	CALL1(SYS_EXIT_GROUP, $1)
	UD2
	LABEL_END
