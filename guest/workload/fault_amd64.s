#include "textflag.h"
#include "blob_amd64.h"

// func faultCode() *byte
TEXT ·faultCode(SB), NOSPLIT, $0-8
	LEAQ fault<>(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// The @fault programs: the ELF's entry is the label itself; the numbers are those of the table in fault.go.
// The stack is the one that the kernel gave.
TEXT fault<>(SB), NOSPLIT|NOFRAME, $0
	LABEL(0) // de: unsigned division by zero
	XORL AX, AX
	XORL DX, DX
	XORL CX, CX
	DIVL CX
	JMP  survived

	LABEL(1) // bp
	BYTE $0xcc // int3
	JMP  survived

	LABEL(2) // ud
	UD2
	JMP  survived

	LABEL(3) // gp: a non-canonical address
	MOVQ $0x8000000000000000, AX
	MOVQ (AX), AX
	JMP  survived

	LABEL(4) // pf: a write to address 8
	MOVL $8, AX
	MOVQ AX, (AX)
	JMP  survived

	LABEL(5) // of: the IDT gate of vector 4 lets user code in
	BYTE $0xcd; BYTE $0x04 // int $4
	JMP  survived

	LABEL(6) // ac: EFLAGS.AC, then a misaligned load
	BYTE $0x9c // pushfq
	BYTE $0x48; BYTE $0x81; BYTE $0x0c; BYTE $0x24; BYTE $0x00; BYTE $0x00; BYTE $0x04; BYTE $0x00 // orq $0x40000, (%rsp)
	BYTE $0x9d // popfq
	MOVQ $(PARAMS+1), AX
	MOVQ (AX), AX
	JMP  survived

	LABEL(7) // icebp
	BYTE $0xf1 // int1
	JMP  survived

	LABEL(8) // tf: EFLAGS.TF
	BYTE $0x9c // pushfq
	BYTE $0x48; BYTE $0x81; BYTE $0x0c; BYTE $0x24; BYTE $0x00; BYTE $0x01; BYTE $0x00; BYTE $0x00 // orq $0x100, (%rsp)
	BYTE $0x9d // popfq
	XORL AX, AX
	JMP  survived

	LABEL(9) // xm: MXCSR.ZM cleared, 0/0 and x/0 in SSE
	MOVQ    $PARAMS, AX
	MOVL    $0x1d00, P_SCRATCH(AX)
	LDMXCSR P_SCRATCH(AX)
	PXOR    X1, X1
	MOVL    $0x3f800000, CX
	MOVQ    CX, X0
	DIVSS   X1, X0
	JMP     survived

	LABEL(10) // mf: the x87 control word with ZM cleared, 1/0, then a waiting instruction
	MOVQ $PARAMS, AX
	MOVL $0x037b, P_SCRATCH(AX)
	BYTE $0xd9; BYTE $0x68; BYTE $P_SCRATCH // fldcw P_SCRATCH(%rax)
	BYTE $0xd9; BYTE $0xe8 // fld1
	BYTE $0xd9; BYTE $0xee // fldz
	BYTE $0xde; BYTE $0xf9 // fdivp
	BYTE $0x9b // fwait
	JMP  survived

	LABEL(11) // ss: a non-canonical address through the stack segment
	MOVQ $0x8000000000000000, AX
	BYTE $0x48; BYTE $0x89; BYTE $0xc5 // mov %rax, %rbp
	BYTE $0x48; BYTE $0x8b; BYTE $0x45; BYTE $0x00 // mov (%rbp), %rax
	JMP  survived

	LABEL(12) // pio: the port of the supervisor's own stub (abi.PortSyscall)
	BYTE $0xe6; BYTE $0x80 // out %al, $0x80
	JMP  survived

	LABEL(13) // pio-in: a port that no stub uses
	BYTE $0xe4; BYTE $0x71 // in $0x71, %al
	JMP  survived

	LABEL(14) // hlt
	HLT
	JMP  survived

	LABEL(15) // cli
	CLI
	JMP  survived

	LABEL(16) // msr: IA32_TSC
	MOVL $0x10, CX
	RDMSR
	JMP  survived

	LABEL(17) // cr: a write to CR3
	XORL AX, AX
	BYTE $0x0f; BYTE $0x22; BYTE $0xd8 // mov %rax, %cr3
	JMP  survived

	LABEL(18) // nx: a jump to data (which would be a RET)
	MOVQ $PARAMS, AX
	MOVB $0xc3, P_SCRATCH(AX)
	ADDQ $P_SCRATCH, AX
	JMP  AX

	LABEL(19) // text: a write to the program's own code
	BYTE $0x48; BYTE $0x8d; BYTE $0x05; BYTE $0xf9; BYTE $0xff; BYTE $0xff; BYTE $0xff // lea -7(%rip), %rax: this instruction
	MOVB $0x90, (AX)
	JMP  survived

	LABEL(20) // null: a jump to address 0
	XORL AX, AX
	JMP  AX

	LABEL(21) // stack: overflow into the guard
	BYTE $0x50 // push %rax
	BYTE $0xeb; BYTE $0xfd // jmp to the push

	LABEL(22) // sup: a jump to where the supervisor lives (abi.SupVA)
	MOVQ $0x7fffc0000000, AX
	JMP  AX

	LABEL(23) // jump: a jump to a non-canonical address
	MOVQ $0x8000000000000000, AX
	JMP  AX

	LABEL(24)

survived:
	CALL1(SYS_EXIT_GROUP, $SURVIVED)
	UD2
	LABEL_END
