// Stop signals and SIGCONT: who stops, and what a handler of SIGCONT sees. The test continues what has stopped.
//   jobs self SIGNAL     sends it to the process, as often as it stops a program that has another thread
//   jobs handler         has handlers of SIGCONT and SIGTSTP
//   jobs outside MODE    says "ready" and computes until it gets SIGUSR1; SIGTSTP is "default", "ignored" or "handled"
//   jobs blocked         SIGTSTP comes while it is blocked
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static volatile double longest;
static volatile int go_on = 1, ready;

// computes without a system call, and knows how long it stood.
static void *computes(void *x)
{
	for (double last = x ? *(double *)x : now(), t; go_on; last = t, ready = 1)
		if ((t = now()) - last > longest)
			longest = t - last;
	return 0;
}

static volatile sig_atomic_t conts, stops, inside;
static void on_cont(int s) { conts++; }
static void on_stop(int s) { stops++; }
static void on_usr1(int s) { go_on = 0; }

int main(int argc, char **argv)
{
	setvbuf(stdout, 0, _IONBF, 0);
	for (int s = 1; s < 32; s++)
		signal(s, SIG_DFL);
	pthread_t t;
	if (!strcmp(argv[1], "self")) {
		pthread_create(&t, 0, computes, 0);
		while (!ready)
			;
		double before = now();
		kill(getpid(), atoi(argv[2]));
		double stood = now() - before;
		printf("goes on, %s\n", stood > 0.6 ? "having stood" : "at once");
		usleep(10000), go_on = 0, pthread_join(t, 0);
		printf("the other one %s\n", longest > 0.6 ? "stood, too" : "did not stand");
		before = now();
		pthread_create(&t, 0, computes, 0);
		syscall(SYS_tgkill, getpid(), getpid(), atoi(argv[2]));
		printf("by tgkill, %s\n", now() - before > 0.6 ? "having stood" : "at once");
		go_on = 0, pthread_join(t, 0);
		return 5;
	}
	if (!strcmp(argv[1], "handler")) {
		signal(SIGCONT, on_cont), signal(SIGTSTP, on_stop);
		raise(SIGTSTP), printf("handled: %d stops, %d conts\n", stops, conts);
		kill(getpid(), SIGSTOP), printf("stopped: %d stops, %d conts\n", stops, conts);
		raise(SIGSTOP), printf("stopped: %d stops, %d conts\n", stops, conts);
		kill(getpid(), SIGCONT), printf("continued without a stop: %d conts\n", conts);
		signal(SIGTSTP, SIG_IGN), raise(SIGTSTP), printf("ignored: %d stops\n", stops);
		struct sigaction once = { .sa_handler = on_stop, .sa_flags = SA_RESETHAND };
		sigaction(SIGTSTP, &once, 0), raise(SIGTSTP), printf("once: %d stops\n", stops);
		raise(SIGTSTP), printf("by default: %d stops, %d conts\n", stops, conts);
		signal(SIGCONT, SIG_DFL), raise(SIGSTOP), printf("no handler: %d conts\n", conts);
		usleep(50000), printf("and none late: %d conts\n", conts);
		return 6;
	}
	if (!strcmp(argv[1], "blocked")) {
		sigset_t s, p;
		sigemptyset(&s), sigaddset(&s, SIGTSTP), sigaddset(&s, SIGCONT), sigprocmask(SIG_BLOCK, &s, 0);
		raise(SIGCONT), sigpending(&p), printf("pending %d %d\n", sigismember(&p, SIGTSTP), sigismember(&p, SIGCONT));
		raise(SIGTSTP), sigpending(&p), printf("pending %d %d\n", sigismember(&p, SIGTSTP), sigismember(&p, SIGCONT));
		raise(SIGCONT), sigpending(&p), printf("pending %d %d\n", sigismember(&p, SIGTSTP), sigismember(&p, SIGCONT));
		raise(SIGTSTP), sigpending(&p), printf("pending %d %d\n", sigismember(&p, SIGTSTP), sigismember(&p, SIGCONT));
		double before = now();
		sigprocmask(SIG_UNBLOCK, &s, 0);
		printf("unblocked, %s\n", now() - before > 0.6 ? "having stood" : "at once");
		return 7;
	}
	signal(SIGUSR1, on_usr1), signal(SIGCONT, on_cont);
	signal(SIGTSTP, !strcmp(argv[2], "handled") ? on_stop : !strcmp(argv[2], "ignored") ? SIG_IGN : SIG_DFL);
	double begun = now(); // a stop may come before the first look
	puts("ready");
	computes(&begun);
	printf("stood %d, %d stops, conts %d\n", longest > 0.6, stops, conts > 0);
	return 8;
}
