/*
 * handover COUNT [CPU CPU]: one thread wakes another by a futex, COUNT times, and writes to standard output the cycles of
 * each hand-over, 8 bytes a sample: from before the word is stored to behind the return of the other's wait. The other is
 * given time to fall asleep. The two threads run on the CPUs, if there are any.
 */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MOST = 1 << 17, ASLEEP = 1 << 20 /* cycles: some exits long */ };
static uint64_t sample[MOST], count, from;
static uint32_t word, waits;
static int cpus[2] = { -1, -1 };

static uint64_t tsc(void)
{
	uint32_t lo, hi;
	__asm__ volatile("lfence; rdtsc; lfence" : "=a"(lo), "=d"(hi)::"memory");
	return (uint64_t)hi << 32 | lo;
}

static void place(int i)
{
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(cpus[i], &one);
	if (cpus[i] >= 0 && pthread_setaffinity_np(pthread_self(), sizeof one, &one)) exit(1);
}

static void *sleeper(void *a)
{
	place(1);
	for (uint32_t i = 1; i <= count; i++) {
		/* ORDER(none): pairs with main's acquire of waits; it only says that the wait is about to begin */
		__atomic_store_n(&waits, i, __ATOMIC_RELEASE);
		/* ORDER(none): acquires from, which main stored before the word */
		while (__atomic_load_n(&word, __ATOMIC_ACQUIRE) != i)
			syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, i - 1, 0, 0, 0);
		sample[i - 1] = tsc() - from;
	}
	return a;
}

int main(int argc, char **argv)
{
	pthread_t t;
	if (argc != 2 && argc != 4) return 2;
	count = strtoul(argv[1], 0, 10);
	if (count > MOST) count = MOST;
	for (int i = 0; i + 2 < argc; i++) cpus[i] = atoi(argv[i + 2]);
	for (uint64_t i = 0; i < count; i++) sample[i] = 1; /* first touches are not part of what is timed */
	place(0);
	if (pthread_create(&t, 0, sleeper, 0)) return 1;
	for (uint32_t i = 1; i <= count; i++) {
		while (__atomic_load_n(&waits, __ATOMIC_ACQUIRE) != i) __builtin_ia32_pause();
		for (uint64_t at = tsc(); tsc() - at < ASLEEP;) __builtin_ia32_pause();
		from = tsc();
		__atomic_store_n(&word, i, __ATOMIC_RELEASE);
		syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
	}
	if (pthread_join(t, 0)) return 1;
	return fwrite(sample, sizeof *sample, count, stdout) != count || fflush(stdout) != 0;
}
