/*
 * floor: the least that runs a static ELF under KVM as Cloister does: CPL 3 in long mode, addresses mirrored
 * (guest virtual == guest physical == offset in the memory file), the same descriptor tables, stubs, CPUID
 * and vDSO, system calls by OUT from the LSTAR stub, registers by KVM_CAP_SYNC_REGS. One thread, no ledger,
 * no checks of what the guest does, nothing said on failure but where. It is the denominator of bench/RESULTS.md.
 *
 *   floor [-c CPU] [-f PRIORITY] [-l FILE] [-r CPU] run PROGRAM [ARG...]
 *   floor -c CPU [-f PRIORITY] [-l FILE] [-k CPU] kick N PROGRAM
 *
 * With -r the calls RING_CALLS go through the ring stub to a process on that CPU, from the guest's first exit on. -l names a
 * file with CR4, XCR0 and CPUID for another machine than the one that layout.h was written on.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include "layout.h" /* written by bench from the Go packages */

typedef uint64_t u64;

#define DIE(what) die(what, __LINE__)
static void die(const char *what, int line)
{
	fprintf(stderr, "floor:%d: %s: %s\n", line, what, strerror(errno));
	_exit(125);
}

static inline u64 tsc(void)
{
	unsigned lo, hi;
	__asm__ volatile("lfence; rdtsc" : "=a"(lo), "=d"(hi)::"memory");
	return (u64)hi << 32 | lo;
}

enum { SUP_SIZE = 2 << 20, PAGE = 4096, STACK_SIZE = 8 << 20, HEAP = 4 << 20 };

static const unsigned (*cpuid_list)[7] = cpuid_entries;
static unsigned cpuid_count = sizeof cpuid_entries / sizeof *cpuid_entries;
static int kvm, vm, vcpu;
static char *window, *sup;
static struct kvm_run *run;
static u64 cr4_guest = CR4_GUEST, xcr0_guest = XCR0_GUEST;
static int ring_cpu = -1;
static u64 next_table = SUP_TABLES + PAGE, brk_now, brk_end;
static struct kvm_segment user_cs = { .limit = ~0u, .type = 11, .present = 1, .dpl = 3, .s = 1, .l = 1, .g = 1, .selector = SEL_USER_CS };
static struct kvm_segment user_ss = { .limit = ~0u, .type = 3, .present = 1, .dpl = 3, .db = 1, .s = 1, .g = 1, .selector = SEL_USER_SS };

/* other_machine reads what `bench cpuid` writes: CR4, XCR0, and seven words for each entry of CPUID. */
static void other_machine(const char *name)
{
	static struct { u64 cr4, xcr0; unsigned e[256][7]; } f;
	int fd = open(name, O_RDONLY | O_CLOEXEC);
	ssize_t n = read(fd, &f, sizeof f);
	if (n < 16 || (n - 16) % 28) DIE(name);
	close(fd);
	cr4_guest = f.cr4, xcr0_guest = f.xcr0;
	cpuid_list = (const unsigned (*)[7])f.e, cpuid_count = (n - 16) / 28;
}

static void slot(u64 gpa, u64 size, void *host, int readonly)
{
	static unsigned n;
	struct kvm_userspace_memory_region r = { .slot = n++, .flags = readonly ? KVM_MEM_READONLY : 0,
		.guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (u64)host };
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &r)) DIE("memory slot");
}

/* map enters [va, va+n) -> gpa into the page tables; accessed and dirty are set in advance. */
static void map(u64 va, u64 gpa, u64 n, u64 flags)
{
	for (u64 off = 0; off < n; off += PAGE) {
		u64 *t = (u64 *)(sup + SUP_TABLES);
		for (int level = 3; level > 0; level--) {
			u64 *e = &t[(va + off) >> (12 + 9 * level) & 511];
			if (!*e) {
				*e = (SUP_GPA + next_table) | 7;
				next_table += PAGE;
				if (next_table > SUP_SIZE) DIE("page tables");
			}
			t = (u64 *)(sup + ((*e & ~(u64)4095) - SUP_GPA));
		}
		t[(va + off) >> 12 & 511] = (gpa + off) | flags | 0x61;
	}
}

enum { U = 4, W = 2 };
#define NX (1ull << 63)

static u64 up(u64 v) { return (v + PAGE - 1) & ~(u64)(PAGE - 1); }
static u64 down(u64 v) { return v & ~(u64)(PAGE - 1); }

static void put(u64 gva, const void *p, size_t n) { memcpy(window + gva, p, n); }

/* clock_pages maps the host's [vvar] and [vdso] and returns where the vDSO lies. */
static u64 clock_pages(void)
{
	char line[512];
	u64 base = 0, vdso = 0;
	FILE *f = fopen("/proc/self/maps", "r");
	if (!f) DIE("/proc/self/maps");
	while (fgets(line, sizeof line, f)) {
		u64 a, b;
		char *name = strstr(line, "[v");
		if (!name || strstr(line, "[vsyscall]") || sscanf(line, "%lx-%lx", &a, &b) != 2) continue;
		if (!base) base = a;
		u64 at = VDSO_BASE + a - base;
		slot(at, b - a, (void *)a, 1);
		map(at, at, b - a, strstr(line, " r-xp ") ? U : U | NX);
		if (!strncmp(name, "[vdso]", 6)) vdso = at;
	}
	fclose(f);
	return vdso;
}

static void load(const char *path, char **argv)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	Elf64_Ehdr h;
	Elf64_Phdr ph[32];
	if (fd < 0 || pread(fd, &h, sizeof h, 0) != sizeof h || h.e_phnum > 32) DIE(path);
	if (pread(fd, ph, h.e_phnum * sizeof *ph, h.e_phoff) < 0) DIE(path);
	u64 low = ~0ull, high = 0, phdr = 0;
	for (int i = 0; i < h.e_phnum; i++) {
		Elf64_Phdr *p = &ph[i];
		if (p->p_type != PT_LOAD) continue;
		u64 a = down(p->p_vaddr), b = up(p->p_vaddr + p->p_memsz);
		if (a < low) low = a;
		if (b > high) high = b;
		if (pread(fd, window + p->p_vaddr, p->p_filesz, p->p_offset) != (ssize_t)p->p_filesz) DIE("segment");
		map(a, a, b - a, U | (p->p_flags & PF_W ? W : 0) | (p->p_flags & PF_X ? 0 : NX));
		if (p->p_flags & PF_X) slot(a, b - a, window + a, 1);
		if (h.e_phoff >= p->p_offset && h.e_phoff < p->p_offset + p->p_filesz) phdr = h.e_phoff - p->p_offset + p->p_vaddr;
	}
	/* What is not text lies in slots of its own, between and behind. */
	u64 at = low;
	brk_now = high;
	brk_end = high + HEAP;
	for (int i = 0; i < h.e_phnum; i++) {
		Elf64_Phdr *p = &ph[i];
		if (p->p_type != PT_LOAD || !(p->p_flags & PF_X)) continue;
		if (at < down(p->p_vaddr)) slot(at, down(p->p_vaddr) - at, window + at, 0);
		at = up(p->p_vaddr + p->p_memsz);
	}
	slot(at, brk_end - at, window + at, 0);
	map(high, high, HEAP, U | W | NX);
	slot(STACK_TOP - STACK_SIZE, STACK_SIZE, window + STACK_TOP - STACK_SIZE, 0);
	map(STACK_TOP - STACK_SIZE, STACK_TOP - STACK_SIZE, STACK_SIZE, U | W | NX);

	extern char **environ;
	u64 vdso = clock_pages(), sp = STACK_TOP - 64, rnd, v[512];
	char bytes[16];
	int n = 0, argc = 0;
	if (getrandom(bytes, 16, 0) != 16) DIE("getrandom");
	put(rnd = sp -= 16, bytes, 16);
	v[n++] = 0;
	for (; argv[argc]; argc++) { size_t l = strlen(argv[argc]) + 1; put(sp -= l, argv[argc], l); v[n++] = sp; }
	v[0] = argc;
	v[n++] = 0;
	for (char **e = environ; *e && n < 400; e++) { size_t l = strlen(*e) + 1; put(sp -= l, *e, l); v[n++] = sp; }
	v[n++] = 0;
	u64 aux[] = { AT_PHDR, phdr, AT_PHENT, sizeof *ph, AT_PHNUM, h.e_phnum, AT_PAGESZ, PAGE, AT_ENTRY, h.e_entry, AT_RANDOM, rnd,
		AT_UID, getuid(), AT_EUID, geteuid(), AT_GID, getgid(), AT_EGID, getegid(), AT_SECURE, 0, AT_CLKTCK, 100,
		AT_HWCAP, getauxval(AT_HWCAP), AT_HWCAP2, getauxval(AT_HWCAP2), 51 /* AT_MINSIGSTKSZ */, getauxval(51),
		AT_EXECFN, v[1], AT_SYSINFO_EHDR, vdso, AT_NULL, 0 };
	memcpy(v + n, aux, sizeof aux);
	n += sizeof aux / 8;
	sp = (sp - n * 8) & ~15ull;
	put(sp, v, n * 8);
	close(fd);
	struct kvm_regs r = { .rip = h.e_entry, .rsp = sp, .rflags = 0x202 };
	if (ioctl(vcpu, KVM_SET_REGS, &r)) DIE("KVM_SET_REGS");
}

static void machine(void)
{
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0) DIE("/dev/kvm");
	if (ioctl(kvm, KVM_GET_API_VERSION, 0) != 12) DIE("KVM_GET_API_VERSION");
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0) DIE("KVM_CREATE_VM");
	int g = memfd_create("floor-guest", MFD_CLOEXEC), s = memfd_create("floor-sup", MFD_CLOEXEC);
	if (g < 0 || s < 0 || ftruncate(g, USER_TOP) || ftruncate(s, SUP_SIZE)) DIE("memfd");
	window = mmap(0, USER_TOP, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, g, 0);
	sup = mmap(0, SUP_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, s, 0);
	if (window == MAP_FAILED || sup == MAP_FAILED) DIE("mmap");
	memcpy(sup, sup_block, sizeof sup_block);
	slot(SUP_GPA, SUP_SIZE, sup, 0);
	map(SUP_VA, SUP_GPA, SUP_USER, W);
	map(SUP_VA + SUP_USER, SUP_GPA + SUP_USER, PAGE, U);
	map(SUP_VA + SUP_USER + PAGE, SUP_GPA + SUP_USER + PAGE, PAGE, W);
	map(SUP_VA + SUP_TSS, SUP_GPA + SUP_TSS, 2 * PAGE, W); /* TSS and stack */

	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0) DIE("KVM_CREATE_VCPU");
	run = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED) DIE("kvm_run");

	struct { struct kvm_cpuid2 h; struct kvm_cpuid_entry2 e[256]; } *c = calloc(1, sizeof *c);
	c->h.nent = 256;
	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, c)) DIE("KVM_GET_SUPPORTED_CPUID");
	c->h.nent = cpuid_count;
	for (unsigned i = 0; i < c->h.nent; i++) {
		const unsigned *e = cpuid_list[i];
		c->e[i] = (struct kvm_cpuid_entry2){ .function = e[0], .index = e[1], .flags = e[2], .eax = e[3], .ebx = e[4], .ecx = e[5], .edx = e[6] };
	}
	if (ioctl(vcpu, KVM_SET_CPUID2, c)) DIE("KVM_SET_CPUID2");
	free(c);

	struct kvm_sregs r;
	if (ioctl(vcpu, KVM_GET_SREGS, &r)) DIE("KVM_GET_SREGS");
	struct kvm_segment null = { .unusable = 1 };
	r.cs = user_cs;
	r.ss = user_ss;
	r.ds = r.es = r.fs = r.gs = r.ldt = null;
	r.tr = (struct kvm_segment){ .base = SUP_VA + SUP_TSS, .limit = TSS_LIMIT, .selector = SEL_TSS, .type = 11, .present = 1 };
	r.gdt.base = SUP_VA + SUP_GDT, r.gdt.limit = GDT_LIMIT;
	r.idt.base = SUP_VA + SUP_IDT, r.idt.limit = 4095;
	r.cr0 = CR0_GUEST, r.cr3 = SUP_GPA + SUP_TABLES, r.cr4 = cr4_guest, r.efer = EFER_GUEST;
	if (ioctl(vcpu, KVM_SET_SREGS, &r)) DIE("KVM_SET_SREGS");
	if (xcr0_guest) {
		struct kvm_xcrs x = { .nr_xcrs = 1, .xcrs = { { .xcr = 0, .value = xcr0_guest } } };
		if (ioctl(vcpu, KVM_SET_XCRS, &x)) DIE("KVM_SET_XCRS");
	}
	struct { struct kvm_msrs h; struct kvm_msr_entry e[4]; } m = { .h.nmsrs = 4,
		.e = { { .index = 0xc0000081, .data = STAR_GUEST }, { .index = 0xc0000082, .data = SYSCALL_ENTRY },
			{ .index = 0xc0000083, .data = SYSCALL_ENTRY }, { .index = 0xc0000084, .data = FMASK_GUEST } } };
	if (ioctl(vcpu, KVM_SET_MSRS, &m) != 4) DIE("KVM_SET_MSRS");
	u64 zero = 0;
	struct kvm_device_attr off = { .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (u64)&zero };
	if (!ioctl(vcpu, KVM_HAS_DEVICE_ATTR, &off) && ioctl(vcpu, KVM_SET_DEVICE_ATTR, &off)) DIE("TSC offset");
	run->kvm_valid_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
}

/* service is one system call of the guest's; it does not return from exit_group. */
static long service(struct kvm_regs *r)
{
	long a = r->rdi, b = r->rsi, c = r->rdx, n;
	switch (r->rax) {
	case SYS_getppid: return 1;
	case SYS_write: n = write(a, window + b, c); break;
	case SYS_writev: {
		struct iovec v[16];
		if (c > 16) return -EINVAL;
		memcpy(v, window + b, c * sizeof *v);
		for (int i = 0; i < c; i++) v[i].iov_base = window + (u64)v[i].iov_base;
		n = writev(a, v, c);
		break;
	}
	case SYS_ioctl: n = ioctl(a, b, window + c); break;
	case SYS_newfstatat: n = syscall(SYS_newfstatat, a, window + b, window + c, r->r10); break;
	case SYS_fstat: n = fstat(a, (struct stat *)(window + b)); break;
	case SYS_getrandom: n = getrandom(window + a, b, c); break;
	case SYS_getrusage: n = syscall(SYS_getrusage, a, window + b); break;
	case SYS_prlimit64: n = syscall(SYS_prlimit64, a, b, c ? window + c : 0, r->r10 ? window + r->r10 : 0); break;
	case SYS_readlink: return -EINVAL;
	case SYS_readlinkat: return -EINVAL;
	case SYS_mprotect: return 0;
	case SYS_brk:
		if ((u64)a > brk_now && (u64)a <= brk_end) brk_now = a;
		return brk_now;
	case SYS_arch_prctl:
		if (a != 0x1002) return -EINVAL; /* ARCH_SET_FS */
		if (ioctl(vcpu, KVM_GET_SREGS, &run->s.regs.sregs)) DIE("KVM_GET_SREGS");
		run->s.regs.sregs.fs.base = b;
		run->kvm_dirty_regs |= KVM_SYNC_X86_SREGS;
		return 0;
	case SYS_set_tid_address: return getpid();
	case SYS_exit: case SYS_exit_group: exit(a);
	default: return -ENOSYS;
	}
	return n < 0 ? -errno : n;
}

static void pin(int cpu, int priority)
{
	cpu_set_t s;
	CPU_ZERO(&s);
	CPU_SET(cpu, &s);
	if (cpu >= 0 && sched_setaffinity(0, sizeof s, &s)) DIE("sched_setaffinity");
	struct sched_param p = { .sched_priority = priority };
	if (priority && sched_setscheduler(0, SCHED_FIFO, &p)) DIE("SCHED_FIFO");
}

/* ring_server answers calls that the stub posts, for ever; it ends with its parent. */
static void ring_server(void)
{
	char *page = sup + RING_PAGE;
	u64 *arg = (u64 *)(page + RING_ARGS), served = 0, n;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	pin(ring_cpu, 0);
	for (;;) {
		/* ORDER(O12): acquires number and arguments; pairs with the stub's store of posted behind them. Without it
		 * they could be an older call's. */
		if ((n = __atomic_load_n((u64 *)(page + RING_POSTED), __ATOMIC_ACQUIRE)) == served) {
			__builtin_ia32_pause();
			continue;
		}
		struct kvm_regs r = { .rax = *(u64 *)(page + RING_NR), .rdi = arg[0], .rsi = arg[1], .rdx = arg[2], .r10 = arg[3], .r8 = arg[4], .r9 = arg[5] };
		*(u64 *)(page + RING_RESULT) = service(&r);
		/* ORDER(O12): publishes the result; pairs with the stub's loop on done. Without it the program could go on with
		 * the result of the call before. */
		__atomic_store_n((u64 *)(page + RING_DONE), n, __ATOMIC_RELEASE);
		served = n;
	}
}

/* open_ring points SYSCALL to the ring stub and starts its server. */
static void open_ring(int user)
{
	static const int calls[] = { RING_CALLS };
	char *page = sup + RING_PAGE;
	for (unsigned i = 0; i < sizeof calls / sizeof *calls; i++) page[RING_NUMBERS + calls[i] / 8] |= 1 << calls[i] % 8;
	memcpy(sup + RING_CODE, user ? ring_stub_user : ring_stub, PAGE);
	map(SUP_VA + RING_PAGE, SUP_GPA + RING_PAGE, PAGE, W | NX | (user ? U : 0));
	map(SUP_VA + RING_CODE, SUP_GPA + RING_CODE, PAGE, U);
	struct { struct kvm_msrs h; struct kvm_msr_entry e[1]; } m = { .h.nmsrs = 1, .e = { { .index = 0xc0000082, .data = SUP_VA + RING_CODE } } };
	if (ioctl(vcpu, KVM_SET_MSRS, &m) != 1) DIE("LSTAR");
	int child = fork();
	if (child < 0) DIE("fork");
	if (!child) ring_server();
}

/* stays: after SYSCALL this back end stays at CPL 3 (1) or not (2); the first exit tells. */
static int stays;

static void turn(void)
{
	struct kvm_regs *r = &run->s.regs.regs;
	if (run->exit_reason != KVM_EXIT_IO || run->io.port != 0x80) {
		fprintf(stderr, "floor: exit %u, port %#x, rip %#llx\n", run->exit_reason, run->io.port, r->rip);
		_exit(125);
	}
	run->kvm_dirty_regs = 0;
	if (!stays) {
		stays = run->s.regs.sregs.cs.dpl == 3 ? 1 : 2;
		run->kvm_valid_regs = KVM_SYNC_X86_REGS;
		if (ring_cpu >= 0) open_ring(stays == 1);
	}
	r->rax = service(r);
	if (stays == 1) {
		r->rip = r->rcx;
		r->rflags = r->r11;
	}
	run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
}

struct shared { u64 req, ack, ack_tsc, rel, quit; };

static void kicker(volatile struct shared *sh, int n, int tid, int cpu)
{
	u64 *out = calloc(n, sizeof *out), seed = 88172645463325252ull;
	pin(cpu, 0);
	for (int i = 0; i < n; i++) {
		seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
		usleep(1000 + seed % 1000);
		u64 at = tsc();
		/* ORDER(O1), requester: req, then immediate_exit, then the signal. Pairs with the vCPU's immediate_exit = 0,
		 * drain, look at req in main. Without it both could read the old value and the kick be lost. */
		__atomic_store_n(&sh->req, i + 1, __ATOMIC_SEQ_CST);
		__atomic_store_n(&run->immediate_exit, 1, __ATOMIC_SEQ_CST);
		if (syscall(SYS_tgkill, tid, tid, 40)) DIE("tgkill");
		for (int spin = 0; __atomic_load_n(&sh->ack, __ATOMIC_ACQUIRE) != (u64)i + 1; spin++)
			if (spin < 200) __builtin_ia32_pause(); else usleep(20);
		out[i] = sh->ack_tsc - at;
		__atomic_store_n(&sh->rel, i + 1, __ATOMIC_RELEASE);
	}
	__atomic_store_n(&sh->quit, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_tgkill, tid, tid, 40);
	if (fwrite(out, sizeof *out, n, stdout) != (size_t)n || fflush(stdout)) DIE("write");
	_exit(0);
}

int main(int argc, char **argv)
{
	int o, cpu = -1, priority = 0, kick_cpu = -1;
	while ((o = getopt(argc, argv, "+c:f:k:l:r:")) != -1)
		switch (o) {
		case 'c': cpu = atoi(optarg); break;
		case 'f': priority = atoi(optarg); break;
		case 'k': kick_cpu = atoi(optarg); break;
		case 'l': other_machine(optarg); break;
		case 'r': ring_cpu = atoi(optarg); break;
		default: return 125;
		}
	argv += optind;
	if (argc - optind < 2) return 125;
	int kicks = 0;
	if (!strcmp(*argv, "kick")) kicks = atoi(*++argv);
	argv++;
	machine();
	load(*argv, argv);
	/* One KVM_RUN that returns at once, before pinning: the kernel thread of the VM inherits the mask. */
	run->immediate_exit = 1;
	if (ioctl(vcpu, KVM_RUN, 0) != -1 || errno != EINTR) DIE("KVM_RUN with immediate_exit");
	run->immediate_exit = 0;
	if (!kicks) {
		pin(cpu, priority);
		for (;;) {
			if (ioctl(vcpu, KVM_RUN, 0) < 0 && errno != EINTR) DIE("KVM_RUN");
			turn();
		}
	}
	struct shared *sh = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	sigset_t kick;
	sigemptyset(&kick);
	sigaddset(&kick, 40);
	sigprocmask(SIG_BLOCK, &kick, 0);
	struct __attribute__((packed)) { struct kvm_signal_mask h; u64 mask; } mask = { .h.len = 8, .mask = ~(1ull << 39) };
	if (ioctl(vcpu, KVM_SET_SIGNAL_MASK, &mask)) DIE("KVM_SET_SIGNAL_MASK");
	int tid = getpid(), child = fork();
	if (child < 0) DIE("fork");
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		kicker(sh, kicks, tid, kick_cpu);
	}
	pin(cpu, priority);
	for (u64 done = 0;;) {
		/* ORDER(O1), vCPU: clear, drain, and only then look at quit and req: a kick behind the look ends KVM_RUN.
		 * Pairs with the stores of kicker; without it a kick that came in between would be wiped out. */
		__atomic_store_n(&run->immediate_exit, 0, __ATOMIC_SEQ_CST);
		struct timespec zero = { 0 };
		while (sigtimedwait(&kick, 0, &zero) > 0) { }
		if (__atomic_load_n(&sh->quit, __ATOMIC_SEQ_CST)) break;
		u64 at = 0, g = __atomic_load_n(&sh->req, __ATOMIC_SEQ_CST);
		if (g == done) {
			int r = ioctl(vcpu, KVM_RUN, 0);
			at = tsc();
			if (r == 0) { turn(); continue; }
			if (errno != EINTR) DIE("KVM_RUN");
			g = __atomic_load_n(&sh->req, __ATOMIC_SEQ_CST);
		}
		if (g != done) {
			/* ORDER(O1): ack publishes ack_tsc, pairs with the load of ack in kicker; without it kicker could
			 * read the stamp of the kick before. The store of rel hands over nothing but the turn. */
			sh->ack_tsc = at ? at : tsc();
			__atomic_store_n(&sh->ack, g, __ATOMIC_RELEASE);
			while (__atomic_load_n(&sh->rel, __ATOMIC_ACQUIRE) != g) __builtin_ia32_pause();
			done = g;
		}
	}
	int st;
	waitpid(child, &st, 0);
	return WIFEXITED(st) ? WEXITSTATUS(st) : 125;
}
