/*
 * ring MODE PATH...: the program's side of rings (docs/rings.md).
 *
 * produce PATH N     sealed, puts N records of many lengths and waits for room where there is none
 * flood PATH N       sealed, puts N records, drops what does not fit, and closes
 * thread PATH|- N    as produce, to a thread of its own that checks them; -: memory of its own, without Cloister too
 * echo IN OUT        sealed, gives the records of IN to OUT until IN is closed
 * spoil PATH WHAT    writes nonsense where a consumer looks
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "cloister_ring.h"

static void fail(const char *what, long e)
{
	printf("%s: %s\n", what, e < 0 ? strerror((int)-e) : "wrong");
	exit(1);
}

static void seal(int on)
{
	int e = cloister_isolate(on);

	if (e != 0 && e != -ENOSYS)
		fail("seal", e);
}

static void pause_(void)
{
	__asm__ __volatile__("pause");
}

/* Record i: its number, then bytes that depend on it. */
static uint64_t make(unsigned char *rec, uint64_t i)
{
	uint64_t n = 8 + i * 7 % 300;

	memcpy(rec, &i, 8);
	for (uint64_t k = 8; k < n; k++)
		rec[k] = (unsigned char)(i + k);
	return n;
}

static unsigned long fulls;

static void put(struct cloister_ring *r, const void *rec, uint64_t n)
{
	long e;

	while ((e = cloister_ring_put(r, rec, n)) == -EAGAIN) {
		fulls++;
		pause_();
	}
	if (e != 0)
		fail("put", e);
}

static void produce(struct cloister_ring *r, uint64_t count, int drop)
{
	unsigned char rec[512];
	uint64_t dropped = 0;

	put(r, rec, make(rec, 0));
	if (!drop)
		while (__atomic_load_n(&r->shared->tail, __ATOMIC_ACQUIRE) == 0)
			pause_(); /* nobody takes anything yet */
	seal(1);
	for (uint64_t i = 1; i < count; i++) {
		uint64_t n = make(rec, i);

		if (!drop)
			put(r, rec, n);
		else if (cloister_ring_put(r, rec, n) != 0) {
			cloister_ring_drop(r);
			dropped++;
		}
	}
	cloister_ring_close(r);
	seal(0);
	printf("%lu records, %lu dropped, %s\n", count, dropped, fulls > 0 ? "full at times" : "never full");
}

static void *check(void *arg)
{
	struct cloister_ring r;
	unsigned char rec[512], want[512];
	struct cloister_ring *p = (struct cloister_ring *)arg;
	uint64_t i = 0;
	int64_t n = cloister_ring_attach(&r, p->shared, CLOISTER_RING_DATA + p->size);

	if (n != 0)
		fail("attach", n);
	while ((n = cloister_ring_get(&r, rec, sizeof rec)) != -ENODATA) {
		if (n == -EAGAIN) {
			pause_();
			continue;
		}
		if (n < 0)
			fail("get", n);
		if ((uint64_t)n != make(want, i) || memcmp(rec, want, (size_t)n) != 0)
			fail("record", (long)i);
		i++;
	}
	printf("%lu records taken\n", i);
	return NULL;
}

static void spoil(struct cloister_ring *r, const char *path, const char *what)
{
	struct cloister_ring_header *h = r->shared;
	unsigned char rec[512];
	int fd = open(path, O_RDWR);

	if (fd < 0)
		fail("open", -errno);
	for (uint64_t i = 0; i < 5; i++)
		put(r, rec, make(rec, i));
	while (__atomic_load_n(&h->tail, __ATOMIC_ACQUIRE) != r->head)
		pause_();
	if (strcmp(what, "size") == 0) {
		/* What a program may not do to a file that others have mapped. */
		printf("%d %d %d %d %d\n", ftruncate(fd, 0), ftruncate(fd, 1 << 30), fallocate(fd, 0, 0, 1 << 30),
		       fchmod(fd, 0), open(path, O_RDWR | O_TRUNC));
		h->size = 1ULL << 40; /* nobody looks at it again */
		put(r, rec, make(rec, 5));
		cloister_ring_close(r);
		return;
	}
	if (strcmp(what, "head") == 0)
		h->head = 1ULL << 60;
	else if (strcmp(what, "odd") == 0)
		h->head = r->head + 12;
	else if (strcmp(what, "length") == 0) {
		*(uint64_t *)(r->data + (r->head & (r->size - 1))) = ~0ULL;
		h->head = r->head + 64;
	} else if (strcmp(what, "hole") == 0 && fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, CLOISTER_RING_DATA + r->size) != 0)
		fail("fallocate", -errno);
	for (;;)
		pause_();
}

int main(int argc, char **argv)
{
	struct cloister_ring r, in;
	unsigned char rec[4096];
	int64_t n;

	if (argc != 4)
		return 2;
	if (strcmp(argv[2], "-") == 0) {
		size_t bytes = CLOISTER_RING_DATA + 65536;
		void *mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if ((n = cloister_ring_format(mem, bytes)) != 0 || (n = cloister_ring_attach(&r, mem, bytes)) != 0)
			fail("format", n);
	} else if ((n = cloister_ring_open(&r, argv[2])) != 0)
		fail("open", n);
	if (strcmp(argv[1], "produce") == 0 || strcmp(argv[1], "flood") == 0)
		produce(&r, strtoul(argv[3], NULL, 0), argv[1][0] == 'f');
	else if (strcmp(argv[1], "thread") == 0) {
		pthread_t helper;

		if ((n = pthread_create(&helper, NULL, check, &r)) != 0)
			fail("pthread_create", -n);
		produce(&r, strtoul(argv[3], NULL, 0), 0);
		pthread_join(helper, NULL);
	} else if (strcmp(argv[1], "echo") == 0) {
		in = r;
		if ((n = cloister_ring_open(&r, argv[3])) != 0)
			fail("open", n);
		seal(1);
		while ((n = cloister_ring_get(&in, rec, sizeof rec)) != -ENODATA) {
			if (n >= 0)
				put(&r, rec, (uint64_t)n);
			else if (n == -EAGAIN)
				pause_();
			else
				fail("get", n);
		}
		cloister_ring_close(&r);
		seal(0);
		puts("done");
	} else if (strcmp(argv[1], "spoil") == 0)
		spoil(&r, argv[2], argv[3]);
	return 0;
}
