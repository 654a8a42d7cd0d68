// A program that talks: to itself over every kind of socket, or as the server or client of another process.
//   net self            pairs, Unix names, loopback TCP and UDP, poll and epoll, passing descriptors
//   net serve PATH N    answers N connections on a Unix socket, each line in capitals
//   net tcp PORT        sends its input to a port on loopback and prints what comes back
//   net resolve NAME    prints the addresses of a name
//   net silent          reads from a socket that nobody writes to
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void die(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	exit(1);
}

static int must(int n, const char *what)
{
	if (n < 0)
		die(what);
	return n;
}

// tell prints a result with its error, in an order that the compiler may not change.
static void tell(const char *what, ssize_t n)
{
	const char *e = n < 0 ? strerror(errno) : "";
	printf("%s: %zd %s\n", what, n, e);
}

static struct sockaddr_un un(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	strncpy(a.sun_path, path, sizeof a.sun_path - 1);
	return a;
}

// digest makes a number of what was received, so that output stays short.
static unsigned digest(unsigned h, const unsigned char *p, ssize_t n)
{
	while (n-- > 0)
		h = h * 31 + *p++;
	return h;
}

static void streams(void)
{
	static unsigned char out[1 << 20], in[1 << 16];
	for (size_t i = 0; i < sizeof out; i++)
		out[i] = i * 7 + (i >> 8);
	int ln = must(socket(AF_INET, SOCK_STREAM, 0), "socket");
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof a;
	must(bind(ln, (void *)&a, len), "bind");
	must(getsockname(ln, (void *)&a, &len), "getsockname");
	must(listen(ln, 4), "listen");
	int c = must(socket(AF_INET, SOCK_STREAM, 0), "socket"), on = 1;
	must(setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on), "TCP_NODELAY");
	must(connect(c, (void *)&a, len), "connect");
	int s = must(accept4(ln, NULL, NULL, SOCK_NONBLOCK), "accept4");
	int flags = must(fcntl(c, F_GETFL), "F_GETFL");
	must(fcntl(c, F_SETFL, flags | O_NONBLOCK), "F_SETFL");
	int ep = must(epoll_create1(0), "epoll_create1");
	struct epoll_event e = { .events = EPOLLIN, .data.fd = s };
	must(epoll_ctl(ep, EPOLL_CTL_ADD, s, &e), "epoll_ctl");
	e = (struct epoll_event){ .events = EPOLLOUT, .data.fd = c };
	must(epoll_ctl(ep, EPOLL_CTL_ADD, c, &e), "epoll_ctl");
	size_t sent = 0, got = 0;
	unsigned h = 0;
	while (got < sizeof out) {
		struct epoll_event ready[2];
		int n = must(epoll_wait(ep, ready, 2, 5000), "epoll_wait");
		for (int i = 0; i < n; i++) {
			if (ready[i].data.fd == c && sent < sizeof out) {
				ssize_t w = send(c, out + sent, sizeof out - sent, MSG_NOSIGNAL);
				if (w > 0)
					sent += w;
				else if (errno != EAGAIN)
					die("send");
				if (sent == sizeof out)
					must(epoll_ctl(ep, EPOLL_CTL_DEL, c, NULL), "EPOLL_CTL_DEL");
			} else if (ready[i].data.fd == s) {
				ssize_t r = recv(s, in, sizeof in, 0);
				if (r <= 0)
					die("recv");
				h = digest(h, in, r), got += r;
			}
		}
		if (n == 0)
			die("nothing for five seconds");
	}
	printf("tcp: %zu bytes, %08x\n", got, h);
	must(fcntl(c, F_SETFL, flags), "F_SETFL");
	must(shutdown(c, SHUT_WR), "shutdown");
	struct pollfd p = { .fd = s, .events = POLLIN | POLLRDHUP };
	tell("poll", poll(&p, 1, 1000));
	printf("events: %x\n", p.revents);
	printf("end: %zd\n", read(s, in, 10));
	struct linger l = { 1, 0 };
	must(setsockopt(s, SOL_SOCKET, SO_LINGER, &l, sizeof l), "SO_LINGER");
	close(s);
	tell("reset", read(c, in, 10));
	signal(SIGPIPE, SIG_IGN);
	tell("pipe", write(c, in, 10));
	close(c), close(ln), close(ep);
}

static void datagrams(void)
{
	int u = must(socket(AF_INET, SOCK_DGRAM, 0), "socket");
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) }, from;
	socklen_t len = sizeof a;
	must(bind(u, (void *)&a, len), "bind"), must(getsockname(u, (void *)&a, &len), "getsockname");
	char text[3][8], in[64] = "";
	struct iovec iov[3];
	struct mmsghdr m[3] = { 0 };
	for (int i = 0; i < 3; i++) {
		snprintf(text[i], sizeof text[i], "msg %d", i);
		iov[i] = (struct iovec){ text[i], 6 };
		m[i].msg_hdr = (struct msghdr){ .msg_name = &a, .msg_namelen = len, .msg_iov = &iov[i], .msg_iovlen = 1 };
	}
	printf("sendmmsg: %d\n", sendmmsg(u, m, 3, 0));
	for (int i = 0; i < 3; i++) {
		len = sizeof from;
		ssize_t n = recvfrom(u, in, sizeof in, 0, (void *)&from, &len);
		printf("recvfrom: %zd %s from myself: %d\n", n, in, from.sin_port == a.sin_port);
	}
	struct timeval tv = { 0, 50000 };
	must(setsockopt(u, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv), "SO_RCVTIMEO");
	tell("timeout", recv(u, in, sizeof in, 0));
	fd_set set;
	FD_ZERO(&set);
	FD_SET(u, &set);
	tv = (struct timeval){ 0, 1000 };
	printf("select: %d\n", select(u + 1, &set, NULL, NULL, &tv));
	close(u);
}

static void unixes(void)
{
	struct sockaddr_un a = un("self.sock"), b;
	int ln = must(socket(AF_UNIX, SOCK_SEQPACKET, 0), "socket"), c = must(socket(AF_UNIX, SOCK_SEQPACKET, 0), "socket");
	must(bind(ln, (void *)&a, sizeof a), "bind"), must(listen(ln, 1), "listen");
	must(connect(c, (void *)&a, sizeof a), "connect");
	int s = must(accept(ln, NULL, NULL), "accept");
	socklen_t len = sizeof b;
	must(getpeername(c, (void *)&b, &len), "getpeername");
	printf("peer: %s\n", b.sun_path);
	struct ucred cred;
	len = sizeof cred;
	must(getsockopt(c, SOL_SOCKET, SO_PEERCRED, &cred, &len), "SO_PEERCRED");
	printf("cred: %d %d %d\n", cred.pid == getpid(), cred.uid == getuid(), cred.gid == getgid());
	int f = must(open("passed", O_RDWR | O_CREAT, 0600), "open");
	union { char b[CMSG_SPACE(sizeof f)]; struct cmsghdr h; } ctl = { .h = { .cmsg_len = CMSG_LEN(sizeof f), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
	memcpy(CMSG_DATA(&ctl.h), &f, sizeof f);
	char in[32] = "";
	struct iovec iov = { "with a file", 11 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &ctl, .msg_controllen = sizeof ctl };
	printf("sendmsg: %zd\n", sendmsg(c, &m, 0));
	close(f);
	memset(&ctl, 0, sizeof ctl);
	iov = (struct iovec){ in, sizeof in };
	ssize_t n = recvmsg(s, &m, MSG_CMSG_CLOEXEC);
	int g = -1;
	memcpy(&g, CMSG_DATA(&ctl.h), sizeof g);
	printf("recvmsg: %zd %s %zu\n", n, in, (size_t)ctl.h.cmsg_len);
	printf("through it: %zd\n", write(g, "written\n", 8));
	int p[2];
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, p), "socketpair");
	must(write(p[0], "abcdef", 6), "write");
	int queued = 0;
	must(ioctl(p[1], FIONREAD, &queued), "FIONREAD");
	printf("queued: %d\n", queued);
	unlink("self.sock");
}

static int serve(const char *path, int count)
{
	struct sockaddr_un a = un(path);
	int ln = must(socket(AF_UNIX, SOCK_STREAM, 0), "socket");
	must(bind(ln, (void *)&a, sizeof a), "bind"), must(listen(ln, 4), "listen");
	puts("ready"), fflush(stdout);
	while (count-- > 0) {
		int c = must(accept(ln, NULL, NULL), "accept");
		char b[256];
		ssize_t n;
		while ((n = read(c, b, sizeof b)) > 0) {
			for (ssize_t i = 0; i < n; i++)
				b[i] = toupper((unsigned char)b[i]);
			must(write(c, b, n), "write");
		}
		close(c);
	}
	return 0;
}

static int tcp(int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int c = must(socket(AF_INET, SOCK_STREAM, 0), "socket");
	must(connect(c, (void *)&a, sizeof a), "connect");
	char b[4096];
	ssize_t n;
	while ((n = read(0, b, sizeof b)) > 0)
		must(write(c, b, n), "write");
	must(shutdown(c, SHUT_WR), "shutdown");
	while ((n = read(c, b, sizeof b)) > 0)
		fwrite(b, 1, n, stdout);
	return n < 0;
}

static int resolve(const char *name)
{
	struct addrinfo *list, hints = { .ai_socktype = SOCK_STREAM };
	int e = getaddrinfo(name, "80", &hints, &list);
	if (e) {
		printf("%s\n", gai_strerror(e));
		return 1;
	}
	for (; list; list = list->ai_next) {
		char host[64], port[8];
		getnameinfo(list->ai_addr, list->ai_addrlen, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV);
		printf("%s %s\n", host, port);
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc > 3 && !strcmp(argv[1], "serve"))
		return serve(argv[2], atoi(argv[3]));
	if (argc > 2 && !strcmp(argv[1], "tcp"))
		return tcp(atoi(argv[2]));
	if (argc > 2 && !strcmp(argv[1], "resolve"))
		return resolve(argv[2]);
	if (argc > 1 && !strcmp(argv[1], "silent")) {
		int p[2];
		char b;
		must(socketpair(AF_UNIX, SOCK_STREAM, 0, p), "socketpair");
		return read(p[0], &b, 1);
	}
	streams(), datagrams(), unixes();
	return 0;
}
