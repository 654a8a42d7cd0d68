/*
 * ring MODE ...: both sides of the measurement of rings; the same program is the guest, its native twin and the
 * process on the other side. A ring that is not there yet is waited for.
 *
 * put PATH BYTES COUNT   sealed, puts COUNT records of BYTES behind a first one that must have been taken
 * take PATH              takes them and writes to standard output the cycles from the first to the last
 * ping OUT IN COUNT      sealed, sends a record and waits for its answer; writes the cycles of each round
 * pong IN OUT            answers
 * both PATH BYTES COUNT [CPU CPU]  put in the first thread and take in a second one, on these CPUs if there are any
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <stdio.h>
#include <time.h>

#include "cloister_ring.h"

enum { MOST = 1 << 16 };
static uint64_t sample[MOST];
static __thread unsigned char record[1 << 16]; /* of each thread: two sides share nothing but the ring */

static uint64_t tsc(void)
{
	uint32_t lo, hi;
	__asm__ volatile("lfence; rdtsc; lfence" : "=a"(lo), "=d"(hi)::"memory");
	return (uint64_t)hi << 32 | lo;
}

static void die(const char *what, long e)
{
	fprintf(stderr, "%s: %s\n", what, strerror((int)-e));
	exit(1);
}

static void pause_(void) { __asm__ volatile("pause"); }

static void attach(struct cloister_ring *r, const char *path)
{
	int e;
	for (int i = 0; (e = cloister_ring_open(r, path)) == -ENOENT && i < 60000; i++)
		nanosleep(&(struct timespec){0, 1000000}, NULL);
	if (e != 0) die(path, e);
}

static void put(struct cloister_ring *r, uint64_t n)
{
	int e;
	while ((e = cloister_ring_put(r, record, n)) == -EAGAIN) pause_();
	if (e != 0) die("put", e);
}

/* Returns 0 at the end of the ring. */
static int get(struct cloister_ring *r)
{
	int64_t n;
	while ((n = cloister_ring_get(r, record, sizeof record)) == -EAGAIN) pause_();
	if (n < 0 && n != -ENODATA) die("get", n);
	return n >= 0;
}

static void seal(int on)
{
	int e = cloister_isolate(on);
	if (e != 0 && e != -ENOSYS) die("seal", e);
}

static void emit(uint64_t n)
{
	if (fwrite(sample, sizeof *sample, n, stdout) != n || fflush(stdout) != 0) die("write", -errno);
}

static void take(struct cloister_ring *r)
{
	get(r);
	get(r);
	sample[0] = tsc();
	while (get(r)) ;
	sample[0] = tsc() - sample[0];
}

static void put_all(struct cloister_ring *r, uint64_t n, uint64_t count)
{
	put(r, n);
	while (__atomic_load_n(&r->shared->tail, __ATOMIC_ACQUIRE) == 0) pause_();
	seal(1);
	while (count-- > 0) put(r, n);
	cloister_ring_close(r);
	seal(0);
}

static void place(const char *cpu)
{
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(atoi(cpu), &one);
	if (pthread_setaffinity_np(pthread_self(), sizeof one, &one)) die("affinity", -errno);
}

static void *taker(void *v)
{
	char **argv = v;
	struct cloister_ring r;
	memset(record, 1, sizeof record);
	attach(&r, argv[2]);
	if (argv[5]) place(argv[6]);
	take(&r);
	return 0;
}

int main(int argc, char **argv)
{
	struct cloister_ring a, b;
	if (argc < 3) return 2;
	memset(record, 1, sizeof record);
	memset(sample, 1, sizeof sample); /* first touches are not part of what is timed */
	attach(&a, argv[2]);
	if (strcmp(argv[1], "put") == 0 && argc == 5) {
		put_all(&a, strtoul(argv[3], NULL, 10), strtoul(argv[4], NULL, 10));
	} else if (strcmp(argv[1], "take") == 0) {
		take(&a);
		emit(1);
	} else if (strcmp(argv[1], "both") == 0 && (argc == 5 || argc == 7)) {
		pthread_t t;
		if (argc == 7) place(argv[5]);
		if (pthread_create(&t, NULL, taker, argv)) die("thread", -errno);
		put_all(&a, strtoul(argv[3], NULL, 10), strtoul(argv[4], NULL, 10));
		pthread_join(t, NULL);
		emit(1);
	} else if (strcmp(argv[1], "ping") == 0 && argc == 5) {
		uint64_t n = strtoul(argv[4], NULL, 10);
		attach(&b, argv[3]);
		if (n > MOST) n = MOST;
		put(&a, 64); /* the other side is there when it answers */
		get(&b);
		seal(1);
		for (uint64_t i = 0; i < n; i++) {
			uint64_t at = tsc();
			put(&a, 64);
			get(&b);
			sample[i] = tsc() - at;
		}
		cloister_ring_close(&a);
		seal(0);
		emit(n);
	} else if (strcmp(argv[1], "pong") == 0 && argc == 4) {
		attach(&b, argv[3]);
		while (get(&a)) put(&b, 64);
	} else
		return 2;
	return 0;
}
