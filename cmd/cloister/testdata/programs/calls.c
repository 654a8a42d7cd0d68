// calls SEED STEPS KIND: system calls at random, with arguments that are right, nearly right and wrong, and what each answers. The
// same seed makes the same calls; KIND is "files", "memory" or "sockets". Nothing waits, and nothing that differs from
// one run to the next is printed: addresses, times, process numbers.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static uint64_t state;

static uint64_t rnd(void)
{
	state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
	return state * 0x2545F4914F6CDD1DULL;
}

static long below(long n) { return (rnd() >> 33) % n; }
static int chance(int percent) { return below(100) < percent; }

#define PICK(...) ({ const long list_[] = { __VA_ARGS__ }; list_[below(sizeof list_ / sizeof *list_)]; })

// arena is memory for pointers: a page to write, one to read only, and one that is not there.
static char *arena;
enum { PAGE = 4096 };

static char *good(void) { return arena + 16 * below(200); }

// pointer is one to n bytes, mostly.
static char *pointer(int n)
{
	if (chance(85))
		return good();
	switch (below(7)) {
	case 0: return 0;
	case 1: return (char *)8;
	case 2: return arena + PAGE; // read-only
	case 3: return arena + 2 * PAGE - n; // up to the hole
	case 4: return arena + 2 * PAGE - n + 1;
	case 5: return (char *)(1ULL << 63);
	}
	return (char *)-4096L;
}

static const char *where(const void *p)
{
	static char b[8][32];
	static int i;
	char *s = b[i++ % 8];
	long off = (char *)p - arena;
	if (off >= 0 && off < 3 * PAGE)
		sprintf(s, "+%ld", off);
	else
		sprintf(s, "%lx", (long)p);
	return s;
}

static long last;

// say prints a call and what it answered; plain says that a result that is not negative may be printed.
static void say(int plain, long r, const char *format, ...)
{
	va_list v;
	va_start(v, format);
	vprintf(format, v);
	va_end(v);
	last = r;
	if (r < 0 && r > -4096)
		printf(" = %s", strerrorname_np(-r));
	else if (plain)
		printf(" = %ld", r);
	else
		printf(" = ok");
	printf("\n");
}

static long call(long nr, ...)
{
	va_list v;
	va_start(v, nr);
	long a[6];
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(v, long);
	va_end(v);
	long r = syscall(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
	return r < 0 ? -errno : r;
}

#define CALL(nr, ...) call(nr, ##__VA_ARGS__, 0L, 0L, 0L, 0L, 0L, 0L)

// shows prints bytes that a call has written, if it could.
static void shows(const void *p, int n)
{
	const unsigned char *b = p;
	if (last < 0 || (char *)p < arena || (char *)p + n > arena + PAGE)
		return;
	printf("   ");
	for (int i = 0; i < n; i++)
		printf("%02x", b[i]);
	printf("\n");
}

static int a_fd(void) { return chance(92) ? 3 + below(14) : PICK(-1, 99, 1 << 20, -100, 0x7fffffff); }

// ready says that a read or a write of it does not wait.
// unnamed says of an eventfd and its kin: they take words, and where a word ends beyond memory is their own matter.
static int unnamed(int fd)
{
	struct stat st;
	return !fstat(fd, &st) && !(st.st_mode & S_IFMT);
}

static int ready(int fd, int events)
{
	struct stat st;
	if (fstat(fd, &st) || S_ISREG(st.st_mode) || S_ISDIR(st.st_mode))
		return 1;
	struct pollfd p = { fd, events, 0 };
	return poll(&p, 1, 0) == 1 && (p.revents & (events | POLLERR | POLLHUP | POLLNVAL));
}

// vector makes one for fd. A pipe, which takes pages, gets no more than one: where a second one ends is the kernel's matter.
static struct iovec *vector(int fd, int *count)
{
	struct stat st;
	int small = !fstat(fd, &st) && (S_ISFIFO(st.st_mode) || !(st.st_mode & S_IFMT));
	static const long counts[] = { 0, 1, 2, 3, 3, 3, 1024, 1025, -1 };
	struct iovec *v = (struct iovec *)(arena + 3 * PAGE);
	*count = counts[below(9)];
	for (int i = 0; i < 1024; i++)
		v[i] = (struct iovec){ good(), 0 };
	for (int i = 0; i < 3; i++)
		v[i] = (struct iovec){ unnamed(fd) ? good() : pointer(16), small || chance(90) ? below(40) : PICK(1L << 31, -1L, 0x7ffff000) };
	if (small || chance(95))
		return v;
	if (*count > 3 && *count < 1025)
		*count = 3; // how far the kernel reads before it judges is its own matter
	return (struct iovec *)pointer(16 * 3);
}

static void show_vector(struct iovec *v, int count)
{
	if (v == (struct iovec *)(arena + 3 * PAGE))
		for (int i = 0; i < count && i < 3; i++)
			printf(" {%s %lx}", where(v[i].iov_base), v[i].iov_len);
}

static void files(void)
{
	char *p = pointer(8);
	long r, a, b, c;
	int fd = a_fd(), fd2 = a_fd(), count;
	struct iovec *v;
	switch (below(37)) {
	case 0: case 1: {
		static const char *names[] = { "file", "file", "other", "dir", "none", "fifo", "link", "file/x", "", "new" };
		const char *n = names[below(10)];
		a = PICK(O_RDONLY, O_WRONLY, O_RDWR, 3) | PICK(0, 0, O_CREAT, O_CREAT | O_EXCL, O_TRUNC, O_APPEND) | PICK(0, 0, O_DIRECTORY, O_NOFOLLOW, O_PATH, O_CLOEXEC, O_TMPFILE) | O_NONBLOCK;
		strcpy(arena + 3900, n);
		r = CALL(SYS_openat, AT_FDCWD, arena + 3900, a, 0600L);
		say(1, r, "openat %s %lx", n, a);
		if (n[0] == 'n' && n[1] == 'e')
			unlink("new");
		break;
	}
	case 2: a = PICK(0, O_CLOEXEC, O_NONBLOCK, O_NONBLOCK, O_DIRECT, O_APPEND, 1, -1); r = CALL(SYS_pipe2, p, a), say(1, r, "pipe2 %s %lx", where(p), a), shows(p, 8); break;
	case 3: a = PICK(0, 1, 0x7fffffff, -1), b = PICK(0, EFD_CLOEXEC, EFD_NONBLOCK, EFD_SEMAPHORE, 2, -1); r = CALL(SYS_eventfd2, a, b), say(1, r, "eventfd2 %lx %lx", a, b); break;
	case 4: a = PICK(0, 1, 2, 3, 4, 7, 11, 12, -1), b = PICK(0, TFD_CLOEXEC, TFD_NONBLOCK, 1, -1); r = CALL(SYS_timerfd_create, a, b), say(1, r, "timerfd_create %ld %lx", a, b); break;
	case 5: a = PICK(0, EPOLL_CLOEXEC, 1, -1); r = CALL(SYS_epoll_create1, a), say(1, r, "epoll_create1 %lx", a); break;
	case 6: a = PICK(0, MFD_CLOEXEC, MFD_ALLOW_SEALING, 3, 0x40, -1), strcpy(good(), "m"), r = CALL(SYS_memfd_create, p, a), say(1, r, "memfd_create %s %lx", where(p), a); break;
	case 7: r = CALL(SYS_dup, fd), say(1, r, "dup %d", fd); break;
	case 8: if (fd2 >= 0 && fd2 < 3) break; a = PICK(0, O_CLOEXEC, O_NONBLOCK, -1); r = CALL(SYS_dup3, fd, fd2, a), say(1, r, "dup3 %d %d %lx", fd, fd2, a); break;
	case 9: r = CALL(SYS_dup2, fd, fd2), say(1, r, "dup2 %d %d", fd, fd2); break;
	case 10: case 11: case 12: r = CALL(SYS_close, fd), say(1, r, "close %d", fd); break;
	case 13: a = 3 + below(14), b = PICK(0, 3, 9, 12, -1), c = PICK(0, 4, 4, 1, 8); r = CALL(SYS_close_range, a, b, c), say(1, r, "close_range %ld %ld %lx", a, b, c); break;
	case 14: case 15: case 16: case 17:
		a = PICK(F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, F_GETFL, F_GETFL, F_SETFL, F_GETPIPE_SZ, F_SETPIPE_SZ, F_GET_SEALS, F_ADD_SEALS, F_GETOWN, F_GETSIG, 9999, -1);
		b = a == F_SETFL ? PICK(0, O_NONBLOCK, O_APPEND, O_NONBLOCK | O_APPEND, O_ACCMODE, O_DIRECTORY) : a == F_ADD_SEALS ? PICK(0, 1, 2, 4, 8, 32) : a == F_SETPIPE_SZ ? PICK(0, 1, 4096, 8192, 65536, -1, 1L << 31) : PICK(0, 1, 5, 20, 99, -1, 1 << 20);
		r = CALL(SYS_fcntl, fd, a, b), say(1, r, "fcntl %d %ld %lx", fd, a, b);
		break;
	case 18: {
		struct flock *f = (void *)good();
		*f = (struct flock){ PICK(F_RDLCK, F_WRLCK, F_UNLCK, 9), PICK(0, 1, 2, 7), PICK(0, 5, -1, 1L << 62), PICK(0, 3, -3, 1L << 62), 7 };
		a = PICK(F_GETLK, F_SETLK, F_SETLK, F_OFD_GETLK, F_OFD_SETLK);
		if (a == F_OFD_GETLK || a == F_OFD_SETLK)
			f->l_pid = PICK(0, 0, 7);
		r = CALL(SYS_fcntl, fd, a, f), say(1, r, "lock %d %ld type %d whence %d", fd, a, f->l_type, f->l_whence);
		break;
	}
	case 19: case 20: a = PICK(0, 1, 5, -1, 4096, 1L << 40, 1L << 62, -1L << 63), b = PICK(0, 0, 1, 2, 3, 4, 5, -1); r = CALL(SYS_lseek, fd, a, b), say(1, r, "lseek %d %lx %ld", fd, a, b); break;
	case 21: case 22: a = chance(90) ? below(64) : PICK(0, -1, 1L << 31, 1L << 62); if (!ready(fd, POLLIN)) break; if (unnamed(fd)) p = good(); r = CALL(SYS_read, fd, p, a), say(1, r, "read %d %s %lx", fd, where(p), a); break;
	case 23: case 24: a = chance(95) ? below(64) : PICK(0, -1); if (!ready(fd, POLLOUT)) break; memset(arena + 3000, 'x', 64), r = CALL(SYS_write, fd, chance(80) || unnamed(fd) ? arena + 3000 : p, a), say(1, r, "write %d %lx", fd, a); break;
	case 25: a = PICK(0, 1, 5000, -1, 1L << 62), b = below(40); r = CALL(SYS_pread64, fd, p, b, a), say(1, r, "pread %d %s %ld %lx", fd, where(p), b, a); break;
	case 26: a = PICK(0, 1, 300, -1), b = below(40); r = CALL(SYS_pwrite64, fd, arena + 3000, b, a), say(1, r, "pwrite %d %ld %lx", fd, b, a); break;
	case 27: if (!ready(fd, POLLIN)) break; v = vector(fd, &count), r = CALL(SYS_readv, fd, v, count), say(1, r, "readv %d %d", fd, count), show_vector(v, count), printf("\n"); break;
	case 28: if (!ready(fd, POLLOUT)) break; v = vector(fd, &count), r = CALL(SYS_writev, fd, v, count), say(1, r, "writev %d %d", fd, count), show_vector(v, count), printf("\n"); break;
	case 29: v = vector(fd, &count), a = PICK(0, 7, -1), b = PICK(0, 0, 1, 8, 0x1000, -1); if (a < 0 && !ready(fd, POLLIN)) break; r = CALL(SYS_preadv2, fd, v, count, a, 0L, b), say(1, r, "preadv2 %d %d %ld %lx", fd, count, a, b), show_vector(v, count), printf("\n"); break;
	case 30: a = PICK(0, 10, 5000, -1, 1L << 63); r = CALL(SYS_ftruncate, fd, a), say(1, r, "ftruncate %d %lx", fd, a); break;
	case 31: a = PICK(0, 1, 3, 2, 0x80), b = PICK(0, 4096, -1), c = PICK(0, 4096, 10, -1); r = CALL(SYS_fallocate, fd, a, b, c), say(1, r, "fallocate %d %lx %ld %ld", fd, a, b, c); break;
	case 32: a = PICK(FIONREAD, FIONBIO, FIOCLEX, FIONCLEX, TCGETS); r = CALL(SYS_ioctl, fd, a, p), say(1, r, "ioctl %d %lx %s", fd, a, where(p)); break;
	case 33: {
		struct epoll_event *e = (void *)pointer(12);
		if ((char *)e >= arena && (char *)e < arena + PAGE - 12)
			*e = (struct epoll_event){ PICK(0, EPOLLIN, EPOLLIN | EPOLLOUT, EPOLLIN | EPOLLET, EPOLLONESHOT | EPOLLOUT, EPOLLEXCLUSIVE | EPOLLIN), { .u64 = fd2 } };
		a = PICK(1, 1, 2, 3, 0, 4, -1);
		r = CALL(SYS_epoll_ctl, fd, a, fd2, e), say(1, r, "epoll_ctl %d %ld %d %s", fd, a, fd2, where(e));
		break;
	}
	case 34: {
		struct epoll_event none;
		a = epoll_wait(fd, &none, 1, 0) < 0 ? 4 : PICK(1, 4, 16, 0, -1); memset(arena, 0, 256), r = CALL(SYS_epoll_wait, fd, a == 4 || chance(90) ? arena : p, a, 0L), say(1, r, "epoll_wait %d %ld", fd, a);
		break;
	}
	case 35: {
		struct pollfd *f = (void *)good();
		a = PICK(0, 1, 3, 3, 3, 100000, -1);
		for (int i = 0; i < 3; i++)
			f[i] = (struct pollfd){ a_fd(), PICK(0, POLLIN, POLLOUT, POLLIN | POLLOUT | POLLPRI | POLLRDNORM | POLLWRNORM), 77 };
		if (chance(70))
			r = CALL(SYS_poll, f, a, 0L), say(1, r, "poll %ld", a), shows(f, a == 3 ? 24 : 0);
		else
			b = PICK(8, 8, 4, 16), r = CALL(SYS_ppoll, f, a, &(struct timespec){ PICK(0, 0, -1), PICK(0, 0, 1000000000) }, chance(50) ? (void *)0 : p, b), say(1, r, "ppoll %ld size %ld", a, b);
		break;
	}
	case 36: {
		struct itimerspec *t = (void *)good();
		*t = (struct itimerspec){ { PICK(0, 0, 3, -1), PICK(0, 5, 999999999, 1000000000, -1) }, { PICK(0, 1000000, 2000000, -1), PICK(0, 5, 1000000000) } };
		a = PICK(0, 0, 1, 2, 3, 4, -1);
		if (a & 1 && a != -1)
			t->it_value.tv_sec = 0, t->it_value.tv_nsec = 0;
		r = CALL(SYS_timerfd_settime, fd, a, t, chance(50) ? (void *)0 : p), say(1, r, "timerfd_settime %d %lx {%ld %ld} {%ld %ld}", fd, a, t->it_interval.tv_sec, t->it_interval.tv_nsec, t->it_value.tv_sec, t->it_value.tv_nsec);
		r = CALL(SYS_timerfd_gettime, fd, good()), say(1, r, "timerfd_gettime %d", fd);
		break;
	}
	}
}

static struct {
	char *at;
	long size;
	int anonymous, advised; // advice and locks split what Linux holds together
} map[8];

static void memory(int fd, int ro)
{
	int i = below(8);
	// Only what is ours is changed: a range that begins in a mapping ends there, or wraps round.
	long off = map[i].at ? PICK(0, 0, 0, 1, PAGE, -PAGE) : 0, size = PICK(0, 1, PAGE, PAGE, 2 * PAGE, 3 * PAGE, -1, -PAGE), a, b, r;
	char *at = map[i].at ? map[i].at + off : (char *)0x20000000; // where nothing is
	if (map[i].at && (off < 0 || (size > 0 && off + size > map[i].size)))
		size = PICK(0, -1);
	switch (below(14)) {
	case 0: case 1: case 2: case 3: {
		long prot = PICK(0, 1, 1, 3, 3, 3, 5, 4, 8, 2), flags = PICK(MAP_PRIVATE, MAP_PRIVATE, MAP_SHARED, MAP_SHARED_VALIDATE, 0, 15) | PICK(MAP_ANONYMOUS, MAP_ANONYMOUS, 0) | PICK(0, 0, MAP_NORESERVE, MAP_STACK, MAP_POPULATE);
		long n = PICK(0, 1, PAGE, 3 * PAGE, 5 * PAGE, -1, 1L << 47), o = PICK(0, 0, 0, PAGE, 1, 1L << 62, -PAGE), d = PICK(-1, 0, 1, 2), hint = PICK(0, 0, 0, 5, 0x7000000);
		int with = d == 0 ? fd : d == 1 ? ro : d == 2 ? 99 : -1;
		if (flags & MAP_POPULATE && !(flags & MAP_ANONYMOUS))
			flags &= ~MAP_POPULATE;
		if (map[i].at)
			munmap(map[i].at, map[i].size), map[i].at = 0;
		r = CALL(SYS_mmap, hint, n, prot, flags, with, o), say(0, r, "mmap %lx %lx prot %lx flags %lx fd %ld offset %lx", hint, n, prot, flags, d, o);
		if (r >= 0 || r < -4095)
			map[i].at = (char *)r, map[i].size = (n + PAGE - 1) & -PAGE, map[i].anonymous = !!(flags & MAP_ANONYMOUS), map[i].advised = 0;
		return;
	}
	case 4:
		if (off)
			size = PICK(0, -1);
		r = CALL(SYS_munmap, at, size), say(1, r, "munmap %d%+ld %lx", i, off, size);
		if (!r && map[i].at && off == 0) {
			munmap(map[i].at, map[i].size), map[i].at = 0;
		}
		return;
	case 5: case 6: a = PICK(0, 1, 3, 5, 8, 1 << 24, 3 << 24), r = CALL(SYS_mprotect, at, size, a), say(1, r, "mprotect %d%+ld %lx %lx", i, off, size, a); return;
	case 7: case 8: a = PICK(0, 1, 2, 3, 4, 10, 11, 14, 15, 16, 17, 22, 23, 5, 99, -1), a = (a == 22 || a == 23) && map[i].at && !map[i].anonymous ? 0 : a, map[i].advised = 1, r = CALL(SYS_madvise, at, size, a), say(1, r, "madvise %d%+ld %lx %ld", i, off, size, a); return;
	case 9: a = PICK(0, 1, 2, 4, 5, 6, 8, 3), r = CALL(SYS_msync, at, size, a), say(1, r, "msync %d%+ld %lx %lx", i, off, size, a); return;
	case 10: r = CALL(SYS_mincore, at, size, pointer(4)), say(1, r, "mincore %d%+ld %lx", i, off, size); return;
	case 11:
		a = PICK(0, 0, 1, 2, -1), b = PICK(SYS_mlock, SYS_munlock, SYS_munlock, SYS_mlock2), map[i].advised = 1;
		if (b != SYS_munlock && map[i].at && (off = 0, at = map[i].at))
			size = PICK(0, -1); // a locked page is treated in other ways from then on
		r = CALL(b, at, size, a), say(1, r, "mlock %ld %d%+ld %lx %ld", b, i, off, size, b == SYS_mlock2 ? a : 0);
		return;
	case 12:
		a = PICK(0, 1, 1, 2, 8, 10, 12), b = PICK(0, PAGE, 2 * PAGE, 4 * PAGE);
		if (map[i].at && off == 0)
			size = map[i].size;
		else if (size <= 0)
			size = PAGE;
		if (b > size && map[i].advised)
			b = size;
		r = CALL(SYS_mremap, at, size, b, a), say(0, r, "mremap %d%+ld %lx to %lx flags %lx", i, off, size, b, a);
		if (map[i].at && off == 0 && (r >= 0 || r < -4095))
			map[i].at = (char *)r, map[i].size = b;
		return;
	case 13: a = PICK(0, 4, 8, -1), r = CALL(SYS_mlockall, a), say(1, r, "mlockall %lx", a); return;
	}
}

static void sockets(void)
{
	char *p = pointer(16), *q = good();
	int fd = a_fd();
	long a, b, c, r;
	socklen_t *len = (void *)(arena + 3600);
	switch (below(14)) {
	case 0: case 1: a = PICK(AF_INET, AF_INET, AF_INET6, AF_UNIX, 0, 200, -1), b = PICK(SOCK_STREAM, SOCK_DGRAM, SOCK_STREAM, 0, 99, -1) | PICK(0, SOCK_NONBLOCK, SOCK_CLOEXEC, 1 << 20), c = PICK(0, 0, 0, IPPROTO_TCP, IPPROTO_UDP, 250, -1); if (c == 250 && (b & 15) == SOCK_RAW) break; r = CALL(SYS_socket, a, b | SOCK_NONBLOCK, c), say(1, r, "socket %ld %lx %ld", a, b, c); break;
	case 2: a = PICK(AF_UNIX, AF_UNIX, AF_INET, 99), b = PICK(SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET, 0), c = PICK(0, 0, 1, 99), c = a == AF_INET ? 0 : c, r = CALL(SYS_socketpair, a, b | SOCK_NONBLOCK, c, p), say(1, r, "socketpair %ld %lx %ld %s", a, b, c, where(p)), shows(p, 8); break;
	case 3: case 4: case 5: {
		static const int opts[][2] = { { SOL_SOCKET, SO_REUSEADDR }, { SOL_SOCKET, SO_KEEPALIVE }, { SOL_SOCKET, SO_BROADCAST }, { SOL_SOCKET, SO_TYPE }, { SOL_SOCKET, SO_ERROR }, { SOL_SOCKET, SO_ACCEPTCONN }, { SOL_SOCKET, SO_LINGER },
			{ SOL_SOCKET, SO_RCVTIMEO }, { SOL_SOCKET, SO_SNDTIMEO }, { SOL_SOCKET, SO_DOMAIN }, { SOL_SOCKET, SO_PROTOCOL }, { SOL_SOCKET, SO_REUSEPORT }, { IPPROTO_TCP, TCP_NODELAY }, { IPPROTO_TCP, TCP_KEEPIDLE }, { IPPROTO_TCP, TCP_KEEPCNT },
			{ IPPROTO_IP, IP_TTL }, { IPPROTO_IP, IP_TOS }, { IPPROTO_IPV6, IPV6_V6ONLY }, { SOL_SOCKET, SO_RCVLOWAT } };
		int o = below(19);
		memset(q, 0, 16), *(int *)q = PICK(0, 1, 2, 60, -1), b = PICK(4, 4, 4, 8, 16, 100);
		if (chance(50))
			r = CALL(SYS_setsockopt, fd, opts[o][0], opts[o][1], q, b), say(1, r, "setsockopt %d %d %d %d size %ld", fd, opts[o][0], opts[o][1], *(int *)q, b);
		else
			*len = b, memset(q, 0, 16), r = CALL(SYS_getsockopt, fd, opts[o][0], opts[o][1], chance(90) ? q : (char *)8, (void *)len), say(1, r, "getsockopt %d %d %d size %ld", fd, opts[o][0], opts[o][1], b), shows(q, 4), shows(len, 4);
		break;
	}
	case 6: {
		struct sockaddr_in *s = (void *)good();
		*s = (struct sockaddr_in){ PICK(AF_INET, AF_INET, AF_INET6, AF_UNIX, 0), 0, { htonl(PICK(INADDR_LOOPBACK, INADDR_LOOPBACK, 0xcb007101)) } }, a = PICK(16, 16, 0, 2, 15, 128, 129, -1);
		if (s->sin_family == AF_UNIX)
			a = PICK(0, 2, -1);
		if (a == 2)
			break; // an automatic name
		r = CALL(SYS_bind, fd, chance(90) ? (void *)s : (void *)8, a), say(1, r, "bind %d family %d size %ld", fd, s->sin_family, a);
		break;
	}
	case 7: {
		struct sockaddr_in *s = (void *)good();
		*s = (struct sockaddr_in){ PICK(AF_INET, AF_UNSPEC, AF_INET6), htons(1), { htonl(INADDR_LOOPBACK) } }, a = PICK(16, 16, 0, 1, 15, 129, -1);
		r = CALL(SYS_connect, fd, chance(90) ? (void *)s : (void *)8, a), say(1, r, "connect %d family %d size %ld", fd, s->sin_family, a);
		break;
	}
	case 8: a = PICK(0, 1, -1, 1000), r = CALL(SYS_listen, fd, a), say(1, r, "listen %d %ld", fd, a); break;
	case 9: a = PICK(0, SOCK_CLOEXEC, SOCK_NONBLOCK, 1), *len = 16; if (!(fcntl(fd, F_GETFL) & O_NONBLOCK)) break; r = CALL(SYS_accept4, fd, 0L, 0L, a), say(1, r, "accept4 %d %lx", fd, a); break;
	case 10: a = PICK(0, 1, 2, 3, -1), r = CALL(SYS_shutdown, fd, a), say(1, r, "shutdown %d %ld", fd, a); break;
	case 11: a = PICK(0, MSG_OOB, MSG_PEEK, MSG_NOSIGNAL) | MSG_DONTWAIT | MSG_NOSIGNAL, b = below(40), r = CALL(SYS_sendto, fd, arena + 3000, b, a, 0L, 0L), say(1, r, "sendto %d %ld %lx", fd, b, a); break;
	case 12: a = PICK(0, MSG_PEEK, MSG_TRUNC) | MSG_DONTWAIT, b = below(40), r = CALL(SYS_recvfrom, fd, p, b, a, 0L, 0L), say(1, r, "recvfrom %d %s %ld %lx", fd, where(p), b, a); break;
	case 13: if (chance(60)) r = CALL(SYS_close, fd), say(1, r, "close %d", fd); else *len = PICK(0, 2, 16, 128, -1), r = CALL(chance(50) ? SYS_getsockname : SYS_getpeername, fd, chance(80) ? q : p, len), say(1, r, "name %d %d", fd, r ? 0 : (int)*len); break;
	}
}

int main(int argc, char **argv)
{
	setvbuf(stdout, 0, _IOFBF, 1 << 16);
	state = strtoull(argv[1], 0, 10) * 0x9E3779B97F4A7C15ULL + 1;
	syscall(SYS_close_range, 3, -1, 0), umask(022);
	signal(SIGPIPE, SIG_IGN), signal(SIGXFSZ, SIG_IGN);
	arena = mmap(0, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mprotect(arena + PAGE, PAGE, PROT_READ), mprotect(arena + 2 * PAGE, PAGE, PROT_NONE), mprotect(arena + 7 * PAGE, PAGE, PROT_NONE);
	int f = open("file", O_CREAT | O_RDWR | O_TRUNC, 0600);
	for (int i = 0; i < 500; i++)
		if (write(f, "0123456789", 10) != 10)
			return 9;
	close(f);
	mkdir("dir", 0700), symlink("file", "link"), mkfifo("fifo", 0600), close(open("other", O_CREAT | O_RDWR, 0600));
	int ro = -1;
	if (!strcmp(argv[3], "memory"))
		f = open("file", O_RDWR), ro = open("file", O_RDONLY);
	for (long n = atol(argv[2]); n > 0; n--) {
		if (!strcmp(argv[3], "files"))
			files();
		else if (!strcmp(argv[3], "memory"))
			memory(f, ro);
		else
			sockets();
	}
	fflush(stdout);
	return 0;
}
