/* Dies three functions deep. The tests look for these lines in the report's backtrace. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile int sink;
static int *volatile where = (int *)0xdead000;

__attribute__((noinline)) static int third(int x)
{
	sink = x;
	return *where; /* CRASH */
}

__attribute__((noinline)) static int second(int x)
{
	return third(x + 1) + sink; /* SECOND */
}

__attribute__((noinline)) static int first(int x)
{
	return second(x + 1) + sink; /* FIRST */
}

static void *thread(void *x)
{
	pthread_setname_np(pthread_self(), "the-hot-one");
	return (void *)(long)first(*(int *)x);
}

int main(int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "abort") == 0)
		abort();
	if (argc > 1 && strcmp(argv[1], "kill") == 0)
		kill(getpid(), 10); /* SIGUSR1 */
	if (argc > 1 && strcmp(argv[1], "thread") == 0) {
		pthread_t t;
		pthread_create(&t, 0, thread, &argc);
		pthread_join(t, 0);
	}
	return first(argc); /* MAIN */
}
