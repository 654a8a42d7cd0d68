/* Dies three functions deep. The tests look for these lines in the report's backtrace. */
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

int main(int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "abort") == 0)
		abort();
	if (argc > 1 && strcmp(argv[1], "kill") == 0)
		kill(getpid(), 10); /* SIGUSR1 */
	return first(argc); /* MAIN */
}
