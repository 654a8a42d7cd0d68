/*
 * helpers MS [N]: a main thread that seals itself and computes for MS milliseconds, beside a helper that maps, writes
 * and sleeps all the time. The helper writes to standard error, the end "done". N more threads sleep.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "cloister.h"

static volatile int stop;
static volatile unsigned long sink;

static void *helper(void *arg)
{
	pthread_setname_np(pthread_self(), "helper");
	while (!stop) {
		char *p = mmap(NULL, 16 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		memset(p, 1, 16 * 4096);
		munmap(p, 16 * 4096);
		write(2, ".", 1);
		usleep(2000);
	}
	return arg;
}

static void *sleeper(void *arg)
{
	while (!stop)
		usleep(10000);
	return arg;
}

int main(int argc, char **argv)
{
	long ms = argc > 1 ? atol(argv[1]) : 100;
	struct timespec a, b;
	int n = argc > 2 ? atoi(argv[2]) : 0;
	pthread_attr_t small;
	pthread_t t;

	clock_gettime(CLOCK_MONOTONIC, &a);
	if (pthread_create(&t, NULL, helper, NULL) != 0)
		return 9;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 32768);
	for (pthread_t more; n > 0; n--)
		if (pthread_create(&more, &small, sleeper, NULL) != 0)
			return 9;
	usleep(100000);
	cloister_isolate(1);
	do {
		for (int i = 0; i < 100000; i++)
			sink++;
		clock_gettime(CLOCK_MONOTONIC, &b);
	} while ((b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000 < ms + 100);
	cloister_isolate(0);
	stop = 1;
	pthread_join(t, NULL);
	puts("done");
	return 0;
}
