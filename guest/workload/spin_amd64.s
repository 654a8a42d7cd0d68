#include "textflag.h"
#include "blob_amd64.h"

// func spinCode() *byte
TEXT ·spinCode(SB), NOSPLIT, $0-8
	LEAQ spin<>(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// The @spin program. P_COUNT 0 wraps: 2^64 rounds last for centuries, which is "for ever".
TEXT spin<>(SB), NOSPLIT|NOFRAME, $0
	LABEL(0)
	MOVQ $PARAMS, R15
	MOVQ P_COUNT(R15), R12
	CMPQ P_SEAL(R15), $0
	JEQ  run
	SEAL(run)

run:
	MOVQ P_WRITE(R15), DX
	TESTQ DX, DX
	JEQ  begin
	MOVL $SYS_WRITE, AX
	MOVL $1, DI
	LEAQ P_SCRATCH(R15), SI
	SYSCALL

begin:
	XORL AX, AX
	LABEL(1)
	PCALIGN $32

loop:
	ADDQ $1, AX
	CMPQ AX, R12
	JNE  loop
	LABEL(2)
	CMPQ P_SEAL(R15), $0
	JEQ  out
	CALL1(SYS_ISOLATE, $0)

out:
	CALL1(SYS_EXIT_GROUP, $0)
	UD2
	LABEL_END
