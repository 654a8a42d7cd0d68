// What becomes of calls that a handler cuts, of timers and of signalfd. TestSignalPrograms compares a native run with a
// served one: nothing here depends on how fast the machine is.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int rings, most;
static int wfd;
static void ring(int sig) {
	(void)sig;
	// The second ring ends a call that was made again.
	if (++rings == most && write(wfd, "x", 1) != 1) perror("write");
}

static void arm(int flags) {
	struct sigaction sa;
	memset(&sa, 0, sizeof sa);
	sa.sa_handler = ring;
	sa.sa_flags = flags;
	sigaction(SIGALRM, &sa, 0);
	rings = 0;
	most = 2;
	struct itimerval it = {{0, 100000}, {0, 100000}};
	setitimer(ITIMER_REAL, &it, 0);
}
static void disarm(const char *what, long r, int e) {
	struct itimerval off = {{0, 0}, {0, 0}};
	setitimer(ITIMER_REAL, &off, 0);
	printf("%s: %ld %s after %s\n", what, r, r < 0 ? strerror(e) : "", rings >= 2 && r >= 0 ? "more" : rings ? "some" : "none");
}

static void queued(int sig, siginfo_t *si, void *uc) {
	(void)uc;
	printf("sig %d code %d value %d overrun %s\n", sig, si->si_code, si->si_value.sival_int, si->si_overrun > 2 ? "some" : si->si_overrun ? "few" : "none");
}

int main(void) {
	int p[2];
	char c;
	if (pipe(p)) return 1;
	wfd = p[1];
	int ep = epoll_create1(0);
	struct epoll_event ev = {.events = EPOLLIN};
	epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &ev);
	struct pollfd pf = {p[0], POLLIN, 0};
	fd_set set;
	struct timespec ts = {5, 0}, rem = {0, 0};
	uint32_t word = 0;
	sigset_t none;
	sigemptyset(&none);
	for (int flags = 0; flags <= SA_RESTART; flags += SA_RESTART) {
		printf("flags %x\n", flags);
#define CALL(call)                         \
	do {                                   \
		arm(flags);                        \
		long r = call;                     \
		int e = errno;                     \
		disarm(#call, r, e);               \
		fcntl(p[0], F_SETFL, O_NONBLOCK);  \
		while (read(p[0], &c, 1) > 0);     \
		fcntl(p[0], F_SETFL, 0);           \
	} while (0)
		CALL(read(p[0], &c, 1));
		CALL(poll(&pf, 1, -1));
		CALL(poll(&pf, 1, 5000));
		CALL(ppoll(&pf, 1, 0, &none));
		FD_ZERO(&set);
		FD_SET(p[0], &set);
		CALL(select(p[0] + 1, &set, 0, 0, 0));
		CALL(epoll_wait(ep, &ev, 1, -1));
		CALL(epoll_pwait(ep, &ev, 1, 5000, &none));
		CALL(nanosleep(&ts, &rem));
		printf("rest %s\n", rem.tv_sec == 4 ? "left" : "wrong");
		CALL(clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, &rem));
		CALL(pause());
		CALL(sigsuspend(&none));
		CALL(syscall(SYS_futex, &word, 0, 0, &ts, 0, 0));
		sigset_t usr;
		sigemptyset(&usr);
		sigaddset(&usr, SIGUSR1);
		CALL(syscall(SYS_rt_sigtimedwait, &usr, 0, &ts, 8));  // musl makes it again itself
	}

	// Timers.
	struct itimerval it, was;
	printf("alarm %u %u %u\n", alarm(100), alarm(50), alarm(0));
	it = (struct itimerval){{7, 0}, {3, 0}};
	setitimer(ITIMER_REAL, &it, 0);
	getitimer(ITIMER_REAL, &was);
	printf("itimer %ld %s\n", (long)was.it_interval.tv_sec, was.it_value.tv_sec == 2 ? "runs" : "wrong");
	memset(&it, 0, sizeof it);
	setitimer(ITIMER_REAL, &it, &was);
	it.it_value.tv_usec = 1000000;
	printf("bad %d %d\n", setitimer(ITIMER_REAL, &it, 0), getitimer(3, &it));
	struct sigaction sa;
	memset(&sa, 0, sizeof sa);
	sa.sa_sigaction = queued;
	sa.sa_flags = SA_SIGINFO;
	sigaction(SIGVTALRM, &sa, 0);
	sigaction(SIGPROF, &sa, 0);
	for (int i = 1; i <= 2; i++) {
		it = (struct itimerval){{0, 0}, {0, 10000}};
		setitimer(i, &it, 0);
		do {
			for (volatile int n = 0; n < 1000000; n++);
			getitimer(i, &was);
		} while (was.it_value.tv_usec);
	}
	sigaction(SIGRTMIN, &sa, 0);
	sigset_t rt;
	sigemptyset(&rt);
	sigaddset(&rt, SIGRTMIN);
	sigprocmask(SIG_BLOCK, &rt, 0);
	timer_t t;
	struct sigevent se;
	memset(&se, 0, sizeof se);
	se.sigev_notify = SIGEV_SIGNAL;
	se.sigev_signo = SIGRTMIN;
	se.sigev_value.sival_int = 42;
	printf("create %d\n", timer_create(CLOCK_MONOTONIC, &se, &t));
	struct itimerspec its = {{0, 1000000}, {0, 1000000}}, old;
	timer_settime(t, 0, &its, 0);
	struct timespec nap = {0, 50000000};
	nanosleep(&nap, 0);
	timer_gettime(t, &old);
	printf("interval %ld left %s\n", old.it_interval.tv_nsec, old.it_value.tv_nsec > 0 && old.it_value.tv_nsec <= 1000000 ? "good" : "wrong");
	siginfo_t si;
	printf("taken %d", sigwaitinfo(&rt, &si) == SIGRTMIN);
	printf(" code %d value %d overrun %s same %d\n", si.si_code, si.si_value.sival_int, si.si_overrun > 20 ? "many" : "few", si.si_overrun == timer_getoverrun(t));
	nanosleep(&nap, 0);
	memset(&its, 0, sizeof its);
	timer_settime(t, 0, &its, 0);
	struct timespec zero = {0, 0};
	printf("dropped with its setting %d\n", sigtimedwait(&rt, &si, &zero));
	clock_gettime(CLOCK_MONOTONIC, &its.it_value);
	its.it_value.tv_sec--;
	timer_settime(t, TIMER_ABSTIME, &its, 0);
	printf("past %d overrun %d\n", sigwaitinfo(&rt, &si) == SIGRTMIN, timer_getoverrun(t));
	printf("delete %d", timer_delete(t));
	printf(" %ld %ld\n", syscall(SYS_timer_delete, 77), syscall(SYS_timer_getoverrun, 78));
	int id = -1;
	se.sigev_notify = 9;
	long r1 = syscall(SYS_timer_create, CLOCK_REALTIME, &se, &id);
	se.sigev_notify = SIGEV_SIGNAL;
	se.sigev_signo = 65;
	long r2 = syscall(SYS_timer_create, CLOCK_REALTIME, &se, &id), r3 = syscall(SYS_timer_create, 99, 0, &id), r4 = syscall(SYS_timer_create, CLOCK_MONOTONIC, 0, 8);
	printf("create %ld %ld %ld %ld\n", r1, r2, r3, r4);

	// signalfd.
	sigaddset(&rt, SIGUSR1);
	sigprocmask(SIG_BLOCK, &rt, 0);
	int sfd = signalfd(-1, &rt, SFD_NONBLOCK | SFD_CLOEXEC);
	struct signalfd_siginfo f[4];
	printf("empty %zd %d", read(sfd, f, sizeof f), errno);
	pf.fd = sfd;
	printf(" poll %d\n", poll(&pf, 1, 0));
	union sigval v = {.sival_int = 9};
	sigqueue(getpid(), SIGRTMIN, v);
	sigqueue(getpid(), SIGRTMIN, v);
	raise(SIGUSR1);
	epoll_ctl(ep, EPOLL_CTL_ADD, sfd, &ev);
	printf("epoll %d\n", epoll_wait(ep, &ev, 1, -1));
	ssize_t n = read(sfd, f, sizeof f);
	printf("read %zd:", n);
	for (int i = 0; i < n / 128; i++)
		printf(" [%u %d %d mine %d int %d ptr %d rest %d]", f[i].ssi_signo, f[i].ssi_errno, f[i].ssi_code, f[i].ssi_pid == (uint32_t)getpid(), f[i].ssi_int, (int)f[i].ssi_ptr, f[i].ssi_addr || f[i].ssi_band || f[i].ssi_overrun);
	printf("\npoll %d\n", poll(&pf, 1, 0));
	printf("short %zd %d", read(sfd, f, 127), errno);
	printf(" write %zd %d", write(sfd, f, 128), errno);
	printf(" mask %d", signalfd(sfd, &none, 0) == sfd);
	raise(SIGUSR1);
	printf(" poll %d", poll(&pf, 1, 0));
	printf(" again %d", signalfd(sfd, &rt, 0) == sfd);
	printf(" poll %d\n", poll(&pf, 1, 0));
	printf("bad %d %d", signalfd(p[0], &rt, 0), errno);
	printf(" %d %d\n", signalfd(-1, &rt, 7), errno);
	fcntl(sfd, F_SETFL, 0);
	printf("blocking %zd", read(sfd, f, 128));
	arm(0);
	n = read(sfd, f, 128);
	printf(" cut %zd %d\n", n, errno);
	return 0;
}
