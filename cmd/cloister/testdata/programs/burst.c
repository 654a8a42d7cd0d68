/* Makes its system calls at once, and then none for three seconds. */
#include <time.h>
#include <unistd.h>

int main(void)
{
	struct timespec t, now;
	for (int i = 0; i < 30; i++)
		getppid();
	clock_gettime(CLOCK_MONOTONIC, &t);
	do
		clock_gettime(CLOCK_MONOTONIC, &now);
	while (now.tv_sec - t.tv_sec < 4);
	return 0;
}
