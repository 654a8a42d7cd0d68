// futex(2) itself: one word behind two addresses, private and shared words, counts of requeue, requeue to words with priority
// inheritance, the order of waiters.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long futex(volatile uint32_t *a, int op, uint32_t v, uintptr_t v2, volatile uint32_t *b, uint32_t v3)
{
	long r = syscall(SYS_futex, a, op, v, v2, b, v3);
	return r < 0 ? -errno : r;
}

static const char *said(long r)
{
	static char b[8][24];
	static int i;
	char *s = b[i++ % 8];
	if (r < 0)
		snprintf(s, 24, "%s", strerrorname_np(-r));
	else
		snprintf(s, 24, "%ld", r);
	return s;
}

#define SAY(what, r) printf("%s: %s\n", what, said(r))

// waiter is a thread that makes one call.
struct waiter {
	pthread_t t;
	volatile int tid;
	volatile uint32_t *a, *b;
	int op, millis, prio;
	uint32_t v, v3;
	long got;
	volatile int done;
};

static int order[16], ends;

static void *wait_thread(void *x)
{
	struct waiter *w = x;
	if (w->prio) {
		struct sched_param p = { w->prio };
		if (sched_setscheduler(0, SCHED_FIFO, &p))
			printf("SCHED_FIFO: %s\n", strerrorname_np(errno));
	}
	struct timespec end, *t = 0;
	if (w->millis) {
		t = &end;
		if ((w->op & 127) == FUTEX_WAIT)
			end = (struct timespec){ w->millis / 1000, w->millis % 1000 * 1000000 };
		else {
			clock_gettime((w->op & FUTEX_CLOCK_REALTIME) || (w->op & 127) == FUTEX_LOCK_PI ? CLOCK_REALTIME : CLOCK_MONOTONIC, &end);
			end.tv_nsec += w->millis % 1000 * 1000000, end.tv_sec += w->millis / 1000;
			if (end.tv_nsec >= 1000000000)
				end.tv_nsec -= 1000000000, end.tv_sec++;
		}
	}
	w->tid = gettid();
	w->got = futex(w->a, w->op, w->v, (uintptr_t)t, w->b, w->v3);
	order[__atomic_fetch_add(&ends, 1, __ATOMIC_SEQ_CST) % 16] = w->prio;
	w->done = 1;
	if ((w->op & 127) == FUTEX_WAIT_REQUEUE_PI && !w->got) { // it owns the word
		usleep(2000);
		futex(w->b, FUTEX_UNLOCK_PI | (w->op & FUTEX_PRIVATE_FLAG), 0, 0, 0, 0);
	}
	return 0;
}

static int asleep(int tid)
{
	char path[64], b[512];
	sprintf(path, "/proc/self/task/%d/stat", tid);
	int f = open(path, O_RDONLY), n = f < 0 ? 0 : read(f, b, sizeof b - 1);
	if (f >= 0)
		close(f);
	b[n > 0 ? n : 0] = 0;
	return n > 0 && strrchr(b, ')')[2] == 'S';
}

static struct waiter *begin(struct waiter w)
{
	struct waiter *p = malloc(sizeof w);
	*p = w;
	pthread_create(&p->t, 0, wait_thread, p);
	while (!p->tid)
		usleep(100);
	for (int seen = 0; seen < 3 && !p->done; seen = asleep(p->tid) ? seen + 1 : 0) // the scheduler's word for it
		usleep(500);
	return p;
}

static void end(const char *what, struct waiter *w)
{
	pthread_join(w->t, 0);
	SAY(what, w->got);
	free(w);
}

static volatile uint32_t *map(int fd, int off) { return mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, off); }

static void aliases(int fd, const char *kind)
{
	ftruncate(fd, 8192);
	volatile uint32_t *a = map(fd, 0), *b = map(fd, 0), *c = map(fd, 4096);
	printf("%s: two places %d\n", kind, a != b);
	struct waiter *w = begin((struct waiter){ .a = a + 3, .op = FUTEX_WAIT });
	SAY("another word", futex(b + 4, FUTEX_WAKE, 1, 0, 0, 0)), SAY("another page", futex(c + 3, FUTEX_WAKE, 1, 0, 0, 0));
	SAY("private", futex(b + 3, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0)), SAY("the other place", futex(b + 3, FUTEX_WAKE, 1, 0, 0, 0));
	end("woken", w);
	w = begin((struct waiter){ .a = a + 3, .op = FUTEX_WAIT_PRIVATE });
	SAY("shared", futex(a + 3, FUTEX_WAKE, 1, 0, 0, 0)), SAY("private, elsewhere", futex(b + 3, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0));
	SAY("private, there", futex(a + 3, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0));
	end("woken", w);
	w = begin((struct waiter){ .a = a, .op = FUTEX_WAIT });
	SAY("requeue", futex(b, FUTEX_CMP_REQUEUE, 0, 1, b + 8, 0)), SAY("the old one", futex(a, FUTEX_WAKE, 1, 0, 0, 0)), SAY("the new one", futex(a + 8, FUTEX_WAKE, 1, 0, 0, 0));
	end("woken", w);
	w = begin((struct waiter){ .a = c, .op = FUTEX_WAIT });
	SAY("wake-op", futex(a, FUTEX_WAKE_OP, 1, 1, c, FUTEX_OP(FUTEX_OP_SET, 5, FUTEX_OP_CMP_EQ, 0)));
	printf("word %u\n", *c), end("woken", w);
	SAY("lock", futex(a + 20, FUTEX_LOCK_PI, 0, 0, 0, 0)), SAY("again, elsewhere", futex(b + 20, FUTEX_LOCK_PI, 0, 0, 0, 0));
	w = begin((struct waiter){ .a = b + 20, .op = FUTEX_LOCK_PI });
	SAY("unlock", futex(a + 20, FUTEX_UNLOCK_PI, 0, 0, 0, 0));
	end("has it", w);
	printf("mine %d\n", (b[20] & FUTEX_TID_MASK) == gettid());
	// Truncated and mapped read-only.
	volatile uint32_t *r = mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0);
	w = begin((struct waiter){ .a = r + 3, .op = FUTEX_WAIT });
	SAY("read-only", futex(a + 3, FUTEX_WAKE, 1, 0, 0, 0));
	end("woken", w);
	ftruncate(fd, 4096);
	SAY("cut off", futex(c, FUTEX_WAKE, 1, 0, 0, 0)), SAY("cut off, private", futex(c, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0));
	munmap((void *)a, 4096);
	SAY("unmapped", futex(a, FUTEX_WAKE, 1, 0, 0, 0)), SAY("still there", futex(b, FUTEX_WAKE, 1, 0, 0, 0));
	munmap((void *)b, 4096), munmap((void *)c, 4096), munmap((void *)r, 4096), close(fd);
}

struct both {
	pthread_mutex_t m;
	pthread_cond_t c;
	int turn;
};

static void *pong(void *x)
{
	struct both *b = x;
	for (int i = 0; i < 200; i++) {
		pthread_mutex_lock(&b->m);
		while (b->turn != 1)
			pthread_cond_wait(&b->c, &b->m);
		b->turn = 0;
		pthread_cond_broadcast(&b->c);
		pthread_mutex_unlock(&b->m);
	}
	return 0;
}

static void shared_condition(int protocol)
{
	int fd = memfd_create("condition", 0);
	ftruncate(fd, 4096);
	struct both *a = (void *)map(fd, 0), *b = (void *)map(fd, 0);
	pthread_mutexattr_t ma;
	pthread_condattr_t ca;
	pthread_mutexattr_init(&ma), pthread_mutexattr_setpshared(&ma, PTHREAD_PROCESS_SHARED), pthread_mutexattr_setprotocol(&ma, protocol);
	pthread_condattr_init(&ca), pthread_condattr_setpshared(&ca, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&a->m, &ma), pthread_cond_init(&a->c, &ca);
	pthread_t t;
	pthread_create(&t, 0, pong, b);
	for (int i = 0; i < 200; i++) {
		pthread_mutex_lock(&a->m);
		a->turn = 1;
		pthread_cond_broadcast(&a->c);
		while (a->turn)
			pthread_cond_wait(&a->c, &a->m);
		pthread_mutex_unlock(&a->m);
	}
	pthread_join(t, 0);
	printf("a condition in two places, protocol %d: done\n", protocol);
}

static volatile uint32_t word[64];

static void requeues(void)
{
	struct waiter *w[4];
	for (int compare = 0; compare < 2; compare++) {
		int op = compare ? FUTEX_CMP_REQUEUE_PRIVATE : FUTEX_REQUEUE_PRIVATE;
		for (int i = 0; i < 4; i++)
			w[i] = begin((struct waiter){ .a = word, .op = FUTEX_WAIT_PRIVATE });
		SAY("not that value", futex(word, op, 0, 0, word + 8, 7));
		SAY("wake 1, move 2", futex(word, op, 1, 2, word + 8, 0));
		SAY("moved", futex(word + 8, FUTEX_WAKE_PRIVATE, 99, 0, 0, 0)), SAY("left", futex(word, FUTEX_WAKE_PRIVATE, 99, 0, 0, 0));
		for (int i = 0; i < 4; i++)
			end("woken", w[i]);
		w[0] = begin((struct waiter){ .a = word, .op = FUTEX_WAIT_PRIVATE });
		SAY("onto itself", futex(word, op, 0, 5, word, 0)), SAY("still there", futex(word, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0));
		end("woken", w[0]);
		SAY("negative", futex(word, op, -1, 1, word + 8, 0)), SAY("negative", futex(word, op, 1, -1, word + 8, 0)), SAY("odd", futex(word, op, 1, 1, (void *)((char *)word + 33), 0));
	}
}

static void handler(int s) {}

static void requeue_pi(int flag)
{
	volatile uint32_t *c = word + 16, *m = word + 17, *o = word + 18;
	int wait = FUTEX_WAIT_REQUEUE_PI | flag, move = FUTEX_CMP_REQUEUE_PI | flag, lock = FUTEX_LOCK_PI | flag, unlock = FUTEX_UNLOCK_PI | flag;
	struct waiter *w[4];
	*c = *m = *o = 0;
	printf("requeue to a word with an owner, flag %d\n", flag);
	SAY("onto itself", futex(c, wait, 0, 0, c, 0)), SAY("another value", futex(c, wait, 1, 0, m, 0)), SAY("odd", futex(c, wait, 0, 0, (void *)((char *)m + 1), 0));
	if (!flag)
		SAY("nowhere", futex(c, wait, 0, 0, 0, 0));
	SAY("bad time", futex(c, wait, 0, (uintptr_t)&(struct timespec){ 0, 1000000000 }, m, 0));
	SAY("past", futex(c, wait, 0, (uintptr_t)&(struct timespec){ 1, 0 }, m, 0)), SAY("wake two", futex(c, move, 2, 1, m, 0)), SAY("wake none", futex(c, move, 0, 1, m, 0));
	SAY("onto itself", futex(c, move, 1, 1, c, 0)), SAY("another value", futex(c, move, 1, 1, m, 3)), SAY("nobody", futex(c, move, 1, 1, m, 0)), SAY("negative", futex(c, move, 1, -1, m, 0));
	// The word is free: the first one has it at once, the others one after the other.
	for (int i = 0; i < 3; i++)
		w[i] = begin((struct waiter){ .a = c, .b = m, .op = wait });
	SAY("plain wake", futex(c, FUTEX_WAKE | flag, 1, 0, 0, 0)), SAY("plain requeue", futex(c, FUTEX_CMP_REQUEUE | flag, 1, 1, o, 0)), SAY("elsewhere", futex(c, move, 1, 9, o, 0));
	SAY("all of them", futex(c, move, 1, 9, m, 0));
	for (int i = 0; i < 3; i++)
		end("has it", w[i]);
	printf("word %x\n", *m);
	// The caller owns it, as pthread_cond_broadcast does.
	SAY("lock", futex(m, lock, 0, 0, 0, 0));
	for (int i = 0; i < 3; i++)
		w[i] = begin((struct waiter){ .a = c, .b = m, .op = wait, .millis = i == 2 ? 200 : 0 });
	SAY("two of them", futex(c, move, 1, 1, m, 0));
	printf("waiters %d owner %d\n", *m >> 31, (*m & FUTEX_TID_MASK) == gettid());
	end("the third one's time", w[2]), SAY("unlock", futex(m, unlock, 0, 0, 0, 0));
	end("has it", w[0]), end("has it", w[1]), printf("word %x\n", *m);
	// Time is up when it has been moved.
	SAY("lock", futex(m, lock, 0, 0, 0, 0));
	w[0] = begin((struct waiter){ .a = c, .b = m, .op = wait, .millis = 300 });
	SAY("one", futex(c, move, 1, 0, m, 0)), end("its time", w[0]), SAY("unlock", futex(m, unlock, 0, 0, 0, 0)), printf("word %x\n", *m);
	// A signal, before it was moved and after.
	struct sigaction sa = { .sa_handler = handler };
	sigaction(SIGUSR1, &sa, 0);
	w[0] = begin((struct waiter){ .a = c, .b = m, .op = wait, .millis = 300 });
	pthread_kill(w[0]->t, SIGUSR1), end("a signal, then time", w[0]);
	SAY("lock", futex(m, lock, 0, 0, 0, 0));
	w[0] = begin((struct waiter){ .a = c, .b = m, .op = wait });
	SAY("one", futex(c, move, 1, 0, m, 0)), usleep(20000), pthread_kill(w[0]->t, SIGUSR1), end("a signal", w[0]), SAY("unlock", futex(m, unlock, 0, 0, 0, 0));
	// Some who wait for nothing of the kind.
	w[0] = begin((struct waiter){ .a = c, .op = FUTEX_WAIT | flag });
	SAY("a plain one", futex(c, move, 1, 1, m, 0)), SAY("wake it", futex(c, FUTEX_WAKE | flag, 1, 0, 0, 0)), end("woken", w[0]);
	*m = 4194303;
	w[0] = begin((struct waiter){ .a = c, .b = m, .op = wait, .millis = 200 });
	SAY("owned by nobody", futex(c, move, 1, 1, m, 0)), end("time", w[0]);
	*m = 0;
}

// A thread ends between its unlocking of a word and its waking of who waits for it; then one that has it, with and without
// priority inheritance.
static struct robust_list_head head;
static volatile uint32_t robust[4];

static void *dies(void *pi)
{
	head = (struct robust_list_head){ { &head.list }, 0, (void *)((uintptr_t)robust | (uintptr_t)pi) };
	syscall(SYS_set_robust_list, &head, sizeof head);
	if (*robust == 1)
		*robust = gettid() | FUTEX_WAITERS;
	return 0;
}

static void died(void)
{
	for (uintptr_t pi = 0; pi < 2; pi++)
		for (int has = 0; has < 2; has++) {
			pthread_t t;
			*robust = has;
			struct waiter *w = begin((struct waiter){ .a = robust, .op = FUTEX_WAIT, .v = has, .millis = 300 });
			pthread_create(&t, 0, dies, (void *)pi), pthread_join(t, 0);
			printf("a thread ends, pi %d has %d: word %x ", (int)pi, has, *robust), end("waiter", w);
		}
}

// Who waits with a real-time priority comes before who does not, the higher one first.
static void ordered(void)
{
	static const int prio[] = { 0, 5, 20, 5, 90, 0 };
	struct waiter *w[6];
	volatile uint32_t *a = word + 32, *m = word + 33, *z = word + 34;
	for (int kind = 0; kind < 4; kind++) {
		ends = 0, *a = *m = 0;
		if (kind == 1 || kind == 3)
			SAY("lock", futex(m, FUTEX_LOCK_PI_PRIVATE, 0, 0, 0, 0));
		for (int i = 0; i < 6; i++) {
			struct waiter x = { .a = kind == 1 ? m : a, .b = m, .prio = prio[i], .op = kind == 1 ? FUTEX_LOCK_PI_PRIVATE : kind == 3 ? FUTEX_WAIT_REQUEUE_PI_PRIVATE : FUTEX_WAIT_PRIVATE };
			w[i] = begin(x);
		}
		if (kind == 2)
			SAY("moved", futex(a, FUTEX_CMP_REQUEUE_PRIVATE, 0, 9, z, 0));
		if (kind == 3)
			SAY("moved", futex(a, FUTEX_CMP_REQUEUE_PI_PRIVATE, 1, 9, m, 0));
		if (kind == 3)
			futex(m, FUTEX_UNLOCK_PI_PRIVATE, 0, 0, 0, 0);
		for (int i = 0; i < 6; i++) {
			if (kind == 1) { // each that has it hands it on by the tid that it wrote
				if (i == 0)
					futex(m, FUTEX_UNLOCK_PI_PRIVATE, 0, 0, 0, 0);
				while (ends < i + 1)
					usleep(200);
			} else if (kind != 3) {
				futex(kind == 2 ? z : a, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
				while (ends < i + 1)
					usleep(200);
			}
			if (kind == 1)
				break; // the new owner ends, and the word with it: see below
		}
		for (int i = 0; i < 6; i++) {
			pthread_join(w[i]->t, 0);
			free(w[i]);
		}
		printf("order %d:", kind);
		for (int i = 0; i < 6; i++)
			printf(" %d", order[i]);
		printf("\n");
	}
}

int main(int argc, char **argv)
{
	setvbuf(stdout, 0, _IONBF, 0);
	aliases(memfd_create("words", 0), "memory file");
	aliases(open(".", O_TMPFILE | O_RDWR, 0600), "file");
	volatile uint32_t *s = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct waiter *w = begin((struct waiter){ .a = s, .op = FUTEX_WAIT });
	SAY("shared without a file, private", futex(s, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0)), SAY("shared", futex(s, FUTEX_WAKE, 1, 0, 0, 0)), end("woken", w);
	shared_condition(PTHREAD_PRIO_NONE), shared_condition(PTHREAD_PRIO_INHERIT);
	died(), requeues(), requeue_pi(0), requeue_pi(FUTEX_PRIVATE_FLAG);
	if (argc > 1)
		ordered();
	return 0;
}
