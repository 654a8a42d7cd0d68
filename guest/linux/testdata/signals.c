// What a program can see of signals, printed. TestSignalPrograms compares a native run with a served one.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

struct sigframe_context {  // the parts of ucontext that the C library does not show
	unsigned long flags;
	void *link;
	stack_t stack;
	uint64_t gregs[23];
	unsigned char *fpstate;
	uint64_t reserved[8];
	uint64_t mask;
};
static volatile int hits, faulted;
static int order[64];
static char alt[65536] __attribute__((aligned(4096)));
uint64_t self;

static long call(long nr, long a, long b, long c, long d) {
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = 8;  // the size of a mask, where a call takes one there
	long ret;
	__asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
	return ret;
}

static void set(int sig, void (*h)(int, siginfo_t *, void *), int flags) {
	struct sigaction sa;
	memset(&sa, 0, sizeof sa);
	sa.sa_sigaction = h;
	sa.sa_flags = SA_SIGINFO | flags;
	if (sigaction(sig, &sa, 0)) perror("sigaction");
}

static void show(int sig, siginfo_t *si, void *ucp) {
	struct sigframe_context *uc = ucp;
	uintptr_t frame = (uintptr_t)uc - 8;
	uint32_t *sw = (uint32_t *)(uc->fpstate + 464);
	uint64_t *header = (uint64_t *)(uc->fpstate + 512);
	printf("sig %d code %d from me %d uid %d\n", sig, si->si_code, si->si_pid == getpid(), si->si_uid == getuid());
	printf("flags %lx link %p stack %d %zu\n", uc->flags, (void *)uc->link, uc->stack.ss_flags, uc->stack.ss_size);
	printf("mask %lx oldmask %lx\n", uc->mask, uc->gregs[21]);
	printf("frame %% 16 = %lu, fpstate %% 64 = %lu, fp above the frame %d, red zone kept %d, info %ld behind\n", frame % 16, (uintptr_t)uc->fpstate % 64,
		(uintptr_t)uc->fpstate > (uintptr_t)si, (uintptr_t)uc->fpstate + sw[4] + 4 + 128 <= uc->gregs[REG_RSP] || uc->stack.ss_size, (long)((char *)si - (char *)uc));
	printf("gap %d\n", (int)((uintptr_t)uc->fpstate - frame));
	printf("sw %x %u %x%08x %u pad %u magic2 %x header %x comp %lx\n", sw[0], sw[1], sw[3], sw[2], sw[4], sw[5] | sw[11], *(uint32_t *)(uc->fpstate + sw[4]), (int)header[0] & 3, header[1]);
	printf("cs %lx\n", uc->gregs[REG_CSGSFS]);
	if (faulted) printf("trap %lu err %lu\n", uc->gregs[REG_TRAPNO], uc->gregs[REG_ERR]);  // before, what exec left there
	printf("efl %lx rcx is rip %d r11 is efl %d\n", uc->gregs[REG_EFL] & 0x10500, uc->gregs[REG_RCX] == uc->gregs[REG_RIP], uc->gregs[REG_R11] == uc->gregs[REG_EFL]);
	hits++;
}

// at_entry looks at the registers a handler begins with.
volatile uint64_t entry_state[8];
void at_entry_c(void) { hits++; }
__asm__(
	".globl at_entry\nat_entry:\n"
	"pushfq\npopq entry_state+40(%rip)\n"
	"movq %rdi, entry_state(%rip)\nmovq %rsi, entry_state+8(%rip)\nmovq %rdx, entry_state+16(%rip)\nmovq %rax, entry_state+24(%rip)\nmovq %rsp, entry_state+32(%rip)\n"
	"stmxcsr entry_state+48(%rip)\nfnstcw entry_state+56(%rip)\n"
	"subq $8, %rsp\ncall at_entry_c\naddq $8, %rsp\nret\n");
void at_entry(int, siginfo_t *, void *);

static void note(int sig, siginfo_t *si, void *uc) {
	(void)uc;
	order[hits++] = sig * 1000 + si->si_value.sival_int;
}

static sigjmp_buf out;
static void fault(int sig, siginfo_t *si, void *ucp) {
	struct sigframe_context *uc = ucp;
	printf("fault %d code %d addr %lx trap %lu err %lu cr2 %lx\n", sig, si->si_code, (long)si->si_addr & 0xffff, uc->gregs[REG_TRAPNO], uc->gregs[REG_ERR], uc->gregs[REG_CR2] & 0xffff);
	siglongjmp(out, 1);
}
static void skip(int sig, siginfo_t *si, void *ucp) {  // goes on behind the instruction, with another register
	struct sigframe_context *uc = ucp;
	uc->gregs[REG_RIP] += 2;
	uc->gregs[REG_RBX] = 77;
	printf("skip %d %d\n", sig, si->si_code);
}
static void repair(int sig, siginfo_t *si, void *uc) {
	(void)sig, (void)uc;
	mprotect((void *)((uintptr_t)si->si_addr & ~4095ul), 4096, PROT_READ | PROT_WRITE);
	hits++;
}

// registers: every register survives a handler that spoils them all.
static uint32_t fresh_csr;
static void spoil(int sig, siginfo_t *si, void *uc) {
	(void)sig, (void)si, (void)uc;
	__asm__ volatile("stmxcsr %0" : "=m"(fresh_csr));
	__asm__ volatile("vpxor %%ymm0,%%ymm0,%%ymm0\nvpcmpeqd %%ymm7,%%ymm7,%%ymm7\nvpcmpeqd %%ymm15,%%ymm15,%%ymm15\nfninit\nfldpi\n" ::: "xmm0", "xmm7", "xmm15");
	hits++;
}
static void registers(void) {
	static uint64_t in[4] __attribute__((aligned(32))) = {1, 2, 3, 4}, o0[4] __attribute__((aligned(32))), o7[4] __attribute__((aligned(32)));
	static uint32_t csr = 0x3f80, csr2;
	static uint16_t cw = 0x27f, cw2;
	static uint64_t r[10];
	long ret;
	set(SIGUSR1, spoil, 0);
	__asm__ volatile(
		"vmovdqa %[in], %%ymm0\nvmovdqa %[in], %%ymm7\nldmxcsr %[csr]\nfldcw %[cw]\n"
		"movq $11,%%rbx\nmovq $12,%%r8\nmovq $13,%%r9\nmovq $14,%%r10\nmovq $15,%%r12\nmovq $16,%%r13\nmovq $17,%%r14\nmovq $18,%%r15\nmovq $19,%%rdx\nstd\n"
		"movq $62,%%rax\nmovq self(%%rip),%%rdi\nmovq $10,%%rsi\nsyscall\n"
		"pushfq\npopq %%rcx\ncld\nmovq %%rcx,72+%[r]\n"
		"movq %%rbx,%[r]\nmovq %%r8,8+%[r]\nmovq %%r9,16+%[r]\nmovq %%r10,24+%[r]\nmovq %%r12,32+%[r]\nmovq %%r13,40+%[r]\nmovq %%r14,48+%[r]\nmovq %%r15,56+%[r]\nmovq %%rdx,64+%[r]\n"
		"vmovdqa %%ymm0,%[o0]\nvmovdqa %%ymm7,%[o7]\nstmxcsr %[csr2]\nfnstcw %[cw2]\n"
		: "=a"(ret), [o0] "=m"(o0), [o7] "=m"(o7), [csr2] "=m"(csr2), [cw2] "=m"(cw2), [r] "+m"(r)
		: [in] "m"(in), [csr] "m"(csr), [cw] "m"(cw)
		: "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm7", "memory", "cc");
	printf("kill %ld:", ret);
	for (int i = 0; i < 9; i++) printf(" %lu", r[i]);
	printf(" DF %d ymm %lu %lu %lu %lu csr %x cw %x hits %d handler %x\n", (int)(r[9] >> 10 & 1), o0[0], o0[3], o7[1], o7[2], csr2, cw2, hits, fresh_csr);
	__asm__ volatile("fninit");
	csr = 0x1f80;
	__asm__ volatile("ldmxcsr %0" ::"m"(csr));
}

static void nested(int sig, siginfo_t *si, void *uc) {
	(void)si, (void)uc;
	static int depth;
	stack_t ss;
	sigaltstack(0, &ss);
	char c;
	printf("%*sin %d on alt %d flags %x\n", depth * 2, "", sig, &c >= alt && &c < alt + sizeof alt, ss.ss_flags);
	if (depth++ == 0 && sig == SIGUSR1) {
		ss.ss_flags = 0;
		printf("change while on it: %d %d\n", sigaltstack(&ss, 0), errno);
		raise(SIGUSR2);
	}
	depth--;
	printf("%*sout %d\n", depth * 2, "", sig);
}

static void onSuspend(int sig, siginfo_t *si, void *ucp) {
	(void)si;
	sigset_t now;
	sigprocmask(0, 0, &now);
	printf("suspended: %d, mask now %lx, saved %lx\n", sig, *(uint64_t *)&now, ((struct sigframe_context *)ucp)->mask);
}

static void clear_mask(void) {
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, 0);
}
static void block(int sig) {
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, sig);
	sigprocmask(SIG_BLOCK, &s, 0);
}
static void unblock(int sig) {
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, sig);
	sigprocmask(SIG_UNBLOCK, &s, 0);
}
static void printOrder(const char *what) {
	printf("%s:", what);
	for (int i = 0; i < hits; i++) printf(" %d", order[i]);
	printf("\n");
	hits = 0;
}

static void hostile(int which) {
	// A frame of our own making: the handler's, changed, then rt_sigreturn.
	static const char *names[] = {"rip not canonical", "mxcsr", "xstate_bv", "xcomp_bv", "reserved header", "no fpstate", "bad fpstate", "unaligned fpstate", "magic1", "magic2", "cs", "flags", "features", "size"};
	printf("%s: ", names[which]);
	fflush(stdout);
}
static int which;
static void forge(int sig, siginfo_t *si, void *ucp) {
	(void)sig, (void)si;
	struct sigframe_context *uc = ucp;
	uint64_t *header = (uint64_t *)(uc->fpstate + 512);
	uint32_t *sw = (uint32_t *)(uc->fpstate + 464);
	hits++;
	switch (which) {
	case 0: uc->gregs[REG_RIP] = 0x1234567890abcdef; break;
	case 1: *(uint32_t *)(uc->fpstate + 24) = 0xffffffff; break;
	case 2: header[0] |= 1ul << 62; break;
	case 3: header[1] = 1; break;
	case 4: header[5] = 1; break;
	case 5: uc->fpstate = 0; break;
	case 6: uc->fpstate = (unsigned char *)16; break;
	case 7: memmove(uc->fpstate + 16, uc->fpstate, sw[4] + 4); uc->fpstate += 16; break;
	case 8: sw[0] = 7; *(uint32_t *)(uc->fpstate + 24) = 0x5f80; break;
	case 9: *(uint32_t *)(uc->fpstate + sw[4]) = 0; *(uint32_t *)(uc->fpstate + 24) = 0x5f80; break;
	case 10: break;
	case 11: uc->gregs[REG_EFL] = 0x3fffff & ~0x100ul & ~0x400ul & ~0x40000ul; break;
	case 12: sw[2] = 1; sw[3] = 0; *(uint32_t *)(uc->fpstate + 24) = 0x5f80; break;
	case 13: sw[4] = 0x7fffffff; break;
	}
}
static void segv(int sig, siginfo_t *si, void *ucp) {
	struct sigframe_context *uc = ucp;
	printf("SIGSEGV %d code %d addr %lx trap %lu rip %s; ", sig, si->si_code, (long)si->si_addr, uc->gregs[REG_TRAPNO], uc->gregs[REG_RIP] >> 47 ? "bad" : "good");
	siglongjmp(out, 1);
}

static void die(int how) {
	stack_t ss = {.ss_sp = alt, .ss_size = 2048};
	fflush(stdout);
	switch (how) {
	case 0: signal(SIGSEGV, SIG_IGN); *(volatile int *)8 = 1; break;
	case 1: block(SIGSEGV); set(SIGSEGV, fault, 0); *(volatile int *)8 = 1; break;
	case 2:  // no stack for the frame, and none for SIGSEGV's
		set(SIGUSR1, note, 0);
		set(SIGSEGV, note, 0);
		__asm__ volatile("movq %0, %%rax\nmovq self(%%rip), %%rdi\nmovq $10, %%rsi\nmovq $4096, %%rsp\nsyscall\nhlt" ::"i"(SYS_kill));
		break;
	case 3:  // the alternate stack is too small for a frame
		sigaltstack(&ss, 0);
		set(SIGUSR1, note, SA_ONSTACK);
		raise(SIGUSR1);
		printf("survived %d\n", hits);
		break;
	case 4: {  // no restorer
		struct { void *h; unsigned long f; void *r; uint64_t m; } sa = {(void *)note, SA_SIGINFO, 0, 0};
		call(SYS_rt_sigaction, SIGUSR1, (long)&sa, 0, 8);
		raise(SIGUSR1);
		break;
	}
	case 5: __asm__ volatile("movq $8, %%rsp\nmovq $15, %%rax\nsyscall\nhlt" ::: "memory"); break;
	case 6: abort();
	case 7: block(SIGTERM); raise(SIGTERM); puts("blocked"); fflush(stdout); unblock(SIGTERM); break;
	case 8: { struct { uint64_t h, f; void *r; uint64_t m; } sa = {1ul << 60, 0x4000000, (void *)note, 0};
		call(SYS_rt_sigaction, SIGUSR1, (long)&sa, 0, 8); raise(SIGUSR1); break; }
	case 9: raise(SIGRTMAX); break;
	case 10: set(SIGUSR1, note, SA_RESETHAND); raise(SIGUSR1); printf("once %d\n", hits); fflush(stdout); raise(SIGUSR1); break;
	}
	printf("alive\n");
	exit(9);
}

int main(int argc, char **argv) {
	self = getpid();
	setvbuf(stdout, 0, _IOLBF, 4096);
	if (argc > 1) die(atoi(argv[1]));
	set(SIGUSR1, show, 0);
	raise(SIGUSR1);
	block(SIGWINCH);
	kill(getpid(), SIGUSR1);
	clear_mask();
	set(SIGUSR1, at_entry, 0);
	raise(SIGUSR1);
	printf("entry %lu rax %lu rsp%%16 %lu info %ld uc %ld flags %lx mxcsr %lx fcw %lx\n", entry_state[0], entry_state[3], entry_state[4] % 16, entry_state[1] - entry_state[4], entry_state[2] - entry_state[4], entry_state[5] & 0x10500, entry_state[6] & 0xffffffff, entry_state[7] & 0xffff);
	registers();
	hits = 0;

	// Order and queues.
	for (int s = SIGRTMIN + 3; s >= SIGRTMIN; s--) set(s, note, 0), block(s);
	int std[] = {SIGTERM, SIGUSR2, SIGHUP, SIGSEGV};
	for (int i = 0; i < 4; i++) {
		set(std[i], note, 0);
		block(std[i]);
		raise(std[i]);
		kill(getpid(), std[i]);
		raise(std[i]);
	}
	for (int i = 0; i < 3; i++)
		for (int s = SIGRTMIN + 2; s >= SIGRTMIN; s--) {
			union sigval v = {.sival_int = i + 1};
			if (sigqueue(getpid(), s, v)) perror("sigqueue");
		}
	sigset_t pend;
	sigpending(&pend);
	printf("pending %lx\n", *(uint64_t *)&pend);
	clear_mask();
	printOrder("nested");

	// sigtimedwait, sigwaitinfo.
	block(SIGRTMIN);
	union sigval v = {.sival_int = 5};
	sigqueue(getpid(), SIGRTMIN, v);
	sigset_t w;
	sigemptyset(&w);
	sigaddset(&w, SIGRTMIN);
	siginfo_t si;
	struct timespec zero = {0, 0}, ms = {0, 2000000};
	printf("waited %d", sigwaitinfo(&w, &si));
	printf(" code %d value %d mine %d\n", si.si_code, si.si_value.sival_int, si.si_pid == getpid());
	printf("empty %d", sigtimedwait(&w, &si, &zero));
	printf(" %d", errno);
	printf(" later %d", sigtimedwait(&w, &si, &ms));
	printf(" %d\n", errno);
	unblock(SIGRTMIN);

	// Faults.
	set(SIGSEGV, fault, 0);
	set(SIGILL, fault, 0);
	set(SIGFPE, fault, 0);
	set(SIGTRAP, fault, 0);
	set(SIGBUS, fault, 0);
	if (!sigsetjmp(out, 1)) printf("%d\n", *(volatile int *)0x1238);
	char *p = mmap(0, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!sigsetjmp(out, 1)) __asm__ volatile("ud2");
	if (!sigsetjmp(out, 1)) printf("%d\n", *(volatile int *)0x1234567890abcdef);
	if (!sigsetjmp(out, 1)) __asm__ volatile("xorl %%ecx, %%ecx\nmovl $1, %%eax\ncltd\nidivl %%ecx" ::: "eax", "ecx", "edx");
	set(SIGILL, skip, 0);
	long b;
	__asm__ volatile("ud2" : "=b"(b));
	printf("rbx %ld\n", b);
	set(SIGSEGV, repair, 0);
	p[5] = 6;
	faulted = 1;
	printf("repaired %d %d\n", p[5], p[6]);

	// Alternate stack.
	stack_t ss = {.ss_sp = alt, .ss_size = sizeof alt}, old;
	printf("altstack %d", sigaltstack(&ss, &old));
	printf(" %d %zu\n", old.ss_flags, old.ss_size);
	set(SIGUSR1, nested, SA_ONSTACK);
	set(SIGUSR2, nested, SA_ONSTACK);
	raise(SIGUSR1);
	set(SIGUSR2, nested, 0);
	raise(SIGUSR2);
	ss.ss_flags = 1 << 31;
	printf("autodisarm %d\n", sigaltstack(&ss, 0));
	raise(SIGUSR1);
	sigaltstack(0, &old);
	printf("armed again %x %zu\n", old.ss_flags, old.ss_size);
	set(SIGUSR1, show, SA_ONSTACK);
	raise(SIGUSR1);
	ss.ss_size = 2047, ss.ss_flags = 0;
	printf("small %d", sigaltstack(&ss, 0));
	printf(" %d", errno);
	ss.ss_flags = 5;
	printf(" mode %d", sigaltstack(&ss, 0));
	printf(" %d\n", errno);
	ss.ss_flags = SS_DISABLE;
	sigaltstack(&ss, 0);

	// SA_NODEFER, sa_mask.
	hits = 0;
	set(SIGUSR1, note, SA_NODEFER);
	block(SIGUSR2);
	raise(SIGUSR2);
	set(SIGUSR2, onSuspend, 0);
	uint64_t without = 1;
	call(SYS_rt_sigsuspend, (long)&without, 8, 0, 0);
	sigprocmask(0, 0, &pend);
	printf("after suspend %lx\n", *(uint64_t *)&pend);
	raise(SIGUSR2);
	struct pollfd none = {-1, 0, 0};
	struct timespec rest = {0, 3000000};
	uint64_t mask = 0;
	long r = call(SYS_ppoll, (long)&none, 1, (long)&rest, (long)&mask);
	printf("ppoll %ld\n", r);
	raise(SIGUSR2);
	struct { uint64_t *p; size_t n; } ps = {&mask, 8};
	register long r10 __asm__("r10") = 0;
	register long r8 __asm__("r8") = 0;
	register long r9 __asm__("r9") = (long)&ps;
	__asm__ volatile("syscall" : "=a"(r) : "a"(SYS_pselect6), "D"(0), "S"(0), "d"(0), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	printf("pselect %ld\n", r);
	// Ready descriptors come before the signal, which then stays blocked.
	raise(SIGUSR2);
	int fds[2];
	if (pipe(fds) || write(fds[1], "x", 1) != 1) perror("pipe");
	struct pollfd pf = {fds[0], POLLIN, 0};
	printf("ready %d\n", ppoll(&pf, 1, 0, (sigset_t *)&mask));
	sigpending(&pend);
	printf("still pending %lx\n", *(uint64_t *)&pend);
	clear_mask();

	// What a program may not do.
	printf("errors %ld %ld %ld %ld %ld %ld %ld %ld\n", call(SYS_kill, self, 65, 0, 0), call(SYS_kill, 0x7fffffff, 65, 0, 0), call(SYS_tkill, self, 65, 0, 0), call(SYS_tkill, 0x7fffffff, 65, 0, 0),
		call(SYS_tkill, 0, 1, 0, 0), call(SYS_tgkill, self, 0x7ffffff0, 0, 0), call(SYS_tgkill, self, self, 100, 0), call(SYS_tgkill, -1, self, 0, 0));
	siginfo_t forged;
	memset(&forged, 0, sizeof forged);
	forged.si_code = -100;
	forged.si_signo = 77;
	printf("queue %ld", call(SYS_rt_sigqueueinfo, self, 0, (long)&forged, 0));
	((char *)&forged)[100] = 1;
	printf(" %ld", call(SYS_rt_sigqueueinfo, self, 0, (long)&forged, 0));
	forged.si_code = SI_QUEUE;
	printf(" %ld %ld %ld", call(SYS_rt_sigqueueinfo, self, 0, (long)&forged, 0), call(SYS_rt_sigqueueinfo, 0x7fffffff, 0, (long)&forged, 0), call(SYS_rt_sigqueueinfo, 0, 0, (long)&forged, 0));
	forged.si_code = SI_USER;
	printf(" %ld %ld %ld\n", call(SYS_rt_sigqueueinfo, 0x7fffffff, 0, (long)&forged, 0), call(SYS_rt_tgsigqueueinfo, self, self, 0, (long)&forged), call(SYS_rt_tgsigqueueinfo, 0, self, 0, (long)&forged));

	// Frames that nobody made.
	for (which = 0; which < 14; which++) {
		hostile(which);
		set(SIGUSR1, forge, 0);
		set(SIGSEGV, segv, SA_NODEFER);
		uint32_t csr = 0;
		if (!sigsetjmp(out, 1)) {
			long ret, fl;
			__asm__ volatile("xorl %%eax, %%eax\nmovq $62, %%rax\nmovq self(%%rip), %%rdi\nmovq $10, %%rsi\nsyscall\npushfq\npopq %1\nstmxcsr %2\n" : "=&a"(ret), "=r"(fl), "=m"(csr)::"rcx", "r11", "rdi", "rsi", "memory", "cc");
			uint32_t good = 0x1f80;
			__asm__ volatile("ldmxcsr %0\nfninit" ::"m"(good));
			printf("returned %ld efl %lx csr %x\n", ret, fl & ~0x202ul & 0x3ffff, csr);
		} else {
			printf("caught\n");
		}
		clear_mask();
	}
	return 0;
}
