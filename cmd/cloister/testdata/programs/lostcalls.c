// Lostcalls gives system calls memory beyond the end of a mapped file, and prints what they answer: EFAULT mostly. Nobody dies of it.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

// CALL(name, arguments...) makes the system call SYS_name.
#define CALL(name, ...)                                                                            \
	do {                                                                                       \
		errno = 0;                                                                         \
		long r = syscall(SYS_##name, __VA_ARGS__);                                         \
		printf("%s(%s) = %ld, errno %d\n", #name, #__VA_ARGS__, r < 0 ? -1 : r, errno);    \
		fflush(stdout);                                                                    \
	} while (0)

int main(void)
{
	char name[] = "lost.XXXXXX";
	int p[2], fd = mkstemp(name), dir = open(".", O_RDONLY);
	unlink(name);
	if (fd < 0 || dir < 0 || ftruncate(fd, 8192) || pipe(p) || write(p[1], "hello", 5) != 5)
		return 1;
	char *there = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), *lost = there + 4096;
	memset(there, 'a', 8192);
	if (ftruncate(fd, 4096))
		return 2;
	struct iovec v[2] = {{there, 4}, {lost, 4}};

	CALL(read, p[0], lost, 5);
	CALL(read, p[0], lost - 2, 5);
	CALL(write, p[1], lost - 2, 4);
	CALL(writev, p[1], v, 2);
	CALL(readv, p[0], lost, 1);
	CALL(pwritev, fd, v, 2, 0, 0);
	CALL(sendfile, p[1], fd, lost, 4);
	CALL(pipe2, lost, 0);
	CALL(open, lost, O_RDONLY);
	CALL(openat2, AT_FDCWD, ".", lost, 24);
	CALL(getdents64, dir, lost, 4000);
	CALL(getcwd, lost, 100);
	CALL(readlink, "/proc/self/exe", lost, 10);
	CALL(fstat, 0, lost);
	CALL(statfs, ".", lost);
	CALL(poll, lost, 1, 0);
	CALL(epoll_ctl, syscall(SYS_epoll_create1, 0), 1, p[0], lost);

	CALL(futex, lost, FUTEX_WAKE, 1, 0, 0, 0);
	CALL(futex, lost, FUTEX_WAIT, 0, 0, 0, 0);
	CALL(futex, lost, FUTEX_LOCK_PI, 0, 0, 0, 0);
	CALL(futex, lost, FUTEX_WAKE_OP, 1, 1, lost + 8, 0);
	CALL(futex, there, FUTEX_CMP_REQUEUE, 1, 1, lost, 0x61616161);
	CALL(set_robust_list, lost, 24);
	CALL(clone3, lost, 88);

	CALL(rt_sigaction, SIGUSR1, lost, 0, 8);
	CALL(rt_sigaction, SIGUSR1, 0, lost, 8);
	CALL(rt_sigprocmask, 0, lost, 0, 8);
	CALL(sigaltstack, lost, 0);
	CALL(timer_create, CLOCK_MONOTONIC, 0, lost);
	CALL(setitimer, ITIMER_REAL, lost, 0);
	CALL(nanosleep, lost, 0);
	CALL(clock_gettime, CLOCK_PROCESS_CPUTIME_ID, lost);
	CALL(gettimeofday, lost, 0);

	CALL(uname, lost);
	CALL(sysinfo, lost);
	CALL(times, lost);
	CALL(getrusage, 0, lost);
	CALL(getrandom, lost, 16, 0);
	CALL(prlimit64, 0, RLIMIT_NOFILE, lost, 0);
	CALL(prlimit64, 0, RLIMIT_NOFILE, 0, lost);
	CALL(sched_getaffinity, 0, 8, lost);
	CALL(arch_prctl, 0x1003, lost); // ARCH_GET_FS
	CALL(prctl, 15, lost);          // PR_SET_NAME

	CALL(mprotect, lost, 4096, PROT_READ);
	CALL(mprotect, lost, 4096, PROT_READ | PROT_WRITE);
	CALL(msync, there, 8192, MS_SYNC);
	CALL(madvise, lost, 4096, MADV_WILLNEED);
	CALL(madvise, lost, 4096, 22); // MADV_POPULATE_READ
	CALL(madvise, there, 8192, 23); // MADV_POPULATE_WRITE
	CALL(mlock, lost, 4096);
	CALL(mlock, there, 4096);
	return 0;
}
