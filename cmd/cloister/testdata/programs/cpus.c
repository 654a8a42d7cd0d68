// Which CPU a thread is on, by each way there is to ask.
//   cpus       compared with what was asked for
//   cpus loop  asks a million times, without a system call where there is a vDSO
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int by_call(void)
{
	unsigned cpu = -1, node = -1;
	if (syscall(SYS_getcpu, &cpu, &node, 0) || node)
		printf("getcpu: node %u\n", node);
	return cpu;
}

static int by_proc(void)
{
	char b[1000];
	int cpu = -1;
	FILE *f = fopen("/proc/thread-self/stat", "r");
	b[fread(b, 1, sizeof b - 1, f)] = 0;
	fclose(f);
	sscanf(strrchr(b, ')') + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %*u %*u %*d %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*d %d", &cpu);
	return cpu;
}

static cpu_set_t all;

static cpu_set_t only(int cpu)
{
	cpu_set_t s;
	CPU_ZERO(&s);
	CPU_SET(cpu, &s);
	return s;
}

static void say(const char *who, int cpu)
{
	printf("%s on %d: %d", who, cpu, sched_getcpu());
	printf(" %d %d", by_call(), by_proc());
	cpu_set_t s;
	sched_getaffinity(0, sizeof s, &s);
	printf(", may be on %d\n", CPU_COUNT(&s));
}

static void *child(void *cpu)
{
	say("a child", *(int *)cpu);
	return 0;
}

static volatile int seen = -1, stop;

static void *looks(void *x)
{
	while (!stop)
		seen = sched_getcpu();
	return 0;
}

int main(int argc, char **argv)
{
	setvbuf(stdout, 0, _IONBF, 0);
	if (argc > 1) {
		long sum = 0;
		for (int i = 0; i < 1000000; i++)
			sum += sched_getcpu();
		return sum < 0;
	}
	sched_getaffinity(0, sizeof all, &all);
	printf("%d CPUs, on one of them: %d\n", CPU_COUNT(&all), CPU_ISSET(sched_getcpu(), &all) != 0);
	pthread_t t;
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &all))
			continue;
		cpu_set_t s = only(cpu);
		printf("pinned %d\n", sched_setaffinity(0, sizeof s, &s));
		say("the first thread", cpu);
		pthread_create(&t, 0, child, &cpu), pthread_join(t, 0);
	}
	sched_setaffinity(0, sizeof all, &all);
	printf("free again: %d\n", CPU_ISSET(sched_getcpu(), &all) != 0);
	pthread_create(&t, 0, looks, 0);
	for (int i = 0; i < 6; i++)
		for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
			if (!CPU_ISSET(cpu, &all))
				continue;
			cpu_set_t s = only(cpu);
			pthread_setaffinity_np(t, sizeof s, &s);
			while (seen != cpu)
				;
		}
	stop = 1, pthread_join(t, 0);
	printf("a thread that only looks sees each move\n");
	return 0;
}
