/*
 * patch: the least that stops every vCPU of a guest, stores eight bytes of its code through another mapping, has every vCPU
 * serialise on its own core, and lets all go, with acknowledgements as Cloister demands them. Nothing is checked, logged or
 * recorded. The machine is floor.c's, with a thread for each vCPU.
 *
 *   patch -c CPU|-1 [-f PRIORITY] [-k CPU|-1] -n VCPUS -s SITE -p PASSES -w CYCLES N PROGRAM ARG...
 *
 * Whoever waits looks for -w cycles and then sleeps in a futex. With -f the first vCPU and who patches are in SCHED_FIFO. It writes,
 * 8 bytes a sample, N times from request to release, then the vCPUs' pauses, from leaving the guest to entering it, N for
 * each but those that were outside already; a 0 between the two.
 */
#define main floor_main
#include "floor.c"
#undef main
#include <linux/futex.h>
#include <pthread.h>
#include <cpuid.h>
#include <sys/time.h>

enum { MOST_VCPUS = 16 };

static struct { u64 req, go, rel; int bell, asleep; } to __attribute__((aligned(64)));
static struct { u64 acked, synced; int bell, asleep; } from __attribute__((aligned(64)));
static int vcpus = 1, own_cpu = -1, own_priority;
static enum { SERIALIZE, CPUID, IRET } serialising = CPUID;
static u64 patience;
static struct cpu {
	int fd, tid;
	struct kvm_run *run;
	u64 *pause, paused, taken; /* of the kicks that were sent, how many were taken off the thread */
	u64 sent __attribute__((aligned(64)));
} __attribute__((aligned(64))) cpus[MOST_VCPUS];

static void futex(int *p, int op, int v) { syscall(SYS_futex, p, op | FUTEX_PRIVATE_FLAG, v, 0, 0, 0); }

static void ring(int *bell, int *asleep)
{
	/* ORDER(O1): the bell behind the word, then who sleeps; pairs with wait_for's bell, flag, word. Without it each could miss the other. */
	__atomic_fetch_add(bell, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(asleep, __ATOMIC_SEQ_CST)) futex(bell, FUTEX_WAKE, MOST_VCPUS);
}

static void wait_for(u64 *word, u64 want, int *bell, int *asleep)
{
	u64 until = tsc() + patience;
	/* ORDER(O1): acquires what was done before the word; pairs with the stores of main and the additions of stopped. Without it a vCPU could
	 * serialise before the last store. */
	while (__atomic_load_n(word, __ATOMIC_ACQUIRE) < want) {
		if (tsc() < until) { __builtin_ia32_pause(); continue; }
		int b = __atomic_load_n(bell, __ATOMIC_SEQ_CST);
		__atomic_fetch_add(asleep, 1, __ATOMIC_SEQ_CST);
		if (__atomic_load_n(word, __ATOMIC_SEQ_CST) < want) futex(bell, FUTEX_WAIT, b);
		__atomic_fetch_sub(asleep, 1, __ATOMIC_SEQ_CST);
	}
}

/* choose is vmm.serialiseKind's rule. */
static void choose(void)
{
	unsigned a, b, c, d;
	if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> 14 & 1) {
		serialising = SERIALIZE;
		return;
	}
	__cpuid(1, a, b, c, d);
	if (!(c >> 31)) return;
	__cpuid(0x40000000, a, b, c, d);
	if (b != 0x54474354) serialising = IRET;
}

static void serialise(void)
{
	unsigned a, b, c, d;
	u64 t, s;
	switch (serialising) {
	case SERIALIZE:
		__asm__ volatile(".byte 0x0f,0x01,0xe8" ::: "memory");
		break;
	case CPUID:
		__cpuid(0, a, b, c, d);
		break;
	case IRET:
		/* SS, RSP, RFLAGS, CS, RIP, below the red zone that the compiler may use. */
		__asm__ volatile("mov %%rsp, %0\n sub $128, %%rsp\n mov %%ss, %k1\n push %1\n push %0\n pushfq\n mov %%cs, %k1\n push %1\n lea 1f(%%rip), %1\n push %1\n iretq\n1:"
			: "=&r"(t), "=&r"(s) :: "memory", "cc");
	}
}

/* stopped is what a vCPU does for request g: acknowledge, take the kick away while it waits anyway, wait, serialise, say so, wait. */
static void stopped(struct cpu *c, u64 g)
{
	static sigset_t kick;
	struct timespec zero = { 0 };
	sigemptyset(&kick);
	sigaddset(&kick, 40);
	if (__atomic_add_fetch(&from.acked, 1, __ATOMIC_SEQ_CST) == g * vcpus) ring(&from.bell, &from.asleep);
	if (sigtimedwait(&kick, 0, &zero) > 0) c->taken++;
	wait_for(&to.go, g, &to.bell, &to.asleep);
	serialise();
	__atomic_store_n(&c->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
	/* ORDER(O1): a kick is counted behind its signal and before go, so what is not taken by now is pending. Pairs with main's addition to sent. Without
	 * it a kick that came late would end the next KVM_RUN for nothing. */
	u64 sent = __atomic_load_n(&c->sent, __ATOMIC_SEQ_CST);
	if (c->taken != sent) while (sigtimedwait(&kick, 0, &zero) > 0) { }
	c->taken = sent;
	if (__atomic_add_fetch(&from.synced, 1, __ATOMIC_SEQ_CST) == g * vcpus) ring(&from.bell, &from.asleep);
	wait_for(&to.rel, g, &to.bell, &to.asleep);
}

/* turns runs c in the guest; only the first vCPU makes system calls. */
static void turns(struct cpu *c, struct cpu *(*born)(void))
{
	u64 done = 0;
	for (;;) {
		int r = 0;
		u64 out = 0, g = __atomic_load_n(&to.req, __ATOMIC_SEQ_CST);
		if (g == done) {
			r = ioctl(c->fd, KVM_RUN, 0);
			out = tsc();
			if (r < 0 && errno != EINTR) DIE("KVM_RUN");
			g = __atomic_load_n(&to.req, __ATOMIC_SEQ_CST);
		}
		if (r == 0 && out) {
			if (c != cpus || c->run->exit_reason != KVM_EXIT_IO) DIE("exit of a vCPU that makes none");
			if (c->run->s.regs.regs.rax == SYS_clone) born();
			else turn();
			continue;
		}
		if (g == done) continue;
		stopped(c, g);
		done = g;
		if (out) c->pause[c->paused++] = tsc() - out;
	}
}

static void own(struct cpu *c)
{
	c->tid = syscall(SYS_gettid);
	pin(c == cpus ? own_cpu : -1, c == cpus ? own_priority : 0);
}

static void *other(void *p)
{
	own(p);
	turns(p, 0);
	return 0;
}

/* twin makes a further vCPU with the state of the first, and its thread: the guest's clone. */
static struct cpu *twin(void)
{
	static int n = 1;
	struct cpu *c = &cpus[n];
	if (n >= MOST_VCPUS) DIE("too many threads");
	struct kvm_regs *r = &run->s.regs.regs;
	struct kvm_sregs s;
	struct { struct kvm_cpuid2 h; struct kvm_cpuid_entry2 e[256]; } *id = calloc(1, sizeof *id);
	struct { struct kvm_msrs h; struct kvm_msr_entry e[4]; } m = { .h.nmsrs = 4,
		.e = { { .index = 0xc0000081 }, { .index = 0xc0000082 }, { .index = 0xc0000083 }, { .index = 0xc0000084 } } };
	struct kvm_xcrs x;
	id->h.nent = 256;
	if (ioctl(vcpu, KVM_GET_CPUID2, id) || ioctl(vcpu, KVM_GET_SREGS, &s) || ioctl(vcpu, KVM_GET_MSRS, &m) != 4) DIE("state");
	c->fd = ioctl(vm, KVM_CREATE_VCPU, n);
	if (c->fd < 0) DIE("KVM_CREATE_VCPU");
	c->run = mmap(0, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, c->fd, 0);
	if (c->run == MAP_FAILED) DIE("kvm_run");
	s.cs = user_cs, s.ss = user_ss;
	if (ioctl(c->fd, KVM_SET_CPUID2, id) || ioctl(c->fd, KVM_SET_SREGS, &s) || ioctl(c->fd, KVM_SET_MSRS, &m) != 4) DIE("state");
	if (ioctl(vcpu, KVM_GET_XCRS, &x) || ioctl(c->fd, KVM_SET_XCRS, &x)) DIE("XCR0");
	struct kvm_regs child = *r;
	child.rax = 0, child.rsp = r->rsi, child.rip = r->rcx, child.rflags = r->r11;
	if (ioctl(c->fd, KVM_SET_REGS, &child)) DIE("KVM_SET_REGS");
	struct __attribute__((packed)) { struct kvm_signal_mask h; u64 mask; } mask = { .h.len = 8, .mask = ~(1ull << 39) };
	if (ioctl(c->fd, KVM_SET_SIGNAL_MASK, &mask)) DIE("KVM_SET_SIGNAL_MASK");
	free(id);
	c->run->kvm_valid_regs = KVM_SYNC_X86_REGS;
	c->pause = calloc(1 << 20, 8);
	pthread_t t;
	if (pthread_create(&t, 0, other, c)) DIE("pthread_create");
	if (!stays) {
		stays = run->s.regs.sregs.cs.dpl == 3 ? 1 : 2;
		run->kvm_valid_regs = KVM_SYNC_X86_REGS;
	}
	r->rax = 1000 + n++;
	if (stays == 1) r->rip = r->rcx, r->rflags = r->r11;
	run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
	return c;
}

static void *first(void *p)
{
	own(p);
	turns(p, twin);
	return 0;
}

int main(int argc, char **argv)
{
	int o, patch_cpu = -1;
	u64 site = 0, passes = 0;
	while ((o = getopt(argc, argv, "+c:f:k:n:s:p:w:")) != -1)
		switch (o) {
		case 'c': own_cpu = atoi(optarg); break;
		case 'f': own_priority = atoi(optarg); break;
		case 'k': patch_cpu = atoi(optarg); break;
		case 'n': vcpus = atoi(optarg); break;
		case 's': site = strtoull(optarg, 0, 16); break;
		case 'p': passes = strtoull(optarg, 0, 16); break;
		case 'w': patience = strtoull(optarg, 0, 10); break;
		default: return 125;
		}
	argv += optind;
	if (argc - optind < 2 || vcpus < 1 || vcpus > MOST_VCPUS) return 125;
	int n = atoi(*argv++);
	choose();
	machine();
	load(*argv, argv);
	/* An old size of 0 makes a second mapping of the same shared page (mremap(2)). */
	char *alias = mremap(window + down(site), 0, PAGE, MREMAP_MAYMOVE);
	if (alias == MAP_FAILED) DIE("alias");
	u64 *out = calloc(n, 8), *word = (u64 *)(alias + (site & (PAGE - 1) & ~7)), old = *word;
	sigset_t kick;
	sigemptyset(&kick);
	sigaddset(&kick, 40);
	sigprocmask(SIG_BLOCK, &kick, 0);
	struct __attribute__((packed)) { struct kvm_signal_mask h; u64 mask; } mask = { .h.len = 8, .mask = ~(1ull << 39) };
	if (ioctl(vcpu, KVM_SET_SIGNAL_MASK, &mask)) DIE("KVM_SET_SIGNAL_MASK");
	run->immediate_exit = 1;
	if (ioctl(vcpu, KVM_RUN, 0) != -1 || errno != EINTR) DIE("KVM_RUN with immediate_exit");
	run->immediate_exit = 0;
	cpus[0] = (struct cpu){ .fd = vcpu, .run = run, .pause = calloc(1 << 20, 8) };
	pthread_t t;
	if (pthread_create(&t, 0, first, &cpus[0])) DIE("pthread_create");
	pin(patch_cpu, own_priority);
	for (int i = 0; i < vcpus; i++)
		while (*(volatile u64 *)(window + passes + 64 * i) == 0) usleep(1000);
	u64 seed = 88172645463325252ull;
	for (int i = 0; i < n; i++) {
		seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
		usleep(1000 + seed % 1000);
		u64 at = tsc(), g = i + 1;
		/* ORDER(O1), requester: req, then immediate_exit, then the signal. Pairs with immediate_exit = 0, drain, look at req in
		 * stopped and turns. Without it both could read the old value and the kick be lost. */
		__atomic_store_n(&to.req, g, __ATOMIC_SEQ_CST);
		for (int v = 0; v < vcpus; v++) {
			__atomic_store_n(&cpus[v].run->immediate_exit, 1, __ATOMIC_SEQ_CST);
			if (syscall(SYS_tgkill, getpid(), cpus[v].tid, 40)) DIE("tgkill");
			__atomic_fetch_add(&cpus[v].sent, 1, __ATOMIC_SEQ_CST); /* ORDER(O1): behind the signal; pairs with stopped's look at sent. Without the order one that is not there yet would be taken for taken. */
		}
		wait_for(&from.acked, g * vcpus, &from.bell, &from.asleep);
		/* The immediate lies in bytes 1 to 4 of an aligned word. */
		__atomic_store_n(word, i & 1 ? old : (old & ~0xffffffff00ull) | 0x2222222200ull, __ATOMIC_SEQ_CST);
		__atomic_store_n(&to.go, g, __ATOMIC_SEQ_CST);
		ring(&to.bell, &to.asleep);
		wait_for(&from.synced, g * vcpus, &from.bell, &from.asleep);
		__atomic_store_n(&to.rel, g, __ATOMIC_SEQ_CST);
		ring(&to.bell, &to.asleep);
		out[i] = tsc() - at;
	}
	usleep(20000); /* the last pauses are written */
	u64 zero = 0;
	if (fwrite(out, 8, n, stdout) != (size_t)n || fwrite(&zero, 8, 1, stdout) != 1) DIE("write");
	for (int v = 0; v < vcpus; v++)
		if (fwrite(cpus[v].pause, 8, cpus[v].paused, stdout) != cpus[v].paused) DIE("write");
	if (fflush(stdout)) DIE("write");
	_exit(0);
}
