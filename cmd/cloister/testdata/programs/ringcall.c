/* ring: system calls in a sealed loop; with --syscalls=ring none of them leaves the guest but the last kind. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* All registers that SYSCALL keeps, and the flags, around one call. */
static int keeps(int fd)
{
	uint64_t in[6] = {0x1111111111111111, 0x2222222222222222, 0x3333333333333333, 0x4444444444444444, 0x5555555555555555, 0x6666666666666666}, out[6];
	register uint64_t r8 __asm__("r8") = 8, r9 __asm__("r9") = 9, r10 __asm__("r10") = 10;
	long ret = SYS_write, flags = 0;
	uint64_t di = fd, si = (uint64_t)"0123456789", dx = 10;
	__asm__ volatile(
		"mov (%[in]),%%rbx\n mov 8(%[in]),%%r12\n mov 16(%[in]),%%r13\n mov 24(%[in]),%%r14\n"
		"stc\n syscall\n"
		"mov %%rbx,(%[out])\n mov %%r12,8(%[out])\n mov %%r13,16(%[out])\n mov %%r14,24(%[out])\n"
		"setc %b[flags]\n"
		: "+a"(ret), "+D"(di), "+S"(si), "+d"(dx), "+r"(r8), "+r"(r9), "+r"(r10), [flags] "+m"(flags)
		: [in] "r"(in), [out] "r"(out)
		: "rbx", "r12", "r13", "r14", "rcx", "r11", "memory", "cc");
	return ret == 10 && di == (uint64_t)fd && dx == 10 && r8 == 8 && r9 == 9 && r10 == 10 && !memcmp(in, out, 32) && flags == 1;
}

int main(int argc, char **argv)
{
	int blocked = argc > 1 && !strcmp(argv[1], "wait");
	int null = open("/dev/null", O_WRONLY), p[2], sum = 0, kept = 0, wrong = 0;
	struct stat st;
	char b[64];
	if (pipe(p)) return 1;
	syscall(0x434c00, 1);
	for (int i = 0; i < 1000; i++) {
		sum += write(null, "hello\n", 6);
		sum += write(p[1], &i, 4);
		int back = -1;
		sum += read(p[0], &back, 4);
		wrong += back != i;
		kept += keeps(null);
	}
	for (int i = 0; i < 10; i++) {
		char line[32];
		int n = snprintf(line, sizeof line, "line %d\n", i);
		wrong += write(1, line, n) != n;
	}
	wrong += write(77, "x", 1) != -1 || errno != EBADF;
	wrong += syscall(SYS_write, 1, 8L, 1L) != -1 || errno != EFAULT;
	wrong += fstat(p[0], &st) || !S_ISFIFO(st.st_mode);
	if (blocked) {
		struct pollfd f = {p[0], POLLIN, 0};
		wrong += poll(&f, 1, 20) != 0;       /* waits: by an exit */
		fcntl(p[0], F_SETFL, O_NONBLOCK);    /* not for the ring */
		wrong += read(p[0], b, 1) != -1 || errno != EAGAIN; /* answered by the ring */
	}
	syscall(0x434c00, 0);
	printf("%d %d %d\n", sum, kept, wrong);
	return 0;
}
