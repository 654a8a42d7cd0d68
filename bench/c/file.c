/*
 * file NAME BYTES: reads the file from its beginning to its end by read() of BYTES, sealed, and writes the nanoseconds that it
 * took, the bytes, and the calls. Each byte counts: a word of each page goes into a sum.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cloister.h"

int main(int argc, char **argv)
{
	struct timespec from, to;
	if (argc != 3) return 2;
	size_t size = strtoul(argv[2], 0, 10);
	char *b = malloc(size);
	int fd = open(argv[1], O_RDONLY);
	uint64_t sum = 0, total = 0, calls = 0;
	if (fd < 0 || !b) {
		perror(argv[1]);
		return 1;
	}
	memset(b, 1, size); /* first touches are not part of what is timed */
	cloister_isolate(1); /* natively there is no such call */
	clock_gettime(CLOCK_MONOTONIC, &from);
	for (ssize_t n; (n = read(fd, b, size)) != 0; calls++) {
		if (n < 0) {
			perror("read");
			return 1;
		}
		for (ssize_t i = 0; i < n; i += 4096) sum += b[i];
		total += n;
	}
	clock_gettime(CLOCK_MONOTONIC, &to);
	cloister_isolate(0);
	printf("%lld %llu %llu %llu\n", (to.tv_sec - from.tv_sec) * 1000000000ll + to.tv_nsec - from.tv_nsec, (unsigned long long)total, (unsigned long long)calls, (unsigned long long)sum);
	return 0;
}
