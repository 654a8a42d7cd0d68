/*
 * seal N WHAT...: seals, does each WHAT N times with a stretch of computing around it, unseals.
 * Natively it does the same without being sealed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "cloister.h"

static volatile unsigned long sink;
static char heap[1 << 20];

static void compute(void)
{
	for (unsigned long i = 0; i < 200000; i++)
		sink = sink * 6364136223846793005UL + heap[(i * 4096) % sizeof heap]++;
}

static void sleep_ms(long ms)
{
	struct timespec a, b;

	clock_gettime(CLOCK_MONOTONIC, &a);
	do {
		compute();
		clock_gettime(CLOCK_MONOTONIC, &b);
	} while ((b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000 < ms);
}

int main(int argc, char **argv)
{
	int n = argc > 1 ? atoi(argv[1]) : 1;

	if (argc > 2 && strcmp(argv[2], "never") == 0) {
		compute();
		puts("done");
		return 0;
	}
	setvbuf(stdout, NULL, _IONBF, 0);
	if (cloister_isolate(1) != 0 && cloister_available())
		return 9;
	for (int i = 2; i < argc; i++)
		for (int k = 0; k < n; k++) {
			compute();
			if (strcmp(argv[i], "write") == 0)
				write(1, "x", 1);
			else if (strcmp(argv[i], "getppid") == 0)
				syscall(SYS_getppid);
			else if (strcmp(argv[i], "clock") == 0)
				sleep_ms(1);
			else if (strcmp(argv[i], "linger") == 0)
				sleep_ms(300);
			else if (strcmp(argv[i], "spin") == 0)
				for (;;)
					compute();
			else if (strcmp(argv[i], "reseal") == 0) {
				cloister_isolate(0);
				syscall(SYS_getppid);
				cloister_isolate(1);
			} else if (strcmp(argv[i], "map") == 0) {
				char *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

				p[1] = 1;
				munmap(p, 4096);
			}
		}
	cloister_isolate(0);
	puts("done");
	return 0;
}
