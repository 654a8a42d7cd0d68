/* Seals, loops, unseals. Status 0 natively and under Cloister, 75 if it may not be sealed; the loop itself makes no system call. */
#include <errno.h>
#include <stdio.h>

#include "../cloister.h"

int main(void)
{
	volatile uint64_t sum = 0;
	uint64_t i;
	int on, off;

	on = cloister_isolate(1);
	if (on == -EAGAIN) { /* cloister run --require, and the core is not quiet enough now */
		fprintf(stderr, "not sealed: try again later\n");
		return 75;
	}
	for (i = 0; i < 1000000; i++)
		sum += i;
	off = cloister_isolate(0);

	printf("sum %llu\n", (unsigned long long)sum);
	/* Both worked, or neither did: natively. */
	return on == off ? 0 : 1;
}
