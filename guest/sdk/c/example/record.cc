// Keeps a gap record of a busy loop of its own, as @jitter does. Status 0 natively and under Cloister.
#include <cstdio>
#include <x86intrin.h>

#include "../cloister.h"

static cloister_record record CLOISTER_PAGE_ALIGNED;

// The order of the stores is what the monitor relies on; volatile keeps the compiler to it, and x86 keeps
// the rest: a bucket before passes, a ring entry before ring_next.
template <typename T> static void publish(T &where, T value)
{
	*const_cast<volatile T *>(&where) = value;
}

int main()
{
	const uint64_t passes = 200000;

	record.magic = CLOISTER_GAP_MAGIC;
	record.kind = CLOISTER_GAP_KIND_LOOP;
	record.threshold = 2500;
	record.min = UINT64_MAX;
	for (uint64_t i = 0; i < CLOISTER_GAP_RING; i++)
		publish(record.ring[i].tsc, uint64_t(0)); // a first touch in the sealed loop would be a break
	cloister_gap_record(&record);
	cloister_isolate(1);

	_mm_lfence();
	uint64_t last = __rdtsc();
	record.start = last;
	for (uint64_t n = 1; n <= passes; n++) {
		_mm_lfence();
		const uint64_t now = __rdtsc();
		const uint64_t d = now - last;
		last = now;
		uint64_t &bucket = record.hist[d ? 64 - __builtin_clzll(d) : 0];
		publish(bucket, bucket + 1);
		publish(record.passes, n);
		publish(record.last, now);
		if (d < record.min)
			publish(record.min, d);
		if (d > record.max)
			publish(record.max, d);
		if (d >= record.threshold) {
			cloister_gap &gap = record.ring[record.ring_next % CLOISTER_GAP_RING];
			publish(gap.tsc, now);
			publish(gap.length, d);
			publish(record.stolen, record.stolen + d);
			publish(record.gaps, record.gaps + 1);
			publish(record.ring_next, record.ring_next + 1);
		}
	}
	cloister_isolate(0);

	uint64_t sum = 0;
	for (uint64_t n : record.hist)
		sum += n;
	std::printf("passes %llu\n", static_cast<unsigned long long>(sum));
	return sum == passes ? 0 : 1;
}
