/* sealing: for each line of standard input it asks to be sealed, is unsealed again, and prints the first answer. */
#include <stdio.h>

#include "cloister.h"

int main(void)
{
	char line[64];

	while (fgets(line, sizeof line, stdin)) {
		int on = cloister_isolate(1);

		if (on == 0)
			cloister_isolate(0);
		printf("%d\n", on);
		fflush(stdout);
	}
	return 0;
}
