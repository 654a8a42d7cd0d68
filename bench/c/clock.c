/*
 * clock rate READS: reads CLOCK_MONOTONIC in batches; prints "nanoseconds a read (best batch)" and steps back.
 * clock trace SECONDS MICROSECONDS: every MICROSECONDS reads it between two readings of the TSC, for SECONDS,
 * all without a system call; then writes triples (TSC before, nanoseconds, TSC after) of 8 bytes each.
 * Under Cloister the part that counts is sealed.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/syscall.h>

enum { ISOLATE = 0x434c00 };

static inline uint64_t tsc(void)
{
	unsigned lo, hi;
	__asm__ volatile("lfence; rdtsc; lfence" : "=a"(lo), "=d"(hi)::"memory");
	return (uint64_t)hi << 32 | lo;
}

static inline uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "rate")) {
		long n = atol(argv[2]), back = 0;
		double min = 1e18;
		uint64_t last = now();
		syscall(ISOLATE, 1);
		for (long i = 0; i < n; i += 1000) {
			uint64_t at = now(), v = 0;
			for (int k = 0; k < 1000; k++) {
				v = now();
				back += v < last;
				last = v;
			}
			double d = (v - at) / 1000.0;
			if (d < min) min = d;
		}
		syscall(ISOLATE, 0);
		printf("%.3f %ld\n", min, back);
		return 0;
	}
	if (argc != 4 || strcmp(argv[1], "trace")) return 2;
	double seconds = atof(argv[2]), step = atof(argv[3]);
	size_t n = seconds * 1e6 / step;
	uint64_t *t = calloc(n, 24);
	if (!t) return 1;
	memset(t, 1, n * 24);
	syscall(ISOLATE, 1);
	uint64_t next = now(), end = next + seconds * 1e9;
	size_t i = 0;
	while (i < n && next < end) {
		while (now() < next) __builtin_ia32_pause();
		t[3 * i] = tsc();
		t[3 * i + 1] = now();
		t[3 * i + 2] = tsc();
		i++;
		next += step * 1000;
		uint64_t at = now();
		if (at > next) next = at; /* this core was taken away: no catching up */
	}
	syscall(ISOLATE, 0);
	return fwrite(t, 24, i, stdout) == i ? 0 : 1;
}
