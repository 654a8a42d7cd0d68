/* hello: what is started and timed from start to exit. */
#include <stdio.h>

int main(void)
{
	puts("hello");
	return 0;
}
