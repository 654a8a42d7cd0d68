/*
 * helpers SECONDS [back]: the first thread is sealed for so long, at least, and computes, while two others log lines and allocate. What
 * they allocate they keep: to give touched pages back is an interrupt of every core that runs the program, natively as
 * here (docs/threads.md). With "back" they do that.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "cloister.h"

static volatile int over;
static int back;
static volatile long rounds[2];

static void *helper(void *a)
{
	volatile long *done = a;
	FILE *log = fopen("/dev/null", "w");
	char *last = 0;
	if (!log) exit(1);
	while (!over) {
		size_t n = 1000 + *done % 50 * 1000;
		char *p = malloc(n + (*done % 8 == 0 ? 1 << 20 : 0)); /* now and then by mmap, and kept */
		if (!p) exit(1);
		memset(p, 1, n);
		fprintf(log, "%ld %p\n", *done, (void *)p);
		fflush(log);
		if (*done % 8) free(last), last = p;
		if (back) {
			char *q = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			if (q == MAP_FAILED) exit(1);
			*q = 1;
			munmap(q, 4096);
		}
		++*done;
	}
	fclose(log);
	return a;
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	pthread_t t[2];
	double x = 1, until;
	long at[2];
	if (argc != 2 && argc != 3) return 2;
	back = argc == 3;
	/* No trimming of what was freed: that gives pages back. */
	mallopt(M_TRIM_THRESHOLD, 1 << 30);
	mallopt(M_TOP_PAD, 1 << 20);
	for (int i = 0; i < 2; i++)
		if (pthread_create(&t[i], 0, helper, (void *)&rounds[i])) return 1;
	while (rounds[0] < 3 || rounds[1] < 3) usleep(1000); /* they have warmed up */
	if (cloister_isolate(1)) return 1;
	for (int i = 0; i < 2; i++) at[i] = rounds[i];
	/* At least so long, and until they have done something: where CPUs take turns that may be later. */
	for (until = now() + atof(argv[1]); now() < until || rounds[0] < at[0] + 3 || rounds[1] < at[1] + 3;)
		for (int i = 0; i < 100000; i++) x = x * 1.0000001 + 1e-9;
	for (int i = 0; i < 2; i++) at[i] = rounds[i] - at[i];
	cloister_isolate(0);
	over = 1;
	for (int i = 0; i < 2; i++) pthread_join(t[i], 0);
	printf("%s: helpers made %ld and %ld rounds meanwhile\n", x > 1 ? "done" : "?", at[0], at[1]);
	return 0;
}
