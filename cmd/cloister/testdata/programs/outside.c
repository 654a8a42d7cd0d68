/* outside MODE SIGNAL: a signal from outside, handled while it waits or while it executes, or not handled. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t got;
static void on(int s) { got = s; }

int main(int argc, char **argv)
{
	setvbuf(stdout, 0, _IOLBF, 0);
	if (argc < 3) return 2;
	if (strcmp(argv[1], "default")) signal(atoi(argv[2]), on);
	puts("ready");
	if (!strcmp(argv[1], "handles")) pause();
	while (!got) ;
	printf("got %d\n", (int)got);
	return 7;
}
