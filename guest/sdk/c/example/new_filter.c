/*
 * A new filter for control_loop.c, and for the built-in @control-loop:
 *
 *	gcc -O2 -c -o new.o new_filter.c
 *	cloister patch VM --replace filter=./new.o:filter
 */
#include <stdint.h>

int64_t filter(int64_t sample, int64_t *version);

int64_t filter(int64_t sample, int64_t *version)
{
	*version = 2;
	return 2 * sample;
}
