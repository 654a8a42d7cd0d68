/* hot: three hot loops, each timed many times; prints "name nanoseconds" for the best pass of each. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static volatile uint64_t sink;

static void xorshift(void)
{
	uint64_t x = 88172645463325252ull;
	for (int i = 0; i < 100000; i++) x ^= x << 13, x ^= x >> 7, x ^= x << 17;
	sink = x;
}

enum { M = 48, CHASE = 1 << 21 };
static double a[M][M], b[M][M], c[M][M];

static void matmul(void)
{
	for (int i = 0; i < M; i++)
		for (int j = 0; j < M; j++) {
			double s = 0;
			for (int k = 0; k < M; k++) s += a[i][k] * b[k][j];
			c[i][j] = s;
		}
	sink = c[M - 1][M - 1];
}

static uint32_t *next; /* 8 MiB of uint32_t in one random cycle */

static void chase(void)
{
	static uint32_t at;
	uint32_t p = at;
	for (int i = 0; i < 3000; i++) p = next[p];
	at = p;
	sink = p;
}

static void best(const char *name, void (*f)(void), int passes)
{
	double min = 1e18;
	for (int i = 0; i < passes; i++) {
		double t = now();
		f();
		t = now() - t;
		if (t < min) min = t;
	}
	printf("%s %.0f\n", name, min);
}

int main(void)
{
	next = malloc(CHASE * sizeof *next);
	if (!next) return 1;
	for (int i = 0; i < CHASE; i++) next[i] = i;
	srand(1);
	for (int i = CHASE - 1; i > 0; i--) { /* Sattolo: one cycle */
		int j = (((uint32_t)rand() << 15) ^ rand()) % i;
		uint32_t t = next[i];
		next[i] = next[j], next[j] = t;
	}
	for (int i = 0; i < M; i++)
		for (int j = 0; j < M; j++) a[i][j] = i + j, b[i][j] = i - j;
	best("xorshift", xorshift, 150);
	best("matmul", matmul, 300);
	best("chase", chase, 150);
	return 0;
}
