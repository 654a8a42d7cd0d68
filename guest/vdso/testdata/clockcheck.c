/* As clockcheck/main_unsafe.go, through libc: reads, backward steps, error in ns, half the tightest look. */
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long long ns(struct timespec t) { return t.tv_sec * 1000000000LL + t.tv_nsec; }

static long long kernel(int id)
{
	struct timespec t;
	syscall(SYS_clock_gettime, id, &t);
	return ns(t);
}

int main(void)
{
	enum { READS = 1000000, LOOKS = 1000 };
	struct timespec t;
	struct timeval tv;
	long long last = 0, best = 0, half = 1LL << 60;
	int back = 0;
	for (int i = 0; i < READS; i++) {
		clock_gettime(CLOCK_MONOTONIC, &t);
		back += ns(t) < last;
		last = ns(t);
	}
	for (int i = 0; i < LOOKS; i++) {
		long long a = kernel(CLOCK_REALTIME);
		clock_gettime(CLOCK_REALTIME, &t);
		long long b = kernel(CLOCK_REALTIME), h = (b - a) / 2;
		if (h < half) {
			half = h;
			best = ns(t) - (a + h);
		}
	}
	gettimeofday(&tv, NULL);
	long long us = (kernel(CLOCK_REALTIME) / 1000) - (tv.tv_sec * 1000000LL + tv.tv_usec);
	if (us < 0 || us > 1000000 || time(NULL) - tv.tv_sec > 2 || clock_getres(CLOCK_MONOTONIC, &t) || ns(t) != 1)
		back = -1;
	printf("%d %d %lld %lld\n", READS, back, best, half);
	return 0;
}
