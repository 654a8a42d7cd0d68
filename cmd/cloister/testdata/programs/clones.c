// clone and clone3 with arguments that nobody uses: what is refused, with which error, and what a thread gets that is made.
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

struct args {
	uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};

#define THREAD (CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM)

static volatile int alive, child, parent, gone;
static char stack[8192] __attribute__((aligned(64)));

// raw makes a clone whose child does nothing but end.
static long raw(long nr, long a, long b, long c, long d, long e)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	long r;
	__asm__ volatile("syscall\n"
			 "test %%rax,%%rax\n"
			 "jnz 1f\n"
			 "lock incl %[alive]\n"
			 "mov $60,%%eax\n"
			 "xor %%edi,%%edi\n"
			 "syscall\n"
			 "1:"
			 : "=a"(r), [alive] "+m"(alive)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return r;
}

static int either; // EINVAL from Linux before 6.9, which has no descriptors of threads, EFAULT from later ones

static const char *said(long r, int made)
{
	if (either && (r == -EINVAL || r == -EFAULT))
		return "refused";
	if (r < 0)
		return strerrorname_np(-r);
	while (alive == made) // it has run
		;
	return "made";
}

static void three(const char *what, struct args a, long size)
{
	int made = alive;
	child = parent = -1, gone = 1;
	long r = raw(SYS_clone3, (long)&a, size, 0, 0, 0);
	const char *s = said(r, made);
	if (r > 0 && (a.flags & CLONE_CHILD_CLEARTID) && a.child_tid == (uintptr_t)&gone)
		while (gone)
			;
	printf("%s: %s", what, s);
	if (r > 0)
		printf(" child %d parent %d gone %d", child == r, parent == r, gone);
	printf("\n");
}

static struct args good(void)
{
	return (struct args){ .flags = THREAD | CLONE_CHILD_CLEARTID, .child_tid = (uintptr_t)&gone, .stack = (uintptr_t)stack, .stack_size = sizeof stack };
}

#define TRY(what, ...) do { struct args a = good(); __VA_ARGS__; three(what, a, sizeof a); } while (0)

static void two(const char *what, long flags, long p, long c, long tls)
{
	int made = alive;
	child = parent = -1;
	long r = raw(SYS_clone, flags, (long)(stack + sizeof stack), p, c, tls);
	printf("clone %s: %s", what, said(r, made));
	if (r > 0)
		usleep(20000), printf(" child %d parent %d", child == r, parent == r);
	printf("\n");
}

int main(void)
{
	setvbuf(stdout, 0, _IONBF, 0);
	char *edge = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *ro = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mprotect(edge + 4096, 4096, PROT_NONE);
	TRY("plain");
	TRY("numbers", a.flags |= CLONE_PARENT_SETTID, a.parent_tid = (uintptr_t)&parent);
	TRY("child's number", a.flags = THREAD | CLONE_CHILD_SETTID, a.child_tid = (uintptr_t)&child; usleep(20000));
	TRY("number nowhere", a.flags |= CLONE_PARENT_SETTID, a.parent_tid = 8);
	TRY("number read-only", a.flags |= CLONE_PARENT_SETTID, a.parent_tid = (uintptr_t)ro);
	TRY("cleared nowhere", a.child_tid = 8);
	for (int b = 8; b < 42; b++) {
		uint64_t bit = 1ULL << b;
		char what[32];
		// Namespaces are root's to make, and a thread with files or a directory of its own is refused in a guest.
		if (bit & (THREAD | CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_VFORK) || bit == CLONE_PIDFD)
			continue;
		sprintf(what, "bit %d", b);
		TRY(what, a.flags |= bit);
	}
	for (int b = 0; b < 7; b++) { // 7 is a namespace
		char what[32];
		sprintf(what, "signal bit %d", b);
		TRY(what, a.flags |= 1 << b);
	}
	TRY("without memory", a.flags &= ~CLONE_VM);
	TRY("without handlers", a.flags &= ~CLONE_SIGHAND);
	TRY("memory alone shared, handlers not", a.flags = CLONE_THREAD | CLONE_VM);
	TRY("exit signal", a.exit_signal = 17);
	TRY("exit signal 65", a.exit_signal = 65);
	TRY("exit signal 2^33", a.exit_signal = 1ULL << 33);
	TRY("no stack", a.stack = 0);
	TRY("no size", a.stack_size = 0);
	TRY("stack beyond", a.stack = 1ULL << 63);
	TRY("stack of 2^63", a.stack_size = 1ULL << 63);
	TRY("tls", a.flags |= CLONE_SETTLS, a.tls = (uintptr_t)edge);
	TRY("tls beyond", a.flags |= CLONE_SETTLS, a.tls = 1ULL << 47);
	TRY("tls not canonical", a.flags |= CLONE_SETTLS, a.tls = 1ULL << 63);
	TRY("number asked for", a.set_tid = 8, a.set_tid_size = 1);
	TRY("no numbers asked for", a.set_tid = 8);
	TRY("numbers from nowhere", a.set_tid_size = 1);
	TRY("too many numbers", a.set_tid = (uintptr_t)edge, a.set_tid_size = 33);
	TRY("cgroup beyond", a.flags |= 1ULL << 33, a.cgroup = 1ULL << 31);
	TRY("cgroup closed", a.flags |= 1ULL << 33, a.cgroup = 999);
	either = 1;
	TRY("pidfd nowhere", a.flags |= CLONE_PIDFD, a.pidfd = 8);
	TRY("pidfd read-only", a.flags |= CLONE_PIDFD, a.pidfd = (uintptr_t)ro);
	either = 0;
	TRY("pidfd where the number goes", a.flags |= CLONE_PIDFD | CLONE_PARENT_SETTID, a.pidfd = a.parent_tid = (uintptr_t)&parent);
	TRY("pidfd detached", a.flags |= CLONE_PIDFD | CLONE_DETACHED, a.pidfd = (uintptr_t)&parent);
	struct args a = good();
	static const int sizes[] = { 0, 8, 63, 64, 65, 72, 80, 81, 88, 96, 4096 };
	for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
		char what[32];
		memset(edge, 0, 4096), memcpy(edge + 4096 - sizes[i], &a, sizes[i] < (int)sizeof a ? sizes[i] : (int)sizeof a);
		sprintf(what, "size %d at the edge", sizes[i]);
		int made = alive;
		printf("%s: %s\n", what, said(raw(SYS_clone3, (long)(edge + 4096 - sizes[i]), sizes[i], 0, 0, 0), made));
		printf("%s, a byte beyond: %s\n", what, said(raw(SYS_clone3, (long)(edge + 4097 - sizes[i]), sizes[i], 0, 0, 0), alive));
	}
	memset(edge, 0, 4096), memcpy(edge, &a, sizeof a), edge[100] = 1;
	printf("something behind: %s\n", said(raw(SYS_clone3, (long)edge, 104, 0, 0, 0), alive));
	printf("too large: %s\n", said(raw(SYS_clone3, (long)edge, 4097, 0, 0, 0), alive));
	two("plain", THREAD, 0, 0, 0);
	two("numbers", THREAD | CLONE_PARENT_SETTID | CLONE_CHILD_SETTID, (long)&parent, (long)&child, 0);
	two("with a signal", THREAD | 17, 0, 0, 0);
	two("detached", THREAD | CLONE_DETACHED, 0, 0, 0);
	two("high bits", THREAD | 1L << 40, 0, 0, 0);
	two("pidfd and number", THREAD | CLONE_PIDFD | CLONE_PARENT_SETTID, (long)&parent, 0, 0);
	either = 1, two("pidfd nowhere", THREAD | CLONE_PIDFD, 8, 0, 0), either = 0;
	two("tls beyond", THREAD | CLONE_SETTLS, 0, 0, 1L << 62);
	two("without handlers", THREAD & ~CLONE_SIGHAND, 0, 0, 0);
	return 0;
}
