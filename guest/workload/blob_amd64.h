// Shared by the workloads' assembly files. TestHeaderMatchesGo compares every number with the Go side.

// LABEL(n) names a place of the program: a seven-byte NOP, nopl 0x7f434c00+n(%rax), that the Go side
// finds (blob_unsafe.go). It never stands inside a measuring loop. LABEL_END closes the program.
#define LABEL(n) BYTE $0x0f; BYTE $0x1f; BYTE $0x80; BYTE $n; BYTE $0x4c; BYTE $0x43; BYTE $0x7f
#define LABEL_END LABEL(0xff)

// CALL_TO(n) calls the code behind LABEL(n): a near CALL whose distance the Go side fills in.
#define CALL_TO(n) BYTE $0xe8; BYTE $n; BYTE $0x43; BYTE $0x43; BYTE $0x7f

// Addresses in the generated ELF.
#define PARAMS 0x600000
#define RECORD 0x601000
#define CONTROL 0x603000

// Offsets of params (image.go).
#define P_SEAL 0
#define P_COUNT 8
#define P_PASSES 16
#define P_CYCLES 24
#define P_WARM 32
#define P_DUMP 40
#define P_PHASE 48
#define P_WRITE 56
#define P_SCRATCH 64
#define P_STEPS 256

// Offsets of step (exits.go).
#define S_OP 0
#define S_COUNT 8
#define S_NR 16
#define S_ARG0 24
#define S_ARG1 32
#define S_ARG2 40
#define S_ARG3 48
#define S_ARG4 56
#define S_ARG5 64
#define S_CHECK 72
#define S_WANT 80
#define S_OR 88
#define S_BASE 96
#define S_SIZE 128

#define OP_END 0
#define OP_SYSCALL 1
#define OP_CPUID 2
#define OP_TOUCH 3
#define OP_SEAL 4

#define CHECK_NONE 0
#define CHECK_OK 1
#define CHECK_VALUE 2

#define BASE_SAVE 1
#define BASE_ADD 2

// Offsets of abi.GapRecord.
#define R_THRESHOLD 16
#define R_PERIOD 24
#define R_PASSES 32
#define R_GAPS 40
#define R_STOLEN 48
#define R_MIN 56
#define R_MAX 64
#define R_START 72
#define R_LAST 80
#define R_RINGNEXT 88
#define R_HIST 128
#define R_RING 640
#define R_SIZE 4736
#define R_LASTBUCKET 63
#define R_RINGMASK 255

// Offsets of ControlRecord and ControlChange (control.go).
#define C_WAITS 0
#define C_PERIOD 72
#define C_WORK 80
#define C_LOG 88
#define C_UNTIL 96
#define C_SAMPLE 104
#define C_BEGIN 112
#define C_END 120
#define C_LATEST 128
#define C_OUTPUT 136
#define C_VERSION 144
#define C_CHANGES 152
#define C_PERIODS 160
#define C_MISSED 168
#define C_MIXED 176
#define C_LOST 184
#define C_LINE 192
#define C_SUMMARY 256
#define C_GONE 320
#define C_BUFFER 408
#define C_HISTORY 576
#define C_KEPT 64
#define C_MASK 63
#define H_PERIOD 0
#define H_OUTPUT 8
#define H_VERSION 16
#define H_DUE 24
#define H_SIZE 32
#define RATE_LIMIT 1000

// System calls: Linux's (arch/x86/entry/syscalls/syscall_64.tbl) and Cloister's own (guest/abi).
#define SYS_WRITE 1
#define SYS_EXIT_GROUP 231
#define SYS_ISOLATE 0x434c00
#define SYS_GAPRECORD 0x434c01
#define SYS_SAFEPOINT 0x434c03

// SURVIVED is the status of a @fault program whose instruction did not fault.
#define SURVIVED 77

// A system call as the kernel takes it; RCX, R11 and RAX do not survive it.
#define CALL1(nr, a) MOVL $nr, AX; MOVQ a, DI; SYSCALL

// SEAL seals and goes on at the label that follows it. Refused (-EAGAIN, by --require), the program ends with REFUSED: what it
// would measure is not what was asked for. Natively the call is not known (-ENOSYS), and it goes on.
#define REFUSED 75
#define SEAL(next) CALL1(SYS_ISOLATE, $1); CMPQ AX, $-11; JNE next; CALL1(SYS_EXIT_GROUP, $REFUSED); UD2

// NOW reads the TSC into AX, after all earlier instructions (Intel SDM vol. 2B, RDTSC: LFENCE before it).
// ORDER(none): no other thread is concerned; the fence keeps work of this pass out of the next one's delta.
#define NOW LFENCE; RDTSC; SHLQ $32, DX; ORQ DX, AX
