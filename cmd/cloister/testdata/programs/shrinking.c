// Shrinking executes code from a file that another thread makes shorter and longer all the time, and touches memory that is never there: whoever looks
// at the code of that instruction may find it gone.
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static const uint8_t code[] = {0x8a, 0x07, 0xc3, 0x90}; // mov (%rdi), %al; ret
static int file;
static volatile int stop;
static sigjmp_buf again;

static void caught(int sig)
{
	(void)sig;
	siglongjmp(again, 1);
}

static void *shrink(void *unused)
{
	while (!stop) {
		if (ftruncate(file, 0) || ftruncate(file, 4096) || pwrite(file, code, sizeof code, 0) != sizeof code)
			return "the file";
		for (volatile int i = 0; i < 2000; i++)
			;
	}
	return unused;
}

int main(void)
{
	int empty = memfd_create("empty", 0);
	file = memfd_create("code", 0);
	if (empty < 0 || file < 0 || ftruncate(file, 4096) || pwrite(file, code, sizeof code, 0) != sizeof code)
		return 1;
	void (*f)(void *) = mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0);
	void *lost = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, empty, 0);
	if (f == MAP_FAILED || lost == MAP_FAILED)
		return 2;
	for (int sig = 1; sig < 32; sig++)
		if (sig == SIGBUS || sig == SIGSEGV || sig == SIGILL) {
			struct sigaction a = {.sa_handler = caught, .sa_flags = SA_NODEFER};
			sigaction(sig, &a, 0);
		}
	pthread_t t;
	void *failed;
	if (pthread_create(&t, 0, shrink, 0))
		return 3;
	for (time_t end = time(0) + 3; time(0) < end;)
		if (sigsetjmp(again, 1) == 0)
			f(lost);
	stop = 1;
	pthread_join(t, &failed);
	printf("alive%s\n", failed ? ", but for the file" : "");
	return 0;
}
