// Lostpage touches pages of a shared mapping that lie beyond the file's end, by each kind of instruction that a compiler or a C library
// makes, and prints what the handler of SIGBUS is told of it. With "-" it touches one without a handler.
#define _GNU_SOURCE
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "cloister.h"

static sigjmp_buf again;
static uint8_t *lost; // two pages, between one that is there and nothing
static char stack[65536];

static void told(int sig, siginfo_t *info, void *context)
{
	ucontext_t *u = context;
	printf(" signal %d code %d at %+ld, trap %lld, cr2 %+ld", sig, info->si_code, (long)((uint8_t *)info->si_addr - lost),
	       u->uc_mcontext.gregs[REG_TRAPNO], (long)(u->uc_mcontext.gregs[REG_CR2] - (long)lost));
	siglongjmp(again, 1);
}

#define TRY(what, ...)                         \
	do {                                   \
		printf("%-24s", what);         \
		if (sigsetjmp(again, 1) == 0) { \
			__VA_ARGS__;           \
			printf(" nothing");    \
		}                              \
		printf("\n");                  \
		fflush(stdout);                \
	} while (0)

__attribute__((target("avx"))) static void avx(void)
{
	asm volatile("vmovdqu 0x20(%0), %%ymm0" ::"r"(lost) : "memory");
}

__attribute__((target("avx"))) static void avx_indexed(void)
{
	asm volatile("vmovups %%ymm1, 0x10(%0,%1,4)" ::"r"(lost), "r"(100L) : "memory");
}

__attribute__((target("avx2"))) static void avx_crossing(void)
{
	asm volatile("vmovdqu -5(%0), %%ymm0" ::"r"(lost) : "memory");
}

__attribute__((target("avx512f"))) static void avx512(void)
{
	asm volatile("vmovdqu64 0x80(%0), %%zmm0" ::"r"(lost) : "memory");
}

int main(int argc, char **argv)
{
	char name[] = "lost.XXXXXX", copy[8192];
	int fd = mkstemp(name);
	unlink(name);
	if (fd < 0 || ftruncate(fd, 3 * 4096))
		return 1;
	// After three mapped pages comes one that nobody may touch.
	uint8_t *map = mmap(0, 4 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mmap(map, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
		return 2;
	uint8_t *code = mmap(0, 2 * 4096, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	if (code == MAP_FAILED)
		return 2;
	lost = map + 4096;
	memset(map, 1, 3 * 4096);
	if (ftruncate(fd, 4096))
		return 3;
	if (argc > 1 && !strcmp(argv[1], "-"))
		return *(volatile uint8_t *)(lost + 100);

	stack_t alt = {.ss_sp = stack, .ss_size = sizeof stack};
	struct sigaction sa = {.sa_sigaction = told, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	sigaltstack(&alt, 0);
	sigaction(SIGBUS, &sa, 0);

	TRY("load", (void)*(volatile int *)(lost + 8));
	TRY("store", *(volatile long *)(lost + 4096) = 1);
	TRY("far load", asm volatile("mov -0x12345000(%0), %%rax" ::"r"(lost + 0x12345010) : "rax"));
	TRY("crossing load", (void)*(volatile long *)(lost - 3));
	TRY("add to memory", asm volatile("addl $0x12345678, 0x40(%0,%1,8)" ::"r"(lost), "r"(3L) : "memory"));
	TRY("locked", __atomic_fetch_add((long *)(lost + 64), 1, __ATOMIC_SEQ_CST));
	TRY("compare and exchange", asm volatile("lock cmpxchg16b (%0)" ::"r"(lost + 128) : "rax", "rdx", "rbx", "rcx", "memory"));
	TRY("sse", asm volatile("movdqu 0x30(%0), %%xmm0" ::"r"(lost)));
	TRY("x87", asm volatile("fldt 0x50(%0)" ::"r"(lost)));
	TRY("movbe or bt", asm volatile("btl %1, (%0)" ::"r"(lost), "r"(5)));
	TRY("rep movsb to", asm volatile("rep movsb" ::"D"(lost - 2), "S"(copy), "c"(16L) : "memory"));
	TRY("rep movsb from", asm volatile("rep movsb" ::"D"(copy), "S"(lost - 2), "c"(16L) : "memory"));
	TRY("rep stosq", asm volatile("rep stosq" ::"D"(lost - 16), "a"(0L), "c"(16L) : "memory"));
	TRY("scasb", asm volatile("repne scasb" ::"D"(lost), "a"(0L), "c"(16L) : "memory"));
	TRY("push", asm volatile("mov %%rsp, %%rbx; mov %0, %%rsp; push %%rax; mov %%rbx, %%rsp" ::"r"(lost + 256) : "rbx", "memory"));
	TRY("call", asm volatile("mov %%rsp, %%rbx; mov %0, %%rsp; call *%1; mov %%rbx, %%rsp" ::"r"(lost + 512), "r"(lost) : "rbx", "memory"));
	TRY("push 16 bits", asm volatile("mov %0, %%rsp; pushw %%ax" ::"r"(lost + 256) : "memory"));
	TRY("pop", asm volatile("mov %0, %%rsp; pop %%rax" ::"r"(lost + 256) : "rax", "memory"));
	TRY("pop to memory", asm volatile("mov %0, %%rsp; popq 16(%%rsp)" ::"r"(lost - 24) : "memory"));
	TRY("ret", asm volatile("mov %0, %%rsp; ret" ::"r"(lost + 256) : "memory"));
	TRY("leave", asm volatile("mov %0, %%rsp; mov %1, %%rbp; leave" ::"r"(lost + 256), "r"(lost + 512) : "memory"));
	TRY("rep stosb, rsi lost", asm volatile("rep stosb" ::"D"(lost + 256), "S"(lost + 4101), "c"(8L), "a"(0L) : "memory"));
	TRY("scasb, rsi lost", asm volatile("scasb" ::"D"(lost + 256), "S"(lost + 4101), "a"(0L) : "memory"));
	lost = code + 4096;
	TRY("jump", asm volatile("jmp *%0" ::"r"(lost + 77)));
	TRY("into the next page", memset(map, 0x90, 4096); asm volatile("jmp *%0" ::"r"(lost - 9)));
	lost = map + 4096;
	TRY("memcpy from", memcpy(copy, lost - 100, 5000));
	TRY("memcpy to", memcpy(lost - 100, copy, 5000));
	TRY("memset", memset(lost + 5, 0, 3000));
	memset(map, 1, 4096);
	TRY("strlen", printf("%zu", strlen((char *)lost - 50)));
	if (__builtin_cpu_supports("avx"))
		TRY("avx", avx());
	if (__builtin_cpu_supports("avx"))
		TRY("avx, indexed", avx_indexed());
	if (__builtin_cpu_supports("avx2"))
		TRY("avx, crossing", avx_crossing());
	if (__builtin_cpu_supports("avx512f"))
		TRY("avx512", avx512());
	// A system call is told by its result instead, and none looks at the stack.
	long ret;
	asm volatile("mov %%rsp, %%rbx; mov %1, %%rsp; syscall; mov %%rbx, %%rsp" : "=a"(ret) : "r"(lost + 8), "a"(SYS_getuid) : "rbx", "rcx", "r11", "memory");
	printf("getuid on a lost stack: %d\n", ret == getuid());
	printf("write %zd\n", write(1, lost, 1));
	cloister_isolate(1); // what the pages touch beforehand is no fault of the program
	TRY("sealed load", (void)*(volatile int *)(lost + 8));
	cloister_isolate(0);
	// The file grows again: the pages are there, and empty.
	if (ftruncate(fd, 3 * 4096))
		return 4;
	TRY("load", printf(" %d", *(volatile int *)(lost + 8)));
	return 0;
}
