// numbers.c: pthreads that crunch numbers: a sort that splits into threads, a barrier-stepped grid, Mandelbrot rows by an
// atomic counter, and a pool behind one condition. Usage: numbers THREADS
#include <complex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LENGTH = 1 << 20, SIDE = 256, STEPS = 100, ROWS = 300, JOBS = 5000 };

static int threads;
static uint32_t list[LENGTH], scratch[LENGTH];
static double grid[2][SIDE][SIDE];
static pthread_barrier_t step;
static atomic_int next_row;
static unsigned rows[ROWS];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER, idle = PTHREAD_COND_INITIALIZER;
static int queued, finished, closing;
static uint64_t pool;

struct part { uint32_t *p, *tmp; size_t n; int depth; };

static void *sort(void *arg)
{
	struct part *s = arg;
	size_t h = s->n / 2;
	struct part l = {s->p, s->tmp, h, s->depth - 1}, r = {s->p + h, s->tmp + h, s->n - h, s->depth - 1};
	pthread_t other;

	if (s->n < 2)
		return NULL;
	if (s->depth > 0 && !pthread_create(&other, NULL, sort, &l)) {
		sort(&r);
		pthread_join(other, NULL);
	} else {
		sort(&l);
		sort(&r);
	}
	for (size_t i = 0, a = 0, b = h; i < s->n; i++)
		s->tmp[i] = b == s->n || (a < h && s->p[a] <= s->p[b]) ? s->p[a++] : s->p[b++];
	memcpy(s->p, s->tmp, s->n * sizeof *s->p);
	return NULL;
}

static void *relax(void *arg)
{
	int me = (intptr_t)arg;

	for (int t = 0; t < STEPS; t++) {
		for (int y = 1 + me; y < SIDE - 1; y += threads)
			for (int x = 1; x < SIDE - 1; x++)
				grid[~t & 1][y][x] = (grid[t & 1][y - 1][x] + grid[t & 1][y + 1][x] + grid[t & 1][y][x - 1] + grid[t & 1][y][x + 1]) / 4;
		pthread_barrier_wait(&step);
	}
	return NULL;
}

static void *mandelbrot(void *arg)
{
	for (int y; (y = atomic_fetch_add(&next_row, 1)) < ROWS;)
		for (int x = 0; x < ROWS; x++) {
			double complex z = 0, c = (x * 3.0 / ROWS - 2.2) + I * (y * 3.0 / ROWS - 1.5);
			int n = 0;

			for (; n < 200 && creal(z) * creal(z) + cimag(z) * cimag(z) < 4; n++)
				z = z * z + c;
			rows[y] += n;
		}
	return arg;
}

static void *worker(void *arg)
{
	pthread_mutex_lock(&mutex);
	for (;;) {
		while (!queued && !closing)
			pthread_cond_wait(&work, &mutex);
		if (!queued)
			break;
		uint64_t x = queued--;
		pthread_mutex_unlock(&mutex);
		for (int i = 0; i < 100; i++)
			x = x * 6364136223846793005u + 1442695040888963407u;
		pthread_mutex_lock(&mutex);
		pool += x;
		if (++finished == JOBS)
			pthread_cond_signal(&idle);
	}
	pthread_mutex_unlock(&mutex);
	return arg;
}

static void all(void *(*f)(void *), int join, pthread_t *crew)
{
	for (int i = 0; i < threads; i++)
		if (pthread_create(&crew[i], NULL, f, (void *)(intptr_t)i))
			exit(3);
	for (int i = 0; join && i < threads; i++)
		pthread_join(crew[i], NULL);
}

int main(int argc, char **argv)
{
	pthread_t crew[64];
	uint64_t hash = 0;
	struct part whole = {list, scratch, LENGTH, 3};

	threads = argc > 1 ? atoi(argv[1]) : 4;
	for (uint32_t i = 0, x = 1; i < LENGTH; i++)
		list[i] = x = x * 1664525 + 1013904223;
	sort(&whole);
	for (size_t i = 0; i < LENGTH; i++) {
		if (i && list[i - 1] > list[i])
			printf("not sorted at %zu\n", i);
		hash = hash * 31 + list[i];
	}
	printf("sorted %016llx\n", (unsigned long long)hash);

	for (int i = 0; i < SIDE; i++)
		grid[0][0][i] = grid[1][0][i] = 100;
	pthread_barrier_init(&step, NULL, threads);
	all(relax, 1, crew);
	printf("grid %.17g %.17g\n", grid[0][1][SIDE / 2], grid[0][10][10]);

	all(mandelbrot, 1, crew);
	hash = 0;
	for (int y = 0; y < ROWS; y++)
		hash = hash * 31 + rows[y];
	printf("mandelbrot %016llx\n", (unsigned long long)hash);

	all(worker, 0, crew);
	for (int i = 0; i < JOBS; i += 10) {
		pthread_mutex_lock(&mutex);
		queued += 10;
		pthread_cond_broadcast(&work);
		pthread_mutex_unlock(&mutex);
	}
	pthread_mutex_lock(&mutex);
	while (finished < JOBS)
		pthread_cond_wait(&idle, &mutex);
	closing = 1;
	pthread_cond_broadcast(&work);
	pthread_mutex_unlock(&mutex);
	for (int i = 0; i < threads; i++)
		pthread_join(crew[i], NULL);
	printf("pool %d\n", finished);
	return 0;
}
