// What /proc tells of each thread, and what can be told it there: names, states, signals, processors, times.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static char text[1 << 14];

static char *slurp(const char *path)
{
	int f = open(path, O_RDONLY), n = 0, r;
	if (f < 0) {
		sprintf(text, "%s\n", strerror(errno));
		return text;
	}
	while ((r = read(f, text + n, sizeof text - 1 - n)) > 0)
		n += r;
	text[n] = 0;
	if (r < 0)
		sprintf(text, "%s\n", strerror(errno));
	close(f);
	return text;
}

static const char *of(int tid, const char *name)
{
	static char path[64];
	if (tid)
		sprintf(path, "/proc/self/task/%d/%s", tid, name);
	else
		sprintf(path, "/proc/self/%s", name);
	return path;
}

static int base, tids[4];

// which is the thread with a number: natively others take numbers between them.
static int which(int tid)
{
	for (int i = 0; i < 4; i++)
		if (tid == tids[i])
			return i;
	return 4;
}

// row is a row of status, with threads for their numbers.
static void row(int tid, const char *key)
{
	char *s = slurp(of(tid, "status")), find[64];
	sprintf(find, "\n%s:", key);
	if (strncmp(s, find + 1, strlen(find + 1)))
		s = strstr(s, find);
	if (!s) {
		printf("  no %s\n", key);
		return;
	}
	s = strchr(s, ':') + 1;
	*strchr(s, '\n') = 0;
	if (strstr("Tgid Pid NStgid NSpid", key))
		printf("  %s thread %d\n", key, which(atoi(s)));
	else if (!strcmp(key, "SigIgn")) /* 32 and 33 are the C library's own; a program started by one may find them ignored */
		printf("  %s %016lx\n", key, strtoul(s, NULL, 16) & ~0x180000000ul);
	else
		printf("  %s%s\n", key, s);
}

static void show(const char *who, int tid)
{
	printf("%s: comm %s", who, slurp(of(tid, "comm")));
	static const char *keys[] = { "Name", "State", "Tgid", "Pid", "TracerPid", "NStgid", "NSpid", "Threads", "SigPnd", "ShdPnd", "SigBlk",
		"SigIgn", "SigCgt", "CapEff", "NoNewPrivs", "Seccomp" };
	for (unsigned i = 0; i < sizeof keys / sizeof *keys; i++)
		row(tid, keys[i]);
	char *s = slurp(of(tid, "stat")), *end = strrchr(s, ')');
	if (!end) {
		printf("  stat: %s", s);
		return;
	}
	char state;
	int ppid, pgrp, sid, policy = -1, cpu = -1, rt = -1, exits = -1;
	long prio, nice, threads;
	unsigned long pending, blocked, ignored, caught;
	int n = sscanf(end + 1, " %c %d %d %d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*u %*u %ld %ld %ld %*d %*u %*u %*d %*u %*u %*u %*u %*u %*u %lu %lu %lu %lu %*u %*u %*u %d %d %d %d",
		&state, &ppid, &pgrp, &sid, &prio, &nice, &threads, &pending, &blocked, &ignored, &caught, &exits, &cpu, &rt, &policy);
	*(end + 1) = 0;
	printf("  stat %d: thread %d %s %c ppid %d pgrp %d sid %d prio %ld nice %ld threads %ld signals %lx %lx %lx %lx exit %d rt %d policy %d\n", n, which(atoi(s)),
		strchr(s, '('), state, ppid == getppid(), pgrp == getpgrp(), sid == getsid(0), prio, nice, threads, pending, blocked, ignored, caught, exits, rt, policy);
	cpu_set_t set;
	if (!sched_getaffinity(tid, sizeof set, &set) && !CPU_ISSET(cpu, &set))
		printf("  on CPU %d, where it may not be\n", cpu);
	s = slurp(of(tid, "sched"));
	printf("  sched %.*s\n", (int)strcspn(s, " \n"), s);
	printf("  prio %s\n", strstr(slurp(of(tid, "sched")), "prio  ") ? strrchr(strtok(strstr(text, "prio  "), "\n"), ' ') : "none");
	unsigned long on, ready, slices;
	printf("  schedstat %d\n", sscanf(slurp(of(tid, "schedstat")), "%lu %lu %lu", &on, &ready, &slices));
}

static pthread_barrier_t all;
static volatile int stop, waits[4]; /* waits: what sleeps from here on is what it shall sleep in, no barrier */
static int hold[2];

static void handler(int s) {}

static void *sleeper(void *a)
{
	sigset_t s;
	sigemptyset(&s), sigaddset(&s, SIGUSR2), sigaddset(&s, SIGRTMIN + 3);
	pthread_sigmask(SIG_BLOCK, &s, 0);
	tids[1] = gettid();
	pthread_barrier_wait(&all);
	char c;
	waits[1] = 1;
	read(hold[0], &c, 1);
	return 0;
}

static void *spinner(void *a)
{
	setpriority(PRIO_PROCESS, 0, 5);
	prctl(PR_SET_NAME, "spin ning\\");
	tids[2] = gettid();
	pthread_barrier_wait(&all);
	while (!stop)
		;
	char name[32] = { 0 };
	prctl(PR_GET_NAME, name);
	printf("the spinner was renamed: %s\n", name);
	return 0;
}

static void *waiter(void *a)
{
	tids[3] = gettid();
	sigset_t s;
	sigemptyset(&s), sigaddset(&s, SIGRTMIN + 4);
	pthread_sigmask(SIG_BLOCK, &s, 0);
	pthread_barrier_wait(&all);
	int got;
	waits[3] = 1;
	sigwait(&s, &got);
	printf("got %d\n", got - SIGRTMIN);
	return 0;
}

static void try(const char *what, long r)
{
	printf("%s: %ld %s\n", what, r < 0 ? -1 : r, r < 0 ? strerror(errno) : "");
}

static void names(pthread_t t, int tid)
{
	static const char *given[] = { "renamed", "exactly-fifteen", "sixteen-letters-", "", "new\nline", "back\\slash", "\xff\xfe" };
	char b[32];
	for (unsigned i = 0; i < sizeof given / sizeof *given; i++) {
		printf("setname %d", pthread_setname_np(t, given[i]));
		printf(" getname %d", pthread_getname_np(t, b, sizeof b));
		printf(" %s, comm %s", b, slurp(of(tid, "comm")));
		row(tid, "Name");
	}
	int f = open(of(tid, "comm"), O_RDWR | O_TRUNC);
	try("open", f > 0);
	try("write", write(f, "one", 3)), try("read", read(f, b, 2)), try("write long", write(f, "0123456789abcdefghijkl", 22));
	try("read on", read(f, b, 9)), try("seek", lseek(f, 0, SEEK_SET)), try("read again", read(f, b, 20)), printf("%.15s\n", b);
	try("write nothing", write(f, "", 0)), try("pread", pread(f, b, 20, 0));
	try("pwrite", pwrite(f, "x", 1, 0)), try("write NUL", write(f, "ab\0cd", 5)), printf("comm %s", slurp(of(tid, "comm")));
	struct iovec v[2] = { { "first", 5 }, { "second", 6 } };
	try("writev", writev(f, v, 2)), printf("comm %s", slurp(of(tid, "comm")));
	try("bad pointer", syscall(SYS_write, f, 8L, 4L)), try("access", access(of(tid, "comm"), W_OK)), try("fsync", fsync(f));
	close(f);
	f = open(of(tid, "comm"), O_WRONLY);
	try("read of a file for writing", read(f, b, 1)), try("append", write(f, "last", 4)), close(f);
	try("no such thread", open("/proc/self/task/1/comm", O_RDONLY)), try("no file", open(of(tid, "nothing"), O_RDONLY));
}

static int number(const void *a, const void *b) { return which(*(int *)a) - which(*(int *)b); }

static void list(void)
{
	DIR *d = opendir("/proc/self/task");
	struct dirent *e;
	int n = 0, found[80];
	while ((e = readdir(d)))
		if (e->d_name[0] != '.' && n < 80)
			found[n++] = atoi(e->d_name);
	closedir(d);
	qsort(found, n, sizeof *found, number);
	printf("%d threads:", n);
	for (int i = 0; i < n; i++)
		printf(" %s%s", found[i] == tids[0] ? "first" : found[i] == tids[1] ? "sleeper" : found[i] == tids[2] ? "spinner" : "other", i + 1 < n ? "" : "\n");
}

static void *after(void *a)
{
	while (strncmp(strstr(slurp(of(base, "status")), "State:") + 7, "Z", 1))
		usleep(1000);
	list();
	printf("the first thread has ended: comm %s", slurp(of(base, "comm")));
	static const char *keys[] = { "Name", "State", "Tgid", "Pid", "FDSize", "VmSize", "VmRSS", "Threads", "SigBlk", "SigCgt" };
	for (int i = 0; i < 10; i++)
		row(0, keys[i]);
	char path[64];
	readlink("/proc/thread-self", path, sizeof path);
	printf("I am %d\n", atoi(strrchr(path, '/') + 1) == gettid());
	printf("mine: %s", slurp("/proc/thread-self/comm"));
	exit(7);
}

int main(void)
{
	setvbuf(stdout, 0, _IONBF, 0);
	for (int s = 1; s < 65; s++)
		signal(s, SIG_DFL);
	signal(SIGUSR1, handler), signal(SIGTERM, SIG_IGN), signal(SIGRTMIN + 9, handler);
	sigset_t s;
	sigemptyset(&s), sigaddset(&s, SIGCHLD); // every thread's: or one of them may drop it, at any time
	pthread_sigmask(SIG_BLOCK, &s, 0);
	base = tids[0] = getpid();
	pipe(hold);
	pthread_barrier_init(&all, 0, 4);
	pthread_t t[3];
	pthread_create(&t[0], 0, sleeper, 0), pthread_create(&t[1], 0, spinner, 0), pthread_create(&t[2], 0, waiter, 0);
	pthread_barrier_wait(&all);
	for (int i = 1; i < 4; i += 2) // until they wait
		while (!waits[i] || strncmp(strstr(slurp(of(tids[i], "status")), "State:") + 7, "S", 1))
			usleep(1000);
	printf("the form of status:");
	for (char *s = slurp("/proc/self/status"); *s; s = strchr(s, '\n') + 1)
		if (!strstr("VmStk VmExe VmPTE Groups x86_Thread_features x86_Thread_features_locked", strndup(s, strcspn(s, ":"))))
			printf(" %.*s", (int)strcspn(s, ":"), s);
	printf("\n");
	sigemptyset(&s), sigaddset(&s, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &s, 0);
	pthread_kill(t[0], SIGUSR2), pthread_kill(t[0], SIGRTMIN + 3), pthread_kill(t[0], SIGRTMIN + 3);
	kill(getpid(), SIGCHLD);
	printf("queued: %d\n", atoi(strstr(slurp("/proc/self/status"), "SigQ:") + 6) >= 3);
	show("process", 0), show("first", tids[0]), show("sleeper", tids[1]), show("spinner", tids[2]), show("waiter", tids[3]);
	list();
	names(t[1], tids[2]);
	pthread_setname_np(t[1], "the-spinner");
	prctl(PR_SET_NAME, "leader"), printf("leader: %s", slurp("/proc/self/comm")), row(0, "Name");
	int f = open("/proc/self/comm", O_WRONLY);
	try("own", write(f, "by-file", 7)), close(f), prctl(PR_GET_NAME, text), printf("%s\n", text);
	int gone = open(of(tids[2], "comm"), O_RDWR), stat = open(of(tids[2], "stat"), O_RDONLY);
	stop = 1, pthread_join(t[1], 0);
	write(hold[1], "x", 1), pthread_kill(t[2], SIGRTMIN + 4);
	pthread_join(t[0], 0), pthread_join(t[2], 0);
	while (!access(of(tids[2], "comm"), F_OK))
		usleep(1000);
	try("read of one that ended", read(gone, text, 10)), try("its stat", read(stat, text, 10)), try("rename it", write(gone, "x", 1));
	list();
	pthread_create(t, 0, after, 0);
	pthread_exit(0);
}
