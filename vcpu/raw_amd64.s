#include "go_asm.h"
#include "textflag.h"

// Everything here runs on threads that the Go runtime does not know: no g, no P, no split stacks.

// func load64(p *uint64) uint64
TEXT ·load64(SB),NOSPLIT,$0-16
	MOVQ p+0(FP), AX
	MOVQ (AX), AX // ORDER(O1): an acquire load on x86 (SDM vol. 3A, 9.2.2); pairs with store64 in Go's sync/atomic. Without it a spin could read a register.
	MOVQ AX, ret+8(FP)
	RET

// func load32(p *uint32) uint32
TEXT ·load32(SB),NOSPLIT,$0-12
	MOVQ p+0(FP), AX
	MOVL (AX), AX
	MOVL AX, ret+8(FP)
	RET

// func warm(c *control)
// Fetches, at once and side by side, what a stop uses one after the other: behind KVM_RUN no page is in the TLB on a back end that has switched address spaces, and the requester's
// lines are in its core's cache. Changes nothing (PREFETCHT0, PREFETCHW: hints, Intel SDM volume 2B); an address that is not mapped is passed over.
TEXT ·warm(SB),NOSPLIT,$0-8
	MOVQ c+0(FP), AX
	MOVQ control_offer(AX), CX
	BYTE $0x0f; BYTE $0x0d; BYTE $0x08 // PREFETCHW (AX): req
	BYTE $0x0f; BYTE $0x0d; BYTE $0x09 // PREFETCHW (CX): in
	MOVQ control_run(AX), BX
	BYTE $0x0f; BYTE $0x0d; BYTE $0x0b // PREFETCHW (BX): immediate_exit's page
	MOVQ control_ledger(AX), BX
	PREFETCHT0 (BX)
	LEAQ control_ackTSC(AX), BX
	BYTE $0x0f; BYTE $0x0d; BYTE $0x0b // PREFETCHW (BX)
	MOVQ offer_ahead(CX), BX
	BYTE $0x0f; BYTE $0x0d; BYTE $0x0b // PREFETCHW (BX): the first word
	RET

// func takeLine(p *uint8)
TEXT ·takeLine(SB),NOSPLIT,$0-8
	MOVQ p+0(FP), AX
	BYTE $0x0f; BYTE $0x0d; BYTE $0x08 // PREFETCHW (AX)
	RET

// func peek(addr uintptr) uint64
TEXT ·peek(SB),NOSPLIT,$0-16
	MOVQ addr+0(FP), AX
	MOVQ (AX), AX
	MOVQ AX, ret+8(FP)
	RET

// func put64(p *uint64, v uint64)
TEXT ·put64(SB),NOSPLIT,$0-16
	MOVQ p+0(FP), AX
	MOVQ v+8(FP), BX
	MOVQ BX, (AX) // ORDER(O2), ORDER(O1): stores are seen in order on x86 (SDM vol. 3A, 9.2.2), and Go moves none past a call; pairs with the reader's two loads of Seq, and with P2. Without the order a reader could take half of an update for whole
	RET

// func poke(addr uintptr, v uint64)
TEXT ·poke(SB),NOSPLIT,$0-16
	MOVQ addr+0(FP), AX
	MOVQ v+8(FP), BX
	XCHGQ BX, (AX) // ORDER(O1): the aligned word is seen whole (AMD APM vol. 2, 7.6.1), and before goG; pairs with V4, and V5 behind it. Without it a vCPU could serialise before the last store
	RET

// func readOwn(pid int64, dst *uint64, src, n uintptr) int64
TEXT ·readOwn(SB),NOSPLIT,$32-40
	MOVQ dst+8(FP), AX
	MOVQ n+24(FP), CX
	MOVQ src+16(FP), DX
	MOVQ AX, 0(SP)
	MOVQ CX, 8(SP)
	MOVQ DX, 16(SP)
	MOVQ CX, 24(SP)
	MOVQ pid+0(FP), DI
	LEAQ 0(SP), SI
	MOVQ $1, DX
	LEAQ 16(SP), R10
	MOVQ $1, R8
	XORL R9, R9
	MOVQ $310, AX // SYS_process_vm_readv
	SYSCALL
	MOVQ AX, ret+32(FP)
	RET

// func store64(p *uint64, v uint64)
TEXT ·store64(SB),NOSPLIT,$0-16
	MOVQ p+0(FP), AX
	MOVQ v+8(FP), BX
	XCHGQ BX, (AX) // ORDER(O1): store and full barrier in one; pairs with the requester's load of ack/synced. Without it the next load could pass the store.
	RET

// func cas64(p *uint64, old, new uint64) bool
TEXT ·cas64(SB),NOSPLIT,$0-25
	MOVQ p+0(FP), CX
	MOVQ old+8(FP), AX
	MOVQ new+16(FP), BX
	LOCK
	CMPXCHGQ BX, (CX) // ORDER(O1): takes one off in or out; pairs with the other vCPUs' and with Set.claim. Without it two could both be the last, or a stop given up be made
	SETEQ ret+24(FP)
	RET

// func storeByte(p *uint8, v uint8)
TEXT ·storeByte(SB),NOSPLIT,$0-9
	MOVQ p+0(FP), AX
	MOVB v+8(FP), BX
	XCHGB BX, (AX) // ORDER(O1): V6 clears immediate_exit, then reads req; pairs with the requester's req, then immediate_exit. Without the barrier both sides could read old values: a lost kick.
	RET

// func add32(p *uint32, d uint32)
TEXT ·add32(SB),NOSPLIT,$0-12
	MOVQ p+0(FP), AX
	MOVL d+8(FP), BX
	LOCK
	XADDL BX, (AX) // ORDER(O1), ORDER(O3): a bell is rung after the word it announces; pairs with the waiter's read of the bell before it looks at that word. Without it the waiter could sleep on news that came.
	RET

// func pause()
TEXT ·pause(SB),NOSPLIT,$0-0
	PAUSE
	RET

// func serialise(kind uint64)
// One architecturally serialising instruction (Intel SDM vol. 3A, 9.3): 1 SERIALIZE, 3 IRET to the next instruction, else CPUID.
TEXT ·serialise(SB),NOSPLIT|NOFRAME,$0-8
	MOVQ kind+0(FP), AX
	CMPQ AX, $3
	JEQ  iret
	CMPQ AX, $1
	JNE  cpuid
	BYTE $0x0f; BYTE $0x01; BYTE $0xe8 // SERIALIZE
	RET
iret:
	// This function's RET, by the instruction that serialises: RIP, CS, RFLAGS, RSP, SS from the stack (vol. 2A, IRET).
	LEAQ -40(SP), CX
	MOVQ 0(SP), DX
	MOVQ DX, 0(CX)
	XORL AX, AX
	MOVW CS, AX
	MOVQ AX, 8(CX)
	PUSHFQ
	POPQ AX
	MOVQ AX, 16(CX)
	LEAQ 8(SP), AX
	MOVQ AX, 24(CX)
	XORL AX, AX
	MOVW SS, AX
	MOVQ AX, 32(CX)
	MOVQ CX, SP
	IRETQ
cpuid:
	XORL AX, AX
	XORL CX, CX
	CPUID
	RET

// func futexWait(p *uint32, v uint32)
// Private futex, no timeout; returns on a wake, at once when *p != v, or spuriously.
TEXT ·futexWait(SB),NOSPLIT,$0-12
	MOVQ p+0(FP), DI
	MOVQ $128, SI // FUTEX_WAIT | FUTEX_PRIVATE_FLAG
	MOVL v+8(FP), DX
	XORL R10, R10
	MOVQ $202, AX // SYS_futex
	SYSCALL
	RET

// func futexWake(p *uint32)
TEXT ·futexWake(SB),NOSPLIT,$0-8
	MOVQ p+0(FP), DI
	MOVQ $129, SI // FUTEX_WAKE | FUTEX_PRIVATE_FLAG
	MOVL $0x7fffffff, DX
	MOVQ $202, AX
	SYSCALL
	RET

// func drain(set *uint64, zero *[2]uint64) bool
// Takes one pending signal of the set off the thread; false when none was pending.
TEXT ·drain(SB),NOSPLIT,$0-17
	MOVQ set+0(FP), DI
	XORL SI, SI
	MOVQ zero+8(FP), DX
	MOVQ $8, R10
	MOVQ $128, AX // SYS_rt_sigtimedwait
	SYSCALL
	CMPQ AX, $0
	SETGT ret+16(FP)
	RET

// func spawn(stackTop uintptr, c *control, entry uintptr) (tid int64)
// A thread of this process that starts in entry(c) and that the Go runtime never hears of. The caller has
// blocked all signals, so none is ever delivered to it: no Go signal handler can run without a g.
TEXT ·spawn(SB),NOSPLIT,$0-32
	MOVQ stackTop+0(FP), SI
	MOVQ c+8(FP), R13
	MOVQ R13, R8 // FS: Go finds g, which is 0, in the word before it
	MOVQ entry+16(FP), R12
	// CLONE_VM|FS|FILES|SIGHAND|THREAD|SYSVSEM|SETTLS|CHILD_CLEARTID|PARENT_SETTID
	MOVQ $0x3d0f00, DI
	LEAQ control_tid(R13), DX  // parent_tid: written before clone returns
	LEAQ control_tid(R13), R10 // child_tid: cleared, and futex-woken, when the thread has ended
	MOVQ $56, AX // SYS_clone
	SYSCALL
	CMPQ AX, $0
	JEQ  child
	MOVQ AX, tid+24(FP)
	RET
child:
	// Go's internal calling convention (cmd/compile/abi-internal.md): the argument in AX with a slot to spill
	// it above the return address, g in R14, zero in X15. Not CALL ·loop(SB): that is a wrapper which the race
	// detector instruments in spite of go:norace, and its hook needs a g.
	XORL BP, BP
	PUSHQ R13
	MOVQ R13, AX
	XORL R14, R14
	XORPS X15, X15
	CALL R12
	XORL DI, DI
	MOVQ $60, AX // SYS_exit: this thread only
	SYSCALL
	INT  $3
