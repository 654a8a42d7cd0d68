// openmp.c: loops, reductions, tasks, locks, sections and SIMD of libgomp, with results that no schedule may change.
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

enum { N = 192, SIEVE = 1000000, BODIES = 256 };

static double a[N][N], b[N][N], c[N][N];
static unsigned char composite[SIEVE];

static long fib(int n)
{
	long x, y;

	if (n < 2)
		return n;
	if (n < 15)
		return fib(n - 1) + fib(n - 2);
#pragma omp task shared(x)
	x = fib(n - 1);
#pragma omp task shared(y)
	y = fib(n - 2);
#pragma omp taskwait
	return x + y;
}

int main(int argc, char **argv)
{
	int threads = argc > 1 ? atoi(argv[1]) : 4, seen = 0, primes = 0;
	unsigned long long hash = 14695981039346656037ULL;
	long deep = 0, locked = 0, critical = 0, ordered = 0;
	double x[BODIES], v[BODIES] = {0};
	omp_lock_t lock;

	omp_set_dynamic(0);
	omp_set_num_threads(threads);
#pragma omp parallel
#pragma omp atomic
	seen++;
	printf("%d threads of %d\n", seen, omp_get_max_threads());

	for (int i = 0; i < N; i++)
		for (int k = 0; k < N; k++)
			a[i][k] = (i * 31 + k * 17) % 101 - 50, b[i][k] = (i * 13 + k * 7) % 89 - 44;
#pragma omp parallel for collapse(2) schedule(dynamic, 5)
	for (int i = 0; i < N; i++)
		for (int j = 0; j < N; j++) {
			double s = 0;
#pragma omp simd reduction(+ : s)
			for (int k = 0; k < N; k++)
				s += a[i][k] * b[k][j];
			c[i][j] = s;
		}
	for (int i = 0; i < N; i++)
		for (int j = 0; j < N; j++)
			hash = (hash ^ (unsigned long long)(long long)c[i][j]) * 1099511628211ULL;
	printf("product %016llx\n", hash);

	for (long i = 2; i * i < SIEVE; i++)
		if (!composite[i])
#pragma omp parallel for schedule(static)
			for (long k = i * i; k < SIEVE; k += i)
				composite[k] = 1;
#pragma omp parallel for reduction(+ : primes) schedule(guided)
	for (int i = 2; i < SIEVE; i++)
		primes += !composite[i];
	printf("%d primes\n", primes);

#pragma omp parallel
#pragma omp single
	deep = fib(27);
	printf("fib %ld\n", deep);

	omp_init_lock(&lock);
#pragma omp parallel for
	for (int i = 0; i < 20000; i++) {
		omp_set_lock(&lock);
		locked += i;
		omp_unset_lock(&lock);
#pragma omp critical
		critical += 2 * i;
	}
	printf("locked %ld critical %ld\n", locked, critical);
#pragma omp parallel for ordered
	for (int i = 0; i < 500; i++)
#pragma omp ordered
		ordered = (ordered * 31 + i) % 1000003;
	printf("ordered %ld\n", ordered);

	for (int i = 0; i < BODIES; i++)
		x[i] = sin(i) * 10;
	for (int step = 0; step < 50; step++) {
#pragma omp parallel
		{
#pragma omp for
			for (int i = 0; i < BODIES; i++)
				for (int k = 0; k < BODIES; k++)
					v[i] += 1e-4 * (x[k] - x[i]) / (fabs(x[k] - x[i]) + 0.1);
#pragma omp barrier
#pragma omp for
			for (int i = 0; i < BODIES; i++)
				x[i] += v[i];
		}
	}
	printf("bodies %.17g %.17g\n", x[0], x[BODIES - 1]);
	return 0;
}
