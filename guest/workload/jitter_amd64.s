#include "textflag.h"
#include "blob_amd64.h"

// func jitterCode() *byte
TEXT ·jitterCode(SB), NOSPLIT, $0-8
	LEAQ jitter<>(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// The @jitter program.
//
//	R15 params     R14 record     R13 passes to make (0: no limit)   DI  TSC at which to end
//	R8  last TSC   R9  passes     R10 min   R11 max   R12 threshold  SI  gaps written to the ring
//	BX  delta of this pass
//
// ORDER(O9) gap record, writer side. Pairs with the reader's loads of RingNext before and after it copies
// the ring, and of Passes before Hist (docs/ordering.md). Stores become visible in program order (Intel SDM
// vol. 3A, 9.2.2): a bucket before Passes, a ring entry before RingNext. Without it a reader could take a
// ring entry of an earlier lap for a new one, or see more passes than the histogram holds.
TEXT jitter<>(SB), NOSPLIT|NOFRAME, $0
	LABEL(0)
	MOVQ  $PARAMS, R15
	MOVQ  $RECORD, R14
	MOVQ  P_WARM(R15), R13
	MOVQ  $-1, DI
	TESTQ R13, R13
	JNE   warm

	// The measurement: a clean record, then the system calls, then nothing but the loop. Both pages of data
	// are written before sealing, so that no first touch can fall into the sealed interval.
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
	JEQ  begin
	ADDQ AX, DI

begin:
	LABEL(1)
	PCALIGN $32

loop:
	NOW
	MOVQ AX, BX
	SUBQ R8, BX
	MOVQ AX, R8
	JMI  backwards

	// BSR of 2d+1 is bits.Len64(d), for d = 0 too.
	LEAQ 1(BX)(BX*1), CX
	BSRQ CX, CX
	ADDQ $1, R_HIST(R14)(CX*8)
	ADDQ $1, R9
	MOVQ R9, R_PASSES(R14)
	MOVQ R8, R_LAST(R14)
	CMPQ BX, R10
	JCS  less

more:
	CMPQ BX, R11
	JHI  longest

gaps:
	CMPQ BX, R12
	JCC  gap

next:
	CMPQ R9, R13
	JEQ  done
	CMPQ R8, DI
	JCS  loop
	JMP  done

	// The rare paths; what they cost falls into the next pass.
	LABEL(2)

less:
	MOVQ BX, R10
	MOVQ BX, R_MIN(R14)
	JMP  more

longest:
	MOVQ BX, R11
	MOVQ BX, R_MAX(R14)
	JMP  gaps

	// A negative delta: the TSC went backwards. It is kept as a gap whose length has bit 63 set, in the
	// last bucket, and apart from Stolen, Min and Max, which it would spoil.
backwards:
	ADDQ $1, (R_HIST+R_LASTBUCKET*8)(R14)
	ADDQ $1, R9
	MOVQ R9, R_PASSES(R14)
	MOVQ R8, R_LAST(R14)
	JMP  ring

gap:
	ADDQ BX, R_STOLEN(R14)

ring:
	ADDQ $1, R_GAPS(R14)
	MOVQ SI, CX
	ANDL $R_RINGMASK, CX
	SHLQ $4, CX
	MOVQ R8, R_RING(R14)(CX*1)
	MOVQ BX, (R_RING+8)(R14)(CX*1)
	ADDQ $1, SI
	MOVQ SI, R_RINGNEXT(R14)
	JMP  next

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
