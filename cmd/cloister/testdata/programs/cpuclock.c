// CPU clocks: of each thread, of the process, by number; timers and sleeps on them; what the accounts say otherwise.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/times.h>
#include <time.h>
#include <unistd.h>

static long long ns(clockid_t c)
{
	struct timespec t;
	if (clock_gettime(c, &t))
		return -errno;
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void burn(int ms)
{
	for (long long end = ns(CLOCK_THREAD_CPUTIME_ID) + ms * 1000000LL; ns(CLOCK_THREAD_CPUTIME_ID) < end;)
		;
}

static const long long ms = 1000000;
static pthread_barrier_t begun, burnt, done;
static int tids[2];
static volatile int more, quit;

static void *busy(void *a)
{
	tids[0] = gettid();
	pthread_barrier_wait(&begun);
	burn(200);
	pthread_barrier_wait(&burnt);
	while (!quit) {
		if (more)
			burn(5);
		else
			usleep(1000);
	}
	return 0;
}

static void *idle(void *a)
{
	tids[1] = gettid();
	pthread_barrier_wait(&begun);
	pthread_barrier_wait(&burnt);
	pthread_barrier_wait(&done);
	return 0;
}

static void *spin(void *a)
{
	for (long long end = ns(CLOCK_MONOTONIC) + 300 * ms; ns(CLOCK_MONOTONIC) < end;)
		;
	return 0;
}

static void errnos(void)
{
	int numbers[] = { 0, getpid(), tids[0], 4194303, -1 };
	for (int i = 0; i < 5; i++)
		for (int flags = 0; flags < 8; flags++) {
			int id = ~numbers[i] << 3 | flags;
			struct timespec t = { 0, 0 }, r;
			struct sigevent ev = { .sigev_notify = SIGEV_NONE };
			printf("clock of %d, %d: gettime", i, flags);
			printf(" %s", syscall(SYS_clock_gettime, id, &r) ? strerrorname_np(errno) : "0");
			printf(" getres %s", syscall(SYS_clock_getres, id, &r) ? strerrorname_np(errno) : r.tv_nsec == 1 ? "1 ns" : "ticks");
			printf(" sleep %s", syscall(SYS_clock_nanosleep, id, 0, &t, 0) ? strerrorname_np(errno) : "0");
			int timer, e = syscall(SYS_timer_create, id, &ev, &timer);
			printf(" timer %s\n", e ? strerrorname_np(errno) : "0");
			if (!e)
				syscall(SYS_timer_delete, timer);
		}
	for (int id = 0; id < 14; id++) {
		struct sigevent ev = { .sigev_notify = SIGEV_NONE };
		struct timespec t = { 0, 0 };
		int timer, e = syscall(SYS_timer_create, id, &ev, &timer);
		printf("clock %d: sleep %s", id, syscall(SYS_clock_nanosleep, id, 0, &t, 0) ? strerrorname_np(errno) : "0");
		if (id != CLOCK_REALTIME_ALARM && id != CLOCK_BOOTTIME_ALARM) // whether there are such depends on the machine
			printf(" timer %s", e ? strerrorname_np(errno) : "0");
		printf("\n");
		if (!e)
			syscall(SYS_timer_delete, timer);
	}
}

static int wait_for(int sig, int millis)
{
	sigset_t s;
	sigemptyset(&s), sigaddset(&s, sig);
	return sigtimedwait(&s, 0, &(struct timespec){ millis / 1000, millis % 1000 * ms });
}

static void set(timer_t t, long long value, long long interval)
{
	struct itimerspec v = { { 0, interval }, { 0, value } };
	printf("settime %s\n", timer_settime(t, 0, &v, 0) ? strerrorname_np(errno) : "0");
}

static long ticks(const char *path)
{
	char b[1000];
	FILE *f = fopen(path, "r");
	b[fread(b, 1, sizeof b - 1, f)] = 0;
	fclose(f);
	long u, s;
	sscanf(strrchr(b, ')') + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %ld %ld", &u, &s);
	return u + s;
}

int main(void)
{
	setvbuf(stdout, 0, _IONBF, 0);
	sigset_t s;
	sigfillset(&s), sigprocmask(SIG_SETMASK, &s, 0);
	pthread_barrier_init(&begun, 0, 3), pthread_barrier_init(&burnt, 0, 3), pthread_barrier_init(&done, 0, 2);
	pthread_t t[2], many[8];
	pthread_create(&t[0], 0, busy, 0), pthread_create(&t[1], 0, idle, 0);
	pthread_barrier_wait(&begun), pthread_barrier_wait(&burnt);
	clockid_t c[2], p;
	printf("%d %d", pthread_getcpuclockid(t[0], &c[0]), pthread_getcpuclockid(t[1], &c[1]));
	printf(" %d\n", clock_getcpuclockid(0, &p));
	long long a = ns(c[0]), b = ns(c[1]), self = ns(CLOCK_THREAD_CPUTIME_ID), all = ns(CLOCK_PROCESS_CPUTIME_ID);
	printf("busy %d idle %d self %d all %d %d\n", a >= 200 * ms && a < 240 * ms, b >= 0 && b < 20 * ms, self < 50 * ms, all >= a + b + self,
		all < a + b + self + 30 * ms);
	struct rusage us, ut;
	getrusage(RUSAGE_SELF, &us), getrusage(RUSAGE_THREAD, &ut);
	printf("rusage %d %d\n", us.ru_utime.tv_usec + us.ru_stime.tv_usec >= 200000, ut.ru_utime.tv_usec + ut.ru_stime.tv_usec < 50000);
	struct tms tms;
	times(&tms);
	char path[64];
	sprintf(path, "/proc/self/task/%d/stat", tids[0]);
	printf("times %d stat %d", tms.tms_utime + tms.tms_stime >= 19, ticks("/proc/self/stat") >= 19);
	printf(" %d %d\n", ticks(path) >= 19 && ticks(path) < 26, ticks("/proc/thread-self/stat") < 6);
	errnos();

	// A timer on each clock: the busy thread's rings when that thread works, the other one's does not.
	struct sigevent e1 = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN }, e2 = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1 };
	timer_t t1, t2;
	printf("create %d", timer_create(c[0], &e1, &t1));
	printf(" %d\n", timer_create(c[1], &e2, &t2));
	set(t1, 30 * ms, 0), set(t2, 30 * ms, 0);
	printf("none rings: %d\n", wait_for(SIGRTMIN, 60));
	more = 1;
	printf("it rings: %d\n", wait_for(SIGRTMIN, 5000) == SIGRTMIN);
	printf("the other: %d\n", wait_for(SIGRTMIN + 1, 60));
	set(t1, 10 * ms, 10 * ms);
	printf("again and again: %d", wait_for(SIGRTMIN, 5000) == SIGRTMIN);
	printf(" %d\n", wait_for(SIGRTMIN, 5000) == SIGRTMIN);
	struct itimerspec left;
	timer_gettime(t2, &left);
	printf("left %d\n", left.it_value.tv_nsec > 5 * ms && left.it_value.tv_nsec <= 30 * ms);

	// Sleeps on the clocks of others.
	struct timespec d = { 0, 50 * ms };
	a = ns(CLOCK_PROCESS_CPUTIME_ID);
	printf("sleep on the process's %d", clock_nanosleep(CLOCK_PROCESS_CPUTIME_ID, 0, &d, 0));
	printf(" %d\n", ns(CLOCK_PROCESS_CPUTIME_ID) - a >= 50 * ms);
	a = ns(c[0]) + 40 * ms, d = (struct timespec){ a / 1000000000, a % 1000000000 };
	printf("until a time of the thread's %d", clock_nanosleep(c[0], TIMER_ABSTIME, &d, 0));
	printf(" %d\n", ns(c[0]) >= a);

	// The clocks of threads that have ended.
	more = 0, quit = 1;
	pthread_barrier_wait(&done);
	pthread_join(t[0], 0), pthread_join(t[1], 0);
	usleep(20000);
	printf("after the end: %lld %lld\n", ns(c[0]), ns(c[1]));
	printf("gettime %d", timer_gettime(t1, &left));
	printf(" %ld %ld\n", left.it_interval.tv_nsec, left.it_value.tv_nsec);
	set(t1, 10 * ms, 0);
	printf("the sum keeps them: %d\n", ns(CLOCK_PROCESS_CPUTIME_ID) >= 200 * ms);

	// More threads than processors: no clock runs faster than they do.
	all = ns(CLOCK_PROCESS_CPUTIME_ID), a = ns(CLOCK_MONOTONIC);
	for (int i = 0; i < 8; i++)
		pthread_create(&many[i], 0, spin, 0);
	for (int i = 0; i < 8; i++)
		pthread_join(many[i], 0);
	all = ns(CLOCK_PROCESS_CPUTIME_ID) - all, a = (ns(CLOCK_MONOTONIC) - a) * sysconf(_SC_NPROCESSORS_ONLN);
	printf("eight that spin: %d %d\n", all > 100 * ms, all <= a + a / 20);
	return 0;
}
