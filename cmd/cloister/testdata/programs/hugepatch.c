/* Calls a function that is replaced meanwhile, and tries to write to its old code and to its new code. It ends when it has its first body back, and
 * says what it saw, one line for each version. */
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cloister_patch.h"

CLOISTER_PATCHABLE int64_t filter(int64_t sample, int64_t *version)
{
	*version = 1;
	return sample;
}

static sigjmp_buf back;
static unsigned char data;

static void refused(int sig) { siglongjmp(back, sig); }

static int writable(volatile unsigned char *code)
{
	if (sigsetjmp(back, 1) != 0)
		return 0;
	*code = *code;
	return 1;
}

/* body is where filter's code is: behind the jump of a patch, if there is one. */
static unsigned char *body(void)
{
	unsigned char *at = (unsigned char *)(uintptr_t)filter;
	int32_t to;

	if (memcmp(at, "\xf3\x0f\x1e\xfa", 4) == 0) /* ENDBR64 */
		at += 4;
	if (*at != 0xe9)
		return at;
	memcpy(&to, at + 1, sizeof to);
	return at + 5 + to;
}

int main(void)
{
	int64_t last = 0;

	signal(SIGSEGV, refused);
	for (;;) {
		int64_t version, out = filter(100, &version);

		if (version != last) {
			printf("version %d: %d, code %s, old code %s, new code %s, data %s\n", (int)version, (int)out, body() == (unsigned char *)(uintptr_t)filter ? "own" : "elsewhere",
			       writable((unsigned char *)(uintptr_t)filter) ? "written" : "kept", writable(body()) ? "written" : "kept", writable(&data) ? "written" : "kept");
			fflush(stdout);
			if (last == 2)
				return 0;
			last = version;
		}
		usleep(1000);
	}
}
