/*
 * A control loop that can be patched while it runs sealed (docs/patching.md): control_loop [PERIODS [MICROSECONDS]]
 *
 * Status 0 natively and under Cloister. It counts the periods that were not done when the next one was due, and those in which filter changed between the
 * beginning and the end; and remembers the periods from which on the output was another.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../cloister_patch.h"

#define KEPT 64

CLOISTER_PATCHABLE int64_t filter(int64_t sample, int64_t *version)
{
	*version = 1;
	return sample;
}

static int64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int main(int argc, char **argv)
{
	static struct { long long period, output, version; } history[KEPT];
	long long count = argc > 1 ? atoll(argv[1]) : 1000, length = 1000 * (argc > 2 ? atoll(argv[2]) : 10000);
	long long period, missed = 0, mixed = 0, changes = 0;
	int64_t due, output, begin = 0, end = 0;

	filter(100, &begin); /* touched before it counts, as are the clock and the stack */
	now();
	cloister_isolate(1);
	due = now();
	for (period = 0; period < count; period++) {
		output = filter(100, &begin);
		while (now() < due + length / 10) /* it computes */
			;
		output = (output + filter(100, &end)) / 2;
		if (output > CLOISTER_SITE_IMM32("rate.limit", 1000))
			output = CLOISTER_SITE_IMM32("rate.limit", 1000);
		if (cloister_branch("output.off"))
			output = 0;

		mixed += begin != end;
		if (changes == 0 || output != history[(changes - 1) % KEPT].output || end != history[(changes - 1) % KEPT].version) {
			history[changes % KEPT].period = period;
			history[changes % KEPT].output = output;
			history[changes % KEPT].version = end;
			changes++;
		}
		due += length;
		missed += now() >= due;

		cloister_safepoint(); /* this period is done, the next one has not begun */
		while (now() < due)
			;
	}
	cloister_isolate(0);

	for (period = changes > KEPT ? changes - KEPT : 0; period < changes; period++)
		printf("period %lld: output %lld (version %lld)\n", history[period % KEPT].period, history[period % KEPT].output, history[period % KEPT].version);
	printf("control_loop: %lld periods, %lld missed, %lld mixed\n", count, missed, mixed);
	return 0;
}
