// edges does what a review found to differ from Linux, and prints how it is answered.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

static void handler(int s) {}

static void say(const char *what, long r)
{
	printf("%s: %s\n", what, r < 0 ? strerror(errno) : "served");
}

static void alarmed(void)
{
	struct itimerval in = { { 0, 0 }, { 0, 60000 } };
	setitimer(ITIMER_REAL, &in, 0);
}

static char buf[200000];

// waits is cut by a signal in every call that has a time limit of its own: EINTR, with SA_RESTART or without (signal(7)).
static void waits(int flags)
{
	struct sigaction a = { .sa_handler = handler, .sa_flags = flags };
	sigaction(SIGALRM, &a, 0);
	struct timeval limit = { 60, 0 };
	int pair[2], s = socket(AF_INET, SOCK_STREAM, 0);
	socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
	setsockopt(pair[1], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit), setsockopt(pair[1], SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	struct iovec v = { buf, 10 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };
	alarmed(), say("recv", recv(pair[1], buf, 10, 0));
	alarmed(), say("read", read(pair[1], buf, 10));
	alarmed(), say("recvmsg", recvmsg(pair[1], &m, 0));
	while (send(pair[1], buf, sizeof buf, MSG_DONTWAIT) > 0)
		;
	alarmed(), say("send", send(pair[1], buf, sizeof buf, 0));
	alarmed(), say("write", write(pair[1], buf, sizeof buf));
	struct sockaddr_in in = { AF_INET, 0, { htonl(INADDR_LOOPBACK) } };
	bind(s, (void *)&in, sizeof in), listen(s, 5);
	setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	alarmed(), say("accept", accept(s, 0, 0));
	limit.tv_sec = 0, limit.tv_usec = 1000;
	setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	say("accept, its time over", accept(s, 0, 0));
	close(pair[0]), close(pair[1]), close(s);
}

// raw is a system call with all of RAX.
static long raw(unsigned long nr)
{
	long r;
	__asm__ volatile("syscall" : "=a"(r) : "a"(nr) : "rcx", "r11", "memory");
	return r;
}

int main(int argc, char **argv)
{
	waits(0), waits(SA_RESTART);
	int f = open(argv[1], O_RDWR | O_CREAT, 0600);
	ftruncate(f, 8192);
	char *p = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | MAP_SYNC, f, 0);
	say("MAP_SYNC", p == MAP_FAILED ? -1 : 0);
	p = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE, f, 0);
	say("MAP_SHARED_VALIDATE", p == MAP_FAILED ? -1 : 0);
	say("MADV_WIPEONFORK of a file", madvise(p, 4096, MADV_WIPEONFORK));
	p = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | MAP_ANONYMOUS, -1, 0);
	say("MAP_SHARED_VALIDATE without a file", p == MAP_FAILED ? -1 : 0);
	p = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	say("MADV_WIPEONFORK", madvise(p, 4096, MADV_WIPEONFORK)), say("MADV_KEEPONFORK", madvise(p, 4096, MADV_KEEPONFORK));
	static const unsigned long flags[] = { O_PATH, O_PATH | O_RDWR, O_PATH | O_CREAT, O_PATH | O_APPEND, O_PATH | O_NOFOLLOW | O_CLOEXEC, O_PATH | O_NONBLOCK };
	for (unsigned i = 0; i < sizeof flags / sizeof *flags; i++) {
		struct open_how how = { .flags = flags[i] };
		say("openat2 with O_PATH", syscall(SYS_openat2, AT_FDCWD, argv[1], &how, sizeof how));
	}
	say("F_GETOWN", fcntl(f, F_GETOWN));
	struct f_owner_ex owner = { 7, 7 };
	say("F_GETOWN_EX", fcntl(f, F_GETOWN_EX, &owner)), printf("%d %d\n", owner.type, owner.pid);
	static const unsigned long upper[] = { 1ul << 32, 0xfffffffful << 32, 1ul << 63 };
	for (unsigned i = 0; i < sizeof upper / sizeof *upper; i++)
		printf("getpid with upper bits: %d\n", raw(upper[i] | SYS_getpid) == getpid());
	return 0;
}
