/*
 * patched THREADS: the guest of the patches. Each thread executes site for ever, which is one instruction within eight
 * aligned bytes, then some hundred others, and counts its passes; a constant that is neither of the two ends the program (status 3). No C library.
 */
typedef unsigned long u64;
enum { MOST = 16, STACK = 4096, A = 0x11111111, B = 0x22222222 };
struct { volatile u64 n, pad[7]; } passes[MOST] __attribute__((aligned(64)));
static char stack[MOST][STACK] __attribute__((aligned(16)));

static u64 call(u64 n, u64 a, u64 b, u64 c)
{
	register u64 d __asm__("r10") = 0;
	register u64 e __asm__("r8") = 0;
	__asm__ volatile("syscall" : "+a"(n) : "D"(a), "S"(b), "d"(c), "r"(d), "r"(e) : "rcx", "r11", "memory");
	return n;
}

__asm__(".balign 64\n.globl site\n.type site, @function\nsite: mov $0x11111111,%eax\n ret\n");
extern unsigned site(void);

static __attribute__((noreturn)) void hammer(u64 i)
{
	for (;;) {
		unsigned v = site();
		if (v != A && v != B) call(231, 3, 0, 0);
		for (int k = 0; k < 500; k++) __asm__ volatile("");
		passes[i].n++;
	}
}

void start(u64 *sp)
{
	u64 n = 0;
	if (sp[0] < 2) call(231, 2, 0, 0);
	for (const char *s = (char *)sp[2]; *s;) n = n * 10 + (*s++ - '0');
	if (n < 1 || n > MOST) call(231, 2, 0, 0);
	for (u64 i = 1; i < n; i++) {
		stack[i][0] = 1; /* first touches are not part of what is timed */
		u64 *top = (u64 *)(stack[i] + STACK - 64);
		top[0] = i;
		/* CLONE_VM|FS|FILES|SIGHAND|THREAD|SYSVSEM; the child has nothing on its stack but its number. */
		u64 id;
		register u64 zero10 __asm__("r10") = 0;
		register u64 zero8 __asm__("r8") = 0;
		__asm__ volatile("syscall\n test %%rax,%%rax\n jnz 1f\n pop %%rdi\n call hammered\n 1:"
			: "=a"(id) : "a"(56ul), "D"(0x50f00ul), "S"(top), "d"(0ul), "r"(zero10), "r"(zero8) : "rcx", "r11", "memory");
		if ((long)id < 0) call(231, 4, 0, 0);
	}
	hammer(0);
}

__attribute__((used)) void hammered(u64 i) { hammer(i); }

__asm__(".globl _start\n_start: mov %rsp,%rdi\n and $-16,%rsp\n call start\n");
