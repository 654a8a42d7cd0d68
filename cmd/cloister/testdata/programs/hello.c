/* What a small C program does with its surroundings: everything that it prints must be as natively. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <time.h>
#include <unistd.h>

static _Thread_local int tls = 41;
static jmp_buf back;
extern char **environ;

static int compare(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }
static void bye(void) { fputs("atexit\n", stdout); }

/* hex prints a string so that every byte shows. */
static void hex(const char *what, int n, const char *s)
{
	printf("%s[%d] ", what, n);
	for (; *s; s++)
		printf("%02x", (unsigned char)*s);
	putchar('\n');
}

int main(int argc, char **argv)
{
	char line[4096];
	size_t n, sum = 0, total = 0;
	struct timespec a, b;
	int i;

	atexit(bye);
	for (i = 0; i < argc; i++)
		hex("arg", i, argv[i]);
	for (i = 0; environ[i]; i++)
		;
	printf("%d variables\n", i);
	qsort(environ, i, sizeof *environ, compare);
	for (i = 0; environ[i]; i++)
		hex("env", i, environ[i]);
	printf("pi %.15f %Lg %d\n", 4 * atan(1), 1.0L / 3, ++tls);
	if (setjmp(back) == 0)
		longjmp(back, 1);
	printf("page %lu, execfn %s\n", getauxval(AT_PAGESZ), (char *)getauxval(AT_EXECFN));
	clock_gettime(CLOCK_MONOTONIC, &a);
	clock_gettime(CLOCK_MONOTONIC, &b);
	puts(b.tv_sec > a.tv_sec || (b.tv_sec == a.tv_sec && b.tv_nsec >= a.tv_nsec) ? "time passes" : "time flies back");
	for (i = 1; i < 2000; i++) {
		char *p = malloc(i * 7);

		memset(p, i, i * 7);
		if (i % 3)
			free(p);
	}
	while ((n = fread(line, 1, sizeof line, stdin)) > 0)
		for (total += n, i = 0; i < (int)n; i++)
			sum = sum * 31 + (unsigned char)line[i];
	printf("stdin %zu bytes, %zx, error %d\n", total, sum, ferror(stdin) ? errno : 0);
	fflush(stdout);
	fprintf(stderr, "to stderr\n");
	return argc > 1 ? 7 : 0;
}
