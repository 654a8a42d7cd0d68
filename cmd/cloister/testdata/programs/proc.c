// What run-time libraries read of themselves at start, compared with what the kernel says otherwise.
//   proc             the form and content of /proc/self and its neighbours
//   proc read FILE N reads FILE by calls of N bytes
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

static char text[1 << 16];

static long slurp(const char *path)
{
	int f = open(path, O_RDONLY);
	long n = 0, r;
	while (f >= 0 && (r = read(f, text + n, sizeof text - 1 - n)) > 0)
		n += r;
	if (f < 0)
		printf("%s: cannot be opened\n", path);
	else
		close(f);
	text[n] = 0;
	return n;
}

static int words(const char *s)
{
	int n = 0;
	for (; *s; n++) {
		s += strspn(s, " \t\n");
		if (!*s)
			break;
		s += strcspn(s, " \t\n");
	}
	return n;
}

static long sum;

static long reads(const char *path, long size)
{
	char *b = malloc(size);
	int f = open(path, O_RDONLY);
	long n, total = 0;
	while ((n = read(f, b, size)) > 0) {
		for (long i = 0; i < n; i += 4096)
			sum += b[i];
		total += n;
	}
	printf("%ld bytes, sum %ld\n", total, sum);
	return n < 0;
}

int main(int argc, char **argv)
{
	if (argc > 3 && !strcmp(argv[1], "read"))
		return reads(argv[2], atol(argv[3]));
	long n = slurp("/proc/self/auxv"), wrong = 0, entries = 0;
	for (unsigned long *a = (void *)text; (char *)a < text + n; a += 2, entries++)
		wrong += a[0] && getauxval(a[0]) != a[1];
	printf("auxv: %d entries or more, %ld differ, ends with 0: %d\n", entries > 15 ? 15 : 0, wrong, ((unsigned long *)(text + n))[-2] == 0);
	slurp("/proc/self/comm"), printf("comm %s", text);
	slurp("/proc/self/stat"), printf("stat %d\n", words(text));
	slurp("/proc/self/statm"), printf("statm %d\n", words(text));
	struct rlimit r = { 100, 200 };
	setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 });
	slurp("/proc/self/limits"), printf("%.90s", strstr(text, "Max core"));
	setrlimit(RLIMIT_NOFILE, &r);
	slurp("/proc/self/limits"), printf("%.90s", strstr(text, "Max open"));
	slurp("/proc/self/cmdline"), printf("cmdline %s\n", text + strlen(text) - 4);
	int shell = readlink("/proc/self/exe", text, sizeof text);
	printf("exe %d\n", shell > 0);
	slurp("/proc/sys/kernel/osrelease"), printf("osrelease %s", text);
	slurp("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"), printf("huge %s", text);
	slurp("/proc/sys/vm/overcommit_memory"), printf("overcommit %d\n", words(text));
	slurp("/proc/self/mountinfo"), printf("mountinfo %d\n", strstr(text, " - ") != 0);
	slurp("/proc/self/task/self/comm");
	slurp("/proc/thread-self/comm"), printf("thread %s", text);
	int d = open("/dev", O_RDONLY | O_DIRECTORY);
	printf("getdents %d\n", syscall(SYS_getdents, d, text, sizeof text) > 100);
	return 0;
}
