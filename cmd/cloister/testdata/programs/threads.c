/* threads MODE: threads as programs use them; the output does not depend on who runs first. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MANY = 12, ROUNDS = 3000 };
static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cv = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static long sum, turn;
static __thread long mine;

static void *count(void *a)
{
	long n = (long)a;
	for (int i = 0; i < ROUNDS; i++) {
		pthread_mutex_lock(&mu);
		sum += n;
		mine++;
		pthread_mutex_unlock(&mu);
	}
	pthread_barrier_wait(&barrier);
	pthread_mutex_lock(&mu);
	while (turn != n) pthread_cond_wait(&cv, &mu);
	printf("thread %ld made %ld rounds\n", n, mine);
	turn++;
	pthread_cond_broadcast(&cv);
	pthread_mutex_unlock(&mu);
	return (void *)(n * n);
}

static int many(void)
{
	pthread_t t[MANY];
	for (int again = 0; again < 3; again++) {
		turn = sum = 0;
		pthread_barrier_init(&barrier, 0, MANY);
		for (long i = 0; i < MANY; i++)
			if (pthread_create(&t[i], 0, count, (void *)i)) return 1;
		long squares = 0;
		for (int i = 0; i < MANY; i++) {
			void *r;
			pthread_join(t[i], &r);
			squares += (long)r;
		}
		printf("sum %ld, squares %ld\n", sum, squares);
	}
	return 0;
}

static sem_t ping, pong;
static void *answer(void *a)
{
	for (int i = 0; i < 2000; i++) {
		sem_wait(&ping);
		sum++;
		sem_post(&pong);
	}
	return a;
}

static int handover(void)
{
	pthread_t t;
	pthread_create(&t, 0, answer, 0);
	for (int i = 0; i < 2000; i++) {
		sem_post(&ping);
		sem_wait(&pong);
		if (sum != i + 1) return 1;
	}
	pthread_join(t, 0);
	puts("2000 rounds");
	return 0;
}

static void *late(void *a)
{
	usleep(50000);
	puts("the last one");
	fflush(stdout);
	return a;
}

static void *ends_all(void *a)
{
	(void)a;
	exit(9);
}

static void *dies_with(void *m)
{
	pthread_mutex_lock(m);
	return 0;
}

static int robust(int protocol)
{
	pthread_mutexattr_t a;
	pthread_mutex_t m;
	pthread_t t;
	pthread_mutexattr_init(&a);
	pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
	if (pthread_mutexattr_setprotocol(&a, protocol)) return 1;
	pthread_mutex_init(&m, &a);
	pthread_create(&t, 0, dies_with, &m);
	pthread_join(t, 0);
	int e = pthread_mutex_lock(&m);
	printf("lock: %s\n", e == EOWNERDEAD ? "owner died" : strerror(e));
	pthread_mutex_consistent(&m);
	pthread_mutex_unlock(&m);
	printf("again: %d\n", pthread_mutex_lock(&m));
	return 0;
}

static pthread_mutex_t pi;
static void *inherit(void *a)
{
	for (int i = 0; i < 500; i++) {
		pthread_mutex_lock(&pi);
		sum++;
		sched_yield();
		pthread_mutex_unlock(&pi);
	}
	return a;
}

static int priority(void)
{
	pthread_mutexattr_t a;
	pthread_t t[4];
	pthread_mutexattr_init(&a);
	pthread_mutexattr_setprotocol(&a, PTHREAD_PRIO_INHERIT);
	pthread_mutex_init(&pi, &a);
	for (int i = 0; i < 4; i++) pthread_create(&t[i], 0, inherit, 0);
	for (int i = 0; i < 4; i++) pthread_join(t[i], 0);
	printf("%ld rounds\n", sum);
	return 0;
}

static int timed(void)
{
	struct timespec until, now;
	pthread_mutex_lock(&mu);
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += 20000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	int e = pthread_cond_timedwait(&cv, &mu, &until);
	clock_gettime(CLOCK_REALTIME, &now);
	printf("%s, %s\n", strerror(e), now.tv_sec > until.tv_sec || (now.tv_sec == until.tv_sec && now.tv_nsec >= until.tv_nsec) ? "not early" : "early");
	return 0;
}

static volatile int *shared;
static volatile int stage;
static void *watch(void *a)
{
	while (stage != 1) ; /* in the guest, no call */
	int v = *shared;
	stage = 2;
	while (stage != 3) ;
	printf("saw %d, then %d\n", v, *shared);
	return a;
}

/* A page that another thread reads is dropped: it must read zero then, however long it has stayed in the guest. */
static int drop(void)
{
	pthread_t t;
	shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	*shared = 42;
	pthread_create(&t, 0, watch, 0);
	stage = 1;
	while (stage != 2) ;
	madvise((void *)shared, 4096, MADV_DONTNEED);
	stage = 3;
	pthread_join(t, 0);
	return 0;
}

static void *touch(void *a)
{
	while (stage != 1) ;
	stage = *shared;
	while (stage) stage = *shared;
	return a;
}

/* A page that another thread reads is taken away: that thread must fault, and the program end by SIGSEGV. */
static int take(void)
{
	pthread_t t;
	shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	*shared = 42;
	pthread_create(&t, 0, touch, 0);
	stage = 1;
	while (stage != 42) ;
	mprotect((void *)shared, 4096, PROT_NONE);
	sleep(5);
	return 0;
}

static void *wait_there(void *a)
{
	pthread_barrier_wait(&barrier);
	return a;
}

/* More threads than there may be: refused, and those that live go on. */
static int bomb(void)
{
	int n = 0, e = 0;
	pthread_t t[100];
	pthread_barrier_init(&barrier, 0, 64);
	while (n < 100 && !(e = pthread_create(&t[n], 0, wait_there, 0))) n++;
	printf("%d more threads, then %s\n", n, strerror(e));
	fflush(stdout);
	pthread_barrier_wait(&barrier);
	for (int i = 0; i < n; i++) pthread_join(t[i], 0);
	for (int i = 0; i < 200; i++) {
		if (pthread_create(t, 0, late, 0) && i) return 1;
		if (i > 2) {
			pthread_detach(*t);
			break;
		}
		pthread_join(*t, 0);
	}
	return 0;
}

/* Seals this thread and computes, while helpers write, allocate and make threads. */
static volatile int over;
static volatile long made;
static void *nothing(void *a) { return a; }
static void *helper(void *a)
{
	FILE *log = fopen("/dev/null", "w");
	while (!over) {
		pthread_t t;
		fprintf(log, "%ld\n", made);
		fflush(log);
		char *p = malloc(300000);
		memset(p, 1, 300000);
		free(p);
		if (!pthread_create(&t, 0, nothing, 0)) pthread_join(t, 0);
		made++;
	}
	return a;
}

static int sealed(void)
{
	pthread_t t[2];
	for (int i = 0; i < 2; i++) pthread_create(&t[i], 0, helper, 0);
	syscall(0x434c00, 1);
	double x = 1;
	long at = made;
	while (made < at + 40) x = x * 1.0000001 + 1e-9;
	syscall(0x434c00, 0);
	over = 1;
	for (int i = 0; i < 2; i++) pthread_join(t[i], 0);
	printf("%s\n", x > 1 ? "done" : "?");
	return 0;
}

int main(int argc, char **argv)
{
	if (argc != 2) return 2;
	const char *m = argv[1];
	setvbuf(stdout, 0, _IOLBF, 0);
	sem_init(&ping, 0, 0);
	sem_init(&pong, 0, 0);
	if (!strcmp(m, "many")) return many();
	if (!strcmp(m, "handover")) return handover();
	if (!strcmp(m, "robust")) return robust(PTHREAD_PRIO_NONE);
	if (!strcmp(m, "robust-pi")) return robust(PTHREAD_PRIO_INHERIT);
	if (!strcmp(m, "priority")) return priority();
	if (!strcmp(m, "timed")) return timed();
	if (!strcmp(m, "drop")) return drop();
	if (!strcmp(m, "take")) return take();
	if (!strcmp(m, "bomb")) return bomb();
	if (!strcmp(m, "sealed")) return sealed();
	pthread_t t;
	if (!strcmp(m, "main-first")) {
		pthread_create(&t, 0, late, 0);
		pthread_exit(0);
	}
	if (!strcmp(m, "exit-all")) {
		pthread_create(&t, 0, ends_all, 0);
		for (;;) ; /* in the guest */
	}
	if (!strcmp(m, "exit-blocked")) {
		pthread_t l;
		pthread_create(&t, 0, answer, 0); /* waits for ever */
		pthread_create(&l, 0, late, 0);
		pthread_join(l, 0);
		return 3;
	}
	return 2;
}
