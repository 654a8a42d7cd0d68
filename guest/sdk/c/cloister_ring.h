/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cloister_ring.h: a ring of records in shared memory, between one producer and one consumer: a sealed loop and a
 * thread or process that takes its results, or gives it commands. Neither side makes a system call once it is open.
 * Format and use: docs/rings.md. Needs gcc or clang, POSIX.
 */
#ifndef CLOISTER_RING_H
#define CLOISTER_RING_H

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cloister.h"

/* One side of a ring; everything in it is this side's own. */
struct cloister_ring {
	struct cloister_ring_header *shared;
	unsigned char *data;
	uint64_t size; /* of the data, a power of two */
	uint64_t head; /* the producer's own; the consumer's latest look at it */
	uint64_t tail; /* the consumer's own; the producer's latest look at it */
	int corrupt; /* the other side broke the format; it stays */
};

/* What a record of n bytes takes in the ring. */
static __inline__ uint64_t cloister_ring_span(uint64_t n)
{
	return CLOISTER_RING_PREFIX + ((n + CLOISTER_RING_PREFIX - 1) & ~(CLOISTER_RING_PREFIX - 1));
}

/* The longest record that the ring can hold, bytes. */
static __inline__ uint64_t cloister_ring_max(const struct cloister_ring *r)
{
	return r->size - CLOISTER_RING_PREFIX;
}

static __inline__ int cloister_ring_valid_size(uint64_t n)
{
	return n >= CLOISTER_RING_MIN_SIZE && n <= CLOISTER_RING_MAX_SIZE && (n & (n - 1)) == 0;
}

static __inline__ int cloister_ring_fail(struct cloister_ring *r)
{
	r->corrupt = 1;
	return -EBADMSG;
}

/* Makes an empty ring of memory that starts a page: CLOISTER_RING_DATA bytes and a power of two. 0, or -EINVAL. */
static __inline__ int cloister_ring_format(void *mem, size_t bytes)
{
	struct cloister_ring_header *h = (struct cloister_ring_header *)mem;

	if (bytes < CLOISTER_RING_DATA || !cloister_ring_valid_size(bytes - CLOISTER_RING_DATA) || (uintptr_t)mem % CLOISTER_PAGE != 0)
		return -EINVAL;
	memset(h, 0, sizeof *h);
	h->version = CLOISTER_RING_VERSION;
	h->size = bytes - CLOISTER_RING_DATA;
	h->data = CLOISTER_RING_DATA;
	h->magic = CLOISTER_RING_MAGIC;
	return 0;
}

/* Takes a side of the ring in memory that outlives it. 0; -EINVAL: no ring of this version; -EBADMSG: no sane state. */
static __inline__ int cloister_ring_attach(struct cloister_ring *r, void *mem, size_t bytes)
{
	struct cloister_ring_header *h = (struct cloister_ring_header *)mem;
	uint64_t size;

	memset(r, 0, sizeof *r);
	if (bytes < CLOISTER_RING_DATA || __atomic_load_n(&h->magic, __ATOMIC_RELAXED) != CLOISTER_RING_MAGIC ||
	    __atomic_load_n(&h->version, __ATOMIC_RELAXED) != CLOISTER_RING_VERSION ||
	    __atomic_load_n(&h->data, __ATOMIC_RELAXED) != CLOISTER_RING_DATA)
		return -EINVAL;
	size = __atomic_load_n(&h->size, __ATOMIC_RELAXED);
	if (!cloister_ring_valid_size(size) || size > bytes - CLOISTER_RING_DATA)
		return -EINVAL;
	r->shared = h;
	r->data = (unsigned char *)mem + CLOISTER_RING_DATA;
	r->size = size;
	/* ORDER(O11) tail, then head. Pairs with the stores of both sides (P3, C4); without that order progress
	 * of both between the two looks would show a tail beyond the head. */
	r->tail = __atomic_load_n(&h->tail, __ATOMIC_ACQUIRE);
	r->head = __atomic_load_n(&h->head, __ATOMIC_ACQUIRE);
	if (r->head - r->tail > size || (r->head | r->tail) % CLOISTER_RING_PREFIX != 0)
		return cloister_ring_fail(r);
	return 0;
}

/*
 * Opens the ring file at path and maps it for good. Under Cloister the ring of
 * `--ring NAME=SIZE` is CLOISTER_RING_DIR "NAME"; natively there is none: -ENOENT. Other errors are those of open,
 * fstat, mmap and cloister_ring_attach.
 */
static __inline__ int cloister_ring_open(struct cloister_ring *r, const char *path)
{
	struct stat st;
	void *mem = NULL;
	int e = 0, fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) != 0)
		e = -errno;
	else if (st.st_size < (off_t)(CLOISTER_RING_DATA + CLOISTER_RING_MIN_SIZE) || st.st_size > (off_t)(CLOISTER_RING_DATA + CLOISTER_RING_MAX_SIZE))
		e = -EINVAL;
	else if ((mem = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED)
		e = -errno;
	if (close(fd) != 0 && e == 0)
		e = -errno;
	if (e == 0)
		e = cloister_ring_attach(r, mem, (size_t)st.st_size);
	if (e != 0 && mem != NULL && mem != MAP_FAILED)
		munmap(mem, (size_t)st.st_size);
	return e;
}

/*
 * Producer: writes a record. 0; -EAGAIN: it does not fit now, and nothing was written; -EMSGSIZE: it is longer than
 * cloister_ring_max; -EBADMSG: the consumer broke the ring.
 */
static __inline__ int cloister_ring_put(struct cloister_ring *r, const void *record, uint64_t n)
{
	uint64_t need, at, first;

	if (n > cloister_ring_max(r))
		return -EMSGSIZE;
	need = cloister_ring_span(n);
	if (r->corrupt)
		return -EBADMSG;
	if (r->size - (r->head - r->tail) < need) {
		/* ORDER(O11) P1: room. Pairs with the consumer's store of tail (C4); without it a record could be
		 * overwritten while it is copied. */
		uint64_t tail = __atomic_load_n(&r->shared->tail, __ATOMIC_ACQUIRE);

		if (tail - r->tail > r->head - r->tail || tail % CLOISTER_RING_PREFIX != 0)
			return cloister_ring_fail(r);
		r->tail = tail;
		if (r->size - (r->head - tail) < need)
			return -EAGAIN;
	}
	at = r->head & (r->size - 1);
	__atomic_store_n((uint64_t *)(void *)(r->data + at), n, __ATOMIC_RELAXED);
	at = (at + CLOISTER_RING_PREFIX) & (r->size - 1);
	first = n < r->size - at ? n : r->size - at;
	memcpy(r->data + at, record, first);
	memcpy(r->data, (const unsigned char *)record + first, n - first);
	r->head += need;
	/* ORDER(O11) P3: publish. Pairs with the consumer's load of head (C2); without it the record could be read before
	 * it is written. */
	__atomic_store_n(&r->shared->head, r->head, __ATOMIC_RELEASE);
	return 0;
}

/* Producer: counts a record that it gave up because the ring was full. */
static __inline__ void cloister_ring_drop(struct cloister_ring *r)
{
	/* ORDER(none): statistic, one writer */
	__atomic_store_n(&r->shared->dropped, __atomic_load_n(&r->shared->dropped, __ATOMIC_RELAXED) + 1, __ATOMIC_RELAXED);
}

/* Producer: no record follows. */
static __inline__ void cloister_ring_close(struct cloister_ring *r)
{
	/* ORDER(O11) P4: behind every record. Pairs with the consumer's load of closed before that of head (C1); without
	 * it the consumer could see the end and miss the last record. */
	__atomic_store_n(&r->shared->closed, 1, __ATOMIC_RELEASE);
}

/*
 * Consumer: takes the next record and returns its length. -EAGAIN: there is none now; -ENODATA: none will follow;
 * -EMSGSIZE: it is longer than room, and stays; -EBADMSG: the producer broke the ring.
 */
static __inline__ int64_t cloister_ring_get(struct cloister_ring *r, void *buffer, uint64_t room)
{
	uint64_t n, at, first;

	if (r->corrupt)
		return -EBADMSG;
	if (r->head == r->tail) {
		/* ORDER(O11) C1, C2: closed, then head. Pairs with the producer's stores (P4, P3); without the order the
		 * end could be seen, and not the record before it. */
		uint64_t closed = __atomic_load_n(&r->shared->closed, __ATOMIC_ACQUIRE);
		uint64_t head = __atomic_load_n(&r->shared->head, __ATOMIC_ACQUIRE);

		if (head - r->tail > r->size || head % CLOISTER_RING_PREFIX != 0)
			return cloister_ring_fail(r);
		if (head == r->tail)
			return closed ? -ENODATA : -EAGAIN;
		r->head = head;
	}
	at = r->tail & (r->size - 1);
	/* ORDER(O11) C3: one load, for a hostile producer may change the length. Pairs with P2, which P3 published;
	 * without it what was checked and what is used could differ. */
	n = __atomic_load_n((uint64_t *)(void *)(r->data + at), __ATOMIC_RELAXED);
	if (n > cloister_ring_max(r) || cloister_ring_span(n) > r->head - r->tail)
		return cloister_ring_fail(r);
	if (n > room)
		return -EMSGSIZE;
	at = (at + CLOISTER_RING_PREFIX) & (r->size - 1);
	first = n < r->size - at ? n : r->size - at;
	memcpy(buffer, r->data + at, first);
	memcpy((unsigned char *)buffer + first, r->data, n - first);
	r->tail += cloister_ring_span(n);
	/* ORDER(O11) C4: give the room back. Pairs with the producer's load of tail (P1); without it the record could be
	 * overwritten while it is copied. */
	__atomic_store_n(&r->shared->tail, r->tail, __ATOMIC_RELEASE);
	return (int64_t)n;
}

#endif
