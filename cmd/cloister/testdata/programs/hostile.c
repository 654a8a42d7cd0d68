/*
 * hostile CASE [ADDRESS]: does one thing that no decent program does. Each case ends the program at most; where
 * Linux defines what happens, the tests compare with a native run. A case that returns prints "survived".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096 };
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
#define FIXED ((void *)0x300000000)

static uintptr_t address; /* of the command line */
static volatile unsigned char sink;
int main(int, char **);

static unsigned char *map(int prot, size_t n)
{
	unsigned char *p = mmap(NULL, n, prot, ANON, -1, 0);

	if (p == MAP_FAILED) {
		perror("mmap");
		exit(90);
	}
	return p;
}

static void must(int r)
{
	if (r != 0) {
		perror("must");
		exit(91);
	}
}

static void zero(const char *what, const unsigned char *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (p[i] != 0) {
			printf("%s: byte %zu is %#x\n", what, i, p[i]);
			exit(92);
		}
	printf("%s: zero\n", what);
}

/* Translations: no stale one may serve. */
static void munmap_touch(void) { unsigned char *p = map(RW, PAGE); *p = 1; must(munmap(p, PAGE)); sink = *p; }
static void munmap_write(void) { unsigned char *p = map(RW, 3 * PAGE); memset(p, 1, 3 * PAGE); must(munmap(p + PAGE, PAGE)); p[0] = p[2 * PAGE] = 2; p[PAGE] = 1; }
static void ro_write(void) { unsigned char *p = map(RW, PAGE); *p = 1; must(mprotect(p, PAGE, PROT_READ)); sink = *p; *p = 2; }
static void none_read(void) { unsigned char *p = map(RW, PAGE); *p = 1; must(mprotect(p, PAGE, PROT_NONE)); sink = *p; }
static void none_back(void)
{
	unsigned char *p = map(RW, PAGE);

	*p = 7;
	must(mprotect(p, PAGE, PROT_NONE));
	must(mprotect(p, PAGE, RW));
	printf("%d\n", *p);
}
static void nx_exec(void)
{
	unsigned char *p = map(RW, PAGE);

	*p = 0xc3; /* ret */
	must(mprotect(p, PAGE, PROT_READ | PROT_EXEC));
	((void (*)(void))p)();
	puts("executed");
	fflush(stdout);
	must(mprotect(p, PAGE, RW));
	*p = 0xc3;
	((void (*)(void))p)();
}
static void rx_write(void)
{
	unsigned char *p = map(RW, PAGE);

	*p = 0xc3;
	must(mprotect(p, PAGE, PROT_READ | PROT_EXEC));
	((void (*)(void))p)();
	*p = 0x90;
}
static void data_exec(void) { static unsigned char code[] = {0xc3}; ((void (*)(void))code)(); }
static void stack_exec(void) { volatile unsigned char code[] = {0xc3}; ((void (*)(void))code)(); }
static void remap_zero(void)
{
	unsigned char *p = mmap(FIXED, 8 * PAGE, RW, ANON | MAP_FIXED, -1, 0), *q;
	char *b;

	memset(p, 0x55, 8 * PAGE);
	must(munmap(p, 8 * PAGE));
	p = mmap(FIXED, 8 * PAGE, RW, ANON | MAP_FIXED, -1, 0);
	zero("after munmap", p, 8 * PAGE);
	memset(p, 0x55, 8 * PAGE);
	p = mmap(FIXED, 8 * PAGE, RW, ANON | MAP_FIXED, -1, 0);
	zero("after MAP_FIXED", p, 8 * PAGE);
	memset(p, 0x55, 8 * PAGE);
	must(madvise(p, 8 * PAGE, MADV_DONTNEED));
	zero("after MADV_DONTNEED", p, 8 * PAGE);
	memset(p, 0x55, 8 * PAGE);
	q = mremap(p, 8 * PAGE, 2 * PAGE, 0);
	q = mremap(q, 2 * PAGE, 8 * PAGE, MREMAP_MAYMOVE);
	printf("%d %d\n", q[0], q[2 * PAGE - 1]);
	zero("after mremap", q + 2 * PAGE, 6 * PAGE);
	b = sbrk(16 * PAGE);
	memset(b, 0x55, 16 * PAGE);
	sbrk(-16 * PAGE);
	b = sbrk(16 * PAGE);
	zero("after brk", (unsigned char *)b, 16 * PAGE);
}
static void mremap_old(void)
{
	unsigned char *p = map(RW, 2 * PAGE), *q;

	p[5] = 9;
	q = mremap(p, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, FIXED);
	printf("%d\n", q[5]);
	fflush(stdout);
	sink = p[5];
}
static void brk_touch(void) { char *b = sbrk(4 * PAGE); b = (char *)(((uintptr_t)b + PAGE) & -PAGE); b[0] = 1; brk(b); sink = b[0]; }
static void file_past_end(void)
{
	FILE *f = fopen("mapped", "w+");
	unsigned char *p;

	if (!f || remove("mapped") != 0 || ftruncate(fileno(f), PAGE) != 0)
		exit(93);
	p = mmap(NULL, 2 * PAGE, RW, MAP_SHARED, fileno(f), 0);
	p[1] = 3;
	if (ftruncate(fileno(f), 0) != 0)
		exit(94);
	sink = p[1];
}
static void null_read(void) { sink = *(volatile unsigned char *)8; }
static void recurse(void)
{
	volatile char big[2000];

	big[0] = 1;
	recurse();
	sink = big[0];
}

/* Its own ground. */
static void unmap_text(void) { munmap((void *)((uintptr_t)main & -PAGE), PAGE); puts("never"); }
static void unmap_stack(void) { munmap((void *)(((uintptr_t)__builtin_frame_address(0) & -PAGE) - 2 * PAGE), 3 * PAGE); }
static void fixed_stack(void) { mmap((void *)(((uintptr_t)__builtin_frame_address(0) & -PAGE) - 2 * PAGE), 3 * PAGE, RW, ANON | MAP_FIXED, -1, 0); }
static void text_write(void) { *(volatile unsigned char *)main = 0; }
static void text_mprotect(void)
{
	uintptr_t at = (uintptr_t)main & -PAGE;

	if (mprotect((void *)at, PAGE, PROT_READ | PROT_EXEC) != 0)
		exit(95);
	puts("still here");
}
static void text_fixed(void) { mmap((void *)((uintptr_t)text_mprotect & -PAGE), PAGE, RW, ANON | MAP_FIXED, -1, 0); text_mprotect(); }
static void vdso_unmap(void)
{
	struct timespec t;

	munmap((void *)getauxval(AT_SYSINFO_EHDR), 2 * PAGE);
	clock_gettime(CLOCK_MONOTONIC, &t);
}
static void vdso_write(void) { *(volatile char *)getauxval(AT_SYSINFO_EHDR) = 0; }
static void vdso_fixed(void)
{
	unsigned char *v = (void *)getauxval(AT_SYSINFO_EHDR);

	v = mmap(v, PAGE, RW, ANON | MAP_FIXED, -1, 0);
	if (v == MAP_FAILED) {
		printf("refused: %d\n", errno);
		return;
	}
	zero("vdso", v, PAGE);
	*v = 1;
}

/* Instructions. */
#define INSN(name, code) static void name(void) { __asm__ volatile(code ::: "memory", "rax", "rcx", "rdx", "rbx", "r11"); }
INSN(out80, "out %%al, $0x80")
INSN(out81, "out %%al, $0x81")
INSN(out20, "out %%al, $0x20")
INSN(out2e, "out %%al, $0x2e")
INSN(out82, "out %%al, $0x82")
INSN(in80, "in $0x80, %%al")
INSN(outdx, "mov $0x80, %%edx; mov %%dx, %%ax; out %%ax, %%dx")
INSN(outsb_, "mov $0x80, %%edx; mov %%rsp, %%rsi; mov $1, %%ecx; rep outsb")
INSN(lgdt_, "sub $16, %%rsp; lgdt (%%rsp); add $16, %%rsp")
INSN(lidt_, "sub $16, %%rsp; lidt (%%rsp); add $16, %%rsp")
INSN(ltr_, "xor %%eax, %%eax; ltr %%ax")
INSN(invlpg_, "invlpg (%%rsp)")
INSN(swapgs_, "swapgs")
INSN(clts_, "clts")
INSN(wbinvd_, "wbinvd")
INSN(wrmsr_, "mov $0xc0000082, %%ecx; xor %%eax, %%eax; xor %%edx, %%edx; wrmsr")
INSN(cr0_, "mov %%cr0, %%rax")
INSN(dr7_, "mov %%rax, %%dr7")
INSN(xsetbv_, "xor %%ecx, %%ecx; xor %%edx, %%edx; mov $1, %%eax; xsetbv")
INSN(sysretq_, "sysretq")
INSN(iret0, "mov %%rsp, %%rax; push $0x18; push %%rax; pushfq; push $0x10; lea 1f(%%rip), %%rax; push %%rax; iretq; 1:")
INSN(far0, "push $0x10; lea 1f(%%rip), %%rax; push %%rax; lretq; 1:")
INSN(ss0, "mov $0x18, %%eax; mov %%ax, %%ss")
INSN(int20, "int $0x20")
INSN(int8, "int $8")
INSN(int14, "int $14")
INSN(tf_syscall, "mov $39, %%eax; pushfq; orl $0x100, (%%rsp); popfq; syscall; nop")
INSN(df_syscall, "mov $39, %%eax; std; syscall; cld")
INSN(nt_syscall, "mov $39, %%eax; pushfq; orl $0x4000, (%%rsp); popfq; syscall; pushfq; andl $0xffffbfff, (%%rsp); popfq")
INSN(ac_syscall, "mov $39, %%eax; pushfq; orl $0x40000, (%%rsp); popfq; syscall; pushfq; andl $0xfffbffff, (%%rsp); popfq")
INSN(rsp_syscall, "mov $39, %%eax; mov %%rsp, %%rbx; mov $0x1234567890abcdef, %%rsp; syscall; mov %%rbx, %%rsp")
INSN(rsp_zero, "xor %%esp, %%esp; push %%rax")
INSN(rsp_fault, "mov $0x1234567890abcdef, %%rsp; ud2")
INSN(ds_load, "mov $0x2b, %%eax; mov %%ax, %%ds; mov %%ax, %%es")
INSN(nonsense, ".byte 0x0f, 0x0b, 0xff, 0xff")
INSN(vmcall_, "vmcall")
INSN(vmmcall_, "vmmcall")
INSN(long_nop, ".rept 16; .byte 0x66; .endr; nop")
INSN(lock_nop, ".byte 0xf0, 0x90")

/* Addresses of the command line. */
static void jump(void) { __asm__ volatile("lea 1f(%%rip), %%rcx; mov $0x202, %%r11d; mov $39, %%eax; xor %%edi, %%edi; xor %%esi, %%esi; jmp *%0; 1:" ::"r"(address) : "rax", "rcx", "rdi", "rsi", "r11", "memory"); }
static void jump_here(void) { __asm__ volatile("mov %%rsp, %%rdi; lea 8(%%rsp), %%rsi; jmp *%0" ::"r"(address) : "rdi", "rsi", "memory"); }
static void jump_spin(void) { __asm__ volatile("mov %0, %%rdi; jmp *%0" ::"r"(address) : "rdi", "memory"); }
static void peek(void) { sink = *(volatile unsigned char *)address; }
static void poke(void) { *(volatile unsigned char *)address = 0; }
static void map_there(void)
{
	void *p = mmap((void *)address, PAGE, RW, ANON | MAP_FIXED, -1, 0);

	printf("mmap %s\n", p == MAP_FAILED ? "refused" : "done");
	printf("munmap %d\n", munmap((void *)address, PAGE) == 0 || errno == EINVAL);
	printf("mprotect %d\n", mprotect((void *)address, PAGE, RW));
	printf("write %zd\n", write(1, (void *)address, 1));
	printf("read %zd\n", syscall(SYS_getrandom, address, 16, 0));
}

/* pointers gives bad pointers to every call that takes one; the results are natively the same. */
static void pointers(void)
{
	unsigned char *edge = mmap(FIXED, 3 * PAGE, RW, ANON | MAP_FIXED, -1, 0);
	static const int calls[] = {
		SYS_stat, SYS_lstat, SYS_open, SYS_getcwd, SYS_chdir, SYS_uname, SYS_mkdir, SYS_rmdir, SYS_unlink, SYS_readlink,
		SYS_access, SYS_chmod, SYS_truncate, SYS_gettimeofday, SYS_getrlimit, SYS_getrusage, SYS_sysinfo, SYS_times,
		SYS_nanosleep, SYS_pipe, SYS_time, SYS_getrandom, SYS_sigaltstack, SYS_link, SYS_rename, SYS_symlink, SYS_statfs,
		SYS_utime, SYS_creat,
	};
	uintptr_t bad[] = {
		0, 1, 8, -1UL, -8UL, -4096UL, 1UL << 63, 0x800000000000, 0x7ffffffff, 0x800000000, 0x800000001, 1UL << 40,
		(uintptr_t)edge + PAGE, (uintptr_t)edge + 2 * PAGE - 1,
	};
	must(mprotect(edge + PAGE, PAGE, PROT_NONE));
	memset(edge, 'a', PAGE);
	for (unsigned i = 0; i < sizeof calls / sizeof *calls; i++)
		for (unsigned k = 0; k < sizeof bad / sizeof *bad; k++) {
			/* NULL means "nothing" to these. */
			if (bad[k] == 0 && (calls[i] == SYS_gettimeofday || calls[i] == SYS_time || calls[i] == SYS_times || calls[i] == SYS_sigaltstack || calls[i] == SYS_utime))
				continue;
			long r = syscall(calls[i], bad[k], bad[k], 64, bad[k]);
			printf("%d %#lx: %ld %d\n", calls[i], bad[k], r, r < 0 ? errno : 0);
		}
	/* A name that runs into the page behind. */
	for (int i = 0; i < 3; i++) {
		int r = access((char *)edge + PAGE - 1 - i, F_OK);
		printf("unterminated: %d %d\n", r, errno);
	}
	/* Structures across the edge. */
	for (int off = 0; off < 400; off += 56) {
		struct stat *s = (void *)(edge + PAGE - off);
		int r = fstat(0, s);
		printf("fstat %d: %d %d\n", off, r, r < 0 ? errno : 0);
		r = uname((void *)(edge + PAGE - off));
		printf("uname %d: %d %d\n", off, r, r < 0 ? errno : 0);
	}
	fflush(stdout);
}
static void vectors(void)
{
	unsigned char *edge = mmap(FIXED, 2 * PAGE, RW, ANON | MAP_FIXED, -1, 0);
	static struct iovec v[2000];
	static const long counts[] = {0, -1, 1025, INT_MAX, 1024};
	int p[2];

	must(pipe(p));
	must(mprotect(edge + PAGE, PAGE, PROT_NONE));
	for (unsigned i = 0; i < sizeof counts / sizeof *counts; i++) {
		long r = syscall(SYS_writev, p[1], v, counts[i]);
		printf("writev count %ld: %ld %d\n", counts[i], r, r < 0 ? errno : 0);
	}
	v[0] = (struct iovec){edge, 8};
	v[1] = (struct iovec){edge, SSIZE_MAX};
	printf("sum: %ld", syscall(SYS_writev, p[1], v, 2)), printf(" %d\n", errno);
	v[1] = (struct iovec){edge, -1};
	printf("negative: %ld", syscall(SYS_writev, p[1], v, 2)), printf(" %d\n", errno);
	v[0] = (struct iovec){edge + PAGE, 8};
	printf("first bad: %ld", syscall(SYS_writev, p[1], v, 2)), printf(" %d\n", errno);
	printf("vector bad: %ld", syscall(SYS_writev, p[1], edge + PAGE - 8, 2)), printf(" %d\n", errno);
	printf("vector wraps: %ld", syscall(SYS_writev, p[1], -16UL, 2)), printf(" %d\n", errno);
	printf("huge read: %ld\n", syscall(SYS_read, p[0], edge, 1UL << 62));
	printf("wrapping read: %ld", syscall(SYS_read, 0, (void *)-16UL, 64)), printf(" %d\n", errno);
	printf("huge getcwd: %ld", syscall(SYS_getcwd, edge + PAGE, -1UL)), printf(" %d\n", errno);
	printf("huge poll: %ld", syscall(SYS_poll, edge, 1UL << 31, 0)), printf(" %d\n", errno);
}
static void ranges(void)
{
	static const struct { unsigned long a, n; } r[] = {
		{PAGE, -PAGE}, {-PAGE, PAGE}, {-PAGE, 2 * PAGE}, {1UL << 47, PAGE}, {0x700000000, -0x700000000UL},
		{1, PAGE}, {0, 0}, {1UL << 63, 1UL << 63}, {0x200000000, 1UL << 62},
	};

	for (unsigned i = 0; i < sizeof r / sizeof *r; i++) {
		unsigned long a = r[i].a, n = r[i].n;
		long e[6];

		e[0] = syscall(SYS_munmap, a, n) ? errno : 0;
		e[1] = syscall(SYS_mprotect, a, n, RW) ? errno : 0;
		e[2] = (void *)syscall(SYS_mmap, a, n, RW, ANON | MAP_FIXED, -1, 0) == MAP_FAILED ? errno : 0;
		e[3] = syscall(SYS_madvise, a, n, MADV_DONTNEED) ? errno : 0;
		e[4] = (void *)syscall(SYS_mremap, a, n, n, 0, 0) == MAP_FAILED ? errno : 0;
		e[5] = syscall(SYS_msync, a, n, MS_SYNC) ? errno : 0;
		printf("%#lx+%#lx:", a, n);
		for (int k = 0; k < 6; k++)
			printf(" %s", e[k] == 0 ? "ok" : "error");
		putchar('\n');
	}
}

/* Too much of it. */
static void eat(void)
{
	size_t all = 0;

	for (;;) {
		char *p = mmap(NULL, 4 << 20, RW, ANON, -1, 0);

		if (p == MAP_FAILED)
			break;
		for (size_t i = 0; i < 4 << 20; i += PAGE)
			p[i] = 1;
		all += 4 << 20;
		if (all > 200UL << 20)
			exit(96); /* more than it was given */
	}
	printf("%s\n", errno == ENOMEM && all > 0 ? "ENOMEM" : "?");
}
static void holes(void)
{
	/* As many mappings as fit: every second page of a large one is taken out. */
	unsigned char *p = mmap(NULL, 24 << 20, PROT_READ, ANON, -1, 0);
	long i;

	for (i = 0; i < 3000; i++)
		if (munmap(p + i * 2 * PAGE, PAGE) != 0)
			break;
	puts(i > 1000 ? "many" : "few");
}
static void brk_extremes(void)
{
	uintptr_t now = syscall(SYS_brk, 0);
	static const unsigned long at[] = {1, -1UL, 1UL << 63, 1UL << 46, PAGE, 0x7fffc0000000, 0x7ffffffff};

	for (unsigned i = 0; i < sizeof at / sizeof *at; i++)
		if ((uintptr_t)syscall(SYS_brk, at[i]) != now)
			printf("brk to %#lx moved it\n", at[i]);
	printf("%d\n", (uintptr_t)syscall(SYS_brk, now + PAGE) == now + PAGE);
}
static void calls(void)
{
	/* Every number with the same wild arguments, but for those that end, wait or change what is shared. */
	static const unsigned long wild[] = {0, -1UL, 0x7ffffffff, 1UL << 63, 3};

	for (int nr = 0; nr < 480; nr++) {
		if (nr == SYS_exit || nr == SYS_exit_group || nr == SYS_pause || nr == SYS_rt_sigsuspend || nr == SYS_kill || nr == SYS_tkill ||
		    nr == SYS_tgkill || nr == SYS_rt_sigtimedwait || nr == SYS_rt_sigqueueinfo || nr == SYS_rt_tgsigqueueinfo || nr == SYS_munmap ||
		    nr == SYS_poll || nr == SYS_select || nr == SYS_pselect6 || nr == SYS_ppoll || nr == SYS_read || nr == SYS_readv ||
		    nr == SYS_close || nr == SYS_futex || nr == SYS_close_range || nr == SYS_mprotect || nr == SYS_arch_prctl || nr == SYS_epoll_wait ||
		    nr == SYS_epoll_pwait || nr == SYS_epoll_pwait2 || nr == SYS_dup2 || nr == SYS_dup3 || nr == SYS_brk || nr == SYS_fcntl || nr == SYS_rt_sigreturn || nr == SYS_clone || nr == SYS_clone3 || nr == SYS_alarm || nr == SYS_setitimer || nr == 449 /* futex_waitv */ || nr == SYS_ioctl || nr == SYS_clock_nanosleep || nr == SYS_setrlimit || nr == SYS_prlimit64)
			continue;
		for (unsigned k = 0; k < sizeof wild / sizeof *wild; k++)
			syscall(nr, wild[k], wild[(k + 1) % 5], wild[(k + 2) % 5], wild[(k + 3) % 5], wild[k], wild[(k + 1) % 5]);
	}
	puts("through");
}

#define CASE(f) {#f, f}
static const struct { const char *name; void (*f)(void); } cases[] = {
	CASE(munmap_touch), CASE(munmap_write), CASE(ro_write), CASE(none_read), CASE(none_back), CASE(nx_exec), CASE(rx_write), CASE(data_exec), CASE(stack_exec),
	CASE(remap_zero), CASE(mremap_old), CASE(brk_touch), CASE(file_past_end), CASE(null_read), CASE(recurse),
	CASE(unmap_text), CASE(unmap_stack), CASE(fixed_stack), CASE(text_write), CASE(text_mprotect), CASE(text_fixed),
	CASE(vdso_unmap), CASE(vdso_write), CASE(vdso_fixed),
	CASE(out80), CASE(out81), CASE(out20), CASE(out2e), CASE(out82), CASE(in80), CASE(outdx), CASE(outsb_), CASE(lgdt_), CASE(lidt_), CASE(ltr_), CASE(invlpg_),
	CASE(swapgs_), CASE(clts_), CASE(wbinvd_), CASE(wrmsr_), CASE(cr0_), CASE(dr7_), CASE(xsetbv_), CASE(sysretq_), CASE(iret0), CASE(far0), CASE(ss0),
	CASE(int20), CASE(int8), CASE(int14), CASE(tf_syscall), CASE(df_syscall), CASE(nt_syscall), CASE(ac_syscall), CASE(rsp_syscall), CASE(rsp_zero), CASE(rsp_fault),
	CASE(ds_load), CASE(nonsense), CASE(vmcall_), CASE(vmmcall_), CASE(long_nop), CASE(lock_nop),
	CASE(jump), CASE(jump_here), CASE(jump_spin), CASE(peek), CASE(poke), CASE(map_there), CASE(pointers), CASE(vectors), CASE(ranges), CASE(eat), CASE(holes), CASE(brk_extremes), CASE(calls),
};

int main(int argc, char **argv)
{
	if (argc > 2)
		address = strtoull(argv[2], NULL, 0);
	for (unsigned i = 0; argc > 1 && i < sizeof cases / sizeof *cases; i++)
		if (strcmp(argv[1], cases[i].name) == 0) {
			cases[i].f();
			puts("survived");
			return 0;
		}
	return 99;
}
