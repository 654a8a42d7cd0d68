/*
 * threads THREADS ROUNDS [CPU...]: number crunching by THREADS threads at once, the first thread's included, each ROUNDS rounds
 * of integer, floating-point and memory work on data of its own. Writes the nanoseconds from before the first thread is made
 * to after the last has ended, and a sum that depends on all of the work. Thread i runs on the i-th CPU, if there is one.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MOST = 64, N = 64, CELLS = 1 << 15 };

struct work {
	double a[N][N], b[N][N], c[N][N];
	uint32_t next[CELLS];
	uint64_t rounds, sum;
	int cpu;
};

static void *crunch(void *p)
{
	struct work *w = p;
	uint64_t x = 88172645463325252ull;
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(w->cpu, &one);
	if (w->cpu >= 0 && pthread_setaffinity_np(pthread_self(), sizeof one, &one)) exit(1);
	for (uint64_t r = 0; r < w->rounds; r++) {
		for (int i = 0; i < 20000; i++) x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		for (int i = 0; i < N; i++)
			for (int j = 0; j < N; j++) {
				double s = 0;
				for (int k = 0; k < N; k++) s += w->a[i][k] * w->b[k][j];
				w->c[i][j] = s;
			}
		uint32_t at = x % CELLS;
		for (int i = 0; i < 20000; i++) at = w->next[at];
		x += at + (uint64_t)w->c[x % N][at % N];
	}
	w->sum = x;
	return 0;
}

int main(int argc, char **argv)
{
	if (argc < 3) return 2;
	int n = atoi(argv[1]);
	pthread_t t[MOST];
	struct timespec from, to;
	if (n < 1 || n > MOST) return 2;
	struct work *w = calloc(n, sizeof *w);
	if (!w) return 1;
	for (int i = 0; i < n; i++) {
		w[i].rounds = strtoul(argv[2], 0, 10);
		w[i].cpu = i + 3 < argc ? atoi(argv[i + 3]) : -1;
		for (int j = 0; j < N * N; j++) w[i].a[j / N][j % N] = j % 7, w[i].b[j / N][j % N] = j % 5;
		for (uint32_t j = 0; j < CELLS; j++) w[i].next[j] = (j * 5 + 12345 + i) % CELLS;
	}
	clock_gettime(CLOCK_MONOTONIC, &from);
	for (int i = 1; i < n; i++)
		if (pthread_create(&t[i], 0, crunch, &w[i])) return 1;
	crunch(&w[0]);
	for (int i = 1; i < n; i++)
		if (pthread_join(t[i], 0)) return 1;
	clock_gettime(CLOCK_MONOTONIC, &to);
	uint64_t sum = 0;
	for (int i = 0; i < n; i++) sum += w[i].sum;
	printf("%lld %llu\n", (to.tv_sec - from.tv_sec) * 1000000000ll + to.tv_nsec - from.tv_nsec, (unsigned long long)sum);
	return 0;
}
