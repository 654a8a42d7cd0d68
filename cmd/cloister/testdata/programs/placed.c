/*
 * placed [FIRST]: three threads after the first one. The second of them calls itself rt-hot, seals itself at once
 * and computes for 300 ms; it prints the CPUs that it was on while sealed, and its scheduling class. With FIRST
 * the first thread takes that name before it makes the others.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "cloister.h"

static volatile int stop;

static void *sleeper(void *arg)
{
	while (!stop)
		usleep(10000);
	return arg;
}

static void *hot(void *arg)
{
	struct timespec a, b;
	unsigned char seen[1024] = {0};

	pthread_setname_np(pthread_self(), "rt-hot");
	clock_gettime(CLOCK_MONOTONIC, &a);
	cloister_isolate(1);
	do {
		seen[(unsigned)sched_getcpu() % sizeof seen] = 1;
		clock_gettime(CLOCK_MONOTONIC, &b);
	} while ((b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000 < 300);
	cloister_isolate(0);
	for (unsigned i = 0; i < sizeof seen; i++)
		if (seen[i])
			printf("CPU %u\n", i);
	printf("%s\n", (sched_getscheduler(0) & ~SCHED_RESET_ON_FORK) == SCHED_FIFO ? "fifo" : "other");
	return arg;
}

int main(int argc, char **argv)
{
	pthread_t t[3];

	(void)argv;
	if (argc > 1) {
		pthread_setname_np(pthread_self(), "rt-first");
		usleep(200000);
	}
	for (int i = 0; i < 3; i++)
		if (pthread_create(&t[i], NULL, i == 1 ? hot : sleeper, NULL) != 0)
			return 9;
	pthread_join(t[1], NULL);
	stop = 1;
	pthread_join(t[0], NULL);
	pthread_join(t[2], NULL);
	return 0;
}
