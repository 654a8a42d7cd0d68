/* Seals, loops, unseals. Status 0 natively and under Cloister; the loop itself makes no system call. */
#include <stdio.h>

#include "../cloister.h"

int main(void)
{
	volatile uint64_t sum = 0;
	uint64_t i;
	int on, off;

	on = cloister_isolate(1);
	for (i = 0; i < 1000000; i++)
		sum += i;
	off = cloister_isolate(0);

	printf("sum %llu\n", (unsigned long long)sum);
	/* Both worked, or neither did: natively, or refused by the run's policy. */
	return on == off ? 0 : 1;
}
