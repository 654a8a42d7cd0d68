/* A program that tests patch: it takes orders on its standard input, and does itself what Cloister would do to it. Answers are lines, or bytes for peek. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define SPARE (256 << 10)
#define KEEP __attribute__((noinline, noclone))

long gain = 3;
const char *title = "target";
extern char end[];
long note_of(long);

/* Local data and a local function: new code may name them. */
static volatile long hidden = 40;
static KEEP long secret(long x) { return x + hidden; }

KEEP long scale(long x) { return x * gain; }
KEEP long filter(long x) { return scale(x) + 1; }
KEEP long other(long x) { return secret(x) - 1; }
KEEP long plain(long x) { return filter(x) + other(x); }
__attribute__((noinline, noclone, patchable_function_entry(0))) long closed(long x) { return scale(x) - 7; }
__attribute__((noinline, noclone, patchable_function_entry(16, 11))) long early(long x) { return scale(x) - 8; }

/* Declared sites, as the SDK makes them (guest/abi, NoteSite). */
#define NOTE_HEAD(kind, name) \
	".pushsection .note.cloister, \"a\", @note\n.balign 4\n.long 9f - 8f, 6f - 5f, 1\n8: .asciz \"Cloister\"\n9: .balign 4\n" \
	"5: .long " kind "\n.long 2b - 1b\n.quad 1b - .\n"
#define NOTE_TAIL(name) ".asciz \"" name "\"\n6: .balign 4\n.popsection\n"
#define IMM(insn, width, name, out, ...) \
	__asm__ volatile("1: " insn "\n2:\n" NOTE_HEAD("1", name) ".long 2b - 1b - " #width "\n.long " #width "\n" NOTE_TAIL(name) : out : : "cc", "memory")

static KEEP long limit(long x)
{
	int v;
	IMM("movl $7, %0", 4, "rate.limit", "=r"(v));
	return x + v;
}

static KEEP long twice(long x)
{
	int v;
	IMM("movl $7, %0", 4, "rate.limit", "=r"(v));
	return 2 * x + v;
}

static KEEP long narrow(long x)
{
	long v = x;
	IMM("addq $3, %0", 1, "rate.step", "+r"(v));
	return v;
}

static KEEP long wide(long x)
{
	long v;
	IMM("movabsq $0x1122334455667788, %0", 8, "rate.wide", "=r"(v));
	return v + x;
}

static unsigned char mark;
static KEEP long byte(long x)
{
	IMM("movb $1, mark(%%rip)", 1, "mark", "+m"(mark));
	return mark + x;
}

static KEEP long traced(long x)
{
	__asm__ goto("1: .byte 0x0f, 0x1f, 0x44, 0, 0\n2:\n" NOTE_HEAD("2", "trace") ".quad %l[on] - .\n" NOTE_TAIL("trace") : : : : on);
	return x;
on:
	return x + 1000;
}

/* One instruction each that a raw site can change: add, and a string instruction that repeats. */
KEEP long raw(long x)
{
	__asm__ volatile("addq $5, %0\n\tnopw 0(%%rax,%%rax)" : "+r"(x));
	return x;
}
KEEP long strings(long x)
{
	char b[64];
	void *d = b;
	long n = 64;
	__asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(x) : "memory");
	return b[63];
}

/* Keeps in the program what new code calls: a function that is chosen at start-up (glibc), and some that are not. */
KEEP long library(long x)
{
	char b[64];
	snprintf(b, sizeof b, "%ld", x);
	memcpy(b + 32, b, 16);
	memset(b, (int)x, 8);
	errno = 0;
	char *d = malloc(16);
	memcpy(d, b + 32, 16);
	x = (long)strlen(d) + labs(strtol(d, 0, 10)) + errno;
	free(d);
	return x;
}

/* Chosen at start-up, and never asked for. */
static long first(long x) { return x; }
static long (*choose(void))(long) { return first; }
long chosen(long) __attribute__((ifunc("choose")));

static long (*call(const char *name))(long)
{
	static const struct { const char *name; long (*f)(long); } all[] = {
		{"filter", filter}, {"other", other}, {"plain", plain}, {"closed", closed}, {"early", early}, {"limit", limit}, {"twice", twice}, {"narrow", narrow},
		{"wide", wide}, {"byte", byte}, {"traced", traced}, {"raw", raw}, {"strings", strings}, {"library", library}, {"note_of", note_of},
	};
	for (size_t i = 0; i < sizeof all / sizeof *all; i++)
		if (!strcmp(all[i].name, name))
			return all[i].f;
	return 0;
}

static void poke(unsigned long at, const char *hex)
{
	unsigned long page = at & ~4095UL, n = strlen(hex) / 2, size = ((at + n + 4095) & ~4095UL) - page;
	if (mprotect((void *)page, size, PROT_READ | PROT_WRITE | PROT_EXEC)) {
		perror("mprotect");
		exit(1);
	}
	for (unsigned long i = 0; i < n; i++) {
		unsigned v = 0;
		sscanf(hex + 2 * i, "%2x", &v);
		((volatile unsigned char *)at)[i] = (unsigned char)v;
	}
}

int main(void)
{
	static char line[1 << 20], name[1 << 20];
	/* Behind the image, far enough for the heap to grow. The kernel begins the heap of a fixed image anywhere in the first
	   GiB behind it (6.18: 1 start in 1000 met it): where something is, the next place is tried. */
	char *spare = MAP_FAILED;
	for (unsigned long off = 512; spare == MAP_FAILED && off < 1536; off += 16) {
		char *at = (char *)(((unsigned long)end + (off << 20)) & ~4095UL);
		spare = mmap(at, 2 * SPARE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	}
	if (spare == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	setvbuf(stdout, 0, _IOFBF, 1 << 16);
	printf("%lx %lx %s %ld\n", (unsigned long)main, (unsigned long)spare, title, library(12));
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		unsigned long at, n;
		long x;
		if (sscanf(line, "peek %lx %lu", &at, &n) == 2)
			fwrite((void *)at, 1, n, stdout);
		else if (sscanf(line, "poke %lx %s", &at, name) == 2)
			poke(at, name);
		else if (sscanf(line, "call %s %ld", name, &x) == 2 && call(name))
			printf("%ld\n", call(name)(x));
		else
			return 2;
		fflush(stdout);
	}
	return 0;
}
