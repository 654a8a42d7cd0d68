// Nested has four signals delivered at once: each but the first interrupts the handler of the one before at its first instruction. What their frames say of the
// FPU is printed, and what is left of it behind them.
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>
#include <xmmintrin.h>

enum { FIRST = 36, COUNT = 4 };

static struct frame {
	int sig;
	uint32_t mxcsr, mask, live, xmm0, magic;
	uint16_t control, status;
	uint64_t components, compact;
} got[COUNT];
static volatile int n;

static void handler(int sig, siginfo_t *info, void *context)
{
	(void)info;
	const char *at = (void *)((ucontext_t *)context)->uc_mcontext.fpregs;
	struct frame *f = &got[n++];
	f->sig = sig;
	f->live = _mm_getcsr();
	memcpy(&f->control, at, 2);
	memcpy(&f->status, at + 2, 2);
	memcpy(&f->mxcsr, at + 24, 4);
	memcpy(&f->mask, at + 28, 4);
	memcpy(&f->xmm0, at + 160, 4);
	memcpy(&f->magic, at + 464, 4);
	memcpy(&f->components, at + 512, 8);
	memcpy(&f->compact, at + 520, 8);
}

int main(void)
{
	struct sigaction a = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
	sigset_t all, none;
	sigfillset(&all);
	sigemptyset(&none);
	sigprocmask(SIG_BLOCK, &all, 0);
	for (int i = 0; i < COUNT; i++) {
		sigaction(FIRST + i, &a, 0);
		sigqueue(getpid(), FIRST + i, (union sigval){0});
	}
	_mm_setcsr(_mm_getcsr() | 0x6000);
	uint32_t xmm0, number = 0x1234567;
	long ret;
	register long size asm("r10") = 8;
	asm volatile("movd %2, %%xmm0; syscall; movd %%xmm0, %1"
		     : "=a"(ret), "=&r"(xmm0)
		     : "r"(number), "a"(14L), "D"((long)SIG_SETMASK), "S"(&none), "d"(0L), "r"(size)
		     : "rcx", "r11", "xmm0", "memory");
	for (int i = 0; i < n; i++)
		printf("signal %d: mxcsr %x of %x, now %x; control %x status %x; xmm0 %x; magic %x components %#lx compact %#lx\n", got[i].sig, got[i].mxcsr,
		       got[i].mask, got[i].live, got[i].control, got[i].status, got[i].xmm0, got[i].magic, got[i].components & 3, got[i].compact);
	printf("%ld: %d signals, xmm0 %x, mxcsr %x\n", ret, n, xmm0, _mm_getcsr());
	return 0;
}
