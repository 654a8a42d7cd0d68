/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cloister.h: what a program says to Cloister. Harmless natively: the kernel answers ENOSYS.
 * See README.md beside this file.
 */
#ifndef CLOISTER_H
#define CLOISTER_H

#if !defined(__x86_64__) || !defined(__linux__)
#error "cloister.h is for Linux on x86-64"
#endif

#include <stdint.h>

/* BEGIN GENERATED from guest/abi */
#define CLOISTER_PAGE 0x1000UL
#define CLOISTER_SYS_ISOLATE 0x434c00UL
#define CLOISTER_SYS_GAP_RECORD 0x434c01UL
#define CLOISTER_GAP_MAGIC 0x4345525041474c43UL
#define CLOISTER_GAP_KIND_LOOP 0x1UL
#define CLOISTER_GAP_KIND_CYCLIC 0x2UL
#define CLOISTER_GAP_BUCKETS 0x40UL
#define CLOISTER_GAP_RING 0x100UL
#define CLOISTER_RING_MAGIC 0x474e49524f494c43UL
#define CLOISTER_RING_VERSION 0x1UL
#define CLOISTER_RING_DATA 0x1000UL
#define CLOISTER_RING_MIN_SIZE 0x1000UL
#define CLOISTER_RING_MAX_SIZE 0x40000000UL
#define CLOISTER_RING_PREFIX 0x8UL
#define CLOISTER_SYS_SAFEPOINT 0x434c03UL
#define CLOISTER_SYS_SYNC 0x434c04UL
#define CLOISTER_SAFEPOINT_HERE 0x0UL
#define CLOISTER_SAFEPOINT_WORD 0x1UL
#define CLOISTER_SAFEPOINT_QUIET 0x2UL
#define CLOISTER_NOTE_SITE 1
#define CLOISTER_NOTE_SAFE_WORD 2
#define CLOISTER_NOTE_SAFE_RIP 3
#define CLOISTER_NOTE_PATCHABLE 4
#define CLOISTER_SITE_IMM 1
#define CLOISTER_SITE_BRANCH 2
#define CLOISTER_SITE_NAME 128
#define CLOISTER_NOTE_OWNER "Cloister"
#define CLOISTER_RING_DIR "/dev/cloister/ring/"

struct cloister_gap {
	uint64_t tsc; /* at the end of the gap */
	uint64_t length; /* of the gap */
};

struct cloister_record {
	uint64_t magic; /* GAP_MAGIC */
	uint64_t kind; /* GAP_KIND_LOOP: every pass is counted; GAP_KIND_CYCLIC: lateness of wake-ups */
	uint64_t threshold; /* a delta at or above it is a gap; all times are TSC cycles */
	uint64_t period; /* GAP_KIND_CYCLIC: between wake-ups */
	uint64_t passes; /* made so far; store after hist */
	uint64_t gaps; /* passes at or above the threshold */
	uint64_t stolen; /* sum of all gaps */
	uint64_t min; /* shortest delta */
	uint64_t max; /* longest delta */
	uint64_t start; /* TSC of the first pass */
	uint64_t last; /* TSC of the latest pass */
	uint64_t ring_next; /* gaps written to ring so far; store after ring */
	uint64_t reserved[4]; /* 0 */
	uint64_t hist[64]; /* bucket i counts deltas of i significant bits */
	struct cloister_gap ring[256]; /* the latest gaps */
};

struct cloister_ring_header {
	uint64_t magic; /* RING_MAGIC */
	uint64_t version; /* RING_VERSION */
	uint64_t size; /* of the data, bytes; a power of two */
	uint64_t data; /* RING_DATA */
	uint64_t reserved0[12]; /* 0 */
	uint64_t head; /* producer's: bytes written since the ring was made */
	uint64_t closed; /* producer's: not 0 when no record follows */
	uint64_t dropped; /* producer's: records given up because the ring was full */
	uint64_t reserved1[13]; /* 0 */
	uint64_t tail; /* consumer's: bytes taken since the ring was made */
	uint64_t reserved2[15]; /* 0 */
};
/* END GENERATED */

/* A struct cloister_record must start a page; gcc and clang. */
#define CLOISTER_PAGE_ALIGNED __attribute__((aligned(CLOISTER_PAGE)))

/* One system call with one argument; the result is as the kernel gives it. */
static __inline__ long cloister_syscall1(long nr, long a)
{
	long r;

	__asm__ __volatile__("syscall" : "=a"(r) : "0"(nr), "D"(a) : "rcx", "r11", "memory");
	return r;
}

/* The same with two arguments. */
static __inline__ long cloister_syscall2(long nr, long a, long b)
{
	long r;

	__asm__ __volatile__("syscall" : "=a"(r) : "0"(nr), "D"(a), "S"(b) : "rcx", "r11", "memory");
	return r;
}

/*
 * Seals (on != 0) or unseals the calling vCPU: breaks in between count against the run's budget.
 * Returns 0; -ENOSYS natively. Under `cloister run --require GRADE` sealing returns -EAGAIN, and nothing is
 * sealed, while the core is not as quiet as that, or the thread has no core of its own: try again later, or go on
 * unsealed. The report says what the core lacks. Unsealing is never refused.
 */
static __inline__ int cloister_isolate(int on)
{
	return (int)cloister_syscall1(CLOISTER_SYS_ISOLATE, on != 0);
}

/*
 * Shows a page-aligned record to the monitor, which reads it until the program ends.
 * Returns 0; -EFAULT or -EINVAL for a bad address; -ENOSYS natively.
 */
static __inline__ int cloister_gap_record(struct cloister_record *record)
{
	return (int)cloister_syscall1(CLOISTER_SYS_GAP_RECORD, (long)record);
}

/*
 * Says (on != 0) that the calling thread executes nothing that is ever patched until it says otherwise: a helper that sleeps in a system call
 * shall not hold up a patch that waits for safe points (cloister_patch.h). Returns 0; -ENOSYS natively.
 */
static __inline__ int cloister_quiet(int on)
{
	return (int)cloister_syscall2(CLOISTER_SYS_SAFEPOINT, CLOISTER_SAFEPOINT_QUIET, on != 0);
}

/*
 * For a program that has written code: when it returns 0, every other thread executes a serialising instruction before its next instruction of the
 * program. Returns 0; -ETIMEDOUT when a thread could not be stopped; -ENOSYS natively (use membarrier(2) there).
 */
static __inline__ int cloister_sync_cores(void)
{
	return (int)cloister_syscall1(CLOISTER_SYS_SYNC, 0);
}

/* Returns 1 under Cloister, 0 natively. It asks to register a record at an odd address, which no one accepts. */
static __inline__ int cloister_available(void)
{
	return cloister_syscall1(CLOISTER_SYS_GAP_RECORD, 1) != -38; /* -ENOSYS */
}

#endif
